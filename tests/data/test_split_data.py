"""What a data set is split into: one set of rows, of which everything else is read."""

import numpy as np
import pytest

from diffusion.data import curriculum, pipeline, records, sources, splits
from diffusion.data.records import DiskRecords


def vectors(count=64):
  """Each row holds its own number, and the class of its parity."""
  x = np.arange(count, dtype=np.float32)[:, None] * np.ones(3, np.float32)
  label = np.arange(count, dtype=np.int32) % 2
  return sources.arrays('rows', x, label, levels=None, class_names=('even', 'odd')).load()


def split(dataset, **changes):
  given = {'fractions': splits.Fractions(0.25, 0.25), 'normalization': pipeline.unit_range}
  return splits.split_data(dataset, **given | changes)


def numbers(examples):
  return np.asarray(examples[0])[:, 0].astype(int)


def test_every_example_is_in_one_part_and_its_rows_are_those_of_the_data_set():
  data = split(vectors())
  parts = {name: getattr(data, name) for name in ('train', 'validation', 'test')}
  for name, part in parts.items():
    np.testing.assert_array_equal(numbers(part), getattr(data.split, name))
    np.testing.assert_array_equal(part[1], numbers(part) % 2)
    assert data.sizes[name] == len(part[0]) > 1
  assert sorted(np.concatenate([numbers(part) for part in parts.values()])) == list(range(64))
  held_out = np.concatenate([numbers(parts['validation']), numbers(parts['test'])])
  np.testing.assert_array_equal(numbers(data.held_out), held_out)
  np.testing.assert_array_equal(data.held_out[1], held_out % 2)
  for one, other in zip(data.train_in_memory, data.train, strict=True):
    np.testing.assert_array_equal(one, other)
  assert not data.streamed
  assert data.comparable
  data.check_comparable('metrics')  # raises nothing
  assert data.order is None
  for one, other in zip(data.shown_test, data.test, strict=True):
    np.testing.assert_array_equal(one, other)
  example = data.example
  assert (numbers(example), example.condition, example.index) == (
    data.split.train[0],
    numbers(example) % 2,
    0,
  )


def test_what_is_told_of_held_out_examples_and_asked_of_samples_is_their_own():
  """Each row is told its own number: the validation examples first, which samples are drawn of as well."""
  whole = vectors()
  data = split(whole._replace(condition={'number': np.arange(64)}))
  assert numbers(data.train).tolist() == data.told['train']['number'].tolist()
  assert numbers(data.held_out).tolist() == data.told['held_out']['number'].tolist()
  label, told = data.asked(40)
  validation = numbers(data.validation)
  np.testing.assert_array_equal(told['number'], validation[np.arange(40) % len(validation)])
  np.testing.assert_array_equal(label, told['number'] % 2)
  np.testing.assert_array_equal(data.shown_test[1]['number'], numbers(data.test))
  moved = split(whole._replace(x=whole.x + 1, condition={'number': np.arange(64)}))
  assert moved.split.fingerprint != data.split.fingerprint  # which is of the examples, too
  assert data.example.condition['number'] == numbers(data.example) == data.split.train[0]


def test_an_official_test_split_is_the_test_split_and_counts_and_is_hashed():
  x = np.full((5, 3), 100, np.float32)
  plain = split(vectors())
  given = vectors()._replace(test=(x, np.ones(5, np.int32)))
  data = split(given)
  assert len(data.split.test) == 0
  for found in (data.test, data.shown_test):
    np.testing.assert_array_equal(found[0], x)
    np.testing.assert_array_equal(found[1], np.ones(5))
  assert data.sizes['test'] == 5
  assert sum(data.sizes.values()) == 64 + 5
  np.testing.assert_array_equal(numbers(data.held_out)[-5:], [100] * 5)
  assert data.split.hashes['test'] != plain.split.hashes['test']
  other = split(given._replace(test=(x + 1, given.test[1])))
  assert other.split.hashes['test'] != data.split.hashes['test']
  salted = split(given, fractions=splits.Fractions(0.25, 0.25, salt='x'))
  assert salted.split.hashes['test'] != data.split.hashes['test']


def test_units_are_those_of_the_training_rows_alone():
  data = split(vectors(), normalization=pipeline.standardized())
  found = numbers(data.train)
  np.testing.assert_allclose([data.units.mean, data.units.deviation], [found.mean(), found.std()])
  assert abs(data.units.mean - 31.5) > 1e-6  # of all rows


