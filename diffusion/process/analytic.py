"""Exact denoisers: what a perfect network would answer. Everything downstream is tested against them."""

import jax
import jax.numpy as jnp

from diffusion.process.marginals import expand
from diffusion.types import Array, Denoiser, Key, Path, Prediction


def gaussian_mixture(path: Path, weights: Array, means: Array, scales: Array) -> Denoiser:
  """The exact denoiser of sum_k pi_k N(mu_k, s_k^2 I).

  With c_k = alpha^2 s_k^2 + sigma^2 and responsibilities r_k(z) proportional to pi_k N(z; alpha mu_k, c_k I):
  x0 = sum_k r_k [mu_k + (alpha s_k^2 / c_k) (z - alpha mu_k)].

  Args:
    path: the bound schedule and process.
    weights: pi [K], positive, summing to one.
    means: mu [K, d].
    scales: s [K], >= 0; a zero is a point mass.

  Returns:
    A Denoiser of z [B, d].

  Raises:
    ValueError: shapes that do not agree.

  Source: Bayes' rule for Gaussians; Bonnaire et al. (2025) use the two-component case.
  """
  weights, means, scales = jnp.asarray(weights), jnp.asarray(means), jnp.asarray(scales)
  if means.ndim != 2 or weights.shape != means.shape[:1] or scales.shape != means.shape[:1]:
    raise ValueError(
      'a mixture needs weights [K], means [K, d], scales [K], got shapes '
      f'{weights.shape}, {means.shape}, {scales.shape}'
    )

  def denoise(z: Array, t: Array, key: Key | None = None) -> Prediction:
    del key
    alpha, sigma = (expand(c, z) for c in path.marginal(t))  # [B, 1]
    variance = alpha**2 * scales**2 + sigma**2  # [B, K]
    offset = z[:, None] - alpha[..., None] * means  # [B, K, d]
    log_density = -0.5 * (offset**2).sum(-1) / variance - 0.5 * z.shape[1] * jnp.log(variance)
    share = jax.nn.softmax(jnp.log(weights) + log_density)
    gain = alpha * scales**2 / variance
    x0 = (share[..., None] * (means + gain[..., None] * offset)).sum(1)
    return Prediction(x0, (z - alpha * x0) / sigma)

  return denoise
