"""The accelerator's benchmark in toy sizes on the CPU: all parts, what is missing, what fails, what a kill leaves."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks import engine, sizes
from benchmarks.accelerator import __main__ as accelerator
from benchmarks.accelerator import bench as benches
from benchmarks.accelerator import measure, parts, plans, profiles, sections
from benchmarks.accelerator.sections import Row
from diffusion.models import dit
from experiments import cifar10, digits, mixture, mnist

ROOT = pathlib.Path(__file__).parent.parent
CORE = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'jaxtyping', 'torch')
# Installed in every process before anything else: what the core does not bring cannot be imported.
BLOCKER = """
import importlib.metadata, re, sys

def needs(name, found):
  key = re.sub('[-_.]+', '-', name).lower()
  if key in found:
    return
  try:
    required = importlib.metadata.requires(name) or []
  except importlib.metadata.PackageNotFoundError:
    return
  found.add(key)
  for one in required:
    if 'extra ==' not in one:
      needs(re.match('[A-Za-z0-9._-]+', one)[0], found)

allowed = set()
for name in CORE:
  needs(name, allowed)
blocked = {
  module for module, owners in importlib.metadata.packages_distributions().items()
  if not any(re.sub('[-_.]+', '-', owner).lower() in allowed for owner in owners)
} - {'diffusion', 'experiments', '__pycache__'}

class Block:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in blocked:
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Block())
"""


def run(out, *flags, environment=None, **options):
  """The command, started."""
  return subprocess.Popen(
    [sys.executable, '-m', 'benchmarks.accelerator', f'--out={out}', '--tiny', *flags], cwd=ROOT,
    env=os.environ | (environment or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
  )  # fmt: skip


def rows_of(out):
  return {(r['part'], r['name']): r for r in json.loads((out / 'results.json').read_text())['rows']}


@pytest.mark.slow
def test_all_parts_run_and_the_first_four_with_the_core_alone(tmp_path):
  planted, out = tmp_path / 'planted', tmp_path / 'out'
  planted.mkdir()
  (planted / 'sitecustomize.py').write_text(f'CORE = {CORE!r}\n{BLOCKER}')
  path = os.pathsep.join(filter(None, [str(planted), os.environ.get('PYTHONPATH')]))
  begin = time.monotonic()
  probe = 'import jax, flax, optax, orbax.checkpoint, absl, scipy; import tensorflow_datasets'
  probed = subprocess.run(
    [sys.executable, '-c', probe], env=os.environ | {'PYTHONPATH': path}, capture_output=True, text=True, check=False
  )  # fmt: skip
  assert "No module named 'tensorflow_datasets'" in probed.stderr.splitlines()[-1]
  first = run(out, '--parts=1,2,3,4', '--minutes=8', environment={'PYTHONPATH': path})
  printed, _ = first.communicate()
  assert first.returncode == 0, printed
  second = run(out, '--parts=5,6,7', '--minutes=8')
  printed += second.communicate()[0]
  assert second.returncode == 0, printed
  print(f'{time.monotonic() - begin:.0f} s')
  found = rows_of(out)
  torch = [r for (_, name), r in found.items() if 'PyTorch' in name]
  absent = importlib.util.find_spec('torch') is None
  for row in found.values():
    if absent and row in torch:
      assert row['why'] == 'not installed: torch (--wheels=DIR brings them)'
    else:
      assert row['status'] == 'measured', (row, printed)
  assert {part for part, _ in found} == set(parts.PARTS)
  assert len(torch) == 6
  assert found[1, parts._BESIDE]['found']['largest relative difference'] == 0
  for how in ('made again', 'saved and continued'):
    assert found[1, parts._WORKS]['found'][f'differ when {how}'] == 0
  continued = found[5, 'digits, again, killed by kill -9 and continued']['found']
  assert continued[parts._SAME] is True
  assert continued['results']['test/eps']['estimate'] > 0
  files = [path.relative_to(out) for path in out.rglob('*') if path.is_file()]
  assert len(files) <= 8
  assert all(len(path.parts) <= 3 for path in files)
  assert {'results.json', 'sections.md', 'digits.png', 'samples.png'} <= set(map(str, files))
  text = (out / 'sections.md').read_text()
  assert all(f'### {title}' in text for title in sections._TITLES.values())
  assert 'TOY SIZES' in text
  again = benches.Bench(out, 'tiny', time.monotonic() + 60, tmp_path, {})
  call, later = again.calls
  assert sections.alike(call, later)  # the second command took the first one's rows for its own
  again.begin(later)
  for part in (1, 2, 3, 4):
    parts.PARTS[part](again)
  assert again._count == 0  # what is known is not measured again: no process was started


@pytest.mark.slow
def test_a_kill_leaves_the_rows_before_it_and_no_process(tmp_path):
  process = run(tmp_path / 'out', '--parts=1,2')
  deadline = time.monotonic() + 200
  while not (tmp_path / 'out' / 'results.json').exists() or len(rows_of(tmp_path / 'out')) < 2:
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.05)
  # In the second part by now, or between the two.
  while not (children := children_of(process.pid)):
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert rows_of(tmp_path / 'out')[1, parts._WORKS]['status'] == 'measured'
  assert '### It works' in (tmp_path / 'out' / 'sections.md').read_text()
  deadline = time.monotonic() + 20
  while any(alive(pid) for pid in children):
    assert time.monotonic() < deadline, children
    time.sleep(0.05)


def test_a_program_whose_starter_is_gone_does_not_begin(tmp_path):
  # A benchmark killed between the start of a program and the program's first line.
  for parent, begun in ((os.getpid(), True), (1, False)):
    command = [
      str(benches._TETHERED),
      str(parent),
      sys.executable,
      '-c',
      f'open({str(tmp_path / "begun")!r}, "w")',
    ]
    subprocess.run([sys.executable, *command], check=begun)
    assert (tmp_path / 'begun').exists() == begun
    (tmp_path / 'begun').unlink(missing_ok=True)


def state_and_parent(pid):
  """A process's state and its parent; None where it is gone."""
  try:
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return None
  return fields[0], int(fields[1])


