"""Checkpoints through Orbax: asynchronous, the latest and the best kept, a damaged one stepped over.

A checkpoint `120` counts once its manifest `120.sha256` lies beside it, which is written when all of it is on the disk:
without one it was being saved when its start was killed, and with one every bit of it is checked before it is used.
"""

import concurrent.futures
import contextlib
import errno
import fcntl
import functools
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from diffusion import processes
from diffusion.training import manifest

FORMAT_VERSION = 2
_METRIC = 'metric'
_INCOMPLETE = 'it has no manifest: the start before was killed while saving it, or the file is lost'
_DELETED = (
  '.deleted'  # what a folder is renamed to, so that none is ever half deleted under its own name
)


class Restored(NamedTuple):
  """A restored checkpoint, by its number in the folder (batches drawn so far), and which others were set aside."""

  number: int
  state: Any
  record: dict[str, Any]
  damaged: tuple[int, ...]


class Checkpoints(NamedTuple):
  """`save(number, host tree, record, metric, before)`, `restore(target, which, until)`, `steps()`, `last_record()`,
  `forget(beyond)`, `wait()`, `close()`."""

  save: Callable[..., None]
  restore: Callable[..., Restored | None]
  steps: Callable[[], list[tuple[int, float]]]
  last_record: Callable[[], dict[str, Any]]
  forget: Callable[[float], None]
  wait: Callable[[], None]
  close: Callable[[], None]


class FormatError(processes.Agreed):
  """A checkpoint of another format, or of another network: not damage. All processes read the same."""


class SaveError(OSError):
  """A checkpoint that could not be saved; those before it are whole."""


class _Background:
  """A thread, and the last that it was given to do; `wait` raises what went wrong there, each time it is called."""

  def __init__(self):
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._last: concurrent.futures.Future | None = None

  def put(self, task: Callable[[], None]) -> None:
    self._last = self._pool.submit(task)

  def wait(self) -> None:
    if self._last is not None:
      self._last.result()

  def close(self) -> None:
    try:
      self.wait()
    finally:
      self._pool.shutdown()


class _Folder(NamedTuple):
  """An open directory.

  Attributes:
    root, place: where, and which directory that is.
    keeper: Orbax's.
    whole: the metric of each checkpoint that counts, by number.
    aside: the fault of each that does not, by number.
    background: what finishes a save.
  """

  root: pathlib.Path
  place: tuple[int, int]
  keeper: Any
  whole: dict[int, float]
  aside: dict[int, str]
  background: _Background


def open_checkpoints(directory: str | pathlib.Path, latest: int = 2, best: int = 1) -> Checkpoints:
  """Opens (and creates) a directory of checkpoints, and checks each that is there against its manifest.

  A save is asynchronous: it returns when the tree, which must be NumPy arrays, has been handed over. A thread waits for
  Orbax, calls `before()`, writes the manifest, and then deletes what is no longer kept. `record` is JSON. A metric that
  is not finite counts as +inf.

  Several processes call all functions alike, with equal trees, on a folder that all of them see: process 0 writes, and
  Orbax lets the others wait for it. What is on disk does not tell how many processes or devices there were.

  Args:
    directory: where; made absolute.
    latest: how many of the newest to keep, >= 1.
    best: how many of those with the lowest metric to keep.

  Returns:
    Checkpoints. `restore(target, 'latest' | 'best', until)` returns None where there is nothing (up to the number
    `until`, if given); what is damaged or incomplete is moved into `damaged/` beside the directory, said, and the next
    one is taken. `forget` deletes the checkpoints with larger numbers. `wait` and `close` wait for what is being saved.

  Raises:
    ValueError: another process has it open. OSError: a directory that cannot be written. SaveError: a save failed;
    `save`, `close` and what waits raise it.
  """
  root = pathlib.Path(directory).absolute()
  root.mkdir(parents=True, exist_ok=True)
  place, opened = _identity(root), contextlib.ExitStack()
  keeper, whole, aside = _open_keeper(root, opened)
  background = _Background()
  folder = _Folder(root, place, keeper, whole, aside, background)

  def close() -> None:
    with opened:
      background.close()

  def last_record() -> dict[str, Any]:
    return json.loads(keeper.metadata(_steps(folder)[-1][0]).custom_metadata['record'])

  return Checkpoints(
    save=functools.partial(_save, folder, lambda: _kept(whole, latest, best)),
    restore=functools.partial(_restore, folder),
    steps=functools.partial(_steps, folder),
    last_record=last_record,
    forget=functools.partial(_forget, folder),
    wait=background.wait,
    close=close,
  )


