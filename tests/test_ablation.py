"""The ablation's arms: each is one line, each makes an experiment, and one that adds state of its own runs."""

import dataclasses
import inspect

import pytest

from diffusion.provenance import read_record
from diffusion.runs.run import techniques
from diffusion.training import experiment as experiments
from experiments import ablation
from tests.test_runs import finish, start


def built(arm):
  made = ablation.build(dataclasses.replace(ablation.SMOKE, arm=arm))
  experiments.check(made)
  return made, {one.name for one in techniques(made)}


def test_there_are_at_least_forty_arms_of_one_line_each():
  source = inspect.getsource(ablation)
  assert len(ablation.ARMS) >= 40
  for arm in ablation.ARMS:
    (line,) = [
      line for line in source.splitlines() if line.strip().startswith(f"'{arm}': lambda c:")
    ]
    assert line.endswith('},')


@pytest.mark.parametrize('arm', ablation.ARMS)
def test_every_arm_makes_an_experiment_that_passes_its_checks(arm):
  made, names = built(arm)
  _, base_names = built('baseline')
  chosen = ablation.ARMS[arm](dataclasses.replace(ablation.SMOKE, arm=arm))
  assert bool(chosen) == (arm != 'baseline')
  assert set(chosen) <= set(made._fields)
  # What an arm replaced is not cited.
  for mine, other in (('relu', 'SiLU'), ('lion', 'Adam'), ('batch_norm', 'group normalization')):
    if arm == mine:
      assert other in base_names - names


@pytest.mark.slow
@pytest.mark.parametrize('arm', ['batch_norm'])
def test_an_arm_passes_its_smoke_run(tmp_path, arm):
  """All of them: python -m benchmarks.arms."""
  status, output = finish(start(tmp_path / arm, '--smoke', f'--arm={arm}', experiment='ablation'))
  assert status == 0, output
  record = read_record(tmp_path / arm)
  assert record['config']['arm'] == arm
  assert record['status'] == 'finished'


def test_arms_are_listed_with_their_lines_and_a_wrong_one_names_the_nearest(tmp_path):
  status, output = finish(start(tmp_path, '--list_arms', experiment='ablation'))
  assert status == 0
  lines = output.strip().splitlines()
  assert len(lines) == len(ablation.ARMS)
  assert "{'model': network(c, dropout=0.1)}" in lines[1]
  status, output = finish(start(tmp_path / 'x', '--arm=dropuot', experiment='ablation'))
  assert status == 2
  assert "unknown arm 'dropuot': the nearest is 'dropout'" in output
  assert not (tmp_path / 'x').exists()
