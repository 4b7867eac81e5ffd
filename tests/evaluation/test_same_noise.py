"""Two-model agreement: one for equal models, chance for unrelated ones, and copyists are told from both."""

import numpy as np
import pytest
from scipy import stats

from diffusion.evaluation import same_noise
from tests import shapes


def found(a, b, train_a, train_b):
  return {
    f.name: f.value for f in same_noise.agreement(a, b, np.zeros(len(a), int), train_a, train_b)
  }


def draw(seed, n=300):
  return np.random.default_rng(seed).normal(size=(n, 10))


def test_equal_models_agree_and_unrelated_ones_are_at_chance():
  a = draw(0)
  same = found(a, a + 1e-3 * draw(1), draw(2), draw(3))
  assert same['distance ratio'].high < 0.01
  assert same['cosine of pairs'].low > 0.99
  assert same['memorized fraction, first model'].estimate < 0.05
  apart = found(a, draw(4), draw(2), draw(3))
  assert apart['distance ratio'].low < 1 < apart['distance ratio'].high
  assert apart['cosine of pairs'].low < 0 < apart['cosine of pairs'].high
  assert apart['cosine of pairs, shuffled'].low < 0 < apart['cosine of pairs, shuffled'].high


def test_copyists_of_disjoint_sets_do_not_agree_and_are_called_so():
  one, two = draw(5, 200), draw(6, 200)
  random = np.random.default_rng(7)
  a, b = one[random.integers(200, size=300)], two[random.integers(200, size=300)]
  values = found(a + 1e-3, b + 1e-3, one, two)
  assert values['distance ratio'].low < 1 < values['distance ratio'].high
  assert values['memorized fraction, first model'].estimate == 1
  assert values['memorized fraction, second model'].estimate == 1


def test_all_of_four_pairs_by_hand():
  """Two of each label, so that the other one is the only pair to shuffle to; all far from the origin."""
  random = np.random.default_rng(14)
  a, b = 9 + random.normal(size=(2, 4, 3))
  labels, other = np.array([0, 1, 1, 0]), [3, 2, 1, 0]
  one, two = (x[:1] + np.outer(far, [1, 0, 0]) for x, far in ((a, (0.4, 1)), (b, (0.3, 1))))
  told = {f.name: f for f in same_noise.agreement(a, b, labels, one, two)}
  mean = (a.mean(0) + b.mean(0)) / 2
  wanted = {}
  for name, partner in (('', b), (', shuffled', b[other])):
    wanted[f'distance of pairs{name}'] = np.sqrt(((a - partner) ** 2).sum(1))
    x, y = a - mean, partner - mean
    wanted[f'cosine of pairs{name}'] = np.diag(x @ y.T) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
  for name, each in wanted.items():
    half = stats.t.ppf(0.975, 3) * each.std(ddof=1) / 2
    np.testing.assert_allclose(
      told[name].value, (each.mean(), each.mean() - half, each.mean() + half)
    )
    assert ('shuffled' in name) == ('chance' in told[name].meaning)
  ratio = wanted['distance of pairs'].sum() / wanted['distance of pairs, shuffled'].sum()
  assert told['distance ratio'].value.estimate == pytest.approx(ratio)
  for name, samples, train in (('first', a, one), ('second', b, two)):
    far = np.sort(np.linalg.norm(samples[:, None] - train, axis=2), axis=1)
    counts = (3 * far[:, 0] < far[:, 1]).sum(), 4, False, None, None
    assert told[f'memorized fraction, {name} model'].counts == counts
  assert [name for name, f in told.items() if f.better] == [
    'distance ratio', 'memorized fraction, first model', 'memorized fraction, second model',
  ]  # fmt: skip


def test_shuffled_pairs_are_never_the_same_pair():
  for n, classes in ((3, 1), (10, 3), (101, 10)):
    labels = np.arange(n) % classes
    partner = same_noise._elsewhere(labels, 0)
    assert sorted(partner) == list(range(n))
    assert not np.any(partner == np.arange(n))
    np.testing.assert_array_equal(labels[partner], labels)


def test_sets_with_an_example_in_common_are_refused():
  train = draw(8, 50)
  with pytest.raises(ValueError, match='share 1 examples'):
    same_noise.agreement(
      draw(0), draw(1), np.zeros(300, int), train, np.concatenate([draw(9, 20), train[3:4]])
    )
  with pytest.raises(ValueError, match='three or more pairs'):
    same_noise.agreement(draw(0, 2), draw(1, 2), np.zeros(2, int), train, draw(2))
  with shapes.unchecked(), pytest.raises(ValueError, match='three or more pairs'):
    same_noise.agreement(draw(0), draw(1, 20), np.zeros(300, int), train, draw(2))


def test_a_class_in_common_is_no_agreement():
  """Both models draw at random around the same class means: pairs of a class are shuffled within it."""
  random = np.random.default_rng(11)
  labels = np.arange(300) % 3
  means = 10 * np.eye(3, 10)[labels]
  a, b = (means + random.normal(size=(300, 10)) for _ in 'ab')
  values = {f.name: f.value for f in same_noise.agreement(a, b, labels, draw(12), draw(13))}
  assert values['distance ratio'].low < 1 < values['distance ratio'].high
  with pytest.raises(ValueError, match='two or more of each label'):
    same_noise.agreement(a, b, np.arange(300), draw(12), draw(13))
