"""Many runs as one compiled program: the members of a population differ in their seeds and in numbers.

`build` is traced with the numbers that vary, so a step is built inside of the program, for one member, and mapped over
the members. What a program needs to be one is shared: shapes, cadences, the data. A member's numbers are those of the
run made alone, to rounding, whoever its companions are and wherever it lies on the devices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import checks, devices
from diffusion.data import pipeline
from diffusion.data.order import Order
from diffusion.evaluation import gap
from diffusion.training import assembly
from diffusion.training import step as steps
from diffusion.training.experiment import Experiment
from diffusion.training.state import TrainState
from diffusion.types import Array, CrossMean, Rows

# What the loop, the devices and the shapes of the program rest on.
STRUCTURE = (
  'num_steps', 'batch_size', 'log_every', 'validate_every', 'steps_per_dispatch', 'micro_batches', 'gradient_noise',
  'judged',
)  # fmt: skip


class Member(NamedTuple):
  """What a member has of its own beside its state; with a leading axis for all of them together.

  Attributes:
    values: the numbers that vary, by name.
    units: mean and deviation of its data; () where they are alike.
    order: int32 [n], of its curriculum, filled up with zeros; () without one.
    size: int32, how many of them count; () where all do.
    looked_at: int32 [v], the rows that validation looks at, filled up with zeros.
    position: int32 [v], their places in the bank.
    live: whether it moves.
  """

  values: dict[str, Any]
  units: tuple[Any, ...]
  order: Any
  size: Any
  looked_at: Any
  position: Any
  live: Any


class Population(NamedTuple):
  """What the members have in common, and each one's own.

  Attributes:
    build: the values of a member -> its Experiment; traceable.
    experiment: of the first member, for what all share.
    units: of the shared data; mean and deviation are the members' own where they differ.
    data: all examples, as stored.
    members: stacked: every leaf is [K, ...].
    orders: in which each one's training examples come.
    parts: of each member, how many training and held-out rows `looked_at` begins with.
  """

  build: Callable[[Mapping[str, Any]], Experiment]
  experiment: Experiment
  units: pipeline.Units
  data: pipeline.Resident
  members: Member
  orders: tuple[Order, ...]
  parts: tuple[tuple[int, int], ...]


def _refusal(
  build: Callable[[Mapping[str, Any]], Experiment],
  first: Mapping[str, Any],
  trace: Callable[..., Any],
  *arrays: Any,
) -> None:
  """Traces (build, values, *arrays); where that fails, raises a ValueError naming the number because of which."""

  def failure(names: Sequence[str]) -> Exception | None:
    given = {name: _numbers(name, [first[name]])[0] for name in names}
    try:
      jax.eval_shape(
        lambda some, *more: trace(lambda values: build({**first, **values}), some, *more),
        given, *arrays,
      )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever a number makes that must be known
      return error
    return None

  whole = failure(list(first))
  if whole is None:
    return
  name, error = next(
    ((name, error) for name in first if (error := failure([name])) is not None),
    (' and '.join(first), whole),
  )
  why = (str(error).splitlines() or [type(error).__name__])[0]
  raise ValueError(
    f'{name} cannot vary in a population, because the program must know it: start runs of their own ({why})'
  ) from error


def check_numbers(
  build: Callable[[Mapping[str, Any]], Experiment], first: Mapping[str, Any]
) -> None:
  """Raises ValueError, naming it, for a number that cannot vary: `build` or the structure of a run needs its value.

  Args:
    build: values -> Experiment, which has been called with every member's values before.
    first: the first member's values.
  """

  def trace(build, values) -> tuple:
    experiment = build(values)
    for name in STRUCTURE:
      if checks.traced(getattr(experiment, name)):
        raise ValueError(f'{name} is part of the structure')
    return ()

  _refusal(build, first, trace)


def check_program(population: Population, first: Mapping[str, Any], state: TrainState) -> None:
  """Raises ValueError, naming it, for a number with which a step cannot be made."""
  rows = Rows(jnp.arange(population.experiment.batch_size), population.experiment.batch_size)

  def trace(build, values, member, state, given, data) -> Any:
    dispatch = make_dispatch(population._replace(build=build))
    return dispatch(member._replace(values=values), state, given, data, rows, lambda tree: tree)

  experiment = population.experiment
  given = np.zeros((experiment.steps_per_dispatch, experiment.batch_size), np.int32)
  arrays = take(population.members, 0), state, given, population.data
  _refusal(population.build, first, trace, *arrays)


def fit(tree: Any, target: Any, fallback: Any = None) -> Any:
  """The leaves of `tree` in the structure of `target`, by their paths.

  A number that is 0 for one member alone removes code from its solo run, and with it leaves of the state that the
  population has. What `tree` does not have comes from `fallback`, of the same structure as `target`.
  """
  found = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}
  if fallback is not None:
    rest = jax.tree_util.tree_leaves_with_path(fallback)
    found = {jax.tree_util.keystr(p): x for p, x in rest} | found
  return jax.tree_util.tree_map_with_path(lambda p, _: found[jax.tree_util.keystr(p)], target)


def gather(
  build: Callable[[Mapping[str, Any]], Experiment],
  values: Sequence[Mapping[str, Any]],
  experiments: Sequence[Experiment],
  loaded: Sequence[assembly.Loaded],
) -> Population:
  """A population of members, given each one's values, its experiment and its data.

  Raises:
    ValueError: members of different data sets, or streamed data.
  """
  first = loaded[0]
  if any(one.streamed for one in loaded):
    raise ValueError(
      'a population keeps its data on the devices: it does not go with streamed data'
    )
  if not all(same_data(one, first) for one in loaded):
    raise ValueError('the members of a population share one data set, and theirs differ')
  looked = [_looked_at(one) for one in loaded]
  sizes = [len(one.split.train) for one in loaded]
  alike = first.order is None or len(set(sizes)) == 1
  members = Member(
    values={name: _numbers(name, [one[name] for one in values]) for name in values[0]},
    units=_moments([one.units for one in loaded]),
    size=() if alike else np.array(sizes, np.int32),
    order=() if first.order is None else _filled([one.order for one in loaded]),
    looked_at=_filled([np.concatenate(rows) for rows in looked]),
    position=_filled([np.concatenate([np.arange(len(part)) for part in rows]) for rows in looked]),
    live=np.ones(len(loaded), bool),
  )
  return Population(
    build, experiments[0], first.units, pipeline.Resident(first.dataset.x, first.dataset.label), members,
    tuple(Order(made.seed, one.split.train) for made, one in zip(experiments, loaded, strict=True)),
    tuple((len(seen), len(held_out)) for seen, held_out in looked),
  )  # fmt: skip


def same_data(one: assembly.Loaded, other: assembly.Loaded) -> bool:
  """Whether two members have the same examples, whatever their splits."""
  a, b = one.dataset, other.dataset
  return a is b or (np.array_equal(a.x, b.x) and np.array_equal(a.label, b.label))


def _looked_at(loaded: assembly.Loaded) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the whole data: the training examples that validation looks at, and the held-out ones."""
  return loaded.split.train[assembly.evenly(loaded)], loaded.split.validation


