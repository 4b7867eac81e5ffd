"""Which loaded runs go together as one denoiser."""

import numpy as np
import pytest

from diffusion.models import activations, mlp
from diffusion.process import gaussian, marginals, parameterizations, schedules
from diffusion.runs import loading
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
  ],
)  # fmt: skip
def test_runs_of_another_diffusion_network_or_data_do_not_and_it_is_said_which(other, says):
  assert says in loading._apart(trained(ONE), other)[0]
