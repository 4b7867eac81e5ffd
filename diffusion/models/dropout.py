"""The dropout family. Each member is off without keys, keeps the mean of what it acts on, and is one line.

What is dropped of a row depends on the row's key and the layer, on no other row and no device. `elements` is the
`dropout` argument of the networks; the others are given to their `drops`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool

from diffusion import checks, rng
from diffusion.citations import technique
from diffusion.types import AnyShape, Array, Examples, Key, Keys, Params

PLACES = ('units', 'branch', 'input', 'kernels')


class Drop(NamedTuple):
  """A kind of dropout.

  Attributes:
    place: 'units' (before the last layer of a residual block), 'branch' (the block's sum), 'input' (of the network) or
      'kernels' (all of them, by one draw for the whole batch).
    act: (key, one row or one kernel, depth of the block in (0, 1]) -> the same, thinned; None leaves no code.
  """

  place: str
  act: Callable[[Key, AnyShape, float], AnyShape] | None


def _thin(keep: Bool[Array, '...'], rate: float, x: AnyShape) -> AnyShape:
  """x / (1 - rate) where kept, 0 elsewhere; in bfloat16 1 - rate would be another number."""
  scale = jnp.asarray(1 - rate, jnp.promote_types(x.dtype, jnp.float32))
  return jnp.where(keep, x / scale, 0).astype(x.dtype)


def _mask(shape: Callable[[AnyShape], tuple[int, ...]]) -> Callable[[float], Callable]:
  """rate -> act: one draw for each entry of `shape(x)`."""

  def make(rate: float) -> Callable:
    def act(key: Key, x: AnyShape, depth: float) -> AnyShape:
      return _thin(jax.random.bernoulli(key, 1 - rate, shape(x)), rate, x)

    return act

  return make


def _is_on(rate: float) -> bool:
  return not checks.off(rate)


def _checked(name: str, rate: float) -> float:
  checks.in_range(name, rate, 0, 1, ends='[)')
  return rate


@technique('dropout', 'network', 'srivastava2014dropout', active=_is_on)
def elements(rate: float) -> Drop:
  """x m / (1 - rate), m ~ Bernoulli(1 - rate) for each entry, so that the mean is x.

  Args:
    rate: the probability that an entry is dropped, in [0, 1); 0 is off. May be traced; only a Python 0 removes the
      code. 0.1 in DDPM, 0.13 in EDM, 0.3 in improved DDPM.

  Raises:
    ValueError: rate out of its range.

  Source: Srivastava et al. (2014), with the scaling moved to training.
  """
  return Drop('units', _off_or(_checked('dropout', rate), _mask(lambda x: x.shape)))


def _off_or(rate: float, make: Callable[[float], Callable]) -> Callable | None:
  return None if checks.off(rate) else make(rate)


@technique('dropout at the input', 'network', 'srivastava2014dropout', active=_is_on)
def at_input(rate: float) -> Drop:
  """Dropout of the noised image's own entries, before the first layer.

  Args:
    rate: in [0, 1); 0 is off.

  Raises:
    ValueError: rate out of its range.

  Source: Srivastava et al. (2014), section 4.
  """
  return Drop('input', _off_or(_checked('at_input', rate), _mask(lambda x: x.shape)))


@technique('spatial dropout', 'network', 'tompson2015efficient', active=_is_on)
def spatial(rate: float) -> Drop:
  """Whole channels are dropped, with all their pixels: neighbors are too alike for dropping single ones to matter.

  Args:
    rate: the probability that a channel is dropped, in [0, 1); 0 is off.

  Raises:
    ValueError: rate out of its range.

  Source: Tompson et al. (2015), section 3.2.
  """
  return Drop('units', _off_or(_checked('spatial', rate), _mask(lambda x: x.shape[-1:])))


@technique('DropBlock', 'network', 'ghiasi2018dropblock', active=_is_on)
def drop_block(rate: float, size: int = 3) -> Drop:
  """Squares of size x size pixels are dropped in every channel, and what is left is scaled up to the old sum of masks.

  A square starts at a pixel with probability gamma = rate H W / (size^2 (H - size + 1) (W - size + 1)), so that about
  the share `rate` is dropped. Where the map is smaller than a square, the square is as large as the map's side.

  Args:
    rate: share of a map to drop, in [0, 1); 0 is off.
    size: side of a square, in pixels, >= 1; 7 in the paper's networks of 224 pixels.

  Raises:
    ValueError: an argument out of its range, or (when applied) what is not an image.

  Source: Ghiasi et al. (2018), algorithm 1; the masks are scaled row by row, for a row may not look at its batch.
  """
  _checked('drop_block', rate)
  checks.integer('size', size)

  def make(rate: float) -> Callable:
    def act(key: Key, x: AnyShape, depth: float) -> AnyShape:
      if x.ndim != 3:
        raise ValueError(f'DropBlock needs images [H, W, C], got a row of shape {x.shape}')
      height, width, channels = x.shape
      side = min(size, height, width)
      starts = (height - side + 1, width - side + 1)
      gamma = rate * height * width / (side**2 * starts[0] * starts[1])
      start = jax.random.bernoulli(key, jnp.minimum(gamma, 1.0), (*starts, channels))
      pad = ((side - 1, side - 1), (side - 1, side - 1), (0, 0))
      none = jnp.zeros((), x.dtype)
      dropped = jax.lax.reduce_window(
        start.astype(x.dtype), none, jax.lax.max, (side, side, 1), (1, 1, 1), pad
      )
      keep = 1 - dropped
      kept = keep.sum(dtype=jnp.promote_types(x.dtype, jnp.float32))
      return (x * keep * (keep.size / jnp.maximum(kept, 1))).astype(x.dtype)

    return act

  return Drop('units', _off_or(rate, make))


@technique('stochastic depth', 'network', 'huang2016deep', active=_is_on)
def stochastic_depth(rate: float) -> Drop:
  """A residual block is skipped for a row with probability rate x depth, depth = block / blocks, and scaled otherwise.

  Args:
    rate: of the last block, in [0, 1); 0 is off.

  Raises:
    ValueError: rate out of its range.

  Source: Huang et al. (2016), section 3, with the scaling moved to training.
  """

  def make(rate: float) -> Callable:
    def act(key: Key, x: AnyShape, depth: float) -> AnyShape:
      return _thin(jax.random.bernoulli(key, 1 - rate * depth), rate * depth, x)

    return act

  return Drop('branch', _off_or(_checked('stochastic_depth', rate), make))


@technique('DropConnect', 'network', 'wan2013regularization', active=_is_on)
def drop_connect(rate: float) -> Drop:
  """Weights instead of units are dropped, in every kernel, by one draw for the whole batch of a step.

  Args:
    rate: the probability that a weight is dropped, in [0, 1); 0 is off.

  Raises:
    ValueError: rate out of its range.

  Source: Wan et al. (2013), section 3; they draw a mask a row, which convolutions cannot afford.
  """
  return Drop('kernels', _off_or(_checked('drop_connect', rate), _mask(lambda x: x.shape)))


def _acting(drops: Sequence[Drop], place: str) -> list[Drop]:
  return [one for one in drops if one.place == place and one.act is not None]


def drop_kernels(drops: Sequence[Drop], params: Params, key: Key | None) -> Params:
  """The parameters with the kernels that the 'kernels' drops leave.

  Args:
    drops: of any place; the others are passed over.
    params: the network's.
    key: one for the whole batch; None where no drop is of kernels.

  Raises:
    ValueError: such a drop without a key for the batch.
  """
  acting = _acting(drops, 'kernels')
  if not acting:
    return params
  if key is None:
    raise ValueError('dropping weights needs batch_key beside keys: one key for the whole batch')

  def thin(path, leaf: AnyShape) -> AnyShape:
    if str(getattr(path[-1], 'key', '')) != 'kernel':
      return leaf
    for i, one in enumerate(acting):
      own = jax.random.fold_in(key, rng.tag(f'{jax.tree_util.keystr(path)} {i}'))
      leaf = one.act(own, leaf, 1.0)
    return leaf

  return jax.tree_util.tree_map_with_path(thin, params)


class Dropout(nn.Module):
  """All drops of one place, each with a draw of its own for every row; the identity without keys.

  Attributes:
    drops: of any place; the others are passed over.
    place: one of `PLACES`.
    depth: of the block in (0, 1].
  """

  drops: tuple[Drop, ...]
  place: str = 'units'
  depth: float = 1.0

  @nn.compact
  def __call__(self, x: Examples, keys: Keys | None) -> Examples:
    """Thins x with the rows' keys; None is evaluation."""
    acting = [] if keys is None else _acting(self.drops, self.place)
    for i, one in enumerate(acting):
      layer = rng.tag('/'.join(self.path) + f' {i}' * bool(i))  # every layer draws its own masks

      def thin(key: Key, row: AnyShape, one: Drop = one, layer: int = layer) -> AnyShape:
        return one.act(jax.random.fold_in(key, layer), row, self.depth)

      x = jax.vmap(thin)(keys, x)
    return x
