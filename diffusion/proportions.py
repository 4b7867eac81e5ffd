"""Proportions over several runs: counts that each run keeps, pooled by seed and then by sample, and their differences.

A proportion is uncertain also where every run found the same: 0 of 20 three times says no more than 0 of 60 does. Its
interval is therefore made from the counts, never from the proportions alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from diffusion.statistics import (
  Interval,
  check_confidence,
  complement,
  excess_over,
  paired_difference,
  paired_ratio,
  quotient,
  wilson,
)


class Counts(NamedTuple):
  """What a run's proportion was computed from.

  Attributes:
    successes, trials: k of n.
    shared: the trials are the same real examples in every run, so that more runs are no more trials.
    null_successes, null_trials: where the quantity is what the proportion has beyond that of real examples.
  """

  successes: int
  trials: int
  shared: bool = False
  null_successes: int | None = None
  null_trials: int | None = None

  @property
  def share(self) -> float:
    """k / n."""
    return self.successes / self.trials

  def interval(self, confidence: float = 0.95) -> Interval:
    """Of this run alone: Wilson's, or that of the excess over the null; `confidence` is its coverage, in (0, 1)."""
    own = wilson(self.successes, self.trials, confidence)
    return own if self.null_trials is None else excess_over(own, _null([self], confidence))


def pooled(runs: Sequence[Counts], confidence: float = 0.95) -> Interval:
  """The proportion over runs, hierarchically: runs (seeds) are drawn first, samples within them.

  p = sum k_i / sum n_i, with the variance over runs v = m / (m - 1) sum (k_i - p n_i)^2 / (sum n_i)^2. The bounds are
  Clopper and Pearson's of p n* successes in n* = min(sum n_i, p (1 - p) / v (t_{n-1} / t_{m-1})^2) trials, t the
  quantiles with as many degrees of freedom: as wide as Student's over the runs where these differ, and never narrower
  than for all samples in one run. Where p is 0 or 1, v is 0 and n* all of the trials: what a seed that was not run
  would have found, these do not say. It covers less where most runs have none and few have many (64 % for 95 %, of five
  runs of 200 samples whose true shares have the mean 0.01 and the intraclass correlation 0.1).

  Args:
    runs: the counts of each; one alone has its own interval. Where the trials are shared, n* is at most those of a run.
    confidence: two-sided coverage, in (0, 1).

  Returns:
    The proportion and its bounds in [0, 1]; where the runs have a null, the excess over it (see
    `statistics.excess_fraction`).

  Raises:
    ValueError: no run, or a bad confidence.

  Source: Korn & Graubard (1998), Survey Methodology 24:193-201, section 3, with runs as the clusters.
  """
  check_confidence(confidence)
  if not runs:
    raise ValueError('a pooled proportion needs the counts of at least one run, got none')
  if len(runs) == 1:
    return runs[0].interval(confidence)
  k = np.array([run.successes for run in runs], np.float64)
  n = np.array([run.trials for run in runs], np.float64)
  p, tail = k.sum() / n.sum(), (1 - confidence) / 2
  most = n.max() if runs[0].shared else n.sum()
  variance = len(runs) / (len(runs) - 1) * ((k - p * n) ** 2).sum() / n.sum() ** 2
  trials = most
  if variance > 0:
    degrees = stats.t.ppf(1 - tail, [max(n.sum() - 1, 1), len(runs) - 1])
    trials = min(most, p * (1 - p) / variance * (degrees[0] / degrees[1]) ** 2)
  hits, misses = p * trials, (1 - p) * trials
  low = stats.beta.ppf(tail, hits, misses + 1) if hits > 0 else 0.0
  high = stats.beta.ppf(1 - tail, hits + 1, misses) if misses > 0 else 1.0
  found = Interval(float(p), float(low), float(high))
  return found if runs[0].null_trials is None else excess_over(found, _null(runs, confidence))


def _null(runs: Sequence[Counts], confidence: float) -> Interval:
  """The proportion among real examples, which are the same in every run."""
  null = [Counts(run.null_successes, run.null_trials, shared=True) for run in runs]
  return pooled(null, confidence)


def difference(
  treated: Sequence[Counts], baseline: Sequence[Counts], confidence: float = 0.95
) -> Interval:
  """The mean difference of paired proportions: Student's interval of the pairs, nowhere narrower than by the counts.

  By the counts, as if all runs of a side were one: p - q with the bounds p - q - sqrt((p - l_p)^2 + (u_q - q)^2) and
  p - q + sqrt((u_p - p)^2 + (q - l_q)^2), l and u those of Wilson. Each end is the farther one. The excess over a null
  f0, which is the same on both sides, differs by that over 1 - f0, which is as uncertain as f0 (`statistics.quotient`).

  Args:
    treated, baseline: the counts of each run, the same seed at the same place, two or more.
    confidence: two-sided coverage, in (0, 1).

  Raises:
    ValueError: lists of different lengths, or fewer than two.

  Source: Newcombe (1998), Statistics in Medicine 17:873-890, method 10; the union with Student's is this project's.
  """
  shares = ([run.share for run in runs] for runs in (treated, baseline))
  pairs = paired_difference(*shares, confidence)
  p, q = (wilson(*_as_one_run(runs), confidence) for runs in (treated, baseline))
  middle = p.estimate - q.estimate
  low = middle - math.hypot(p.estimate - p.low, q.high - q.estimate)
  high = middle + math.hypot(p.high - p.estimate, q.estimate - q.low)
  found = Interval(pairs.estimate, min(pairs.low, low), max(pairs.high, high))
  if treated[0].null_trials is None:
    return found
  return quotient(found, complement(_null(treated, confidence)))


def ratio(
  treated: Sequence[Counts], baseline: Sequence[Counts], confidence: float = 0.95
) -> Interval | None:
  """The geometric mean of paired ratios: Student's interval of their logarithms, nowhere narrower than by the counts.

  By the counts, as if all runs of a side were one: log(p / q) -+ z sqrt(1/k_p - 1/n_p + 1/k_q - 1/n_q). Each end is the
  farther one.

  Args:
    treated, baseline: the counts of each run, the same seed at the same place, two or more, each of some successes.
    confidence: two-sided coverage, in (0, 1).

  Returns:
    The ratio; None where all are successes, which leaves its variance open.

  Raises:
    ValueError: lists of different lengths, fewer than two, or a run without a success.

  Source: Katz et al. (1978), Biometrics 34:469-474, method C; the union with Student's is this project's.
  """
  shares = ([run.share for run in runs] for runs in (treated, baseline))
  pairs = paired_ratio(*shares, confidence)
  p, q = (_as_one_run(runs) for runs in (treated, baseline))
  variance = sum(1 / k - 1 / n for k, n in (p, q))
  if variance == 0:
    return None
  middle = math.log(p[0] / p[1]) - math.log(q[0] / q[1])
  half = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(variance)
  low, high = math.exp(middle - half), math.exp(middle + half)
  return Interval(pairs.estimate, min(pairs.low, low), max(pairs.high, high))


def _as_one_run(runs: Sequence[Counts]) -> tuple[int, int]:
  """(successes, trials) of all together; shared trials count once."""
  times = len(runs) if runs[0].shared else 1
  k, n = sum(run.successes for run in runs), sum(run.trials for run in runs)
  return round(k / times), round(n / times)
