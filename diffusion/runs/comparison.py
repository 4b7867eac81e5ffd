"""The report of several runs: Markdown, LaTeX, CSV, pictures and BibTeX, in one folder."""

import csv
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion import citations, statistics
from diffusion.evaluation import onset
from diffusion.reporting import bibliography, comparison, encoding, latex
from diffusion.reporting.tables import markdown
from diffusion.runs.compare import (
  Effect,
  Run,
  choose_baseline,
  effects,
  quantities,
  summary,
  techniques,
  variants,
)
from diffusion.statistics import Interval

Table = tuple[str, Sequence[str], Sequence[Sequence[Any]]]  # caption, headers, rows

CAPTIONS = {
  'curves.png': 'Held-out loss, mean over seeds with Student\'s 95 % band.',
  'levels.png': 'Generalization gap by noise level at the best validation.',
  'memorization.png': 'Memorized fraction against held-out loss, a line a run; dots mark the ends.',
  'forest.png': 'Paired effects against the baseline, 95 % intervals over seeds.',
}  # fmt: skip


def write(
  runs: Sequence[Run], folder: pathlib.Path, baseline: str | None, wanted: Sequence[str]
) -> tuple[list[Table], list[pathlib.Path]]:
  """Writes report.md, report.tex, runs.csv, effects.csv, references.bib and the pictures.

  Args:
    runs: see `compare.load`.
    folder: created if need be.
    baseline: see `compare.choose_baseline`.
    wanted: quantities; all that the runs share if empty.

  Returns:
    (the tables, the files).

  Raises:
    ValueError: an unknown baseline or quantity.
  """
  groups = variants(runs)
  names = quantities(runs, wanted)
  base = choose_baseline(groups, baseline)
  paired = effects(groups, base, names)
  folder.mkdir(parents=True, exist_ok=True)
  tables = [_summary(groups, names), *_onsets(groups), *_effects(paired, base), _provenance(runs)]
  pictures = _pictures(groups, paired, base, folder)
  used = techniques(runs)
  bibtex = bibliography.entries(citations.all_keys(used))
  title = f'{runs[0].record["data"]["name"]}: {len(runs)} runs'
  _write_text(folder / 'references.bib', bibtex + '\n')
  _write_text(folder / 'report.md', _markdown(title, tables, pictures, used, bibtex))
  _write_text(folder / 'report.tex', _latex(title, tables, pictures, bool(bibtex)))
  _write_csv(folder / 'runs.csv', *_runs_csv(runs, names))
  _write_csv(folder / 'effects.csv', *_effects_csv(paired, base))
  files = ['report.md', 'report.tex', 'runs.csv', 'effects.csv', 'references.bib', *pictures]
  return tables, [folder / name for name in files]


def _summary(groups: Mapping[str, list[Run]], names: Sequence[str]) -> Table:
  headers = ['quantity', *(f'{name} (n = {len(group)})' for name, group in groups.items())]
  rows = [[name, *(summary(group, name) for group in groups.values())] for name in names]
  caption = (
    "Results: mean over seeds with Student's 95 % interval; of a single run its own interval."
  )
  return caption, headers, rows


def _onsets(groups: Mapping[str, list[Run]]) -> list[Table]:
  """When things began, over seeds; of the variants whose runs all logged what it takes, with finite losses."""
  found = {name: [_onsets_of(run) for run in group] for name, group in groups.items()}
  found = {name: several for name, several in found.items() if None not in several}
  if not found:
    return []
  titles = {
    'learned': 'excess held-out loss within 5 %',
    'near_best': 'held-out loss within 1.05 of its least',
    'gap': 'the gap leaves 0',
    'best': 'held-out loss least (where early stopping lands)',
    'copying': 'the memorized fraction leaves its null',
  }
  rows = [
    [title, *(_over_seeds([getattr(one, name) for one in several]) for several in found.values())]
    for name, title in titles.items()
  ]
  for i, theta in enumerate(onset.FRACTIONS):
    cells = (_over_seeds([one.memorized[i] for one in several]) for several in found.values())
    rows.append([f'memorized fraction {theta:g}', *cells])
  rows.append(
    ['window, log(tau_mem / tau_gen)', *(_windows(several) for several in found.values())]
  )
  rows.append(
    [
      'seeds with gap, least loss, copying in this order',
      *(_ordered(several) for several in found.values()),
    ]
  )
  caption = (
    "Onsets: steps, geometric mean over seeds with Student's 95 % interval of the logarithms. Where some seeds were "
    'censored, how many got there, and the median of all if it is known.'
  )
  return [(caption, ['onset', *found], rows)]


def _onsets_of(run: Run) -> onset.Onsets | None:
  """A run's onsets; None without memorized fractions, or where its losses do not have any."""
  losses = [row['validation/eps'] for row in run.rows if 'validation/eps' in row]
  looked = any('memorized/fraction' in row for row in run.rows)
  return (
    onset.onsets(run.rows) if looked and len(losses) > 1 and np.isfinite(losses).all() else None
  )


