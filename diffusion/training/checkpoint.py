"""Checkpoints through Orbax: asynchronous, the latest, the best and a guard's kept, a damaged one stepped over.

A checkpoint is a folder `120`, and counts once its manifest `120.sha256` lies beside it, see `manifest`. That is
written when all of the checkpoint is on the disk and its arrays have been found there. A folder without one was being
saved when its start was killed, and every bit of one that has one is checked before it is used.
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
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from diffusion import checks, processes
from diffusion.reporting import encoding
from diffusion.training import trees
from diffusion.training.manifest import INCOMPLETE, find_fault, manifest_of, write_manifest

FORMAT_VERSION = (
  5  # 1 had no manifest, 2 no tags of a guard, 3 other names of leaves, 4 nothing of the rows
)
_DELETED_MEANWHILE = 'it was deleted while it was read'
# What a folder is renamed to, so that none is ever half deleted under its own name.
_DELETED = '.deleted'


class Restored(NamedTuple):
  """A restored checkpoint, by its number in the folder (batches drawn so far), and which others were stepped over."""

  number: int
  metric: float
  state: Any
  record: dict[str, Any]
  damaged: tuple[int, ...]


class FormatError(processes.Agreed):
  """A checkpoint of another format, or of another network: not damage. All processes read the same."""


class SaveError(OSError):
  """A checkpoint that could not be saved; those before it are whole."""


class _Saved(NamedTuple):
  """What was saved with the arrays of a checkpoint; `guarded`: the numbers that carried a guard's tag then."""

  metric: float
  guarded: list[int]
  record: str
  written: dict[str, int | str]


