import math
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from diffusion.reporting import drawing, plots


def find(picture, image, width):
  """Upper left corners at which the picture holds the image, enlarged to at least `width`."""
  factor = math.ceil(width / image.shape[1])
  image = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).convert('RGB')
  size = (image.width * factor, image.height * factor)
  tile = np.asarray(image.resize(size, Image.Resampling.NEAREST))
  height, width = tile.shape[:2]
  firsts = np.argwhere(np.all(picture == tile[0, 0], axis=-1))
  return [
    (int(y), int(x))
    for y, x in firsts
    if np.array_equal(picture[y : y + height, x : x + width], tile)
  ]


def size_of(path):
  """(width, height) of a picture."""
  return np.asarray(Image.open(path)).shape[1::-1]


def noise(*shape):
  return np.random.default_rng(0).integers(0, 250, shape, dtype=np.uint8)


@pytest.fixture
def figures(monkeypatch):
  """The figures saved while the test runs."""
  saved = []
  savefig = Figure.savefig

  def keep(self, *args, **kwargs):
    saved.append(self)
    return savefig(self, *args, **kwargs)

  monkeypatch.setattr(Figure, 'savefig', keep)
  return saved


@pytest.mark.parametrize('shape', [(3, 4, 8, 8, 1), (2, 3, 5, 7, 3), (1, 1, 32, 32, 3)])
def test_a_grid_holds_every_image_sharp_in_its_place(tmp_path, shape):
  images = noise(*shape)
  titles = [f'class {column}' for column in range(shape[1])]
  gap = 4 + shape[0]
  path = plots.image_grid(images, titles, tmp_path / 'new' / 'grid.png', title='Samples', gap=gap)
  picture = np.asarray(Image.open(path).convert('RGB'))
  corners = np.array(
    [[find(picture, images[r, c], 72) for c in range(shape[1])] for r in range(shape[0])]
  )
  assert corners.shape == (*shape[:2], 1, 2)  # each exactly once
  y, x = corners[:, :, 0, 0], corners[:, :, 0, 1]
  assert np.all(y == y[:, :1]) and np.all(x == x[:1])
  tile_height = shape[2] * math.ceil(72 / shape[3])
  tile_width = shape[3] * math.ceil(72 / shape[3])
  assert tile_width >= 48
  assert np.all(np.diff(y, axis=0) == tile_height + gap)
  assert np.all(np.diff(x, axis=1) == tile_width + gap)
  assert abs(x.min() - (picture.shape[1] - x.max() - tile_width)) <= 1  # in the middle
  assert np.all(picture[0] == 255) and np.all(picture[:, 0] == 255)  # nothing cut at the border


def test_a_name_is_no_formula(tmp_path, figures):
  """Of Matplotlib's, which would not draw what it cannot read."""
  titles = [r'$\frac$', '$a$', 'a^2']
  plots.image_grid(noise(1, 3, 8, 8, 1), titles, tmp_path / 'grid.png', title=r'costs $\x and $3')
  assert not any(text.get_parse_math() for text in figures[0].texts)
  rates, losses, smooth = [1e-3, 1e-2, 1e-1], [3.0, 2.0, 4.0], [2.5, 2.25, 3.0]
  marks = {'$x$': 0.01, 'lowest': 0.0372}
  path = plots.rate_range(rates, losses, smooth, tmp_path / 'axes.png', marks=marks)
  assert size_of(path) == (960, 540)  # 6.4 x 3.6 inches at 150 pixels
  (axes,) = figures[1].axes
  drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
  assert drawn[:2] == [(rates, losses), (rates, smooth)]
  assert [x for x, _ in drawn[2:]] == [[rate] * 2 for rate in marks.values()]
  assert axes.lines[0].get_alpha() < 1 and axes.lines[1].get_alpha() is None
  labels = [text.get_text() for text in axes.get_legend().get_texts()]
  assert labels == ['$x$: 0.01', 'lowest: 0.037']
  assert (axes.get_xscale(), axes.get_yscale()) == ('log', 'log')
  assert figures[1].get_suptitle() == 'Learning-rate range test'
  ticks = figures[1].axes[0].get_xticklabels()
  assert any('10^{-2}' in one.get_text() and one.get_parse_math() for one in ticks)  # one is


