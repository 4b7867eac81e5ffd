"""Clipping of gradients. Each notes whether it acted, so that the clip rate can be logged."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Array, Params, Scalar


class Clipped(NamedTuple):
  """Whether the last update was changed, 1 or 0."""

  acted: Scalar


def _noted(
  transformation: optax.GradientTransformation,
  acts: Callable[[Params], Bool[Array, '']] | None = None,
) -> optax.GradientTransformation:
  """A stateless clipping, with a state that says whether it acted: by `acts` of the gradient, or by comparison."""

  def init(params: Params) -> Clipped:
    return Clipped(jnp.zeros(()))

  def update(gradient, state: Clipped, params: Params | None = None):
    del state
    changed, _ = transformation.update(gradient, transformation.init(gradient), params)
    if acts is None:
      pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(changed), strict=True)
      acted = jnp.any(jnp.stack([jnp.any(a != b) for a, b in pairs]))
    else:
      acted = acts(gradient)
    return changed, Clipped(acted.astype(jnp.result_type(float)))

  return optax.GradientTransformation(init, update)


@technique('clipping by global norm', 'update', 'pascanu2013difficulty')
def global_norm(limit: float = 1.0) -> optax.GradientTransformation:
  """g min(1, limit / |g|), |g| over all parameters.

  Args:
    limit: > 0; 1 in DDPM.

  Raises:
    ValueError: limit is not positive.

  Source: Pascanu et al. (2013), algorithm 1.
  """
  checks.positive('clip_norm', limit)
  return _noted(optax.clip_by_global_norm(limit), lambda g: optax.tree.norm(g) > limit)


@technique('clipping by block', 'update', 'pascanu2013difficulty')
def blocks(limit: float = 1.0) -> optax.GradientTransformation:
  """g_b min(1, limit / rms(g_b)) for each parameter array b on its own, rms(g) = |g| / sqrt(size).

  Args:
    limit: of the root mean square, > 0.

  Raises:
    ValueError: limit is not positive.

  Source: Pascanu et al. (2013), algorithm 1, block by block.
  """
  checks.positive('limit', limit)
  return _noted(optax.clip_by_block_rms(limit))


@technique('adaptive gradient clipping', 'update', 'brock2021nfnets')
def adaptive(limit: float = 0.01, floor: float = 1e-3) -> optax.GradientTransformation:
  """g_i min(1, limit max(|w_i|, floor) / |g_i|) for each unit i, the weights into one output.

  Args:
    limit: of a gradient's norm relative to its weights', > 0; 0.01 in the paper.
    floor: the least norm of weights, > 0, so that zero weights can move.

  Raises:
    ValueError: arguments out of range.

  Source: Brock et al. (2021), equation 3.
  """
  checks.positive('limit', limit)
  checks.positive('floor', floor)
  return _noted(optax.adaptive_grad_clip(limit, floor))


@technique('clipping by value', 'update', 'pascanu2013difficulty')
def value(limit: float = 1.0) -> optax.GradientTransformation:
  """min(max(g, -limit), limit), entry by entry, which changes the direction.

  Args:
    limit: > 0.

  Raises:
    ValueError: limit is not positive.

  Source: the entrywise variant that Pascanu et al. (2013), section 3.2, name.
  """
  checks.positive('limit', limit)
  return _noted(optax.clip(limit))
