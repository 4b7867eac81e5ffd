"""Batches as a pure function of integers: no iterator, no iterator state, nothing to save.

The order of an epoch is a pseudo-random permutation that is *computed* for the few rows a batch needs (a Feistel
network with cycle walking), so no permutation is stored, shuffled or sent, and a batch may cross from one epoch into
the next.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import streams
from diffusion.types import Array, Batch, Key, Rows

_ROUNDS = 8


class Resident(NamedTuple):
  """A split held on the device, as stored: x[n, ...] (uint8 levels or floats) and label int32 [n]."""

  x: Array
  label: Array


def _mix(x: Array) -> Array:
  """A 32-bit integer hash with full avalanche (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def permute(key: Key, position: Array, size: int) -> Array:
  """The image of `position` under a pseudo-random permutation of range(size) that `key` names.

  Args:
    key: one key; another key is another permutation.
    position: an integer scalar in [0, size).
    size: number of elements, 1 to 2^31 - 1.

  Returns:
    An int32 scalar in [0, size).

  Source: Luby & Rackoff (1988) for the rounds; Black & Rogaway (2002), section 3, for walking the cycle until the
  value falls back into range (fewer than two steps on average, since the domain is below 2 size where size > 8).
  """
  # At least four: on three bits, eight rounds leave some orders 10 % too rare.
  bits = max(4, (size - 1).bit_length())
  low_bits = bits // 2
  low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
  secrets = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

  def encrypt(value: Array) -> Array:
    low, high = value & low_mask, value >> low_bits
    for i in range(0, _ROUNDS, 2):  # each half in turn is masked by a hash of the other: invertible
      high ^= _mix(low ^ secrets[i]) & high_mask
      low ^= _mix(high ^ secrets[i + 1]) & low_mask
    return (high << low_bits) | low

  start = encrypt(position.astype(jnp.uint32))
  return jax.lax.while_loop(lambda v: v >= size, encrypt, start).astype(jnp.int32)


def check_size(examples: int, batch_size: int) -> None:
  """Raises ValueError where the arithmetic of `indices` would leave int32."""
  if examples < 1:
    raise ValueError('the training split has no example: give it a larger share of the data')
  if examples * batch_size + batch_size >= 2**31:
    raise ValueError(
      f'{examples} resident examples in batches of {batch_size} exceed 2^31 in a product: use a smaller batch'
    )


def indices(seed: Array, salt: Array, cursor: Array, rows: Rows, examples: int) -> Array:
  """The examples of batch `cursor`, rows `rows`: int32 [B] in [0, examples).

  Row r of batch c is position c * total + r of the endless sequence of epochs; within an epoch every example comes
  exactly once, in an order of its own.

  Args:
    seed: the run's seed.
    salt: number of rollbacks; another salt is another order.
    cursor: batches drawn so far.
    rows: this device's rows of the global batch.
    examples: size of the split; examples * (total + 1) < 2^31.
  """
  # c * total would overflow on long runs: split c into whole sweeps of `examples` batches and the rest.
  part = (cursor % examples) * rows.total + rows.index
  epoch = (cursor // examples) * rows.total + part // examples
  key = streams.batch_key(seed, 'order', salt, 0)
  return jax.vmap(lambda e, p: permute(jax.random.fold_in(key, e), p, examples))(
    epoch, part % examples
  )


def normalize(x: Array, levels: int | None) -> Array:
  """Stored levels 0 ... levels - 1 to [-1, 1]: 2 x / (levels - 1) - 1. Floats (levels None) pass unchanged."""
  return x if levels is None else 2 * x.astype(jnp.result_type(float)) / (levels - 1) - 1


def sigma_data(x: np.ndarray, levels: int | None) -> float:
  """The standard deviation of stored examples in network units, over all examples and dimensions."""
  deviation = float(np.asarray(x).std(dtype=np.float64))
  return deviation if levels is None else 2 * deviation / (levels - 1)


def denormalize(x: np.ndarray, levels: int | None) -> np.ndarray:
  """The nearest stored level of each value; the exact inverse of `normalize` on levels.

  Values outside [-1, 1], which a sampler may produce, become the nearest end: a picture has no other levels.

  Raises:
    ValueError: a value that is not finite.
  """
  x = np.asarray(x)
  if not np.isfinite(x).all():
    raise ValueError(f'{(~np.isfinite(x)).sum()} of {x.size} values are not finite: refused')
  if levels is None:
    return x
  return np.clip(np.rint((x + 1) / 2 * (levels - 1)), 0, levels - 1).astype(np.uint8)


def to_uint8(x: np.ndarray, levels: int) -> np.ndarray:
  """Stored levels as brightness 0 ... 255 for a picture."""
  return np.rint(np.asarray(x, np.float64) * 255 / (levels - 1)).astype(np.uint8)


def gather(data: Resident, index: Array, levels: int | None) -> Batch:
  """The rows `index` of a resident split as a Batch in network units."""
  x = normalize(data.x[index], levels)
  return Batch(x, data.label[index], jnp.zeros((index.shape[0], 0), x.dtype), index)
