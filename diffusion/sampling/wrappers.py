"""Samplers made of samplers."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer, Shaped

from diffusion import checks, rng
from diffusion.citations import technique
from diffusion.process.marginals import expand
from diffusion.types import AnyArray, Array, Denoiser, Examples, Keys, Path, PerRow, Sampler


def _check_plain(sampler: Sampler) -> None:
  """Raises ValueError for a multistep sampler, whose memory a change of z would falsify."""
  leaves = jax.tree.leaves(jax.eval_shape(sampler.init, jnp.zeros((1, 1))))
  if len(leaves) != 1:
    raise ValueError(
      f'this needs a sampler whose state is z alone, got one with {len(leaves)} parts: use a single-step sampler'
    )


@technique('Langevin corrector', 'sampling', 'song2021score')
def predictor_corrector(
  path: Path, predictor: Sampler, corrections: int = 1, signal_to_noise: float = 0.16
) -> Sampler:
  """A predictor's step, then Langevin steps at the level it arrived at.

  z <- z + e s(z) + sqrt(2 e) n with e = 2 (r sigma)^2, s the score.

  Args:
    path: the bound schedule and process.
    predictor: a sampler whose state is z alone.
    corrections: Langevin steps after each step, >= 1.
    signal_to_noise: r > 0; 0.16 in the paper.

  Raises:
    ValueError: arguments out of range, or a multistep predictor.

  Source: Song et al. (2021), algorithms 4 and 5, where e = 2 (r |n| / |s|)^2 with norms averaged over the batch, and
  alpha^2 of it when variance preserving. A sample would depend on its batch-mates, and |n| / |s| is sigma in many
  dimensions.
  """
  checks.integer('corrections', corrections)
  _check_plain(predictor)
  checks.positive('signal_to_noise', signal_to_noise)

  def step(denoise: Denoiser, keys: Keys, z: Examples, t: PerRow, s: PerRow) -> Examples:
    split = jax.vmap(lambda key: jax.random.split(key, corrections + 1))(keys)
    z = predictor.step(denoise, split[:, 0], z, t, s)
    for i in range(corrections):
      sigma = expand(path.marginal(s).sigma, z)
      score = -denoise(z, s).eps / sigma
      size = 2 * (signal_to_noise * sigma) ** 2
      z = z + size * score + jnp.sqrt(2 * size) * rng.normal(split[:, i + 1], z.shape[1:])
    return z

  def of_rows(number: Integer[Array, ' b']) -> Sampler:
    return predictor_corrector(path, predictor.of_rows(number), corrections, signal_to_noise)

  return predictor._replace(step=step, of_rows=of_rows if predictor.of_rows else None)


@technique('inpainting by replacement', 'sampling', 'song2021score', 'lugmayr2022repaint')
def inpaint(
  path: Path,
  sampler: Sampler,
  known: Float[AnyArray, ' m *shape'],
  mask: Shaped[AnyArray, '...'],
  repeats: int = 1,
) -> Sampler:
  """After every step the known pixels are replaced by themselves, noised to the level of the step; at last as they are.

  Args:
    path: the bound schedule and process.
    sampler: a sampler whose state is z alone.
    known: x0 where it is known, in network units; one row for all samples, or m rows, of which row i mod m is known of
      sample i.
    mask: 1 where it is known, 0 elsewhere, broadcastable to `known`.
    repeats: times a step is made, >= 1; between two of them z is noised back, so that both halves come to agree.

  Raises:
    ValueError: repeats out of range, a multistep sampler, or whole numbers for `known`, which are no network units.

  Source: Song et al. (2021), appendix I.2; the repeats are Lugmayr et al. (2022), algorithm 1. An approximation of
  conditioning that repeats improve.
  """
  checks.integer('repeats', repeats)
  _check_plain(sampler)

  known, mask = jnp.asarray(known), jnp.asarray(mask)
  if not jnp.issubdtype(known.dtype, jnp.floating):
    raise ValueError(
      f'known must be in network units, got {known.dtype}: pipeline.normalize(known, run.units) brings it there'
    )

  def of_rows(number: Integer[Array, ' b']) -> Sampler:
    own = sampler.of_rows(number) if sampler.of_rows else sampler
    each = mask.ndim == known.ndim and len(mask) > 1
    shown = mask[number % len(mask)] if each else mask
    return inpaint(path, own, known[number % len(known)], shown, repeats)

  # An experiment is checked before its data is read, with z of another shape than what is known.
  def step(denoise: Denoiser, keys: Keys, z: Examples, t: PerRow, s: PerRow) -> Float[Array, '...']:
    now, then = path.marginal(t), path.marginal(s)
    split = jax.vmap(lambda key: jax.random.split(key, 3 * repeats))(keys)
    for i in range(repeats):
      step_key, eps_key, back_key = (split[:, 3 * i + j] for j in range(3))
      moved = sampler.step(denoise, step_key, z, t, s)
      noise = rng.normal(eps_key, z.shape[1:])
      noised = expand(then.alpha, z) * known + expand(then.sigma, z) * noise
      moved = jnp.where(mask, noised, moved)
      if i + 1 < repeats:  # q(z_t | z_s)
        fresh = now.sigma * jnp.sqrt(-jnp.expm1(path.log_snr(t) - path.log_snr(s)))
        back = rng.normal(back_key, z.shape[1:])
        z = expand(now.alpha / then.alpha, z) * moved + expand(fresh, z) * back
    return moved

  return sampler._replace(
    step=step,
    finish=lambda z: jnp.where(mask, known, sampler.finish(z)),
    of_rows=of_rows if len(known) > 1 or sampler.of_rows else None,
  )
