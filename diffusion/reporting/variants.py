"""Pictures of several variants: curves with bands over seeds, the gap by noise level, copying, and paired effects."""

import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion import statistics
from diffusion.reporting.drawing import (
  ACCENT,
  BLUE,
  FAINT,
  INK,
  ORANGE,
  Path,
  new_axes,
  new_figure,
  save_axes,
  save_figure,
  style_axes,
)
from diffusion.statistics import Interval

COLORS = (BLUE, ORANGE, '#2f855a', ACCENT, '#6b46c1', '#0f766e', '#a16207', '#be185d')
_LINES, _MARKERS = ('-', '--', ':'), ('o', 's', '^')  # one of each a round of colors
_FEW = 4  # variants up to which the legend is in the picture, and every seed is drawn
# Ticks of an axis of ratios, the densest of which that fit are taken.
_DENSE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 0.85, 1, 1.15, 1.5, 2, 3, 5, 10, 20, 50, 100)
_RATIOS = (_DENSE, (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100), (0.001, 0.01, 0.1, 1, 10, 100, 1000))
_TICKS = 7
Rows = Sequence[Mapping[str, Any]]
Groups = Mapping[str, Sequence[Rows]]  # variant -> rows of metrics of each of its runs


def bands(groups: Groups, key: str, label: str, path: Path) -> pathlib.Path:
  """One quantity of the rows against the step: each variant's mean over seeds, with Student's 95 % band.

  A step counts where every seed of the variant has it; a single seed is a line without a band. Seeds are drawn faintly.

  Args:
    groups: variant -> rows of each of its runs.
    key: of the rows.
    label: of the vertical axis.
    path: the picture's file.

  Raises:
    ValueError: no row has the key.
  """
  axes = _axes(len(groups))
  for (variant, runs), (color, line, _) in _looks(groups):
    series = [_by_step(rows, key) for rows in runs]
    common = np.array(sorted(set.intersection(*map(set, series))))
    if not common.size:
      continue
    values = np.array([[one[step] for step in common] for one in series], np.float64)
    name = f'{variant} (n = {len(runs)})'
    axes.plot(common, values.mean(0), line, color=color, linewidth=1.8, label=name)
    if len(runs) > 1:
      finite = np.isfinite(values).all(0)  # a run that diverged ends the band, not the picture
      low, high = _student(values[:, finite])
      crowded = len(groups) > _FEW
      shade = 0.08 if crowded else 0.18
      axes.fill_between(common[finite], low, high, color=color, alpha=shade, linewidth=0)
      if not crowded:
        axes.plot(common, values.T, color=color, linewidth=0.6, alpha=0.35)
  if not axes.lines:
    raise ValueError(f'no run has {key!r} in its rows')
  axes.set(xlabel='training step', ylabel=label)
  _add_legend(axes, len(groups))
  return save_axes(axes, path)


def _by_step(rows: Rows, key: str) -> dict[int, float]:
  return {row['step']: row[key] for row in rows if key in row}


