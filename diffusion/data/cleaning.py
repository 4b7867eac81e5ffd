"""Checks at the source: missing values, copies and constant channels are found, counted, and dealt with as asked."""

import numpy as np
from jaxtyping import Integer, Num

from diffusion.citations import technique
from diffusion.data.records import DiskRecords
from diffusion.data.sources import Dataset, Source, Test, validated
from diffusion.data.splits import content_hashes

_MISSING = ('refuse', 'drop', 'impute')
_COPIES = ('report', 'drop')
Stored = Num[np.ndarray, ' n *shape']
Part = tuple[Stored, Integer[np.ndarray, ' n']]
Kept = tuple[Num[np.ndarray, ' k *shape'], Integer[np.ndarray, ' k']]


@technique('checks at the source', 'data', 'rubin1976inference', 'barz2020duplicates')
def checked(source: Source, missing: str = 'refuse', copies: str = 'report') -> Source:
  """The same data, looked through: what was found is counted in the run's record.

  Args:
    source: the data.
    missing: what to do with values that are not finite: 'refuse' them, 'drop' their examples, or 'impute' the mean of
      the finite values in the same place.
    copies: of examples, byte for byte: 'report' how many there are, or 'drop' all but the first, and from the training
      set also those of the test set.

  Raises:
    ValueError: an unknown choice, or (on load) missing values that are refused, a place without a single finite value
      to impute, or nothing left.

  Source: Rubin (1976) for what dropping and imputing assume (values missing at random); Barz & Denzler (2020) for
  copies between training and test sets.
  """
  for name, value, known in (('missing', missing, _MISSING), ('copies', copies, _COPIES)):
    if value not in known:
      raise ValueError(f'{name} must be one of {", ".join(known)}, got {value!r}')

  def load() -> Dataset:
    data = source.raw()
    if isinstance(data.x, DiskRecords):
      raise ValueError(
        f'checks look at all of {data.name} at once: they do not go with streamed data'
      )
    if data.condition is not None:
      raise ValueError(f'checks of {data.name} would part examples from their conditions')
    if data.validation is not None:
      raise ValueError(
        f'checks of {data.name} would mix what is held out: check each source before sources.with_held_out'
      )
    found = dict(data.found)
    train, test = (data.x, data.label), data.test
    if data.levels is None and missing != 'refuse':
      train, found['missing values, training'] = _without_missing(train, train[0], missing)
      if test is not None:
        test, found['missing values, test'] = _without_missing(test, data.x, missing)
    train, test = _without_copies(train, test, copies == 'drop', found)
    data = validated(data._replace(x=train[0], label=train[1], test=test))
    return data._replace(found=found | {'constant channels': _constant(data.x)})

  return Source(source.name, load, load)


def _without_missing(
  part: Part, reference: Num[np.ndarray, ' m *shape'], missing: str
) -> tuple[Kept, int]:
  """(the part, how many values were missing); means are those of the training data."""
  x, label = part
  finite = np.isfinite(x)
  count = int((~finite).sum())
  if missing == 'drop':
    whole = finite.reshape(len(x), -1).all(1)
    return (x[whole], label[whole]), count
  seen = np.isfinite(reference)
  if not seen.any(0).all():
    raise ValueError(
      f'{int((~seen.any(0)).sum())} places have no finite value to impute: drop these columns'
    )
  mean = np.where(seen, reference, 0).sum(0, dtype=np.float64) / seen.sum(0)
  return (np.where(finite, x, mean).astype(x.dtype), label), count


def _without_copies(
  train: Part, test: Test | None, drop: bool, found: dict
) -> tuple[Kept, Test | None]:
  digests = content_hashes(train[0])
  first = np.zeros(len(digests), bool)
  first[np.unique(digests, return_index=True)[1]] = True
  found['copies within training'] = int((~first).sum())
  if test is not None:
    held_out = content_hashes(test[0])
    leaked = np.isin(digests, held_out)
    found['copies of test examples in training'] = int(leaked.sum())
    first &= ~leaked
  return ((train[0][first], train[1][first]) if drop else train), test


def _constant(x: Stored) -> str:
  """Indices of the channels (of images) or dimensions (of vectors) with one value throughout, or 'none'."""
  axes = tuple(range(x.ndim - 1))
  constant = np.flatnonzero(x.min(axes) == x.max(axes))
  return ', '.join(map(str, constant)) or 'none'
