"""The number of devices never changes a run."""

import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices, rng
from diffusion.models import mlp, normalization
from diffusion.models.functional import identity
from diffusion.objectives import losses, times, weights
from diffusion.process import schedules as noise
from diffusion.training import step as steps
from diffusion.types import Rows
from tests.programs import Program
from tests.training import tiny


@pytest.mark.slow
@pytest.mark.parametrize(
  ('kind', 'tolerance', 'counts'), [('float64', 1e-9, (1, 2, 4)), ('float32', 1e-4, (1, 4))]
)
def test_one_two_and_four_devices_agree_after_twenty_steps(tmp_path, kind, tolerance, counts):
  """Dropout, shifts and label dropout on, a U-Net on real digits."""
  found = {}
  for count in counts:
    path = tmp_path / f'{count}.npz'
    status, output = Program('tests.training.test_devices', str(count), kind, str(path)).finish()
    assert status == 0, output
    found[count] = dict(np.load(path))
  largest = {
    count: max(np.abs(found[1][name] - value).max() for name, value in found[count].items())
    for count in counts[1:]
  }
  print(f'{kind}: largest difference from one device {largest}')
  moved = max(np.abs(value).max() for name, value in found[1].items() if "'output'" in name)
  assert moved > 1e-3  # the output layer starts at zero, so training happened
  assert max(largest.values()) <= tolerance


def scattered(state):
  """The state in float64, with every parameter off what it begins with, so that none has a gradient of zero."""
  wide = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state)
  leaves, tree = jax.tree.flatten(wide.params)
  waves = [0.1 * jnp.sin(i + jnp.arange(x.size)).reshape(x.shape) for i, x in enumerate(leaves)]
  return wide._replace(params=jax.tree.unflatten(tree, jax.tree.map(jnp.add, leaves, waves)))


@pytest.mark.parametrize('parts', [1, 2])
def test_all_that_a_step_moves_is_of_the_rows_of_all_devices(x64, parts):
  """With all that can learn: schedule, uncertainty, times, batch statistics (or the noise scale, of micro-batches)."""
  learned = noise.learned(-9.0, 9.0, width=4)
  norm = normalization.batch(0.9) if parts == 1 else normalization.layer()
  made = tiny.experiment(
    diffusion=tiny.experiment().diffusion._replace(schedule=learned),
    terms={'uncertain': (1.0, losses.uncertain(weights.uniform(), 4))},
    times=times.importance(buckets=2),
    model=mlp.mlp(8, 1, 0.1, num_classes=2, norm=norm),
    micro_batches=parts,
    gradient_noise=parts > 1,
  )
  split, state, data = tiny.start(made)
  state = scattered(state)
  program = tiny.single(made, split, state)
  metrics = tiny.dispatch(program)
  found = tiny.leaves((devices.to_host(program.get(0)), metrics))
  # On one device the rows of a micro-batch are those that it has on four together.
  places = np.arange(32).reshape(4, parts, -1).swapaxes(0, 1).ravel()
  rows = Rows(jnp.asarray(places), 32)
  step = jax.jit(steps.make_step(made, split.units), static_argnames='cross_mean')
  given = tiny.rows_of(made, split, 0)[places]
  expected = tiny.leaves(step(state, data, given, rows, cross_mean=identity))
  moved = tiny.leaves((state, metrics))
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
  changed = {n for n, value in expected.items() if np.abs(value - moved[n]).max() > 1e-7}
  learning = ['params.schedule', 'params.terms', 'params.network', 'times', 'averages']
  for part in learning + ['statistics'] * (parts == 1):
    assert any(name.startswith(f'[0].{part}') for name in changed), part


