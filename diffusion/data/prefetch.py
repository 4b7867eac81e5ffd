"""Batches of data that stays in its files, read ahead of the steps that take them.

What a batch holds is the same function of (seed, batches seen) as for data on the device, so that no iterator has a
state to save: it is addressed by the batches seen, and where these do not follow the last ones (where a run is resumed)
it is opened anew there. Grain reads ahead, with threads or with processes.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from typing import Any

import numpy as np
from jaxtyping import Integer

from diffusion import devices
from diffusion.data import pipeline
from diffusion.data.pipeline import Order
from diffusion.data.records import DiskRecords

_AHEAD = 4  # dispatches that the threads of this process read ahead


@dataclasses.dataclass(frozen=True)
class _Stretch:
  """What Grain reads from: element i is dispatch i after `batches_seen`, for the rows that this process holds."""

  records: DiskRecords
  label: Integer[np.ndarray, ' n']  # of each record, as the data has it: the files may say others
  order: Order
  batches_seen: int
  steps: int
  rows: Integer[np.ndarray, 'devices b']  # of the global batch, for each local device
  batch_size: int

  def __len__(self) -> int:
    return 2**40  # there is no end

  def __getitem__(self, i: int) -> pipeline.StoredBatch:
    index = self.order.batches(self.batches_seen + i * self.steps, self.steps, self.batch_size)
    index = np.moveaxis(index[:, self.rows], 1, 0)  # [local devices, steps, rows of a device]
    x, _ = self.records.labelled(index.ravel())
    return pipeline.StoredBatch(x.reshape(*index.shape, *x.shape[1:]), self.label[index], index)


def _settle_in(index: int, count: int) -> None:
  """Makes a worker leave signals to the process it works for, and end with it, however that ends."""
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
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


class Prefetcher:
  """Batches for the devices of this process, as `pipeline.StoredBatch` with axes [local devices, steps, rows, ...].

  Beside the batches that the devices have been given it holds those of one dispatch on the devices, and of four in
  host memory, or of three for each worker. Nothing is read or started before it is asked.
  """

  def __init__(
    self,
    records: DiskRecords,
    label: Integer[np.ndarray, ' n'],
    order: Order,
    rows: Integer[np.ndarray, 'devices b'],
    *,
    batch_size: int,
    steps: int,
  ):
    """What the devices of this process see of the training examples.

    Args:
      records: all rows of the data.
      label: of each row.
      order: in which the training examples come.
      rows: of the global batch that each device of this process holds.
      batch_size: rows of the global batch.
      steps: batches in a dispatch.
    """
    self._records, self._label, self._order, self._rows = records, label, order, rows
    self._batch_size, self._steps = batch_size, steps
    self._reading = self._waiting = self._following = None

  def take(self, seen: int) -> pipeline.StoredBatch:
    """The batches of one dispatch after so many, on the devices.

    Raises:
      ValueError: a record that cannot be read.
      ChildProcessError: a worker was ended from outside.
    """
    if seen != self._following:
      self.close()
      self._reading = _reading(self._stretch(seen, self._steps), self._records.workers)
    self.ahead()
    taken, self._waiting = self._waiting, None
    self._following = seen + self._steps
    return taken

  def ahead(self) -> None:
    """Sends the next dispatch's batches to the devices; called when these have work, as it waits for the reading.

    Raises:
      ValueError: a record that cannot be read.
      ChildProcessError: a worker was ended from outside.
    """
    if self._waiting is None:
      self._waiting = devices.spread(_next(self._reading))

  def read(self, seen: int, steps: int) -> pipeline.StoredBatch:
    """The `steps` batches after so many in host memory, read now and by this thread."""
    return self._stretch(seen, steps)[0]

  def close(self) -> None:
    """Forgets what was read ahead, and ends the threads or processes that read."""
    if self._reading is not None:
      self._reading.close()
    self._reading = self._waiting = self._following = None

  def _stretch(self, seen: int, steps: int) -> _Stretch:
    return _Stretch(
      records=self._records, label=self._label, order=self._order, batches_seen=seen, steps=steps,
      rows=self._rows, batch_size=self._batch_size,
    )  # fmt: skip


def _next(reading: Any) -> pipeline.StoredBatch:
  try:
    return next(reading)
  except RuntimeError as error:
    raise ChildProcessError(
      f'a process that reads the data has ended ({error}) Was it killed, or is memory short? The same command goes on '
      'from the last checkpoint'
    ) from error
