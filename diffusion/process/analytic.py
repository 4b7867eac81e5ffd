"""Exact answers: denoisers, densities and draws that a perfect network would match. All else is tested against them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from diffusion import checks, rng, statistics
from diffusion.process.marginals import expand
from diffusion.types import (
  NULL,
  AnyArray,
  AnyShape,
  Array,
  Denoiser,
  Examples,
  Key,
  Keys,
  Marginal,
  Path,
  PerRow,
  Prediction,
)

Scales = Float[AnyArray, ' k'] | Float[AnyArray, 'k d d']


class Mixture(NamedTuple):
  """sum_k pi_k N(mu_k, Q_k diag(v_k) Q_k^T).

  Attributes:
    weights: pi.
    means: mu.
    variances: v, >= 0; zeros are a point mass.
    axes: Q, orthogonal, eigenvectors in columns; None for the coordinate axes.
  """

  weights: Float[Array, ' k']
  means: Float[Array, 'k d']
  variances: Float[Array, 'k d']
  axes: Float[Array, 'k d d'] | None


def mixture(
  weights: Float[AnyArray, ' k'], means: Float[AnyArray, 'k d'], scales: Scales
) -> Mixture:
  """A Gaussian mixture.

  Args:
    weights: pi, positive, summing to one.
    means: mu.
    scales: standard deviations of round components, >= 0, or covariances.

  Raises:
    ValueError: shapes that do not agree, weights that are no shares, numbers that are not finite, negative scales, or
      covariances that are not symmetric and positive semidefinite.
  """
  weights, means, scales = jnp.asarray(weights), jnp.asarray(means), jnp.asarray(scales)
  fits = means.ndim == 2 and scales.shape in (means.shape[:1], (*means.shape, means.shape[-1]))
  if not fits or weights.shape != means.shape[:1]:
    raise ValueError(
      'a mixture needs weights [K], means [K, d], scales [K] or [K, d, d], got shapes '
      f'{weights.shape}, {means.shape}, {scales.shape}'
    )
  checks.shares('weights', weights)
  checks.finite('means', means)
  checks.finite('scales', scales)
  if scales.ndim == 1:
    if not checks.traced(scales) and (scales < 0).any():
      raise ValueError(f'scales must be >= 0, got {np.asarray(scales)}')
    return Mixture(weights, means, jnp.broadcast_to(scales[:, None] ** 2, means.shape), None)
  covariance = np.asarray(scales, np.float64)
  values, vectors = np.linalg.eigh(covariance)
  size = np.abs(covariance).max()
  asymmetry = np.abs(covariance - covariance.swapaxes(1, 2)).max()
  if asymmetry > 1e-6 * size or values.min() < -1e-6 * size:
    raise ValueError(
      'covariances must be symmetric and positive semidefinite, got a smallest eigenvalue of '
      f'{values.min():.3g} and an asymmetry of {asymmetry:.3g}'
    )
  dtype = means.dtype
  variances, axes = (jnp.asarray(a, dtype) for a in (np.maximum(values, 0), vectors))
  return Mixture(weights, means, variances, axes)


def _rotate(
  given: Mixture, offset: Float[Array, 'b k d'], back: bool = False
) -> Float[Array, 'b k d']:
  """Offsets in each component's own axes, or back from them."""
  if given.axes is None:
    return offset
  return jnp.einsum('kij,bkj->bki' if back else 'kji,bkj->bki', given.axes, offset)


def _components(
  given: Mixture, z: Float[Array, 'b d'], marginal: Marginal
) -> tuple[Float[Array, 'b k'], Float[Array, 'b k d'], Float[Array, 'b k d']]:
  """(log pi_k N(z; alpha mu_k, C_k), rotated offset, C_k's variances)."""
  alpha, sigma = (c[:, None, None] for c in marginal)
  variance = alpha**2 * given.variances + sigma**2
  offset = _rotate(given, z[:, None] - alpha * given.means)
  log_density = -0.5 * (offset**2 / variance + jnp.log(2 * jnp.pi * variance)).sum(-1)
  return jnp.log(given.weights) + log_density, offset, variance


def log_density(given: Mixture, z: Float[Array, 'b d'], marginal: Marginal) -> PerRow:
  """log p(z) of z = alpha x0 + sigma eps, x0 from the mixture.

  log p(z) = log sum_k pi_k N(z; alpha mu_k, alpha^2 Sigma_k + sigma^2 I).

  Args:
    given: the mixture.
    z: where.
    marginal: alpha and sigma of each row; sigma = 0 asks for the data's own density.

  Returns:
    Nats.
  """
  return jax.nn.logsumexp(_components(given, z, marginal)[0], axis=1)


def draw(given: Mixture, keys: Keys) -> Float[Array, 'b d']:
  """Draws of the mixture, row i from keys[i] alone."""

  def one(key: Key) -> Float[Array, ' d']:
    which, noise = jax.random.split(key)
    k = jax.random.categorical(which, jnp.log(given.weights))
    offset = jnp.sqrt(given.variances[k]) * jax.random.normal(noise, given.means.shape[1:])
    return given.means[k] + (offset if given.axes is None else given.axes[k] @ offset)

  return jax.vmap(one)(keys)


