"""Where a run came from: code, versions, command, configuration."""

import dataclasses
import hashlib
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

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


def code_digest(experiment: pathlib.Path) -> str:
  """A short hash of an experiment file and of the whole package, by which results of other code are told apart."""
  whole = hashlib.sha256(experiment.read_bytes())
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
  """A dataclass of numbers, strings and tuples as JSON data."""
  return {
    key: list(value) if isinstance(value, tuple) else value
    for key, value in dataclasses.asdict(config).items()
  }


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
