"""The official raw files of MNIST, Fashion-MNIST and CIFAR-10: names, sources and formats, read without TensorFlow.

Everything that a file could hide is looked for here, so that damage is named with its file before a byte is written.
"""

import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8

from diffusion.data import archives
from diffusion.data.archives import PrepareError, RawFile, damaged

FilePath = str | os.PathLike[str]
_IDX_DTYPES = {0x08: '>u1', 0x09: '>i1', 0x0B: '>i2', 0x0C: '>i4', 0x0D: '>f4', 0x0E: '>f8'}
_NUM_CLASSES = 10
_CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_FOLDER = 'cifar-10-batches-bin'
_CIFAR_LABEL_FILE = 'batches.meta.txt'


class RawSplit(NamedTuple):
  """The examples of one split, as read: what `validate` takes is [n, h, w, c] and [n]; `where` is for messages."""

  images: Num[np.ndarray, '...']
  labels: Num[np.ndarray, '...']
  where: str


class Spec(NamedTuple):
  """A data set's official raw files and what they must hold."""

  url: str  # where the official builder downloads
  downloads: tuple[str, ...]
  parts: dict[str, tuple[str, ...]]  # split -> raw files once unpacked
  parse: Callable[[list[RawFile]], RawSplit]
  shape: tuple[int, int, int]
  counts: dict[str, int]
  label_names: tuple[str, ...]  # () where the official builder declares them itself

  @property
  def official(self) -> str:
    """The official files in words."""
    return f'{", ".join(self.downloads)} from {self.url}'


def find(source: pathlib.Path, spec: Spec) -> dict[pathlib.Path, str]:
  """The raw files under `source` -> their official names: the packed ones where all are there, else packed or not."""
  if source.is_file():
    return {source: source.name}
  packed = {source / name: name for name in spec.downloads}
  if all(path.is_file() for path in packed):
    return packed
  parts = [part for names in spec.parts.values() for part in names]
  names = (
    *parts,
    _CIFAR_LABEL_FILE,
    *spec.downloads,
  )  # of a part that is there twice, the packed one is read last
  paths = [folder / name for folder in (source, source / _CIFAR_FOLDER) for name in names]
  return {path: path.name for path in paths if path.is_file()}


def read(files: dict[pathlib.Path, str], where: FilePath, spec: Spec) -> dict[str, RawSplit]:
  """All splits of a data set from its raw files.

  Args:
    files: path -> official name of each, packed or not, as `find` returns them.
    where: where they were looked for; for messages.
    spec: of the data set.

  Returns:
    Split name -> its examples, whose number and shape `validate` has yet to check.

  Raises:
    PrepareError: a file is absent or damaged, or label names are not the known ones.
  """
  raws = {}
  for path, name in files.items():
    raws |= (
      archives.unpack(path)
      if name.endswith(('.tar.gz', '.tar'))
      else {name.removesuffix('.gz'): archives.content(path)}
    )
  for part in (part for names in spec.parts.values() for part in names):
    if part not in raws:
      raise PrepareError(f'{where}: no {part} there; needed: {spec.official}, packed or unpacked')
  # The official builder takes its label names from this file; they are known, so it is a check.
  if spec.label_names and (labels := raws.get(_CIFAR_LABEL_FILE)):
    found = labels.data.decode(errors='replace').split()
    if found != list(spec.label_names):
      raise damaged(labels.where, f'label names {found} are not {list(spec.label_names)}')
  return {split: spec.parse([raws[n] for n in names]) for split, names in spec.parts.items()}


def validate(split: str, content: RawSplit, spec: Spec, allow_partial: bool) -> None:
  """Whether shapes, types and numbers are the official ones.

  Args:
    split: its name.
    content: as read.
    spec: of the data set.
    allow_partial: accept any number >= 1 of examples, and say so.

  Raises:
    PrepareError: they are not.
  """
  images, labels, where = content
  for array, shape in ((images, spec.shape), (labels, ())):
    if array.shape[1:] != shape or array.dtype != np.uint8:
      problem = f'{array.dtype} items of shape {array.shape[1:]}, expected are uint8 of {shape}'
      raise damaged(where, problem)
  if len(images) != len(labels):
    raise damaged(where, f'{len(images)} images but {len(labels)} labels')
  if len(images) == spec.counts[split]:
    return
  problem = f'{len(images)} {split} examples, officially {spec.counts[split]}'
  if not allow_partial or not len(images):
    raise damaged(where, f'{problem} (--allow_partial accepts some, for trials)')
  print(f'PARTIAL SET, NOT FOR RESULTS: {where}: {problem}', file=sys.stderr)