class Checkpoints:
  """An open directory; `open_checkpoints` makes it. What waits for a save raises its SaveError, each time anew."""

  def __init__(self, root: pathlib.Path, keep: dict[str, int], read_only: bool):
    self._root, self._keep, self._read_only = root, keep, read_only
    self._place = None if read_only else root.stat()
    self._last: concurrent.futures.Future | None = None
    with contextlib.ExitStack() as opened:
      found = processes.from_writer(functools.partial(self._look_around, opened))
      self._open = opened.pop_all()  # the lock, which outlives the thread that saves
    self._background = self._open.enter_context(concurrent.futures.ThreadPoolExecutor(1))
    self._faults = {number: fault for number, fault, _ in found if fault}
    self._whole = {number: _Saved(*saved) for number, fault, saved in found if not fault}
    # As the newest says, so that what had lost its tag (`untag`) when that was saved stays without.
    self._guarded = self._whole[max(self._whole)].guarded if self._whole else []

  def save(
    self,
    number: int,
    tree: Any,
    record: dict[str, Any],
    metric: float,
    written: Mapping[str, int | str] = MappingProxyType({}),
    before: Callable[[], None] = lambda: None,
    after: Callable[[float], None] = lambda metric: None,
    guarded: bool = False,
  ) -> None:
    """Hands a tree over to be saved, once the save before is through.

    A thread waits for Orbax, calls `before`, reads the index of what was saved, writes the manifest, calls `after`, and
    then deletes what is no longer kept.

    Args:
      number: of the checkpoint, larger than those before.
      tree: NumPy arrays.
      record: what else to save, as JSON.
      metric: by which it may be the best: the lower, the better. One that is not finite counts as +inf.
      written: by what the files before it are known, see `written`: of two equal runs it may differ.
      before: what must reach the disk before this checkpoint counts.
      after: what is to be noted once it counts, given the metric as it counts.
      guarded: whether it carries a guard's tag.

    Raises:
      SaveError: this save could not begin, or the one before failed. ValueError: the directory was opened read-only.
    """
    if self._read_only:
      raise ValueError(f'{self._root} was opened read-only: open it with read_only=False to save')
    self.wait()  # so that at most one checkpoint is without its manifest
    path = self._root / str(number)
    value = float(metric) if math.isfinite(metric) else math.inf
    tagged = [*self._orders()['guarded'], *([number] if guarded else [])]
    saved = _Saved(value, tagged, json.dumps(record), dict(written))
    about = {'format_version': FORMAT_VERSION, 'signature': _signature(tree), 'saved': list(saved)}
    with _saving(path, self._place):
      response = trees.begin(path, tree, about)

    def finish() -> None:
      with _saving(path, self._place):
        response.result()
        before()
        if processes.is_writer():
          trees.check(path, tree)
          write_manifest(path)
      self._whole[number], self._guarded = saved, tagged
      after(value)
      with _saving(path, self._place):
        # Not by Orbax's policies of keeping: they delete when its own save is through, and were this process killed
        # before the manifest is written, `latest=1` would leave no checkpoint that counts (a test does both).
        kept = {n for kind, order in self._orders().items() for n in order[: self._keep[kind]]}
        for other in sorted(self._whole.keys() - kept):
          if processes.is_writer():
            _delete(self._root / str(other))
          del self._whole[other]

    self._last = self._background.submit(finish)

  def steps(self) -> list[tuple[int, float]]:
    """The number and the metric of each checkpoint, by number."""
    self.wait()  # what is still being written counts: whether it is done is chance
    return [(number, self._whole[number].metric) for number in sorted(self._whole)]

  def last_record(self) -> dict[str, Any]:
    """What was saved with the newest checkpoint; there must be one."""
    return json.loads(self._whole[self.steps()[-1][0]].record)

  def written(self) -> list[dict[str, int | str]]:
    """By what the files before each checkpoint are known, by number."""
    return [self._whole[number].written for number, _ in self.steps()]

  def restore(self, target: Any, which: str = 'latest', until: float = math.inf) -> Restored | None:
    """Reads a checkpoint that is as it was saved to the bit: the one asked for, or the next one of its kind.

    Args:
      target: a tree of arrays with the shapes and types of what is read; None for all as it lies there, in dicts.
      which: 'latest', 'best', or 'guarded', the latest that carries a guard's tag.
      until: the largest number to consider.

    Returns:
      The checkpoint, its arrays NumPy; None if there is none of the kind.

    Raises:
      ValueError: checkpoints were there, and of all of them none can be read. FormatError: one of another network.
    """
    if which not in self._keep:
      raise ValueError(f'which must be one of {", ".join(self._keep)}, got {which!r}')
    self.wait()
    for number in [number for number in self._orders()[which] if number <= until]:
      fault = processes.from_writer(functools.partial(self._examine, number))[1]
      folder = self._root / str(number)
      state = None if fault else _unless_deleted(folder, functools.partial(_load, target=target))
      if state is not None:
        return Restored(
          number=number,
          metric=self._whole[number].metric,
          state=state,
          record=json.loads(self._whole[number].record),
          damaged=tuple(self._faults),
        )
      self._faults[number] = fault or _DELETED_MEANWHILE
      del self._whole[number]
    if which != 'guarded' and math.isinf(until):
      processes.from_writer(self._refuse_if_lost)
    return None

  def untag(self, beyond: float) -> None:
    """Takes a guard's tag from the checkpoints with larger numbers; the next save makes that last.

    A start that was killed before that save goes on from a checkpoint before it, when the tags were still there.
    """
    self.wait()
    self._guarded = [number for number in self._guarded if number <= beyond]

  def wait(self) -> None:
    """Waits for what is being saved."""
    if self._last is not None:
      self._last.result()

  def close(self) -> None:
    """Waits for what is being saved, and lets other processes open the directory."""
    with self._open:
      self.wait()

  def _orders(self) -> dict[str, list[int]]:
    """The numbers of each kind, first those to keep and to restore: the best may be old, the newest bad or damaged."""
    latest = sorted(self._whole, reverse=True)
    best = sorted(latest, key=lambda number: self._whole[number].metric)  # of equal ones the newest
    guarded = [number for number in latest if number in self._guarded]
    return {'latest': latest, 'best': best, 'guarded': guarded}

  def _look_around(self, opened: contextlib.ExitStack) -> list[list]:
    """What `_examine` finds of each checkpoint that is there; to write, the lock is taken and leftovers go first."""
    if not self._read_only:
      opened.enter_context(_lock(self._root))
      _clear_up(self._root)
    paths = self._root.glob('*.sha256' if self._read_only else '*')
    names = {path.name.removesuffix('.sha256') for path in paths}
    numbers = sorted(int(name) for name in names if re.fullmatch('0|[1-9][0-9]*', name))
    with concurrent.futures.ThreadPoolExecutor() as workers:
      return list(workers.map(self._examine, numbers))

  def _examine(self, number: int) -> list:
    """A checkpoint's number, its fault or None, and the `_Saved` of one without; one with a fault is set aside."""
    folder = self._root / str(number)
    fault = find_fault(folder)
    about = None if fault else _unless_deleted(folder, _about)
    if about is None:
      fault = fault or _DELETED_MEANWHILE
      self._step_over(folder, fault)
    return [number, fault, about and about['saved']]

  def _step_over(self, folder: pathlib.Path, fault: str) -> None:
    kind = 'incomplete' if fault == INCOMPLETE else 'damaged'
    if not self._read_only:
      print(f'checkpoint {folder.name} is {kind} and set aside ({fault})', flush=True)
      _set_aside(folder)
    elif manifest_of(folder).exists():  # else a training has just deleted it
      print(f'checkpoint {folder.name} is {kind} and stepped over ({fault})', flush=True)

  def _refuse_if_lost(self) -> None:
    """Raises ValueError if checkpoints are lost; one incomplete one is what a kill in the first save leaves."""
    harmless = [] if self._read_only else [INCOMPLETE]
    if [*self._faults.values()] not in ([], harmless):
      raise ValueError(
        f'none of the checkpoints in {self._root} can be read: put one back with its manifest, from a copy or from '
        f'{self._root.parent / "damaged"}'
      )


