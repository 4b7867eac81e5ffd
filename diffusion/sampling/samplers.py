"""Reverse-time samplers: each is one step from t to s < t, and one compiled loop walks the grid."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from diffusion import checks, rng
from diffusion.citations import technique
from diffusion.process import gaussian
from diffusion.process.marginals import expand
from diffusion.sampling.grids import Grid
from diffusion.types import Array, Denoiser, Examples, Keys, Path, PerRow, Prediction, Sampler


@technique('DDIM sampler', 'sampling', 'song2021ddim')
def ddim(path: Path, eta: float = 0.0, temperature: float = 1.0) -> Sampler:
  """z_s = alpha_s x0 + sqrt(sigma_s^2 - tau^2) eps + tau n, tau^2 = eta^2 Var q(z_s | z_t, x0), n ~ N(0, I).

  Args:
    path: the bound schedule and process.
    eta: in [0, 1]; 0 is deterministic, 1 has the variance of ancestral sampling.
    temperature: of the noise, see `ancestral`.

  Raises:
    ValueError: eta or temperature out of range.

  Source: Song et al. (2021), "Denoising diffusion implicit models", equations 12 and 16.
  """
  checks.in_range('eta', eta, 0, 1)
  checks.at_least('temperature', temperature, 0)

  def step(denoise: Denoiser, keys: Keys, z: Examples, t: PerRow, s: PerRow) -> Examples:
    prediction = denoise(z, t)
    then = path.marginal(s)
    # Var q(z_s | z_t, x0) = fresh sigma_s^2. Not sqrt(sigma_s^2 - tau^2): after a giant step the two round past each
    # other and the root is NaN; fresh never exceeds 1.
    fresh = -jnp.expm1(path.log_snr(t) - path.log_snr(s))
    tau = temperature * eta * then.sigma * jnp.sqrt(fresh)
    drift = expand(then.alpha, z) * prediction.x0
    drift += expand(then.sigma * jnp.sqrt(1 - eta**2 * fresh), z) * prediction.eps
    if checks.off(eta):
      return drift
    return drift + expand(tau, z) * rng.normal(keys, z.shape[1:])

  return Sampler(init=lambda z: z, step=step)


@technique('ancestral sampler', 'sampling', 'ho2020denoising')
def ancestral(path: Path, variance: str = 'posterior', temperature: float = 1.0) -> Sampler:
  """z_s ~ N(E q(z_s | z_t, x0), Var), with the predicted x0 for x0.

  Args:
    path: the bound schedule and process.
    variance: 'posterior' for that of q(z_s | z_t, x0), 'forward' for that of q(z_t | z_s).
    temperature: factor of the standard deviation of all noise added on the way, >= 0; 1 is the model's own. It is not
      the temperature of a density: see `guidance.score_temperature` for the other kind.

  Raises:
    ValueError: another variance, or temperature out of range.

  Source: Ho et al. (2020), algorithm 2 and section 3.2 (beta-tilde and beta).
  """
  if variance not in ('posterior', 'forward'):
    raise ValueError(f"variance must be 'posterior' or 'forward', got {variance!r}")
  checks.at_least('temperature', temperature, 0)

  def step(denoise: Denoiser, keys: Keys, z: Examples, t: PerRow, s: PerRow) -> Examples:
    mean, spread = gaussian.posterior(path, z, denoise(z, t).x0, t, s)
    if (
      variance == 'forward'
    ):  # sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 = sigma_t^2 (1 - SNR_t / SNR_s)
      spread = path.marginal(t).sigma ** 2 * -jnp.expm1(path.log_snr(t) - path.log_snr(s))
    return mean + expand(temperature * jnp.sqrt(spread), z) * rng.normal(keys, z.shape[1:])

  return Sampler(init=lambda z: z, step=step)


def _walker(
  denoise: Denoiser,
  path: Path,
  sampler: Sampler,
  grid: Grid,
  keys: Keys,
  shape: tuple[int, ...],
  z: Examples | None,
) -> tuple[Examples, Callable[[Any, Integer[Array, '']], Any]]:
  """Where sampling starts, and its step number i: (state, i) -> state, with fresh row keys for each."""
  split = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
  if z is None:
    z = gaussian.prior(path, split[:, 0], shape, grid[0])
  ones = jnp.ones(z.shape[0], z.dtype)

  def advance(state: Any, i: Integer[Array, '']) -> Any:
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(split[:, 1], i)
    return sampler.step(denoise, step_keys, state, grid[i] * ones, grid[i + 1] * ones)

  return z, advance


class Trace(NamedTuple):
  """The way of a batch of samples: z at every time of the grid, x0 as first predicted at each but the last."""

  z: Float[Array, ' l b *shape']
  x0: Float[Array, 'l-1 b *shape']


def sample(
  denoise: Denoiser,
  path: Path,
  sampler: Sampler,
  grid: Grid,
  keys: Keys,
  shape: tuple[int, ...],
  *,
  z: Examples | None = None,
  denoise_last: bool = True,
) -> Examples:
  """Walks a grid from noise to data in one compiled loop.

  Args:
    denoise: the denoiser, guided and thresholded as wished.
    path: the bound schedule and process.
    sampler: one step.
    grid: times in [0, 1], decreasing from the start to the end.
    keys: one a sample; sample i is a function of keys[i] alone.
    shape: of one sample.
    z: where to start, at grid[0]; by default the noise of that time.
    denoise_last: return the prediction of x0 made at grid[-2] instead of stepping to grid[-1], whose leftover noise
      nobody wants to see.

  Returns:
    Samples in network units; `evaluations` says how often the denoiser was called.

  Raises:
    ValueError: a grid that does not decrease inside [0, 1]; with denoise_last its last time may repeat the one before.
  """
  check_grid(grid[:-1] if denoise_last and grid.shape[0] > 2 else grid)
  z, advance = _walker(denoise, path, sampler, grid, keys, shape, z)
  steps = grid.shape[0] - 1
  walked = steps - 1 if denoise_last else steps
  state, _ = jax.lax.scan(
    lambda state, i: (advance(state, i), None), sampler.init(z), jnp.arange(walked)
  )
  z = jax.tree.leaves(state)[0]
  if denoise_last:
    z = denoise(z, jnp.full(len(z), grid[steps - 1], z.dtype)).x0
  return sampler.finish(z)


def trace(
  denoise: Denoiser,
  path: Path,
  sampler: Sampler,
  grid: Grid,
  keys: Keys,
  shape: tuple[int, ...],
  *,
  z: Examples | None = None,
) -> Trace:
  """The same steps as `sample` with denoise_last=False, and everything on the way.

  The predictions of x0 cost one more evaluation a step.

  Args:
    denoise: the denoiser, guided and thresholded as wished.
    path: the bound schedule and process.
    sampler: one step.
    grid: times in [0, 1], decreasing.
    keys: one a sample.
    shape: of one sample.
    z: where to start, at grid[0]; by default the noise of that time.

  Raises:
    ValueError: a grid that does not decrease inside [0, 1].
  """
  check_grid(grid)
  z, advance = _walker(denoise, path, sampler, grid, keys, shape, z)

  def one_step(state: Any, i: Integer[Array, '']):
    now = jax.tree.leaves(state)[0]
    seen = denoise(now, jnp.full(len(now), grid[i], now.dtype)).x0
    state = advance(state, i)
    return state, (jax.tree.leaves(state)[0], seen)

  _, (later, x0) = jax.lax.scan(one_step, sampler.init(z), jnp.arange(grid.shape[0] - 1))
  later = later.at[-1].set(sampler.finish(later[-1]))
  return Trace(jnp.concatenate([z[None], later]), x0)


def check_grid(grid: Grid) -> None:
  """Whether the times decrease from at most 1 to at least 0.

  Args:
    grid: times, at least two; a traced one passes.

  Raises:
    ValueError: they do not.
  """
  if checks.traced(grid):
    return
  values = np.asarray(grid, np.float64)
  if values.ndim != 1 or values.size < 2:
    raise ValueError(f'a grid needs at least 2 times in a row, got shape {values.shape}')
  if not (values.max() <= 1 and values.min() >= 0):
    raise ValueError(f'times must be in [0, 1], got {values.min():g} to {values.max():g}')
  wrong = np.flatnonzero(~(np.diff(values) < 0))
  if wrong.size:
    i = wrong[0]
    raise ValueError(f'a grid must decrease, got {values[i]:g} before {values[i + 1]:g} at {i}')


def evaluations(
  sampler: Sampler, steps: int, shape: tuple[int, ...], denoise_last: bool = True
) -> int:
  """How often `sample` calls the denoiser, counted by tracing one step.

  Each call runs as many networks as the denoiser's wrappers do: guidance makes two of one.

  Args:
    sampler: one step.
    steps: of the grid, >= 1.
    shape: of one sample.
    denoise_last: as in `sample`.
  """
  called = 0

  def counted(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    nonlocal called
    called += 1
    return Prediction(z, z)

  z, t = jnp.zeros((1, *shape)), jnp.ones(1)
  keys = rng.row_keys(jax.random.key(0), jnp.arange(1))
  jax.eval_shape(lambda z: sampler.step(counted, keys, sampler.init(z), t, t / 2), z)
  return called * (steps - 1) + 1 if denoise_last else called * steps
