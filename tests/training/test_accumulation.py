"""Gradient accumulation is one batch to rounding, and the noise scale is McCandlish's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.models import mlp, normalization
from diffusion.training import experiment as experiments
from diffusion.training import gradient as gradients
from diffusion.types import Rows
from tests.training import tiny


def run(made, count=4):
  split, state, data = tiny.start(made)
  state = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state)
  step = tiny.one_device(made, split)
  for _ in range(count):
    state, metrics = step(state, data)
  return tiny.leaves(state), metrics


@pytest.mark.parametrize('parts', [2, 8])
def test_micro_batches_are_one_batch_to_rounding(parts, x64):
  """Dropout, label dropout, clipping, decay and the average on."""
  whole, _ = run(tiny.experiment())
  found, _ = run(tiny.experiment(micro_batches=parts))
  for name, value in whole.items():
    np.testing.assert_allclose(found[name], value, atol=1e-10, err_msg=name)


def test_batch_statistics_follow_every_micro_batch_one_after_another():
  made = tiny.experiment(
    model=mlp.mlp(16, 2, num_classes=2, norm=normalization.batch(0.9)), micro_batches=2
  )
  split, state, data = tiny.start(made)
  rows = Rows(jnp.arange(32), 32)

  @jax.jit
  def statistics(given):
    batch = gradients.take_batch(made, split.units, state, data, given, rows)
    draws = gradients.draw(made, state, batch, rows)
    found, _ = gradients.accumulated(made, state, batch, draws, lambda tree: tree)
    after = state
    for part in (slice(16), slice(16, 32)):
      cut = jax.tree.map(lambda leaf, part=part: leaf[part], (batch, draws))
      after = after._replace(
        statistics=gradients.whole(made, after, *cut, lambda tree: tree).statistics
      )
    return found.statistics, after.statistics

  found, wanted = map(tiny.leaves, statistics(tiny.rows_of(made, split, 0)))
  begun = tiny.leaves(state.statistics)
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.abs(value - begun[name]).max() > 1e-3


def test_the_noise_scale_is_unbiased_for_known_gradients():
  """Gradients g_i = G + noise of variance v a dimension: E[square] = |G|^2 and E[variance] = d v."""
  rng = np.random.default_rng(0)
  d, rows, parts, repeats = 50, 64, 4, 4000
  mean = rng.normal(size=d)
  g = mean + 3.0 * rng.normal(size=(repeats, parts, d)) / np.sqrt(rows / parts)  # of the parts
  small, large = (g**2).sum(2).mean(1), (g.mean(1) ** 2).sum(1)
  found = gradients.noise_estimates(small, large, rows, parts)
  square, variance = found['gradient_square'], found['gradient_variance']
  assert abs(square.mean() - (mean**2).sum()) < 5 * square.std() / np.sqrt(repeats)
  assert abs(variance.mean() - 9 * d) < 5 * variance.std() / np.sqrt(repeats)


def test_the_noise_scale_is_logged_and_the_same_on_four_devices(x64):
  made = tiny.experiment(micro_batches=2, gradient_noise=True, log_every=5)
  _, metrics = run(made, 5)
  ratio = metrics['gradient_variance'] / metrics['gradient_square']
  np.testing.assert_allclose(metrics['noise_scale'], ratio, rtol=1e-6)
  assert metrics['gradient_variance'] > 0
  split, state, _ = tiny.start(made)
  state = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state)
  program = tiny.single(made, split, state)
  for _ in range(5):
    other = tiny.dispatch(program)
  # On four devices a part holds other rows, so its estimate is another one of the same quantity.
  ratio = float(other['gradient_variance'] / metrics['gradient_variance'])
  assert 0.5 < ratio < 2


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match='micro_batches must divide the 8 rows of a device, got 3'):
    experiments.check(tiny.experiment(micro_batches=3))
  with pytest.raises(ValueError, match='micro_batches must be an integer >= 1, got 0'):
    experiments.check(tiny.experiment(micro_batches=0))
  with pytest.raises(ValueError, match='gradient_noise compares parts .* got 1'):
    experiments.check(tiny.experiment(gradient_noise=True))
