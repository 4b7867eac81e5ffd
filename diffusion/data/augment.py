"""Augmentations under jit: (row keys, batch) -> batch. Each row is transformed by its own key alone.

A geometric or photometric augmentation is a `Transformation`, which can be called as it is, or be put into
`conditioned`, where it acts seldom and the network is told what it did.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from diffusion import checks
from diffusion.citations import technique
from diffusion.conditions import null_label
from diffusion.types import Array, Augment, Batch, Condition, Key, Keys

Image = Float[Array, 'h w c']  # in network units
Leaf = Shaped[Array, ' b *rest']  # of a condition
Did = Float[Array, ' size']  # what a transformation did


class Transformation(NamedTuple):
  """A random change of one image.

  Attributes:
    name: for errors.
    size: how many numbers say what it did.
    transform: (key, x) -> (x, what it did), zeros for nothing.
    turns: it mirrors, or turns by more than 45 degrees, which makes another digit or letter of some.
  """

  name: str
  size: int
  transform: Callable[[Key, Image], tuple[Image, Did]]
  turns: bool = False

  def __call__(self, keys: Keys, batch: Batch) -> Batch:
    """Transforms every row, and tells nobody.

    Raises:
      ValueError: the batch holds no images.
    """
    return batch._replace(x=_rows(self, keys, batch)[0])


def _rows(
  transformation: Transformation, keys: Keys, batch: Batch
) -> tuple[Float[Array, 'b h w c'], Float[Array, 'b size']]:
  if batch.x.ndim != 4:
    raise ValueError(
      f'augmentation {transformation.name} needs images [B, H, W, C], got shape {batch.x.shape}'
    )
  return jax.vmap(transformation.transform)(keys, batch.x)


class Chain(NamedTuple):
  """Augmentations one after another; see `chain`."""

  augments: tuple[Augment, ...]

  def __call__(self, keys: Keys, batch: Batch) -> Batch:
    """Applies them in turn."""
    for i, augment in enumerate(self.augments):
      batch = augment(jax.vmap(jax.random.fold_in, (0, None))(keys, i), batch)
    return batch


def chain(*augments: Augment) -> Augment:
  """Applies the augmentations in turn, each with keys of its own. With none, the identity."""
  return Chain(augments)


def leaky_turns(augment: Augment) -> list[str]:
  """Names of the transformations that turn images without telling the network."""
  parts = augment.augments if isinstance(augment, Chain) else (augment,)
  return [one.name for one in parts if isinstance(one, Transformation) and one.turns]


@technique('non-leaky conditioned augmentation', 'data', 'karras2022edm', 'jun2020distribution')
def conditioned(probability: float, *transformations: Transformation) -> Augment:
  """Each transformation acts with this probability, and what it did is written into `augment_label`, else zeros.

  The network learns each kind of image under its label; samples are drawn at label zero, so transformed images do not
  leak into them.

  Args:
    probability: in (0, 1]; 0.12 in the paper.
    transformations: at least one.

  Raises:
    ValueError: probability out of its range, or something that is not a Transformation.

  Source: Karras et al. (2022), appendix F.2; Jun et al. (2020).
  """
  checks.in_range('probability', probability, 0, 1, ends='(]')
  for one in transformations:
    if not isinstance(one, Transformation):
      raise ValueError(f'conditioned takes transformations of images, such as flip(), got {one!r}')
  if not transformations:
    raise ValueError('conditioned needs at least one transformation')

  def apply(keys: Keys, batch: Batch) -> Batch:
    labels = [batch.augment_label]
    for i, one in enumerate(transformations):
      both = jax.vmap(jax.random.split)(jax.vmap(jax.random.fold_in, (0, None))(keys, i))
      x, did = _rows(one, both[:, 0], batch)
      acts = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(both[:, 1])
      batch = batch._replace(x=jnp.where(acts[:, None, None, None], x, batch.x))
      labels.append(jnp.where(acts[:, None], did, 0))
    return batch._replace(augment_label=jnp.concatenate(labels, axis=1))

  return apply


@technique('random horizontal flips', 'data', 'ho2020denoising')
def flip() -> Transformation:
  """Mirrors an image left to right with probability 1/2; says 1 if it did. Source: Ho et al. (2020), appendix B."""

  def transform(key: Key, x: Image) -> tuple[Image, Did]:
    mirrored = jax.random.bernoulli(key)
    return jnp.where(mirrored, x[:, ::-1], x), mirrored[None].astype(x.dtype)

  return Transformation('flip', 1, transform, turns=True)


@technique('random shifts', 'data', 'karras2022edm')
def shift(pixels: int) -> Transformation:
  """Moves an image by whole pixels, uniform on -pixels ... pixels each way; the border repeats outward.

  Says the shares of the largest shift (down, right).

  Args:
    pixels: the largest shift, >= 0.

  Raises:
    ValueError: pixels is not an integer >= 0.

  Source: integer translation of Karras et al. (2022), appendix F.2; for small objects on a plain background, whose
  border is background.
  """
  checks.integer('pixels', pixels, 0)

  def transform(key: Key, x: Image) -> tuple[Image, Did]:
    padded = jnp.pad(x, ((pixels, pixels), (pixels, pixels), (0, 0)), mode='edge')
    start = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    moved = jax.lax.dynamic_slice(padded, (start[0], start[1], 0), x.shape)
    return moved, (pixels - start).astype(x.dtype) / max(pixels, 1)

  return Transformation('shift', 2, transform)


def _warp(x: Image, matrix: Float[Array, '2 2'], offset: Float[Array, '2']) -> Image:
  """x at matrix (p - center) + center + offset for every pixel p = (row, column): bilinear, the border repeats."""
  height, width, _ = x.shape
  center = jnp.array([(height - 1) / 2, (width - 1) / 2])
  grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing='ij'), -1) - center
  where = jnp.moveaxis(grid @ matrix.T + center + offset, -1, 0)

  def channel(image: Float[Array, 'h w']) -> Float[Array, 'h w']:
    return jax.scipy.ndimage.map_coordinates(image, list(where), order=1, mode='nearest')

  return jax.vmap(channel, -1, -1)(x)


@technique('random rotations', 'data', 'karras2022edm')
def rotate(degrees: float) -> Transformation:
  """Turns an image counterclockwise by an angle uniform on [-degrees, degrees]; says (cos - 1, sin).

  Args:
    degrees: in [0, 180].

  Raises:
    ValueError: degrees out of its range.

  Source: Karras et al. (2022), appendix F.2.
  """
  checks.in_range('degrees', degrees, 0, 180)

  def transform(key: Key, x: Image) -> tuple[Image, Did]:
    angle = jnp.deg2rad(jax.random.uniform(key, minval=-degrees, maxval=degrees))
    c, s = jnp.cos(angle), jnp.sin(angle)
    # Rows grow downward, so this samples from the point turned clockwise.
    return _warp(x, jnp.array([[c, s], [-s, c]]), jnp.zeros(2)), jnp.stack([c - 1, s])

  return Transformation('rotate', 2, transform, turns=degrees > 45)


@technique('random scaling', 'data', 'karras2022edm')
def scale(factor: float) -> Transformation:
  """Enlarges an image about its center by f, log-uniform on [1 / factor, factor]; says log2 f.

  Args:
    factor: >= 1.

  Raises:
    ValueError: factor below 1.

  Source: Karras et al. (2022), appendix F.2.
  """
  checks.at_least('factor', factor, 1)

  def transform(key: Key, x: Image) -> tuple[Image, Did]:
    log_f = math.log2(factor) * jax.random.uniform(key, minval=-1.0, maxval=1.0)
    return _warp(x, jnp.eye(2) * 2.0**-log_f, jnp.zeros(2)), log_f[None]

  return Transformation('scale', 1, transform)


@technique('random shearing', 'data', 'simard2003best')
def shear(slope: float) -> Transformation:
  """Slants an image: columns move by s rows from the center each row, s uniform on [-slope, slope]; says s.

  Args:
    slope: >= 0.

  Raises:
    ValueError: slope is negative.

  Source: Simard et al. (2003), section 3.
  """
  checks.at_least('slope', slope, 0)

  def transform(key: Key, x: Image) -> tuple[Image, Did]:
    s = jax.random.uniform(key, minval=-slope, maxval=slope)
    return _warp(x, jnp.array([[1.0, 0.0], [s, 1.0]]), jnp.zeros(2)), s[None]

  return Transformation('shear', 1, transform)


@technique('random crops', 'data', 'szegedy2015going')
def crop(share: float) -> Transformation:
  """Cuts a random window of side u, uniform on [share, 1] of the image's, and enlarges it to the whole.

  Says (1 - u, and where the window's center is from the image's, in sides: down, right).

  Args:
    share: in (0, 1].

  Raises:
    ValueError: share out of its range.

  Source: Szegedy et al. (2015), section 6, without changes of the aspect ratio.
  """
  checks.in_range('share', share, 0, 1, ends='(]')

  def transform(key: Key, x: Image) -> tuple[Image, Did]:
    size, place = jax.random.split(key)
    u = jax.random.uniform(size, minval=share, maxval=1.0)
    center = jax.random.uniform(place, (2,), minval=-0.5, maxval=0.5) * (1 - u)
    sides = jnp.array(x.shape[:2])
    return _warp(x, jnp.eye(2) * u, center * sides), jnp.concatenate([(1 - u)[None], center])

  return Transformation('crop', 3, transform)


@technique('color jitter', 'data', 'krizhevsky2012imagenet')
def color_jitter(
  brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0
) -> Transformation:
  """b + c (x - mean gray), with saturation s about each pixel's gray; says (b, log2 c, log2 s).

  b is uniform on [-brightness, brightness] in network units, c and s are 2 to a power uniform on the other two ranges.
  Values may leave [-1, 1].

  Args:
    brightness, contrast, saturation: >= 0.

  Raises:
    ValueError: a negative range.

  Source: photometric augmentation in the line of Krizhevsky et al. (2012), section 4.1.
  """
  ranges = (brightness, contrast, saturation)
  for name, given in zip(('brightness', 'contrast', 'saturation'), ranges, strict=True):
    checks.at_least(name, given, 0)

  def transform(key: Key, x: Image) -> tuple[Image, Did]:
    did = jnp.array(ranges) * jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    gray = x.mean(-1, keepdims=True)
    x = gray + 2.0 ** did[2] * (x - gray)
    x = x.mean() + 2.0 ** did[1] * (x - x.mean())
    return x + did[0], did

  return Transformation('color_jitter', 3, transform)


@technique('cutout', 'data', 'devries2017cutout')
def cutout(pixels: int) -> Transformation:
  """Puts a square of zeros (mid-gray) of this side around a pixel drawn uniformly; says where: (1, down, right).

  The square is cut off at the border, so that all pixels are hit equally often.

  Args:
    pixels: side, >= 0.

  Raises:
    ValueError: pixels is not an integer >= 0.

  Source: DeVries & Taylor (2017), section 3.2.
  """
  checks.integer('pixels', pixels, 0)

  def transform(key: Key, x: Image) -> tuple[Image, Did]:
    sides = jnp.array(x.shape[:2])
    center = jax.random.randint(key, (2,), 0, sides)
    row, column = (
      jnp.arange(n) - c + pixels // 2 for n, c in zip(x.shape[:2], center, strict=True)
    )
    inside = ((row >= 0) & (row < pixels))[:, None] & ((column >= 0) & (column < pixels))[None]
    where = (center + 0.5) / sides - 0.5
    return jnp.where(inside[..., None], 0, x), jnp.concatenate([jnp.ones(1), where])

  return Transformation('cutout', 3, transform)


@technique(
  'label dropout for classifier-free guidance', 'data', 'ho2022classifierfree',
  active=lambda rate: not checks.off(rate),
)  # fmt: skip
def label_dropout(rate: float, null: Callable[[Condition], Condition] = null_label) -> Augment:
  """Replaces a label by the null label with probability `rate`, or any condition of a row by its null.

  Args:
    rate: in [0, 1]; 0.1 to 0.2 in the paper.
    null: conditions -> those that say nothing, as the network's `Model.null`; of labels by default.

  Raises:
    ValueError: rate out of its range.

  Source: Ho & Salimans (2022), algorithm 1.
  """
  checks.in_range('label_dropout', rate, 0, 1)

  def apply(keys: Keys, batch: Batch) -> Batch:
    if checks.off(rate):
      return batch
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)

    def leaf(nothing: Leaf, told: Leaf) -> Leaf:
      return jnp.where(dropped.reshape(-1, *[1] * (told.ndim - 1)), nothing, told)

    return batch._replace(condition=jax.tree.map(leaf, null(batch.condition), batch.condition))

  return apply
