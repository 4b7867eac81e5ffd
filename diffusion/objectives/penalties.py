"""Penalties: terms of the loss that look at the weights, or at the network's slope, instead of at its error."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion import rng
from diffusion.citations import technique
from diffusion.process.marginals import expand
from diffusion.types import AnyShape, Context, Params, PerRow, Term


def _kernels(params: Params) -> list[AnyShape]:
  """Weight matrices and convolution kernels: no biases, norms' scales or embeddings."""
  return [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if path and str(getattr(path[-1], 'key', '')) == 'kernel'
  ]


def _over_kernels(measure: Callable[[AnyShape], AnyShape], context: Context) -> PerRow:
  """The sum of a measure over all kernels, the same for each row."""
  total = sum((measure(kernel).sum() for kernel in _kernels(context.params)), jnp.zeros(()))
  return jnp.broadcast_to(total, context.t.shape)


@technique('L1 penalty', 'loss', 'tibshirani1996lasso')
def l1() -> Term:
  """sum |w| over kernels, the same for every row.

  As a term (rate, l1()) its gradient is rate sign(w), which an adaptive optimizer rescales and which makes small
  weights, not zeros; `chains.chain(..., l1=rate)` makes exact zeros.

  Source: Tibshirani (1996), equation 1, in its Lagrangian form.
  """

  def apply(params: Params, context: Context) -> PerRow:
    return _over_kernels(jnp.abs, context)

  return Term(init=lambda key: (), apply=apply)


@technique('L2 penalty', 'loss', 'hanson1988comparing')
def l2() -> Term:
  """sum w^2 / 2 over kernels, the same for every row: a term (rate, l2()) is coupled decay with that rate.

  Source: Hanson & Pratt (1988).
  """

  def apply(params: Params, context: Context) -> PerRow:
    return _over_kernels(lambda w: 0.5 * w**2, context)

  return Term(init=lambda key: (), apply=apply)


@technique('Jacobian penalty', 'loss', 'baptista2025memorization', 'hoffman2019robust')
def jacobian() -> Term:
  """|d x0 / d z|_F^2 sigma^2 / d at the batch's own z, estimated without bias by one random direction a row.

  E_v |J v|^2 = |J|_F^2 for v of independent signs; times sigma^2 it is what noise of the row's size does to the
  prediction. The denoiser of the training set is steep where it decides between examples, so a penalty on its slope
  smooths the score.

  Source: Tikhonov regularization of the score in Baptista et al. (2025); the random projection of Hoffman et al.
  (2019), equation 10.
  """

  def apply(params: Params, context: Context) -> PerRow:
    v = rng.signs(context.keys, context.z.shape[1:])
    _, slope = jax.jvp(lambda z: context.predict(z).x0, (context.z,), (v,))
    scaled = expand(context.marginal.sigma, slope) * slope
    return jnp.mean(scaled**2, axis=tuple(range(1, slope.ndim)))

  return Term(init=lambda key: (), apply=apply)
