"""Splits by hashed content: which split an example is in depends on the example, not on where it lies."""

import math

import numpy as np
import pytest

from diffusion.data import splits

ROWS = 400


def images(seed, n, classes=5):
  """Distinct random images and labels of unequal classes."""
  random = np.random.default_rng(seed)
  x = random.integers(0, 256, (n, 4, 3, 1), dtype=np.uint8)
  weights = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
  return x, random.choice(classes, n, p=weights).astype(np.int32)


def member_of(x, split):
  """Content -> the name of its split; fails if one content is in two."""
  found = {}
  for name in ('train', 'validation', 'test'):
    for i in getattr(split, name):
      assert found.setdefault(x[i].tobytes(), name) == name
  return found


@pytest.mark.parametrize('fractions', [(0.1, 0.1), (0.25, 0.0), (0.0, 0.3), (0.4, 0.5)])
def test_parts_are_disjoint_and_cover(fractions):
  x, label = images(0, ROWS)
  split = splits.make(x, label, splits.Fractions(*fractions), official_test=False)
  parts = [split.train, split.validation, split.test]
  assert sorted(np.concatenate(parts)) == list(range(ROWS))
  assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize(('validation', 'test'), [(0.1, 0.1), (0.02, 0.3), (0.5, 0.25)])
def test_every_class_is_cut_in_proportion(validation, test):
  x, label = images(1, ROWS)
  split = splits.make(x, label, splits.Fractions(validation, test), official_test=False)
  for c in range(5):
    size = (label == c).sum()
    for part, share in ((split.validation, validation), (split.test, test)):
      assert abs((label[part] == c).sum() - share * size) <= 1


def test_official_test_leaves_the_test_part_empty():
  x, label = images(2, ROWS)
  split = splits.make(x, label, splits.Fractions(0.1, 0.9), official_test=True)
  assert split.test.size == 0
  assert split.train.size + split.validation.size == ROWS
  assert abs(split.validation.size - 0.1 * ROWS) <= 5  # one a class
  own = splits.make(x, label, splits.Fractions(0.1, 0.9), True, np.array([9, 2, 350]))
  assert own.validation.tolist() == [2, 9, 350]
  assert own.train.tolist() == sorted(set(range(ROWS)) - {2, 9, 350})


def test_copies_share_a_split_whatever_their_labels():
  x, label = images(3, ROWS)
  x = np.concatenate([x, x[:150], x[:80]])
  label = np.concatenate([label, label[:150], (label[:80] + 1) % 5])
  split = splits.make(x, label, splits.Fractions(0.2, 0.2), official_test=False)
  assert sum(len(part) for part in split[:3]) == len(x)
  assert len(member_of(x, split)) == ROWS
  assert min(len(part) for part in split[:3]) > ROWS / 10


@pytest.mark.parametrize('mislabelled', [0, 200])
def test_the_order_of_the_data_does_not_matter(mislabelled):
  """Also not where copies carry different labels."""
  x, label = images(4, ROWS)
  x = np.concatenate([x, x[:mislabelled]])
  label = np.concatenate([label, (label[:mislabelled] + 2) % 5])
  fractions = splits.Fractions(0.2, 0.2, limit=100)
  first = splits.make(x, label, fractions, official_test=False)
  for seed in range(3):
    order = np.random.default_rng(seed).permutation(len(x))
    second = splits.make(x[order], label[order], fractions, official_test=False)
    assert first.hashes == second.hashes
    assert member_of(x, first) == member_of(x[order], second)


def test_a_salt_is_another_split():
  x, label = images(5, ROWS)
  one, other = (
    splits.make(x, label, splits.Fractions(0.3, 0.2, salt=salt), official_test=False)
    for salt in ('a', 'b')
  )
  for name, share in (('validation', 0.3), ('test', 0.2)):
    a, b = set(getattr(one, name).tolist()), set(getattr(other, name).tolist())
    expected = share**2 * ROWS  # what two independent draws have in common
    assert abs(len(a & b) - expected) < 5 * math.sqrt(expected)
    assert one.hashes[name] != other.hashes[name]
  assert one.fingerprint == other.fingerprint  # of the data, however it is split


def test_adding_examples_moves_few():
  x, label = images(6, 3000)
  fractions = splits.Fractions(0.2, 0.2)
  before = member_of(x[:2700], splits.make(x[:2700], label[:2700], fractions, official_test=False))
  after = member_of(x, splits.make(x, label, fractions, official_test=False))
  moved = np.mean([after[content] != name for content, name in before.items()])
  assert moved < 0.03  # an independent split would move 56 %


def test_a_hash_is_of_the_contents_alone():
  x, label = images(7, ROWS)
  whole = splits.make(x, label, splits.Fractions(), official_test=False)
  assert len(set(whole.hashes.values())) == 3
  assert whole.hashes == splits.make(x.copy(), label, splits.Fractions(), False).hashes
  x[whole.validation[0], 0, 0, 0] ^= 1  # one bit of one image
  assert whole.hashes != splits.make(x, label, splits.Fractions(), False).hashes
  turned = np.ascontiguousarray(x.reshape(ROWS, 3, 4, 1))  # the same bytes are other images
  for other in (turned, x.view(np.int8)):
    assert not set(splits.content_hashes(x)) & set(splits.content_hashes(other))
  assert len(set(splits.content_hashes(x))) == ROWS


