"""What is in a directory of checkpoints and does not count: leftovers of kills, damage; and who may look: the lock.

A checkpoint `120` counts once its manifest `120.sha256` lies beside it. What does not is moved to `damaged/`.
"""

import concurrent.futures
import contextlib
import errno
import fcntl
import math
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO

from orbax.checkpoint import v1 as ocp

from diffusion.training import manifest
from diffusion.training.manifest import FORMAT_VERSION

_INCOMPLETE = 'it has no manifest: the start before ended while saving it, or the file is lost'
# What a folder is renamed to, so that none is ever half deleted under its own name.
_DELETED = '.deleted'


@contextlib.contextmanager
def lock(root: pathlib.Path) -> Iterator[None]:
  """Within the block no other process opens the directory; the system ends it with the process, however that dies.

  Opening removes what looks left over, which in a directory that another process saves to is what it is saving.

  Raises:
    ValueError: another process has it open.
  """
  try:
    file = root.with_name(f'.{root.name}.lock').open('wb')
  except OSError as error:
    if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
      raise
    yield  # where nothing can be written nobody saves
    return
  with file:
    _lock_file(file, root)
    yield


def _lock_file(file: IO, root: pathlib.Path) -> None:
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.EAGAIN, errno.EACCES):
      raise ValueError(
        f'{root} is in use by another process, which may be saving: wait for its end, or end it'
      ) from None
    if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
      raise
    print(f'{root} cannot be locked ({error.strerror}): start one process on it at a time')


def refuse_to_start_anew(root: pathlib.Path, aside: dict[int, str], until: float) -> None:
  """Raises ValueError if checkpoints are lost; one incomplete one is what a kill in the first save leaves.

  A mark outlasts this start, or the next one would find an empty directory and begin anew.
  """
  mark = root.parent / 'damaged' / f'{root.name}.lost'
  lost = len(aside) > 1 or any(fault != _INCOMPLETE for fault in aside.values())
  if lost and math.isinf(until):
    mark.touch()
  if lost or (math.isinf(until) and mark.exists()):
    raise ValueError(
      f'none of the checkpoints in {root} can be read; they were moved to {mark.parent}: put one back with its '
      f'manifest, or delete {mark} to start anew'
    )


def sort_out(root: pathlib.Path) -> dict[int, str]:
  """Removes leftovers of kills and sets aside what is not as it was saved: number -> its fault."""
  for path in root.glob(f'*{_DELETED}'):
    delete(path.with_suffix(''))
  for path in root.glob('.*.sha256.*.tmp'):
    path.unlink()
  names = {path.name.removesuffix('.sha256') for path in root.iterdir()}
  folders = [root / name for name in sorted(filter(str.isdecimal, names), key=int)]
  with concurrent.futures.ThreadPoolExecutor() as workers:
    faults = list(workers.map(examined, folders))
  pairs = zip(folders, faults, strict=True)
  return {int(folder.name): fault for folder, fault in pairs if fault is not None}


def examined(folder: pathlib.Path) -> str | None:
  """The fault of a checkpoint, which is then set aside, or None."""
  fault = _fault(folder)
  if fault is not None:
    _set_aside(folder, fault)
  return fault


def _fault(folder: pathlib.Path) -> str | None:
  """In what a checkpoint is not as it was saved, or None. One of the old format is left to restoring, which says so."""
  if manifest.path_of(folder).exists():
    return manifest.fault(folder) if folder.exists() else f'the folder {folder.name} is missing'
  with contextlib.suppress(Exception):  # whatever an incomplete one makes Orbax raise
    if ocp.metadata(folder).custom_metadata['format_version'] < FORMAT_VERSION:
      return None
  return _INCOMPLETE


def _set_aside(folder: pathlib.Path, fault: str) -> None:
  kind = 'incomplete' if fault == _INCOMPLETE else 'damaged'
  print(f'checkpoint {folder.name} is {kind} and set aside ({fault})', flush=True)
  grave = folder.parent.parent / 'damaged' / folder.name
  grave.parent.mkdir(exist_ok=True)
  # One by one: a start that was killed between the two moves has left the second for this one.
  if folder.exists():
    shutil.rmtree(grave, ignore_errors=True)
    shutil.move(folder, grave)
  if manifest.path_of(folder).exists():
    shutil.move(manifest.path_of(folder), manifest.path_of(grave))


def delete(folder: pathlib.Path) -> None:
  """Deletes a checkpoint and its manifest; killed in between, it goes on when the directory is opened again."""
  doomed = folder.with_name(folder.name + _DELETED)
  if folder.exists():
    folder.rename(doomed)
  manifest.path_of(folder).unlink(missing_ok=True)
  if doomed.exists():
    shutil.rmtree(doomed)
