"""A run's `report.md`: result first, then pictures, details, provenance, sources."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusion import citations
from diffusion.citations import Technique
from diffusion.reporting import bibliography
from diffusion.reporting.tables import markdown
from diffusion.statistics import Interval


def write_report(
  workdir: pathlib.Path,
  record: Mapping[str, Any],
  findings: Sequence[tuple[str, float | Interval, str]],
  levels: Sequence[Sequence[float]],
  techniques: Sequence[Technique],
  suffix: str,
) -> pathlib.Path:
  """Writes report.md and references.bib, and returns the report's path.

  Args:
    workdir: the run's folder; pictures that are there are shown.
    record: run.json.
    findings: the results (name, value, meaning), most important first.
    levels: rows (log-SNR, train, validation, gap).
    techniques: what `build` used.
    suffix: of the report's and the pictures' names.
  """
  bibtex = bibliography.entries(citations.all_keys(techniques))
  (workdir / 'references.bib').write_text(bibtex)
  captions = {
    f'samples{suffix}.png': 'Samples from the best checkpoint.',
    'curves.png': 'Training and held-out loss, their gap, and the optimizer.',
    f'nearest{suffix}.png': 'Samples above their nearest training examples, the smallest distance ratio first.',
    'data.png': 'Training examples as the network sees them.',
  }
  pictures = [(text, name) for name, text in captions.items() if (workdir / name).exists()]
  start = record['starts'][-1]
  note = f' ({record["data"]["note"]})' if record['data']['note'] else ''
  kept = ('experiment', 'status', 'reason', 'step', 'wall_seconds')
  text = markdown_report(
    f'{record["experiment"]}: {record["data"]["name"]}{note}',
    summary_rows=[('how it ended', record['reason']), *((name, value) for name, value, _ in findings)],
    pictures=pictures,
    tables=[
      ('What the numbers mean', ['quantity', 'meaning'], [(name, meaning) for name, _, meaning in findings]),
      ('Loss per noise level', ['log-SNR (nats)', 'train', 'validation', 'gap'], levels),
      *_speed(record.get('speed')),
    ],
    provenance={name: record[name] for name in kept}
    | {name: record[name] for name in ('config', 'data', 'versions')}
    | {'code': {'commit': start['code']['commit'], 'uncommitted changes': bool(start['code']['diff'])}}
    | {'devices': start['devices'], 'command': ' '.join(start['command']), 'starts': len(record['starts'])}
    | _resharded(record['starts']),
    techniques=techniques,
    bibtex=bibtex,
  )  # fmt: skip
  path = workdir / f'report{suffix}.md'
  path.write_text(text)
  return path


def _speed(speed: Mapping[str, Any] | None) -> list[tuple]:
  """The table of how fast the training was, if that is known."""
  if speed is None:
    return []
  rows = [
    ('images per second, median of the logged rows', speed['images_per_second']),
    ('floating-point operations of a training step per image', speed['flops_per_image']),
    ('floating-point operations per second', speed['flops_per_second']),
    ("share of the devices' peak in bfloat16", speed['utilization']),
    ('most memory of a device (CPU: of the process), bytes', speed['peak_memory']),
  ]
  return [('Speed', ['quantity', 'value'], rows)]


def _resharded(starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """At which steps a run went on with another number of devices, if it did."""
  changes = [one['resharded'] for one in starts if 'resharded' in one]
  said = '; '.join(f'step {one["step"]}: {one["from"]} to {one["to"]} devices' for one in changes)
  return {'resharded': said} if said else {}


def markdown_report(
  title: str,
  *,
  summary_rows: Sequence[tuple[str, object]],
  pictures: Sequence[tuple[str, str]],
  tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]],
  provenance: Mapping[str, object],
  techniques: Sequence[Technique],
  bibtex: str,
) -> str:
  """The report of a run, as Markdown.

  Args:
    title: heading of the report.
    summary_rows: (quantity, value) pairs of the result; a value is text, a number, an `Interval`
      or None.
    pictures: (caption, path relative to the report) pairs.
    tables: (heading, headers, rows) of each further table.
    provenance: what the run came from; nested mappings are written as `outer.inner`.
    techniques: what the run used.
    bibtex: their BibTeX entries, as `bibliography.entries` gives them.

  Returns:
    The text, sections without content left out, one newline at its end.

  Raises:
    ValueError: for a table whose rows do not fit its headers.
  """
  parts = [f'# {title}', '## Result', markdown(('quantity', 'value'), summary_rows, digits=4)]
  for caption, path in pictures:
    parts += [f'![{caption}](<{path}>)', f'*{caption}*']
  for heading, headers, rows in tables:
    parts += [f'## {heading}', markdown(headers, rows, digits=4)]
  if provenance:
    rows = list(_flat(provenance))
    parts += ['## Provenance', markdown(('field', 'value'), rows)]
  parts += sources('Techniques used', techniques, bibtex)
  return '\n\n'.join(parts) + '\n'


def sources(title: str, techniques: Sequence[Technique], bibtex: str) -> list[str]:
  """The last parts of a report, without what is empty.

  Args:
    title: of the table of techniques.
    techniques: what was used.
    bibtex: their entries.
  """
  parts = []
  if techniques:
    rows = [(one.name, one.place, ', '.join(one.keys) or None) for one in techniques]
    parts += [f'## {title}', markdown(('technique', 'place', 'cite'), rows)]
  if bibtex:
    parts += ['## References', f'```bibtex\n{bibtex.strip()}\n```']
  return parts


def _flat(data: Mapping[str, object], prefix: str = '') -> Iterator[tuple[str, object]]:
  for key, value in data.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      # A float of the provenance (a setting) is written whole: nothing is rounded away.
      yield f'{prefix}{key}', repr(value) if isinstance(value, float) else value
