"""Wrappers of denoisers: each takes denoisers and returns one."""

import jax
import jax.numpy as jnp

from diffusion import checks
from diffusion.citations import technique
from diffusion.process.marginals import expand
from diffusion.types import Denoiser, Examples, Keys, Path, PerRow, Prediction


def _extrapolate(good: Denoiser, bad: Denoiser, scale: float) -> Denoiser:
  """bad + scale (good - bad) for both halves of the prediction."""
  checks.at_least('guidance', scale, 0)
  if not checks.traced(scale) and scale == 1:
    return good

  def denoise(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    g, b = good(z, t, key), bad(z, t, key)
    return Prediction(b.x0 + scale * (g.x0 - b.x0), b.eps + scale * (g.eps - b.eps))

  return denoise


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
  return _extrapolate(conditional, unconditional, scale)


@technique(
  'autoguidance', 'sampling', 'karras2024guiding',
  active=lambda scale: checks.traced(scale) or scale != 1,
)  # fmt: skip
def autoguidance(denoise: Denoiser, weak: Denoiser, scale: float) -> Denoiser:
  """w + scale (d - w): away from a weaker model of the same task, e.g. an earlier or a smaller one.

  Args:
    denoise: d.
    weak: w, with the same conditioning.
    scale: >= 0; 1 is `denoise` alone.

  Raises:
    ValueError: scale is negative.

  Source: Karras et al. (2024), "Guiding a diffusion model with a bad version of itself", equation 3.
  """
  return _extrapolate(denoise, weak, scale)


@technique('guidance interval', 'sampling', 'kynkaanniemi2024applying')
def in_interval(
  guided: Denoiser, plain: Denoiser, path: Path, log_snr_low: float, log_snr_high: float
) -> Denoiser:
  """`guided` where log_snr_low <= log_snr <= log_snr_high, `plain` outside.

  Args:
    guided, plain: e.g. what `classifier_free` returned, and the conditional denoiser alone.
    path: the bound schedule.
    log_snr_low, log_snr_high: nats, in this order.

  Raises:
    ValueError: an interval out of order.

  Source: Kynkaanniemi et al. (2024), equation 5.
  """
  if not log_snr_low < log_snr_high:
    raise ValueError(
      f'an interval of guidance needs log_snr_low < log_snr_high, got {log_snr_low!r}, {log_snr_high!r}'
    )

  def denoise(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    level = path.log_snr(t)
    inside = (level >= log_snr_low) & (level <= log_snr_high)
    # In a sampler all rows share one t, and what is not wanted is not computed.
    one = jax.lax.cond(inside.any(), lambda: guided(z, t, key), lambda: plain(z, t, key))
    other = jax.lax.cond(inside.all(), lambda: one, lambda: plain(z, t, key))
    return jax.tree.map(lambda g, p: jnp.where(expand(inside, z), g, p), one, other)

  return denoise


@technique(
  'score temperature', 'sampling', 'song2021score',
  active=lambda temperature: checks.traced(temperature) or temperature != 1,
)  # fmt: skip
def score_temperature(denoise: Denoiser, path: Path, temperature: float) -> Denoiser:
  """Divides the score, hence eps, by a temperature and recomputes x0 = (z - sigma eps) / alpha.

  The score of p(z)^(1 / temperature). Sampling with it is not sampling from the data's density to that power, since
  noising and raising to a power do not commute; for a Gaussian the variance follows a recursion over the steps.

  Args:
    denoise: the denoiser.
    path: the bound schedule and process.
    temperature: > 0; below 1 sharpens.

  Raises:
    ValueError: temperature is not positive.

  Source: the reverse-time equation of Song et al. (2021) with a scaled score.
  """
  checks.positive('temperature', temperature)

  def tempered(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    alpha, sigma = (expand(c, z) for c in path.marginal(t))
    eps = denoise(z, t, key).eps / temperature
    return Prediction((z - sigma * eps) / alpha, eps)

  return tempered


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

  def clipped(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    alpha, sigma = (expand(c, z) for c in path.marginal(t))
    x0 = jnp.clip(denoise(z, t, key).x0, low, high)
    return Prediction(x0, (z - alpha * x0) / sigma)

  return clipped


@technique('dynamic thresholding of x0', 'sampling', 'saharia2022imagen')
def threshold_x0(
  denoise: Denoiser, path: Path, percentile: float = 99.5, bound: float = 1.0
) -> Denoiser:
  """Clips each predicted x0 to its own [-s, s], scales it by bound / s, and recomputes eps = (z - alpha x0) / sigma.

  s is the percentile of |x0| over the example, but at least `bound`.

  Args:
    denoise: the denoiser.
    path: the bound schedule and process.
    percentile: in (0, 100].
    bound: of the data, > 0.

  Raises:
    ValueError: arguments out of range.

  Source: Saharia et al. (2022), section 2.3 and appendix; the percentile is their 99.5.
  """
  checks.in_range('percentile', percentile, 0, 100, ends='(]')
  checks.positive('bound', bound)

  def thresholded(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    alpha, sigma = (expand(c, z) for c in path.marginal(t))
    x0 = denoise(z, t, key).x0
    size = jnp.percentile(jnp.abs(x0).reshape(len(x0), -1), percentile, axis=1)
    s = expand(jnp.maximum(size, bound), x0)
    x0 = jnp.clip(x0, -s, s) * (bound / s)
    return Prediction(x0, (z - alpha * x0) / sigma)

  return thresholded
