"""The U-Net of DDPM, class-conditional."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion import checks
from diffusion.citations import technique
from diffusion.models.convolution import conv
from diffusion.models.dropout import Dropout
from diffusion.models.embeddings import ConditioningEmbedding
from diffusion.models.functional import from_linen
from diffusion.types import Array, Conditioning, Key, Model, Variables


def groups(channels: int) -> int:
  """The largest divisor of `channels` up to min(32, channels / 4), at least 1: at least four channels a group."""
  return max(g for g in range(1, max(1, min(32, channels // 4)) + 1) if channels % g == 0)


def _norm(x: Array) -> Array:
  return nn.GroupNorm(groups(x.shape[-1]))(x)


class ResidualBlock(nn.Module):
  """norm, SiLU, conv, + embedding, norm, SiLU, dropout, zero conv; added to the input.

  Source: Ho et al. (2020), appendix B; `rescale` divides the sum by sqrt(2) (Song et al., 2021, appendix H).
  """

  features: int
  dropout: float
  rescale: bool
  forward_mode: bool

  @nn.compact
  def __call__(self, x: Array, embedding: Array, keys: Key | None) -> Array:
    """x[B, H, W, C], embedding[B, E] -> [B, H, W, features]."""
    h = conv(self.features, forward_mode=self.forward_mode, name='conv_in')(nn.silu(_norm(x)))
    h += nn.Dense(self.features, name='embedding')(embedding)[:, None, None]
    h = Dropout(self.dropout)(nn.silu(_norm(h)), keys)
    h = conv(self.features, zero=True, forward_mode=self.forward_mode, name='conv_out')(h)
    if x.shape[-1] != self.features:
      x = nn.Dense(self.features, name='shortcut')(x)
    return (x + h) / jnp.sqrt(2.0).astype(x.dtype) if self.rescale else x + h


class Attention(nn.Module):
  """Single-head self-attention over the pixels, with a zero output projection.

  Keys have no bias: it adds the same to all logits of a row, which the softmax cannot see, so its gradient is nothing
  but rounding, and Adam would walk it at random.

  Source: Ho et al. (2020), appendix B, whose keys have one.
  """

  rescale: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x[B, H, W, C] -> [B, H, W, C]."""
    b, height, width, c = x.shape
    x_norm = _norm(x).reshape(b, height * width, c)
    query, value = nn.Dense(c, name='query')(x_norm), nn.Dense(c, name='value')(x_norm)
    key = nn.Dense(c, use_bias=False, name='key')(x_norm)
    # Written out because jax.nn.dot_product_attention takes its softmax in float32 whatever it is given.
    share = jax.nn.softmax(jnp.einsum('bic,bjc->bij', query, key) / c**0.5)
    h = jnp.einsum('bij,bjc->bic', share, value)
    h = nn.Dense(c, kernel_init=nn.initializers.zeros, name='out')(h.reshape(x.shape))
    return (x + h) / jnp.sqrt(2.0).astype(x.dtype) if self.rescale else x + h