def entropy(given: Mixture, draws: int = 100_000, seed: int = 0) -> statistics.Interval:
  """The differential entropy -E log p of the data, estimated from draws.

  Args:
    given: the mixture.
    draws: >= 2.
    seed: of the draws.

  Returns:
    Nats, with the 95 % t interval.

  Raises:
    ValueError: fewer than two draws.
  """
  checks.integer('draws', draws, 2)
  x = draw(given, rng.row_keys(jax.random.key(seed), jnp.arange(draws)))
  data = Marginal(jnp.ones(draws, x.dtype), jnp.zeros(draws, x.dtype))
  return statistics.mean_t(np.asarray(-log_density(given, x, data), np.float64))


def gaussian_mixture(
  path: Path, weights: Float[AnyArray, ' k'], means: Float[AnyArray, 'k d'], scales: Scales
) -> Denoiser:
  """The exact denoiser of a Gaussian mixture.

  With C_k = alpha^2 Sigma_k + sigma^2 I and responsibilities r_k(z) proportional to pi_k N(z; alpha mu_k, C_k):
  x0 = sum_k r_k [mu_k + alpha Sigma_k C_k^-1 (z - alpha mu_k)].

  Args:
    path: the bound schedule and process.
    weights: pi, positive, summing to one.
    means: mu.
    scales: standard deviations of round components, >= 0, or covariances.

  Returns:
    A Denoiser of z [b, d].

  Raises:
    ValueError: as `mixture` does.

  Source: Bayes' rule for Gaussians; Bonnaire et al. (2025) use the two-component case.
  """
  given = mixture(weights, means, scales)

  def denoise(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    del key
    marginal = path.marginal(t)
    log_share, offset, variance = _components(given, z, marginal)
    share = jax.nn.softmax(log_share)[..., None]
    scaled = offset / variance
    alpha, sigma = (expand(c, z) for c in marginal)
    gain = alpha[..., None] * given.variances * scaled
    x0 = (share * (given.means + _rotate(given, gain, back=True))).sum(1)
    eps = sigma * (share * _rotate(given, scaled, back=True)).sum(
      1
    )  # -sigma score: no cancellation
    return Prediction(x0, eps)

  return denoise


def standardized(
  exact: Callable[[Path], Denoiser], path: Path, mean: float, deviation: float
) -> Denoiser:
  """An exact denoiser of data x as the exact denoiser of (x - mean) / deviation.

  z = alpha (x - mean) / deviation + sigma eps is y = deviation z + alpha mean = alpha x + (deviation sigma) eps, so
  x0 = (D_x(y) - mean) / deviation on the path whose sigma is deviation times as large, and eps is the same.

  Args:
    exact: path -> the exact denoiser of x.
    path: the bound schedule and process of the standardized data.
    mean, deviation: finite, deviation > 0; with 0 and 1 the denoiser is `exact(path)` itself.
  """
  if (mean, deviation) == (0.0, 1.0):
    return exact(path)
  shift = 2 * math.log(deviation)

  def marginal(t: AnyShape) -> Marginal:
    alpha, sigma = path.marginal(t)
    return Marginal(alpha, deviation * sigma)

  own = Path(
    log_snr=lambda t: path.log_snr(t) - shift,
    slope=path.slope,
    time=lambda log_snr: path.time(log_snr + shift),
    marginal=marginal,
  )
  denoise_x = exact(own)

  def denoise(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    y = deviation * z + expand(path.marginal(t).alpha, z) * mean
    found = denoise_x(y, t, key)
    return Prediction((found.x0 - mean) / deviation, found.eps)

  return denoise


def empirical(
  path: Path,
  x: Float[AnyArray, ' n *shape'],
  labels: Integer[AnyArray, ' n'] | None = None,
  wanted: Integer[AnyArray, ' b'] | None = None,
  *,
  flip: bool = False,
  chunk: int = 1024,
) -> Denoiser:
  """The empirical-Bayes denoiser of a finite training set: what a network that fits it perfectly answers.

  x0 = sum_i w_i x_i, w = softmax_i(-|z - alpha x_i|^2 / (2 sigma^2)). It minimizes the training loss, and sampling
  with it returns training examples.

  Args:
    path: the bound schedule and process.
    x: training examples in network units.
    labels: theirs, for a class-conditional denoiser.
    wanted: the label of each row of z; the null label sees all examples. Needed with `labels`.
    flip: the training set also has every image [h, w, c] flipped left to right.
    chunk: examples at a time, >= 1; memory is b x chunk, never b x n x d.

  Returns:
    A Denoiser of z [b, *shape].

  Raises:
    ValueError: no examples, some that are not finite, only one of labels and wanted, a wanted label that no example
      has, or a bad chunk.

  Source: Bayes' rule for the empirical distribution. The squares are expanded to a matrix product, so float32 keeps
  about 1e-6 / sigma^2 nats of the exponent: use float64 below sigma = 0.01.
  """
  x = jnp.asarray(x)
  if not len(x) or (labels is None) != (wanted is None):
    raise ValueError(
      f'an empirical denoiser needs examples, and labels and wanted together; got {len(x)} examples'
    )
  checks.finite('x', x)
  if wanted is not None and not checks.traced(wanted):
    missing = np.setdiff1d(wanted, [NULL, *np.asarray(labels)])
    if missing.size:
      raise ValueError(
        f'no example of label {missing[0]}, which is wanted: its denoiser is not defined'
      )
  checks.integer('chunk', chunk)
  tags = jnp.zeros(len(x), jnp.int32) if labels is None else jnp.asarray(labels)
  if flip:
    x, tags = jnp.concatenate([x, x[..., ::-1, :]]), jnp.concatenate([tags, tags])
  size = min(chunk, len(x))
  missing = -len(x) % size
  flat = x.reshape(len(x), -1)
  center = flat.mean(
    0
  )  # near the origin the expansion keeps more digits; the softmax does not see it
  parts = (
    jnp.pad(flat - center, ((0, missing), (0, 0))).reshape(-1, size, flat.shape[1]),
    jnp.pad(tags, (0, missing)).reshape(-1, size),
    (jnp.arange(len(x) + missing) < len(x)).reshape(-1, size),
  )

  def denoise(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    del key
    marginal = path.marginal(t)
    alpha, sigma = (c[:, None] for c in marginal)
    y = z.reshape(len(z), -1) - alpha * center

    def add(state, part):
      top, total, mean = state
      points, tag, real = part
      logit = alpha * (y @ points.T - 0.5 * alpha * (points**2).sum(1)) / sigma**2
      allowed = (
        real if wanted is None else real & ((tag == wanted[:, None]) | (wanted[:, None] == NULL))
      )
      logit = jnp.where(allowed, logit, -jnp.inf)
      higher = jnp.maximum(top, logit.max(1))
      safe = jnp.where(jnp.isfinite(higher), higher, 0.0)  # a chunk without the wanted class
      scale, w = jnp.exp(top - safe), jnp.exp(logit - safe[:, None])
      return (higher, total * scale + w.sum(1), mean * scale[:, None] + w @ points), None

    start = (jnp.full(len(z), -jnp.inf, z.dtype), jnp.zeros(len(z), z.dtype), jnp.zeros_like(y))
    (_, total, mean), _ = jax.lax.scan(add, start, parts)
    x0 = (mean / total[:, None] + center).reshape(z.shape)
    return Prediction(x0, (z - expand(marginal.alpha, z) * x0) / expand(marginal.sigma, z))

  return denoise


def box_mixture(
  path: Path, weights: Float[AnyArray, ' k'], centers: Float[AnyArray, 'k d'], width: float
) -> Denoiser:
  """The exact denoiser of sum_k pi_k U(box k), boxes of one width: a discrete distribution, uniformly dequantized.

  In each dimension the posterior of a box is a truncated normal; with y = z / alpha, s = sigma / alpha and edges a < b
  in units of s from y its mean is y + s (phi(a) - phi(b)) / (Phi(b) - Phi(a)).

  Args:
    path: the bound schedule and process.
    weights: pi, positive, summing to one.
    centers: of the boxes.
    width: of a box in every dimension, > 0.

  Returns:
    A Denoiser of z [b, d].

  Raises:
    ValueError: shapes that do not agree, weights that are no shares, centers that are not finite, or a bad width.

  Source: Bayes' rule for uniform boxes.
  """
  weights, centers = jnp.asarray(weights), jnp.asarray(centers)
  checks.positive('width', width)
  if centers.ndim != 2 or weights.shape != centers.shape[:1]:
    raise ValueError(
      f'boxes need weights [K] and centers [K, d], got shapes {weights.shape}, {centers.shape}'
    )
  checks.shares('weights', weights)
  checks.finite('centers', centers)
  normal: Callable = jax.scipy.stats.norm

  def denoise(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    del key
    alpha, sigma = (expand(c, z) for c in path.marginal(t))
    y, s = (z / alpha)[:, None], (sigma / alpha)[:, None]
    a, b = (centers - width / 2 - y) / s, (centers + width / 2 - y) / s
    mirrored = a + b > 0  # the same box seen from the other side: both edges in the accurate tail
    low, high = jnp.where(mirrored, -b, a), jnp.where(mirrored, -a, b)
    inside = normal.logcdf(high) + jnp.log(-jnp.expm1(normal.logcdf(low) - normal.logcdf(high)))
    mean = y + s * (jnp.exp(normal.logpdf(a) - inside) - jnp.exp(normal.logpdf(b) - inside))
    share = jax.nn.softmax(jnp.log(weights) + inside.sum(-1))[..., None]
    x0 = (share * mean).sum(1)
    return Prediction(x0, (z - alpha * x0) / sigma)

  return denoise
