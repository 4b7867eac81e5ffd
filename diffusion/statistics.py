"""Intervals for what runs report: proportions, means and paired effects over seeds, areas, counts of zero; and tests.

Each function takes plain numbers; nothing here knows of JAX. The unit of a mean over runs is the training seed, and a
paired comparison is of runs that share every random stream but the factor compared.
"""

import itertools
import math
import operator
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

_EXACT = 20  # pairs up to which all sign patterns are enumerated


class Interval(NamedTuple):
  """An estimate with the bounds of its confidence interval, `low <= estimate <= high`."""

  estimate: float
  low: float
  high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
  """Wilson's score interval for a proportion.

  The bounds are the two p with `|k/n - p| = z sqrt(p (1 - p) / n)`, z the normal quantile.

  Args:
    successes: k, an integer in [0, trials].
    trials: n, an integer >= 1.
    confidence: two-sided coverage, in (0, 1).

  Returns:
    The proportion k/n and its bounds, all in [0, 1].

  Raises:
    ValueError: for a value outside its range.

  Source: Wilson (1927), JASA 22:209-212.
  """
  trials = _integer('trials', trials, low=1)
  successes = _integer('successes', successes, low=0)
  if successes > trials:
    raise ValueError(f'successes must be at most trials={trials}, got {successes}')
  check_confidence(confidence)
  bounds = stats.binomtest(successes, trials).proportion_ci(confidence, method='wilson')
  return Interval(successes / trials, float(bounds.low), float(bounds.high))


def mean_t(values: Sequence[float], confidence: float = 0.95) -> Interval:
  """Student's t interval for a mean: `mean -+ t_{n-1} s / sqrt(n)`.

  Args:
    values: [n], n >= 2 finite numbers, one for each independent unit (a seed, as a rule).
    confidence: two-sided coverage, in (0, 1).

  Returns:
    The mean and its bounds, in the unit of the values.

  Raises:
    ValueError: for fewer than two values, a value that is not finite, or a bad confidence.

  Source: Student (1908), Biometrika 6:1-25.
  """
  values = _sample(values)
  check_confidence(confidence)
  mean = float(np.mean(values))
  quantile = stats.t.ppf((1 + confidence) / 2, values.size - 1)
  half_width = float(quantile * stats.sem(values))
  return Interval(mean, mean - half_width, mean + half_width)


