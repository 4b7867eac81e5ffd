"""Linen inside, functions outside: a module as a `Model`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from diffusion.conditions import null_label
from diffusion.models.dropout import Drop, drop_kernels
from diffusion.types import (
  AnyShape,
  Conditioning,
  CrossMean,
  Examples,
  Key,
  Keys,
  Model,
  Number,
  PerRow,
  Variables,
)

BLOCK = 'block'


def block_output(x: AnyShape) -> AnyShape:
  """The same, marked as what a network that is rematerialized keeps."""
  return checkpoint_name(x, BLOCK)


def identity(tree: Any) -> Any:
  """The mean over one device."""
  return tree


class Mode(NamedTuple):
  """How a module is applied; the last argument of every module's call.

  Attributes:
    keys: one a row, which turn dropout on; None is evaluation.
    cross_mean: the mean over devices, for statistics of the batch.
    update_statistics: normalize with the batch's statistics and move the running ones; otherwise the running ones are
      used and kept.
    statistics_decay: of the running statistics, in place of the layers' own; None keeps theirs.
    forward_mode: use operations that have a jvp.
  """

  keys: Keys | None = None
  cross_mean: CrossMean = identity
  update_statistics: bool = False
  statistics_decay: Number | None = None
  forward_mode: bool = False


def from_linen(module: nn.Module, num_classes: int = 0, drops: Sequence[Drop] = ()) -> Model:
  """A Model of a Linen module.

  Args:
    module: called as `module(z, noise, conditioning, mode)`.
    num_classes: what the module was given.
    drops: of which those that act on weights are applied here; the others are the module's own affair.
  """

  # Compiled as one function: eager initialization spends seconds on one small operation after another.
  @jax.jit
  def init(key: Key, z: Examples, noise: PerRow, conditioning: Conditioning) -> Variables:
    return module.init(key, z, noise, conditioning, Mode())

  def apply(
    variables: Variables,
    z: Examples,
    noise: PerRow,
    conditioning: Conditioning,
    *,
    keys: Keys | None = None,
    batch_key: Key | None = None,
    cross_mean: CrossMean = identity,
    update_statistics: bool = False,
    statistics_decay: Number | None = None,
    forward_mode: bool = False,
  ) -> tuple[Examples, Variables]:
    mode = Mode(
      keys=keys,
      cross_mean=cross_mean,
      update_statistics=update_statistics,
      statistics_decay=statistics_decay,
      forward_mode=forward_mode,
    )
    if keys is not None:
      variables = {**variables, 'params': drop_kernels(drops, variables['params'], batch_key)}
    statistics = {name: value for name, value in variables.items() if name != 'params'}
    if not update_statistics or not statistics:
      return module.apply(variables, z, noise, conditioning, mode), statistics
    return module.apply(variables, z, noise, conditioning, mode, mutable=list(statistics))

  return Model(init, apply, null_label if num_classes else None, num_classes)
