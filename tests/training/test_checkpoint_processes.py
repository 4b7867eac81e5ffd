"""Checkpoints beside other processes: kills between Orbax's commit and the manifest, and reading without a lock."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from diffusion.training import checkpoint


def tree(value):
  return {'w': np.full((50, 7), value, np.float32), 'n': np.asarray(int(value), np.int32)}


TARGET = tree(0)


def start(function, *arguments):
  """A process of its own, forked from a server that has done the imports and nothing of JAX."""
  server = multiprocessing.get_context('forkserver')
  server.set_forkserver_preload(['diffusion.training.checkpoint'])
  process = server.Process(target=function, args=arguments)
  process.start()
  return process


def check(restored):
  """To the bit what was saved under its number."""
  for name, value in tree(restored.number).items():
    assert restored.state[name].tobytes() == value.tobytes(), name
  assert restored.record == {'n': restored.number}


def save_and_be_killed(folder, number):
  """Saves one checkpoint, and is killed when the next is all there but for its manifest."""
  keeper = checkpoint.open_checkpoints(folder, latest=1, best=0, guarded=0)
  keeper.save(number, tree(number), {'n': number}, 0.0)
  kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
  keeper.save(number + 1, tree(number + 1), {'n': number + 1}, 0.0, before=kill)
  keeper.wait()


@pytest.mark.slow
def test_a_kill_between_the_commit_and_the_manifest_loses_nothing_before_it(tmp_path, capfd):
  """Twenty times in one directory that keeps a single checkpoint."""
  root = tmp_path / 'c'
  for number in range(1, 21):
    process = start(save_and_be_killed, root, number)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    names = {path.name for path in root.iterdir()}
    assert names == {f'{number}', f'{number}.sha256', f'{number + 1}'}
    assert ocp.metadata(root / f'{number + 1}').custom_metadata  # Orbax had committed it
    for read_only in (True, False):
      opened = checkpoint.open_checkpoints(root, read_only=read_only)
      check(opened.restore(TARGET))
      assert opened.steps() == [(number, 0.0)]
      opened.close()
    assert f'checkpoint {number + 1} is incomplete and set aside' in capfd.readouterr().out


def test_orbaxs_own_policies_delete_before_a_manifest_can_be_written(tmp_path):
  """Why checkpoints are deleted by this project: should this fail some day, Orbax may do it."""
  policies = ocp.training.preservation_policies
  best = policies.BestN(get_metric_fn=lambda metrics: metrics['metric'], reverse=True, n=1)
  policy = policies.AnyPreservationPolicy([policies.LatestN(1), best])
  with ocp.training.Checkpointer(tmp_path / 'c', preservation_policy=policy) as keeper:
    for number in (1, 2):
      keeper.save_async(number, TARGET, force=True, metrics={'metric': 0.0}).result()
    assert [path.name for path in (tmp_path / 'c').iterdir()] == ['2']


def save_on(folder, stop):
  """Saves several times a second, until the file `stop` is there; the first stays the best."""
  keeper, number = checkpoint.open_checkpoints(folder), 0
  while not stop.exists():
    number += 1
    keeper.save(number, tree(number), {'n': number}, float(number), guarded=number % 3 == 0)
    time.sleep(0.1)
  keeper.close()


@pytest.mark.slow
def test_a_directory_is_read_while_another_process_saves_there(tmp_path):
  root, seen = tmp_path / 'c', {'latest': set(), 'best': set(), 'guarded': set()}
  saver = start(save_on, root, tmp_path / 'stop')
  try:
    while len(list(root.glob('*.sha256'))) < 4:
      assert saver.is_alive()
      time.sleep(0.01)
    with pytest.raises(ValueError, match='in use by another process'):
      checkpoint.open_checkpoints(root)
    end = time.monotonic() + 5
    while time.monotonic() < end or len(seen['latest']) < 5:
      reader = checkpoint.open_checkpoints(root, read_only=True)
      newest = reader.last_record()['n']
      for which, numbers in seen.items():
        restored = reader.restore(TARGET, which)
        if restored is not None or which != 'guarded':  # the two of the guard may both be gone
          check(restored)
          numbers.add(restored.number)
          assert restored.number <= newest
  finally:
    (tmp_path / 'stop').touch()
    saver.join()
  assert saver.exitcode == 0
  assert seen['best'] == {1}
  assert all(number % 3 == 0 for number in seen['guarded'])
  keeper = checkpoint.open_checkpoints(root)
  assert keeper.restore(TARGET).damaged == ()  # the readers did no harm
  keeper.close()


def listing(folder):
  """All that reading must leave as it is."""
  return [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob('*'))]


def fill(root):
  """1 to 4, of which 3 is damaged and 4 is being saved; returns the file that is damaged."""
  keeper = checkpoint.open_checkpoints(root, latest=4)
  for number in (1, 2, 3, 4):
    keeper.save(number, tree(number), {'n': number}, -number)
  keeper.close()
  (root / '4.sha256').unlink()
  (root / '5.orbax-checkpoint-tmp').mkdir()
  damaged = max((root / '3').rglob('d/*'), key=lambda path: path.stat().st_size)
  damaged.write_bytes(damaged.read_bytes()[:-1])
  return damaged.relative_to(root)


@pytest.mark.parametrize('which', ['latest', 'best'])
def test_reading_changes_nothing_and_names_the_damaged_file_in_one_line(tmp_path, capsys, which):
  damaged = fill(tmp_path / 'c')
  capsys.readouterr()
  before = listing(tmp_path)
  reader = checkpoint.open_checkpoints(tmp_path / 'c', read_only=True)
  restored = reader.restore(TARGET, which)
  reader.close()
  check(restored)
  assert (restored.number, restored.damaged) == (2, (3,))
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(f'checkpoint 3 is damaged and stepped over ({damaged} has changed: ')
  assert listing(tmp_path) == before


def test_a_disk_that_cannot_be_written_is_read(tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', disk]
  if not shutil.which('mount') or subprocess.run(mount, check=False).returncode:
    pytest.skip('mounting is not allowed here')
  try:
    fill(disk / 'c')
    subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
    check(checkpoint.open_checkpoints(disk / 'c', read_only=True).restore(TARGET))
    assert checkpoint.open_checkpoints(disk / 'none', read_only=True).restore(TARGET) is None
    with pytest.raises(OSError, match='Read-only file system'):
      checkpoint.open_checkpoints(disk / 'c')
  finally:
    subprocess.run(['umount', '-l', disk], check=True)


def test_what_is_deleted_between_listing_and_reading_is_stepped_over(tmp_path, capsys):
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  for number in (1, 2):
    keeper.save(number, tree(number), {'n': number}, 0.0)
  keeper.wait()
  reader = checkpoint.open_checkpoints(tmp_path / 'c', read_only=True)
  checkpoint._delete(tmp_path / 'c' / '2')  # as a save does
  check(reader.restore(TARGET))
  assert reader.last_record() == {'n': 1}
  assert capsys.readouterr().out == ''
  checkpoint._delete(tmp_path / 'c' / '1')
  with pytest.raises(ValueError, match='none of the checkpoints in .* can be read'):
    reader.restore(TARGET)
  keeper.close()


@pytest.mark.parametrize('fails', [False, True])
def test_what_is_deleted_while_it_is_read_is_not_taken_for_whole(tmp_path, fails):
  def read(folder):
    folder.rename(tmp_path / '1.deleted')
    if fails:
      raise FileNotFoundError
    return 'zeros'

  (tmp_path / '1').mkdir()
  assert checkpoint._unless_deleted(tmp_path / '1', read) is None
  with pytest.raises(ZeroDivisionError):
    checkpoint._unless_deleted(tmp_path, lambda folder: 1 / 0)
