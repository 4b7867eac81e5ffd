"""Normalizations of activations: each factory returns (x [b, ..., c], mode) -> x, to be called inside a module."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from diffusion import checks
from diffusion.citations import technique
from diffusion.models.functional import Mode
from diffusion.types import Examples

Norm = Callable[[Examples, Mode], Examples]  # the last axis is the channels


def groups(channels: int, most: int = 32) -> int:
  """The largest divisor of `channels` up to min(most, channels / 4), at least 1: four channels a group or more."""
  limit = max(1, min(most, channels // 4))
  return max(g for g in range(1, limit + 1) if channels % g == 0)


@technique('group normalization', 'network', 'wu2018group')
def group(most: int = 32) -> Norm:
  """(x - mean) / deviation over the pixels and channels of a group, times a learned scale plus a learned shift.

  Args:
    most: groups, >= 1; fewer where a group would have fewer than four channels.

  Raises:
    ValueError: most is not an integer >= 1.

  Source: Wu & He (2018), equation 7.
  """
  checks.integer('most', most)
  return lambda x, mode: nn.GroupNorm(groups(x.shape[-1], most))(x)


@technique('layer normalization', 'network', 'ba2016layer')
def layer() -> Norm:
  """(x - mean) / deviation over the channels of a pixel, scaled and shifted. Source: Ba et al. (2016), equation 3."""
  return lambda x, mode: nn.LayerNorm()(x)


@technique('RMS normalization', 'network', 'zhang2019root')
def rms() -> Norm:
  """x over its root mean square over the channels of a pixel, scaled. Source: Zhang & Sennrich (2019), equation 4."""
  return lambda x, mode: nn.RMSNorm()(x)


def none() -> Norm:
  """x as it is."""
  return lambda x, mode: x


class BatchNorm(nn.Module):
  """See `batch`."""

  decay: float
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Examples, mode: Mode) -> Examples:
    """x normalized, scaled and shifted."""
    size = x.shape[-1:]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, size)
    variance = self.variable('batch_stats', 'variance', jnp.ones, size)
    scale = self.param('scale', nn.initializers.ones, size)
    bias = self.param('bias', nn.initializers.zeros, size)
    m, v = mean.value, variance.value
    given, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if mode.update_statistics:
      axes = tuple(range(x.ndim - 1))
      m = mode.cross_mean(x.mean(axes))
      v = mode.cross_mean(((x - m) ** 2).mean(axes))
      d = self.decay if mode.statistics_decay is None else mode.statistics_decay
      mean.value = d * mean.value + (1 - d) * m
      variance.value = d * variance.value + (1 - d) * v
    return ((x - m) * lax.rsqrt(v + self.epsilon) * scale + bias).astype(given)


@technique('batch normalization', 'network', 'ioffe2015batch')
def batch(decay: float = 0.99) -> Norm:
  """(x - mean) / deviation over the rows and pixels of the global batch, scaled and shifted.

  Training uses the batch's statistics, of all devices together, and follows them with running averages, which
  evaluation and sampling use: an image's result does not depend on its batch-mates. Averaged weights get statistics of
  their own, from training batches, before they are validated.

  Args:
    decay: of the running averages, in [0, 1).

  Raises:
    ValueError: decay out of its range.

  Source: Ioffe & Szegedy (2015), algorithm 1, with a batch that is the same on any number of devices; Izmailov et al.
  (2018), section 3.2, for the statistics of averaged weights.
  """
  checks.in_range('decay', decay, 0, 1, ends='[)')
  return lambda x, mode: BatchNorm(decay)(x, mode)  # noqa: PLW0108 - a module for each call
