"""Images that stay in their files: the rows of a prepared TFDS split, read and decoded when they are asked for."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer, Num, UInt8

PREPARABLE = ('mnist', 'fashion_mnist', 'cifar10')  # what `diffusion.commands.prepare` knows
WHOLE = 4 * 2**30  # bytes of images that are read into memory at once, at most
_PIECE = 250  # rows that a thread decodes at a time

Images = UInt8[np.ndarray, 'n h w c']
Labels = Int32[np.ndarray, ' n']
Index = slice | Integer[np.ndarray, ' n']


@dataclasses.dataclass(frozen=True)
class DiskRecords:
  """As much of a uint8 array [n, h, w, c] as training needs, without holding it.

  x[i], for a slice or an array of integers, reads those rows; `np.asarray(x)` reads them all. Nothing but numbers and
  names is sent where this is pickled to: every process opens the files by itself, once.

  Attributes:
    directory: of the prepared version.
    split: its name there.
    rows: positions in the split.
    image: (h, w, c) as stored.
    size: side to which images are reduced by averaging equal blocks; None keeps them.
    workers: processes that read the batches of training; 0 for threads of this one.
  """

  directory: str
  split: str
  rows: Integer[np.ndarray, ' n']
  image: tuple[int, int, int]
  size: int | None = None
  workers: int = 0

  dtype = np.dtype(np.uint8)
  ndim = 4

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """(n, h, w, c)."""
    height, width, channels = self.image
    return (len(self.rows), self.size or height, self.size or width, channels)

  @property
  def fits(self) -> bool:
    """Whether all of it may be read into memory."""
    return int(np.prod(self.shape, dtype=np.int64)) <= WHOLE

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: Index) -> Images:
    return self.view(index).whole()[0]

  def __array__(self, dtype=None, copy=None) -> Images:
    if not self.fits:
      raise ValueError(
        f'{len(self)} streamed images of {self.split} exceed the {WHOLE} bytes that are read into memory at once: what '
        'compares with all of them, as most metrics do, needs a smaller set'
      )
    return self[:]

  def whole(self) -> tuple[Images, Labels]:
    """All images and their labels, by a few threads: decoding lets go of the interpreter lock."""
    pieces = [slice(i, i + _PIECE) for i in range(0, len(self), _PIECE)] or [slice(0)]
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
      images, labels = zip(*pool.map(self.labelled, pieces), strict=True)
    return np.concatenate(images), np.concatenate(labels)

  def view(self, index: Index) -> 'DiskRecords':
    """The rows `index`, unread."""
    return dataclasses.replace(self, rows=self.rows[index])

  def labelled(self, index: Index) -> tuple[Images, Labels]:
    """The images of some rows and their labels, by the calling thread alone.

    Raises:
      ValueError: a record that cannot be read, named.
    """
    from PIL import Image

    rows = self.rows[index]
    images, labels = np.empty((len(rows), *self.image), np.uint8), np.empty(len(rows), np.int32)
    for i, example in enumerate(self._examples(rows)):
      try:
        with Image.open(io.BytesIO(example['image'])) as image:
          images[i] = np.asarray(image).reshape(self.image)
      except (OSError, ValueError) as error:
        raise self._unreadable(rows[i], error) from None
      labels[i] = example['label']
    return (images if self.size is None else _reduced(images, self.size)), labels

  def labels(self) -> Labels:
    """Those of all rows, without decoding an image."""
    pieces = (self._examples(self.rows[i : i + 1000]) for i in range(0, len(self), 1000))
    return np.array([example['label'] for piece in pieces for example in piece], np.int32)

  def _examples(self, rows: Integer[np.ndarray, ' n']) -> list[Any]:
    """The records of these rows, their images as they are stored.

    Raises:
      ValueError: one that cannot be read, named.
    """
    source = _open(self.directory, self.split)
    try:
      return source.__getitems__([int(row) for row in rows])
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes its readers raise
      raise self._unreadable(_first_bad(source, rows), error) from None

  def _unreadable(self, row: int, error: Exception) -> ValueError:
    return ValueError(
      f'record {row} of {self.split} in {self.directory} cannot be read ({_in_a_line(error)}): prepare the data set '
      'again'
    )


@functools.lru_cache(maxsize=8)
def _open(directory: str, split: str) -> Any:
  import tensorflow_datasets

  with _naming(directory):
    builder = tensorflow_datasets.builder_from_directory(directory)
    skip = tensorflow_datasets.decode.SkipDecoding()
    return builder.as_data_source(split=split, decoders={'image': skip})


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
  """Within the block, whatever damaged descriptions of a data set make TFDS raise is a ValueError that names it."""
  try:
    yield
  except Exception as error:  # noqa: BLE001 - see above
    raise ValueError(f'{where} cannot be read ({_in_a_line(error)}): prepare it again') from None


def _in_a_line(error: Exception) -> str:
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


def _first_bad(source: Any, rows: Integer[np.ndarray, ' n']) -> int:
  for row in rows:
    try:
      source[int(row)]
    except Exception:  # noqa: BLE001 - see `_examples`
      return row
  return rows[0]  # it was unreadable only then


def prepared(name: str, data_dir: str | None) -> Any:
  """The TFDS builder of a data set that is prepared as array_record and has labelled images to train on.

  Args:
    name: the official name, or that of a folder in `data_dir`.
    data_dir: where it was prepared; None for TFDS's own default.

  Raises:
    ValueError: there is none, or one of another kind.
  """
  import tensorflow_datasets
  from tensorflow_datasets.core import registered  # here, or a package that TFDS lacks is hidden

  data_dir = data_dir and os.path.expanduser(data_dir)
  directory = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  where, builder = f'TFDS data set {name!r} in {directory}', None
  with _naming(where), contextlib.suppress(registered.DatasetNotFoundError):
    builder = tensorflow_datasets.builder(name, data_dir=data_dir)
    splits = builder.info.splits
  if builder is None:
    raise ValueError(f'no TFDS data set is called {name!r}')
  if not splits:  # TFDS itself would retry a download for minutes: look before reading
    prepare = (
      f'python -m diffusion.commands.prepare {name} --data_dir={directory}'
      if name in PREPARABLE
      else f'tfds build {name} --file_format=array_record --data_dir={directory}'
    )
    raise ValueError(
      f'TFDS data set {name!r} is not prepared in {directory}: set --config.data_dir to where it is, or run '
      f'`{prepare}`'
    )
  form = builder.info.file_format
  if form is None or form.value != 'array_record':
    raise ValueError(
      f'{where} is stored as {form and form.value}, which needs TensorFlow: prepare it again with '
      '--file_format=array_record'
    )
  _check_contents(builder, where)
  return builder


def _check_contents(builder: Any, where: str) -> None:
  """Raises ValueError for a data set without uint8 images, classes or a training split, saying what it has."""
  from tensorflow_datasets import features as kinds

  features = builder.info.features
  has = sorted(features) if isinstance(features, kinds.FeaturesDict) else []
  remedy = 'read it with TFDS yourself and give sources.arrays what you want of it'
  for name, kind, what in (
    ('image', kinds.Image, 'an image'), ('label', kinds.ClassLabel, 'a class')
  ):  # fmt: skip
    if name not in has or not isinstance(features[name], kind):
      raise ValueError(f'{where} has no {name!r} that is {what}; it has {", ".join(has)}: {remedy}')
  stored = np.dtype(features['image'].np_dtype)
  if stored != np.uint8:
    raise ValueError(f'{where} has images of {stored}, and only those of uint8 are read: {remedy}')
  if 'train' not in builder.info.splits:
    splits = ', '.join(sorted(builder.info.splits))
    raise ValueError(f"{where} has no split 'train'; it has {splits}: {remedy}")


def of_split(builder: Any, split: str, size: int | None = None, workers: int = 0) -> DiskRecords:
  """All rows of a split of a TFDS builder that is prepared as array_record.

  Args:
    builder: of TFDS.
    split: its name there.
    size: side in pixels to which images are reduced by averaging equal blocks; None keeps them.
    workers: processes that read the batches of training, >= 0; 0 for threads of this one.

  Raises:
    ValueError: images of several shapes, or a size that does not divide them.
  """
  image = builder.info.features['image'].shape
  if None in image:
    raise ValueError(
      f'the images of {builder.name} have several shapes, {image}: prepare them in one size'
    )
  if size is not None and (size < 1 or image[0] % size or image[1] % size):
    raise ValueError(f"size must divide the images' {image[0]}x{image[1]}, got {size}")
  rows = np.arange(builder.info.splits[split].num_examples)
  return DiskRecords(
    directory=str(builder.data_dir),
    split=split,
    rows=rows,
    image=tuple(image),
    size=size,
    workers=workers,
  )


Stored = Num[np.ndarray, ' n *shape'] | DiskRecords


def select(
  x: Stored, index: Integer[np.ndarray, ' m']
) -> Num[np.ndarray, ' m *shape'] | DiskRecords:
  """x[index] of an array; of records their view, which reads nothing."""
  return x.view(index) if isinstance(x, DiskRecords) else x[index]


def _reduced(x: Images, size: int) -> UInt8[np.ndarray, 'n {size} {size} c']:
  n, height, width, channels = x.shape
  blocks = x.reshape(n, size, height // size, size, width // size, channels)
  return np.rint(blocks.mean((2, 4))).astype(np.uint8)
