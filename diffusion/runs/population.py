"""Training a population: every member is a run of its own on disk, and all of them train as one program."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion import devices
from diffusion.reporting.rows import SHOWN, Sink, progress
from diffusion.runs.judging import judge_best
from diffusion.runs.session import Session, Setting, build_session
from diffusion.runs.suite import Request
from diffusion.runs.training import Ready, Start, Watch, conclude, extend, ready, start, watching
from diffusion.training import assembly, loop, population
from diffusion.training import step as steps
from diffusion.training.assembly import Loaded
from diffusion.training.experiment import Experiment, live_terms
from diffusion.training.population import Population
from diffusion.training.running import Running


def train(
  settings: Sequence[Setting],
  values: Sequence[Mapping[str, Any]],
  build: Callable[[Mapping[str, Any]], Experiment],
) -> int:
  """Trains the members and judges each; returns the program's exit status. The rest as `train_members`."""
  trained = train_members(settings, values, build)
  if isinstance(trained, str):
    return 128 + signal.Signals[trained]
  for session, target in trained:
    print(f'\n{session.folder}', flush=True)
    judge_best(session, target, Request())
  return 0


def train_members(
  settings: Sequence[Setting],
  values: Sequence[Mapping[str, Any]],
  build: Callable[[Mapping[str, Any]], Experiment],
) -> str | list[tuple[Session, Any]]:
  """Trains the members, or goes on with those that are not finished.

  Args:
    settings: of each member's run.
    values: of each member, the numbers that vary.
    build: values -> Experiment, traceable in them.

  Returns:
    The signal that interrupted it, or the sessions that are to be judged, each with a host state of its shapes.

  Raises:
    ValueError: what a run alone refuses, or a number that cannot vary.
  """
  begin = time.perf_counter()
  folder = settings[0].workdir.parent
  if (folder / 'run.json').exists():
    raise ValueError(f'{folder} holds a single run: choose another --workdir for a population')
  experiments = [one.build(one.config) for one in settings]  # each one's own errors first
  population.check_numbers(build, values[0])
  share = _Sharing()
  sessions = [build_session(setting, share) for setting in settings]
  together = population.gather(build, values, experiments, [one.loaded for one in sessions])
  states = population.init_states(together, [one.experiment.seed for one in sessions])
  population.check_program(together, values[0], states[0])
  targets = [_target(one, state, v) for one, state, v in zip(sessions, states, values, strict=True)]
  with contextlib.ExitStack() as stack:
    begun = []
    for session, target in zip(sessions, targets, strict=True):
      session.record['starts'][0]['population'] = len(settings)
      begun.append(start(session, target))
      stack.callback(begun[-1].keeper.close)
    for one in begun:
      extend(one)
    which = [k for k, one in enumerate(begun) if not one.trained]
    print(f'{len(which)} of {len(settings)} members to train in {folder}', flush=True)
    if which:
      interrupted = _train_on(together, states, begun, targets, which, begin)
      if interrupted is not None:
        return interrupted
  pairs = zip(begun, targets, strict=True)
  return [(one.session, target) for one, target in pairs if not one.complete]


class _Sharing:
  """Holds equal data once."""

  def __init__(self):
    self.known: list[Loaded] = []

  def __call__(self, loaded: Loaded) -> Loaded:
    """The same, or an equal one that is held already, or at least with its data set."""
    for one in self.known:
      if loaded.dataset is not one.dataset and population.same_data(one, loaded):
        loaded = loaded._replace(dataset=one.dataset)
      pairs = [*zip(one.split[:3], loaded.split[:3], strict=True), (one.order, loaded.order)]
      same = loaded.dataset is one.dataset and loaded.units == one.units
      if same and all(np.array_equal(a, b) for a, b in pairs):
        return one
    self.known.append(loaded)
    return loaded


def _target(session: Session, state: Any, values: Mapping[str, Any]) -> Any:
  """A host state as the member's solo run has it: a number that is 0 leaves nothing in it."""
  assembly.check_state(session.experiment, state)
  if all(values.values()):
    return assembly.host_target(state)
  loaded = session.loaded
  stored = loaded.train[0][:1]
  init = assembly.make_init(session.experiment, stored, loaded.units)
  return assembly.host_target_of(lambda: init(np.uint32(session.experiment.seed), stored))


