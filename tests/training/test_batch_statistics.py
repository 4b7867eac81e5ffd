"""Batch normalization in whole runs: devices, averaged weights, checkpoints, samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices
from diffusion.models import mlp, normalization
from diffusion.sampling import samplers
from diffusion.training import assembly
from diffusion.training import experiment as experiments
from tests.training import tiny


def experiment(**changes):
  model = mlp.mlp(16, 2, 0.2, num_classes=2, norm=normalization.batch(0.9))
  plan = experiments.Sampling(samplers.ddim, steps=5, wrappers=(), per_class=8)
  return tiny.experiment(model=model, sampling=plan, **changes)


def test_four_devices_have_the_statistics_of_one_with_the_global_batch(x64):
  """Dropout, label dropout and batch normalization on; ten steps; state by state."""
  made = experiment()
  loaded, state, data = tiny.start(made)
  state = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state)
  assert set(state.statistics) == {'batch_stats'}
  assert jax.device_count() == 4
  programs = assembly.programs(made, loaded)
  many = devices.replicate(state)
  one = state
  step = tiny.one_device(made, loaded)
  for _ in range(10):
    many, metrics = tiny.dispatch(programs, many)
    devices.wait(metrics)
    one, _ = step(one, data)
  found, expected = (
    tiny.leaves((s.params, s.statistics, s.optimizer, s.averages))
    for s in (devices.to_host(many), one)
  )
  largest = 0.0
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, atol=1e-9, err_msg=name)
    largest = max(largest, np.abs(found[name] - value).max())
  print(f'largest difference of four devices from one: {largest:.2e}')
  moved = tiny.leaves(state.statistics)
  assert all(np.abs(v - moved[n]).max() > 1e-2 for n, v in tiny.leaves(one.statistics).items())


def test_judged_weights_get_statistics_of_their_own():
  """After settling, normalizing by them is normalizing by the mean over the first batches, whatever came before."""
  made = experiment()
  loaded, state, _ = tiny.start(made)
  programs = assembly.programs(made, loaded)
  state = devices.replicate(state)
  for _ in range(5):
    state, metrics = tiny.dispatch(programs, state)
    devices.wait(metrics)
  settled = programs.settle(devices.replicate(devices.to_host(state)))
  own, running = (
    tiny.leaves(devices.to_host(t)) for t in (settled.judged_statistics, settled.statistics)
  )
  for name, value in own.items():
    assert np.abs(value - running[name]).max() > 1e-3, name
  # The same judged weights elsewhere on the trajectory: the same statistics.
  other = settled._replace(cursor=settled.cursor + 7, statistics=state.judged_statistics)
  again = tiny.leaves(
    devices.to_host(programs.settle(devices.replicate(devices.to_host(other))).judged_statistics)
  )
  for name, value in own.items():
    np.testing.assert_allclose(again[name], value, rtol=1e-5, atol=1e-6)
  # A validation with them differs from one with the running ones.
  row = programs.validate(assembly.weights(made, settled))
  stale = programs.validate(
    assembly.weights(made, settled._replace(judged_statistics=settled.statistics))
  )
  assert abs(row['validation/eps'] - stale['validation/eps']) > 1e-5


def test_a_sample_does_not_depend_on_the_ones_drawn_with_it():
  made = experiment()
  loaded, state, _ = tiny.start(made)
  programs = assembly.programs(made, loaded)
  weights = assembly.weights(made, programs.settle(devices.replicate(state)))
  labels, number = np.array([0, 1, 0, 1, 1], np.int32), np.arange(5)
  together = programs.sample(weights, labels, number)
  alone = programs.sample(weights, labels[3:4], number[3:4])
  np.testing.assert_allclose(alone[0], together[3], atol=1e-6)


def test_without_statistics_settling_is_nothing_at_all():
  made = tiny.experiment()
  loaded, state, _ = tiny.start(made)
  replicated = devices.replicate(state)
  assert assembly.programs(made, loaded).settle(replicated) is replicated


def test_one_row_a_device_or_micro_batch_is_refused():
  with pytest.raises(ValueError, match='batch normalization needs at least 2 rows .* got 1'):
    tiny.start(experiment(batch_size=4))
  with pytest.raises(ValueError, match='batch normalization needs at least 2 rows .* got 1'):
    tiny.start(experiment(batch_size=32, micro_batches=8))
