"""Optimizers put together: clip, coupled decay, direction, decoupled decay, learning rate, proximal step, projection.

What is off is not in the chain. The order is fixed because it is what the words mean: coupled decay is seen by the
direction and by its moments, decoupled decay is not; a proximal step and a projection act on the new weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Integer

from diffusion import checks
from diffusion.citations import technique
from diffusion.optimizers import clipping, optimizers
from diffusion.optimizers.schedules import LearningRate
from diffusion.types import AnyShape, Array, Number, Optimizer, Params


def is_kernel(params: Params) -> Params:
  """True for weight matrices and convolution kernels: not for biases, norms' scales and embeddings."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: bool(path) and str(getattr(path[-1], 'key', '')) == 'kernel', params
  )


@technique('decoupled weight decay', 'update', 'loshchilov2019decoupled')
def decoupled_decay(rate: float) -> optax.GradientTransformation:
  """u + rate w on kernels only, after the direction. Source: Loshchilov & Hutter (2019), algorithm 2."""
  return optax.add_decayed_weights(rate, is_kernel)


@technique('coupled L2 decay', 'update', 'hanson1988comparing')
def coupled_decay(rate: float) -> optax.GradientTransformation:
  """g + rate w on kernels only, before the direction: the gradient of rate |w|^2 / 2.

  Source: Hanson & Pratt (1988); Loshchilov & Hutter (2019) show how it differs from the decoupled kind under Adam.
  """
  return optax.add_decayed_weights(rate, is_kernel)


class _Count(NamedTuple):
  count: Integer[Array, '']


def _counted(
  schedule: LearningRate, change: Callable[[Number, Any, Params], Any]
) -> optax.GradientTransformationExtraArgs:
  """u -> change(rate, u, w), the rate by the schedule or, if the caller gives `learning_rate`, that."""

  def init(params: Params) -> _Count:
    return _Count(jnp.zeros((), jnp.int32))

  def update(updates, state: _Count, params: Params | None = None, *, learning_rate=None, **unused):
    rate = schedule(state.count) if learning_rate is None else learning_rate
    return change(rate, updates, params), _Count(state.count + 1)

  return optax.GradientTransformationExtraArgs(init, update)


def _times_rate(schedule: LearningRate) -> optax.GradientTransformationExtraArgs:
  """-rate u."""
  return _counted(
    schedule, lambda rate, u, w: jax.tree.map(lambda x: (-rate * x).astype(x.dtype), u)
  )


def _on_new_weights(
  schedule: LearningRate, change: Callable[[Number, Params, Params], Params]
) -> optax.GradientTransformationExtraArgs:
  """u -> change(rate, w + u, w) - w: a transformation of the weights that an update leads to."""

  def moved(rate: Number, updates, params: Params):
    new = change(rate, optax.apply_updates(params, updates), params)
    return jax.tree.map(lambda a, b: a - b, new, params)

  return _counted(schedule, moved)


@technique('proximal L1', 'update', 'parikh2014proximal')
def proximal_l1(rate: float, learning_rate: LearningRate) -> optax.GradientTransformation:
  """w <- sign(w) max(|w| - lr rate, 0) on kernels after the update: the proximal step of rate |w|_1, with exact zeros.

  Source: Parikh & Boyd (2014), section 6.5.2.
  """

  def shrink(now: Number, new: Params, old: Params) -> Params:
    threshold = now * rate
    return jax.tree.map(
      lambda w, kernel: jnp.sign(w) * jnp.maximum(jnp.abs(w) - threshold, 0) if kernel else w,
      new, is_kernel(new),
    )  # fmt: skip

  return _on_new_weights(learning_rate, shrink)


@technique('weight-norm projection', 'update', 'karras2024edm2', 'salimans2016weight')
def fixed_norm() -> optax.GradientTransformation:
  """Each kernel's weights into one output keep the norm they had before the update: only their direction is learned.

  Weights of norm zero (zero-initialized outputs) are left alone until they have one, so they grow once.

  Source: the forced weight normalization of Karras et al. (2024), section 2.3, with the norm of initialization for
  unit norm; Salimans & Kingma (2016).
  """

  def norm(w: Float[Array, '*inputs output']) -> Float[Array, '*ones output']:
    return jnp.sqrt((w**2).sum(tuple(range(w.ndim - 1)), keepdims=True))

  def project(rate: Number, new: Params, old: Params) -> Params:
    def one(w: AnyShape, before: AnyShape, kernel: bool) -> AnyShape:
      if not kernel:
        return w
      wanted, length = norm(before), norm(w)
      return jnp.where(
        (wanted > 0) & (length > 0), w * (wanted / jnp.where(length > 0, length, 1)), w
      )

    return jax.tree.map(one, new, old, is_kernel(new))

  return _on_new_weights(lambda count: 0.0, project)


