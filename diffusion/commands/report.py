"""Joins runs into one report: grouped by configuration and seed, with intervals, paired effects, and pictures.

  python -m diffusion.commands.report runs/a runs/b runs/c runs/d --baseline=runs/a --output=runs/report

Runs whose configurations differ in the seed alone are one variant. Written are report.md, report.tex (pdflatex
compiles it), runs.csv, effects.csv, references.bib, and curves, gaps by noise level, copying and effects as pictures.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from diffusion.commands import run_command
from diffusion.naming import printable
from diffusion.reporting.tables import markdown
from diffusion.runs import compare


def define_flags() -> None:
  """Of this command."""
  flags.DEFINE_string('baseline', None, 'Variant or folder to compare with; the first by default.')
  flags.DEFINE_list(
    'quantities',
    [],
    'What to report, a name with a comma in double quotes; all that the runs share by default.',
  )
  flags.DEFINE_string('output', None, 'Folder of the report.', required=True)


def main(folders: Sequence[str], given: flags.FlagValues) -> None:
  """Reads, compares, writes, prints."""
  output = pathlib.Path(given.output).expanduser()
  tables, files = compare.write(compare.load(folders), output, given.baseline, given.quantities)
  for caption, headers, rows in tables:
    print(f'{markdown(headers, rows)}\n{printable(caption)}\n')
  print('\n'.join(map(str, files)))


if __name__ == '__main__':
  run_command(define_flags, main)
