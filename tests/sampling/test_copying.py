"""Which exact denoiser copies: that of the training set does, that of the distribution does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng, statistics
from diffusion.evaluation import memorization
from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules
from diffusion.sampling import grids, samplers

DIMENSION, COUNT = 8, 2000
GIVEN = analytic.mixture(np.full(2, 0.5), np.stack([np.ones(8), -np.ones(8)]), np.ones(2))


def keys(seed, count=COUNT):
  return rng.row_keys(jax.random.key(seed), jnp.arange(count))


def copied(samples, train):
  _, ratio = memorization.ratios(np.asarray(samples), np.asarray(train))
  return statistics.wilson(int((ratio < 1 / 3).sum()), len(ratio))


@pytest.mark.parametrize('n', [64, 256, 1024])
def test_the_empirical_denoiser_copies_and_the_exact_one_does_not(n):
  diffusion = gaussian.Diffusion(
    schedules.cosine(), marginals.variance_preserving, parameterizations.v()
  )
  path = gaussian.bind(diffusion, ())
  train = analytic.draw(GIVEN, keys(0, n))
  grid = grids.uniform_log_snr(path, 100, -10.0, 12.0)

  def sampled(denoise):
    run = lambda k: samplers.sample(denoise, path, samplers.ancestral(path), grid, k, (DIMENSION,))  # noqa: E731
    return jax.jit(run)(keys(1))

  memorized = copied(sampled(analytic.empirical(path, train)), train)
  exact = copied(
    sampled(analytic.gaussian_mixture(path, np.full(2, 0.5), GIVEN.means, np.ones(2))), train
  )
  fresh = copied(analytic.draw(GIVEN, keys(2)), train)
  print(f'n = {n}: empirical {memorized}, exact {exact}, fresh draws {fresh}')
  assert memorized.estimate >= 0.999
  assert exact.low <= fresh.high