def test_column_titles_stand_above_their_columns(tmp_path, figures):
  titles = ['zero', 'one', 'two']
  plots.image_grid(noise(2, 3, 8, 8, 1), titles, tmp_path / 'grid.png', title='All')
  (figure,) = figures
  texts = {text.get_text(): text.get_window_extent() for text in figure.texts}
  assert set(texts) == {'All', *titles}
  columns = sorted({int(image.ox) for image in figure.images})
  top = max(image.oy + 72 for image in figure.images)
  for name, left in zip(titles, columns, strict=True):
    box = texts[name]
    assert abs((box.x0 + box.x1) / 2 - (left + 36)) < 2
    assert top <= box.y0 + 4
    assert box.y1 <= texts['All'].y0
  assert texts['All'].x0 >= 0 and texts['All'].x1 <= figure.bbox.width


def test_each_image_may_have_a_name_of_its_own_and_the_title_as_many_lines_as_it_needs(
  tmp_path, figures
):
  names, title = [['a', 'b'], ['c', 'd'], ['e', 'rather long']], f'{"wide " * 20}\nand more'
  path = plots.image_grid(noise(3, 2, 4, 8, 1), names, tmp_path / 'grid.png', title=title)
  (figure,) = figures
  width, height = size_of(path)
  assert (width, height) == tuple(map(round, figure.bbox.size))
  texts = {text.get_text(): text.get_window_extent() for text in figure.texts}
  (above,) = (box for text, box in texts.items() if text == title)
  assert above.x0 >= 0 and above.x1 <= width and above.y1 <= height
  lefts = sorted({int(image.ox) for image in figure.images})
  assert abs(lefts[0] - (width - (lefts[1] + 72))) <= 1  # in the middle
  bottoms = sorted({int(image.oy) for image in figure.images}, reverse=True)
  for row, bottom in enumerate(bottoms):
    for column, left in enumerate(lefts):
      box = texts[names[row][column]]
      assert abs((box.x0 + box.x1) / 2 - (left + 36)) < 2
      assert bottom + 36 <= box.y0 + 4 and box.y1 <= (bottoms[row - 1] if row else above.y0)
      assert left - 2 <= box.x0 and box.x1 <= left + 74
  # 11 letters of 0.62 em in 76 pixels, at 100 pixels an inch of 72 points.
  small, large = sorted({text.get_size() for text in figure.texts})
  assert (small, large) == (pytest.approx(76 / (0.62 * 100 / 72 * 11)), 12)
  for letters, size in ((1, 10), (40, 6)):
    plots.image_grid(noise(1, 1, 8, 8, 1), ['x' * letters], tmp_path / 'one.png')
    assert figures[-1].texts[0].get_size() == size


@pytest.mark.parametrize(
  'images, titles, value',
  [
    (np.zeros((2, 2, 8, 8, 1), np.uint8), [['a', 'b']] * 3, "'a', 'b'"),
    (np.zeros((2, 2, 8, 8, 1), np.uint8), [['a', 'b'], ['c']], "'c'"),
    (np.zeros((1, 2, 8, 8, 1), np.float32), ['a', 'b'], 'float32'),
    (np.zeros((2, 8, 8, 1), np.uint8), ['a', 'b'], r'\(2, 8, 8, 1\)'),
    (np.zeros((0, 2, 8, 8, 1), np.uint8), ['a', 'b'], r'\(0, 2, 8, 8, 1\)'),
    (np.zeros((1, 2, 8, 8, 1), np.uint8), ['a'], "'a'"),
  ],
)
def test_a_grid_refuses_other_shapes_and_types(tmp_path, images, titles, value):
  with pytest.raises(ValueError, match=value):
    plots.image_grid(images, titles, tmp_path / 'grid.png')
  assert not (tmp_path / 'grid.png').exists()


