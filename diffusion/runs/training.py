"""Training a run, or going on with it."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from diffusion import devices, workdir
from diffusion.reporting import records
from diffusion.runs.judging import judge_best
from diffusion.runs.session import Session, Setting, open_session, restore
from diffusion.runs.suite import Request
from diffusion.runs.tools import make_tools, open_ring
from diffusion.training import assembly, loop
from diffusion.training.checkpoint import Checkpoints, Restored, open_checkpoints
from diffusion.training.experiment import cadence


@contextlib.contextmanager
def _watching() -> Iterator[Callable[[], str | None]]:
  """Turns the first SIGINT or SIGTERM into a flag; a second one acts as usual."""
  caught: list[int] = []
  before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def note(number, frame) -> None:
    caught.append(number)
    restore()
    print(
      f'\n{signal.Signals(number).name}: saving, then leaving (again to leave at once)',
      file=sys.stderr,
    )

  for number in before:
    signal.signal(number, note)
  try:
    yield lambda: signal.Signals(caught[0]).name if caught else None
  finally:
    restore()


def train(setting: Setting) -> int:
  """Trains, or goes on training, and judges the best checkpoint; returns the program's exit status."""
  begin = time.perf_counter()
  session, state = open_session(setting)
  session = session._replace(record=workdir.claim(setting.workdir, session.record, setting.source))
  target = assembly.host_target(state)
  keeper = open_checkpoints(session.folder / 'checkpoints')
  try:
    restored = restore(keeper, target, 'latest')
    step, reason = (restored.record['step'], restored.record['reason']) if restored else (0, None)
    done = reason is not None or step >= session.record['num_steps']
    if setting.extend:
      if not done:
        raise ValueError(
          f'{session.folder} is not finished: leave --extend out to go on with it first'
        )
      session.note(num_steps=step + setting.extend, results=None)
    elif done and session.record['results'] is not None:
      end = session.record['reason']
      print(f'{session.folder} is finished at step {step} ({end}); --extend=N goes on')
      return 0
    if setting.extend or not done:
      outcome = _train_on(session, keeper, restored, state)
      seconds = session.record['wall_seconds'] + time.perf_counter() - begin
      status = 'finished' if outcome.finished else 'interrupted'
      session.note(
        status=status, reason=outcome.reason, step=outcome.place.step, wall_seconds=seconds
      )
      if not outcome.finished:
        print(
          f'{outcome.reason}: saved at step {outcome.place.step}; the same command goes on from there'
          + (', without --extend' if setting.extend else ''),
          flush=True,
        )
        return 128 + signal.Signals[outcome.reason]
      print(outcome.reason, flush=True)
  finally:
    keeper.close()
  judge_best(session, target, Request())
  return 0


def _train_on(
  session: Session, keeper: Checkpoints, restored: Restored | None, state: Any
) -> loop.Outcome:
  """The loop between the restored state (or the first) and the end, with everything it writes."""
  experiment = session.experiment
  place = loop.Place(restored.record['step'], restored.number) if restored else loop.Place(0, 0)
  callback_states = {c.name: c.init() for c in experiment.callbacks}
  if restored:
    print(f'resuming from step {place.step}', flush=True)
    state, callback_states = restored.state, callback_states | restored.record['callbacks']
  if session.setting.extend:
    callback_states = {
      c.name: c.extend(callback_states[c.name], place.step) for c in experiment.callbacks
    }
  num_steps = session.record['num_steps']
  sinks = records.chain(  # the file first: it alone is flushed row by row, and its error names it
    records.json_lines(session.folder / 'metrics.jsonl', place.cursor, key='cursor'),
    records.tensorboard(session.folder / 'events', place.step),
    records.progress(num_steps, place.step, batch_size=experiment.batch_size),
  )
  ring = open_ring(session.folder / 'ring', place.cursor)
  plan = cadence(experiment)._replace(num_steps=num_steps)
  try:
    with _watching() as interrupted:
      tools = make_tools(session, keeper, ring, sinks, assembly.host_target(state), interrupted)
      return loop.train(
        devices.replicate(state), place, plan, experiment.callbacks, callback_states, tools
      )
  finally:
    session.programs.close()
    sinks.close()
    ring.close()
