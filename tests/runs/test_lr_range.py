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


def test_smoothing_is_a_mean_of_a_tenth_of_the_rows_and_the_fall_lies_before_the_minimum():
  """Of 40 rows five; at the ends the first and the last row count for those that lack."""
  rates = np.geomspace(1e-4, 1, 40)
  losses = np.random.default_rng(0).uniform(3, 3.2, 40)
  losses[10:20] = np.linspace(3, 1, 10)
  losses[20:30] = 9.0  # whence it falls more steeply, and not as low
  smooth, steepest, lowest = lr_range.suggest(rates, losses)
  padded = [losses[0], losses[0], *losses, losses[-1], losses[-1]]
  wanted = [sum(padded[i : i + 5]) / 5 for i in range(40)]
  np.testing.assert_allclose(smooth, wanted)
  assert lowest == rates[np.argmin(wanted)] and 10 <= np.argmin(wanted) < 20
  assert rates[8] < steepest < lowest
  assert lr_range.suggest(rates, np.arange(40.0))[1:] == (rates[0], rates[0])
  smooth, *_ = lr_range.suggest(rates[:10], losses[10:20])
  np.testing.assert_allclose(smooth[1:-1], losses[11:19])  # three, which lie on a line


def ranged(monkeypatch, folder, losses):
  """(lr_range.json, the marks of the picture, the batches begun with), of losses a dispatch of two steps."""
  begun, marks = [], {}
  made = tiny.experiment(num_steps=2 * len(losses), steps_per_dispatch=2, log_every=10)
  run = run_of(made)
  run.folder = folder

  class Scripted:
    def __init__(self, experiment, data, validate):
      assert experiment.log_every == 2
      self.rate = experiment.optimizer.learning_rate

    def dispatch(self, seen):
      begun.extend(seen)
      n = seen[0] // 2
      return lambda k: {'learning_rate': np.float32(2.0**n), 'loss': np.float32(losses[n])}

    def put(self, k, state):
      pass

    def close(self):
      begun.append('closed')

  def draw(rates, losses, smooth, path, marks_of=marks, *, marks):
    assert len(rates) == len(losses) == len(smooth)
    marks_of.update(marks)
    return path

  monkeypatch.setattr(lr_range, 'SingleRun', Scripted)
  monkeypatch.setattr(lr_range.plots, 'rate_range', draw)
  monkeypatch.setattr(run, 'first_state', lambda: np.zeros(1))
  run.__dict__['validate'] = None
  assert lr_range.train_rising(run, 1e-3, 1.0) == 0
  return json.loads((folder / 'lr_range.json').read_text()), marks, begun


def test_a_range_test_ends_where_the_loss_is_lost_and_says_what_it_saw(
  monkeypatch, tmp_path, capsys
):
  falling = [5, 5, 5, 2.5, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.4, 1.6, 1.8, 99]
  found, marks, begun = ranged(monkeypatch, tmp_path, falling)
  np.testing.assert_allclose(
    found['losses'], falling[:14], rtol=1e-6
  )  # the last one is not waited for
  assert found['rates'] == [2.0**n for n in range(14)]
  assert not found['ended_early']
  assert (found['steepest'], found['lowest']) == (2.0**3, 2.0**10)
  assert marks == {'steepest fall': 2.0**3, 'lowest': 2.0**10}
  assert begun == [*range(0, 30, 2), 'closed']
  assert 'fastest at a learning rate of 8 and is lowest at 1e+03' in capsys.readouterr().out
  # Four times its lowest it may be, and no more; what is not finite is no row.
  for bad, rows in ((4.25, 12), (np.nan, 11), (np.inf, 11)):
    losses = [2.0] * 5 + [1.0] * 5 + [4.0, bad] + [1.0] * 6
    found, _, begun = ranged(monkeypatch, tmp_path, losses)
    assert found['losses'] == losses[:rows]
    assert len(found['rates']) == rows
    assert found['ended_early']
    assert begun == [*range(0, 26, 2), 'closed']


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
  with pytest.raises(ValueError, match='50 are 10 of'):
    lr_range.check_rows(remedy - 5, 5)
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
