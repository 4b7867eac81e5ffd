"""Pictures of many variants: told apart, and no interval squeezed by another quantity's."""

import numpy as np
import pytest
from matplotlib.figure import Figure

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
