"""Pictures and files of examples: data.png in the folder of every run on images, and stored samples."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusion.data import pipeline, sources, splits
from diffusion.reporting import drawing, plots
from diffusion.runs import samples, showing
from diffusion.sampling.plan import Sampling
from tests.training import tiny


def split(x, **more):
  label = np.arange(len(x)) % 3
  data = sources.arrays('mine', x, label, class_names=('ape', 'bee', 'cat'), **more).load()
  return splits.split_data(data, splits.Fractions(), pipeline.unit_range)


@pytest.mark.parametrize('shape', [(9, 9, 1), (9, 9, 3), (9, 9, 2)])
def test_64_training_examples_are_drawn_with_their_classes_and_their_levels(
  tmp_path, monkeypatch, shape
):
  x = np.random.default_rng(0).integers(0, 17, (120, *shape), dtype=np.uint8)
  data, texts = split(x, levels=17), []
  write = drawing.Canvas.write
  monkeypatch.setattr(
    drawing.Canvas, 'write', lambda self, x, y, text, **more: [texts.append(text), write(self, x, y, text, **more)]
  )  # fmt: skip
  folders = tmp_path / 'one', tmp_path / 'two'
  for folder in folders:
    folder.mkdir()
  samples.draw_data([(folder, data) for folder in folders])
  channels = 2 if shape[2] == 2 else 1
  assert len(texts) == 64 * channels
  assert {text.split()[0] for text in texts} == {'ape', 'bee', 'cat'}
  pictures = [np.asarray(Image.open(folder / 'data.png').convert('RGB')) for folder in folders]
  np.testing.assert_array_equal(*pictures)
  first = data.split.train[data.dataset.label[data.split.train] == 0][0]
  shown = x[first][..., : 1 if channels == 2 else None]
  pixel = np.rint(shown / 16 * 255).astype(np.uint8)
  tile = np.broadcast_to(pixel.repeat(8, 0).repeat(8, 1), (72, 72, 3))
  corners = (pictures[0][:-71, :-71] == tile[0, 0]).all(-1)
  assert any(
    np.array_equal(pictures[0][y : y + 72, x : x + 72], tile) for y, x in np.argwhere(corners)
  )


def test_the_likeliest_copies_are_shown_above_what_they_are_nearest_to(tmp_path, monkeypatch):
  """The nearest of a sample is known by its place in the training split, whose rows are anywhere in the data set."""
  made = tiny.images(sampling=Sampling(grid_rows=2, per_class=4))
  data, random = tiny.experiments.load_data(made), np.random.default_rng(0)
  nearest = random.permutation(len(data.split.train))[:40]
  drawn, ratio = data.dataset.x[data.split.train[nearest]], random.permutation(40) / 40
  asked = []
  monkeypatch.setattr(
    showing.plots, 'memorization_strip', lambda *given, **more: asked.append(given)
  )
  others = {}
  monkeypatch.setattr(
    showing.plots, 'curves', lambda *given, **more: others.update(curves=(given, more))
  )
  monkeypatch.setattr(showing, 'picture', lambda *given: others.update(picture=given))
  sampling = showing.sampling_record(made, (8, 8, 1), 10, 7)
  rows = [{'step': 10}]
  shown = showing.Shown(samples=drawn, nearest=(nearest, ratio), rows=rows, sampling=sampling)
  assert showing.draw_pictures(SimpleNamespace(experiment=made, data=data), tmp_path, shown) == []
  ((above, below, ratios, path),) = asked
  np.testing.assert_array_equal(ratios, np.arange(24) / 40)
  np.testing.assert_array_equal(above, below)  # each sample is a training image
  assert path == tmp_path / 'nearest.png'
  wanted = drawn[np.argsort(ratio)[:24]]
  np.testing.assert_array_equal(above, pipeline.to_uint8(wanted, data.dataset.levels))
  # The other pictures, of the first samples and of the whole run.
  dataset, reference, first, path, title = others['picture']
  assert dataset.class_names == data.dataset.class_names
  np.testing.assert_array_equal(reference, data.dataset.x[data.split.validation])
  np.testing.assert_array_equal(first, drawn[:20])  # two of each class
  assert path == tmp_path / 'samples.png'
  head, _, tail = title.partition('\n')
  assert head == f'{data.dataset.name}: samples of step 10'
  assert tail.startswith('ddim, ') and tail.endswith('seed 7')
  given, more = others['curves']
  assert given == (rows, tmp_path / 'curves.png')
  assert (more['best_step'], more['log_snr']) == (10, made.evaluation_noise.log_snr)
  run = SimpleNamespace(experiment=made, data=data)
  assert showing.draw_pictures(run, tmp_path, shown, '_evaluation3') == []
  names = [others['picture'][3].name, asked[-1][-1].name, others['curves'][0][1].name]
  assert names == ['samples_evaluation3.png', 'nearest_evaluation3.png', 'curves.png']


def test_vectors_have_none_and_a_failure_is_a_line(tmp_path, capsys):
  vectors = split(np.random.default_rng(0).normal(size=(60, 4)), levels=None)
  samples.draw_data([(tmp_path, vectors)])
  assert not list(tmp_path.iterdir())
  images = split(np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1), dtype=np.uint8))
  (tmp_path / 'file').touch()
  samples.draw_data([(tmp_path / 'file', images)])
  assert 'data.png could not be drawn: ' in capsys.readouterr().err


def test_stored_samples_that_are_cut_short_or_gone_are_named(tmp_path):
  path = tmp_path / 'samples.npz'
  x, label = np.arange(60, dtype=np.uint8).reshape(5, 3, 4, 1), np.arange(5)
  path.write_bytes(samples.pack(x, label, 256))
  for one, two in zip(samples.stored(path), (x, label), strict=True):
    np.testing.assert_array_equal(one, two)
  assert np.load(path)['levels'] == 256
  path.write_bytes(samples.pack(x / 3, label, None))
  assert sorted(np.load(path)) == ['labels', 'samples']
  path.write_bytes(path.read_bytes()[:-40])
  for _ in range(2):
    with pytest.raises(ValueError, match=r'samples\.npz cannot be read .*drawn again'):
      samples.stored(path)
    path.unlink(missing_ok=True)


@pytest.mark.parametrize('start, stop', [(0, 7), (0, 40), (5, 6), (5, 23), (17, 64)])
def test_each_sample_is_asked_for_what_its_number_is_told(start, stop, monkeypatch):
  monkeypatch.setattr(samples.draw, 'CHUNK', 2)
  told = np.random.default_rng(0).integers(0, 10, stop)
  run = SimpleNamespace(sample=lambda weights, told, numbers: np.stack([numbers, told], 1))
  blocks = list(samples._draw(run, None, told, start, stop))
  expected = np.stack([np.arange(start, stop), told[start:]], 1)
  np.testing.assert_array_equal(np.concatenate(blocks), expected)
  assert [len(one) % 8 for one in blocks[:-1]] == [0] * (len(blocks) - 1)


def test_samples_are_drawn_once_and_only_those_that_lack_are_added(tmp_path):
  """Where fewer, more and others are asked for, and where a file is damaged."""
  asked = []

  def sample(weights, told, numbers):
    asked.extend(numbers.tolist())
    return (weights + 10 * told + numbers).astype(np.uint8).reshape(-1, 1, 1, 1)

  data = SimpleNamespace(units=SimpleNamespace(levels=17))
  run = SimpleNamespace(sample=sample, folder=tmp_path, record={'samples': []}, data=data)
  run.amend = lambda change: run.record.update(change(run.record))

  def drawn(count, seed=0):
    labels = np.arange(count) % 3
    found = samples.drawn(run, 100 * seed, labels, labels + 1, {'seed': seed})
    wanted = 100 * seed + 10 * (labels + 1) + np.arange(count)
    np.testing.assert_array_equal(found.ravel(), wanted)
    numbers = [*asked]
    asked.clear()
    return numbers

  assert drawn(5) == [0, 1, 2, 3, 4]
  assert drawn(3) == []
  assert drawn(8) == [5, 6, 7]
  assert drawn(4, seed=1) == [0, 1, 2, 3]
  files = [(one['file'], one['count'], one['identity']) for one in run.record['samples']]
  assert files == [('samples.npz', 8, {'seed': 0}), ('samples_1.npz', 4, {'seed': 1})]
  assert samples.stored(tmp_path / 'samples.npz')[1].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
  assert np.load(tmp_path / 'samples.npz')['levels'] == 17
  (tmp_path / 'samples_1.npz').write_bytes(b'damaged')
  assert drawn(3, seed=1) == [0, 1, 2]
  assert [one['count'] for one in run.record['samples']] == [8, 3]
  assert drawn(8) == drawn(3, seed=1) == []


@pytest.mark.parametrize(
  ('classes', 'count', 'channels', 'grid'),
  [(3, 12, 1, (4, 3)), (0, 12, 3, (4, 3)), (0, 16, 1, (4, 4)), (0, 7, 1, (7, 1)), (3, 3, 2, (1, 3))],
)  # fmt: skip
def test_a_picture_has_a_column_a_class_and_without_classes_as_many_as_rows_or_fewer(
  tmp_path, monkeypatch, classes, count, channels, grid
):
  shown = []
  monkeypatch.setattr(plots, 'image_grid', lambda *given, title: shown.append((*given, title)))
  x = np.broadcast_to(np.arange(count)[:, None, None, None], (count, 4, 5, channels))
  names = ('ape', 'bee', 'cat')[:classes]
  given = (np.arange(count) % 3, names) if classes else (None, ())
  data = sources.arrays(
    'mine', x.astype(np.uint8), given[0], levels=17, class_names=given[1]
  ).load()
  samples.picture(data, x[:1], x.astype(np.uint8), tmp_path / 'a.png', 'all')
  ((images, titles, path, title),) = shown
  wanted = np.rint(np.arange(count) / 16 * 255).reshape(grid)
  assert images.shape == (*grid, 4, 5, channels)
  np.testing.assert_array_equal(images[..., 3, 4, -1], wanted)
  assert list(titles) == list(names or [''] * grid[1])
  assert path == tmp_path / 'a.png'
  assert title == ('all, 2 channels side by side' if channels == 2 else 'all')


@pytest.mark.parametrize(
  ('count', 'channels', 'grid'), [(100, 1, (8, 8)), (20, 3, (2, 8)), (5, 1, (1, 5)), (20, 2, (4, 8))]
)  # fmt: skip
def test_each_training_example_is_drawn_under_its_own_class(
  tmp_path, monkeypatch, count, channels, grid
):
  """Class after class, evenly of all; of channels that are no colors each by itself, under its number."""
  shown = []
  monkeypatch.setattr(
    plots, 'image_grid', lambda images, titles, path, title: shown.append((images, titles, title))
  )
  label = np.arange(150) % 3
  x = np.broadcast_to((5 * label)[:, None, None, None], (150, 6, 7, channels))
  x = (x + np.arange(channels)).astype(np.uint8)
  x[:, 0, :2, 0] = np.stack([np.arange(150) % 17, np.arange(150) // 17], 1)  # no two are one
  data = split(x, levels=17)
  train = np.random.default_rng(0).permutation(150)[:count]
  samples.draw_data([(tmp_path, data._replace(split=data.split._replace(train=train)))])
  ((images, titles, title),) = shown
  assert 'mine: training examples' in title
  alone = channels == 2
  assert images.shape == (*grid, 6, 7, 1 if alone else channels)
  ordered = np.sort(label[train])
  many = grid[0] * grid[1] // (2 if alone else 1)
  shown_labels = ordered[np.linspace(0, count - 1, many).astype(int)].repeat(2 if alone else 1)
  channel = np.tile([0, 1], many) if alone else 0 * shown_labels
  wanted = np.rint((5 * shown_labels + channel) / 16 * 255)
  np.testing.assert_array_equal(images[..., 5, 6, 0].ravel(), wanted)
  names = [('ape', 'bee', 'cat')[k] for k in shown_labels]
  names = [f'{name} {c}' for name, c in zip(names, channel, strict=True)] if alone else names
  assert [name for row in titles for name in row] == names
  (tmp_path / 'data.png').touch()
  samples.draw_data([(tmp_path, data)])
  assert len(shown) == 1  # it is there
