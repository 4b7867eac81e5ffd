"""MNIST, Fashion-MNIST, CIFAR-10: official raw files to TFDS `array_record`, without TensorFlow.

python -m diffusion.commands.prepare mnist --data_dir=DIR               downloads, checksums verified
python -m diffusion.commands.prepare cifar10 --data_dir=DIR --source=RAW               no network, the same checksums
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from diffusion.commands import run_command
from diffusion.data import raw
from diffusion.data.prepare import prepare


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
  except SystemExit as stop:
    print('\nstopped; nothing half-made is left', file=sys.stderr, flush=True)
    # TFDS's download threads are not daemons: a plain exit would wait for them to end.
    os._exit(stop.code)


def _stop(number: int, _: Any) -> None:
  raise SystemExit(128 + number)  # unwinds, so that the workspace is removed


if __name__ == '__main__':
  for one in (signal.SIGINT, signal.SIGTERM):
    signal.signal(one, _stop)
  run_command(define_flags, main)