def _student(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(low, high) of Student's intervals of the columns' means."""
  _, low, high = np.reshape([statistics.mean_t(column) for column in values.T], (-1, 3)).T
  return low, high


def levels(groups: Groups, log_snr: Sequence[float], path: Path) -> pathlib.Path:
  """A picture of the generalization gap by noise level at each run's best validation.

  Points are means over seeds, bars Student's intervals; neither stands where a seed has no finite gap.

  Args:
    groups: variant -> rows of each of its runs.
    log_snr: the noise levels, nats, as the rows number them.
    path: the picture's file; its folder is created.

  Returns:
    The path.
  """
  axes = _axes(len(groups))
  width = 0.6 * abs(log_snr[0] - log_snr[-1]) / max(1, len(log_snr) - 1) / max(1, len(groups))
  for i, ((variant, runs), (color, _, marker)) in enumerate(_looks(groups)):
    gaps = np.array([_gaps(rows, len(log_snr)) for rows in runs])
    at = np.asarray(log_snr) + (i - (len(groups) - 1) / 2) * width
    finite = np.isfinite(gaps).all(0)  # a run that diverged costs its points, not the report
    gaps, at = gaps[:, finite], at[finite]
    axes.plot(at, gaps.mean(0), marker, color=color, markersize=4, label=variant)
    if len(runs) > 1:
      axes.vlines(at, *_student(gaps), color=color, linewidth=1.4)
  axes.axhline(0, color=INK, linewidth=0.8)
  axes.set(xlabel='log-SNR (nats): noisy left, clean right', ylabel='held-out − training loss')
  _add_legend(axes, len(groups))
  return save_axes(axes, path)


def _gaps(rows: Rows, count: int) -> list[float]:
  """Of the row with the least finite held-out loss, or of the first if there is none: a NaN is never the least."""
  validated = [row for row in rows if 'validation/eps' in row]
  finite = [row for row in validated if np.isfinite(row['validation/eps'])]
  best = min(finite, key=lambda row: row['validation/eps']) if finite else validated[0]
  return [best[f'validation/level/{i}'] - best[f'train/level/{i}'] for i in range(count)]


def copying(groups: Groups, path: Path) -> pathlib.Path | None:
  """The memorized fraction against the held-out loss as training goes on, a line a run, its end marked.

  Returns:
    The path; None where no run logged both at one step, and nothing is drawn.
  """
  axes = _axes(len(groups))
  for (variant, runs), (color, line, marker) in _looks(groups):
    for i, rows in enumerate(runs):
      losses, looked = _by_step(rows, 'validation/eps'), _by_step(rows, 'memorized/fraction')
      both = sorted(step for step in losses.keys() & looked if np.isfinite(losses[step]))
      if both:
        x, y = [losses[step] for step in both], [looked[step] for step in both]
        axes.plot(x, y, line, color=color, linewidth=1, alpha=0.7, label='' if i else variant)
        axes.plot(x[-1], y[-1], marker, color=color, markersize=4)
  if not axes.lines:
    return None
  axes.set(xlabel='held-out loss', ylabel='memorized fraction')
  _add_legend(axes, len(groups))
  return save_axes(axes, path)


class ForestPanel(NamedTuple):
  """Effects on one axis of a forest plot.

  Attributes:
    title: of the panel, '' for none.
    effects: (name, interval) from top to bottom.
    label: of its axis.
    is_ratio: ratios on a logarithmic axis, where 1 is no effect; else differences, where 0 is none.
  """

  title: str
  effects: Sequence[tuple[str, Interval]]
  label: str
  is_ratio: bool = True


def forest(panels: Sequence[ForestPanel], path: Path) -> pathlib.Path:
  """A forest plot: an effect with its interval a row, and the line of no effect.

  Each panel has a scale of its own, so that a wide interval does not squeeze the others.

  Args:
    panels: at least one.
    path: the picture's file.
  """
  columns = min(2, len(panels))
  lines = -(-len(panels) // columns)
  most = max(len(panel.effects) for panel in panels)
  figure = new_figure(6.4 if columns == 1 else 9.6, lines * (1.0 + 0.27 * most))
  for i, panel in enumerate(panels):
    axes = figure.add_subplot(lines, columns, i + 1)
    axes.set_title(textwrap.fill(panel.title, 50), loc='left', fontsize=9.5, color=INK)
    _draw_effects(axes, panel.effects, 1 if panel.is_ratio else 0)
    if panel.is_ratio:
      _scale_ratios(axes)
    axes.set_xlabel(panel.label)
    style_axes(axes)
  return save_figure(figure, path)


def _draw_effects(axes: Any, effects: Sequence[tuple[str, Interval]], neutral: float) -> None:
  for place, (_, one) in enumerate(effects):
    color = FAINT if one.low <= neutral <= one.high else BLUE
    axes.plot([one.low, one.high], [-place] * 2, color=color, linewidth=1.6)
    axes.plot(one.estimate, -place, 's', color=color, markersize=5)
  axes.axvline(neutral, color=INK, linewidth=0.9)
  axes.set_yticks([-i for i in range(len(effects))], [name for name, _ in effects])
  axes.set(ylim=(0.6 - len(effects), 0.6))


def _scale_ratios(axes: Any) -> None:
  from matplotlib.ticker import MaxNLocator

  axes.set(xscale='log')
  low, high = axes.get_xlim()
  every = ([tick for tick in ticks if low <= tick <= high] for ticks in _RATIOS)
  ticks = next((found for found in every if len(found) <= _TICKS), [1])
  if len(ticks) < 3:  # near 1
    ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
  axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
  axes.minorticks_off()


def _looks(
  groups: Groups,
) -> Iterator[tuple[tuple[str, Sequence[Rows]], tuple[str, str, str]]]:
  """Each variant with its color, line and marker, which no two of the first 24 share."""
  for i, item in enumerate(groups.items()):
    turn = i // len(COLORS) % len(_LINES)
    yield item, (COLORS[i % len(COLORS)], _LINES[turn], _MARKERS[turn])


def _axes(variants: int) -> Any:
  """Axes with room for a legend of so many variants beside them, where it does not go into them."""
  return new_axes(6.4, 3.8) if variants <= _FEW else new_axes(8.8, max(3.8, 0.6 + 0.22 * variants))


def _add_legend(axes: Any, variants: int) -> None:
  beside = {} if variants <= _FEW else {'loc': 'upper left', 'bbox_to_anchor': (1.01, 1.0)}
  axes.legend(fontsize=8.5, framealpha=0.85, edgecolor='none', **beside)
