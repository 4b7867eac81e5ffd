"""Several processes train as one: the same numbers, one writer, and one readable line when a process is gone.

Real processes on the loopback, two with two virtual CPU devices each.
"""

import errno
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from diffusion import devices, processes
from diffusion.provenance import read_record
from diffusion.reporting.rows import read_json_lines
from diffusion.training import checkpoint
from tests.programs import Program
from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[2]
HEARTBEAT = 5  # seconds; the default is 10


def free_port():
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]


def start(command, number, **more):
  """A process, started; its standard output and error are apart."""
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'} | more
  return subprocess.Popen(
    [sys.executable, *command, *number], cwd=ROOT, env=environment, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip


def without_greeting(output):
  """That of Gloo."""
  return ''.join(line for line in output.splitlines(True) if not line.startswith('[Gloo]'))


def finish(pair):
  """(exit status, standard output without Gloo's greeting, standard error) of each; none outlives the test."""
  found = []
  try:
    for process in pair:
      output, error = process.communicate(timeout=300)
      found.append((process.returncode, without_greeting(output), error))
  finally:
    for process in pair:
      process.kill()
  return found


PROGRAM = """
import os, pathlib, sys, time
import jax
from diffusion import devices, processes
count = processes.initialize()
devices.configure(32, 2, num_processes=count)
import numpy as np
from orbax.checkpoint import v1 as ocp
from diffusion.evaluation import features
from diffusion.training import checkpoint
from tests.training import test_processes, tiny
folder = pathlib.Path(sys.argv[1])
me = jax.process_index()
assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)

for kind in ('float64', 'float32'):
  with jax.enable_x64(kind == 'float64'):
    state = test_processes.twenty_steps(kind)
    if kind == 'float64':
      np.savez(folder / f'{kind}_{me}.npz', **tiny.leaves(state))

keeper = checkpoint.open_checkpoints(folder / 'two')
keeper.save(20, state, {'step': 20}, 0.5)
keeper.close()
np.savez(folder / f'float32_{me}.npz', **tiny.leaves(state))
keeper = checkpoint.open_checkpoints(folder / 'one')
restored = keeper.restore(state, 'latest')
keeper.close()
assert restored.record == {'step': 7}
for name, value in tiny.leaves(restored.state).items():
  assert (value == 7).all(), name

for value in (1, 2):
  ocp.save(folder / 'snapshot', {'w': np.full(3, value)}, overwrite=True)

double = devices.over_rows(lambda shared, x, i: (x * shared, i), chunk=32)
for n in (1, 129, 300):
  x = np.arange(n * 2, dtype=np.float32).reshape(n, 2)
  y, index = double(devices.replicate(np.float32(2)), x, np.arange(n, dtype=np.int32))
  np.testing.assert_array_equal(y, 2 * x)
  np.testing.assert_array_equal(index, np.arange(n))

assert processes.texts('words', 'ab' * (me + 1)) == ['ab', 'abab']
assert processes.from_writer(lambda: ['only', me]) == ['only', 0]

def what_all_raise(body):
  try:
    body()
    raise AssertionError
  except processes.Agreed as error:
    return str(error)

def fails_on(*numbers, where=''):
  with processes.together('a body'):
    if me in numbers:
      raise ValueError('no data here' + where)

def refuse():
  raise OSError('read-only')

assert what_all_raise(lambda: fails_on(1)) == 'process 1: no data here'
assert what_all_raise(lambda: fails_on(0)) == 'no data here'
assert what_all_raise(lambda: fails_on(0, 1)) == 'no data here'
said = what_all_raise(lambda: fails_on(0, 1, where=f' {me}'))
assert said == 'process 0: no data here 0; process 1: no data here 1', said
assert what_all_raise(lambda: processes.from_writer(refuse)) == 'OSError: read-only'

note = folder / 'note'
for text in ('first', 'second'):
  if me == 0:
    time.sleep(0.5)  # the other comes first, and waits
    note.write_text(text)
  assert processes.from_folder(note.read_text) == text
said = what_all_raise(lambda: processes.from_folder((folder / f'note{me or ""}').read_text))
assert said.startswith('process 1: FileNotFoundError'), said
os.environ['DIFFUSION_FEATURES'] = str(folder / f'cache_{me}')
made = []
def make(x):
  made.append(len(x))
  return x[:, :1]
counted = features.Features('first', '', 1, make)
for turn, total in enumerate((1, 2, 2)):
  np.testing.assert_array_equal(features.remembered(counted, np.ones((4, 2))), np.ones((4, 1)))
  assert len(made) == total, 'one process has forgotten them: all make them again'
  if (turn, me) == (0, 1):
    for path in (folder / 'cache_1').iterdir():
      path.unlink()

if me == 0:
  try:
    processes.barrier('lunch', 1)
    raise AssertionError
  except ValueError as error:
    assert str(error) == "process 1 of 2 did not come to 'lunch' within 1 s: " + processes.AGAIN, error
processes.finish(0)
"""


def twenty_steps(kind):
  """The host state of the small experiment, dropout on, after twenty steps in this precision."""
  experiment = tiny.experiment()
  split, state, _ = tiny.start(experiment)
  state = jax.tree.map(lambda x: x.astype(kind) if x.dtype == np.float32 else x, state)
  program = tiny.single(experiment, split, state)
  for _ in range(20):
    tiny.dispatch(program)
  return devices.to_host(program.get(0))


@pytest.mark.slow
def test_two_processes_agree_with_one_and_read_each_others_checkpoints(tmp_path):
  """Joined as tasks of a SLURM step, which JAX reads from the environment."""
  state = twenty_steps('float32')
  keeper = checkpoint.open_checkpoints(tmp_path / 'one')
  keeper.save(7, jax.tree.map(lambda x: np.full_like(x, 7), state), {'step': 7}, 0.0)
  keeper.close()
  step = {'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': '127.0.0.1', 'SLURM_LOCALID': '0'}
  step |= {'SLURM_NTASKS': '2', 'SLURM_STEP_NUM_TASKS': '2'}
  step |= {'JAX_COORDINATOR_PORT': str(free_port())}
  pair = [start(['-c', PROGRAM], [str(tmp_path)], **step, SLURM_PROCID=str(i)) for i in (0, 1)]
  for status, _, error in finish(pair):
    assert status == 0, error
  with jax.enable_x64(True):
    exact = twenty_steps('float64')
  for kind, expected, tolerance in (('float64', exact, 1e-9), ('float32', state, 1e-4)):
    first, second = (dict(np.load(tmp_path / f'{kind}_{i}.npz')) for i in (0, 1))
    for name, value in tiny.leaves(expected).items():
      assert first[name].tobytes() == second[name].tobytes(), name
      np.testing.assert_allclose(first[name], value, rtol=0, atol=tolerance, err_msg=name)
  keeper = checkpoint.open_checkpoints(tmp_path / 'two')
  restored = keeper.restore(state, 'latest')
  keeper.close()
  assert (restored.number, restored.record) == (20, {'step': 20})
  np.testing.assert_array_equal(ocp.load(tmp_path / 'snapshot')['w'], np.full(3, 2))
  for name, value in tiny.leaves(restored.state).items():
    assert value.tobytes() == first[name].tobytes(), name


NUMBERS = [
  '--config.num_steps=150', '--config.train_limit=64', '--config.examples=256', '--config.batch_size=32',
  '--config.steps_per_dispatch=5', '--config.log_every=5', '--config.validate_every=25', '--config.width=16',
  '--config.patience=5000', '--config.dropout=0.2', '--config.sampling_steps=5', '--config.samples=50',
]  # fmt: skip


def run(workdir, *flags):
  """Both processes of a run, started by flags."""
  command = [
    'experiments.mixture', f'--workdir={workdir}', '--cpu_devices=2', '--num_processes=2',
    f'--coordinator=127.0.0.1:{free_port()}', f'--heartbeat_seconds={HEARTBEAT}', *NUMBERS, *flags,
  ]  # fmt: skip
  return [Program(*command, f'--process_id={i}', apart=True) for i in (0, 1)]


def ended(pair):
  """What `finish` finds, of such a pair."""
  found = [program.finish() for program in pair]
  return [
    (status, without_greeting(output), program.errors)
    for program, (status, output) in zip(pair, found, strict=True)
  ]


def said(error):
  """The lines in which the program itself says what is wrong."""
  assert 'Traceback' not in error
  return [line for line in error.splitlines() if line.startswith('error: ')]


def wait_for_rows(workdir, pair, rows):
  deadline = time.monotonic() + 120
  path = workdir / 'metrics.jsonl'
  while not path.exists() or path.read_bytes().count(b'\n') < rows:
    assert all(p.poll() is None for p in pair), ended(pair)
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.mark.slow
def test_a_run_that_lost_a_process_and_got_a_signal_ends_as_an_undisturbed_one(tmp_path):
  pair = run(tmp_path / 'whole')
  (status, _, error), (other, output, silent) = ended(pair)
  assert (status, other) == (0, 0), error + silent
  assert output == ''
  assert 'loss' not in silent
  workdir = tmp_path / 'run'
  step = 0
  for number, victim in ((signal.SIGUSR1, 1), (signal.SIGINT, 0)):
    pair = run(workdir)
    # After a checkpoint, whose number JAX was asked for too.
    wait_for_rows(workdir, pair, step // 5 + 5)
    pair[victim].send_signal(number)
    (status, output, error), (other, *_) = ended(pair)
    assert (status, other) == (143, 143), error
    before, step = step, read_record(workdir)['step']
    assert before < step < 150
    assert re.search(
      rf'SIGTERM: saved at step {step}, \d+\.\d s after the signal; the same command', output
    )
  pair = run(workdir)
  wait_for_rows(workdir, pair, step // 5 + 5)
  pair[1].send_signal(signal.SIGKILL)
  begin = time.monotonic()
  (status, output, error), _ = ended(pair)
  assert time.monotonic() - begin < HEARTBEAT + 5
  assert status not in (0, 2), error
  assert f'resuming from step {step}' in output
  lines, runtime = said(error), 'the JAX distributed service detected fatal errors' in error
  assert len(lines) == 1 or (not lines and runtime), error
  assert all(line.endswith(processes.AGAIN) for line in lines), error
  (status, _, error), (other, *_) = ended(run(workdir))
  assert (status, other) == (0, 0), error
  rows = [
    [{k: v for k, v in row.items() if k != 'timing'} for row in read_json_lines(path)]
    for path in (workdir / 'metrics.jsonl', tmp_path / 'whole' / 'metrics.jsonl')
  ]
  assert [row['step'] for row in rows[0]] == list(range(5, 151, 5))
  assert json.dumps(rows[0]) == json.dumps(rows[1])


@pytest.mark.slow
def test_what_is_wrong_before_training_is_said_once_and_ends_all(tmp_path):
  pair = run(tmp_path / 'run', '--config.log_every=7')
  (status, _, error), (other, *said) = ended(pair)
  assert (status, other, said) == (2, 2, ['', ''])
  assert error.strip() == (
    'error: log_every must be a positive multiple of steps_per_dispatch = 5, got 7'
  )
  assert not list(tmp_path.iterdir())


def lose(address, how, number):
  """One of two processes; the second kills itself, and the first says so."""
  count = processes.initialize(address, 2, int(number), 60)
  devices.configure(32, num_processes=count)
  total = jax.pmap(lambda x: jax.lax.psum(x, 'devices'), 'devices')
  try:
    for n in range(20):
      if n == 9 and not processes.is_writer():
        os.kill(os.getpid(), signal.SIGKILL)
      if how == 'fetch':
        processes.gather(np.ones(3))
      else:
        devices.wait(total(np.ones((jax.local_device_count(), 3))))
  except Exception as error:
    assert processes.is_loss(error), repr(error)
    processes.lost(error)


@pytest.mark.slow
@pytest.mark.parametrize('how', ['fetch', 'wait'])
def test_where_python_still_runs_a_lost_process_is_said_in_one_line(how):
  """Long before the runtime would notice, at the next thing that takes both."""
  command = 'tests.training.test_processes', f'127.0.0.1:{free_port()}', how
  begin = time.monotonic()
  (status, _, error), (other, *_) = ended([Program(*command, str(i), apart=True) for i in (0, 1)])
  assert (status, other) == (1, -signal.SIGKILL), error
  assert time.monotonic() - begin < 60
  (line,) = said(error)
  assert line.startswith('error: a step of 2 processes failed, as it does where one is gone: ')
  assert line.endswith(processes.AGAIN)


def chained(error, cause=None, context=None, hidden=False):
  error.__cause__, error.__context__, error.__suppress_context__ = cause, context, hidden
  return error


@pytest.mark.parametrize(
  ('error', 'loss'),
  [
    (jax.errors.JaxRuntimeError('INTERNAL: Error dispatching computation: Gloo all-reduce failed'), True),
    (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'), False),
    (ValueError('UNKNOWN: Gloo AllGather failed: Connection closed by peer'), True),  # where a result is fetched
    (ValueError('NCCL operation ncclAllReduce failed: remote process exited'), True),
    (ValueError('/runs/gloo is not empty'), False),
    (chained(jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'), context=OSError('full')), False),
    (chained(OSError('no'), cause=chained(OSError('no'), cause=jax.errors.JaxRuntimeError('gone'))), True),
    (chained(OSError('no'), cause=KeyError('a'), context=jax.errors.JaxRuntimeError('gone'), hidden=True), False),
    (chained(OSError('no'), cause=ValueError('UNKNOWN: Gloo AllGather failed')), True),
    (chained(OSError('no'), context=jax.errors.JaxRuntimeError('ABORTED: gone')), True),
    (chained(ValueError('late'), context=jax.errors.JaxRuntimeError('timed out'), hidden=True), False),
  ],
)  # fmt: skip
def test_the_loss_of_a_process_is_told_from_other_errors(error, loss):
  assert processes.is_loss(error) == loss


def test_errors_of_a_disk_are_one_line_with_what_to_do():
  def said(number, name=None):
    return processes.one_line(OSError(number, os.strerror(number), name))

  full = said(errno.ENOSPC, '/runs/a/run.json')
  assert (
    "No space left on device: '/runs/a/run.json': make room there, then the same command goes on"
    in full
  )
  assert 'make room on the disk of the workdir, ' in said(errno.ENOSPC)
  assert 'make room there, then' in said(errno.EDQUOT, '/x')
  long = said(errno.ENAMETOOLONG, '/' + 'd' * 3480)
  assert long.startswith("a path is too long, of 3481 characters, '/ddd")
  assert long.endswith(': choose a shorter one')
  assert len(long) < 150
  assert processes.one_line(ValueError('no\n  data')) == 'no data'
  assert processes.one_line(KeyError('a')) == "KeyError: 'a'"
  assert said(errno.EROFS, '/x') == "OSError: [Errno 30] Read-only file system: '/x'"


def test_process_0_tells_only_what_json_gives_back_as_it_was():
  for value in (None, 'text', [1, 0.1, float('inf'), True], {'one': {'two': [None]}}):
    assert processes.from_writer(lambda value=value: value) == value
  for value in ((1, 2), {1: 'one'}, {'one': (1,)}, {'array': np.ones(2)}, pathlib.Path('run')):
    with pytest.raises(TypeError, match='JSON'):
      processes.from_writer(lambda value=value: value)


def test_alone_all_that_processes_say_is_what_this_one_says():
  assert processes.gather(np.arange(3)).tolist() == [[0, 1, 2]]
  assert processes.finish(7) == 7
  assert [processes.texts('words', text) for text in ('', 'naïveté')] == [[''], ['naïveté']]


def test_alone_an_error_stays_what_it_was(tmp_path):
  with pytest.raises(FileNotFoundError):
    processes.from_folder((tmp_path / 'missing').read_text)
  with pytest.raises(FileNotFoundError):
    processes.from_writer((tmp_path / 'missing').read_text)


STEP = {'SLURM_PROCID': '0', 'SLURM_NTASKS': '8'}


@pytest.mark.parametrize(
  ('environment', 'found'),
  [
    ({}, None),
    (STEP, None),  # a script of sbatch, or an interactive allocation: no step of several tasks
    (STEP | {'SLURM_STEP_NUM_TASKS': '1'}, None),
    (STEP | {'SLURM_STEP_NUM_TASKS': '8'}, ('slurm', 8)),
    ({'SLURM_STEP_NUM_TASKS': '8'}, None),
    ({'TPU_ML_PLATFORM': 'JAX'}, (None, 1)),
    ({'TPU_ML_PLATFORM': 'JAX', 'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    (
      {'TPU_ML_PLATFORM': 'JAX', 'TPU_PROCESS_ADDRESSES': 'a,b', 'TPU_WORKER_HOSTNAMES': 'a'},
      (None, 2),
    ),
    ({'TPU_ML_PLATFORM': 'JAX', 'TPU_WORKER_HOSTNAMES': 'a,b,c'}, (None, 3)),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, None),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}, None),  # no client
  ],
)
def test_only_a_cluster_of_several_is_joined(environment, found):
  assert processes.cluster(environment, None) == found
  assert environment.get('TPU_ML_PLATFORM') is None or not processes.cluster(environment, 'cpu')


def test_a_cluster_beside_chips_that_are_not_used_and_one_with_its_client_are_joined(monkeypatch):
  chips = STEP | {'SLURM_STEP_NUM_TASKS': '4', 'TPU_ML_PLATFORM': 'JAX'}
  assert processes.cluster(chips, 'cpu') == ('slurm', 4)
  monkeypatch.setattr(processes.importlib.util, 'find_spec', lambda name: name == 'kubernetes')
  indexed = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'}
  assert processes.cluster(indexed, None) == ('k8s', 1)
  for name, value in indexed.items():
    assert processes.cluster({name: value}, None) is None


def test_what_a_start_is_told_reaches_jax(monkeypatch):
  """By flags and by the environment; an error names the place where they were to meet."""
  told, set_up = [], []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *given, **named: told.append((given, named))
  )
  monkeypatch.setattr(jax.config, 'update', lambda *given: set_up.append(given))
  assert processes.initialize('h:1', 1, 0) == 1  # alone
  assert not told
  assert not set_up
  assert processes.initialize('h:1', 3, 2, 7) == 3
  assert told.pop() == (
    ('h:1', 3, 2), {'cluster_detection_method': 'deactivate', 'heartbeat_timeout_seconds': 7}
  )  # fmt: skip
  for name, value in (STEP | {'SLURM_STEP_NUM_TASKS': '5'}).items():
    monkeypatch.setenv(name, value)
  assert processes.initialize(heartbeat_seconds=20) == 5
  assert told.pop() == (
    (None, None, None), {'cluster_detection_method': 'slurm', 'heartbeat_timeout_seconds': 20}
  )  # fmt: skip
  assert set_up == [('jax_cpu_collectives_implementation', 'gloo')] * 2

  def fail(*given, **named):
    raise RuntimeError('late\n again')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  for flags, where in (((), 'the address that the cluster gives'), (('h:1', 2, 0), 'h:1')):
    with pytest.raises(ValueError, match=f'did not find each other at {where}: .*late again'):
      processes.initialize(*flags)


def test_a_signal_is_asked_for_by_every_number_once(monkeypatch):
  """From the one after the start, those of a dispatch at a time, until it has come."""
  asked = []
  monkeypatch.setattr(
    processes.multihost_utils, 'reached_preemption_sync_point', lambda n: asked.append(n) or n == 20
  )
  interrupted = processes.preemption(10, 5)
  assert interrupted() is None
  assert asked == [11, 12, 13, 14, 15]
  assert interrupted() == 'SIGTERM'
  assert asked == list(range(11, 21))


def test_what_differs_between_processes_is_said_with_both(monkeypatch):
  processes.check_same('the command', {'a': 1})
  for others, number in (([{'a': 1}, {'a': 2}], 2), ([{'a': 2}, {'a': 1}], 1)):
    monkeypatch.setattr(
      processes, 'texts', lambda name, text, more=others: [text, *map(json.dumps, more)]
    )
    with pytest.raises(processes.Agreed) as caught:
      processes.check_same('the command', {'a': 1})
    assert str(caught.value) == (
      'the command must be the same on all processes: '
      f'{{"a": 2}} on process {number}, {{"a": 1}} on process 0'
    )


def test_a_plain_start_joins_nothing_and_takes_no_time():
  begin = time.perf_counter()
  assert processes.initialize() == 1
  assert time.perf_counter() - begin < 0.01
  assert not processes.joined()
  assert processes.is_writer()


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('h:1', 2, None), r'--coordinator, --num_processes, --process_id go together, and --process_id is missing'),
    (('', None, 0), r'--coordinator and --num_processes is missing: give all three or none'),
    (('h:1', 2, 2), r'--process_id must be below --num_processes = 2, got 2'),
    (('h', 2, 1), r"--coordinator must be host:port of process 0, got 'h'"),
    (('h:1', 0, 0), r'--num_processes must be an integer >= 1, got 0'),
  ],
)  # fmt: skip
def test_flags_that_do_not_go_together_are_refused(flags, message):
  with pytest.raises(ValueError, match=message):
    processes.initialize(*flags)


if __name__ == '__main__':
  lose(*sys.argv[1:])


def test_a_program_that_leaves_ends_soon_with_all_that_it_said_whatever_still_runs():
  code = """
import threading, time
from diffusion import processes
processes._PATIENCE = 0.2
threading.Thread(target=time.sleep, args=(60,)).start()
print('last words')
processes.leave(2)
"""
  command = [sys.executable, '-c', code]
  begin = time.monotonic()
  done = subprocess.run(command, capture_output=True, text=True, timeout=59, check=False)
  assert (done.returncode, done.stdout, done.stderr) == (2, 'last words\n', '')
  assert time.monotonic() < begin + 50
