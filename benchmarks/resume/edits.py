"""The cases in which the code that is started is not what was trained."""

import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.checkouts import HERE
from benchmarks.resume.bench import SHORT, Bench, record_of, rows
from benchmarks.resume.cases import Case
from benchmarks.resume.judge import (
  BADLY,
  NOTICED,
  SILENT,
  Before,
  Expected,
  Verdict,
  judge,
  judged_once,
  last_line,
  misbehaved,
)

EDITS = {
  'the loss weight': ('(1.0, losses.denoising', '(0.5, losses.denoising'),
  'the parameterization': ('parameterizations.v()', 'parameterizations.x0()'),
  'a callback': ('callbacks.early_stopping(patience=c.patience)', 'callbacks.early_stopping(patience=77)'),
  'a callback left out': ('      callbacks.divergence_guard(c.log_every),\n', ''),
  'the learning rate': ('schedules.constant(c.learning_rate)', 'schedules.constant(c.learning_rate / 2)'),
  'the average': ('averaging.ema(c.ema_decay)', 'averaging.ema(c.ema_decay / 2)'),
  'the optimizer': ('c.weight_decay, c.clip_norm)', '0.1, c.clip_norm)'),
  'the noise schedule': ('noise.cosine()', 'noise.sigmoid(-3.0, 3.0, 0.9)'),
}  # fmt: skip


def edits() -> Iterator[Case]:
  """The code that is started is not what was trained: refused by naming the difference; --allow_changes goes on."""
  for name, (old, new) in EDITS.items():
    yield Case('changed code', name, _edited(old, new))
  yield Case('changed code', 'the loss weight, allowed', _allowed)
  yield Case(
    'changed code', 'a comment', _edited('"""\n\nimport', '"""\n\n# Another comment.\nimport', True)
  )
  yield Case('changed code', 'the file moved', _edited('', '', True))
  for name, value in (
    ('JAX_DEFAULT_PRNG_IMPL', 'rbg'),
    ('JAX_ENABLE_X64', '1'),
    ('JAX_DEFAULT_MATMUL_PRECISION', 'float32'),
  ):
    yield Case('changed code', f'{name}={value}', _in_an_environment(name, value))


def _edit(bench: Bench, old: str, new: str) -> pathlib.Path:
  """A copy of the experiment's file, edited, of the same name."""
  folder = bench.place('elsewhere')
  folder.mkdir()
  text = (HERE / 'experiments' / 'mixture.py').read_text()
  if old not in text:
    raise ValueError(f'the experiment has no {old!r}')
  (folder / 'mixture.py').write_text(text.replace(old, new))
  return folder / 'mixture.py'


_RUN = (
  'import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
)


def _edited(
  old: str, new: str, harmless: bool = False
) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  def run(bench: Bench, _: np.random.Generator) -> list[Verdict]:
    source, workdir = _edit(bench, old, new), bench.copy(bench.killed)
    before = Before.of(workdir)
    ended = bench.fork(_RUN, str(source), f'--workdir={workdir}', *SHORT).end()
    expected = judged_once(bench, bench.whole)
    right = Expected(
      r'experiment\.py' if harmless else '->|allow_changes', None if harmless else True
    )
    found = judge(bench, workdir, ended, before, expected, 0, right)
    if found.outcome == NOTICED and not harmless and '--allow_changes' not in ended.said:
      return [Verdict(BADLY, f'names no remedy: {found.why}')]
    return [found]

  return run


def _allowed(bench: Bench, _: np.random.Generator) -> list[Verdict]:
  """--allow_changes: recorded as such, and both files are kept."""
  old, new = EDITS['the loss weight']
  source, workdir = _edit(bench, old, new), bench.copy(bench.killed)
  text, before = (workdir / 'experiment.py').read_bytes(), rows(workdir)
  ended = bench.fork(_RUN, str(source), f'--workdir={workdir}', *SHORT, '--allow_changes').end()
  fault = misbehaved(ended)
  if fault or ended.status:
    return [Verdict(BADLY, fault or last_line(ended.said))]
  kept = [
    path for path in workdir.glob('experiment_before_start_*.py') if path.read_bytes() == text
  ]
  missing = {
    'the old file': kept,
    'the new file': (workdir / 'experiment.py').read_bytes() == source.read_bytes(),
    'the change in run.json': record_of(workdir)['starts'][-1].get('changes'),
    'the change in what is said': '->' in ended.said,
    'the rows before': rows(workdir) >= before,
  }
  lacks = [name for name, there in missing.items() if not there]
  return [Verdict(SILENT, f'lacks {lacks}') if lacks else Verdict(NOTICED, last_line(ended.said))]


def _in_an_environment(
  name: str, value: str
) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  """Under another generator, width or precision than the run had: refused by its name."""

  def run(bench: Bench, _: np.random.Generator) -> list[Verdict]:
    workdir = bench.copy(bench.killed)
    before = Before.of(workdir)
    ended = bench.start(workdir, *SHORT, interpreter=True, environment={name: value}).end()
    expected = judged_once(bench, bench.whole)
    named = rf'(?i){name.removeprefix("JAX_")}|prng|x64|precision'
    return [judge(bench, workdir, ended, before, expected, 0, Expected(named, True))]

  return run
