"""Batches as a pure function of integers: no iterator, no iterator state, nothing to save.

The order of an epoch is a pseudo-random permutation that is *computed* for the few rows a batch needs (a Feistel
network with cycle walking), so no permutation is stored, shuffled or sent, and a batch may cross from one epoch into
the next.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import checks, streams
from diffusion.citations import technique
from diffusion.data.records import Records
from diffusion.types import Array, Batch, Key, Rows

_ROUNDS = 8
_EPOCHS = 2**14  # whose secrets a host holds at a time: half a megabyte


class Resident(NamedTuple):
  """A split held on the device, as stored: x[n, ...] (uint8 levels or floats) and label int32 [n].

  `order` int32 [n] lists its examples as a curriculum wants them; None without one. Where several runs share the
  arrays, `table` int32 [m] holds this run's rows of them, the first `size` of it, which may be traced.
  """

  x: Array
  label: Array
  order: Array | None = None
  table: Array | None = None
  size: Array | int | None = None

  @property
  def examples(self) -> Array | int:
    """How many examples there are to draw from."""
    return self.x.shape[0] if self.size is None else self.size


class Drawn(NamedTuple):
  """The rows of one batch as the host read them, as stored: x [B, ...], label int32 [B], index int32 [B]."""

  x: Array
  label: Array
  index: Array


def _mix(x: Array) -> Array:
  """A 32-bit integer hash with full avalanche (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _secrets(key: Key) -> Array:
  return jax.random.bits(key, (_ROUNDS,), jnp.uint32)


def _encrypt(value: Array, secrets: Array, size: Array | int) -> Array:
  """A Feistel network on the fewest bits that hold `size`; of JAX's arrays and of NumPy's. secrets: [..., rounds]."""
  # At least four: on three bits, eight rounds leave some orders 10 % too rare.
  if checks.traced(size):
    one, bits = jnp.uint32(1), jnp.maximum(jnp.uint32(4), 32 - jax.lax.clz(size - 1))
  else:
    one, bits = 1, max(4, (size - 1).bit_length())
  low_bits = bits // 2
  low_mask, high_mask = (one << low_bits) - 1, (one << (bits - low_bits)) - 1
  low, high = value & low_mask, value >> low_bits
  for i in range(0, _ROUNDS, 2):  # each half in turn is masked by a hash of the other: invertible
    high = high ^ (_mix(low ^ secrets[..., i]) & high_mask)
    low = low ^ (_mix(high ^ secrets[..., i + 1]) & low_mask)
  return (high << low_bits) | low


def permute(key: Key, position: Array, size: int) -> Array:
  """The image of `position` under a pseudo-random permutation of range(size) that `key` names.

  Args:
    key: one key; another key is another permutation.
    position: an integer scalar in [0, size).
    size: number of elements, 1 to 2^31 - 1; may be traced, with the same result.

  Returns:
    An int32 scalar in [0, size).

  Source: Luby & Rackoff (1988) for the rounds; Black & Rogaway (2002), section 3, for walking the cycle until the
  value falls back into range (fewer than two steps on average, since the domain is below 2 size where size > 8).
  """
  secrets = _secrets(key)
  size = size.astype(jnp.uint32) if checks.traced(size) else size
  start = _encrypt(position.astype(jnp.uint32), secrets, size)
  return jax.lax.while_loop(
    lambda v: v >= size, lambda v: _encrypt(v, secrets, size), start
  ).astype(jnp.int32)


def check_size(examples: int, batch_size: int) -> None:
  """Raises ValueError where the arithmetic of `indices` would leave int32."""
  if examples < 1:
    raise ValueError('the training split has no example: give it a larger share of the data')
  if examples * batch_size + batch_size >= 2**31:
    raise ValueError(
      f'{examples} resident examples in batches of {batch_size} exceed 2^31 in a product: use a smaller batch, or '
      'sources.streamed'
    )


def indices(seed: Array, salt: Array, cursor: Array, rows: Rows, examples: Array | int) -> Array:
  """The examples of batch `cursor`, rows `rows`: int32 [B] in [0, examples).

  Row r of batch c is position c * total + r of the endless sequence of epochs; within an epoch every example comes
  exactly once, in an order of its own.

  Args:
    seed: the run's seed.
    salt: number of rollbacks; another salt is another order.
    cursor: batches drawn so far.
    rows: this device's rows of the global batch.
    examples: size of the split, which may be traced; examples * (total + 1) < 2^31.
  """
  # c * total would overflow on long runs: split c into whole sweeps of `examples` batches and the rest.
  part = (cursor % examples) * rows.total + rows.index
  epoch = (cursor // examples) * rows.total + part // examples
  key = streams.batch_key(seed, 'order', salt, 0)
  return jax.vmap(lambda e, p: permute(jax.random.fold_in(key, e), p, examples))(
    epoch, part % examples
  )


class Epochs(NamedTuple):
  """The order of the epochs first, first + 1, ..., for a host without JAX: their secrets, uint32 [E, rounds]."""

  first: int
  secrets: np.ndarray


def epochs_from(
  seed: int, salt: int, cursor: int, batches: int, total: int, examples: int
) -> Epochs:
  """The epochs that `batches` batches of `total` rows from `cursor` on lie in, and many after them."""
  first = cursor * total // examples
  count = max(_EPOCHS, batches * total // examples + 2)
  epochs = (first + np.arange(count)).astype(np.uint32)
  return Epochs(first, np.asarray(_secrets_of(np.uint32(seed), np.int32(salt), epochs)))


@jax.jit
def _secrets_of(seed: Array, salt: Array, epochs: Array) -> Array:
  key = streams.batch_key(seed, 'order', salt, 0)
  return jax.vmap(lambda e: _secrets(jax.random.fold_in(key, e)))(epochs)


def batches_in(epochs: Epochs, cursor: int, total: int, examples: int) -> int:
  """How many whole batches from `cursor` on the epochs hold."""
  return (epochs.first + len(epochs.secrets)) * examples // total - cursor


def host_indices(
  epochs: Epochs, cursor: int, rows: np.ndarray, total: int, examples: int
) -> np.ndarray:
  """What `indices` gives for these rows [B] of batch `cursor`, equal to the bit, by NumPy alone and in 64 bits."""
  epoch, place = np.divmod(cursor * total + rows.astype(np.int64), examples)
  secrets = epochs.secrets[epoch - epochs.first]
  found = _encrypt(place.astype(np.uint32), secrets, examples)
  while (outside := found >= examples).any():
    found[outside] = _encrypt(found[outside], secrets[outside], examples)
  return found.astype(np.int32)


class Units(NamedTuple):
  """How stored values become network units: x' = (x - mean) / deviation, levels first brought to [-1, 1].

  Attributes:
    levels: a stored value is one of 0 ... levels - 1; None for floats.
    mean, deviation: in the units of [-1, 1], or of the floats.
  """

  levels: int | None = None
  mean: float = 0.0
  deviation: float = 1.0

  @property
  def range(self) -> tuple[float, float]:
    """The lowest and the highest level in network units."""
    return (-1 - self.mean) / self.deviation, (1 - self.mean) / self.deviation


Normalization = Callable[[np.ndarray | Records, int | None], Units]


def moments(x: np.ndarray | Records) -> tuple[float, float]:
  """The mean and the standard deviation of stored examples, over all examples and dimensions.

  Levels are summed as integers, so that data which is read in parts has the same two numbers to the bit.
  """
  if x.dtype != np.uint8:
    return float(np.mean(x, dtype=np.float64)), float(np.std(x, dtype=np.float64))
  count, total, squares = math.prod(x.shape), 0, 0
  for start in range(0, len(x), 1000):
    part = x[start : start + 1000].astype(np.uint32)
    total += int(part.sum(dtype=np.uint64))
    squares += int(np.square(part).sum(dtype=np.uint64))
  return total / count, math.sqrt(count * squares - total**2) / count


def unit_range(x: np.ndarray | Records, levels: int | None) -> Units:
  """Levels to [-1, 1]; floats as they are."""
  return Units(levels)


@technique('standardized data', 'data', 'lecun1998efficient')
def standardized() -> Normalization:
  """Zero mean and unit deviation over the training split: two numbers for all pixels and channels.

  The plain `clip_x0` of a run's sampling follows the data's new range; other thresholds do not.

  Raises:
    ValueError: (on load) data that does not vary.

  Source: LeCun et al. (1998), section 4.3.
  """

  def normalization(x: np.ndarray | Records, levels: int | None) -> Units:
    mean, deviation = moments(x)
    if deviation == 0:
      raise ValueError(f'data that does not vary cannot be standardized: all values are {mean:g}')
    if levels is not None:
      mean, deviation = 2 * mean / (levels - 1) - 1, 2 * deviation / (levels - 1)
    return Units(levels, mean, deviation)

  return normalization


def normalize(x: Array, units: Units) -> Array:
  """Stored values to network units: (2 x / (levels - 1) - 1 - mean) / deviation, or (x - mean) / deviation."""
  if units.levels is not None:
    x = 2 * x.astype(jnp.result_type(float)) / (units.levels - 1) - 1
  plain = not checks.traced(units.mean) and units[1:] == (0.0, 1.0)
  return x if plain else (x - units.mean) / units.deviation


def sigma_data(x: np.ndarray | Records, units: Units) -> float:
  """The standard deviation of stored examples in network units, over all examples and dimensions."""
  deviation = moments(x)[1] / units.deviation
  return deviation if units.levels is None else 2 * deviation / (units.levels - 1)


def denormalize(x: np.ndarray, units: Units) -> np.ndarray:
  """The nearest stored value of each number; the exact inverse of `normalize` on levels.

  Values outside the levels' range, which a sampler may produce, become the nearest end: a picture has no other levels.

  Raises:
    ValueError: a value that is not finite.
  """
  x = np.asarray(x)
  if not np.isfinite(x).all():
    raise ValueError(f'{(~np.isfinite(x)).sum()} of {x.size} values are not finite: refused')
  if units[1:] != (0.0, 1.0):
    x = x * units.deviation + units.mean
  if units.levels is None:
    return x
  return np.clip(np.rint((x + 1) / 2 * (units.levels - 1)), 0, units.levels - 1).astype(np.uint8)


def to_uint8(x: np.ndarray, levels: int) -> np.ndarray:
  """Stored levels as brightness 0 ... 255 for a picture."""
  return np.rint(np.asarray(x, np.float64) * 255 / (levels - 1)).astype(np.uint8)


def restrict(
  index: Array, keys: Key, share: Array, order: Array, examples: Array | int | None = None
) -> Array:
  """The examples of a batch when only the first `share` of the training split in `order` may be drawn.

  A full share leaves the batch as it was; a smaller one draws with replacement from the first examples in order.

  Args:
    index: what the epoch's order would take: int32 [B].
    keys: one a row [B].
    share: in (0, 1].
    order: the split's examples from the first to the last [n].
    examples: how many entries of `order` count; all by default.
  """
  examples = order.shape[0] if examples is None else examples
  allowed = jnp.maximum(jnp.round(share * examples).astype(jnp.int32), 1)
  drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, allowed))(keys)
  return jnp.where(share >= 1, index, order[drawn])


def gather(data: Resident, index: Array, units: Units) -> Batch:
  """The rows `index` of a resident split as a Batch in network units."""
  row = index if data.table is None else data.table[index]
  return in_units(Drawn(data.x[row], data.label[row], index), units)


def in_units(drawn: Drawn, units: Units) -> Batch:
  """Stored rows as a Batch in network units."""
  x = normalize(drawn.x, units)
  return Batch(x, drawn.label, jnp.zeros((len(drawn.label), 0), x.dtype), drawn.index)