def test_no_two_rows_of_the_global_batch_share_noise():
  def step(state, data, given, rows, cross_mean):
    keys = rng.row_keys(rng.batch_key(state['seed'], 'noise', 7), rows.index)
    drawn = rng.normal(keys, (3,))
    return state | {'noise': drawn, 'rows': rows.index}, cross_mean(drawn.sum())

  state = {'seed': jnp.uint32(5), 'noise': jnp.zeros((2, 3)), 'rows': jnp.zeros(2, jnp.int32)}
  given = devices.split_rows(np.arange(8, dtype=np.int32)[None])
  out, _ = devices.parallelize(step, 8)(devices.replicate(state), None, given)
  rows, noise = np.asarray(out['rows']).ravel(), np.asarray(out['noise']).reshape(8, 3)
  assert sorted(rows) == list(range(8))
  assert len(np.unique(noise[:, 0])) == 8
  whole = rng.normal(rng.row_keys(rng.batch_key(5, 'noise', 7), jnp.arange(8)), (3,))
  np.testing.assert_array_equal(noise[np.argsort(rows)], whole)


def test_a_step_meets_the_types_it_returns():
  """A weakly typed number, such as a parameter made from a Python number, would compile the step a second time."""
  weak = {'height': jnp.broadcast_to(jnp.asarray(2.0), (3,)), 'count': jnp.zeros(3, jnp.int32)}
  assert weak['height'].weak_type
  assert not any(x.weak_type for x in jax.tree.leaves(devices.replicate(weak)))


def test_over_rows_pads_and_cuts_for_any_number_of_rows():
  double = devices.over_rows(lambda shared, x, i: (x * shared, i), chunk=32)
  shared = devices.replicate(jnp.float32(2))
  for n in (1, 5, 127, 128, 300):
    x = np.arange(n * 2, dtype=np.float32).reshape(n, 2)
    y, index = double(shared, x, np.arange(n))
    np.testing.assert_array_equal(y, 2 * x)
    np.testing.assert_array_equal(index, np.arange(n))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((16, 3), 'not divisible by cpu_devices 3'), ((0,), 'batch_size must be an integer >= 1'),
    ((16, -1), 'cpu_devices must be an integer >= 0'), ((16, 0, False, 3), '16 is not divisible by the 3 processes'),
    ((16, 4, False, 8), 'batch_size 16 is not divisible by cpu_devices 4 x 8 processes'),
  ],
)  # fmt: skip
def test_configure_refuses_what_does_not_divide(arguments, message):
  with pytest.raises(ValueError, match=message):
    devices.configure(*arguments)


@pytest.mark.parametrize(
  ('rows', 'cores', 'count'),
  [(128, 2, 2), (8, 2, 1), (16, 8, 1), (32, 8, 2), (128, 64, 8), (126, 4, 3), (131, 8, 1)],
)
def test_a_core_gets_a_device_where_rows_divide_and_are_enough(rows, cores, count):
  assert devices._fitting_devices(rows, cores) == count


def test_rows_are_filled_up_to_the_devices_and_no_further():
  assert [devices.divisible(rows) for rows in (1, 4, 5, 8, 9)] == [4, 4, 8, 8, 12]
  found = devices.split_rows(np.arange(48).reshape(2, 8, 3))  # two steps of eight rows
  assert found.shape == (4, 2, 2, 3)
  np.testing.assert_array_equal(found[3, 1], np.arange(48).reshape(2, 8, 3)[1, 6:])


def test_members_lie_whole_on_the_devices_and_fillers_at_their_ends():
  """Five on four devices; each is computed of its own state and batch, and of the data of all."""
  members = {'x': np.arange(5.0), 'y': np.arange(10.0).reshape(5, 2)}
  for fill, last in ((None, 0), (-1, -1)):
    placed = devices.place_members(members, fill)
    assert placed['y'].shape == (4, 2, 2)
    found = devices.collect_members(placed)
    np.testing.assert_array_equal(found['x'], [0, 1, 2, 3, 4, *[last] * 3])
    np.testing.assert_array_equal(found['y'][:5], members['y'])
  state, given = (devices.place_members(factor * np.arange(5.0)) for factor in (10, 100))
  data = devices.replicate(np.float32(1000))
  for side_by_side in (False, True):
    every = devices.over_members(
      lambda member, state, given, data: member['y'][1] + state + given + data,
      side_by_side=side_by_side,
    )
    found = devices.collect_members(every(devices.place_members(members), state, given, data))
    np.testing.assert_allclose(found[:5], [1001 + 112 * n for n in range(5)])