def test_a_data_set_is_known_by_values_labels_order_and_shape(monkeypatch):
  x, label = images(12, 20)
  swapped = np.r_[1, 0, 2:20]
  others = [
    (x, label),
    (x[swapped], label[swapped]),
    (x, np.where(np.arange(20) == 7, label + 1, label)),
    (x ^ (np.arange(20) == 7).astype(np.uint8).reshape(-1, 1, 1, 1), label),
    (x.reshape(20, 3, 4, 1), label),
    (x.view(np.int8), label),
    (x[:19], label[:19]),
  ]
  assert len({splits.hashes_and_fingerprint(*other)[1] for other in others}) == len(others)
  strided = np.repeat(x, 2, axis=0)[::2]  # how the array lies in memory is no matter
  found = [splits.hashes_and_fingerprint(one, label)[1] for one in (strided, x)]
  assert found[0] == found[1] == splits.make(x, label, splits.Fractions(), False).fingerprint
  whole = splits.content_hashes(x)
  monkeypatch.setattr(splits, '_ROWS', 7)  # read in parts, the last of them short
  assert splits.hashes_and_fingerprint(x, label)[1] == found[0]
  np.testing.assert_array_equal(splits.content_hashes(x), whole)


@pytest.mark.parametrize('limit', [5, 7, 20, 50, 101])
def test_limit_keeps_the_classes_in_balance(limit):
  x, label = images(8, 2000)  # the largest class is five times the smallest
  split = splits.make(x, label, splits.Fractions(0.2, 0.2, limit), official_test=False)
  assert len(split.train) == limit
  counts = np.bincount(label[split.train], minlength=5)
  assert counts.max() - counts.min() <= 1


def test_limits_are_nested_and_leave_the_other_parts_alone():
  x, label = images(9, ROWS)
  whole = splits.make(x, label, splits.Fractions(0.2, 0.2), official_test=False)
  salt = splits.Fractions().salt
  last, names = set(whole.train.tolist()), whole.hashes
  for limit in (len(last), 200, 40, 1):
    split = splits.make(x, label, splits.Fractions(0.2, 0.2, limit), official_test=False)
    train = set(split.train.tolist())
    assert len(train) == limit
    assert train <= last
    np.testing.assert_array_equal(split.validation, whole.validation)
    np.testing.assert_array_equal(split.test, whole.test)
    assert split.hashes == names | {
      'train': splits.fingerprint(splits.content_hashes(x[split.train], salt))
    }
    last = train


def test_offsets_cut_disjoint_subsets_and_names_choose_others():
  x, label = images(10, 2000)
  whole = splits.make(x, label, splits.Fractions(0.2, 0.2), official_test=False)

  def subset(**more):
    made = splits.make(x, label, splits.Fractions(0.2, 0.2, 100, **more), official_test=False)
    np.testing.assert_array_equal(made.validation, whole.validation)
    np.testing.assert_array_equal(made.test, whole.test)
    counts = np.bincount(label[made.train], minlength=5)
    assert counts.sum() == 100
    assert counts.max() - counts.min() <= 1
    return set(made.train.tolist())

  first, second = subset(), subset(offset=100)
  assert not first & second
  named = [subset(subset=f'seed {i}') for i in range(3)]
  assert len({frozenset(one) for one in (*named, first)}) == 4
  assert not subset(subset='seed 1') & subset(subset='seed 1', offset=100)
  assert all(one <= set(whole.train.tolist()) for one in named)


@pytest.mark.parametrize(
  ('fractions', 'official', 'message'),
  [
    ((-0.1,), False, r'validation_fraction .*-0\.1'),
    ((1.0,), False, r'validation_fraction .*1\.0'),
    ((float('nan'),), False, r'validation_fraction .*nan'),
    (('0.1',), False, r"validation_fraction .*'0\.1'"),
    ((0.1, 1.5), False, r'test_fraction .*1\.5'),
    ((0.5, 0.5), False, r'0\.5.*0\.5 leave nothing'),
    ((0.1, 0.1, -1), False, r'train_limit .*-1'),
    ((0.1, 0.1, 2.5), False, r'train_limit .*2\.5'),
    ((0.1, 0.1, 1000), True, r'train_limit must be at most \d+, got 1000'),
    ((0.1, 0.1, 10, 'x', -1), False, r'train_offset .*-1'),
    ((0.1, 0.1, 300, 'x', 100), True, r'train_limit must be at most 2\d\d, got 300'),
  ],
)
def test_bad_fractions_name_the_value(fractions, official, message):
  x, label = images(10, ROWS)
  with pytest.raises(ValueError, match=message):
    splits.make(x, label, splits.Fractions(*fractions), official)


