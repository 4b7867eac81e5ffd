"""Every number of every experiment reaches what it is a number of, and every arm changes what its row says.

Nothing is trained: what is built is described, and descriptions are compared. `experiments.json` says of each
experiment of which factories and numbers it is made, and of each arm of `experiments.ablation` in what it differs from
the baseline; `python -m tests.test_experiments` writes it anew: read the diff beside the header of the file.
"""

import collections
import dataclasses
import importlib
import json
import pathlib

import numpy as np
import pytest

from diffusion import fingerprint
from diffusion.data import sources
from diffusion.training import experiment as experiments
from experiments import ablation, regularized

STATED = pathlib.Path(__file__).with_name('experiments.json')
EXPERIMENTS = (
  'ablation', 'cifar10', 'digits', 'disjoint', 'mixture', 'mnist', 'mnist_edm', 'mnist_flow', 'mnist_vdm', 'overfit',
  'regularized',
)  # fmt: skip
# The parts of an experiment that a number is of; those it has in single ones stand below.
PARTS = {
  'seed': 'seed', 'num_steps': 'num_steps optimizer', 'batch_size': 'batch_size',
  'steps_per_dispatch': 'steps_per_dispatch', 'log_every': 'callbacks log_every', 'validate_every': 'validate_every',
  'learning_rate': 'optimizer', 'clip_norm': 'optimizer', 'ema_decay': 'averages', 'sampling_steps': 'sampling',
  'validation_fraction': 'split', 'test_fraction': 'split', 'train_limit': 'split', 'part': 'split',
  'examples': 'split', 'synthetic': 'data', 'patience': 'callbacks', 'patience_share': 'callbacks',
  'snapshot_every': 'callbacks', 'look_every': 'callbacks', 'looked_at_per_class': 'callbacks',
  'width': 'model', 'depth': 'model', 'multipliers': 'model', 'blocks': 'model', 'dropout': 'model',
  'dropout_fine': 'model', 'dropout_coarse': 'model', 'stochastic_depth': 'model',
  'warmup_steps': 'optimizer', 'final_learning_rate': 'optimizer', 'weight_decay': 'optimizer',
  'label_dropout': 'augment', 'augment_probability': 'augment', 'shift': 'augment',
  'guidance': 'sampling', 'samples_per_class': 'sampling', 'samples': 'sampling', 'grid_rows': 'sampling',
  'min_snr_gamma': 'terms', 'sigma_data': 'diffusion terms', 'log_sigma_mean': 'times',
  'log_sigma_deviation': 'times', 'time_mean': 'times', 'time_deviation': 'times', 'log_snr_min': 'diffusion',
  'log_snr_max': 'diffusion', 'likelihood_examples': 'metrics',
}  # fmt: skip
# Where the number then stands, of each that has it: a factory and its argument.
PLACES = {
  'seed': '/seed', 'num_steps': '/num_steps schedules.warmup_cosine/total_steps', 'batch_size': '/batch_size',
  'steps_per_dispatch': '/steps_per_dispatch', 'validate_every': '/validate_every 3/every',
  'log_every': '/log_every callbacks.divergence_guard/every guards.spike_guard/every',
  'learning_rate': 'schedules.warmup_cosine/peak holds/end_value holds/value',
  'clip_norm': 'clipping.global_norm/limit',
  'ema_decay': 'averaging.ema/decay', 'sampling_steps': 'sampling/steps', 'width': 'unet.unet/width mlp.mlp/width',
  'depth': 'mlp.mlp/depth', 'blocks': 'unet.unet/blocks', 'multipliers': 'multipliers/1 multipliers/2 multipliers/3',
  'dropout': 'unet.unet/dropout mlp.mlp/dropout', 'dropout_fine': 'dropout/0', 'dropout_coarse': 'dropout/1',
  'stochastic_depth': 'dropout.stochastic_depth/rate', 'warmup_steps': 'schedules.warmup_cosine/warmup_steps '
  'holds/transition_steps', 'final_learning_rate': 'schedules.warmup_cosine/final',
  'weight_decay': 'chains.decoupled_decay/rate', 'label_dropout': 'augment.label_dropout/rate',
  'augment_probability': 'augment.conditioned/probability', 'shift': 'augment.shift/pixels',
  'samples_per_class': 'sampling/per_class', 'samples': 'sampling/per_class', 'grid_rows': 'sampling/grid_rows',
  'guidance': 'sampling/guidance', 'train_limit': 'split/limit', 'examples': 'split/limit',
  'validation_fraction': 'split/validation', 'test_fraction': 'split/test',
  'patience': 'callbacks.early_stopping/patience', 'look_every': 'callbacks.watch_memorization/every',
  'looked_at_per_class': 'callbacks.watch_memorization/per_class', 'snapshot_every': '3/every',
  'min_snr_gamma': 'weights.min_snr/gamma', 'sigma_data': 'weights.edm/sigma_data parameterizations.edm/sigma_data',
  'log_sigma_mean': 'times.log_normal/mean', 'log_sigma_deviation': 'times.log_normal/deviation',
  'time_mean': 'times.logit_normal/mean', 'time_deviation': 'times.logit_normal/deviation',
  'log_snr_min': 'schedules.learned/log_snr_min', 'log_snr_max': 'schedules.learned/log_snr_max',
  'likelihood_examples': 'holds/limit',
}  # fmt: skip
# Without a schedule that ends, without a guard, with a plateau of the rate, with an example left out by the seed.
OTHERS = {
  **{(name, 'num_steps'): 'num_steps' for name in ('cifar10', 'disjoint', 'mixture', 'overfit')},
  ('ablation', 'log_every'): 'log_every',
  **{
    (name, 'validate_every'): 'callbacks validate_every'
    for name in ('mnist', 'mnist_edm', 'mnist_flow', 'mnist_vdm')
  },
  ('overfit', 'seed'): 'seed split',
}
# Texts: where data lies is no part of what is built, and each arm has a test of its own. Of the data that `mixture`
# makes, see `test_the_numbers_of_made_data_are_those_of_its_examples`.
NOT_HERE = {'data_dir', 'arm', ('mixture', 'dimensions'), ('mixture', 'examples')}
# Numbers that do not stand in what is built as they are: shares of training, a switch, a part's number.
CONVERTED = {'synthetic', 'patience_share', 'part'}