def test_the_order_is_of_training_rows_by_score_and_equal_scores_keep_theirs():
  data = split(vectors(), curriculum=curriculum.by_class([1, 0]))
  train = data.split.train
  expected = np.concatenate([train[train % 2 == 1], train[train % 2 == 0]])
  np.testing.assert_array_equal(data.order, expected)
  assert data.order.dtype == np.int32
  plain = split(vectors(), curriculum=curriculum.by_resolution(1))  # which ranks nothing
  np.testing.assert_array_equal(plain.order, train)


def test_training_rows_are_taken_evenly_over_the_split_and_as_many_as_are_held_out():
  data = split(vectors(), fractions=splits.Fractions(0.2, 0.1))
  rows = splits.evenly(data)
  place = np.searchsorted(data.split.train, rows)
  np.testing.assert_array_equal(data.split.train[place], rows)
  assert len(rows) == len(data.split.validation) < len(data.split.train)
  assert (place[0], place[-1]) == (0, len(data.split.train) - 1)
  assert np.ptp(np.diff(place)) <= 1
  few = split(vectors(), fractions=splits.Fractions(0.6, 0.1))
  assert len(few.split.train) < len(few.split.validation)
  np.testing.assert_array_equal(splits.evenly(few), few.split.train)


def test_samples_are_asked_of_the_classes_that_were_trained_and_the_others_are_counted():
  """Four classes are named: one has no example, one only what a limit leaves out, one nothing to hold out."""
  x = np.arange(41, dtype=np.float32)[:, None]
  label = np.repeat(np.array([0, 1, 3], np.int32), [20, 20, 1])
  names = ('zero', 'one', 'nobody', 'three')
  whole = split(sources.arrays('rows', x, label, levels=None, class_names=names).load())
  assert whole.classes.tolist() == [0, 1, 3]
  assert whole.dataset.found == {
    'classes without a training example, not asked for': 1, 'classes without a held-out example': 1,
  }  # fmt: skip
  np.testing.assert_array_equal(whole.asked(7)[0], [0, 1, 3, 0, 1, 3, 0])
  assert whole.pictured.class_names == ('zero', 'one', 'three')
  own = x[40:], np.array([3], np.int32)  # a test set of its own has one of the class without
  tested = split(sources.arrays('rows', x, label, levels=None, class_names=names, test=own).load())
  assert tested.dataset.found == {'classes without a training example, not asked for': 1}
  one = split(whole.dataset, fractions=splits.Fractions(0.25, 0.25, limit=1))
  assert one.kinds == len(one.classes) == 1
  assert set(one.asked(5)[0]) == set(one.classes)
  plain = split(sources.arrays('rows', x, levels=None).load())
  assert (plain.kinds, plain.classes.tolist(), plain.dataset.found) == (1, [], {})
  assert plain.asked(3)[0].tolist() == plain.asked(3)[1].tolist() == [0, 0, 0]


def test_columns_that_the_spread_of_the_others_hides_are_named():
  """One unit for all columns: about 2500 where one lies at 5000, of which both vary by 1."""
  x = np.random.default_rng(0).normal(size=(200, 2))

  def found(x):
    told = split(
      sources.arrays('table', x, levels=None).load(), normalization=pipeline.standardized()
    ).dataset
    return {name.partition(' that vary')[0]: columns for name, columns in told.found.items()}

  assert found(x + [0, 5000]) == {'columns': '0, 1'}
  assert found(x * [1, 1000]) == {'columns': '0'}
  assert found(x * [1, 3] + 5) == {}
  assert found(x * [1, 30]) == {}