def test_a_part_that_would_be_empty_is_refused():
  x = np.zeros((20, 2, 2, 1), np.uint8)  # twenty copies of one image: they cannot be parted
  with pytest.raises(
    ValueError, match=r'validation needs at least 2 examples, got 0 of 20 \(1 distinct\)'
  ):
    splits.make(x, np.zeros(20, np.int32), splits.Fractions(0.1, 0.1), official_test=False)


def test_every_class_keeps_its_last_example_by_hash_for_training():
  """Two large classes and eight single ones; and a class whose only image is a copy of another class's."""
  x, _ = images(13, 128)
  label = np.repeat(np.arange(10, dtype=np.int32), [60, 60] + [1] * 8)
  split = splits.make(x, label, splits.Fractions(0.1, 0.1), official_test=False)
  assert set(label[split.train]) == set(range(10))
  assert [len(part) for part in split[:3]] == [104, 12, 12]
  digests = splits.content_hashes(x, splits.Fractions().salt)
  first = np.flatnonzero(label == 0)[np.argsort(digests[:60])]
  assert first[-1] in split.train
  greedy = splits.make(x, label, splits.Fractions(0.5, 0.499), official_test=False)
  assert greedy.train.tolist() == sorted(
    np.flatnonzero(label == k)[np.argsort(digests[label == k])][-1] for k in range(10)
  )
  copied = splits.make(
    np.concatenate([x, x[first[:1]]]), np.append(label, 10), splits.Fractions(0.1, 0.1), False
  )
  assert {int(first[0]), 128} <= set(copied.train.tolist())  # it would be the first of the test


def test_what_small_classes_hold_out_is_shared_by_validation_and_test():
  """Twenty classes of five, of each of which one is held out."""
  x, _ = images(14, 100)
  label = np.repeat(np.arange(20, dtype=np.int32), 5)
  split = splits.make(x, label, splits.Fractions(0.1, 0.1), official_test=False)
  assert [len(part) for part in split[:3]] == [80, 10, 10]
  assert np.bincount(label[split.train]).tolist() == [4] * 20
  uneven = splits.make(x, label, splits.Fractions(0.04, 0.12), official_test=False)
  assert [len(part) for part in uneven[:3]] == [80, 5, 15]
  renamed = splits.make(x, 19 - label, splits.Fractions(0.04, 0.12), official_test=False)
  assert renamed.hashes == uneven.hashes  # which classes give theirs is not up to their numbers
  x, _ = images(16, 300)
  label = np.repeat(np.arange(20, dtype=np.int32), 15)  # the first two of each, both for the test
  split = splits.make(x, label, splits.Fractions(0.02, 0.1), official_test=False)
  assert [len(part) for part in split[:3]] == [260, 7, 33]


def test_a_split_of_large_classes_is_the_one_it_always_was():
  """These names stand in the records of runs."""
  from sklearn import datasets

  data = datasets.load_digits()
  x, label = data.images.astype(np.uint8)[..., None], data.target.astype(np.int32)
  known = {
    'train': '0ce6e1930d17d001',
    'validation': '8fef347f0d75add3',
    'test': '6779ed8421d3d70f',
  }
  assert splits.make(x, label, splits.Fractions(), official_test=False).hashes == known


@pytest.mark.parametrize(
  ('classes', 'fractions', 'remedy'),
  [
    (np.arange(100), (0.1, 0.1), 'train without labels .*sources.unlabelled.*sources.with_held_out'),
    (np.zeros(6), (0.1, 0.1), 'validation_fraction 0.24 would do'),
    (np.zeros(3), (0.1, 0.1), 'validation_fraction 0.34 and test_fraction 0 would do'),
  ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused_with_what_would_do(classes, fractions, remedy):
  x, _ = images(15, len(classes))
  with pytest.raises(ValueError, match=f'validation needs at least 2 .* of {len(x)}.*{remedy}'):
    splits.make(x, classes.astype(np.int32), splits.Fractions(*fractions), official_test=False)
  if 'would' in remedy:
    validation, test = 0.24 if len(x) == 6 else 0.34, 0.1 if len(x) == 6 else 0.0
    given = x, np.zeros(len(x), np.int32)
    assert len(splits.make(*given, splits.Fractions(validation, test), False).validation) >= 2
    with pytest.raises(ValueError, match='at least 2'):
      splits.make(*given, splits.Fractions(validation - 0.01, test), False)


def test_a_test_part_that_would_be_empty_is_refused_with_what_would_do():
  """Three classes of two, of each of which one is held out: by these shares all three for validation."""
  x, _ = images(17, 6)
  label = np.repeat(np.arange(3, dtype=np.int32), 2)
  remedy = 'hold out more, validation_fraction 0.3 and test_fraction 0 would do'
  with pytest.raises(ValueError, match=f'^the test split of 6 examples is empty: {remedy}'):
    splits.make(x, label, splits.Fractions(0.3, 0.1), official_test=False)
  assert splits.make(x, label, splits.Fractions(0.3, 0.0), official_test=False).validation.size == 3
  with pytest.raises(ValueError, match='each class keeps one to train on: give examples of your'):
    splits.make(x[:2], label[1:3], splits.Fractions(0.3, 0.1), official_test=False)
