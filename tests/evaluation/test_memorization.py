"""Memorization: planted copies, the ratio's known law for uniform data, calibration, and where copying ends."""

import math

import numpy as np
import pytest
from scipy import stats

from diffusion.evaluation import memorization
from diffusion.evaluation.features import Features
from diffusion.evaluation.metric import Plan
from tests.evaluation.given import inputs_of, values


def pictures(seed, n, shape=(4, 4, 1)):
  return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


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


@pytest.mark.parametrize('mirrored', [False, True])
def test_what_is_watched_sees_a_copy_of_a_duplicated_image(mirrored):
  train = pictures(4, 40)
  watch = memorization.watch(np.concatenate([train, train]), pictures(5, 30), mirrored=mirrored)
  found = watch(np.concatenate([train[:15], pictures(6, 15)]))
  assert (found['memorized/fraction'], found['memorized/null']) == (0.5, 0)
  z = 1.959963985  # Wilson's bounds of 15 of 30, and of none of 30
  half = z / 2 / (30 + z**2) ** 0.5
  np.testing.assert_allclose(
    [found[f'memorized/{end}'] for end in ('low', 'high', 'null_high')],
    [0.5 - half, 0.5 + half, z**2 / (30 + z**2)],
  )
  # Half of the ratios are 0, and the others are of images that have nothing to do with one another.
  assert 0.2 < found['memorized/ratio'] < 0.5
  other = watch(np.concatenate([train[:5], pictures(6, 16)]))['memorized/ratio']
  flat = lambda x: x.reshape(len(x), -1).astype(float)  # noqa: E731
  both = np.stack([flat(train), flat(train[:, :, ::-1] if mirrored else train)])
  far = np.linalg.norm(both[:, None] - flat(pictures(6, 16))[:, None], axis=3).min(0)
  near = np.sort(far, axis=1)
  assert other == pytest.approx(np.median(np.concatenate([np.zeros(5), near[:, 0] / near[:, 1]])))


@pytest.mark.parametrize('copies', [0, 30, 100])
def test_planted_copies_are_counted(copies):
  train = pictures(6, 300)
  noisy = train[:copies].astype(int) + np.random.default_rng(7).integers(-2, 3, (copies, 4, 4, 1))
  samples = np.concatenate([np.clip(noisy, 0, 255).astype(np.uint8), pictures(8, 100 - copies)])
  train = np.concatenate([train, train[:50]])
  found, null, adjusted = memorization.nearest_neighbor_ratio().measure(
    inputs_of(samples, train, pictures(9, 200))
  )
  assert adjusted.value.estimate == pytest.approx(copies / 100)
  assert found.value.estimate == copies / 100
  assert found.value.low <= copies / 100 <= found.value.high
  assert null.value.estimate == 0
  assert 0 < null.value.high < 0.03  # none of 200: not more than 3 / 200 or so


def test_the_fraction_and_its_null_are_counted_below_the_threshold_that_is_given():
  """References 0 and 6; ratios of 1, 2, 2.5 and 8 are 1/5, 1/2, 5/7 and 1/4."""
  train, held_out = (np.array(x, float)[:, None] for x in ([0, 6], [8, 2, 2.5, 2, 2]))
  given = inputs_of(np.array([[1.0], [2], [2.5], [1]]), train, held_out)
  for threshold, k, null in ((0.22, 2, 0), (0.5, 2, 1), (0.6, 3, 4)):  # 1/2 is not below 1/2
    found = memorization.nearest_neighbor_ratio(threshold).measure(given)
    assert found[0].counts == (k, 4, False, None, None)
    assert found[1].counts == (null, 5, True, None, None)
    assert f'below {threshold:.3g}' in found[0].meaning
    assert len(found) == 2 + (null < 2.5)
    for adjusted in found[2:]:
      assert adjusted.counts == (k, 4, False, null, 5)
      assert adjusted.value.estimate == pytest.approx((k / 4 - null / 5) / (1 - null / 5))
  half = given._replace(held_out=(held_out[:2], given.labels[:2]), kept={})
  assert len(memorization.nearest_neighbor_ratio(0.3).measure(half)) == 2


def test_the_null_is_that_of_the_held_out_data():
  """Where the null is that high, there is nothing to adjust."""
  train = pictures(10, 100)
  found, null = memorization.nearest_neighbor_ratio().measure(
    inputs_of(pictures(11, 40), train, train[:40])
  )
  assert (found.value.estimate, null.value.estimate) == (0, 1)


