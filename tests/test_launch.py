"""What a command line refuses before it starts anything, each in one line."""

import dataclasses
import math
import types
from typing import NamedTuple

import absl.app
import absl.flags
import numpy as np
import pytest

import diffusion
from diffusion import commands, launch, rng
from diffusion.commands import agreement
from diffusion.evaluation.metric import told
from diffusion.reporting.tables import markdown
from diffusion.runs import training
from diffusion.runs.loading import Ensemble, Trained
from diffusion.sampling.plan import Sampling
from diffusion.training import callbacks, guards
from diffusion.training.experiment import EvaluationSettings
from tests.training import tiny


@dataclasses.dataclass
class Bare:
  """A configuration without the numbers common to all."""

  width: int = 3


class Plain(diffusion.Numbers):
  """One whose own numbers would be passed over in silence."""

  num_steps: int = 7


@pytest.mark.parametrize(
  ('config', 'says'),
  [
    (Bare(), ('Bare has no batch_size', 'width', 'let it inherit diffusion.Numbers')),
    (Plain(), ('Plain is no dataclass', 'write @dataclasses.dataclass above it')),
  ],
)
def test_a_config_that_lacks_what_runs_need_is_one_line(config, says, capsys):
  with pytest.raises(SystemExit) as left:
    launch.run(lambda c: None, config, config)
  said = capsys.readouterr().err
  assert left.value.code == 2
  assert said.startswith('error: ') and said.count('\n') == 1
  assert all(words in said for words in (__file__, *says))


TRAINED = Trained(
  experiment=None, step=0, state=None, shape=(8,), units=None, num_classes=2, parameters=None
)


@pytest.mark.parametrize('seed', [-1, 2**32, 0.5, True, '3'])
@pytest.mark.parametrize(
  'ask',
  [
    lambda seed: rng.check_seed('seed', seed),
    lambda seed: TRAINED.sample([0], seed=seed),
    lambda seed: Ensemble((TRAINED,)).sample([0], seed=seed),
    lambda seed: EvaluationSettings(seed=seed).applied(tiny.experiment()),
    lambda seed: tiny.experiments.check(tiny.experiment(seed=seed)),
  ],
)
def test_every_seed_is_in_its_32_bits_or_named(ask, seed):
  with pytest.raises(ValueError, match=r'^seed must be an integer from 0 to 2\^32 - 1 .* got') as e:
    ask(seed)
  assert str(e.value).endswith(f'got {seed!r}')


def test_all_seeds_of_32_bits_are_taken():
  for seed in (0, 2**32 - 1, np.int64(5), np.uint32(7)):
    rng.check_seed('seed', seed)
  tiny.experiments.check(tiny.experiment(seed=2**32 - 1))


@pytest.mark.parametrize(
  'labels', [[0.5], [], np.zeros(0, int), 1, [[0, 1]], ['0'], np.array([True])],
  ids=['half', 'nothing', 'none', 'one', 'two axes', 'text', 'bool'],
)  # fmt: skip
def test_labels_to_sample_are_a_row_of_integers(labels):
  with pytest.raises(ValueError, match='labels must be integers'):
    TRAINED.sample(labels)


class Data(NamedTuple):
  """What a comparison of two runs needs of their data."""

  train_in_memory: tuple = (np.zeros((2, 8)),)


def test_samples_of_runs_whose_labels_mean_different_classes_are_not_compared(monkeypatch):
  trained = {name: TRAINED._replace(class_names=(name, '1')) for name in ('9', '10')}
  monkeypatch.setattr(agreement, 'data_of', lambda folder, moved: Data())
  monkeypatch.setattr(agreement, 'load', lambda folder: trained[folder.name])
  with pytest.raises(ValueError, match=r"other classes, \('9', '1'\) and \('10', '1'\)"):
    agreement.compare('9', '10', 4, 0)


def test_samples_that_are_compared_begin_with_the_same_noise(monkeypatch, capsys):
  """Two runs of one network on disjoint data: whatever it is, they draw the same."""
  made = tiny.experiment(sampling=Sampling(steps=4, wrappers=()))
  data, state, _ = tiny.start(made)
  run = TRAINED._replace(
    experiment=made, state=state, parameters=state.params, units=data.units, class_names=('0', '1')
  )
  own = run.sample(np.resize([0, 1], 19), 3)  # what both draw is in the training set of the first
  parts = {'a': (np.concatenate([data.train[0], own]),), 'b': data.held_out}
  asked = []
  monkeypatch.setattr(
    agreement,
    'data_of',
    lambda folder, moved: asked.append(dict(moved)) or Data(parts[folder.name]),
  )
  monkeypatch.setattr(agreement, 'load', lambda folder: run)
  results = agreement.compare('a', 'b', 19, 3)
  found = {one.name: one.value for one in results}
  assert abs(found['distance ratio'].estimate) < 1e-6
  assert found['distance of pairs, shuffled'].low > 0.1
  copies = [found[f'memorized fraction, {which} model'].estimate for which in ('first', 'second')]
  assert copies[0] == 1 > copies[1]
  counts = [one.counts for one in results if one.counts]
  assert [(one.successes, one.trials) for one in counts] == [(19, 19), (0, 19)]
  given = types.SimpleNamespace(pairs=19, seed=3, moved=['folder=/new'])
  agreement.main(['a', 'b'], given)
  assert asked[-2:] == [{'folder': '/new'}] * 2
  rows = markdown(['quantity', 'value', 'reading', 'meaning'], told(results))
  assert capsys.readouterr().out == f'{rows}\n'
  for folders in (['a'], ['a', 'b', 'a']):
    with pytest.raises(ValueError, match=f'name the folders of two runs, got {len(folders)}'):
      agreement.main(folders, given)


