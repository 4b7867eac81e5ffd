"""Parameterizations: what the network is given and what its output means.

Each maps an output to both halves of z = alpha x0 + sigma eps. c_noise, which the network embeds, is
log(sigma / alpha) / 4 for all of them (Karras et al., 2022, table 1), so a network does not know which one it
serves.
"""

import jax.numpy as jnp

from diffusion.citations import technique
from diffusion.process.marginals import expand
from diffusion.types import Array, Marginal, Parameterization, Prediction


def _encode(z: Array, marginal: Marginal) -> tuple[Array, Array]:
  return z, jnp.log(marginal.sigma / marginal.alpha) / 4


def _coefficients(marginal: Marginal, like: Array) -> tuple[Array, Array]:
  return expand(marginal.alpha, like), expand(marginal.sigma, like)


@technique('eps prediction', 'core', 'ho2020denoising')
def eps() -> Parameterization:
  """The network predicts the noise: x0 = (z - sigma eps) / alpha. Source: Ho et al. (2020), equation 11."""

  def decode(output: Array, z: Array, marginal: Marginal) -> Prediction:
    alpha, sigma = _coefficients(marginal, z)
    return Prediction(x0=(z - sigma * output) / alpha, eps=output)

  return Parameterization(_encode, decode, lambda x0, eps, marginal: eps)


@technique('x0 prediction', 'core', 'salimans2022progressive')
def x0() -> Parameterization:
  """The network predicts the data: eps = (z - alpha x0) / sigma. Source: Salimans & Ho (2022), section 4."""

  def decode(output: Array, z: Array, marginal: Marginal) -> Prediction:
    alpha, sigma = _coefficients(marginal, z)
    return Prediction(x0=output, eps=(z - alpha * output) / sigma)

  return Parameterization(_encode, decode, lambda x0, eps, marginal: x0)


@technique('v prediction', 'core', 'salimans2022progressive')
def v() -> Parameterization:
  """The network predicts v = alpha eps - sigma x0.

  x0 = (alpha z - sigma v) / (alpha^2 + sigma^2), eps = (sigma z + alpha v) / (alpha^2 + sigma^2): no division by
  alpha or sigma, so it is accurate at both ends.

  Source: Salimans & Ho (2022), appendix D; the denominator, 1 when variance preserving, makes it general.
  """

  def decode(output: Array, z: Array, marginal: Marginal) -> Prediction:
    alpha, sigma = _coefficients(marginal, z)
    norm = alpha**2 + sigma**2
    return Prediction((alpha * z - sigma * output) / norm, (sigma * z + alpha * output) / norm)

  def target(x0: Array, eps: Array, marginal: Marginal) -> Array:
    alpha, sigma = _coefficients(marginal, x0)
    return alpha * eps - sigma * x0

  return Parameterization(_encode, decode, target)
