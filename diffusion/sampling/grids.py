"""Grids of times a sampler walks, from noise down to data; each is (path, steps) -> times.

They begin at t = 1, or at a lower noise that is pure noise for all that samples show; the prior is drawn at their first
time. A sampler brings the one that suits it (`Sampler.grid`).
"""

import math

import jax.numpy as jnp
from jaxtyping import Float

from diffusion import checks
from diffusion.types import Array, Path

Grid = Float[Array, ' l']  # times, one more than steps


def uniform_time(path: Path, steps: int) -> Grid:
  """t_i = 1 - i / steps, i = 0 ... steps.

  Args:
    path: any; the times are the same for all.
    steps: >= 1.

  Raises:
    ValueError: steps out of range.
  """
  checks.integer('sampling_steps', steps)
  return jnp.linspace(1.0, 0.0, steps + 1)


def uniform_log_snr(
  path: Path, steps: int, low: float | None = None, high: float | None = None
) -> Grid:
  """Times whose log-SNR rises from `low` to `high` in equal steps.

  Args:
    path: the bound schedule.
    steps: >= 1.
    low, high: nats, low < high, both inside the schedule's range; None for its end.

  Raises:
    ValueError: steps or range that do not fit.
  """
  checks.integer('sampling_steps', steps)
  if low is not None and high is not None and not low < high:
    raise ValueError(f'a grid needs low < high, got low={low!r}, high={high!r}')
  ends = path.log_snr(jnp.array([1.0, 0.0]))
  low, high = (
    end if given is None else given for given, end in zip((low, high), ends, strict=True)
  )
  slack = 1e-3  # nats; the ends of a float32 schedule are rounded
  if not checks.traced(ends) and not ends[0] - slack <= low < high <= ends[1] + slack:
    raise ValueError(
      f'a grid needs low and high inside the schedule, {float(ends[0]):g} to {float(ends[1]):g}, got '
      f'low={low!r}, high={high!r}'
    )
  return path.time(jnp.linspace(low, high, steps + 1))


def quadratic_time(path: Path, steps: int) -> Grid:
  """t_i = (1 - i / steps)^2, i = 0 ... steps: steps get finer toward the data.

  Args:
    path: any; the times are the same for all.
    steps: >= 1.

  Raises:
    ValueError: steps out of range.

  Source: Song et al. (2021), "Denoising diffusion implicit models", appendix D.2.
  """
  return uniform_time(path, steps) ** 2


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


def geometric(path: Path, steps: int, s_max: float = 80.0) -> Grid:
  """s_max, then s_i = s_1 (s_min / s_1)^((i - 1) / (n - 2)), i = 1 ... n - 1, and the end, for n = steps.

  s = sigma / alpha, s_1 = 1.6 n, s_min = 1 / (2 n); where s_1 would be closer to s_max than s_2 to s_1, all ratios are
  the same. Both ends are the schedule's own where it does not reach so far. For solvers of second order: denoising from
  s_min in one step errs by O(s_min^2), which falls with n as the solver's own error does, and while there are few steps
  they are spent where there is something to see. Above s = 80 there is nothing of data of order 1, even of what the
  pixels of an image have in common. As in `karras`, the last step is `samplers.sample` with denoise_last.

  Args:
    path: the bound schedule.
    steps: n >= 1.
    s_max: > 0; 80 as in Karras et al. (2022).

  Raises:
    ValueError: steps or s_max out of range.

  Source: the constants are of `benchmarks.samplers` and of mixtures like its own.
  """
  checks.integer('sampling_steps', steps)
  checks.positive('s_max', s_max)
  noisiest, cleanest = path.log_snr(jnp.array([1.0, 0.0]))
  first = jnp.maximum(noisiest, -2 * math.log(s_max))
  last = jnp.maximum(jnp.minimum(cleanest, 2 * math.log(2 * steps)), first)
  second = jnp.maximum(-2 * math.log(1.6 * steps), first + (last - first) / max(steps - 1, 1))
  inner = jnp.linspace(jnp.minimum(second, last), last, steps - 1)
  start = jnp.where(first > noisiest, path.time(first), 1.0)  # the inverse is a bisection
  return jnp.concatenate([start[None], path.time(inner), jnp.zeros(1)])
