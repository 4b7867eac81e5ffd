"""A population: many runs as one program. They differ in their seeds and in numbers, and share all else.

`build` is called inside the trace with the numbers that vary, so a step is made there for one member and mapped over
the members; what the program must know (shapes, cadences, batches) cannot vary. The examples lie on the devices once,
and each member draws its own training rows of them. A member's numbers are those of the run made alone, to rounding,
whoever its companions are, and its folder is that run's.
"""

import contextlib
import functools
import operator
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import checks, conditions, devices
from diffusion.data import splits
from diffusion.data.pipeline import InMemoryData, NormalizationStatistics, Order, StoredBatch
from diffusion.data.splits import SplitData
from diffusion.evaluation import gap
from diffusion.models.functional import identity
from diffusion.runs.rehearsal import alongside, trace_sampling
from diffusion.runs.run import Run
from diffusion.runs.samples import draw_data
from diffusion.runs.training import check_dispatches, check_extend, finish, to_train, train_together
from diffusion.training import state as states
from diffusion.training.experiment import Experiment
from diffusion.training.program import Fetch
from diffusion.training.state import TrainState
from diffusion.training.step import (
  STATISTICS_BATCHES,
  make_recompute_statistics,
  make_step,
  summarize,
)
from diffusion.types import Array, Rows

Values = Mapping[str, int | float]
Build = Callable[[Values], Experiment]
_EVALUATION_CHUNK = 256  # rows of a member that validation takes at a time


class Member(NamedTuple):
  """What the program is given of each member beside its state, by name; all leaves are [members, ...].

  Attributes:
    values: the numbers that vary.
    units: mean and deviation of its data; {} where they are alike.
    order: of its curriculum, int32 [n], filled up with zeros, and its `size`, how many count; {} without one.
  """

  values: dict[str, Any]
  units: dict[str, Any]
  order: dict[str, Any]


def members_of(runs: Sequence[Run], values: Sequence[Values]) -> Member:
  """The members as host arrays; raises ValueError for data that is not shared, or a whole number beyond 32 bits."""
  data = [share_data(runs, run.data) for run in runs]
  units = [{'mean': one.units.mean, 'deviation': one.units.deviation} for one in data]
  orders = [one.order for one in data if one.order is not None]
  sizes = np.array([len(order) for order in orders], np.int32)
  return Member(
    values=_arrays(values),
    units={} if all(one == units[0] for one in units) else _arrays(units),
    order={'order': _table(orders), 'size': sizes} if orders else {},
  )


