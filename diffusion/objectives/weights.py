"""Weights of the denoising loss as functions of log-SNR.

Every weight is returned as the factor of the *eps-loss*, so that it means the same under every parameterization.
The three losses of a variance-preserving process are one error seen three ways, with SNR = exp(log_snr):
|x0 error|^2 = |eps error|^2 / SNR and |v error|^2 = |eps error|^2 (1 + 1 / SNR). The velocity eps - x0 of a straight
line has |velocity error|^2 = |eps error|^2 (1 + 1 / sqrt(SNR))^2.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import AnyShape

Weight = Callable[[AnyShape], AnyShape]  # log-SNR in nats -> factor of the eps-loss

_FACTORS = {
  'eps': jnp.ones_like,
  'x0': lambda log_snr: jnp.exp(-log_snr),
  'v': lambda log_snr: 1 + jnp.exp(-log_snr),
  'velocity': lambda log_snr: (1 + jnp.exp(-0.5 * log_snr)) ** 2,
}


def _factor(on: str) -> Weight:
  if on not in _FACTORS:
    raise ValueError(
      f'on must name the loss that is weighted, one of {", ".join(_FACTORS)}, got {on!r}'
    )
  return _FACTORS[on]


@technique('uniform loss weight', 'loss', 'ho2020denoising')
def uniform(on: str = 'eps') -> Weight:
  """Weight 1 on the loss named by `on`: 'eps' is DDPM's simple loss.

  Args:
    on: 'eps', 'x0', 'v' or 'velocity'.

  Raises:
    ValueError: another name.

  Source: Ho et al. (2020), equation 14.
  """
  return _factor(on)


@technique('SNR loss weight', 'loss', 'salimans2022progressive')
def snr(on: str = 'x0') -> Weight:
  """Weight SNR on the loss named by `on`; on 'x0' it is the uniform eps-loss.

  Args:
    on: 'eps', 'x0', 'v' or 'velocity'.

  Raises:
    ValueError: another name.

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


@technique('truncated-SNR loss weight', 'loss', 'salimans2022progressive')
def truncated_snr() -> Weight:
  """max(SNR, 1) on the x0-loss, that is max(1, 1 / SNR) on the eps-loss.

  Source: Salimans & Ho (2022), section 4.
  """
  return lambda log_snr: jnp.maximum(1.0, jnp.exp(-log_snr))


@technique('EDM loss weight', 'loss', 'karras2022edm')
def edm(sigma_data: float = 0.5) -> Weight:
  """(s^2 + d^2) / (s d)^2 on the x0-loss, s^2 = 1 / SNR, d = sigma_data: (s^2 + d^2) / d^2 on the eps-loss.

  With EDM preconditioning it is the plain mean squared error of the network's output.

  Args:
    sigma_data: standard deviation of the data, > 0.

  Raises:
    ValueError: sigma_data is not positive.

  Source: Karras et al. (2022), table 1.
  """
  checks.positive('sigma_data', sigma_data)
  return lambda log_snr: 1 + jnp.exp(-log_snr) / sigma_data**2


@technique('P2 loss weight', 'loss', 'choi2022perception')
def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
  """(k + SNR)^-gamma on the eps-loss: less weight where only imperceptible noise is left.

  Args:
    k: > 0.
    gamma: >= 0; 0 is uniform.

  Raises:
    ValueError: k or gamma out of range.

  Source: Choi et al. (2022), equation 8, on their simple loss.
  """
  checks.positive('k', k)
  checks.at_least('gamma', gamma, 0)
  return lambda log_snr: (k + jnp.exp(log_snr)) ** -gamma


@technique('sigmoid loss weight', 'loss', 'kingma2023understanding')
def sigmoid(bias: float = 2.0) -> Weight:
  """sigmoid(bias - log_snr) on the eps-loss; in the paper the weight of `losses.weighted_bound`.

  Args:
    bias: nats, finite: the log-SNR where the weight is one half.

  Raises:
    ValueError: bias is not finite.

  Source: Kingma & Gao (2023), section 5 and appendix K.
  """
  checks.in_range('bias', bias, -80, 80)
  return lambda log_snr: jax.nn.sigmoid(bias - log_snr)
