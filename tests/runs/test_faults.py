"""Runs on disks that are full, read-only or gone, and on another number of devices. The faults are real ones."""

import shutil
import subprocess
import time

import numpy as np
import pytest

from benchmarks import resume
from diffusion.provenance import read_record
from diffusion.training.checkpoint import manifest_of

# As many examples of each split: one program validates them all.
NUMBERS = [*resume.NUMBERS, '--config.num_steps=400', '--config.examples=256']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The run that nothing happened to."""
  workdir = tmp_path_factory.mktemp('faults') / 'whole'
  resume.finish(resume.start(workdir, *NUMBERS), workdir)
  return workdir


@pytest.fixture
def disk(tmp_path):
  """A disk of 8 MiB; where mounting is not allowed, `test_checkpoint` has full disks by a limit of the file size."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', folder]
  if (
    not shutil.which('mount')
    or subprocess.run(command, check=False, capture_output=True).returncode
  ):
    pytest.skip('mounting is not allowed here')
  yield folder
  subprocess.run(['umount', '-l', folder], check=False, capture_output=True)


def start(workdir, log):
  """The run, started or gone on with; its output is kept beside the disk."""
  log.unlink(missing_ok=True)
  return resume.start(workdir, *NUMBERS, log=log)


def go_until_rows(workdir, log, rows=5):
  """A process that has written so many rows more."""
  process = start(workdir, log)
  while process.is_alive() and 'left' not in (log.read_text() if log.exists() else ''):
    time.sleep(0.005)
  target = resume.rows(workdir) + rows
  while process.is_alive() and resume.rows(workdir) < target:
    time.sleep(0.005)
  assert process.is_alive(), log.read_text()
  return process


def notices(workdir):
  """What a start on the folder must say before it goes on: whether the last save got so far is chance."""
  names = {path.name for path in (workdir / 'checkpoints').iterdir() if path.name.isdecimal()}
  whole = {name for name in names if manifest_of(workdir / 'checkpoints' / name).exists()}
  if names == whole:
    return []
  (unfinished,) = names - whole
  return [
    f'checkpoint {unfinished} is incomplete and set aside (it has no manifest: ',
    f'going on from checkpoint {max(map(int, whole))}, the one before',
  ]


def only_error(process, log, said=()):
  """The one line with which a process ended, after such notices and nothing else."""
  process.join()  # as long as it takes on busy cores
  assert process.exitcode == 2, log.read_text()
  lines = [
    line for line in log.read_text().splitlines() if not line.startswith(('step ', 'resuming'))
  ]
  assert len(lines) == len(said) + 1, lines
  for line, begin in zip(lines, [*said, 'error: '], strict=True):
    assert line.startswith(begin), lines
  return lines[-1]


def fill(path):
  """Leaves no byte of a disk."""
  with pytest.raises(OSError, match='No space left'), path.open('ab', buffering=0) as file:
    for size in (4096, 1):
      while True:
        file.write(b'x' * size)


def fault(process, workdir, log, *named, said=()):
  message = only_error(process, log, said)
  assert any(str(workdir / name) in message for name in named), message
  return message


@pytest.mark.slow
def test_a_full_a_read_only_and_an_unmounted_disk_are_one_line_each_and_cost_only_time(
  disk, tmp_path, whole
):
  workdir, log = disk / 'run', tmp_path / 'run.log'
  process = go_until_rows(workdir, log)
  while process.is_alive():  # each time anew: it may delete an old checkpoint meanwhile
    fill(disk / 'ballast')
    time.sleep(0.005)
  message = fault(process, workdir, log, 'checkpoints', 'metrics.jsonl', 'events')
  assert 'No space left on device' in message
  fill(disk / 'ballast')
  message = fault(start(workdir, log), workdir, log, 'run.json')
  assert 'No space left on device' in message
  (disk / 'ballast').unlink()
  subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
  message = fault(start(workdir, log), workdir, log, 'run.json')
  assert 'Read-only file system' in message
  subprocess.run(['mount', '-o', 'remount,rw', disk], check=True)
  said = notices(workdir)
  process = go_until_rows(workdir, log)
  copy = tmp_path / 'held'
  copy.mkdir()
  subprocess.run(
    ['mount', '--bind', disk, copy], check=True
  )  # or the disk would go with its last file
  try:
    subprocess.run(['umount', '-l', disk], check=True)
    message = fault(process, workdir, log, 'checkpoints', said=said)
    assert 'was removed, renamed or unmounted' in message
    assert not (disk / 'run' / 'run.json').exists()
    shutil.rmtree(disk / 'run', ignore_errors=True)
    subprocess.run(['mount', '--bind', copy, disk], check=True)
    process = start(workdir, log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert not resume.differences(workdir, whole)
  finally:
    subprocess.run(['umount', '-l', copy], check=True)


@pytest.mark.slow
def test_a_folder_renamed_under_a_run_is_one_line_and_costs_only_time(tmp_path, whole):
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  process = go_until_rows(workdir, log)
  folder, elsewhere = workdir / 'checkpoints', tmp_path / 'elsewhere'
  folder.rename(elsewhere)
  message = fault(process, workdir, log, 'checkpoints')
  assert 'was removed, renamed or unmounted' in message
  shutil.rmtree(folder, ignore_errors=True)  # what a save in flight made anew
  elsewhere.rename(folder)
  process = start(workdir, log)
  process.join()
  assert process.exitcode == 0, log.read_text()
  assert not resume.differences(workdir, whole)


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
  workdir, log = tmp_path / 'run', tmp_path / 'log'
  workdir.write_text('')
  assert str(workdir) in only_error(start(workdir, log), log)


@pytest.mark.slow
def test_a_run_goes_on_on_other_numbers_of_devices_and_says_so(tmp_path):
  """Saved on 4; 20 further steps on 1 and on 2."""

  def run(workdir, count, *more):
    numbers = [one for one in NUMBERS if 'num_steps' not in one and 'cpu_devices' not in one]
    process = resume.start(workdir, *numbers, f'--cpu_devices={count}', *more)
    return resume.finish(process, workdir)

  def parameters(workdir):
    leaves, _, _ = resume.last_state(workdir)
    return {name: value for name, value in leaves.items() if name.startswith('.params')}

  run(tmp_path / 'on4', 4, '--config.num_steps=40')
  for count in (1, 2):
    shutil.copytree(tmp_path / 'on4', tmp_path / f'on{count}')
  before = parameters(tmp_path / 'on4')
  run(tmp_path / 'on4', 4, '--config.num_steps=40', '--extend=20')
  expected = parameters(tmp_path / 'on4')
  moved = max(np.abs(value - before[name]).max() for name, value in expected.items())
  assert moved > 1e-3
  assert 'resharded' not in read_record(tmp_path / 'on4')['starts'][-1]
  for count in (1, 2):
    workdir = tmp_path / f'on{count}'
    output = run(workdir, count, '--config.num_steps=40', '--extend=20')
    assert f'saved on 4 devices, going on with {count}: the same run up to rounding' in output
    difference = max(
      np.abs(value - expected[name]).max() for name, value in parameters(workdir).items()
    )
    print(f'4 to {count} devices: largest difference {difference}')
    assert difference <= 1e-4
    start = read_record(workdir)['starts'][-1]
    assert start['resharded'] == {'step': 40, 'from': 4, 'to': count}
    assert f'| resharded | step 40: 4 to {count} devices |' in (workdir / 'report.md').read_text()
