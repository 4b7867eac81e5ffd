"""Whole runs as a user starts them: resume to the bit, signals, kill -9, smoke, modes, loading."""

import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

import diffusion
from benchmarks import resume
from diffusion.provenance import read_record, write_record
from diffusion.reporting.rows import read_json_lines
from tests.programs import Program

ROOT = pathlib.Path(__file__).parent.parent
# Dropout on, several rows, validations and saves; long enough that a signal lands in the middle.
NUMBERS = [
  '--config.num_steps=1500', '--config.train_limit=64', '--config.examples=256', '--config.batch_size=32',
  '--config.steps_per_dispatch=5', '--config.log_every=10', '--config.validate_every=100', '--config.width=16',
  '--config.patience=5000', '--config.dropout=0.2', '--config.sampling_steps=5', '--config.samples=50',
]  # fmt: skip


def start(workdir, *flags, experiment='mixture'):
  """The program, started."""
  as_users = {} if '--smoke' in flags else {'XLA_FLAGS': None}
  flags = f'--workdir={workdir}', '--cpu_devices=2', *flags
  return Program(f'experiments.{experiment}', *flags, environment=as_users)


def finish(program):
  """(exit status, output)."""
  return program.finish()


def wait_for_rows(workdir, process, rows):
  """Returns once metrics.jsonl has so many rows."""
  deadline = time.monotonic() + 120
  path = workdir / 'metrics.jsonl'
  while not path.exists() or path.read_bytes().count(b'\n') < rows:
    assert process.poll() is None, process.output()
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  status, output = finish(start(workdir, *NUMBERS))
  assert status == 0, output
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_the_same_to_the_bit(tmp_path, uninterrupted, number):
  workdir = tmp_path / 'run'
  process = start(workdir, *NUMBERS)
  wait_for_rows(workdir, process, random.randint(2, 80))
  begin = time.monotonic()
  process.send_signal(number)
  status, output = finish(process)
  assert status == 128 + number, output
  step = read_record(workdir)['step']
  assert 0 < step < 1500
  said = re.search(rf'saved at step {step}, (\d+\.\d) s after the signal; the same command', output)
  assert float(said[1]) - 0.05 <= time.monotonic() - begin  # it is rounded to 0.1 s
  status, output = finish(start(workdir, *NUMBERS))
  assert status == 0, output
  assert f'resuming from step {step}' in output
  assert not resume.differences(workdir, uninterrupted)


@pytest.mark.slow
def test_an_evaluation_that_a_signal_ended_goes_on_behind_what_it_has_judged(
  tmp_path, uninterrupted
):
  workdir = tmp_path / 'run'
  shutil.copytree(uninterrupted, workdir)
  whole = read_record(workdir)
  write_record(workdir, whole | {'results': None, 'evaluations': [], 'samples': []})
  process = start(workdir, *NUMBERS)
  while not any(path.stat().st_size for path in workdir.glob('judging_*')):
    assert process.poll() is None, process.output()
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  status, output = finish(process)
  assert status == 128 + signal.SIGTERM, output
  assert output.endswith(
    'SIGTERM: left outside of training; the same command goes on from what is saved\n'
  )
  status, output = finish(start(workdir, *NUMBERS))
  assert status == 0, output
  assert 'judged by a start that was ended, and not again: validation' in output
  assert read_record(workdir)['results'] == whole['results']
  assert not [path for path in workdir.iterdir() if path.name.endswith(('.tmp', '.part'))]


@pytest.mark.slow
def test_a_run_that_trains_is_sampled_evaluated_and_loaded_from_beside(tmp_path):
  workdir = tmp_path / 'run'
  flags = [*NUMBERS, '--config.num_steps=200000']
  process = start(workdir, *flags)
  wait_for_rows(workdir, process, 25)
  judging = [
    start(workdir, *flags, '--mode=evaluate', f'--seed={seed}', '--num_samples=20')
    for seed in (5, 6)
  ]
  sampling = start(workdir, *flags, '--mode=sample', '--seed=7')
  assert diffusion.load(workdir).step % 100 == 0
  for beside in (*judging, sampling):
    status, output = finish(beside)
    assert status == 0, output
  assert process.poll() is None, process.output()
  process.send_signal(signal.SIGHUP)
  status, output = finish(process)
  assert status == 128 + signal.SIGHUP, output
  record = read_record(workdir)
  assert (record['status'], record['reason']) == ('interrupted', 'SIGHUP')
  assert sorted(one['request']['seed'] for one in record['evaluations']) == [5, 6]
  for name in ('samples_seed7.png', 'report_evaluation0.md', 'report_evaluation1.md'):
    assert (workdir / name).is_file()
  assert len({one['file'] for one in record['samples']}) == 2
  assert [row['step'] for row in read_json_lines(workdir / 'metrics.jsonl')] == [
    *range(10, record['step'] + 1, 10)
  ]


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_but_time(tmp_path):
  """Of a run that saves every 20 steps; half of them are aimed at a save. `benchmarks.resume` makes twenty."""
  seed = random.randrange(2**32)
  numbers = [*resume.NUMBERS, '--config.num_steps=900', '--config.examples=256']
  resume.finish(resume.start(tmp_path / 'whole', *numbers), tmp_path / 'whole')
  found = resume.chaos(tmp_path / 'killed', 6, seed, tmp_path / 'whole', numbers)
  print(f'seed {seed}: {found}')
  assert found.kills == 6
  assert found.while_saving > 0
  assert not found.differences


