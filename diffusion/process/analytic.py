"""Exact answers: denoisers, densities and draws that a perfect network would match. All else is tested against them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import checks, rng, statistics
from diffusion.process.marginals import expand
from diffusion.types import NULL, Array, Denoiser, Key, Marginal, Path, Prediction


class Mixture(NamedTuple):
  """sum_k pi_k N(mu_k, Q_k diag(v_k) Q_k^T).

  Attributes:
    weights: pi [K].
    means: mu [K, d].
    variances: v [K, d], >= 0; zeros are a point mass.
    axes: Q [K, d, d], orthogonal, eigenvectors in columns; None for the coordinate axes.
  """

  weights: Array
  means: Array
  variances: Array
  axes: Array | None


def mixture(weights: Array, means: Array, scales: Array) -> Mixture:
  """A Gaussian mixture.

  Args:
    weights: pi [K], positive, summing to one.
    means: mu [K, d].
    scales: standard deviations [K] of round components, >= 0, or covariances [K, d, d].

  Raises:
    ValueError: shapes that do not agree, or covariances that are not symmetric and positive semidefinite.
  """
  weights, means, scales = jnp.asarray(weights), jnp.asarray(means), jnp.asarray(scales)
  fits = means.ndim == 2 and scales.shape in (means.shape[:1], (*means.shape, means.shape[-1]))
  if not fits or weights.shape != means.shape[:1]:
    raise ValueError(
      'a mixture needs weights [K], means [K, d], scales [K] or [K, d, d], got shapes '
      f'{weights.shape}, {means.shape}, {scales.shape}'
    )
  if scales.ndim == 1:
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


def _rotate(given: Mixture, offset: Array, back: bool = False) -> Array:
  """Offsets [B, K, d] in each component's own axes, or back from them."""
  if given.axes is None:
    return offset
  return jnp.einsum('kij,bkj->bki' if back else 'kji,bkj->bki', given.axes, offset)


def _components(given: Mixture, z: Array, marginal: Marginal) -> tuple[Array, Array, Array]:
  """(log pi_k N(z; alpha mu_k, C_k) [B, K], rotated offset [B, K, d], C_k's variances [B, K, d])."""
  alpha, sigma = (c[:, None, None] for c in marginal)
  variance = alpha**2 * given.variances + sigma**2
  offset = _rotate(given, z[:, None] - alpha * given.means)
  log_density = -0.5 * (offset**2 / variance + jnp.log(2 * jnp.pi * variance)).sum(-1)
  return jnp.log(given.weights) + log_density, offset, variance


def log_density(given: Mixture, z: Array, marginal: Marginal) -> Array:
  """log p(z) [B] of z = alpha x0 + sigma eps [B, d], x0 from the mixture; sigma = 0 asks for the data's own density."""
  return jax.nn.logsumexp(_components(given, z, marginal)[0], axis=1)


def draw(given: Mixture, keys: Key) -> Array:
  """Draws of the mixture [B, d], row i from keys[i] alone."""

  def one(key: Key) -> Array:
    which, noise = jax.random.split(key)
    k = jax.random.categorical(which, jnp.log(given.weights))
    offset = jnp.sqrt(given.variances[k]) * jax.random.normal(noise, given.means.shape[1:])
    return given.means[k] + (offset if given.axes is None else given.axes[k] @ offset)

  return jax.vmap(one)(keys)


def entropy(given: Mixture, draws: int = 100_000, seed: int = 0) -> statistics.Interval:
  """The differential entropy -E log p in nats, by `draws` >= 2 draws, with its 95 % t interval."""
  checks.integer('draws', draws, 2)
  x = draw(given, rng.row_keys(jax.random.key(seed), jnp.arange(draws)))
  data = Marginal(jnp.ones(draws, x.dtype), jnp.zeros(draws, x.dtype))
  return statistics.mean_t(np.asarray(-log_density(given, x, data), np.float64))


def gaussian_mixture(path: Path, weights: Array, means: Array, scales: Array) -> Denoiser:
  """The exact denoiser of a Gaussian mixture.

  With C_k = alpha^2 Sigma_k + sigma^2 I and responsibilities r_k(z) proportional to pi_k N(z; alpha mu_k, C_k):
  x0 = sum_k r_k [mu_k + alpha Sigma_k C_k^-1 (z - alpha mu_k)].

  Args:
    path: the bound schedule and process.
    weights: pi [K], positive, summing to one.
    means: mu [K, d].
    scales: standard deviations [K] of round components, >= 0, or covariances [K, d, d].

  Returns:
    A Denoiser of z [B, d].

  Raises:
    ValueError: as `mixture` does.

  Source: Bayes' rule for Gaussians; Bonnaire et al. (2025) use the two-component case.
  """
  given = mixture(weights, means, scales)

  def denoise(z: Array, t: Array, key: Key | None = None) -> Prediction:
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


def empirical(
  path: Path,
  x: Array,
  labels: Array | None = None,
  wanted: Array | None = None,
  *,
  flip: bool = False,
  chunk: int = 1024,
) -> Denoiser:
  """The empirical-Bayes denoiser of a finite training set: what a network that fits it perfectly answers.

  x0 = sum_i w_i x_i, w = softmax_i(-|z - alpha x_i|^2 / (2 sigma^2)). It minimizes the training loss, and sampling
  with it returns training examples.

  Args:
    path: the bound schedule and process.
    x: training examples in network units [n, ...].
    labels: their labels [n], for a class-conditional denoiser.
    wanted: the label of each row of z [B]; the null label sees all examples. Needed with `labels`.
    flip: the training set also has every image [H, W, C] flipped left to right.
    chunk: examples at a time; memory is B x chunk, never B x n x d.

  Returns:
    A Denoiser of z [B, ...].

  Raises:
    ValueError: no examples, or only one of labels and wanted.

  Source: Bayes' rule for the empirical distribution. The squares are expanded to a matrix product, so float32 keeps
  about 1e-6 / sigma^2 nats of the exponent: use float64 below sigma = 0.01.
  """
  x = jnp.asarray(x)
  if not len(x) or (labels is None) != (wanted is None):
    raise ValueError(
      f'an empirical denoiser needs examples, and labels and wanted together; got {len(x)} examples'
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

  def denoise(z: Array, t: Array, key: Key | None = None) -> Prediction:
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


def box_mixture(path: Path, weights: Array, centers: Array, width: float) -> Denoiser:
  """The exact denoiser of sum_k pi_k U(box k), boxes of one width: a discrete distribution, uniformly dequantized.

  In each dimension the posterior of a box is a truncated normal; with y = z / alpha, s = sigma / alpha and edges a < b
  in units of s from y its mean is y + s (phi(a) - phi(b)) / (Phi(b) - Phi(a)).

  Args:
    path: the bound schedule and process.
    weights: pi [K], positive, summing to one.
    centers: [K, d].
    width: of a box in every dimension, > 0.

  Returns:
    A Denoiser of z [B, d].

  Raises:
    ValueError: shapes that do not agree, or a bad width.

  Source: Bayes' rule for uniform boxes.
  """
  weights, centers = jnp.asarray(weights), jnp.asarray(centers)
  checks.positive('width', width)
  if centers.ndim != 2 or weights.shape != centers.shape[:1]:
    raise ValueError(
      f'boxes need weights [K] and centers [K, d], got shapes {weights.shape}, {centers.shape}'
    )
  normal: Callable = jax.scipy.stats.norm

  def denoise(z: Array, t: Array, key: Key | None = None) -> Prediction:
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
