"""Sources: what they load, and that what they cannot load is named in one line."""

import io
import json
import os
import pathlib
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from diffusion.data import raw, records, sources
from tests import prepared

PREPARED = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
needs_mnist = pytest.mark.skipif(
  not any(PREPARED.glob('mnist/*/dataset_info.json')), reason=f'no prepared MNIST in {PREPARED}'
)


def test_nothing_is_read_before_load(tmp_path):
  for source in (sources.folder(tmp_path / 'absent'), sources.tfds('mnist', str(tmp_path))):
    with pytest.raises(ValueError, match=str(tmp_path)):
      source.load()


def test_what_a_terminal_would_obey_is_in_no_name_of_the_data(tmp_path):
  for name in ('a\x1b[2Jb', 'c\nd'):
    (tmp_path / 'top\x07' / name).mkdir(parents=True)
    Image.new('L', (8, 8)).save(tmp_path / 'top\x07' / name / '1.png')
  (tmp_path / 'top\x07' / 'x.\x1bt').touch()
  data = sources.folder(str(tmp_path / 'top\x07')).load()
  assert (data.name, data.class_names) == (r'top\x07', (r'a\x1b[2Jb', r'c\nd'))
  assert all(text.isprintable() for item in data.found.items() for text in map(str, item))


def test_digits():
  data = sources.digits().load()
  assert data.x.shape == (1797, 8, 8, 1)
  assert data.x.dtype == np.uint8
  assert sorted(np.unique(data.x)) == list(range(17))
  assert data.levels == 17
  assert data.label.dtype == np.int32
  assert data.num_classes == 10
  assert set(data.label.tolist()) == set(range(10))
  assert data.class_names[3] == '3'
  assert data.test is None
  assert data.oriented
  # The label is the image's: a class's mean image resembles its own members most.
  means = np.stack([data.x[data.label == c].mean(0) for c in range(10)]).reshape(10, 64)
  distance = ((data.x.reshape(-1, 1, 64) - means) ** 2).sum(-1)
  assert (distance.argmin(1) == data.label).mean() > 0.85


def test_arrays_round_trip():
  x = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3, 1)
  data = sources.arrays(
    'mine', x, np.array([0, 1, 2, 1, 0]), class_names='abc', note='careful'
  ).load()
  np.testing.assert_array_equal(data.x, x)
  assert data.label.tolist() == [0, 1, 2, 1, 0]
  assert (data.label.dtype, data.num_classes, data.note) == (np.int32, 3, 'careful')
  floats = sources.arrays('points', np.ones((4, 3)), levels=None).load()
  assert floats.x.dtype == np.float32
  assert (floats.num_classes, floats.label.tolist()) == (0, [0] * 4)
  assert not (data.oriented or floats.oriented)
  tested = sources.arrays(
    'points', np.ones((4, 3)), levels=None, test=(np.zeros((2, 3)), np.zeros(2, int))
  ).load()
  assert [(part.dtype.name, part.tolist()) for part in tested.test] == [
    ('float32', [[0.0] * 3] * 2), ('int32', [0] * 2)
  ]  # fmt: skip


def bad_floats(value):
  x = np.zeros((6, 2), np.float32)
  x[4, 1] = value
  return x