def module(name):
  return importlib.import_module(f'experiments.{name}')


def fields():
  for name in EXPERIMENTS:
    for field in dataclasses.fields(module(name).Config):
      if not NOT_HERE & {field.name, (name, field.name)}:
        yield name, field.name


def other(value):
  """Another value that an experiment can be built of."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, tuple):
    return (*value[:-1], value[-1] + 5)
  return 2 * value or 50 if isinstance(value, int) else value / 4 or 0.37


def leaves(description, at=''):
  """{path: number, text or None} of all that a description holds."""
  if isinstance(description, dict | list):
    pairs = description.items() if isinstance(description, dict) else enumerate(description)
    found = {at: type(description).__name__} if not description else {}
    for key, one in pairs:
      found |= leaves(one, f'{at}/{".".join(str(key).split(".")[-2:])}')
    return found
  return {at: description}


def built(name, **changes):
  made = module(name)
  return fingerprint.describe(made.build(dataclasses.replace(made.Config(), **changes)))


@pytest.fixture(scope='module')
def described():
  return {name: built(name) for name in EXPERIMENTS}


@pytest.mark.parametrize(('name', 'field'), [*fields()])
def test_a_number_reaches_its_part_of_what_is_built_and_no_other(described, name, field):
  value = other(getattr(module(name).Config(), field))
  found = built(name, **{field: value})
  parts = {one.split(':')[0].split('.')[0] for one in fingerprint.changes(described[name], found)}
  assert parts == set(OTHERS.get((name, field), PARTS[field]).split())
  if field not in CONVERTED:
    before, after = leaves(described[name]), leaves(found)
    new = value[-1] if isinstance(value, tuple) else value
    there = [path for path, one in after.items() if one == new and before.get(path) != one]
    assert there
    assert {'/'.join(path.split('/')[-2:]) for path in there} <= set(PLACES[field].split())


def test_the_numbers_of_made_data_are_those_of_its_examples():
  made = module('mixture')
  data = made.build(dataclasses.replace(made.Config(), dimensions=4, examples=512)).data.load()
  assert data.x.shape == (512, 4)
  # 0.5 N(1, I) + 0.5 N(-1, I): along the diagonal two heaps about 2 and -2, across it a deviation of 1.
  along, across = data.x.sum(1) / 2, (data.x[:, 0] - data.x[:, 1]) / 2**0.5
  assert abs((along > 0).mean() - 0.5) < 0.1
  assert abs(np.abs(along).mean() - 2.0) < 0.2
  assert abs(across.std() - 1) < 0.15 and abs(across.mean()) < 0.2


def test_smoke_runs_are_of_made_images_of_the_shape_and_number_of_their_experiment():
  shapes = {'cifar10': (64, 32, 32, 3), 'mixture': (128, 8)}
  shapes |= {name: (64, 28, 28, 1) for name in EXPERIMENTS if name.startswith('mnist')}
  for name in EXPERIMENTS:
    made = module(name)
    data = made.build(made.SMOKE).data.load()
    assert data.x.shape == shapes.get(name, (*data.x.shape[:1], 8, 8, 1)), name
    assert data.num_classes == (0 if name in ('cifar10', 'mixture', 'mnist_vdm') else 10), name
    assert ('SYNTHETIC' in data.note) is (name != 'mixture'), name


def test_the_narrow_average_of_the_regularized_digits_is_narrower_than_the_wide_one(described):
  told = described['regularized']['averages']
  widths = {name: list(told[name].values())[0] for name in ('narrow', 'wide')}
  assert widths == {'narrow': {'width': 0.05}, 'wide': {'width': 0.1}}


def test_the_regularized_digits_would_lose_their_copies(monkeypatch):
  """The real ones have none, so that the numbers do not tell."""
  real = sources.digits().load()
  x, label = real.x[[*range(50), *range(20)]], real.label[[*range(50), *range(20)]]
  planted = sources.arrays('planted', x, label, class_names=real.class_names)
  monkeypatch.setattr(sources, 'digits', lambda: planted)
  assert len(planted.load().x) == 70
  assert len(regularized.build(regularized.Config()).data.load().x) == 50


def test_the_two_parts_of_disjoint_share_no_example_and_hold_out_the_same():
  made = module('disjoint')
  parts = [
    experiments.load_data(made.build(dataclasses.replace(made.Config(), part=part))).split
    for part in (0, 1)
  ]
  one, other = (set(part.train.tolist()) for part in parts)
  assert len(one) == len(other) == made.Config().examples
  assert not one & other
  for held_out in ('validation', 'test'):
    assert getattr(parts[0], held_out).tolist() == getattr(parts[1], held_out).tolist()


def told(description):
  """How often there is each factory, and each of its arguments, wherever it is, of all that a description holds."""
  found, factories = collections.Counter(), set()
  for path, one in leaves(description).items():
    *_, within, name = ['', *path.split('/')]
    inner = '/defaults/' in path or '<locals>' in str(one) or 'optax.' in str(one)
    if name not in ('as', 'class') and not inner:
      found[f'{within}/{name} = {one}'] += 1
    parts = path.split('/')
    factories |= {tuple(parts[: i + 1]) for i, part in enumerate(parts) if '.' in part}
  found.update(place[-1] for place in factories)
  return found


def arms():
  """What each arm has that the baseline has not, and what it lacks."""
  baseline, found = told(built('ablation')), {}
  for name in ablation.ARMS:
    of_arm = told(built('ablation', arm=name))
    more, less = of_arm - baseline, baseline - of_arm
    found[name] = [f'+ {one}' for one in sorted(more)] + [f'- {one}' for one in sorted(less)]
  return found


def stated():
  """What the table says of experiments and arms."""
  whole = {name: sorted(told(built(name)).elements()) for name in EXPERIMENTS}
  return {'experiments': whole, 'arms': arms()}


def test_every_experiment_is_made_of_what_the_table_says(described):
  known = json.loads(STATED.read_text())['experiments']
  for name, description in described.items():
    assert sorted(told(description).elements()) == known[name], name


def test_every_arm_differs_from_the_baseline_as_its_row_says():
  """Each in the fields of its row alone, at the strength that stands in the table of this test."""
  found, known = arms(), json.loads(STATED.read_text())['arms']
  assert found == known
  # What cleans the data is no part of what is built: a run knows its data by what was read.
  assert [name for name, new in found.items() if not new] == ['baseline', 'checked']
  assert (
    'copies within training' in ablation.build(ablation.Config(arm='checked')).data.load().found
  )
  config = ablation.Config()
  base = built('ablation')
  for name, line in ablation.ARMS.items():
    changed = fingerprint.changes(base, built('ablation', arm=name))
    parts = {one.split(':')[0].split('.')[0] for one in changed}
    assert parts == set(line(config)) - {'data'}, name


if __name__ == '__main__':
  STATED.write_text(json.dumps(stated(), indent=1) + '\n')
