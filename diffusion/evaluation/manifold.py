"""Fidelity and diversity apart: precision and recall, density and coverage, the Vendi score, class entropy."""

import math

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Integer, Num

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
  check_nothing,
  of_features,
  proportion,
  subset,
)
from diffusion.proportions import Counts


def radii(x: Num[np.ndarray, 'n f'], k: int) -> Float64[np.ndarray, ' n']:
  """The distance of each row to its k-th nearest other row.

  Args:
    x: features.
    k: >= 1.

  Raises:
    ValueError: fewer than k + 1 rows.
  """
  if len(x) < k + 1:
    raise ValueError(f'balls to the {k}-th neighbor need at least {k + 1} rows, got {len(x)}')
  return neighbors.nearest(x, x, k + 1).distance[
    :, -1
  ]  # the first is the row itself, or a duplicate of it


def balls(
  queries: Num[np.ndarray, 'm f'],
  centers: Num[np.ndarray, 'n f'],
  radius: Float[np.ndarray, ' n'],
  chunk: int = 256,
) -> tuple[Integer[np.ndarray, ' m'], Bool[np.ndarray, ' n']]:
  """Which balls hold which queries; on its surface is inside.

  Args:
    queries: features.
    centers: of the balls.
    radius: of each, >= 0.
    chunk: queries at a time; memory is chunk x n.

  Returns:
    (how many balls hold each query, whether each ball holds any query).
  """
  q, c = queries.astype(np.float64), centers.astype(np.float64)
  middle = c.mean(0)
  q, c = q - middle, c - middle
  norms, square = (c**2).sum(1), radius.astype(np.float64) ** 2
  counts, hit = [], np.zeros(len(c), bool)
  for start in range(0, len(q), chunk):
    part = q[start : start + chunk]
    distance = (part**2).sum(1)[:, None] + norms - 2 * part @ c.T
    slack = 1e-12 * ((part**2).sum(1)[:, None] + norms)  # rounding of the line above
    inside = distance <= square + slack
    counts.append(inside.sum(1))
    hit |= inside.any(0)
  return np.concatenate(counts), hit


@technique('precision and recall', 'core', 'kynkaanniemi2019improved')
def precision_recall(features: Features | None = None, k: int = 3, limit: int = 10_000) -> Metric:
  """The share of samples among the real examples' balls, and of real examples among the samples'.

  A ball reaches to the k-th neighbor in its own set. The real examples are the training set; as many of them as
  samples are taken, since both numbers depend on the sizes.

  Args:
    features: what is compared; the numbers themselves by default.
    k: >= 1.
    limit: rows of each set at most.

  Raises:
    ValueError: arguments out of range; before training, fewer than k + 1 samples.

  Source: Kynkaanniemi et al. (2019), section 3, equation 1.
  """
  features, check = _prepared(features, k, limit)

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    samples, real = _equal(inputs, features, limit)
    precise, _ = balls(samples, real, radii(real, k))
    recalled, _ = balls(real, samples, radii(samples, k))
    label = features_.label(features)
    return [
      proportion(f'{name}({label})', found, f'{meaning}, k = {k}, {len(samples)} of each', 'higher')
      for name, found, meaning in (
        ('precision', _counts(precise > 0), 'samples within the training examples\' balls'),
        ('recall', _counts(recalled > 0, shared=True), 'training examples within the samples\' balls'),
      )
    ]  # fmt: skip

  return Metric(check, measure)


@technique('density and coverage', 'core', 'naeem2020reliable')
def density_coverage(features: Features | None = None, k: int = 5, limit: int = 10_000) -> Metric:
  """Density: real balls a sample lies in, over k; coverage: the share of real balls that hold a sample.

  Density is 1 on average for equal distributions and may exceed it; coverage's expectation then is
  1 - prod_{i=1..k} (n - i) / (2 n - i) with n of each, given in its meaning.

  Args:
    features: what is compared; the numbers themselves by default.
    k: >= 1.
    limit: rows of each set at most.

  Raises:
    ValueError: arguments out of range; before training, fewer than k + 1 samples.

  Source: Naeem et al. (2020), equations 3 and 4; the expectation is their lemma 2.
  """
  features, check = _prepared(features, k, limit)

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    samples, real = _equal(inputs, features, limit)
    counts, hit = balls(samples, real, radii(real, k))
    label, n = features_.label(features), len(samples)
    density = statistics.mean_t(counts / k)
    held = f'balls that hold a sample; {expected_coverage(n, k):.3f} for equal distributions'
    return [
      MetricResult(
        f'density({label})',
        density,
        f'balls of training examples a sample lies in, over k = {k}',
        unit='balls',
        better='higher',
      ),
      proportion(f'coverage({label})', _counts(hit, shared=True), held, 'higher'),
    ]

  return Metric(check, measure)


def expected_coverage(n: int, k: int) -> float:
  """Coverage's expectation for n samples and n real examples of one distribution: see `density_coverage`."""
  return 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))