IMAGES = np.zeros((3, 2, 2, 1), np.uint8)
BAD_ARRAYS = {
  'float images': ({'x': np.zeros((3, 2, 2, 1))}, 'must be uint8 .* got float64'),
  'images without channels': ({'x': np.zeros((3, 2, 2), np.uint8)}, r'got uint8 \(3, 2, 2\)'),
  'a level too many': ({'x': IMAGES + 17, 'levels': 17}, 'a value 17 where levels are 0 to 16'),
  'NaN': ({'x': bad_floats(np.nan), 'levels': None}, '1 examples are not finite, the first is 4'),
  'infinite': ({'x': bad_floats(np.inf), 'levels': None}, 'the first is 4'),
  'beyond float32': ({'x': np.full((6, 2), 1e300), 'levels': None}, '6 examples are not finite'),
  'label too large': (
    {'x': IMAGES, 'label': np.array([0, 2, 1]), 'class_names': 'ab'},
    '0 to 2 for 2',
  ),
  'label negative': (
    {'x': IMAGES, 'label': np.array([0, -1, 1]), 'class_names': 'ab'},
    '-1 to 1 for 2',
  ),
  'labels without classes': (
    {'x': IMAGES, 'label': np.array([0, 0, 1])},
    '0 to 1 for 0 classes: give class_names',
  ),
  'one-hot labels': (
    {'x': IMAGES, 'label': np.eye(3, dtype=int), 'class_names': 'abc'},
    r'got shape \(3, 3\): of one-hot rows give label.argmax\(1\)',
  ),
  'a column of labels': (
    {'x': IMAGES, 'label': np.array([[0], [1], [0]]), 'class_names': 'ab'},
    r'got shape \(3, 1\).* of a column label\[:, 0\]',
  ),
  'test images of another size': (
    {'x': IMAGES, 'test': (np.zeros((3, 3, 3, 1), np.uint8), None)},
    r'\(test\): examples of shape \(3, 3, 1\), those to train on have \(2, 2, 1\)',
  ),
  'fewer labels': ({'x': IMAGES, 'label': np.array([0, 0])}, '3 examples and 2 labels'),
  'nothing': ({'x': IMAGES[:0]}, '0 examples'),
  'bad test set': (
    {'x': IMAGES, 'test': (IMAGES, np.array([0, 0, 7], np.int32))},
    r'\(test\): labels 0 to 7',
  ),
  'empty test set': ({'x': IMAGES, 'test': (IMAGES[:0], np.zeros(0, np.int32))}, r'\(test\): 0'),
}


@pytest.mark.usefixtures('unchecked')
@pytest.mark.filterwarnings('ignore:overflow')
@pytest.mark.parametrize('case', BAD_ARRAYS)
def test_arrays_refuse(case):
  arguments, message = BAD_ARRAYS[case]
  source = sources.arrays('mine', **arguments)
  with pytest.raises(ValueError, match=message) as caught:
    source.load()
  assert str(caught.value).startswith('mine (')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'label, names',
  [
    (np.array([0.0, 0.7, 0.2]), 'got float64'),
    (np.array(['a', 'b', 'a']), r"got <U1, \['a', 'b', 'a'\] ...: number the classes"),
    (np.array([2**32, 1, 0]), r'of 32 bits, got int64, \[4294967296'),  # class 0 after a cast
  ],
)
def test_arrays_refuse_labels_that_are_not_integers(label, names, unchecked):
  with pytest.raises(ValueError, match=f'a label must be an integer.*{names}'):
    sources.arrays('mine', IMAGES, label, class_names='ab').load()


def test_a_class_name_given_twice_is_refused():
  with pytest.raises(ValueError, match="mine: two classes are called 'b'"):
    sources.arrays('mine', IMAGES, np.array([0, 1, 2]), class_names='abb').load()


@pytest.mark.parametrize('levels', [1, 257, 2.5])
def test_numbers_of_levels_that_uint8_does_not_have_are_refused(levels, unchecked):
  with pytest.raises(ValueError, match=f'levels must be .* got {levels}'):
    sources.arrays('mine', IMAGES, levels=levels)


def test_numbers_that_float32_does_not_tell_apart_are_refused():
  far = 1e8 + np.random.default_rng(0).normal(size=(50, 3))  # float32 has steps of 8 there
  with pytest.raises(ValueError, match='rounds the values by up to .* around 1e.08: subtract that'):
    sources.arrays('mine', far, levels=None).load()
  kept = sources.arrays('mine', far - 1e8, levels=None).load().x
  np.testing.assert_allclose(kept, far - 1e8, atol=1e-6)
  constant = sources.arrays('mine', np.full((50, 3), 0.1), levels=None).load().x
  assert (constant == np.float32(0.1)).all()
  with pytest.raises(ValueError, match='real numbers, got complex128'):
    sources.arrays('mine', far * 1j, levels=None).load()


def test_held_out_examples_never_become_training_examples():
  parts = [sources.arrays(name, IMAGES + i, None) for i, name in enumerate('abc')]
  once = sources.with_held_out(parts[0], parts[1])
  assert sources.with_held_out(once, test=parts[2]).load().validation.tolist() == [3, 4, 5]
  with pytest.raises(ValueError, match='a holds out 3 examples to validate by already'):
    sources.with_held_out(once, parts[2]).load()


