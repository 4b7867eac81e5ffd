"""Recognition: real digits are recognized, wrong labels are not, and the worst class is found."""

import numpy as np
import pytest
from sklearn import svm

from diffusion.data import pipeline, sources
from diffusion.evaluation import recognition
from diffusion.evaluation.metric import MetricInputs, Plan
from diffusion.models import mlp
from diffusion.training import experiment as experiments
from tests.training import tiny


@pytest.fixture(scope='module')
def digits():
  data = sources.digits().load()
  order = np.random.default_rng(0).permutation(len(data.x))
  return data.x[order], data.label[order]


def judge(digits, relabel, told=lambda label: label):
  """The real digits 900 ... 1,300 as samples, labels changed by `relabel`, those of held-out ones by `told`."""
  x, label = digits
  samples = slice(900, 1300)
  names = tuple(f'digit {k}' for k in range(10))
  given = MetricInputs(
    x[samples],
    relabel(label[samples]),
    (x[:900], label[:900]),
    (x[1300:], told(label[1300:])),
    0,
    names,
    pipeline.NormalizationStatistics(17),
    None,
    {},
  )
  return {finding.name: finding for finding in recognition.recognition().measure(given)}


def test_real_digits_are_recognized(digits):
  found = judge(digits, lambda label: label)
  share, real = found['recognized as their label'].value, found['held-out accuracy'].value
  assert share.estimate > 0.96
  assert real.estimate > 0.96
  assert share.low < share.estimate < share.high
  assert abs(share.estimate - real.estimate) < 0.03  # both are held out from the classifier
  assert found['worst class'].value.estimate <= share.estimate


def test_shuffled_labels_are_not(digits):
  found = judge(digits, np.random.default_rng(1).permutation)
  share = found['recognized as their label'].value
  assert share.low < 0.1 < share.high
  assert (
    found['held-out accuracy'].value.estimate > 0.96
  )  # the classifier knows nothing of the samples


def test_the_accuracy_is_that_on_held_out_examples(digits):
  half = lambda label: np.where(np.arange(len(label)) % 2, label, (label + 1) % 10)  # noqa: E731
  found = judge(digits, lambda label: label, half)
  assert found['held-out accuracy'].value.estimate == pytest.approx(0.5, abs=0.03)
  assert f'on {len(digits[0]) - 1300} real examples' in found['held-out accuracy'].meaning
  assert found['recognized as their label'].value.estimate > 0.96


def test_the_worst_class_is_named(digits):
  found = judge(digits, lambda label: np.where(label == 3, 5, label))  # samples of 5 that are 3s
  assert 'digit 5' in found['worst class'].meaning
  assert found['worst class'].value.estimate == pytest.approx(0.5, abs=0.15)
  assert found['worst class'].value.estimate < found['recognized as their label'].value.estimate


@pytest.mark.parametrize('penalty', [0.01, 100.0])
def test_the_penalty_is_that_of_the_classifier(penalty):
  """Of two classes of unequal size that overlap, beside the classifier itself."""
  random = np.random.default_rng(2)
  label = np.repeat(np.arange(2, dtype=np.int32), [45, 15])
  sets = [(random.normal(label[:, None], 1.5, (60, 3)), label) for _ in range(3)]
  own = svm.SVC(C=penalty).fit(*sets[1])
  units = pipeline.NormalizationStatistics(None)
  given = MetricInputs(*sets[0], *sets[1:], 0, ('a', 'b'), units, None, {})
  found = {one.name: one for one in recognition.recognition(penalty).measure(given)}
  right, real = (own.predict(x) == label for x, _ in (sets[0], sets[2]))
  assert found['recognized as their label'].counts == (right.sum(), 60, False, None, None)
  assert found['held-out accuracy'].counts == (real.sum(), 60, True, None, None)
  worst, count = min((right[label == k].mean(), (label == k).sum()) for k in range(2))
  assert found['worst class'].value.estimate == pytest.approx(worst)
  assert f', {count} samples' in found['worst class'].meaning


@pytest.mark.parametrize('penalty', [0.0, -1.0, float('nan')])
def test_a_bad_penalty_is_named_in_the_factory(penalty):
  with pytest.raises(ValueError, match=rf'c must .* got {penalty}'):
    recognition.recognition(penalty)


def test_unlabelled_data_is_refused_before_training():
  experiment = tiny.experiment(
    data=sources.arrays(
      'noise', np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32), levels=None
    ),
    model=mlp.mlp(16, 2, 0.0),
    metrics=[recognition.recognition()],
  )
  with pytest.raises(ValueError, match='at least two classes'):
    experiments.load_data(experiment)
  plan = Plan(samples=9, classes=2, shape=(8,), train=9, held_out=9)
  recognition.recognition().check(plan)
  with pytest.raises(ValueError, match='what was asked for: put the images into class folders'):
    recognition.recognition().check(plan._replace(labels=False))