class Population:
  """The `Program` of several runs: each device takes whole members, filled up with still copies of the first."""

  def __init__(
    self,
    runs: Sequence[Run],
    values: Sequence[Values],
    build: Build,
    begin: Sequence[TrainState],
    *,
    side_by_side: bool | None = None,
  ):
    """Compiles nothing yet.

    Args:
      runs: prepared, on one data set.
      values: the numbers of each that vary.
      build: values -> Experiment, traceable.
      begin: their states, host arrays, each with all leaves that any of them has.
      side_by_side: see `devices.over_members`.

    Raises:
      ValueError: members of different data sets, streamed data, or a whole number beyond 32 bits.
    """
    first = runs[0].data
    self._runs, self._experiment = runs, runs[0].experiment
    self._members = devices.place_members(members_of(runs, values))
    self._data = devices.replicate(InMemoryData(first.dataset.x, first.dataset.conditions))
    self._orders = [Order(run.experiment.seed, run.data.split.train) for run in runs]
    self._evaluation_rows = [(splits.evenly(run.data), run.data.split.validation) for run in runs]
    windows = [states.empty_window(run.experiment).keys() for run in runs]
    self._not_own = [begin[0].window.keys() - window for window in windows]

    def of_each(function: Callable[..., Any], donate: bool) -> Callable:
      def one(member: Member, state: TrainState, given: Any, data: InMemoryData):
        units, own = first.units._replace(**member.units), data._replace(**member.order)
        return function(build(member.values), units, state, given, own)

      return devices.over_members(one, donate=donate, side_by_side=side_by_side)

    self._step, self._recompute = of_each(_dispatch, True), of_each(_recompute_statistics, True)
    self._measure = of_each(_measure, False)
    self._host: list[TrainState] | None = list(begin)  # the states, where the host knows them
    self._placed: Any = None  # the same, where they are on the devices
    self._last = self._losses = None
    self._is_recomputed = False

  def dispatch(self, seen: Sequence[int | None]) -> Fetch:
    """See `Program`."""
    live = np.array([at is not None for at in seen])
    rows = self._rows([at or 0 for at in seen], self._experiment.steps_per_dispatch)
    given = devices.place_members((live, rows), fill=0)
    self._placed, metrics = self._step(self._members, self._on_devices(), given, self._data)
    self._host = self._losses = None
    self._is_recomputed = False
    before, self._last = self._last, metrics['loss']
    if before is not None:
      devices.wait(before)
    fetched = functools.cache(lambda: devices.collect_members(metrics))
    return lambda k: {n: v[k] for n, v in fetched().items() if n not in self._not_own[k]}

  def recompute_statistics(self, k: int) -> None:
    """See `Program`; those of all members, when the first one asks, which changes nothing else of them."""
    if self._on_devices().statistics and not self._is_recomputed:
      given = devices.place_members(self._rows([0] * len(self._runs), STATISTICS_BATCHES))
      self._placed = self._recompute(self._members, self._on_devices(), given, self._data)
      self._host, self._is_recomputed = None, True

  def validate(self, k: int) -> dict[str, float]:
    """See `Program`; the rows of all are computed when the first one asks."""
    if self._losses is None:
      rows = _table([np.concatenate(pair) for pair in self._evaluation_rows])
      places = [[np.arange(len(one)) for one in pair] for pair in self._evaluation_rows]
      both = np.stack([rows, _table([np.concatenate(pair) for pair in places])], 1)
      cuts = range(_EVALUATION_CHUNK, rows.shape[1], _EVALUATION_CHUNK)
      parts = [devices.place_members(part) for part in np.split(both, cuts, axis=2)]
      found = [self._measure(self._members, self._on_devices(), one, self._data) for one in parts]
      self._losses = np.concatenate([devices.collect_members(one) for one in found], axis=1)
    seen, held_out = map(len, self._evaluation_rows[k])
    return gap.summarize(*np.split(self._losses[k, : seen + held_out], [seen]))

  def get(self, k: int) -> TrainState:
    """See `Program`."""
    return devices.replicate(fit(self._on_host()[k], self._runs[k].target))

  def put(self, k: int, state: TrainState) -> None:
    """See `Program`."""
    now = self._on_host()
    now[k] = fit(devices.to_host(state), now[k], now[k])
    self._placed = None

  def _on_host(self) -> list[TrainState]:
    if self._host is None:
      whole = devices.collect_members(self._placed)
      self._host = [jax.tree.map(operator.itemgetter(k), whole) for k in range(len(self._runs))]
    return self._host

  def _on_devices(self) -> TrainState:
    if self._placed is None:
      self._placed = devices.place_members(jax.tree.map(lambda *x: np.stack(x), *self._host))
    return self._placed

  def _rows(self, seen: Sequence[int], steps: int) -> np.ndarray:
    """The rows of each member's next batches, int32 [members, steps, batch]."""
    size = self._experiment.batch_size
    pairs = zip(self._orders, seen, strict=True)
    return np.stack([order.batches(at, steps, size) for order, at in pairs])


# What is computed for one member, of its experiment, units and state, what it is given, and the data in its own order.


