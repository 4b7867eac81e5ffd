"""NormalizationStatistics and rows: levels that come back exactly, and batches that hold what they name."""

import fractions
import math

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.data import pipeline
from diffusion.data.records import DiskRecords


def test_normalize_is_exactly_inverted_for_all_numbers_of_levels():
  for levels in range(2, 257):
    stored = (np.arange(256) % levels).astype(np.uint8)
    x = np.asarray(
      pipeline.normalize(jnp.asarray(stored), pipeline.NormalizationStatistics(levels))
    )
    exact = [float(fractions.Fraction(2 * int(k), levels - 1) - 1) for k in stored]
    np.testing.assert_allclose(x, exact, rtol=0, atol=2.4e-7)
    if levels in (
      2,
      17,
      256,
    ):  # those in use; for some others XLA's reciprocal misses 1 by one unit
      assert (x.min(), x.max()) == (-1, 1)
    back = pipeline.denormalize(x, pipeline.NormalizationStatistics(levels))
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, stored)


@pytest.mark.parametrize('levels', [2, 17, 256])
def test_denormalize_gives_the_nearest_level(levels):
  x = np.random.default_rng(0).uniform(-1.5, 1.5, 2000).astype(np.float32)
  grid = np.linspace(-1, 1, levels)
  distance = np.abs(x[:, None].astype(np.float64) - grid)
  found = pipeline.denormalize(x, pipeline.NormalizationStatistics(levels))
  assert {0, levels - 1} <= set(found.tolist())
  chosen = np.take_along_axis(distance, found[:, None].astype(int), 1)[:, 0]
  np.testing.assert_allclose(chosen, distance.min(1), rtol=0, atol=1e-6)


def test_floats_pass_unchanged():
  x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32) * 100
  np.testing.assert_array_equal(
    pipeline.normalize(jnp.asarray(x), pipeline.NormalizationStatistics(None)), x
  )
  np.testing.assert_array_equal(pipeline.denormalize(x, pipeline.NormalizationStatistics(None)), x)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('levels', [None, 256])
def test_denormalize_refuses_what_is_not_finite(bad, levels):
  x = np.zeros((5, 2))
  x[3, 1] = bad
  with pytest.raises(ValueError, match='1 of 10 values are not finite'):
    pipeline.denormalize(x, pipeline.NormalizationStatistics(levels))


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
  data = pipeline.InMemoryData(jnp.asarray(x), jnp.array([3, 1, 4, 1, 5, 9], jnp.int32))
  batch = pipeline.gather(data, jnp.array([5, 0, 5]), pipeline.NormalizationStatistics(17))
  np.testing.assert_array_equal(
    pipeline.denormalize(batch.x, pipeline.NormalizationStatistics(17)), x[[5, 0, 5]]
  )
  assert batch.condition.tolist() == [9, 3, 9]
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
  np.testing.assert_allclose(pipeline.span(x, units), [found.min(), found.max()], rtol=1e-5)
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


@pytest.mark.parametrize('levels', [17, 256, None])
def test_the_span_and_the_deviation_of_data_are_those_of_its_network_units(levels):
  """Of levels that do not fill their range, and of floats, in what an experiment has that names nothing."""
  rng = np.random.default_rng(2)
  x = (
    rng.integers(3, levels - 5, (40, 4, 3, 2)).astype(np.uint8)
    if levels
    else rng.normal(3, 7, (40, 5))
  )
  units = pipeline.usual(levels)(x, levels)
  found = 2 * x.astype(float) / (levels - 1) - 1 if levels else (x - x.mean()) / x.std()
  assert (units == pipeline.NormalizationStatistics(levels)) == bool(levels)
  np.testing.assert_allclose(pipeline.span(x, units), [found.min(), found.max()], rtol=1e-6)
  np.testing.assert_allclose(pipeline.sigma_data(x, units), found.std(), rtol=1e-6)
  unread = DiskRecords('nowhere', 'train', np.arange(3), (2, 2, 1))
  ends = pipeline.NormalizationStatistics(17, 0.5, 0.25)
  assert pipeline.span(unread, ends) == ends.range == (-6, 2)
  floats = pipeline.NormalizationStatistics(None, 1.0, 4.0)
  np.testing.assert_allclose(pipeline.sigma_data(x.astype(float), floats), x.std() / 4)


def test_data_that_does_not_vary_cannot_be_standardized():
  with pytest.raises(ValueError, match='all values are 3'):
    pipeline.standardized()(np.full((4, 2), 3.0), None)
