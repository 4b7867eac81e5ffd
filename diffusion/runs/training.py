"""Training a run, or going on with it."""

import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from diffusion import devices, processes, workdir
from diffusion.reporting import rows
from diffusion.runs.judging import judge_best
from diffusion.runs.session import Session, Setting, open_session, restore
from diffusion.runs.speed import Span, traced
from diffusion.runs.suite import Request
from diffusion.runs.tools import make_tools
from diffusion.training import assembly, loop
from diffusion.training.callbacks import Callback, CallbackState
from diffusion.training.checkpoint import Checkpoints, Restored, open_checkpoints
from diffusion.training.experiment import cadence


class Watch(NamedTuple):
  """The name of the signal that asks to leave, or None, and the seconds since it was noticed."""

  interrupted: Callable[[], str | None]
  late: Callable[[], float]


def _watch(caught: list[tuple[str, float]]) -> Watch:
  return Watch(lambda: caught[0][0] if caught else None, lambda: time.perf_counter() - caught[0][1])


@contextlib.contextmanager
def watching(place: loop.Place, steps: int) -> Iterator[Watch]:
  """Notes the first SIGINT or SIGTERM; a second one acts as usual.

  Of several processes all leave after the same dispatch (of so many `steps`), whichever got the signal.
  """
  if not processes.alone():
    with _watching_together(place.cursor, steps) as watch:
      yield watch
    return
  caught: list[tuple[str, float]] = []
  before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def note(number, frame) -> None:
    caught.append((signal.Signals(number).name, time.perf_counter()))
    restore()
    print(
      f'\n{signal.Signals(number).name}: saving, then leaving (again to leave at once)',
      file=sys.stderr,
    )

  for number in before:
    signal.signal(number, note)
  try:
    yield _watch(caught)
  finally:
    restore()


@contextlib.contextmanager
def _watching_together(cursor: int, steps: int) -> Iterator[Watch]:
  """JAX has SIGTERM, and tells the other processes of it; the first Ctrl-C becomes one, a second acts as usual.

  Afterwards both do again what they do in any program.
  """
  before = signal.getsignal(signal.SIGINT)
  caught: list[tuple[str, float]] = []
  reached = processes.preemption(cursor, steps)

  def interrupted() -> str | None:
    name = reached()
    if name is not None:
      caught.append((name, time.perf_counter()))
    return name

  def note(number, frame) -> None:
    signal.signal(number, before)
    print('\nSIGINT: all processes save, then leave (again to leave at once)', file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)

  signal.signal(signal.SIGINT, note)
  try:
    yield _watch(caught)._replace(interrupted=interrupted)
  finally:
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Start(NamedTuple):
  """A run whose folder has been taken, with the record on disk; `restored` is its latest checkpoint, or None.

  `complete`: it is trained and judged. `trained`: no step is left to make.
  """

  session: Session
  keeper: Checkpoints
  restored: Restored | None
  trained: bool
  complete: bool

  @property
  def place(self) -> loop.Place:
    """Where it stands."""
    if self.restored is None:
      return loop.Place(0, 0)
    return loop.Place(self.restored.record['step'], self.restored.number)


def start(session: Session, target: Any) -> Start:
  """Takes the run's folder and finds out where the run stands; `target` is a host state of the right shapes.

  Raises:
    ValueError: a folder of another run, or one to extend that is not finished.
  """
  setting = session.setting
  claim = functools.partial(workdir.claim, setting.workdir, session.record, setting.source)
  processes.from_writer(claim)
  record = processes.from_folder(lambda: workdir.read_record(session.folder))
  session = session._replace(record=record)
  keeper = open_checkpoints(session.folder / 'checkpoints')
  try:
    restored = restore(keeper, target, 'latest')
    step, reason = (restored.record['step'], restored.record['reason']) if restored else (0, None)
    # An extension that was killed before its first checkpoint begins again.
    extending = restored is not None and step == session.record.get('extended_at')
    done = reason is not None or step >= session.record['num_steps']
    if setting.extend and not (done or extending):
      raise processes.Agreed(
        f'{session.folder} is not finished: leave --extend out to go on with it first'
      )
    if setting.extend or extending or not done:
      return Start(session, keeper, restored, trained=False, complete=False)
    if session.record['status'] != 'finished':  # a signal or a kill came after the last checkpoint
      session.note(status='finished', reason=reason or f'all {step} steps done', step=step)
    complete = session.record['results'] is not None
    if complete:
      end = session.record['reason']
      print(f'{session.folder} is finished at step {step} ({end}); --extend=N goes on')
    return Start(session, keeper, restored, trained=True, complete=complete)
  except BaseException:
    keeper.close()
    raise


def extend(begun: Start) -> None:
  """Notes by how many steps a finished run goes on, if asked to, once nothing refuses any more."""
  more, step = begun.session.setting.extend, begun.place.step
  if more:
    begun.session.note(num_steps=step + more, extended_at=step, results=None)


