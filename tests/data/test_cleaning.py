"""Checks at the source: what is found is counted, and what is asked for is done."""

import numpy as np
import pytest

from diffusion.data import cleaning, sources


def vectors():
  x = np.arange(24, dtype=np.float32).reshape(8, 3)
  x[:, 2] = 5.0  # constant
  x[1, 0], x[3, 1], x[3, 0] = np.nan, np.inf, np.nan
  x[6] = x[5]
  test = (np.array([[6.0, 7.0, 5.0], [np.nan, 1.0, 5.0], x[7]], np.float32), np.zeros(3, int))
  return x, sources.arrays('v', x, np.zeros(8, int), levels=None, class_names=['a'], test=test)


def test_missing_values_are_refused_dropped_or_imputed_and_counted():
  x, source = vectors()
  with pytest.raises(ValueError, match='2 examples are not finite, the first is 1'):
    source.load()
  with pytest.raises(ValueError, match='2 examples are not finite'):
    cleaning.checked(source).load()
  dropped = cleaning.checked(source, missing='drop').load()
  np.testing.assert_array_equal(dropped.x, x[[0, 2, 4, 5, 6, 7]])
  assert dropped.found['missing values, training'] == 3
  assert dropped.found['missing values, test'] == 1
  assert len(dropped.test[0]) == 2
  imputed = cleaning.checked(source, missing='impute').load()
  first = np.delete(x[:, 0], [1, 3]).mean(dtype=np.float64)
  np.testing.assert_allclose(imputed.x[[1, 3], 0], first, rtol=1e-6)
  np.testing.assert_allclose(imputed.x[3, 1], np.delete(x[:, 1], 3).mean(), rtol=1e-6)
  np.testing.assert_allclose(imputed.test[0][1, 0], first, rtol=1e-6)  # the training data's mean
  untouched = np.isfinite(x)
  np.testing.assert_array_equal(imputed.x[untouched], x[untouched])


def test_labels_stay_with_the_examples_that_are_kept():
  x, _ = vectors()
  test = (np.array([[np.nan, 1.0, 2.0], [3.0, 4.0, 5.0]], np.float32), np.array([0, 1]))
  names = [str(i) for i in range(8)]
  source = sources.arrays('v', x, np.arange(8), levels=None, class_names=names, test=test)
  found = cleaning.checked(source, missing='drop', copies='drop').load()
  np.testing.assert_array_equal(found.x, x[found.label])
  assert found.label.tolist() == [0, 2, 4, 5, 7]  # of two copies the first
  assert found.test[1].tolist() == [1]


def test_copies_are_reported_or_dropped_with_those_of_the_test_set():
  _, source = vectors()
  kept = cleaning.checked(source, missing='drop').load()
  assert kept.found['copies within training'] == 1
  assert kept.found['copies of test examples in training'] == 2  # [6, 7, 5] and the last one
  assert len(kept.x) == 6
  dropped = cleaning.checked(source, missing='drop', copies='drop').load()
  assert len(dropped.x) == 3
  np.testing.assert_array_equal(dropped.test[0], kept.test[0])  # which stay where they are tested
  assert len(np.unique(dropped.x, axis=0)) == 3
  assert not {tuple(row) for row in dropped.x} & {tuple(row) for row in dropped.test[0]}


def test_constant_channels_are_named():
  _, source = vectors()
  assert cleaning.checked(source, missing='drop').load().found['constant channels'] == '2'
  images = np.zeros((4, 2, 2, 3), np.uint8)
  images[..., 1] = np.arange(4)[:, None, None]
  found = cleaning.checked(sources.arrays('i', images)).load().found
  assert found['constant channels'] == '0, 2'
  assert cleaning.checked(sources.digits()).load().found == {
    'copies within training': 0, 'constant channels': 'none'
  }  # fmt: skip


def test_clean_data_is_passed_on_as_it_is():
  plain, seen = sources.digits().load(), cleaning.checked(sources.digits(), copies='drop').load()
  np.testing.assert_array_equal(plain.x, seen.x)
  assert plain.found == {}
  np.testing.assert_array_equal(plain.label, seen.label)
  same = ('name', 'levels', 'class_names', 'oriented')
  assert all(getattr(plain, name) == getattr(seen, name) for name in same)
  read = plain._replace(found={'images': 1797})  # what reading found is told beside it
  source = sources.Source('digits', lambda: read, lambda: read)
  assert cleaning.checked(source).load().found == {
    'images': 1797, 'copies within training': 0, 'constant channels': 'none'
  }  # fmt: skip


def test_a_place_without_a_finite_value_cannot_be_imputed():
  x = np.ones((3, 2), np.float32)
  x[:, 1] = np.nan
  source = sources.arrays('v', x, levels=None)
  with pytest.raises(ValueError, match='1 places have no finite value to impute'):
    cleaning.checked(source, missing='impute').load()
  with pytest.raises(ValueError, match='0 examples'):
    cleaning.checked(source, missing='drop').load()


@pytest.mark.parametrize('choice', [{'missing': 'ignore'}, {'copies': 'hide'}])
def test_an_unknown_choice_is_refused(choice):
  ((name, value),) = choice.items()
  with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
    cleaning.checked(sources.digits(), **choice)
