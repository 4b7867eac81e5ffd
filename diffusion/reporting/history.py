"""The picture of a run's history: its metrics against the training step."""

import itertools
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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
from diffusion.reporting.rows import OWN_GROUPS


class Panel(NamedTuple):
  """One panel: its title, y label, the keys drawn in it, the scale of its y axis, and the keys of a band's edges."""

  title: str
  label: str
  keys: tuple[str, ...]
  scale: str = 'linear'  # or log; or auto: log where the values span more than a factor of 4
  zero_line: bool = False
  band: tuple[str, str] | None = None


PANELS = (
  # Two panels: the objective has weights, draws of t and terms of its own, and no scale in common with the other.
  Panel('Objective, as it is trained', 'weighted loss', ('loss',), 'auto'),
  Panel('Unweighted loss on the evaluation noise', 'eps-loss', ('train/eps', 'validation/eps'), 'auto'),
  Panel(
    'Generalization gap', 'held-out − training eps-loss', ('validation/gap',), zero_line=True,
    band=('validation/gap_low', 'validation/gap_high'),
  ),
  Panel('Memorized fraction of samples', 'fraction', ('memorized/fraction', 'memorized/null')),
  Panel('Learning rate', 'learning rate', ('learning_rate',)),
  Panel('Gradient norm', 'global L2 norm', ('gradient_norm',), 'log'),
)  # fmt: skip
BY_NOISE = Panel('Objective by noise level', 'weighted loss', (), 'auto')
BY_LEVEL = Panel(
  'Loss by log-SNR at the best step', 'eps-loss', ('train/eps', 'validation/eps'), 'auto'
)
LINES = {
  'loss': ('training batches', FAINT),
  'train/eps': ('training subset', BLUE),
  'validation/eps': ('held out', ORANGE),
  'validation/gap': ('', BLUE),
  'memorized/fraction': ('samples', BLUE),
  'memorized/null': ('held-out data', FAINT),
  'learning_rate': ('', BLUE),
  'gradient_norm': ('', BLUE),
}
NOISY = ('loss', 'gradient_norm')
BUCKET = re.compile(r'loss_bucket/(\d+)')
FEW = 30  # values of a line up to which each is marked
MANY = 200  # values of a noisy line beyond which its running mean is drawn over it

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # key -> (steps, values)


