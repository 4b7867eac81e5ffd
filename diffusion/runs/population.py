"""A population: many runs as one program. They differ in their seeds and in numbers, and share all else.

`build` is called inside the trace with the numbers that vary, so a step is made there for one member and mapped over
the members; what the program must know (shapes, cadences, batches) cannot vary. The examples lie on the devices once,
and each member draws its own training rows of them. A member's numbers are those of the run made alone, to rounding,
whoever its companions are, and its folder is that run's.
"""

import contextlib
import functools
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import checks, devices
from diffusion.data import pipeline, splits
from diffusion.data.pipeline import Order
from diffusion.data.splits import SplitData
from diffusion.evaluation import gap
from diffusion.models.functional import identity
from diffusion.processes import caught_signals
from diffusion.reporting import rows
from diffusion.runs import loop
from diffusion.runs.run import Run
from diffusion.runs.training import check_dispatches, check_extend, conclude, to_train
from diffusion.training import state as states
from diffusion.training.experiment import Experiment
from diffusion.training.program import Fetch
from diffusion.training.state import TrainState
from diffusion.training.step import STATISTICS_BATCHES, make_statistics, make_step, summarize
from diffusion.types import Array, Rows

Values = Mapping[str, int | float]
Build = Callable[[Values], Experiment]
# What the loop, the devices and the shapes of the program rest on.
STRUCTURE = (
  'num_steps', 'batch_size', 'log_every', 'validate_every', 'steps_per_dispatch', 'micro_batches', 'gradient_noise',
  'judged',
)  # fmt: skip
_LOOKED_AT = 256  # rows of a member that validation takes at a time


class Member(NamedTuple):
  """What the program is given of each member beside its state; all leaves are [members, ...].

  Attributes:
    values: the numbers that vary, by name.
    units: mean and deviation of its data; () where they are alike.
    order: int32 [n], of its curriculum, filled up with zeros; () without one.
    size: int32, how many of them count; () without one.
    looked_at: int32 [v], rows that validation looks at: training rows, then held-out ones, filled up with zeros.
    position: int32 [v], their places in the bank.
  """

  values: dict[str, Any]
  units: tuple[Any, ...]
  order: Any
  size: Any
  looked_at: Any
  position: Any


