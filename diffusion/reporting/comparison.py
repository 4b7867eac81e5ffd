"""The report of several runs: tables, pictures, and the files that hold them.

Pictures are curves with bands over seeds, the gap by noise level, copying against loss, and paired effects.
"""

import csv
import io
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion import citations, proportions, statistics
from diffusion.citations import Technique
from diffusion.proportions import Counts
from diffusion.reporting import bibliography, encoding, latex, run_report
from diffusion.reporting.drawing import (
  ACCENT,
  BLUE,
  FAINT,
  INK,
  ORANGE,
  Path,
  new_axes,
  save_axes,
)
from diffusion.reporting.tables import markdown, reading
from diffusion.statistics import Interval

COLORS = (BLUE, ORANGE, '#2f855a', ACCENT, '#6b46c1', '#0f766e', '#a16207', '#be185d')
# Ticks of an axis of ratios.
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 0.85, 1, 1.15, 1.5, 2, 3, 5, 10, 20, 50, 100)
Rows = Sequence[Mapping[str, Any]]
Groups = Mapping[str, Sequence[Rows]]  # variant -> rows of metrics of each of its runs
Table = tuple[str, Sequence[str], Sequence[Sequence[Any]]]  # caption, headers, rows

CAPTIONS = {
  'curves.png': 'Held-out loss, mean over seeds with Student\'s 95 % band.',
  'levels.png': 'Generalization gap by noise level at the best validation.',
  'memorization.png': 'Memorized fraction against held-out loss, a line a run; dots mark the ends.',
  'forest.png': 'Paired effects against the baseline, 95 % intervals over seeds.',
}  # fmt: skip


class ComparedRun(NamedTuple):
  """A run as the comparison sees it.

  Attributes:
    folder: its workdir.
    variant: what its configuration differs in from the other runs', the seed aside.
    seed: of training.
    results: name -> estimate of each quantity.
    own: name -> the run's own interval, where it has one.
    counts: name -> what it was computed from, of a proportion.
    readings: name -> (unit, what is better), see `tables.reading`.
    marks: what a reader must know: rollbacks, skipped steps, an early or an unfinished end, odd data or code.
    record: run.json.
    rows: of metrics.jsonl.
  """

  folder: pathlib.Path
  variant: str
  seed: int
  results: dict[str, float]
  own: dict[str, Interval]
  counts: dict[str, Counts]
  readings: dict[str, tuple[str, str]]
  marks: tuple[str, ...]
  record: dict[str, Any]
  rows: list[dict[str, Any]]


class Effect(NamedTuple):
  """A variant against the baseline in one quantity, paired by seed.

  Attributes:
    variant, quantity: which.
    pairs: seeds that both have.
    difference: mean of the paired differences, Student's interval; of proportions see `proportions.difference`.
    ratio: geometric mean of the paired ratios; None where a value is not positive.
    p: exact sign-flip p-value of the differences.
    least_p: the least that differences of these sizes could give.
    adjusted: p after Holm's adjustment over the variants in this quantity.

  With one pair, or a value that is not finite, there are none of them.
  """

  variant: str
  quantity: str
  pairs: int
  difference: Interval | None = None
  ratio: Interval | None = None
  p: float | None = None
  least_p: float | None = None
  adjusted: float | None = None


def write(
  runs: Sequence[ComparedRun],
  groups: Mapping[str, Sequence[ComparedRun]],
  names: Sequence[str],
  paired: Sequence[Effect],
  baseline: str,
  more: Sequence[Table],
  techniques: Sequence[Technique],
  folder: pathlib.Path,
) -> tuple[list[Table], list[pathlib.Path]]:
  """Writes report.md, report.tex, runs.csv, effects.csv, references.bib and the pictures.

  Args:
    runs: all of them, in their order.
    groups: variant -> its runs.
    names: quantities, of those that all runs have.
    paired: effects against the baseline.
    baseline: its variant.
    more: tables that stand between the results and the effects.
    techniques: what any of the runs used.
    folder: created if need be.

  Returns:
    (the tables, the files).
  """
  folder.mkdir(parents=True, exist_ok=True)
  effects = _effects(paired, baseline, runs[0].readings)
  tables = [_summary(groups, names), *more, *effects, _provenance(runs)]
  pictures = _pictures(groups, paired, baseline, folder)
  bibtex = bibliography.entries(citations.all_keys(techniques))
  title = f'{runs[0].record["data"]["name"]}: {len(runs)} runs'
  texts = {
    'report.md': _markdown(title, tables, pictures, techniques, bibtex),
    'report.tex': _latex(title, tables, pictures, bool(bibtex)),
    'runs.csv': _runs_csv(runs, names),
    'effects.csv': _effects_csv(paired, baseline),
    'references.bib': bibtex + '\n',
  }
  for name, text in texts.items():
    with encoding.naming(folder / name):
      (folder / name).write_text(text, encoding='utf-8', newline='')
  return tables, [folder / name for name in (*texts, *pictures)]


