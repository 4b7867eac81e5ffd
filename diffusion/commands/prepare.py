"""MNIST, Fashion-MNIST, CIFAR-10: official raw files to TFDS `array_record`, without TensorFlow.

python -m diffusion.commands.prepare mnist --data_dir=DIR               downloads, checksums verified
python -m diffusion.commands.prepare cifar10 --data_dir=DIR --source=RAW               no network, the same checksums
"""

import os
from collections.abc import Sequence

from absl import flags, logging

from diffusion.commands import run_command
from diffusion.data import raw
from diffusion.data.prepare import prepare
from diffusion.signals import stopped_by


def define_flags() -> None:
  """Of this command."""
  flags.DEFINE_string('data_dir', None, 'TFDS data directory to write to.')
  flags.DEFINE_string('source', None, 'Folder of the official raw files; default: download them.')
  flags.DEFINE_bool('allow_partial', False, 'Accept an incomplete set; for tests and trials.')
  flags.DEFINE_bool(
    'allow_unverified', False, 'Accept raw files other than the official ones, or unpacked.'
  )


def main(names: Sequence[str], given: flags.FlagValues) -> None:
  """Prepares one set; a signal leaves nothing half-made."""
  logging.set_verbosity(logging.WARNING)
  if len(names) != 1 or not given.data_dir:
    known = '|'.join(sorted(raw.SPECS))
    raise ValueError(f'usage: python -m diffusion.commands.prepare {known} --data_dir=DIR')
  try:
    prepare(names[0], given.data_dir, given.source, given.allow_partial, given.allow_unverified)
  except KeyboardInterrupt as interrupt:
    # TFDS's download threads are not daemons: a plain exit would wait for them to end.
    os._exit(stopped_by(interrupt, 'stopped; nothing half-made is left'))


if __name__ == '__main__':
  run_command(define_flags, main)
