"""Another commit's working tree beside this one: what it is, and how a process takes the package from it."""

import importlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

HERE = pathlib.Path(__file__).resolve().parents[1]


def environment(root: pathlib.Path | str, **more: str) -> dict[str, str]:
  """The environment of a process that takes the package from a checkout; its folder must be `root` as well."""
  return os.environ | {'PYTHONPATH': str(root)} | more


def find(path: str) -> pathlib.Path:
  """The root of a checkout; raises ValueError for a folder that is none, or whose package Python would not take."""
  root = pathlib.Path(path).expanduser().resolve()
  command = [sys.executable, '-c', 'import benchmarks, diffusion; print(diffusion.__file__)']
  folder = root if root.is_dir() else HERE
  done = subprocess.run(
    command, cwd=folder, env=environment(root), capture_output=True, text=True, check=False
  )
  if done.stdout.strip() != str(root / 'diffusion' / '__init__.py'):
    raise ValueError(
      f'--against={path} is no checkout of this project: name the root of a working tree, e.g. one that `git worktree '
      'add --detach ../before COMMIT` made'
    )
  return root


def commit(root: pathlib.Path) -> str:
  """The commit of a checkout, with a mark where files differ from it; '?' without Git."""
  command = [
    'git',
    '-C',
    str(root),
    'describe',
    '--always',
    '--dirty',
    '--abbrev=12',
    '--exclude=*',
  ]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  return done.stdout.strip() or '?'


def made_in(
  root: str,
  make: Callable[..., tuple[Callable[[], Any], float, Mapping[str, Any]]],
  *arguments: Any,
) -> tuple[Callable[[], Any], float, Mapping[str, Any]]:
  """A contender of `make`, with the package and `benchmarks.engine` of the checkout at `root`.

  Comes first in a process: what the process has imported of this project is forgotten, and `make`, which imports what
  it measures when it is called, finds the checkout's.

  Args:
    root: of the checkout.
    make: as of a `contest.Contender`.
    *arguments: of `make`.

  Raises:
    RuntimeError: Python takes the package from elsewhere.
  """
  for name in list(sys.modules):
    if name.partition('.')[0] in ('benchmarks', 'diffusion', 'experiments'):
      del sys.modules[name]
  sys.path.insert(0, root)
  for name in ('diffusion', 'benchmarks.engine'):
    found = importlib.import_module(name).__file__
    if not pathlib.Path(found).is_relative_to(root):
      raise RuntimeError(f'{name} comes from {found}, which is not in {root}')
  return make(*arguments)
