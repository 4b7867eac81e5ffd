"""The cases in which what is around a run is odd: its path, its disk, its code, the clock, its neighbors."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.checkouts import HERE
from benchmarks.resume.bench import LONG, SHORT, Bench, Ended, Started, record_of, rows
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
  last_line,
  misbehaved,
  parts,
)

# What a shell, a glob, a URL, a configuration or Orbax may take for something else.
NAMES = (
  'x[1]', '[abc]', '[', ']', 'a*', '*', 'what?', '{a,b}', '{', 'two words', ' begins', 'ends ', 'tab\tin',
  'line\nbreak', "it's", 'a"b', 'back\\slash', '$HOME', '${HOME}', '`ls`', '$(ls)', 'a;b', 'a&b', 'a|b', 'a<b>c', '(a)',
  '!a', '#a', '%20', '%s', '~', '~root', 'a:b', 'a,b', 'a=b', '-dash', '--flag', '.hidden', '...', 'a@b', 'a^b', 'a+b',
  '1', '120.sha256', 'checkpoints', 'run.json', 'e\u0301', '\u00e9', '\u4f60\u597d', '\U0001f600', '\u202eabc',
  'nul\x01', 'bytes\udcff', 'a.orbax-checkpoint-tmp-1', 'x.deleted', 'n' * 255,
)  # fmt: skip


def paths() -> Iterator[Case]:
  """A run from nothing in a folder of an odd name: to its end as anywhere, or refused before anything is trained."""
  for name in NAMES:
    shown = name.encode('unicode_escape', 'surrogatepass').decode()
    yield Case('paths', shown[:40], _in_a_folder(lambda place, name=name: place / name), True)
  yield Case('paths', 'two levels of [', _in_a_folder(lambda place: place / '[a]' / 'b[!c]'), True)
  yield Case('paths', '3,481 characters', _in_a_folder(_long), True)
  yield Case(
    'paths', '250 folders deep', _in_a_folder(lambda place: place.joinpath(*'d' * 250)), True
  )
  yield Case('paths', 'a link to a folder', _in_a_folder(_linked), True)
  yield Case('paths', 'a dangling link', _in_a_folder(_dangling), True)
  yield Case('paths', '[ and resumed', _resumed_in_brackets, True)


def _long(place: pathlib.Path) -> pathlib.Path:
  while len(str(place)) < 3481 - 201:
    place = place / ('n' * 200)
  return place / ('m' * (3480 - len(str(place))))


def _linked(place: pathlib.Path) -> pathlib.Path:
  (place / 'true').mkdir()
  (place / 'link').symlink_to('true')
  return place / 'link'


def _dangling(place: pathlib.Path) -> pathlib.Path:
  (place / 'link').symlink_to('nowhere')
  return place / 'link'


def _in_a_folder(
  name: Callable[[pathlib.Path], pathlib.Path],
) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  def run(bench: Bench, _: np.random.Generator) -> list[Verdict]:
    place = bench.place('').parent
    workdir = name(place)
    ended = bench.go(workdir, *SHORT)
    named = re.escape(str(workdir)[:60]) + r'|--workdir'
    if ended.status == 2:
      with contextlib.suppress(OSError):
        if rows(workdir):
          return [Verdict(LOST, f'trained, and then: {last_line(ended.said)}')]
    expected = parts(bench, bench.whole, 0)
    del expected['judged again']
    return [judge(bench, workdir, ended, Before({}), expected, 0, Expected(named, None))]

  return run


def _resumed_in_brackets(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
  """A run that is killed in such a folder, and goes on."""
  workdir = bench.place('runs [1]*')
  program = bench.start(workdir, *SHORT)
  program.wait_until(lambda: rows(workdir) >= 11)
  program.kill()
  ended = bench.go(workdir, *SHORT)
  expected = parts(bench, bench.whole, 0)
  del expected['judged again']
  return [judge(bench, workdir, ended, Before({}), expected, 0, Expected('--workdir', None))]


# Disks. Mounting takes a privilege: where it is not allowed, these cases are left out.


@contextlib.contextmanager
def disk(bench: Bench, megabytes: int) -> Iterator[pathlib.Path | None]:
  """A small disk of its own, or None."""
  folder = bench.place('disk')
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(folder)]
  if (
    not shutil.which('mount')
    or subprocess.run(command, check=False, capture_output=True).returncode
  ):
    print('left out: mounting is not allowed here', flush=True)
    yield None
    return
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', str(folder)], check=False, capture_output=True)


def fill(path: pathlib.Path) -> None:
  """Leaves no byte of a disk."""
  with contextlib.suppress(OSError), path.open('ab', buffering=0) as file:
    for size in (65536, 4096, 1):
      with contextlib.suppress(OSError):
        while True:
          file.write(b'x' * size)


def disks() -> Iterator[Case]:
  """A full and a read-only disk end a start in one line that names a path of the run, soon; afterwards it goes on."""
  for when in ('before it starts', 'while it trains', 'while it is judged', 'at the report'):
    yield Case('full disk', when, _on_a_disk(when, _full))
  yield Case('full disk', 'before there is a folder', _on_a_disk('new', _full))
  for when in ('before it starts', 'while it trains', 'while it is judged'):
    yield Case('read-only disk', when, _on_a_disk(when, _read_only))
  yield Case('read-only disk', 'a finished run is asked again', _asked_read_only)


def _full(folder: pathlib.Path) -> Callable[[], None]:
  fill(folder / 'ballast')
  return (folder / 'ballast').unlink


def _read_only(folder: pathlib.Path) -> Callable[[], None]:
  subprocess.run(['mount', '-o', 'remount,ro', str(folder)], check=True)
  return lambda: subprocess.run(['mount', '-o', 'remount,rw', str(folder)], check=True)


def _on_a_disk(
  when: str, hurt: Callable[[pathlib.Path], Callable[[], None]]
) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  def run(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
    with disk(bench, 16) as folder:
      if folder is None:
        return []
      workdir = folder / 'run'
      long = when == 'while it trains'
      flags = LONG if long else SHORT
      whole = bench.left_alone(*LONG) if long else bench.whole
      if when not in ('new', 'while it trains'):
        shutil.copytree(bench.killed, workdir)
      if when in ('new', 'before it starts'):
        mend = hurt(folder)
        program = bench.start(workdir, *flags)
      else:
        program = bench.start(workdir, *flags)
        _wait_for(when, program, workdir, generator)
        if program.status() is not None:
          return []  # it was over before
        mend = hurt(folder)
      ended = _end_while(program, folder if hurt is _full else None)
      mend()
      (folder / 'ballast').unlink(missing_ok=True)
      return [_mended(bench, workdir, whole, flags, ended, folder)]

  return run


def _wait_for(
  when: str, program: Started, workdir: pathlib.Path, generator: np.random.Generator
) -> None:
  if when == 'while it trains':
    program.wait_until(lambda: rows(workdir) >= generator.integers(5, 60))
  else:
    said = 'evaluation 1/' if when == 'while it is judged' else 'pictures and report, the last'
    program.wait_until(lambda: said in program.said())


def _end_while(program: Started, folder: pathlib.Path | None) -> Ended:
  """Its end; a disk is filled again and again, as old checkpoints may be deleted meanwhile."""
  end = time.monotonic() + 100
  while folder is not None and program.status() is None and time.monotonic() < end:
    fill(folder / 'ballast')
    time.sleep(0.005)
  return program.end(60)


def _mended(
  bench: Bench,
  workdir: pathlib.Path,
  whole: pathlib.Path,
  flags: tuple[str, ...],
  ended: Ended,
  folder: pathlib.Path,
) -> Verdict:
  """How it ended, and what became of the run when the disk was mended."""
  fault = misbehaved(ended)
  after = bench.go(workdir, *flags)
  if after.status != 0:
    return Verdict(LOST, f'the next start: status {after.status}: {last_line(after.said)}')
  expected = parts(bench, whole, 0)
  del expected['judged again']
  wrong = differing(parts(bench, workdir, 0), expected)
  if 'state' in wrong:
    return Verdict(LOST, f'differs: {wrong}')
  if fault:
    return Verdict(BADLY, fault)
  lines = ended.errors()
  if ended.status == 0:
    # A part of the judgment that could not be made is said, and what could not be written.
    said = re.search(r'(?i)[^\n]*(No space left|Read-only)[^\n]*', ended.said)
    if wrong and not said:
      return Verdict(SILENT, f'differs: {wrong}')
    return (
      Verdict(NOTICED, said[0].strip()[:300]) if said else Verdict(HARMLESS, 'equal to the bit')
    )
  if len(lines) != 1 or str(folder) not in lines[0]:
    return Verdict(BADLY, f'status {ended.status}, names no path: {last_line(ended.said)}')
  if wrong:
    return Verdict(SILENT, f'differs: {wrong}')
  return Verdict(NOTICED, lines[0][:300])


def _asked_read_only(bench: Bench, _: np.random.Generator) -> list[Verdict]:
  """The same command on a finished run says that it is, or that the disk cannot be written."""
  with disk(bench, 16) as folder:
    if folder is None:
      return []
    workdir = folder / 'run'
    shutil.copytree(bench.whole, workdir)
    before = Before.of(workdir)
    mend = _read_only(folder)
    ended = bench.go(workdir, *SHORT)
    mend()
    return [
      judge(
        bench,
        workdir,
        ended,
        before,
        parts(bench, bench.whole, 0),
        0,
        Expected(re.escape(str(folder)), None),
      )
    ]


# The clock


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
    expected = parts(bench, bench.whole, 0)
    del expected['judged again']
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


# Code that has changed

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
    expected = parts(bench, bench.whole, 0)
    del expected['judged again']
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
    expected = parts(bench, bench.whole, 0)
    del expected['judged again']
    named = rf'(?i){name.removeprefix("JAX_")}|prng|x64|precision'
    return [judge(bench, workdir, ended, before, expected, 0, Expected(named, True))]

  return run
