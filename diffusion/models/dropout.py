"""Dropout, drawn per global row: a row's mask depends on its key and the layer, on no other row and no device."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion import checks, streams
from diffusion.types import Array, Key


class Dropout(nn.Module):
  """y = x m / (1 - rate), m ~ Bernoulli(1 - rate) for each entry, so that E[y] = x; the identity without keys.

  Attributes:
    rate: the probability that an entry is dropped, in [0, 1). May be traced; only a Python 0 removes the code.

  Source: Srivastava et al. (2014), with the scaling moved to training.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, keys: Key | None) -> Array:
    """Drops entries of x[B, ...] with row keys [B]; None is evaluation."""
    checks.in_range('dropout', self.rate, 0, 1, ends='[)')
    if keys is None or checks.off(self.rate):
      return x
    layer = streams.tag('/'.join(self.path))  # every layer draws its own mask from the same row key

    def mask(key: Key) -> Array:
      return jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - self.rate, x.shape[1:])

    return jnp.where(jax.vmap(mask)(keys), x / (1 - self.rate), 0)
