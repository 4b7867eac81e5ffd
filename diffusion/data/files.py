"""Arrays in files: one line names a file that is damaged or of another kind, and what to do about it."""

import os
import pathlib
import zipfile

import numpy as np
from jaxtyping import Shaped

_MOST = 1000  # arrays of a file


def arrays(
  path: pathlib.Path, remedy: str, names: tuple[str, ...] = ()
) -> dict[str, Shaped[np.ndarray, '...']]:
  """The arrays of an .npz, by name.

  Args:
    path: the file.
    remedy: what to do where it cannot be read.
    names: of arrays that it must hold.

  Raises:
    ValueError: it cannot be read, naming it, would fill the memory, or holds no array of one of these names.
  """
  try:
    with path.open('rb') as file, np.load(file) as stored:  # a damaged one is closed, too
      _check_size(stored.zip)
      found = dict(stored)
  except Exception as error:  # noqa: BLE001 - whatever a damaged file makes its readers raise
    raise _unreadable(path, error, remedy) from None
  for name in names:
    if name not in found:
      raise ValueError(f'{path} holds {", ".join(found) or "nothing"} and no {name!r}: {remedy}')
  return found


def array(path: pathlib.Path, remedy: str) -> Shaped[np.ndarray, '...']:
  """The array of an .npy.

  Args:
    path: the file.
    remedy: what to do where it cannot be read.

  Raises:
    ValueError: it cannot be read, naming it.
  """
  try:
    with path.open('rb') as file:
      return np.load(file)
  except Exception as error:  # noqa: BLE001 - see `arrays`
    raise _unreadable(path, error, remedy) from None


def _check_size(archive: zipfile.ZipFile) -> None:
  """Raises ValueError, before anything is unpacked, for more than the machine's memory could hold."""
  held = archive.infolist()
  size, memory = (
    sum(one.file_size for one in held),
    os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
  )
  if size > memory or len(held) > _MOST:
    raise ValueError(
      f'{len(held)} arrays of {size} bytes once unpacked, at most {_MOST} and the {memory} bytes of this machine'
    )


def _unreadable(path: pathlib.Path, error: Exception, remedy: str) -> ValueError:
  reason = ' '.join(str(error).split()).partition('. If you trust')[0]
  return ValueError(f'{path} cannot be read ({type(error).__name__}: {reason}): {remedy}')
