"""The code that ran: its commits, and what differs from them in the files that were used, and in nothing else.

A repository counts where it tracks a file that was used: the one around a virtual environment tracks none of it. A file
that was used, and is neither tracked nor ignored there, is a change as well. Of ignored files, and of those in no such
repository, hashes alone are kept, as they may hold what nobody is to see.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from diffusion.user_code import in_a_library

LOADED = 'experiment_of_'  # what copies of experiment files are called that were read from the folders of runs
_PACKAGE = pathlib.Path(__file__).resolve().parent
# As git writes it where nobody has configured anything, and without starting what they have.
_PLAIN = (
  '--no-color', '--no-ext-diff', '--no-textconv', '--src-prefix=a/', '--dst-prefix=b/', '--no-renames',
)  # fmt: skip
_LARGE = 2**18  # bytes of a new file that is data rather than code


class _State(NamedTuple):
  """Of a repository: what `code` says of it."""

  commit: str | None
  diff: str | None


def code(source: pathlib.Path | None = None) -> dict[str, Any]:
  """What ran: this package, and the user's own files as far as they have been imported.

  Args:
    source: the experiment file, which counts as used.

  Returns:
    commit, diff: of the repository that tracks this package; the commit alone where pip installed it from one; else
      None.
    digest: a hash of this package.
    own: name -> hash of each file of the user's.
    repositories: those that track the user's own files: folder, commit, diff.
  """
  package, places = sorted(_PACKAGE.rglob('*.py')), {}
  own = _used(source)
  for path in own:
    places.setdefault(_root(path), []).append(path)
  home = None if in_a_library(str(_PACKAGE)) else _root(_PACKAGE)
  state = home and _tracked(home, package) and _state(home, [*package, *places.pop(home, [])])
  states = [(root, _state(root, files)) for root, files in places.items() if root is not None]
  return {
    **(state or _State(_installed(), None))._asdict(),
    'digest': code_digest(''),
    'own': {_name(path): _hash([path]) for path in own},
    'repositories': [{'folder': root.name, **one._asdict()} for root, one in states if one],
  }


def code_in_brief() -> dict[str, Any]:
  """What an evaluation says of its code: the commit, and whether files that it used differ from theirs; else nulls."""
  now = code()
  known = [one['diff'] for one in (now, *now['repositories']) if one['diff'] is not None]
  return {'code': now['commit'], 'uncommitted changes': any(known) if known else None}


def code_digest(experiment: pathlib.Path | str) -> str:
  """A short hash of the whole package and of an experiment file, or a text in its place: other code has another."""
  own = experiment.encode() if isinstance(experiment, str) else experiment.read_bytes()
  return _hash(sorted(_PACKAGE.rglob('*.py')), own)


def _hash(paths: Sequence[pathlib.Path], before: bytes = b'') -> str:
  whole = hashlib.sha256(before)
  for path in paths:
    whole.update(path.read_bytes())
  return whole.hexdigest()[:16]


def _name(path: pathlib.Path) -> str:
  root = _root(path)
  return path.relative_to(root).as_posix() if root else path.name


def _used(source: pathlib.Path | None) -> list[pathlib.Path]:
  """The user's own files that have been imported, and the experiment's."""
  modules = [one for name, one in list(sys.modules.items()) if not name.startswith(LOADED)]
  names = [getattr(module, '__file__', None) for module in modules]
  found = {pathlib.Path(name) for name in names if isinstance(name, str) and name.endswith('.py')}
  found |= {source} if source is not None else set()
  whole = {path.resolve() for path in found if not in_a_library(str(path))}
  return sorted(
    path for path in whole
    if path.is_file() and not path.is_relative_to(_PACKAGE) and not in_a_library(str(path))
  )  # fmt: skip


def _root(path: pathlib.Path) -> pathlib.Path | None:
  """The nearest folder around a path that is a work tree of git: a checkout, a submodule, a tree of its own."""
  return next((one for one in path.parents if (one / '.git').exists()), None)


def _installed() -> str | None:
  """The commit that pip has installed this package from, if it came from a repository."""
  try:
    found = importlib.metadata.distribution('diffusion')
    about = json.loads(found.read_text('direct_url.json') or '{}')
    here = pathlib.Path(str(found.locate_file('diffusion'))).resolve() == _PACKAGE
  except (importlib.metadata.PackageNotFoundError, OSError, ValueError):
    return None
  return about.get('vcs_info', {}).get('commit_id') if here else None


def _git(root: pathlib.Path, *arguments: str, differs: bool = False) -> str | None:
  """What git says; None where it fails or is not there. `differs`: status 1 says that, and is no failure."""
  # What the environment says of a repository, as in a hook, is not of this one.
  environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
  try:
    done = subprocess.run(
      ['git', '--literal-pathspecs', '--no-optional-locks', '-C', str(root), *arguments],
      capture_output=True, timeout=20, check=False, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.decode(errors='replace') if done.returncode in (0, int(differs)) else None


def _listed(root: pathlib.Path, paths: Sequence[pathlib.Path], *kind: str) -> list[str]:
  names = [path.relative_to(root).as_posix() for path in paths]
  return (_git(root, 'ls-files', '-z', *kind, '--', *names) or '').split('\0')[:-1]


def _tracked(root: pathlib.Path, paths: Sequence[pathlib.Path]) -> list[str]:
  return _listed(root, paths, '--cached')


def _state(root: pathlib.Path, paths: Sequence[pathlib.Path]) -> _State | None:
  """Of a repository, as far as these files are concerned; None where it tracks none of them."""
  tracked = _tracked(root, paths)
  if not tracked:
    return None
  commit = (_git(root, 'rev-parse', '--verify', '--quiet', 'HEAD') or '').strip() or None
  new = _listed(root, paths, '--others', '--exclude-standard')
  if commit is None:  # nothing is committed yet
    new, changed = [*tracked, *new], ''
  else:
    changed = _git(root, 'diff', *_PLAIN, 'HEAD', '--', *tracked) or ''
  small = [
    name for name in new if (root / name).is_file() and (root / name).stat().st_size < _LARGE
  ]
  parts = [
    _git(root, 'diff', *_PLAIN, '--no-index', '--', os.devnull, name, differs=True) or ''
    for name in small
  ]
  return _State(commit, changed + ''.join(parts))
