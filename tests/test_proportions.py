"""Proportions over runs: the published formula, what it comes to at its ends, and coverage by simulation."""

import functools
import itertools
import pathlib
import re

import numpy as np
import pytest
from scipy import stats

from diffusion import proportions, statistics
from diffusion.proportions import Counts
from diffusion.statistics import Interval


def counts(*pairs, **more):
  return [Counts(k, n, **more) for k, n in pairs]


def test_nothing_in_three_runs_is_as_uncertain_as_nothing_in_all_their_samples():
  """0 of 20 three times: the exact two-sided bound of 0 of 60, 1 - 0.025^(1/60); 20 of 20 its mirror image."""
  found = proportions.pooled(counts((0, 20), (0, 20), (0, 20)))
  assert found == pytest.approx((0, 0, 1 - 0.025 ** (1 / 60)))
  mirrored = proportions.pooled(counts((20, 20), (20, 20), (20, 20)))
  assert mirrored == pytest.approx((1, 0.025 ** (1 / 60), 1))


@pytest.mark.parametrize('runs', [1, 2, 3, 10])
@pytest.mark.parametrize('successes', [0, 1, 10, 19, 20])
def test_no_interval_is_without_width_and_each_holds_its_estimate(runs, successes):
  found = proportions.pooled(counts(*[(successes, 20)] * runs))
  assert 0 <= found.low <= successes / 20 <= found.high <= 1
  assert found.high - found.low > 0.01
  assert '(all equal)' not in statistics.format_interval(found)


def test_runs_that_differ_are_as_uncertain_as_students_interval_says():
  """Many samples in few runs: the variance over runs is all there is, and the bounds are near to Student's of them."""
  shares = [0.46, 0.50, 0.51, 0.55, 0.52]
  found = proportions.pooled(counts(*[(round(100_000 * p), 100_000) for p in shares]))
  student = statistics.mean_t(shares)
  np.testing.assert_allclose(found, student, atol=0.005)
  assert found.high - found.low > 25 * np.diff(statistics.wilson(254_000, 500_000)[1:])


def test_the_bounds_are_those_of_the_published_formula_by_hand():
  """2, 5 and 8 of 50: p = 0.1, v = 3/2 x 18 / 150^2 = 0.0012, n* = 75 (1.9760 / 4.3027)^2 = 15.818, x = 1.5818."""
  found = proportions.pooled(counts((2, 50), (5, 50), (8, 50)))
  trials = 75 * (1.97601 / 4.30265) ** 2
  low = stats.beta.ppf(0.025, 0.1 * trials, 0.9 * trials + 1)
  high = stats.beta.ppf(0.975, 0.1 * trials + 1, 0.9 * trials)
  assert found == pytest.approx((0.1, low, high), rel=1e-4)
  # 2 of 20, 5 of 50 and 17 of 80 at 90 %: p = 0.16, v = 3/2 (1.2^2 + 3^2 + 4.2^2) / 150^2.
  found = proportions.pooled(counts((2, 20), (5, 50), (17, 80)), 0.9)
  variance = 1.5 * (1.44 + 9 + 17.64) / 150**2
  trials = 0.16 * 0.84 / variance * (stats.t.ppf(0.95, 149) / stats.t.ppf(0.95, 2)) ** 2
  low = stats.beta.ppf(0.05, 0.16 * trials, 0.84 * trials + 1)
  high = stats.beta.ppf(0.95, 0.16 * trials + 1, 0.84 * trials)
  assert found == pytest.approx((0.16, low, high))


@pytest.mark.parametrize('m, n', [(3, 20), (3, 100), (6, 100)])
@pytest.mark.parametrize(
  'p, spread', [(0.01, 0), (0.05, 0), (0.05, 0.005), (0.3, 0.02), (0.9, 0.02)]
)
def test_it_covers_what_it_says_where_samples_and_runs_vary(m, n, p, spread):
  """Seeds with beta-distributed truths (intraclass correlation `spread`) and binomial counts: 94 % or more of 1,000."""
  random = np.random.default_rng(0)
  truth = np.full((1000, m), p)
  if spread:
    truth = random.beta(p * (1 / spread - 1), (1 - p) * (1 / spread - 1), (1000, m))
  interval = functools.cache(lambda *k: proportions.pooled(counts(*[(one, n) for one in k])))
  found = [interval(*map(int, sorted(row))) for row in random.binomial(n, truth)]
  assert np.mean([one.low <= p <= one.high for one in found]) >= 0.94