def alive(pid):
  found = state_and_parent(pid)
  return found is not None and found[0] != 'Z'


def children_of(parent):
  pids = [int(path.name) for path in pathlib.Path('/proc').glob('[0-9]*')]
  return [pid for pid in pids if (state_and_parent(pid) or ('', 0))[1] == parent]


@pytest.fixture
def bench(tmp_path):
  made = benches.Bench(tmp_path, 'tiny', time.monotonic() + 60, tmp_path, {})
  call = {
    'code': 'abc',
    'commit': 'abc',
    'kind': 'card',
    'plan': 'tiny',
    'command': 'it',
    'devices': 1,
    'platform': 'cpu',
  }
  made.begin(call)
  return made


def test_a_part_that_fails_says_why_and_the_next_one_follows(bench, monkeypatch, capsys):
  def broken(bench):
    raise RuntimeError('planted')

  monkeypatch.setitem(parts.PARTS, 3, broken)
  monkeypatch.setitem(parts.PARTS, 4, lambda bench: bench.note(4, 'mixture', dict))
  accelerator.measure(bench, [3, 4])
  printed = capsys.readouterr().out
  assert '3 the part itself: failed: RuntimeError: planted' in printed
  found = rows_of(bench.out)
  assert found[3, 'the part itself']['why'] == 'RuntimeError: planted'
  assert found[4, 'mixture']['status'] == 'measured'
  assert (
    '- the part itself: failed: RuntimeError: planted' in (bench.out / 'sections.md').read_text()
  )


def test_a_row_that_fails_says_why_and_what_is_missing_is_named(bench):
  assert bench.ask(2, 'wrong', 'step', which='nothing') is None
  row = rows_of(bench.out)[2, 'wrong']
  assert row['status'] == 'failed'
  assert "has no attribute 'nothing'" in row['why']
  assert bench.ask(6, 'files', 'feeding', packages=('json', 'no_such_a', 'no_such_b')) is None
  row = rows_of(bench.out)[6, 'files']
  assert row['status'] == 'left out'
  assert row['why'] == 'not installed: no_such_a, no_such_b (--wheels=DIR brings them)'


