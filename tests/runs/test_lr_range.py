"""The learning-rate range test: its rate, its suggestions, its files."""

import dataclasses
import importlib
import json
import pathlib
import re

import numpy as np
import pytest

from diffusion.runs import lr_range
from diffusion.runs.run import Run
from tests.test_runs import finish, start
from tests.training import tiny

EXPERIMENTS = [
  file
  for file in sorted((pathlib.Path(__file__).parents[2] / 'experiments').glob('*.py'))
  if 'launch.run(' in file.read_text()
]


def test_the_rate_rises_geometrically():
  rate = lr_range.rising(1e-5, 1e-1, 5)
  np.testing.assert_allclose([rate(n) for n in range(5)], [1e-5, 1e-4, 1e-3, 1e-2, 1e-1], rtol=1e-5)


def test_the_suggestions_are_the_steepest_fall_and_the_minimum():
  """A loss that falls like a logistic curve in log rate, steepest at 1e-4, and rises from 1e-2 on."""
  rates = np.geomspace(1e-6, 1, 600)
  fall = 1 - 1 / (1 + np.exp(-4 * (np.log10(rates) + 4)))
  losses = fall + 0.2 * np.maximum(np.log10(rates) + 2, 0) ** 2
  losses += 0.01 * np.random.default_rng(0).normal(size=600)
  smooth, steepest, lowest = lr_range.suggest(rates, losses)
  assert 0.5e-4 < steepest < 2e-4
  assert 1e-3 < lowest < 2e-2
  assert np.abs(smooth - losses).max() < 0.4


def test_too_few_rows_are_refused():
  with pytest.raises(ValueError, match='at least 10 rows, got 3'):
    lr_range.suggest([1, 2, 3], [1, 2, 3])


def run_of(made):
  return Run(
    experiment=made, data=tiny.experiments.load_data(made), config=None, source='tiny', folder=None, used=[],
    record={},
  )  # fmt: skip


def test_too_few_dispatches_are_refused_before_training_and_the_remedy_is_enough(monkeypatch):
  run = run_of(tiny.experiment(num_steps=20, steps_per_dispatch=5, log_every=5))
  monkeypatch.setattr(run, 'first_state', lambda: pytest.fail('it was about to train'))
  with pytest.raises(ValueError, match=r'20 are 4 of steps_per_dispatch = 5') as error:
    lr_range.train_rising(run, 1e-6, 1.0)
  remedy = int(re.search(r'--config.num_steps=(\d+)', str(error.value))[1])
  lr_range.check_rows(remedy, 5)
  assert remedy // 5 - 1 >= 10
  run.experiment = run.experiment._replace(num_steps=remedy)
  with pytest.raises(ValueError, match='lr_high'):
    lr_range.train_rising(run, 1.0, 0.5)


@pytest.mark.parametrize('name', [f.stem for f in EXPERIMENTS])
def test_smoke_runs_of_all_experiments_are_refused_by_a_remedy_that_they_take(name):
  small = importlib.import_module(f'experiments.{name}').SMOKE
  with pytest.raises(ValueError, match='--config.num_steps=') as error:
    lr_range.check_rows(small.num_steps, small.steps_per_dispatch)
  remedy = int(re.search(r'--config.num_steps=(\d+)', str(error.value))[1])
  made = importlib.import_module(f'experiments.{name}').build(
    dataclasses.replace(small, num_steps=remedy)
  )
  tiny.experiments.check_cadence(made)
  lr_range.check_rows(made.num_steps, made.steps_per_dispatch)


def test_a_loss_that_is_lost_at_once_names_a_lower_rate():
  run = run_of(tiny.experiment(num_steps=40, clip_norm=None))
  with pytest.raises(ValueError, match=r'lost after \d rows, at .* --lr_low=10'):
    lr_range.train_rising(run, 1e4, 1e9)


@pytest.mark.parametrize(
  'arguments, message',
  [((0.0, 1.0, 9), 'lr_low .* got 0'), ((1.0, 0.5, 9), 'lr_high .* got 0.5'), ((0.1, 1.0, 1), 'num_steps .* got 1')],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    lr_range.rising(*arguments)


@pytest.mark.slow
def test_the_mode_ends_where_the_loss_explodes_and_leaves_a_picture(tmp_path):
  flags = [
    '--config.num_steps=200',
    '--config.log_every=5',
    '--config.validate_every=50',
    '--config.width=16',
    '--config.steps_per_dispatch=1',
  ]
  status, output = finish(start(tmp_path / 'r', '--mode=lr_range', '--lr_high=1000', *flags))
  assert status == 0, output
  assert 'the loss falls fastest at a learning rate of' in output
  found = json.loads((tmp_path / 'r' / 'lr_range.json').read_text())
  assert found['ended_early']
  np.testing.assert_allclose(found['rates'][0], 1e-6, rtol=1e-5)
  np.testing.assert_allclose(
    np.diff(np.log(found['rates'])), np.log(found['rates'][1] / found['rates'][0]), rtol=1e-2
  )
  assert found['steepest'] <= found['lowest'] < found['rates'][-1]
  assert (tmp_path / 'r' / 'lr_range.png').stat().st_size > 5000
  assert not (tmp_path / 'r' / 'checkpoints').exists()