def _save(
  folder: _Folder,
  kept: Callable[[], set[int]],
  number: int,
  tree: Any,
  record: dict[str, Any],
  metric: float,
  before: Callable[[], None] = lambda: None,
) -> None:
  # So that at most one checkpoint is without its manifest; Orbax too waits for the save before.
  folder.background.wait()
  path, value = folder.root / str(number), float(metric) if math.isfinite(metric) else math.inf
  with _saving(path, folder.place):
    response = folder.keeper.save_async(
      number, tree, force=True, metrics={_METRIC: value}, custom_metadata=_about(tree, record)
    )

  def finish() -> None:
    with _saving(path, folder.place):
      response.result()
      before()
      if processes.is_writer():
        manifest.write(path)
      folder.whole[number] = value
      # Orbax would delete as soon as its own save is through, when the new one is not yet known to be on the disk.
      for old in folder.whole.keys() - kept():
        if processes.is_writer():
          _delete(folder.root / str(old))
        del folder.whole[old]

  folder.background.put(finish)


def _steps(folder: _Folder) -> list[tuple[int, float]]:
  folder.background.wait()  # what is still being written counts: whether it is done is chance
  return sorted(folder.whole.items())


def _restore(folder: _Folder, target: Any, which: str, until: float = math.inf) -> Restored | None:
  known = [number for number, _ in _steps(folder) if number <= until]
  for number in _best_first(folder.whole, known) if which == 'best' else known[::-1]:
    fault = processes.from_writer(functools.partial(_examined, folder.root / str(number)))
    if fault is None:
      return Restored(number, *_load(folder.keeper, number, target), tuple(folder.aside))
    folder.aside[number] = fault
    _drop(folder, number)
  lost = {number: fault for number, fault in folder.aside.items() if number <= until}
  processes.from_writer(functools.partial(_refuse_to_start_anew, folder.root, lost, until))
  return None


def _drop(folder: _Folder, number: int) -> None:
  del folder.whole[number]
  folder.keeper.delete(number, missing_ok=True)  # from its list: the folder is gone


def _forget(folder: _Folder, beyond: float) -> None:
  for number, _ in _steps(folder):
    if number > beyond:
      processes.from_writer(functools.partial(_delete, folder.root / str(number)))
      _drop(folder, number)


def _open_keeper(
  root: pathlib.Path, opened: contextlib.ExitStack
) -> tuple[Any, dict[int, float], dict[int, str]]:
  """Orbax's keeper of a directory, each checkpoint's metric and each damaged one's fault, as process 0 sees them.

  `opened` closes what this opens: the lock of process 0, and the keeper before it.
  """

  def lock_and_sort_out() -> dict[int, str]:
    opened.enter_context(_lock(root))
    return _sort_out(root)

  aside = processes.from_writer(lock_and_sort_out)  # first: of damaged metrics Orbax raises
  # Else the keepers of two directories would wait for other processes at barriers of one name.
  apart = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=root.name)
  keeper = ocp.training.Checkpointer(
    root, context=ocp.Context(multiprocessing_options=apart), cleanup_tmp_directories=True
  )
  opened.callback(_close_keeper, keeper)
  metrics = processes.from_writer(
    lambda: {one.step: (one.metrics or {}).get(_METRIC, math.inf) for one in keeper.checkpoints}
  )
  return keeper, metrics, aside


def _close_keeper(keeper: Any) -> None:
  with contextlib.suppress(Exception):  # the failed save, which the background raises too
    keeper.close()


def _identity(root: pathlib.Path) -> tuple[int, int]:
  found = root.stat()
  return found.st_dev, found.st_ino


