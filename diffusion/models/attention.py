"""Self-attention's one formula."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from diffusion.types import Array

Heads = Float[Array, 'b n heads c']  # of n places


def attend(query: Heads, key: Heads, value: Heads) -> Heads:
  """softmax(q k / sqrt(c)) v for each head, the softmax in float32 or more.

  JAX chooses the kernel: today always XLA's. cuDNN's is not asked for, since it refuses some lengths and widths and the
  project has not run it.

  Args:
    query: q, what each place asks.
    key: k, what each place is asked by.
    value: v, what each place says.

  Source: Vaswani et al. (2017), equation 1.
  """
  if (
    query.dtype == jnp.float64
  ):  # jax.nn.dot_product_attention takes its softmax in float32 even then
    share = jax.nn.softmax(jnp.einsum('bihc,bjhc->bhij', query, key) / query.shape[-1] ** 0.5)
    return jnp.einsum('bhij,bjhc->bihc', share, value)
  return jax.nn.dot_product_attention(query, key, value)
