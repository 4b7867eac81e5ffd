"""Compares the samples of two runs on disjoint data, drawn from the same starting noise; see `experiments.disjoint`.

python -m diffusion.commands.agreement runs/part_0 runs/part_1 --pairs=1000
"""

import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from absl import flags

from diffusion import devices
from diffusion.commands import define_moved, places, run_command
from diffusion.evaluation.metric import MetricResult, told
from diffusion.evaluation.same_noise import agreement
from diffusion.reporting.tables import markdown
from diffusion.runs.loading import data_of, load
from diffusion.sampling.draw import class_labels


def define_flags() -> None:
  """Of this command."""
  flags.DEFINE_integer('pairs', 1000, 'Pairs of samples.', lower_bound=3)
  flags.DEFINE_integer('seed', 0, 'Seed of the starting noise.', lower_bound=0)
  define_moved()


def compare(
  first: str | pathlib.Path,
  second: str | pathlib.Path,
  pairs: int,
  seed: int,
  moved: Mapping[str, str] = MappingProxyType({}),
) -> list[MetricResult]:
  """What `same_noise.agreement` says of samples that two runs draw from the same noise for the same labels.

  Args:
    first, second: their workdirs.
    pairs: of samples, >= 3.
    seed: of the starting noise.
    moved: where the data of both lies now, see `loading.recorded_experiment`.

  Raises:
    ValueError: what `loading.load` and `agreement` raise: no run, other shapes, data in common; or other classes.
  """
  folders = [pathlib.Path(folder).expanduser().absolute() for folder in (first, second)]
  trained = [data_of(folder, moved).train_in_memory[0] for folder in folders]
  runs = [load(folder) for folder in folders]
  names = [run.class_names for run in runs]
  if names[0] != names[1]:
    raise ValueError(
      f'the runs have other classes, {names[0]} and {names[1]}: one label would ask for two things'
    )
  labels = class_labels(len(names[0]), -(-pairs // max(1, len(names[0]))))[:pairs]
  samples = [run.sample(labels, seed) for run in runs]
  return agreement(*samples, labels, *trained)


def main(folders: Sequence[str], given: flags.FlagValues) -> None:
  """Draws, compares, prints."""
  devices.use_cache()
  if len(folders) != 2:
    raise ValueError(f'name the folders of two runs, got {len(folders)}')
  findings = compare(*folders, given.pairs, given.seed, places(given.moved))
  print(markdown(['quantity', 'value', 'reading', 'meaning'], told(findings)))


if __name__ == '__main__':
  run_command(define_flags, main)
