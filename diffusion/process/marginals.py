"""Processes: log-SNR to the coefficients of z = alpha x0 + sigma eps."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from diffusion.types import AnyShape, Array, Marginal


def expand(
  coefficient: Shaped[Array, ' b'], like: Float[Array, ' b *axes']
) -> Shaped[Array, ' b *units']:
  """Appends unit axes to a coefficient of each row so that it broadcasts against `like`."""
  return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))


def variance_preserving(log_snr: AnyShape) -> Marginal:
  """alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr), so that alpha^2 + sigma^2 = 1.

  Args:
    log_snr: log(alpha^2 / sigma^2) in nats.

  Returns:
    The marginal, of the same shape.

  Source: Kingma et al. (2021), "Variational diffusion models", equation 4.
  """
  # sqrt(sigmoid(x)) as exp(log_sigmoid(x) / 2): no loss of digits in either tail.
  return Marginal(
    jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr)), jnp.exp(0.5 * jax.nn.log_sigmoid(-log_snr))
  )


def variance_exploding(log_snr: AnyShape) -> Marginal:
  """alpha = 1, sigma = exp(-log_snr / 2): noise is added and nothing is scaled.

  Args:
    log_snr: log(alpha^2 / sigma^2) in nats.

  Returns:
    The marginal, of the same shape.

  Source: Song et al. (2021), section 3.4; Karras et al. (2022), section 2.
  """
  return Marginal(jnp.ones_like(log_snr), jnp.exp(-0.5 * log_snr))


def rectified_flow(log_snr: AnyShape) -> Marginal:
  """alpha = sigmoid(log_snr / 2), sigma = sigmoid(-log_snr / 2), so that alpha + sigma = 1: a straight line.

  Args:
    log_snr: log(alpha^2 / sigma^2) in nats.

  Returns:
    The marginal, of the same shape.

  Source: Liu et al. (2023), equation 1.
  """
  return Marginal(jax.nn.sigmoid(0.5 * log_snr), jax.nn.sigmoid(-0.5 * log_snr))


def sub_variance_preserving(log_snr: AnyShape) -> Marginal:
  """sigma = 1 - alpha^2: at every alpha less noise than the variance-preserving process has.

  With r = exp(log_snr / 2) the positive root of r alpha^2 + alpha - r = 0: alpha = r sigma, sigma = 2 / (1 + sqrt(1 +
  4 r^2)).

  Args:
    log_snr: log(alpha^2 / sigma^2) in nats.

  Returns:
    The marginal, of the same shape.

  Source: Song et al. (2021), equation 29 and appendix B.
  """
  r = jnp.exp(0.5 * log_snr)
  sigma = 2 / (1 + jnp.sqrt(1 + 4 * r**2))
  return Marginal(r * sigma, sigma)
