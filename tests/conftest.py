"""Four virtual CPU devices for every test, programs compiled quickly, and float64 for those that ask."""

import os
import pathlib
import signal

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Half the time to compile, slower code, the same results; programs that tests start inherit it.
os.environ.setdefault(
  'XLA_FLAGS', '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)

import jax
import jaxtyping
import pytest

from tests import shapes

# As on a terminal, where the tests run behind nohup or in the background: programs inherit what is ignored.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
  if signal.getsignal(number) == signal.SIG_IGN:
    interrupts = number == signal.SIGINT
    signal.signal(number, signal.default_int_handler if interrupts else signal.SIG_DFL)

# Before the first import of the package: in each process that runs tests, not in the programs that tests start.
jaxtyping.install_import_hook([f'diffusion.{room}' for room in shapes.ROOMS], 'tests.shapes.check')

jax.config.update('jax_num_cpu_devices', 4)
CACHE = pathlib.Path(__file__).parent.parent / '.pytest_cache' / 'compiled'
jax.config.update('jax_compilation_cache_dir', str(CACHE))
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(CACHE)  # and for the programs that tests start


@pytest.fixture
def x64():
  """float64 for one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def unchecked():
  """Signatures are not checked in one test."""
  with shapes.unchecked():
    yield


def pytest_collection_modifyitems(items):
  """File by file, those with slow tests first in each half of the list, with which two workers begin.

  So none of them is left to run alone at the end, and what a file's tests share is made once.
  """
  files = {}
  for item in items:
    files.setdefault(item.path, []).append(item)
  slow = [file for file in files.values() if any('slow' in item.keywords for item in file)]
  first, second = ([item for file in part for item in file] for part in (slow[::2], slow[1::2]))
  quick = [item for file in files.values() if file not in slow for item in file]
  cut = max(0, len(items) // 2 - len(first))
  items[:] = first + quick[:cut] + second + quick[cut:]
