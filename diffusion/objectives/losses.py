"""Loss terms. Each returns one number an example; the reduction happens once, in the step."""

import jax.numpy as jnp

from diffusion.citations import technique
from diffusion.objectives.weights import Weight
from diffusion.process.marginals import expand
from diffusion.types import Array, Context, Prediction, Term


def eps_loss(x0: Array, eps: Array, prediction: Prediction, log_snr: Array) -> Array:
  """mean_j (eps_hat_j - eps_j)^2 for each example, from the better conditioned half of the prediction.

  The two errors are one: alpha (x0_hat - x0) = -sigma (eps_hat - eps). Below SNR 1 the eps error is a small
  difference of large numbers and SNR |x0 error|^2 is the same without the cancellation; above it the reverse.

  Args:
    x0: the clean data [B, ...].
    eps: the noise [B, ...].
    prediction: both halves [B, ...].
    log_snr: [B].

  Returns:
    [B].
  """
  noisy = expand(log_snr, eps) < 0
  error = jnp.where(
    noisy,
    expand(jnp.exp(0.5 * log_snr), eps) * (x0 - prediction.x0),
    prediction.eps - eps,
  )
  return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


@technique('denoising score matching', 'loss', 'vincent2011connection', 'ho2020denoising')
def denoising(weight: Weight) -> Term:
  """Denoising score matching: w(log_snr) mean_j (eps_hat_j - eps_j)^2.

  The same objective whatever the network predicts: its prediction is decoded to eps first.

  Args:
    weight: the factor of the eps-loss, from `weights`.

  Source: Vincent (2011); Ho et al. (2020), equation 14.
  """

  def apply(params, context: Context) -> Array:
    loss = eps_loss(context.batch.x, context.eps, context.prediction, context.log_snr)
    return weight(context.log_snr) * loss

  return Term(init=lambda key: (), apply=apply)
