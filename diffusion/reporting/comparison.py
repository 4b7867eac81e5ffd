"""The report of several runs: tables, pictures, and the files that hold them."""

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion import citations, proportions, statistics
from diffusion.citations import Technique
from diffusion.proportions import Counts
from diffusion.reporting import bibliography, encoding, latex, run_report
from diffusion.reporting.tables import escape, markdown, reading
from diffusion.reporting.variants import ForestPanel, bands, copying, forest, levels
from diffusion.statistics import Interval

Table = tuple[str, Sequence[str], Sequence[Sequence[Any]]]  # caption, headers, rows

CAPTIONS = {
  'curves.png': 'Held-out loss, mean over seeds with Student\'s 95 % band.',
  'levels.png': 'Generalization gap by noise level at the best validation.',
  'memorization.png': 'Memorized fraction against held-out loss, a line a run, its end marked.',
  'forest.png': 'Paired effects against the baseline, 95 % intervals over seeds: ratios; of a quantity that is not '
  'always positive, differences, or of one variant alone the table.',
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
    ratio: geometric mean of the paired ratios; None where a value is not positive, or a proportion 1 throughout.
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
    encoding.write(folder / name, text.encode())
  return tables, [folder / name for name in (*texts, *pictures)]


def _summary(groups: Mapping[str, Sequence[ComparedRun]], names: Sequence[str]) -> Table:
  columns = [f'{name} (n = {len(group)})' for name, group in groups.items()]
  readings = next(iter(groups.values()))[0].readings
  rows = []
  for name in names:
    how = reading(*readings[name]) if name in readings else ''
    rows.append([name, *(summary(group, name) for group in groups.values()), how])
  caption = (
    "Results: mean over seeds with Student's 95 % interval; of a proportion that of its counts, pooled over seeds and "
    'then samples (Korn and Graubard); of a single run its own. All equal: nothing varied, and there is no interval.'
  )
  return caption, ['quantity', *columns, 'reading'], rows


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
    '(of proportions nowhere narrower than Newcombe\'s and Katz\'s of all samples), exact sign-flip p, the least that '
    'so many pairs that differ could give, and p adjusted by Holm over the variants, each quantity by itself.'
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
      start['versions']['jax'], run.record['starts'][0]['time'], round(run.record['wall_seconds']),
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
  panels = forest_panels(paired, base)
  if panels:
    forest(panels, folder / 'forest.png')
    made.append('forest.png')
  return made


def forest_panels(paired: Sequence[Effect], base: str) -> list[ForestPanel]:
  """A panel a quantity, of differences where a variant has no ratio; one panel of the ratios of a single variant."""
  moved = [e for e in paired if e.difference and not statistics.is_point(e.ratio or e.difference)]
  if len({e.variant for e in paired}) == 1:
    ratios = [(e.quantity, e.ratio) for e in moved if e.ratio is not None]
    return [ForestPanel('', ratios, f'{moved[0].variant} over {base}')] if ratios else []
  panels = []
  for quantity in dict.fromkeys(e.quantity for e in moved):
    of_it = [e for e in moved if e.quantity == quantity]
    is_ratio = all(e.ratio is not None for e in of_it)
    effects = [(e.variant, e.ratio if is_ratio else e.difference) for e in of_it]
    label = f'ratio to {base}' if is_ratio else f'difference from {base}'
    panels.append(ForestPanel(quantity, effects, label, is_ratio))
  return panels


def _markdown(
  title: str,
  tables: Sequence[Table],
  pictures: Sequence[str],
  techniques: Sequence[Technique],
  bibtex: str,
) -> str:
  parts = [f'# {escape(title)}']
  for caption, headers, rows in tables:
    parts += [markdown(headers, rows, digits=4), f'*{escape(caption)}*']
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
