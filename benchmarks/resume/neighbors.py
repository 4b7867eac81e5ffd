"""The cases in which the clock is wrong, or other programs are at work in the folder."""

import os
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.resume.bench import LONG, SHORT, Bench, record_of, rows
from benchmarks.resume.cases import Case
from benchmarks.resume.judge import (
  BADLY,
  HARMLESS,
  LOST,
  NOTICED,
  SILENT,
  Before,
  Expected,
  Verdict,
  differing,
  judge,
  judged_once,
  last_line,
  misbehaved,
  parts,
)


def clocks() -> Iterator[Case]:
  """The clock is set back between two starts, or every file is of the future or of long ago: a run goes on alike."""
  yield Case('clock', 'three days back at a resume', _set_back('killed'))
  yield Case('clock', 'three days back, finished', _set_back('whole'))
  yield Case('clock', 'three days back from the start', _set_back(None))
  yield Case('clock', 'files of next year', _aged(365 * 86400))
  yield Case('clock', 'files of 1971', _aged(None))


def _set_back(base: str | None) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  def run(bench: Bench, _: np.random.Generator) -> list[Verdict]:
    workdir = bench.copy(getattr(bench, base)) if base else bench.place()
    before = Before.of(workdir) if base else Before({})
    ended = bench.go(
      workdir, 'earlier', 'experiments.mixture', *SHORT, module='benchmarks.resume.under'
    )
    expected = parts(bench, bench.whole, 0)
    if base != 'whole':
      del expected['judged again']
    return [judge(bench, workdir, ended, before, expected, 0, Expected('clock'))]

  return run


def _aged(seconds: int | None) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  def run(bench: Bench, _: np.random.Generator) -> list[Verdict]:
    workdir = bench.copy(bench.killed)
    stamp = 40_000_000 if seconds is None else time.time() + seconds
    for path in [*workdir.rglob('*'), workdir]:
      os.utime(path, (stamp, stamp))
    before = Before.of(workdir)
    ended = bench.go(workdir, *SHORT)
    expected = judged_once(bench, bench.whole)
    return [judge(bench, workdir, ended, before, expected, 0, Expected('clock'))]

  return run


# Several programs on one folder


def neighbors() -> Iterator[Case]:
  """Two starts at once: one trains, the other is refused; and a run that is judged and sampled while it trains."""
  yield Case('two at once', 'in a new folder', _two_starts(None))
  yield Case('two at once', 'on a killed run', _two_starts('killed'))
  yield Case('two at once', 'on a finished run', _two_starts('whole'))
  yield Case('two at once', 'the second with --restart', _two_starts('killed', '--restart'))
  for mode in ('evaluate', 'sample'):
    yield Case('two at once', f'--mode={mode} beside a training', _beside(mode))


def _two_starts(
  base: str | None, *more: str
) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  def run(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
    workdir = bench.copy(getattr(bench, base)) if base else bench.place()
    before = Before.of(workdir) if base else Before({})
    first = bench.start(workdir, *SHORT)
    if more:
      count = rows(workdir)
      first.wait_until(lambda: rows(workdir) != count)
    else:
      time.sleep(generator.uniform(0, 0.3))
    second = bench.start(workdir, *SHORT, *more)
    both = [first.end(), second.end()]
    faults = [misbehaved(one) for one in both if misbehaved(one)]
    if faults:
      return [Verdict(BADLY, faults[0])]
    ended = [one for one in both if one.status == 0]
    refused = [one for one in both if one.status == 2]
    if len(ended) + len(refused) < 2 or not ended:
      return [Verdict(BADLY, '; '.join(f'{one.status}: {last_line(one.said)}' for one in both))]
    expected = parts(bench, bench.whole, 0)
    if base != 'whole':
      del expected['judged again']
    found = judge(bench, workdir, ended[0], before, expected, 0, Expected('is in use'))
    if found.outcome != HARMLESS or not refused:
      return [found]
    lines = refused[0].errors()
    if len(lines) != 1 or str(workdir) not in lines[0]:
      return [Verdict(BADLY, f'the second: {last_line(refused[0].said)}')]
    return [Verdict(NOTICED, lines[0][:300])]

  return run


def _beside(mode: str) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  def run(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
    whole, workdir = bench.left_alone(*LONG), bench.place()
    program = bench.start(workdir, *LONG)
    program.wait_until(lambda: rows(workdir) >= 10)
    beside = bench.start(workdir, *LONG, f'--mode={mode}').end()
    trained = program.end()
    for one in (beside, trained):
      if misbehaved(one) or one.status:
        return [Verdict(BADLY, misbehaved(one) or f'status {one.status}: {last_line(one.said)}')]
    expected = parts(bench, whole, 0)
    for name in ('judged again', 'judged', 'samples'):
      del expected[name]
    wrong = differing(parts(bench, workdir, 0), expected)
    if wrong:
      return [Verdict(LOST if 'state' in wrong else SILENT, f'the training differs: {wrong}')]
    kept = len(record_of(workdir)['evaluations'])
    if mode == 'evaluate' and kept != 2:
      return [Verdict(SILENT, f'{kept} of 2 judgments are in run.json')]
    return [Verdict(HARMLESS, 'equal to the bit')]

  return run
