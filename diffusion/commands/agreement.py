"""Compares the samples of two runs on disjoint data, drawn from the same starting noise; see `experiments.disjoint`.

python -m diffusion.commands.agreement runs/part_0 runs/part_1 --pairs=1000
"""

import sys

from absl import app, flags, logging

from diffusion import devices
from diffusion.reporting import tables
from diffusion.runs import agreeing

PAIRS = flags.DEFINE_integer('pairs', 1000, 'Pairs of samples.', lower_bound=3)
SEED = flags.DEFINE_integer('seed', 0, 'Seed of the starting noise.', lower_bound=0)


def main(argv) -> None:
  """Draws, compares, prints."""
  logging.set_verbosity(logging.ERROR)
  devices.use_cache()
  try:
    if len(argv) != 3:
      raise ValueError(f'name the folders of two runs, got {len(argv) - 1}')
    findings = agreeing.compare(argv[1], argv[2], PAIRS.value, SEED.value)
  except (ValueError, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    raise SystemExit(2) from None
  print(tables.markdown(['quantity', 'value', 'meaning'], findings))


if __name__ == '__main__':
  app.run(main)
