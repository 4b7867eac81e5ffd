"""Nearest neighbors against brute force, where float32 decides and where it cannot."""

import numpy as np
import pytest

from diffusion.evaluation import neighbors


def pictures(seed, n, shape=(4, 4, 1)):
  return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def brute_force(queries, reference, count):
  """Indices and distances of the nearest, from the full table of differences."""
  q = queries.reshape(len(queries), 1, -1).astype(np.float64)
  table = np.sqrt(((q - reference.reshape(len(reference), -1).astype(np.float64)) ** 2).sum(-1))
  order = np.argsort(table, axis=1)[:, :count]
  return order, np.take_along_axis(table, order, 1)


@pytest.mark.parametrize('chunk', [1, 7, 512])
@pytest.mark.parametrize('count', [1, 2, 5])
def test_nearest_is_brute_force(chunk, count):
  queries, reference = pictures(0, 50), pictures(1, 83)
  found = neighbors.nearest(queries, reference, count, chunk)
  index, distance = brute_force(queries, reference, count)
  np.testing.assert_allclose(found.distance, distance, rtol=1e-12)
  np.testing.assert_array_equal(found.index[:, 0], index[:, 0])


def test_more_references_than_a_block_and_no_multiple_of_it():
  random = np.random.default_rng(2)
  queries, reference = random.normal(size=(40, 6)), random.normal(size=(5001, 6))
  found = neighbors.nearest(queries, reference, 3)
  index, distance = brute_force(queries, reference, 3)
  np.testing.assert_array_equal(found.index, index)
  np.testing.assert_allclose(found.distance, distance, rtol=1e-12)


def test_few_references():
  found = neighbors.nearest(np.array([[0.0], [9.0]]), np.array([[1.0], [11.0]]))
  assert found.index.tolist() == [[0, 1], [1, 0]]
  assert found.distance.tolist() == [[1, 11], [2, 8]]
  with pytest.raises(ValueError, match='2 nearest neighbors need at least 2 references, got 1'):
    neighbors.nearest(np.zeros((3, 2)), np.zeros((1, 2)))


def test_near_copies_keep_their_digits():
  """Far from the origin, |q|^2 - 2 q r + |r|^2 in float64 would lose a distance of 1e-6 altogether."""
  random = np.random.default_rng(2)
  reference = 1e4 + random.normal(size=(60, 16))
  queries = reference + 1e-6 * random.normal(size=(60, 16))
  found = neighbors.nearest(queries, reference)
  np.testing.assert_array_equal(found.index[:, 0], np.arange(60))
  exact = np.linalg.norm(queries - reference, axis=1)
  np.testing.assert_allclose(found.distance[:, 0], exact, rtol=1e-8)
  np.testing.assert_allclose(found.distance, brute_force(queries, reference, 2)[1], rtol=1e-8)


def test_a_crowd_that_float32_cannot_tell_apart_is_searched_in_float64(monkeypatch):
  """Two hundred references at one distance to 1e-9 and one a little nearer: more than the spare candidates."""
  random = np.random.default_rng(3)
  directions = random.normal(size=(200, 16))
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  reference = 100 * directions
  reference[137] *= 1 - 1e-9
  asked = []
  inside = neighbors._in_float64
  monkeypatch.setattr(
    neighbors, '_in_float64', lambda q, *rest: asked.append(len(q)) or inside(q, *rest)
  )
  found = neighbors.nearest(np.zeros((1, 16)), reference, 1)
  assert asked == [1]
  assert found.index.tolist() == [[137]]
  neighbors.nearest(pictures(4, 10), pictures(5, 300), 2)
  assert asked == [1]  # ordinary images are decided in float32


def test_clusters_that_float64_cannot_expand_are_measured_directly():
  """Two clusters at +-1e6, spread 1e-3: |q|^2 - 2 q r + |r|^2 has no digit left in float64."""
  random = np.random.default_rng(7)
  side = random.choice([-1e6, 1e6], 120)
  reference = side[:, None] + 1e-3 * random.normal(size=(120, 5))
  queries = side[:100, None] + 1e-3 * random.normal(size=(100, 5))  # more than at a time
  found = neighbors.nearest(queries, reference)
  index, distance = brute_force(queries, reference, 2)
  np.testing.assert_array_equal(found.index, index)
  np.testing.assert_allclose(found.distance, distance, rtol=1e-12)


@pytest.mark.filterwarnings('ignore:overflow')
def test_numbers_beyond_float32_are_searched_in_float64():
  random = np.random.default_rng(8)
  reference, queries = 1e30 * random.normal(size=(90, 5)), 1e30 * random.normal(size=(30, 5))
  found = neighbors.nearest(queries, reference)
  np.testing.assert_array_equal(found.index, brute_force(queries, reference, 2)[0])


def test_distinct_keeps_the_first_of_each():
  x = pictures(6, 30)
  repeated = np.concatenate([x[:10], x, x[5:]])
  np.testing.assert_array_equal(neighbors.distinct(repeated), [*range(10), *range(20, 40)])


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
  'queries, reference, says',
  [
    (np.zeros((2, 3)), np.zeros((5, 4)), 'queries have 3 numbers each, the references 4'),
    (np.full((2, 3), np.nan), np.zeros((5, 3)), 'queries hold a number that is not finite'),
    (np.zeros((2, 3)), np.full((5, 3), np.inf), 'reference hold a number that is not finite'),
  ],
)
def test_bad_arrays_are_refused(queries, reference, says):
  with pytest.raises(ValueError, match=says):
    neighbors.nearest(queries, reference)