def test_a_strip_shows_each_sample_above_its_neighbor_by_ratio(tmp_path, figures):
  samples, neighbors = noise(2, 5, 8, 8, 1)
  ratios = np.array([0.9, 0.1, 0.5, 0.34, 0.33])
  path = plots.memorization_strip(samples, neighbors, ratios, tmp_path / 's.png', columns=3)
  picture = np.asarray(Image.open(path).convert('RGB'))
  above = [find(picture, one, 72) for one in samples]
  below = [find(picture, one, 72) for one in neighbors]
  assert all(len(places) == 1 for places in above + below)
  for (top,), (bottom,) in zip(above, below, strict=True):
    assert top[1] == bottom[1]
    assert 72 <= bottom[0] - top[0] < 100
  reading_order = sorted(range(5), key=lambda one: above[one][0])
  assert list(ratios[reading_order]) == sorted(ratios)
  colors = {text.get_text(): text.get_color() for text in figures[0].texts}
  assert colors['0.10'] == colors['0.33'] == drawing.ACCENT
  assert colors['0.34'] == colors['0.90'] != drawing.ACCENT
  places = {}
  for text in figures[0].texts:
    places.setdefault(text.get_text(), []).append(text.get_window_extent())
  height = figures[0].bbox.height
  for ratio, (bottom,) in zip(ratios, below, strict=True):
    (box,) = places[f'{ratio:.2f}']
    assert abs((box.x0 + box.x1) / 2 - (bottom[1] + 36)) < 2
    assert 0 < height - box.y1 - (bottom[0] + 72) < 15  # below the neighbor
  first = min(place[0][1] for place in above)
  rows = sorted({place[0][0] for place in above}), sorted({place[0][0] for place in below})
  for name, tops in zip(('sample', 'nearest'), rows, strict=True):
    middles = sorted(height - (box.y0 + box.y1) / 2 for box in places[name])
    assert middles == pytest.approx([top + 36 for top in tops], abs=5)
    assert all(0 <= box.x0 < box.x1 < first for box in places[name])
  assert len(places['ratio']) == 2
  near = plots.memorization_strip(
    samples, neighbors, ratios, tmp_path / 't.png', threshold=0.5, title='Copies'
  )
  colors = {text.get_text(): text.get_color() for text in figures[1].texts}
  assert colors['0.34'] == drawing.ACCENT != colors['0.50'] == colors['Copies']
  # Twelve in a row, or as many as there are.
  assert 5 * 76 < size_of(near)[0] < 6 * 76 + 62


def test_a_strip_refuses_what_does_not_fit(tmp_path):
  images = noise(3, 8, 8, 1)
  for neighbors, ratios, value in (
    (images[:2], np.ones(3), r'\(2, 8, 8, 1\)'),
    (images, np.ones(2), 'ratios'),
    (images, np.array([0.1, math.nan, 0.2]), 'nan'),
  ):
    with pytest.raises(ValueError, match=value):
      plots.memorization_strip(images, neighbors, ratios, tmp_path / 's.png')


@pytest.mark.parametrize('channels', [2, 4])
def test_channels_that_are_no_colors_stand_side_by_side_in_gray(tmp_path, channels):
  images = noise(1, 2, 8, 8, channels)
  grid = plots.image_grid(images, ['', ''], tmp_path / 'grid.png')
  strip = plots.memorization_strip(images[0], images[0, ::-1], np.ones(2), tmp_path / 's.png')
  for path in (grid, strip):
    picture = np.asarray(Image.open(path).convert('RGB'))
    for image in images[0]:
      first = find(picture, image[..., :1], 72)[0]
      rest = [find(picture, image[..., k : k + 1], 72)[0] for k in range(1, channels)]
      assert rest == [(first[0], first[1] + 74 * k) for k in range(1, channels)]