def _train_on(
  together: Population,
  states: list[Any],
  begun: Sequence[Start],
  targets: Sequence[Any],
  which: Sequence[int],
  begin: float,
) -> str | None:
  """Trains the members `which`; returns the signal that interrupted them, or None."""
  for k in which:
    if begun[k].restored is not None:
      states[k] = population.fit(begun[k].restored.state, states[k], states[k])
  running = Running(population.some(together, which), [states[k] for k in which])
  experiment = together.experiment
  last = max(begun[k].session.record['num_steps'] for k in which)
  board = _Board(progress(last, max(begun[k].place.step for k in which)), experiment.batch_size)
  walks, sessions = {}, {}
  first = begun[which[0]].place
  with (
    watching(first, experiment.steps_per_dispatch) as watch,
    contextlib.ExitStack() as stack,
  ):
    stack.callback(board.close)
    # Looked at once a dispatch, so that all members leave at one step.
    asked: list[str | None] = [None]

    def between() -> None:
      board.show(len(walks))
      asked[0] = watch.interrupted()

    for i, k in enumerate(which):
      run = ready(begun[k], targets[k], lambda: asked[0], board.sink(i))
      stack.callback(run.close)
      sessions[i] = begun[k].session
      walks[i] = _walk(i, run, running, targets[k], _names(sessions[i].experiment, states[k]))
    outcomes = _drive(
      walks, running, between,
      lambda i, end: _concluded(begun[which[i]], end, time.perf_counter() - begin, watch),
    )  # fmt: skip
  print(f'programs of {", ".join(map(str, running.sizes))} members', file=sys.stderr, flush=True)
  return next((end.reason for end in outcomes.values() if not end.finished), None)


def _drive(
  walks: dict[int, loop.Walk],
  running: Running,
  between: Callable[[], None],
  ended: Callable[[int, loop.Outcome], None],
) -> dict[int, loop.Outcome]:
  """Makes the dispatches of all loops together until each has come to its end, which takes it out of `walks`."""
  outcomes: dict[int, loop.Outcome] = {}
  answers: dict[int, Any] = dict.fromkeys(walks)
  while walks:
    for i, answer in answers.items():
      try:
        walks[i].send(answer)
      except StopIteration as end:
        outcomes[i] = end.value
        ended(i, end.value)
        del walks[i]
    between()
    answers = running.dispatch(list(walks)) if walks else {}
  return outcomes


def _names(experiment: Experiment, state: Any) -> Callable[[str], bool]:
  """Whether a metric of the population is one of this member's: what is 0 for it alone it does not log."""
  own = steps.empty_window(live_terms(experiment), experiment.optimizer, experiment.gradient_noise)
  others = state.window.keys() - own.keys()
  return lambda name: name not in others


def _walk(
  i: int, run: Ready, running: Running, target: Any, is_own: Callable[[str], bool]
) -> loop.Walk:
  """The loop of member `i`, whose state is its number in `running`: the tools of a run, which see its own state."""
  tools = run.tools

  def own(k: int) -> Any:
    return devices.replicate(population.fit(running.own(k), target))

  def put(k: int, state: Any) -> int:
    now = running.own(k)
    return running.put(k, population.fit(devices.to_host(state), now, now))

  def recall(place: loop.Place, back: int, k: int) -> loop.Remembered | None:
    found = tools.recall(place, back, own(k))
    return found and found._replace(state=put(k, found.state))

  made = tools._replace(
    validate=running.validate,
    settle=running.settle,
    fetch=lambda metrics: {n: v for n, v in metrics['row']().items() if is_own(n)},
    save=lambda place, k, *rest: tools.save(place, own(k), *rest),
    draw=lambda step, k: tools.draw(step, own(k)),
    measure=lambda k, per_class: tools.measure(own(k), per_class),
    rescale=lambda k, scale: put(k, tools.rescale(own(k), scale)),
    snapshot=lambda step, k: tools.snapshot(step, own(k)),
    recall=recall,
  )
  return loop.walk(i, run.place, run.plan, run.callbacks, run.callback_states, made)


def _concluded(begun: Start, end: loop.Outcome, seconds: float, watch: Watch) -> None:
  begun.keeper.wait()  # saved is what is on the disk
  conclude(begun.session, end, seconds, watch)


class _Board:
  """One line of progress for all members: the means of the rows that came since the last line."""

  def __init__(self, sink: Sink, batch_size: int):
    self._sink, self._batch_size = sink, batch_size
    self._rows: dict[int, Mapping[str, Any]] = {}
    self._rates: dict[int, float] = {}
    self.close = sink.close

  def sink(self, i: int) -> Sink:
    """Takes member `i`'s rows."""

    def write(row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
      if 'loss' in row:
        self._rows[i] = row
        self._rates[i] = timing['steps_per_second']

    return Sink(write, lambda: None)

  def show(self, live: int) -> None:
    """Shows what has come, if anything."""
    if not self._rows:
      return
    rows, rates = list(self._rows.values()), list(self._rates.values())
    shown = {
      name: float(np.mean([row[name] for row in rows]))
      for name in SHOWN
      if all(name in row for row in rows)
    }
    images = sum(rates) * self._batch_size
    step = max(row['step'] for row in rows)
    self._sink.write({'step': step, 'members': live, **shown}, {'images_per_second': images})
    self._rows, self._rates = {}, {}