def parse_idx(raw: RawFile) -> Num[np.ndarray, '...']:
  """The array in an IDX file, the format of MNIST: one of its six dtypes (MNIST: uint8), native byte order.

  Two zero bytes, one for the dtype, one for the number of dimensions, each dimension as big-endian
  uint32, then the values, big-endian, last index fastest.

  Raises:
    PrepareError: wrong magic number, dtype or length.

  Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", "File formats".
  """
  where, data = raw
  if len(data) < 4 or data[:2] != b'\0\0' or data[2] not in _IDX_DTYPES or not data[3]:
    expected = '0x00000803 for MNIST images, 0x00000801 for labels'
    raise damaged(where, f'magic number 0x{data[:4].hex()} is not of an IDX file ({expected})')
  dtype, start = np.dtype(_IDX_DTYPES[data[2]]), 4 + 4 * data[3]
  if len(data) < start:
    raise damaged(where, f'truncated in its header, {len(data)} of {start} bytes')
  shape = tuple(np.frombuffer(data, '>u4', count=data[3], offset=4).tolist())
  size = start + dtype.itemsize * math.prod(shape)
  if len(data) != size:
    raise damaged(where, f'truncated or too long, {len(data)} of {size} bytes for shape {shape}')
  return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder('='))


def _names(raws: list[RawFile]) -> str:
  return ' + '.join([raws[0].where, *(pathlib.PurePath(raw.where).name for raw in raws[1:])])


def _parse_mnist(raws: list[RawFile]) -> RawSplit:
  images, labels = (parse_idx(raw) for raw in raws)
  _validate_labels(labels, raws[1].where)
  return RawSplit(images[..., None], labels, _names(raws))


def parse_cifar_batch(
  raw: RawFile,
) -> tuple[UInt8[np.ndarray, 'n 32 32 3'], UInt8[np.ndarray, ' n']]:
  """Images and labels in 0..9 of one batch of the binary version of CIFAR-10.

  Records of 1 + 3072 bytes: the label, then the red, the green and the blue plane, by rows.

  Raises:
    PrepareError: the length is not a whole number of records, or a label is outside 0..9.

  Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images";
    https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
  """
  where, data = raw
  if len(data) % _CIFAR_RECORD or not data:
    problem = f'{len(data)} bytes are no whole number of CIFAR-10 records of {_CIFAR_RECORD}'
    raise damaged(where, problem)
  rows = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD)
  _validate_labels(rows[:, 0], where)
  planes = rows[:, 1:].reshape(-1, 3, 32, 32)
  return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), rows[:, 0].copy()


def _parse_cifar(raws: list[RawFile]) -> RawSplit:
  images, labels = zip(*(parse_cifar_batch(raw) for raw in raws), strict=True)
  return RawSplit(np.concatenate(images), np.concatenate(labels), _names(raws))


def _validate_labels(labels: Num[np.ndarray, '...'], where: str) -> None:
  wrong = np.flatnonzero((labels < 0) | (labels >= _NUM_CLASSES))
  if wrong.size:
    problem = (
      f'label {labels.flat[wrong[0]]} of example {wrong[0]} is outside 0..{_NUM_CLASSES - 1}'
    )
    raise damaged(where, problem)


_IDX_PARTS = {
  split: (f'{stem}-images-idx3-ubyte', f'{stem}-labels-idx1-ubyte')
  for split, stem in (('train', 'train'), ('test', 't10k'))
}
_MNIST = Spec(
  url='https://storage.googleapis.com/cvdf-datasets/mnist/',
  downloads=tuple(f'{part}.gz' for parts in _IDX_PARTS.values() for part in parts),
  parts=_IDX_PARTS,
  parse=_parse_mnist,
  shape=(28, 28, 1),
  counts={'train': 60_000, 'test': 10_000},
  label_names=(),
)
_FASHION_URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/'
_CIFAR_LABELS = 'airplane automobile bird cat deer dog frog horse ship truck'
_CIFAR = Spec(
  url='https://www.cs.toronto.edu/~kriz/',
  downloads=('cifar-10-binary.tar.gz',),
  parts={'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)), 'test': ('test_batch.bin',)},
  parse=_parse_cifar,
  shape=(32, 32, 3),
  counts={'train': 50_000, 'test': 10_000},
  label_names=tuple(_CIFAR_LABELS.split()),
)
SPECS = {'mnist': _MNIST, 'fashion_mnist': _MNIST._replace(url=_FASHION_URL), 'cifar10': _CIFAR}