@pytest.mark.slow
def test_a_finished_run_says_so_extends_and_loads(uninterrupted):
  status, output = finish(start(uninterrupted, *NUMBERS))
  assert status == 0
  assert 'is finished at step 1500' in output
  run = diffusion.load(uninterrupted)
  record = read_record(uninterrupted)
  assert run.step == record['results']['best step']
  samples = run.sample([0] * 7, seed=4)
  np.testing.assert_array_equal(samples[:5], run.sample([0] * 5, seed=4))
  assert not np.array_equal(samples, run.sample([0] * 7, seed=5))
  with pytest.raises(ValueError, match=r'labels must be in \[0, 1\), or -1 for none, got 1'):
    run.sample([0, 1])
  prediction = run.denoiser([0])(np.zeros((1, 8), np.float32), np.full(1, 0.5, np.float32))
  assert prediction.x0.shape == (1, 8)
  before = read_record(uninterrupted)['step']
  copy = uninterrupted.parent / 'extended'
  subprocess.run(['cp', '-r', uninterrupted, copy], check=True)
  status, output = finish(start(copy, *NUMBERS, '--extend=100'))
  assert status == 0, output
  after = read_record(copy)
  assert after['step'] == before + 100
  assert [row['step'] for row in read_json_lines(copy / 'metrics.jsonl')][-1] == 1600


@pytest.mark.slow
@pytest.mark.parametrize(
  ('left', 'end'),
  [
    ({'status': 'interrupted', 'reason': 'SIGTERM', 'step': 1495}, 1500),  # a signal in the last dispatch
    ({'num_steps': 1550, 'extended_at': 1500}, 1550),  # a kill before the first checkpoint of an extension
  ],
)  # fmt: skip
def test_what_came_after_the_last_checkpoint_is_known_at_the_next_start(
  tmp_path, uninterrupted, left, end
):
  shutil.copytree(uninterrupted, tmp_path / 'run')
  write_record(tmp_path / 'run', read_record(tmp_path / 'run') | {'results': None} | left)
  status, output = finish(start(tmp_path / 'run', *NUMBERS))
  assert status == 0, output
  assert ('resuming from step 1500' in output) == (end > 1500)
  record = read_record(tmp_path / 'run')
  assert (record['status'], record['step']) == ('finished', end)
  assert record['reason'] == f'all {end} steps done'
  assert record['results'] is not None


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(
  tmp_path, uninterrupted
):
  workdir = tmp_path / 'run'
  process = start(workdir, *NUMBERS)
  wait_for_rows(workdir, process, 45)
  process.send_signal(signal.SIGTERM)
  assert finish(process)[0] == 128 + signal.SIGTERM
  folders = [path for path in (workdir / 'checkpoints').iterdir() if path.is_dir()]
  newest = max(folders, key=lambda path: int(path.name))
  for file in (newest / 'state' / 'ocdbt.process_0' / 'd').iterdir():
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
  for file in (newest / 'state' / 'd').iterdir():
    file.write_bytes(b'')
  status, output = finish(start(workdir, *NUMBERS))
  assert status == 0, output
  assert f'checkpoint {newest.name} is damaged and set aside' in output
  assert 'going on from checkpoint' in output
  assert not resume.differences(workdir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
  'experiment',
  sorted(
    {p.stem for p in (ROOT / 'experiments').glob('[a-z]*.py')}
    - {'ablation', 'agreement', 'evaluate', 'report'}
  ),
)
def test_every_experiment_passes_its_smoke_run(tmp_path, experiment):
  workdir = tmp_path / experiment
  begin = time.monotonic()
  profile = ['--profile=10:20'] if experiment == 'mixture' else []
  status, output = finish(start(workdir, '--smoke', *profile, experiment=experiment))
  assert status == 0, output
  print(f'{experiment} --smoke: {time.monotonic() - begin:.0f} s')
  for name in (
    'run.json',
    'experiment.py',
    'metrics.jsonl',
    'samples.png',
    'curves.png',
    'report.md',
    'samples.npz',
  ):
    assert (workdir / name).stat().st_size > 0, name
  record = read_record(workdir)
  assert record['status'] == 'finished'
  assert record['smoke'] is True
  assert 0 < record['speed']['images_per_second'] < np.inf
  assert record['speed']['flops_per_image'] > 1000
  assert 10**8 < record['speed']['peak_memory'] < 10**11
  assert '## Speed' in (workdir / 'report.md').read_text()
  traces = [path.name for path in (workdir / 'profile').rglob('*') if path.is_file()]
  assert bool(traces) == bool(profile)
  if profile:
    assert 'perfetto_trace.json.gz' in traces
    assert any(name.endswith('.xplane.pb') for name in traces)
    assert f'trace of steps 10 to 20 in {workdir}/profile' in output
  if experiment != 'mixture':
    assert 'SYNTHETIC' in record['data']['note']
    assert 'SYNTHETIC' in (workdir / 'report.md').read_text()
  assert any(path.name.startswith('events.out') for path in (workdir / 'events').iterdir())
  cited = (workdir / 'references.bib').read_text()
  assert 'ho2020denoising' in cited
  for technique in record['techniques']:
    assert technique['name'] in (workdir / 'report.md').read_text()


@pytest.mark.slow
def test_early_stopping_ends_an_overfitted_run_and_the_best_is_judged(tmp_path):
  flags = [flag for flag in NUMBERS if 'patience' not in flag and 'dropout' not in flag]
  status, output = finish(
    start(tmp_path / 'run', *flags, '--config.patience=200', '--config.learning_rate=0.005')
  )
  assert status == 0, output
  record = read_record(tmp_path / 'run')
  assert record['reason'].startswith('early stopping')
  rows = [r for r in read_json_lines(tmp_path / 'run' / 'metrics.jsonl') if 'validation/eps' in r]
  best = min(rows, key=lambda row: row['validation/eps'])
  assert record['results']['best step'] == best['step'] < record['step'] < 1500
  np.testing.assert_allclose(record['results']['validation/eps'], best['validation/eps'], rtol=1e-6)
