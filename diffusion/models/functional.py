"""Linen inside, functions outside: a module as a `Model`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from diffusion.types import Array, Conditioning, CrossMean, Key, Model, Variables


def identity(tree: Any) -> Any:
  """The mean over one device."""
  return tree


def from_linen(make: Callable[[bool], nn.Module], num_classes: int = 0) -> Model:
  """A Model of a Linen module.

  Args:
    make: forward_mode -> module, called as `module(z, noise, conditioning, keys)`. Both modules have the same
      parameters.
    num_classes: what the module was given.
  """
  trained, forward = make(False), make(True)

  # Compiled as one function: eager initialization spends seconds on one small operation after another.
  @jax.jit
  def init(key: Key, z: Array, noise: Array, conditioning: Conditioning) -> Variables:
    return trained.init(key, z, noise, conditioning, None)

  def apply(
    variables: Variables,
    z: Array,
    noise: Array,
    conditioning: Conditioning,
    *,
    keys: Key | None = None,
    cross_mean: CrossMean = identity,
    update_statistics: bool = False,
    forward_mode: bool = False,
  ) -> tuple[Array, Variables]:
    del cross_mean, update_statistics  # for layers with statistics; none of these modules has one
    module = forward if forward_mode else trained
    statistics = {name: value for name, value in variables.items() if name != 'params'}
    return module.apply(variables, z, noise, conditioning, keys), statistics

  return Model(init, apply, num_classes)