def _summary(groups: Mapping[str, Sequence[ComparedRun]], names: Sequence[str]) -> Table:
  columns = [f'{name} (n = {len(group)})' for name, group in groups.items()]
  headers = ['quantity', *columns, 'reading']
  readings = next(iter(groups.values()))[0].readings
  rows = []
  for name in names:
    how = reading(*readings[name]) if name in readings else ''
    rows.append([name, *(summary(group, name) for group in groups.values()), how or None])
  caption = (
    "Results: mean over seeds with Student's 95 % interval; of a proportion that of its counts, pooled over seeds and "
    'then samples (Korn and Graubard); of a single run its own. All equal: nothing varied, and there is no interval.'
  )
  return caption, headers, rows


def summary(group: Sequence[ComparedRun], quantity: str) -> Interval | float | str:
  """Mean over seeds with Student's interval; of a single run its own interval, or its number.

  A proportion is pooled from its counts (`proportions.pooled`). What is the same in all seeds with its interval, as are
  numbers of the held-out data alone, keeps it. Where some seeds have no finite number there is no mean: how many have
  one.
  """
  values = [run.results[quantity] for run in group]
  if len(group) == 1:
    return group[0].own.get(quantity, values[0])
  finite = sum(map(math.isfinite, values))
  if finite < len(values):
    return f'{finite} of {len(values)} finite'
  if all(quantity in run.counts for run in group):
    return proportions.pooled([run.counts[quantity] for run in group])
  own = {run.own.get(quantity) for run in group}
  if len(own) == 1 and None not in own:
    return own.pop()
  return statistics.mean_t(values)


def _effects(
  paired: Sequence[Effect], base: str, readings: Mapping[str, tuple[str, str]]
) -> list[Table]:
  if not paired:
    return []
  headers = [
    'quantity', 'better', 'variant', 'pairs', 'difference', 'ratio', 'p', 'least p', 'p (Holm)',
  ]  # fmt: skip
  rows = [
    [
      e.quantity, readings.get(e.quantity, ('', ''))[1] or None, e.variant, e.pairs, e.difference, e.ratio, e.p,
      e.least_p, e.adjusted,
    ]
    for e in paired
  ]  # fmt: skip
  caption = (
    f'Effects against {base}, paired by seed: mean difference and geometric mean ratio with Student\'s 95 % intervals '
    '(of proportions nowhere narrower than Newcombe\'s of all samples), exact sign-flip p, the least p that so many '
    'pairs could give, and p adjusted by Holm over the variants, each quantity by itself.'
  )  # fmt: skip
  return [(caption, headers, rows)]


def _provenance(runs: Sequence[ComparedRun]) -> Table:
  headers = ['run', 'variant', 'seed', 'commit', 'device', 'jax', 'started', 'seconds', 'note']
  rows = []
  for run in runs:
    start = run.record['starts'][-1]
    commit = start['code']['commit']
    device = f'{start["devices"]["devices"]} x {start["devices"]["kind"]}'
    rows.append([
      run.folder.name, run.variant, run.seed, commit[:10] if commit else None, device,
      run.record['versions']['jax'], run.record['starts'][0]['time'], round(run.record['wall_seconds']),
      '; '.join(run.marks) or None,
    ])  # fmt: skip
  return 'Where each row comes from, and what is odd about it.', headers, rows


