"""A case of the chaos test, and those in which the files of a run are hurt."""

import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.resume.bench import SHORT, Bench, numbers, record_of
from benchmarks.resume.judge import Before, Expected, Verdict, judge, parts

Hurt = Callable[[pathlib.Path, np.random.Generator], None]
# How it may be worded that the best checkpoint is lost.
GONE = r'(lost|gone|missing|damaged|deleted|removed|no longer|not there|cannot be read|set aside)'


class Case(NamedTuple):
  """One thing that happens to a run.

  Attributes:
    kind: the row of the table.
    name: within it.
    run: (bench, generator) -> how it ended, one for each hurt.
    plain: of plain files alone, so that another checkout can be judged as well.
  """

  kind: str
  name: str
  run: Callable[[Bench, np.random.Generator], list[Verdict]]
  plain: bool = False


def damaged(
  kind: str,
  name: str,
  base: str,
  hurt: Hurt,
  right: Expected,
  flags: tuple[str, ...] = (),
  plain: bool = True,
) -> Case:
  """A copy of a run is hurt and started once more.

  Args:
    kind, name, plain: as `Case` has them.
    base: 'killed', with rows beyond its last checkpoint, or 'whole', finished and judged twice.
    hurt: (folder, generator), hurts it.
    right: what is right.
    flags: of the start, beside the run's own.
  """

  def run(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
    source = getattr(bench, base)
    starts = len(record_of(source)['starts'])
    whole = parts(bench, bench.whole, 0)
    expected = whole | {
      name: value for name, value in parts(bench, source, starts).items() if name == 'starts'
    }
    if base == 'killed':  # is judged but once, and as the same command would
      del expected['judged again']
    workdir = bench.copy(source)
    hurt(workdir, generator)
    before = Before.of(workdir)
    ended = bench.go(workdir, *SHORT, *flags)
    return [judge(bench, workdir, ended, before, expected, starts, right)]

  return Case(kind, f'{name}, {base}' + ''.join(f' {flag}' for flag in flags), run, plain)


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Hurt:
  """A file's bytes, changed."""

  def hurt(workdir: pathlib.Path, _: np.random.Generator) -> None:
    path = workdir / name
    path.write_bytes(change(path.read_bytes()))

  return hurt


def removed(*names: str) -> Hurt:
  """Files and folders, deleted; those that are there."""

  def hurt(workdir: pathlib.Path, _: np.random.Generator) -> None:
    for name in names:
      remove(workdir / name)

  return hurt


def remove(path: pathlib.Path) -> None:
  """Deletes a file or a folder, if it is there."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def truncated(name: str) -> Hurt:
  """A file, cut at a random byte."""

  def hurt(workdir: pathlib.Path, generator: np.random.Generator) -> None:
    path = workdir / name
    content = path.read_bytes()
    path.write_bytes(content[: generator.integers(1, len(content) - 1)])

  return hurt


def flipped(name: str) -> Hurt:
  """A file with one bit flipped."""

  def hurt(workdir: pathlib.Path, generator: np.random.Generator) -> None:
    path = workdir / name
    content = bytearray(path.read_bytes())
    content[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
    path.write_bytes(content)

  return hurt


# run.json


def _record(change: Callable[[dict[str, Any]], Any]) -> Hurt:
  def changed(content: bytes) -> bytes:
    return json.dumps(change(json.loads(content)), indent=2).encode()

  return rewritten('run.json', changed)


def _without(name: str) -> Hurt:
  return _record(lambda record: {key: one for key, one in record.items() if key != name})


def _digit(name: str) -> Callable[[bytes], bytes]:
  """Another digit in the number that follows a name."""

  def change(content: bytes) -> bytes:
    found = re.search(rf'"{name}": -?(?:\d+\.)?(\d)'.encode(), content)
    at = found.start(1)
    return content[:at] + (b'7' if content[at : at + 1] != b'7' else b'3') + content[at + 1 :]

  return change


def of_the_record(repeats: int) -> Iterator[Case]:
  """run.json. It says what ran: where it is not as it was, a start is refused, in a line that names it."""
  kind, named = 'run.json', r'run\.json'
  refused = Expected(named, refused=True)
  either = Expected(
    named, refused=None
  )  # a change that cannot be seen in what it says must be known by a digest
  for base in ('killed', 'whole'):
    yield damaged(
      kind, 'deleted', base, removed('run.json'), Expected(r'run\.json|holds no run', True)
    )
    yield damaged(kind, 'emptied', base, rewritten('run.json', lambda _: b''), refused)
    yield damaged(kind, '{}', base, rewritten('run.json', lambda _: b'{}\n'), refused)
    yield damaged(kind, 'a list', base, rewritten('run.json', lambda _: b'[1, 2]\n'), refused)
    yield damaged(kind, 'zeros', base, rewritten('run.json', lambda old: bytes(len(old))), refused)
    for name in ('starts', 'config', 'status', 'data', 'num_steps', 'format'):
      yield damaged(kind, f'without {name}', base, _without(name), refused)
    yield damaged(kind, 'starts is a number', base, _record(lambda r: r | {'starts': 3}), refused)
    for name in ('learning_rate', 'num_steps', 'step'):
      changed = rewritten('run.json', _digit(name))
      yield damaged(
        kind, f'another digit in {name}', base, changed, Expected(r'run\.json|another|differ', None)
      )
    for i in range(repeats):
      yield damaged(kind, f'truncated {i}', base, truncated('run.json'), refused)
      # What a start says of another configuration names what it is of.
      yield damaged(
        kind,
        f'bit flipped {i}',
        base,
        flipped('run.json'),
        Expected(r'run\.json|another|differ', None),
      )
  yield damaged(
    kind,
    'another digit in a result',
    'whole',
    rewritten('run.json', _digit('validation/eps')),
    either,
  )
  yield damaged(
    kind,
    'results lost',
    'whole',
    _record(lambda r: r | {'results': None}),
    Expected(r'run\.json|another|differ', None),
  )


# metrics.jsonl


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> Hurt:
  return rewritten('metrics.jsonl', lambda old: b''.join(change(old.splitlines(True))))


def _altered(lines: list[bytes]) -> list[bytes]:
  def other(found: re.Match) -> bytes:
    return found[1] + (b'2' if found[2] != b'2' else b'3')

  return [*lines[:4], re.sub(rb'("loss": \d+\.)(\d)', other, lines[4], count=1), *lines[5:]]


def _without_step(lines: list[bytes]) -> list[bytes]:
  row = {name: value for name, value in json.loads(lines[5]).items() if name != 'step'}
  return [*lines[:5], json.dumps(row).encode() + b'\n', *lines[6:]]


def of_the_rows(repeats: int) -> Iterator[Case]:
  """metrics.jsonl. Up to the checkpoint it must be as it was; what is beyond it is made again."""
  kind = 'metrics.jsonl'
  # Its medians are of the rows.
  right = Expected(
    r'metrics\.jsonl', None, ('rows', 'results', 'judged', 'judged again', 'missing metrics.jsonl')
  )
  hurts = {
    'deleted': removed('metrics.jsonl'),
    'emptied': rewritten('metrics.jsonl', lambda _: b''),
    'cut': _lines(lambda lines: lines[:4]),
    'a row lost': _lines(lambda lines: lines[:3] + lines[4:]),
    'the first row lost': _lines(lambda lines: lines[1:]),
    'a row twice': _lines(lambda lines: [*lines[:5], lines[4], *lines[5:]]),
    'two rows exchanged': _lines(lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]]),
    'a value altered': _lines(_altered),
    'torn at a row of the checkpoint': rewritten('metrics.jsonl', lambda old: old[: len(old) // 3]),
    'a row without its step': _lines(_without_step),
    'a line of something else': _lines(lambda lines: [*lines[:2], b'hello\n', *lines[2:]]),
    'a row more': _lines(lambda lines: [*lines, lines[-1]]),
    'the last row torn': rewritten('metrics.jsonl', lambda old: old[:-40]),
    'the last row lost': _lines(lambda lines: lines[:-1]),
    'without its last newline': rewritten('metrics.jsonl', lambda old: old[:-1]),
    'a folder in its place': _in_place('metrics.jsonl'),
  }
  for base in ('killed', 'whole'):
    for name, hurt in hurts.items():
      yield damaged(kind, name, base, hurt, right)
    for i in range(repeats):
      yield damaged(kind, f'bit flipped {i}', base, flipped('metrics.jsonl'), right)
      yield damaged(kind, f'truncated {i}', base, truncated('metrics.jsonl'), right)
  for name in ('deleted', 'a row lost', 'a value altered'):
    yield damaged(kind, name, 'whole', hurts[name], right, ('--mode=evaluate',))


def _in_place(name: str) -> Hurt:
  def hurt(workdir: pathlib.Path, _: np.random.Generator) -> None:
    remove(workdir / name)
    (workdir / name).mkdir()

  return hurt


# samples.npz


def _samples(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Hurt:
  def hurt(workdir: pathlib.Path, _: np.random.Generator) -> None:
    path = workdir / 'samples.npz'
    with np.load(path) as stored:
      content = dict(stored)
    np.savez_compressed(path, **change(content))

  return hurt


def of_the_samples(repeats: int) -> Iterator[Case]:
  """samples.npz, which another judgment reads: what is not as it was is drawn again, and judged as before."""
  kind, flags = 'samples.npz', ('--mode=evaluate',)
  right = Expected(r'samples\.npz')
  hurts = {
    'deleted': removed('samples.npz'),
    'emptied': rewritten('samples.npz', lambda _: b''),
    'altered': _samples(lambda old: old | {'samples': old['samples'] + np.float32(0.5)}),
    'one value altered': _samples(_one_altered),
    'rows exchanged': _samples(lambda old: old | {'samples': old['samples'][::-1]}),
    'fewer': _samples(
      lambda old: {name: one[:7] if one.ndim else one for name, one in old.items()}
    ),
    'of another shape': _samples(lambda old: old | {'samples': old['samples'][:, :3]}),
    'of not a number': _samples(
      lambda old: old | {'samples': np.full_like(old['samples'], np.nan)}
    ),
    'without samples': _samples(lambda old: {'labels': old['labels']}),
    'a folder in its place': _in_place('samples.npz'),
  }
  for name, hurt in hurts.items():
    yield damaged(kind, name, 'whole', hurt, right, flags)
  for i in range(repeats):
    yield damaged(kind, f'truncated {i}', 'whole', truncated('samples.npz'), right, flags)
    yield damaged(kind, f'bit flipped {i}', 'whole', flipped('samples.npz'), right, flags)


def _one_altered(old: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  samples = old['samples'].copy()
  samples.flat[3] += np.asarray(0.25, samples.dtype)
  return old | {'samples': samples}


# experiment.py, pictures, report, events


def _cheaper(content: bytes) -> bytes:
  return content.replace(b'(1.0, losses.denoising', b'(0.5, losses.denoising')


def of_the_experiment() -> Iterator[Case]:
  """experiment.py of the folder, from which `load` builds: written again, or said."""
  right = Expected(r'experiment\.py', None, ('experiment.py', 'missing experiment.py'))
  hurts = {
    'deleted': removed('experiment.py'),
    'emptied': rewritten('experiment.py', lambda _: b''),
    'another loss weight': rewritten('experiment.py', _cheaper),
    'a comment more': rewritten('experiment.py', lambda old: old + b'# edited\n'),
    'no Python': rewritten('experiment.py', lambda _: b'(\n'),
  }
  for base in ('killed', 'whole'):
    for name, hurt in hurts.items():
      yield damaged('experiment.py', name, base, hurt, right, plain=False)


def of_what_is_drawn() -> Iterator[Case]:
  """What is made of the record and the rows: made again, or said to be missing."""
  kind = 'report, pictures, events'
  for name in ('report.md', 'references.bib', 'curves.png', 'samples.png', 'events'):
    right = Expected(rf'{re.escape(name)}', False, (f'missing {name}',))
    yield damaged(kind, f'{name} deleted', 'killed', removed(name), right, plain=False)
    yield damaged(kind, f'{name} deleted', 'whole', removed(name), right, plain=False)
  yield damaged(
    kind, 'events emptied', 'killed', _emptied_events, Expected('events', False), plain=False
  )
  yield damaged(
    kind, 'events is a file', 'killed', _a_file('events'), Expected('events', None), plain=False
  )


def _emptied_events(workdir: pathlib.Path, _: np.random.Generator) -> None:
  for path in (workdir / 'events').iterdir():
    path.write_bytes(b'')


def _a_file(name: str) -> Hurt:
  def hurt(workdir: pathlib.Path, _: np.random.Generator) -> None:
    remove(workdir / name)
    (workdir / name).write_text('left over\n')

  return hurt


# damaged/, locks and other things left over


def left_over() -> Iterator[Case]:
  """What an earlier start, or somebody else, left in the folder: it ends no run that can go on."""
  kind = 'left over, locks'

  def newest_hurt_and(more: Hurt) -> Hurt:
    def hurt(workdir: pathlib.Path, generator: np.random.Generator) -> None:
      number = numbers(workdir)[-1]
      (workdir / 'checkpoints' / f'{number}.sha256').write_bytes(b'')
      more(workdir, generator)

    return hurt

  def folder(name: str) -> Hurt:
    def hurt(workdir: pathlib.Path, _: np.random.Generator) -> None:
      remove(workdir / name)
      (workdir / name / 'deep').mkdir(parents=True)

    return hurt

  def dangling(name: str) -> Hurt:
    def hurt(workdir: pathlib.Path, _: np.random.Generator) -> None:
      remove(workdir / name)
      (workdir / name).symlink_to('/nowhere/at/all')

    return hurt

  def grave(workdir: pathlib.Path, _: np.random.Generator) -> None:
    for number in numbers(workdir):
      (workdir / 'damaged' / str(number)).mkdir(parents=True)
      (workdir / 'damaged' / f'{number}.sha256').write_text('of an earlier start\n')

  said, lock = Expected(r'checkpoint \d+ is'), '.checkpoints.lock'
  calm = Expected(re.escape(lock))
  yield damaged(
    kind, 'damaged/ is a file', 'killed', newest_hurt_and(_a_file('damaged')), said, plain=False
  )
  yield damaged(
    kind,
    'damaged/ is a dangling link',
    'killed',
    newest_hurt_and(dangling('damaged')),
    said,
    plain=False,
  )
  yield damaged(
    kind, 'damaged/ has the same names', 'killed', newest_hurt_and(grave), said, plain=False
  )
  yield damaged(kind, 'a lock with content', 'killed', _a_file(lock), calm, plain=False)
  yield damaged(kind, 'a folder for a lock', 'killed', folder(lock), calm, plain=False)
  yield damaged(kind, 'a dangling link for a lock', 'killed', dangling(lock), calm, plain=False)
  yield damaged(kind, 'no lock', 'killed', removed(lock), calm, plain=False)
  for name in (
    '.run.json.123.tmp',
    '.metrics.jsonl.9.tmp',
    'samples.part.npz',
    '.experiment.py.7.tmp',
  ):
    yield damaged(kind, f'{name}', 'killed', _a_file(name), Expected(re.escape(name)), plain=False)
  for name in (
    '7.deleted',
    '500.orbax-checkpoint-tmp-3',
    'notes',
    '00120',
    'x.sha256',
    '.120.sha256.5.tmp',
  ):
    path = f'checkpoints/{name}'
    made = _a_file(path) if '.sha256' in name else folder(path)
    yield damaged(
      kind, f'{name} among the checkpoints', 'killed', made, Expected(re.escape(path)), plain=False
    )
