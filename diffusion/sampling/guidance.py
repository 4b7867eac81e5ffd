"""Wrappers of denoisers: each takes denoisers and returns one."""

import jax.numpy as jnp

from diffusion import checks
from diffusion.citations import technique
from diffusion.process.marginals import expand
from diffusion.types import Array, Denoiser, Key, Path, Prediction


@technique(
  'classifier-free guidance', 'sampling', 'ho2022classifierfree',
  active=lambda scale: checks.traced(scale) or scale != 1,
)  # fmt: skip
def classifier_free(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
  """u + scale (c - u) for both halves of the prediction; scale 1 is the conditional denoiser alone.

  Args:
    conditional: c, given the label.
    unconditional: u, given the null label.
    scale: >= 0; 0 is unconditional, above 1 guides.

  Raises:
    ValueError: scale is negative.

  Source: Ho & Salimans (2022), equation 6, with scale = 1 + w.
  """
  checks.at_least('guidance', scale, 0)
  if not checks.traced(scale) and scale == 1:
    return conditional

  def denoise(z: Array, t: Array, key: Key | None = None) -> Prediction:
    c, u = conditional(z, t, key), unconditional(z, t, key)
    return Prediction(u.x0 + scale * (c.x0 - u.x0), u.eps + scale * (c.eps - u.eps))

  return denoise


@technique('static thresholding of x0', 'sampling', 'ho2020denoising')
def clip_x0(denoise: Denoiser, path: Path, low: float = -1.0, high: float = 1.0) -> Denoiser:
  """Clips the predicted x0 to the data's range and recomputes eps = (z - alpha x0) / sigma.

  Args:
    denoise: the denoiser.
    path: the bound schedule and process.
    low, high: the data's range, low < high.

  Raises:
    ValueError: low >= high.

  Source: Ho et al. (2020), in their released sampler.
  """
  if not low < high:
    raise ValueError(f'clip_x0 needs low < high, got {low!r}, {high!r}')

  def clipped(z: Array, t: Array, key: Key | None = None) -> Prediction:
    alpha, sigma = (expand(c, z) for c in path.marginal(t))
    x0 = jnp.clip(denoise(z, t, key).x0, low, high)
    return Prediction(x0, (z - alpha * x0) / sigma)

  return clipped