@technique('Vendi score', 'core', 'friedman2023vendi')
def vendi(features: Features | None = None, limit: int = 10_000) -> Metric:
  """The effective number of distinct samples: exp of the entropy of the eigenvalues of K / n, K cosine similarities.

  It is 1 for copies of one image and n for n orthogonal ones. Real held-out examples stand beside it, in equal number.

  Args:
    features: what is compared; the numbers themselves by default.
    limit: rows at most.

  Raises:
    ValueError: limit below 1.

  Source: Friedman & Dieng (2023), definition 3.1.
  """
  features = features_.pixels() if features is None else features
  checks.integer('limit', limit)

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    samples, real = (inputs.embed(features, which) for which in ('samples', 'held_out'))
    count = min(limit, len(samples), len(real))
    name = f'Vendi score({features_.label(features)})'
    meaning = f'effective number of distinct among {count}'
    return [
      MetricResult(
        name,
        vendi_score(subset(samples, count)),
        f'{meaning} samples',
        unit='samples',
        better='higher',
      ),
      MetricResult(
        f'{name}, held-out',
        vendi_score(subset(real, count)),
        f'{meaning} real ones',
        unit='examples',
      ),
    ]

  return Metric(of_features(features, check_nothing), measure)


def vendi_score(x: Num[np.ndarray, 'n f']) -> float:
  """The Vendi score of features, through whichever of the n x n and f x f products is smaller.

  Raises:
    ValueError: a row of zeros, which has no direction.
  """
  x = x.astype(np.float64)
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  if not norm.all():
    raise ValueError(
      f'row {int(np.argmin(norm))} of the features is zero and has no cosine similarity'
    )
  x = x / norm
  values = np.linalg.eigvalsh((x @ x.T if len(x) <= x.shape[1] else x.T @ x) / len(x))
  values = values[values > 1e-12]  # 0 log 0 = 0
  return float(np.exp(-(values * np.log(values)).sum()))


def class_entropy(probabilities: Float[np.ndarray, 'n k']) -> float:
  """exp of the entropy of the mean class probabilities (or one-hot calls): the effective number of classes."""
  mean = probabilities.mean(0, dtype=np.float64)
  mean = mean[mean > 0]
  return float(np.exp(-(mean * np.log(mean)).sum()))


@technique('sliced Wasserstein distance', 'core', 'rabin2012wasserstein')
def sliced_wasserstein(projections: int = 256, limit: int = 10_000, seed: int = 0) -> Metric:
  """The 2-Wasserstein distance of one-dimensional projections, root of the mean square over random directions.

  For vectors of few dimensions; beside it stands that of held-out data, in equal number.

  Args:
    projections: random directions, >= 1.
    limit: rows at most.
    seed: of the directions.

  Raises:
    ValueError: arguments out of range.

  Source: Rabin et al. (2012), definition 2.
  """
  checks.integer('projections', projections)
  checks.integer('limit', limit)

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    parts = [
      features_.pixels().apply(_flat(inputs, which)) for which in ('samples', 'train', 'held_out')
    ]
    count = min(limit, *map(len, parts))
    samples, train, real = (subset(part, count) for part in parts)
    meaning = f'{projections} projections of {count} of each, to the training set'
    return [
      MetricResult(
        f'sliced Wasserstein distance{of}', sliced_distance(x, train, projections, seed), meaning,
        unit="the data's", better=better,
      )
      for of, x, better in (('', samples, 'lower'), (', held-out', real, ''))
    ]  # fmt: skip

  return Metric(check_nothing, measure)


def sliced_distance(
  a: Num[np.ndarray, 'n d'], b: Num[np.ndarray, 'n d'], projections: int = 256, seed: int = 0
) -> float:
  """The sliced 2-Wasserstein distance: root of the mean over directions u of W_2(a u, b u)^2.

  Args:
    a, b: as many rows of each.
    projections: random directions, >= 1.
    seed: of the directions.

  Raises:
    ValueError: different numbers of rows.
  """
  if a.shape != b.shape:
    raise ValueError(f'sliced distances compare equal numbers of rows, got {a.shape} and {b.shape}')
  directions = np.random.default_rng(seed).normal(size=(a.shape[1], projections))
  directions /= np.linalg.norm(directions, axis=0)
  sides = (np.sort(x.astype(np.float64) @ directions, axis=0) for x in (a, b))
  left, right = sides
  return float(np.sqrt(((left - right) ** 2).mean()))


def _flat(inputs: MetricInputs, which: str) -> Float64[np.ndarray, 'rows d']:
  x = inputs.x(which)
  return x.reshape(len(x), -1).astype(np.float64)


def _prepared(features: Features | None, k: int, limit: int):
  checks.integer('k', k)
  checks.integer('limit', limit, k + 1)

  def check(plan: Plan) -> None:
    if min(plan.samples, plan.train) < k + 1:
      raise ValueError(
        f'balls to the {k}-th neighbor need at least {k + 1} samples and training examples, got {plan.samples} and '
        f'{plan.train}'
      )

  features = features_.pixels() if features is None else features
  return features, of_features(features, check)


def _equal(
  inputs: MetricInputs, features: Features, limit: int
) -> tuple[Float32[np.ndarray, 'count f'], Float32[np.ndarray, 'count f']]:
  samples, real = inputs.embed(features, 'samples'), inputs.embed(features, 'train')
  count = min(limit, len(samples), len(real))
  return subset(samples, count), subset(real, count)


def _counts(called: Bool[np.ndarray, ' n'], shared: bool = False) -> Counts:
  return Counts(int(called.sum()), called.size, shared)