def test_examples_of_your_own_are_held_out_where_every_class_has_one():
  """A hundred classes of one image, which nothing can be carved from."""
  random = np.random.default_rng(0)
  x = random.integers(0, 256, (100, 4, 4, 1), dtype=np.uint8)
  names = [f'class {k}' for k in range(100)]
  train = sources.arrays('one each', x, np.arange(100), class_names=names)
  mine = sources.arrays('mine', x[:3] ^ 1, np.array([0, 1, 1]), class_names=names[5:3:-1])
  data = split(sources.with_held_out(train, mine, mine).load())
  assert data.sizes == {'train': 100, 'validation': 3, 'test': 3}
  np.testing.assert_array_equal(data.validation[0], x[:3] ^ 1)
  np.testing.assert_array_equal(data.validation[1], [5, 4, 4])  # by name
  np.testing.assert_array_equal(data.test[0], x[:3] ^ 1)
  np.testing.assert_array_equal(data.test[1], [5, 4, 4])
  np.testing.assert_array_equal(data.train[0], x)
  with pytest.raises(ValueError, match='set test_fraction 0, or give examples of your own'):
    split(sources.with_held_out(train, mine).load())
  with pytest.raises(
    ValueError, match="mine is to be held out of few and has 'class 5'; .* class 0"
  ):
    few = sources.arrays('few', x[:1], np.zeros(1, int), class_names=names[:1])
    sources.with_held_out(few, mine).load()
  small = sources.arrays('small', x[:, :2])
  with pytest.raises(ValueError, match=r'has examples of shape \(2, 4, 1\), not \(4, 4, 1\)'):
    sources.with_held_out(train, small).load()
  for other, says in (
    (
      sources.arrays('dark', x[:2] // 16, np.zeros(2, int), levels=17, class_names=names[:1]),
      'levels 17, not 256',
    ),
    (sources.arrays('bare', x[:2]), 'no labels; the classes are class 0, class 1'),
  ):
    with pytest.raises(
      ValueError, match=f'{other.name} is to be held out of one each and has {says}'
    ):
      sources.with_held_out(train, test=other).load()
  one, other = (
    sources.Source('', load, load)
    for load in (
      lambda: mine.load()._replace(found={'a': 3}),
      lambda: mine.load()._replace(found={'b': 4}),
    )
  )
  known = sources.with_held_out(sources.unlabelled(train), one, other).load()
  assert known.found == {'a (mine)': 3, 'b (mine)': 4}
  assert not known.label.any() and not known.test[1].any()
  two, one = (sources.arrays('few', x[:n] ^ 1) for n in (2, 1))
  plain = sources.unlabelled(train)
  assert split(sources.with_held_out(plain, two).load()).sizes['validation'] == 2
  with pytest.raises(
    ValueError, match='validation needs at least 2 examples, got 1: hold out more'
  ):
    split(sources.with_held_out(plain, one).load())


def test_none_is_lost_where_the_data_holds_out_its_own_validation():
  """Of the 80 others a quarter is carved for the test, and nothing more, whatever share there is for validation."""
  random = np.random.default_rng(0)
  x, label = random.normal(size=(100, 3)).astype(np.float32), np.arange(100) % 2
  whole, mine = (
    sources.arrays('x', x[part], label[part], levels=None, class_names=('a', 'b'))
    for part in (slice(80), slice(80, 100))
  )
  data = split(sources.with_held_out(whole, mine).load(), fractions=splits.Fractions(0.3, 0.25))
  assert data.sizes == {'train': 60, 'validation': 20, 'test': 20}
  np.testing.assert_array_equal(data.validation[0], x[80:])


def test_too_few_for_validation_are_refused():
  with pytest.raises(ValueError, match='validation needs at least 2 examples, got 0: hold out'):
    split(vectors(), fractions=splits.Fractions(0.0, 0.25))


def test_streamed_training_examples_stay_unread_and_are_refused_where_they_are_too_many(
  monkeypatch,
):
  """The files do not exist: whatever reads one fails."""
  images = DiskRecords(directory='nowhere', split='train', rows=np.arange(10), image=(4, 4, 1))
  dataset = sources.Dataset('images', images, np.arange(10, dtype=np.int32) % 2, 256, ('a', 'b'))
  rows = splits.Split(np.arange(2, 8), np.arange(2), np.arange(8, 10), {}, '')
  data = splits.SplitData(dataset, rows, pipeline.NormalizationStatistics(256), None)
  assert data.streamed
  assert data.comparable
  x, label = data.train
  assert isinstance(x, DiskRecords)
  np.testing.assert_array_equal(x.rows, rows.train)
  np.testing.assert_array_equal(label, rows.train % 2)
  assert data.sizes == {'train': 6, 'validation': 2, 'test': 2}
  monkeypatch.setattr(records, 'WHOLE', 6 * 16)
  assert data.comparable  # by the training rows alone
  data.check_comparable('metrics')
  monkeypatch.setattr(records, 'WHOLE', 6 * 16 - 1)
  assert not data.comparable
  with pytest.raises(ValueError, match=r'^6 streamed .*the limit is 95 bytes\): leave out metrics'):
    data.check_comparable('metrics')
  with pytest.raises(ValueError, match='6 streamed images of train exceed the 95 bytes'):
    _ = data.train_in_memory
