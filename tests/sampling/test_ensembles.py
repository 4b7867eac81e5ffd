"""Ensembles and Monte-Carlo dropout: the mean of the members exactly, and what they disagree about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.sampling import ensembles
from diffusion.types import Prediction

Z = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
T = jnp.full(5, 0.5)


def member(seed):
  w = jnp.asarray(np.random.default_rng(seed).normal(size=(3, 3)))
  return lambda z, t, key=None: Prediction(z @ w, z @ w.T + 1)


def test_the_mean_is_that_of_the_members_exactly():
  members = [member(i) for i in range(4)]
  found = ensembles.mean(members)(Z, T)
  for half in ('x0', 'eps'):
    expected = np.mean([np.asarray(getattr(m(Z, T), half)) for m in members], axis=0)
    np.testing.assert_array_equal(getattr(found, half), expected)
  alone = ensembles.mean(members[:1])(Z, T)
  np.testing.assert_array_equal(alone.x0, members[0](Z, T).x0)


def test_mean_loss_is_the_ensembles_loss_plus_the_disagreement(x64):
  members = [member(i) for i in range(4)]
  eps = np.random.default_rng(9).normal(size=(5, 3))
  losses = np.mean([((m(Z, T).eps - eps) ** 2).mean(1) for m in members], axis=0)
  ensemble = ((ensembles.mean(members)(Z, T).eps - eps) ** 2).mean(1)
  gap = ensembles.disagreement(members, Z, T)
  np.testing.assert_allclose(losses, ensemble + gap, rtol=1e-12)
  assert (gap > 0).all()
  np.testing.assert_allclose(ensembles.disagreement([members[0]] * 3, Z, T), 0, atol=1e-25)
  pixels = [
    lambda z, t, key, m=m: Prediction(*(p.reshape(z.shape) for p in m(z.reshape(5, 3), t)))
    for m in members
  ]  # as of a row of them
  found = ensembles.disagreement(pixels, Z.reshape(5, 3, 1), T)
  np.testing.assert_allclose(found, gap, rtol=1e-12)


def test_a_disagreement_far_below_the_mean_is_not_lost_in_float32():
  eps = 1 + 1e-3 * np.random.default_rng(0).normal(size=(4, *Z.shape)).astype(np.float32)
  members = [lambda z, t, key, one=one: Prediction(z, one) for one in jnp.asarray(eps)]
  found = np.sqrt(ensembles.disagreement(members, Z, T))
  assert found.dtype == np.float32
  # The root, a norm of the deviations, is off by no more than their mean is: a rounding for each member.
  bound = len(eps) * np.finfo(np.float32).eps * np.abs(eps).max()
  expected = np.sqrt(np.var(eps, axis=0, dtype=np.float64).mean(1))
  np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_bad_numbers_of_members_are_refused():
  with pytest.raises(ValueError, match='at least one member'):
    ensembles.mean([])
  with pytest.raises(ValueError, match='members must be an integer >= 2, got 1'):
    ensembles.disagreement([member(0)], Z, T)


def dropped(z, t, key=None):
  """The identity with half of its entries dropped by the row's key."""
  keep = jax.vmap(lambda k: jax.random.bernoulli(k, 0.5, z.shape[1:]))(key)
  return Prediction(jnp.where(keep, 2 * z, 0), z)


def test_monte_carlo_dropout_varies_by_key_keeps_its_mask_and_averages():
  keys = rng.row_keys(jax.random.key(0), jnp.arange(400))
  z, t = jnp.ones((400, 30)), jnp.full(400, 0.5)
  one = ensembles.monte_carlo(dropped, keys, 1)
  first = np.asarray(one(z, t).x0)
  np.testing.assert_array_equal(first, one(z, t / 2).x0)  # one network for the whole walk
  assert len(np.unique(first, axis=0)) == 400
  for draws in (1, 4):
    found = np.asarray(ensembles.monte_carlo(dropped, keys, draws)(z, t).x0)
    np.testing.assert_allclose(found.mean(), 1.0, atol=0.05)
    np.testing.assert_allclose(found.var(), 1 / draws, rtol=0.1)
  assert ensembles.monte_carlo(dropped, keys, 0) is dropped
  np.testing.assert_array_equal(
    ensembles.mean([dropped] * 2)(z, t, keys).x0, dropped(z, t, keys).x0
  )
  with pytest.raises(ValueError, match='monte_carlo must be an integer >= 0, got -1'):
    ensembles.monte_carlo(dropped, keys, -1)
