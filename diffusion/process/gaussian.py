"""The Gaussian diffusion itself: bind a schedule and a process, noise, take posteriors, denoise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from diffusion import rng
from diffusion.process.marginals import expand
from diffusion.types import (
  AnyArray,
  AnyShape,
  Denoiser,
  Diffusion,
  Examples,
  Keys,
  Marginal,
  Number,
  Parameterization,
  Params,
  Path,
  PerRow,
  Prediction,
)

__all__ = ['Diffusion', 'bind', 'denoiser', 'diffuse', 'posterior', 'prior']

_BISECTIONS = 60  # halvings of [0, 1]: past the resolution of float64


def bind(diffusion: Diffusion, params: Params) -> Path:
  """Binds the schedule's parameters once, at the edge: all later code speaks of t alone.

  Args:
    diffusion: the model's three choices.
    params: what `schedule.init` returned, `()` when nothing is learned.

  Returns:
    Path: log_snr, slope and marginal of t (any shape), and time, the inverse of log_snr by bisection. A log-SNR
    beyond an end point has that end as its time.
  """

  def log_snr(t: AnyShape) -> AnyShape:
    return diffusion.schedule.log_snr(params, t)

  def slope(t: AnyShape) -> AnyShape:
    return jax.jvp(log_snr, (t,), (jnp.ones_like(t),))[1]

  def time(value: AnyShape | float) -> AnyShape:
    value = jnp.asarray(value, jnp.result_type(float))

    def halve(_, ends):
      low, high = ends
      middle = (low + high) / 2
      later = log_snr(middle) > value  # log-SNR decreases: still too clean, so the time is later
      return jnp.where(later, middle, low), jnp.where(later, high, middle)

    low, high = jax.lax.fori_loop(
      0, _BISECTIONS, halve, (jnp.zeros_like(value), jnp.ones_like(value))
    )
    return jnp.where(low <= 0, low, high)  # the exact end points are reachable from one side each

  return Path(log_snr, slope, time, lambda t: diffusion.process(log_snr(t)))


def diffuse(x0: Examples, eps: Examples, marginal: Marginal) -> Examples:
  """z = alpha x0 + sigma eps.

  Args:
    x0: the clean data, in network units.
    eps: the noise, N(0, I).
    marginal: alpha and sigma of each row.
  """
  return expand(marginal.alpha, x0) * x0 + expand(marginal.sigma, x0) * eps


def posterior(
  path: Path, z: Examples, x0: Examples, t: PerRow, s: PerRow
) -> tuple[Examples, PerRow]:
  """Mean and variance of q(z_s | z_t, x0), s < t.

  With r = SNR(t) / SNR(s): mean = r (alpha_s / alpha_t) z_t + alpha_s (1 - r) x0, variance = (1 - r) sigma_s^2.

  Args:
    path: the bound schedule and process.
    z: z_t.
    x0: the clean data, or a prediction of it.
    t, s: times in [0, 1], s < t.

  Returns:
    (mean, variance).

  Source: Ho et al. (2020), equations 6 and 7; in continuous time Kingma et al. (2021), equation 25. 1 - r is taken
  as -expm1(log r), so it keeps its digits for nearby t and s.
  """
  now, then = path.marginal(t), path.marginal(s)
  log_ratio = path.log_snr(t) - path.log_snr(s)
  ratio, rest = jnp.exp(log_ratio), -jnp.expm1(log_ratio)
  mean = expand(ratio * then.alpha / now.alpha, z) * z + expand(then.alpha * rest, z) * x0
  return mean, rest * then.sigma**2


def prior(path: Path, keys: Keys, shape: tuple[int, ...], t: Number = 1.0) -> Examples:
  """Draws z at a time at which there is nothing but noise: N(0, sigma_t^2 I), row i from keys[i] alone.

  The data's share alpha_t x0 is left out, as everywhere in the literature; it is alpha_t / sigma_t of the noise.

  Args:
    path: the bound schedule and process.
    keys: of the rows.
    shape: of one example.
    t: the time.
  """
  noise = rng.normal(keys, shape)
  return expand(path.marginal(jnp.full(noise.shape[0], t, noise.dtype)).sigma, noise) * noise


def denoiser(
  path: Path, parameterization: Parameterization, network: Callable[..., Examples]
) -> Denoiser:
  """A network as a Denoiser: (z, t, key=None) -> Prediction(x0, eps).

  Args:
    path: the bound schedule and process.
    parameterization: what the network's output means.
    network: (z [b, *shape], c_noise [b], row keys [b] or None) -> output [b, *shape].
  """

  def denoise(
    z: Float[AnyArray, ' b *shape'], t: Float[AnyArray, ' b'], key: Keys | None = None
  ) -> Prediction:
    z, t = jnp.asarray(z), jnp.asarray(t)  # a user's may be NumPy's
    marginal = path.marginal(t)
    inputs, noise = parameterization.encode(z, marginal)
    return parameterization.decode(network(inputs, noise, key), z, marginal)

  return denoise