def test_unlabelled():
  x = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 1), dtype=np.uint8)
  label = np.array([0, 1, 1, 0, 1, 0])
  test = (x[:2], np.array([1, 0], np.int32))
  source = sources.arrays('mine', x, label, class_names='ab', test=test, note='n')
  data = sources.unlabelled(source).load()
  np.testing.assert_array_equal(data.x, x)
  assert data.num_classes == 0
  assert not data.label.any()
  np.testing.assert_array_equal(data.test[0], x[:2])
  assert not data.test[1].any()
  assert data.note == 'n'
  assert source.load().label.tolist() == label.tolist()
  assert sources.unlabelled(sources.arrays('mine', x)).load().test is None
  told = sources.arrays('mine', x, condition=label)
  assert told.load().condition is not None
  assert sources.unlabelled(told).load().condition is None


def test_synthetic_images_are_declared_and_separable():
  data = sources.synthetic_images((12, 8, 3), num_classes=4, examples=300, seed=1).load()
  assert data.x.shape == (300, 12, 8, 3)
  assert data.x.dtype == np.uint8
  assert set(data.label.tolist()) == set(range(4))
  assert 'SYNTHETIC' in data.note
  flat = data.x.reshape(300, -1).astype(float)
  means = np.stack([flat[data.label == c].mean(0) for c in range(4)])
  assert (((flat[:, None] - means) ** 2).sum(-1).argmin(1) == data.label).all()
  again = sources.synthetic_images((12, 8, 3), 4, 300, seed=1).load()
  np.testing.assert_array_equal(data.x, again.x)
  assert (data.x != sources.synthetic_images((12, 8, 3), 4, 300, seed=2).load().x).mean() > 0.9


def test_gaussian_mixture_has_the_stated_moments():
  means, scales = np.array([[3.0, 0.0, 0.0], [0.0, -3.0, 1.0]]), np.array([0.5, 2.0])
  data = sources.gaussian_mixture(means, scales, np.array([0.3, 0.7]), 20_000, seed=4).load()
  assert data.x.dtype == np.float32
  assert data.levels is None
  assert data.num_classes == 2
  assert abs((data.label == 0).mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 20_000)
  for k in range(2):
    x = data.x[data.label == k]
    standard = (x - means[k]) / scales[k]
    assert (abs(standard.mean(0)) < 4 / np.sqrt(len(x))).all()
    np.testing.assert_allclose(np.cov(standard.T), np.eye(3), atol=6 / np.sqrt(len(x)))
    assert stats.kstest(standard.reshape(-1), 'norm').pvalue > 1e-4
  few, same, other = (
    sources.gaussian_mixture(means, scales, np.array([0.3, 0.7]), 20, seed).load()
    for seed in (4, 4, 5)
  )
  np.testing.assert_array_equal(few.x, same.x)
  assert (few.x != other.x).all() and (few.label != other.label).any()
  assert data.class_names == ('component 0', 'component 1')


def test_weights_that_are_rounded_as_people_write_them_draw():
  data = sources.gaussian_mixture(np.eye(3), np.ones(3), np.full(3, 0.333333), 3000).load()
  assert (abs(np.bincount(data.label) - 1000) < 4 * np.sqrt(3000 * 2 / 9)).all()


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
  ('means', 'scales', 'weights', 'examples', 'message'),
  [
    (np.zeros((2, 3)), np.ones(3), np.full(2, 0.5), 5, r'\(2, 3\), \(3,\), \(2,\)'),
    (np.zeros(2), np.ones(2), np.full(2, 0.5), 5, r'got \(2,\)'),
    (np.zeros((2, 3)), np.ones(2), np.array([0.5, 0.4]), 5, r'weights .*0\.4'),
    (np.zeros((2, 3)), np.ones(2), np.array([1.5, -0.5]), 5, r'weights .*-0\.5'),
    (np.zeros((2, 3)), np.ones(2), np.array([0.5, np.nan]), 5, r'weights .*nan'),
    (np.zeros((2, 3)), np.array([1.0, -1.0]), np.full(2, 0.5), 5, r'scales .*-1'),
    (np.zeros((2, 3)), np.ones(2), np.full(2, 0.5), 0, 'examples .*0'),
  ],
)
def test_gaussian_mixture_refuses(means, scales, weights, examples, message):
  with pytest.raises(ValueError, match=message):
    sources.gaussian_mixture(means, scales, weights, examples)


