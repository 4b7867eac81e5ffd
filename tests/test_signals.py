"""What a program does when it is asked to end, by real signals to real processes."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from diffusion import signals

ASKING = signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1
# A training of a thousand short dispatches, or work outside of training.
PROGRAM = """
import signal, sys, time
from diffusion import signals

signals.outlive_readers()
try:
  with signals.interruptible():
    if 'training' in sys.argv[1]:
      with signals.caught_signals(0, 1) as signaled:
        print('begun', flush=True)
        for step in range(1000):
          time.sleep(0.01)
          print('step', step, flush=True)
          print(end='-', file=sys.stderr)
          if signaled() and sys.argv[1] == 'training':
            open(sys.argv[2], 'w').write('saved ' + signaled())
            print('saved', flush=True)
            sys.exit(128 + signal.Signals[signaled.name])
    else:
      print('begun', flush=True)
      time.sleep(10)
except KeyboardInterrupt as interrupt:
  sys.exit(signals.stopped_by(interrupt, 'stopped'))
"""


def start(tmp_path, what, *before, **more):
  """The program, which has begun; `before` are a command that becomes it."""
  command = [*before, sys.executable, '-u', '-c', PROGRAM, what, str(tmp_path / 'saved')]
  process = subprocess.Popen(command, **{'stdout': subprocess.PIPE, 'text': True} | more)
  if process.stdout:
    assert process.stdout.readline() == 'begun\n'
  return process


@pytest.mark.parametrize('number', [*ASKING, signal.SIGINT])
def test_each_signal_is_one_line_and_its_own_status_outside_of_training(tmp_path, number):
  process = start(tmp_path, 'else', stderr=subprocess.PIPE)
  process.send_signal(number)
  _, errors = process.communicate(timeout=20)
  assert (process.returncode, errors) == (128 + number, f'{signal.Signals(number).name}: stopped\n')


def test_each_signal_in_training_is_noted_once_and_a_terminal_may_send_it_twice(tmp_path):
  for number in (*ASKING, signal.SIGINT):
    process = start(tmp_path, 'training', stderr=subprocess.DEVNULL)
    process.send_signal(number)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    name = signal.Signals(number).name
    said = (tmp_path / 'saved').read_text()
    # Of several that are there at once, Python handles the lowest number first.
    assert said in {f'saved {name}', 'saved SIGHUP'}
    assert process.returncode == 128 + signal.Signals[said.split()[1]]


def test_a_second_signal_leaves_at_once(tmp_path):
  for number, status in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 128 + signal.SIGINT)):
    process = start(tmp_path, 'training that does not look', stderr=subprocess.PIPE)
    process.send_signal(signal.SIGUSR1)
    assert not process.stderr.readline().strip('-\n')
    assert (
      process.stderr.readline().strip('-')
      == 'SIGUSR1: saving, then leaving (Ctrl-C to leave at once)\n'
    )
    time.sleep(0.6)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == status
    assert not (tmp_path / 'saved').exists()


def test_what_nohup_ignores_stays_ignored(tmp_path):
  ignoring = 'sh', '-c', 'trap "" HUP; exec "$@"', 'sh'
  for what in ('training', 'else'):
    process = start(tmp_path, what, *ignoring, stderr=subprocess.DEVNULL)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(not shutil.which('setsid'), reason='no setsid here')
def test_a_closed_terminal_costs_neither_the_save_nor_the_status(tmp_path):
  """It is gone for what is printed before the save, too."""
  terminal, its_end = os.openpty()
  three = dict.fromkeys(('stdin', 'stdout', 'stderr'), its_end)
  command = ['setsid', '--ctty', sys.executable, '-c', PROGRAM, 'training', str(tmp_path / 'saved')]
  process = subprocess.Popen(command, **three)
  os.close(its_end)
  said = b''
  while b'step 2' not in said:
    said += os.read(terminal, 1000)
  os.close(terminal)
  assert process.wait(20) == 128 + signal.SIGHUP
  assert (tmp_path / 'saved').read_text() == 'saved SIGHUP'


def test_a_reader_that_is_gone_costs_neither_the_save_nor_the_status(tmp_path):
  """As where Ctrl-C reaches `tee` too."""
  process = start(tmp_path, 'training', stderr=subprocess.STDOUT)
  process.stdout.close()
  process.send_signal(signal.SIGINT)
  assert process.wait(20) == 128 + signal.SIGINT
  assert (tmp_path / 'saved').read_text() == 'saved SIGINT'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full here')
def test_a_full_disk_under_the_output_is_named(tmp_path):
  with open('/dev/full', 'w') as full:
    process = start(tmp_path, 'else', stdout=full, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=20)
  assert "No space left on device: '/dev/fd/1'" in errors


def test_what_handled_signals_before_does_so_again_and_a_thread_of_its_own_handles_none(capfd):
  handlers = lambda: [signal.getsignal(number) for number in (*ASKING, signal.SIGINT)]  # noqa: E731
  before, begin = handlers(), time.perf_counter()
  with signals.interruptible():
    outside = handlers()
    assert all(one != other for one, other in zip(outside[:3], before[:3], strict=True))
    with signals.caught_signals(0, 1) as signaled:
      inside = handlers()
      assert all(one != other for one, other in zip(inside, outside, strict=True))
      assert signaled() is None
      time.sleep(0.01)
      for number in (signal.SIGHUP, signal.SIGUSR1):  # of which only the first counts
        os.kill(os.getpid(), number)
      assert signaled() == signaled.name == 'SIGHUP'
      assert 0 <= signaled.seconds() <= time.perf_counter() - begin - 0.01
    assert handlers() == outside
  assert handlers() == before
  assert capfd.readouterr().err == '\nSIGHUP: saving, then leaving (Ctrl-C to leave at once)\n'

  found = []

  def apart():
    with signals.interruptible(), signals.caught_signals(0, 1) as signaled:
      found.append((signaled(), handlers()))

  thread = threading.Thread(target=apart)
  thread.start()
  thread.join()
  assert found == [(None, before)]
