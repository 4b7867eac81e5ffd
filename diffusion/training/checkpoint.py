"""Checkpoints through Orbax: asynchronous, the latest and the best kept, a damaged one stepped over.

A checkpoint `120` counts once its manifest `120.sha256` lies beside it, which is written when all of it is on the disk:
without one it was being saved when its start was killed, and with one every bit of it is checked before it is used.
"""

import concurrent.futures
import contextlib
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from diffusion import processes
from diffusion.training import damage, manifest
from diffusion.training.manifest import FORMAT_VERSION

_METRIC = 'metric'


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
          damage.delete(folder.root / str(old))
        del folder.whole[old]

  folder.background.put(finish)


def _steps(folder: _Folder) -> list[tuple[int, float]]:
  folder.background.wait()  # what is still being written counts: whether it is done is chance
  return sorted(folder.whole.items())


def _restore(folder: _Folder, target: Any, which: str, until: float = math.inf) -> Restored | None:
  known = [number for number, _ in _steps(folder) if number <= until]
  for number in _best_first(folder.whole, known) if which == 'best' else known[::-1]:
    fault = processes.from_writer(functools.partial(damage.examined, folder.root / str(number)))
    if fault is None:
      return Restored(number, *_load(folder.keeper, number, target), tuple(folder.aside))
    folder.aside[number] = fault
    _drop(folder, number)
  lost = {number: fault for number, fault in folder.aside.items() if number <= until}
  processes.from_writer(functools.partial(damage.refuse_to_start_anew, folder.root, lost, until))
  return None


def _drop(folder: _Folder, number: int) -> None:
  del folder.whole[number]
  folder.keeper.delete(number, missing_ok=True)  # from its list: the folder is gone


def _forget(folder: _Folder, beyond: float) -> None:
  for number, _ in _steps(folder):
    if number > beyond:
      processes.from_writer(functools.partial(damage.delete, folder.root / str(number)))
      _drop(folder, number)


def _open_keeper(
  root: pathlib.Path, opened: contextlib.ExitStack
) -> tuple[Any, dict[int, float], dict[int, str]]:
  """Orbax's keeper of a directory, each checkpoint's metric and each damaged one's fault, as process 0 sees them.

  `opened` closes what this opens: the lock of process 0, and the keeper before it.
  """

  def lock_and_sort_out() -> dict[int, str]:
    opened.enter_context(damage.lock(root))
    return damage.sort_out(root)

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
