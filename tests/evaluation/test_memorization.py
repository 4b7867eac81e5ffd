"""Nearest neighbors against brute force, planted copies, and the ratio's known law for uniform data."""

import math

import numpy as np
import pytest

from diffusion.evaluation import memorization
from diffusion.evaluation.evaluate import Judged


def pictures(seed, n, shape=(4, 4, 1)):
  return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def brute_force(queries, reference):
  """Nearest index, and the two smallest distances: from the full table of differences."""
  q = queries.reshape(len(queries), 1, -1).astype(np.float64)
  table = np.sqrt(((q - reference.reshape(len(reference), -1)) ** 2).sum(-1))
  return table.argmin(1), *np.sort(table, axis=1)[:, :2].T


@pytest.mark.parametrize('chunk', [1, 7, 512])
def test_nearest_is_brute_force(chunk):
  queries, reference = pictures(0, 50), pictures(1, 83)
  index, first, second = memorization.nearest(queries, reference, chunk)
  expected = brute_force(queries, reference)
  np.testing.assert_array_equal(index, expected[0])
  np.testing.assert_allclose(first, expected[1], rtol=1e-12)
  np.testing.assert_allclose(second, expected[2], rtol=1e-12)


def test_nearest_of_two_references():
  index, first, second = memorization.nearest(np.array([[0.0], [9.0]]), np.array([[1.0], [11.0]]))
  assert index.tolist() == [0, 1]
  assert (first.tolist(), second.tolist()) == ([1, 2], [11, 8])
  with pytest.raises(ValueError, match='at least 2 references, got 1'):
    memorization.nearest(np.zeros((3, 2)), np.zeros((1, 2)))


def test_near_copies_keep_their_digits():
  """Far from the origin, |q|^2 - 2 q r + |r|^2 in float64 would lose a distance of 1e-6 altogether."""
  random = np.random.default_rng(2)
  reference = 1e4 + random.normal(size=(60, 16))
  offset = 1e-6 * random.normal(size=(60, 16))
  queries = reference + offset
  index, first, second = memorization.nearest(queries, reference)
  exact = np.linalg.norm(queries - reference, axis=1)
  np.testing.assert_array_equal(index, np.arange(60))
  np.testing.assert_allclose(first, exact, rtol=1e-8)
  np.testing.assert_allclose(second, brute_force(queries, reference)[2], rtol=1e-8)


def test_close_neighbors_far_from_the_origin_are_not_confused():
  """Three references closer to each other than float64 resolves in |r|^2: still the two nearest ones."""
  random = np.random.default_rng(3)
  center = 1000 + random.normal(size=16)
  direction = random.normal(size=16)
  reference = center + np.array([1.0, 2.0, 4.0, 8.0, 1e6, 2e6])[:, None] * 1e-6 * direction
  index, first, second = memorization.nearest(center[None], reference)
  assert index.tolist() == [0]
  assert first[0] / second[0] == pytest.approx(0.5, rel=1e-4)


def test_ratios_see_a_copy_of_a_duplicated_image():
  train = pictures(4, 40)
  train = np.concatenate([train, train[:10], train[:10]])  # ten images, three times each
  fresh = pictures(5, 6)
  index, ratio = memorization.ratios(np.concatenate([train[5:10], train[20:24], fresh]), train)
  np.testing.assert_array_equal(ratio[:9], 0)
  assert (ratio[9:] > 0.5).all()
  assert (ratio <= 1).all()
  np.testing.assert_array_equal(train[index[:5]], train[5:10])  # the index is into the original
  np.testing.assert_array_equal(index[5:9], np.arange(20, 24))


def judged(samples, train, held_out):
  def none(x):
    return np.zeros(len(x), np.int32)

  return Judged(
    samples, none(samples), (train, none(train)), (held_out, none(held_out)), (), 256, None
  )


@pytest.mark.parametrize('copies', [0, 30, 100])
def test_planted_copies_are_counted(copies):
  train = pictures(6, 300)
  noisy = train[:copies].astype(int) + np.random.default_rng(7).integers(-2, 3, (copies, 4, 4, 1))
  samples = np.concatenate([np.clip(noisy, 0, 255).astype(np.uint8), pictures(8, 100 - copies)])
  train = np.concatenate([train, train[:50]])
  found, null = memorization.nearest_neighbor_ratio().measure(
    judged(samples, train, pictures(9, 200))
  )
  assert found.value.estimate == copies / 100
  assert found.value.low <= copies / 100 <= found.value.high
  assert null.value.estimate == 0
  assert 0 < null.value.high < 0.03  # none of 200: not more than 3 / 200 or so


def test_the_null_is_that_of_the_held_out_data():
  train = pictures(10, 100)
  found, null = memorization.nearest_neighbor_ratio().measure(
    judged(pictures(11, 40), train, train[:40])
  )
  assert (found.value.estimate, null.value.estimate) == (0, 1)


@pytest.mark.parametrize('threshold', [0.2, 1 / 3, 0.6])
@pytest.mark.parametrize('dimension', [1, 2])
def test_uniform_data_follow_the_law_of_the_ratio(dimension, threshold):
  """P(r < k) = k^d for a locally uniform density: d1^d / d2^d is uniform on [0, 1]."""
  random = np.random.default_rng(12)
  reference = random.uniform(0, 1, (20_000, dimension))
  queries = random.uniform(0.1, 0.9, (1500, dimension))  # away from the border
  _, null = memorization.nearest_neighbor_ratio(threshold).measure(
    judged(queries, reference, queries)
  )
  expected = threshold**dimension
  assert abs(null.value.estimate - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 1500)


@pytest.mark.parametrize('threshold', [0.0, 1.0, -1, math.nan])
def test_bad_thresholds_are_named(threshold):
  with pytest.raises(ValueError, match=rf'threshold .* got {threshold}'):
    memorization.nearest_neighbor_ratio(threshold)
