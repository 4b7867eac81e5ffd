"""Samples of another program: their labels and ranges are the data's, or the file, the value and a remedy are named."""

import pathlib
import types

import numpy as np
import pytest
from PIL import Image

from diffusion.commands import evaluate, foreign
from diffusion.data import pipeline, sources, splits
from diffusion.evaluation import by_name, features
from diffusion.evaluation.metric import results_to_json

NAMES = tuple('0123456789')


@pytest.fixture(scope='module')
def digits():
  return splits.split_data(sources.digits().load(), splits.Fractions(), pipeline.unit_range, None)


@pytest.fixture
def save(tmp_path):
  """(name -> array) -> the .npz that holds them."""

  def write(**arrays):
    np.savez(tmp_path / 'x.npz', **arrays)
    return tmp_path / 'x.npz'

  return write


def images(count=20, channels=1, top=256):
  return np.random.default_rng(0).integers(0, top, (count, 8, 8, channels), dtype=np.uint8)


@pytest.mark.parametrize(
  'first, says',
  [
    (99, 'label 99 in row 0 is none of the 10 classes, 0 to 9'),
    (-5, 'label -5 in row 0'),
    (0.5, 'label 0.5 in row 0'),
    (np.nan, 'label nan in row 0'),
    (10, 'label 10 in row 0'),
  ],
)
def test_a_label_that_is_no_class_is_named_with_its_row(save, first, says):
  path = save(images=images(), labels=np.resize([first, *range(10)], 20))
  with pytest.raises(ValueError, match=f'x.npz: {says}'):
    foreign.read(path, NAMES)


@pytest.mark.parametrize(
  'labels, says',
  [
    (np.eye(10)[np.arange(20) % 10], r'shape \[20, 10\]: .* labels.argmax\(1\)'),
    (np.arange(20)[:, None] % 10, r'shape \[20, 1\]: .* labels\[:, 0\]'),
    (np.array(['3'] * 20), 'labels of type <U1: they must be the numbers of the classes'),
  ],
)
def test_labels_of_another_form_are_refused_with_a_remedy(save, labels, says):
  with pytest.raises(ValueError, match=says):
    foreign.read(save(images=images(), labels=labels), NAMES)


def test_whole_labels_are_kept_whatever_their_type_and_zeros_of_what_has_no_classes_are_none(save):
  found = foreign.read(save(images=images(), labels=np.arange(20.0) % 10), NAMES)
  assert found.label.tolist() == [*range(10), *range(10)]
  assert found.label.dtype == np.int32
  assert foreign.read(save(samples=images(), labels=np.zeros(20, int)), ()).label is None
  with pytest.raises(
    ValueError, match='label 1 in row 3 is none of the data, which has no classes'
  ):
    foreign.read(save(samples=images(), labels=np.eye(20, dtype=int)[3]), ())


def test_labels_under_another_name_are_not_passed_over(save):
  with pytest.raises(ValueError, match="x.npz holds 'label', one of each image, and no `labels`"):
    foreign.read(save(images=images(), label=np.arange(20) % 10), NAMES)
  other = save(images=images(), labels=np.arange(20) % 10, steps=np.full(20, 50), note=np.array(3))
  assert foreign.read(other, NAMES).label is not None


def test_a_file_may_hold_one_array_or_vectors_and_lie_in_the_home_folder(
  tmp_path, save, monkeypatch
):
  np.save(tmp_path / 'x.npy', images())
  monkeypatch.setenv('HOME', str(tmp_path))
  found = foreign.read('~/x.npy', NAMES)
  np.testing.assert_array_equal(found.x, images())
  assert found[1:] == (None, 256, False)
  for name in ('images', 'samples', 'anything'):  # beside numbers that are none of each image
    more = {'steps': np.array([3]), 'levels': 200} if name != 'anything' else {}
    found = foreign.read(save(**{name: images(top=200)}, **more), NAMES)
    np.testing.assert_array_equal(found.x, images(top=200))
    assert found[1:] == (None, 200, True) if more else (None, 256, False)
  vectors = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
  found = foreign.read(save(samples=vectors, labels=np.arange(20) % 10), NAMES)
  np.testing.assert_array_equal(found.x, vectors)
  np.testing.assert_array_equal(found.label, np.arange(20) % 10)
  assert found[2:] == (None, True)
  (tmp_path / 'x.txt').touch()
  with pytest.raises(ValueError, match='x.txt is neither a folder of images nor an .npz'):
    foreign.read(tmp_path / 'x.txt', NAMES)


def test_images_and_labels_as_adm_writes_them(tmp_path):
  labels = np.arange(20) % 10
  np.savez(tmp_path / 'adm.npz', images(), labels)
  found = foreign.read(tmp_path / 'adm.npz', NAMES)
  np.testing.assert_array_equal(found.x, images())
  np.testing.assert_array_equal(found.label, labels)


