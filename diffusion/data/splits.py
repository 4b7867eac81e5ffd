"""What each example is for: deterministic splits by hashed content, and a data set that was split.

The same images land in the same split on every machine: within each class the distinct examples are ranked by a salted
hash of their content, and the ranks are cut in proportion, but that each class keeps its last one for training. Copies
of an example hash alike, so they share a split, and adding data moves few examples.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Integer, Num

from diffusion import checks, conditions
from diffusion.data import cut, pictures, pipeline, records, sources
from diffusion.data.cut import Digests, Labels
from diffusion.data.pipeline import check_size
from diffusion.data.records import DiskRecords, Stored, select
from diffusion.types import Condition, Curriculum

_ROWS = 1000  # that are in memory at a time, where the data stays in its files
_NARROW = (
  0.01  # of the network's unit: a column that varies by less drowns in what its samples err by
)


class Fractions(NamedTuple):
  """How much of the training data is held out.

  Attributes:
    validation: share for validation, in [0, 1); used only where the data does not hold out examples of its own.
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

  train: Integer[np.ndarray, ' n_train']
  validation: Integer[np.ndarray, ' n_validation']
  test: Integer[np.ndarray, ' n_test']
  hashes: dict[str, str]
  fingerprint: str


def content_hashes(x: Stored, salt: str = '', whole: Any = None) -> Digests:
  """SHA-256 of (salt, dtype, shape, bytes) of each example, as 32-byte strings.

  The data is read once, some rows at a time.

  Args:
    x: the examples as stored.
    salt: another salt, other hashes.
    whole: a hash in the making, which is given the bytes of all examples as well.
  """
  head = f'{salt}|{x.dtype.str}|{x.shape[1:]}|'.encode()
  found = []
  for start in range(0, len(x), _ROWS):
    rows = np.ascontiguousarray(x[start : start + _ROWS])
    found += [hashlib.sha256(head + row.tobytes()).digest() for row in rows]
    if whole is not None:
      whole.update(rows.data)
  return np.array(found, dtype='S32')


def fingerprint(digests: Digests) -> str:
  """A hash of a set of examples, whatever their order: 16 hexadecimal digits."""
  return hashlib.sha256(np.sort(digests).tobytes()).hexdigest()[:16]


def hashes_and_fingerprint(x: Stored, label: Labels, salt: str = '') -> tuple[Digests, str]:
  """`content_hashes`, and a hash of the data set as it stands, order and labels included: 16 hexadecimal digits.

  Args:
    x: the examples as stored.
    label: theirs.
    salt: of the examples' hashes alone.
  """
  whole = hashlib.sha256(f'{x.dtype.str}|{x.shape}|{label.dtype.str}'.encode())
  digests = content_hashes(x, salt, whole)
  whole.update(np.ascontiguousarray(label).data)
  return digests, whole.hexdigest()[:16]


def make(
  x: Stored,
  labels: Labels,
  fractions: Fractions,
  official_test: bool,
  validation: Integer[np.ndarray, ' v'] | None = None,
) -> Split:
  """Cuts a training set into train, validation and (unless the data has an official one) test.

  At least one example of every class is kept for training, the last by hash.

  Args:
    x: the examples as stored.
    labels: theirs.
    fractions: the shares.
    official_test: the data has a test set of its own, so none is carved.
    validation: rows that the data itself holds out for validation, so none are carved; None where it does not.

  Returns:
    The split; `test` is empty when `official_test`.

  Raises:
    ValueError: a share out of range, both together leaving nothing to train on, or parts that would be too small.
  """
  _check_shares(fractions)
  test_share = 0.0 if official_test else fractions.test
  validation_share = fractions.validation if validation is None else 0.0
  if validation_share + test_share >= 1:
    raise ValueError(
      f'validation_fraction {fractions.validation} and test_fraction {test_share} leave nothing to train on'
    )
  # A salted hash may start with zero bytes, which NumPy's S32 strips only at the end: order and equality hold.
  digests, whole = hashes_and_fingerprint(x, labels, fractions.salt)
  rest = np.arange(len(x)) if validation is None else np.setdiff1d(np.arange(len(x)), validation)
  contents = cut.contents(digests[rest], labels[rest])
  if validation is None:
    cut.check(contents, labels, fractions.validation, test_share)
  in_validation, in_test = (
    part[contents.of_row]
    for part in cut.held_out(contents, labels[rest], validation_share, test_share)
  )
  train = rest[~in_test & ~in_validation]
  if fractions.limit:
    train = _limited(x, labels, digests, train, fractions)
  parts = {
    'train': train,
    'validation': rest[in_validation] if validation is None else np.sort(validation),
    'test': rest[in_test],
  }
  if test_share and not parts['test'].size:
    raise ValueError(
      f'the test split of {len(rest)} examples is empty, as each class keeps one to train on: set test_fraction 0, or '
      'give examples of your own (sources.with_held_out)'
    )
  hashes = {name: fingerprint(digests[index]) for name, index in parts.items()}
  return Split(**parts, hashes=hashes, fingerprint=whole)


