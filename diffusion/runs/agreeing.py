"""Two runs before the same noise."""

import pathlib

from diffusion.evaluation.agreement import agreement
from diffusion.evaluation.evaluate import Finding
from diffusion.runs.foreign import data_of
from diffusion.runs.loading import load
from diffusion.training import assembly


def compare(
  first: str | pathlib.Path, second: str | pathlib.Path, pairs: int, seed: int
) -> list[Finding]:
  """What `evaluation.agreement` says of samples that two runs draw from the same noise for the same labels.

  Args:
    first, second: their workdirs.
    pairs: of samples, >= 3.
    seed: of the starting noise.

  Raises:
    ValueError: what `loading.load` and `agreement` raise: no run, other shapes, data in common.
  """
  samples, trained = [], []
  for folder in (first, second):
    run = load(folder)
    labels = assembly.class_labels(run.num_classes, -(-pairs // max(1, run.num_classes)))[:pairs]
    samples.append(run.sample(labels, seed))
    trained.append(data_of(pathlib.Path(folder).expanduser().absolute()).train_in_memory[0])
  return agreement(*samples, labels, *trained)