@pytest.mark.parametrize('kept', [0, 3, 700, -10])
def test_a_file_that_was_cut_off_is_named(save, kept):
  path = save(images=images(), labels=np.zeros(20))
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(ValueError, match=r'x\.npz cannot be read .* write it again') as error:
    foreign.read(path, NAMES)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'arrays, says',
  [
    ({'images': np.array([{}])}, 'cannot be read'),
    ({'images': images(0)}, r'holds no images: `images` has shape \[0, 8, 8, 1\]'),
    ({'images': images(), 'levels': [17, 17]}, r'one whole number from 2 to 256, got \[17 17\]'),
    ({'images': images(), 'levels': 17.5}, 'got 17.5'),
    ({'images': images(top=2), 'levels': 1}, 'from 2 to 256, got 1'),
    ({'images': images(), 'levels': 257}, 'from 2 to 256, got 257'),
    ({'images': images(channels=3).transpose(0, 3, 1, 2)}, r'images.transpose\(0, 2, 3, 1\)'),
    ({'images': images()[..., 0]}, r'images\[..., None\]'),
  ],
)
def test_arrays_that_cannot_be_meant_are_refused(save, arrays, says):
  with pytest.raises(ValueError, match=says):
    foreign.read(save(**arrays), NAMES)


def test_levels_taken_for_brightness_are_named_and_can_be_said(save, digits):
  dark = save(images=images(top=17))
  with pytest.raises(
    ValueError,
    match=r'brightness 0 to 16, digits 0 to 255, 1/15.9 of its range.*--levels=17 .*--levels=256',
  ):
    foreign.alike(foreign.read(dark, NAMES), digits, dark)
  said, notes = foreign.alike(foreign.read(dark, NAMES, 17), digits, dark)
  assert (said.levels, notes) == (17, [])
  same, _ = foreign.alike(foreign.read(save(images=images(top=17), levels=17), NAMES), digits, dark)
  assert same.levels == 17
  as_they_are, (note,) = foreign.alike(foreign.read(dark, NAMES, 256), digits, dark)
  assert as_they_are.levels == 256
  assert 'brightness 0 to 16' in note
  faint = save(images=images(top=8))  # some of the levels of the data: it has 17
  with pytest.raises(ValueError, match='brightness 0 to 7, digits 0 to 255, 1/36.4 .*--levels=17 '):
    foreign.alike(foreign.read(faint, NAMES), digits, faint)
  black = save(images=images(top=1))
  with pytest.raises(ValueError, match='brightness 0 to 0, digits 0 to 255, 1/255 of'):
    foreign.alike(foreign.read(black, NAMES), digits, black)
  more = save(images=images(top=40))  # more than those
  with pytest.raises(ValueError, match='1/6.54 of its range.*--levels=40 '):
    foreign.alike(foreign.read(more, NAMES), digits, more)
  _, (note,) = foreign.alike(foreign.read(save(images=images(top=66)), NAMES), digits, 'x')
  assert note.startswith('WARNING: the images have brightness 0 to 65, digits 0 to 255')


def test_images_that_are_dark_beside_data_of_all_levels_are_asked_for_their_own(save):
  source = sources.arrays('mine', images(100), np.arange(100) % 2, class_names='ab')
  data = splits.split_data(source.load(), splits.Fractions(), pipeline.unit_range, None)
  path = save(images=images(top=17))
  with pytest.raises(ValueError, match='--levels=17 .*--levels=256'):
    foreign.alike(foreign.read(path, ('a', 'b')), data, path)


@pytest.mark.parametrize('low, high', [(110, 130), (110, 170), (130, 150), (90, 150)])
def test_a_range_that_ends_elsewhere_on_any_side_is_said(save, low, high):
  """Of data of 110 to 150, one end each."""
  between = lambda *ends: np.array(ends, np.uint8)[images(top=2)]  # noqa: E731
  source = sources.arrays('mine', between(110, 150), np.arange(20) % 2, class_names='ab')
  data = splits.split_data(source.load(), splits.Fractions(), pipeline.unit_range, None)
  path = save(images=between(low, high))
  _, notes = foreign.alike(foreign.read(path, ('a', 'b')), data, path)
  assert notes == [
    f'WARNING: the images have brightness {low} to {high}, mine 110 to 150: are they scaled alike?'
  ]


def test_a_folder_of_levels_taken_for_brightness_is_named_too(tmp_path, digits):
  for i, image in enumerate(images(3, top=2)):  # floats from 0 to 1, cut to 0 and 1
    Image.fromarray(image[..., 0]).save(tmp_path / f'{i}.png')
  with pytest.raises(ValueError, match='brightness 0 to 1, digits 0 to 255'):
    foreign.alike(foreign.read(tmp_path, NAMES), digits, tmp_path)
  with pytest.raises(ValueError, match='holds brightness 1, which --levels=1 does not have'):
    foreign.read(tmp_path, NAMES, 1)


