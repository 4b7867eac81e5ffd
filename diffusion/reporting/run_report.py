"""A run's `report.md`: result first, then pictures, details, provenance, sources."""

import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusion import citations
from diffusion.citations import Technique
from diffusion.reporting import bibliography, encoding
from diffusion.reporting.tables import markdown
from diffusion.statistics import Interval


def write_report(
  workdir: pathlib.Path,
  record: Mapping[str, Any],
  findings: Sequence[tuple[str, float | Interval, str, str]],
  levels: Sequence[Sequence[float]],
  techniques: Sequence[Technique],
  suffix: str,
) -> pathlib.Path:
  """Writes the report of a run's last evaluation and references.bib, and returns the report's path.

  Args:
    workdir: the run's folder; pictures that are there are shown.
    record: run.json, with the configuration as it was evaluated, and the evaluation as the last of its `evaluations`.
    findings: the results (name, value, reading, meaning), most important first.
    levels: rows (log-SNR, train, validation, gap).
    techniques: what `build` used.
    suffix: of the report's and the pictures' names.
  """
  bibtex = bibliography.entries(citations.all_keys(techniques))
  evaluation, start = record['evaluations'][-1], record['starts'][-1]
  drawn = drawn_in_words(evaluation['sampling'])
  captions = {
    f'samples{suffix}.png': f'Samples of {drawn}.',
    'curves.png': 'The objective; training and held-out loss on equal noise, and their gap; the optimizer.',
    f'nearest{suffix}.png': f'Samples of {drawn}, above their nearest training examples, the smallest distance ratio '
    'first.',
    'data.png': 'Training examples as the network sees them.',
  }
  pictures = [(text, name) for name, text in captions.items() if (workdir / name).exists()]
  note = f' ({record["data"]["note"]})' if record['data']['note'] else ''
  kept = ('experiment', 'status', 'reason', 'step', 'wall_seconds')
  text = markdown_report(
    f'{record["experiment"]}: {record["data"]["name"]}{note}',
    summary_rows=[('how training ended', record['reason'], None), *(row[:3] for row in findings)],
    pictures=pictures,
    tables=[
      ('How the samples were drawn', ['what', 'value'], _drawn(evaluation)),
      ('What the numbers mean', ['quantity', 'meaning'], [(name, meaning) for name, _, _, meaning in findings]),
      ('Loss per noise level', ['log-SNR (nats)', 'train', 'validation', 'gap'], levels),
      *_speed(record.get('speed')),
    ],
    provenance={name: record[name] for name in kept}
    | {name: record[name] for name in ('config', 'data', 'versions')}
    | {'evaluated': {name: evaluation[name] for name in ('time', 'code', 'uncommitted changes', 'devices')}}
    | {'trained': {
      'command': shlex.join(start['command']), 'code': start['code']['commit'],
      'uncommitted changes': bool(start['code']['diff']), 'devices': start['devices'], 'starts': len(record['starts']),
    }}
    | _resharded(record['starts']),
    techniques=techniques,
    bibtex=bibtex,
  )  # fmt: skip
  path = workdir / f'report{suffix}.md'
  for file, content in ((path, text), (workdir / 'references.bib', bibtex)):
    with encoding.naming(file):
      file.write_text(content, encoding='utf-8')
  return path


def drawn_in_words(sampling: Mapping[str, Any]) -> str:
  """How samples were drawn, in a line for a picture: what is under `sampling` in the record of an evaluation."""
  return (
    f'step {sampling["checkpoint"]}: {sampling["sampler"]}, {sampling["steps"]} steps, grid {sampling["grid"]}, '
    f'guidance {sampling["guidance"]:g}, seed {sampling["seed"]}'
  )


def _drawn(evaluation: Mapping[str, Any]) -> list[tuple[str, Any]]:
  """The rows of how the samples were drawn, and by what command; without what is off."""
  told, changed = evaluation['sampling'], evaluation['changed']
  rows = {name: one for name, one in told.items() if one or name in ('guidance', 'seed')}
  rows |= {'samples': evaluation['samples'], 'command': shlex.join(evaluation['command'])}
  rows |= {'configuration, other than trained': '; '.join(changed)} if changed else {}
  return [
    (name, ', '.join(map(str, one)) if isinstance(one, list) else str(one))
    for name, one in rows.items()
  ]


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
  return [('Speed of training', ['quantity', 'value'], [row for row in rows if row[1] is not None])]


def _resharded(starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """At which steps a run went on with another number of devices, if it did."""
  changes = [one['resharded'] for one in starts if 'resharded' in one]
  said = '; '.join(f'step {one["step"]}: {one["from"]} to {one["to"]} devices' for one in changes)
  return {'resharded': said} if said else {}


def markdown_report(
  title: str,
  *,
  summary_rows: Sequence[tuple[str, object, str | None]],
  pictures: Sequence[tuple[str, str]],
  tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]],
  provenance: Mapping[str, object],
  techniques: Sequence[Technique],
  bibtex: str,
) -> str:
  """The report of a run, as Markdown.

  Args:
    title: heading of the report.
    summary_rows: (quantity, value, reading) of the results; a value is text, a number, an `Interval` or None, a reading
      the unit and what is better.
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
  parts = [
    f'# {title}',
    '## Result',
    markdown(('quantity', 'value', 'reading'), summary_rows, digits=4),
  ]
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
