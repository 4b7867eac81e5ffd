"""Training a run, or going on with it."""

import contextlib
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from diffusion import devices, processes
from diffusion.reporting import rows
from diffusion.runs import loop, rehearsal
from diffusion.runs.run import Run
from diffusion.runs.samples import draw_data
from diffusion.signals import Signals, caught_signals, end_on_sigterm
from diffusion.training.callbacks import DIVERGED
from diffusion.training.program import Program, SingleRun
from diffusion.training.state import host_target

DIVERGED_STATUS = 3  # of a program whose run a guard ended
ENDED = ('finished', DIVERGED)


class Span(NamedTuple):
  """Steps start, ..., stop - 1, counted as batches drawn."""

  start: int
  stop: int


def parse_span(text: str) -> Span | None:
  """START:STOP as a Span; None for an empty text.

  Raises:
    ValueError: anything else, or no step between the two.
  """
  if not text:
    return None
  start, colon, stop = text.partition(':')
  if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
    raise ValueError(f'--profile takes START:STOP, two steps with START < STOP, got {text!r}')
  return Span(int(start), int(stop))


@contextlib.contextmanager
def traced(
  dispatch: Callable[[Sequence[int]], Any], span: Span, steps: int, folder: pathlib.Path
) -> Iterator[Callable[[Sequence[int]], Any]]:
  """The same dispatches of one run, those that touch the span traced.

  Args:
    dispatch: ([batches seen]) -> (run -> metrics), as `Program.dispatch`.
    span: what to trace.
    steps: of a dispatch.
    folder: where the trace is written.
  """
  begun = ended = last = None

  def end() -> None:
    devices.stop_trace()
    print(f'trace of steps {begun} to {ended} in {folder}', flush=True)

  tracing = False

  def inner(seen: Sequence[int]) -> Any:
    nonlocal begun, ended, last, tracing
    if begun is None and seen[0] < span.stop and seen[0] + steps > span.start:
      if last is not None:
        last(0)  # waits for it
      devices.start_trace(str(folder))
      begun, tracing = max(span.start, seen[0]), True
    last = dispatch(seen)
    if tracing:
      ended = seen[0] + steps
      if ended >= span.stop:
        last(0)
        end()
        tracing = False
    return last

  try:
    yield inner
  finally:
    if tracing:
      end()
    elif begun is None:
      print(f'no trace: no step of {span.start} to {span.stop} was made', flush=True)


def train(run: Run, extend: int = 0, profile: Span | None = None) -> int:
  """Trains, or goes on training, and evaluates the best checkpoint.

  Args:
    run: prepared.
    extend: steps to go on past the end of a finished run; 0 to finish it.
    profile: steps to trace.

  Returns:
    The program's exit status.

  Raises:
    ValueError: a folder of another run, or one to extend that is not finished.
  """
  begin, steps, name = time.perf_counter(), run.experiment.steps_per_dispatch, None
  check_dispatches(run, extend)
  run.say_data()
  first = run.first_state()
  with processes.together('sampling'):
    rehearsal.trace_sampling(run, first)
  run.claim()
  draw_data([(run.folder, run.data)])
  with contextlib.closing(run):
    restored = run.resume(host_target(lambda: first))
    check_extend(run, extend)
    if to_train(run, extend):
      run.adopt()
      if restored is not None:
        run.say_resumed(restored.record)
      program = SingleRun(run.experiment, run.data, run.validate)
      program.put(0, devices.replicate(first if restored is None else restored.state))
      del first, restored  # or the host's copies would stay for all of training
      devices.give_back_memory()
      with contextlib.ExitStack() as stack:
        stack.callback(program.close)
        if run.position.step == 0:
          stack.enter_context(rehearsal.alongside(run))
        if profile is not None and processes.is_writer():
          program.dispatch = stack.enter_context(
            traced(program.dispatch, profile, steps, run.folder / 'profile')
          )
        name = train_together([run], program, begin, bool(extend))
  return finish([run], name)


def finish(runs: Sequence[Run], name: str | None) -> int:
  """The exit status after training: that of the signal of this name; or, once each run's best checkpoint is judged,
  `DIVERGED_STATUS` if a guard ended any of them, else 0."""
  if name is not None:  # it may have come in the last save
    return 128 + signal.Signals[name]
  end_on_sigterm()
  # When training is over: it needs most of what there is to load.
  from diffusion.runs.evaluating import evaluate_best

  for run in runs:
    if run.record['results'] is None:
      if len(runs) > 1:
        print(f'\n{run.folder}', flush=True)
      evaluate_best(run)
  return DIVERGED_STATUS if any(run.status == DIVERGED for run in runs) else 0