def curves(
  rows: Sequence[Mapping[str, Any]],
  path: Path,
  *,
  title: str = '',
  best_step: int | None = None,
  log_snr: Sequence[float] = (),
) -> pathlib.Path:
  """How training went: objective, unweighted losses, their gap with its interval, learning rate, loss by noise.

  Panels for which no row has a value are left out. A value that is not finite is marked in red at
  its panel's top; in the panel by noise level, where it can be an empty bucket, it is left out.
  A noisy line of more than 200 values is drawn faint, with its running mean in full color. Where
  the steps go back, the lines do, and a dotted line marks the step that a rollback left.

  Args:
    rows: rows of metrics, each with `step`; read are `loss`, `train/eps`, `validation/eps`, `validation/gap` with
      `gap_low` and `gap_high`, `train/level/i` and `validation/level/i`, `learning_rate`, `gradient_norm`, and
      `loss_bucket/0` to `loss_bucket/B-1` (0 the least noise), and every other `group/name`, a group in a panel
      of its own. A row may lack any of them or hold None.
    path: the picture's file; its folder is created.
    title: title of the whole.
    best_step: the step of the best validation loss, marked by a vertical line.
    log_snr: of level i of the evaluation noise, nats; with it the losses at the best step are drawn by level.

  Returns:
    The path.

  Raises:
    ValueError: where no row has a value for any of the keys.
    OSError: where the file cannot be written.
  """
  buckets = {key for row in rows for key in row if BUCKET.fullmatch(key)}
  by_noise = tuple(sorted(buckets, key=lambda key: int(BUCKET.fullmatch(key)[1])))
  panels = []
  for panel in (*PANELS, *_logged(rows), BY_NOISE._replace(keys=by_noise)):
    series = {key: _series(rows, key) for key in panel.keys}
    series = {key: line for key, line in series.items() if len(line[0])}
    if series:
      panels.append((panel, series))
  if not panels:
    raise ValueError(f'none of the {len(rows)} rows has a value to draw')
  steps = [at for _, series in panels for line in series.values() for at in line[0]]
  levels = _levels(rows, best_step, log_snr)
  if levels:
    panels.append((BY_LEVEL, levels))
  figure, places = _layout(len(panels), bool(title))
  back = [a['step'] for a, b in itertools.pairwise(rows) if b['step'] < a['step']]
  pad = max(0.02 * (max(steps) - min(steps)), 0.5)
  for axes, (panel, series) in zip(places, panels, strict=True):
    axes.set_title(panel.title, loc='left', fontsize=10, color=INK)
    axes.set_ylabel(panel.label)
    if panel.keys == by_noise:
      _draw_buckets(figure, axes, series)
    else:
      _draw_lines(axes, series)
    if panel.band is not None:
      _draw_band(axes, *(_series(rows, key) for key in panel.band))
    _scale(axes, panel.scale, series)
    style_axes(axes)
    if panel.zero_line:
      axes.axhline(0, color=INK, linewidth=0.8)
    if panel is BY_LEVEL:
      axes.set_xlabel('log-SNR (nats): noisy left, clean right')
    else:
      axes.set_xlim(min(steps) - pad, max(steps) + pad)
      _mark_steps(axes, best_step, back, named=axes is places[0])
    if any(axes.get_legend_handles_labels()[1]):
      few = sum(len(line[0]) for line in series.values()) < 5000
      where = 'best' if few else 'upper right'  # the search for the best place is slow
      axes.legend(fontsize=8.5, loc=where, framealpha=0.85, edgecolor='none')
  return save_figure(figure, path, title)


def _mark_steps(axes: Any, best_step: int | None, back: Sequence[int], named: bool) -> None:
  """Vertical lines at the best step and where a rollback left; `named`: in the legend too."""
  axes.set_xlabel('training step')
  if best_step is not None:
    label = f'best step {best_step:,}' if named else ''
    axes.axvline(best_step, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=label)
  for i, at in enumerate(back):
    label = 'rollback' if named and not i else ''
    axes.axvline(at, color=ACCENT, linewidth=1, linestyle=':', label=label)


def _levels(
  rows: Sequence[Mapping[str, Any]], best_step: int | None, log_snr: Sequence[float]
) -> Series:
  """The losses by log-SNR at the best step; empty where no row has them."""
  found = [row for row in rows if row['step'] == best_step and 'validation/level/0' in row]
  if not (found and log_snr):
    return {}
  # A step that a rollback repeats has several rows.
  best = min(found, key=lambda row: row.get('validation/eps', math.inf))
  return {
    f'{split}/eps': (
      np.asarray(log_snr, np.float64),
      np.array([best[f'{split}/level/{i}'] for i in range(len(log_snr))], np.float64),
    )
    for split in ('train', 'validation')
  }