def test_levels_that_were_said_wrongly_are_named_by_who_said_them(save):
  with pytest.raises(
    ValueError, match=r'x.npz: --levels says there are 10 levels, 0 to 9, and it holds 16'
  ):
    foreign.read(save(images=images(top=17), levels=17), NAMES, 10)
  with pytest.raises(ValueError, match='x.npz says it has 10 levels, 0 to 9, and it holds 16'):
    foreign.read(save(images=images(top=17), levels=10), NAMES)
  with pytest.raises(
    ValueError, match='holds vectors, which have no levels: leave --levels=17 out'
  ):
    foreign.read(save(samples=np.zeros((9, 2), np.float32)), NAMES, 17)


@pytest.mark.parametrize('theirs, own', [(3, 4), (1, 4), (1, 2), (3, 2)])
def test_channels_that_are_neither_gray_nor_color_are_refused_by_their_shapes(save, theirs, own):
  arrays = sources.arrays('fields', images(100, own))
  data = splits.split_data(arrays.load(), splits.Fractions(), pipeline.unit_range, None)
  with pytest.raises(ValueError, match=rf'shape \[8, 8, {theirs}\], fields has \[8, 8, {own}\]'):
    foreign.alike(foreign.read(save(images=images(channels=theirs)), ()), data, 'x')


def test_gray_stored_as_color_is_converted_and_color_refused(save, digits):
  gray = images()
  found, notes = foreign.alike(foreign.read(save(images=gray.repeat(3, -1)), NAMES), digits, 'x')
  np.testing.assert_array_equal(found.x, gray)
  assert notes == ['gray images stored as color: one channel was taken']
  with pytest.raises(ValueError, match=r'color in 20 of 20 images, and digits is gray: convert'):
    foreign.alike(foreign.read(save(images=images(channels=3)), NAMES), digits, 'x')
  one = gray.repeat(3, -1)
  one[4, 2, 5, 1] ^= 1  # green in one pixel
  with pytest.raises(ValueError, match='color in 1 of 20 images'):
    foreign.alike(foreign.read(save(images=one), NAMES), digits, 'x')


def test_gray_images_beside_color_get_its_channels(save):
  color = splits.split_data(
    sources.synthetic_images((8, 8, 3)).load(), splits.Fractions(), pipeline.unit_range, None
  )
  found, notes = foreign.alike(foreign.read(save(images=images()), NAMES), color, 'x')
  np.testing.assert_array_equal(found.x, images().repeat(3, -1))
  assert 'equal channels' in notes[0]


def test_findings_are_printed_before_a_file_that_cannot_be_written_ends_the_program(
  monkeypatch, capsys, tmp_path
):
  found = [evaluate.MetricResult('recognized as their label', 0.25, 'of 4')]
  asked, sizes = [], []
  measure = lambda *given, **more: asked.append((given, more)) or (found, ['a note'], {})  # noqa: E731
  monkeypatch.setattr(evaluate, 'measure', measure)
  monkeypatch.setattr(
    evaluate.provenance, 'read_record', lambda folder: {'config': {'batch_size': 48}}
  )
  monkeypatch.setattr(evaluate.devices, 'configure', sizes.append)
  (tmp_path / 'taken').write_text('')
  given = {
    'images': 'x',
    'run': 'r',
    'metrics': ['vendi'],
    'features': 'digits',
    'levels': 17,
    'moved': ['data_dir=~/sets'],
  }
  with pytest.raises(OSError):
    evaluate.main([], types.SimpleNamespace(**given, output=tmp_path / 'taken' / 'out.json'))
  said = capsys.readouterr().out
  assert 'a note' in said and '| recognized as their label | 0.250 |' in said
  more = {'levels': 17, 'moved': {'data_dir': '~/sets'}}
  assert asked == [(('x', 'r', ['vendi'], 'digits'), more)]
  assert sizes == [48]  # as the run was