@pytest.mark.parametrize('threshold', [0.2, 1 / 3, 0.6])
@pytest.mark.parametrize('dimension', [1, 2, 4, 8])
def test_uniform_data_follow_the_law_of_the_ratio(dimension, threshold):
  """P(r < k) = k^d for a locally uniform density: d1^d / d2^d is uniform on [0, 1]."""
  random = np.random.default_rng(12)
  # 2,000 balls of 8 uniform points each, far apart, a query in the middle of each: no border, no dependence.
  middles = 4.0 * np.arange(2000)[:, None] * np.eye(1, dimension)
  ways = random.normal(size=(2000, 8, dimension))
  ways /= np.linalg.norm(ways, axis=2, keepdims=True)
  points = middles[:, None] + ways * random.uniform(size=(2000, 8, 1)) ** (1 / dimension)
  _, r = memorization.ratios(middles, points.reshape(-1, dimension))
  expected = threshold**dimension
  counted = (r < threshold).sum()
  assert stats.binomtest(int(counted), 2000, expected).pvalue > 1e-5


def test_mirrored_copies_are_copies_where_training_flips():
  train = pictures(18, 200)
  samples = np.concatenate([train[:30, :, ::-1], train[30:50], pictures(19, 50)])
  held_out = np.concatenate([train[50:75, :, ::-1], pictures(20, 75)])
  given = inputs_of(samples, train, held_out)
  plain, both = (
    values(memorization.nearest_neighbor_ratio(mirrored=m), given) for m in (False, True)
  )
  assert plain['memorized fraction'].estimate == 0.2
  assert both['memorized fraction'].estimate == 0.5
  assert plain['its held-out null'].estimate == 0
  assert both['its held-out null'].estimate == 0.25
  index, _ = memorization.input_ratios(given, 'samples', mirrored=True)
  np.testing.assert_array_equal(index[:50], np.arange(50))
  plan = Plan(samples=100, classes=0, shape=(8,), train=300, held_out=100)
  with pytest.raises(ValueError, match='mirrored=True is for images'):
    memorization.nearest_neighbor_ratio(mirrored=True).check(plan)


def test_the_mirror_image_of_a_nearly_symmetric_one_does_not_hide_its_copy():
  """Against a search through all pairs: an image is as far as the nearer of itself and its mirror image."""
  random = np.random.default_rng(0)
  half = random.integers(0, 250, (40, 6, 3, 1))
  train = np.concatenate([half, half[:, :, ::-1]], 2) + random.integers(0, 4, (40, 6, 6, 1))
  train[7] = train[3, :, ::-1]  # the same image
  train[9] = train[9, :, ::-1] = (train[9] + train[9, :, ::-1]) // 2  # its own mirror image
  train = train.astype(np.uint8)
  samples = np.concatenate(
    [train[:20] ^ 1, train[20:30, :, ::-1] ^ 1, random.integers(0, 256, (10, 6, 6, 1), np.uint8)]
  )
  index, r = memorization.input_ratios(inputs_of(samples, train, samples), 'samples', mirrored=True)
  for query, one, ratio in zip(samples.astype(float), index, r, strict=True):
    both = [np.linalg.norm((query - x).reshape(40, -1), axis=1) for x in (train, train[:, :, ::-1])]
    distance = np.minimum(*both)
    distance[7] = np.inf  # as it is image 3
    first, second = np.sort(distance)[:2]
    assert one == distance.argmin()
    np.testing.assert_allclose(ratio, first / second, rtol=1e-12)
  assert (r[:30] < 1 / 3).all()
  watched = memorization.watch(train, samples[30:], mirrored=True)(samples[:30])
  assert (watched['memorized/fraction'], watched['memorized/null']) == (1, 0)


@pytest.mark.parametrize('threshold', [0.0, 1.0, -1, math.nan])
def test_bad_thresholds_are_named(threshold):
  with pytest.raises(ValueError, match=rf'threshold .* got {threshold}'):
    memorization.nearest_neighbor_ratio(threshold)


def test_calibration_takes_the_datas_own_threshold():
  """By construction a share q of the null is below it, and copies are found beyond that share."""
  random = np.random.default_rng(13)
  null = random.uniform(0, 1, 1000)
  threshold = memorization.calibrate(null, 0.02)
  assert (null < threshold).sum() == 20
  train, held_out = random.normal(size=(500, 12)), random.normal(size=(1200, 12))
  samples = np.concatenate(
    [train[:30] + 0.01 * random.normal(size=(30, 12)), random.normal(size=(270, 12))]
  )
  (one,) = memorization.calibrated_ratio(0.01).measure(inputs_of(samples, train, held_out))
  near, own = (memorization.ratios(x, train)[1] for x in (samples, held_out))
  assert one.counts == ((near < np.sort(own)[12]).sum(), 300, False, None, None)
  assert one.meaning == (
    f'ratio below {np.sort(own)[12]:.3g}, the 0.01 quantile of 1200 held-out examples'
  )
  found = {one.name: one.value}
  assert (
    found['memorized fraction, calibrated'].low
    < 0.1 + 0.9 * 0.01
    < found['memorized fraction, calibrated'].high
  )