def chain(
  direction: optimizers.Direction,
  learning_rate: LearningRate,
  *,
  clip: optax.GradientTransformation | None = None,
  weight_decay: float = 0.0,
  coupled_l2: float = 0.0,
  l1: float = 0.0,
  fix_norms: bool = False,
) -> Optimizer:
  """w <- project(prox(w - lr(n) (direction(clip(g) + coupled_l2 w) + weight_decay w))).

  Args:
    direction: from `optimizers.optimizers`.
    learning_rate: updates so far to rate, from `optimizers.schedules`.
    clip: from `optimizers.clipping`; None is off.
    weight_decay: decoupled, >= 0, on kernels only (no biases, norms or embeddings); 0 is off.
    coupled_l2: coupled, >= 0, on kernels only; 0 is off.
    l1: of the proximal step, >= 0, on kernels only; 0 is off.
    fix_norms: keep the norms of kernels.

  Returns:
    An Optimizer; with `clip` it measures 'clip_rate'.

  Raises:
    ValueError: an argument out of its range, two weight decays, or fixed norms with a decay, which they would undo.
  """
  decays = {'weight_decay': weight_decay, 'coupled_l2': coupled_l2, 'l1': l1}
  for name, rate in decays.items():
    checks.at_least(name, rate, 0)
  on = [name for name, rate in decays.items() if not checks.off(rate)]
  if {'weight_decay', 'coupled_l2'} <= set(on):
    raise ValueError(
      f'two weight decays: weight_decay={weight_decay!r} and coupled_l2={coupled_l2!r}; set one to 0'
    )
  if fix_norms and on:
    raise ValueError(
      f'fixed norms undo {on[0]}={decays[on[0]]!r}: set it to 0, or fix_norms to False'
    )
  parts = {'clip': clip} if clip is not None else {}
  if 'coupled_l2' in on:
    parts['coupled_l2'] = coupled_decay(coupled_l2)
  parts['direction'] = direction
  if 'weight_decay' in on:
    parts['weight_decay'] = decoupled_decay(weight_decay)
  parts['rate'] = _times_rate(learning_rate)
  if 'l1' in on:
    parts['l1'] = proximal_l1(l1, learning_rate)
  if fix_norms:
    parts['fix_norms'] = fixed_norm()
  made = optax.named_chain(*parts.items())
  return Optimizer(
    made.init,
    made.update,
    learning_rate=lambda state: learning_rate(state['rate'].count),
    count=lambda state: state['rate'].count,
    measure=lambda state: {'clip_rate': state['clip'].acted} if clip is not None else {},
    measured=('clip_rate',) if clip is not None else (),
  )


def adamw(
  learning_rate: LearningRate,
  weight_decay: float = 0.0,
  clip_norm: float | None = 1.0,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> Optimizer:
  """Clip, Adam, decoupled decay, learning rate: w <- w - lr(n) (m_hat / (sqrt(v_hat) + eps) + weight_decay w).

  Args:
    learning_rate: updates so far to rate, from `optimizers.schedules`.
    weight_decay: >= 0, on kernels only (no biases, norms or embeddings).
    clip_norm: the largest global gradient norm, > 0; None or 0 (traced, too) turns clipping off.
    b1, b2: decay of the moments, in [0, 1).
    eps: > 0.

  Raises:
    ValueError: an argument out of its range.

  Source: Kingma & Ba (2015); Loshchilov & Hutter (2019), algorithm 2.
  """
  if checks.traced(clip_norm):  # other knobs do nothing at 0, this one would stop everything
    clip_norm = jnp.where(clip_norm > 0, clip_norm, jnp.inf)
  clip = None if checks.off(clip_norm) else clipping.global_norm(clip_norm)
  return chain(optimizers.adam(b1, b2, eps), learning_rate, clip=clip, weight_decay=weight_decay)


@technique('schedule-free averaging', 'update', 'defazio2024schedulefree')
def schedule_free(
  direction: optimizers.Direction,
  learning_rate: LearningRate,
  *,
  clip: optax.GradientTransformation | None = None,
  momentum: float = 0.9,
) -> Optimizer:
  """Steps z, averages x, and takes gradients in between: y = (1 - momentum) z + momentum x. No decaying rate is needed.

  The network's parameters are y; what is evaluated is x: set `evaluation_average=''`, since an average of y is not x.

  Args:
    direction: from `optimizers.optimizers`, without momentum of its own (Adam with b1 = 0).
    learning_rate: constant, or with a warm-up.
    clip: from `optimizers.clipping`; None is off.
    momentum: in (0, 1).

  Raises:
    ValueError: momentum out of its range.

  Source: Defazio et al. (2024), equations 2 to 5.
  """
  checks.in_range('momentum', momentum, 0, 1, ends='()')
  base = optax.named_chain(('direction', direction), ('rate', _times_rate(learning_rate)))
  free = optax.contrib.schedule_free(base, learning_rate, momentum)
  made = optax.named_chain(*([('clip', clip)] if clip is not None else []), ('free', free))
  return Optimizer(
    made.init,
    made.update,
    learning_rate=lambda state: learning_rate(state['free'].base_optimizer_state['rate'].count),
    count=lambda state: state['free'].base_optimizer_state['rate'].count,
    measure=lambda state: {'clip_rate': state['clip'].acted} if clip is not None else {},
    measured=('clip_rate',) if clip is not None else (),
    # x from y = (1 - b) z + b x, leaf by leaf: Optax's own takes b from the state, which may be a replicated one.
    read=lambda state, params: jax.tree.map(
      lambda y, z: (y - (1 - momentum) * z) / momentum, params, state['free'].z
    ),
  )


def at_rate(optimizer: Optimizer, learning_rate: LearningRate) -> Optimizer:
  """The same optimizer with another learning rate, a function of the updates so far."""
  return optimizer._replace(learning_rate=lambda state: learning_rate(optimizer.count(state)))