def open_checkpoints(
  directory: str | pathlib.Path,
  latest: int = 2,
  best: int = 1,
  guarded: int = 2,
  read_only: bool = False,
) -> Checkpoints:
  """Opens a directory of checkpoints, and checks each that is there against its manifest.

  To write, it is created, locked against other processes, and cleared of what kills left: what is damaged or incomplete
  is moved into `damaged/` beside the directory, and said. Read-only, nothing is locked, moved, deleted or created, so
  that it can be done while a training saves there, or on a disk that cannot be written: what is being saved does not
  count, what is damaged is said and stepped over, and so is what the training deletes meanwhile.

  Several processes open alike a folder that all of them see, and call all methods alike, with equal trees: process 0
  writes, and Orbax lets the others wait for it. What is on disk does not tell how many processes or devices there were.

  Args:
    directory: where; made absolute.
    latest: how many of the newest to keep, >= 1.
    best: how many of those with the lowest metric to keep, >= 0.
    guarded: how many of the newest that carry a guard's tag to keep, >= 0.
    read_only: whether to leave everything as it is.

  Raises:
    ValueError: another process has it open to write, something else than a folder is there, or a number out of its
    range. FormatError: a checkpoint of another format. OSError: a directory that cannot be written.
  """
  keep = {'latest': latest, 'best': best, 'guarded': guarded}
  for kind, count in keep.items():
    checks.integer(kind, count, 1 if kind == 'latest' else 0)
  root = pathlib.Path(directory).absolute()
  if os.path.lexists(root) and not root.is_dir():
    raise ValueError(f'{root} is no folder: put the checkpoints back there, or move it away')
  if not read_only:
    root.mkdir(parents=True, exist_ok=True)
    trees.reachable(root)  # what is wrong with that is said before there is anything to lose
  return Checkpoints(root, keep, read_only)


def _lock(root: pathlib.Path) -> IO:
  """A file; while it is open no other process opens the directory. The system closes it, however this process dies.

  Opening removes what looks left over, which in a directory that another process saves to is what it is saving.
  """
  path = root.with_name(f'.{root.name}.lock')
  if os.path.lexists(path) and not path.is_file():
    path.rename(encoding.aside(root.parent, path.name))
  file = path.open('wb')
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
      print(f'{root} cannot be locked ({error.strerror}): start one process on it at a time')
      return file
    file.close()
    if error.errno not in (errno.EAGAIN, errno.EACCES):
      raise
    raise ValueError(
      f'{root} is in use by another process, which may be saving: wait for its end, or end it'
    ) from None
  return file


