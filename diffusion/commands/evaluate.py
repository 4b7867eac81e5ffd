"""Judges images that another program made by the ruler of the runs here: against a run's data, split as it was.

  python -m diffusion.commands.evaluate --images=FOLDER --run=runs/digits --metrics=all --features=digits

FOLDER holds PNGs, directly or in subfolders named as the classes; or name an .npz with uint8 `images`. The run gives
the data, its splits and its units. `--output=FILE` writes the results with their provenance as JSON.
"""

import pathlib
import sys

from absl import app, flags, logging

from diffusion import devices
from diffusion.reporting import tables
from diffusion.reporting.rows import write_json
from diffusion.runs import foreign, suite
from diffusion.workdir import read_record

IMAGES = flags.DEFINE_string('images', None, 'Folder of images, or .npz.', required=True)
RUN = flags.DEFINE_string('run', None, 'Folder of the run whose data is taken.', required=True)
METRICS = flags.DEFINE_list('metrics', ['all'], f'all, or of {", ".join(suite.METRICS)}.')
FEATURES = flags.DEFINE_string('features', 'pixels', 'pixels, digits, mnist, or Inception weights.')
OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the results.')


def main(_) -> None:
  """Judges and prints."""
  logging.set_verbosity(logging.ERROR)
  try:
    # As the run was, so that the same images get the same numbers to the bit.
    devices.configure(read_record(pathlib.Path(RUN.value).expanduser())['config']['batch_size'])
    findings, notes, record = foreign.judge(IMAGES.value, RUN.value, METRICS.value, FEATURES.value)
    if OUTPUT.value:
      write_json(OUTPUT.value, record)
  except (ValueError, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    raise SystemExit(2) from None
  for note in notes:
    print(note)
  print(tables.markdown(['quantity', 'value', 'meaning'], findings))


if __name__ == '__main__':
  app.run(main)