@pytest.mark.parametrize(
  'program, why',
  [
    ('import no_such_package', 'not installed: no_such_package (--wheels=DIR brings it)'),
    ("raise MemoryError('RESOURCE_EXHAUSTED: 2 GB\\n  allocated here')", 'MemoryError: RESOURCE_EXHAUSTED: 2 GB'),
    ("import sys; sys.exit('error: --x is wrong')", 'error: --x is wrong'),
    ("import os; print('going', flush=True); os.abort()", 'going (ended with status -6)'),
  ],
)  # fmt: skip
def test_the_reason_is_the_error_that_a_program_ended_with(bench, program, why):
  process = bench.start(['-c', program])
  assert bench.finish(process)
  assert benches.reason(process) == why


def test_a_row_without_its_time_is_left_out_and_one_that_outlasts_it_keeps_what_it_found(bench):
  bench.plan = 'full'  # a toy row asks for no time
  assert bench.ask(2, 'long', 'step', 61, which='unet') is None
  assert re.match(r'(5\d|60) s were left of the 61', rows_of(bench.out)[2, 'long']['why'])
  program = (
    'import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); time.sleep(60)'
  )
  result = bench.scratch / '1.json'
  process = bench.start(['-c', program, str(result), '{"1": 2}'])
  while not (result.exists() and result.read_text()):
    time.sleep(0.01)
  bench.deadline = time.monotonic()
  found = bench.note(1, 'cut', lambda: bench.result(process, bench.finish(process)))
  assert found == {'1': 2}
  row = rows_of(bench.out)[1, 'cut']
  assert (row['status'], row['found']) == ('cut off', {'1': 2})
  assert process.popen.returncode == -signal.SIGKILL


def test_rows_of_the_same_commit_and_card_are_kept_and_others_measured_again(bench):
  bench.note(1, 'digits', lambda: {'a': 1})
  again = benches.Bench(bench.out, 'tiny', time.monotonic() + 60, bench.out, {})
  again.begin(bench.header)
  assert again.note(1, 'digits', lambda: {'a': 2}) == {'a': 1}
  other = benches.Bench(bench.out, 'tiny', time.monotonic() + 60, bench.out, {})
  other.begin(bench.header | {'code': 'def'})
  assert other.note(1, 'digits', lambda: {'a': 2}) == {'a': 2}


def test_numbers_outlive_a_later_row_without_any(bench):
  def part():
    raise benches.LeftOut('its trace failed', {'images/s': 3.0}, 'failed')

  def nothing():
    raise benches.LeftOut('no time')

  bench.note(1, 'row', part)
  bench.note(1, 'row', nothing)
  assert rows_of(bench.out)[1, 'row']['found'] == {'images/s': 3.0}


STEP = {
  'batch': 512,
  'images/s': 1000.0,
  'least': 900.0,
  'most': 1100.0,
  'peak memory': 2_000_000_000,
}
CALL = {
  'code': 'abc',
  'commit': 'abc',
  'kind': 'card',
  'plan': 'full',
  'command': 'it',
  'devices': 1,
  'peak_flops': 1e15,
}


def test_a_goal_that_is_missed_brings_its_profile_and_one_that_is_met_does_not():
  counted = {'flops an image': 4 * 10**11, 'steps traced': 10, 'operations': [['gemm', 7, 0.75]]}
  ours = Row(2, 'U-Net bfloat16, ours', 'measured', '', 1.0, STEP | counted, 0)
  peer = Row(
    2, 'U-Net bfloat16, PyTorch compiled', 'measured', '', 1.0, STEP | {'images/s': 800.0}, 0
  )
  tf32 = Row(2, 'U-Net TF32, ours', 'measured', '', 1.0, STEP, 0)
  assert sections.utilization(ours, [ours], CALL) == pytest.approx(0.4)
  assert sections.utilization(tf32, [ours, tf32], CALL) == pytest.approx(0.8)
  text = sections.write([ours, peer, tf32], [CALL])
  assert re.search(
    r'U-Net bfloat16, ours \| 512 \| – \| 1000 \| 900 \| 1100 \| 1.25 \| 0.400 \| 2.00', text
  )
  assert re.search(r'U-Net bfloat16 / PyTorch compiled >= 1 \| 1.25 \| yes', text)
  assert 'gemm' not in text
  # Not beside what another card did.
  other = sections.write([ours, peer._replace(call=1)], [CALL, CALL | {'kind': 'another'}])
  assert 'compiled >= 1' not in other
  slow = ours._replace(found=ours.found | {'images/s': 400.0})
  text = sections.write([slow, peer], [CALL])
  assert re.search(r'PyTorch compiled >= 1 \| 0.500 \| no', text)
  assert re.search(r'MFU >= 0.35 \| 0.160 \| no', text)
  assert re.search(r'gemm \| 7 \| 0.750', text)
  assert text.count('costliest operations') == 1