def test_numbers_have_a_histogram_of_both(tmp_path, figures):
  rng = np.random.default_rng(0)
  samples, reference = rng.normal(-4, size=(400, 1)), rng.normal(1, 2, size=(900, 1))
  samples[5] = math.inf
  plots.vectors(samples, reference, tmp_path / 'v.png', title='Numbers')
  assert figures[0].get_suptitle() == 'Numbers'
  (axes,) = figures[0].axes
  labels = [text.get_text() for text in axes.get_legend().get_texts()]
  assert labels == ['data (900)', 'samples (400), 1 not finite']
  bars = axes.patches[:-1]
  assert len(bars) == 19  # the root of the 399 that are drawn
  outline = axes.patches[-1].get_xy()
  own, edges = outline[1::2, 1][: len(bars)], [bar.get_x() for bar in bars]
  np.testing.assert_allclose(outline[0::2, 0][: len(bars)], edges)  # in common bins
  finite, width = samples[np.isfinite(samples)], bars[0].get_width()
  everything = np.concatenate([finite, reference[:, 0]])
  low, high = everything.min(), everything.max()
  counts = [np.histogram(x, 19, (low, high))[0] for x in (finite, reference)]
  np.testing.assert_allclose(own, counts[0] / (399 * width))
  np.testing.assert_allclose([bar.get_height() for bar in bars], counts[1] / (900 * width))
  area = sum(bar.get_width() * bar.get_height() for bar in bars)
  mean = sum(
    bar.get_width() * bar.get_height() * (bar.get_x() + bar.get_width() / 2) for bar in bars
  )
  np.testing.assert_allclose([area, mean], [1, reference.mean()], atol=0.1)


def test_numbers_none_of_which_is_finite_have_a_picture_that_says_so(tmp_path, figures):
  assert plots.vectors(np.full((3, 1), math.nan), np.ones((9, 1)), tmp_path / 'v.png').exists()
  labels = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
  assert sorted(labels) == ['data (9)', 'samples (3), 3 not finite']


@pytest.mark.parametrize('shape', [(6, 2), (2, 2, 3), (2, 1, 2, 3)])
def test_other_shapes_are_drawn_along_the_directions_of_most_variance(tmp_path, figures, shape):
  """Data that varies along two known directions: distances in the picture are those in the data."""
  rng = np.random.default_rng(0)
  size = math.prod(shape)
  basis = np.linalg.qr(rng.normal(size=(size, 2)))[0].T
  plane = rng.normal(size=(70, 2)) * (9, 3) @ basis + rng.normal(size=size)
  given = plane[:30].reshape(30, *shape), plane[30:].reshape(40, *shape)
  plots.vectors(*given, tmp_path / 'v.png', title='Planes')
  (axes,) = figures[0].axes
  labels = axes.get_xlabel(), axes.get_ylabel(), figures[0].get_suptitle()
  assert labels == ('principal component 1', 'principal component 2', 'Planes')
  data, samples = (np.asarray(one.get_offsets()) for one in axes.collections)
  for drawn, given in ((samples, plane[:30]), (data, plane[30:])):
    found, true = (np.linalg.norm(x - x[0], axis=1) for x in (drawn, given))
    np.testing.assert_allclose(found, true, rtol=1e-6)
  between = np.linalg.norm(samples[:, None] - data, axis=2)
  wanted = np.linalg.norm(plane[:30, None] - plane[None, 30:], axis=2)
  np.testing.assert_allclose(between, wanted, rtol=1e-6)


@pytest.mark.parametrize(
  'backend', ['module://matplotlib_inline.backend_inline', 'nonsense', 'svg']
)
def test_pictures_are_drawn_whatever_backend_a_notebook_hands_on(tmp_path, backend):
  code = (
    'import os; from diffusion.reporting import plots; import numpy as np; '
    f'plots.vectors(np.eye(3), np.eye(3), {str(tmp_path / "v.png")!r}); import matplotlib; '
    f'assert os.environ["MPLBACKEND"] == {backend!r}; '
    f'assert {backend!r} != "svg" or matplotlib.rcParams["backend"] == "svg"'
  )
  environment = os.environ | {'MPLBACKEND': backend}
  subprocess.run([sys.executable, '-c', code], check=True, env=environment, timeout=60)
  assert (tmp_path / 'v.png').exists()