def paired_difference(
  treated: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> Interval:
  """The mean of paired differences with Student's interval.

  Args:
    treated, baseline: [n] each, n >= 2, the same seed at the same place.
    confidence: two-sided coverage, in (0, 1).

  Raises:
    ValueError: lists of different lengths, or what `mean_t` refuses.
  """
  return mean_t(_pairs(treated, baseline), confidence)


def paired_ratio(
  treated: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> Interval:
  """The geometric mean of paired ratios, exp of the mean log-ratio, with Student's interval of the log-ratios.

  Args:
    treated, baseline: [n] each, n >= 2 positive numbers, the same seed at the same place.
    confidence: two-sided coverage, in (0, 1).

  Raises:
    ValueError: lists of different lengths, or a number that is not positive.
  """
  for name, given in (('treated', treated), ('baseline', baseline)):
    if not all(value > 0 for value in given):
      raise ValueError(f'a ratio needs positive numbers, {name} holds {min(given)!r}')
  found = mean_t(_pairs(np.log(treated), np.log(baseline)), confidence)
  return Interval(*map(float, np.exp(found)))


def ratio_of_means(
  numerator: Sequence[float], denominator: Sequence[float], confidence: float = 0.95
) -> Interval:
  """The ratio `mean(a) / mean(b)` of paired values with the delta method's t interval.

  Its variance is that of the mean of `a - r b`, over `mean(b)^2`.

  Args:
    numerator, denominator: [n] each, n >= 2 finite numbers, paired; the denominator's mean is not zero.
    confidence: two-sided coverage, in (0, 1).

  Returns:
    The ratio and its bounds.

  Raises:
    ValueError: for lists of different lengths, too few values, or a value out of range.

  Source: Cochran (1977), Sampling Techniques, equation 6.12.
  """
  a, b = _sample(numerator), _sample(denominator)
  if a.size != b.size or b.mean() == 0:
    raise ValueError(
      f'a ratio needs pairs and a mean denominator other than 0, got {a.size} over {b.size} values of mean {b.mean()!r}'
    )
  ratio = float(a.mean() / b.mean())
  rest = mean_t(a - ratio * b, confidence)
  half = (rest.high - rest.low) / 2 / abs(float(b.mean()))
  return Interval(ratio, ratio - half, ratio + half)


def bootstrap_mean(
  values: Sequence[float], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
  """Bias-corrected and accelerated bootstrap interval for a mean.

  It undercovers for n <= 8, where `mean_t` is the one to report. Where all values are equal every
  resample has the same mean, and the interval is that single point.

  Args:
    values: [n], n >= 2 finite numbers.
    confidence: two-sided coverage, in (0, 1).
    resamples: number of resamples, >= 100.
    seed: integer >= 0; the same seed gives the same interval.

  Returns:
    The mean and its bounds, in the unit of the values.

  Raises:
    ValueError: for fewer than two values, a value that is not finite, or a value out of range.

  Source: Efron (1987), JASA 82:171-185.
  """
  values = _sample(values)
  check_confidence(confidence)
  resamples = _integer('resamples', resamples, low=100)
  seed = _integer('seed', seed, low=0)
  mean = float(np.mean(values))
  if np.all(values == values[0]):
    return Interval(mean, mean, mean)
  bounds = stats.bootstrap(
    (values,),
    np.mean,
    n_resamples=resamples,
    batch=max(1, 2**22 // values.size),  # 32 MiB of resampled values at a time
    confidence_level=confidence,
    method='BCa',
    rng=np.random.default_rng(seed),
  ).confidence_interval
  return Interval(mean, float(bounds.low), float(bounds.high))


def hierarchical_bootstrap(
  groups: Sequence[Sequence[float]], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
  """Percentile interval of the mean of group means, groups (seeds) resampled first and their values within them.

  It undercovers for few groups; `mean_t` of the group means is the one to report.

  Args:
    groups: at least two, each of at least one finite number.
    confidence: two-sided coverage, in (0, 1).
    resamples: >= 100.
    seed: of the resamples.

  Raises:
    ValueError: for a value outside its range.

  Source: Davison & Hinkley (1997), Bootstrap Methods and their Application, section 3.8.
  """
  arrays = [np.asarray(group, np.float64) for group in groups]
  if len(arrays) < 2 or not all(a.ndim == 1 and a.size and np.isfinite(a).all() for a in arrays):
    raise ValueError(f'groups must be two or more lists of finite numbers, got {list(groups)!r}')
  check_confidence(confidence)
  resamples = _integer('resamples', resamples, low=100)
  random = np.random.default_rng(seed)
  # Each group's resampled means first; a resample then takes one of them for each group it drew.
  means = np.stack([random.choice(a, (resamples, a.size)).mean(1) for a in arrays])
  drawn = random.integers(len(arrays), size=(len(arrays), resamples))
  totals = means[drawn, random.integers(resamples, size=drawn.shape)].mean(0)
  tail = (1 - confidence) / 2
  low, high = np.quantile(totals, [tail, 1 - tail])
  return Interval(float(np.mean([a.mean() for a in arrays])), float(low), float(high))


def excess_fraction(
  successes: int, trials: int, null_successes: int, null_trials: int, confidence: float = 0.95
) -> Interval:
  """What a proportion f has beyond its null f0: `(f - f0) / (1 - f0)`, the share that f0 leaves unexplained.

  It is one minus the ratio of the two complements; the ratio's bounds are recovered from the two Wilson intervals.

  Args:
    successes, trials: of f.
    null_successes, null_trials: of f0, which must be below 1/2.
    confidence: two-sided coverage, in (0, 1).

  Returns:
    The excess and its bounds, at most 1; negative where f is below its null.

  Raises:
    ValueError: for a value outside its range.

  Source: Donner & Zou (2012), Statistical Methods in Medical Research 21:347-359, equation 7.
  """
  null = wilson(null_successes, null_trials, confidence)
  return excess_over(wilson(successes, trials, confidence), null)


def excess_over(share: Interval, null: Interval) -> Interval:
  """`excess_fraction` of two proportions with any intervals in [0, 1], from independent data.

  Args:
    share: f.
    null: f0, below 1/2.

  Raises:
    ValueError: the null is not below 1/2.
  """
  if null.estimate >= 0.5:
    raise ValueError(
      f'the null must be below 1/2, got {null.estimate:.3g}: the event says nothing here'
    )
  return complement(quotient(complement(share), complement(null)))


def complement(share: Interval) -> Interval:
  """1 - p, whose bounds are those of p, mirrored."""
  return Interval(1 - share.estimate, 1 - share.high, 1 - share.low)


def quotient(top: Interval, bottom: Interval) -> Interval:
  """The ratio of two numbers of independent data, from their intervals.

  The bounds are the R at which the interval of top - R bottom, recovered from the two, ends at 0.

  Args:
    top: of either sign.
    bottom: above 0, its upper bound below twice its estimate.

  Source: Donner & Zou (2012), Statistical Methods in Medical Research 21:347-359, equation 7.
  """
  product = top.estimate * bottom.estimate

  def bound(top_end: float, bottom_end: float, sign: int) -> float:
    a = top_end * (2 * top.estimate - top_end)
    b = bottom_end * (2 * bottom.estimate - bottom_end)
    return (product + sign * math.sqrt(max(product**2 - a * b, 0.0))) / b  # 0 but for rounding

  # A positive ratio is least over the greatest bottom, a negative one over the least.
  low = bound(top.low, bottom.high if top.low > 0 else bottom.low, -1)
  high = bound(top.high, bottom.low if top.high > 0 else bottom.high, 1)
  return Interval(top.estimate / bottom.estimate, low, high)


def auc(positive: Sequence[float], negative: Sequence[float], confidence: float = 0.95) -> Interval:
  """The probability that a positive scores above a negative (ties count half), the area under the ROC curve.

  The bounds are the two A with `|A_hat - A| = z sqrt(V(A))`, V the variance under exponential scores.

  Args:
    positive: [m], m >= 2 finite scores of what should score high.
    negative: [n], n >= 2 finite scores of what should score low.
    confidence: two-sided coverage, in (0, 1).

  Returns:
    The area and its bounds, in [0, 1].

  Raises:
    ValueError: for too few values, a value that is not finite, or a bad confidence.

  Source: Hanley & McNeil (1982), Radiology 143:29-36, for V; Newcombe (2006), Statistics in Medicine 25:559-573,
  method 5, for the bounds.
  """
  positive, negative = _sample(positive), _sample(negative)
  check_confidence(confidence)
  m, n = positive.size, negative.size
  estimate = float(stats.mannwhitneyu(positive, negative).statistic / (m * n))
  z = stats.norm.ppf((1 + confidence) / 2)
  extra = (m + n) / 2 - 1

  def distance(a: float) -> float:
    variance = a * (1 - a) / (m * n) * (1 + extra * ((1 - a) / (2 - a) + a / (1 + a)))
    return (estimate - a) ** 2 - z**2 * variance

  # At 0 and 1 both sides vanish, which is not the root sought.
  inside = min(max(estimate, 1e-12), 1 - 1e-12)
  low = optimize.brentq(distance, 0, inside) if distance(0) > 0 else 0.0
  high = optimize.brentq(distance, inside, 1) if distance(1) > 0 else 1.0
  return Interval(estimate, low, high)


def sign_flip(differences: Sequence[float]) -> float:
  """The exact two-sided p-value of paired differences under a distribution symmetric about 0.

  The share of the 2^n patterns of signs whose mean is at least as far from 0 as the observed one; its least value is
  2^(1 - n), so p < 0.05 takes six pairs.

  Args:
    differences: [n], 2 <= n <= 20 finite numbers.

  Raises:
    ValueError: a number that is not finite, or too few or too many for enumeration.

  Source: Fisher (1935), The Design of Experiments, section 21.
  """
  values = np.asarray(differences, np.float64)
  if values.ndim != 1 or not 2 <= values.size <= _EXACT or not np.isfinite(values).all():
    raise ValueError(f'differences must be 2 to {_EXACT} finite numbers, got {list(differences)!r}')
  # Not `scipy.stats.permutation_test`: where terms cancel its rounding parts what is equal (it gives 7/8 for
  # -2, -4, 4, 2 over 15, whose p is 1), and at 20 pairs it takes five times as long.
  signs = np.array(list(itertools.product((1, -1), repeat=values.size - 1)))
  sums = np.abs(values[0] + signs @ values[1:])  # the other half of the patterns mirrors these
  return float((sums >= abs(values.sum()) - 1e-12 * np.abs(values).sum()).mean())


def least_sign_flip(differences: Sequence[float]) -> float:
  """The least p-value that `sign_flip` could give for differences of these sizes: 2^(1 - n) for n that are not 0.

  Args:
    differences: [n] numbers.
  """
  return min(1.0, 2.0 ** (1 - np.count_nonzero(differences)))


def holm(p_values: Sequence[float]) -> list[float]:
  """P-values adjusted for their number: the family-wise error stays below a level if those below it are rejected.

  p_(i) -> max_{j <= i} min(1, (m - j + 1) p_(j)) in ascending order, given back in the order they came.

  Raises:
    ValueError: a value outside [0, 1].

  Source: Holm (1979), Scandinavian Journal of Statistics 6:65-70.
  """
  p = np.asarray(p_values, np.float64)
  if p.size and not ((p >= 0) & (p <= 1)).all():
    raise ValueError(f'p-values must be in [0, 1], got {list(p_values)!r}')
  order = np.argsort(p, kind='stable')
  raised = np.minimum(1, (p.size - np.arange(p.size)) * p[order])
  adjusted = np.empty_like(p)
  adjusted[order] = np.maximum.accumulate(raised)
  return adjusted.tolist()


def zero_event_upper(trials: int, confidence: float = 0.95) -> float:
  """One-sided upper bound of a probability when none of n trials had the event.

  The exact rule of three, `1 - (1 - c)^(1/n)`, which is close to `3 / n` at c = 0.95.

  Args:
    trials: n, an integer >= 1.
    confidence: c, one-sided coverage, in (0, 1).

  Returns:
    The largest p, in (0, 1), for which zero events in n trials has probability >= 1 - c.

  Raises:
    ValueError: for a value outside its range.

  Source: Hanley and Lippman-Hand (1983), JAMA 249:1743-1745.
  """
  trials = _integer('trials', trials, low=1)
  check_confidence(confidence)
  return -math.expm1(math.log1p(-confidence) / trials)


def usual(values: Sequence[float], deviations: float, floor: float) -> tuple[float, float]:
  """(center, reach) of what is usual among values: the median, and deviations x max(1.4826 MAD, floor).

  The median absolute deviation (MAD) does not move with a few outliers; 1.4826 of it are the standard deviation of
  normal values.

  Args:
    values: [n], n >= 1 finite numbers.
    deviations: how many of them are still usual, > 0.
    floor: least deviation, so that a flat history does not make an outlier of a ripple.

  Source: Hampel (1974), JASA 69:383-393.
  """
  center = statistics.median(values)
  spread = 1.4826 * statistics.median(abs(value - center) for value in values)
  return center, deviations * max(spread, floor)


def format_interval(interval: Interval, digits: int = 2) -> str:
  """Text of an interval, `estimate [low, high]`, rounded as its width warrants.

  Args:
    interval: the interval.
    digits: significant digits of the interval's width, >= 1; all three numbers get its decimals.

  Returns:
    For example `0.34 [0.25, 0.43]`; `0.34 (all equal)` where both bounds are the estimate: what did not vary among a
    few values has no interval, and a width of 0 would say that it is known. `0.45 [0.0083, 25]` where all three are
    positive and these decimals would make the estimate 0, as of a ratio over orders of magnitude.

  Raises:
    ValueError: for digits < 1.
  """
  digits = _integer('digits', digits, low=1)
  if is_point(interval):
    return f'{interval.estimate:.{digits + 2}g} (all equal)'
  width = interval.high - interval.low
  if not math.isfinite(width):
    estimate, low, high = (f'{value:.{digits + 2}g}' for value in interval)
    return f'{estimate} [{low}, {high}]'
  decimals = digits - 1 - math.floor(math.log10(width))
  largest = max(abs(value) for value in interval)
  if decimals > 6 or largest >= 1e6:
    places = max(decimals + math.floor(math.log10(largest)), 0)
    estimate, low, high = (f'{value:.{places}e}' for value in interval)
  else:
    estimate, low, high = (f'{value:.{max(decimals, 0)}f}' for value in interval)
    if interval.low > 0 and float(estimate) == 0:
      estimate, low, high = (f'{value:.{digits}g}' for value in interval)
  return f'{estimate} [{low}, {high}]'


def is_point(interval: Interval) -> bool:
  """Whether an interval has no width but that of rounding."""
  return interval.high - interval.low <= 1e-12 * max(abs(interval.low), abs(interval.high))


def _integer(name: str, value: int, low: int) -> int:
  try:
    number = operator.index(value)
  except TypeError:
    raise ValueError(f'{name} must be an integer, got {value!r}') from None
  if number < low:
    raise ValueError(f'{name} must be at least {low}, got {value!r}')
  return number


def check_confidence(confidence: float) -> None:
  """Raises ValueError for a confidence outside (0, 1)."""
  if not 0 < confidence < 1:
    raise ValueError(f'confidence must be in (0, 1), got {confidence!r}')


def _sample(values: Sequence[float]) -> np.ndarray:
  sample = np.asarray(values, np.float64)
  if sample.ndim != 1 or sample.size < 2:
    raise ValueError(f'values must be one list of two or more numbers, got shape {sample.shape}')
  if not np.all(np.isfinite(sample)):
    raise ValueError(f'values must be finite, got {sample[~np.isfinite(sample)][0]} among them')
  return sample


def _pairs(treated: Sequence[float], baseline: Sequence[float]) -> np.ndarray:
  a, b = np.asarray(treated, np.float64), np.asarray(baseline, np.float64)
  if a.shape != b.shape:
    raise ValueError(f'pairs need as many of each, got {a.size} treated and {b.size} baseline')
  return a - b
