"""The folder of a run: its record and its claim on the folder; and where a run came from: code, versions, command.

run.json        what ran: configuration, code, versions, data, every start, how it ended, results
experiment.py   the experiment file as it was
metrics.jsonl   one row a logged step; events/ has the same for TensorBoard
checkpoints/    the latest and the best, each with its manifest (.sha256); damaged/ what was not as it was saved
data.png        training examples as the network sees them, where they are images
samples.png, curves.png, nearest.png, report.md, references.bib, samples.npz; later judgments add
_evaluation1, _evaluation2, ... to these names
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from diffusion.reporting import encoding
from diffusion.reporting.rows import read_json, write_json

RECORD_FORMAT = 4
PACKAGES = (
  'diffusion', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'numpy', 'scipy',
)  # fmt: skip


def _git(*arguments: str) -> str | None:
  root = pathlib.Path(__file__).parent
  try:
    done = subprocess.run(
      ['git', '-C', str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
    )
  except (OSError, subprocess.SubprocessError):
    return None  # not a checkout, or no git: recorded as null
  return done.stdout


def code() -> dict[str, Any]:
  """The git commit and the uncommitted difference of the checkout this package lies in; nulls outside one."""
  commit = _git('rev-parse', 'HEAD')
  return {'commit': commit and commit.strip(), 'diff': _git('diff', 'HEAD')}


def code_digest(experiment: pathlib.Path | str) -> str:
  """A short hash of the whole package and of an experiment file, or a text in its place: other code has another."""
  own = experiment.encode() if isinstance(experiment, str) else experiment.read_bytes()
  whole = hashlib.sha256(own)
  for path in sorted(pathlib.Path(__file__).parent.rglob('*.py')):
    whole.update(path.read_bytes())
  return whole.hexdigest()[:16]


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
    ValueError: no run in the folder, or one of another format.
  """
  path = workdir / 'run.json'
  if not path.is_file():
    raise ValueError(f'no run in {workdir}: there is no run.json')
  record = read_json(path)
  if record['format'] != RECORD_FORMAT:
    raise ValueError(f'{path} has format {record["format"]}, this version reads {RECORD_FORMAT}')
  return record


def write_record(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes run.json in one piece."""
  write_json(workdir / 'run.json', record)


def claim(workdir: pathlib.Path, fresh: dict[str, Any], source: pathlib.Path | str) -> None:
  """Takes a folder for a run, or finds that it is this run's already; run.json then has this start in its `starts`.

  Args:
    workdir: the folder; created if need be.
    fresh: the record of a run that starts now.
    source: the experiment file, copied into a new folder; or the name of an experiment that has none, whose fingerprint
      must then be the recorded one.

  Raises:
    ValueError: the folder holds a run of another configuration, of other data, or something that is no run.
    OSError: the folder cannot be written.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  if (workdir / 'run.json').exists():
    record = read_record(workdir)
    parts = {part: (record[part], fresh[part]) for part in ('config', 'data')}
    if isinstance(source, str):
      parts['experiment'] = record['fingerprint']['built'], fresh['fingerprint']['built']
    for part, pair in parts.items():
      changed = differences(*pair)
      if changed:
        raise ValueError(
          f'{workdir} holds a run of another {part} ({"; ".join(changed)}): choose another --workdir, or undo this'
        )
    record['starts'].append(fresh['starts'][0])
  else:
    # A start that was killed before its record was written leaves the copy, or a part of either.
    leftover = re.compile(r'experiment\.py|\..*\.tmp')
    others = [path.name for path in workdir.iterdir() if not leftover.fullmatch(path.name)]
    if others:
      raise ValueError(
        f'{workdir} is not empty and holds no run ({others[0]}): choose another --workdir'
      )
    record = fresh
    if not isinstance(source, str):
      encoding.replace(workdir / 'experiment.py', source.read_bytes())
  write_record(workdir, record)