def test_a_scatter_draws_the_first_two_coordinates_of_both(tmp_path, figures):
  rng = np.random.default_rng(0)
  samples, reference = rng.normal(size=(40, 5)), rng.normal(size=(60, 5))
  samples[3, 1] = math.nan
  samples[7, 4] = math.nan  # which is not drawn
  plots.vectors(samples, reference, tmp_path / 'v.png', title='Vectors')
  (axes,) = figures[0].axes
  labels = axes.get_xlabel(), axes.get_ylabel(), figures[0].get_suptitle()
  assert labels == ('coordinate 1', 'coordinate 2', 'Vectors')
  drawn = [np.asarray(one.get_offsets()) for one in axes.collections]
  np.testing.assert_array_equal(drawn[0], reference[:, :2])
  np.testing.assert_array_equal(drawn[1], np.delete(samples, 3, axis=0)[:, :2])
  labels = [text.get_text() for text in axes.get_legend().get_texts()]
  assert labels == ['data (60)', 'samples (40), 1 not finite']
  with pytest.raises(ValueError, match=r'\(40, 1\)'):
    plots.vector_scatter(samples[:, :1], reference, tmp_path / 'v.png')
  with pytest.raises(ValueError, match=r'reference must .*\(60, 4\)'):
    plots.vector_scatter(samples, reference[:, :4], tmp_path / 'v.png')


def history(steps):
  rows = []
  for step in range(1, steps + 1):
    row = {'step': step, 'loss': 1 / step, 'learning_rate': 1e-3, 'gradient_norm': 2.0}
    row |= {f'loss_bucket/{one}': float(one + 1) for one in range(12)}
    if step % 5 == 0:
      row |= {'train/eps': 0.5, 'validation/eps': 0.6, 'validation/gap': 0.1}
      row |= {'validation/gap_low': 0.05, 'validation/gap_high': 0.15 + step / 100}
      row |= {f'train/level/{i}': i + step / 10 for i in range(3)}
      row |= {f'validation/level/{i}': 2 * i + step / 10 for i in range(3)}
    rows.append(row)
  return rows


def panels(figure):
  return {axes.get_title(loc='left'): axes for axes in figure.axes if axes.get_title(loc='left')}


def test_curves_draw_the_values_of_the_rows(tmp_path, figures):
  path = plots.curves(history(20), tmp_path / 'c.png', title='Run', best_step=15)
  assert path.exists()
  axes = panels(figures[0])
  assert set(axes) == {
    'Objective, as it is trained', 'Unweighted loss on the evaluation noise', 'Generalization gap', 'Learning rate',
    'Gradient norm', 'Objective by noise level',
  }  # fmt: skip
  objective = axes['Objective, as it is trained']
  np.testing.assert_array_equal(objective.lines[0].get_ydata(), 1 / np.arange(1, 21))
  assert objective.get_yscale() == axes['Gradient norm'].get_yscale() == 'log'
  assert axes['Objective by noise level'].get_yscale() == 'log'  # from 1 to 12
  assert axes['Unweighted loss on the evaluation noise'].get_yscale() == 'linear'
  train, held_out = axes['Unweighted loss on the evaluation noise'].lines[:2]
  np.testing.assert_array_equal(held_out.get_xydata(), [[step, 0.6] for step in (5, 10, 15, 20)])
  np.testing.assert_array_equal(train.get_ydata(), [0.5] * 4)
  assert 'best step 15' in objective.get_legend_handles_labels()[1]
  assert figures[0].get_suptitle() == 'Run'
  assert axes['Learning rate'].get_yscale() == axes['Generalization gap'].get_yscale() == 'linear'
  for panel in axes.values():
    assert any(list(line.get_xdata()) == [15, 15] for line in panel.lines)
    assert panel.get_ylabel()
  assert any(list(line.get_ydata()) == [0, 0] for line in axes['Generalization gap'].lines)
  levels = [line.get_ydata()[0] for line in axes['Objective by noise level'].lines[:12]]
  assert levels == list(range(1, 13))  # bucket 10 after 9, not after 1
  colors = {line.get_color() for line in axes['Objective by noise level'].lines[:12]}
  assert len(colors) == 12


