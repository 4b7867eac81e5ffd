"""Short Optax chains with their ranges checked and their learning rate readable."""

import jax
import optax

from diffusion import checks
from diffusion.citations import technique
from diffusion.optimizers.schedules import LearningRate
from diffusion.types import Optimizer, Params


def is_kernel(params: Params) -> Params:
  """True for weight matrices and convolution kernels: not for biases, norms' scales and embeddings."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: bool(path) and str(getattr(path[-1], 'key', '')) == 'kernel', params
  )


@technique(
  'clipping by global norm', 'update', 'pascanu2013difficulty',
  active=lambda max_norm: not checks.off(max_norm),
)  # fmt: skip
def clip(max_norm: float | None) -> optax.GradientTransformation:
  """g min(1, max_norm / |g|) over all parameters; None or 0 is off. Source: Pascanu et al. (2013), algorithm 1."""
  if checks.off(max_norm):
    return optax.identity()
  checks.positive('clip_norm', max_norm)
  return optax.clip_by_global_norm(max_norm)


@technique(
  'decoupled weight decay', 'update', 'loshchilov2019decoupled',
  active=lambda rate: not checks.off(rate),
)  # fmt: skip
def decay(rate: float) -> optax.GradientTransformation:
  """u + rate w on kernels only, after Adam's scaling; 0 is off. Source: Loshchilov & Hutter (2019), algorithm 2."""
  checks.at_least('weight_decay', rate, 0)
  return optax.identity() if checks.off(rate) else optax.add_decayed_weights(rate, is_kernel)


@technique('Adam', 'update', 'kingma2015adam')
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
    clip_norm: the largest global gradient norm, > 0; None or 0 turns clipping off.
    b1, b2: decay of the moments, in [0, 1).
    eps: > 0.

  Raises:
    ValueError: an argument out of its range.

  Source: Kingma & Ba (2015); Loshchilov & Hutter (2019), algorithm 2.
  """
  checks.in_range('b1', b1, 0, 1, ends='[)')
  checks.in_range('b2', b2, 0, 1, ends='[)')
  checks.positive('eps', eps)
  chain = optax.chain(
    clip(clip_norm),
    optax.scale_by_adam(b1, b2, eps),
    decay(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )
  return Optimizer(chain.init, chain.update, lambda state: learning_rate(state[1].count))
