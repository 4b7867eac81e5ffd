"""Loss terms. Each returns one number an example; the reduction happens once, in the step."""

import jax
import jax.numpy as jnp

from diffusion import checks, rng
from diffusion.citations import technique
from diffusion.objectives.weights import Weight
from diffusion.process.marginals import expand
from diffusion.types import Context, Examples, Key, Params, PerRow, Prediction, Term


def eps_loss(x0: Examples, eps: Examples, prediction: Prediction, log_snr: PerRow) -> PerRow:
  """mean_j (eps_hat_j - eps_j)^2 for each example, from the better conditioned half of the prediction.

  The two errors are one: alpha (x0_hat - x0) = -sigma (eps_hat - eps). Below SNR 1 the eps error is a small
  difference of large numbers and SNR |x0 error|^2 is the same without the cancellation; above it the reverse.

  Args:
    x0: the clean data, in network units.
    eps: the noise.
    prediction: both halves.
    log_snr: nats.
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

  def apply(params: Params, context: Context) -> PerRow:
    loss = eps_loss(context.batch.x, context.eps, context.prediction, context.log_snr)
    return weight(context.log_snr) * loss

  return Term(init=lambda key: (), apply=apply)


@technique('weighted variational bound', 'loss', 'kingma2021variational', 'kingma2023understanding')
def weighted_bound(weight: Weight) -> Term:
  """-1/2 (d log_snr / dt) w(log_snr) mean_j (eps_hat_j - eps_j)^2: the loss integrated over log-SNR.

  With t drawn uniformly its mean is 1/2 int w(log_snr) E mean_j (eps_hat_j - eps_j)^2 d log_snr, whatever the schedule
  between its ends. With w = 1 it is the diffusion part of the variational bound in nats a dimension.

  Args:
    weight: w, from `weights`.

  Source: Kingma et al. (2021), equation 17; Kingma & Gao (2023), equation 6.
  """

  def apply(params: Params, context: Context) -> PerRow:
    loss = eps_loss(context.batch.x, context.eps, context.prediction, context.log_snr)
    return -0.5 * context.slope * weight(context.log_snr) * loss

  return Term(init=lambda key: (), apply=apply)


@technique('learned uncertainty', 'loss', 'kendall2018multitask', 'karras2024edm2')
def uncertain(weight: Weight, features: int = 64) -> Term:
  """L / exp(u) + u with L the weighted denoising loss: u(log_snr) learns log E[L | log_snr].

  So every noise level weighs the same in the gradient, whatever its loss is. u is linear in Fourier features of
  log_snr and starts at zero, where the term is the denoising loss.

  Args:
    weight: the factor of the eps-loss, from `weights`.
    features: of log_snr, even, >= 2.

  Raises:
    ValueError: a bad number of features.

  Source: Kendall et al. (2018); Karras et al. (2024), equation 21 and appendix B.
  """
  checks.integer('features', features, 2)
  if features % 2:
    raise ValueError(f'features must be even, got {features}')
  plain = denoising(weight)
  # Periods from 120 nats, past the range of a schedule, down to 4, where a loss changes little.
  frequency = 2 * jnp.pi / jnp.geomspace(120.0, 4.0, features // 2)

  def init(key: Key) -> Params:
    return {'slope': jnp.zeros(features), 'offset': jnp.zeros(())}

  def apply(params: Params, context: Context) -> PerRow:
    angle = context.log_snr[:, None] * frequency
    basis = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
    u = basis @ params['slope'] + params['offset']
    return plain.apply((), context) * jnp.exp(-u) + u

  return Term(init, apply)


@technique('sliced score matching', 'loss', 'song2020sliced')
def sliced() -> Term:
  """sigma^2 (v . (ds/dz) v + |s|^2 / 2) / d, s the score at z, v of independent signs: no target is needed.

  Its mean is that of the eps-loss over two, plus what does not depend on the network: E[sliced] = E|s - s*|^2 sigma^2
  / (2 d) + constant. For vectors, to check the denoising loss; it costs a forward-mode derivative of the network.

  Source: Song et al. (2020), equation 8 (variance reduced).
  """

  def apply(params: Params, context: Context) -> PerRow:
    sigma = expand(context.marginal.sigma, context.z)

    def scaled_score(z: Examples) -> Examples:  # sigma times the score
      return -context.predict(z).eps

    v = rng.signs(context.keys, context.z.shape[1:])
    value, slope = jax.jvp(scaled_score, (context.z,), (v,))
    loss = v * slope * sigma + value**2 / 2
    return jnp.mean(loss, axis=tuple(range(1, loss.ndim)))

  return Term(init=lambda key: (), apply=apply)
