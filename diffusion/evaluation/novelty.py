"""Novelty of samples as a set: the data-copying test C_T and the feature likelihood divergence."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Float64, Num

from diffusion import checks
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
  subset,
)
from diffusion.statistics import Interval
from diffusion.types import Array, Number

Centers = Float[Array, 'm f']
LogVariance = Float[Array, ' m']
Squares = Float[Array, 'b m']


class Copying(NamedTuple):
  """The test of each cell and of all: z, weights w (their sum is 1), C_T = sum w z with its interval."""

  z: Float[np.ndarray, ' cells']
  weights: Float[np.ndarray, ' cells']
  statistic: Interval


def copying_test(
  samples: Num[np.ndarray, 'm f'],
  held_out: Num[np.ndarray, 'n f'],
  train: Num[np.ndarray, 't f'],
  cells: int = 3,
  least: int = 20,
  seed: int = 0,
) -> Copying:
  """Are samples nearer to the training set than held-out examples are? C_T < 0 says copying, > 0 underfitting.

  k-means cells of the training set; in each, z of the Mann-Whitney U of the distances to the nearest training example,
  samples against held-out: (U - m n / 2) / sqrt(m n (m + n + 1) / 12), N(0, 1) where neither is nearer. Weights are the
  cells' shares of the held-out examples. The cells are independent at the null, so C_T has variance sum w^2; the
  interval is C_T -+ 1.96 of its root.

  Args:
    samples, held_out, train: features.
    cells: k-means cells, >= 1.
    least: a cell with fewer samples or held-out examples is left out; >= 2.
    seed: of k-means.

  Raises:
    ValueError: arguments out of range, or no cell that holds enough of both.

  Source: Meehan et al. (2020), section 4 and definition 4.3; there the threshold is a share of the samples.
  """
  from sklearn.cluster import KMeans

  checks.integer('cells', cells)
  checks.integer('least', least, 2)
  means = KMeans(cells, n_init=4, random_state=seed).fit(train)
  distances, places = [], []
  for x in (samples, held_out):
    distances.append(neighbors.nearest(x, train, 1).distance[:, 0])
    places.append(means.predict(x))
  z, sizes = [], []
  for cell in range(cells):
    generated, real = (d[p == cell] for d, p in zip(distances, places, strict=True))
    if min(len(generated), len(real)) >= least:
      z.append(_mann_whitney_z(generated, real))
      sizes.append(len(real))
  if not z:
    raise ValueError(
      f'none of the {cells} cells holds {least} samples and {least} held-out examples: use fewer cells or more of both'
    )
  weights = np.array(sizes) / sum(sizes)
  estimate = float(weights @ z)
  half = float(scipy.stats.norm.ppf(0.975) * np.sqrt((weights**2).sum()))
  return Copying(np.array(z), weights, Interval(estimate, estimate - half, estimate + half))


def _mann_whitney_z(a: Float[np.ndarray, ' m'], b: Float[np.ndarray, ' n']) -> float:
  """z of U = #(a > b) + #(a = b) / 2, ties corrected."""
  ranks = scipy.stats.rankdata(np.concatenate([a, b]))
  m, n = len(a), len(b)
  u = ranks[:m].sum() - m * (m + 1) / 2
  variance = m * n * (m + n + 1) / 12 * scipy.stats.tiecorrect(ranks)
  # Where all are equal there is no difference.
  return float((u - m * n / 2) / np.sqrt(variance)) if variance > 0 else 0.0


def principal_components(
  train: Num[np.ndarray, 'n f'], count: int
) -> tuple[Float64[np.ndarray, ' f'], Float64[np.ndarray, 'f k']]:
  """(mean, leading principal directions) of features, as many directions as asked for or as there are."""
  mean = train.mean(0, dtype=np.float64)
  covariance = np.atleast_2d(np.cov(train.astype(np.float64), rowvar=False))
  return mean, np.linalg.svd(covariance, hermitian=True)[2][:count].T


