"""Fidelity and diversity: examples counted by hand, expectations by simulation, effective numbers in closed form."""

import numpy as np
import pytest

from diffusion.evaluation import manifold
from diffusion.evaluation.metric import Plan, subset
from tests import shapes
from tests.evaluation.given import inputs_of, values


def column(*numbers):
  return np.array(numbers, float)[:, None]


REAL = column(0, 1, 3, 7)  # their balls, k = 1: [-1, 1], [0, 2], [1, 5], [3, 11]
SAMPLES = column(0.5, 2.5, 12, 13)  # theirs: [-1.5, 2.5], [0.5, 4.5], [11, 13], [12, 14]


def test_precision_and_recall_counted_by_hand():
  """0.5 and 2.5 lie in real balls, 12 and 13 do not; 0, 1 and 3 lie in sampled ones, 7 does not."""
  found = values(manifold.precision_recall(k=1), inputs_of(SAMPLES, REAL, REAL))
  assert (found['precision'].estimate, found['recall'].estimate) == (2 / 4, 3 / 4)


def test_density_and_coverage_counted_by_hand():
  """0.5 lies in two balls, 2.5 in one: 3 over k m = 4; the ball of 7 holds no sample."""
  found = values(manifold.density_coverage(k=1), inputs_of(SAMPLES, REAL, REAL))
  assert (found['density'].estimate, found['coverage'].estimate) == (3 / 4, 3 / 4)


def test_sets_are_compared_in_equal_numbers_which_are_said():
  random = np.random.default_rng(6)
  one, other, real = (
    random.normal(shift, 1, (n, 3)).astype(np.float32) for shift, n in ((0.5, 60), (0, 80), (0, 50))
  )
  for parts in ([one, other, real], [other, one, real]):  # fewer samples than examples, and more
    for make, count, said in (
      (manifold.precision_recall, 60, 'k = 3, 60 of each'),
      (manifold.density_coverage, 60, 'over k = 5'),
      (manifold.vendi, 50, 'among 50 samples'),
      (manifold.sliced_wasserstein, 50, 'of 50 of each'),
    ):
      found = make().measure(inputs_of(*parts))
      assert said in found[0].meaning
      equal = make().measure(inputs_of(*(subset(part, count) for part in parts)))
      assert [each.value for each in found] == [each.value for each in equal]
  found = values(manifold.sliced_wasserstein(9, seed=4), inputs_of(one, real, other))
  assert found['sliced Wasserstein distance'] == manifold.sliced_distance(
    subset(one, 50), real, 9, 4
  )
  _, coverage = manifold.density_coverage(k=1).measure(inputs_of(SAMPLES, REAL, REAL))
  assert coverage.meaning.endswith('0.571 for equal distributions')  # 1 - 3 / 7
  assert coverage.counts == (3, 4, True, None, None)


def test_a_wider_ball():
  """k = 2: balls of radius 3, 2, 3, 6 around 0, 1, 3, 7; 0.5 is in three, 2.5 in four, 12 and 13 in [1, 13]."""
  counts, hit = manifold.balls(SAMPLES, REAL, manifold.radii(REAL, 2))
  np.testing.assert_array_equal(counts, [3, 4, 1, 1])
  assert hit.all()
  found = values(manifold.density_coverage(k=2), inputs_of(SAMPLES, REAL, REAL))
  assert (found['density'].estimate, found['coverage'].estimate) == ((3 + 4 + 1 + 1) / (2 * 4), 1)


def test_mode_collapse_and_noise_are_told_apart():
  random = np.random.default_rng(0)
  train, held_out = (
    np.concatenate([random.normal(c, 0.1, (200, 2)) for c in (0, 5)]) for _ in 'ab'
  )
  collapsed = random.normal(0, 0.1, (400, 2))
  noisy = np.concatenate([random.normal(c, 3, (200, 2)) for c in (0, 5)])
  one, other = (
    values(manifold.precision_recall(), inputs_of(x, train, held_out)) for x in (collapsed, noisy)
  )
  assert one['precision'].low > 0.8
  assert one['recall'].high < 0.6
  assert other['precision'].high < 0.3
  cover = [
    values(manifold.density_coverage(), inputs_of(x, train, held_out))['coverage']
    for x in (collapsed, held_out)
  ]
  assert cover[0].high < 0.55
  assert cover[1].low > 0.9


