"""The diffusion transformer, class-conditional."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion import checks
from diffusion.citations import technique
from diffusion.models import activations
from diffusion.models import dropout as dropouts
from diffusion.models.activations import Activation
from diffusion.models.attention import attend
from diffusion.models.convolution import Images
from diffusion.models.dropout import Drop, Dropout
from diffusion.models.embeddings import ConditioningEmbedding
from diffusion.models.functional import Mode, block_output, from_linen
from diffusion.types import Array, Conditioning, Model, PerRow

Places = Float[Array, 'b n c']  # n patches of an image
Features = Float[Array, 'b c']


def positions(
  height: int, width: int, features: int
) -> Float[np.ndarray, '{height}*{width} {features}']:
  """Fixed embeddings of a grid's places, row by row: half tells the row, half the column.

  Each half is cos and sin of place / 10000^(k / K), k = 0 ... K - 1, K = features / 4.

  Args:
    height, width: of the grid, in places.
    features: a multiple of 4.

  Source: Vaswani et al. (2017), section 3.5, for each axis.
  """
  frequency = 10000.0 ** (-np.arange(features // 4) / (features // 4))

  def axis(size: int) -> Float[np.ndarray, 'size half']:
    angle = np.arange(size)[:, None] * frequency
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)

  rows = np.broadcast_to(axis(height)[:, None], (height, width, features // 2))
  columns = np.broadcast_to(axis(width)[None], (height, width, features // 2))
  return np.concatenate([rows, columns], axis=2).reshape(height * width, features)


class SelfAttention(nn.Module):
  """Multi-head self-attention; keys have no bias, which no output depends on."""

  heads: int

  @nn.compact
  def __call__(self, x: Places) -> Places:
    """Each place from all."""
    b, n, c = x.shape
    shape = (b, n, self.heads, c // self.heads)
    query, value = nn.Dense(c, name='query')(x), nn.Dense(c, name='value')(x)
    key = nn.Dense(c, use_bias=False, name='key')(x)
    heads = (part.reshape(shape) for part in (query, key, value))
    return nn.Dense(c, name='out')(attend(*heads).reshape(b, n, c))


def _modulated(x: Places, shift: Features, scale: Features) -> Places:
  """LayerNorm without parameters, scaled and shifted as the conditioning says."""
  return nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale[:, None]) + shift[:, None]


class TransformerBlock(nn.Module):
  """x + gate attention(norm x), then the same with an MLP; shifts, scales and gates come from the conditioning."""

  heads: int
  drops: tuple[Drop, ...]
  depth: float
  activation: Activation

  @nn.compact
  def __call__(self, x: Places, embedding: Features, mode: Mode) -> Places:
    """What the block hands on.

    Args:
      x: what the one before it did.
      embedding: of the noise level and the conditioning.
      mode: how the network is applied.
    """
    c = x.shape[-1]
    told = nn.Dense(6 * c, kernel_init=nn.initializers.zeros, name='modulation')(embedding)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = jnp.split(told, 6, axis=-1)
    branch = [
      Dropout(self.drops, 'branch', self.depth, name=f'branch_{name}')
      for name in ('attention', 'mlp')
    ]
    h = SelfAttention(self.heads, name='attention')(_modulated(x, shift, scale))
    x += branch[0](gate[:, None] * h, mode.keys)
    h = self.activation(nn.Dense(4 * c, name='mlp_in')(_modulated(x, shift_mlp, scale_mlp)))
    h = nn.Dense(c, name='mlp_out')(Dropout(self.drops)(h, mode.keys))
    return x + branch[1](gate_mlp[:, None] * h, mode.keys)


class DiT(nn.Module):
  """See `dit`."""

  width: int
  depth: int
  heads: int
  patch: int
  drops: tuple[Drop, ...]
  num_classes: int
  activation: Activation

  @nn.compact
  def __call__(self, z: Images, noise: PerRow, conditioning: Conditioning, mode: Mode) -> Images:
    """The network's output.

    Args:
      z: noised examples.
      noise: c_noise of each.
      conditioning: what it is told beside the noise level.
      mode: how it is applied.

    Raises:
      ValueError: a patch that does not divide the image.
    """
    b, height, width, channels = z.shape
    p = self.patch
    if height % p or width % p:
      raise ValueError(f'a patch of {p} pixels does not divide images of {height} x {width}')
    rows, columns = height // p, width // p
    embedding = ConditioningEmbedding(self.width, self.num_classes)(noise, conditioning)
    embedding = embedding.astype(z.dtype)
    h = Dropout(self.drops, 'input', name='input')(z, mode.keys)
    h = h.reshape(b, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
    h = nn.Dense(self.width, name='stem')(h.reshape(b, rows * columns, p * p * channels))
    h += jnp.asarray(positions(rows, columns, self.width), h.dtype)
    for i in range(self.depth):
      depth = (i + 1) / self.depth
      one = TransformerBlock(self.heads, self.drops, depth, self.activation, name=f'Block_{i}')
      h = block_output(one(h, embedding, mode))
    told = nn.Dense(2 * self.width, kernel_init=nn.initializers.zeros, name='modulation')(embedding)
    h = _modulated(h, *jnp.split(told, 2, axis=-1))
    h = nn.Dense(p * p * channels, kernel_init=nn.initializers.zeros, name='output')(h)
    h = h.reshape(b, rows, columns, p, p, channels).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(z.shape)


@technique('diffusion transformer', 'core', 'peebles2023scalable', 'vaswani2017attention')
def dit(
  width: int = 384,
  depth: int = 12,
  heads: int = 6,
  patch: int = 2,
  dropout: float = 0.0,
  num_classes: int = 0,
  *,
  drops: Sequence[Drop] = (),
  activation: Activation | None = None,
) -> Model:
  """A transformer of patches whose layers are told the noise level and label by shifts, scales and gates (adaLN-zero).

  Args:
    width: features of a patch, a positive multiple of 8 and of `heads`; 384 in DiT-S.
    depth: blocks; 12 in DiT-S.
    heads: of attention; 6 in DiT-S.
    patch: side of a patch in pixels; it must divide the image's sides.
    dropout: rate inside every MLP, in [0, 1).
    num_classes: classes of a class-conditional network, which has a null class beside them, or 0.
    drops: more of the dropout family, from `models.dropout`.
    activation: of the MLPs, from `models.activations`; GELU by default.

  Returns:
    A Model of images z [b, h, w, c]; its output is zero, and every block the identity, at initialization.

  Raises:
    ValueError: an argument out of its range, or (when applied) an image that is not made of whole patches.

  Source: Peebles & Xie (2023), section 3. Deviations: the exact GELU; the noise embedding of this codebase.
  """
  for name, value in (('width', width), ('depth', depth), ('heads', heads), ('patch', patch)):
    checks.integer(name, value)
  if width % 8 or width % heads:
    raise ValueError(
      f'width must be a multiple of 8 and of heads = {heads} (features are shared out), got {width}'
    )
  checks.integer('num_classes', num_classes, 0)
  module = DiT(
    width=width,
    depth=depth,
    heads=heads,
    patch=patch,
    drops=(dropouts.elements(dropout), *drops),
    num_classes=num_classes,
    activation=activation or activations.gelu,
  )
  return from_linen(module, num_classes, drops)
