"""Curricula of the data: easy examples first, or coarse images first, ending with all of the data as it is.

A curriculum chooses which examples a batch may hold and how they look, as a function of progress alone, so that a
resumed run goes on with the same batches. A pace (progress -> share) ends at 1, where nothing is held back.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, Num

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Array, Batch, Curriculum, Number

Pace = Callable[[Number], Number]
Stored = Num[np.ndarray, ' n *shape']
Labels = Integer[np.ndarray, ' n']
Scores = Num[np.ndarray, ' n']


def linear(start: float = 0.2, until: float = 0.5) -> Pace:
  """start + (1 - start) progress / until, and 1 from `until` on.

  Args:
    start: share at the beginning, in (0, 1].
    until: progress in (0, 1] at which nothing is held back.

  Raises:
    ValueError: an argument out of its range.
  """
  checks.in_range('start', start, 0, 1, ends='(]')
  checks.in_range('until', until, 0, 1, ends='(]')
  return lambda progress: jnp.minimum(start + (1 - start) * progress / until, 1.0)


def _as_it_is(batch: Batch, progress: Number) -> Batch:
  return batch


@technique('curriculum by class', 'data', 'bengio2009curriculum')
def by_class(order: Sequence[int], pace: Pace | None = None) -> Curriculum:
  """Classes one after another: the first share of the examples, when they are sorted by their class's place in `order`.

  Args:
    order: every class once; those without a training example may be among them.
    pace: progress to share; linear from 0.2 to 1 at half of training by default.

  Raises:
    ValueError: (on load) an order that does not name every class of the training examples, or one twice.

  Source: Bengio et al. (2009), section 3.
  """
  place = {label: i for i, label in enumerate(order)}

  def rank(x: Stored, label: Labels) -> Scores:
    if len(place) != len(order) or not set(place).issuperset(np.unique(label).tolist()):
      raise ValueError(
        f'order must name every class once, got {tuple(order)} for {np.unique(label).tolist()}'
      )
    return np.array([place[one] for one in label.tolist()])

  return Curriculum(rank, pace or linear(), _as_it_is)


def distance_to_class_mean(x: Stored, label: Labels) -> Scores:
  """The L2 distance of each example to the mean of its class, as stored: a difficulty that needs no model."""
  flat = x.reshape(len(x), -1).astype(np.float64)
  distance = np.empty(len(x))
  for one in np.unique(label):
    chosen = label == one
    distance[chosen] = np.linalg.norm(flat[chosen] - flat[chosen].mean(0), axis=1)
  return distance


@technique('curriculum by difficulty', 'data', 'bengio2009curriculum')
def by_difficulty(
  score: Callable[[Stored, Labels], Scores] = distance_to_class_mean,
  pace: Pace | None = None,
) -> Curriculum:
  """Examples of a low score first.

  Args:
    score: (x as stored, label) -> difficulty.
    pace: progress to share; linear from 0.2 to 1 at half of training by default.

  Source: Bengio et al. (2009), section 3.
  """
  return Curriculum(score, pace or linear(), _as_it_is)


@technique('curriculum by resolution', 'data', 'karras2018progressive')
def by_resolution(halvings: int = 2, until: float = 0.5) -> Curriculum:
  """Images averaged over blocks of 2^k pixels, k from `halvings` down to 0 in equal stages until progress `until`.

  Args:
    halvings: k at the start, >= 1; the images' sides must be divisible by 2^halvings.
    until: progress in (0, 1] from which images are whole.

  Raises:
    ValueError: an argument out of its range, or (when applied) images that cannot be halved so often.

  Source: the growing resolution of Karras et al. (2018), without growing the network.
  """
  checks.integer('halvings', halvings)
  checks.in_range('until', until, 0, 1, ends='(]')

  def blurred(k: int, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    size = 2**k
    b, height, width, c = x.shape
    means = x.reshape(b, height // size, size, width // size, size, c).mean((2, 4))
    return means.repeat(size, axis=1).repeat(size, axis=2)

  def transform(batch: Batch, progress: Number) -> Batch:
    shape, size = batch.x.shape, 2**halvings
    if len(shape) != 4 or shape[1] % size or shape[2] % size:
      raise ValueError(
        f'a curriculum of {halvings} halvings needs images with sides divisible by {size}, got {shape[1:]}'
      )
    k = jnp.ceil(halvings * (1 - progress / until)).astype(jnp.int32).clip(0, halvings)
    stages = [lambda x: x, *(lambda x, k=k: blurred(k, x) for k in range(1, halvings + 1))]
    return batch._replace(x=jax.lax.switch(k, stages, batch.x))

  return Curriculum(None, jnp.ones_like, transform)
