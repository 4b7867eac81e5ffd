"""Pictures of many variants: told apart, and no interval squeezed by another quantity's."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from diffusion.reporting import variants
from diffusion.statistics import Interval


@pytest.fixture
def figures(monkeypatch):
  """The figures that are saved, without writing them."""
  saved = []
  monkeypatch.setattr(Figure, 'savefig', lambda self, *args, **more: saved.append(self))
  return saved


def groups(count):
  def rows(k, seed):
    return [
      {'step': step, 'validation/eps': 1.0 + k + seed / 10, 'memorized/fraction': k / 100}
      | {f'{split}/level/{i}': float(i) for split in ('train', 'validation') for i in range(3)}
      for step in (10, 20)
    ]

  return {f'variant {k}': [rows(k, seed) for seed in range(2)] for k in range(count)}


def test_ten_variants_are_told_apart_and_their_names_hide_nothing(tmp_path, figures):
  ten = groups(10)
  variants.bands(ten, 'validation/eps', 'loss', tmp_path / 'c.png')
  variants.levels(ten, [4.0, 0.0, -4.0], tmp_path / 'l.png')
  variants.copying(ten, tmp_path / 'm.png')
  assert len(figures[0].axes[0].lines) == 10  # of so many variants the seeds are not drawn
  for figure in figures:
    (axes,) = figure.axes
    named = [one for one in axes.lines if one.get_label().startswith('variant')]
    looks = {(one.get_color(), one.get_linestyle(), one.get_marker()) for one in named}
    assert len(looks) == len(named) == 10
    figure.draw_without_rendering()
    legend, plot = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert legend.x0 > plot.x1
    assert legend.x1 <= figure.bbox.x1 and legend.y0 >= 0


def test_differences_lie_about_a_line_at_zero_on_a_linear_axis(tmp_path, figures):
  effects = [('one', Interval(-0.2, -0.5, 0.1)), ('two', Interval(0.3, 0.1, 0.5))]
  panel = variants.ForestPanel('G', effects, 'difference from plain', is_ratio=False)
  variants.forest([panel], tmp_path / 'f.png')
  (axes,) = figures[0].axes
  assert axes.get_xscale() == 'linear' and axes.get_xlabel() == 'difference from plain'
  bars, line = axes.lines[:4:2], axes.lines[4]
  assert [list(bar.get_xdata()) for bar in bars] == [[-0.5, 0.1], [0.1, 0.5]]
  assert list(line.get_xdata()) == [0, 0]
  assert bars[0].get_color() != bars[1].get_color()  # the second is told from zero
  # Each estimate stands on its bar, and both where its name is.
  names = dict(zip(axes.get_yticks(), axes.get_yticklabels(), strict=True))
  for (name, one), bar, point in zip(effects, bars, axes.lines[1:4:2], strict=True):
    place = point.get_ydata()[0]
    assert list(bar.get_ydata()) == [place] * 2
    assert (point.get_xdata()[0], names[place].get_text()) == (one.estimate, name)
  assert bars[0].get_ydata()[0] > bars[1].get_ydata()[0]  # from top to bottom


def test_each_quantity_of_a_forest_has_a_scale_of_its_own(tmp_path, figures):
  narrow = [(f'variant {k}', Interval(0.9 + k / 100, 0.88, 1.02)) for k in range(9)]
  wide = [(f'variant {k}', Interval(1.0, 0.02, 80.0)) for k in range(9)]
  name = 'a rather long name of a quantity(digits classifier, 0a1b2c3d)'
  label = 'ratio to plain'
  panels = [
    variants.ForestPanel('validation/eps', narrow, label),
    variants.ForestPanel(name, wide, label),
  ]
  variants.forest(panels, tmp_path / 'f.png')
  (figure,) = figures
  figure.draw_without_rendering()
  left, right = figure.axes
  assert left.get_xlim()[0] > 0.8 and right.get_xlim()[1] > 80
  for axes in figure.axes:
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [n for n, _ in narrow]
    boxes = [tick.get_window_extent() for tick in axes.get_xticklabels() if tick.get_text()]
    assert len(boxes) >= 3
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))  # no two ticks overlap
    assert axes._left_title.get_window_extent().x1 <= figure.bbox.x1
  np.testing.assert_allclose(right.lines[0].get_xdata(), [0.02, 80.0])
  assert left.get_title(loc='left') == 'validation/eps'
  for axes in figure.axes:
    assert axes.get_xscale() == 'log' and axes.get_xlabel() == label
    assert list(axes.lines[-1].get_xdata()) == [1, 1]


def test_a_seed_without_finite_losses_costs_its_points_and_not_the_picture(tmp_path, figures):
  """Gaps of 0.1 and 0.3 at the best step of two seeds; a first validation of NaN is never the best."""

  def row(step, loss, gap):
    return {
      'step': step,
      'validation/eps': loss,
      'train/level/0': 1.0,
      'validation/level/0': 1.0 + gap,
    }

  lost = row(5, np.nan, np.nan)
  late = [[lost, row(10, 1.0, 0.1), row(20, 2.0, 9.0)], [row(10, 1.0, 0.3)]]
  variants.levels({'late': late, 'lost': [[lost], [row(10, 1.0, 0.3)]]}, [0.0], tmp_path / 'l.png')
  drawn = {one.get_label(): one.get_ydata() for one in figures[0].axes[0].lines}
  np.testing.assert_allclose(drawn['late'], [0.2])
  assert drawn['lost'].size == 0


def half_width(values):
  """Of Student's 95 % interval of the mean."""
  return stats.t.ppf(0.975, len(values) - 1) * np.std(values, axis=0, ddof=1) / len(values) ** 0.5


