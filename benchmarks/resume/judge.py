"""The judge of the chaos test: what a hurt run has that one left alone has, and what its program said.

A case ends in one of five ways.

noticed      what was hurt is named, and the outcome is right: refused in one line with nothing touched, or gone on with
             from what is whole
harmless     nothing need be said: the run ends equal to the bit to one left alone
badly ended  a traceback, a hang, or an error that does not name what was hurt
silent       something is wrong or missing, and nothing was said
lost         training that was there is gone, or cannot be gone on with, though it could
"""

import contextlib
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.resume.bench import ROW_EVERY, Bench, Ended, numbers, record_of

NOTICED, HARMLESS, BADLY, SILENT, LOST = 'noticed', 'harmless', 'badly ended', 'silent', 'lost'
DIVERGED_STATUS = 3  # of a program whose run a guard ended
UNREADABLE = 'unreadable: '
OUTCOMES = (NOTICED, HARMLESS, BADLY, SILENT, LOST)
# What of the record two starts of one run agree in.
_RECORD = (
  'format', 'experiment', 'config', 'data', 'bank', 'seed', 'num_steps', 'techniques', 'versions', 'status', 'reason',
  'step', 'smoke', 'fingerprint',
)  # fmt: skip


class Verdict(NamedTuple):
  """How a case ended, and why."""

  outcome: str
  why: str


class Expected(NamedTuple):
  """What is right.

  Attributes:
    named: what must be said, a regular expression.
    refused: True: only a refusal is right; False: none is, as the run can go on; None: either.
    may_differ: parts (see `parts`) that may differ from those of the run left alone if that is said.
    must_say: equal parts are not enough.
  """

  named: str
  refused: bool | None = False
  may_differ: tuple[str, ...] = ()
  must_say: bool = False


def parts(bench: Bench, workdir: pathlib.Path, starts: int) -> dict[str, Any]:
  """What a run has, by the names of its parts; what cannot be read is its error.

  Args:
    bench: where the run was made.
    workdir: of the run.
    starts: how many of its starts came before the hurt.
  """
  found: dict[str, Any] = {}

  def note(name: str, read: Any) -> None:
    try:
      found[name] = read()
    except Exception as error:  # noqa: BLE001 - whatever hurt files make their readers raise
      found[name] = f'{UNREADABLE}{error!r}'[:300]

  record: Mapping[str, Any] = {}
  with contextlib.suppress(Exception):
    record = record_of(workdir)
  note('record', lambda: {name: record[name] for name in _RECORD if name in record})
  note('results', lambda: [record['results'], record.get('readings')])
  note('judged', lambda: [one['results'] for one in record['evaluations'][:1]])
  note('judged again', lambda: _of_the_last(record))
  note('starts', lambda: record['starts'][:starts])
  note('rows', lambda: _rows(workdir))
  note('samples', lambda: _samples(workdir))
  note('experiment.py', (workdir / 'experiment.py').read_bytes)
  note('files', lambda: sorted(path.name for path in workdir.iterdir() if _counts(path)))
  if bench.root is None:
    note('state', lambda: _state(bench, workdir))
  return found


def judged_once(bench: Bench, whole: pathlib.Path) -> dict[str, Any]:
  """`parts` of the run left alone, for one that is to be like it but was judged once."""
  return {name: one for name, one in parts(bench, whole, 0).items() if name != 'judged again'}


def _of_the_last(record: Mapping[str, Any]) -> Any:
  return record['evaluations'][-1]['results']


def _rows(workdir: pathlib.Path) -> list[Any]:
  text = (workdir / 'metrics.jsonl').read_text()
  if not text.endswith('\n'):
    raise ValueError('the last row is torn')
  found = [json.loads(line) for line in text.splitlines()]
  return [{name: value for name, value in row.items() if name != 'timing'} for row in found]


def _samples(workdir: pathlib.Path) -> Any:
  with np.load(workdir / 'samples.npz') as stored:
    return {name: [str(a.dtype), a.shape, a.tobytes()] for name, a in sorted(stored.items())}


def _counts(path: pathlib.Path) -> bool:
  """Whether a file of a run is one that must be there in the end."""
  name = path.name
  return not (name.startswith('.') or '_evaluation' in name or re.match('samples_.*npz', name))


def _state(bench: Bench, workdir: pathlib.Path) -> list[Any]:
  """A digest of the newest state, of what was saved with it, and of the number it has."""
  # Here, as another checkout's runs are judged without this one's package.
  from benchmarks import resume
  from diffusion.training.checkpoint import open_checkpoints

  if not hasattr(bench, 'targets'):
    bench.targets = {}
  kind = json.loads((workdir / 'run.json').read_text())['experiment']
  if kind not in bench.targets:
    bench.targets[kind] = resume.last_target(workdir)
  with contextlib.redirect_stdout(io.StringIO()):
    keeper = open_checkpoints(workdir / 'checkpoints', read_only=True)
    restored = keeper.restore(bench.targets[kind], 'latest')
    keeper.close()
  if restored is None:
    raise ValueError('no checkpoint')
  whole = hashlib.sha256(json.dumps([restored.number, restored.record], sort_keys=True).encode())
  for name, leaf in sorted(resume.leaves_of(restored.state).items()):
    whole.update(f'{name} {leaf.dtype} {leaf.shape}'.encode() + leaf.tobytes())
  return [restored.number, whole.hexdigest()]


def differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
  """The parts in which a run is not as it should be; of files, those that are missing."""
  unread = [one for one in expected.values() if isinstance(one, str) and one.startswith(UNREADABLE)]
  if unread:
    raise RuntimeError(f'the run that nothing happened to: {unread}')
  different = [
    name for name in expected if name != 'files' and _text(found[name]) != _text(expected[name])
  ]
  missing = sorted(set(expected['files']) - set(found['files']))
  return different + [f'missing {name}' for name in missing]


def _text(value: Any) -> str:
  return repr(value)


class Before(NamedTuple):
  """What must outlive a refusal, by name: the bytes of the checkpoints, and those of the rows up to the newest.

  Rows beyond it are of a start that was killed, and are made again.
  """

  kept: dict[str, bytes]

  @classmethod
  def of(cls, workdir: pathlib.Path) -> 'Before':
    """What is there now."""
    files = [path for path in (workdir / 'checkpoints').rglob('*') if path.is_file()]
    kept = {str(path): path.read_bytes() for path in files}
    rows = workdir / 'metrics.jsonl'
    if rows.is_file():
      count = numbers(workdir)[-1] // ROW_EVERY if numbers(workdir) else None
      kept[str(rows)] = b''.join(rows.read_bytes().splitlines(True)[:count])
    return cls(kept)

  def gone(self, workdir: pathlib.Path) -> list[str]:
    """What is no longer there, anywhere in the folder: to be moved aside is not to be gone."""
    there = [path.read_bytes() for path in workdir.rglob('*') if path.is_file()]
    return [
      name
      for name, content in self.kept.items()
      if not any(one.startswith(content) for one in there)
    ]


def judge(
  bench: Bench,
  workdir: pathlib.Path,
  ended: Ended,
  before: Before,
  expected: Mapping[str, Any],
  starts: int,
  right: Expected,
) -> Verdict:
  """How a start on a hurt folder ended.

  Args:
    bench: of the case.
    workdir: the folder.
    ended: the start.
    before: what was there before it.
    expected: `parts` of the run in the end.
    starts: as `parts` takes it.
    right: what is right.
  """
  fault = misbehaved(ended)
  if fault:
    return Verdict(BADLY, fault)
  said = re.search(right.named, ended.said)
  if ended.status == 2:
    return _judge_refusal(workdir, ended, before, right)
  if ended.status not in (0, DIVERGED_STATUS):
    return Verdict(BADLY, f'status {ended.status}: {last_line(ended.said)}')
  wrong = differing(parts(bench, workdir, starts), expected)
  allowed = [name for name in wrong if name in right.may_differ]
  shown = line_of(said) if said else ''
  if right.refused:
    return Verdict(LOST if said else SILENT, f'went on; differs: {wrong}')
  if 'state' in wrong and 'state' not in allowed:
    return Verdict(LOST, f'differs: {wrong}; said: {shown or last_line(ended.said)}')
  if not said and (wrong or right.must_say):
    return Verdict(SILENT, f'differs: {wrong}')
  if set(wrong) - set(allowed):
    return Verdict(LOST, f'said, and yet differs: {wrong}; {shown}')
  return Verdict(NOTICED, shown) if said else Verdict(HARMLESS, 'equal to the bit')


def _judge_refusal(workdir: pathlib.Path, ended: Ended, before: Before, right: Expected) -> Verdict:
  lines = ended.errors()
  if len(lines) != 1:
    return Verdict(BADLY, f'{len(lines)} lines of errors: {last_line(ended.said)}')
  if right.refused is False:
    return Verdict(LOST, f'refused, though it can go on: {lines[0][:300]}')
  if not re.search(right.named, lines[0]):
    return Verdict(BADLY, f'not named: {lines[0][:300]}')
  gone = before.gone(workdir)
  return Verdict(LOST, f'refused, and gone: {gone}') if gone else Verdict(NOTICED, lines[0][:300])


def misbehaved(ended: Ended) -> str:
  """A hang or a traceback, in words; '' for none."""
  if ended.status is None:
    return f'no end within {ended.seconds:.0f} s: {last_line(ended.said)}'
  if 'Traceback (most recent call last)' in ended.said:
    return f'a traceback: {last_line(ended.said)}'
  return ''


def line_of(found: re.Match) -> str:
  """The line of what was said that has a match."""
  text = found.string
  begin, end = text.rfind('\n', 0, found.start()) + 1, text.find('\n', found.end())
  return text[begin : end if end >= 0 else None].strip()[:300]


def last_line(said: str) -> str:
  """The last line of what a program said."""
  lines = [line for line in said.splitlines() if line.strip()]
  return lines[-1].strip()[:300] if lines else '(nothing)'
