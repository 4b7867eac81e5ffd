"""What an evaluation has found so far: kept part by part, so that a killed one is not made again.

`judging_<what it depends on>.jsonl` in the run's folder has a line a part, with its hash, until the evaluation is done.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from diffusion import checkout, devices, fingerprint, processes, provenance
from diffusion.evaluation.metric import MetricResult
from diffusion.proportions import Counts
from diffusion.reporting import encoding
from diffusion.runs.attempts import attempt
from diffusion.runs.run import Run
from diffusion.statistics import Interval
from diffusion.training.experiment import EvaluationSettings


class Judged:
  """The parts of an evaluation that have been judged; `kept_judgment` makes it."""

  def __init__(self, parts: dict[str, Any], path: pathlib.Path, file: IO[bytes] | None):
    """Keeps what it is given.

    Args:
      parts: what the file holds, by name.
      path: of the file.
      file: open to write, on the process that writes; else None.
    """
    self._parts, self._path, self._file = parts, path, file

  def value(self, part: str, make: Callable[[], Any]) -> Any:
    """What JSON gives back of what `make` returns, now or in the start that was killed.

    Args:
      part: its name, of which there is one.
      make: called where it is not known yet.

    Raises:
      OSError: it cannot be kept, naming the file.
    """
    if part not in self._parts:
      line = _line(part, make())
      self._parts[part] = _content(line)[1]
      self._write(line)
    return self._parts[part]

  def findings(self, part: str, make: Callable[[], list[MetricResult]]) -> list[MetricResult]:
    """As `attempts.findings_of`; what has failed is tried again by the next start.

    Args:
      part: its name, of which there is one; what follows a '#' tells parts apart and is not shown.
      make: called where they are not known yet.
    """
    name = part.partition('#')[0]
    found, failed = attempt(name, lambda: self.value(part, lambda: list(map(_to_json, make()))))
    return failed if found is None else list(map(_from_json, found))

  def _write(self, line: bytes) -> None:
    if self._file is not None:
      with encoding.naming(self._path):
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())


@contextlib.contextmanager
def kept_judgment(run: Run, checkpoint: int, request: EvaluationSettings) -> Iterator[Judged]:
  """What is known of an evaluation, and says so, for a block that makes it; nothing is kept once it is through.

  One that is made at the same time has a file of its own.

  Args:
    run: as it is evaluated.
    checkpoint: the number of the one that is judged.
    request: what is done differently from the run's own judgment.

  Raises:
    OSError: the folder cannot be written.
  """
  depends_on = {
    'checkpoint': checkpoint,
    'request': request._asdict(),
    'config': provenance.config_to_json(run.config),
    'code': checkout.code_digest(run.source),
    'built': fingerprint.describe(run.experiment),
    'data': [run.data.split.fingerprint, run.data.split.hashes],
    'versions': provenance.versions(),
    'devices': devices.describe(),
  }
  name, opened = fingerprint.digest(depends_on), []

  def read() -> list[str]:
    opened.append(_take(run.folder, f'judging_{name}'))
    return _good_lines(*opened[0])

  parts = dict(_content(line.encode()) for line in processes.from_writer(read))
  if parts:
    told = ', '.join(part.partition('#')[0] for part in parts)
    print(f'judged by a start that was ended, and not again: {told}', flush=True)
  if not opened:
    yield Judged(parts, run.folder, None)
    return
  path, file = opened[0]
  try:
    yield Judged(parts, path, file)
    path.unlink(missing_ok=True)
  finally:
    with encoding.naming(path):  # what a full disk did not take is written once more
      file.close()


def _take(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, IO[bytes]]:
  """A file, locked while it is open: the first of this name that no other evaluation is using."""
  for number in itertools.count(1):
    path = folder / f'{name}{f"_{number}" if number > 1 else ""}.jsonl'
    with encoding.naming(path):
      file = path.open('a+b')
    if encoding.take(file):
      return path, file
    file.close()
  raise AssertionError


def _good_lines(path: pathlib.Path, file: IO[bytes]) -> list[str]:
  """The lines that are as they were written; the others are removed, and but for a last one cut short that is said."""
  file.seek(0)
  content = file.read()
  found = content.splitlines(keepends=True)
  good = [line for line in found if _content(line)]
  if any(line.endswith(b'\n') for line in found if line not in good):
    print(f'{path} is damaged: what it does not tell any more is judged again', flush=True)
  if content != b''.join(good):
    file.truncate(0)
    file.write(b''.join(good))
    file.flush()
  return [line.decode() for line in good]


def _line(part: str, value: Any) -> bytes:
  text = json.dumps(encoding.encode(encoding.plain([part, value])), allow_nan=False) + '\n'
  return f'{hashlib.sha256(text.encode()).hexdigest()}  {text}'.encode()


def _content(line: bytes) -> Sequence[Any]:
  """(part, value) of a line; () where it is not as it was written."""
  digest, _, text = line.partition(b'  ')
  if not text.endswith(b'\n') or hashlib.sha256(text).hexdigest().encode() != digest:
    return ()
  return encoding.decode(json.loads(text))


def _to_json(finding: MetricResult) -> dict[str, Any]:
  told = finding._asdict()
  for name, kind in (('value', Interval), ('counts', Counts)):
    if isinstance(told[name], kind):
      told[name] = told[name]._asdict()
  return told


def _from_json(told: Mapping[str, Any]) -> MetricResult:
  value, counts = told['value'], told['counts']
  return MetricResult(
    **{
      **told,
      'value': Interval(**value) if isinstance(value, Mapping) else value,
      'counts': counts and Counts(**counts),
    }
  )
