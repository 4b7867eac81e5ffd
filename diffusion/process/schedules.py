"""Noise schedules: t in [0, 1] to log-SNR in nats. t = 0 is (almost) clean, t = 1 is (almost) noise.

All are finite and decreasing on [0, 1] with their end points as arguments: an infinite log-SNR at t = 0 is where
schedules given as alpha(t) lose their digits.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from diffusion import checks
from diffusion.citations import technique
from diffusion.process import betas as tables
from diffusion.types import AnyShape, Schedule


def _fixed(log_snr) -> Schedule:
  return Schedule(init=lambda key: (), log_snr=lambda params, t: log_snr(t))


def _stretched(low: float, high: float, time, log_snr) -> Schedule:
  """The part of log_snr(u, 1 - u) from `high` down to `low`, with t in [0, 1] stretched over it.

  `time` is its inverse, and 1 - u that of minus log-SNR. It is carried beside u, so that neither end loses digits.
  """
  first, rest = time(high), time(-low)
  width = time(low) - first if low > 0 else time(-high) - rest  # of what is small where both are
  return _fixed(lambda t: log_snr(first + t * width, rest + (1 - t) * width))


def _check_ends(log_snr_min: float, log_snr_max: float) -> None:
  if not -80 <= log_snr_min < log_snr_max <= 80:
    raise ValueError(
      'a schedule needs -80 <= log_snr_min < log_snr_max <= 80 (beyond that the SNR leaves float32), got '
      f'log_snr_min={log_snr_min!r}, log_snr_max={log_snr_max!r}'
    )


@technique('cosine noise schedule', 'noise level', 'nichol2021improved', 'hoogeboom2023simple')
def cosine(log_snr_min: float = -15.0, log_snr_max: float = 15.0) -> Schedule:
  """alpha = cos(pi u / 2), log_snr = -2 log tan(pi u / 2), cut at two log-SNR and stretched over t in [0, 1].

  Args:
    log_snr_min: nats at t = 1, in [-80, log_snr_max).
    log_snr_max: nats at t = 0, in (log_snr_min, 80].

  Raises:
    ValueError: the end points are out of order or leave float32.

  Source: Nichol & Dhariwal (2021) without their offset; in log-SNR, Hoogeboom et al. (2023), section 3.1.
  """
  _check_ends(log_snr_min, log_snr_max)
  turn = math.pi / 2

  def log_snr(u: AnyShape, rest: AnyShape) -> AnyShape:  # the tangent of the smaller of two angles
    return jnp.where(u < 0.5, -2 * jnp.log(jnp.tan(turn * u)), 2 * jnp.log(jnp.tan(turn * rest)))

  time = lambda log_snr: math.atan(math.exp(-log_snr / 2)) / turn  # noqa: E731
  return _stretched(log_snr_min, log_snr_max, time, log_snr)


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

  def log_snr(t: AnyShape) -> AnyShape:
    u = first + t * (1 - first)
    return -jnp.log(jnp.expm1(u * (beta_min + slope * u / 2)))

  return _fixed(log_snr)


@technique('discrete noise schedule', 'noise level', 'ho2020denoising')
def discrete(betas: tables.Table | tables.Betas) -> Schedule:
  """A table of betas as a schedule: log_snr_i = log(abar_i / (1 - abar_i)), abar_i = prod_{j <= i} (1 - beta_j).

  Step i of T is at t = i / (T - 1), i = 0 ... T - 1, and log-SNR is linear between the steps, so a sampler whose
  grid is on the steps uses the table's numbers.

  Args:
    betas: from `betas`, or an array; T >= 2, each in (0, 1).

  Raises:
    ValueError: the wrong shape, or a beta out of range, named with its position.

  Source: Ho et al. (2020), equations 2 and 4.
  """
  log_abar = tables.log_alpha_bars(tables.values(betas))
  table = log_abar - np.log(-np.expm1(log_abar))
  _check_ends(float(table[-1]), float(table[0]))
  steps = np.linspace(0, 1, len(table))
  return _fixed(lambda t: jnp.interp(t, jnp.asarray(steps), jnp.asarray(table)))


@technique('sigmoid noise schedule', 'noise level', 'jabri2023scalable')
def sigmoid(
  start: float = -3.0,
  end: float = 3.0,
  temperature: float = 1.0,
  log_snr_min: float = -15.0,
  log_snr_max: float = 15.0,
) -> Schedule:
  """alpha^2 = (S(end) - S(x)) / (S(end) - S(start)), S(x) = sigmoid(x / temperature), x = start + u (end - start).

  With a = (end - start) / (2 temperature) that is log_snr = log sinh(a (1 - u)) - log sinh(a u) + constant; cut at two
  log-SNR and stretched over t in [0, 1].

  Args:
    start, end: of x, start < end.
    temperature: > 0.
    log_snr_min, log_snr_max: nats at t = 1 and t = 0.

  Raises:
    ValueError: arguments out of range or order.

  Source: Jabri et al. (2023), "Scalable adaptive computation for iterative generation", appendix B; they clip
  alpha^2 at 1e-9 instead of cutting.
  """
  checks.positive('temperature', temperature)
  if not start < end:
    raise ValueError(f'a sigmoid schedule needs start < end, got start={start!r}, end={end!r}')
  _check_ends(log_snr_min, log_snr_max)
  a = (end - start) / (2 * temperature)
  # By logarithms and expm1: a sharp sigmoid's sinh and cosh leave the floats.
  first, last = (np.logaddexp(x, -x) for x in (start / (2 * temperature), end / (2 * temperature)))
  shift = float(first - last)  # log(cosh / cosh)

  def time(log_snr: float) -> float:  # exp(2 a u) - 1 = 2 sinh a / (exp(log_snr - shift) + exp(-a))
    rise = a + math.log(-math.expm1(-2 * a)) - np.logaddexp(log_snr, -a)
    return float(np.logaddexp(0, rise)) / (2 * a)

  def log_snr(u: AnyShape, rest: AnyShape) -> AnyShape:
    centered = a * (rest - u) + jnp.log(jnp.expm1(-2 * a * rest) / jnp.expm1(-2 * a * u))
    return centered + shift

  return _stretched(log_snr_min - shift, log_snr_max - shift, time, log_snr)


@technique('geometric noise schedule', 'noise level', 'song2019generative', 'song2021score')
def geometric(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
  """sigma / alpha = sigma_min^(1 - t) sigma_max^t: log-SNR linear in t.

  Args:
    sigma_min, sigma_max: noise over signal at t = 0 and t = 1, 0 < sigma_min < sigma_max.

  Raises:
    ValueError: out of order, or an SNR beyond float32.

  Source: Song & Ermon (2019); Song et al. (2021), appendix C (their variance-exploding process).
  """
  high, low = _log_snr_of_sigmas(sigma_min, sigma_max)
  return _fixed(lambda t: (1 - t) * high + t * low)


def _log_snr_of_sigmas(sigma_min: float, sigma_max: float) -> tuple[float, float]:
  checks.positive('sigma_min', sigma_min)
  if not sigma_min < sigma_max:
    raise ValueError(
      f'a schedule needs sigma_min < sigma_max, got sigma_min={sigma_min!r}, sigma_max={sigma_max!r}'
    )
  high, low = -2 * math.log(sigma_min), -2 * math.log(sigma_max)
  _check_ends(low, high)
  return high, low


@technique('EDM noise schedule', 'noise level', 'karras2022edm')
def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
  """sigma / alpha = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

  Uniform steps in t are Karras et al.'s steps; training draws sigma log-normally (`times.log_normal`), whatever t is.

  Args:
    sigma_min, sigma_max: noise over signal at t = 0 and t = 1, 0 < sigma_min < sigma_max.
    rho: 7 in the paper, 1 makes t proportional to sigma; at least 1/80 of the larger |log sigma|, 0.08 by default.

  Raises:
    ValueError: out of order, an SNR beyond float32, or a rho with which sigma^(1/rho) is.

  Source: Karras et al. (2022), equation 5 and table 1.
  """
  ends = _log_snr_of_sigmas(sigma_min, sigma_max)
  remedy = 'with less, sigma^(1/rho) leaves float32'
  checks.at_least('rho', rho, max(map(abs, ends)) / 160, remedy)
  low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
  return _fixed(lambda t: -2 * rho * jnp.log((1 - t) * low + t * high))


@technique('rectified-flow noise schedule', 'noise level', 'liu2023flow', 'lipman2023flow')
def rectified_flow(log_snr_min: float = -15.0, log_snr_max: float = 15.0) -> Schedule:
  """sigma / alpha = u / (1 - u), log_snr = 2 log((1 - u) / u), cut at two log-SNR and stretched over t in [0, 1].

  With `marginals.rectified_flow` it is the straight line z = (1 - u) x0 + u eps.

  Args:
    log_snr_min, log_snr_max: nats at t = 1 and t = 0; the defaults cut 5.5e-4 of u at either end.

  Raises:
    ValueError: the end points are out of order or leave float32.

  Source: Liu et al. (2023), equation 1, and Lipman et al. (2023), with time from data to noise.
  """
  _check_ends(log_snr_min, log_snr_max)
  time = lambda log_snr: 1 / (1 + math.exp(log_snr / 2))  # noqa: E731
  return _stretched(log_snr_min, log_snr_max, time, lambda u, rest: 2 * jnp.log(rest / u))


def _ends(schedule: Schedule) -> tuple[float, float] | None:
  """(log-SNR at t = 1, at t = 0) of a schedule without parameters; None for a learned one."""
  params = jax.eval_shape(schedule.init, jax.random.key(0))
  if jax.tree.leaves(params):
    return None
  low, high = schedule.log_snr(params, jnp.array([1.0, 0.0]))
  return float(low), float(high)


@technique(
  'shifted noise schedule', 'noise level', 'hoogeboom2023simple',
  active=lambda factor: checks.traced(factor) or factor != 1,
)  # fmt: skip
def shifted(schedule: Schedule, factor: float) -> Schedule:
  """log_snr + 2 log(factor): the SNR of a schedule made for another resolution.

  Args:
    schedule: the schedule to shift.
    factor: > 0; resolution of the schedule over that of the images, e.g. 64 / 256.

  Raises:
    ValueError: factor not positive, or an SNR beyond float32.

  Source: Hoogeboom et al. (2023), "Simple diffusion", equation 5.
  """
  checks.positive('factor', factor)
  shift = 2 * math.log(factor)
  ends = _ends(schedule)
  if ends:
    _check_ends(ends[0] + shift, ends[1] + shift)
  return schedule._replace(log_snr=lambda params, t: schedule.log_snr(params, t) + shift)


def clipped(schedule: Schedule, log_snr_min: float, log_snr_max: float) -> Schedule:
  """The part of a schedule between two log-SNR, with t in [0, 1] stretched over it.

  So it stays strictly decreasing; clamping its values instead would make flat ends without an inverse.

  Args:
    schedule: one without parameters.
    log_snr_min, log_snr_max: nats, inside the schedule's range.

  Raises:
    ValueError: a learned schedule, or end points out of order or outside the schedule's.
  """
  _check_ends(log_snr_min, log_snr_max)
  ends = _ends(schedule)
  if ends is None:
    raise ValueError(
      'clipped needs a schedule without parameters: a learned one has its ends as arguments'
    )
  if not ends[0] - 1e-4 <= log_snr_min < log_snr_max <= ends[1] + 1e-4:
    raise ValueError(
      f'clipped needs log-SNR inside the schedule, {ends[0]:g} to {ends[1]:g}, got log_snr_min={log_snr_min!r}, '
      f'log_snr_max={log_snr_max!r}'
    )
  start, end = (_invert(schedule, value) for value in (log_snr_max, log_snr_min))
  return _fixed(lambda t: schedule.log_snr((), start + t * (end - start)))


def _invert(schedule: Schedule, value: float) -> float:
  """The t in [0, 1] of a log-SNR."""
  difference = lambda t: float(schedule.log_snr((), jnp.asarray(t))) - value  # noqa: E731
  if difference(0.0) <= 0 or difference(1.0) >= 0:  # an end, up to rounding
    return 0.0 if difference(0.0) <= 0 else 1.0
  return scipy.optimize.brentq(difference, 0.0, 1.0, xtol=1e-15)


@technique('learned noise schedule', 'noise level', 'kingma2021variational')
def learned(log_snr_min: float = -5.0, log_snr_max: float = 13.3, width: int = 64) -> Schedule:
  """A monotone network between fixed ends: log_snr = log_snr_max - (log_snr_max - log_snr_min) g(t).

  g(t) = (h(t) - h(0)) / (h(1) - h(0)), h(t) = t + sum_k a_k sigmoid(b_k (t - c_k)) with a_k, b_k > 0 by softplus. At
  the start g is close to t. In the training step the parameters follow the gradient of the *squared* loss: where the
  objective is the variational bound, which does not depend on them, that lowers the variance of its estimate.

  Args:
    log_snr_min, log_snr_max: nats at t = 1 and t = 0.
    width: hidden units, >= 1.

  Raises:
    ValueError: end points out of order or beyond float32, or a bad width.

  Source: Kingma et al. (2021), appendix I.2, with one hidden layer, normalized softplus weights, and ends that are
  arguments (they learn them).
  """
  _check_ends(log_snr_min, log_snr_max)
  checks.integer('width', width)

  def init(key):
    return {
      'height': jnp.full(width, -4.0),
      'steepness': jnp.full(width, 2.0) + 0.5 * jax.random.normal(key, (width,)),
      'center': jnp.linspace(0.0, 1.0, width),
    }

  def rise(params, t: AnyShape) -> AnyShape:
    height, steepness = (jax.nn.softplus(params[name]) for name in ('height', 'steepness'))
    hidden = jax.nn.sigmoid(8 * steepness * (t[..., None] - params['center']))
    return t + (height * hidden).sum(-1)

  def log_snr(params, t: AnyShape) -> AnyShape:
    t = jnp.asarray(t)
    first, last = rise(params, jnp.zeros((), t.dtype)), rise(params, jnp.ones((), t.dtype))
    share = (rise(params, t) - first) / (last - first)
    return (1 - share) * log_snr_max + share * log_snr_min

  return Schedule(init, log_snr)
