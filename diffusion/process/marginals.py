"""Processes: log-SNR to the coefficients of z = alpha x0 + sigma eps."""

import jax
import jax.numpy as jnp

from diffusion.types import Array, Marginal


def expand(coefficient: Array, like: Array) -> Array:
  """Appends unit axes to a [B] coefficient so that it broadcasts against `like` [B, ...]."""
  return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))


def variance_preserving(log_snr: Array) -> Marginal:
  """alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr), so that alpha^2 + sigma^2 = 1.

  Args:
    log_snr: log(alpha^2 / sigma^2) in nats, any shape.

  Returns:
    The marginal, of the same shape.

  Source: Kingma et al. (2021), "Variational diffusion models", equation 4.
  """
  # sqrt(sigmoid(x)) as exp(log_sigmoid(x) / 2): no loss of digits in either tail.
  return Marginal(
    jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr)), jnp.exp(0.5 * jax.nn.log_sigmoid(-log_snr))
  )