def conclude(session: Session, outcome: loop.Outcome, seconds: float, watch: Watch) -> None:
  """Notes how the training ended, after so many seconds, and says so."""
  seconds += session.record['wall_seconds']
  status = 'finished' if outcome.finished else 'interrupted'
  session.note(
    status=status, reason=outcome.reason, step=outcome.place.step, wall_seconds=seconds,
    peak_memory=devices.peak_memory(),
  )  # fmt: skip
  if not outcome.finished:
    print(
      f'{outcome.reason}: saved at step {outcome.place.step}, {watch.late():.1f} s after the signal; the same '
      'command goes on from there' + (', without --extend' if session.setting.extend else ''),
      flush=True,
    )
  else:
    print(outcome.reason, flush=True)


def train(setting: Setting) -> int:
  """Trains, or goes on training, and judges the best checkpoint; returns the program's exit status."""
  begin = time.perf_counter()
  session, state = open_session(setting)
  target = assembly.host_target(state)
  begun = start(session, target)
  try:
    extend(begun)
    if begun.complete:
      return 0
    if not begun.trained:
      begun, placed = _placed(begun, state)
      del state  # or the host's copy would stay for all of training
      devices.give_back_memory()
      with watching(begun.place, begun.session.experiment.steps_per_dispatch) as watch:
        outcome = _train_on(begun, placed, target, watch.interrupted)
        begun.keeper.wait()  # saved is what is on the disk
      conclude(begun.session, outcome, time.perf_counter() - begin, watch)
      if not outcome.finished:
        return 128 + signal.Signals[outcome.reason]
  finally:
    begun.keeper.close()
  processes.end_on_sigterm()
  judge_best(begun.session, target, Request())
  return 0


class Ready(NamedTuple):
  """What the loop of a run begins with, beside its state, and what is to be closed after it."""

  place: loop.Place
  plan: loop.Cadence
  callbacks: Sequence[Callback]
  callback_states: dict[str, CallbackState]
  tools: loop.Tools
  close: Callable[[], None]


def ready(
  begun: Start, target: Any, interrupted: Callable[[], str | None], *shown: rows.Sink
) -> Ready:
  """Opens everything that a run writes, rows to `shown` too, and makes its tools."""
  session, place, restored = begun.session, begun.place, begun.restored
  callbacks = session.experiment.callbacks
  callback_states = {c.name: c.init() for c in callbacks}
  if restored:
    _note_devices(session, restored.record)
    callback_states |= restored.record['callbacks']
  if restored and place.step == session.record.get('extended_at'):
    callback_states = {c.name: c.extend(callback_states[c.name], place.step) for c in callbacks}
  sinks = rows.chain()
  if processes.is_writer():
    sinks = rows.chain(  # the file first: it alone is flushed row by row, and its error names it
      rows.json_lines(session.folder / 'metrics.jsonl', place.cursor, key='cursor'),
      rows.tensorboard(session.folder / 'events', place.step),
      *shown,
    )
  plan = cadence(session.experiment)._replace(num_steps=session.record['num_steps'])

  tools = make_tools(session, begun.keeper, sinks, target, interrupted)
  ends = contextlib.ExitStack()
  for end in (sinks.close, session.programs.close):  # the last one first
    ends.callback(end)
  if session.setting.profile is not None and processes.is_writer():
    dispatch, end_trace = traced(
      tools.dispatch, Span(*session.setting.profile), place.cursor, plan.steps_per_dispatch, session.folder / 'profile'
    )  # fmt: skip
    tools = tools._replace(dispatch=dispatch)
    ends.callback(end_trace)
  return Ready(place, plan, callbacks, callback_states, tools, ends.close)


def _placed(begun: Start, first: Any) -> tuple[Start, Any]:
  """(the same without its state, that state or the first one on the devices)."""
  if not begun.restored:
    return begun, devices.replicate(first)
  print(f'resuming from step {begun.place.step}', flush=True)
  state = devices.replicate(begun.restored.state)
  return begun._replace(restored=begun.restored._replace(state=None)), state


def _train_on(
  begun: Start, state: Any, target: Any, interrupted: Callable[[], str | None]
) -> loop.Outcome:
  """The loop between the placed state and the end, with everything it writes."""
  session = begun.session
  shown = rows.progress(
    session.record['num_steps'], begun.place.step, batch_size=session.experiment.batch_size
  )
  run = ready(begun, target, interrupted, shown)
  try:
    return loop.train(state, run.place, run.plan, run.callbacks, run.callback_states, run.tools)
  finally:
    run.close()


def _note_devices(session: Session, saved: Mapping[str, Any]) -> None:
  """Says, and notes in this start's record, that a run goes on with another number of devices than it was saved on."""
  before, now = saved['devices'], devices.describe()['devices']
  if before != now:
    print(
      f'saved on {before} devices, going on with {now}: the same run up to rounding', flush=True
    )
    session.record['starts'][-1]['resharded'] = {'step': saved['step'], 'from': before, 'to': now}
    session.note()
