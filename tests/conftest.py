"""Four virtual CPU devices for every test, and float64 for those that ask."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 4)
CACHE = pathlib.Path(__file__).parent.parent / '.pytest_cache' / 'compiled'
jax.config.update('jax_compilation_cache_dir', str(CACHE))
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(CACHE)  # and for the programs that tests start


@pytest.fixture
def x64():
  """float64 for one test."""
  with jax.enable_x64(True):
    yield
