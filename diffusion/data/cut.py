"""Where a data set is cut: which of its distinct contents are held out, and what to say where none can be."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

Digests = Shaped[np.ndarray, ' n']  # 32-byte strings
Labels = Integer[np.ndarray, ' n']


class Contents(NamedTuple):
  """The distinct contents of a data set, by ascending hash.

  Attributes:
    of_row: which content each row holds.
    owner: of each content, its class.
    count: of each content, how many of its class come before it.
    rank: the same as a share of the class, in [0, 1).
  """

  of_row: Integer[np.ndarray, ' n']
  owner: Integer[np.ndarray, ' m']
  count: Integer[np.ndarray, ' m']
  rank: Float[np.ndarray, ' m']


def contents(digests: Digests, labels: Labels) -> Contents:
  """The contents of rows by their hashes, counted by class."""
  unique, of_row = np.unique(digests, return_inverse=True)
  # Copies that carry different labels still share a split: the smallest of their classes speaks for all, wherever
  # they lie in the data.
  owner = np.full(unique.size, np.iinfo(labels.dtype).max)
  np.minimum.at(owner, of_row, labels)
  count, rank = np.empty(unique.size, int), np.empty(unique.size)
  for label in np.unique(owner):
    members = np.flatnonzero(owner == label)  # `unique` is sorted: ascending hash within the class
    count[members] = np.arange(members.size)
    rank[members] = np.arange(members.size) / members.size
  return Contents(of_row, owner, count, rank)


def _last(
  among: Integer[np.ndarray, ' k'], classes: Integer[np.ndarray, ' k']
) -> Integer[np.ndarray, ' c']:
  """The last, by hash, of some contents of each class."""
  names, code = np.unique(classes, return_inverse=True)
  last = np.zeros(names.size, int)
  np.maximum.at(last, code, among)
  return last


def held_out(
  of: Contents, labels: Labels, validation: float, test: float
) -> tuple[Bool[np.ndarray, ' m'], Bool[np.ndarray, ' m']]:
  """Whether each content is held out for validation, and whether for the test.

  Each class is cut by itself; its last content is kept for training where nothing else of it would be. Of the classes
  too small to have one for validation, as many give the last they hold out as brings both parts into proportion.

  Args:
    of: contents of all rows.
    labels: of the rows.
    validation, test: the shares.
  """
  held, in_test = of.rank < test + validation, of.rank < test
  untrained = ~np.isin(labels, labels[~held[of.of_row]])
  held[_last(of.of_row[untrained], labels[untrained])] = False
  if validation:
    chosen = np.flatnonzero(held)
    last = _last(chosen, of.owner[chosen])
    bare = np.sort(last[in_test[last]])
    size = int((of.count[bare] + 1).sum())
    in_test[bare[: size - int(size * test / (test + validation))]] = False
  return held & ~in_test, held & in_test


def check(of: Contents, labels: Labels, validation: float, test: float) -> None:
  """Whether there are two examples to validate by, and one for a test, of whichever has a share.

  Args:
    of: contents of all rows.
    labels: of the rows.
    validation, test: the shares.

  Raises:
    ValueError: there are not, with the shares that would do, or what else.
  """

  def rows(validation: float, test: float) -> tuple[int, int]:
    parts = held_out(of, labels, validation, test)
    return tuple(int(part[of.of_row].sum()) for part in parts)

  def suffices(validation: float, test: float) -> bool:
    found = rows(validation, test)
    return (found[0] >= 2 or not validation) and (found[1] > 0 or not test)

  if suffices(validation, test):
    return
  found, count = rows(validation, test), len(labels)
  distinct = '' if of.owner.size == count else f' ({of.owner.size} distinct)'
  if validation and found[0] < 2:
    trouble = f'validation needs at least 2 examples, got {found[0]} of {count}{distinct}'
  else:
    trouble = f'the test split of {count} examples{distinct} is empty'
  shares = [
    (share / 100, other)
    for other in dict.fromkeys((test, 0.0))
    for share in range(math.ceil(100 * validation), 100)
    if share and share / 100 + other < 1
  ]
  enough = next((one for one in shares if suffices(*one)), None)
  if enough is not None:
    also = f' and test_fraction {enough[1]:g}' if enough[1] != test else ''
    raise ValueError(f'{trouble}: hold out more, validation_fraction {enough[0]:g}{also} would do')
  unlabelled = (
    'train without labels (sources.unlabelled), or ' if len(np.unique(labels)) > 2 else ''
  )
  raise ValueError(
    f'{trouble}, as each class keeps one to train on: {unlabelled}give examples of your own to hold out '
    '(sources.with_held_out)'
  )
