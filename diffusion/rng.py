"""Named random streams: every draw is a pure function of (seed, purpose, batches seen, global row).

Each purpose has a stream of its own, so that turning one factor on or off leaves the draws of all the others as
they were. A row's key depends on the row's place in the global batch and never on the device that holds it, so the
number of devices does not change a run.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from diffusion.types import Array, Examples, Key, Keys, Whole


def check_seed(name: str, seed: Any) -> None:
  """Raises ValueError, with the argument's name, for what is no seed: they are 32 bits wide."""
  if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
    raise ValueError(f'{name} must be an integer from 0 to 2^32 - 1 = {2**32 - 1}, got {seed!r}')


def tag(name: str) -> int:
  """A stable 32-bit number for a name (CRC-32), to be folded into a key."""
  return zlib.crc32(name.encode())


def stream(seed: Whole, purpose: str) -> Key:
  """The key of one purpose: 'init', 'order', 'time', 'noise', 'dropout', 'augmentation', 'curriculum',
  'term', 'sampler', 'validation', 'likelihood'."""
  return jax.random.fold_in(jax.random.key(jnp.asarray(seed, jnp.uint32)), tag(purpose))


def batch_key(seed: Whole, purpose: str, batches_seen: Whole) -> Key:
  """The key of one purpose for one batch: fold_in(stream(seed, purpose), batches seen).

  Args:
    seed: of the run.
    purpose: as `stream` takes it.
    batches_seen: before this batch, >= 0.
  """
  return jax.random.fold_in(stream(seed, purpose), batches_seen)


def row_keys(key: Key, index: Integer[Array, ' b']) -> Keys:
  """One key a row: fold_in(key, global row), the row's number in the whole batch being its `index`."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def signs(keys: Keys, shape: tuple[int, ...]) -> Examples:
  """Independent signs of this shape a row, each -1 or 1 with probability one half, row i from keys[i] alone."""
  return jax.vmap(lambda key: jax.random.rademacher(key, shape, jnp.result_type(float)))(keys)


def normal(keys: Keys, shape: tuple[int, ...]) -> Examples:
  """Standard normal draws of this shape a row, row i from keys[i] alone."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
