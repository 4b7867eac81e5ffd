"""Populations as a user starts them: every member's folder is that of the run made alone; kill -9; refusals."""

import dataclasses
import json
import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest

import diffusion
from diffusion import devices, launch
from diffusion.objectives import losses, penalties, weights
from diffusion.provenance import read_record
from diffusion.reporting.rows import read_json_lines
from diffusion.runs import population, training
from diffusion.runs.run import prepare
from diffusion.training.callbacks import Callback, Continue, Stop, checkpoint
from diffusion.training.checkpoint import open_checkpoints
from diffusion.training.state import host_target
from experiments import mixture
from tests.programs import Program
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


def run(folder, **values):
  return prepare(build, Config(**values), pathlib.Path(__file__), folder)


def runs_of(folder, values, **same):
  """The members' runs, prepared anew as each start does."""
  return [run(folder / f'seed={one["seed"]}', **one, **same) for one in values]


def from_values(**same):
  """Values of a member -> its experiment."""
  return lambda one: build(Config(**one, **same))


def is_as_alone(alone, member):
  """Asserts that a member's folder is that of the run made alone."""
  one, other = read_record(alone), read_record(member)
  for name in (
    'config',
    'data',
    'seed',
    'num_steps',
    'techniques',
    'fingerprint',
    'reason',
    'step',
    'bank',
  ):
    assert one[name] == other[name], name
  checkpoints = [
    sorted(path.name for path in (folder / 'checkpoints').iterdir()) for folder in (alone, member)
  ]
  rows = [read_json_lines(folder / 'metrics.jsonl') for folder in (alone, member)]
  for pair in zip(*rows, strict=True):
    assert pair[0].keys() == pair[1].keys()
    numbers = [[row[n] for n in sorted(row) if n != 'timing'] for row in pair]
    np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-6)
  assert checkpoints[0] == checkpoints[1]
  assert str(one['step']) in checkpoints[0]


@pytest.mark.slow
def test_members_stop_by_themselves_and_their_folders_are_those_of_runs_alone(tmp_path, capsys):
  values = [{'seed': 0, 'stop_at': 99.0}, {'seed': 1, 'stop_at': 25.0}]
  runs = runs_of(tmp_path / 'all', values)
  assert population.train_members(runs, values, from_values()) is None
  said = capsys.readouterr()
  assert [line for line in said.err.splitlines() if 'members' in line] == [
    'a program of 2 members', 'a program of 1 members',
  ]  # fmt: skip
  assert '2 of 2 members to train' in said.out
  assert 'enough\nall 40 steps done' in said.out
  for one, step, rows in zip(values, (40, 25), (8, 5), strict=True):
    folder = tmp_path / 'all' / f'seed={one["seed"]}'
    record = read_record(folder)
    assert (record['status'], record['step']) == ('finished', step)
    assert len(read_json_lines(folder / 'metrics.jsonl')) == rows
  # Judged now, as by the same command again, and loaded as any run.
  assert population.train(runs_of(tmp_path / 'all', values), values, from_values()) == 0
  assert '0 of 2 members to train' in capsys.readouterr().out
  assert (tmp_path / 'all' / 'seed=0' / 'report.md').exists()
  loaded = diffusion.load(tmp_path / 'all' / 'seed=1')
  assert loaded.step in (10, 20)
  assert list(loaded.class_names) == record['data']['class_names']
  # Both again, alone: one that has stopped, and one that went on in a smaller program.
  for one in values:
    assert training.train(run(tmp_path / str(one['seed']), **one)) == 0
    is_as_alone(tmp_path / str(one['seed']), tmp_path / 'all' / f'seed={one["seed"]}')
  # Nothing is left to do, and it is said of each.
  assert population.train(runs_of(tmp_path / 'all', values), values, from_values()) == 0
  said = capsys.readouterr().out
  assert 'seed=0 is finished at step 40 (all 40 steps done); --extend=N goes on' in said
  assert 'seed=1 is finished at step 25 (enough); --extend=N goes on' in said


@pytest.mark.slow
def test_a_finished_population_is_extended_all_of_it_or_none(tmp_path, capsys, monkeypatch):
  values = [{'seed': 0}, {'seed': 1}]

  def train(extend=0):
    runs = runs_of(tmp_path, values, num_steps=10)
    return population.train_members(runs, values, from_values(num_steps=10), extend)

  with monkeypatch.context() as patched:
    known = devices.describe() | {'devices': 8}
    patched.setattr(devices, 'describe', lambda: known)
    train()
  with pytest.raises(
    ValueError, match='--extend must be a multiple of steps_per_dispatch = 5, got 7'
  ):
    train(7)
  longer = runs_of(tmp_path, values, num_steps=20)
  with pytest.raises(
    ValueError, match=r'seed=0 holds a run of another experiment \(num_steps: 10 -> 20; call'
  ):
    population.train_members(longer, values, from_values(num_steps=20))
  assert len(read_record(tmp_path / 'seed=0')['starts']) == 1
  shutil.move(tmp_path / 'seed=1', tmp_path / 'aside')
  with pytest.raises(ValueError, match='seed=1 is not finished: leave --extend out'):
    train(5)
  record = read_record(tmp_path / 'seed=0')
  assert (record['num_steps'], record['extended_at'], record['status']) == (10, None, 'finished')
  shutil.rmtree(tmp_path / 'seed=1')
  shutil.move(tmp_path / 'aside', tmp_path / 'seed=1')
  capsys.readouterr()
  assert train(5) is None
  assert capsys.readouterr().out.count('saved on 8 devices, going on with 4: the same run') == 2
  for one in values:
    record = read_record(tmp_path / f'seed={one["seed"]}')
    assert (record['num_steps'], record['step'], record['extended_at']) == (15, 15, 10)
    assert record['reason'] == 'all 15 steps done'
    assert record['starts'][-1]['resharded'] == {'step': 10, 'from': 8, 'to': 4}
    assert record['starts'][-1]['population'] == 2


