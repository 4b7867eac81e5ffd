"""Solvers of the reverse-time equations: each is one step from t to s < t, to be walked by `samplers.sample`."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from diffusion import checks, rng
from diffusion.citations import technique
from diffusion.process.marginals import expand
from diffusion.sampling import grids
from diffusion.types import Array, Denoiser, Examples, Keys, Path, PerRow, Prediction, Sampler


def velocity(denoise: Denoiser, path: Path, z: Examples, t: PerRow) -> tuple[Examples, Prediction]:
  """dz/dt = alpha' x0 + sigma' eps of the probability flow.

  Args:
    denoise: predicts x0 and eps.
    path: the bound schedule and process.
    z: where.
    t: the times, in [0, 1].

  Returns:
    (dz/dt, the prediction behind it).

  Source: Song et al. (2021), equation 13, rewritten for E[x0 | z] and E[eps | z].
  """
  prediction = denoise(z, t)
  _, rate = jax.jvp(path.marginal, (t,), (jnp.ones_like(t),))
  return expand(rate.alpha, z) * prediction.x0 + expand(rate.sigma, z) * prediction.eps, prediction


@technique('Euler sampler', 'sampling', 'song2021score')
def euler(path: Path) -> Sampler:
  """z_s = z_t + (s - t) dz/dt of the probability flow: order 1.

  For the rectified flow it walks straight lines; DDIM is the same in other coordinates. Where the variance explodes it
  needs four times the steps of DDIM.

  Args:
    path: the bound schedule and process.

  Source: Song et al. (2021), equation 13.
  """

  def step(denoise: Denoiser, keys: Keys, z: Examples, t: PerRow, s: PerRow) -> Examples:
    return z + expand(s - t, z) * velocity(denoise, path, z, t)[0]

  # Noise far above the data falls by a factor a step, of which 1 - h is a poor exp(-h).
  sigma = path.marginal(jnp.ones(())).sigma
  return Sampler(
    init=lambda z: z, step=step, fewest=80 if not checks.traced(sigma) and sigma > 2 else 1
  )


@technique('Euler-Maruyama sampler', 'sampling', 'song2021score')
def euler_maruyama(path: Path, temperature: float = 1.0) -> Sampler:
  """z_s = z_t + (s - t) [dz/dt + g^2 eps / (2 sigma)] + g sqrt(t - s) n, g^2 = -sigma^2 d log_snr / dt.

  The reverse stochastic differential equation, whatever the process: drift of the probability flow, and as much
  Langevin dynamics as the forward process adds noise.

  Args:
    path: the bound schedule and process.
    temperature: of the noise, see `ancestral`.

  Raises:
    ValueError: temperature out of range.

  Source: Song et al. (2021), equation 6; g^2 from log-SNR as in Kingma et al. (2021), equation 21.
  """
  checks.at_least('temperature', temperature, 0)

  def step(denoise: Denoiser, keys: Keys, z: Examples, t: PerRow, s: PerRow) -> Examples:
    drift, prediction = velocity(denoise, path, z, t)
    sigma, rate = path.marginal(t).sigma, -path.slope(t)
    drift += expand(0.5 * sigma * rate, z) * prediction.eps
    noise = temperature * sigma * jnp.sqrt(rate * (t - s))
    return z + expand(s - t, z) * drift + expand(noise, z) * rng.normal(keys, z.shape[1:])

  # A first step throws z as far as log-SNR would change in it at this slope; 300 nats are made good by those after it.
  slope = path.slope(jnp.ones(()))
  fewest = 20 if checks.traced(slope) else max(20, math.ceil(-float(slope) / 300))
  return Sampler(init=lambda z: z, step=step, fewest=fewest)


@technique('Heun sampler with churn', 'sampling', 'karras2022edm')
def heun(
  path: Path,
  churn: float = 0.0,
  churn_low: float = 0.0,
  churn_high: float = math.inf,
  noise_scale: float = 1.0,
) -> Sampler:
  """Heun's rule for dy/ds = eps in y = z / alpha, s = sigma / alpha: order 2, two evaluations a step.

  A step that lowers s more than threefold above s = 1 is Euler's: there eps = c (1 - v / (2 s^2)) for data of variance
  v, of which Heun's rule errs by (R - 1) / 2 times as much when s falls from R s' to s'.

  With churn, noise is added first: s rises to (1 + churn) s where churn_low <= s <= churn_high, as far as the
  schedule reaches.

  Args:
    path: the bound schedule and process.
    churn: gamma a step, in [0, sqrt(2) - 1]; the paper's S_churn / N.
    churn_low, churn_high: S_tmin and S_tmax, on s.
    noise_scale: S_noise, the temperature of that noise, >= 0.

  Raises:
    ValueError: arguments out of range.

  Source: Karras et al. (2022), algorithm 2. Their last step, to s = 0, is `sample`'s denoise_last, which adds no noise
  before it, as theirs does where churn_low does not keep it from that.
  """
  checks.in_range('churn', churn, 0, math.sqrt(2) - 1)
  checks.at_least('churn_low', churn_low, 0)
  checks.in_range('churn_high', churn_high, churn_low, math.inf)
  checks.at_least('noise_scale', noise_scale, 0)

  def scale(t: PerRow) -> PerRow:
    return jnp.exp(-0.5 * path.log_snr(t))

  def noised(keys: Keys, z: Examples, t: PerRow) -> tuple[Examples, PerRow]:
    now = scale(t)
    gamma = jnp.where((now >= churn_low) & (now <= churn_high), churn, 0.0)
    reach = jnp.minimum(now * (1 + gamma), scale(jnp.ones_like(t)))
    # t stays where nothing is added: the inverse would return it rounded.
    later = jnp.where(reach > now, path.time(-2 * jnp.log(reach)), t)
    added = noise_scale * jnp.sqrt(jnp.maximum(scale(later) ** 2 - now**2, 0.0))
    y = z / expand(path.marginal(t).alpha, z) + expand(added, z) * rng.normal(keys, z.shape[1:])
    return expand(path.marginal(later).alpha, z) * y, later

  def step(denoise: Denoiser, keys: Keys, z: Examples, t: PerRow, s: PerRow) -> Examples:
    if not checks.off(churn):
      z, t = noised(keys, z, t)
    now, then = path.marginal(t), path.marginal(s)
    length = expand(scale(s) - scale(t), z)
    far = expand((scale(t) > 3 * scale(s)) & (scale(s) > 1), z)
    first = denoise(z, t)
    # From noise alone y is beyond float32's digits; Euler's step has none of it.
    near = expand(then.alpha, z) * (z / expand(now.alpha, z) + length * first.eps)
    direct = expand(then.alpha, z) * first.x0 + expand(then.sigma, z) * first.eps
    moved = jnp.where(far, direct, near)
    change = denoise(moved, s).eps - first.eps
    return moved + jnp.where(far, 0.0, expand(then.alpha, z) * length * change / 2)

  return Sampler(init=lambda z: z, step=step, grid=grids.geometric, fewest=10)


class _Memory(NamedTuple):
  """A multistep solver's state: z, the last prediction of x0, and half the log-SNR where it was made."""

  z: Examples
  x0: Examples
  level: PerRow
  fresh: Bool[Array, '']  # no prediction yet