class Population:
  """The `Program` of several runs: each device takes whole members, filled up with still copies of the first."""

  def __init__(
    self,
    runs: Sequence[Run],
    values: Sequence[Values],
    build: Build,
    *,
    side_by_side: bool | None = None,
  ):
    """Compiles nothing yet; the states are to be `place`d.

    Args:
      runs: prepared, on one data set.
      values: the numbers of each that vary.
      build: values -> Experiment, traceable.
      side_by_side: see `devices.over_members`.

    Raises:
      ValueError: members of different data sets, streamed data, or a whole number beyond 32 bits.
    """
    data = [run.data for run in runs]
    _check_data(data)
    first, looked = data[0], [(splits.evenly(one), one.split.validation) for one in data]
    self._runs, self._build, self._units = runs, build, first.units
    self._experiment = runs[0].experiment
    self._orders = [Order(run.experiment.seed, run.data.split.train) for run in runs]
    self._parts = [(len(seen), len(held_out)) for seen, held_out in looked]
    self._members = self._place(
      Member(
        values={name: _numbers(name, [one[name] for one in values]) for name in values[0]},
        units=_moments([one.units for one in data]),
        order=() if first.order is None else _table([one.order for one in data]),
        size=() if first.order is None else np.array([len(one.order) for one in data], np.int32),
        looked_at=_table([np.concatenate(pair) for pair in looked]),
        position=_table([np.concatenate([np.arange(len(p)) for p in pair]) for pair in looked]),
      )
    )
    self._data = devices.replicate(pipeline.Resident(first.dataset.x, first.dataset.label))
    over = functools.partial(devices.over_members, side_by_side=side_by_side)
    self._step = over(self._dispatched, donate=True)
    self._settle, self._measure = over(self._settled, donate=True), over(self._measured)
    self._host: Any = None  # the states, where they are known on the host
    self._placed: Any = None  # the same, where they are on the devices
    self._last = self._losses = None
    self._is_settled = False

  def place(self, first: Sequence[TrainState]) -> None:
    """Begins with these states, host arrays, each with all leaves that any of them has."""
    windows = [states.empty_window(run.experiment).keys() for run in self._runs]
    self._not_own = [first[0].window.keys() - window for window in windows]
    self._host = jax.tree.map(lambda *x: np.stack(x), *first)

  def dispatch(self, seen: Sequence[int | None]) -> Fetch:
    """See `Program`."""
    e, live = self._experiment, np.array([at is not None for at in seen])
    given = self._place((live, self._rows([at or 0 for at in seen], e.steps_per_dispatch)), False)
    self._placed, metrics = self._step(self._members, self._on_devices(), given, self._data)
    self._host = self._losses = None
    self._is_settled = False
    before, self._last = self._last, metrics['loss']
    if before is not None:
      devices.wait(before)
    fetched = functools.cache(lambda: devices.collect_members(metrics))
    return lambda k: {n: v[k] for n, v in fetched().items() if n not in self._not_own[k]}

  def settle(self, k: int) -> None:
    """See `Program`; all members are settled when the first one asks, which changes nothing else of them."""
    if jax.tree.leaves(self._on_devices().statistics) and not self._is_settled:
      given = self._place(self._rows([0] * len(self._runs), STATISTICS_BATCHES))
      self._placed = self._settle(self._members, self._on_devices(), given, self._data)
      self._host, self._is_settled = None, True

  def validate(self, k: int) -> dict[str, float]:
    """See `Program`; the rows of all are computed when the first one asks."""
    if self._losses is None:
      count, each = self._members.looked_at.shape[-1], _LOOKED_AT
      parts = [np.arange(i, min(i + each, count), dtype=np.int32) for i in range(0, count, each)]
      given = [self._place(np.tile(part, (len(self._runs), 1))) for part in parts]
      found = [self._measure(self._members, self._on_devices(), one, self._data) for one in given]
      self._losses = np.concatenate([devices.collect_members(one) for one in found], axis=1)
    losses, (seen, held_out) = self._losses[k], self._parts[k]
    return gap.summarize(losses[:seen], losses[seen : seen + held_out])

  def get(self, k: int) -> TrainState:
    """See `Program`."""
    own = jax.tree.map(lambda x: x[k], self._on_host())
    return devices.replicate(fit(own, self._runs[k].target))

  def put(self, k: int, state: TrainState) -> None:
    """See `Program`."""
    now = jax.tree.map(lambda x: x[k], self._on_host())
    own = fit(devices.to_host(state), now, now)

    def write(whole: np.ndarray, part: Any) -> None:
      whole[k] = part

    jax.tree.map(write, self._on_host(), own)
    self._placed = None

  def close(self) -> None:
    """See `Program`."""

  def _place(self, tree: Any, fill: Any = None) -> Any:
    """Arrays [members, ...] on the devices, filled up with the first member's, or with `fill`."""
    missing = devices.divisible(len(self._runs)) - len(self._runs)

    def filled(x: np.ndarray) -> np.ndarray:
      x = np.asarray(x)
      more = x[:1] if fill is None else np.full_like(x[:1], fill)
      return np.concatenate([x, *[more] * missing])

    return devices.place_members(jax.tree.map(filled, tree))

  def _on_host(self) -> TrainState:
    if self._host is None:
      found = jax.tree.map(lambda x: x[: len(self._runs)], devices.collect_members(self._placed))
      self._host = jax.tree.map(np.array, found)  # copies, to be written to
    return self._host

  def _on_devices(self) -> TrainState:
    if self._placed is None:
      self._placed = self._place(self._host)
    return self._placed

  def _rows(self, seen: Sequence[int], steps: int) -> np.ndarray:
    """The rows of each member's next batches, int32 [members, steps, batch]."""
    size = self._experiment.batch_size
    pairs = zip(self._orders, seen, strict=True)
    return np.stack([order.batches(at, steps, size) for order, at in pairs])

  def _own(self, member: Member) -> pipeline.Units:
    if not member.units:
      return self._units
    return pipeline.Units(self._units.levels, *member.units)

  def _dispatched(self, member: Member, state: TrainState, given: Any, data: pipeline.Resident):
    """A dispatch of one member, which stays as it is where it is not live."""
    return dispatch(self._build(member.values), self._own(member), member, state, given, data)

  def _settled(self, member: Member, state: TrainState, given: Array, data: pipeline.Resident):
    experiment = self._build(member.values)
    statistics = make_statistics(experiment, self._own(member))
    judged = states.judged_parameters(experiment, state)
    rows = Rows(jnp.arange(experiment.batch_size), experiment.batch_size)
    found = statistics(judged, state, _ranked(data, member), given, rows, identity)
    return state._replace(judged_statistics=found)

  def _measured(self, member: Member, state: TrainState, given: Array, data: pipeline.Resident):
    experiment, units = self._build(member.values), self._own(member)
    losses = gap.make_losses(experiment.diffusion, experiment.model, units, experiment.bank)
    row, position = member.looked_at[given], member.position[given]
    return losses(states.weights(experiment, state), data.x[row], data.label[row], position)


