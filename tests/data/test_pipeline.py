"""Batches as a function of integers: every epoch is a permutation, wherever it is cut, on however many devices."""

import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import streams
from diffusion.data import pipeline
from diffusion.types import Rows


@functools.partial(jax.jit, static_argnums=2)
def permutation(key, positions, size):
  return jax.vmap(lambda p: pipeline.permute(key, p, size))(positions)


class TracedSize:
  """A size that is a tracer, but whose bit length is known: one program for all sizes of a bit length."""

  def __init__(self, value, bits):
    self.value, self.largest = value, 2**bits - 1

  def __sub__(self, one):
    assert one == 1
    return self.largest

  def __jax_array__(self):
    return self.value


@functools.partial(jax.jit, static_argnums=(1, 2))
def permutations(key, sizes, bits):
  """[len(sizes), 2^bits]: row i is the permutation of range(sizes[i]) and then repeats itself."""

  def one(size):
    positions = jnp.arange(2**bits, dtype=jnp.uint32) % size
    return jax.vmap(lambda p: pipeline.permute(key, p, TracedSize(size, bits)))(positions)

  return jax.vmap(one)(jnp.array(sizes, jnp.uint32))


def bit_lengths(last):
  """(sizes, bits) for all sizes 1 ... last: those whose largest element has so many bits."""
  sizes = {}
  for size in range(1, last + 1):
    sizes.setdefault((size - 1).bit_length(), []).append(size)
  return [(tuple(values), bits) for bits, values in sizes.items()]


@pytest.mark.parametrize('seed', [0, 1])
def test_permute_is_a_bijection_for_every_size(seed):
  seen = 0
  for sizes, bits in bit_lengths(300):
    rows = np.asarray(permutations(jax.random.key(seed), sizes, bits))
    for size, row in zip(sizes, rows, strict=True):
      assert sorted(row[:size]) == list(range(size))
      seen += 1
  assert seen == 300


@pytest.mark.parametrize('size', [1, 2, 77, 128, 129])
def test_traced_size_is_the_plain_call(size):
  key, bits = jax.random.key(3), (size - 1).bit_length()
  plain = permutation(key, jnp.arange(size), size)
  np.testing.assert_array_equal(plain, permutations(key, (size,), bits)[0, :size])


@pytest.mark.parametrize('size', [60_000, 2**16, 2**16 + 1])
def test_permute_large(size):
  one, other = (np.asarray(permutation(jax.random.key(k), jnp.arange(size), size)) for k in (0, 1))
  assert one.dtype == np.int32
  for order in (one, other):
    assert (np.bincount(order, minlength=size) == 1).all()
  # A random permutation has one fixed point on average, and two agree in one place on average (Poisson).
  assert (one == np.arange(size)).sum() < 10
  assert (one == other).sum() < 10
  # No trace of the order that went in: rank correlation has standard deviation 1 / sqrt(n - 1).
  assert abs(stats.spearmanr(one, np.arange(size)).statistic) < 5 / math.sqrt(size)
  assert abs(stats.spearmanr(one[1:], one[:-1]).statistic) < 5 / math.sqrt(size)


def chi_square_is_plausible(counts, expected, freedom):
  value = ((counts - expected) ** 2 / expected).sum()
  assert stats.chi2.ppf(1e-4, freedom) < value < stats.chi2.ppf(1 - 1e-4, freedom)


@pytest.mark.parametrize('size', [2, 5, 6, 12, 33])
def test_permute_is_uniform_over_keys(size):
  draws = 10_000
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(draws))
  orders = np.asarray(
    jax.jit(jax.vmap(lambda k: jax.vmap(lambda p: pipeline.permute(k, p, size))(jnp.arange(size))))(
      keys
    )
  )
  places = np.zeros((size, size))
  np.add.at(places, (np.broadcast_to(np.arange(size), orders.shape), orders), 1)
  # Rows and columns of the table have fixed sums: (size - 1)^2 degrees of freedom, and the statistic of a uniform
  # permutation is a factor size / (size - 1) larger than that of independent cells with those margins.
  statistic = ((places - draws / size) ** 2 / (draws / size)).sum() * (size - 1) / size
  low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], (size - 1) ** 2)
  assert low < statistic < high
  pairs = np.zeros((size, size))  # where the first two elements go, together
  np.add.at(pairs, (orders[:, 0], orders[:, 1]), 1)
  apart = pairs[~np.eye(size, dtype=bool)]
  assert np.trace(pairs) == 0
  chi_square_is_plausible(apart, draws / apart.size, max(1, apart.size - 1))


def test_permute_gives_all_orders_of_three():
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(11), jnp.arange(3000))
  orders = jax.jit(
    jax.vmap(lambda k: jax.vmap(lambda p: pipeline.permute(k, p, 3))(jnp.arange(3)))
  )(keys)
  _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
  assert counts.size == math.factorial(3)
  chi_square_is_plausible(counts, 500, 5)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _draw(seed, salt, cursors, rows, total, examples):
  return jax.vmap(lambda c: pipeline.indices(seed, salt, c, Rows(rows, total), examples))(cursors)


