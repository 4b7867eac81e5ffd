"""Reading the arrays of a PyTorch checkpoint (.pth) without PyTorch, and without running what is pickled in it."""

import io
import pathlib
import pickle
import struct
import zipfile
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
    values = np.frombuffer(content, self.storage.dtype)[self.offset :]
    width = self.storage.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(values, self.shape, [width * s for s in self.strides])
    return view.copy()


class _Unpickler(pickle.Unpickler):
  """Knows dictionaries and tensors only: any other class in the file is refused instead of imported."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return dict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return lambda storage, offset, shape, strides, *rest: _Tensor(storage, offset, shape, strides)
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return lambda tensor, *rest: tensor
    if module == 'torch' and name in _TYPES:
      return np.dtype(_TYPES[name]).newbyteorder('<')
    raise ValueError(f'the file asks for {module}.{name}, which no checkpoint of arrays needs')

  def persistent_load(self, saved: tuple) -> _Storage:
    _, dtype, key, _, size, *_ = saved
    return _Storage(dtype, key, size)


def read(path: str | pathlib.Path) -> dict[str, Shaped[np.ndarray, '...']]:
  """The arrays of a state dictionary: name -> array.

  Args:
    path: a file written by `torch.save(module.state_dict(), path)`, of either format.

  Raises:
    ValueError: not such a file, or one that holds something other than named arrays.
    OSError: it cannot be read.
  """
  content = pathlib.Path(path).read_bytes()
  try:
    tensors, storages = (_read_zip if zipfile.is_zipfile(io.BytesIO(content)) else _read_stream)(
      content
    )
    return {name: tensor.array(storages[tensor.storage.key]) for name, tensor in tensors.items()}
  except (
    pickle.UnpicklingError,
    EOFError,
    KeyError,
    AttributeError,
    struct.error,
    zipfile.BadZipFile,
  ) as error:
    raise ValueError(f'{path} is no PyTorch checkpoint of named arrays ({error})') from error


def _read_zip(content: bytes) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
  archive = zipfile.ZipFile(io.BytesIO(content))
  (index,) = (name for name in archive.namelist() if name.endswith('/data.pkl'))
  root = index.removesuffix('data.pkl')
  tensors = _Unpickler(io.BytesIO(archive.read(index))).load()
  keys = {tensor.storage.key for tensor in tensors.values()}
  return tensors, {key: archive.read(f'{root}data/{key}') for key in keys}


def _read_stream(content: bytes) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
  stream = io.BytesIO(content)
  if _Unpickler(stream).load() != _MAGIC:
    raise pickle.UnpicklingError('another magic number')
  _Unpickler(stream).load()  # version of the protocol
  _Unpickler(stream).load()  # word sizes of the machine
  tensors = _Unpickler(stream).load()
  sizes = {t.storage.key: t.storage.size * t.storage.dtype.itemsize for t in tensors.values()}
  storages = {}
  for key in _Unpickler(stream).load():
    struct.unpack('<q', stream.read(8))  # the number of elements, known from the tensors
    storages[key] = stream.read(sizes[key])
  return tensors, storages