def test_a_process_has_the_devices_that_suit_its_own_rows(monkeypatch):
  """With no accelerator and eight cores; what JAX is told cannot be changed once it has started."""
  told = {}
  monkeypatch.setattr(devices, '_accelerator', lambda: None)
  monkeypatch.setattr(os, 'cpu_count', lambda: 8)
  monkeypatch.setattr(jax, 'config', types.SimpleNamespace(update=told.__setitem__))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/of/mine')
  for arguments, count in (((64,), 4), ((64, 0, False, 2), 2), ((64, 8, False, 2), 8)):
    told.clear()
    devices.configure(*arguments)
    assert told['jax_num_cpu_devices'] == count
    assert ('jax_compilation_cache_dir' in told) == (len(arguments) == 1)
  devices.use_cache()
  assert told['jax_compilation_cache_dir'] == '/of/mine'
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  devices.use_cache()
  assert told['jax_compilation_cache_dir'] == os.path.expanduser('~/.cache/diffusion/compiled')


def test_the_peak_of_a_run_is_that_of_all_its_devices_where_their_kind_is_known(monkeypatch):
  assert devices.peak_flops() is None
  monkeypatch.setitem(devices._PEAKS, jax.devices()[0].device_kind, 2e12)
  assert devices.peak_flops() == 8e12


