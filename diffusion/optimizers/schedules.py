"""Learning-rate schedules: count of updates to learning rate, through Optax, with its silent cases refused."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Float, Integer

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import AnyArray, Array

Count = Integer[AnyArray, '*any'] | int  # updates so far
Rate = Float[Array, '*any']
LearningRate = Callable[[Count], Rate]


def constant(value: float) -> LearningRate:
  """The same rate at every update.

  Args:
    value: >= 0.

  Raises:
    ValueError: a negative rate.
  """
  checks.at_least('learning_rate', value, 0)
  return lambda count: jnp.asarray(value, jnp.result_type(float))


def warmup_constant(peak: float, warmup_steps: int) -> LearningRate:
  """Linear from 0 to `peak` over `warmup_steps`, then constant.

  Args:
    peak: the highest rate, >= 0.
    warmup_steps: updates until the rate is `peak`, >= 1.

  Raises:
    ValueError: an argument out of its range.

  Source: Ho et al. (2020), appendix B.
  """
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
  checks.in_range('final', final, 0, peak)
  cosine = optax.schedules.cosine_decay_schedule(1.0, total_steps - warmup_steps)
  shape = optax.schedules.join_schedules(
    [optax.schedules.linear_schedule(0.0, 1.0, max(warmup_steps, 1)), cosine], [warmup_steps]
  )

  def rate(count: Count) -> Rate:
    # The warm-up ramps from 0 to the peak; the cosine part runs between the peak and the final rate.
    return jnp.where(
      count < warmup_steps, peak * shape(count), final + (peak - final) * shape(count)
    )

  return rate


def _warmed(shape: LearningRate, warmup_steps: int) -> LearningRate:
  """`shape` of the updates after the warm-up; before, linear from 0 to its first value."""
  checks.integer('warmup_steps', warmup_steps, 0)
  if not warmup_steps:
    return shape

  def rate(count: Count) -> Rate:
    later = shape(jnp.maximum(count - warmup_steps, 0))
    return jnp.where(count < warmup_steps, shape(0) * count / warmup_steps, later)

  return rate


@technique('linear learning rate', 'update', 'robbins1951stochastic')
def linear(
  peak: float, total_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> LearningRate:
  """Linear warm-up from 0, then linear from `peak` to `final` at `total_steps`, then constant.

  Args:
    peak: the highest rate, >= 0.
    total_steps: updates until the rate is `final`, > warmup_steps.
    warmup_steps: >= 0.
    final: the last rate, >= 0.

  Raises:
    ValueError: an argument out of its range.

  Source: Robbins & Monro (1951) for rates that fall; the straight line is folklore.
  """
  checks.at_least('learning_rate', peak, 0)
  checks.at_least('final', final, 0)
  checks.integer('total_steps', total_steps, warmup_steps + 1, 'it must exceed warmup_steps')
  return _warmed(
    optax.schedules.linear_schedule(peak, final, total_steps - warmup_steps), warmup_steps
  )


@technique('exponential learning rate', 'update', 'robbins1951stochastic')
def exponential(peak: float, half_life: int, warmup_steps: int = 0) -> LearningRate:
  """Linear warm-up from 0, then peak 2^(-n / half_life).

  Args:
    peak: >= 0.
    half_life: updates, >= 1.
    warmup_steps: >= 0.

  Raises:
    ValueError: an argument out of its range.

  Source: folklore; Robbins & Monro (1951) for rates that fall.
  """
  checks.at_least('learning_rate', peak, 0)
  checks.integer('half_life', half_life)
  return _warmed(optax.schedules.exponential_decay(peak, half_life, 0.5), warmup_steps)


@technique('stepwise learning rate', 'update', 'he2016residual')
def steps(
  peak: float, boundaries: Sequence[int], factor: float = 0.1, warmup_steps: int = 0
) -> LearningRate:
  """Linear warm-up from 0, then constant but multiplied by `factor` at each boundary.

  Args:
    peak: >= 0.
    boundaries: updates after the warm-up, increasing, >= 1.
    factor: in (0, 1).
    warmup_steps: >= 0.

  Raises:
    ValueError: an argument out of its range.

  Source: He et al. (2016), section 3.4.
  """
  checks.at_least('learning_rate', peak, 0)
  checks.in_range('factor', factor, 0, 1, ends='()')
  for boundary in boundaries:
    checks.integer('boundaries', boundary)
  if list(boundaries) != sorted(set(boundaries)):
    raise ValueError(f'boundaries must increase, got {tuple(boundaries)}')
  edges = jnp.asarray(tuple(boundaries), jnp.int32)
  return _warmed(
    lambda count: peak * factor ** (jnp.asarray(count)[..., None] >= edges).sum(-1), warmup_steps
  )


@technique('cosine learning rate with warm restarts', 'update', 'loshchilov2017sgdr')
def cyclical(
  peak: float, period: int, growth: float = 1.0, decay: float = 1.0, final: float = 0.0
) -> LearningRate:
  """Half a cosine from peak to final, again and again: cycle k lasts period growth^k and starts at peak decay^k.

  Args:
    peak: the first cycle's highest rate, >= 0.
    period: updates of the first cycle, >= 1.
    growth: of the periods, >= 1.
    decay: of the peaks, in (0, 1].
    final: the rate at the end of a cycle, in [0, peak].

  Raises:
    ValueError: an argument out of its range.

  Source: Loshchilov & Hutter (2017), equation 5.
  """
  checks.at_least('learning_rate', peak, 0)
  checks.integer('period', period)
  checks.at_least('growth', growth, 1)
  checks.in_range('decay', decay, 0, 1, ends='(]')
  checks.in_range('final', final, 0, peak)

  def rate(count: Count) -> Rate:
    if growth == 1:  # in integers: a quotient of floats may be below the whole number it should be
      cycle, past = jnp.divmod(jnp.asarray(count), period)
      share = past / period
    else:  # cycle k starts at (growth^k - 1) / (growth - 1) periods
      periods = jnp.asarray(count) / period
      cycle = jnp.floor(jnp.log1p(periods * (growth - 1)) / math.log(growth) + 1e-6)
      begin = jnp.expm1(cycle * math.log(growth)) / (growth - 1)  # growth may be all but 1
      share = jnp.clip((periods - begin) / growth**cycle, 0, 1)
    top = jnp.maximum(peak * decay**cycle, final)
    return final + (top - final) * 0.5 * (1 + jnp.cos(jnp.pi * share))

  return rate


@technique('one-cycle learning rate', 'update', 'smith2019superconvergence')
def one_cycle(
  peak: float, total_steps: int, rise: float = 0.3, start: float = 0.04, final: float = 1e-4
) -> LearningRate:
  """A cosine from start x peak up to peak over the share `rise`, and one down to final x start x peak.

  Args:
    peak: > 0.
    total_steps: >= 2.
    rise: share of the steps on the way up, in (0, 1).
    start: first rate over the peak, in (0, 1].
    final: last rate over the first one, in (0, 1].

  Raises:
    ValueError: an argument out of its range.

  Source: Smith & Topin (2019), section 3, with cosines for lines. The peak is at step floor(rise x total_steps), the
  last rate would be that of step total_steps; PyTorch's `OneCycleLR` has both one step earlier.
  """
  checks.positive('learning_rate', peak)
  checks.integer('total_steps', total_steps, 2)
  checks.in_range('rise', rise, 0, 1, ends='()')
  checks.in_range('start', start, 0, 1, ends='(]')
  checks.in_range('final', final, 0, 1, ends='(]')
  return optax.schedules.cosine_onecycle_schedule(total_steps, peak, rise, 1 / start, 1 / final)


@technique('inverse square-root learning rate', 'update', 'karras2024edm2', 'kingma2015adam')
def inverse_sqrt(peak: float, reference_steps: int, warmup_steps: int = 0) -> LearningRate:
  """peak min(n / warmup_steps, 1) / sqrt(max(n / reference_steps, 1)).

  Args:
    peak: >= 0.
    reference_steps: updates after which the rate falls, >= 1; 35,000 to 70,000 in the paper.
    warmup_steps: >= 0.

  Raises:
    ValueError: an argument out of its range.

  Source: Karras et al. (2024), equation 67; Kingma & Ba (2015), section 4.
  """
  checks.at_least('learning_rate', peak, 0)
  checks.integer('reference_steps', reference_steps)
  checks.integer('warmup_steps', warmup_steps, 0)

  def rate(count: Count) -> Rate:
    warm = jnp.minimum(count / max(warmup_steps, 1), 1.0) if warmup_steps else 1.0
    return peak * warm / jnp.sqrt(jnp.maximum(count / reference_steps, 1.0))

  return rate