def test_features_that_do_not_see_a_shift_find_shifted_copies():
  """Sorted brightness is blind to where a pixel lies: shifted copies are at distance 0 there, and far in pixels."""

  def sort(x):
    return np.sort(x.reshape(len(x), -1), axis=1).astype(np.float32)

  features = Features('sorted', '', 16, sort)
  train = pictures(15, 300)
  samples = np.concatenate([np.roll(train[:40], 1, axis=2), pictures(16, 160)])
  given = inputs_of(samples, train, pictures(17, 1000))
  by_pixels = values(memorization.calibrated_ratio(0.01), given)
  by_features = values(memorization.calibrated_ratio(0.01, features), given)
  (named,) = memorization.calibrated_ratio(0.01, features).measure(given)
  assert named.name == 'memorized fraction, calibrated(sorted)'
  assert by_pixels['memorized fraction, calibrated'].high < 0.1
  assert by_features['memorized fraction, calibrated'].estimate == pytest.approx(
    0.2 + 0.8 * 0.01, abs=0.02
  )


def test_calibration_refuses_to_guess():
  with pytest.raises(ValueError, match='0.001 quantile needs 10000 ratios, got 9999'):
    memorization.calibrate(np.ones(9999), 0.001)
  memorization.calibrate(np.linspace(0, 1, 10_000), 0.001)
  plan = Plan(samples=100, classes=0, shape=(2,), train=100, held_out=9999)
  with pytest.raises(
    ValueError, match='at least 10000 held-out examples, got 9999: a quantile of 0.0011 would do'
  ):
    memorization.calibrated_ratio().check(plan)
  memorization.calibrated_ratio(0.0011).check(plan)  # the remedy is one
  memorization.calibrated_ratio().check(plan._replace(held_out=10_000))
  with pytest.raises(ValueError, match='quantile .* got 0.6'):
    memorization.calibrated_ratio(0.6)


def test_authenticity_counted_by_hand():
  """References 0, 1, 5: own nearest at 1, 1, 4. 0.5 is within 1 of 0; 2.2 is 1.2 from 1; 8 is 3 from 5, 9 as far
  as 5 from its own; 10 is 5 off."""
  queries = np.array([[0.5], [2.2], [8.0], [9.0], [10.0]])
  reference = np.array([[0.0], [1.0], [5.0], [5.0]])
  np.testing.assert_array_equal(
    memorization.is_authentic(queries, reference), [False, True, False, False, True]
  )


def test_copies_are_not_authentic_and_fresh_data_is_half():
  random = np.random.default_rng(14)
  train, held_out = random.normal(size=(500, 6)), random.normal(size=(400, 6))
  found = values(memorization.authenticity(), inputs_of(train[:200] + 1e-6, train, held_out))
  assert found['authenticity'].high < 0.03
  assert 0.4 < found['authenticity, held-out'].estimate < 0.75


def test_effective_memorization_is_the_crossing_in_log_n():
  """Fractions 1, 0.95, 0.85, 0 at n = 10, 100, 1000, 10^4: 0.9 lies half way in log n from 100 to 1000."""
  sizes, trials = np.array([10, 100, 1000, 10_000]), np.full(4, 10_000)
  found = memorization.effective_memorization(sizes, np.array([10_000, 9_500, 8_500, 0]), trials)
  assert found.estimate == pytest.approx(10**2.5, rel=1e-9)
  assert 250 < found.low < found.estimate < found.high < 400


def test_effective_memorization_between_all_and_nothing_is_uncertain_too():
  """10 of 10 at n = 10 and 0 of 10 at n = 100: the counts leave fractions between 0.7 and 1, 0 and 0.3 open."""
  found = memorization.effective_memorization(*map(np.array, ([10, 100], [10, 0], [10, 10])))
  assert found.estimate == pytest.approx(10**1.1)
  assert found.low < 10.01
  assert found.high > 12


def test_effective_memorization_beyond_the_sizes():
  find = lambda *given, **more: memorization.effective_memorization(*map(np.array, given), **more)  # noqa: E731
  all_of_it = find([10, 20], [100, 95], [100, 100])
  assert all_of_it.estimate == all_of_it.high == math.inf
  none_of_it = find([10, 20], [10, 5], [100, 100])
  assert none_of_it == (0, 0, 0)
  assert find([10, 20], [100, 90], [100, 100], draws=100).estimate == math.inf  # 0.9 is still 0.9
  assert find([10, 20], [90, 50], [100, 100], draws=100).estimate == pytest.approx(10)
  # The last of two crossings is the one: from 0.95 to 0.85 of different numbers, half way in log n.
  twice = find([10, 100, 1000, 10_000], [100, 2, 190, 85], [100, 4, 200, 100], draws=100)
  assert twice.estimate == pytest.approx(10**3.5)
  with pytest.raises(ValueError, match='ascending'):
    find([20, 10], [1, 1], [2, 2])
  with pytest.raises(ValueError, match='successes must lie'):
    find([10, 20], [3, 1], [2, 2])
