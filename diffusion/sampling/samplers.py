"""Reverse-time samplers: each is one step from t to s < t, and one compiled loop walks the grid."""

import jax
import jax.numpy as jnp

from diffusion import checks, streams
from diffusion.citations import technique
from diffusion.process import gaussian
from diffusion.process.marginals import expand
from diffusion.types import Array, Denoiser, Key, Path, Sampler


@technique('DDIM sampler', 'sampling', 'song2021ddim')
def ddim(path: Path, eta: float = 0.0) -> Sampler:
  """z_s = alpha_s x0 + sqrt(sigma_s^2 - tau^2) eps + tau n, tau^2 = eta^2 Var q(z_s | z_t, x0), n ~ N(0, I).

  Args:
    path: the bound schedule and process.
    eta: in [0, 1]; 0 is deterministic, 1 has the variance of ancestral sampling.

  Raises:
    ValueError: eta out of its range.

  Source: Song et al. (2021), "Denoising diffusion implicit models", equations 12 and 16.
  """
  checks.in_range('eta', eta, 0, 1)

  def step(denoise: Denoiser, keys: Key, z: Array, t: Array, s: Array) -> Array:
    prediction = denoise(z, t)
    then = path.marginal(s)
    # Var q(z_s | z_t, x0) = fresh sigma_s^2. Not sqrt(sigma_s^2 - tau^2): after a giant step the two round past each
    # other and the root is NaN; fresh never exceeds 1.
    fresh = -jnp.expm1(path.log_snr(t) - path.log_snr(s))
    tau = eta * then.sigma * jnp.sqrt(fresh)
    drift = expand(then.alpha, z) * prediction.x0
    drift += expand(then.sigma * jnp.sqrt(1 - eta**2 * fresh), z) * prediction.eps
    if checks.off(eta):
      return drift
    return drift + expand(tau, z) * streams.normal(keys, z.shape[1:])

  return Sampler(init=lambda z: z, step=step)


@technique('ancestral sampler', 'sampling', 'ho2020denoising')
def ancestral(path: Path, variance: str = 'posterior') -> Sampler:
  """z_s ~ N(E q(z_s | z_t, x0), Var), with the predicted x0 for x0.

  Args:
    path: the bound schedule and process.
    variance: 'posterior' for that of q(z_s | z_t, x0), 'forward' for that of q(z_t | z_s).

  Raises:
    ValueError: another variance.

  Source: Ho et al. (2020), algorithm 2 and section 3.2 (beta-tilde and beta).
  """
  if variance not in ('posterior', 'forward'):
    raise ValueError(f"variance must be 'posterior' or 'forward', got {variance!r}")

  def step(denoise: Denoiser, keys: Key, z: Array, t: Array, s: Array) -> Array:
    mean, spread = gaussian.posterior(path, z, denoise(z, t).x0, t, s)
    if (
      variance == 'forward'
    ):  # sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 = sigma_t^2 (1 - SNR_t / SNR_s)
      spread = path.marginal(t).sigma ** 2 * -jnp.expm1(path.log_snr(t) - path.log_snr(s))
    return mean + expand(jnp.sqrt(spread), z) * streams.normal(keys, z.shape[1:])

  return Sampler(init=lambda z: z, step=step)


def sample(
  denoise: Denoiser,
  path: Path,
  sampler: Sampler,
  grid: Array,
  keys: Key,
  shape: tuple[int, ...],
  *,
  z: Array | None = None,
  denoise_last: bool = True,
) -> Array:
  """Walks a grid from noise to data in one compiled loop.

  Args:
    denoise: the denoiser, guided and thresholded as wished.
    path: the bound schedule and process.
    sampler: one step.
    grid: times [N + 1], decreasing from the start to the end.
    keys: one key a sample [B]; sample i is a function of keys[i] alone.
    shape: of one sample.
    z: where to start, at grid[0]; drawn from the prior by default.
    denoise_last: return the prediction of x0 made at grid[-2] instead of stepping to grid[-1], whose leftover noise
      nobody wants to see.

  Returns:
    Samples [B, *shape]; N evaluations of the denoiser (each as many networks as its wrappers call).
  """
  split = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
  if z is None:
    z = gaussian.prior(path, split[:, 0], shape)
  steps = grid.shape[0] - 1
  ones = jnp.ones(z.shape[0], z.dtype)

  def walk(state, i: Array):
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(split[:, 1], i)
    return sampler.step(denoise, step_keys, state, grid[i] * ones, grid[i + 1] * ones), None

  walked = steps - 1 if denoise_last else steps
  state, _ = jax.lax.scan(walk, sampler.init(z), jnp.arange(walked))
  z = jax.tree.leaves(state)[0]
  return denoise(z, grid[steps - 1] * ones).x0 if denoise_last else z
