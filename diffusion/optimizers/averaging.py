"""Averages of the parameters along the trajectory, kept beside them and read at evaluation."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Array, Average, Params, Scalar

Profiles = Float[np.ndarray, '...'] | float  # times or exponents, to be broadcast


class AverageState(NamedTuple):
  """The average and the number of updates it has seen."""

  count: Integer[Array, '']
  params: Params


def _decaying(decay: Callable[[Integer[Array, '']], Scalar]) -> Average:
  """a <- d a + (1 - d) w with d = decay(updates so far), from a copy of the parameters."""

  def init(params: Params) -> AverageState:
    return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

  def update(state: AverageState, params: Params) -> AverageState:
    d = decay(state.count)
    average = jax.tree.map(lambda a, w: (d * a + (1 - d) * w).astype(a.dtype), state.params, params)
    return AverageState(state.count + 1, average)

  return Average(init, update, lambda state: state.params)


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

  return _decaying(lambda count: jnp.minimum(decay, (1 + count) / (10 + count)))


@technique(
  'exponential moving average of the weights', 'update', 'polyak1992acceleration', 'karras2022edm'
)
def half_life(images: float, batch_size: int, ramp: float = 0.05) -> Average:
  """An exponential moving average that halves the weight of the past every so many images.

  d = 2^(-batch_size / min(images, ramp x images seen)): while training is young the half-life is a share of what was
  seen, so the initialization is forgotten.

  Args:
    images: half-life in images, > 0; 500,000 in the paper's CIFAR-10 runs.
    batch_size: images an update, >= 1.
    ramp: share of the images seen, > 0; 0.05 in the paper.

  Raises:
    ValueError: an argument out of its range.

  Source: Karras et al. (2022), appendix F.2 and their released training loop.
  """
  checks.positive('images', images)
  checks.integer('batch_size', batch_size)
  checks.positive('ramp', ramp)

  def decay(count: Integer[Array, '']) -> Scalar:
    return 2.0 ** (-batch_size / jnp.minimum(images, ramp * batch_size * (count + 1)))

  return _decaying(decay)


def power_exponent(width: float) -> float:
  """gamma of the power-function profile p(s) = (gamma + 1) s^gamma on [0, 1] with this relative standard deviation.

  width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)): the largest root of a cubic.

  Args:
    width: in (0, 0.288), the deviation of the profile over the length of training; gamma = 0 at 1 / sqrt(12).

  Raises:
    ValueError: width out of its range.

  Source: Karras et al. (2024), equation 126 and algorithm 2.
  """
  checks.in_range('width', width, 0, 12**-0.5, ends='()')
  # (gamma + 2)^2 (gamma + 3) width^2 = gamma + 1
  inverse = width**-2
  return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


@technique('power-function average of the weights', 'update', 'karras2024edm2')
def power(width: float) -> Average:
  """a <- b a + (1 - b) w, b = (1 - 1/n)^(gamma + 1) at update n = 1, 2, ...: weights grow as the power gamma of time.

  Its length is a share of training, whatever that is; averages of other widths can be made afterwards from
  snapshots of two (`reconstruct`).

  Args:
    width: relative standard deviation of the profile, in (0, 0.288); 0.05 and 0.10 in the paper.

  Raises:
    ValueError: width out of its range.

  Source: Karras et al. (2024), equation 121.
  """
  exponent = power_exponent(width) + 1

  def decay(count: Integer[Array, '']) -> Scalar:
    return (1 - 1 / (count + 1.0)) ** exponent

  return _decaying(decay)


def reconstruct(
  snapshots: Sequence[Params],
  times: Sequence[float],
  widths: Sequence[float],
  time: float,
  width: float,
) -> Params:
  """An average of any width at any time, from snapshots of averages of other widths.

  The combination whose profile is nearest to the wanted one in L2: A x = b with inner products of profiles
  (a, s), (b, t), a, b exponents: (a + 1) (b + 1) min(s, t)^(a + b + 1) / ((a + b + 1) s^(a + 1) t^(b + 1)).

  Args:
    snapshots: averages, from `power`.
    times: updates at which each was taken, > 0.
    widths: of each, in (0, 0.288).
    time: updates, > 0, at most the last snapshot's.
    width: wanted, in (0, 0.288).

  Returns:
    The parameters, in the snapshots' types.

  Raises:
    ValueError: lengths that differ, a time after the last snapshot, or a width out of its range.

  Source: Karras et al. (2024), appendix C.2 and algorithm 3.
  """
  if not len(snapshots) == len(times) == len(widths) or not len(times):
    raise ValueError(
      f'snapshots, times and widths must be of one length, got {len(snapshots)}, {len(times)}, {len(widths)}'
    )
  if not 0 < time <= max(times):
    raise ValueError(f'time must be in (0, {max(times):g}], got {time!r}')
  t = np.asarray(times, np.float64) / max(times)
  a = np.array([power_exponent(w) for w in widths])
  products = _profile_products(t[:, None], a[:, None], t, a)
  target = _profile_products(t, a, time / max(times), power_exponent(width))
  x = np.linalg.lstsq(products, target, rcond=None)[0]

  def combine(*leaves):
    total = sum(share * np.asarray(leaf, np.float64) for share, leaf in zip(x, leaves, strict=True))
    return total.astype(np.asarray(leaves[0]).dtype)

  return jax.tree.map(combine, *snapshots)


def _profile_products(
  s: Profiles, a: Profiles, t: Profiles, b: Profiles
) -> Float[np.ndarray, '...']:
  """int_0^min(s, t) p_(s, a) p_(t, b), by logarithms: exponents reach the hundreds."""
  log = (a + b + 1) * np.log(np.minimum(s, t)) - (a + 1) * np.log(s) - (b + 1) * np.log(t)
  return (a + 1) * (b + 1) / (a + b + 1) * np.exp(log)


@technique('stochastic weight averaging', 'update', 'izmailov2018averaging')
def swa(start: int, every: int = 1) -> Average:
  """The plain mean of the weights at updates start, start + every, ...; before them, the weights themselves.

  Args:
    start: the first update that counts, >= 1.
    every: >= 1.

  Raises:
    ValueError: an argument out of its range.

  Source: Izmailov et al. (2018), algorithm 1; batch statistics are re-estimated where there are any.
  """
  checks.integer('start', start)
  checks.integer('every', every)

  def decay(count: Integer[Array, '']) -> Scalar:
    n = count + 1  # this update's number
    taken = jnp.maximum(n - start, 0) // every  # samples before this one
    due = (n >= start) & ((n - start) % every == 0)
    return jnp.where(n < start, 0.0, jnp.where(due, taken / (taken + 1.0), 1.0))

  return _decaying(decay)
