"""Activations: functions of one number that a network applies entrywise; a partial sets what they take beside it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import AnyShape

Activation = Callable[[AnyShape], AnyShape]


@technique('SiLU', 'network', 'elfwing2018silu')
def silu(x: AnyShape) -> AnyShape:
  """x / (1 + e^-x). Source: Elfwing et al. (2018), equation 6."""
  return jax.nn.silu(x)


@technique('ReLU', 'network', 'nair2010relu')
def relu(x: AnyShape) -> AnyShape:
  """max(x, 0). Source: Nair & Hinton (2010)."""
  return jax.nn.relu(x)


@technique('leaky ReLU', 'network', 'maas2013rectifier')
def leaky_relu(x: AnyShape, slope: float = 0.01) -> AnyShape:
  """x above zero, slope x below.

  Args:
    x: any shape.
    slope: in [0, 1].

  Raises:
    ValueError: slope out of its range.

  Source: Maas et al. (2013), section 2.
  """
  checks.in_range('slope', slope, 0, 1)
  return jnp.where(x > 0, x, slope * x).astype(x.dtype)


@technique('ELU', 'network', 'clevert2016elu')
def elu(x: AnyShape, scale: float = 1.0) -> AnyShape:
  """x above zero, scale (e^x - 1) below.

  Args:
    x: any shape.
    scale: > 0.

  Raises:
    ValueError: scale is not positive.

  Source: Clevert et al. (2016), equation 15.
  """
  checks.positive('scale', scale)
  return jax.nn.elu(x, scale).astype(x.dtype)


@technique('GELU', 'network', 'hendrycks2016gelu')
def gelu(x: AnyShape) -> AnyShape:
  """x Phi(x), Phi the normal distribution function, exactly. Source: Hendrycks & Gimpel (2016), section 2."""
  return jax.nn.gelu(x, approximate=False)


@technique('Mish', 'network', 'misra2020mish')
def mish(x: AnyShape) -> AnyShape:
  """x tanh(log(1 + e^x)). Source: Misra (2020), equation 1."""
  return jax.nn.mish(x)
