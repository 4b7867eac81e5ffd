"""Named random streams: every draw is a pure function of (seed, purpose, batches seen, global row).

Each purpose has a stream of its own, so that turning one factor on or off leaves the draws of all the others as
they were. A row's key depends on the row's place in the global batch and never on the device that holds it, so the
number of devices does not change a run.
"""

import zlib

import jax
import jax.numpy as jnp

from diffusion.types import Array, Key


def tag(name: str) -> int:
  """A stable 32-bit number for a name (CRC-32), to be folded into a key."""
  return zlib.crc32(name.encode())


def stream(seed: Array | int, purpose: str) -> Key:
  """The key of one purpose: 'init', 'order', 'time', 'noise', 'dropout', 'augmentation', 'curriculum',
  'term', 'sampler', 'validation', 'likelihood'."""
  return jax.random.fold_in(jax.random.key(jnp.asarray(seed, jnp.uint32)), tag(purpose))


def batch_key(seed: Array | int, purpose: str, batches_seen: Array | int) -> Key:
  """The key of one purpose for the batch at so many batches seen."""
  return jax.random.fold_in(stream(seed, purpose), batches_seen)


def row_keys(key: Key, index: Array) -> Key:
  """One key a row: fold_in(key, global row). `index` is an integer array [B]."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def signs(keys: Key, shape: tuple[int, ...]) -> Array:
  """Independent signs [B, *shape], each -1 or 1 with probability one half, row i from keys[i] alone."""
  return jax.vmap(lambda key: jax.random.rademacher(key, shape, jnp.result_type(float)))(keys)


def normal(keys: Key, shape: tuple[int, ...]) -> Array:
  """Standard normal draws [B, *shape], row i from keys[i] alone."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
