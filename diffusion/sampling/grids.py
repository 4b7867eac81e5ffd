"""Grids of times a sampler walks: from t = 1 (noise) down to t = 0 (data)."""

import jax.numpy as jnp

from diffusion import checks
from diffusion.types import Array, Path


def uniform_time(steps: int) -> Array:
  """t_i = 1 - i / steps, i = 0 ... steps; [steps + 1]. `steps` >= 1."""
  checks.integer('sampling_steps', steps)
  return jnp.linspace(1.0, 0.0, steps + 1)


def uniform_log_snr(path: Path, steps: int, low: float, high: float) -> Array:
  """Times whose log-SNR rises from `low` to `high` in equal steps; [steps + 1].

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
