"""Judges images that another program made by the ruler of the runs here: against a run's data, split as it was.

  python -m diffusion.commands.evaluate --images=FOLDER --run=runs/digits --metrics=all --features=digits

FOLDER holds PNGs, directly or in subfolders named as the classes; or name an .npz with uint8 `images`. The run gives
the data, its splits and its units. `--output=FILE` writes the results with their provenance as JSON.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from diffusion import devices
from diffusion.commands import command
from diffusion.evaluation.metric import METRICS
from diffusion.reporting.rows import write_json
from diffusion.reporting.tables import markdown
from diffusion.runs import foreign
from diffusion.workdir import read_record


def define_flags() -> None:
  """Of this command."""
  flags.DEFINE_string('images', None, 'Folder of images, or .npz.', required=True)
  flags.DEFINE_string('run', None, 'Folder of the run whose data is taken.', required=True)
  flags.DEFINE_list('metrics', ['all'], f'all, or of {", ".join(METRICS)}.')
  flags.DEFINE_string('features', 'pixels', 'pixels, digits, mnist, or Inception weights.')
  flags.DEFINE_string('output', None, 'JSON file for the results.')


def main(_: Sequence[str], given: flags.FlagValues) -> None:
  """Judges and prints."""
  # As the run was, so that the same images get the same numbers to the bit.
  devices.configure(read_record(pathlib.Path(given.run).expanduser())['config']['batch_size'])
  findings, notes, record = foreign.judge(given.images, given.run, given.metrics, given.features)
  if given.output:
    write_json(given.output, record)
  for note in notes:
    print(note)
  print(markdown(['quantity', 'value', 'meaning'], findings))


if __name__ == '__main__':
  command.run(define_flags, main)