class UNet(nn.Module):
  """See `unet`."""

  width: int
  multipliers: tuple[int, ...]
  blocks: int
  attention: tuple[int, ...]
  dropout: float
  num_classes: int
  rescale: bool
  forward_mode: bool

  @nn.compact
  def __call__(self, z: Array, noise: Array, conditioning: Conditioning, keys: Key | None) -> Array:
    """z[B, H, W, C], noise[B] -> [B, H, W, C]."""
    embedding = ConditioningEmbedding(4 * self.width, self.num_classes)(noise, conditioning)

    def block(h: Array, features: int, attend: bool) -> Array:
      h = ResidualBlock(features, self.dropout, self.rescale, self.forward_mode)(h, embedding, keys)
      return Attention(self.rescale)(h) if attend else h

    h = conv(self.width, forward_mode=self.forward_mode, name='stem')(z)
    skips = [h]
    for level, multiplier in enumerate(self.multipliers):
      for _ in range(self.blocks):
        h = block(h, self.width * multiplier, h.shape[1] in self.attention)
        skips.append(h)
      if level + 1 < len(self.multipliers):
        h = conv(h.shape[-1], stride=2, forward_mode=self.forward_mode, name=f'down_{level}')(h)
        skips.append(h)
    h = block(h, h.shape[-1], attend=True)
    h = block(h, h.shape[-1], attend=False)
    for level, multiplier in reversed(list(enumerate(self.multipliers))):
      for _ in range(self.blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = block(h, self.width * multiplier, h.shape[1] in self.attention)
      if level:
        h = h.repeat(2, axis=1).repeat(2, axis=2)
        h = conv(h.shape[-1], forward_mode=self.forward_mode, name=f'up_{level}')(h)
    h = nn.silu(_norm(h))
    return conv(z.shape[-1], zero=True, forward_mode=self.forward_mode, name='output')(h)


def _dropout_is_on(dropout: float = 0.0, **unused) -> bool:
  return not checks.off(dropout)


@technique('dropout', 'network', 'srivastava2014dropout', active=_dropout_is_on)
def _dropout(dropout: float) -> float:
  checks.in_range('dropout', dropout, 0, 1, ends='[)')
  return dropout


@technique(
  'U-Net with group normalization, SiLU and attention', 'network', 'ho2020denoising',
  'ronneberger2015unet', 'wu2018group', 'elfwing2018silu', 'vaswani2017attention',
)  # fmt: skip
def unet(
  width: int = 128,
  multipliers: Sequence[int] = (1, 2, 2, 2),
  blocks: int = 2,
  attention: Sequence[int] = (16,),
  dropout: float = 0.0,
  num_classes: int = 0,
  rescale: bool = False,
) -> Model:
  """DDPM's U-Net: the defaults are its CIFAR-10 network, 35,746,307 parameters less 1,536 biases of keys.

  Args:
    width: channels at full resolution, a positive multiple of 8.
    multipliers: channels of each level in units of `width`; each level after the first has half the resolution,
      so the image's sides must be divisible by 2^(levels - 1).
    blocks: residual blocks a level on the way down (one more on the way up).
    attention: the heights (pixels) at which every block is followed by self-attention; the middle always is.
    dropout: rate before the second convolution of every residual block, in [0, 1).
    num_classes: classes of a class-conditional network, which has a null class beside them, or 0.
    rescale: divide every residual sum by sqrt(2).

  Returns:
    A Model of images z[B, H, W, C]; its output is zero at initialization.

  Raises:
    ValueError: an argument out of its range, or (when applied) an image that cannot be halved so often.

  Source: Ho et al. (2020), appendix B. Deviations: the embedding is of log-SNR (see `embeddings`), the class
  embedding is new, downsampling is DDPM's strided convolution.
  """
  checks.integer('width', width)
  if width % 8:
    raise ValueError(f'width must be a multiple of 8 (noise features are half of it), got {width}')
  if not multipliers:
    raise ValueError(f'multipliers must name at least one level, got {multipliers!r}')
  for multiplier in multipliers:
    checks.integer('multipliers', multiplier)
  checks.integer('blocks', blocks)
  checks.integer('num_classes', num_classes, 0)
  arguments = {
    'width': width,
    'multipliers': tuple(multipliers),
    'blocks': blocks,
    'attention': tuple(attention),
    'dropout': _dropout(dropout),
    'num_classes': num_classes,
    'rescale': rescale,
  }
  model = from_linen(lambda forward_mode: UNet(**arguments, forward_mode=forward_mode))
  factor = 2 ** (len(multipliers) - 1)

  def check(z: Array) -> None:
    if z.ndim != 4 or z.shape[1] % factor or z.shape[2] % factor:
      raise ValueError(
        f'a U-Net of {len(multipliers)} levels needs images [B, H, W, C] with H and W divisible by {factor}, got '
        f'{z.shape}: use fewer multipliers or pad the images'
      )

  def init(key: Key, z: Array, noise: Array, conditioning: Conditioning):
    check(z)
    return model.init(key, z, noise, conditioning)

  def apply(
    variables: Variables, z: Array, noise: Array, conditioning: Conditioning, **options: Any
  ):
    check(z)
    return model.apply(variables, z, noise, conditioning, **options)

  return Model(init, apply, num_classes)
