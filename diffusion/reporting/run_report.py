"""The text of a run's `report.md`: result first, then pictures, details, provenance, sources."""

from collections.abc import Iterator, Mapping, Sequence

from diffusion.citations import Technique
from diffusion.reporting.tables import markdown


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
  """The last parts of a report: what was used, under this title, and its BibTeX entries; without what is empty."""
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