def test_the_same_real_examples_do_not_become_more_by_more_runs():
  shared = counts((3, 100), (3, 100), (3, 100), shared=True)
  one = stats.binomtest(3, 100).proportion_ci(0.95, 'exact')
  assert proportions.pooled(shared) == pytest.approx((0.03, one.low, one.high))
  fresh = proportions.pooled(counts((3, 100), (3, 100), (3, 100)))
  assert fresh.high - fresh.low < 0.7 * (one.high - one.low)


def test_the_excess_over_a_null_is_pooled_from_its_counts():
  none = counts((0, 20), (0, 20), (0, 20), null_successes=0, null_trials=10**7)
  assert proportions.pooled(none) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 60)), abs=1e-5)
  alone = Counts(30, 100, null_successes=5, null_trials=100)
  assert proportions.pooled([alone]) == statistics.excess_fraction(30, 100, 5, 100)


def test_the_confidence_asked_for_is_that_of_every_part():
  """Of a single run Wilson's at 99 %; of an excess, that of both proportions."""
  one = proportions.pooled(counts((3, 20)), 0.99)
  bounds = stats.binomtest(3, 20).proportion_ci(0.99, 'wilson')
  assert one == pytest.approx((0.15, bounds.low, bounds.high))
  alone = Counts(30, 100, null_successes=5, null_trials=100)
  assert proportions.pooled([alone], 0.99) == statistics.excess_fraction(30, 100, 5, 100, 0.99)
  # A proportion known to a hair leaves the null's own bounds: (f - u0) / (1 - u0) and (f - l0) / (1 - l0).
  runs = counts((3 * 10**7, 10**8), (3 * 10**7, 10**8), null_successes=5, null_trials=100)
  null = stats.binomtest(5, 100).proportion_ci(0.99, 'exact')
  by_hand = [(0.3 - end) / (1 - end) for end in (null.high, null.low)]
  assert proportions.pooled(runs, 0.99)[1:] == pytest.approx(by_hand, abs=1e-3)
  more = [run._replace(successes=6 * 10**7) for run in runs]
  by_hand = [0.3 / (1 - end) for end in (null.low, null.high)]
  assert proportions.difference(more, runs, 0.99)[1:] == pytest.approx(by_hand, abs=1e-3)


@pytest.mark.parametrize('p, q', [(0.0, 0.0), (0.02, 0.02), (0.3, 0.5), (1.0, 1.0)])
def test_paired_differences_cover_and_always_have_a_width(p, q):
  """Three pairs of 20 samples: 95 % or more of 1,000 hold p - q; where all are equal too."""
  random = np.random.default_rng(1)
  interval = functools.cache(
    lambda a, b: proportions.difference(*(counts(*[(k, 20) for k in x]) for x in (a, b)))
  )
  draws = (random.binomial(20, one, (1000, 3)).tolist() for one in (p, q))
  found = [interval(tuple(a), tuple(b)) for a, b in zip(*draws, strict=True)]
  assert np.mean([one.low <= p - q <= one.high for one in found]) >= 0.95
  assert min(one.high - one.low for one in found) > 0.1


@pytest.mark.parametrize(
  'p, q, null, real', [(0.9, 0.3, 0.3, 50), (0.3, 0.9, 0.1, 100), (0.5, 0.5, 0.3, 50)]
)
def test_differences_of_excesses_cover_where_the_null_is_of_few_real_examples(p, q, null, real):
  """Five pairs of 1,000 samples: 94 % or more of 100 hold (p - q) / (1 - f0)."""
  random = np.random.default_rng(2)
  held = []
  for _ in range(100):
    more = {'null_successes': int(random.binomial(real, null)), 'null_trials': real}
    draws = (random.binomial(1000, one, 5).tolist() for one in (p, q))
    low, high = proportions.difference(*(counts(*[(k, 1000) for k in x], **more) for x in draws))[
      1:
    ]
    held.append(low <= (p - q) / (1 - null) <= high)
  assert np.mean(held) >= 0.94


def test_a_quotient_is_fiellers_where_both_are_symmetric():
  """The roots of (a - R b)^2 = s_a^2 + R^2 s_b^2, by NumPy, for either sign of a."""
  for a in (3.0, 0.1, -3.0):
    found = statistics.quotient(Interval(a, a - 0.5, a + 0.5), Interval(2.0, 1.6, 2.4))
    roots = np.sort(np.roots([2.0**2 - 0.4**2, -2 * a * 2.0, a**2 - 0.5**2]))
    assert found == pytest.approx((a / 2, *roots))