@technique('DPM-Solver++ sampler', 'sampling', 'lu2022dpmsolverpp')
def dpm_solver(path: Path, stochastic: bool = False, temperature: float = 1.0) -> Sampler:
  """DPM-Solver++ (2M), or SDE-DPM-Solver++ (2M): order 2 with one evaluation a step.

  With l = log_snr / 2, h = l_s - l_t, r = h_before / h and D = x0_t + (x0_t - x0_before) / (2 r):
  z_s = (sigma_s / sigma_t) z - alpha_s (exp(-h) - 1) D, or, stochastic,
  z_s = (sigma_s / sigma_t) exp(-h) z + alpha_s (1 - exp(-2 h)) D + sigma_s sqrt(1 - exp(-2 h)) n.
  The first step, without a prediction before it, takes D = x0_t.

  Args:
    path: the bound schedule and process.
    stochastic: the second form.
    temperature: of its noise, see `ancestral`.

  Raises:
    ValueError: temperature out of range.

  Source: Lu et al. (2022), "DPM-Solver++", algorithm 2 and equation 18.
  """
  checks.at_least('temperature', temperature, 0)

  def init(z: Examples) -> _Memory:
    return _Memory(z, jnp.zeros_like(z), jnp.zeros(z.shape[0], z.dtype), jnp.ones((), bool))

  def step(denoise: Denoiser, keys: Keys, state: _Memory, t: PerRow, s: PerRow) -> _Memory:
    z, x0 = state.z, denoise(state.z, t).x0
    level = path.log_snr(t) / 2
    h = path.log_snr(s) / 2 - level
    share = jnp.where(state.fresh, 0.0, h / (2 * jnp.where(state.fresh, 1.0, level - state.level)))
    d = x0 + expand(share, z) * (x0 - state.x0)
    now, then = path.marginal(t), path.marginal(s)
    kept = then.sigma / now.sigma
    if stochastic:
      moved = expand(kept * jnp.exp(-h), z) * z - expand(then.alpha * jnp.expm1(-2 * h), z) * d
      noise = temperature * then.sigma * jnp.sqrt(-jnp.expm1(-2 * h))
      moved += expand(noise, z) * rng.normal(keys, z.shape[1:])
    else:
      moved = expand(kept, z) * z - expand(then.alpha * jnp.expm1(-h), z) * d
    return _Memory(moved, x0, level, jnp.zeros((), bool))

  return Sampler(init, step, grid=grids.geometric)