def test_populations_and_the_main_job_have_goals_too():
  one, sixteen = (
    STEP | {'first dispatch (s)': 1.0},
    STEP | {'images/s': 9000.0, 'first dispatch (s)': 1.0},
  )
  mixed = Row(4, 'mixture', 'measured', '', 1.0, {'1': one, '16': sixteen}, 0)
  job = Row(5, 'digits, nothing compiled', 'measured', '', 1.0, {'report (s)': 61.0}, 0)
  found = {goal.text: (goal.found, goal.met) for goal in sections.goals([mixed, job], [CALL])}
  _, met, rest = sections.write([mixed, job], [CALL]).partition('| yes |')
  assert met
  assert '16 seeds of the mixture' not in rest
  mixed.found['16'] |= {'images/s': 7000.0, 'operations': [['fusion', 3, 0.5]], 'steps traced': 50}
  text = sections.write([mixed, job], [CALL])
  assert '16 seeds of the mixture, the costliest operations of 50 steps' in text
  assert found['16 seeds of the mixture / one >= 8'] == (9.0, True)
  assert found['digits, start to report <= 60 s'] == (61.0, False)


def test_a_real_run_fits_into_the_time_left_and_its_row_can_be_written(bench):
  bench.note(6, 'MNIST network, the step', lambda: {'images/s': 12_800.0})
  call = bench.header | {'plan': 'full'}
  bench.plan, bench.data_dir, bench.deadline = 'full', '/data', time.monotonic() + 200
  name, flags = parts._affordable(bench)
  assert name == 'mnist'
  # 70 steps a second for 100 s: 7,000, less what has passed.
  assert flags in (['--config.data_dir=/data', f'--config.num_steps={n}'] for n in (6500, 7000))
  made = mnist.build(dataclasses.replace(mnist.Config(), num_steps=1000))  # the fewest asked for
  assert made.num_steps == 1000
  found = {'experiment': name, 'flags': ' '.join(flags), 'pair': flags}
  row = Row(7, 'a real run', 'measured', '', 1.0, found, 0)
  assert '--config.num_steps=' in sections.line(row)
  assert '--config.num_steps=' in sections.write([row], [call])
  bench.deadline = time.monotonic() + 100
  with pytest.raises(benches.LeftOut, match='too little for 1,000 steps'):
    parts._affordable(bench)


def test_the_transformer_is_made_in_float32_where_fused_attention_is_asked_for(monkeypatch):
  """What cuDNN takes is bfloat16 alone, and the first state is made in float32."""
  monkeypatch.setattr(dit, 'attend', dit.attend)  # put back afterwards
  engine.fused_attention()
  made = engine.experiment(plans.TINY.dit, 1, narrow=True)
  assert engine.training(made).parameters > 0
  narrow = jnp.ones((1, 4, 2, 8), jnp.bfloat16)
  with pytest.raises(
    (RuntimeError, NotImplementedError, ValueError)
  ):  # it is asked for: a CPU has none
    jax.eval_shape(dit.attend, narrow, narrow, narrow)


def test_a_profile_names_the_operation_that_takes_the_time(tmp_path):
  x = jnp.ones((700, 700))
  work = jax.jit(lambda x: jnp.sort(x, axis=0)[0])
  work(x).block_until_ready()
  engine.trace(tmp_path, lambda: work(x).block_until_ready())
  found = profiles.top_operations(tmp_path)
  assert found[0][0] == 'sort'
  assert 0.5 < found[0][2] <= 1
  assert sum(share for _, _, share in found) <= 1 + 1e-9


