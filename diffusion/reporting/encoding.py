"""Values as JSON text without loss, and files replaced whole or not at all.

JSON has no non-finite numbers: they are written as the strings "nan", "inf", "-inf" and read back
as numbers, so that text which reads as one of them is refused.
"""

import contextlib
import errno
import fcntl
import itertools
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

NON_FINITE = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}


def plain(value: Any) -> Any:
  """The value in Python's own types: arrays and their scalars become lists and numbers.

  Args:
    value: mappings with text keys, sequences, arrays, text, numbers, booleans, None.

  Returns:
    The same as dict, list, str, float, int, bool, None.

  Raises:
    TypeError: for anything else, quoting it.
  """
  if value is None or type(value) in (str, float, int, bool):
    return value
  if isinstance(value, Mapping):
    for key in value:
      if not isinstance(key, str):
        raise TypeError(f'JSON keys must be text, got {key!r}')
    return {key: plain(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [plain(one) for one in value]
  if hasattr(value, 'tolist'):
    return plain(value.tolist())
  raise TypeError(f'JSON cannot hold {value!r} of type {type(value).__name__}')


def encode(value: Any) -> Any:
  """A `plain` value as JSON can hold it: non-finite numbers become text.

  Args:
    value: what `plain` returns.

  Returns:
    The value for `json.dumps(..., allow_nan=False)`.

  Raises:
    ValueError: for text that `decode` would take for a non-finite number.
  """
  if isinstance(value, dict):
    return {key: encode(one) for key, one in value.items()}
  if isinstance(value, list):
    return [encode(one) for one in value]
  if isinstance(value, float) and not math.isfinite(value):
    return f'{value:g}'
  if isinstance(value, str) and value in NON_FINITE:
    raise ValueError(f'the text {value!r} is kept for a number that is not finite')
  return value


def decode(value: Any) -> Any:
  """The inverse of `encode`."""
  if isinstance(value, dict):
    return {key: decode(one) for key, one in value.items()}
  if isinstance(value, list):
    return [decode(one) for one in value]
  if isinstance(value, str) and value in NON_FINITE:
    return NON_FINITE[value]
  return value


def replace(path: pathlib.Path, content: bytes) -> None:
  """Writes a file whole or not at all: temporary file beside it, fsync, `os.replace`.

  Args:
    path: the file, in an existing folder.
    content: its new bytes.

  Raises:
    OSError: where it cannot be written; the old file is then as it was.
  """
  with replacing(path) as file:
    file.write(content)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Within the block, a file to write, which takes the place of `path` at its end; see `replace`.

  Raises:
    OSError: where it cannot be written; the old file is then as it was, as after any other error of the block.
  """
  temporary = path.with_name(f'.{path.name}.{platform.node()}.{os.getpid()}.tmp')
  try:
    with temporary.open('wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write(path: pathlib.Path, content: bytes) -> None:
  """As `replace`, where the folder may be missing and an error must name the file.

  Args:
    path: the file; its folder is created.
    content: its new bytes.

  Raises:
    OSError: where it cannot be written, naming it.
  """
  with naming(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, content)


def aside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """A path in the folder's `damaged/`, which is made, that nothing has: the name, or name_1, name_2, ...

  What was set aside before is never overwritten; where something else has the name `damaged`, it is damaged_1, ...
  """
  grave = _first(folder / 'damaged', lambda path: path.is_dir() or not os.path.lexists(path))
  grave.mkdir(exist_ok=True)
  return _first(grave / name, lambda path: not os.path.lexists(path))


def _first(path: pathlib.Path, is_free: Callable[[pathlib.Path], bool]) -> pathlib.Path:
  """The path, or the first of path_1, path_2, ... that is free."""
  numbered = (path.with_stem(f'{path.stem}_{number}') for number in itertools.count(1))
  return next(filter(is_free, itertools.chain([path], numbered)))


def sync(path: pathlib.Path) -> None:
  """Waits until a file's bytes, or a folder's names, are on the disk, so that they outlive a power failure."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
  """Within the block, an `OSError` names `path`, whatever helper file or call it came from.

  Raises:
    OSError: that of the block, so named.
  """
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, f'cannot write: {error.strerror}', str(path)) from error


@contextlib.contextmanager
def locked(path: pathlib.Path, seconds: float = 30.0) -> Iterator[None]:
  """Within the block, no other process that asks for it has the same file locked; it need not exist.

  The lock is on a hidden file beside it. Where the disk has no locks, or another process keeps this one for too long,
  as one that was stopped does, the block goes on without.

  Args:
    path: what is locked.
    seconds: to wait at most.

  Raises:
    OSError: the hidden file cannot be written, naming `path`.
  """
  with naming(path):
    file = path.with_name(f'.{path.name}.lock').open('wb')
  with file:
    end = time.monotonic() + seconds
    while not take(file) and time.monotonic() < end:
      time.sleep(0.01)
    yield


def take(file: IO) -> bool:
  """Locks a file, unless another process has it; True also where that cannot be known."""
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    return error.errno not in (errno.EAGAIN, errno.EACCES)
  return True
