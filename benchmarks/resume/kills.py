"""The cases in which programs are killed (`kill -9`), or get a signal, at every kind of moment."""

import pathlib
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.resume.bench import LONG, SHORT, Bench, Started, rows, unsealed
from benchmarks.resume.cases import Case
from benchmarks.resume.judge import (
  BADLY,
  HARMLESS,
  LOST,
  NOTICED,
  SILENT,
  Verdict,
  differing,
  judged_once,
  last_line,
  misbehaved,
  parts,
)

# (program, folder, generator) -> returns when it is time, or when the program has ended.
Moment = Callable[[Started, pathlib.Path, np.random.Generator], None]
MIXTURE, TURNING = 'experiments.mixture', 'benchmarks.resume.turning'


def _sleep(generator: np.random.Generator, most: float) -> None:
  time.sleep(generator.uniform(0, most))


def importing(program: Started, folder: pathlib.Path, generator: np.random.Generator) -> None:
  """Before anything of the run is read, most of the time."""
  _sleep(generator, 3)


def compiling(program: Started, folder: pathlib.Path, generator: np.random.Generator) -> None:
  """From the first moment to the first row of this start."""
  count, wait = rows(folder), generator.uniform(0, 2.5)
  program.wait_until(lambda: rows(folder) > count, wait)


def between_rows(program: Started, folder: pathlib.Path, generator: np.random.Generator) -> None:
  """Some rows on."""
  _until_it_trains(program, folder)
  target = rows(folder) + generator.integers(1, 12)
  program.wait_until(lambda: rows(folder) >= target)
  _sleep(generator, 0.02)


def in_a_save(program: Started, folder: pathlib.Path, generator: np.random.Generator) -> None:
  """While a checkpoint has no manifest yet."""
  _until_it_trains(program, folder)
  target = rows(folder) + generator.integers(0, 8)
  program.wait_until(lambda: rows(folder) >= target and unsealed(folder))
  _sleep(generator, 0.03)


def in_the_first_save(
  program: Started, folder: pathlib.Path, generator: np.random.Generator
) -> None:
  """Before there is any checkpoint that counts."""
  program.wait_until(lambda: unsealed(folder))
  _sleep(generator, 0.05)


def going_back(program: Started, folder: pathlib.Path, generator: np.random.Generator) -> None:
  """When a callback has turned the run back: before, in and after the save that makes it last."""
  program.wait_until(lambda: 'going back to step' in program.said())
  _sleep(generator, 0.12)


def judging(program: Started, folder: pathlib.Path, generator: np.random.Generator) -> None:
  """From the end of training on, while the best checkpoint is judged."""
  program.wait_until(lambda: 'evaluation 1/' in program.said())
  _sleep(generator, 1)


def reporting(program: Started, folder: pathlib.Path, generator: np.random.Generator) -> None:
  """While pictures and the report are written."""
  program.wait_until(lambda: 'pictures and report, the last' in program.said())
  _sleep(generator, 0.6)


def _until_it_trains(program: Started, folder: pathlib.Path) -> None:
  """The file of events is made when the rows of the start before have been cut back to its checkpoint."""
  events = folder / 'events'
  before = len(list(events.iterdir())) if events.exists() else 0
  program.wait_until(lambda: events.exists() and len(list(events.iterdir())) > before)


def _in_the_end(
  bench: Bench, folders: list[tuple[pathlib.Path, pathlib.Path]], said: str
) -> Verdict:
  """What the kills of a run come to when it has ended: equal to the one left alone, or not."""
  for folder, whole in folders:
    expected = judged_once(bench, whole)
    wrong = differing(parts(bench, folder, 0), expected)
    if wrong:
      return Verdict(
        LOST if 'state' in wrong else SILENT, f'{folder.name} differs: {wrong}; {last_line(said)}'
      )
  return Verdict(HARMLESS, 'equal to the bit')


