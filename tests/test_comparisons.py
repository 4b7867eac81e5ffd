"""Paired comparisons: enumerations by hand, published tables, levels and coverage by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from diffusion import statistics


def test_sign_flip_counts_patterns():
  """Of the 8 signs of 1, 2, 4 the sums beyond |1 + 2 - 4| = 1 in size: all eight; beyond 7: two."""
  assert statistics.sign_flip([1, 2, -4]) == 1
  assert statistics.sign_flip([1, 2, 4]) == 2 / 8
  assert statistics.sign_flip([-1, 2, 4]) == 4 / 8
  assert (
    statistics.sign_flip([0.1, 0.2, -0.3]) == 1
  )  # rounding does not exclude the observed pattern


@pytest.mark.parametrize('n', [2, 6, 11])
def test_sign_flip_is_brute_force(n):
  values = np.random.default_rng(n).normal(0.5, 1, n)
  sums = [abs(np.dot(s, values)) for s in itertools.product((1, -1), repeat=n)]
  assert statistics.sign_flip(values) == pytest.approx(
    np.mean([s >= sums[0] - 1e-12 for s in sums])
  )
  assert statistics.sign_flip(np.abs(values)) == pytest.approx(2.0 ** (1 - n))


def test_sign_flip_keeps_its_level():
  """Of 2,000 sets of eight normal differences about 0, at most 5 % (and 4.5 errors) are below 0.05."""
  random = np.random.default_rng(0)
  below = sum(statistics.sign_flip(random.normal(size=8)) < 0.05 for _ in range(2000))
  assert below < 100 + 4.5 * math.sqrt(95)
  assert below > 40  # and it is no idle test


def test_holm_of_a_textbook_example():
  """Five p-values: 0.01 x 5, 0.02 x 4, then max with 0.03 x 3, 0.04 x 2, 0.05 x 1."""
  found = statistics.holm([0.04, 0.01, 0.05, 0.02, 0.03])
  np.testing.assert_allclose(found, [0.09, 0.05, 0.09, 0.08, 0.09])
  assert statistics.holm([0.6, 0.7]) == [1, 1]
  assert statistics.holm([]) == []


def test_holm_bounds_the_family_wise_error():
  random = np.random.default_rng(1)
  errors = sum(min(statistics.holm(random.uniform(size=6))) < 0.05 for _ in range(4000))
  assert errors / 4000 < 0.05 + 4.5 * math.sqrt(0.05 * 0.95 / 4000)


def test_paired_ratio_is_that_of_the_logarithms():
  treated, baseline = [2.0, 4.0, 9.0], [1.0, 2.0, 3.0]
  logs = np.log([2, 2, 3])
  found = statistics.paired_ratio(treated, baseline)
  assert found.estimate == pytest.approx(stats.gmean([2, 2, 3]))
  expected = statistics.mean_t(logs)
  assert (found.low, found.high) == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
  assert statistics.paired_difference(treated, baseline).estimate == pytest.approx(3)


def test_hierarchical_bootstrap_sees_both_sources_of_spread():
  """Twelve seeds with 50 values each: the interval of N(0, 1) seeds with N(0, 3) values, in 85 to 98 of 100."""
  random = np.random.default_rng(2)
  inside = 0
  for trial in range(200):
    groups = random.normal(size=(12, 1)) + random.normal(0, 3, (12, 50))
    found = statistics.hierarchical_bootstrap(groups, resamples=500, seed=trial)
    assert found.estimate == pytest.approx(groups.mean())
    inside += found.low <= 0 <= found.high
  assert 0.85 < inside / 200 < 0.985
  narrow = statistics.hierarchical_bootstrap(np.zeros((5, 4)))
  assert narrow == (0, 0, 0)
  first, again, seed, fewer = (
    statistics.hierarchical_bootstrap(groups, resamples=number, seed=one)
    for number, one in ((500, 4), (500, 4), (500, 5), (100, 4))
  )
  assert first == again
  assert len({first, seed, fewer}) == 3
  # A group counts by its mean, however many values it has.
  assert statistics.hierarchical_bootstrap([[0.0] * 3, [1.0]]).estimate == 0.5


@pytest.mark.parametrize(
  'call, says',
  [
    (lambda: statistics.sign_flip([1.0]), '2 to 20 finite numbers'),
    (lambda: statistics.sign_flip([1.0] * 21), '2 to 20 finite numbers'),
    (lambda: statistics.sign_flip([1.0, math.nan]), '2 to 20 finite numbers'),
    (lambda: statistics.holm([1.2]), r'in \[0, 1\], got \[1.2\]'),
    (lambda: statistics.paired_ratio([1.0, 2.0], [1.0, 0.0]), 'baseline holds 0.0'),
    (lambda: statistics.paired_ratio([1.0, -2.0], [1.0, 1.0]), 'treated holds -2.0'),
    (lambda: statistics.paired_difference([1.0, 2.0], [1.0]), '2 treated and 1 baseline'),
    (lambda: statistics.hierarchical_bootstrap([[1.0]]), 'two or more lists'),
    (lambda: statistics.hierarchical_bootstrap([[1.0], [math.nan]]), 'two or more lists'),
    (lambda: statistics.hierarchical_bootstrap([[1.0], [2.0]], resamples=5), 'resamples .* 5'),
  ],
)
def test_bad_input_is_named(call, says):
  with pytest.raises(ValueError, match=says):
    call()
