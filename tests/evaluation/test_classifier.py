"""The classifiers of the repository: they know their data, and their hash is that of their weights."""

import numpy as np
import pytest

from diffusion import statistics
from diffusion.data import pipeline, sources, splits
from diffusion.evaluation import classifier, frechet, manifold, memorization, novelty
from diffusion.evaluation import inception as inceptions
from diffusion.evaluation.metric import Plan
from tests.evaluation.given import inputs_of, values


@pytest.fixture(scope='module')
def digits():
  data = sources.digits().load()
  split = splits.make(data.x, data.label, splits.Fractions(0.0, 0.2), official_test=False)
  return pipeline.to_uint8(data.x[split.test], 17), data.label[split.test]


def test_it_knows_digits_it_was_not_trained_on(digits):
  embedding, probabilities = classifier.load('digits').call(digits[0])
  right = probabilities.argmax(1) == digits[1]
  assert statistics.wilson(int(right.sum()), len(right)).low > 0.97
  assert embedding.shape == (len(right), 64)
  np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_features_do_not_depend_on_their_company(digits):
  features = classifier.features('digits')
  together = features.apply(digits[0])
  np.testing.assert_allclose(features.apply(digits[0][7:9]), together[7:9], rtol=1e-4, atol=1e-4)


def test_the_hash_is_of_names_shapes_and_values():
  arrays = {'a': np.arange(6.0), 'b': np.ones(2)}
  first = classifier.digest(arrays)
  assert classifier.digest(dict(reversed(arrays.items()))) == first
  for other in (
    arrays | {'a': np.arange(6.0) + 1e-9},
    arrays | {'a': np.arange(6.0).reshape(2, 3)},
    {'a': arrays['a'], 'c': arrays['b']},
    arrays | {'b': arrays['b'].view(np.int64)},
  ):
    assert classifier.digest(other) != first


def test_weights_are_read_as_they_were_written(tmp_path):
  params = {'Dense_0': {'kernel': np.ones((2, 3)) / 3, 'bias': np.zeros(3)}}
  classifier.save(tmp_path / 'w.npz', params, (8, 8, 1))
  stored = dict(np.load(tmp_path / 'w.npz'))
  assert stored['shape'].tolist() == [8, 8, 1]
  assert set(stored) == {'shape', 'Dense_0/kernel', 'Dense_0/bias'}
  for name, value in params['Dense_0'].items():
    kept = stored[f'Dense_0/{name}']
    assert kept.dtype == np.float16
    np.testing.assert_array_equal(kept, value.astype(np.float16))


def test_collapse_shows_in_the_effective_number_of_classes(digits):
  x, label = digits
  ones = x[label == 1]
  metric = classifier.class_balance(classifier.features('digits'))
  found = values(metric, inputs_of(ones, ones, x))
  assert found['effective classes'] < 1.5
  assert found['effective classes, held-out'] > 9
  one, other = metric.measure(inputs_of(ones, ones, x))
  assert (one.better, other.better) == ('higher', '')
  assert one.name == f'effective classes(digits classifier, {classifier.load("digits").digest})'
  assert one.meaning.endswith('of 10')


def test_other_images_and_other_names_are_refused(digits):
  with pytest.raises(ValueError, match=r"no classifier of 'cifar10': choose one of digits, mnist"):
    classifier.load('cifar10')
  with pytest.raises(ValueError, match=r'takes images \[28, 28, 1\], got \[8, 8, 1\]'):
    classifier.features('mnist').apply(digits[0])
  plan = Plan(samples=100, classes=10, shape=(32, 32, 3), train=300, held_out=100)
  with pytest.raises(ValueError, match=r'takes images \[8, 8, 1\], the data has \[32, 32, 3\]'):
    classifier.class_balance(classifier.features('digits')).check(plan)


@pytest.mark.parametrize(
  'make',
  [
    frechet.frechet, frechet.kernel, manifold.precision_recall, manifold.density_coverage, manifold.vendi,
    novelty.data_copying, novelty.feature_likelihood, lambda features: memorization.calibrated_ratio(0.1, features),
  ],
)  # fmt: skip
def test_features_that_cannot_be_made_of_the_data_are_refused_before_training(make):
  plan = Plan(samples=5000, classes=10, shape=(32, 32, 3), train=5000, held_out=5000)
  digits = classifier.features('digits')
  make(features=digits).check(plan._replace(shape=(8, 8, 1)))
  with pytest.raises(ValueError, match=r'takes images \[8, 8, 1\], the data has \[32, 32, 3\]'):
    make(features=digits).check(plan)
  inception = digits._replace(refuses=inceptions.refuses)
  make(features=inception).check(plan)
  with pytest.raises(ValueError, match=r'takes images \[H, W, 1 or 3\], the data has \[8, 8, 2\]'):
    make(features=inception).check(plan._replace(shape=(8, 8, 2)))
