"""Tables of betas: the discrete view of noise schedules, float64 on the host.

A factory returns a `Table`, a function that makes the array: `linear()()` are DDPM's 1,000 betas. abar_i = prod_{j <=
i} (1 - beta_j), and abar = sigmoid(log_snr) of the variance-preserving process. A table becomes a schedule by
`schedules.discrete`; a schedule becomes an array of betas by `of`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Float

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Params, Schedule

Betas = Float[np.ndarray, ' l']  # float64, one number a step
Table = Callable[[], Betas]


def values(table: Table | Betas) -> Betas:
  """The betas of a table, or an array of them as it is."""
  return table() if callable(table) else table


def linear(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Table:
  """DDPM's table: beta_i = first + i (last - first) / (T - 1), i = 0 ... T - 1.

  Args:
    steps: T, >= 2.
    first: beta_0, in (0, 1).
    last: beta of the last step, in [first, 1).

  Raises:
    ValueError: fewer than 2 steps, or betas out of range or order.

  Source: Ho et al. (2020), section 4.
  """
  checks.integer('steps', steps, 2)
  checks.in_range('first', first, 0, 1, ends='()')
  checks.in_range('last', last, first, 1, ends='[)')
  return lambda: np.linspace(first, last, steps)


@technique('scaled-linear noise schedule', 'noise level', 'rombach2022latent')
def scaled_linear(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Table:
  """Betas whose square roots grow in equal increments.

  Args:
    steps: T, >= 2.
    first: beta of the first step, in (0, 1).
    last: beta of the last step, in [first, 1).

  Raises:
    ValueError: fewer than 2 steps, or betas out of range or order.

  Source: Rombach et al. (2022), in their released configurations.
  """
  roots = linear(steps, first**0.5, last**0.5)
  return lambda: roots() ** 2


@technique('cosine table of betas', 'noise level', 'nichol2021improved')
def cosine(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Table:
  """beta_i = min(1 - f(i + 1) / f(i), largest), f(i) = cos^2((i / T + s) / (1 + s) pi / 2).

  Args:
    steps: T, >= 2.
    offset: s, >= 0.
    largest: in (0, 1).

  Raises:
    ValueError: arguments out of range.

  Source: Nichol & Dhariwal (2021), equation 17 and the sentence after it.
  """
  checks.integer('steps', steps, 2)
  checks.at_least('offset', offset, 0)
  checks.in_range('largest', largest, 0, 1, ends='()')

  def table() -> Betas:
    edges = (np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2
    return np.minimum(1 - np.cos(edges[1:]) ** 2 / np.cos(edges[:-1]) ** 2, largest)

  return table


@technique('zero-terminal-SNR rescaling', 'noise level', 'lin2024common')
def zero_terminal_snr(betas: Table | Betas, log_snr_min: float = -30.0) -> Table:
  """Rescales a table so that its last step is (almost) pure noise.

  sqrt(abar_i) becomes a + b sqrt(abar_i), with a and b such that the first stays as it was and the last has
  SNR exp(log_snr_min). The paper's limit is SNR 0, an infinite log-SNR, for which no network output but v has a
  finite x0; at -30 nats the data's share is 3e-7.

  Args:
    betas: a table, or an array, each in (0, 1).
    log_snr_min: nats at the last step, below the table's own; at least -36, where float64 rounds beta to 1.

  Raises:
    ValueError: a terminal log-SNR out of its range.

  Source: Lin et al. (2024), algorithm 1.
  """
  before = np.sqrt(alpha_bars(values(betas)))
  own = float(scipy.special.logit(before[-1] ** 2))
  checks.in_range('log_snr_min', log_snr_min, -36, own, ends='[)')

  def table() -> Betas:
    last = np.sqrt(scipy.special.expit(log_snr_min))
    root = before[0] + (before - before[0]) * (before[0] - last) / (before[0] - before[-1])
    root[-1] = last  # to its last digit, which the difference above has lost
    abar = root**2
    return 1 - abar / np.concatenate([[1.0], abar[:-1]])

  return table


def alpha_bars(betas: Betas) -> Betas:
  """abar_i = prod_{j <= i} (1 - beta_j).

  Raises:
    ValueError: the wrong shape, or a beta outside (0, 1), named with its position.
  """
  return np.exp(log_alpha_bars(betas))


def log_alpha_bars(betas: Betas) -> Betas:
  """log abar_i = sum_{j <= i} log(1 - beta_j).

  Raises:
    ValueError: as `alpha_bars` does.
  """
  betas = np.asarray(betas, np.float64)
  if betas.ndim != 1 or betas.size < 2:
    raise ValueError(f'betas must be a vector of at least 2, got shape {betas.shape}')
  bad = np.flatnonzero(~((betas > 0) & (betas < 1)))
  if bad.size:
    raise ValueError(f'betas must be in (0, 1), got betas[{bad[0]}] = {betas[bad[0]]!r}')
  return np.cumsum(np.log1p(-betas))


def of(schedule: Schedule, params: Params, steps: int) -> Betas:
  """Any schedule as a table: abar_i = sigmoid(log_snr(i / (T - 1))).

  Args:
    schedule, params: the schedule; its marginals are taken as variance preserving.
    steps: T, >= 2.

  Raises:
    ValueError: fewer than 2 steps.
  """
  checks.integer('steps', steps, 2)
  with jax.enable_x64(True):  # float32 would leave three digits of the first betas
    log_snr = np.asarray(schedule.log_snr(params, jnp.linspace(0.0, 1.0, steps)))
  log_abar = -np.logaddexp(0, -log_snr)
  return -np.expm1(np.diff(log_abar, prepend=0.0))
