"""Augmentations under jit: (row keys [B], batch) -> batch. Each row is transformed by its own key alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import NULL, Array, Augment, Batch, Key


def chain(*augments: Augment) -> Augment:
  """Applies the augmentations in turn, each with keys of its own. With none, the identity."""

  def apply(keys: Key, batch: Batch) -> Batch:
    for i, augment in enumerate(augments):
      batch = augment(jax.vmap(jax.random.fold_in, (0, None))(keys, i), batch)
    return batch

  return apply


def _images(name: str, transform: Callable[[Key, Array], Array]) -> Augment:
  def apply(keys: Key, batch: Batch) -> Batch:
    if batch.x.ndim != 4:
      raise ValueError(f'augmentation {name} needs images [B, H, W, C], got shape {batch.x.shape}')
    return batch._replace(x=jax.vmap(transform)(keys, batch.x))

  return apply


@technique('random horizontal flips', 'data', 'ho2020denoising')
def flip() -> Augment:
  """Mirrors an image left to right with probability 1/2. Source: Ho et al. (2020), appendix B."""
  return _images('flip', lambda key, x: jnp.where(jax.random.bernoulli(key), x[:, ::-1], x))


@technique('random shifts', 'data', 'karras2022edm')
def shift(pixels: int) -> Augment:
  """Moves an image by whole pixels, uniform on -pixels ... pixels each way; the border repeats outward.

  Args:
    pixels: the largest shift, >= 0.

  Raises:
    ValueError: pixels is not an integer >= 0.

  Source: integer translation of Karras et al. (2022), appendix F.2, without its conditioning; for small objects on a
  plain background, whose border is background.
  """
  checks.integer('pixels', pixels, 0)

  def transform(key: Key, x: Array) -> Array:
    padded = jnp.pad(x, ((pixels, pixels), (pixels, pixels), (0, 0)), mode='edge')
    top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), x.shape)

  return _images('shift', transform)


@technique(
  'label dropout for classifier-free guidance', 'data', 'ho2022classifierfree',
  active=lambda rate: not checks.off(rate),
)  # fmt: skip
def label_dropout(rate: float) -> Augment:
  """Replaces a label by the null label with probability `rate`.

  Args:
    rate: in [0, 1]; 0.1 to 0.2 in the paper.

  Raises:
    ValueError: rate out of its range.

  Source: Ho & Salimans (2022), algorithm 1.
  """
  checks.in_range('label_dropout', rate, 0, 1)

  def apply(keys: Key, batch: Batch) -> Batch:
    if checks.off(rate):
      return batch
    null = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
    return batch._replace(label=jnp.where(null, NULL, batch.label))

  return apply
