"""Initial weights of kernels: each factory returns a Linen initializer, (key, shape, dtype) -> array.

The fan-in n of a kernel [..., in, out] is all it has but its outputs, the fan-out m all but its inputs.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Array, Key

Initializer = Callable[..., object]


@technique('LeCun initialization', 'network', 'lecun1998efficient')
def lecun() -> Initializer:
  """Normal (cut at two deviations) with variance 1 / n. Source: LeCun et al. (1998), equation 16."""
  return nn.initializers.lecun_normal()


@technique('He initialization', 'network', 'he2015delving')
def he() -> Initializer:
  """Normal (cut at two deviations) with variance 2 / n, for rectifiers. Source: He et al. (2015), equation 10."""
  return nn.initializers.he_normal()


@technique('Xavier initialization', 'network', 'glorot2010understanding')
def xavier() -> Initializer:
  """Uniform with variance 2 / (n + m). Source: Glorot & Bengio (2010), equation 16."""
  return nn.initializers.xavier_uniform()


@technique('orthogonal initialization', 'network', 'saxe2014exact')
def orthogonal(gain: float = 1.0) -> Initializer:
  """gain Q, Q a random matrix of n rows and m columns with orthonormal rows or columns, whichever are fewer.

  Args:
    gain: > 0.

  Raises:
    ValueError: gain is not positive.

  Source: Saxe et al. (2014), section 3.
  """
  checks.positive('gain', gain)
  return nn.initializers.orthogonal(gain)


@technique('zero-initialized outputs', 'network', 'goyal2017accurate', 'ho2020denoising')
def zeros(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, '...']:
  """Zeros for the last layer of a residual block and of the network, so that a block starts as the identity.

  Args:
    key: not used.
    shape: of the kernel.
    dtype: of its entries.

  Source: Goyal et al. (2017), section 5.1; Ho et al. (2020) do so for whole layers.
  """
  del key
  return jnp.zeros(shape, dtype)