def _dispatch(
  experiment: Experiment, units: NormalizationStatistics, state: TrainState, given: Any, data: InMemoryData
) -> tuple[TrainState, dict[str, Array]]:  # fmt: skip
  """(state, metrics of the last step); given: (whether it is live, else it stays as it is; rows of its batches)."""
  live, batches = given
  step, size = make_step(experiment, units), experiment.batch_size
  # So that each micro-batch has the rows that it has in a run alone on all devices.
  count = experiment.micro_batches
  parts = jnp.arange(size).reshape(-1, count, devices.rows_of_a_device(size) // count)
  rows = Rows(parts.swapaxes(0, 1).reshape(-1), size)

  def move(state: TrainState):
    each = batches[:, rows.index]
    return devices.repeat(lambda s, now: step(s, data, now, rows, identity), state, each)

  def stay(state: TrainState):
    rate = experiment.optimizer.learning_rate(state.optimizer) * state.learning_rate_scale
    return state, summarize(state.window, rate, state)

  return jax.lax.cond(live, move, stay, state)


def _recompute_statistics(
  experiment: Experiment, units: NormalizationStatistics, state: TrainState, given: Array, data: InMemoryData
) -> TrainState:  # fmt: skip
  """The state with recomputed statistics; given: rows of the first batches."""
  rows = Rows(jnp.arange(experiment.batch_size), experiment.batch_size)
  return make_recompute_statistics(experiment, units)(state, data, given, rows, identity)


def _measure(
  experiment: Experiment, units: NormalizationStatistics, state: TrainState, given: Array, data: InMemoryData
) -> Array:  # fmt: skip
  """The losses on the evaluation noise [n, L]; given: rows of the data and their places, [2, n]."""
  e = experiment
  losses = gap.make_losses(e.diffusion, e.model, units, e.evaluation_noise)
  row, place = given
  return losses(
    states.weights(experiment, state), data.x[row], conditions.take(data.condition, row), place
  )


def check_numbers(runs: Sequence[Run], values: Sequence[Values], build: Build) -> None:
  """Raises ValueError, naming it, for a number that cannot vary: a run, its first state or a step must know its value.

  Args:
    runs: prepared, so `build` has been called with the values of each.
    values: the numbers of each that vary.
    build: values -> Experiment.
  """
  data, e = share_data(runs, runs[0].data), runs[0].experiment
  numbers = {name: found[0] for name, found in _arrays(values).items()}
  resident = InMemoryData(data.dataset.x, data.dataset.conditions, data.order)
  given = True, np.zeros((e.steps_per_dispatch, e.batch_size), np.int32)

  def use(some: Values, example: StoredBatch, given: Any, resident: InMemoryData):
    experiment = build({**values[0], **some})
    for name, field in experiment._asdict().items():
      if checks.traced(field) and name != 'seed':
        raise ValueError(f'{name} is part of the structure')
    state = states.make_init(experiment, example, data.units)(jnp.uint32(0), example)
    return _dispatch(experiment, data.units, state, given, resident)

  def attempt(names: list[str]) -> None:
    some = {name: numbers[name] for name in names}
    try:
      jax.eval_shape(use, some, data.example, given, resident)
    except Exception as error:
      for name in names if len(names) > 1 else ():
        attempt([name])  # it may be this one alone
      why = (str(error).splitlines() or [type(error).__name__])[0]
      raise ValueError(
        f'{" and ".join(names)} cannot vary in a population, because the program must know it: start runs of their own '
        f'({why})'
      ) from error

  attempt(list(numbers))


def fit(tree: Any, target: Any, fallback: Any = None) -> Any:
  """The leaves of `tree` in the structure of `target`, by their paths.

  A number that is 0 for one member alone removes code from its solo run, and with it leaves of the state that the
  population has.

  Args:
    tree: leaves to take.
    target: the structure wanted.
    fallback: of that structure; has the leaves that `tree` lacks.

  Raises:
    KeyError: a leaf that neither has.
  """
  found = {}
  for one in (fallback, tree):
    found |= {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(one)}
  return jax.tree_util.tree_map_with_path(lambda p, _: found[jax.tree_util.keystr(p)], target)


def first_states(runs: Sequence[Run], values: Sequence[Values], build: Build) -> list[TrainState]:
  """The members' states before the first step, with all leaves that any of them has, as host arrays, by one program.

  Args:
    runs: prepared, on one data set.
    values: the numbers of each that vary.
    build: values -> Experiment, traceable in them.

  Raises:
    ValueError: as `state.check_state` does.
  """
  data, members = runs[0].data, members_of(runs, values)

  @devices.compile_quickly
  def init(member: Member, seed: Array, example: StoredBatch) -> TrainState:
    own = data.units._replace(**member.units)
    return states.make_init(build(member.values), example, own)(seed, example)

  found = []
  for k, run in enumerate(runs):
    member, seed = jax.tree.map(operator.itemgetter(k), members), jnp.uint32(run.experiment.seed)
    found.append(jax.device_get(init(member, seed, data.example)))
    states.check_state(run.experiment, found[-1])
  return found


def share_data(runs: Sequence[Run], data: SplitData) -> SplitData:
  """The same with the examples of the first of the runs, if there is one: a population holds them once.

  Raises:
    ValueError: streamed data, or other examples than the runs'.
  """
  if data.streamed:
    raise ValueError('streamed data does not go with a population: start runs of their own')
  own, shared = data.dataset, (runs[0].data if runs else data).dataset
  both = [jax.tree.leaves((one.x, one.label, one.condition)) for one in (own, shared)]
  if own is not shared and not all(map(np.array_equal, *both)):
    raise ValueError('members share one data set, and theirs differ: start runs of their own')
  return data._replace(dataset=shared)


def _arrays(values: Sequence[Values]) -> dict[str, np.ndarray]:
  """The numbers of all members, [members] by name: int32 where they are whole."""
  found = {}
  for name in values[0]:
    numbers = [one[name] for one in values]
    whole = all(isinstance(number, int) for number in numbers)
    if whole and max(map(abs, numbers)) >= 2**31:
      raise ValueError(
        f'{name} must be below 2^31 to vary in a population, got {max(numbers, key=abs)}: choose a smaller one'
      )
    found[name] = np.array(numbers, np.int32 if whole else jnp.result_type(float))
  return found


def _table(lines: Sequence[np.ndarray]) -> np.ndarray:
  """Rows of different lengths [k] as one int32 array, zeros at their ends."""
  longest = max(map(len, lines))
  return np.stack([np.pad(line, (0, longest - len(line))) for line in lines]).astype(np.int32)


def train(runs: Sequence[Run], values: Sequence[Values], build: Build, extend: int = 0) -> int:
  """Trains the members, or goes on with those that are not finished, and evaluates each.

  Args:
    runs: prepared, one a member.
    values: of each member, the numbers that vary.
    build: values -> Experiment, traceable in them.
    extend: see `training.train`.

  Returns:
    The program's exit status.

  Raises:
    ValueError: what a run alone refuses, or a number that cannot vary.
  """
  return finish(runs, train_members(runs, values, build, extend))


def train_members(
  runs: Sequence[Run], values: Sequence[Values], build: Build, extend: int = 0
) -> str | None:
  """Trains the members; they are not evaluated.

  Args:
    runs, values, build, extend: see `train`.

  Returns:
    The name of the signal that interrupted them, or None.

  Raises:
    ValueError: as `train` does, or a folder that holds a single run.
  """
  begin, folder = time.perf_counter(), runs[0].folder.parent
  if (folder / 'run.json').exists():
    raise ValueError(f'{folder} holds a single run: choose another --workdir for a population')
  check_dispatches(runs[0], extend)
  check_numbers(runs, values, build)
  runs[0].say_data()
  first = first_states(runs, values, build)
  trace_sampling(runs[0], first[0])
  with contextlib.ExitStack() as stack:
    saved = []
    for run, state, own in zip(runs, first, values, strict=True):
      run.record['starts'][0]['population'] = len(runs)
      run.claim()
      stack.callback(run.close)
      # A number that is 0 leaves nothing in the state of the run alone.
      target = jax.tree.map(np.zeros_like, state) if all(own.values()) else run.make_target()
      saved.append(run.resume(target))
    draw_data([(run.folder, run.data) for run in runs])
    for run in runs:  # all of them before any is changed
      check_extend(run, extend)
    todo = [k for k, run in enumerate(runs) if to_train(run, extend)]
    print(f'{len(todo)} of {len(runs)} members to train in {folder}', flush=True)
    for k in todo:
      runs[k].adopt()
      if saved[k] is not None:
        runs[k].note_devices(saved[k].record)
    while todo:
      some = [runs[k] for k in todo]
      now = [fit(saved[k].state, first[k], first[k]) if saved[k] else first[k] for k in todo]
      program = Population(some, [values[k] for k in todo], build, now)
      print(f'a program of {len(some)} members', file=sys.stderr, flush=True)
      with contextlib.nullcontext() if any(saved) else alongside(some[0]):
        name = train_together(some, program, begin, bool(extend))
      if name is not None:
        return name
      # Half of them have ended: the others go on as after an interruption, in a smaller program.
      todo = [k for k in todo if not runs[k].reason]
      for k in todo:
        runs[k].close()
        saved[k] = runs[k].resume(runs[k].target)
  return None
