"""Dropout: its expectation, its rate, whose key decides, and when it is not there at all."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.models import dropout
from diffusion.models.dropout import Dropout

SHAPE = (7, 5)
# Of each place one that draws nothing, by which a network can be written out with them.
PLAIN = (
  dropout.Drop('input', lambda key, x, depth: 2 * x),
  dropout.Drop('units', lambda key, x, depth: x + 1),
  dropout.Drop('branch', lambda key, x, depth: (1 + depth) * x),
)


def row_keys(count, seed=0):
  return rng.row_keys(jax.random.key(seed), jnp.arange(count))


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


IMAGE = (6, 8, 3)
FAMILY = {
  'elements': dropout.elements,
  'at_input': dropout.at_input,
  'spatial': dropout.spatial,
  'stochastic_depth': dropout.stochastic_depth,
  'drop_connect': dropout.drop_connect,
}


def thinned(one, x, rows, depth=1.0):
  """`rows` independent results of one drop on the same x: [rows, ...]."""
  keys = jax.random.split(jax.random.key(1), rows)
  return np.asarray(jax.jit(jax.vmap(lambda key: one.act(key, x, depth)))(keys), np.float64)


@pytest.mark.parametrize('name', FAMILY)
@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_every_member_keeps_the_mean_and_drops_its_share(name, rate):
  x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, size=IMAGE), jnp.float32)
  y = thinned(FAMILY[name](rate), x, 4000)
  error = np.asarray(x) * np.sqrt(rate / (1 - rate) / 4000)
  assert (np.abs(y.mean(0) - np.asarray(x)) < 5 * error).all()
  np.testing.assert_allclose((y == 0).mean(), rate, atol=5 * np.sqrt(rate * (1 - rate) / 4000))


def test_spatial_dropout_drops_whole_channels_and_stochastic_depth_whole_rows():
  x = jnp.ones(IMAGE)
  channels = (thinned(dropout.spatial(0.5), x, 300) == 0).reshape(300, -1, 3)
  assert (channels.all(1) | ~channels.any(1)).all()
  assert {tuple(row) for row in channels.all(1)} == {
    (a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)
  }
  rows = (thinned(dropout.stochastic_depth(0.5), x, 300) == 0).reshape(300, -1)
  assert (rows.all(1) | ~rows.any(1)).all()
  assert 0.3 < rows.all(1).mean() < 0.7


def test_stochastic_depth_grows_with_depth():
  x = jnp.ones((1,))
  for depth in (0.25, 0.5, 1.0):
    y = thinned(dropout.stochastic_depth(0.4), x, 20_000, depth)
    np.testing.assert_allclose((y == 0).mean(), 0.4 * depth, atol=0.015)
    np.testing.assert_allclose(y.max(), 1 / (1 - 0.4 * depth), rtol=1e-6)


@pytest.mark.parametrize('size', [1, 3, 5])
def test_drop_block_drops_squares_of_about_the_share_and_keeps_the_sum(size):
  shape, rate = (16, 12, 2), 0.2
  y = thinned(dropout.drop_block(rate, size), jnp.ones(shape), 2000)
  # Squares overlap, so a little less than the rate goes: 1 - (1 - gamma)^(size^2) in the middle.
  gamma = rate * 192 / (size**2 * (17 - size) * (13 - size))
  middle = (y[:, 7:9, 5:7] == 0).mean()
  np.testing.assert_allclose(middle, 1 - (1 - gamma) ** (size**2), atol=0.015)
  np.testing.assert_allclose(y.sum((1, 2, 3)), np.prod(shape), rtol=1e-5)
  # Every zero lies in a square of zeros of this side.
  zero = y == 0
  inside = np.zeros_like(zero)
  for i in range(17 - size):
    for j in range(13 - size):
      block = zero[:, i : i + size, j : j + size].all((1, 2), keepdims=True)
      inside[:, i : i + size, j : j + size] |= block
  assert (inside == zero).all()
  # A pixel that one channel lost, another one lost by chance alone.
  first, second = zero[:, 7:9, 5:7, 0], zero[:, 7:9, 5:7, 1]
  np.testing.assert_allclose((first & second).mean(), middle**2, atol=0.015)


def test_drop_block_wants_images_and_fits_small_ones():
  assert thinned(dropout.drop_block(0.3, 7), jnp.ones((2, 2, 1)), 50).shape == (50, 2, 2, 1)
  lost = thinned(dropout.drop_block(0.5, 7), jnp.ones((2, 5, 1)), 50) == 0
  columns = lost.all((1, 3))  # squares of the shorter side
  assert (2 * columns.sum(1) == lost.sum((1, 2, 3))).all()
  assert 0 < columns.mean() < 1
  # In bfloat16 as well, rounded once.
  thin = dropout.drop_block(0.1, 2).act
  found = np.asarray(thin(jax.random.key(0), jnp.ones((20, 20, 2), jnp.bfloat16), 1.0))
  kept = found != 0
  assert 600 < kept.sum() < 800
  assert found.dtype == jnp.bfloat16
  assert (found[kept] == np.float32(800 / kept.sum()).astype(jnp.bfloat16)).all()
  tall = dropout.drop_block(0.5, 7).act
  jax.eval_shape(lambda x: tall(jax.random.key(0), x, 1.0), jnp.ones((5, 2, 1)))
  with pytest.raises(ValueError, match=r'DropBlock needs images .* \(5,\)'):
    thinned(dropout.drop_block(0.3), jnp.ones(5), 2)


def test_drop_connect_thins_kernels_alone_and_wants_one_key_for_all_rows():
  params = {
    'a': {'kernel': jnp.ones((300, 20)), 'bias': jnp.ones(20)}, 'b': {'scale': jnp.ones(9)},
    'c': {'kernel': jnp.ones((300, 20))},
  }  # fmt: skip
  drops = [dropout.drop_connect(0.3), dropout.spatial(0.9)]
  found = dropout.drop_kernels(drops, params, jax.random.key(0))
  np.testing.assert_array_equal(found['a']['bias'], 1)
  np.testing.assert_array_equal(found['b']['scale'], 1)
  kernel = np.asarray(found['a']['kernel'])
  np.testing.assert_allclose((kernel == 0).mean(), 0.3, atol=0.03)
  np.testing.assert_allclose(kernel.max(), 1 / 0.7, rtol=1e-6)
  both = (kernel == 0) & (np.asarray(found['c']['kernel']) == 0)  # by draws of their own
  np.testing.assert_allclose(both.mean(), 0.09, atol=0.02)
  # Another key thins others, and a second drop other ones than the first.
  other = np.asarray(dropout.drop_kernels(drops, params, jax.random.key(1))['a']['kernel'])
  np.testing.assert_allclose(((kernel == 0) & (other == 0)).mean(), 0.09, atol=0.02)
  twice = dropout.drop_kernels([dropout.drop_connect(0.3)] * 2, params, jax.random.key(0))
  np.testing.assert_allclose((twice['a']['kernel'] == 0).mean(), 0.51, atol=0.03)
  off = dropout.drop_kernels([dropout.drop_connect(0.0)], params, None)
  assert off is params
  with pytest.raises(ValueError, match='needs batch_key'):
    dropout.drop_kernels(drops, params, None)


@pytest.mark.parametrize('place', dropout.PLACES)
def test_a_layer_applies_the_drops_of_its_place_and_off_leaves_no_code(place):
  made = [
    dropout.elements(0.5), dropout.stochastic_depth(0.5), dropout.at_input(0.5), dropout.drop_connect(0.5)
  ]  # fmt: skip
  keys, x = row_keys(50), jnp.ones((50, 40))
  alone = [one for one in made if one.place == place]
  layer = Dropout(tuple(made), place)
  np.testing.assert_array_equal(
    layer.apply({}, x, keys), Dropout(tuple(alone), place).apply({}, x, keys)
  )
  off = (
    dropout.elements(0),
    dropout.stochastic_depth(0.0),
    dropout.at_input(0),
    dropout.spatial(0),
  )
  program = jax.make_jaxpr(lambda x, keys: Dropout(off, place).apply({}, x, keys))(x, keys)
  assert program.eqns == []


def test_two_drops_of_one_place_draw_independently():
  keys, x = row_keys(400), jnp.ones((400, 30))
  pair = Dropout((dropout.elements(0.5), dropout.elements(0.5))).apply({}, x, keys)
  np.testing.assert_allclose((np.asarray(pair) == 0).mean(), 0.75, atol=0.02)


@pytest.mark.parametrize('name', [*FAMILY, 'drop_block'])
def test_the_family_refuses_rates_out_of_range(name):
  for rate in (1.0, -0.1):
    with pytest.raises(ValueError, match=f'got {rate}'):
      getattr(dropout, name)(rate)


@pytest.mark.parametrize('traced', [False, True])
def test_what_is_kept_in_bfloat16_is_scaled_by_the_rate_and_not_by_the_rounded_one(traced):
  x = jnp.linspace(1, 2, 129, dtype=jnp.bfloat16)
  key, rate = jax.random.key(0), jnp.float32(0.1) if traced else 0.1
  act = lambda r: dropout.elements(r).act(key, x, 1.0)  # noqa: E731
  found = jax.jit(act)(rate) if traced else act(rate)
  assert found.dtype == jnp.bfloat16
  right = (x.astype(jnp.float32) / jnp.float32(0.9)).astype(jnp.bfloat16)
  rounded = x / jnp.bfloat16(0.9)
  kept = np.asarray(found) != 0
  np.testing.assert_array_equal(found[kept], right[kept])
  assert (np.asarray(right) != np.asarray(rounded))[kept].any()
