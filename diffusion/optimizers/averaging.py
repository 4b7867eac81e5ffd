"""Averages of the parameters along the trajectory, kept beside them and read at evaluation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Array, Average, Params


class AverageState(NamedTuple):
  """The average and the number of updates it has seen."""

  count: Array
  params: Params


@technique('exponential moving average of the weights', 'update', 'polyak1992acceleration')
def ema(decay: float) -> Average:
  """a <- d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ...

  It starts as a copy of the parameters, so it is never biased toward zero; the warm-up forgets the initialization.

  Args:
    decay: in [0, 1); 0 is the last parameters themselves.

  Raises:
    ValueError: decay out of its range.

  Source: Polyak & Juditsky (1992) for averaging; the warm-up is that of TensorFlow's ExponentialMovingAverage, which
  DDPM's successors use.
  """
  checks.in_range('decay', decay, 0, 1, ends='[)')

  def init(params: Params) -> AverageState:
    return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

  def update(state: AverageState, params: Params) -> AverageState:
    d = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
    average = jax.tree.map(lambda a, w: (d * a + (1 - d) * w).astype(a.dtype), state.params, params)
    return AverageState(state.count + 1, average)

  return Average(init, update, lambda state: state.params)