def test_the_most_memory_is_that_of_the_device_with_most(monkeypatch):
  def have(*bytes_in_use):
    stats = [{'peak_bytes_in_use': n, 'bytes_in_use': 1} if n else None for n in bytes_in_use]
    held = [types.SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    monkeypatch.setattr(jax, 'local_devices', lambda: held)
    return devices.peak_memory()

  assert have(5, 9, 7) == 9
  assert have(None, None) > 10**7  # of the process


def test_the_record_of_what_a_run_runs_on_names_every_setting(monkeypatch):
  known = {
    'jax_default_prng_impl': 'threefry2x32', 'jax_threefry_partitionable': True, 'jax_random_seed_offset': 0,
    'jax_enable_x64': False, 'jax_default_matmul_precision': None,
  }  # fmt: skip
  assert devices.settings() == known
  described = devices.describe()  # before XLA, when it begins, would read what is said below
  for name in [name for name in os.environ if name.startswith('JAX_')]:
    monkeypatch.delenv(name)
  said = dict.fromkeys(('LIBTPU_INIT_ARGS', 'NVIDIA_TF32_OVERRIDE', 'XLA_FLAGS'), 'said')
  said |= {'JAX_ENABLE_X64': 'said', 'JAX_PLATFORMS': 'said'}
  for name in (*said, 'JAX_MY_TOKEN', 'NVIDIA_ELSE', 'MY_XLA_FLAGS'):
    monkeypatch.setenv(name, 'said')
  assert devices.environment() == said
  assert [described[name] for name in ('platform', 'devices', 'processes')] == ['cpu', 4, 1]
  assert described['host_cpus'] == os.cpu_count()
  assert described['python'] == '.'.join(map(str, sys.version_info[:3]))


CHOICE = ' --xla_cpu_experimental_ynn_fusion_type=-individual_convolution'


@pytest.mark.parametrize(
  ('given', 'count', 'found'),
  [
    ('--xla_a=1', 1, '--xla_a=1' + CHOICE), ('--xla_a=1', -1, '--xla_a=1' + CHOICE), ('--xla_a=1', 2, '--xla_a=1'),
    ('--xla_cpu_experimental_ynn_fusion_type=', 1, '--xla_cpu_experimental_ynn_fusion_type='),
  ],
)  # fmt: skip
def test_eigen_convolves_for_a_single_device(monkeypatch, given, count, found):
  class Config:
    jax_num_cpu_devices = count  # which cannot be changed once JAX has started

  monkeypatch.setattr(devices, '_accelerator', lambda: None)
  monkeypatch.setattr(jax, 'config', Config)
  monkeypatch.setenv('XLA_FLAGS', given)
  devices.choose_convolutions()
  assert os.environ['XLA_FLAGS'] == found


def test_a_run_chooses_its_convolutions_before_jax_starts():
  program = """
import os, pathlib
import jax
from diffusion import devices
from diffusion.runs import run
from experiments import mnist
devices.configure(32, 1, cache=False)
early = devices.choose_convolutions
def choose():
  for count in (3, 1):  # which JAX refuses to change once it has started
    jax.config.update('jax_num_cpu_devices', count)
  early()
devices.choose_convolutions = choose
run.prepare(mnist.build, mnist.SMOKE, pathlib.Path(mnist.__file__), pathlib.Path('none'), smoke=True)
try:
  jax.config.update('jax_num_cpu_devices', 3)
except RuntimeError:
  pass
else:
  raise AssertionError('JAX has not started, or does not refuse')
assert '-individual_convolution' in os.environ['XLA_FLAGS']
"""
  environment = os.environ | {'PYTHONPATH': os.getcwd()}
  done = subprocess.run(
    [sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


# As samples are drawn: a network of two levels in a loop, on images of 16 pixels.
LOOPED = """
import math, sys
import jax, jax.numpy as jnp, numpy as np
from diffusion import devices
from diffusion.models import unet
from diffusion.types import Conditioning
devices.configure(64, int(sys.argv[1]), cache=False)
devices.choose_convolutions()
model, count = unet.unet(16, (1, 2), 2, ()), jax.device_count()
key, rows = jax.random.key(0), 32
z, noise = jax.random.normal(key, (rows, 16, 16, 3)), jnp.zeros(rows)
told = Conditioning(jnp.zeros(rows, jnp.int32), jnp.zeros((rows, 0)))
shapes = jax.eval_shape(model.init, key, z[:1], noise[:1], jax.tree.map(lambda x: x[:1], told))
random = np.random.default_rng(0)  # compiled draws of every shape would take a minute
draw = lambda x: random.normal(size=x.shape) / math.prod(x.shape[:-1]) ** 0.5
variables = jax.tree.map(lambda x: jnp.asarray(draw(x), jnp.float32), shapes)
def step(z, i):
  return z - 0.02 * model.apply(variables, z, noise, told)[0], None
def walk(z):
  return jax.lax.scan(step, z, jnp.arange(40))[0]
found = jax.pmap(walk)(jnp.broadcast_to(z, (count, *z.shape)))
np.save(sys.argv[2], np.asarray(found[-1]))
"""


@pytest.mark.slow
def test_what_a_loop_computes_does_not_depend_on_the_number_of_devices(tmp_path):
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}  # the code that users run
  environment['PYTHONPATH'] = os.getcwd()
  found = []
  for count in (1, 2):
    path = tmp_path / f'{count}.npy'
    command = [sys.executable, '-c', LOOPED, str(count), str(path)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    found.append(np.load(path))
  np.testing.assert_allclose(found[1], found[0], atol=1e-4)


@pytest.mark.skipif(sys.platform != 'linux', reason='malloc_trim is of glibc')
def test_what_is_free_is_given_back():
  program = """
from diffusion import devices
def resident():
  return int(open('/proc/self/statm').read().split()[1]) * 4096
blocks = [bytes(8192) for _ in range(20_000)]
last = bytes(8192)  # above them, so that the heap cannot shrink by itself
del blocks
before = resident()
devices.give_back_memory()
print(before - resident())
"""
  environment = os.environ | {'PYTHONPATH': os.getcwd()}
  command = [sys.executable, '-c', program]
  done = subprocess.run(command, check=True, env=environment, capture_output=True)
  assert int(done.stdout) > 100e6


@pytest.fixture
def planted(tmp_path):
  """The environment of a host on which JAX finds an accelerator's plugin."""
  package = tmp_path / 'planted-1.0.dist-info'
  package.mkdir()
  (package / 'METADATA').write_text('Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n')
  (package / 'entry_points.txt').write_text('[jax_plugins]\nxla_planted = planted\n')
  (tmp_path / 'planted.py').write_text('def initialize():\n  pass\n')
  environment = os.environ | {'PYTHONPATH': f'{os.getcwd()}:{tmp_path}', 'XLA_FLAGS': '--xla_a=1'}
  del environment['JAX_PLATFORMS']
  return environment


SETTINGS = """
import ctypes, os
import jax
from diffusion import devices
trimmed = []
class Library:
  def __init__(self, name): self.malloc_trim = trimmed.append
ctypes.CDLL = Library
before = jax.config.jax_num_cpu_devices
devices.configure(64, cache=False)
devices.choose_convolutions()
devices.give_back_memory()
print(jax.config.jax_num_cpu_devices - before, os.environ['XLA_FLAGS'], len(trimmed), sep='|')
"""


def settings(environment):
  """What a run sets of the CPU: (devices more than JAX's default, XLA_FLAGS, times that memory was given back)."""
  done = subprocess.run(
    [sys.executable, '-c', SETTINGS], env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  more, flags, trimmed = done.stdout.split('|')
  return int(more), flags, int(trimmed)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core is JAX's default already")
def test_no_cpu_setting_is_made_where_an_accelerator_is_used(planted):
  assert settings(planted) == (0, '--xla_a=1', 0)
  assert settings(planted | {'JAX_PLATFORMS': 'cuda'}) == (0, '--xla_a=1', 0)
  more, flags, trimmed = settings(planted | {'JAX_PLATFORMS': 'cpu'})
  assert more > 0
  assert flags == '--xla_a=1'  # several devices
  assert trimmed == 1


@pytest.mark.parametrize(
  ('platforms', 'name'), [({}, 'xla_planted'), ({'JAX_PLATFORMS': 'tpu,cpu'}, 'tpu')]
)
def test_cpu_devices_are_refused_by_name_where_an_accelerator_is_used(
  planted, platforms, name, tmp_path
):
  command = ['-m', 'experiments.mixture', f'--workdir={tmp_path}/run', '--smoke', '--cpu_devices=2']
  done = subprocess.run(
    [sys.executable, *command], env=planted | platforms, capture_output=True, text=True, check=False
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: --cpu_devices=2 ')
  assert repr(name) in line
  assert 'JAX_PLATFORMS=cpu' in line
  assert not (tmp_path / 'run').exists()


def test_parallelize_refuses_an_uneven_batch():
  with pytest.raises(ValueError, match='batch_size 10 is not divisible by the 4 devices'):
    devices.parallelize(lambda *a: a, 10)


@pytest.mark.slow
def test_a_thousand_dispatches_on_four_devices_do_not_deadlock():
  """A loop that never waits for a result aborts virtual CPU devices; the loop's wait prevents it."""

  def step(state, data, given, rows, cross_mean):
    gradient = cross_mean(jnp.sin(state * rows.index.sum()) + data.sum())
    return state + 1e-3 * gradient, {'loss': gradient.sum()}

  dispatch = devices.parallelize(step, 8)
  state, data = devices.replicate(jnp.ones((64, 64))), devices.replicate(jnp.ones(3))
  given, previous = np.zeros((4, 1, 2), np.int32), None
  for _ in range(1000):
    state, metrics = dispatch(state, data, given)
    if previous is not None:
      devices.wait(previous)
    previous = metrics['loss']
  assert np.isfinite(devices.to_host(state)).all()
  assert jax.device_count() == 4


def twenty_steps(count, kind, path):
  """Writes the parameters of the small U-Net after so many steps on so many devices."""
  jax.config.update('jax_enable_x64', kind == 'float64')
  devices.configure(16, count)
  experiment = tiny.images()
  split, state, _ = tiny.start(experiment)
  state = jax.tree.map(lambda x: x.astype(kind) if x.dtype == np.float32 else x, state)
  program = tiny.single(experiment, split, state)
  assert jax.device_count() == count
  for _ in range(20):
    tiny.dispatch(program)
  np.savez(path, **tiny.leaves(devices.to_host(program.get(0).params)))


if __name__ == '__main__':
  twenty_steps(int(sys.argv[1]), *sys.argv[2:])