def _clear_up(root: pathlib.Path) -> None:
  """Removes what kills left half written or half deleted."""
  for doomed in root.glob(f'*{_DELETED}'):
    if not doomed.with_suffix('').exists():
      manifest_of(doomed.with_suffix('')).unlink(missing_ok=True)
    _remove(doomed)
  for path in (*root.glob('*.orbax-checkpoint-tmp*'), *root.glob('.*.sha256.*.tmp')):
    _remove(path)


def _remove(path: pathlib.Path) -> None:
  """Removes a file, a link, or a folder with all in it."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink()


def _delete(folder: pathlib.Path) -> None:
  """Deletes a checkpoint and its manifest; killed in between, it goes on when the directory is opened again."""
  doomed = folder.with_name(folder.name + _DELETED)
  if folder.exists():
    folder.rename(doomed)
  manifest_of(folder).unlink(missing_ok=True)
  if doomed.exists():
    _remove(doomed)


def _set_aside(folder: pathlib.Path) -> None:
  # Each if it is there: a start that was killed between the two moves has left the second for this one.
  for path in filter(os.path.lexists, (folder, manifest_of(folder))):
    shutil.move(path, encoding.aside(folder.parent.parent, path.name))


@contextlib.contextmanager
def _saving(folder: pathlib.Path, place: os.stat_result) -> Iterator[None]:
  """Within the block, whatever a full or lost disk makes Orbax raise is a SaveError of one line.

  Where the directory went away, or is another than at `place`, e.g. below a disk that was unmounted, Orbax may make it
  anew and go on: that is an error too.
  """
  root, lost = folder.parent, f'{folder.parent} was removed, renamed or unmounted'

  def here() -> bool:
    return root.is_dir() and os.path.samestat(root.stat(), place)

  try:
    if not here():
      raise OSError(lost)
    yield
    if not here():
      raise OSError(lost)
  except Exception as error:
    if not processes.alone():  # where another process is gone, the disk is not to blame
      if processes.is_loss(error):
        raise
      if isinstance(error, TimeoutError):  # what Orbax's barriers make of it
        raise jax.errors.JaxRuntimeError(str(error)) from error
    # TensorStore's messages are pages long.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    reason = os.strerror(int(code[1])) if code else (str(error).splitlines() or [repr(error)])[0]
    raise SaveError(
      f'cannot save checkpoint {folder} ({reason[:200] if here() else lost}): those before it are whole; when '
      'this is mended, the same command goes on from them'
    ) from error


def _signature(tree: Any) -> dict[str, str]:
  """path -> shape and type of each leaf."""
  flat = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in flat}


def _about(folder: pathlib.Path) -> dict[str, Any]:
  """What is saved with a tree."""
  about = trees.about(folder)
  if about['format_version'] != FORMAT_VERSION:
    raise FormatError(
      f'checkpoint {folder.name} has format {about["format_version"]}, this version reads {FORMAT_VERSION}'
    )
  return about


def _load(folder: pathlib.Path, target: Any) -> Any:
  """The arrays of a checkpoint."""
  if target is None:
    return jax.tree.map(np.asarray, trees.load(folder, None))
  wanted, held = _signature(target), _about(folder)['signature']
  different = sorted(wanted.items() ^ held.items())
  if different:
    path = different[0][0]
    there, here = held.get(path), wanted.get(path)
    raise FormatError(
      f'checkpoint {folder.name} is of another network: {path} is {there} there and {here} here'
    )
  return jax.tree.map(np.asarray, trees.load(folder, target))


def _unless_deleted(folder: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Any | None:
  """What is read from a folder; None if a training has deleted it meanwhile, which it begins by renaming it."""
  try:
    found = read(folder)
  except Exception:
    if folder.exists():
      raise
    found = None
  return found if folder.exists() else None  # for a file that is gone TensorStore may read zeros
