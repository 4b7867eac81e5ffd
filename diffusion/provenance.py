"""The folder of a run and its record; and where a run came from: versions, command.

run.json        what ran: configuration, data, how it ended, results; of each start code, versions, settings, devices
experiment.py   the experiment file as it was; experiment_before_start_2.py as it was until that start changed it
before_restart_1/  what was in the folder when a start began anew
metrics.jsonl   one row a logged step; events/ has the same for TensorBoard
checkpoints/    the latest and the best, each with its manifest (.sha256); damaged/ what was not as it was saved
data.png        training examples as the network sees them, where they are images
judging_....jsonl  what an evaluation in progress has found, see `runs.judged`; .*.lock files are empty
samples.png, curves.png, nearest.png, report.md, references.bib, samples.npz; later judgments add
_evaluation1, _evaluation2, ... to these names
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import pathlib
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diffusion.reporting import encoding, sealed

RECORD_FORMAT = 5
_THREADS = threading.Lock()
_NAMES = (
  'name',
  'note',
  'found',
  'class_names',
)  # of a data set: what it is called, not what it is
_CHANGED = 'it is not as it was written (if you changed it, delete its entry "seal")'
# What is read of run.json, and of which type it is.
_NEEDED = {
  'experiment': str, 'config': dict, 'seed': int, 'num_steps': int, 'smoke': bool, 'null_learned': bool,
  'status': str, 'reason': str, 'step': int, 'wall_seconds': int | float, 'extended_at': int | None,
  'bank': {'log_snr': list, 'draws': int}, 'source': str | None, 'fingerprint': {'digest': str, 'built': dict},
  'techniques': list, 'samples': list, 'evaluations': list, 'results': dict | None, 'saved': dict | None,
  'starts': [{'time': str, 'command': list, 'code': dict | list, 'devices': dict, 'versions': dict, 'settings': dict}],
  'data': {
    'name': str, 'note': str, 'shape': list, 'levels': int | None, 'mean': object, 'deviation': object,
    'fingerprint': str, 'class_names': list, 'condition': object, 'found': dict, 'examples': dict, 'split_hashes': dict,
  },
}  # fmt: skip
PACKAGES = (
  'diffusion', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'numpy', 'scipy',
)  # fmt: skip


def versions() -> dict[str, str | None]:
  """Versions of Python and of the packages that decide numbers."""
  found: dict[str, str | None] = {'python': platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def command() -> list[str]:
  """The command line, with the module's name in place of its path."""
  main = sys.modules['__main__']
  spec = getattr(main, '__spec__', None)
  head = ['python', '-m', spec.name.removesuffix('.__main__')] if spec else ['python', sys.argv[0]]
  return head + sys.argv[1:]


def config_to_json(config: Any) -> dict[str, Any]:
  """A dataclass of numbers, strings and tuples as JSON data, or a mapping of such."""
  items = config if isinstance(config, Mapping) else dataclasses.asdict(config)
  return {key: list(value) if isinstance(value, tuple) else value for key, value in items.items()}


def config_from_json(base: Any, data: Mapping[str, Any]) -> Any:
  """The dataclass `base` with the values of `data`; raises ValueError where the fields are not the same."""
  names = {field.name for field in dataclasses.fields(base)}
  if names != set(data):
    raise ValueError(
      f'the recorded configuration and the experiment differ in the fields {sorted(names ^ set(data))}'
    )
  return dataclasses.replace(
    base, **{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
  )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """'key: old -> new' for every key whose values differ."""
  missing = object()
  return [
    f'{key}: {old.get(key, "(none)")!r} -> {new.get(key, "(none)")!r}'
    for key in sorted(set(old) | set(new))
    if old.get(key, missing) != new.get(key, missing)
  ]


def now() -> str:
  """The time in UTC, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def read_record(workdir: pathlib.Path) -> dict[str, Any]:
  """run.json of a folder.

  Raises:
    ValueError: no run in the folder, or one of another format; or the file is damaged, with what is wrong with it.
  """
  path = workdir / 'run.json'
  if not path.exists():
    raise ValueError(f'no run in {workdir}: there is no run.json')
  try:
    record, intact = sealed.read(path)
    other = record.get('format', RECORD_FORMAT) != RECORD_FORMAT
    fault = '' if intact or other else _fault({'format': int, **_NEEDED}, record)
    if not other and (fault or intact is False):
      raise ValueError(f'{path} is damaged: {fault or _CHANGED}')
  except ValueError as error:
    raise ValueError(
      f'{error}; put a copy of it back, or choose another --workdir (diffusion.load_parameters reads the weights '
      'without it)'
    ) from None
  if other:
    raise ValueError(
      f'{path} has format {record["format"]!r}, this version reads {RECORD_FORMAT}: read it with the version that '
      'wrote it, or choose another --workdir'
    )
  return record


def _fault(needed: Any, found: Any, at: str = '') -> str:
  """What is missing or of another type in a record; '' for nothing."""
  if isinstance(needed, dict) and isinstance(found, dict):
    for name, one in needed.items():
      fault = _fault(one, found[name], f'{at}{name}.') if name in found else f'no {at}{name}'
      if fault:
        return fault
    return ''
  if isinstance(needed, list) and isinstance(found, list):
    faults = [_fault(needed[0], one, f'{at}{i}.') for i, one in enumerate(found)]
    return next(filter(None, faults), '') if faults else f'nothing in {at[:-1]}'
  kind = type(needed) if isinstance(needed, dict | list) else needed
  return '' if isinstance(found, kind) else f'{at[:-1]} is {type(found).__name__}'


def write_record(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes run.json in one piece."""
  sealed.write(workdir / 'run.json', record)


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Within the block, no other thread and no other process that asks for it changes run.json of a folder.

  Args:
    workdir: the folder; created if need be.

  Raises:
    OSError: it cannot be written, naming run.json.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with _THREADS, encoding.locked(workdir / 'run.json'):
    yield


def amend(
  workdir: pathlib.Path,
  change: Callable[[dict[str, Any]], Mapping[str, Any]],
  known: Mapping[str, Any],
) -> dict[str, Any]:
  """Changes run.json as it stands on the disk, so that what others have noted there meanwhile stays; returns it.

  A run may be evaluated from beside it while it trains.

  Args:
    workdir: the folder of the run.
    change: the record as it is -> what is new in it.
    known: the record as this process knows it, for where the file is lost or damaged, which is said.

  Raises:
    OSError: it cannot be written.
  """
  with locked(workdir):
    try:
      record = read_record(workdir)
    except ValueError as error:
      print(f'{error}: it is written anew, as this run knows it', flush=True)
      record = dict(known)
    record |= change(record)
    write_record(workdir, record)
    return record


def data_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """How the data of two records differs, `differences` of all they say; none where the same examples were read.

  Where the data lies and what it and its classes are called makes no other data: its fingerprint is of what was read.

  Args:
    old, new: what `data_record` says.
  """

  def read(data: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in data.items() if name not in _NAMES}
    return kept | {'classes': len(data['class_names'])}

  return differences(old, new) if differences(read(old), read(new)) else []
