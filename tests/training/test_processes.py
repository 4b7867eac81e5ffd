"""Several processes train as one: the same numbers, one writer, and one readable line when a process is gone.

Real processes on the loopback, two with two virtual CPU devices each.
"""

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

from diffusion import devices, processes, witness
from diffusion.reporting import records
from diffusion.training import assembly, checkpoint
from diffusion.workdir import read_record
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


def finish(pair):
  """(exit status, standard output without Gloo's greeting, standard error) of each; none outlives the test."""
  found = []
  try:
    for process in pair:
      output, error = process.communicate(timeout=300)
      output = ''.join(line for line in output.splitlines(True) if not line.startswith('[Gloo]'))
      found.append((process.returncode, output, error))
  finally:
    for process in pair:
      process.kill()
  return found


PROGRAM = """
import pathlib, sys, time
import jax
from diffusion import devices, processes
count = processes.initialize()
devices.configure(32, 2, num_processes=count)
import numpy as np
from orbax.checkpoint import v1 as ocp
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

assert processes.texts('ab' * (me + 1)) == ['ab', 'abab']
assert processes.from_writer(lambda: ('only', me)) == ('only', 0)
try:
  with processes.together('a body'):
    if me == 1:
      raise ValueError('no data here')
  raise AssertionError
except processes.Agreed as error:
  assert str(error) == 'process 1: no data here', error
if me == 0:
  try:
    processes.barrier('lunch', 1)
    raise AssertionError
  except ValueError as error:
    assert str(error) == "process 1 of 2 did not come to 'lunch' within 1 s", error
processes.finish(0)
"""


def twenty_steps(kind):
  """The host state of the small experiment, dropout on, after twenty steps in this precision."""
  experiment = tiny.experiment()
  loaded, state, _ = tiny.start(experiment)
  state = jax.tree.map(lambda x: x.astype(kind) if x.dtype == np.float32 else x, state)
  dispatch = assembly.programs(experiment, loaded).dispatch
  state = devices.replicate(state)
  for _ in range(20):
    state, metrics = dispatch(state)
    devices.wait(metrics)
  return devices.to_host(state)


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
  '--config.num_steps=100', '--config.train_limit=64', '--config.examples=512', '--config.batch_size=32',
  '--config.steps_per_dispatch=5', '--config.log_every=5', '--config.validate_every=25', '--config.width=16',
  '--config.patience=5000', '--config.dropout=0.2', '--config.sampling_steps=5', '--config.samples=50',
]  # fmt: skip


def run(workdir, *flags):
  """Both processes of a run, started by flags."""
  command = [
    '-m', 'experiments.mixture', f'--workdir={workdir}', '--cpu_devices=2', '--num_processes=2',
    f'--coordinator=127.0.0.1:{free_port()}', f'--heartbeat_seconds={HEARTBEAT}', *NUMBERS, *flags,
  ]  # fmt: skip
  return [start(command, [f'--process_id={i}']) for i in (0, 1)]


