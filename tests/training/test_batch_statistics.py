"""Batch normalization in whole runs: devices, averaged weights, checkpoints, samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices
from diffusion.models import mlp, normalization
from diffusion.process import gaussian
from diffusion.sampling import draw, samplers
from diffusion.sampling.plan import Sampling
from diffusion.training import gradient as gradients
from diffusion.training import state as states
from diffusion.training.program import SingleRun
from diffusion.training.state import evaluation_parameters, weights
from diffusion.training.step import STATISTICS_BATCHES
from diffusion.types import Conditioning, Rows
from tests.training import tiny


def experiment(**changes):
  model = mlp.mlp(16, 2, 0.2, num_classes=2, norm=normalization.batch(0.9))
  plan = Sampling(samplers.ddim, steps=5, wrappers=(), per_class=8)
  return tiny.experiment(model=model, sampling=plan, **changes)


def test_four_devices_have_the_statistics_of_one_with_the_global_batch(x64):
  """Dropout, label dropout and batch normalization on; ten steps; state by state."""
  made = experiment()
  split, state, data = tiny.start(made)
  state = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state)
  assert set(state.statistics) == {'batch_stats'}
  assert jax.device_count() == 4
  many = tiny.single(made, split, state)
  one = state
  step = tiny.one_device(made, split)
  for _ in range(10):
    tiny.dispatch(many)
    one, _ = step(one, data)
  found, expected = (
    tiny.leaves((s.params, s.statistics, s.optimizer, s.averages))
    for s in (devices.to_host(many.get(0)), one)
  )
  largest = 0.0
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, atol=1e-9, err_msg=name)
    largest = max(largest, np.abs(found[name] - value).max())
  print(f'largest difference of four devices from one: {largest:.2e}')
  moved = tiny.leaves(state.statistics)
  assert all(np.abs(v - moved[n]).max() > 1e-2 for n, v in tiny.leaves(one.statistics).items())


def test_evaluation_parameters_get_statistics_of_their_own():
  """After settling, normalizing by them is normalizing by the mean over the first batches, whatever came before."""
  made = experiment()
  split, first, _ = tiny.start(made)
  program = tiny.single(made, split, first)
  for _ in range(5):
    tiny.dispatch(program)
  program.recompute_statistics(0)
  settled = devices.to_host(program.get(0))
  own, running = (tiny.leaves(t) for t in (settled.evaluation_statistics, settled.statistics))
  for name, value in own.items():
    assert np.abs(value - running[name]).max() > 1e-3, name
  # The same weights elsewhere on the trajectory: the same statistics.
  other = settled._replace(
    batches_seen=settled.batches_seen + 7,
    statistics=first.statistics,
    evaluation_statistics=first.evaluation_statistics,
  )
  program.put(0, devices.replicate(other))
  program.recompute_statistics(0)
  again = tiny.leaves(devices.to_host(program.get(0).evaluation_statistics))
  for name, value in own.items():
    np.testing.assert_allclose(again[name], value, rtol=1e-5, atol=1e-6)
  # A validation with them differs from one with the running ones.
  program.put(0, devices.replicate(settled))
  row = program.validate(0)
  program.put(0, devices.replicate(settled._replace(evaluation_statistics=settled.statistics)))
  stale = program.validate(0)
  assert abs(row['validation/eps'] - stale['validation/eps']) > 1e-5


def test_they_are_the_mean_of_those_of_the_runs_first_batches_without_dropout():
  """One batch after another by hand, each with the statistics of that batch alone."""
  made = experiment()
  split, state, data = tiny.start(made)
  program = tiny.single(made, split, state)
  for _ in range(3):
    tiny.dispatch(program)
  program.recompute_statistics(0)
  settled = jax.tree.map(jnp.asarray, devices.to_host(program.get(0)))
  params = evaluation_parameters(made, settled)
  rows = Rows(jnp.arange(made.batch_size), made.batch_size)

  @jax.jit
  def of_batch(i, given):
    at = settled._replace(step=jnp.int32(made.num_steps), batches_seen=i)
    batch = gradients.take_batch(made, split.units, at, data, given, rows)
    draws = gradients.draw(made, at, batch, rows)
    path = gaussian.bind(made.diffusion, params.schedule)
    marginal = path.marginal(draws.t)
    z = gaussian.diffuse(batch.x, draws.eps, marginal)
    inputs, level = made.diffusion.parameterization.encode(z, marginal)
    return made.model.apply(
      {'params': params.network, **settled.statistics}, inputs, level,
      Conditioning(batch.condition, batch.augment_label), update_statistics=True, statistics_decay=0.0,
    )[1]  # fmt: skip

  count = range(STATISTICS_BATCHES)
  each = [tiny.leaves(of_batch(jnp.int32(i), tiny.rows_of(made, split, i))) for i in count]
  own = tiny.leaves(settled.evaluation_statistics)
  for name, value in own.items():
    np.testing.assert_allclose(value, np.mean([one[name] for one in each], 0), rtol=1e-4, atol=1e-5)
  assert max(np.abs(each[0][name] - each[-1][name]).max() for name in own) > 1e-2


def test_a_sample_does_not_depend_on_the_ones_drawn_with_it():
  made = experiment()
  split, state, _ = tiny.start(made)
  program = tiny.single(made, split, state)
  program.recompute_statistics(0)
  given = weights(made, program.get(0))
  sample = draw.make_sample(made.model, made.diffusion, made.sampling, (8,))
  labels, number = np.array([0, 1, 0, 1, 1], np.int32), np.arange(5)
  together = sample(given, labels, number)
  alone = sample(given, labels[3:4], number[3:4])
  np.testing.assert_allclose(alone[0], together[3], atol=1e-6)


def test_without_statistics_settling_is_nothing_at_all():
  made = tiny.experiment()
  split, state, _ = tiny.start(made)
  program, replicated = SingleRun(made, split), devices.replicate(state)
  program.put(0, replicated)
  program.recompute_statistics(0)
  assert program.get(0) is replicated


def test_one_row_a_device_or_micro_batch_is_refused():
  with pytest.raises(ValueError, match='batch normalization needs at least 2 rows .* got 1'):
    tiny.start(experiment(batch_size=4))
  with pytest.raises(ValueError, match='batch normalization needs at least 2 rows .* got 1'):
    tiny.start(experiment(batch_size=32, micro_batches=8))
  for few in ({'batch_size': 8}, {'batch_size': 16, 'micro_batches': 2}):  # 2 are enough
    states.check_state(experiment(**few), tiny.shapes(experiment(**few))[1])