def test_a_speed_is_work_over_time():
  def work(count):
    time.sleep(0.02 * count)

  found = measure._speed(work, 10, 0.2)
  assert found['least'] <= found['images/s'] <= found['most'] <= 10 / 0.02
  assert found['most'] > 0.3 * 10 / 0.02


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'results.json').write_text('[1, 2]')
  with pytest.raises(ValueError, match=r'results.json is not of this benchmark'):
    benches.Bench(tmp_path, 'tiny', 0.0, tmp_path, {})


@pytest.mark.parametrize('given', [['8'], ['1', 'x'], []])
def test_parts_that_do_not_exist_are_refused(given):
  with pytest.raises(ValueError, match='--parts takes some of 1,2,3,4,5,6,7'):
    accelerator.chosen(given)
  assert accelerator.chosen(['3', '1', '3']) == [3, 1]


def test_only_the_rows_asked_for_by_name_are_measured(tmp_path):
  only = accelerator.pattern('DiT|one step')
  bench = benches.Bench(tmp_path, 'tiny', time.monotonic() + 60, tmp_path, {}, only=only)
  bench.begin({'platform': 'cpu'})
  assert bench.note(2, 'DiT-B/2 bfloat16', lambda: {'images/s': 1.0}) == {'images/s': 1.0}
  assert bench.note(2, 'U-Net TF32', lambda: pytest.fail('it was not asked for')) is None
  assert [row.name for row in bench.rows] == ['DiT-B/2 bfloat16']
  with pytest.raises(ValueError, match=r'--rows=\( is not a regular expression'):
    accelerator.pattern('(')


def test_a_folder_without_wheels_is_refused_and_wheels_are_found_by_processes(tmp_path):
  with pytest.raises(ValueError, match='has no wheel'):
    accelerator.unpack(str(tmp_path), tmp_path / 'target')
  assert accelerator.unpack('', tmp_path / 'target') == {}


def test_one_device_trains_as_all_do():
  made = engine.experiment(plans.TINY.digits, 2, log_every=2)
  found = {}
  for one_device in (False, True):
    training = engine.training(made, one_device)
    state, metrics = training.dispatch(training.first())
    found[one_device] = float(jnp.ravel(metrics['loss'])[0])
    shards = {device for leaf in jax.tree.leaves(state) for device in leaf.devices()}
    assert len(shards) == (1 if one_device else jax.device_count())
  assert found[True] == pytest.approx(found[False], rel=1e-5)


def test_a_first_state_begins_with_the_first_batch_again_and_a_population_waits_for_its_members():
  training = engine.training(engine.experiment(plans.TINY.digits, 1, log_every=1))
  losses = []
  for _ in range(2):
    state = training.first()
    for _ in range(2):
      state, metrics = training.dispatch(state)
      losses.append(float(jnp.ravel(metrics['loss'])[0]))
  assert losses[:2] == losses[2:]
  assert losses[0] != losses[1]
  dispatch = engine.population(lambda seed: engine.mixture(seed, 16, 2), 3)
  begun = [dispatch(live) for live in (3, 2)]
  engine.wait(begun)
  first, second = ([float(one.of(member)['loss']) for member in range(3)] for one in begun)
  assert len({*first}) == 3
  assert first[2] == second[2] != second[1]


def test_the_benchmarks_train_what_the_experiments_train():
  def parameters(made):
    return engine.training(made).parameters

  for module in (digits, mnist, cifar10):
    assert module.Config.steps_per_dispatch == sizes.STEPS_PER_DISPATCH
  assert mixture.Config.steps_per_dispatch == 5 * plans.FULL.per_dispatch
  own, given = digits.build(digits.Config()), engine.experiment(plans.FULL.digits, 10)
  assert parameters(own) == parameters(given)
  assert engine.training(own).flops() == engine.training(given).flops()
  own, given = mixture.build(mixture.Config()), engine.mixture(0)
  assert parameters(own) == parameters(given)
  assert own.batch_size == given.batch_size
