"""A U-Net whose layers keep the magnitude of activations by construction, without normalization layers.

Kernels are used with each output's weights scaled to unit norm, so a layer of unit-variance inputs has unit-variance
outputs whatever the weights' length; activations, sums and concatenations are scaled likewise, and there are no biases.
With `chains.chain(..., fix_norms=True)` the stored weights keep their length too, so that the learning rate means the
same throughout training.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from diffusion.citations import technique
from diffusion.models import dropout as dropouts
from diffusion.models.attention import attend
from diffusion.models.convolution import Images, canonical, plain
from diffusion.models.dropout import Drop, Dropout
from diffusion.models.embeddings import fourier
from diffusion.models.functional import Mode, block_output, from_linen
from diffusion.models.unet import check_arguments, for_images
from diffusion.types import AnyShape, Array, Conditioning, Model, PerRow

_EPSILON = 1e-4


def unit(x: AnyShape, axes: Sequence[int]) -> AnyShape:
  """x over its root mean square over `axes`."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  scale = jax.lax.rsqrt(jnp.mean(wide**2, axis=tuple(axes), keepdims=True) + _EPSILON**2)
  return x * scale.astype(x.dtype)


def mp_silu(x: AnyShape) -> AnyShape:
  """SiLU over 0.596, the root mean square of SiLU of a standard normal. Source: Karras et al. (2024), equation 81."""
  return jax.nn.silu(x) / 0.596


def mp_sum(a: AnyShape, b: AnyShape, share: float) -> AnyShape:
  """((1 - share) a + share b) / sqrt((1 - share)^2 + share^2): of unit variance for independent a and b.

  Args:
    a, b: of unit variance.
    share: of b, in [0, 1].

  Source: Karras et al. (2024), equation 88.
  """
  return ((1 - share) * a + share * b) / ((1 - share) ** 2 + share**2) ** 0.5


def mp_concatenate(
  a: Float[Array, '*any n'], b: Float[Array, '*any m']
) -> Float[Array, '*any n+m']:
  """[a w_a, b w_b] with equal contributions of both to what follows, and unit mean square.

  Source: Karras et al. (2024), equation 103, at t = 1/2.
  """
  n, m = a.shape[-1], b.shape[-1]
  scale = ((n + m) / 2) ** 0.5
  return jnp.concatenate([a * (scale / n**0.5), b * (scale / m**0.5)], axis=-1)


