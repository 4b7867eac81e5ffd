"""Batches read from files: which rows they hold, what is read ahead, and how reading fails."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from diffusion.data import prefetch, records, sources
from diffusion.data.pipeline import Order
from tests import prepared

pytest.importorskip('grain')
ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES, BATCH = 37, 8
ROWS = np.arange(BATCH).reshape(4, 2)  # of the four devices of the tests
START = 5  # batches seen
LABEL = np.arange(EXAMPLES, dtype=np.int32)  # other than the files say


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('feed')
  prepared.mnist(path, EXAMPLES)
  return path / 'sets'


def images(folder, workers=0):
  return sources.streamed(sources.tfds('mnist', str(folder), size=4), workers).load().x


def order(seed=3):
  return Order(seed, np.arange(EXAMPLES))


def after(seen, dispatches, steps):
  return seen + dispatches * steps


def assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)


def test_records_are_the_array(folder, monkeypatch):
  whole, lazy = sources.tfds('mnist', str(folder), size=4).load(), images(folder)
  streamed = sources.streamed(sources.tfds('mnist', str(folder), size=4)).load()
  assert streamed._replace(x=None, label=None, test=None) == whole._replace(
    x=None, label=None, test=None
  )
  for one, other in zip(streamed.test, whole.test, strict=True):
    np.testing.assert_array_equal(one, other)
  monkeypatch.setattr(records, '_PIECE', 10)  # four pieces, the last of them short
  assert (lazy.shape, lazy.dtype, len(lazy)) == (whole.x.shape, whole.x.dtype, EXAMPLES)
  index = np.array([36, 0, 5, 5])
  np.testing.assert_array_equal(lazy[index], whole.x[index])
  np.testing.assert_array_equal(lazy[30:], whole.x[30:])
  np.testing.assert_array_equal(lazy.view(index)[1:3], whole.x[[0, 5]])
  np.testing.assert_array_equal(np.asarray(lazy), whole.x)
  np.testing.assert_array_equal(lazy.labelled(index)[1], whole.label[index])
  np.testing.assert_array_equal(lazy.labels(), whole.label)
  np.testing.assert_array_equal(lazy.whole()[1], whole.label)
  assert np.asarray(lazy[:0]).shape == (0, 4, 4, 1)


def test_two_processes_share_each_epoch_between_them(folder):
  """Every example once an epoch, in one process or the other; batches cross epochs, and nothing is left out."""
  x, whole = images(folder), sources.tfds('mnist', str(folder), size=4).load()
  feeds = [
    prefetch.Prefetcher(x, 9 - whole.label, order(7), half, batch_size=BATCH, steps=1)
    for half in np.split(ROWS, 2)
  ]
  batches = 2 * EXAMPLES  # 16 whole epochs, and 37 is no multiple of 8
  read = [one.read(0, batches) for one in feeds]
  for one in read:
    np.testing.assert_array_equal(one.x, whole.x[one.index])
    np.testing.assert_array_equal(one.condition, 9 - whole.label[one.index])  # not the files'
  halves = [np.moveaxis(one.index, 1, 0).reshape(batches, -1) for one in read]
  found = np.concatenate(halves, axis=1).ravel()
  owner = np.tile(np.repeat([0, 1], BATCH // 2), batches)
  for epoch in range(batches * BATCH // EXAMPLES):
    place = slice(epoch * EXAMPLES, (epoch + 1) * EXAMPLES)
    seen = [set(found[place][owner[place] == p].tolist()) for p in (0, 1)]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(EXAMPLES))


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_what_is_read_ahead_is_what_is_read_there(folder, workers):
  one = prefetch.Prefetcher(
    images(folder, workers), LABEL, order(), ROWS, batch_size=BATCH, steps=3
  )
  try:
    for i in range(7):
      place = after(START, i, 3)
      assert_equal(one.take(place), one.read(place, 3))
      one.ahead()
    elsewhere = 40  # where the last ones do not lead to
    assert_equal(one.take(elsewhere), one.read(elsewhere, 3))
  finally:
    one.close()
  assert not multiprocessing.active_children()


class Counting:
  """Records that count how often they are asked."""

  workers = 0

  def __init__(self, kept):
    self.kept, self.calls = kept, 0

  def __len__(self):
    return len(self.kept)

  def labelled(self, index):
    self.calls += 1
    return self.kept.labelled(index)


def test_reading_goes_on_while_a_step_runs_and_stops_at_its_depth(folder):
  counting = Counting(images(folder))
  one = prefetch.Prefetcher(counting, LABEL, order(), ROWS, batch_size=BATCH, steps=1)
  one.take(START)
  one.ahead()
  deepest = 2 + prefetch._AHEAD  # taken, on the devices, and read ahead by threads
  deadline = time.monotonic() + 20
  while counting.calls < deepest and time.monotonic() < deadline:
    time.sleep(0.01)  # nobody asks
  time.sleep(0.3)
  assert counting.calls == deepest
  one.close()


def test_a_killed_worker_is_one_error_and_no_hang(folder):
  one = prefetch.Prefetcher(images(folder, 1), LABEL, order(), ROWS, batch_size=BATCH, steps=2)
  one.take(START)
  (worker,) = multiprocessing.active_children()
  os.kill(worker.pid, signal.SIGKILL)
  begin = time.monotonic()
  with pytest.raises(ChildProcessError, match=r'exit code -9.*goes on from the last checkpoint'):
    for i in range(1, 50):
      one.take(after(START, i, 2))
  assert time.monotonic() - begin < 20
  one.close()


PROGRAM = """
import sys, time, multiprocessing
import numpy as np
from diffusion.data import prefetch, sources
from diffusion.data.pipeline import Order
if __name__ == '__main__':
  x = sources.streamed(sources.tfds('mnist', sys.argv[1], size=4), 1).load().x
  every, rows = np.arange(37), np.arange(8).reshape(1, 8)
  one = prefetch.Prefetcher(x, every, Order(0, every), rows, batch_size=8, steps=2)
  one.take(0)
  print(*(child.pid for child in multiprocessing.active_children()), flush=True)
  time.sleep(60)