def wait_for_rows(workdir, pair, rows):
  deadline = time.monotonic() + 120
  path = workdir / 'metrics.jsonl'
  while not path.exists() or path.read_bytes().count(b'\n') < rows:
    assert all(p.poll() is None for p in pair), finish(pair)
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.mark.slow
def test_a_run_that_lost_a_process_and_got_a_signal_ends_as_an_undisturbed_one(tmp_path):
  pair = run(tmp_path / 'whole')
  (status, _, error), (other, output, silent) = finish(pair)
  assert (status, other) == (0, 0), error + silent
  assert output == ''
  assert 'loss' not in silent
  workdir = tmp_path / 'run'
  pair = run(workdir)
  wait_for_rows(workdir, pair, 5)  # after a checkpoint, whose number JAX was asked for too
  pair[1].send_signal(signal.SIGTERM)
  (status, output, error), (other, *_) = finish(pair)
  assert (status, other) == (143, 143), error
  step = read_record(workdir)['step']
  assert 0 < step < 100
  assert re.search(
    rf'SIGTERM: saved at step {step}, \d+\.\d s after the signal; the same command', output
  )
  pair = run(workdir)
  wait_for_rows(workdir, pair, step // 5 + 5)
  pair[1].kill()
  begin = time.monotonic()
  (status, output, error), _ = finish(pair)
  assert time.monotonic() - begin < HEARTBEAT + 5
  assert status not in (0, 2)
  assert f'resuming from step {step}' in output
  lines = [line for line in error.splitlines() if line and not line.startswith('step ')]
  assert lines == [f'error: process 1 of 2 is gone: no sign of life from it; {witness.AGAIN}'], (
    error
  )
  (status, _, error), (other, *_) = finish(run(workdir))
  assert (status, other) == (0, 0), error
  rows = [
    [{k: v for k, v in row.items() if k != 'timing'} for row in records.read_json_lines(path)]
    for path in (workdir / 'metrics.jsonl', tmp_path / 'whole' / 'metrics.jsonl')
  ]
  assert [row['step'] for row in rows[0]] == list(range(5, 101, 5))
  assert json.dumps(rows[0]) == json.dumps(rows[1])


@pytest.mark.slow
def test_what_is_wrong_before_training_is_said_once_and_ends_all(tmp_path):
  pair = run(tmp_path / 'run', '--config.log_every=7')
  (status, _, error), (other, *said) = finish(pair)
  assert (status, other, said) == (2, 2, ['', ''])
  assert error.strip() == (
    'error: log_every must be a positive multiple of steps_per_dispatch = 5, got 7'
  )
  assert not list(tmp_path.iterdir())


WHY = (
  'F1121 22:26:18.28 1765 client.h:80] Terminating process because the JAX distributed service detected fatal errors. '
  'This most likely indicates that another task died. absl::Status: UNAVAILABLE: '
)


@pytest.mark.parametrize(
  ('words', 'line'),
  [
    ('The following tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThe', 'process 1 and 3 of 4 is gone: no'),
    ('Failed to send RPC to coordination service. Either the leader', 'process 0 of 4 is gone: its connection'),
    ('Something new.\nMore of it', 'the processes have lost each other: UNAVAILABLE: Something new.;'),
  ],
)  # fmt: skip
def test_the_witness_says_who_is_gone_in_one_line_and_passes_the_rest_on(words, line):
  program = [sys.executable, '-I', '-S', witness.__file__, '4']
  noise = 'E1121 22:26:18.28 1754 coordination_service.cc:1549] Use error polling\n'
  done = subprocess.run(
    program, input=f'a warning\n{noise}{WHY}{words}\n    @ 0x7f01 (unknown)\n',
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  first, second = done.stderr.splitlines()
  assert first == 'a warning'
  assert second.startswith(f'error: {line}')
  assert second.endswith(witness.AGAIN)
  plain = subprocess.run(program, input=noise, capture_output=True, text=True, check=True)
  assert plain.stderr == noise  # no end: nothing is held back


STEP = {'SLURM_PROCID': '0', 'SLURM_NTASKS': '8'}


@pytest.mark.parametrize(
  ('environment', 'found'),
  [
    ({}, None),
    (STEP, None),  # a script of sbatch, or an interactive allocation: no step of several tasks
    (STEP | {'SLURM_STEP_NUM_TASKS': '1'}, None),
    (STEP | {'SLURM_STEP_NUM_TASKS': '8'}, ('slurm', 8)),
    ({'TPU_ML_PLATFORM': 'JAX', 'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    ({'TPU_ML_PLATFORM': 'JAX', 'TPU_WORKER_HOSTNAMES': 'a,b,c'}, (None, 3)),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, None),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}, None),  # no client
  ],
)
def test_only_a_cluster_of_several_is_joined(environment, found):
  assert processes.cluster(environment, None) == found
  assert environment.get('TPU_ML_PLATFORM') is None or not processes.cluster(environment, 'cpu')


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
