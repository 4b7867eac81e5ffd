"""Parameterizations: what the network is given and what its output means.

Each maps an output to both halves of z = alpha x0 + sigma eps, for any process. c_noise, which the network embeds,
is log(sigma / alpha) / 4 for all of them (Karras et al., 2022, table 1), so a network does not know which one it
serves.
"""

import jax.numpy as jnp
from jaxtyping import Float

from diffusion import checks
from diffusion.citations import technique
from diffusion.process.marginals import expand
from diffusion.types import Array, Examples, Marginal, Parameterization, PerRow, Prediction

Spread = Float[Array, ' b *ones']  # a coefficient of each row, with unit axes


def _encode(z: Examples, marginal: Marginal) -> tuple[Examples, PerRow]:
  return z, jnp.log(marginal.sigma / marginal.alpha) / 4


def _coefficients(marginal: Marginal, like: Examples) -> tuple[Spread, Spread]:
  return expand(marginal.alpha, like), expand(marginal.sigma, like)


@technique('eps prediction', 'core', 'ho2020denoising')
def eps() -> Parameterization:
  """The network predicts the noise: x0 = (z - sigma eps) / alpha. Source: Ho et al. (2020), equation 11."""

  def decode(output: Examples, z: Examples, marginal: Marginal) -> Prediction:
    alpha, sigma = _coefficients(marginal, z)
    return Prediction(x0=(z - sigma * output) / alpha, eps=output)

  return Parameterization(_encode, decode, lambda x0, eps, marginal: eps)


@technique('x0 prediction', 'core', 'salimans2022progressive')
def x0() -> Parameterization:
  """The network predicts the data: eps = (z - alpha x0) / sigma. Source: Salimans & Ho (2022), section 4."""

  def decode(output: Examples, z: Examples, marginal: Marginal) -> Prediction:
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

  def decode(output: Examples, z: Examples, marginal: Marginal) -> Prediction:
    alpha, sigma = _coefficients(marginal, z)
    norm = alpha**2 + sigma**2
    return Prediction((alpha * z - sigma * output) / norm, (sigma * z + alpha * output) / norm)

  def target(x0: Examples, eps: Examples, marginal: Marginal) -> Examples:
    alpha, sigma = _coefficients(marginal, x0)
    return alpha * eps - sigma * x0

  return Parameterization(_encode, decode, target)


@technique('score prediction', 'core', 'song2019generative')
def score() -> Parameterization:
  """The network predicts the score of z: s = -eps / sigma. Source: Song & Ermon (2019), equation 5."""

  def decode(output: Examples, z: Examples, marginal: Marginal) -> Prediction:
    alpha, sigma = _coefficients(marginal, z)
    return Prediction(x0=(z + sigma**2 * output) / alpha, eps=-sigma * output)

  def target(x0: Examples, eps: Examples, marginal: Marginal) -> Examples:
    return -eps / expand(marginal.sigma, eps)

  return Parameterization(_encode, decode, target)


@technique('flow-velocity prediction', 'core', 'liu2023flow', 'lipman2023flow')
def velocity() -> Parameterization:
  """The network predicts u = eps - x0, the velocity dz/du of the straight line z = (1 - u) x0 + u eps.

  x0 = (z - sigma u) / (alpha + sigma), eps = (z + alpha u) / (alpha + sigma).

  Source: Liu et al. (2023), equation 1; the denominator, 1 for the rectified flow, makes it general.
  """

  def decode(output: Examples, z: Examples, marginal: Marginal) -> Prediction:
    alpha, sigma = _coefficients(marginal, z)
    norm = alpha + sigma
    return Prediction((z - sigma * output) / norm, (z + alpha * output) / norm)

  return Parameterization(_encode, decode, lambda x0, eps, marginal: eps - x0)


@technique('EDM preconditioning', 'core', 'karras2022edm')
def edm(sigma_data: float = 0.5) -> Parameterization:
  """x0 = c_skip y + c_out F(c_in y, c_noise), y = z / alpha = x0 + s eps, s = sigma / alpha.

  c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2), c_noise = log(s) / 4, with
  d = sigma_data: input and target of F have unit variance at every s.

  Args:
    sigma_data: standard deviation of the data in network units, > 0; `pipeline.sigma_data` measures it.

  Raises:
    ValueError: sigma_data is not positive.

  Source: Karras et al. (2022), table 1 and equation 7. eps = (y - x0) / s is expanded, so that it keeps its digits at
  small s.
  """
  checks.positive('sigma_data', sigma_data)

  def scales(marginal: Marginal, like: Examples) -> tuple[Spread, Spread, Spread]:
    alpha, sigma = _coefficients(marginal, like)
    s = sigma / alpha
    return alpha, s, jnp.hypot(s, sigma_data)

  def encode(z: Examples, marginal: Marginal) -> tuple[Examples, PerRow]:
    alpha, _, norm = scales(marginal, z)
    return z / (alpha * norm), jnp.log(marginal.sigma / marginal.alpha) / 4

  def decode(output: Examples, z: Examples, marginal: Marginal) -> Prediction:
    alpha, s, norm = scales(marginal, z)
    y = z / alpha
    x0 = (sigma_data / norm) ** 2 * y + s * sigma_data / norm * output
    return Prediction(x0, s / norm**2 * y - sigma_data / norm * output)

  def target(x0: Examples, eps: Examples, marginal: Marginal) -> Examples:
    _, s, norm = scales(marginal, x0)
    return (s / sigma_data * x0 - sigma_data * eps) / norm

  return Parameterization(encode, decode, target)