def _moments(units: Sequence[pipeline.Units]) -> tuple[np.ndarray, ...]:
  if len(set(units)) == 1:
    return ()
  return tuple(
    _numbers(name, [getattr(one, name) for one in units]) for name in ('mean', 'deviation')
  )


def _numbers(name: str, values: Sequence[float]) -> np.ndarray:
  whole = all(isinstance(value, int) for value in values)
  if whole and max(map(abs, values)) >= 2**31:
    raise ValueError(
      f'{name} must be below 2^31 to vary in a population, got {max(values, key=abs)}: choose a smaller one'
    )
  return np.array(values, np.int32 if whole else jnp.result_type(float))


def _filled(rows: Sequence[np.ndarray]) -> np.ndarray:
  """Rows of different lengths [k] as one int32 array, zeros at their ends."""
  table = np.zeros((len(rows), max(len(row) for row in rows)), np.int32)
  for line, row in zip(table, rows, strict=True):
    line[: len(row)] = row
  return table


def _units(population: Population, member: Member) -> pipeline.Units:
  if not member.units:
    return population.units
  return pipeline.Units(population.units.levels, *member.units)


def _own_data(member: Member, data: pipeline.Resident) -> pipeline.Resident:
  order, size = (None if isinstance(one, tuple) else one for one in (member.order, member.size))
  return data._replace(order=order, size=size)


