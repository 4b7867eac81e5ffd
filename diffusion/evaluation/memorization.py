"""Memorization: are samples copies of training examples? Never without what held-out data would score."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer, Num

from diffusion import checks, statistics
from diffusion.citations import technique
from diffusion.evaluation import features as features_
from diffusion.evaluation import neighbors
from diffusion.evaluation.features import Features
from diffusion.evaluation.metric import (
  Metric,
  MetricInputs,
  MetricResult,
  Plan,
  of_features,
  proportion,
)
from diffusion.proportions import Counts
from diffusion.statistics import Interval

Queries = Num[np.ndarray, ' q *shape']  # examples as stored, or their features
Reference = Num[np.ndarray, ' n *shape']
Ratios = tuple[Integer[np.ndarray, ' q'], Float64[np.ndarray, ' q']]  # (nearest index, ratio)


def _two_references(plan: Plan) -> None:
  if plan.train < 2:
    raise ValueError(
      f'nearest-neighbor metrics need at least 2 training examples, got {plan.train}'
    )


def input_ratios(
  inputs: MetricInputs, which: str, features: Features | None = None, mirrored: bool = False
) -> Ratios:
  """`ratios` of samples or held-out examples to the training set; made once.

  Args:
    inputs: samples beside the data.
    which: 'samples' or 'held_out'.
    features: what distances are measured on; the examples as stored by default.
    mirrored: an image and its mirror image are one reference, at the distance of the nearer of the two.

  Raises:
    ValueError: as `ratios` does.
  """

  def make() -> Ratios:
    if features is not None:
      return ratios(inputs.embed(features, which), inputs.embed(features, 'train'))
    of = _ratios_with_mirrors if mirrored else ratios
    return of(inputs.x(which), inputs.train[0])

  return inputs.once(('ratios', which, features, mirrored), make)


def ratios(queries: Queries, reference: Reference) -> Ratios:
  """(nearest index, r = |x - NN1| / |x - NN2|) of each query among the distinct references, r in [0, 1].

  Duplicates are dropped first: two copies of one image would make r = 1 and hide a third. The index is into the
  original `reference`.

  Raises:
    ValueError: fewer than two distinct references, or what `neighbors.nearest` raises.
  """
  kept = _distinct(reference)
  index, r = _ratios(queries, reference[kept])
  return kept[index], r


def _ratios_with_mirrors(queries: Queries, images: Reference) -> Ratios:
  """`ratios` where an image [h, w, c] and its mirror image are one: the two of a nearly symmetric one hide no copy."""
  mirrored = images[..., ::-1, :]
  one, other = (x.reshape(len(x), -1) for x in (images, mirrored))
  rows, first = np.arange(len(images)), (one != other).argmax(1)  # where the two differ first
  ahead = one[rows, first] < other[rows, first]
  kept = _distinct(np.where(ahead.reshape(-1, 1, 1, 1), images, mirrored))
  index, distance = neighbors.nearest(queries, np.concatenate([images[kept], mirrored[kept]]), 3)
  index %= len(kept)
  second = np.where(index[:, 1] == index[:, 0], distance[:, 2], distance[:, 1])
  return kept[index[:, 0]], distance[:, 0] / second


def check_mirrors(shape: Sequence[int]) -> None:
  """Raises ValueError where examples of this shape are no images, which alone have mirror images."""
  if len(shape) != 3:
    raise ValueError(f'mirrored=True is for images, the data has shape {list(shape)}')


def _distinct(reference: Reference) -> Integer[np.ndarray, ' k']:
  kept = neighbors.distinct(reference)
  if len(kept) < 2:
    raise ValueError(f'nearest neighbors need at least 2 distinct references, got {len(kept)}')
  return kept


def _ratios(queries: Queries, distinct: Reference) -> Ratios:
  index, distance = neighbors.nearest(queries, distinct)
  return index[:, 0], distance[:, 0] / distance[:, 1]


@technique('nearest-neighbor ratio', 'core', 'yoon2023memorize', 'gu2023memorization')
def nearest_neighbor_ratio(threshold: float = 1 / 3, mirrored: bool = False) -> Metric:
  """The memorized fraction f: the share of samples with |x - NN1| < threshold |x - NN2|; and f0, that of held-out data.

  Beside them stands the adjusted fraction (f - f0) / (1 - f0), the share of samples that resemblance among real
  examples does not explain.

  Args:
    threshold: in (0, 1); 1/3 in both papers.
    mirrored: for a network trained with flips, whose mirrored copies are copies. (Other augmentations that reach the
      samples move copies out of sight of pixels: judge those by features, see `calibrated_ratio`.)

  Raises:
    ValueError: threshold out of its range; before training, mirrors of what is no image.

  Source: Yoon et al. (2023); Gu et al. (2023), section 2.2. The held-out null and the adjustment are this project's.
  """
  checks.in_range('threshold', threshold, 0, 1, ends='()')

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    counts = []
    for which in ('samples', 'held_out'):
      _, r = input_ratios(inputs, which, mirrored=mirrored)
      counts.append(Counts(int((r < threshold).sum()), len(r), shared=which == 'held_out'))
    share, null = counts
    near = f'samples with a nearest-neighbor ratio below {threshold:.3g}'
    same = 'the same of real held-out examples: what no copying looks like'
    found = [
      proportion('memorized fraction', share, near, better='lower'),
      proportion('its held-out null', null, same),
    ]
    if null.share < 0.5:
      excess = share._replace(null_successes=null.successes, null_trials=null.trials)
      meaning = 'the fraction beyond its null, (f - f0) / (1 - f0)'
      found.append(proportion('adjusted memorized fraction', excess, meaning, better='lower'))
    return found

  def check(plan: Plan) -> None:
    _two_references(plan)
    if mirrored:
      check_mirrors(plan.shape)

  return Metric(check, measure)


def watch(
  train: Reference, held_out: Queries, threshold: float = 1 / 3, mirrored: bool = False
) -> Callable[[Queries], dict[str, float]]:
  """What a run logs of its samples while it trains.

  Args:
    train, held_out: examples as stored.
    threshold: of the ratio, in (0, 1).
    mirrored: see `nearest_neighbor_ratio`.

  Returns:
    samples as stored -> {memorized/fraction with its Wilson bounds memorized/low and memorized/high, that of
    held-out examples memorized/null with its upper bound memorized/null_high, and memorized/ratio, the samples' median
    nearest-neighbor ratio}.

  Raises:
    ValueError: as `ratios` does.
  """
  kept = train if mirrored else train[_distinct(train)]

  def share(x: Queries) -> tuple[Interval, float]:
    _, r = (_ratios_with_mirrors if mirrored else _ratios)(x, kept)
    return statistics.wilson(int((r < threshold).sum()), len(r)), float(np.median(r))

  null, _ = share(held_out)

  def measure(samples: Queries) -> dict[str, float]:
    found, middle = share(samples)
    return {
      'memorized/fraction': found.estimate,
      'memorized/low': found.low,
      'memorized/high': found.high,
      'memorized/null': null.estimate,
      'memorized/null_high': null.high,
      'memorized/ratio': middle,
    }

  return measure


@technique('calibrated nearest-neighbor ratio', 'core', 'yoon2023memorize')
def calibrated_ratio(quantile: float = 0.001, features: Features | None = None) -> Metric:
  """The share of samples with a nearest-neighbor ratio below the `quantile` of held-out data's ratios.

  The threshold is the data's own instead of 1/3, so that by construction a share of about `quantile` is no copying.

  Args:
    quantile: q in (0, 0.5].
    features: what distances are measured on; the examples as stored by default. Features that do not see a shift find
      shifted copies, which pixels do not.

  Raises:
    ValueError: quantile out of its range; before training, fewer than 10 / q held-out examples.

  Source: this project's; the ratio is that of Yoon et al. (2023).
  """
  checks.in_range('quantile', quantile, 0, 0.5, ends='(]')
  least = math.ceil(10 / quantile * (1 - 1e-9))  # 10 / 0.001 is just above 10,000

  def check(plan: Plan) -> None:
    _two_references(plan)
    if plan.held_out < least:
      raise ValueError(
        f'the {quantile:g} quantile of held-out ratios needs at least {least} held-out examples, got {plan.held_out}: '
        f'a quantile of {math.ceil(1e5 / plan.held_out) / 1e4:g} would do'
      )

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    _, null = input_ratios(inputs, 'held_out', features)
    threshold = calibrate(null, quantile)
    _, r = input_ratios(inputs, 'samples', features)
    share = Counts(int((r < threshold).sum()), len(r))
    meaning = (
      f'ratio below {threshold:.3g}, the {quantile:g} quantile of {len(null)} held-out examples'
    )
    on = f'({features_.label(features)})' if features else ''
    return [proportion(f'memorized fraction, calibrated{on}', share, meaning, better='lower')]

  return Metric(of_features(features, check) if features else check, measure)


def calibrate(null: Float[np.ndarray, ' n'], quantile: float) -> float:
  """The largest threshold below which at most the share `quantile` of the null's ratios lies.

  Raises:
    ValueError: fewer than 10 / quantile ratios, where the quantile would be a guess.
  """
  if len(null) * quantile < 10 * (1 - 1e-9):  # 0.001 * 10000 is just below 10
    raise ValueError(
      f'the {quantile:g} quantile needs {math.ceil(10 / quantile)} ratios, got {len(null)}'
    )
  return float(np.sort(null)[math.floor(len(null) * quantile + 1e-9)])


@technique('authenticity', 'core', 'alaa2022faithful')
def authenticity() -> Metric:
  """The share of samples farther from their nearest training example than that one is from its own nearest.

  A sample nearer than that counts as a copy. Many real held-out examples are so near as well (of uniform data 0.3 to
  0.4 are authentic), which is why their share stands beside it.

  Source: Alaa et al. (2022), section 3.3 and appendix, on the data itself instead of a hypersphere embedding.
  """

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    found = []
    for name, which, better in (
      ('authenticity', 'samples', 'higher'),
      ('authenticity, held-out', 'held_out', ''),
    ):
      authentic = is_authentic(inputs.x(which), inputs.train[0])
      share = Counts(int(authentic.sum()), len(authentic), shared=which == 'held_out')
      meaning = 'farther from the nearest training example than that is from its own nearest'
      found.append(proportion(name, share, meaning, better))
    return found

  return Metric(_two_references, measure)


def is_authentic(queries: Queries, reference: Reference) -> Bool[np.ndarray, ' q']:
  """Whether each query is farther from its nearest distinct reference than that is from its own nearest.

  Raises:
    ValueError: fewer than two distinct references, or what `neighbors.nearest` raises.
  """
  kept = reference[_distinct(reference)]
  index, distance = neighbors.nearest(queries, kept, 1)
  met, place = np.unique(index[:, 0], return_inverse=True)
  own = neighbors.nearest(kept[met], kept, 2).distance[:, 1]  # the first is the reference itself
  return distance[:, 0] > own[place]


def effective_memorization(
  sizes: Num[np.ndarray, ' k'],
  successes: Num[np.ndarray, ' k'],
  trials: Num[np.ndarray, ' k'],
  level: float = 0.9,
  draws: int = 2000,
  seed: int = 0,
) -> Interval:
  """EMM, the largest training-set size at which the memorized fraction is still `level`: the crossing, in log n.

  Between the last size at or above `level` and the next one the fraction is interpolated linearly in log n. The
  interval is that of redraws of the fractions from what the counts leave open, Beta(k + 1/2, n - k + 1/2): fractions of
  0 and 1 are uncertain too.

  Args:
    sizes: of training sets, ascending, two or more.
    successes, trials: samples called memorized, and samples drawn, at each size.
    level: the fraction asked for, in (0, 1).
    draws: redraws for the interval, >= 100.
    seed: of the redraws.

  Returns:
    The size and the central 95 % of its redraws. An end is infinite, or 0, where the fractions do not cross within
    the sizes: the truth lies beyond them.

  Raises:
    ValueError: sizes not ascending, or values out of their ranges.

  Source: Gu et al. (2023), definition 2; the interval is this project's.
  """
  sizes, successes, trials = (np.asarray(x, np.float64) for x in (sizes, successes, trials))
  checks.in_range('level', level, 0, 1, ends='()')
  checks.integer('draws', draws, 100)
  if sizes.ndim != 1 or len(sizes) < 2 or np.any(np.diff(sizes) <= 0) or sizes[0] <= 0:
    raise ValueError(f'sizes must be two or more ascending positive numbers, got {sizes.tolist()}')
  if (
    successes.shape != sizes.shape
    or trials.shape != sizes.shape
    or np.any((successes < 0) | (successes > trials) | (trials < 1))
  ):
    raise ValueError(
      f'successes must lie in [0, trials], one a size, got {successes.tolist()} of {trials.tolist()}'
    )
  fractions = successes / trials
  random = np.random.default_rng(seed)
  redrawn = random.beta(successes + 0.5, trials - successes + 0.5, (draws, len(sizes)))
  found = np.sort([_crossing(np.log(sizes), one, level) for one in redrawn])
  low, high = found[round(0.025 * (draws - 1))], found[round(0.975 * (draws - 1))]
  return Interval(_crossing(np.log(sizes), fractions, level), float(low), float(high))


def _crossing(
  log_sizes: Float[np.ndarray, ' k'], fractions: Float[np.ndarray, ' k'], level: float
) -> float:
  above = np.flatnonzero(fractions >= level)
  if not above.size:
    return 0.0
  i = above[-1]
  if i == len(fractions) - 1:
    return math.inf
  share = (fractions[i] - level) / (fractions[i] - fractions[i + 1])
  return float(np.exp(log_sizes[i] + share * (log_sizes[i + 1] - log_sizes[i])))