def test_the_weighted_objective_and_the_unweighted_losses_share_no_axes(tmp_path, figures):
  """A weighted objective a hundred times below the held-out loss is no overfitting: another panel, another scale."""
  rows = [row | {'loss': row['loss'] / 100} for row in history(20)]
  plots.curves(rows, tmp_path / 'c.png', best_step=15)
  labels = {
    name: [line.get_label() for line in axes.lines] for name, axes in panels(figures[0]).items()
  }
  assert labels['Objective, as it is trained'][0] == 'training batches'
  assert labels['Unweighted loss on the evaluation noise'][:2] == ['training subset', 'held out']
  both = [axes for axes in panels(figures[0]).values() if len(axes.lines) > 2]
  for axes in both:
    assert not {'training batches', 'held out'} <= {line.get_label() for line in axes.lines}
  assert panels(figures[0])['Unweighted loss on the evaluation noise'].get_ylim()[0] > 0.4


def test_the_gap_has_its_interval_and_the_losses_their_log_snr(tmp_path, figures):
  plots.curves(history(20), tmp_path / 'c.png', best_step=15, log_snr=[4.0, 0.0, -4.0])
  (band,) = panels(figures[0])['Generalization gap'].collections
  corners = band.get_paths()[0].vertices
  assert {(15, 0.05), (15, 0.3)} <= {(round(x), round(float(y), 6)) for x, y in corners}
  axes = panels(figures[0])['Loss by log-SNR at the best step']
  train, held_out = axes.lines[:2]
  np.testing.assert_array_equal(held_out.get_xdata(), [4, 0, -4])
  np.testing.assert_allclose(held_out.get_ydata(), [1.5, 3.5, 5.5])
  np.testing.assert_allclose(train.get_ydata(), [1.5, 2.5, 3.5])
  assert 'log-SNR' in axes.get_xlabel()
  assert len(axes.lines) == 2  # no step is marked where there are none


def test_of_a_step_that_was_made_twice_the_losses_are_of_the_better_one(tmp_path, figures):
  """As the best checkpoint is: a guard went back behind it, and it was passed again."""
  again = {f'{split}/level/{i}': 9.0 for split in ('train', 'validation') for i in range(3)}
  rows = [*history(20), *history(10)[9:], {'step': 15, 'validation/eps': 0.7, **again}]
  plots.curves(rows, tmp_path / 'c.png', best_step=15, log_snr=[4.0, 0.0, -4.0])
  held_out = panels(figures[0])['Loss by log-SNR at the best step'].lines[1]
  np.testing.assert_allclose(held_out.get_ydata(), [1.5, 3.5, 5.5])
  # A line where each rollback left, and one name for all in the first panel.
  for place, axes in enumerate(list(panels(figures[0]).values())[:-1]):
    left = [line for line in axes.lines if line.get_linestyle() == ':']
    assert [line.get_xdata()[0] for line in left] == [20]
    assert axes.get_legend_handles_labels()[1].count('rollback') == (place == 0)