@pytest.mark.parametrize('n, k', [(20, 1), (20, 3), (50, 5)])
def test_coverage_of_equal_distributions_has_its_stated_expectation(n, k):
  random = np.random.default_rng(1)
  found = []
  for _ in range(400):
    real, samples = random.uniform(size=(n, 1)), random.uniform(size=(n, 1))
    order = np.sort(
      np.abs(real - real.T), axis=1
    )  # radii here without the search, which is tested elsewhere
    found.append(manifold.balls(samples, real, order[:, k])[1].mean())
  error = np.std(found) / np.sqrt(400)
  assert abs(np.mean(found) - manifold.expected_coverage(n, k)) < 4.5 * error


def test_vendi_counts_what_is_distinct():
  assert manifold.vendi_score(np.tile([[1.0, 2.0, 2.0]], (50, 1))) == pytest.approx(1)
  assert manifold.vendi_score(np.eye(7)) == pytest.approx(7)
  two = np.repeat(np.eye(2), 30, axis=0)
  assert manifold.vendi_score(two) == pytest.approx(2)
  uneven = np.repeat(np.eye(2), [10, 30], axis=0)
  assert manifold.vendi_score(uneven) == pytest.approx(
    np.exp(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
  )
  x = np.random.default_rng(2).normal(size=(30, 30))
  assert manifold.vendi_score(np.concatenate([x, x])) == pytest.approx(manifold.vendi_score(x))
  with pytest.raises(ValueError, match='row 3 of the features is zero'):
    manifold.vendi_score(np.eye(5)[:4] * np.array([1, 1, 1, 0])[:, None])


def test_class_entropy():
  assert manifold.class_entropy(np.eye(10)) == pytest.approx(10)
  assert manifold.class_entropy(np.eye(10)[[3, 3, 3]]) == pytest.approx(1)
  assert manifold.class_entropy(np.full((4, 5), 0.2)) == pytest.approx(5)


def test_sliced_distance_on_the_line_is_the_distance():
  """Shifted by 3: 3. Normal quantiles scaled by 2: (sigma_a - sigma_b) to the error of the quantiles."""
  x = np.random.default_rng(3).normal(size=(500, 1))
  assert manifold.sliced_distance(x, x + 3, 10) == pytest.approx(3, rel=1e-9)
  assert manifold.sliced_distance(x, 2 * x, 10) == pytest.approx(np.sqrt((x**2).mean()), rel=1e-9)


def test_sliced_distance_of_a_shift_in_the_plane():
  """E (delta . theta)^2 = |delta|^2 / d over directions."""
  x = np.random.default_rng(4).normal(size=(300, 4))
  found = manifold.sliced_distance(x, x + np.array([2.0, 0, 0, 0]), 4000)
  assert found == pytest.approx(np.sqrt(4 / 4), rel=0.05)
  with shapes.unchecked(), pytest.raises(ValueError, match='equal numbers'):
    manifold.sliced_distance(x, x[:5])


def test_metrics_name_their_held_out_value():
  random = np.random.default_rng(5)
  given = inputs_of(
    random.normal(1, 1, (100, 3)), random.normal(size=(200, 3)), random.normal(size=(80, 3))
  )
  assert set(values(manifold.vendi(), given)) == {'Vendi score', 'Vendi score, held-out'}
  found = values(manifold.sliced_wasserstein(), given)
  assert found['sliced Wasserstein distance'] > 2 * found['sliced Wasserstein distance, held-out']


def test_too_few_samples_name_the_least():
  plan = Plan(samples=5, classes=0, shape=(2,), train=500, held_out=100)
  with pytest.raises(ValueError, match='at least 6 samples and training examples, got 5 and 500'):
    manifold.density_coverage(k=5).check(plan)
  with pytest.raises(ValueError, match='at least 6 samples and training examples, got 9 and 5'):
    manifold.density_coverage(k=5).check(plan._replace(samples=9, train=5))
  manifold.density_coverage(k=5).check(plan._replace(samples=6, train=6))
  manifold.radii(REAL, 3)
  with pytest.raises(ValueError, match='limit .* got 3'):
    manifold.precision_recall(k=3, limit=3)
  with pytest.raises(ValueError, match='5-th neighbor need at least 6 rows, got 4'):
    manifold.radii(REAL, 5)
  with pytest.raises(ValueError, match='k .* got 0'):
    manifold.precision_recall(k=0)