def _logged(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
  """A panel for each group of what callbacks have logged of their own, in the order in which they began."""
  groups: dict[str, dict[str, None]] = {}
  for name in dict.fromkeys(key for row in rows for key in row):
    group, slash, _ = name.partition('/')
    if slash and group not in (*OWN_GROUPS, 'memorized'):  # these have panels above
      groups.setdefault(group, {})[name] = None
  return [Panel(group, group, tuple(names)) for group, names in groups.items()]


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
  pairs = [(row['step'], row[key]) for row in rows if key in row and row[key] is not None]
  steps, values = np.asarray(pairs, np.float64).reshape(-1, 2).T
  return steps, values


def _layout(number: int, has_title: bool) -> tuple[Any, list[Any]]:
  """Two panels a line; of an odd number the first takes a line of its own."""
  columns = min(2, number)
  cells = np.array([0] * (number % columns) + list(range(number))).reshape(-1, columns)
  figure = new_figure(4.9 * columns, 2.7 * len(cells) + 0.35 * has_title)
  return figure, list(figure.subplot_mosaic(cells.tolist()).values())


def _draw(
  axes: Any, steps: np.ndarray, values: np.ndarray, alpha: float | None, **look: Any
) -> None:
  """A line; of many values with an `alpha` faint, and its running mean in full color."""
  if alpha is not None and len(steps) > MANY:
    axes.plot(steps, values, color=look['color'], linewidth=0.7, alpha=alpha)
    values = _running_mean(values)
  axes.plot(steps, values, marker='o' if len(steps) <= FEW else '', **look)


def _draw_lines(axes: Any, series: Series) -> None:
  own = itertools.cycle((BLUE, ORANGE, INK, FAINT))
  for key, (steps, values) in series.items():
    name, color = LINES[key] if key in LINES else (key.partition('/')[2], next(own))
    faint = 0.3 if key in NOISY else None
    _draw(axes, steps, values, faint, color=color, linewidth=1.5, markersize=3.5, label=name)
  lost = np.unique(np.concatenate([at[~np.isfinite(values)] for at, values in series.values()]))
  if len(lost):
    look = {'color': ACCENT, 'markersize': 5, 'label': 'not finite', 'zorder': 6}
    axes.plot(lost, np.full(len(lost), 0.98), 'x', transform=axes.get_xaxis_transform(), **look)


def _draw_band(
  axes: Any, low: tuple[np.ndarray, np.ndarray], high: tuple[np.ndarray, np.ndarray]
) -> None:
  """The interval around a line, where rows have both of its ends."""
  if len(low[0]) and np.array_equal(low[0], high[0]):
    axes.fill_between(
      low[0], low[1], high[1], color=BLUE, alpha=0.18, linewidth=0, label='95 % over examples'
    )


def _draw_buckets(figure: Any, axes: Any, series: Series) -> None:
  import matplotlib
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import BoundaryNorm, ListedColormap

  numbers = [int(BUCKET.fullmatch(key)[1]) for key in series]
  count = max(numbers) + 1
  colors = ListedColormap(matplotlib.colormaps['viridis'](np.linspace(0, 0.92, count)))
  for number, (steps, values) in zip(numbers, series.values(), strict=True):
    finite = np.isfinite(values)
    look = {'color': colors(number), 'linewidth': 1.3, 'markersize': 3}
    _draw(axes, steps[finite], values[finite], 0.12, **look)
  scale = ScalarMappable(BoundaryNorm(np.arange(count + 1) - 0.5, count), colors)
  ticks = range(0, count, -(-count // 10))
  bar = figure.colorbar(scale, ax=axes, ticks=ticks, pad=0.02, aspect=18)
  bar.set_label('part of t (0 = least noise)', size=8.5, color=INK)
  bar.ax.tick_params(labelsize=8, length=0, colors=INK)
  bar.outline.set_visible(False)
  bar.minorticks_off()


def _running_mean(values: np.ndarray) -> np.ndarray:
  """Mean of the finite values in a centered window, a fiftieth of all; narrow at the start.

  The start is the steepest part, and a whole window there would show a lower loss than there was.
  """
  place = np.arange(len(values))
  half = np.minimum(len(values) // 100, place)
  finite = np.isfinite(values)
  total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0))])
  count = np.concatenate([[0], np.cumsum(finite)])
  low, high = place - half, np.minimum(place + half + 1, len(values))
  mean = (total[high] - total[low]) / np.maximum(count[high] - count[low], 1)
  return np.where(finite, mean, np.nan)


def _scale(axes: Any, scale: str, series: Series) -> None:
  """Log where asked, possible and sensible, with plain numbers on the ticks; steps in full."""
  from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

  axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f'{step:,.0f}'))
  values = np.concatenate([line[1] for line in series.values()])
  values = values[np.isfinite(values)]
  if scale == 'linear' or not len(values) or values.min() <= 0:
    return
  span = values.max() / values.min()
  if scale == 'auto' and span <= 4:
    return
  axes.set_yscale('log')
  subs = (1, 2, 5) if span < 100 else (1,)
  axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
  axes.yaxis.set_minor_formatter(NullFormatter())
