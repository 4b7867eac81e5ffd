"""Batches: which examples each has, a function of (seed, batches seen); and their rows in the units of the network.

Epoch e is a permutation of the examples: the argsort of raw 64-bit draws of Philox (Salmon et al., 2011), a generator
that counts, and whose raw stream NumPy promises to keep, as it does not that of `Generator.permutation`. The epochs
follow one another without an end, and a batch may cross from one into the next. The host makes them, while the devices
work; there is no iterator, and nothing to save. The rows are gathered from the data on the device, or read by the host.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32, Integer, Num, UInt8

from diffusion import checks, conditions, rng
from diffusion.citations import technique
from diffusion.data.records import Stored
from diffusion.types import AnyArray, Array, Batch, Condition, Keys, Number

_WORDS = 4  # draws of one Philox counter


class InMemoryData(NamedTuple):
  """A data set held on the device, as stored: x in uint8 levels or floats, and each row's condition.

  `order` lists the training examples' rows as a curriculum wants them, the first `size` of it where that varies (and
  may be traced); None without one.
  """

  x: Num[AnyArray, ' n *shape']
  condition: Condition
  order: Integer[AnyArray, ' m'] | None = None
  size: Integer[AnyArray, ''] | int | None = None


class StoredBatch(NamedTuple):
  """The rows of one batch as the host read them, as stored; those of several batches have axes before b."""

  x: Num[AnyArray, '...']  # [b, *shape]
  condition: Condition
  index: Integer[AnyArray, '...']  # [b]


class NormalizationStatistics(NamedTuple):
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


Normalization = Callable[[Stored, int | None], NormalizationStatistics]


def moments(x: Stored) -> tuple[float, float]:
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


def unit_range(x: Stored, levels: int | None) -> NormalizationStatistics:
  """Levels to [-1, 1]; floats as they are, which is for those of about unit size."""
  return NormalizationStatistics(levels)


@technique('standardized data', 'data', 'lecun1998efficient')
def standardized() -> Normalization:
  """Zero mean and unit deviation over the training split: two numbers for all pixels and channels.

  The plain `clip_x0` of a run's sampling follows the data's new range; other thresholds do not.

  Raises:
    ValueError: (on load) data that does not vary.

  Source: LeCun et al. (1998), section 4.3.
  """

  def normalization(x: Stored, levels: int | None) -> NormalizationStatistics:
    mean, deviation = moments(x)
    if deviation == 0:
      raise ValueError(f'data that does not vary cannot be standardized: all values are {mean:g}')
    if levels is not None:
      mean, deviation = 2 * mean / (levels - 1) - 1, 2 * deviation / (levels - 1)
    return NormalizationStatistics(levels, mean, deviation)

  return normalization


def usual(levels: int | None) -> Normalization:
  """What an experiment that names no normalization has: `unit_range` for images, `standardized` for floats."""
  return standardized() if levels is None else unit_range


def span(x: Stored, units: NormalizationStatistics) -> tuple[float, float]:
  """The lowest and the highest stored value in network units; of levels that stay in their files, all there may be."""
  if not isinstance(x, np.ndarray):
    return units.range
  low, high = np.array([x.min(), x.max()], np.float64)
  if units.levels is not None:
    low, high = (2 * end / (units.levels - 1) - 1 for end in (low, high))
  return (low - units.mean) / units.deviation, (high - units.mean) / units.deviation


def normalize(x: Num[AnyArray, '*any'], units: NormalizationStatistics) -> Float[AnyArray, '*any']:
  """Stored values to network units: (2 x / (levels - 1) - 1 - mean) / deviation, or (x - mean) / deviation."""
  if units.levels is not None:
    x = 2 * x.astype(jnp.result_type(float)) / (units.levels - 1) - 1
  plain = not checks.traced(units.mean) and units[1:] == (0.0, 1.0)
  return x if plain else (x - units.mean) / units.deviation


def sigma_data(x: Stored, units: NormalizationStatistics) -> float:
  """The standard deviation of stored examples in network units, over all examples and dimensions."""
  deviation = moments(x)[1] / units.deviation
  return deviation if units.levels is None else 2 * deviation / (units.levels - 1)


def denormalize(
  x: Float[AnyArray, '*any'], units: NormalizationStatistics
) -> Num[np.ndarray, '*any']:
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


def to_uint8(x: Num[np.ndarray, '*any'], levels: int) -> UInt8[np.ndarray, '*any']:
  """Stored levels as brightness 0 ... 255 for a picture."""
  return np.rint(np.asarray(x, np.float64) * 255 / (levels - 1)).astype(np.uint8)


def restrict(
  index: Integer[AnyArray, ' b'],
  keys: Keys,
  share: Number,
  order: Integer[AnyArray, ' n'],
  examples: Integer[AnyArray, ''] | int | None = None,
) -> Integer[Array, ' b']:
  """The examples of a batch when only the first `share` of the training split in `order` may be drawn.

  A full share leaves the batch as it was; a smaller one draws with replacement from the first examples in order.

  Args:
    index: what the epoch's order would take.
    keys: one a row.
    share: in (0, 1].
    order: the split's examples from the first to the last.
    examples: how many entries of `order` count; all by default.
  """
  examples = order.shape[0] if examples is None else examples
  allowed = jnp.maximum(jnp.round(share * examples).astype(jnp.int32), 1)
  drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, allowed))(keys)
  return jnp.where(share >= 1, index, order[drawn])


def gather(
  data: InMemoryData, index: Integer[AnyArray, ' b'], units: NormalizationStatistics
) -> Batch:
  """Rows of a data set on the device as a Batch in network units.

  Args:
    data: as stored.
    index: which rows.
    units: of the network.
  """
  return in_units(StoredBatch(data.x[index], conditions.take(data.condition, index), index), units)


def in_units(drawn: StoredBatch, units: NormalizationStatistics) -> Batch:
  """Stored rows as a Batch in network units."""
  x = normalize(drawn.x, units)
  return Batch(x, drawn.condition, jnp.zeros((len(x), 0), x.dtype), drawn.index)


def permutations(
  seed: int, first: int, count: int, examples: int
) -> Int32[np.ndarray, '{count} {examples}']:
  """The orders of the epochs first, ..., first + count - 1, each row all of range(examples).

  Epoch e has the ceil(examples / 4) counters of Philox from e ceil(examples / 4) on, under the key (seed, 'order').

  Args:
    seed: of the run, in [0, 2^32).
    first: epoch, >= 0.
    count: epochs.
    examples: to order, in [1, 2^31).
  """
  counters = -(-examples // _WORDS)
  key = np.array([seed, rng.tag('order')], np.uint64)
  stream = np.random.Philox(key=key).advance(first * counters)
  draws = stream.random_raw(count * counters * _WORDS).reshape(count, -1)[:, :examples]
  return draws.argsort(axis=1, kind='stable').astype(np.int32)


def check_size(examples: int) -> None:
  """Whether there is something to order, and no more than int32 counts.

  Raises:
    ValueError: no example, or 2^31 and more.
  """
  if examples < 1:
    raise ValueError('the training split has no example: give it a larger share of the data')
  if examples >= 2**31:
    raise ValueError(
      f'{examples} training examples exceed 2^31 - 1: hold out more, or set train_limit'
    )


class Order:
  """The endless order of one run's examples; it remembers the epochs that the last batches lay in, for speed alone."""

  def __init__(self, seed: int, rows: Integer[np.ndarray, ' n']):
    """Of the examples `rows`, as they are numbered in the data.

    Raises:
      ValueError: no example, or 2^31 and more.
    """
    check_size(len(rows))
    self._seed, self._rows = seed, np.asarray(rows, np.int32)
    self._epochs: dict[int, np.ndarray] = {}

  def batches(
    self, seen: int, steps: int, batch_size: int
  ) -> Int32[np.ndarray, '{steps} {batch_size}']:
    """Which examples the next batches hold: row r of batch b is position b x batch_size + r of the sequence of epochs.

    Args:
      seen: batches before these, >= 0.
      steps: how many batches, >= 1.
      batch_size: rows of the global batch, >= 1.
    """
    examples = len(self._rows)
    position = seen * batch_size + np.arange(steps * batch_size)  # int64
    epoch, place = np.divmod(position, examples)
    first, last = int(epoch[0]), int(epoch[-1])
    held = {e: order for e, order in self._epochs.items() if first <= e <= last}
    new = [e for e in range(first, last + 1) if e not in held]
    if new:
      # Those between them are made again: a batch must not depend on what was asked before.
      found = permutations(self._seed, new[0], new[-1] - new[0] + 1, examples)
      held |= dict(zip(range(new[0], new[-1] + 1), found, strict=True))
    self._epochs = held
    found = np.stack([held[e] for e in range(first, last + 1)])[epoch - first, place]
    return self._rows[found].reshape(steps, batch_size)