def train_together(
  runs: Sequence[Run], program: Program, begin: float, extended: bool
) -> str | None:
  """Trains as `loop.train` does, and notes how training ended for each run that has, or for all after a signal.

  Args:
    runs: resumed.
    program: at their states.
    begin: the time at which this start began, of `time.perf_counter`.
    extended: it was asked to extend them.

  Returns:
    The name of the signal that ended it, or None.
  """
  first, step = runs[0], max(run.position.step for run in runs)
  size, steps = first.experiment.batch_size, first.experiment.steps_per_dispatch
  progress = rows.progress(max(run.num_steps for run in runs), step, batch_size=size)
  with caught_signals(first.position.batches_seen, steps) as signals, contextlib.closing(progress):
    first.open_rows(progress)  # one speaks for all
    for run in runs[1:]:
      run.open_rows()
    loop.train(runs, program, signals)
    for run in runs:
      run.wait()
  for run in runs:
    if run.reason or signals.name is not None:
      _conclude(run, time.perf_counter() - begin, signals, extended)
  return signals.name


def is_done(run: Run) -> bool:
  """Whether training is over where a resumed run stands."""
  return bool(run.reason) or run.position.step >= run.num_steps


def ending(reason: str) -> str:
  """The status of a run whose training ended for this reason."""
  return DIVERGED if reason.startswith(DIVERGED) else 'finished'


def is_extending(run: Run) -> bool:
  """Whether it stands where an extension began: one that was killed before its first checkpoint begins again."""
  return run.position.step > 0 and run.position.step == run.record['extended_at']


def check_dispatches(run: Run, extend: int) -> None:
  """Raises ValueError for an extension that is no number of dispatches, or of a run that begins anew."""
  steps = run.experiment.steps_per_dispatch
  if extend and run.terms.restart:
    raise ValueError(f'--restart begins anew: leave --extend={extend} out')
  if extend % steps:
    raise ValueError(f'--extend must be a multiple of steps_per_dispatch = {steps}, got {extend}')


def check_extend(run: Run, extend: int) -> None:
  """Raises ValueError where a resumed run is to be extended and is not finished."""
  if extend and not (is_done(run) or is_extending(run)):
    raise processes.Agreed(
      f'{run.folder} is not finished: leave --extend out to go on with it first'
    )


def to_train(run: Run, extend: int) -> bool:
  """Whether steps are left to make where a resumed run stands; notes an extension, and says of a complete run so."""
  step, extending, done = run.position.step, is_extending(run), is_done(run)
  if extend:
    run.note(num_steps=step + extend, extended_at=step, results=None)
  if extend or extending:
    run.reason = ''
    for one in run.experiment.callbacks:
      run.callback_states[one.name] = one.extend(run.callback_states[one.name], step)
    return True
  if not done:
    return True
  if run.status not in ENDED:  # a signal or a kill came after the last checkpoint
    reason = run.reason or f'all {step} steps done'
    run.note(status=ending(reason), reason=reason, step=step)
  run.check_files()
  if run.record['results'] is not None:
    end = run.record['reason']
    print(f'{run.folder} is finished at step {step} ({end}); --extend=N goes on')
  return False


def _conclude(run: Run, seconds: float, signals: Signals, extended: bool) -> None:
  """Notes how training ended, after so many seconds, and says so; `extended`: it was asked to extend a run."""
  name, step = signals.name, run.position.step
  run.note(
    status=ending(run.reason) if run.reason else 'interrupted',
    reason=run.reason or name,
    step=step,
    wall_seconds=run.record['wall_seconds'] + seconds,
    peak_memory=devices.peak_memory(),
  )
  if run.reason:
    left = f'; {name}: left before the evaluation, which the same command makes' if name else ''
    print(f'{run.reason}{left}', flush=True)
  else:
    print(
      f'{name}: saved at step {step}, {signals.seconds():.1f} s after the signal; the same command goes on from there'
      + (', without --extend' if extended else ''),
      flush=True,
    )
