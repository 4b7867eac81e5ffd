"""Grids of times a sampler walks: from t = 1 (noise) down to t = 0 (data)."""

import jax.numpy as jnp
from jaxtyping import Float

from diffusion import checks
from diffusion.types import Array, Path

Grid = Float[Array, ' l']  # times, one more than steps


def uniform_time(steps: int) -> Grid:
  """t_i = 1 - i / steps, i = 0 ... steps.

  Args:
    steps: >= 1.

  Raises:
    ValueError: steps out of range.
  """
  checks.integer('sampling_steps', steps)
  return jnp.linspace(1.0, 0.0, steps + 1)


def uniform_log_snr(path: Path, steps: int, low: float, high: float) -> Grid:
  """Times whose log-SNR rises from `low` to `high` in equal steps.

  Args:
    path: the bound schedule.
    steps: >= 1.
    low, high: nats, low < high, both inside the schedule's range.

  Raises:
    ValueError: steps or range that do not fit.
  """
  checks.integer('sampling_steps', steps)
  if not low < high:
    raise ValueError(f'a grid needs low < high, got low={low!r}, high={high!r}')
  ends = path.log_snr(jnp.array([1.0, 0.0]))
  slack = 1e-3  # nats; the ends of a float32 schedule are rounded
  if not checks.traced(ends) and not ends[0] - slack <= low < high <= ends[1] + slack:
    raise ValueError(
      f'a grid needs low and high inside the schedule, {float(ends[0]):g} to {float(ends[1]):g}, got '
      f'low={low!r}, high={high!r}'
    )
  return path.time(jnp.linspace(low, high, steps + 1))


def quadratic_time(steps: int) -> Grid:
  """t_i = (1 - i / steps)^2, i = 0 ... steps: steps get finer toward the data.

  Args:
    steps: >= 1.

  Raises:
    ValueError: steps out of range.

  Source: Song et al. (2021), "Denoising diffusion implicit models", appendix D.2.
  """
  return uniform_time(steps) ** 2


def karras(path: Path, steps: int, rho: float = 7.0) -> Grid:
  """s_i = (s_max^(1/rho) + i / (steps - 1) (s_min^(1/rho) - s_max^(1/rho)))^rho, i = 0 ... steps - 1, and the end.

  s = sigma / alpha, and s_max and s_min are the schedule's own ends. As in the paper the last step is from s_min to
  s = 0, which is `samplers.sample` with denoise_last; its time in the grid is 0 once more.

  Args:
    path: the bound schedule.
    steps: >= 1.
    rho: > 0; 7 in the paper.

  Raises:
    ValueError: steps or rho out of range.

  Source: Karras et al. (2022), equation 5.
  """
  checks.integer('sampling_steps', steps)
  checks.positive('rho', rho)
  high, low = jnp.exp(-0.5 * path.log_snr(jnp.array([1.0, 0.0]))) ** (1 / rho)
  inner = rho * jnp.log(high + jnp.arange(1, steps - 1) / max(steps - 1, 1) * (low - high))
  # The inverse is a bisection: the ends are put in exactly.
  ends = jnp.zeros(min(steps, 2))
  return jnp.concatenate([jnp.ones(1), path.time(-2 * inner), ends])
