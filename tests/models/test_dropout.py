"""Dropout: its expectation, its rate, whose key decides, and when it is not there at all."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import streams
from diffusion.models import dropout
from diffusion.models.dropout import Dropout

SHAPE = (7, 5)


def row_keys(count, seed=0):
  return streams.row_keys(jax.random.key(seed), jnp.arange(count))


def elements(rate):
  return Dropout((dropout.elements(rate),))


def drop(rate, x, keys):
  if keys is None:
    return elements(rate).apply({}, x, None)
  return jax.jit(lambda x, keys: elements(rate).apply({}, x, keys))(x, keys)


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_the_fraction_dropped_is_the_rate_and_the_expectation_is_the_input(rate):
  rows = 4000
  x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, size=SHAPE), jnp.float32)
  y = np.asarray(drop(rate, jnp.broadcast_to(x, (rows, *SHAPE)), row_keys(rows)), np.float64)
  zeros = y == 0
  deviation = np.sqrt(rate * (1 - rate))
  assert abs(zeros.mean() - rate) < 4.5 * deviation / np.sqrt(y.size)
  # Each entry by itself: E y = x, and Var y = x^2 rate / (1 - rate).
  error = np.asarray(x) * np.sqrt(rate / (1 - rate) / rows)
  assert (np.abs(y.mean(0) - np.asarray(x)) < 5 * error).all()
  # What is kept is scaled, neither clipped nor rounded to something else.
  np.testing.assert_allclose(y[~zeros], np.broadcast_to(x, y.shape)[~zeros] / (1 - rate), rtol=1e-6)


def test_entries_of_a_row_are_dropped_independently():
  zeros = np.asarray(drop(0.5, jnp.ones((4000, 6)), row_keys(4000))) == 0
  correlation = np.corrcoef(zeros.T)
  assert np.abs(correlation - np.eye(6)).max() < 5 / np.sqrt(4000)


@pytest.mark.parametrize('rate, keyed', [(0.0, True), (0, True), (0.0, False), (0.5, False)])
def test_evaluation_and_rate_zero_are_the_identity_without_a_random_operation(rate, keyed):
  keys = row_keys(3) if keyed else None
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32)
  np.testing.assert_array_equal(drop(rate, x, keys), x)

  def program(rate, keys):
    return jax.make_jaxpr(lambda x, keys: elements(rate).apply({}, x, keys))(x, keys)

  assert program(rate, keys).eqns == []
  assert 'random_bits' in str(program(0.5, row_keys(3)))


def test_a_row_is_dropped_by_its_key_alone():
  x, keys = jnp.ones((6, *SHAPE)), row_keys(6)
  drop_most = jax.jit(lambda keys: drop(0.4, x[: len(keys)], keys))
  y = np.asarray(drop_most(keys))
  assert len(np.unique(y.reshape(6, -1), axis=0)) == 6
  order = np.array([3, 0, 5, 1, 4, 2])
  np.testing.assert_array_equal(drop_most(keys[order]), y[order])
  np.testing.assert_array_equal(drop_most(keys[4:]), y[4:])


class TwoLayers(nn.Module):
  """Two dropouts of the same row keys, one of them nested."""

  @nn.compact
  def __call__(self, x, keys):
    return elements(0.5)(x, keys), Inner(name='inner')(x, keys)


class Inner(nn.Module):
  @nn.compact
  def __call__(self, x, keys):
    return elements(0.5)(x, keys)


def test_two_layers_drop_independently():
  first, second = (
    np.asarray(y) == 0 for y in TwoLayers().apply({}, jnp.ones((500, 20)), row_keys(500))
  )
  # Independent halves agree on half of the entries.
  assert abs((first == second).mean() - 0.5) < 5 * 0.5 / np.sqrt(first.size)


def test_a_traced_rate_is_the_same_number_and_may_vary_over_a_population():
  x, keys = jnp.ones((50, 40)), row_keys(50)
  rates = [0.0, 0.2, 0.7]
  together = np.asarray(jax.jit(jax.vmap(lambda rate: drop(rate, x, keys)))(jnp.array(rates)))
  for row, rate in enumerate(rates):
    np.testing.assert_allclose(together[row], drop(rate, x, keys), rtol=1e-6)
  fraction = (together == 0).mean((1, 2))
  np.testing.assert_allclose(fraction, rates, atol=5 * 0.5 / np.sqrt(2000))


@pytest.mark.parametrize('rate', [1.2, 1.0, -0.1, float('nan')])
@pytest.mark.parametrize('keyed', [True, False])
def test_a_rate_out_of_range_is_an_error_with_its_value(rate, keyed):
  with pytest.raises(ValueError, match=f'dropout .* got {rate}'):
    drop(rate, jnp.ones((2, 3)), row_keys(2) if keyed else None)