def draw(cursors, total, examples, seed=0, salt=0, rows=None):
  """[len(cursors), rows] of the global batch's examples."""
  rows = jnp.arange(total) if rows is None else rows
  cursors = jnp.asarray(cursors, jnp.int32)
  return np.asarray(_draw(jnp.uint32(seed), jnp.int32(salt), cursors, rows, total, examples))


SIZES = [
  (10, 4),
  (7, 16),
  (5, 5),
  (1, 3),
  (13, 8),
  (64, 8),
]  # (examples, batch): batches across and beyond epochs


@pytest.mark.parametrize(('examples', 'total'), SIZES)
def test_every_epoch_visits_every_example_once(examples, total):
  epochs = 2 * total  # a whole sweep and more: `cursor % examples` wraps
  order = draw(np.arange(epochs * examples // total), total, examples).reshape(-1)
  order = order[: order.size // examples * examples].reshape(-1, examples)
  np.testing.assert_array_equal(
    np.sort(order, axis=1), np.broadcast_to(np.arange(examples), order.shape)
  )
  if examples >= 10:
    assert np.unique(order, axis=0).shape[0] == len(order)  # each epoch has an order of its own


@pytest.mark.parametrize('shares', [2, 4])
def test_the_same_rows_on_any_number_of_devices(shares):
  whole = draw(np.arange(9), 16, 7, seed=4)
  parts = [draw(np.arange(9), 16, 7, seed=4, rows=r) for r in np.split(np.arange(16), shares)]
  np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))


def test_a_batch_is_a_function_of_seed_salt_and_cursor_alone():
  order = draw(np.arange(20), 16, 100, seed=2, salt=1)
  backward = draw(np.arange(20)[::-1], 16, 100, seed=2, salt=1)
  np.testing.assert_array_equal(order, backward[::-1])
  np.testing.assert_array_equal(order[13:14], draw([13], 16, 100, seed=2, salt=1))
  for other in ({'seed': 3, 'salt': 1}, {'seed': 2, 'salt': 2}, {'seed': 1, 'salt': 2}):
    assert (order == draw(np.arange(20), 16, 100, **other)).mean() < 0.1


# (examples, batch, first cursor); in the last two, cursor * batch and the epoch itself leave int32.
LATE = [(1000, 64, 2_000_000_000), (37, 256, 2_000_000_000), (3, 500, 2**31 - 100)]


@pytest.mark.parametrize(('examples', 'total', 'first'), LATE)
def test_epochs_stay_whole_at_very_large_cursors(examples, total, first):
  batches = 3 * -(-examples // total) + 2
  order = draw(first + np.arange(batches), total, examples).reshape(-1)
  epochs = {}
  for i, example in enumerate(order.tolist()):
    epochs.setdefault((first * total + i) // examples, []).append(example)
  whole = [sorted(members) for members in epochs.values()][1:-1]  # the ends are cut
  assert len(whole) >= 1
  assert all(members == list(range(examples)) for members in whole)


@pytest.mark.parametrize(
  ('examples', 'total', 'cursor'),
  [(60_000, 512, 2_000_000_000), (2_097_150, 1024, 2_097_149), (2_097_150, 1024, 2**31 - 1)],
)
def test_indices_agree_with_exact_integer_arithmetic(examples, total, cursor):
  pipeline.check_size(examples, total)  # the largest that is let through
  rows = np.array([0, 1, total // 2, total - 1])
  key = streams.batch_key(5, 'order', 2, 0)
  expected = []
  for row in rows.tolist():
    epoch, place = divmod(cursor * total + row, examples)  # Python integers do not overflow
    assert epoch < 2**31
    expected.append(
      int(permutation(jax.random.fold_in(key, epoch), jnp.array([place]), examples)[0])
    )
  found = draw([cursor], total, examples, seed=5, salt=2, rows=rows)[0]
  assert found.tolist() == expected


CURSORS = [0, 1, 4, 5, 1000, 2_000_000_000]


@pytest.mark.parametrize(('examples', 'total'), [*SIZES, (60_000, 128), (2_097_150, 1024)])
def test_a_host_computes_the_same_indices(examples, total):
  rows = np.arange(total)
  for cursor, salt in zip(CURSORS, [0, 0, 1, 0, 2, 3], strict=True):
    epochs = pipeline.epochs_from(9, salt, cursor, 3, total, examples)
    end = cursor + pipeline.batches_in(epochs, cursor, total, examples)
    assert end >= cursor + 3
    for c in (cursor, cursor + 2, min(end, 2**31) - 1):
      found = pipeline.host_indices(epochs, c, rows, total, examples)
      expected = draw([c], total, examples, seed=9, salt=salt)[0]
      np.testing.assert_array_equal(found, expected)
      assert found.dtype == expected.dtype


def test_check_size():
  pipeline.check_size(1, 1)
  with pytest.raises(ValueError, match='no example'):
    pipeline.check_size(0, 8)
  with pytest.raises(ValueError, match=r'2097151 resident examples in batches of 1024'):
    pipeline.check_size(2_097_151, 1024)


def test_normalize_is_exactly_inverted_for_all_numbers_of_levels():
  for levels in range(2, 257):
    stored = (np.arange(256) % levels).astype(np.uint8)
    x = np.asarray(pipeline.normalize(jnp.asarray(stored), pipeline.Units(levels)))
    exact = [float(fractions.Fraction(2 * int(k), levels - 1) - 1) for k in stored]
    np.testing.assert_allclose(x, exact, rtol=0, atol=2.4e-7)
    if levels in (
      2,
      17,
      256,
    ):  # those in use; for some others XLA's reciprocal misses 1 by one unit
      assert (x.min(), x.max()) == (-1, 1)
    back = pipeline.denormalize(x, pipeline.Units(levels))
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, stored)


@pytest.mark.parametrize('levels', [2, 17, 256])
def test_denormalize_gives_the_nearest_level(levels):
  x = np.random.default_rng(0).uniform(-1.5, 1.5, 2000).astype(np.float32)
  grid = np.linspace(-1, 1, levels)
  distance = np.abs(x[:, None].astype(np.float64) - grid)
  found = pipeline.denormalize(x, pipeline.Units(levels))
  assert {0, levels - 1} <= set(found.tolist())
  chosen = np.take_along_axis(distance, found[:, None].astype(int), 1)[:, 0]
  np.testing.assert_allclose(chosen, distance.min(1), rtol=0, atol=1e-6)


def test_floats_pass_unchanged():
  x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32) * 100
  np.testing.assert_array_equal(pipeline.normalize(jnp.asarray(x), pipeline.Units(None)), x)
  np.testing.assert_array_equal(pipeline.denormalize(x, pipeline.Units(None)), x)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('levels', [None, 256])
def test_denormalize_refuses_what_is_not_finite(bad, levels):
  x = np.zeros((5, 2))
  x[3, 1] = bad
  with pytest.raises(ValueError, match='1 of 10 values are not finite'):
    pipeline.denormalize(x, pipeline.Units(levels))


def test_to_uint8_spreads_the_levels():
  np.testing.assert_array_equal(
    pipeline.to_uint8(np.arange(256, dtype=np.uint8), 256), np.arange(256)
  )
  for levels in (2, 17, 100):
    bright = pipeline.to_uint8(np.arange(levels, dtype=np.uint8), levels)
    assert bright.dtype == np.uint8
    assert bright[0] == 0
    assert bright[-1] == 255
    steps = np.diff(bright.astype(int))
    assert (abs(steps - 255 / (levels - 1)) < 1).all()


def test_gather():
  x = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1) % 17
  data = pipeline.Resident(jnp.asarray(x), jnp.array([3, 1, 4, 1, 5, 9], jnp.int32))
  batch = pipeline.gather(data, jnp.array([5, 0, 5]), pipeline.Units(17))
  np.testing.assert_array_equal(pipeline.denormalize(batch.x, pipeline.Units(17)), x[[5, 0, 5]])
  assert batch.label.tolist() == [9, 3, 9]
  assert batch.index.tolist() == [5, 0, 5]
  assert batch.augment_label.shape == (3, 0)


@pytest.mark.parametrize('levels', [17, 256, None])
def test_standardized_data_has_mean_zero_and_deviation_one(levels):
  rng = np.random.default_rng(0)
  x = (
    rng.integers(0, levels, (40, 4, 4, 2)).astype(np.uint8) if levels else rng.normal(3, 7, (40, 5))
  )
  units = pipeline.standardized()(x, levels)
  found = np.asarray(pipeline.normalize(jnp.asarray(x), units), np.float64)
  np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)
  np.testing.assert_allclose(pipeline.sigma_data(x, units), 1.0, rtol=1e-6)
  back = pipeline.denormalize(found, units)
  if levels:
    np.testing.assert_array_equal(back, x)
    ends = pipeline.normalize(jnp.array([0, levels - 1], jnp.uint8), units)
    np.testing.assert_allclose(ends, units.range, rtol=1e-5)
  else:
    np.testing.assert_allclose(back, x, rtol=1e-5)


def test_moments_are_exact_and_do_not_depend_on_the_parts_read():
  x = np.random.default_rng(1).integers(0, 256, (2500, 3, 2, 1)).astype(np.uint8)
  exact = [fractions.Fraction(int(v)) for v in x.ravel()]
  mean = sum(exact) / len(exact)
  variance = sum((v - mean) ** 2 for v in exact) / len(exact)
  assert pipeline.moments(x) == (float(mean), pytest.approx(math.sqrt(variance), rel=1e-15))
  assert pipeline.moments(x[::-1]) == pipeline.moments(x)


def test_data_that_does_not_vary_cannot_be_standardized():
  with pytest.raises(ValueError, match='all values are 3'):
    pipeline.standardized()(np.full((4, 2), 3.0), None)
