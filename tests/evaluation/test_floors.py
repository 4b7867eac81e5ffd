"""The floors of the loss: no network is below them, and the excess over each is a distance of denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.evaluation import gap
from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules
from tests.compiled import optimized

DIMENSION, TRAIN = 8, 128
WEIGHTS, MEANS, SCALES = np.full(2, 0.5), np.stack([np.ones(8), -np.ones(8)]), np.ones(2)
BANK = gap.evaluation_noise(high=6.0, low=-6.0, levels=5, draws=64)


def setting():
  """The path, an arbitrary network as a denoiser, and the two exact ones; training and fresh examples."""
  diffusion = gaussian.Diffusion(
    schedules.cosine(), marginals.variance_preserving, parameterizations.v()
  )
  path = gaussian.bind(diffusion, ())
  first, second = (
    jnp.asarray(a) for a in np.random.default_rng(0).normal(size=(2, DIMENSION, DIMENSION)) / 3
  )

  def arbitrary(z, t, key=None):
    v = jnp.tanh(z @ first + t[:, None]) @ second
    return parameterizations.v().decode(v, z, path.marginal(t))

  exact = analytic.gaussian_mixture(path, WEIGHTS, MEANS, SCALES)
  given = analytic.mixture(WEIGHTS, MEANS, SCALES)
  train, fresh = (
    analytic.draw(given, rng.row_keys(jax.random.key(seed), jnp.arange(count)))
    for seed, count in ((1, TRAIN), (2, 4096))
  )
  return path, arbitrary, analytic.empirical(path, train), exact, train, fresh


def distances(path, one, other, x, keys):
  """E |eps of one - eps of other|^2 / d on its own draws [n, L]."""

  times = path.time(jnp.asarray(BANK.log_snr))

  def at(i):
    eps = rng.normal(jax.vmap(jax.random.fold_in, (0, None))(keys, i), x.shape[1:])
    t = jnp.full(len(x), times[i // BANK.draws])
    z = gaussian.diffuse(x, eps, path.marginal(t))
    return ((one(z, t).eps - other(z, t).eps) ** 2).mean(1)

  values = jax.lax.map(at, jnp.arange(len(BANK.log_snr) * BANK.draws))
  return values.reshape(len(BANK.log_snr), BANK.draws, -1).mean(1).T


@pytest.mark.parametrize('split', ['train', 'test'])
def test_the_excess_over_the_floor_is_the_distance_to_its_denoiser(split, x64):
  """L_train - L_emp = E|D - D_emp|^2 over the training set; L_test - L* = E|D - D*|^2 over the distribution."""
  path, arbitrary, empirical, exact, train, fresh = setting()
  floor, x = (empirical, train) if split == 'train' else (exact, fresh)
  keys = rng.row_keys(jax.random.key(7), jnp.arange(len(x)))
  loss = optimized(gap.denoiser_losses, static_argnums=(0, 1, 4))
  excess = np.asarray(loss(arbitrary, path, x, keys, BANK) - loss(floor, path, x, keys, BANK))
  distance = np.asarray(optimized(lambda x, k: distances(path, arbitrary, floor, x, k))(x, keys))
  rest = (
    excess - distance
  )  # twice the covariance of the difference and the floor's error: zero in the mean
  error = rest.std(0) / np.sqrt(len(rest))
  for level, mean, size, e in zip(BANK.log_snr, rest.mean(0), distance.mean(0), error, strict=True):
    print(
      f'{split}, log-SNR {level:g}: excess minus distance {mean:.2e} +- {e:.1e}, distance {size:.3g}'
    )
  assert (np.abs(rest.mean(0)) < 4.5 * error + 1e-12).all()
  assert (distance.mean(0) > 5 * error).all()  # sharp enough to refute


def test_each_denoiser_is_the_best_on_its_own_ground(x64):
  path, arbitrary, empirical, exact, train, fresh = setting()

  def loss(denoise, x):
    keys = rng.row_keys(jax.random.key(7), jnp.arange(len(x)))
    run = optimized(lambda x, k: gap.denoiser_losses(denoise, path, x, k, BANK))
    return np.asarray(run(x, keys)).mean(0)

  assert (loss(empirical, train) < loss(exact, train)).all()
  assert (loss(exact, fresh) < loss(empirical, fresh)).all()
  assert (loss(exact, fresh) < loss(arbitrary, fresh)).all()
