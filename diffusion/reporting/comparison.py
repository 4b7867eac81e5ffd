"""Pictures of several runs: curves with bands over seeds, the gap by noise level, copying against loss, effects."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion import statistics
from diffusion.reporting.drawing import (
  ACCENT,
  BLUE,
  FAINT,
  INK,
  ORANGE,
  Path,
  new_figure,
  save_figure,
  style_axes,
)
from diffusion.statistics import Interval

COLORS = (BLUE, ORANGE, '#2f855a', ACCENT, '#6b46c1', '#0f766e', '#a16207', '#be185d')
_RATIOS = (
  0.01,
  0.02,
  0.05,
  0.1,
  0.2,
  0.5,
  0.7,
  0.85,
  1,
  1.15,
  1.5,
  2,
  3,
  5,
  10,
  20,
  50,
  100,
)  # ticks of an axis
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
  figure = new_figure(6.4, 3.8)
  axes = figure.add_subplot()
  drawn = False
  for color, (variant, runs) in zip(_colors(groups), groups.items(), strict=True):
    series = [{row['step']: row[key] for row in rows if key in row} for rows in runs]
    common = sorted(set.intersection(*(set(one) for one in series)))
    if not common:
      continue
    drawn = True
    values = np.array([[one[step] for step in common] for one in series], np.float64)
    axes.plot(
      common, values.mean(0), color=color, linewidth=1.8, label=f'{variant} (n = {len(runs)})'
    )
    if len(runs) > 1:
      finite = np.isfinite(values).all(0)  # a run that diverged ends the band, not the picture
      spread = [statistics.mean_t(column) for column in values.T[finite]]
      axes.fill_between(
        np.asarray(common)[finite],
        [s.low for s in spread],
        [s.high for s in spread],
        color=color,
        alpha=0.18,
        linewidth=0,
      )
      axes.plot(common, values.T, color=color, linewidth=0.6, alpha=0.35)
  if not drawn:
    raise ValueError(f'no run has {key!r} in its rows')
  axes.set(xlabel='training step', ylabel=label)
  axes.legend(fontsize=8.5, framealpha=0.85, edgecolor='none')
  style_axes(axes)
  return save_figure(figure, path)


def levels(groups: Groups, log_snr: Sequence[float], path: Path) -> pathlib.Path:
  """The generalization gap by noise level at each run's best validation: mean over seeds and Student's interval."""
  figure = new_figure(6.4, 3.8)
  axes = figure.add_subplot()
  width = 0.6 * abs(log_snr[0] - log_snr[-1]) / max(1, len(log_snr) - 1) / max(1, len(groups))
  for i, (color, (variant, runs)) in enumerate(zip(_colors(groups), groups.items(), strict=True)):
    gaps = np.array([_gaps(rows, len(log_snr)) for rows in runs])
    at = np.asarray(log_snr) + (i - (len(groups) - 1) / 2) * width
    axes.plot(at, gaps.mean(0), 'o', color=color, markersize=4, label=variant)
    if len(runs) > 1:
      spread = [statistics.mean_t(column) for column in gaps.T]
      axes.vlines(at, [s.low for s in spread], [s.high for s in spread], color=color, linewidth=1.4)
  axes.axhline(0, color=INK, linewidth=0.8)
  axes.set(xlabel='log-SNR (nats): noisy left, clean right', ylabel='held-out − training loss')
  axes.legend(fontsize=8.5, loc='upper left', framealpha=0.85, edgecolor='none')
  style_axes(axes)
  return save_figure(figure, path)


def _gaps(rows: Rows, count: int) -> list[float]:
  best = min(
    (row for row in rows if 'validation/eps' in row), key=lambda row: row['validation/eps']
  )
  return [best[f'validation/level/{i}'] - best[f'train/level/{i}'] for i in range(count)]


def copying(groups: Groups, path: Path) -> pathlib.Path | None:
  """The memorized fraction against the held-out loss as training goes on, a line a run, its end marked.

  Returns:
    The path; None where no run logged both at one step, and nothing is drawn.
  """
  figure = new_figure(6.4, 3.8)
  axes = figure.add_subplot()
  drawn = False
  for color, (variant, runs) in zip(_colors(groups), groups.items(), strict=True):
    for i, rows in enumerate(runs):
      losses = {row['step']: row['validation/eps'] for row in rows if 'validation/eps' in row}
      looked = {
        row['step']: row['memorized/fraction'] for row in rows if 'memorized/fraction' in row
      }
      both = sorted(step for step in set(losses) & set(looked) if np.isfinite(losses[step]))
      if both:
        drawn = True
        x, y = [losses[step] for step in both], [looked[step] for step in both]
        axes.plot(x, y, color=color, linewidth=1, alpha=0.7, label='' if i else variant)
        axes.plot(x[-1], y[-1], 'o', color=color, markersize=4)
  if not drawn:
    return None
  axes.set(xlabel='held-out loss', ylabel='memorized fraction')
  axes.legend(fontsize=8.5, framealpha=0.85, edgecolor='none')
  style_axes(axes)
  return save_figure(figure, path)


def forest(
  rows: Sequence[tuple[str, Interval]], path: Path, *, label: str, neutral: float
) -> pathlib.Path:
  """A forest plot: an estimate with its interval a row, and the line of no effect.

  Args:
    rows: (name, interval), from top to bottom, at least one.
    path: the picture's file.
    label: of the horizontal axis.
    neutral: where no effect is; 1, of ratios, makes the axis logarithmic.

  Raises:
    ValueError: no rows.
  """
  if not rows:
    raise ValueError('a forest plot needs at least one effect')
  figure = new_figure(6.4, 0.8 + 0.32 * len(rows))
  axes = figure.add_subplot()
  for place, (_, one) in enumerate(rows):
    clear = not one.low <= neutral <= one.high
    color = BLUE if clear else FAINT
    axes.plot([one.low, one.high], [-place] * 2, color=color, linewidth=1.6)
    axes.plot(one.estimate, -place, 's', color=color, markersize=5)
  axes.axvline(neutral, color=INK, linewidth=0.9)
  axes.set_yticks([-i for i in range(len(rows))], [name for name, _ in rows])
  axes.set(xlabel=label, ylim=(0.6 - len(rows), 0.6))
  if neutral == 1:
    axes.set_xscale('log')
    low, high = axes.get_xlim()
    ticks = [tick for tick in _RATIOS if low <= tick <= high]
    axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    axes.minorticks_off()
  style_axes(axes)
  return save_figure(figure, path)


def _colors(groups: Groups) -> list[str]:
  return [COLORS[i % len(COLORS)] for i in range(len(groups))]
