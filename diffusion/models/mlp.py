"""A residual MLP for vectors."""

import flax.linen as nn

from diffusion import checks
from diffusion.citations import technique
from diffusion.models.dropout import Dropout
from diffusion.models.embeddings import ConditioningEmbedding
from diffusion.models.functional import from_linen
from diffusion.types import Array, Conditioning, Key, Model


class ResidualMLP(nn.Module):
  """See `mlp`."""

  width: int
  depth: int
  dropout: float
  num_classes: int

  @nn.compact
  def __call__(self, z: Array, noise: Array, conditioning: Conditioning, keys: Key | None) -> Array:
    """z[B, d], noise[B] -> [B, d]."""
    embedding = ConditioningEmbedding(self.width, self.num_classes)(noise, conditioning)
    h = nn.Dense(self.width, name='stem')(z)
    for _ in range(self.depth):
      r = nn.Dense(self.width)(nn.silu(nn.LayerNorm()(h))) + nn.Dense(self.width)(embedding)
      r = Dropout(self.dropout)(nn.silu(r), keys)
      h += nn.Dense(self.width, kernel_init=nn.initializers.zeros)(r)
    h = nn.silu(nn.LayerNorm()(h))
    return nn.Dense(z.shape[-1], kernel_init=nn.initializers.zeros, name='output')(h)


@technique('residual MLP', 'network', 'he2016residual')
def mlp(width: int = 128, depth: int = 3, dropout: float = 0.0, num_classes: int = 0) -> Model:
  """A residual network of `depth` blocks of two dense layers, with the noise level added inside each block.

  Args:
    width: hidden units, a positive multiple of 8.
    depth: residual blocks.
    dropout: rate before the second dense layer of a block, in [0, 1).
    num_classes: classes of a class-conditional network, which has a null class beside them, or 0.

  Returns:
    A Model of vectors z[B, d]; its output is zero at initialization.

  Raises:
    ValueError: an argument out of its range.
  """
  checks.integer('width', width)
  if width % 8:
    raise ValueError(
      f'width must be a multiple of 8 (noise features are a quarter of it), got {width}'
    )
  checks.integer('depth', depth)
  checks.in_range('dropout', dropout, 0, 1, ends='[)')
  checks.integer('num_classes', num_classes, 0)
  return from_linen(
    lambda forward_mode: ResidualMLP(width, depth, dropout, num_classes), num_classes
  )
