"""Deterministic splits by hashed content: the same images land in the same split on every machine.

Within each class the distinct examples are ranked by a salted hash of their content, and the ranks are cut in
proportion. Copies of an example hash alike, so they share a split, and adding data moves few examples.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from diffusion import checks
from diffusion.data.records import Records, select

_ROWS = 1000  # that are in memory at a time, where the data stays in its files


class Fractions(NamedTuple):
  """How much of the training data is held out.

  Attributes:
    validation: share for validation, in [0, 1).
    test: share for the final test, in [0, 1); used only where the data has no test set of its own.
    limit: if not 0, keep only so many training examples (of those left after both splits), the first in hash order
      with the classes in balance.
    salt: another salt is another split.
    offset: with a limit, how many of that order to pass over first: offsets 0 and `limit` give disjoint sets.
    subset: with a limit, another name here is another choice of the training examples; validation and test stay.
  """

  validation: float = 0.1
  test: float = 0.1
  limit: int = 0
  salt: str = 'diffusion-split-1'
  offset: int = 0
  subset: str = ''


class Split(NamedTuple):
  """Positions of each part in the source's arrays, ascending, a hash of each part's contents, and `fingerprint`, that
  of the data set as it stands."""

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  hashes: dict[str, str]
  fingerprint: str


def content_hashes(x: np.ndarray | Records, salt: str = '', whole: Any = None) -> np.ndarray:
  """SHA-256 of (salt, dtype, shape, bytes) of each example, as 32-byte strings [n].

  The data is read once, some rows at a time; `whole`, a hash in the making, is given all their bytes as well.
  """
  head = f'{salt}|{x.dtype.str}|{x.shape[1:]}|'.encode()
  found = []
  for start in range(0, len(x), _ROWS):
    rows = np.ascontiguousarray(x[start : start + _ROWS])
    found += [hashlib.sha256(head + row.tobytes()).digest() for row in rows]
    if whole is not None:
      whole.update(rows.data)
  return np.array(found, dtype='S32')


def fingerprint(digests: np.ndarray) -> str:
  """A hash of a set of examples, whatever their order: 16 hexadecimal digits."""
  return hashlib.sha256(np.sort(digests).tobytes()).hexdigest()[:16]


def hashes_and_fingerprint(
  x: np.ndarray | Records, label: np.ndarray, salt: str = ''
) -> tuple[np.ndarray, str]:
  """`content_hashes`, and a hash of the data set as it stands, order and labels included: 16 hexadecimal digits."""
  whole = hashlib.sha256(f'{x.dtype.str}|{x.shape}|{label.dtype.str}'.encode())
  digests = content_hashes(x, salt, whole)
  whole.update(np.ascontiguousarray(label).data)
  return digests, whole.hexdigest()[:16]


def _rank(digests: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """For each example: the relative rank in [0, 1) and the number of its distinct content within its class."""
  unique, inverse = np.unique(digests, return_inverse=True)
  # Copies that carry different labels still share a split: the smallest of their classes speaks for all, wherever
  # they lie in the data.
  owner = np.full(unique.size, np.iinfo(labels.dtype).max)
  np.minimum.at(owner, inverse, labels)
  rank = np.empty(unique.size)
  count = np.empty(unique.size)
  for label in np.unique(owner):
    members = np.flatnonzero(owner == label)  # `unique` is sorted: ascending hash within the class
    rank[members] = np.arange(members.size) / members.size
    count[members] = np.arange(members.size)
  return rank[inverse], count[inverse]


def make(
  x: np.ndarray | Records, labels: np.ndarray, fractions: Fractions, official_test: bool
) -> Split:
  """Cuts a training set into train, validation and (unless the data has an official one) test.

  Args:
    x: the examples as stored [n, ...].
    labels: [n].
    fractions: the shares.
    official_test: the data has a test set of its own, so none is carved.

  Returns:
    The split; `test` is empty when `official_test`.

  Raises:
    ValueError: a share out of range, both together leaving nothing to train on, or a part that would be empty.
  """
  checks.in_range('validation_fraction', fractions.validation, 0, 1, ends='[)')
  checks.in_range('test_fraction', fractions.test, 0, 1, ends='[)')
  checks.integer('train_limit', fractions.limit, 0)
  checks.integer('train_offset', fractions.offset, 0)
  test_share = 0.0 if official_test else fractions.test
  if fractions.validation + test_share >= 1:
    raise ValueError(
      f'validation_fraction {fractions.validation} and test_fraction {test_share} leave nothing to train on'
    )
  # A salted hash may start with zero bytes, which NumPy's S32 strips only at the end: order and equality hold.
  digests, whole = hashes_and_fingerprint(x, labels, fractions.salt)
  rank, _ = _rank(digests, labels)
  in_test = rank < test_share
  in_validation = ~in_test & (rank < test_share + fractions.validation)
  train = np.flatnonzero(~in_test & ~in_validation)
  if fractions.limit:
    end = fractions.offset + fractions.limit
    if end > train.size:
      raise ValueError(
        f'train_limit must be at most {train.size - fractions.offset}, got {fractions.limit}'
      )
    # Counted anew: how many of a class went to the other parts grows with its size.
    order = (
      content_hashes(select(x, train), fractions.subset) if fractions.subset else digests[train]
    )
    _, count = _rank(order, labels[train])
    train = np.sort(train[np.lexsort((order, count))][fractions.offset : end])
  parts = {
    'train': train,
    'validation': np.flatnonzero(in_validation),
    'test': np.flatnonzero(in_test),
  }
  for name, share in (('train', 1.0), ('validation', fractions.validation), ('test', test_share)):
    if share and not parts[name].size:
      raise ValueError(f'the {name} split of {len(x)} examples is empty: give it a larger share')
  hashes = {name: fingerprint(digests[index]) for name, index in parts.items()}
  return Split(**parts, hashes=hashes, fingerprint=whole)
