"""Noise schedules: t in [0, 1] to log-SNR in nats. t = 0 is (almost) clean, t = 1 is (almost) noise.

All are finite and decreasing on [0, 1] with their end points as arguments: an infinite log-SNR at t = 0 is where
schedules given as alpha(t) lose their digits.
"""

import math

import jax.numpy as jnp
import numpy as np

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Array, Schedule


def _fixed(log_snr) -> Schedule:
  return Schedule(init=lambda key: (), log_snr=lambda params, t: log_snr(t))


def _check_ends(log_snr_min: float, log_snr_max: float) -> None:
  if not -80 <= log_snr_min < log_snr_max <= 80:
    raise ValueError(
      'a schedule needs -80 <= log_snr_min < log_snr_max <= 80 (beyond that the SNR leaves float32), got '
      f'log_snr_min={log_snr_min!r}, log_snr_max={log_snr_max!r}'
    )


@technique('cosine noise schedule', 'noise level', 'nichol2021improved', 'hoogeboom2023simple')
def cosine(log_snr_min: float = -15.0, log_snr_max: float = 15.0) -> Schedule:
  """alpha = cos(pi t / 2), cut at two log-SNR: log_snr = -2 log tan(a + t (b - a)).

  a = atan(exp(-log_snr_max / 2)) and b = atan(exp(-log_snr_min / 2)).

  Args:
    log_snr_min: nats at t = 1, in [-80, log_snr_max).
    log_snr_max: nats at t = 0, in (log_snr_min, 80].

  Raises:
    ValueError: the end points are out of order or leave float32.

  Source: Nichol & Dhariwal (2021) without their offset; in log-SNR, Hoogeboom et al. (2023), section 3.1.
  """
  _check_ends(log_snr_min, log_snr_max)
  low, high = math.atan(math.exp(-log_snr_max / 2)), math.atan(math.exp(-log_snr_min / 2))
  complement = math.atan(math.exp(log_snr_min / 2))  # pi/2 - high without cancellation

  def log_snr(t: Array) -> Array:
    angle = low + t * (high - low)
    other = complement + (1 - t) * (high - low)  # pi/2 - angle, exact where tan(angle) is not
    return jnp.where(angle < math.pi / 4, -2 * jnp.log(jnp.tan(angle)), 2 * jnp.log(jnp.tan(other)))

  return _fixed(log_snr)


@technique('linear-beta noise schedule', 'noise level', 'ho2020denoising', 'song2021score')
def linear_beta(
  beta_min: float = 0.1, beta_max: float = 20.0, log_snr_max: float = 9.21
) -> Schedule:
  """The continuous limit of DDPM's schedule: log_snr = -log(expm1(B(u))).

  B(u) = beta_min u + (beta_max - beta_min) u^2 / 2 and u = u0 + t (1 - u0), where log_snr(u0) = log_snr_max, because
  B(0) = 0 has infinite SNR.

  Args:
    beta_min: beta at u = 0, > 0; DDPM's 1e-4 times 1,000 steps.
    beta_max: beta at u = 1, >= beta_min; DDPM's 0.02 times 1,000 steps.
    log_snr_max: nats at t = 0; the default is DDPM's first step, log(0.9999 / 0.0001).

  Raises:
    ValueError: a beta out of range, or log_snr_max at or below the log-SNR of t = 1.

  Source: Song et al. (2021), "Score-based generative modeling through SDEs", appendix C.
  """
  checks.positive('beta_min', beta_min)
  checks.at_least('beta_max', beta_max, beta_min)
  slope = beta_max - beta_min
  area = beta_min + slope / 2  # B(1); -log(expm1(area)) without its overflow
  _check_ends(-area - math.log(-math.expm1(-area)), log_snr_max)
  start = math.log1p(math.exp(-log_snr_max))  # B(u0)
  first = 2 * start / (beta_min + math.sqrt(beta_min**2 + 2 * slope * start))

  def log_snr(t: Array) -> Array:
    u = first + t * (1 - first)
    return -jnp.log(jnp.expm1(u * (beta_min + slope * u / 2)))

  return _fixed(log_snr)


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
  """DDPM's table: `steps` betas in equal increments from `first` to `last`, float64 [steps].

  Source: Ho et al. (2020), section 4.
  """
  checks.integer('steps', steps, 2)
  checks.in_range('first', first, 0, 1, ends='()')
  checks.in_range('last', last, first, 1, ends='[)')
  return np.linspace(first, last, steps)


@technique('discrete noise schedule', 'noise level', 'ho2020denoising')
def discrete(betas: np.ndarray) -> Schedule:
  """A table of betas as a schedule: log_snr_i = log(abar_i / (1 - abar_i)), abar_i = prod_{j <= i} (1 - beta_j).

  Step i of T is at t = i / (T - 1), i = 0 ... T - 1, and log-SNR is linear between the steps, so a sampler whose
  grid is on the steps uses the table's numbers.

  Args:
    betas: [T], T >= 2, each in (0, 1).

  Raises:
    ValueError: the wrong shape, or a beta out of range, named with its position.

  Source: Ho et al. (2020), equations 2 and 4.
  """
  betas = np.asarray(betas, np.float64)
  if betas.ndim != 1 or betas.size < 2:
    raise ValueError(f'betas must be a vector of at least 2, got shape {betas.shape}')
  bad = np.flatnonzero(~((betas > 0) & (betas < 1)))
  if bad.size:
    raise ValueError(f'betas must be in (0, 1), got betas[{bad[0]}] = {betas[bad[0]]!r}')
  log_abar = np.cumsum(np.log1p(-betas))
  table = log_abar - np.log(-np.expm1(log_abar))
  _check_ends(float(table[-1]), float(table[0]))
  steps = np.linspace(0, 1, betas.size)
  return _fixed(lambda t: jnp.interp(t, jnp.asarray(steps), jnp.asarray(table)))