def _killed(
  kind: str,
  moment: Moment,
  kills: int,
  *,
  flags: tuple[str, ...] = LONG,
  module: str = MIXTURE,
  base: str | None = None,
  members: tuple[str, ...] = ('',),
  interpreter: bool = False,
) -> Case:
  """A run that is killed so many times, and then left to its end.

  Args:
    kind: of the case.
    moment: when.
    kills: how many.
    flags, module: of the run.
    base: 'killed' to begin with a copy of that run; None with nothing.
    members: folders in the workdir, each a run.
    interpreter: see `Bench.start`.
  """

  def run(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
    whole = (
      bench.whole
      if (flags, module) == (SHORT, MIXTURE)
      else bench.left_alone(*flags, module=module)
    )
    workdir = bench.copy(getattr(bench, base)) if base else bench.place()
    met, faults = 0, []
    for _ in range(kills):
      program = bench.start(workdir, *flags, module=module, interpreter=interpreter)
      moment(program, workdir / members[0], generator)
      met += program.kill()
      if program.status() not in (0, -signal.SIGKILL):
        faults.append(last_line(program.said()))
    ended = bench.go(workdir, *flags, module=module)
    fault = misbehaved(ended) or (f'status {ended.status}' if ended.status else '')
    if fault or faults:
      found = Verdict(LOST, f'{fault}; {faults}; {last_line(ended.said)}')
    else:
      found = _in_the_end(bench, [(workdir / one, whole / one) for one in members], ended.said)
    return [found] * met

  return Case(f'kill -9: {kind}', f'{kills} of one run', run)


def kills(count: int) -> Iterator[Case]:
  """Kills at every kind of moment; `count` of one run."""
  yield _killed('imports', importing, count, flags=SHORT, base='killed', interpreter=True)
  yield _killed('compile', compiling, count, flags=SHORT, base='killed')
  yield _killed('between rows', between_rows, count)
  yield _killed('in a save', in_a_save, count)
  yield _killed('in the first save', in_the_first_save, 1, flags=SHORT)
  yield _killed('in a rollback', going_back, count, flags=SHORT, module=TURNING)
  population = (*SHORT, '--config.num_steps=400', '--population=seed=0..2')
  names = tuple(f'seed={seed}' for seed in range(3))
  yield _killed('in a population', between_rows, count, flags=population, members=names)
  yield _killed('in a population, saving', in_a_save, count, flags=population, members=names)
  yield _killed('judging', judging, count, flags=SHORT, base='killed')
  yield _killed('report', reporting, count, flags=SHORT, base='killed')
  yield Case(
    'kill -9: one of two processes', f'{min(count, 3)} of one run', _two_processes(min(count, 3))
  )


# Two processes


PAIR = (*SHORT, '--config.num_steps=400')


def _pair(bench: Bench, workdir: pathlib.Path) -> list[Started]:
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    port = one.getsockname()[1]
  flags = (*PAIR, '--num_processes=2', f'--coordinator=127.0.0.1:{port}', '--heartbeat_seconds=5')
  return [bench.start(workdir, *flags, f'--process_id={i}') for i in (0, 1)]


def _two_processes(count: int) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  """One of two is killed; the other ends within a minute; together again they end as two that nothing happened to."""

  def whole(bench: Bench, place: pathlib.Path) -> None:
    ended = [program.end() for program in _pair(bench, place)]
    if any(one.status for one in ended):
      raise RuntimeError(f'two processes: {ended}')

  def run(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
    alone = bench.base('two processes', lambda place: whole(bench, place))
    workdir, found, met = bench.place(), [], 0
    for i in range(count):
      pair = _pair(bench, workdir)
      (between_rows if i % 2 else in_a_save)(pair[0], workdir, generator)
      victim = int(generator.integers(2))
      hit = pair[victim].kill()
      other = pair[1 - victim].end(60)
      met += hit
      fault = misbehaved(other)
      if hit and fault:
        found.append(Verdict(BADLY, fault))
      elif hit and not re.search(r'gone|fatal error|heartbeat|unavailable', other.said, re.I):
        found.append(Verdict(BADLY, f'does not say that one is gone: {last_line(other.said)}'))
    ended = [program.end() for program in _pair(bench, workdir)]
    if any(one.status for one in ended):
      return [Verdict(LOST, last_line(ended[0].said))] * met
    return found + [_in_the_end(bench, [(workdir, alone)], ended[0].said)] * (met - len(found))

  return run


# Signals


def signals() -> Iterator[Case]:
  """Signals while it trains, which save and leave; while it compiles and while it is judged, which leave."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    name = number.name
    yield Case('signals', f'{name} while it trains', _signaled(number, between_rows, LONG, True))
    yield Case('signals', f'{name} while it saves', _signaled(number, in_a_save, LONG, True))
    yield Case('signals', f'{name} while it compiles', _signaled(number, compiling, SHORT, False))
    yield Case('signals', f'{name} while it is judged', _signaled(number, judging, SHORT, False))
  yield Case('signals', 'SIGHUP under nohup', _under_nohup)


def _signaled(
  number: int, moment: Moment, flags: tuple[str, ...], saves: bool
) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  def run(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
    whole = bench.whole if flags is SHORT else bench.left_alone(*LONG)
    workdir = bench.place() if saves else bench.copy(bench.killed)
    program = bench.start(workdir, *flags)
    moment(program, workdir, generator)
    if program.status() is not None:
      return []  # it was over before
    begun = rows(workdir) > 0 and not saves
    program.send(number)
    ended = program.end(60)
    fault = misbehaved(ended)
    name = signal.Signals(number).name
    if fault:
      return [Verdict(BADLY, fault)]
    if saves and (
      ended.status != 128 + number or not re.search(rf'{name}: saved at step \d+', ended.said)
    ):
      return [
        Verdict(BADLY, f'{name}: nothing saved, status {ended.status}: {last_line(ended.said)}')
      ]
    if ended.status not in (0, 128 + number, -number):
      return [Verdict(BADLY, f'{name}: status {ended.status}: {last_line(ended.said)}')]
    after = bench.go(workdir, *flags)
    if after.status != 0:
      return [Verdict(LOST, f'the next start: {last_line(after.said)}')]
    found = _in_the_end(bench, [(workdir, whole)], after.said)
    said = found.outcome == HARMLESS and (saves or (begun and name in ended.said))
    return [Verdict(NOTICED, last_line(ended.said)) if said else found]

  return run


def _under_nohup(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
  """It goes on to its end."""
  workdir = bench.place()
  program = bench.start(
    workdir, 'nohup', 'experiments.mixture', *SHORT, module='benchmarks.resume.under'
  )
  between_rows(program, workdir, generator)
  program.send(signal.SIGHUP)
  ended = program.end()
  if ended.status != 0:
    return [Verdict(BADLY, f'status {ended.status}: {last_line(ended.said)}')]
  return [_in_the_end(bench, [(workdir, bench.whole)], ended.said)]