class Kernel(nn.Module):
  """A dense layer (side 0) or a convolution of this side whose outputs' weights are scaled to unit norm, no bias.

  Attributes:
    features: outputs.
    side: 0, 1 or 3.
    gain: start a learned factor of the outputs at this; None has none.

  Source: Karras et al. (2024), equations 47 and 66.
  """

  features: int
  side: int = 0
  gain: float | None = None

  @nn.compact
  def __call__(self, x: Float[Array, '*any c'], mode: Mode) -> Float[Array, '*any {self.features}']:
    """The layer's outputs."""
    shape = (*(self.side,) * 2 * bool(self.side), x.shape[-1], self.features)
    stored = self.param('kernel', nn.initializers.normal(1.0), shape)
    inputs = range(len(shape) - 1)
    fan_in = stored.size // self.features
    kernel = unit(stored, inputs) / fan_in**0.5
    if self.side:
      pad = (((self.side - 1) // 2,) * 2,) * 2
      if mode.forward_mode:
        y = plain(x, kernel, (1, 1), pad, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      else:
        y = canonical(x, kernel, (1, 1), pad)
    else:
      y = x @ kernel
    if self.gain is None:
      return y
    return y * self.param('gain', nn.initializers.constant(self.gain), ())


class Block(nn.Module):
  """Residual block: pixel norm on the way down, SiLU, conv, times (1 + embedding), SiLU, dropout, conv; attention.

  Source: Karras et al. (2024), figure 21.
  """

  features: int
  encoder: bool
  attend: bool
  drops: tuple[Drop, ...]
  depth: float
  heads_of: int = 64

  @nn.compact
  def __call__(
    self, x: Images, embedding: Float[Array, 'b e'], mode: Mode
  ) -> Float[Array, 'b h w {self.features}']:
    """What the block hands on.

    Args:
      x: what the one before it did.
      embedding: of the noise level and the conditioning.
      mode: how the network is applied.
    """
    if self.encoder:
      if x.shape[-1] != self.features:
        x = Kernel(self.features, 1, name='shortcut')(x, mode)
      x = unit(x, (-1,))  # pixel normalization keeps the main path from growing
    h = Kernel(self.features, 3, name='conv_in')(mp_silu(x), mode)
    told = Kernel(self.features, gain=0.0, name='embedding')(embedding, mode)
    h = mp_silu(h * (1 + told[:, None, None]))
    h = Kernel(self.features, 3, name='conv_out')(Dropout(self.drops)(h, mode.keys), mode)
    h = Dropout(self.drops, 'branch', self.depth, name='branch')(h, mode.keys)
    if not self.encoder and x.shape[-1] != self.features:
      x = Kernel(self.features, 1, name='shortcut')(x, mode)
    x = mp_sum(x, h, 0.3)
    return mp_sum(x, self._attention(x, mode), 0.3) if self.attend else x

  def _attention(self, x: Images, mode: Mode) -> Images:
    """Cosine attention over the pixels: queries, keys and values of unit magnitude."""
    b, height, width, c = x.shape
    heads = max(1, c // self.heads_of)
    parts = []
    for name in ('query', 'key', 'value'):
      part = Kernel(c, 1, name=name)(x, mode).reshape(b, height * width, heads, c // heads)
      parts.append(unit(part, (-1,)))
    h = attend(*parts).reshape(x.shape)
    return Kernel(c, 1, name='out')(h, mode)


class MagnitudePreservingUNet(nn.Module):
  """See `unet`."""

  width: int
  multipliers: tuple[int, ...]
  blocks: int
  attention: tuple[int, ...]
  drops: tuple[Drop, ...]
  num_classes: int

  def _embedding(
    self, noise: PerRow, conditioning: Conditioning, mode: Mode
  ) -> Float[Array, 'b e']:
    size = self.width * max(self.multipliers)
    # Fourier features have mean square 1/2.
    embedding = Kernel(size, name='noise')(2**0.5 * fourier(noise, self.width), mode)
    if self.num_classes:
      label = conditioning.condition % (self.num_classes + 1)  # NULL = -1 is the last class
      hot = jax.nn.one_hot(label, self.num_classes + 1) * (self.num_classes + 1) ** 0.5
      embedding = mp_sum(embedding, Kernel(size, name='label')(hot, mode), 0.5)
    if conditioning.augment.shape[1]:  # label zero is no label: no bias, no scaling of the rest
      embedding += Kernel(size, name='augment')(conditioning.augment, mode)
    return mp_silu(embedding)

  @nn.compact
  def __call__(self, z: Images, noise: PerRow, conditioning: Conditioning, mode: Mode) -> Images:
    """The network's output.

    Args:
      z: noised examples.
      noise: c_noise of each.
      conditioning: what it is told beside the noise level.
      mode: how it is applied.
    """
    embedding = self._embedding(noise, conditioning, mode).astype(z.dtype)
    levels = len(self.multipliers)
    total, done = levels * (2 * self.blocks + 1) + 2, 0

    def block(
      h: Images, level: int, encoder: bool, attention: bool
    ) -> Float[Array, 'b h w features']:
      nonlocal done
      done += 1
      features = self.width * self.multipliers[level]
      one = Block(features, encoder, attention, drops=self.drops, depth=done / total)
      return block_output(one(h, embedding, mode))

    z_in = Dropout(self.drops, 'input', name='input')(z, mode.keys)
    # A constant channel stands in for the biases there are not.
    h = Kernel(self.width, 3, name='stem')(
      jnp.concatenate([z_in, jnp.ones_like(z[..., :1])], axis=-1), mode
    )
    kept = [h]
    for level in range(levels):
      for _ in range(self.blocks):
        h = block(h, level, True, h.shape[1] in self.attention)
        kept.append(h)
      if level + 1 < levels:
        b, height, width, c = h.shape
        h = h.reshape(b, height // 2, 2, width // 2, 2, c).mean((2, 4))
        kept.append(h)
    h = block(h, levels - 1, False, True)
    h = block(h, levels - 1, False, False)
    for level in reversed(range(levels)):
      for _ in range(self.blocks + 1):
        h = block(mp_concatenate(h, kept.pop()), level, False, h.shape[1] in self.attention)
      if level:
        h = h.repeat(2, axis=1).repeat(2, axis=2)
    return Kernel(z.shape[-1], 3, gain=0.0, name='output')(h, mode)


@technique('magnitude-preserving layers', 'network', 'karras2024edm2')
def unet(
  width: int = 64,
  multipliers: Sequence[int] = (1, 2, 3, 4),
  blocks: int = 3,
  attention: Sequence[int] = (16, 8),
  dropout: float = 0.0,
  num_classes: int = 0,
  *,
  drops: Sequence[Drop] = (),
) -> Model:
  """A U-Net of magnitude-preserving layers: no normalization of batches or groups, no biases, and no drift.

  Args:
    width: channels at full resolution, a positive multiple of 8.
    multipliers: channels of each level in units of `width`; each level after the first has half the resolution.
    blocks: residual blocks a level on the way down (one more on the way up).
    attention: the heights (pixels) at which every block has self-attention; the middle always has.
    dropout: rate before the second convolution of every residual block, in [0, 1).
    num_classes: classes of a class-conditional network, which has a null class beside them, or 0.
    drops: more of the dropout family, from `models.dropout`.

  Returns:
    A Model of images z [b, h, w, c]; its output is zero at initialization (a learned gain of zero).

  Raises:
    ValueError: an argument out of its range.

  Source: Karras et al. (2024), section 2.3 and appendix B (configuration G). Deviations: averaging of 2 x 2 pixels and
  repetition for resampling, the noise features of this codebase, the weights' length kept by the optimizer.
  """
  check_arguments(width, multipliers, blocks, num_classes)
  module = MagnitudePreservingUNet(
    width=width,
    multipliers=tuple(multipliers),
    blocks=blocks,
    attention=tuple(attention),
    drops=(dropouts.elements(dropout), *drops),
    num_classes=num_classes,
  )
  return for_images(from_linen(module, num_classes, drops), len(multipliers))