def _pictures(
  groups: Mapping[str, Sequence[ComparedRun]],
  paired: Sequence[Effect],
  base: str,
  folder: pathlib.Path,
) -> list[str]:
  rows = {name: [run.rows for run in group] for name, group in groups.items()}
  first = next(iter(groups.values()))[0]
  bands(rows, 'validation/eps', 'held-out eps-loss', folder / 'curves.png')
  levels(rows, first.record['bank']['log_snr'], folder / 'levels.png')
  made = ['curves.png', 'levels.png']
  if copying(rows, folder / 'memorization.png') is not None:
    made.append('memorization.png')
  moved = [e for e in paired if e.ratio is not None and not statistics.is_point(e.ratio)]
  if moved:
    label, names = f'{moved[0].variant} over {base}', [e.quantity for e in moved]
    if len({e.variant for e in moved}) > 1:
      label, names = f'ratio to {base}', [f'{e.quantity}: {e.variant}' for e in moved]
    forest(names, [e.ratio for e in moved], folder / 'forest.png', label)
    made.append('forest.png')
  return made


def _markdown(
  title: str,
  tables: Sequence[Table],
  pictures: Sequence[str],
  techniques: Sequence[Technique],
  bibtex: str,
) -> str:
  parts = [f'# {title}']
  for caption, headers, rows in tables:
    parts += [markdown(headers, rows, digits=4), f'*{caption}*']
  for name in pictures:
    parts += [f'![{CAPTIONS[name]}]({name})', f'*{CAPTIONS[name]}*']
  parts += run_report.sources('Techniques used by any of the runs', techniques, bibtex)
  return '\n\n'.join(parts) + '\n'


def _latex(title: str, tables: Sequence[Table], pictures: Sequence[str], cited: bool) -> str:
  parts = [
    latex.table(caption, latex.tabular(headers, rows, 4), f'tab:{i}')
    for i, (caption, headers, rows) in enumerate(tables)
  ]
  parts += [
    latex.figure(CAPTIONS[name], name, f'fig:{name.removesuffix(".png")}') for name in pictures
  ]
  return latex.document(title, parts, 'references' if cited else '')


def _runs_csv(runs: Sequence[ComparedRun], names: Sequence[str]) -> str:
  rows: list[list[Any]] = [['folder', 'variant', 'seed', *_with_bounds(names), 'note']]
  for run in runs:
    row = [run.folder, run.variant, run.seed]
    for name in names:
      row += _cells(run.own[name]) if name in run.own else [run.results[name], None, None]
    rows.append([*row, '; '.join(run.marks)])
  return _csv(rows)


def _effects_csv(paired: Sequence[Effect], base: str) -> str:
  bounds = _with_bounds(['difference', 'ratio'])
  rows: list[list[Any]] = [
    ['baseline', 'variant', 'quantity', 'pairs', *bounds, 'p', 'least p', 'p, Holm']
  ]
  for e in paired:
    cells = [*_cells(e.difference), *_cells(e.ratio), e.p, e.least_p, e.adjusted]
    rows.append([base, e.variant, e.quantity, e.pairs, *cells])
  return _csv(rows)


def _cells(interval: Interval | None) -> list[float | None]:
  """Estimate and bounds; without bounds where nothing varied."""
  if interval is None:
    return [None] * 3
  bounds = (None, None) if statistics.is_point(interval) else interval[1:]
  return [interval.estimate, *bounds]


def _with_bounds(names: Sequence[str]) -> list[str]:
  return [name + end for name in names for end in ('', ', low', ', high')]


def _csv(rows: Sequence[Sequence[Any]]) -> str:
  file = io.StringIO(newline='')
  csv.writer(file).writerows(rows)  # None as an empty cell
  return file.getvalue()


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
  axes = new_axes(6.4, 3.8)
  for (variant, runs), color in _colored(groups):
    series = [_by_step(rows, key) for rows in runs]
    common = np.array(sorted(set.intersection(*map(set, series))))
    if not common.size:
      continue
    values = np.array([[one[step] for step in common] for one in series], np.float64)
    name = f'{variant} (n = {len(runs)})'
    axes.plot(common, values.mean(0), color=color, linewidth=1.8, label=name)
    if len(runs) > 1:
      finite = np.isfinite(values).all(0)  # a run that diverged ends the band, not the picture
      low, high = _student(values[:, finite])
      axes.fill_between(common[finite], low, high, color=color, alpha=0.18, linewidth=0)
      axes.plot(common, values.T, color=color, linewidth=0.6, alpha=0.35)
  if not axes.lines:
    raise ValueError(f'no run has {key!r} in its rows')
  axes.set(xlabel='training step', ylabel=label)
  axes.legend(fontsize=8.5, framealpha=0.85, edgecolor='none')
  return save_axes(axes, path)