def _check_shares(fractions: Fractions) -> None:
  checks.in_range('validation_fraction', fractions.validation, 0, 1, ends='[)')
  checks.in_range('test_fraction', fractions.test, 0, 1, ends='[)')
  checks.integer('train_limit', fractions.limit, 0)
  checks.integer('train_offset', fractions.offset, 0)


def _limited(
  x: Stored,
  labels: Labels,
  digests: Digests,
  train: Integer[np.ndarray, ' k'],
  fractions: Fractions,
) -> Integer[np.ndarray, ' m']:
  """As many of the training rows as the limit says, with the classes in balance; see `Fractions`."""
  end = fractions.offset + fractions.limit
  if end > train.size:
    raise ValueError(
      f'train_limit must be at most {train.size - fractions.offset}, got {fractions.limit}'
    )
  # Counted anew: how many of a class went to the other parts grows with its size.
  order = content_hashes(select(x, train), fractions.subset) if fractions.subset else digests[train]
  contents = cut.contents(order, labels[train])
  count = contents.count[contents.of_row]
  return np.sort(train[np.lexsort((order, count))][fractions.offset : end])


InMemory = tuple[Num[np.ndarray, ' n *shape'], Labels]  # examples as stored


class SplitData(NamedTuple):
  """A data set and what each of its rows is for.

  Attributes:
    dataset: as stored; images that stay in their files are `DiskRecords`, which read on demand.
    split: rows of the data set.
    units: of the network, by the training rows.
    order: training rows as the curriculum ranks them, int32; None without one.
  """

  dataset: sources.Dataset
  split: Split
  units: pipeline.NormalizationStatistics
  order: Int32[np.ndarray, ' n_train'] | None

  @property
  def example(self) -> pipeline.StoredBatch:
    """One training example as stored, with a batch axis."""
    return pipeline.StoredBatch(*self.shown(self.split.train[:1]), np.zeros(1, np.int32))

  def shown(
    self, rows: Integer[np.ndarray, ' m']
  ) -> tuple[Num[np.ndarray, ' m *shape'], Condition]:
    """Examples as stored, and what a network may be told of each."""
    return self.dataset.x[rows], conditions.take(self.dataset.conditions, rows)

  @property
  def shown_test(self) -> tuple[Num[np.ndarray, ' m *shape'], Condition]:
    """The test examples, likewise."""
    return self.test if self.dataset.test is not None else self.shown(self.split.test)

  @property
  def classes(self) -> Labels:
    """The classes that have a training example, ascending: those that samples can be asked for; none without labels."""
    return np.unique(self.train[1]) if self.dataset.num_classes else np.zeros(0, np.int32)

  @property
  def kinds(self) -> int:
    """How many kinds of samples can be asked for: the number of `classes`, or 1 without labels."""
    return max(1, len(self.classes))

  @property
  def pictured(self) -> sources.Dataset:
    """The data set with the names of `classes` alone, as pictures of samples have them."""
    names = tuple(self.dataset.class_names[k] for k in self.classes)
    return self.dataset._replace(class_names=names)

  def asked(self, count: int) -> tuple[Labels, Condition]:
    """What so many samples are drawn of: the `classes` in turn, or the conditions of the validation examples.

    Args:
      count: of samples.

    Returns:
      (labels, for metrics and pictures; what the network is told), each beginning alike whatever the count.
    """
    turn = np.arange(count)
    if self.dataset.condition is None:
      kinds = self.classes if self.dataset.num_classes else np.zeros(1, np.int32)
      labels = kinds[turn % len(kinds)].astype(np.int32)
      return labels, labels
    rows = self.split.validation[turn % len(self.split.validation)]
    return self.dataset.label[rows], conditions.take(self.dataset.condition, rows)

  @property
  def train(self) -> tuple[Stored, Labels]:
    """The training examples; where they are streamed, unread."""
    return select(self.dataset.x, self.split.train), self.dataset.label[self.split.train]

  @property
  def validation(self) -> InMemory:
    """The validation examples."""
    rows = self.split.validation
    return self.dataset.x[rows], self.dataset.label[rows]

  @property
  def test(self) -> InMemory:
    """The test examples: the official ones, where there are any."""
    if self.dataset.test is not None:
      return self.dataset.test
    rows = self.split.test
    return self.dataset.x[rows], self.dataset.label[rows]

  @property
  def held_out(self) -> InMemory:
    """Validation and test examples together."""
    return tuple(np.concatenate(pair) for pair in zip(self.validation, self.test, strict=True))

  @property
  def told(self) -> dict[str, Condition] | None:
    """What a network may be told of the 'train' and the 'held_out' examples, where that is not the label."""
    if self.dataset.condition is None:
      return None
    held_out = np.concatenate([self.split.validation, self.split.test])
    rows = {'train': self.split.train, 'held_out': held_out}
    return {name: conditions.take(self.dataset.condition, part) for name, part in rows.items()}

  @property
  def sizes(self) -> dict[str, int]:
    """How many training, validation and test examples there are."""
    test = self.split.test if self.dataset.test is None else self.dataset.test[1]
    return {
      'train': len(self.split.train),
      'validation': len(self.split.validation),
      'test': len(test),
    }

  @property
  def streamed(self) -> bool:
    """The training images stay in their files."""
    return isinstance(self.dataset.x, DiskRecords)

  @property
  def comparable(self) -> bool:
    """All training examples may be read into memory, to compare with them."""
    return not self.streamed or self.train[0].fits

  def check_comparable(self, what: str) -> None:
    """Raises ValueError where the training examples are streamed and too many for `what` compares with all of them."""
    if not self.comparable:
      raise ValueError(
        f'{len(self.split.train)} streamed training images are too many to be compared with (the limit is '
        f'{records.WHOLE} bytes): leave out {what}'
      )

  @property
  def train_in_memory(self) -> InMemory:
    """All training examples.

    Raises:
      ValueError: they are streamed, and too many for the memory.
    """
    x, label = self.train
    return np.asarray(x), label