@pytest.mark.parametrize('given', [{'samples': -3}, {'steps': -1}, {'samples': 2.0}])
def test_numbers_of_an_evaluation_from_python_are_in_range(given):
  (name,) = given
  with pytest.raises(ValueError, match=f'{name} must be an integer >= 0'):
    EvaluationSettings(**given).applied(tiny.experiment())


@pytest.mark.parametrize(
  ('reason', 'status'),
  [
    ('all 40 steps done', 'finished'),
    ('early stopping: validation/eps has not fallen below 1 at step 20 for 20 steps', 'finished'),
    ('diverged: loss 50 is more than 10 times the first one, 1', 'diverged'),
  ],
)
def test_a_run_that_a_guard_ended_has_a_status_of_its_own_and_leaves_with_3(reason, status):
  assert training.ending(reason) == status

  class Judged(NamedTuple):
    record: dict
    status: str

  fine = Judged({'results': {}}, 'finished')
  run = Judged({'results': {}}, training.ending(reason))
  assert training.finish([run], None) == (3 if status == 'diverged' else 0)
  assert training.finish([fine, run], None) == (3 if status == 'diverged' else 0)
  assert training.finish([run], 'SIGTERM') == 143


@pytest.mark.parametrize(
  ('guard', 'row'),
  [
    (callbacks.divergence_guard(1, max_skipped=2), {'skipped_in_a_row': 2, 'loss': math.nan}),
    (callbacks.divergence_guard(1), {'skipped_in_a_row': 0, 'loss': 50.0}),
    (guards.spike_guard(1, back=1, limit=0), {'loss': math.nan, 'gradient_norm': math.nan}),
  ],
)
def test_the_reason_of_every_guard_that_stops_a_run_says_so(guard, row):
  class Seen(NamedTuple):
    row: dict
    step: int = 1

  _, action = guard.update(guard.init() | {'first': 1.0}, Seen(row))
  assert training.ending(action.reason) == 'diverged'


def test_what_flags_refuse_is_one_line_with_the_nearest_name_and_help_is_no_error(
  monkeypatch, capsys
):
  flags = absl.flags.FlagValues()
  absl.flags.DEFINE_enum('way', 'straight', ('straight', 'curved'), 'The way.', flag_values=flags)
  absl.flags.DEFINE_integer('count', 1, 'How many.', flag_values=flags)
  absl.flags.DEFINE_flag(absl.app.HelpFlag(), flags)
  monkeypatch.setattr(absl.flags, 'FLAGS', flags)
  for given, says in (
    ('--way=curvd', "should be one of <straight|curved>: the nearest is 'curved'"),
    ('--coumt=3', "'coumt'. Did you mean: count ?"),
    ('--count=many', "invalid literal for int() with base 10: 'many'"),
    ('--count', 'Missing value for flag --count'),
  ):
    with pytest.raises(SystemExit) as left:
      commands.parse_flags(['program', given])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith('error: ') and said.count('\n') == 1 and says in said
  with pytest.raises(SystemExit) as left:
    commands.parse_flags(['program', '--help'])
  assert left.value.code == 0
  assert commands.parse_flags(['program', '--way=curved', 'rest']) == ['program', 'rest']


@pytest.mark.parametrize(
  ('mode', 'flag', 'says'),
  [
    ('evaluate', '--extend=10', '--extend is for --mode=train, and the mode is evaluate'),
    ('train', '--lr_low=0.1', '--lr_low is for --mode=lr_range, and the mode is train'),
    ('lr_range', '--sampler=heun', '--sampler is for --mode=evaluate or sample'),
    ('sample', '--num_samples=5', '--num_samples is for --mode=evaluate, and'),
  ],
)
def test_a_flag_that_says_nothing_in_a_mode_is_refused(monkeypatch, mode, flag, says):
  flags = absl.flags.FlagValues()
  monkeypatch.setattr(absl.flags, 'FLAGS', flags)
  for define, *about in launch._FLAGS:
    define(*about, flag_values=flags)
  absl.flags.DEFINE_enum('mode', 'train', [mode, 'train'], 'The mode.', flag_values=flags)
  flags(['program', '--workdir=x', f'--mode={mode}', flag])
  with pytest.raises(ValueError, match=says):
    launch._checked_workdir()


ALL_MODES = ('train', 'sample', 'evaluate', 'lr_range')


@pytest.mark.parametrize(
  ('given', 'modes'),
  [
    (('extend=10', 'allow_changes', 'restart', 'profile=1:2'), ('train',)),
    (('num_samples=3', 'metrics=fld', 'features=digits'), ('evaluate',)),
    (('sampler=heun', 'sampler_grid=karras', 'sampler_steps=5'), ('sample', 'evaluate')),
    (('lr_low=0.1', 'lr_high=0.2'), ('lr_range',)),
    (('seed=3', 'smoke', 'cpu_devices=2', 'data_workers=1', 'population=seed=1,2'), ALL_MODES),
  ],
)
def test_each_flag_says_something_in_these_modes_alone(monkeypatch, given, modes):
  for flag in given:
    taken = []
    for mode in ALL_MODES:
      flags = absl.flags.FlagValues()
      monkeypatch.setattr(absl.flags, 'FLAGS', flags)
      for define, *about in launch._FLAGS:
        define(*about, flag_values=flags)
      absl.flags.DEFINE_enum('mode', 'train', ALL_MODES, 'The mode.', flag_values=flags)
      flags(['program', '--workdir=x', f'--mode={mode}', f'--{flag}'])
      try:
        assert launch._checked_workdir().name == 'x'
        taken.append(mode)
      except ValueError as error:
        assert f'and the mode is {mode}' in str(error)
    assert set(taken) == set(modes), flag
