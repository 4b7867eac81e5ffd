"""Weights of the denoising loss as functions of log-SNR.

Every weight is returned as the factor of the *eps-loss*, so that it means the same under every parameterization.
The three losses of a variance-preserving process are one error seen three ways, with SNR = exp(log_snr):
|x0 error|^2 = |eps error|^2 / SNR and |v error|^2 = |eps error|^2 (1 + 1 / SNR).
"""

from collections.abc import Callable

import jax.numpy as jnp

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Array

Weight = Callable[[Array], Array]  # log-SNR [B] -> factor of the eps-loss [B]

_FACTORS = {
  'eps': jnp.ones_like,
  'x0': lambda log_snr: jnp.exp(-log_snr),
  'v': lambda log_snr: 1 + jnp.exp(-log_snr),
}


def _factor(on: str) -> Weight:
  if on not in _FACTORS:
    raise ValueError(f"on must name the loss that is weighted, 'eps', 'x0' or 'v', got {on!r}")
  return _FACTORS[on]


@technique('uniform loss weight', 'loss', 'ho2020denoising')
def uniform(on: str = 'eps') -> Weight:
  """Weight 1 on the loss named by `on`: 'eps' is DDPM's simple loss. Source: Ho et al. (2020), equation 14."""
  return _factor(on)


@technique('SNR loss weight', 'loss', 'salimans2022progressive')
def snr(on: str = 'x0') -> Weight:
  """Weight SNR on the loss named by `on`; on 'x0' it is the uniform eps-loss.

  Source: Salimans & Ho (2022), section 4.
  """
  factor = _factor(on)
  return lambda log_snr: jnp.exp(log_snr) * factor(log_snr)


@technique('min-SNR loss weight', 'loss', 'hang2023minsnr')
def min_snr(gamma: float = 5.0) -> Weight:
  """min(SNR, gamma) on the x0-loss, that is min(1, gamma / SNR) on the eps-loss.

  Args:
    gamma: > 0; 5 in the paper.

  Raises:
    ValueError: gamma is not positive.

  Source: Hang et al. (2023), section 3.4.
  """
  checks.positive('gamma', gamma)
  return lambda log_snr: jnp.minimum(1.0, gamma * jnp.exp(-log_snr))