def split_data(
  dataset: sources.Dataset,
  fractions: Fractions,
  normalization: pipeline.Normalization,
  curriculum: Curriculum | None = None,
) -> SplitData:
  """Splits a data set and measures its units.

  Args:
    dataset: as it was read.
    fractions: how much of it is held out.
    normalization: of the training examples.
    curriculum: which ranks them, or None.

  Raises:
    ValueError: what `make` refuses, no training example, or fewer than 2 for validation.
  """
  parts = make(dataset.x, dataset.label, fractions, dataset.test is not None, dataset.validation)
  check_size(len(parts.train))
  if len(parts.validation) < 2:
    raise ValueError(
      f'validation needs at least 2 examples, got {len(parts.validation)}: hold out more'
    )
  if dataset.test is not None:
    digests = content_hashes(dataset.test[0], fractions.salt)
    parts.hashes['test'] = fingerprint(digests)
  if dataset.condition is not None:
    told = conditions.fingerprint(dataset.condition, parts.fingerprint)
    parts = parts._replace(fingerprint=told)
  train = select(dataset.x, parts.train), dataset.label[parts.train]
  order = None
  if curriculum is not None:
    score = curriculum.rank(*train) if curriculum.rank else np.zeros(len(parts.train))
    order = parts.train[np.argsort(score, kind='stable')].astype(np.int32)
  units = normalization(train[0], dataset.levels)
  found = {**dataset.found, **_missing_classes(dataset, parts), **_narrow_columns(train[0], units)}
  return SplitData(dataset._replace(found=found), parts, units, order)


def _missing_classes(dataset: sources.Dataset, parts: Split) -> dict[str, int]:
  """How many classes have no training example, or one but none that is held out, where there are such."""
  if not dataset.num_classes:
    return {}
  test = dataset.label[parts.test] if dataset.test is None else dataset.test[1]
  trained = np.unique(dataset.label[parts.train])
  alone = np.setdiff1d(trained, np.concatenate([dataset.label[parts.validation], test]))
  found = {
    'classes without a training example, not asked for': dataset.num_classes - trained.size,
    'classes without a held-out example': alone.size,
  }
  return {name: count for name, count in found.items() if count}


def _narrow_columns(x: Stored, units: pipeline.NormalizationStatistics) -> dict[str, str]:
  """The columns of vectors that one unit for all leaves too narrow to be learned, where there are such."""
  if units.levels is not None or x.ndim != 2:
    return {}
  narrow = np.flatnonzero(x.std(0, dtype=np.float64) < _NARROW * units.deviation)
  name = f'columns that vary by less than {_NARROW:.0%} of the unit of all, hardly learned: scale each of them first'
  return {name: pictures.some([str(column) for column in narrow])} if narrow.size else {}


def evenly(data: SplitData) -> Integer[np.ndarray, ' k']:
  """As many training rows as there are held-out ones, if there are: evenly over the split, rows of the data set."""
  train = data.split.train
  count = min(len(data.split.validation), len(train))
  return train[np.linspace(0, len(train) - 1, count).round().astype(int)]
