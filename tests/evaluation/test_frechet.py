"""Distances between distributions: closed forms, SciPy's matrix root, bias and its removal."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from diffusion.evaluation import features, frechet
from diffusion.evaluation.frechet import Moments
from diffusion.evaluation.metric import Plan, subset
from tests.evaluation.given import inputs_of, values


def spread(seed, width):
  root = np.random.default_rng(seed).normal(size=(width, 2 * width))
  return root @ root.T / width


def test_of_two_normals_on_the_line():
  """(mu_a - mu_b)^2 + (sigma_a - sigma_b)^2."""
  a, b = (
    Moments(np.array([1.0]), np.array([[4.0]]), 9),
    Moments(np.array([-2.0]), np.array([[0.25]]), 9),
  )
  assert frechet.distance(a, b) == pytest.approx(9 + (2 - 0.5) ** 2, rel=1e-12)


@pytest.mark.parametrize('width', [2, 10, 64])
def test_agrees_with_scipys_matrix_root(width):
  random = np.random.default_rng(0)
  mean = random.normal(size=(2, width))
  a, b = Moments(mean[0], spread(1, width), 9), Moments(mean[1], spread(2, width), 9)
  root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
  expected = ((mean[0] - mean[1]) ** 2).sum() + np.trace(
    a.covariance + b.covariance - 2 * root.real
  )
  assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-9)
  assert frechet.distance(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('width', [1, 3])
def test_moments_are_the_mean_and_the_unbiased_covariance_of_the_rows(width):
  x = np.random.default_rng(0).normal(size=(7, width)).astype(np.float32)
  found, wide = frechet.moments(x), x.astype(np.float64)
  away = wide - wide.sum(0) / 7
  np.testing.assert_allclose(found.mean, wide.sum(0) / 7)
  np.testing.assert_allclose(found.covariance, away.T @ away / 6)
  assert found.count == 7


@pytest.mark.parametrize('rows, width, low', [(200, 6, 20), (90, 12, 13)])
def test_the_subsets_of_the_extrapolation_are_as_large_as_they_are_said_to_be(
  monkeypatch, rows, width, low
):
  """From a tenth of the samples, or what a covariance takes, to all of them; no row twice in one."""
  seen, inside = [], frechet.moments
  monkeypatch.setattr(frechet, 'moments', lambda x: seen.append(x) or inside(x))
  monkeypatch.setattr(frechet, 'distance', lambda a, b: 2 + 3 / a.count)
  x = np.random.default_rng(0).normal(size=(rows, width))
  assert frechet.extrapolated(x, inside(x), 5) == pytest.approx(2)
  sizes = [len(part) for part in seen]
  assert (sizes[0], sizes[-1]) == (low, rows)
  assert np.ptp(np.diff(sizes)) <= 1
  assert all(len(np.unique(part, axis=0)) == len(part) for part in seen)


def test_of_singular_covariances():
  """Rank-one covariances u u^T and v v^T: the root's trace is |u.v|; SciPy's root warns and errs here."""
  u, v = np.array([3.0, 0, 4.0]), np.array([1.0, 2.0, 2.0])
  a, b = (Moments(np.zeros(3), np.outer(w, w), 9) for w in (u, v))
  assert frechet.distance(a, b) == pytest.approx(25 + 9 - 2 * 11, rel=1e-7)
  assert frechet.distance(a, a) == pytest.approx(0, abs=1e-6)


def test_extrapolation_takes_the_bias_of_few_samples_away():
  """Samples of the reference itself, in order of size: about 0 at infinity, well above at 400; means over 40 sets."""
  width = 12
  covariance = spread(3, width)
  reference = Moments(np.zeros(width), covariance, 10**9)
  root = np.linalg.cholesky(covariance)
  plain, infinite = [], []
  for seed in range(40):
    x = np.random.default_rng(100 + seed).normal(size=(400, width)) @ root.T
    x = x[np.argsort(x.sum(1))]  # no first part of them is like the whole
    plain.append(frechet.distance(frechet.moments(x), reference))
    infinite.append(frechet.extrapolated(x, reference, seed=seed))
  error = np.std(infinite, ddof=1) / np.sqrt(40)
  assert np.mean(plain) > 20 * np.std(plain, ddof=1) / np.sqrt(40)
  # What is left is of second order in 1 / N: a tenth of the bias, and chance.
  assert abs(np.mean(infinite)) < 4.5 * error + 0.1 * np.mean(plain)


def test_the_kernel_distance_is_unbiased():
  """Of equal distributions, over 300 pairs of 40 rows, the mean is 0 within its error."""
  random = np.random.default_rng(4)
  found = [
    frechet.kernel_distance(
      random.gamma(2, size=(40, 3)), random.gamma(2, size=(40, 3)), 4
    ).estimate
    for _ in range(300)
  ]
  assert abs(np.mean(found)) < 4.5 * np.std(found) / np.sqrt(300)
  assert np.std(found) > 0


def test_the_kernel_distance_of_known_moments():
  """On the line (x y + 1)^3 compares the first three moments: (dm3)^2 + 3 (dm2)^2 + 3 (dm1)^2."""
  random = np.random.default_rng(5)
  a, b = random.normal(0.5, 1, (40_000, 1)), random.normal(0, 0.8, (40_000, 1))
  moment = {0.5: (0.5, 1.25, 0.5**3 + 3 * 0.5), 0.0: (0, 0.64, 0)}
  gaps = np.subtract(moment[0.5], moment[0.0])
  found = frechet.kernel_distance(a, b, blocks=20)
  expected = (np.array([3, 3, 1]) * gaps**2).sum()
  assert abs(found.estimate - expected) < 4.5 * (found.high - found.low) / 2 / 2.09


def test_the_kernel_distance_of_a_block_is_the_sum_over_its_pairs():
  """Of 4 and 6 rows of 3 features, without a row beside itself."""
  a, b = (np.random.default_rng(n).normal(size=(n, 3)) for n in (4, 6))
  k = lambda x, y: (sum(x * y) / 3 + 1) ** 3  # noqa: E731
  within = lambda z: np.mean([k(*pair) for pair in itertools.permutations(z, 2)])  # noqa: E731
  expected = within(a) + within(b) - 2 * np.mean([k(x, y) for x in a for y in b])
  assert frechet._discrepancy(a, b) == pytest.approx(expected)
  # Two sets of one row again and again: all blocks are alike.
  x, y = np.array([1.0, 2, 0]), np.array([0.0, -1, 1])
  found = frechet.kernel_distance(np.tile(x, (9, 1)), np.tile(y, (20, 1)), 4)
  np.testing.assert_allclose(found, k(x, x) + k(y, y) - 2 * k(x, y))


def test_the_kernel_distances_interval_covers():
  """95 % intervals of 10 blocks hold the true 0 in 91 to 98 of 100, over 400 sets."""
  random = np.random.default_rng(6)
  inside = 0
  for _ in range(400):
    found = frechet.kernel_distance(random.normal(size=(200, 2)), random.normal(size=(200, 2)))
    inside += found.low <= 0 <= found.high
  assert 0.91 < inside / 400 < 0.98


def test_metrics_of_samples_beside_held_out_data():
  random = np.random.default_rng(7)
  train, held_out, samples = (random.normal(size=(n, 5)) for n in (900, 500, 600))
  found = values(frechet.frechet(), inputs_of(samples + 1, train, held_out))
  assert found['FD'] == pytest.approx(5, rel=0.15)
  assert found['FD, infinite samples'] == pytest.approx(5, rel=0.15)
  assert found['FD, 500 held-out examples'] < 0.1
  assert found['FD, 500 samples'] == pytest.approx(5, rel=0.15)
  found = values(frechet.kernel(), inputs_of(samples + 1, train, held_out))
  assert found['kernel distance'].low > 0
  assert found['kernel distance, held-out'].low < 0 < found['kernel distance, held-out'].high


def test_findings_are_of_as_many_as_they_say_and_in_as_many_blocks():
  """Samples that are fewer than held-out examples, and more than them."""
  random = np.random.default_rng(10)
  few, train, many = (
    random.normal(k, 1 + k, (n, 5)).astype(np.float32) for k, n in ((1, 40), (0, 80), (2, 70))
  )
  reference = frechet.moments(train)
  of = lambda x: frechet.distance(frechet.moments(subset(x, 40)), reference)  # noqa: E731
  for samples, held_out in ((few, many), (many, few)):
    given = inputs_of(samples, train, held_out)
    whole, infinite, one, other = frechet.frechet().measure(given)
    assert whole.meaning.startswith(f'{len(samples)} samples against 80 training examples')
    assert whole.value == frechet.distance(frechet.moments(samples), reference)
    assert infinite.value == frechet.extrapolated(samples, reference)
    assert (one.name, one.value) == ('FD(pixels), 40 samples', of(samples))
    assert (other.name, other.value) == ('FD(pixels), 40 held-out examples', of(held_out))
    found = values(frechet.kernel(blocks=4), given)
    assert found['kernel distance'] == frechet.kernel_distance(samples, train, 4)
    assert found['kernel distance, held-out'] == frechet.kernel_distance(held_out, train, 4)
  fewer = values(frechet.frechet(), inputs_of(many, train, held_out[:5]))
  assert set(fewer) == {'FD', 'FD, infinite samples'}  # a covariance takes more than 5
  assert len(values(frechet.frechet(), inputs_of(many, train, held_out[:6]))) == 4
  least = values(frechet.kernel(blocks=4), inputs_of(many, train, held_out[:8]))
  assert set(least) == {'kernel distance', 'kernel distance, held-out'}


def test_copies_of_the_training_set_score_best():
  random = np.random.default_rng(8)
  train, held_out = random.normal(size=(300, 5)), random.normal(size=(200, 5))
  found = values(frechet.frechet(), inputs_of(train.copy(), train, held_out))
  assert found['FD'] == pytest.approx(0, abs=1e-9)
  assert found['FD, 200 samples'] < found['FD, 200 held-out examples']


def test_perfect_samples_score_what_held_out_data_does_whatever_their_number():
  random = np.random.default_rng(9)
  train, held_out, samples = (random.normal(size=(n, 8)) for n in (500, 200, 4000))
  found = values(frechet.frechet(), inputs_of(samples, train, held_out))
  assert found['FD'] < 0.5 * found['FD, 200 held-out examples']  # fewer examples, a larger distance
  assert found['FD, 200 samples'] == pytest.approx(found['FD, 200 held-out examples'], rel=0.5)


def test_too_few_samples_name_the_least():
  plan = Plan(samples=100, classes=0, shape=(8, 8, 1), train=500, held_out=100)
  with pytest.raises(
    ValueError, match='64 features needs at least 130 samples, got 100: judge more of them'
  ):
    frechet.frechet().check(plan)
  with pytest.raises(
    ValueError, match='in 10 blocks needs at least 20 samples and training examples, got 19'
  ):
    frechet.kernel().check(plan._replace(samples=19))
  with pytest.raises(ValueError, match='at least 20 samples and training examples, got 100 and 19'):
    frechet.kernel().check(plan._replace(train=19))
  frechet.frechet().check(plan._replace(samples=130))
  frechet.kernel().check(plan._replace(samples=20, train=20))
  with pytest.raises(ValueError, match='limit .* got 19'):
    frechet.kernel(limit=19)
  frechet.extrapolated(np.random.default_rng(0).normal(size=(6, 2)), frechet.moments(np.eye(2)))
  with pytest.raises(ValueError, match='2 features needs at least 6 samples, got 5'):
    frechet.extrapolated(np.eye(5)[:, :2], frechet.moments(np.eye(2)))
  with pytest.raises(ValueError, match='two or more finite rows'):
    frechet.moments(np.zeros((1, 3)))
  with pytest.raises(ValueError, match='finite'):
    frechet.moments(np.full((4, 3), np.nan))


@pytest.mark.parametrize(
  'x, says',
  [
    (np.full((2, 8, 8, 1), 200.0), r'must be uint8 from 0 to 255, got float64 in \[200, 200\]'),
    (np.zeros((2, 8, 8), np.uint8), r'got uint8 \[2, 8, 8\]'),
    (np.zeros((2, 8), np.int32), r'got int32 \[2, 8\]'),
    (np.full((2, 8), np.inf), 'finite float vectors'),
  ],
)
def test_wrong_ranges_and_shapes_are_refused(x, says):
  with pytest.raises(ValueError, match=says):
    features.pixels().apply(x)


@pytest.mark.parametrize('channels', [1, 2, 4])
def test_pixels_are_brightness(channels):
  x = np.arange(128 * channels, dtype=np.uint8).reshape(2, 8, 8, channels)
  np.testing.assert_allclose(features.pixels().apply(x), x.reshape(2, -1) / 255, rtol=1e-6)
  assert features.distance_name(features.pixels()) == 'FD(pixels)'