def write_images(root, counts, shape=(5, 4), seed=0, form='png'):
  """Subfolder -> its images, written without loss."""
  random, written = np.random.default_rng(seed), {}
  for name, count in counts.items():
    (root / name).mkdir(parents=True, exist_ok=True)
    written[name] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    for i, image in enumerate(written[name]):
      Image.fromarray(image).save(root / name / f'{i:03d}.{form}')
  return written


@pytest.mark.parametrize('form', ['png', 'PNG', 'bmp', 'tif'])
@pytest.mark.parametrize('channels', [(), (3,)])
def test_folder_of_classes(tmp_path, form, channels):
  written = write_images(tmp_path, {'dog': 3, 'cat': 2, 'eel': 4}, (5, 4, *channels), form=form)
  (tmp_path / 'dog' / 'notes.txt').write_text('no image')
  data = sources.folder(str(tmp_path)).load()
  assert data.class_names == ('cat', 'dog', 'eel')
  assert np.bincount(data.label).tolist() == [2, 3, 4]
  assert data.x.shape == (9, 5, 4, *(channels or (1,)))
  assert data.levels == 256
  for i, name in enumerate(data.class_names):
    np.testing.assert_array_equal(
      data.x[data.label == i].reshape(written[name].shape), written[name]
    )


def test_folder_without_classes(tmp_path):
  written = write_images(tmp_path, {'': 4})
  data = sources.folder(str(tmp_path)).load()
  assert data.num_classes == 0
  assert not data.label.any()
  np.testing.assert_array_equal(data.x[..., 0], written[''])


def test_folder_size_crops_the_middle_and_resizes(tmp_path):
  wide = np.zeros((8, 24, 3), np.uint8)
  wide[:, 8:16] = (0, 200, 0)  # the middle square is green; nothing of the black sides may come in
  Image.fromarray(wide).save(tmp_path / 'wide.png')
  tall = np.zeros((20, 6, 3), np.uint8)
  tall[7:13] = (0, 200, 0)
  Image.fromarray(tall).save(tmp_path / 'tall.png')
  data = sources.folder(str(tmp_path), size=4).load()
  assert data.x.shape == (2, 4, 4, 3)
  np.testing.assert_array_equal(data.x, np.broadcast_to(np.uint8([0, 200, 0]), (2, 4, 4, 3)))


def test_parts_of_a_data_set_are_not_taken_for_classes(tmp_path):
  for folder in ('train/cat', 'Test/cat', 'train/dog', 'Test/dog'):
    (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / folder / '0.png')
  with pytest.raises(ValueError, match='the folders Test, train, which are parts .*with_held_out'):
    sources.folder(str(tmp_path)).load()
  (tmp_path / 'Test').rename(tmp_path / 'hill')  # classes may be called so
  data = sources.folder(str(tmp_path)).load()
  assert data.class_names == ('hill', 'train')
  assert data.found['in folders below the class folders, which make no classes'] == 4
  assert sources.folder(str(tmp_path / 'train')).load().class_names == ('cat', 'dog')


def test_folder_refuses(tmp_path):
  with pytest.raises(ValueError, match=r'no folder of images at .*absent'):
    sources.folder(str(tmp_path / 'absent')).load()
  with pytest.raises(ValueError, match='no image that Pillow reads in'):
    sources.folder(str(tmp_path)).load()
  write_images(tmp_path, {'a': 2})
  write_images(tmp_path, {'b': 1}, (6, 6))
  with pytest.raises(ValueError, match='several sizes .*, 5x4, 6x6: give size='):
    sources.folder(str(tmp_path)).load()
  Image.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / 'stray.png')
  with pytest.raises(ValueError, match=r'beside class folders, e\.g\. stray\.png'):
    sources.folder(str(tmp_path)).load()


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
def test_a_damaged_image_is_named_or_whole(tmp_path, form):
  """Cut short or with a byte changed anywhere: no other error than the one that names the file."""
  random = np.random.default_rng(0)
  buffer = io.BytesIO()
  Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, form)
  whole, refused = buffer.getvalue(), 0
  path = tmp_path / f'one.{form.lower()}'
  cuts = [whole[:n] for n in np.linspace(0, len(whole) - 20, 20).astype(int)]
  for place in random.integers(0, len(whole), 40):
    damaged = bytearray(whole)
    damaged[place] ^= 0xFF
    cuts.append(bytes(damaged))
  for content in cuts:
    path.write_bytes(content)
    try:
      assert sources.folder(str(tmp_path)).load().x.ndim == 4
    except ValueError as error:
      assert f'cannot read image {path}' in str(error)
      refused += 1
  assert refused >= 20  # every truncated one at least


