"""Distances between the distributions of two sets of features: Frechet, its extrapolation, and the kernel distance."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Num

from diffusion import checks, statistics
from diffusion.citations import technique
from diffusion.evaluation import features as features_
from diffusion.evaluation.features import Features
from diffusion.evaluation.metric import (
  Metric,
  MetricInputs,
  MetricResult,
  Plan,
  of_features,
  subset,
)
from diffusion.statistics import Interval


class Moments(NamedTuple):
  """Mean and unbiased covariance of features, and how many there were."""

  mean: Float64[np.ndarray, ' f']
  covariance: Float64[np.ndarray, 'f f']
  count: int


def moments(x: Num[np.ndarray, 'n f']) -> Moments:
  """Moments of n >= 2 rows of features.

  Raises:
    ValueError: fewer than two rows, another shape, or a number that is not finite.
  """
  x = np.asarray(x, np.float64)
  if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
    raise ValueError(f'moments need two or more finite rows of features, got shape {x.shape}')
  return Moments(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)), len(x))


def distance(a: Moments, b: Moments) -> float:
  """The squared Frechet (2-Wasserstein) distance of two Gaussians.

  |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). The trace of the root is the sum of the roots of the
  eigenvalues of A^T S_b A with S_a = A A^T, which is symmetric, so no complex numbers and no jitter come in.

  Source: Dowson & Landau (1982), equation 4.
  """
  values, vectors = np.linalg.eigh(a.covariance)
  root = vectors * np.sqrt(
    np.maximum(values, 0)
  )  # a covariance has no negative eigenvalue but for rounding
  inner = np.linalg.eigvalsh(root.T @ b.covariance @ root)
  trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(np.maximum(inner, 0)).sum()
  return float(((a.mean - b.mean) ** 2).sum() + trace)


def extrapolated(
  samples: Num[np.ndarray, 'm f'], reference: Moments, points: int = 15, seed: int = 0
) -> float:
  """The distance that infinitely many samples would have: the intercept of the distance against 1 / N.

  The bias of the reference's own finite number stays.

  Args:
    samples: features, m >= 2 (f + 1).
    reference: moments of the reference.
    points: subsets, of evenly spaced sizes from max(m / 10, f + 1) to m, >= 3; each is drawn without replacement.
    seed: of the subsets.

  Raises:
    ValueError: too few samples or points.

  Source: Chong & Forsyth (2020), section 4.
  """
  checks.integer('points', points, 3)
  _check_count(len(samples), samples.shape[1])
  random = np.random.default_rng(seed)
  low = max(len(samples) // 10, samples.shape[1] + 1)
  sizes = np.linspace(low, len(samples), points).round().astype(int)
  subsets = (samples[random.choice(len(samples), size, replace=False)] for size in sizes)
  distances = [distance(moments(subset), reference) for subset in subsets]
  return float(np.polynomial.polynomial.polyfit(1 / sizes, distances, 1)[0])


def _check_count(count: int, width: int) -> None:
  least = 2 * (width + 1)
  if count < least:
    raise ValueError(
      f'the Frechet distance of {width} features needs at least {least} samples, got {count}: '
      'judge more of them (sampling.per_class or --num_samples of a run), or use narrower features'
    )


@technique(
  'Frechet distance', 'core', 'heusel2017gans', 'dowson1982frechet', 'chong2020effectively'
)
def frechet(features: Features | None = None) -> Metric:
  """The Frechet distance of samples to the training set, and its value for infinitely many samples.

  As many samples as there are held-out examples are compared with those: what perfect samples would score. It rewards
  copying: the training set itself would score 0. It is the FID only with `features.inception`.

  Args:
    features: what is compared; the numbers themselves by default.

  Raises:
    ValueError: before training, fewer than 2 (F + 1) samples for F features.

  Source: Heusel et al. (2017), section 2; Chong & Forsyth (2020) for the extrapolation.
  """
  features = features_.pixels() if features is None else features

  def check(plan: Plan) -> None:
    _check_count(plan.samples, features_.width(features, plan.shape))

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    reference = inputs.once((features, 'moments'), lambda: moments(inputs.embed(features, 'train')))
    samples, real = inputs.embed(features, 'samples'), inputs.embed(features, 'held_out')
    name = features_.distance_name(features)
    value, infinite = distance(moments(samples), reference), extrapolated(samples, reference)
    sizes = f'{len(samples)} samples against {reference.count} training examples'
    note = f'; {features.note}' if features.note else ''
    found = [
      _distance(name, value, f'{sizes}; blind to copying{note}'),
      _distance(f'{name}, infinite samples', infinite, 'extrapolated in 1 / N'),
    ]
    count = min(len(real), len(samples))  # the distance falls with the number: as many of both
    if count > samples.shape[1]:
      for title, x in (('samples', samples), ('held-out examples', real)):
        value = distance(moments(subset(x, count)), reference)
        found.append(
          _distance(f'{name}, {count} {title}', value, 'to be compared at equal numbers')
        )
    return found

  return Metric(of_features(features, check), measure)


def _distance(name: str, value: float, meaning: str) -> MetricResult:
  return MetricResult(name, value, meaning, unit='squared distance', better='lower')


def kernel_distance(
  a: Num[np.ndarray, 'm f'], b: Num[np.ndarray, 'n f'], blocks: int = 10, seed: int = 0
) -> Interval:
  """The squared maximum mean discrepancy of two sets of features under k(x, y) = (x.y / f + 1)^3, unbiased.

  Both sets are dealt at random into disjoint blocks; each pair of blocks gives an independent unbiased estimate, and
  the interval is Student's over them.

  Args:
    a, b: features; each block must hold at least two rows.
    blocks: >= 2.
    seed: of the dealing.

  Raises:
    ValueError: too few rows or blocks.

  Source: Binkowski et al. (2018), equation 4 and section 4.
  """
  checks.integer('blocks', blocks, 2)
  if min(len(a), len(b)) < 2 * blocks:
    raise ValueError(
      f'the kernel distance in {blocks} blocks needs at least {2 * blocks} rows of each, got {len(a)} and {len(b)}'
    )
  random = np.random.default_rng(seed)
  parts = [np.array_split(random.permutation(len(x)), blocks) for x in (a, b)]
  return statistics.mean_t([_discrepancy(a[i], b[j]) for i, j in zip(*parts, strict=True)])


def _discrepancy(a: Num[np.ndarray, 'm f'], b: Num[np.ndarray, 'n f']) -> float:
  a, b = a.astype(np.float64), b.astype(np.float64)
  return float(_within(a) + _within(b) - 2 * _cubic(a, b).mean())


def _cubic(
  x: Float64[np.ndarray, 'm f'], y: Float64[np.ndarray, 'n f']
) -> Float64[np.ndarray, 'm n']:
  return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Float64[np.ndarray, 'n f']) -> float:
  k = _cubic(x, x)
  return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))


@technique('kernel distance', 'core', 'binkowski2018demystifying')
def kernel(features: Features | None = None, blocks: int = 10, limit: int = 10_000) -> Metric:
  """The kernel distance of samples to the training set, beside that of held-out data, with intervals.

  It is unbiased, so for equal distributions it is 0 on average, whatever the number of samples.

  Args:
    features: what is compared; the numbers themselves by default.
    blocks: estimates averaged, >= 2.
    limit: rows of each set used at most; the work grows with limit^2 / blocks.

  Raises:
    ValueError: arguments out of range; before training, fewer than two samples a block.

  Source: Binkowski et al. (2018).
  """
  features = features_.pixels() if features is None else features
  checks.integer('blocks', blocks, 2)
  checks.integer('limit', limit, 2 * blocks)

  def check(plan: Plan) -> None:
    if min(plan.samples, plan.train) < 2 * blocks:
      raise ValueError(
        f'the kernel distance in {blocks} blocks needs at least {2 * blocks} samples and training examples, got '
        f'{plan.samples} and {plan.train}'
      )

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    train, name = inputs.embed(features, 'train'), f'kernel distance({features_.label(features)})'
    found = []
    meaning = 'squared discrepancy to the training set, 0 for equal distributions'
    meaning += f'; {features.note}' if features.note else ''
    for which, title, better in (
      ('samples', name, 'lower'),
      ('held_out', f'{name}, held-out', ''),
    ):
      x = inputs.embed(features, which)
      if len(x) < 2 * blocks:
        continue
      value = kernel_distance(subset(x, limit), subset(train, limit), blocks)
      found.append(MetricResult(title, value, meaning, unit='squared distance', better=better))
    return found

  return Metric(of_features(features, check), measure)