def _over_seeds(steps: Sequence[float]) -> Any:
  reached = [step for step in steps if math.isfinite(step)]
  if len(steps) == 1:
    return steps[0] if reached else 'not by the end'
  if len(reached) == len(steps):
    return Interval(*(math.exp(end) for end in statistics.mean_t(np.log(reached))))
  middle = float(np.median(steps))
  count = f'{len(reached)} of {len(steps)}'
  return f'{count}, median {middle:g}' if math.isfinite(middle) else count


def _windows(several: Sequence[onset.Onsets]) -> Any:
  values = [one.window for one in several]
  known = [value for value in values if value is not None and math.isfinite(value)]
  if len(known) == len(values) > 1:
    return statistics.mean_t(known)
  open_ended = sum(value == math.inf for value in values)
  return f'{len(known)} of {len(values)} seen, {open_ended} beyond the end'


def _ordered(several: Sequence[onset.Onsets]) -> str:
  said = [one.in_order for one in several]
  unknown = f' ({said.count(None)} undetermined)' if None in said else ''
  return f'{said.count(True)} of {len(said)}{unknown}'


def _effects(paired: Sequence[Effect], base: str) -> list[Table]:
  if not paired:
    return []
  headers = ['quantity', 'variant', 'pairs', 'difference', 'ratio', 'p', 'p (Holm)']
  rows = [[e.quantity, e.variant, e.pairs, e.difference, e.ratio, e.p, e.adjusted] for e in paired]
  caption = (
    f'Effects against {base}, paired by seed: mean difference and geometric mean ratio with Student\'s 95 % intervals, '
    'exact sign-flip p, and p adjusted by Holm over the variants, each quantity by itself.'
  )  # fmt: skip
  return [(caption, headers, rows)]


def _provenance(runs: Sequence[Run]) -> Table:
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
  groups: Mapping[str, list[Run]], paired: Sequence[Effect], base: str, folder: pathlib.Path
) -> list[str]:
  rows = {name: [run.rows for run in group] for name, group in groups.items()}
  first = next(iter(groups.values()))[0]
  comparison.bands(rows, 'validation/eps', 'held-out eps-loss', folder / 'curves.png')
  comparison.levels(rows, first.record['bank']['log_snr'], folder / 'levels.png')
  made = ['curves.png', 'levels.png']
  if comparison.copying(rows, folder / 'memorization.png') is not None:
    made.append('memorization.png')
  moved = [e for e in paired if e.ratio is not None and e.ratio.low < e.ratio.high]
  if moved:
    others = list(dict.fromkeys(e.variant for e in moved))
    shown = [
      (f'{e.quantity}: {e.variant}' if len(others) > 1 else e.quantity, e.ratio) for e in moved
    ]
    label = f'ratio to {base}' if len(others) > 1 else f'{others[0]} over {base}'
    comparison.forest(shown, folder / 'forest.png', label=label, neutral=1.0)
    made.append('forest.png')
  return made


def _markdown(
  title: str, tables: Sequence[Table], pictures: Sequence[str], used, bibtex: str
) -> str:
  parts = [f'# {title}']
  for caption, headers, rows in tables:
    parts += [markdown(headers, rows, digits=4), f'*{caption}*']
  for name in pictures:
    parts += [f'![{CAPTIONS[name]}]({name})', f'*{CAPTIONS[name]}*']
  if used:
    listed = [(one.name, one.place, ', '.join(one.keys) or None) for one in used]
    parts += [
      '## Techniques used by any of the runs',
      markdown(('technique', 'place', 'cite'), listed),
    ]
  if bibtex:
    parts += ['## References', f'```bibtex\n{bibtex.strip()}\n```']
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


def _runs_csv(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
  headers = ['folder', 'variant', 'seed']
  for name in names:
    headers += [name, f'{name}, low', f'{name}, high']
  rows = []
  for run in runs:
    row: list[Any] = [str(run.folder), run.variant, run.seed]
    for name in names:
      bounds = run.own[name][1:] if name in run.own else (None, None)
      row += [run.results[name], *bounds]
    rows.append([*row, '; '.join(run.marks)])
  return [*headers, 'note'], rows


def _effects_csv(paired: Sequence[Effect], base: str) -> tuple[list[str], list[list[Any]]]:
  headers = ['baseline', 'variant', 'quantity', 'pairs']
  for name in ('difference', 'ratio'):
    headers += [name, f'{name}, low', f'{name}, high']
  rows = [
    [
      base,
      e.variant,
      e.quantity,
      e.pairs,
      *(e.difference or [None] * 3),
      *(e.ratio or [None] * 3),
      e.p,
      e.adjusted,
    ]
    for e in paired
  ]
  return [*headers, 'p', 'p, Holm'], rows


def _write_csv(path: pathlib.Path, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
  with encoding.naming(path), path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(headers)
    writer.writerows([['' if cell is None else cell for cell in row] for row in rows])


def _write_text(path: pathlib.Path, text: str) -> None:
  with encoding.naming(path):
    path.write_text(text, encoding='utf-8')
