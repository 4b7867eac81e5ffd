"""The data of an experiment: read, split, its units measured, and which of its rows are for what."""

from typing import NamedTuple

import numpy as np

from diffusion.data import pipeline, sources, splits
from diffusion.data.pipeline import check_size
from diffusion.data.records import Records, select
from diffusion.types import Curriculum

Examples = tuple[np.ndarray | Records, np.ndarray]  # as stored [n, ...], and label [n]


class SplitData(NamedTuple):
  """A data set and what each of its rows is for.

  Attributes:
    dataset: as stored; images that stay in their files are `Records`, which read on demand.
    split: rows of the data set.
    units: of the network, by the training rows.
    order: training rows as the curriculum ranks them, int32; None without one.
  """

  dataset: sources.Dataset
  split: splits.Split
  units: pipeline.Units
  order: np.ndarray | None

  @property
  def example(self) -> np.ndarray:
    """One training example as stored, with a batch axis: [1, ...]."""
    return self.dataset.x[self.split.train[:1]]

  @property
  def train(self) -> Examples:
    """The training examples; where they are streamed, unread."""
    return select(self.dataset.x, self.split.train), self.dataset.label[self.split.train]

  @property
  def validation(self) -> tuple[np.ndarray, np.ndarray]:
    """The validation examples."""
    rows = self.split.validation
    return self.dataset.x[rows], self.dataset.label[rows]

  @property
  def test(self) -> tuple[np.ndarray, np.ndarray]:
    """The test examples: the official ones, where there are any."""
    if self.dataset.test is not None:
      return self.dataset.test
    rows = self.split.test
    return self.dataset.x[rows], self.dataset.label[rows]

  @property
  def held_out(self) -> tuple[np.ndarray, np.ndarray]:
    """Validation and test examples together."""
    return tuple(np.concatenate(pair) for pair in zip(self.validation, self.test, strict=True))

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
    return isinstance(self.dataset.x, Records)

  @property
  def comparable(self) -> bool:
    """All training examples may be read into memory, to compare with them."""
    return not self.streamed or self.train[0].fits

  @property
  def train_in_memory(self) -> tuple[np.ndarray, np.ndarray]:
    """All training examples; raises ValueError where they are streamed and too many."""
    x, label = self.train
    return np.asarray(x), label


def split(
  dataset: sources.Dataset,
  fractions: splits.Fractions,
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
    ValueError: what `splits.make` refuses, no training example, or fewer than 2 for validation.
  """
  parts = splits.make(dataset.x, dataset.label, fractions, dataset.test is not None)
  check_size(len(parts.train))
  if len(parts.validation) < 2:
    raise ValueError(
      f'validation needs at least 2 examples, got {len(parts.validation)}: hold out more'
    )
  if dataset.test is not None:
    digests = splits.content_hashes(dataset.test[0], fractions.salt)
    parts.hashes['test'] = splits.fingerprint(digests)
  train = select(dataset.x, parts.train), dataset.label[parts.train]
  order = None
  if curriculum is not None:
    score = curriculum.rank(*train) if curriculum.rank else np.zeros(len(parts.train))
    order = parts.train[np.argsort(score, kind='stable')].astype(np.int32)
  return SplitData(dataset, parts, normalization(train[0], dataset.levels), order)


def evenly(data: SplitData) -> np.ndarray:
  """As many training rows as there are held-out ones, if there are: evenly over the split, rows of the data set."""
  train = data.split.train
  count = min(len(data.split.validation), len(train))
  return train[np.linspace(0, len(train) - 1, count).round().astype(int)]