def _by_step(rows: Rows, key: str) -> dict[int, float]:
  return {row['step']: row[key] for row in rows if key in row}


def _student(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(low, high) of Student's intervals of the columns' means."""
  _, low, high = np.reshape([statistics.mean_t(column) for column in values.T], (-1, 3)).T
  return low, high


def levels(groups: Groups, log_snr: Sequence[float], path: Path) -> pathlib.Path:
  """A picture of the generalization gap by noise level at each run's best validation.

  Points are means over seeds, bars Student's intervals.

  Args:
    groups: variant -> rows of each of its runs.
    log_snr: the noise levels, nats, as the rows number them.
    path: the picture's file; its folder is created.

  Returns:
    The path.
  """
  axes = new_axes(6.4, 3.8)
  width = 0.6 * abs(log_snr[0] - log_snr[-1]) / max(1, len(log_snr) - 1) / max(1, len(groups))
  for i, ((variant, runs), color) in enumerate(_colored(groups)):
    gaps = np.array([_gaps(rows, len(log_snr)) for rows in runs])
    at = np.asarray(log_snr) + (i - (len(groups) - 1) / 2) * width
    axes.plot(at, gaps.mean(0), 'o', color=color, markersize=4, label=variant)
    if len(runs) > 1:
      axes.vlines(at, *_student(gaps), color=color, linewidth=1.4)
  axes.axhline(0, color=INK, linewidth=0.8)
  axes.set(xlabel='log-SNR (nats): noisy left, clean right', ylabel='held-out − training loss')
  axes.legend(fontsize=8.5, loc='upper left', framealpha=0.85, edgecolor='none')
  return save_axes(axes, path)


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
  axes = new_axes(6.4, 3.8)
  for (variant, runs), color in _colored(groups):
    for i, rows in enumerate(runs):
      losses, looked = _by_step(rows, 'validation/eps'), _by_step(rows, 'memorized/fraction')
      both = sorted(step for step in losses.keys() & looked if np.isfinite(losses[step]))
      if both:
        x, y = [losses[step] for step in both], [looked[step] for step in both]
        axes.plot(x, y, color=color, linewidth=1, alpha=0.7, label='' if i else variant)
        axes.plot(x[-1], y[-1], 'o', color=color, markersize=4)
  if not axes.lines:
    return None
  axes.set(xlabel='held-out loss', ylabel='memorized fraction')
  axes.legend(fontsize=8.5, framealpha=0.85, edgecolor='none')
  return save_axes(axes, path)


def forest(
  names: Sequence[str], ratios: Sequence[Interval], path: Path, label: str
) -> pathlib.Path:
  """A forest plot: a ratio with its interval a row, on a logarithmic axis, and the line of no effect.

  Args:
    names, ratios: from top to bottom, at least one.
    path: the picture's file.
    label: of the horizontal axis.
  """
  from matplotlib.ticker import MaxNLocator

  axes = new_axes(6.4, 0.8 + 0.32 * len(names))
  for place, one in enumerate(ratios):
    color = FAINT if one.low <= 1 <= one.high else BLUE
    axes.plot([one.low, one.high], [-place] * 2, color=color, linewidth=1.6)
    axes.plot(one.estimate, -place, 's', color=color, markersize=5)
  axes.axvline(1, color=INK, linewidth=0.9)
  axes.set_yticks([-i for i in range(len(names))], names)
  axes.set(xlabel=label, ylim=(0.6 - len(names), 0.6), xscale='log')
  low, high = axes.get_xlim()
  ticks = [tick for tick in _RATIOS if low <= tick <= high]
  if len(ticks) < 3:  # near 1
    ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
  axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
  axes.minorticks_off()
  return save_axes(axes, path)


def _colored(groups: Groups) -> Iterator[tuple[tuple[str, Sequence[Rows]], str]]:
  return zip(groups.items(), itertools.cycle(COLORS), strict=False)