def go(folder):
  """Trains two members with everything that a resumed run must keep; they are not judged."""
  values = [{'seed': 0, 'l1': 0.0}, {'seed': 1, 'l1': 1e-3}]
  runs = [run(folder / str(one['seed']), **one, num_steps=200) for one in values]
  return population.train_members(runs, values, from_values(num_steps=200))


def left_behind(folder):
  """The last checkpoint's leaves and record, and the rows without their timing."""
  config = read_record(folder)['config']
  _, state, _ = tiny.start(build(Config(**config)))
  keeper = open_checkpoints(folder / 'checkpoints')
  found = keeper.restore(host_target(lambda: state), 'latest')
  keeper.close()
  rows = read_json_lines(folder / 'metrics.jsonl')
  rows = [{name: value for name, value in row.items() if name != 'timing'} for row in rows]
  return tiny.leaves(found.state), found.record, rows


@pytest.mark.slow
def test_a_population_that_is_killed_ends_as_one_that_is_not(tmp_path):
  """kill -9 and then SIGTERM while it trains: what both members leave behind is equal to the bit."""

  def begin(name):
    return Program('tests.runs.test_population', str(tmp_path / name))

  assert begin('whole').finish()[0] == 0
  process = begin('run')
  wait_for_rows(tmp_path / 'run' / '1', process, 8)
  process.send_signal(signal.SIGKILL)
  assert process.finish()[0] == -signal.SIGKILL
  assert read_record(tmp_path / 'run' / '0')['status'] == 'running'
  process = begin('run')
  wait_for_rows(tmp_path / 'run' / '1', process, 20)
  process.send_signal(signal.SIGTERM)
  assert process.finish()[0] == 0
  left = [read_record(tmp_path / 'run' / member) for member in ('0', '1')]
  assert [(one['status'], one['reason']) for one in left] == [('interrupted', 'SIGTERM')] * 2
  # The kill may have come between their saves, so they need not stand at one step.
  assert all(0 < one['step'] < 200 for one in left)
  assert begin('run').finish()[0] == 0
  for member in ('0', '1'):
    leaves, record, rows = left_behind(tmp_path / 'run' / member)
    others, other_record, other_rows = left_behind(tmp_path / 'whole' / member)
    assert all(leaf.tobytes() == others[name].tobytes() for name, leaf in leaves.items())
    assert record == other_record
    assert json.dumps(rows) == json.dumps(other_rows)
    assert len(rows) == 40
  assert len(read_record(tmp_path / 'run' / '1')['starts']) == 3


@pytest.mark.slow
def test_sixty_four_members_of_the_mixture_finish(tmp_path):
  small = dataclasses.replace(mixture.SMOKE, width=8, depth=1, num_steps=20, examples=128)
  values = [{'seed': seed, 'learning_rate': 1e-3 * (1 + seed % 4)} for seed in range(64)]
  source = pathlib.Path(sys.modules[mixture.__name__].__file__)
  runs = [
    prepare(mixture.build, dataclasses.replace(small, **one), source, tmp_path / str(k), smoke=True)
    for k, one in enumerate(values)
  ]
  assert (
    population.train_members(
      runs, values, lambda one: mixture.build(dataclasses.replace(small, **one))
    )
    is None
  )
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
  assert [one['seed'] for one in found[::2]] == [0, 1, 2, 7]
  assert launch.members(['seed=-2..-1,4..4'], Config()) == [{'seed': n} for n in (-2, -1, 4)]
  assert len(launch.members(['seed=1..10000'], Config())) == 10_000  # and one more is too many


@pytest.mark.parametrize(
  ('texts', 'message'),
  [
    (['sed=1'], "unknown field 'sed': the nearest is 'seed'"),
    (['seed=1', 'seed=2'], 'seed is given twice'),
    (['seed=1,1'], 'seed has a value twice'),
    (['seed=a'], "seed takes values like 0..15 or 0,1,2, got 'a'"),
    (['seed=3..1'], "got '3..1'"),
    (['seed=0..4294967295'], 'seed=0..4294967295 are more than 10000 members'),
    (['seed=0..10000'], 'seed=0..10000 are more than 10000 members'),
    (['learning_rate=1e-3,inf'], "got 'inf'"),
    (['seed=1,'], "got ''"),
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
    population.train_members(runs_of(tmp_path, values), values, from_values())
  assert not (tmp_path / 'seed=0').exists()


if __name__ == '__main__':
  go(pathlib.Path(sys.argv[1]))