def test_images_half_as_bright_and_vectors_in_network_units_are_warned_of(save, digits):
  shifted = (127 + images() // 2).astype(np.uint8)
  _, notes = foreign.alike(foreign.read(save(images=shifted), NAMES), digits, 'x')
  assert 'brightness 127 to 254, digits 0 to 255' in notes[0]
  random = np.random.default_rng(0)
  far = sources.arrays('far', random.normal(5000, 1000, (400, 3)).astype(np.float32), levels=None)
  data = splits.split_data(far.load(), splits.Fractions(), pipeline.standardized(), None)
  for x, warned in (
    (random.normal(size=(50, 3)), True),
    (random.normal(5000, 900, (50, 3)), False),
    (random.normal(5000, 150, (50, 3)), True),
    (random.normal(5000, 400, (50, 3)), False),
    (random.normal(5000, 6000, (500, 3)), True),
    (random.normal(5000, 3000, (500, 3)), False),
    (random.normal(10000, 1000, (50, 3)), True),
    (random.normal(0, 1000, (50, 3)), True),
    (random.normal(8000, 1000, (50, 3)), False),
  ):
    _, notes = foreign.alike(foreign.read(save(samples=x.astype(np.float32)), ()), data, 'x')
    assert bool(notes) == warned
    assert not warned or "in the data's units?" in notes[0]
  x = np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]], np.float32)
  _, (note,) = foreign.alike(foreign.read(save(samples=x), ()), data, 'x')
  own = data.train[0]
  assert (
    f'mean 4 and standard deviation 2.16, the data {own.mean():.3g} and {own.std():.3g}:' in note
  )


def test_images_of_more_levels_are_compared_with_all_data_in_brightness(save, digits):
  given = foreign.read(save(images=images()), NAMES)
  inputs, notes = evaluate._beside(given, digits)
  assert 'both are given in brightness' in notes[0]
  assert inputs.units.levels == 256
  np.testing.assert_array_equal(inputs.samples, given.x)
  for found, known in ((inputs.train, digits.train), (inputs.held_out, digits.held_out)):
    np.testing.assert_array_equal(found[0], np.rint(known[0] / 16 * 255))
    np.testing.assert_array_equal(found[1], known[1])


def test_images_whose_levels_are_the_datas_are_compared_in_these_and_copies_among_them_are_counted(
  save, digits
):
  """Said to be levels, or in brightness of which each is one."""
  known = digits.train[0]
  x, labels = np.concatenate([known[:3], images(5, top=17), known[3:5]]), np.arange(10) % 7
  bright = pipeline.to_uint8(x, 17)
  for arrays in ({'images': x, 'levels': 17}, {'images': bright}):
    inputs, notes = evaluate._beside(foreign.read(save(**arrays, labels=labels), NAMES), digits)
    assert notes == ['WARNING: 5 of the 10 images ARE training examples, to the last pixel']
    np.testing.assert_array_equal(inputs.samples, x)
    np.testing.assert_array_equal(inputs.labels, labels)
    assert inputs.units == digits.units
    for found, own in ((inputs.train, digits.train), (inputs.held_out, digits.held_out)):
      np.testing.assert_array_equal(found[0], own[0])
      np.testing.assert_array_equal(found[1], own[1])
    sizes = digits.sizes
    assert inputs.validation == sizes['validation'] != sizes['test']
    assert (inputs.class_names, inputs.network, inputs.kept) == (NAMES, None, {})
  inputs, _ = evaluate._beside(foreign.read(save(images=bright), NAMES), digits)
  assert inputs.labels.tolist() == [0] * 10  # of images whose labels nobody says


def test_what_is_measured_of_images_is_planned_by_their_numbers_and_recorded(
  monkeypatch, save, digits
):
  asked = []
  monkeypatch.setattr(evaluate, 'data_of', lambda *given: asked.append(given) or digits)
  monkeypatch.setattr(
    evaluate, 'choose_features', lambda name: features.pixels()._replace(name=name)
  )
  of = {name: by_name.metrics()[name] for name in ('vendi', 'recognition', 'sliced_wasserstein')}
  path, moved = save(images=images(12, top=17)), {'data_dir': 'there'}
  judge = lambda *names, **more: evaluate.measure(path, 'a/run', names, 'own', levels=17, **more)  # noqa: E731
  sizes = digits.sizes
  for name, says in (
    ('kernel', f'at least 20 samples and training examples, got 12 and {sizes["train"]}'),
    (
      'calibrated_ratio',
      f'at least 10000 held-out examples, got {sizes["validation"] + sizes["test"]}:',
    ),
    ('membership', 'it asks the network, and there are images alone'),
    ('recognition', 'recognition needs to know what was asked for'),
  ):
    with pytest.raises(ValueError, match=says):
      judge(name)
  asked.clear()
  monkeypatch.setattr(by_name, 'metrics', lambda: of)
  found, notes, record = judge('all', moved=moved)
  assert asked == [(pathlib.Path('a/run').absolute(), moved)]
  assert [one.name for one in found] == [
    'Vendi score(own)', 'Vendi score(own), held-out', 'sliced Wasserstein distance',
    'sliced Wasserstein distance, held-out',
  ]  # fmt: skip
  (note,) = notes
  assert note.startswith('left out recognition: recognition needs to know what was asked for')
  assert (record['images'], record['count'], record['levels']) == (str(path), 12, 17)
  assert (record['features'], record['notes']) == ('own', notes)
  assert record['data']['examples'] == sizes
  assert record['results'] == results_to_json(found)
