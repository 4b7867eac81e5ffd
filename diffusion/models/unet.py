"""The U-Net of DDPM, class-conditional, with its parts to choose."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from diffusion import checks
from diffusion.citations import technique
from diffusion.models import activations, dropout, initializers, normalization
from diffusion.models.activations import Activation
from diffusion.models.attention import attend
from diffusion.models.convolution import Images, conv
from diffusion.models.dropout import Drop, Dropout
from diffusion.models.embeddings import ConditioningEmbedding
from diffusion.models.functional import Mode, block_output, from_linen
from diffusion.models.initializers import Initializer
from diffusion.models.normalization import Norm
from diffusion.types import AnyShape, Array, Conditioning, Examples, Key, Model, PerRow, Variables


def plain_sum(x: AnyShape, h: AnyShape) -> AnyShape:
  """x + h."""
  return x + h


@technique('scaled residual sums', 'network', 'song2021score')
def rescaled_sum(x: AnyShape, h: AnyShape) -> AnyShape:
  """(x + h) / sqrt(2), which keeps the variance of independent summands: the `rescale` argument of `unet`.

  Source: Song et al. (2021), appendix H.
  """
  return (x + h) / jnp.sqrt(2.0).astype(x.dtype)


@technique('long skips', 'network', 'ronneberger2015unet')
def concatenated(h: Images, skip: Float[Array, 'b h w k']) -> Float[Array, 'b h w _']:
  """Each level's maps on the way down beside those on the way up: the `skips` argument of `unet`.

  Source: Ronneberger et al. (2015), figure 1.
  """
  return jnp.concatenate([h, skip], axis=-1)


def alone(h: Images, skip: Float[Array, 'b h w k']) -> Images:
  """h, without what the way down had."""
  del skip
  return h


class Style(NamedTuple):
  """What all blocks of a network share; see `unet` for each."""

  norm: Norm
  activation: Activation
  kernel_init: Initializer
  output_init: Initializer  # of the last layer of a block, and of the network
  add: Callable[[Images, Images], Images] = plain_sum  # (x, h) -> their residual sum


class ResidualBlock(nn.Module):
  """norm, activation, conv, + embedding, norm, activation, dropout, conv; added to the input.

  Source: Ho et al. (2020), appendix B; `rescale` divides the sum by sqrt(2) (Song et al., 2021, appendix H).
  """

  features: int
  drops: tuple[Drop, ...]
  depth: float
  style: Style

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
    style, forward = self.style, mode.forward_mode
    init = style.kernel_init
    h = style.activation(style.norm(x, mode))
    h = conv(self.features, kernel_init=init, forward_mode=forward, name='conv_in')(h)
    h += nn.Dense(self.features, kernel_init=init, name='embedding')(embedding)[:, None, None]
    h = Dropout(self.drops)(style.activation(style.norm(h, mode)), mode.keys)
    h = conv(
      self.features, kernel_init=style.output_init, forward_mode=forward, name='conv_out'
    )(h)  # fmt: skip
    h = Dropout(self.drops, 'branch', self.depth, name='branch')(h, mode.keys)
    if x.shape[-1] != self.features:
      x = nn.Dense(self.features, kernel_init=init, name='shortcut')(x)
    return style.add(x, h)


class Attention(nn.Module):
  """Single-head self-attention over the pixels.

  Keys have no bias: it adds the same to all logits of a row, which the softmax cannot see, so its gradient is nothing
  but rounding, and Adam would walk it at random.

  Source: Ho et al. (2020), appendix B, whose keys have one.
  """

  style: Style

  @nn.compact
  def __call__(self, x: Images, mode: Mode) -> Images:
    """Each pixel from all."""
    b, height, width, c = x.shape
    init = self.style.kernel_init
    x_norm = self.style.norm(x, mode).reshape(b, height * width, c)
    query = nn.Dense(c, kernel_init=init, name='query')(x_norm)
    value = nn.Dense(c, kernel_init=init, name='value')(x_norm)
    key = nn.Dense(c, kernel_init=init, use_bias=False, name='key')(x_norm)
    heads = (part[:, :, None] for part in (query, key, value))  # one
    h = attend(*heads).reshape(x.shape)
    return self.style.add(x, nn.Dense(c, kernel_init=self.style.output_init, name='out')(h))


class UNet(nn.Module):
  """See `unet`."""

  width: int
  multipliers: tuple[int, ...]
  blocks: int
  attention: tuple[int, ...]
  dropout: tuple[Drop, ...]
  drops: tuple[Drop, ...]
  num_classes: int
  join: Callable[..., Float[Array, 'b h w _']]  # (maps on the way up, those on the way down)
  style: Style

  @nn.compact
  def __call__(self, z: Images, noise: PerRow, conditioning: Conditioning, mode: Mode) -> Images:
    """The network's output.

    Args:
      z: noised examples.
      noise: c_noise of each.
      conditioning: what it is told beside the noise level.
      mode: how it is applied.
    """
    style, levels = self.style, len(self.multipliers)
    embedding = ConditioningEmbedding(4 * self.width, self.num_classes, style.activation)(
      noise, conditioning
    ).astype(z.dtype)
    total, done = levels * (2 * self.blocks + 1) + 2, 0

    def block(h: Images, level: int, attention: bool) -> Float[Array, 'b h w features']:
      nonlocal done
      done += 1
      drops = (self.dropout[level], *self.drops)
      features = self.width * self.multipliers[level]
      h = block_output(ResidualBlock(features, drops, done / total, style)(h, embedding, mode))
      return block_output(Attention(style)(h, mode)) if attention else h

    def plain(features: int, **options: Any) -> nn.Conv:
      options = {'kernel_init': style.kernel_init} | options
      return conv(features, forward_mode=mode.forward_mode, **options)

    h = plain(self.width, name='stem')(Dropout(self.drops, 'input', name='input')(z, mode.keys))
    kept = [h]
    for level in range(levels):
      for _ in range(self.blocks):
        h = block(h, level, h.shape[1] in self.attention)
        kept.append(h)
      if level + 1 < levels:
        h = plain(h.shape[-1], stride=2, name=f'down_{level}')(h)
        kept.append(h)
    h = block(h, levels - 1, attention=True)
    h = block(h, levels - 1, attention=False)
    for level in reversed(range(levels)):
      for _ in range(self.blocks + 1):
        h = block(self.join(h, kept.pop()), level, h.shape[1] in self.attention)
      if level:
        h = h.repeat(2, axis=1).repeat(2, axis=2)
        h = plain(h.shape[-1], name=f'up_{level}')(h)
    h = style.activation(style.norm(h, mode))
    return plain(z.shape[-1], kernel_init=style.output_init, name='output')(h)


def level_drops(rate: float | Sequence[float], levels: int) -> tuple[Drop, ...]:
  """The dropout of each level.

  Args:
    rate: in [0, 1), one for all levels or one each.
    levels: of the network.

  Raises:
    ValueError: a sequence of another length, or a rate out of range.
  """
  rates = tuple(rate) if isinstance(rate, Sequence) else (rate,) * levels
  if len(rates) != levels:
    raise ValueError(
      f'dropout must be one rate, or one for each of the {levels} levels, got {rate!r}'
    )
  return tuple(dropout.elements(one) for one in rates)


def check_arguments(width: int, multipliers: Sequence[int], blocks: int, num_classes: int) -> None:
  """Whether a U-Net has these sizes.

  Args:
    width: a positive multiple of 8.
    multipliers: at least one integer >= 1.
    blocks: >= 1.
    num_classes: >= 0.

  Raises:
    ValueError: an argument out of its range.
  """
  checks.integer('width', width)
  if width % 8:
    raise ValueError(f'width must be a multiple of 8 (noise features come from it), got {width}')
  if not multipliers:
    raise ValueError(f'multipliers must name at least one level, got {multipliers!r}')
  for multiplier in multipliers:
    checks.integer('multipliers', multiplier)
  checks.integer('blocks', blocks)
  checks.integer('num_classes', num_classes, 0)


def for_images(model: Model, levels: int) -> Model:
  """The model with one clear error for what is not an image that can be halved `levels` - 1 times.

  Args:
    model: of images z [b, h, w, c].
    levels: >= 1.

  Raises:
    ValueError: (when applied) something else than such images.
  """
  factor = 2 ** (levels - 1)

  def check(z: Examples) -> None:
    if z.ndim != 4 or z.shape[1] % factor or z.shape[2] % factor:
      raise ValueError(
        f'a U-Net of {levels} levels needs images [B, H, W, C] with H and W divisible by {factor}, got '
        f'{z.shape}: use fewer multipliers or pad the images'
      )

  def init(key: Key, z: Examples, noise: PerRow, conditioning: Conditioning) -> Variables:
    check(z)
    return model.init(key, z, noise, conditioning)

  def apply(
    variables: Variables, z: Examples, noise: PerRow, conditioning: Conditioning, **options: Any
  ) -> tuple[Examples, Variables]:
    check(z)
    return model.apply(variables, z, noise, conditioning, **options)

  return model._replace(init=init, apply=apply)


@technique('U-Net', 'core', 'ho2020denoising', 'vaswani2017attention')
def unet(
  width: int = 128,
  multipliers: Sequence[int] = (1, 2, 2, 2),
  blocks: int = 2,
  attention: Sequence[int] = (16,),
  dropout: float | Sequence[float] = 0.0,
  num_classes: int = 0,
  *,
  drops: Sequence[Drop] = (),
  norm: Norm | None = None,
  activation: Activation | None = None,
  kernel_init: Initializer | None = None,
  zero_outputs: bool = True,
  rescale: bool = False,
  skips: bool = True,
) -> Model:
  """DDPM's U-Net: the defaults are its CIFAR-10 network, 35,746,307 parameters less 1,536 biases of keys.

  Args:
    width: channels at full resolution, a positive multiple of 8.
    multipliers: channels of each level in units of `width`; each level after the first has half the resolution,
      so the image's sides must be divisible by 2^(levels - 1).
    blocks: residual blocks a level on the way down (one more on the way up).
    attention: the heights (pixels) at which every block is followed by self-attention; the middle always is.
    dropout: rate before the second convolution of every residual block, in [0, 1); or one rate a level.
    num_classes: classes of a class-conditional network, which has a null class beside them, or 0.
    drops: more of the dropout family, from `models.dropout`.
    norm: from `models.normalization`; group normalization by default.
    activation: from `models.activations`; SiLU by default.
    kernel_init: from `models.initializers`; LeCun's by default.
    zero_outputs: start the last layer of every block and of the network at zero.
    rescale: divide every residual sum by sqrt(2).
    skips: hand the maps of the way down to the way up; without, all goes through the narrow middle.

  Returns:
    A Model of images z [b, h, w, c]; its output is zero at initialization, if `zero_outputs`.

  Raises:
    ValueError: an argument out of its range, or (when applied) an image that cannot be halved so often.

  Source: Ho et al. (2020), appendix B. Deviations: the embedding is of log-SNR (see `embeddings`), the class
  embedding is new, downsampling is DDPM's strided convolution.
  """
  check_arguments(width, multipliers, blocks, num_classes)
  init = kernel_init or initializers.lecun()
  style = Style(
    norm=norm or normalization.group(),
    activation=activation or activations.silu,
    kernel_init=init,
    output_init=initializers.zeros if zero_outputs else init,
    add=rescaled_sum if rescale else plain_sum,
  )
  module = UNet(
    width=width,
    multipliers=tuple(multipliers),
    blocks=blocks,
    attention=tuple(attention),
    dropout=level_drops(dropout, len(multipliers)),
    drops=tuple(drops),
    num_classes=num_classes,
    join=concatenated if skips else alone,
    style=style,
  )
  return for_images(from_linen(module, num_classes, drops), len(multipliers))
