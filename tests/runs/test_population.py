"""Populations as a user starts them: every member's folder is that of the run made alone; kill -9; refusals."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from diffusion import launch
from diffusion.objectives import losses, penalties, weights
from diffusion.reporting.rows import read_json_lines
from diffusion.runs import population, training
from diffusion.runs.session import Setting
from diffusion.training import assembly
from diffusion.training.callbacks import Callback, Continue, Stop, checkpoint
from diffusion.training.checkpoint import open_checkpoints
from diffusion.workdir import read_record
from experiments import mixture
from tests.test_runs import wait_for_rows
from tests.training import tiny


@dataclasses.dataclass
class Config:
  """Numbers of a tiny run; `stop_at` is the step at which it stops."""

  seed: int = 0
  learning_rate: float = 1e-2
  l1: float = 0.0
  stop_at: float = 1000.0
  num_steps: int = 40


def build(c):
  """The tiny experiment with a callback that stops."""

  def update(state, event):
    return state, Stop('enough') if event.step >= c.stop_at else Continue()

  return tiny.experiment(
    seed=c.seed, num_steps=c.num_steps, learning_rate=c.learning_rate,
    steps_per_dispatch=5, log_every=5, validate_every=10,
    callbacks=[checkpoint(), Callback('stop', 5, dict, update)],
    terms={'denoise': (1.0, losses.denoising(weights.uniform('v'))), 'l1': (c.l1, penalties.l1())},
  )  # fmt: skip


def setting(folder, **values):
  return Setting(build, Config(**values), folder, 0, False, pathlib.Path(__file__))


@pytest.mark.slow
def test_members_stop_by_themselves_and_their_folders_are_those_of_runs_alone(tmp_path, capsys):
  values = [{'seed': 0, 'stop_at': 99.0}, {'seed': 1, 'stop_at': 25.0}]
  settings = [setting(tmp_path / 'all' / f'seed={one["seed"]}', **one) for one in values]
  trained = population.train_members(settings, values, lambda one: build(Config(**one)))
  assert [session.folder.name for session, _ in trained] == ['seed=0', 'seed=1']
  assert 'programs of 2, 1 members' in capsys.readouterr().err
  for one, step, rows in zip(values, (40, 25), (8, 5), strict=True):
    folder = tmp_path / 'all' / f'seed={one["seed"]}'
    record = read_record(folder)
    assert (record['status'], record['step']) == ('finished', step)
    assert len(read_json_lines(folder / 'metrics.jsonl')) == rows
  # Judged now, as by the same command again, and loaded as any run.
  assert population.train(settings, values, lambda one: build(Config(**one))) == 0
  assert '0 of 2 members to train' in capsys.readouterr().out
  assert (tmp_path / 'all' / 'seed=0' / 'report.md').exists()
  assert launch.load(tmp_path / 'all' / 'seed=1').step in (10, 20)
  # The second one again, alone.
  assert training.train(setting(tmp_path / 'alone', **values[1])) == 0
  one, other = read_record(tmp_path / 'alone'), read_record(tmp_path / 'all' / 'seed=1')
  for name in ('config', 'data', 'seed', 'num_steps', 'techniques', 'reason', 'step', 'bank'):
    assert one[name] == other[name], name
  checkpoints = [
    sorted(path.name for path in (folder / 'checkpoints').iterdir())
    for folder in (tmp_path / 'alone', tmp_path / 'all' / 'seed=1')
  ]
  assert checkpoints[0] == checkpoints[1]
  assert '25' in checkpoints[0]
  rows = [
    read_json_lines(folder / 'metrics.jsonl')
    for folder in (tmp_path / 'alone', tmp_path / 'all' / 'seed=1')
  ]
  for pair in zip(*rows, strict=True):
    assert pair[0].keys() == pair[1].keys()
    numbers = [[row[n] for n in sorted(row) if n != 'timing'] for row in pair]
    np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-6)


def go(folder):
  """Trains two members with everything that a resumed run must keep; they are not judged."""
  values = [{'seed': 0, 'l1': 0.0}, {'seed': 1, 'l1': 1e-3}]
  settings = [setting(folder / str(one['seed']), **one, num_steps=300) for one in values]
  population.train_members(
    settings, values, lambda one: build(Config(**one, num_steps=300, stop_at=1000.0))
  )


def left_behind(folder):
  """The last checkpoint's leaves and record, and the rows without their timing."""
  config = read_record(folder)['config']
  loaded, state, _ = tiny.start(build(Config(**config)))
  keeper = open_checkpoints(folder / 'checkpoints')
  found = keeper.restore(assembly.host_target(state), 'latest')
  keeper.close()
  rows = read_json_lines(folder / 'metrics.jsonl')
  rows = [{name: value for name, value in row.items() if name != 'timing'} for row in rows]
  return tiny.leaves(found.state), found.record, rows