def test_the_difference_is_students_where_pairs_differ_and_newcombes_where_they_do_not():
  """56 of 70 and 48 of 80 in two equal runs: as published (Newcombe 1998, table II, example (a))."""
  published = proportions.difference(counts((28, 35), (28, 35)), counts((24, 40), (24, 40)))
  np.testing.assert_allclose(published, (0.2, 0.0524, 0.3339), atol=5e-5)
  # The same examples in both runs are those of one: example (a) of half as many. At 80 %, by hand.
  shared = counts((28, 35), (28, 35), shared=True), counts((24, 40), (24, 40), shared=True)
  p, q = (stats.binomtest(*one).proportion_ci(0.8, method='wilson') for one in ((28, 35), (24, 40)))
  down, up = np.hypot(0.8 - p.low, q.high - 0.6), np.hypot(p.high - 0.8, 0.6 - q.low)
  assert proportions.difference(*shared, 0.8) == pytest.approx((0.2, 0.2 - down, 0.2 + up))
  far = [(1000, 2000), (1500, 2000), (1300, 2000)], [(900, 2000), (700, 2000), (1100, 2000)]
  for confidence in (0.95, 0.8):
    found = proportions.difference(*(counts(*one) for one in far), confidence)
    student = statistics.paired_difference(*([k / n for k, n in one] for one in far), confidence)
    assert found == pytest.approx(student)


def test_the_ratio_is_katzs_where_pairs_agree_and_students_where_they_do_not():
  """15 of 30 over 10 of 40 in two equal runs: 2 with log deviation sqrt(1/30 - 1/60 + 1/20 - 1/80), by hand."""
  found = proportions.ratio(counts((15, 30), (15, 30)), counts((10, 40), (10, 40)))
  reach = np.exp(1.959964 * np.sqrt(1 / 30 - 1 / 60 + 1 / 20 - 1 / 80))
  assert found == pytest.approx((2, 2 / reach, 2 * reach), rel=1e-6)
  # The same examples in both runs, at 80 %: as of one of them.
  shared = counts((15, 30), (15, 30), shared=True), counts((10, 40), (10, 40), shared=True)
  reach = np.exp(stats.norm.ppf(0.9) * np.sqrt(1 / 15 - 1 / 30 + 1 / 10 - 1 / 40))
  assert proportions.ratio(*shared, 0.8) == pytest.approx((2, 2 / reach, 2 * reach))
  far = [(1000, 2000), (1500, 2000), (1300, 2000)], [(900, 2000), (700, 2000), (1100, 2000)]
  for confidence in (0.95, 0.8):
    student = statistics.paired_ratio(*([k / n for k, n in one] for one in far), confidence)
    found = proportions.ratio(*(counts(*one) for one in far), confidence)
    assert found == pytest.approx(student)
  assert proportions.ratio(counts((20, 20), (20, 20)), counts((20, 20), (20, 20))) is None


def test_the_least_p_is_that_of_the_most_extreme_signs():
  for sizes in ([1, 2, 3], [0.5, 0.5, 0.5, 0.5], [0, 1, 2], [0, 0]):
    every = [
      statistics.sign_flip([s * d for s, d in zip(signs, sizes, strict=True)])
      for signs in itertools.product((1, -1), repeat=len(sizes))
    ]
    assert statistics.least_sign_flip(sizes) == min(every)


@pytest.mark.parametrize(
  'page', ['README.md', 'docs/STUDIES.md', 'docs/PERFORMANCE.md', 'docs/METRICS.md']
)
def test_no_page_of_the_project_shows_an_interval_without_width(page):
  text = (pathlib.Path(__file__).parents[1] / page).read_text()
  pairs = re.findall(r'\[(-?[0-9][-+0-9.e]*), (-?[0-9][-+0-9.e]*)\]', text)
  assert [low for low, high in pairs if low == high] == []


def test_bad_counts_are_refused():
  with pytest.raises(ValueError, match='at least one run'):
    proportions.pooled([])
  with pytest.raises(ValueError, match='confidence .* 95'):
    proportions.pooled(counts((1, 2), (1, 2)), 95)
  with pytest.raises(ValueError, match='1 treated and 2 baseline'):
    proportions.difference(counts((1, 2)), counts((1, 2), (1, 2)))
