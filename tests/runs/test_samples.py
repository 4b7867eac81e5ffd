"""Pictures and files of examples: data.png in the folder of every run on images, and stored samples."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusion.data import pipeline, sources, splits
from diffusion.reporting import drawing
from diffusion.runs import samples, showing
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
  made = tiny.images()
  data, random = tiny.experiments.load_data(made), np.random.default_rng(0)
  nearest = random.permutation(len(data.split.train))[:40]
  drawn, ratio = data.dataset.x[data.split.train[nearest]], random.permutation(40) / 40
  asked = []
  monkeypatch.setattr(
    showing.plots, 'memorization_strip', lambda *given, **more: asked.append(given)
  )
  monkeypatch.setattr(showing.plots, 'curves', lambda *given, **more: None)
  monkeypatch.setattr(showing, 'picture', lambda *given: None)
  sampling = showing.sampling_record(made, (8, 8, 1), 10, 0)
  shown = showing.Shown(samples=drawn, nearest=(nearest, ratio), rows=[], sampling=sampling)
  assert showing.draw_pictures(SimpleNamespace(experiment=made, data=data), tmp_path, shown) == []
  ((above, below, ratios, path),) = asked
  np.testing.assert_array_equal(ratios, np.arange(24) / 40)
  np.testing.assert_array_equal(above, below)  # each sample is a training image
  assert path == tmp_path / 'nearest.png'
  wanted = drawn[np.argsort(ratio)[:24]]
  np.testing.assert_array_equal(above, pipeline.to_uint8(wanted, data.dataset.levels))


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
