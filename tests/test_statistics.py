import itertools
import math

import numpy as np
import pytest
from scipy import stats

from diffusion import statistics


@pytest.mark.parametrize('successes, trials', [(0, 7), (1, 29), (15, 148), (81, 263), (40, 40)])
@pytest.mark.parametrize('confidence', [0.8, 0.95, 0.99])
def test_wilson_bounds_are_the_roots_of_its_quadratic(successes, trials, confidence):
  # (k/n - p)^2 = z^2 p (1 - p) / n as a quadratic in p.
  z2 = stats.norm.ppf((1 + confidence) / 2) ** 2
  share = successes / trials
  roots = np.sort(np.roots([1 + z2 / trials, -(2 * share + z2 / trials), share**2]))
  interval = statistics.wilson(successes, trials, confidence)
  assert interval.estimate == share
  np.testing.assert_allclose(interval[1:], roots, atol=1e-9)


@pytest.mark.parametrize(
  'successes, trials, low, high',
  # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3.
  [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_agrees_with_the_published_examples(successes, trials, low, high):
  interval = statistics.wilson(successes, trials)
  np.testing.assert_allclose(interval[1:], (low, high), atol=5.1e-5)


def test_wilson_covers_on_average_what_it_says_by_enumeration_of_all_outcomes():
  trials = 30
  bounds = [statistics.wilson(k, trials) for k in range(trials + 1)]
  shares = np.linspace(0.02, 0.98, 481)
  covers = np.array([[one.low <= p <= one.high for one in bounds] for p in shares])
  probability = stats.binom.pmf(np.arange(trials + 1), trials, shares[:, None])
  coverage = (covers * probability).sum(axis=1)
  assert abs(coverage.mean() - 0.95) < 0.01
  assert coverage.min() > 0.83


def test_t_interval_of_a_hand_calculated_example():
  # 1..5: mean 3, s^2 = 10/4, s/sqrt(5) = sqrt(1/2); t quantile with 4 degrees 2.776445 (tables).
  interval = statistics.mean_t([1, 2, 3, 4, 5])
  half = 2.776445 * math.sqrt(0.5)
  np.testing.assert_allclose(interval, (3, 3 - half, 3 + half), rtol=1e-6)


@pytest.mark.parametrize('confidence', [0.5, 0.9, 0.99])
def test_t_interval_ends_where_the_t_test_rejects(confidence):
  values = np.random.default_rng(0).gamma(2.0, size=9)
  interval = statistics.mean_t(values, confidence)
  for bound in interval[1:]:
    assert stats.ttest_1samp(values, bound).pvalue == pytest.approx(1 - confidence)


def test_bootstrap_of_symmetric_data_gives_the_quantiles_of_all_resamples():
  # No bias, no skew: the bounds are the plain quantiles of the 5^5 equally likely means.
  values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
  means = np.mean(list(itertools.product(values, repeat=5)), axis=1)
  low, high = np.quantile(means, [0.1, 0.9])
  interval = statistics.bootstrap_mean(values, confidence=0.8, resamples=20_000, seed=3)
  assert interval.estimate == 0
  np.testing.assert_allclose(interval[1:], (low, high), atol=0.21)  # means lie 0.2 apart


def test_bootstrap_covers_the_mean_of_skewed_data():
  rng = np.random.default_rng(1)
  hits = 0
  for seed in range(150):
    interval = statistics.bootstrap_mean(rng.exponential(size=50), resamples=400, seed=seed)
    hits += interval.low <= 1.0 <= interval.high
  # 0.95 less what skew costs at n = 50 and four standard errors (0.02) of 150 trials.
  assert hits / 150 >= 0.85


def test_bootstrap_is_a_function_of_its_seed():
  values = np.random.default_rng(0).normal(size=20)
  first, again, other = (statistics.bootstrap_mean(values, seed=seed) for seed in (4, 4, 5))
  assert first == again
  assert first != other
  assert first != statistics.bootstrap_mean(values, seed=4, resamples=100)


def test_equal_values_give_a_point():
  assert statistics.bootstrap_mean([0.25] * 4) == (0.25, 0.25, 0.25)
  assert statistics.mean_t([0.25] * 4) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize('trials', [1, 10, 300, 10_000_000])
@pytest.mark.parametrize('confidence', [0.5, 0.95, 0.999])
def test_zero_events_bound_is_where_no_event_becomes_too_unlikely(trials, confidence):
  bound = statistics.zero_event_upper(trials, confidence)
  assert trials * math.log1p(-bound) == pytest.approx(math.log1p(-confidence))
  # The one-sided exact (Clopper-Pearson) bound of zero successes.
  exact = stats.binomtest(0, trials, alternative='less').proportion_ci(confidence, method='exact')
  assert bound == pytest.approx(exact.high, rel=1e-6)


def test_zero_events_bound_is_the_rule_of_three():
  assert statistics.zero_event_upper(1000) == pytest.approx(3 / 1000, rel=0.005)


def test_excess_over_no_null_is_the_proportion_itself():
  plain = statistics.wilson(30, 100)
  found = statistics.excess_fraction(30, 100, 0, 10**7)
  assert found == pytest.approx(plain, abs=1e-5)
  assert statistics.excess_fraction(3, 100, 10, 100).estimate == pytest.approx((0.03 - 0.1) / 0.9)


@pytest.mark.parametrize('f, f0', [(0.3, 0.05), (0.02, 0.02), (0.9, 0.2)])
def test_excess_covers_on_average_what_it_says(f, f0):
  """Over 2,000 draws of both counts the interval holds (f - f0) / (1 - f0) in 93 to 98 of 100."""
  random = np.random.default_rng(0)
  inside = 0
  for a, b in zip(random.binomial(200, f, 2000), random.binomial(100, f0, 2000), strict=True):
    found = statistics.excess_fraction(int(a), 200, int(b), 100)
    inside += found.low <= (f - f0) / (1 - f0) <= found.high
  assert 0.93 < inside / 2000 < 0.985


def test_auc_counts_pairs():
  """Of 3 x 2 pairs, 4 in order and one tied: 4.5 / 6."""
  found = statistics.auc([1, 2, 3], [0.5, 2])
  assert found.estimate == pytest.approx(4.5 / 6)
  assert 0 <= found.low < found.estimate < found.high <= 1


def test_auc_of_separable_and_of_equal_scores():
  separable = statistics.auc(np.arange(10, 60), np.arange(-50, 0))
  assert (separable.estimate, separable.high) == (1, 1)
  assert 0.9 < separable.low < 1  # perfect on 50 pairs is not perfect
  same = statistics.auc(np.ones(50), np.ones(50))
  assert same.estimate == 0.5
  assert same.high - 0.5 == pytest.approx(0.5 - same.low)
  mirrored = statistics.auc(np.arange(-50, 0), np.arange(10, 60))
  assert mirrored == pytest.approx((0, 0, 1 - separable.low), abs=1e-9)


@pytest.mark.parametrize('m', [9, 4])
def test_auc_has_the_published_variance_at_its_bounds(m):
  """Hanley & McNeil (1982) in their own letters, with the mean of both numbers for each, as Newcombe has it."""
  n, z = 9, stats.norm.ppf(0.95)
  found = statistics.auc(np.arange(m) + 2.5, np.arange(n), confidence=0.9)
  for bound in found[1:]:
    q1, q2 = bound / (2 - bound), 2 * bound**2 / (1 + bound)
    spread = (q1 - bound**2 + q2 - bound**2) * ((m + n) / 2 - 1)
    variance = (bound * (1 - bound) + spread) / (m * n)
    np.testing.assert_allclose(abs(found.estimate - bound), z * variance**0.5, rtol=1e-8)


@pytest.mark.parametrize('sizes', [[1.0, 2.0, 4.0], [0.0, 1.0, 0.0, 3.0, 3.0], [0.0, 0.0]])
def test_the_least_p_value_is_that_of_the_clearest_signs(sizes):
  patterns = itertools.product((1, -1), repeat=len(sizes))
  every = [statistics.sign_flip(np.multiply(signs, sizes)) for signs in patterns]
  assert statistics.least_sign_flip(sizes) == min(every)


def test_what_is_usual_of_normal_values_is_so_many_standard_deviations():
  values = 7 + 3 * stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
  np.testing.assert_allclose(statistics.usual(values, 4.0, 1e-3), (7, 12), rtol=1e-3)
  assert statistics.usual([2.0, 2.0, 2.0], 4.0, 0.5) == (2.0, 2.0)
  assert statistics.usual([*values, 1e9], 4.0, 1e-3)[1] < 12.1


@pytest.mark.parametrize('shift', [0.0, 1.0, 2.5])
def test_auc_covers_that_of_two_normals(shift):
  """Phi(d / root 2), in 92 to 99 of 100 over 1,000 sets of 40 and 30."""
  random = np.random.default_rng(1)
  truth = stats.norm.cdf(shift / np.sqrt(2))
  inside = 0
  for _ in range(1000):
    found = statistics.auc(random.normal(shift, size=40), random.normal(size=30))
    inside += found.low <= truth <= found.high
  assert 0.92 < inside / 1000 < 0.99


def test_ratio_of_means_covers():
  """Of correlated pairs with ratio 2, in 92 to 97 of 100 over 1,000 sets of 30."""
  random = np.random.default_rng(2)
  inside = 0
  for _ in range(1000):
    b = random.gamma(4, size=30)
    found = statistics.ratio_of_means(2 * b + random.normal(size=30), b)
    inside += found.low <= 2 <= found.high
  assert 0.92 < inside / 1000 < 0.97
  assert statistics.ratio_of_means([2, 4, 6], [1, 2, 3]) == (2, 2, 2)
  # By hand: -2, and what is left of 2, 2, 8 over -1, -2, -3 is 0, -2, 2, whose deviation is 2.
  half = stats.t.ppf(0.9, 2) * 2 / 3**0.5 / 2
  found = statistics.ratio_of_means([2, 2, 8], [-1, -2, -3], 0.8)
  np.testing.assert_allclose(found, (-2, -2 - half, -2 + half))


@pytest.mark.parametrize(
  'interval, text',
  [
    ((0.34212, 0.25018, 0.42941), '0.34 [0.25, 0.43]'),
    ((1234.0, 1100.0, 1400.0), '1234 [1100, 1400]'),
    ((0.0, -0.004, 0.004), '0.0000 [-0.0040, 0.0040]'),
    ((3.1e-9, 2.9e-9, 3.3e-9), '3.10e-09 [2.90e-09, 3.30e-09]'),
    ((-3.1e-9, -3.3e-9, -2.9e-9), '-3.10e-09 [-3.30e-09, -2.90e-09]'),
    ((1.5e6, 1.4e6, 1.6e6), '1.50e+06 [1.40e+06, 1.60e+06]'),
    ((-2e6, -2.04e6, -1.96e6), '-2.000e+06 [-2.040e+06, -1.960e+06]'),
    ((123_456.0, 123_000.0, 124_000.0), '123456 [123000, 124000]'),
    ((0.5, 0.5, 0.5), '0.5 (all equal)'),
    ((-0.123456, -0.123456, -0.123456 + 1e-15), '-0.1235 (all equal)'),
    ((0.5, math.nan, math.nan), '0.5 [nan, nan]'),
    ((0.45, 0.008, 24.8), '0.45 [0.008, 25]'),
    ((0.45, -0.008, 24.8), '0 [-0, 25]'),
  ],
)
def test_an_interval_is_written_to_the_digits_its_width_warrants(interval, text):
  assert statistics.format_interval(statistics.Interval(*interval)) == text


@pytest.mark.parametrize(
  'call, name, value',
  [
    (lambda: statistics.wilson(-1, 3), 'successes', '-1'),
    (lambda: statistics.wilson(4, 3), 'successes', '4'),
    (lambda: statistics.wilson(0, 0), 'trials', '0'),
    (lambda: statistics.wilson(0.5, 3), 'successes', '0.5'),
    (lambda: statistics.wilson(1, 3, 95), 'confidence', '95'),
    (lambda: statistics.wilson(1, 3, math.nan), 'confidence', 'nan'),
    (lambda: statistics.mean_t([1.0, 2.0], 0.0), 'confidence', '0.0'),
    (lambda: statistics.mean_t([1.0]), 'values', r'\(1,\)'),
    (lambda: statistics.mean_t([1.0, math.inf]), 'values', 'inf'),
    (lambda: statistics.mean_t([[1.0, 2.0]]), 'values', r'\(1, 2\)'),
    (lambda: statistics.bootstrap_mean([1.0, math.nan]), 'values', 'nan'),
    (lambda: statistics.bootstrap_mean([1.0, 2.0], resamples=3), 'resamples', '3'),
    (lambda: statistics.bootstrap_mean([1.0, 2.0], seed=-1), 'seed', '-1'),
    (lambda: statistics.excess_fraction(5, 4, 0, 4), 'successes', '5'),
    (lambda: statistics.excess_fraction(1, 4, 3, 4), 'null', '0.75'),
    (lambda: statistics.excess_fraction(1, 4, 2, 4), 'null', '0.5'),
    (lambda: statistics.ratio_of_means([1.0, 2.0, 3.0], [1.0, 2.0]), 'pairs', '3 over 2'),
    (lambda: statistics.auc([1.0], [2.0, 3.0]), 'values', r'\(1,\)'),
    (lambda: statistics.auc([1.0, math.nan], [2.0, 3.0]), 'values', 'nan'),
    (lambda: statistics.ratio_of_means([1.0, 2.0], [1.0, -1.0]), 'denominator', '0'),
    (lambda: statistics.zero_event_upper(0), 'trials', '0'),
    (lambda: statistics.zero_event_upper(10, 1.0), 'confidence', '1.0'),
  ],
)
def test_bad_input_is_refused_by_name_and_value(call, name, value):
  with pytest.raises(ValueError, match=f'{name}.*{value}'):
    call()


def test_what_is_usual_reaches_deviations_of_the_mad_or_of_the_floor_from_the_median():
  assert statistics.usual([1.0, 2.0, 3.0, 4.0, 100.0], 10.0, 0.05) == (3.0, pytest.approx(14.826))
  assert statistics.usual([2.0] * 9, 10.0, 0.05) == (2.0, 0.5)
  normal = np.random.default_rng(0).normal(1.0, 3.0, 100_001).tolist()
  assert statistics.usual(normal, 1.0, 0.05) == pytest.approx((1.0, 3.0), abs=0.05)