@pytest.mark.slow
def test_a_population_that_is_killed_ends_as_one_that_is_not(tmp_path):
  """kill -9 while it trains: what both members leave behind is equal to the bit."""
  code = 'import pathlib, sys; from tests.runs import test_population as t; t.go(pathlib.Path(sys.argv[1]))'

  def begin(name):
    command = [sys.executable, '-c', code, str(tmp_path / name)]
    return subprocess.Popen(command, env=os.environ | {'PYTHONPATH': os.getcwd()})

  assert begin('whole').wait(300) == 0
  process = begin('run')
  wait_for_rows(tmp_path / 'run' / '1', process, 12)
  process.kill()
  process.wait()
  assert read_record(tmp_path / 'run' / '0')['status'] == 'running'
  assert begin('run').wait(300) == 0
  for member in ('0', '1'):
    leaves, record, rows = left_behind(tmp_path / 'run' / member)
    others, other_record, other_rows = left_behind(tmp_path / 'whole' / member)
    assert all(leaf.tobytes() == others[name].tobytes() for name, leaf in leaves.items())
    assert record == other_record
    assert json.dumps(rows) == json.dumps(other_rows)
    assert len(rows) == 60
  assert len(read_record(tmp_path / 'run' / '1')['starts']) == 2


@pytest.mark.slow
def test_sixty_four_members_of_the_mixture_finish(tmp_path):
  small = dataclasses.replace(mixture.SMOKE, width=8, depth=1, num_steps=20, examples=128)
  values = [{'seed': seed, 'learning_rate': 1e-3 * (1 + seed % 4)} for seed in range(64)]
  source = pathlib.Path(sys.modules[mixture.__name__].__file__)
  settings = [
    Setting(mixture.build, dataclasses.replace(small, **one), tmp_path / str(k), 0, True, source)
    for k, one in enumerate(values)
  ]
  done = population.train_members(
    settings, values, lambda one: mixture.build(dataclasses.replace(small, **one))
  )
  assert len(done) == 64
  losses = set()
  for k, one in enumerate(values):
    record = read_record(tmp_path / str(k))
    assert (record['status'], record['step'], record['seed']) == ('finished', 20, k)
    assert record['config']['learning_rate'] == one['learning_rate']
    assert (tmp_path / str(k) / 'checkpoints' / '20').is_dir()
    losses.add(json.dumps(read_json_lines(tmp_path / str(k) / 'metrics.jsonl')[0]['loss']))
  assert len(losses) == 64


def test_the_members_of_a_grid():
  found = launch.members(['seed=0..2,7', 'learning_rate=1e-3,2e-3'], Config())
  assert len(found) == 8
  assert found[0] == {'seed': 0, 'learning_rate': 1e-3}
  assert found[-1] == {'seed': 7, 'learning_rate': 2e-3}


@pytest.mark.parametrize(
  ('texts', 'message'),
  [
    (['sed=1'], "unknown field 'sed': the nearest is 'seed'"),
    (['seed=1', 'seed=2'], 'seed is given twice'),
    (['seed=1,1'], 'seed has a value twice'),
    (['seed=a'], "seed takes values like 0..15 or 0,1,2, got 'a'"),
    (['seed=3..1'], "got '3..1'"),
    (['learning_rate=1..3'], "learning_rate takes values like 1e-3,2e-3, got '1..3'"),
    (['learning_rate=nan'], "got 'nan'"),
  ],
)
def test_what_is_no_grid_is_refused(texts, message):
  with pytest.raises(ValueError, match=message):
    launch.members(texts, Config())


def test_the_folder_of_a_single_run_is_refused(tmp_path):
  (tmp_path / 'run.json').write_text('{}')
  values = [{'seed': 0}]
  with pytest.raises(ValueError, match='holds a single run'):
    population.train_members([setting(tmp_path / 'seed=0')], values, build)


def test_equal_data_is_held_once_and_with_other_units_shares_its_examples():
  one, equal, shifted = (assembly.load_data(tiny.experiment()) for _ in range(3))
  shifted = shifted._replace(units=shifted.units._replace(mean=1.0))
  share = population._Sharing()
  assert share(one) is one
  assert share(equal) is one
  found = share(shifted)
  assert found.units == shifted.units
  assert found.dataset is one.dataset
  assert share(shifted) is found
