"""Judges images that another program made by the ruler of the runs here: against a run's data, split as it was.

  python -m diffusion.commands.evaluate --images=FOLDER --run=runs/digits --metrics=all --features=digits

FOLDER holds PNGs, directly or in subfolders named as the classes; or name an .npz with uint8 `images` and `labels`
(or ADM's arr_0 and arr_1). `--levels=17` says that a stored value is one of 17, not of 256. The run gives the data, its
splits and its units: its `experiment.py` is executed, as loading a run does. `--output=FILE` writes the results with
their provenance as JSON.
"""

import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from absl import flags

from diffusion import checkout, devices, provenance
from diffusion.commands import define_moved, foreign, places, run_command
from diffusion.commands.foreign import Images, read
from diffusion.data import pipeline
from diffusion.data.splits import SplitData
from diffusion.evaluation import by_name, neighbors
from diffusion.evaluation import features as features_
from diffusion.evaluation.by_name import choose_features, choose_metrics
from diffusion.evaluation.metric import (
  Examples,
  MetricInputs,
  MetricResult,
  Plan,
  name_of,
  results_to_json,
  told,
)
from diffusion.reporting import pace
from diffusion.reporting.rows import write_json
from diffusion.reporting.tables import markdown
from diffusion.runs.attempts import findings_of
from diffusion.runs.loading import data_of
from diffusion.runs.run import data_record


def define_flags() -> None:
  """Of this command."""
  flags.DEFINE_string('images', None, 'Folder of images, or .npz.', required=True)
  flags.DEFINE_string(
    'run',
    None,
    'Folder of the run whose data is taken; its experiment.py is executed.',
    required=True,
  )
  define_moved()
  flags.DEFINE_list('metrics', ['all'], f'all, or of {", ".join(by_name.metrics())}.')
  flags.DEFINE_string('features', 'pixels', 'pixels, digits, mnist, or Inception weights.')
  flags.DEFINE_integer(
    'levels', None, 'Levels of a stored value, where the images are not from 0 to 255.', 2, 256
  )
  flags.DEFINE_string('output', None, 'JSON file for the results.')


def main(_: Sequence[str], given: flags.FlagValues) -> None:
  """Judges and prints."""
  # As the run was, so that the same images get the same numbers to the bit.
  config = provenance.read_record(pathlib.Path(given.run).expanduser())['config']
  if 'batch_size' in config:  # a run from Python may say none, and `measure` says what it lacks
    devices.configure(config['batch_size'])
  findings, notes, record = measure(
    given.images,
    given.run,
    given.metrics,
    given.features,
    levels=given.levels,
    moved=places(given.moved),
  )
  for note in notes:
    print(note)
  print(markdown(['quantity', 'value', 'reading', 'meaning'], told(findings)), flush=True)
  if given.output:  # at last: a file that cannot be written does not cost what was found
    write_json(given.output, record)


def measure(
  images: str | pathlib.Path,
  run: str | pathlib.Path,
  metrics: Sequence[str],
  features: str,
  levels: int | None = None,
  moved: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[MetricResult], list[str], dict[str, Any]]:
  """What the metrics say of images beside a run's data, split as the run split it.

  Args:
    images, levels: see `foreign.read`.
    run: folder of the run whose data, splits and units are taken; its `experiment.py` is executed.
    metrics, features: see `by_name.choose_metrics` and `by_name.choose_features`.
    moved: where the run's data lies now, see `loading.recorded_experiment`.

  Returns:
    (findings, what a reader must know, a record of what was given).

  Raises:
    ValueError: as those raise; other data than the run's; images of another shape or range.
  """
  begin = time.perf_counter()
  split = data_of(pathlib.Path(run).expanduser().absolute(), moved)
  data, sizes = split.dataset, split.sizes
  given, notes = foreign.alike(read(images, data.class_names, levels), split, images)
  plan = Plan(
    samples=len(given.x),
    classes=data.num_classes,
    shape=data.x.shape[1:],
    train=sizes['train'],
    held_out=sizes['validation'] + sizes['test'],
    network=False,
    labels=given.label is not None,
  )
  chosen = choose_features(features)
  found, left_out = choose_metrics(metrics, chosen, plan)
  following = pace.stages(['search for copies', *found], 'evaluation')
  following()
  inputs, more = _beside(given, split)
  notes += [*more, *(f'left out {name}: {why}' for name, why in left_out.items())]
  findings = []
  for metric in found.values():
    following()
    findings += findings_of(name_of(metric), functools.partial(metric.measure, inputs))
  record = {
    'time': provenance.now(),
    'images': str(images),
    'count': len(given.x),
    'levels': given.levels,
    'data': data_record(split),
    'features': features_.label(chosen),
    'command': provenance.command(),
    **checkout.code_in_brief(),
    'versions': provenance.versions(),
    'notes': notes,
    'seconds': time.perf_counter() - begin,
    'results': results_to_json(findings),
  }
  return findings, notes, record


def _beside(given: Images, split: SplitData) -> tuple[MetricInputs, list[str]]:
  """The images in the data's own levels where they fit them, else both in brightness; and what to know of it."""
  units, x, notes = split.units, given.x, []
  train, held_out = split.train_in_memory, split.held_out
  if given.levels is not None and given.levels != units.levels:
    x = pipeline.to_uint8(x, given.levels)
    stored = np.rint(x.astype(np.float64) * (units.levels - 1) / 255).astype(np.uint8)
    if np.array_equal(pipeline.to_uint8(stored, units.levels), x):
      x = stored
    else:
      notes.append(
        f'images with more than the {units.levels} levels of the data: both are given in brightness, 0 to 255'
      )
      train, held_out = (_brightness(part, units.levels) for part in (train, held_out))
      units = units._replace(levels=256)
  copies = int((neighbors.nearest(x, train[0], 1).distance[:, 0] == 0).sum())
  if copies:
    notes.append(
      f'WARNING: {copies} of the {len(x)} images ARE training examples, to the last pixel'
    )
  inputs = MetricInputs(
    samples=x,
    labels=np.zeros(len(x), np.int32) if given.label is None else given.label.astype(np.int32),
    train=train,
    held_out=held_out,
    validation=len(split.split.validation),
    class_names=split.dataset.class_names,
    units=units,
    network=None,
    kept={},
  )
  return inputs, notes


def _brightness(part: Examples, levels: int) -> Examples:
  return pipeline.to_uint8(part[0], levels), part[1]


if __name__ == '__main__':
  run_command(define_flags, main)
