"""Which loaded runs go together as one denoiser."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion.data.pipeline import NormalizationStatistics
from diffusion.models import activations, mlp
from diffusion.process import gaussian, marginals, parameterizations, schedules
from diffusion.runs import loading
from diffusion.types import NULL
from tests.training import tiny

ONE = tiny.experiment()
VP = marginals.variance_preserving


def trained(experiment, **changes):
  weights = {'kernel': np.zeros((3, 2))}
  made = loading.Trained(experiment, 0, None, (8,), None, 2, weights, class_names=('a', 'b'))
  return made._replace(**changes)


@pytest.mark.parametrize(
  'changes',
  [{}, {'seed': 9}, {'learning_rate': 0.5}, {'ema_decay': 0.5}, {'batch_size': 8}, {'num_steps': 7}],
)  # fmt: skip
def test_runs_that_were_trained_otherwise_go_together(changes):
  assert loading._apart(trained(ONE), trained(tiny.experiment(**changes))) == []


@pytest.mark.parametrize(
  ('other', 'says'),
  [
    # Each has the same shapes, and one network or one schedule would stand for both.
    (trained(ONE._replace(diffusion=gaussian.Diffusion(schedules.cosine(), VP, parameterizations.eps()))), 'eps'),
    (trained(ONE._replace(diffusion=gaussian.Diffusion(schedules.sigmoid(), VP, parameterizations.v()))), 'sigmoid'),
    (trained(ONE._replace(model=mlp.mlp(16, 2, 0.1, 2, activation=activations.relu))), 'relu'),
    (trained(ONE, class_names=('b', 'a')), 'class_names'),
    (trained(ONE, parameters={'kernel': np.zeros((3, 4))}), 'parameters'),
    (trained(ONE, shape=(2, 4)), 'shape'),
    (trained(ONE, units=NormalizationStatistics(None, 1.0, 2.0)), 'units'),
  ],
)  # fmt: skip
def test_runs_of_another_diffusion_network_or_data_do_not_and_it_is_said_which(other, says):
  assert says in loading._apart(trained(ONE), other)[0]


def test_members_that_do_not_go_together_are_named_by_their_folders(monkeypatch):
  runs = {'a': trained(ONE), 'b': trained(ONE), 'c': trained(ONE, class_names=('b', 'a'))}
  monkeypatch.setattr(loading, 'load', runs.__getitem__)
  assert loading.load_ensemble(['a', 'b']).runs == (runs['a'], runs['b'])
  with pytest.raises(ValueError, match='^c does not go together with a: class_names'):
    loading.load_ensemble(['a', 'b', 'c'])


def test_the_labels_are_those_of_the_classes_and_the_null_label():
  for labels in ([0, 1], [1, NULL]):
    found = trained(ONE)._checked(labels)
    assert (found.tolist(), found.dtype) == (labels, np.int32)
  for labels, bad in (([0, 2], 2), ([NULL - 1, 1], NULL - 1)):
    says = f'labels must be in [0, 2), or {NULL} for none, got {bad}'
    with pytest.raises(ValueError, match=re.escape(says)):
      trained(ONE)._checked(labels)
  assert trained(ONE, num_classes=0)._checked([0]).tolist() == [0]  # without classes all is one
  assert trained(ONE, null_learned=False)._checked([1]).tolist() == [1]


def test_parameters_are_those_of_the_best_checkpoint_each_under_its_name(monkeypatch, tmp_path):
  """The statistics are those that are evaluated with."""
  state = {
    'params': 1, 'averages': {'ema': {'params': 2, 'count': 3}, 'wide': {'params': 4, 'count': 5}},
    'statistics': 6, 'evaluation_statistics': 7,
  }  # fmt: skip
  asked = []

  def opened(folder, read_only):
    asked.append((folder, read_only))
    return SimpleNamespace(
      restore=lambda *given: asked.append(given) or SimpleNamespace(state=state)
    )

  monkeypatch.setattr(loading, 'open_checkpoints', opened)
  found = loading.load_parameters(tmp_path)
  assert found == {'trained': 1, 'averages': {'ema': 2, 'wide': 4}, 'statistics': 7}
  assert asked == [(tmp_path / 'checkpoints', True), (None, 'best')]


def test_the_text_that_a_missing_place_names_is_the_one_to_say_anew(monkeypatch, tmp_path):
  """Whatever other texts the configuration has, empty ones and ones before it."""
  config = {'note': '', 'kind': 'unet', 'size': 3, 'folder': '/gone', 'other': 'x'}
  record = {'config': config, 'data': {'class_names': ['a']}}
  asked = []

  def missing(experiment, names):
    asked.append((experiment.metrics, names))
    raise ValueError('no folder of images at /gone')

  monkeypatch.setattr(loading, 'read_record', lambda folder: record)
  monkeypatch.setattr(loading, 'recorded_experiment', lambda *given: ONE._replace(metrics=[1]))
  monkeypatch.setattr(loading, 'load_data', missing)
  with pytest.raises(ValueError, match='at /gone; if it .* e.g. --moved=folder=PLACE$'):
    loading.data_of(tmp_path)
  assert asked == [((), ['a'])]
  record['config'] = {'size': 3}
  with pytest.raises(ValueError, match=f'^the data of {tmp_path}: no folder of images at /gone$'):
    loading.data_of(tmp_path)