"""


def alive(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
  except FileNotFoundError:
    return False


def test_workers_ignore_signals_but_end_with_a_killed_program(folder, tmp_path):
  (tmp_path / 'program.py').write_text(PROGRAM)
  process = subprocess.Popen(
    [sys.executable, tmp_path / 'program.py', folder],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  worker = int(process.stdout.readline())
  # As from a terminal, to all; the program would save first.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    os.kill(worker, number)
  time.sleep(0.5)
  assert alive(worker)
  process.kill()
  process.communicate()
  deadline = time.monotonic() + 20
  while alive(worker) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not alive(worker)


def damage(folder):
  path = next(folder.rglob('*train.array_record*'))
  content = bytearray(path.read_bytes())
  content[8192:16384] = bytes(8192)  # records of a kilobyte each
  path.write_bytes(content)


def is_readable(x, row):
  try:
    return len(x[np.array([row])]) == 1
  except ValueError:
    return False


@pytest.mark.parametrize('workers', [0, 1])
def test_a_record_that_became_unreadable_is_named(tmp_path, workers):
  prepared.mnist(tmp_path, EXAMPLES)
  x = images(tmp_path / 'sets', workers)
  damage(tmp_path / 'sets')
  records._open.cache_clear()
  one = prefetch.Prefetcher(x, LABEL, order(), ROWS, batch_size=BATCH, steps=1)
  with pytest.raises(
    ValueError, match=r'record \d+ of train in .* cannot be read .*prepare'
  ) as caught:
    for i in range(10):
      one.take(after(START, i, 1))
  assert '\n' not in str(caught.value)
  one.close()
  bad = [row for row in range(EXAMPLES) if not is_readable(x, row)]
  assert 1 < len(bad) < EXAMPLES / 2
  wanted = order().batches(START, 10, BATCH).ravel().tolist()
  first = next(row for row in wanted if row in bad)  # by its place in the files
  assert str(caught.value).startswith(f'record {first} of train in {x.directory} ')
  with pytest.raises(ValueError, match=r'record \d+ of train in .* cannot be read'):
    images(tmp_path / 'sets')  # the next start reads all of it before anything else


def test_all_at_once_is_refused_beyond_a_stated_size(folder, monkeypatch):
  x = images(folder)
  monkeypatch.setattr(records, 'WHOLE', EXAMPLES * 16 - 1)
  assert not x.fits
  with pytest.raises(ValueError, match='37 streamed images of train exceed the 591 bytes'):
    np.asarray(x)
  assert x.view(np.arange(36)).fits


def test_what_cannot_be_streamed_is_said(folder):
  with pytest.raises(ValueError, match='only a plain sources.tfds is streamed'):
    sources.streamed(sources.digits())
  with pytest.raises(ValueError, match='workers must be an integer >= 0, got -1'):
    sources.streamed(sources.tfds('mnist', str(folder)), -1)