@technique('data-copying test', 'core', 'meehan2020nonparametric')
def data_copying(
  features: Features | None = None, components: int = 64, cells: int = 3, least: int = 20
) -> Metric:
  """C_T of the samples (see `copying_test`), on the leading principal components of the training set's features.

  Args:
    features: what is compared; the numbers themselves by default.
    components: at most so many, >= 1.
    cells: k-means cells, >= 1.
    least: fewer samples or held-out examples in a cell leave it out, >= 2.

  Raises:
    ValueError: arguments out of range; before training, fewer than cells x least samples or held-out examples; when
      judging, no cell with enough of both.

  Source: Meehan et al. (2020).
  """
  features = features_.pixels() if features is None else features
  for name, value, low in (('components', components, 1), ('cells', cells, 1), ('least', least, 2)):
    checks.integer(name, value, low)

  def check(plan: Plan) -> None:
    if min(plan.samples, plan.held_out) < cells * least or plan.train < cells:
      raise ValueError(
        f'the data-copying test in {cells} cells needs at least {cells * least} samples and held-out examples, got '
        f'{plan.samples} and {plan.held_out}'
      )

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    parts = [inputs.embed(features, which) for which in ('samples', 'held_out', 'train')]
    mean, directions = principal_components(parts[2], components)
    found = copying_test(*((part - mean) @ directions for part in parts), cells, least)
    each = ', '.join(f'{z:.2f}' for z in found.z)
    meaning = (
      f'below 0 copying, above 0 underfitting, N(0, sum w^2) if neither; z of the cells: {each}'
    )
    name = f'C_T({features_.label(features)})'
    return [
      MetricResult(name, found.statistic, meaning, unit='standard deviations', better='nearer 0')
    ]

  return Metric(of_features(features, check), measure)


class CenteredGaussians(NamedTuple):
  """Gaussians of equal weight: centers and the logarithm of each one's variance a dimension."""

  centers: Centers
  log_variance: LogVariance


def fit_widths(
  centers: Num[np.ndarray, 'm f'],
  x: Num[np.ndarray, 'n f'],
  steps: int = 50,
  floor: float = 1e-4,
  chunk: int = 1024,
) -> CenteredGaussians:
  """Gaussians at fixed centers, their widths fitted to other points by expectation maximization.

  s_j^2 <- sum_i r_ij |x_i - c_j|^2 / (f sum_i r_ij), r_ij the responsibility of center j for point i; the likelihood
  never falls.

  Args:
    centers: features, fixed.
    x: points to fit.
    steps: iterations, >= 1.
    floor: least variance, as a share of the mean squared distance a dimension between points and centers; > 0. A
      center that lies on a point would else shrink to nothing.
    chunk: points at a time; memory is m x chunk.

  Raises:
    ValueError: steps or floor out of range.
  """
  checks.integer('steps', steps)
  checks.positive('floor', floor)
  centers, x = jnp.asarray(centers, jnp.float32), np.asarray(x, np.float32)
  size = min(chunk, len(x))
  missing = -len(x) % size
  blocks = jnp.asarray(np.pad(x, ((0, missing), (0, 0)))).reshape(-1, size, x.shape[1])
  real = (jnp.arange(len(x) + missing) < len(x)).reshape(-1, size)
  widths = jax.jit(_maximize, static_argnums=4)(centers, blocks, real, floor, steps)
  return CenteredGaussians(centers, widths)


def _squares(x: Float[Array, 'b f'], centers: Centers) -> Squares:
  product = jnp.matmul(x, centers.T, precision=jax.lax.Precision.HIGHEST)
  square = (x**2).sum(1)[:, None] + (centers**2).sum(1) - 2 * product
  return jnp.maximum(square, 0)  # rounding may leave a tiny negative square


def _log_parts(squares: Squares, log_variance: LogVariance, width: int) -> Squares:
  return -0.5 * (squares * jnp.exp(-log_variance) + width * (log_variance + jnp.log(2 * jnp.pi)))


def _maximize(
  centers: Centers,
  blocks: Float[Array, 'blocks b f'],
  real: Bool[Array, 'blocks b'],
  floor: Number,
  steps: int,
) -> LogVariance:
  width = centers.shape[1]
  count = real.sum()

  def over_blocks(function: Callable, start: Any) -> Any:
    def add(total, block):
      squares, live = _squares(block[0], centers), block[1][:, None]
      return jax.tree.map(jnp.add, total, function(squares, live)), None

    return jax.lax.scan(add, start, (blocks, real))[0]

  nearest, every = over_blocks(
    lambda squares, live: (
      jnp.where(live[:, 0], squares.min(1), 0).sum(),
      jnp.where(live, squares, 0).mean(1).sum(),
    ),
    (jnp.zeros(()), jnp.zeros(())),
  )
  least = floor * every / count / width

  def step(log_variance, _):
    def responsible(squares: Squares, live: Bool[Array, 'b 1']) -> tuple[LogVariance, LogVariance]:
      share = jnp.where(live, jax.nn.softmax(_log_parts(squares, log_variance, width), axis=1), 0)
      return share.sum(0), (share * squares).sum(0)

    mass, total = over_blocks(responsible, (jnp.zeros(len(centers)), jnp.zeros(len(centers))))
    variance = total / (width * jnp.maximum(mass, 1e-30))
    # A center responsible for nothing keeps its width.
    variance = jnp.where(mass > 1e-20, variance, jnp.exp(log_variance))
    return jnp.log(jnp.maximum(variance, least)), None

  start = jnp.full(len(centers), jnp.log(nearest / count / width + least))
  return jax.lax.scan(step, start, length=steps)[0]


