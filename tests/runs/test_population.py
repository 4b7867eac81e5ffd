"""Populations as a user starts them: every member's folder is that of the run made alone; kill -9; refusals."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

from diffusion import launch
from diffusion.reporting import records
from diffusion.runs import population, training
from diffusion.runs.session import Setting
from diffusion.training.callbacks import Callback, Continue, Stop, checkpoint
from diffusion.workdir import read_record
from experiments import mixture
from tests.test_runs import assert_same_run, finish, start, wait_for_rows
from tests.training import tiny


@dataclasses.dataclass
class Config:
  """Numbers of a tiny run; `stop_at` is the step at which it stops."""

  seed: int = 0
  learning_rate: float = 1e-2
  l1: float = 0.0
  stop_at: float = 100.0


def build(c):
  """The tiny experiment with a callback that stops."""

  def update(state, event):
    return state, Stop('enough') if event.step >= c.stop_at else Continue()

  return tiny.experiment(
    seed=c.seed, learning_rate=c.learning_rate, steps_per_dispatch=5, log_every=5, validate_every=10,
    callbacks=[checkpoint(), Callback('stop', 5, dict, update)],
  )  # fmt: skip


def setting(folder, **values):
  return Setting(build, Config(**values), folder, 0, False, pathlib.Path(__file__))


def test_members_stop_by_themselves_and_their_folders_are_those_of_runs_alone(tmp_path, capsys):
  values = [
    {'seed': 0, 'stop_at': 10.0},
    {'seed': 1, 'stop_at': 25.0},
    {'seed': 2, 'stop_at': 99.0},
  ]
  settings = [setting(tmp_path / 'all' / f'seed={one["seed"]}', **one) for one in values]
  trained = population.train_members(settings, values, lambda one: build(Config(**one)))
  assert [session.folder.name for session, _ in trained] == ['seed=0', 'seed=1', 'seed=2']
  assert 'programs of 3, 2, 1 members' in capsys.readouterr().err
  for one, step, rows in zip(values, (10, 25, 40), (2, 5, 8), strict=True):
    folder = tmp_path / 'all' / f'seed={one["seed"]}'
    record = read_record(folder)
    assert (record['status'], record['step']) == ('finished', step)
    assert len(records.read_json_lines(folder / 'metrics.jsonl')) == rows
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
    records.read_json_lines(folder / 'metrics.jsonl')
    for folder in (tmp_path / 'alone', tmp_path / 'all' / 'seed=1')
  ]
  for pair in zip(*rows, strict=True):
    assert pair[0].keys() == pair[1].keys()
    numbers = [[row[n] for n in sorted(row) if n != 'timing'] for row in pair]
    np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_population_that_is_killed_ends_as_one_that_is_not(tmp_path):
  """kill -9 while it trains; members' folders are equal to the bit, and the other tools read them."""
  flags = [
    '--smoke',
    '--config.num_steps=400',
    '--population=seed=0..1',
    '--population=dropout=0,0.2',
  ]
  status, output = finish(start(tmp_path / 'whole', *flags))
  assert status == 0, output
  process = start(tmp_path / 'run', *flags)
  wait_for_rows(tmp_path / 'run' / 'seed=1,dropout=0.2', process, 7)
  process.kill()
  finish(process)
  status, output = finish(start(tmp_path / 'run', *flags))
  assert status == 0, output
  names = sorted(path.name for path in (tmp_path / 'whole').iterdir())
  assert names == [
    'seed=0,dropout=0.0',
    'seed=0,dropout=0.2',
    'seed=1,dropout=0.0',
    'seed=1,dropout=0.2',
  ]
  for name in names:
    assert_same_run(tmp_path / 'run' / name, tmp_path / 'whole' / name)
    assert (tmp_path / 'run' / name / 'report.md').exists()
  assert launch.load(tmp_path / 'run' / names[0]).sample([0]).shape == (1, 8)
  status, output = finish(start(tmp_path / 'run', *flags))
  assert status == 0
  assert '0 of 4 members to train' in output


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
    losses.add(json.dumps(records.read_json_lines(tmp_path / str(k) / 'metrics.jsonl')[0]['loss']))
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