def make_dispatch(population: Population) -> Callable:
  """(member, state, given, data, rows, cross_mean) -> (state, metrics): a dispatch; one not live stays as it is.

  `given` are the rows of all its batches, int32 [steps, rows of a batch].
  """

  def dispatch(
    member: Member,
    state: TrainState,
    given,
    data: pipeline.Resident,
    rows: Rows,
    cross_mean: CrossMean,
  ) -> tuple[TrainState, dict[str, Array]]:
    experiment = population.build(member.values)
    step = steps.make_step(assembly.pieces(experiment, _units(population, member)))
    own = _own_data(member, data)
    rows = _as_alone(rows, experiment.micro_batches)

    def move(state: TrainState):
      return devices.repeat(
        lambda s, now: step(s, own, now, rows, cross_mean), state, given[:, rows.index]
      )

    def stay(state: TrainState):
      rate = experiment.optimizer.learning_rate(state.optimizer) * state.learning_rate_scale
      return state, steps.summarize(state.window, rate, state)

    return jax.lax.cond(member.live, move, stay, state)

  return dispatch


def _as_alone(rows: Rows, micro_batches: int) -> Rows:
  """The rows of a device, ordered so that each micro-batch has those that it has in a run alone on all devices."""
  if len(rows.index) < rows.total:
    return rows
  parts = rows.index.reshape(
    -1, micro_batches, devices.rows_of_a_device(rows.total) // micro_batches
  )
  return rows._replace(index=parts.swapaxes(0, 1).reshape(-1))


def make_statistics(population: Population) -> Callable:
  """(member, state, given, data, rows, cross_mean) -> batch statistics of the judged weights."""

  def statistics(member: Member, state: TrainState, given, data, rows: Rows, cross_mean: CrossMean):
    experiment = population.build(member.values)
    found = steps.make_statistics(assembly.pieces(experiment, _units(population, member)))
    own = _own_data(member, data)
    judged = assembly.judged_parameters(experiment, state)
    return found(judged, state, own, given[:, rows.index], rows, cross_mean)

  return statistics


def make_losses(population: Population) -> Callable:
  """(member, state, given, data, rows, cross_mean) -> bank losses [B, L] of these rows of `looked_at`."""

  def losses(
    member: Member, state: TrainState, given, data, rows: Rows, cross_mean: CrossMean
  ) -> Array:
    del given, cross_mean
    experiment = population.build(member.values)
    units = _units(population, member)
    measure = gap.make_losses(experiment.diffusion, experiment.model, units, experiment.bank)
    index = jnp.minimum(rows.index, member.looked_at.shape[0] - 1)
    row = member.looked_at[index]
    return measure(
      assembly.weights(experiment, state), data.x[row], data.label[row], member.position[index]
    )

  return losses


def init_states(population: Population, seeds: Sequence[int]) -> list[TrainState]:
  """The members' first states, as host arrays, by one program."""
  stored = population.data.x[:1]

  @devices.compile_quickly
  def init(member: Member, seed: Array, stored: Array) -> TrainState:
    experiment = population.build(member.values)
    return assembly.make_init(experiment, stored, _units(population, member))(seed, stored)

  return [
    jax.device_get(init(take(population.members, k), jnp.uint32(seed), stored))
    for k, seed in enumerate(seeds)
  ]


def take(tree: Any, index: Any) -> Any:
  """Member(s) `index` of a stacked tree; the arrays are copies."""
  return jax.tree.map(lambda x: np.array(x[index]), tree)


def stack(trees: Sequence[Any]) -> Any:
  """Members as one tree."""
  return jax.tree.map(lambda *x: np.stack(x), *trees)


def some(population: Population, which: Sequence[int]) -> Population:
  """The population of these members alone."""
  parts = tuple(population.parts[k] for k in which)
  orders = tuple(population.orders[k] for k in which)
  members = take(population.members, np.array(which))
  return population._replace(members=members, orders=orders, parts=parts)
