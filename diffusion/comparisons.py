"""Comparing runs over seeds: paired ratios, the exact sign-flip test, Holm's adjustment, the hierarchical bootstrap.

The unit is the training seed. A paired comparison is of runs that share every random stream but the factor compared.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from diffusion import statistics
from diffusion.statistics import Interval

_EXACT = 20  # pairs up to which all sign patterns are enumerated


def paired_difference(
  treated: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> Interval:
  """The mean of paired differences with Student's interval.

  Args:
    treated, baseline: [n] each, n >= 2, the same seed at the same place.
    confidence: two-sided coverage, in (0, 1).

  Raises:
    ValueError: lists of different lengths, or what `statistics.mean_t` refuses.
  """
  return statistics.mean_t(_pairs(treated, baseline), confidence)


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
  found = statistics.mean_t(_pairs(np.log(treated), np.log(baseline)), confidence)
  return Interval(*map(float, np.exp(found)))


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
  signs = np.array(list(itertools.product((1, -1), repeat=values.size - 1)))
  sums = np.abs(values[0] + signs @ values[1:])  # the other half of the patterns mirrors these
  return float((sums >= abs(values.sum()) - 1e-12 * np.abs(values).sum()).mean())


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


def hierarchical_bootstrap(
  groups: Sequence[Sequence[float]], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
  """Percentile interval of the mean of group means, groups (seeds) resampled first and their values within them.

  It undercovers for few groups; `statistics.mean_t` of the group means is the one to report.

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
  if resamples < 100 or not 0 < confidence < 1:
    raise ValueError(
      f'resamples must be at least 100 and confidence in (0, 1), got {resamples!r} and {confidence!r}'
    )
  random = np.random.default_rng(seed)
  # Each group's resampled means first; a resample then takes one of them for each group it drew.
  means = np.stack([random.choice(a, (resamples, a.size)).mean(1) for a in arrays])
  drawn = random.integers(len(arrays), size=(len(arrays), resamples))
  totals = means[drawn, random.integers(resamples, size=drawn.shape)].mean(0)
  tail = (1 - confidence) / 2
  low, high = np.quantile(totals, [tail, 1 - tail])
  return Interval(float(np.mean([a.mean() for a in arrays])), float(low), float(high))


def _pairs(treated: Sequence[float], baseline: Sequence[float]) -> np.ndarray:
  a, b = np.asarray(treated, np.float64), np.asarray(baseline, np.float64)
  if a.shape != b.shape:
    raise ValueError(f'pairs need as many of each, got {a.size} treated and {b.size} baseline')
  return a - b
