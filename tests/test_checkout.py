"""What is recorded of the code that ran: the files that were used, and no other file of anybody's repository."""

import importlib
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import types

import pytest

from diffusion import checkout
from diffusion.user_code import in_a_library

ROOT = pathlib.Path(__file__).parents[1]
KEY = secrets.token_hex()


def git(folder, *arguments):
  names = ('-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'protocol.file.allow=always')
  done = subprocess.run(
    ['git', *names, '-C', folder, *arguments], capture_output=True, text=True, check=True
  )
  return done.stdout.strip()


def repository(folder, **files):
  """A repository with these files committed, names with a dot for an underscore; its commit."""
  folder.mkdir(parents=True, exist_ok=True)
  git(folder, 'init', '-q')
  for name, text in files.items():
    write(folder / name.replace('_', '.'), text)
  git(folder, 'add', '.')
  git(folder, 'commit', '-q', '-m', 'first', '--allow-empty')
  return git(folder, 'rev-parse', 'HEAD')


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


@pytest.fixture
def package(tmp_path, monkeypatch):
  """(folder) -> makes this package one of two files there."""

  def put(folder):
    write(folder / '__init__.py', '')
    write(folder / 'core.py', 'ONE = 1\n')
    monkeypatch.setattr(checkout, '_PACKAGE', folder)
    return folder

  monkeypatch.setattr(sys, 'modules', dict(sys.modules) | {'__main__': types.ModuleType('main')})
  files = {name: str(getattr(one, '__file__', '')) for name, one in sys.modules.items()}
  for name in [name for name, file in files.items() if not in_a_library(file)]:
    del sys.modules[name]  # from this copy
  return put


def use(monkeypatch, path):
  """The file counts as imported."""
  module = types.ModuleType(path.stem)
  module.__file__ = str(path)
  sys.modules[path.stem] = module
  return path


def test_a_virtual_environment_in_somebody_s_repository_tells_nothing_of_that(tmp_path, package):
  home = tmp_path / 'home'
  commit = repository(home, notes_txt='x\n', config_py='x\n')
  write(home / 'config.py', f'KEY = "{KEY}"\n')
  write(home / 'left.py', f'KEY = "{KEY}"\n')
  for place in ('.venv/lib/python3.12/site-packages/diffusion', 'vendored/diffusion'):
    package(home / place)
    source = write(tmp_path / 'elsewhere' / 'mine.py', 'pass\n')
    told = checkout.code(source)
    assert (told['commit'], told['diff'], told['repositories']) == (None, None, [])
    assert list(told['own']) == ['mine.py']
    assert KEY not in str(told) and commit not in str(told)


def test_of_the_checkout_the_package_and_used_files_are_told_and_no_other(tmp_path, package, monkeypatch):  # fmt: skip
  home = tmp_path / 'home'
  folder = package(home / 'diffusion')
  write(home / 'experiments' / 'tracked.py', 'A = 1\n')
  commit = repository(home, secret_py='', gitignore='', used_py='B = 1\n')
  write(home / '.gitignore', 'private.py\n')
  before = checkout.code()
  assert (before['commit'], before['diff']) == (commit, '')
  assert (before['own'], before['repositories']) == ({}, [])
  write(folder / 'core.py', 'ONE = 2\n')
  write(folder / 'added.py', 'ADDED = 1\n')
  write(home / 'secret.py', KEY)
  write(home / 'left.py', KEY)
  use(monkeypatch, write(home / 'private.py', KEY))
  use(monkeypatch, write(home / 'used.py', 'B = 2\n'))
  big = use(
    monkeypatch, write(home / 'big.py', 'BIG = 1\n' * 2**15)
  )  # 2^18 bytes: data rather than code
  loaded = write(home / 'loaded.py', 'LOADED = 1')  # from the folder of a run
  sys.modules[f'{checkout.LOADED}1'] = types.SimpleNamespace(__file__=str(loaded))
  source = write(home / 'experiments' / 'mine [1].py', 'C = 3')
  told = checkout.code(source)
  assert 'big.py' in told['own'] and 'BIG = 1' not in told['diff']
  write(big, 'BIG = 1')
  assert '+BIG = 1' in checkout.code(source)['diff']
  big.unlink()
  told = checkout.code(source)
  assert told['commit'] == commit and told['digest'] != before['digest']
  assert '+++ b/experiments/mine [1].py' in told['diff']
  for line in ('-ONE = 1', '+ONE = 2', '+ADDED = 1', '-B = 1', '+B = 2', '+C = 3'):
    assert line in told['diff'], line
  assert list(told['own']) == ['experiments/mine [1].py', 'private.py', 'used.py']
  assert KEY not in str(told)
  # It can be applied to that commit, and gives what ran.
  git(home, 'stash', '-u', '-q')
  subprocess.run(['git', '-C', home, 'apply', '-'], input=told['diff'], text=True, check=True)
  assert source.read_text() == 'C = 3'
  assert (folder / 'core.py').read_text() == 'ONE = 2\n'


def test_an_experiment_in_a_repository_of_its_own_is_an_entry_of_its_own(tmp_path, package):
  home = package(tmp_path / 'home' / 'diffusion').parent
  mine, first = tmp_path / 'thesis', repository(home)
  second = repository(mine, mine_py='A = 1\n', notes_txt='')
  write(mine / 'mine.py', 'A = 2\n')
  write(mine / 'notes.txt', KEY)
  told = checkout.code(mine / 'mine.py')
  assert (told['commit'], told['diff']) == (first, '')
  (entry,) = told['repositories']
  assert (entry['folder'], entry['commit']) == ('thesis', second)
  assert '+A = 2' in entry['diff'] and KEY not in str(told)
  link = tmp_path / 'link.py'
  link.symlink_to(mine / 'mine.py')
  assert checkout.code(link)['repositories'] == [entry]


def test_a_tree_of_its_own_a_submodule_and_a_bare_repository(tmp_path, package):
  origin = package(tmp_path / 'origin' / 'diffusion').parent
  commit = repository(origin)
  git(origin, 'worktree', 'add', '-q', tmp_path / 'tree')
  package(tmp_path / 'tree' / 'diffusion')
  assert checkout.code()['commit'] == commit
  outer = repository(tmp_path / 'outer', mine_py='A = 1\n')
  git(tmp_path / 'outer', 'submodule', '-q', 'add', str(origin), 'inner')
  package(tmp_path / 'outer' / 'inner' / 'diffusion')
  told = checkout.code(tmp_path / 'outer' / 'mine.py')
  assert (told['commit'], told['repositories'][0]['commit']) == (commit, outer)
  git(tmp_path, 'clone', '-q', '--bare', origin, tmp_path / 'bare')
  package(tmp_path / 'bare' / 'diffusion')
  assert (checkout.code()['commit'], checkout.code()['diff']) == (None, None)


def test_a_repository_without_a_commit_has_all_as_a_change(tmp_path, package):
  home = package(tmp_path / 'home' / 'diffusion').parent
  git(home, 'init', '-q')
  assert checkout.code()['diff'] is None
  git(home, 'add', '.')
  told = checkout.code(write(home / 'mine.py', 'NEW = 1\n'))
  assert told['commit'] is None and '+ONE = 1' in told['diff'] and '+NEW = 1' in told['diff']


def test_in_brief_the_code_has_a_commit_and_says_whether_a_used_file_of_any_repository_differs(
  tmp_path, package, monkeypatch
):
  home = package(tmp_path / 'home' / 'diffusion').parent
  assert checkout.code_in_brief() == {'code': None, 'uncommitted changes': None}
  commit = repository(home)
  mine = tmp_path / 'mine'
  repository(mine, mine_py='A = 1\n')
  use(monkeypatch, mine / 'mine.py')
  assert checkout.code_in_brief() == {'code': commit, 'uncommitted changes': False}
  write(mine / 'mine.py', 'A = 2\n')
  assert checkout.code_in_brief() == {'code': commit, 'uncommitted changes': True}
  write(mine / 'mine.py', 'A = 1\n')
  write(home / 'diffusion' / 'core.py', 'ONE = 2\n')
  assert checkout.code_in_brief() == {'code': commit, 'uncommitted changes': True}


def test_the_digest_is_of_every_file_of_the_package_and_of_the_experiment(tmp_path, package):
  folder = package(tmp_path / 'diffusion')
  found = {checkout.code_digest(''), checkout.code_digest('A = 1')}
  source = write(tmp_path / 'mine.py', 'A = 1')
  assert checkout.code_digest(source) == checkout.code_digest('A = 1')
  for name in ('__init__.py', 'core.py', 'deep/inner.py'):
    write(folder / name, 'X = 1')
    found.add(checkout.code_digest(''))
  write(folder / 'notes.txt', 'no code')
  assert checkout.code_digest('') in found
  assert len(found) == 5


def test_neither_the_environment_nor_a_taste_changes_what_git_says(tmp_path, package, monkeypatch):
  home = package(tmp_path / 'home' / 'diffusion').parent
  commit = repository(home)
  other = repository(tmp_path / 'other', secret_py='')
  write(tmp_path / 'other' / 'secret.py', KEY)
  write(home / 'diffusion' / 'core.py', 'ONE = 2\n')
  before = checkout.code()
  monkeypatch.setenv('GIT_DIR', str(tmp_path / 'other' / '.git'))  # as in a hook
  monkeypatch.setenv('GIT_WORK_TREE', str(tmp_path / 'other'))
  monkeypatch.setenv('GIT_EXTERNAL_DIFF', 'false')
  assert checkout.code() == before
  assert before['commit'] == commit != other
  for name in ('GIT_DIR', 'GIT_WORK_TREE', 'GIT_EXTERNAL_DIFF'):
    monkeypatch.delenv(name)
  for name, value in (
    ('color.ui', 'always'),
    ('diff.noprefix', 'true'),
    ('diff.external', 'false'),
  ):
    git(home, 'config', name, value)
  assert checkout.code() == before


def test_without_git_the_code_has_its_hash(tmp_path, package, monkeypatch):
  home = package(tmp_path / 'home' / 'diffusion').parent
  repository(home)
  source = write(home / 'mine.py', 'A = 1\n')
  with_git = checkout.code(source)
  monkeypatch.setenv('PATH', str(tmp_path))
  told = checkout.code(source)
  assert (told['commit'], told['diff'], told['repositories']) == (None, None, [])
  assert (told['digest'], told['own']) == (with_git['digest'], with_git['own'])


def test_what_pip_installed_from_a_repository_has_its_commit_alone(tmp_path, package, monkeypatch):
  folder = package(tmp_path / 'site-packages' / 'diffusion')
  about = folder.with_name('diffusion-0.1.0.dist-info')
  write(about / 'METADATA', 'Metadata-Version: 2.1\nName: diffusion\nVersion: 0.1.0\n')
  origin = {'url': f'https://{KEY}@host/it', 'vcs_info': {'vcs': 'git', 'commit_id': 'c' * 40}}
  write(about / 'direct_url.json', json.dumps(origin))
  monkeypatch.setattr(sys, 'path', [str(tmp_path / 'site-packages'), *sys.path])
  importlib.invalidate_caches()
  told = checkout.code()
  assert (told['commit'], told['diff']) == ('c' * 40, None)
  assert KEY not in str(told)
  package(tmp_path / 'copied' / 'diffusion')  # another one than pip's
  assert checkout.code()['commit'] is None


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_key_of_somebody_s_repository_or_environment(tmp_path):
  """A real run from the user's own repository, in which the package is not tracked."""
  home = tmp_path / 'home'
  text = (ROOT / 'experiments' / 'mixture.py').read_text()
  repository(home, mine_py=text, settings_py='', notes_txt='')
  shutil.copytree(ROOT / 'diffusion', home / 'vendored' / 'diffusion')
  write(home / 'mine.py', text + '# changed\n')
  for name in ('settings.py', 'notes.txt', 'left.py', '.env', 'vendored/diffusion/.env'):
    write(home / name, f'KEY = "{KEY}"\n')
  environment = os.environ | {'PYTHONPATH': str(home / 'vendored'), 'API_KEY': KEY, 'JAX_API_KEY': KEY}  # fmt: skip
  done = subprocess.run(
    [sys.executable, 'mine.py', '--smoke', f'--workdir={tmp_path / "run"}'], cwd=home, env=environment,
    capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  files = [path for path in (tmp_path / 'run').rglob('*') if path.is_file()]
  assert len(files) > 10
  assert not [path for path in files if KEY.encode() in path.read_bytes()]
  record = (tmp_path / 'run' / 'run.json').read_text()
  assert '+# changed' in record  # of its own experiment it tells
  grep = ['grep', '-rc', KEY, home / 'settings.py']  # and the search finds what is there
  assert subprocess.run(grep, capture_output=True, check=False).returncode == 0
