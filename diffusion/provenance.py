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
_NAMES = (
  'name',
  'note',
  'found',
  'class_names',
)  # of a data set: what it is called, not what it is
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


def code_in_brief() -> dict[str, Any]:
  """What an evaluation says of its code: the commit, and whether it was more than that; nulls outside a checkout."""
  now = code()
  changed = None if now['diff'] is None else bool(now['diff'])
  return {'code': now['commit'], 'uncommitted changes': changed}


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


def built_changes(record: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
  """How what was built differs in two records, but for the data, which is known by its own fingerprint."""
  built = (one['fingerprint']['built'] for one in (record, fresh))
  return differences(
    *({name: part for name, part in one.items() if name != 'data'} for one in built)
  )


def _is_place(name: str, *configs: Mapping[str, Any]) -> bool:
  """Whether a field may say where data lies: a text, or several. What a number does, no description need show."""

  def is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)

  values = [config[name] for config in configs if name in config]
  texts = [all(map(is_text, one)) if isinstance(one, list) else is_text(one) for one in values]
  return len(values) == len(configs) and all(texts)


def _moved(record: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
  """How two records of one run differ in where its data lies and what it is called.

  A text of the configuration says no more than that where the data and all else that was built are the same with it.

  Args:
    record: of the run.
    fresh: of a start.

  Raises:
    ValueError: they are of two runs; it says how.
  """
  old, new = record['config'], fresh['config']
  config, data = differences(old, new), data_changes(record['data'], fresh['data'])
  fields = [
    name for name in {**old, **new} if name not in old or name not in new or old[name] != new[name]
  ]
  if not all(_is_place(name, old, new) for name in fields):
    raise ValueError(f'another config ({"; ".join(config)})')
  if data:
    raise ValueError(f'another data ({"; ".join(config + data)})')
  if config and built_changes(record, fresh):
    parts = ', '.join(one.partition(':')[0] for one in built_changes(record, fresh))
    raise ValueError(f'another config ({"; ".join(config)}), with which there is another {parts}')
  names = [{name: one['data'][name] for name in ('name', 'class_names')} for one in (record, fresh)]
  return config + differences(*names)


def claim(workdir: pathlib.Path, fresh: dict[str, Any], source: pathlib.Path | str) -> None:
  """Takes a folder for a run, or finds that it is this run's already; run.json then has this start in its `starts`.

  A run whose data lies elsewhere than before is the same run; its configuration then says where it lies now.

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
    try:
      moved = _moved(record, fresh)
      changed = built_changes(record, fresh) if isinstance(source, str) else []
      if changed:
        raise ValueError(f'another experiment ({"; ".join(changed)})')
    except ValueError as error:
      raise ValueError(
        f'{workdir} holds a run of {error}: choose another --workdir, or undo this'
      ) from None
    record['starts'].append(fresh['starts'][0])
    if moved:
      print(f'the data of {workdir} is the same, and has moved: {"; ".join(moved)}', flush=True)
      record['starts'][-1]['moved'] = moved
      record['config'] = fresh['config']
      record['data']['name'] = fresh['data']['name']
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
