"""Runs tests on a copy of the tree that has one fault, in processes forked from one that has imported the libraries."""

import contextlib
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from typing import NamedTuple

import pytest

from tests.mutants.fault import Fault, apply

ROOT = pathlib.Path(__file__).parents[2]
KILLED, SURVIVED, STALE, BROKEN = 'killed', 'survived', 'stale', 'broken'
_COPIED = ('diffusion', 'experiments', 'tests', 'benchmarks', 'docs', '.ci')
_GENERAL = ('tests/test_equalities.py', 'tests/test_wiring.py')  # slow, not in the fast suite
_LIBRARIES = (
  'tests.mutants.libraries', 'jax', 'jax.numpy', 'flax.linen', 'optax', 'orbax.checkpoint.v1', 'scipy.stats', 'pytest',
  'sklearn.datasets', 'sklearn.svm', 'jaxtyping', 'beartype', 'tensorboardX', 'tqdm', 'matplotlib.figure',
  'ml_collections.config_flags', 'absl.app', 'PIL.Image', 'xdist',
)  # fmt: skip


class Found(NamedTuple):
  """What became of a tree: `outcome` of the above, the first test that failed, and how long it took."""

  outcome: str
  by: str
  seconds: float


class _First:
  """A plugin of pytest that knows the first test that failed, and whether any ran; quick tests go before slow ones."""

  def __init__(self, arguments: list[str]):
    self.failed, self.ran = '', 0
    self.files = [argument.partition('::')[0] for argument in arguments]

  @pytest.hookimpl(trylast=True)
  def pytest_collection_modifyitems(self, items):
    place = {name: i for i, name in reversed([*enumerate(self.files)])}
    items.sort(
      key=lambda item: ('slow' in item.keywords, place.get(item.nodeid.partition('::')[0], 0))
    )

  def pytest_runtest_logreport(self, report):
    self.ran += report.when == 'call'
    if report.failed and not self.failed:
      self.failed = report.nodeid

  def pytest_collectreport(self, report):
    if report.failed and not self.failed:
      self.failed = f'{report.nodeid} (cannot be imported)'


def copy(tree: pathlib.Path, compiled: pathlib.Path) -> None:
  """A copy of the working tree whose tests share a cache of compiled programs."""
  ignore = shutil.ignore_patterns('__pycache__', '*.egg-info')
  tree.mkdir()
  for path in ROOT.iterdir():
    if path.name in _COPIED:
      shutil.copytree(path, tree / path.name, ignore=ignore)
    elif path.is_file():
      shutil.copy(path, tree / path.name)
  (tree / '.pytest_cache').mkdir()
  (tree / '.pytest_cache' / 'compiled').symlink_to(compiled)


def _tests(tree: str, arguments: list[str], log: str, answers) -> None:
  """Runs pytest in a tree; answers (status, first failed, ran)."""
  os.setpgid(0, 0)
  with pathlib.Path(log).open('wb') as file:
    for channel in (1, 2):
      os.dup2(file.fileno(), channel)
  os.chdir(tree)
  os.environ['PYTHONPATH'] = tree
  os.environ['HOME'] = str(
    pathlib.Path(tree).parent
  )  # gone with the tree, whatever a fault writes there
  sys.path[:] = [tree, *(one for one in sys.path if one not in ('', str(ROOT)))]
  for name in [one for one in sys.modules if one.partition('.')[0] in ('tests', 'diffusion')]:
    del sys.modules[name]
  first = _First(arguments)
  status = pytest.main(
    ['-x', '-q', '-n0', '-p', 'no:cacheprovider', '--tb=short', '-W', 'ignore', *arguments],
    plugins=[first],
  )
  answers.send((int(status), first.failed, first.ran))
  answers.close()
  sys.stdout.flush()
  os._exit(0)  # what a fault left behind is not waited for


def run(tree: pathlib.Path, arguments: list[str], limit: float) -> Found:
  """Tests in a tree, for so many seconds at most: one that does not end is noticed as well."""
  server = multiprocessing.get_context('forkserver')
  server.set_forkserver_preload(list(_LIBRARIES))
  receiver, sender = server.Pipe(duplex=False)
  begin, log = time.monotonic(), tree.with_suffix('.log')
  process = server.Process(target=_tests, args=(str(tree), arguments, str(log), sender))
  process.start()
  sender.close()
  answer = None
  if receiver.poll(limit):
    try:
      answer = receiver.recv()
    except EOFError:
      answer = (-1, 'the process of the tests died', 1)
  for end in (lambda: os.killpg(process.pid, signal.SIGKILL), process.kill):
    with contextlib.suppress(ProcessLookupError):
      end()
  process.join()
  seconds = time.monotonic() - begin
  if answer is None:
    return Found(KILLED, f'no end within {limit:.0f} s', seconds)
  status, failed, ran = answer
  if failed or status < 0:
    return Found(KILLED, failed, seconds)
  return Found(SURVIVED if status == 0 and ran else BROKEN, f'status {status}, {ran} ran', seconds)


def failing_without_fault(tests: list[str], compiled: pathlib.Path) -> list[str]:
  """Which of these fail in a copy of the tree as it is: they notice no fault."""
  failing = []
  while due := [test for test in tests if test not in failing]:
    with tempfile.TemporaryDirectory(prefix='mutant') as temporary:
      tree = pathlib.Path(temporary) / 'tree'
      copy(tree, compiled)
      found = run(tree, due, 3600.0)
    if found.outcome == SURVIVED:
      break
    if found.by not in due:
      raise RuntimeError(f'the tests do not run in a copy of the tree: {found.by}')
    failing.append(found.by)
  return failing


def noticed(
  fault: Fault, compiled: pathlib.Path, own: bool, first: str = '', limit: float = 1800.0
) -> Found:
  """What becomes of a fault: its own tests, after `first`, which noticed it once; unless `own`, then those of all."""
  with tempfile.TemporaryDirectory(prefix='mutant') as temporary:
    tree = pathlib.Path(temporary) / 'tree'
    copy(tree, compiled)
    path = tree / fault.file
    path.write_text(apply(path.read_text(), fault))
    if '::' in first:
      found = run(tree, [first], limit)
      if found.outcome == KILLED:
        return found
    found = run(tree, list(fault.tests), limit)
    if found.outcome != SURVIVED or own:
      return found
    seconds = found.seconds
    for those in (_GENERAL, ('-m', 'not slow', '--deselect=tests/test_mutants.py')):
      found = run(tree, list(those), 4 * limit)  # the fast suite takes an hour in one process
      seconds += found.seconds
      if found.outcome != SURVIVED:
        break
    return found._replace(seconds=seconds)
