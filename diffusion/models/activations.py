"""Activations: each factory returns the function of one number that a network applies entrywise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import AnyShape

Activation = Callable[[AnyShape], AnyShape]


@technique('SiLU', 'network', 'elfwing2018silu')
def silu() -> Activation:
  """x / (1 + e^-x). Source: Elfwing et al. (2018), equation 6."""
  return jax.nn.silu


@technique('ReLU', 'network', 'nair2010relu')
def relu() -> Activation:
  """max(x, 0). Source: Nair & Hinton (2010)."""
  return jax.nn.relu


@technique('leaky ReLU', 'network', 'maas2013rectifier')
def leaky_relu(slope: float = 0.01) -> Activation:
  """x above zero, slope x below.

  Args:
    slope: in [0, 1].

  Raises:
    ValueError: slope out of its range.

  Source: Maas et al. (2013), section 2.
  """
  checks.in_range('slope', slope, 0, 1)
  return lambda x: jnp.where(x > 0, x, slope * x).astype(x.dtype)


@technique('ELU', 'network', 'clevert2016elu')
def elu(scale: float = 1.0) -> Activation:
  """x above zero, scale (e^x - 1) below.

  Args:
    scale: > 0.

  Raises:
    ValueError: scale is not positive.

  Source: Clevert et al. (2016), equation 15.
  """
  checks.positive('scale', scale)
  return lambda x: jax.nn.elu(x, scale).astype(x.dtype)


@technique('GELU', 'network', 'hendrycks2016gelu')
def gelu() -> Activation:
  """x Phi(x), Phi the normal distribution function, exactly. Source: Hendrycks & Gimpel (2016), section 2."""
  return lambda x: jax.nn.gelu(x, approximate=False)


@technique('Mish', 'network', 'misra2020mish')
def mish() -> Activation:
  """x tanh(log(1 + e^x)). Source: Misra (2020), equation 1."""
  return jax.nn.mish
