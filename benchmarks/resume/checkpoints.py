"""The cases in which the checkpoints of a run are hurt."""

import json
import pathlib
import re
import shutil
from collections.abc import Iterator

import numpy as np

from benchmarks import resume
from benchmarks.resume.bench import SHORT, Bench, numbers, record_of
from benchmarks.resume.cases import GONE, Case, Hurt, damaged, remove
from benchmarks.resume.judge import (
  BADLY,
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


def of_the_checkpoints(repeats: int) -> Iterator[Case]:
  """checkpoints/: the newest damaged costs the steps since the one before; all of them gone is no new beginning."""
  kind, said = (
    'a checkpoint',
    Expected(r'checkpoint \d+ is|checkpoints/|\d+\.sha256', must_say=True),
  )
  for base in ('killed', 'whole'):
    for i in range(repeats):
      for how in resume.KINDS:
        yield damaged(kind, f'newest {how} {i}', base, _newest(how), said, plain=False)
    yield damaged(
      kind, 'newest without its manifest', base, _hurt_manifest(None), said, plain=False
    )
    yield damaged(
      kind, 'newest with an edited manifest', base, _hurt_manifest(_edited), said, plain=False
    )
    yield damaged(
      kind, 'newest with an empty manifest', base, _hurt_manifest(_emptied), said, plain=False
    )
    yield damaged(
      kind, 'newest deleted, its manifest left', base, _newest_folder, said, plain=False
    )
    yield damaged(kind, 'newest with a file more', base, _more, said, plain=False)
  kind = 'checkpoints/ gone'
  for base in ('killed', 'whole'):
    yield _gone(base, 'removed', shutil.rmtree)
    yield _gone(base, 'emptied', _empty)
    yield _gone(base, 'manifests alone left', _folders)
    yield _gone(base, 'folders alone left', _manifests)
    yield _gone(base, 'a file in its place', _file)
    yield _gone(base, 'all truncated', _all_truncated)
    yield _restarted(base)
  kind = 'the best checkpoint'
  for name, hurt in (
    ('removed', _best_removed),
    ('bit flipped', _best_flipped),
    ('truncated', _best_truncated),
  ):
    yield _best_lost(kind, name, hurt, 'killed', ())
    yield _best_lost(kind, name, hurt, 'whole', ('--mode=evaluate',))


def _newest(how: str) -> Hurt:
  def hurt(workdir: pathlib.Path, generator: np.random.Generator) -> None:
    resume.damage(workdir / 'checkpoints' / str(numbers(workdir)[-1]), how, generator)

  return hurt


def _newest_folder(workdir: pathlib.Path, _: np.random.Generator) -> None:
  shutil.rmtree(workdir / 'checkpoints' / str(numbers(workdir)[-1]))


def _more(workdir: pathlib.Path, _: np.random.Generator) -> None:
  (workdir / 'checkpoints' / str(numbers(workdir)[-1]) / 'more').write_text('of somebody else\n')


def _hurt_manifest(change) -> Hurt:
  def hurt(workdir: pathlib.Path, _: np.random.Generator) -> None:
    path = workdir / 'checkpoints' / f'{numbers(workdir)[-1]}.sha256'
    if change is None:
      path.unlink()
    else:
      path.write_text(change(path.read_text()))

  return hurt


def _edited(text: str) -> str:
  """Another digest of the first file."""
  found = re.search(r'^[0-9a-f]{64}', text, re.M)
  return text.replace(found[0], found[0][::-1], 1)


def _emptied(_: str) -> str:
  return ''


def _empty(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)
  folder.mkdir()


def _folders(folder: pathlib.Path) -> None:
  for path in list(folder.iterdir()):
    if path.is_dir():
      shutil.rmtree(path)


def _manifests(folder: pathlib.Path) -> None:
  for path in folder.glob('*.sha256'):
    path.unlink()


def _file(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)
  folder.write_text('')


def _all_truncated(folder: pathlib.Path) -> None:
  for path in folder.rglob('*'):
    if path.is_file() and path.suffix != '.sha256':
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _gone(base: str, name: str, hurt) -> Case:
  """All checkpoints lost: two starts are refused, and rows and report stay; nothing begins anew over them."""

  def run(bench: Bench, _: np.random.Generator) -> list[Verdict]:
    workdir = bench.copy(getattr(bench, base))
    hurt(workdir / 'checkpoints')
    kept = {
      path.name: path.read_bytes()
      for path in workdir.iterdir()
      if path.is_file() and path.name in ('metrics.jsonl', 'report.md', 'samples.npz')
    }
    before = Before.of(workdir)
    for _ in range(2):
      ended = bench.go(workdir, *SHORT)
      right = Expected(r'checkpoint', refused=True)
      found = judge(bench, workdir, ended, before, parts(bench, bench.whole, 0), 0, right)
      changed = [
        one
        for one, old in kept.items()
        if not (workdir / one).exists() or (workdir / one).read_bytes() != old
      ]
      if changed:
        return [Verdict(LOST, f'began anew over {", ".join(changed)}: {last_line(ended.said)}')]
      if found.outcome != NOTICED:
        return [found]
      remedy = (
        '--restart'
        if name in ('removed', 'emptied')
        else r'checkpoints.*(--restart|back|in use|exists)'
      )
      if not re.search(remedy, ended.said):
        return [Verdict(BADLY, f'names no remedy: {last_line(ended.said)}')]
    return [found]

  return Case('checkpoints/ gone', f'{name}, {base}', run)


def _restarted(base: str) -> Case:
  """--restart moves what is there aside, says so, and ends as a run that was never there."""

  def run(bench: Bench, _: np.random.Generator) -> list[Verdict]:
    workdir = bench.copy(getattr(bench, base))
    shutil.rmtree(workdir / 'checkpoints')
    before = Before.of(workdir)
    ended = bench.go(workdir, *SHORT, '--restart')
    whole = judged_once(bench, bench.whole)
    found = judge(
      bench, workdir, ended, before, whole, 0, Expected('before_restart', must_say=True)
    )
    gone = before.gone(workdir)
    return [Verdict(LOST, f'gone: {gone}') if gone and found.outcome == NOTICED else found]

  return Case('checkpoints/ gone', f'removed, {base} --restart', run)


def _best(workdir: pathlib.Path) -> pathlib.Path:
  """The oldest that is kept: in these runs the best comes early, and stays."""
  return workdir / 'checkpoints' / str(numbers(workdir)[0])


def _best_removed(workdir: pathlib.Path, _: np.random.Generator) -> None:
  folder = _best(workdir)
  remove(folder)
  remove(folder.with_name(f'{folder.name}.sha256'))


def _best_flipped(workdir: pathlib.Path, generator: np.random.Generator) -> None:
  resume.damage(_best(workdir), 'bit flipped', generator)


def _best_truncated(workdir: pathlib.Path, generator: np.random.Generator) -> None:
  resume.damage(_best(workdir), 'truncated', generator)


def _best_lost(kind: str, name: str, hurt: Hurt, base: str, flags: tuple[str, ...]) -> Case:
  """Another step is judged: said by the program, in the report, and in run.json; all but what is judged is equal."""

  def run(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
    workdir = bench.copy(getattr(bench, base))
    step = _best(workdir).name
    hurt(workdir, generator)
    ended = bench.go(workdir, *SHORT, *flags)
    fault = misbehaved(ended)
    if fault or ended.status != 0:
      return [Verdict(BADLY, fault or f'status {ended.status}: {last_line(ended.said)}')]
    named = rf'(?i)(?=[^\n]*best)(?=[^\n]*\b{step}\b)[^\n]*{GONE}'
    reports = sorted(workdir.glob('report*.md'), key=lambda path: path.stat().st_mtime)
    told = {
      'the program': ended.said,
      reports[-1].name if reports else 'report.md': reports[-1].read_text() if reports else '',
      'run.json': json.dumps(record_of(workdir)['evaluations'][-1]),
    }
    silent = [place for place, text in told.items() if not re.search(named, text)]
    whole = parts(bench, bench.whole, 0)
    wrong = set(differing(parts(bench, workdir, 0), whole))
    wrong -= {'results', 'judged again', 'samples', 'judged', 'starts'}
    if 'state' in wrong or 'rows' in wrong:
      return [Verdict(LOST, f'differs: {sorted(wrong)}')]
    if silent:
      return [Verdict(SILENT, f'best step {step} is lost, and not said by {", ".join(silent)}')]
    return [Verdict(NOTICED, re.search(named, ended.said)[0].strip()[:300])]

  return Case(kind, f'{name}, {base}' + ''.join(f' {flag}' for flag in flags), run)