def log_density(
  mixture: CenteredGaussians, x: Num[np.ndarray, 'n f'], chunk: int = 1024
) -> Float64[np.ndarray, ' n']:
  """log 1/m sum_j N(x; c_j, s_j^2 I), in nats.

  Args:
    mixture: the Gaussians.
    x: points.
    chunk: points at a time; memory is m x chunk.
  """

  @jax.jit
  def some(part: Float[Array, 'b f']) -> Float[Array, ' b']:
    parts = _log_parts(_squares(part, mixture.centers), mixture.log_variance, part.shape[1])
    return jax.nn.logsumexp(parts, axis=1) - jnp.log(len(mixture.centers))

  x = x.astype(np.float32)
  pieces = [np.asarray(some(x[i : i + chunk]), np.float64) for i in range(0, len(x), chunk)]
  return np.concatenate(pieces)


@technique('feature likelihood divergence', 'core', 'jiralerspong2023feature')
def feature_likelihood(features: Features | None = None, limit: int = 2_000) -> Metric:
  """FLD: how much worse held-out features are explained by Gaussians at the samples than by Gaussians at real ones.

  100 (L0 - L) / f, L the mean log density of held-out features under Gaussians at the samples whose widths are fitted
  to the whole training set, L0 the same for examples of one half of the training set as centers and the other half to
  fit, as many centers in both. 0 is as good as real data; lower is better. A copy gets a narrow Gaussian
  that explains its original and nothing held out; with far fewer samples than training examples that shows little, for
  the Gaussian then has many examples to explain.

  Args:
    features: what is compared; the numbers themselves by default. They are standardized by the training set.
    limit: centers and held-out examples at most, >= 2.

  Raises:
    ValueError: limit out of range; before training, fewer than 2 samples or 4 training examples.

  Source: Jiralerspong et al. (2023), section 3. Not the number of their package `fld`: that fits widths by 50 epochs of
  Adam beside a further Gaussian at the mean (here EM with a floor), standardizes by the held-out features (here by
  the training set's), and takes up to 10,000 centers and features of DINOv2.
  """
  features = features_.pixels() if features is None else features
  checks.integer('limit', limit, 2)

  def check(plan: Plan) -> None:
    if plan.samples < 2 or plan.train < 4:
      raise ValueError(
        f'the feature likelihood needs at least 2 samples and 4 training examples, got {plan.samples} and {plan.train}'
      )

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    parts = [inputs.embed(features, which) for which in ('samples', 'train', 'held_out')]
    samples, train, real = standardized(*parts)
    count = min(limit, len(samples), len(train) // 2)  # centers, as many as the baseline has
    value = likelihood_divergence(subset(samples, count), train, subset(real, limit))
    baseline = baseline_divergence(train, subset(real, limit), count)
    name = f'FLD({features_.label(features)})'
    meaning = (
      '0 is as good as training examples; to be compared with numbers of this program alone, not of the package fld, '
      'which fits the widths otherwise'
    )
    return [MetricResult(name, value - baseline, meaning, unit='nats/dim x 100', better='lower')]

  return Metric(of_features(features, check), measure)


def standardized(
  samples: Num[np.ndarray, 'm f'], train: Num[np.ndarray, 't f'], held_out: Num[np.ndarray, 'n f']
) -> tuple[Float[np.ndarray, 'm v'], Float[np.ndarray, 't v'], Float[np.ndarray, 'n v']]:
  """(x - mean) / deviation with the training set's own, and what is constant in it left out.

  Args:
    samples, train, held_out: features.

  Returns:
    The three, float32, with the v features that vary.
  """
  mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
  varies = deviation > 1e-6 * deviation.max()
  return tuple(
    ((x - mean)[:, varies] / deviation[varies]).astype(np.float32)
    for x in (samples, train, held_out)
  )


def likelihood_divergence(
  samples: Num[np.ndarray, 'm f'], train: Num[np.ndarray, 't f'], held_out: Num[np.ndarray, 'n f']
) -> float:
  """-100 / f times the mean log density of held-out features under Gaussians at the samples.

  Args:
    samples: features, the centers.
    train: to which the widths are fitted.
    held_out: what is explained.
  """
  density = log_density(fit_widths(samples, train), held_out)
  return float(-100 * density.mean() / samples.shape[1])


def baseline_divergence(
  train: Num[np.ndarray, 't f'], held_out: Num[np.ndarray, 'n f'], count: int, seed: int = 0
) -> float:
  """`likelihood_divergence` of real samples: examples of one random half of the training set, the other half to fit.

  Args:
    train: features.
    held_out: what is explained.
    count: samples, in [1, t / 2].
    seed: of the halves.
  """
  order = np.random.default_rng(seed).permutation(len(train))
  half = len(train) // 2
  return likelihood_divergence(train[order[:half][:count]], train[order[half:]], held_out)
