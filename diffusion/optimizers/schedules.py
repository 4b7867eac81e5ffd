"""Learning-rate schedules: count of updates to learning rate, through Optax, with its silent cases refused."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Array

LearningRate = Callable[[Array], Array]


def constant(value: float) -> LearningRate:
  """The same rate at every update. `value` >= 0."""
  checks.at_least('learning_rate', value, 0)
  return lambda count: jnp.asarray(value, jnp.result_type(float))


def warmup_constant(peak: float, warmup_steps: int) -> LearningRate:
  """Linear from 0 to `peak` over `warmup_steps`, then constant. Source: Ho et al. (2020), appendix B."""
  checks.at_least('learning_rate', peak, 0)
  checks.integer('warmup_steps', warmup_steps, 1)
  return optax.schedules.linear_schedule(0.0, peak, warmup_steps)


@technique('warm-up and cosine learning rate', 'update', 'loshchilov2017sgdr')
def warmup_cosine(
  peak: float, total_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> LearningRate:
  """Linear from 0 to `peak` over `warmup_steps`, then half a cosine down to `final` at `total_steps`, then constant.

  Args:
    peak: the highest rate, >= 0.
    total_steps: updates until the rate is `final`, > warmup_steps.
    warmup_steps: updates until the rate is `peak`, >= 0.
    final: the last rate, in [0, peak].

  Raises:
    ValueError: an argument out of its range.

  Source: Loshchilov & Hutter (2017), equation 5, without restarts.
  """
  checks.at_least('learning_rate', peak, 0)
  checks.integer('warmup_steps', warmup_steps, 0)
  checks.integer('total_steps', total_steps, warmup_steps + 1, 'it must exceed warmup_steps')
  if not checks.traced(peak):
    checks.in_range('final', final, 0, peak)
  cosine = optax.schedules.cosine_decay_schedule(1.0, total_steps - warmup_steps)
  shape = optax.schedules.join_schedules(
    [optax.schedules.linear_schedule(0.0, 1.0, max(warmup_steps, 1)), cosine], [warmup_steps]
  )

  def rate(count: Array) -> Array:
    # The warm-up ramps from 0 to the peak; the cosine part runs between the peak and the final rate.
    return jnp.where(
      count < warmup_steps, peak * shape(count), final + (peak - final) * shape(count)
    )

  return rate