def test_a_band_is_of_the_mean_over_the_seeds_where_all_have_been(tmp_path, figures):
  """The second of three seeds lacks the last step, the third is lost at the third; of another variant there is one."""
  losses = np.array([[5.0, 4, 3, 2], [6.0, 4, 5, np.nan], [9.0, 7, np.nan, 3]])
  three = [
    [{'step': 10 * (i + 1), 'loss': one[i]} for i in range(4)] + [{'step': 15, 'other': 1.0}]
    for one in losses
  ]
  three[1][3:4] = []
  alone = [[{'step': 20, 'loss': 8.0}, {'step': 40, 'loss': 7.0}]]
  variants.bands({'three': three, 'alone': alone}, 'loss', 'the loss', tmp_path / 'c.png')
  (axes,) = figures[0].axes
  mean, *seeds, other = axes.lines
  assert (mean.get_label(), other.get_label()) == ('three (n = 3)', 'alone (n = 1)')
  np.testing.assert_array_equal(mean.get_xdata(), [10, 20, 30])
  np.testing.assert_allclose(mean.get_ydata(), losses[:, :3].mean(0))
  np.testing.assert_array_equal([one.get_ydata() for one in seeds], losses[:, :3])
  assert {one.get_color() for one in seeds} == {mean.get_color()} != {other.get_color()}
  np.testing.assert_array_equal(other.get_xydata(), [[20, 8], [40, 7]])
  (band,) = axes.collections  # which ends with the seed that is lost
  corners = {tuple(one) for one in band.get_paths()[0].vertices.round(6)}
  for i, half in enumerate(half_width(losses[:, :2])):
    edges = losses[:, i].mean() + half * np.array([-1, 1])
    assert {(10.0 * (i + 1), edge) for edge in edges.round(6)} <= corners
  assert max(x for x, _ in corners) == 20
  assert (axes.get_xlabel(), axes.get_ylabel()) == ('training step', 'the loss')
  with pytest.raises(ValueError, match="no run has 'gap' in its rows"):
    variants.bands({'three': three}, 'gap', '', tmp_path / 'c.png')


def test_gaps_stand_at_their_levels_with_students_interval(tmp_path, figures):
  gaps = np.array([[0.1, 0.3, -0.2], [0.2, 0.6, 0.1], [0.6, 0.3, 0.4]])
  runs = [
    [
      {'step': 10, 'validation/eps': 1.0}
      | {f'train/level/{i}': 1.0 + i for i in range(3)}
      | {f'validation/level/{i}': 1.0 + i + one[i] for i in range(3)}
    ]
    for one in gaps
  ]
  levels = [4.0, 0.0, -8.0]
  variants.levels({'three': runs, 'alone': runs[2:]}, levels, tmp_path / 'l.png')
  (axes,) = figures[0].axes
  three, alone, _ = axes.lines
  assert (three.get_label(), alone.get_label()) == ('three', 'alone')
  np.testing.assert_allclose(three.get_ydata(), gaps.mean(0))
  np.testing.assert_allclose(alone.get_ydata(), gaps[2])
  # Beside each other, about the level.
  np.testing.assert_allclose((three.get_xdata() + alone.get_xdata()) / 2, levels)
  assert (np.diff([three.get_xdata(), alone.get_xdata()], axis=0) > 0).all()
  (bars,) = axes.collections  # a single seed has none
  half = half_width(gaps)
  ends = np.stack([gaps.mean(0) - half, gaps.mean(0) + half], 1)
  np.testing.assert_allclose([bar[:, 1] for bar in bars.get_segments()], ends)
  np.testing.assert_allclose([bar[:, 0].mean() for bar in bars.get_segments()], three.get_xdata())


def test_copying_is_drawn_against_the_loss_of_its_step_and_marked_where_it_ends(tmp_path, figures):
  """Rows in any order, as a rollback leaves them; a step counts where both are known and the loss is finite."""
  losses, fractions = {10: 3.0, 20: 2.0, 30: np.nan, 40: 2.5}, {20: 0.1, 10: 0.0, 30: 0.2, 40: 0.4}
  rows = [{'step': step, 'validation/eps': value} for step, value in losses.items()]
  rows += [{'step': step, 'memorized/fraction': value} for step, value in fractions.items()]
  rows += [{'step': 50, 'memorized/fraction': 0.9}]
  never = [{'step': 10, 'validation/eps': 1.0}]
  assert variants.copying({'seen': [rows, rows], 'not': [never]}, tmp_path / 'm.png')
  (axes,) = figures[0].axes
  assert [one.get_label() for one in axes.lines if one.get_label()[0] != '_'] == ['seen']
  walk, end, *again = axes.lines
  np.testing.assert_array_equal(walk.get_xydata(), [[3, 0], [2, 0.1], [2.5, 0.4]])
  np.testing.assert_array_equal(end.get_xydata(), [[2.5, 0.4]])
  assert len(again) == 2
  assert (axes.get_xlabel(), axes.get_ylabel()) == ('held-out loss', 'memorized fraction')
  assert variants.copying({'not': [never]}, tmp_path / 'none.png') is None
