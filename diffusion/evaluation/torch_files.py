"""Reading the arrays of a PyTorch checkpoint (.pth) without PyTorch, and without running what is pickled in it.

Nothing that the file says is believed: each array lies within its storage, and has no more values than that.
"""

import io
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

_MAGIC = 0x1950A86A20F9469CFC6C  # first object of a file written before PyTorch 1.6
_TYPES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ByteStorage': np.uint8,
}


class _Storage(NamedTuple):
  dtype: np.dtype
  key: str
  size: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self, content: bytes) -> Shaped[np.ndarray, '...']:
    kind, (shape, strides, offset) = self.storage.dtype, (self.shape, self.strides, self.offset)
    held, count = len(content) // kind.itemsize, math.prod(shape)
    # The last value read, where there is one.
    last = offset + sum(stride * (size - 1) for stride, size in zip(strides, shape, strict=True))
    if self.storage.size != held or count > held or (count and last >= held):
      raise ValueError(
        f'shape {list(shape)}, strides {list(strides)} and offset {offset} of an array do not fit its {held} values'
      )
    values = np.frombuffer(content, kind, held)[offset:]
    view = np.lib.stride_tricks.as_strided(values, shape, [kind.itemsize * s for s in strides])
    return view.copy()


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
  numbers = [offset, *shape, *strides]
  if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
    raise ValueError(f'an array has the offset, shape and strides {numbers}')
  return _Tensor(storage=storage, offset=offset, shape=tuple(shape), strides=tuple(strides))


class _Unpickler(pickle.Unpickler):
  """Knows dictionaries and tensors only: any other class in the file is refused instead of imported."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return dict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return _tensor
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return lambda tensor, *rest: tensor
    if module == 'torch' and name in _TYPES:
      return np.dtype(_TYPES[name]).newbyteorder('<')
    raise ValueError(f'the file asks for {module}.{name}, which no checkpoint of arrays needs')

  def persistent_load(self, saved: tuple) -> _Storage:
    _, dtype, key, _, size, *_ = saved
    if not isinstance(dtype, np.dtype) or not isinstance(key, str) or type(size) is not int:
      raise ValueError(f'a storage is said to be {saved}')
    return _Storage(dtype, key, size)


def read(path: str | pathlib.Path) -> dict[str, Shaped[np.ndarray, '...']]:
  """The arrays of a state dictionary: name -> array.

  Args:
    path: a file written by `torch.save(module.state_dict(), path)`, of either format.

  Raises:
    ValueError: not such a file, one that holds something other than named arrays, or arrays beyond what it stores.
    OSError: it cannot be read.
  """
  content = pathlib.Path(path).read_bytes()
  read_any = _read_zip if zipfile.is_zipfile(io.BytesIO(content)) else _read_stream
  try:
    tensors, storages = read_any(content)
    return {name: tensor.array(storages[tensor.storage.key]) for name, tensor in tensors.items()}
  except Exception as error:  # noqa: BLE001 - whatever a crafted or damaged file makes pickle and zipfile raise
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(f'{path} is no PyTorch checkpoint of named arrays ({reason})') from error


def _named(tensors: Any) -> dict[str, _Tensor]:
  if not isinstance(tensors, Mapping) or not all(
    isinstance(name, str) and isinstance(one, _Tensor) for name, one in tensors.items()
  ):
    raise ValueError('it holds other things')
  return dict(tensors)


def _read_zip(content: bytes) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
  archive = zipfile.ZipFile(io.BytesIO(content))
  if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
    raise ValueError('PyTorch compresses nothing, and of this file no size is known')
  (index,) = (name for name in archive.namelist() if name.endswith('/data.pkl'))
  root = index.removesuffix('data.pkl')
  tensors = _named(_Unpickler(io.BytesIO(archive.read(index))).load())
  keys = {tensor.storage.key for tensor in tensors.values()}
  return tensors, {key: archive.read(f'{root}data/{key}') for key in keys}


def _read_stream(content: bytes) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
  stream = io.BytesIO(content)
  if _Unpickler(stream).load() != _MAGIC:
    raise pickle.UnpicklingError('another magic number')
  _Unpickler(stream).load()  # version of the protocol
  _Unpickler(stream).load()  # word sizes of the machine
  tensors = _named(_Unpickler(stream).load())
  sizes = {t.storage.key: t.storage.size * t.storage.dtype.itemsize for t in tensors.values()}
  storages = {}
  for key in _Unpickler(stream).load():
    struct.unpack('<q', stream.read(8))  # the number of elements, known from the tensors
    storages[key] = stream.read(max(0, sizes[key]))
  return tensors, storages
