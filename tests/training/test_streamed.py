"""A run whose data stays in its files is the run whose data is on the device, to the bit."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffusion import devices
from diffusion.data import curriculum, records, sources, splits
from diffusion.evaluation import memorization
from diffusion.models import mlp, normalization
from diffusion.training import callbacks
from diffusion.training import experiment as experiments
from diffusion.training import state as states
from tests import prepared
from tests.training import tiny

pytest.importorskip('grain')
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('streamed')
  prepared.mnist(path, 80)
  return path / 'sets'


def on_images(model):
  """A network of vectors as one of images."""

  def flat(x):
    return x.reshape(len(x), -1)

  def apply(variables, z, *rest, **more):
    output, statistics = model.apply(variables, flat(z), *rest, **more)
    return output.reshape(z.shape), statistics

  return model._replace(init=lambda key, z, *rest: model.init(key, flat(z), *rest), apply=apply)


def experiment(folder, workers=None, **changes):
  """Dropout, shifts, label dropout and batch normalization on."""
  source = sources.tfds('mnist', str(folder), size=4)
  made = tiny.images(
    data=source if workers is None else sources.streamed(source, workers),
    split=splits.Fractions(0.1),
    model=on_images(mlp.mlp(16, 1, 0.2, num_classes=10, norm=normalization.batch(0.9))),
    steps_per_dispatch=3,
    log_every=3,
  )
  return made._replace(**changes)


def began(made):
  """Its program, before the first step."""
  data = experiments.load_data(made)
  return tiny.single(made, data, states.init_state(made, data.example, data.units))


def run(program, dispatches):
  """(host state, metrics of each dispatch), settled in between."""
  rows = []
  for i in range(dispatches):
    rows.append(tiny.dispatch(program))
    if i == 1:
      program.recompute_statistics(0)
  return devices.to_host(program.get(0)), rows


def go_back(program, state):
  """To a host state from before, as a guard does."""
  program.put(0, states.gone_back(state, program.get(0)))


def assert_same(one, other):
  one, other = tiny.leaves(one), tiny.leaves(other)
  assert one.keys() == other.keys()
  for name, value in one.items():
    assert value.tobytes() == other[name].tobytes(), name


def compare(folder, workers, later):
  """Four dispatches in one go on the device against two streamed ones, a rollback in both, and two in a new start."""
  resident = began(experiment(folder))
  middle, rows = run(resident, 4)
  go_back(resident, middle)
  whole, more = run(resident, 4)
  streamed = began(experiment(folder, workers))
  state, found = run(streamed, 4)
  assert_same(state, middle)
  go_back(streamed, state)
  state, _ = run(streamed, 2)
  streamed.close()
  again = began(experiment(folder, later))  # another start, which may have other workers or none
  again.put(0, devices.replicate(state))
  state, last = run(again, 2)
  again.close()
  assert_same(state._replace(evaluation_statistics=()), whole._replace(evaluation_statistics=()))
  assert_same((rows, more[2:]), (found, last))


@pytest.mark.slow
def test_streamed_training_is_the_resident_one_to_the_bit_through_rollback_and_resume(folder):
  assert jax.device_count() == 4
  compare(folder, 0, 1)


@pytest.mark.slow
def test_a_run_begun_with_files_goes_on_with_data_on_the_device_of_one(folder):
  program = (
    'import pathlib, sys\nfrom diffusion import devices\ndevices.configure(16, 1, cache=False)\n'
    'from tests.training import test_streamed\ntest_streamed.compare(pathlib.Path(sys.argv[1]), 0, None)'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, str(folder)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr


def test_the_data_is_known_by_the_same_hashes_and_numbers(folder):
  made = [experiment(folder, workers) for workers in (None, 0)]
  whole, lazy = (experiments.load_data(one) for one in made)
  assert lazy.streamed
  assert not whole.streamed
  assert lazy.split.hashes == whole.split.hashes
  assert lazy.split.fingerprint == whole.split.fingerprint
  for name in ('validation', 'test'):
    for one, other in zip(getattr(lazy, name), getattr(whole, name), strict=True):
      np.testing.assert_array_equal(one, other)
  np.testing.assert_array_equal(lazy.train_in_memory[0], whole.train[0])
  np.testing.assert_array_equal(lazy.train[1], whole.train[1])


def test_what_looks_at_all_examples_is_refused(folder, monkeypatch):
  ranked = experiment(folder, 0, curriculum=curriculum.by_difficulty())
  with pytest.raises(ValueError, match='a curriculum that ranks the examples'):
    experiments.load_data(ranked)
  monkeypatch.setattr(records, 'WHOLE', 100)
  assert not experiments.load_data(experiment(folder, 0)).comparable
  for looks in (
    {'metrics': [memorization.nearest_neighbor_ratio()]},
    {'callbacks': [callbacks.watch_memorization(10)]},
  ):
    with pytest.raises(
      ValueError, match=r'69 streamed training images are too many .*the limit is 100 bytes'
    ):
      experiments.load_data(experiment(folder, 0, **looks))