def dispatch(
  experiment: Experiment, units: pipeline.Units, member: Member, state: TrainState, given: Any, data: pipeline.Resident
) -> tuple[TrainState, dict[str, Array]]:  # fmt: skip
  """A dispatch of one member.

  Args:
    experiment, units, member: its own.
    state: before it.
    given: (whether it is live, else it stays as it is; the rows of its batches, int32 [steps, batch]).
    data: of all members.

  Returns:
    (state, metrics of the last step).
  """
  live, batches = given
  step, own = make_step(experiment, units), _ranked(data, member)
  size = experiment.batch_size
  # So that each micro-batch has the rows that it has in a run alone on all devices.
  count = experiment.micro_batches
  parts = jnp.arange(size).reshape(-1, count, devices.rows_of_a_device(size) // count)
  rows = Rows(parts.swapaxes(0, 1).reshape(-1), size)

  def move(state: TrainState):
    each = batches[:, rows.index]
    return devices.repeat(lambda s, now: step(s, own, now, rows, identity), state, each)

  def stay(state: TrainState):
    rate = experiment.optimizer.learning_rate(state.optimizer) * state.learning_rate_scale
    return state, summarize(state.window, rate, state)

  return jax.lax.cond(live, move, stay, state)


def _ranked(data: pipeline.Resident, member: Member) -> pipeline.Resident:
  return (
    data if isinstance(member.order, tuple) else data._replace(order=member.order, size=member.size)
  )


def check_numbers(build: Build, first: Values) -> None:
  """Raises ValueError, naming it, for a number that cannot vary: `build` or the structure of a run needs its value.

  Args:
    build: values -> Experiment, which has been called with every member's values before.
    first: the first member's values.
  """

  def use(experiment: Experiment) -> tuple:
    for name in STRUCTURE:
      if checks.traced(getattr(experiment, name)):
        raise ValueError(f'{name} is part of the structure')
    return ()

  check_traced(build, first, use)


def check_traced(build: Build, first: Values, use: Callable[..., Any], *arrays: Any) -> None:
  """Traces use(build(values), *arrays); where that fails, raises a ValueError naming the number because of which."""

  def failure(names: Sequence[str]) -> Exception | None:
    given = {name: _numbers(name, [first[name]])[0] for name in names}
    try:
      jax.eval_shape(lambda some, *more: use(build({**first, **some}), *more), given, *arrays)
    except Exception as error:  # noqa: BLE001 - whatever a number makes that must be known
      return error
    return None

  whole = failure(list(first))
  if whole is None:
    return
  found = ((name, error) for name in first if (error := failure([name])) is not None)
  name, error = next(found, (' and '.join(first), whole))
  why = (str(error).splitlines() or [type(error).__name__])[0]
  raise ValueError(
    f'{name} cannot vary in a population, because the program must know it: start runs of their own ({why})'
  ) from error


def fit(tree: Any, target: Any, fallback: Any = None) -> Any:
  """The leaves of `tree` in the structure of `target`, by their paths.

  A number that is 0 for one member alone removes code from its solo run, and with it leaves of the state that the
  population has. What `tree` does not have comes from `fallback`, of the same structure as `target`.
  """
  found = {}
  for one in (fallback, tree):
    found |= {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(one)}
  return jax.tree_util.tree_map_with_path(lambda p, _: found[jax.tree_util.keystr(p)], target)


def first_states(runs: Sequence[Run], values: Sequence[Values], build: Build) -> list[TrainState]:
  """The members' states before the first step, with all leaves that any of them has, as host arrays, by one program."""
  stored = runs[0].data.example
  units = [run.data.units for run in runs]

  @devices.compile_quickly
  def init(values: Any, moments: Any, seed: Array, stored: Array) -> TrainState:
    own = pipeline.Units(units[0].levels, *moments) if moments else units[0]
    return states.make_init(build(values), stored, own)(seed, stored)

  moments = _moments(units)
  found = []
  for k, (run, one) in enumerate(zip(runs, values, strict=True)):
    numbers = {name: _numbers(name, [value])[0] for name, value in one.items()}
    seed = jnp.uint32(run.experiment.seed)
    found.append(jax.device_get(init(numbers, tuple(m[k] for m in moments), seed, stored)))
    states.check_state(run.experiment, found[-1])
  return found


def share_data(known: list[SplitData], data: SplitData) -> SplitData:
  """The same with a data set that is known already, where it is equal; else it is known from now on."""
  for one in known:
    if _same(one, data):
      return data._replace(dataset=one.dataset)
  known.append(data)
  return data


def _same(one: SplitData, other: SplitData) -> bool:
  a, b = one.dataset, other.dataset
  return a is b or (np.array_equal(a.x, b.x) and np.array_equal(a.label, b.label))


def _check_data(data: Sequence[SplitData]) -> None:
  if any(one.streamed for one in data):
    raise ValueError(
      'a population keeps its data on the devices: it does not go with streamed data'
    )
  if not all(_same(one, data[0]) for one in data):
    raise ValueError('the members of a population share one data set, and theirs differ')


def _moments(units: Sequence[pipeline.Units]) -> tuple[np.ndarray, ...]:
  if len(set(units)) == 1:
    return ()
  return tuple(_numbers(n, [getattr(one, n) for one in units]) for n in ('mean', 'deviation'))


def _numbers(name: str, values: Sequence[float]) -> np.ndarray:
  whole = all(isinstance(value, int) for value in values)
  if whole and max(map(abs, values)) >= 2**31:
    raise ValueError(
      f'{name} must be below 2^31 to vary in a population, got {max(values, key=abs)}: choose a smaller one'
    )
  return np.array(values, np.int32 if whole else jnp.result_type(float))


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
  name = train_members(runs, values, build, extend)
  if name is not None:
    return 128 + signal.Signals[name]
  from diffusion.runs.judging import judge_best  # when training is over, as for a run alone

  for run in runs:
    if run.record['results'] is None:
      print(f'\n{run.folder}', flush=True)
      judge_best(run)
  return 0


def train_members(
  runs: Sequence[Run], values: Sequence[Values], build: Build, extend: int = 0
) -> str | None:
  """Trains the members; the name of the signal that interrupted them, or None. The rest as `train`."""
  begin, folder = time.perf_counter(), runs[0].folder.parent
  if (folder / 'run.json').exists():
    raise ValueError(f'{folder} holds a single run: choose another --workdir for a population')
  check_dispatches(runs[0], extend)
  check_numbers(build, values[0])
  _check_program(runs, values, build)
  first = first_states(runs, values, build)
  with contextlib.ExitStack() as stack:
    for run, state, own in zip(runs, first, values, strict=True):
      # A number that is 0 leaves nothing in the state of the run alone.
      run.target = states.host_target(lambda s=state: s) if all(own.values()) else run.make_target()
      run.record['starts'][0]['population'] = len(runs)
      run.claim()
      stack.callback(run.close)
    restored = [run.resume(run.target) for run in runs]
    for run in runs:  # all of them before any is changed
      check_extend(run, extend)
    todo = [k for k, run in enumerate(runs) if to_train(run, extend)]
    print(f'{len(todo)} of {len(runs)} members to train in {folder}', flush=True)
    for k in todo:
      if restored[k] is not None:
        runs[k].note_devices(restored[k].record)
    while todo:
      program = Population([runs[k] for k in todo], [values[k] for k in todo], build)
      program.place([
        first[k] if restored[k] is None else fit(restored[k].state, first[k], first[k]) for k in todo
      ])  # fmt: skip
      name = _train_together([runs[k] for k in todo], program, begin, bool(extend))
      if name is not None:
        return name
      # Half of them have ended: the others go on as after an interruption, in a smaller program.
      todo = [k for k in todo if not runs[k].reason]
      for k in todo:
        runs[k].close()
        restored[k] = runs[k].resume(runs[k].target)
  return None


def _train_together(
  runs: Sequence[Run], program: Population, begin: float, extended: bool
) -> str | None:
  """Trains until a signal, whose name is returned, or until half of the runs have ended."""
  last, step = max(run.num_steps for run in runs), max(run.position.step for run in runs)
  progress = rows.progress(last, step, batch_size=runs[0].experiment.batch_size)
  with (
    caught_signals(runs[0].position.seen, runs[0].experiment.steps_per_dispatch) as signals,
    contextlib.closing(progress),
  ):
    runs[0].open_rows(progress)  # one speaks for all
    for run in runs[1:]:
      run.open_rows()
    print(f'a program of {len(runs)} members', file=sys.stderr, flush=True)
    loop.train(runs, program, signals)
    for run in runs:
      run.wait()
  for run in runs:
    if run.reason or signals.name is not None:
      conclude(run, time.perf_counter() - begin, signals, extended)
  return signals.name


def _check_program(runs: Sequence[Run], values: Sequence[Values], build: Build) -> None:
  """Raises ValueError, naming it, for a number with which a first state or a step cannot be made."""
  e, data = runs[0].experiment, runs[0].data
  resident = pipeline.Resident(data.dataset.x, data.dataset.label, data.order)
  batches = np.zeros((e.steps_per_dispatch, e.batch_size), np.int32)
  member = Member(values={}, units=(), order=(), size=(), looked_at=(), position=())

  def use(experiment: Experiment, stored: Array, batches: Array, resident: pipeline.Resident):
    state = states.make_init(experiment, stored, data.units)(jnp.uint32(0), stored)
    return dispatch(experiment, data.units, member, state, (True, batches), resident)

  check_traced(build, values[0], use, data.example, batches, resident)
