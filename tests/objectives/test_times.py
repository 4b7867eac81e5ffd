"""Draws of t: the same for any number of devices, uniform, unbiased, and stratified where promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion.objectives import times
from diffusion.types import Rows

ALL = {'uniform': times.uniform, 'stratified': times.stratified}


def many(name, rows, draws, seed=0):
  """[draws, rows] times, one batch a key."""
  sampler = ALL[name]()
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(draws))
  whole = Rows(jnp.arange(rows), rows)
  draw = jax.jit(jax.vmap(lambda key: sampler.draw((), key, whole, 0.0, None)))
  t, importance = draw(keys)
  np.testing.assert_array_equal(importance, np.ones((draws, rows)))
  return np.asarray(t, np.float64)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('parts', [2, 4])
def test_rows_draw_the_same_t_wherever_they_are_held(name, parts):
  sampler, key = ALL[name](), jax.random.key(3)
  whole, _ = sampler.draw(sampler.init(), key, Rows(jnp.arange(24), 24), 0.0, None)
  pieces = [
    sampler.draw(sampler.init(), key, Rows(index, 24), 0.0, None)[0]
    for index in jnp.split(jnp.arange(24), parts)
  ]
  np.testing.assert_array_equal(np.concatenate(pieces), whole)
  backwards, _ = sampler.draw(sampler.init(), key, Rows(jnp.arange(24)[::-1], 24), 0.0, None)
  np.testing.assert_array_equal(backwards[::-1], whole)


@pytest.mark.parametrize('name', ALL)
def test_t_is_a_function_of_the_key(name):
  sampler, rows = ALL[name](), Rows(jnp.arange(8), 8)
  first, again, other = (
    np.asarray(sampler.draw((), jax.random.key(seed), rows, 0.0, None)[0]) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).all()


@pytest.mark.parametrize('name', ALL)
def test_every_row_is_uniform_on_the_unit_interval(name):
  t = many(name, 8, 4000)
  assert (t >= 0).all()
  assert (t < 1).all()
  for row in range(8):
    # Fixed seed: with uniform margins the smallest of eight p-values is below 1e-3 in 0.8 % of seeds.
    assert stats.kstest(t[:, row], 'uniform').pvalue > 1e-3


@pytest.mark.parametrize('rows', [4, 16, 12, 100])
def test_stratified_puts_one_t_in_every_stratum(rows):
  t = np.sort(many('stratified', rows, 200), axis=1)
  # Evenly spaced around the circle: each of the B intervals of length 1 / B holds exactly one, wherever they start.
  gaps = np.diff(np.concatenate([t, t[:, :1] + 1], axis=1), axis=1)
  np.testing.assert_allclose(gaps, 1 / rows, atol=3e-7)
  inside = (t * rows) % 1
  clear = ((inside > 1e-3) & (inside < 1 - 1e-3)).all(1)  # of a rounding across an edge
  assert clear.mean() > 0.9
  assert (np.floor(t[clear] * rows) == np.arange(rows)).all()


@pytest.mark.parametrize('name', ALL)
def test_batch_mean_of_a_function_of_t_is_unbiased(name):
  means = np.exp(many(name, 16, 4000)).mean(1)
  error = means.std() / np.sqrt(4000)
  assert abs(means.mean() - (np.e - 1)) < 4 * error


def test_stratified_means_vary_less_than_uniform_ones():
  uniform, stratified = (np.exp(many(name, 16, 2000)).mean(1).var() for name in ALL)
  # Var exp(t) / 16 for independent rows; a systematic sample of 16 has about 1 / 16 of that left.
  np.testing.assert_allclose(uniform, ((np.e**2 - 1) / 2 - (np.e - 1) ** 2) / 16, rtol=0.15)
  assert stratified < uniform / 10


def test_uniform_rows_are_independent():
  t = many('uniform', 8, 4000)
  correlation = np.corrcoef(t.T)
  assert np.abs(correlation - np.eye(8)).max() < 5 / np.sqrt(4000)
  # Not only uncorrelated: the difference of two rows is uniform around the circle.
  assert stats.kstest((t[:, 1] - t[:, 0]) % 1, 'uniform').pvalue > 1e-3


@pytest.mark.parametrize('name', ALL)
def test_update_keeps_the_empty_state(name):
  sampler = ALL[name]()
  assert sampler.init() == ()
  assert sampler.update((), jnp.zeros(3), jnp.ones(3), lambda tree: tree) == ()