@pytest.mark.parametrize('name', ['mnist', 'cifar10'])
def test_unprepared_tfds_fails_at_once_and_says_what_to_do(tmp_path, name):
  pytest.importorskip('tensorflow_datasets')
  start = time.monotonic()
  with pytest.raises(ValueError, match=r'--config\.data_dir') as caught:
    sources.tfds(name, str(tmp_path)).load()
  assert time.monotonic() - start < 15
  assert f'python -m diffusion.commands.prepare {name} --data_dir={tmp_path}' in str(caught.value)
  assert os.listdir(tmp_path) == []  # no download was begun


def test_unknown_tfds_name(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  start = time.monotonic()
  with pytest.raises(ValueError, match=r"no TFDS data set is called 'mnits'"):
    sources.tfds('mnits', str(tmp_path)).load()
  assert time.monotonic() - start < 15


def test_what_can_be_prepared_is_what_prepare_knows():
  assert set(records.PREPARABLE) == set(raw.SPECS)


def multiset(x, label):
  """What is there, whatever the order: TFDS shuffles on disk."""
  return sorted((image.tobytes(), int(y)) for image, y in zip(x, label, strict=True))


def test_what_was_prepared_is_read_from_a_home_directory(tmp_path, monkeypatch):
  """`--config.data_dir=~/...` reaches Python as it is: no shell expands it there."""
  written = prepared.mnist(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  data = sources.tfds('mnist', '~/sets').load()
  assert multiset(data.x, data.label) == multiset(*written['train'])
  assert multiset(*data.test) == multiset(*written['test'])
  assert (data.x.dtype, data.label.dtype, data.levels) == (np.uint8, np.int32, 256)
  assert data.class_names == tuple('0123456789')
  assert data.oriented
  assert (data.name, data.note, data.found) == ('mnist', '', {})


def test_blocks_are_averaged_to_the_nearest_level(tmp_path):
  written = prepared.mnist(tmp_path)
  small = sources.tfds('mnist', str(tmp_path / 'sets'), size=7).load()
  assert small.x.shape == (9, 7, 7, 1)
  assert small.test[0].shape == (4, 7, 7, 1)
  assert small.note == 'images reduced to 7x7 by averaging blocks'
  for size in (13, 0):
    with pytest.raises(ValueError, match=f"size must divide the images' 28x28, got {size}"):
      sources.tfds('mnist', str(tmp_path / 'sets'), size=size).load()
  means = [
    sum(x[a::4, b::4].astype(int) for a in range(4) for b in range(4)) / 16
    for x in written['train'][0]
  ]
  for reduced in small.x[
    ..., 0
  ]:  # each is the block mean of one of them, TFDS having shuffled them
    assert sum(abs(reduced - mean).max() <= 0.5 for mean in means) == 1


def test_a_set_that_needs_tensorflow_is_refused(tmp_path):
  prepared.mnist(tmp_path)
  info = next((tmp_path / 'sets').rglob('dataset_info.json'))
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match=r'stored as tfrecord.*--file_format=array_record'):
    sources.tfds('mnist', str(tmp_path / 'sets')).load()


@pytest.fixture(scope='module')
def mnist():
  return sources.tfds('mnist', str(PREPARED)).load()


@needs_mnist
def test_prepared_mnist(mnist):
  assert mnist.x.shape == (60_000, 28, 28, 1)
  assert mnist.test[0].shape == (10_000, 28, 28, 1)
  assert mnist.x.dtype == np.uint8
  assert (mnist.levels, mnist.num_classes) == (256, 10)
  # Facts of the official files: class counts, and the mean and deviation that everybody standardizes with.
  assert np.bincount(mnist.label).tolist() == [
    5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
  ]  # fmt: skip
  assert np.bincount(mnist.test[1]).tolist() == [
    980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
  ]  # fmt: skip
  assert abs(mnist.x.mean(dtype=np.float64) / 255 - 0.1307) < 5e-5
  assert abs(mnist.x.std(dtype=np.float64) / 255 - 0.3081) < 5e-5


@pytest.mark.slow
@needs_mnist
def test_size_averages_blocks(mnist):
  small = sources.tfds('mnist', str(PREPARED), size=14).load()
  assert small.x.shape == (60_000, 14, 14, 1)
  assert '14x14' in small.note
  np.testing.assert_array_equal(small.label, mnist.label)
  for whole, reduced in ((mnist.x, small.x), (mnist.test[0], small.test[0])):
    sample = slice(None, None, 97)
    w = whole[sample].astype(int)
    total = w[:, ::2, ::2] + w[:, 1::2, ::2] + w[:, ::2, 1::2] + w[:, 1::2, 1::2]
    assert abs(reduced[sample] - total / 4).max() <= 0.5
  with pytest.raises(ValueError, match='size must divide .*28x28, got 13'):
    sources.tfds('mnist', str(PREPARED), size=13).load()


def other_set(folder, **changes):
  """A copy of a prepared set under a name that TFDS does not know, with `changes` of its features and splits."""
  prepared.mnist(folder)
  old = next((folder / 'sets' / 'mnist').iterdir())
  new = folder / 'sets' / 'mine' / old.name
  shutil.copytree(old, new)
  for file in list(new.glob('mnist-*')):
    file.rename(new / file.name.replace('mnist', 'mine'))
  info = json.loads((new / 'dataset_info.json').read_text()) | {'name': 'mine'}
  for split in info['splits']:
    split['name'] = changes.get(split['name'], split['name'])
  features = json.loads((new / 'features.json').read_text())
  named = features['featuresDict']['features']
  features['featuresDict']['features'] = {
    changes.get(name, name): one for name, one in named.items()
  }
  if 'dtype' in changes:
    named['image']['image']['dtype'] = changes['dtype']
  (new / 'dataset_info.json').write_text(json.dumps(info))
  (new / 'features.json').write_text(json.dumps(features))
  return sources.tfds('mine', str(folder / 'sets'))


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'label': 'digit'}, "no 'label' that is a class; it has digit, image"),
    ({'image': 'picture'}, "no 'image' that is an image; it has label, picture"),
    ({'image': 'label', 'label': 'image'}, "no 'image' that is an image; it has image, label"),
    ({'train': 'training'}, "no split 'train'; it has test, training"),
    ({'dtype': 'uint16'}, 'has images of uint16, and only those of uint8 are read'),
  ],
)
def test_a_tfds_set_of_another_kind_is_one_line(tmp_path, changes, says):
  source = other_set(tmp_path, **changes)
  for load in (source.load, lambda: source.stream(0)):
    with pytest.raises(ValueError, match=f"'mine' in {tmp_path}/sets .*{says}: .*sources.arrays"):
      load()


def test_splits_that_are_not_read_are_named(tmp_path):
  data = other_set(tmp_path, test='validation').load()
  assert data.test is None
  assert data.found == {'splits, left out': 'validation'}
  assert not data.oriented


def test_classes_in_another_order_keep_their_names():
  """Three that go around: the order and its inverse differ."""
  x = np.arange(6, dtype=np.float32)[:, None]
  label, names = np.array([0, 1, 2, 2, 1, 0]), ('a', 'b', 'c')
  data = sources.arrays(
    'around', x, label, levels=None, class_names=names, test=(x[:3] + 9, label[:3])
  ).load()
  found = sources.in_order_of(data, ('c', 'a', 'b'))
  assert found.class_names == ('c', 'a', 'b')
  assert [found.class_names[i] for i in found.label] == [names[i] for i in label]
  assert [found.class_names[i] for i in found.test[1]] == [names[i] for i in label[:3]]
