"""Batches of data that stays in its files, read ahead of the steps that take them.

What a batch holds is the same function of (seed, salt, cursor, row) as on the device, evaluated on the host, so that no
iterator has a state to save: a feed is addressed by place, and a place that does not follow the last one (after a
rollback, or where a run is resumed) opens it anew there. Grain reads ahead, with threads or with processes.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from typing import Any, NamedTuple

import numpy as np

from diffusion import devices
from diffusion.data import pipeline
from diffusion.data.records import Records

_AHEAD = 4  # dispatches that the threads of this process read ahead


class Place(NamedTuple):
  """Where in the order of a run: its seed, rollbacks so far, batches drawn so far."""

  seed: int
  salt: int
  cursor: int


@dataclasses.dataclass(frozen=True)
class _Stretch:
  """What Grain reads from: element i is dispatch i after `cursor`, for the rows that this process holds."""

  records: Records
  epochs: pipeline.Epochs
  cursor: int
  steps: int
  rows: np.ndarray  # of the global batch [local devices, rows of a device]
  total: int

  def __len__(self) -> int:
    examples = len(self.records)
    return pipeline.batches_in(self.epochs, self.cursor, self.total, examples) // self.steps

  def __getitem__(self, i: int) -> pipeline.Drawn:
    index = np.empty((len(self.rows), self.steps, self.rows.shape[1]), np.int32)
    for k in range(self.steps):
      found = pipeline.host_indices(
        self.epochs,
        self.cursor + i * self.steps + k,
        self.rows.ravel(),
        self.total,
        len(self.records),
      )
      index[:, k] = found.reshape(self.rows.shape)
    x, label = self.records.labelled(index.ravel())
    return pipeline.Drawn(x.reshape(*index.shape, *x.shape[1:]), label.reshape(index.shape), index)


def _settle_in(index: int, count: int) -> None:
  """Makes a worker leave signals to the process it works for, and end with it, however that ends."""
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)

  def watch() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _reading(stretch: _Stretch, workers: int) -> Any:
  """A Grain iterator over the stretch, that reads ahead."""
  import grain
  from absl import flags

  if not flags.FLAGS.is_parsed():  # in a session of Python; Grain asks for its flags
    flags.FLAGS.mark_as_parsed()
  source = grain.MapDataset.source(stretch)
  if workers == 0:
    threads = min(_AHEAD, os.cpu_count() or 1)
    return iter(source.to_iter_dataset(grain.ReadOptions(threads, _AHEAD)))
  # Each worker takes every workers-th dispatch and holds one in hand and one in its queue.
  options = grain.multiprocessing.MultiprocessingOptions(workers, per_worker_buffer_size=1)
  plain = source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  return iter(plain.mp_prefetch(options, worker_init_fn=_settle_in))


class Feed:
  """Batches for the devices of this process, as `pipeline.Drawn` with axes [local devices, steps, rows, ...].

  Beside the batches that the devices have been given it holds those of one dispatch on the devices, and of four in
  host memory, or of three for each worker. Nothing is read or started before it is asked.
  """

  def __init__(self, records: Records, rows: np.ndarray, batch_size: int, steps: int):
    """What the devices of this process see of the training split.

    Args:
      records: the split.
      rows: of the global batch that they hold [local devices, rows of a device].
      batch_size: rows of the global batch.
      steps: batches in a dispatch.
    """
    self._records, self._rows, self._total, self._steps = records, rows, batch_size, steps
    self._reading = self._waiting = self._following = None
    self._left = 0

  def take(self, place: Place) -> pipeline.Drawn:
    """The batches of one dispatch from there on, on the devices.

    Raises:
      ValueError: a record that cannot be read.
      ChildProcessError: a worker was ended from outside.
    """
    if place != self._following or (self._waiting is None and not self._left):
      self._open(place)
    self.ahead()
    taken, self._waiting = self._waiting, None
    self._following = place._replace(cursor=place.cursor + self._steps)
    return taken

  def ahead(self) -> None:
    """Sends the next dispatch's batches to the devices; called when these have work, as it waits for the reading."""
    if self._waiting is None and self._left:
      self._waiting = devices.spread(_next(self._reading))
      self._left -= 1

  def read(self, place: Place, steps: int) -> pipeline.Drawn:
    """The `steps` batches from there on in host memory, read now and by this thread."""
    return self._stretch(place, steps)[0]

  def close(self) -> None:
    """Forgets what was read ahead, and ends the threads or processes that read."""
    if self._reading is not None:
      self._reading.close()
    self._reading, self._waiting, self._left = None, None, 0

  def _open(self, place: Place) -> None:
    self.close()
    stretch = self._stretch(place, self._steps)
    self._reading, self._left = _reading(stretch, self._records.workers), len(stretch)

  def _stretch(self, place: Place, steps: int) -> _Stretch:
    epochs = pipeline.epochs_from(*place, steps, self._total, len(self._records))
    return _Stretch(self._records, epochs, place.cursor, steps, self._rows, self._total)


def _next(reading: Any) -> pipeline.Drawn:
  try:
    return next(reading)
  except RuntimeError as error:
    raise ChildProcessError(
      f'a process that reads the data has ended ({error}) Was it killed, or is memory short? The same command goes on '
      'from the last checkpoint'
    ) from error