@contextlib.contextmanager
def _saving(folder: pathlib.Path, place: tuple[int, int]) -> Iterator[None]:
  """Within the block, whatever a full or lost disk makes Orbax raise is a SaveError of one line.

  Where the directory went away, or is another than at `place`, e.g. below a disk that was unmounted, Orbax may make it
  anew and go on: that is an error too.
  """
  root, lost = folder.parent, f'{folder.parent} was removed, renamed or unmounted'

  def here() -> bool:
    return root.is_dir() and _identity(root) == place

  try:
    if not here():
      raise OSError(lost)
    yield
    if not here():
      raise OSError(lost)
  except Exception as error:
    # Where another process is gone, the disk is not to blame.
    if isinstance(error, SaveError) or (not processes.alone() and processes.is_loss(error)):
      raise
    raise SaveError(
      f'cannot save checkpoint {folder} ({_reason(error) if here() else lost}): those before it are whole; when '
      'this is mended, the same command goes on from them'
    ) from error


def _reason(error: Exception) -> str:
  """What went wrong, in a few words: TensorStore's messages are pages long."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else (str(error).splitlines() or [repr(error)])[0][:200]


def _best_first(metrics: dict[int, float], numbers: list[int]) -> list[int]:
  """Numbers by their metric, lowest first; of equal ones the newest first."""
  return sorted(numbers, key=lambda number: (metrics[number], -number))


def _kept(metrics: dict[int, float], latest: int, best: int) -> set[int]:
  """The newest, since the best may be old, and the best, since the newest may be bad or damaged."""
  return {*sorted(metrics)[-latest:], *_best_first(metrics, list(metrics))[:best]}


@contextlib.contextmanager
def _lock(root: pathlib.Path) -> Iterator[None]:
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


def _refuse_to_start_anew(root: pathlib.Path, aside: dict[int, str], until: float) -> None:
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


def _about(tree: Any, record: dict[str, Any]) -> dict[str, Any]:
  """What is saved with a tree, as JSON."""
  return {
    'format_version': FORMAT_VERSION,
    'signature': _signature(tree),
    'record': json.dumps(record),
  }


def _signature(tree: Any) -> dict[str, str]:
  """path -> shape and type of each leaf."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in flat}


def _load(keeper, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
  metadata = keeper.metadata(step).custom_metadata
  if metadata['format_version'] != FORMAT_VERSION:
    raise FormatError(
      f'checkpoint {step} has format {metadata["format_version"]}, this version reads {FORMAT_VERSION}'
    )
  wanted, held = _signature(target), metadata['signature']
  for path in sorted(wanted.keys() | held.keys()):
    if wanted.get(path) != held.get(path):
      raise FormatError(
        f'checkpoint {step} is of another network: {path} is {held.get(path)} there and {wanted.get(path)} here'
      )
  return jax.tree.map(np.asarray, keeper.load(step, target)), json.loads(metadata['record'])


def _sort_out(root: pathlib.Path) -> dict[int, str]:
  """Removes leftovers of kills and sets aside what is not as it was saved: number -> its fault."""
  for path in root.glob(f'*{_DELETED}'):
    _delete(path.with_suffix(''))
  for path in root.glob('.*.sha256.*.tmp'):
    path.unlink()
  names = {path.name.removesuffix('.sha256') for path in root.iterdir()}
  folders = [root / name for name in sorted(filter(str.isdecimal, names), key=int)]
  with concurrent.futures.ThreadPoolExecutor() as workers:
    faults = list(workers.map(_examined, folders))
  pairs = zip(folders, faults, strict=True)
  return {int(folder.name): fault for folder, fault in pairs if fault is not None}


def _examined(folder: pathlib.Path) -> str | None:
  """The fault of a checkpoint, which is then set aside, or None."""
  fault = _fault(folder)
  if fault is not None:
    _set_aside(folder, fault)
  return fault


def _fault(folder: pathlib.Path) -> str | None:
  """In what a checkpoint is not as it was saved, or None. One of the old format is left to `_load`, which says so."""
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


def _delete(folder: pathlib.Path) -> None:
  """Deletes a checkpoint and its manifest; killed in between, it goes on when the directory is opened again."""
  doomed = folder.with_name(folder.name + _DELETED)
  if folder.exists():
    folder.rename(doomed)
  manifest.path_of(folder).unlink(missing_ok=True)
  if doomed.exists():
    shutil.rmtree(doomed)