def test_panels_without_values_are_left_out(tmp_path, figures):
  rows = [{'step': 1, 'loss': 1.0, 'validation/gap': None}, {'step': 2, 'loss': 0.5}]
  plots.curves(rows, tmp_path / 'c.png')
  assert set(panels(figures[0])) == {'Objective, as it is trained'}
  rows = [{'step': 5 * i, 'memorized/fraction': i / 9, 'memorized/null': 0.1} for i in (1, 2)]
  rows += [{'step': 17, 'own/b': 3.0, 'own/a': 2.0, 'plain': 1.0}, {'step': 18, 'more/c': 1.0}]
  plots.curves(rows, tmp_path / 'c.png')
  copied, own, more = panels(figures[1]).items()
  assert [copied[0], own[0], more[0]] == ['Memorized fraction of samples', 'own', 'more']
  lines = {line.get_label(): list(line.get_ydata()) for line in copied[1].lines}
  assert lines == {'samples': [1 / 9, 2 / 9], 'held-out data': [0.1, 0.1]}
  lines = {line.get_label(): list(line.get_xydata()[0]) for line in own[1].lines}
  assert lines == {'b': [17, 3], 'a': [17, 2]}
  for empty in ([], [{'step': 1}]):
    with pytest.raises(ValueError, match=f'{len(empty)} rows'):
      plots.curves(empty, tmp_path / 'none.png')


def test_a_single_row_and_rows_of_nothing_finite_can_be_drawn(tmp_path):
  assert plots.curves(history(5)[4:], tmp_path / 'one.png').exists()
  rows = [{'step': 1, 'loss': math.nan, 'gradient_norm': math.inf, 'loss_bucket/0': math.nan}]
  assert plots.curves(rows, tmp_path / 'nan.png', best_step=1).exists()


def test_values_that_are_not_finite_are_marked_where_they_happened(tmp_path, figures):
  rows = history(20)
  rows[6]['loss'], rows[11]['loss'], rows[3]['loss_bucket/2'] = math.nan, math.inf, math.nan
  plots.curves(rows, tmp_path / 'c.png')
  lines = {
    line.get_label(): line for line in panels(figures[0])['Objective, as it is trained'].lines
  }
  assert list(lines['not finite'].get_xdata()) == [7, 12]
  buckets = panels(figures[0])['Objective by noise level'].lines
  assert [len(line.get_xdata()) for line in buckets] == [20, 20, 19, *[20] * 9]  # an empty one


def test_a_long_noisy_line_gets_a_mean_that_bridges_no_gap(tmp_path, figures):
  rng = np.random.default_rng(0)
  values = 1 + rng.normal(size=5000)
  values[1000] = math.nan
  rows = [{'step': step, 'loss': value} for step, value in enumerate(values)]
  plots.curves(rows, tmp_path / 'c.png')
  lines = {
    line.get_label(): line for line in panels(figures[0])['Objective, as it is trained'].lines
  }
  mean = np.asarray(lines['training batches'].get_ydata())
  assert np.array_equal(np.isnan(mean), np.isnan(values))
  # Each value is the mean of those within 50 steps: against a direct sum at three places.
  for place in (1020, 2500, 4999):
    expected = np.nanmean(values[place - 50 : place + 51])
    assert mean[place] == pytest.approx(expected)
  assert mean[0] == values[0]
  assert mean[7] == pytest.approx(values[:15].mean())  # of a window that is narrow at the start
  assert lines['training batches'].get_marker() == ''  # of so many none is marked


def test_no_global_figure_state_and_no_jax():
  code = """
import sys, tempfile, pathlib
import diffusion.reporting.rows, diffusion.reporting.bibliography, diffusion.reporting.run_report
from diffusion.reporting import drawing, plots
assert 'matplotlib' not in sys.modules
folder = pathlib.Path(tempfile.mkdtemp())
plots.curves([{'step': 1, 'loss': 1.0}], folder / 'c.png')
sink = diffusion.reporting.rows.tensorboard(folder, 0)
sink.write({'step': 1, 'loss': 1.0}, {})
sink.close()
assert 'matplotlib.pyplot' not in sys.modules
assert 'jax' not in sys.modules
"""
  subprocess.run([sys.executable, '-c', code], check=True)
