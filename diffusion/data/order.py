"""In which order training sees its examples: a function of (seed, batches seen), with no iterator and nothing to save.

Epoch e is a permutation of the examples: the argsort of raw 64-bit draws of Philox (Salmon et al., 2011), a generator
that counts, and whose raw stream NumPy promises to keep, as it does not that of `Generator.permutation`. The epochs
follow one another without an end, and a batch may cross from one into the next. The host makes it, while the devices
work.
"""

import numpy as np

from diffusion import streams

_WORDS = 4  # draws of one Philox counter


def permutations(seed: int, first: int, count: int, examples: int) -> np.ndarray:
  """The orders of the epochs first, ..., first + count - 1: int32 [count, examples], each row all of range(examples).

  Epoch e has the ceil(examples / 4) counters of Philox from e ceil(examples / 4) on, under the key (seed, 'order').

  Args:
    seed: of the run, in [0, 2^32).
    first: epoch, >= 0.
    count: epochs.
    examples: to order, in [1, 2^31).
  """
  counters = -(-examples // _WORDS)
  key = np.array([seed, streams.tag('order')], np.uint64)
  stream = np.random.Philox(key=key).advance(first * counters)
  draws = stream.random_raw(count * counters * _WORDS).reshape(count, -1)[:, :examples]
  return draws.argsort(axis=1, kind='stable').astype(np.int32)


def check_size(examples: int) -> None:
  """Raises ValueError where there is nothing to order, or more than int32 counts."""
  if examples < 1:
    raise ValueError('the training split has no example: give it a larger share of the data')
  if examples >= 2**31:
    raise ValueError(
      f'{examples} training examples exceed 2^31 - 1: hold out more, or set train_limit'
    )


class Order:
  """The endless order of one run's examples; it remembers the epochs that the last batches lay in, for speed alone."""

  def __init__(self, seed: int, rows: np.ndarray):
    """Of the examples `rows` [n], as they are numbered in the data."""
    check_size(len(rows))
    self._seed, self._rows = seed, np.asarray(rows, np.int32)
    self._epochs: dict[int, np.ndarray] = {}

  def batches(self, seen: int, steps: int, batch_size: int) -> np.ndarray:
    """The rows of the next `steps` batches after so many: int32 [steps, batch_size].

    Row r of batch b is position b x batch_size + r of the sequence of epochs.
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
