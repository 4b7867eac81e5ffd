"""Self-attention's one formula, by the fastest kernel that the arithmetic and the device allow."""

import jax
import jax.numpy as jnp

from diffusion import devices
from diffusion.types import Array


def attend(query: Array, key: Array, value: Array, forward_mode: bool = False) -> Array:
  """softmax(q k / sqrt(c)) v for each head, the softmax in float32 or more.

  Args:
    query, key, value: [B, N, heads, c].
    forward_mode: use operations that have a jvp.

  Returns:
    [B, N, heads, c].

  Source: Vaswani et al. (2017), equation 1.
  """
  if (
    query.dtype == jnp.float64
  ):  # jax.nn.dot_product_attention takes its softmax in float32 even then
    share = jax.nn.softmax(jnp.einsum('bihc,bjhc->bhij', query, key) / query.shape[-1] ** 0.5)
    return jnp.einsum('bhij,bjhc->bihc', share, value)
  kernel = 'xla' if forward_mode else devices.attention_kernel(query.dtype)
  return jax.nn.dot_product_attention(query, key, value, implementation=kernel)
