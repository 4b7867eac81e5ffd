"""Judges images that another program made by the ruler of the runs here: against a run's data, split as it was.

  python -m diffusion.commands.evaluate --images=FOLDER --run=runs/digits --metrics=all --features=digits

FOLDER holds PNGs, directly or in subfolders named as the classes; or name an .npz with uint8 `images`. The run gives
the data, its splits and its units. `--output=FILE` writes the results with their provenance as JSON.
"""

import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from diffusion import devices, provenance
from diffusion.commands import run_command
from diffusion.data import pipeline, sources
from diffusion.data.splits import SplitData
from diffusion.evaluation import by_name, neighbors
from diffusion.evaluation import features as features_
from diffusion.evaluation.by_name import choose_features, choose_metrics
from diffusion.evaluation.metric import (
  Examples,
  MetricInputs,
  MetricResult,
  Plan,
  results_to_json,
)
from diffusion.reporting.rows import write_json
from diffusion.reporting.tables import markdown
from diffusion.runs.attempts import findings_of
from diffusion.runs.loading import data_of
from diffusion.runs.run import data_record


def define_flags() -> None:
  """Of this command."""
  flags.DEFINE_string('images', None, 'Folder of images, or .npz.', required=True)
  flags.DEFINE_string('run', None, 'Folder of the run whose data is taken.', required=True)
  flags.DEFINE_list('metrics', ['all'], f'all, or of {", ".join(by_name.metrics())}.')
  flags.DEFINE_string('features', 'pixels', 'pixels, digits, mnist, or Inception weights.')
  flags.DEFINE_string('output', None, 'JSON file for the results.')


def main(_: Sequence[str], given: flags.FlagValues) -> None:
  """Judges and prints."""
  # As the run was, so that the same images get the same numbers to the bit.
  config = provenance.read_record(pathlib.Path(given.run).expanduser())['config']
  if 'batch_size' in config:  # a run from Python may say none, and `measure` says what it lacks
    devices.configure(config['batch_size'])
  findings, notes, record = measure(given.images, given.run, given.metrics, given.features)
  if given.output:
    write_json(given.output, record)
  for note in notes:
    print(note)
  print(markdown(['quantity', 'value', 'meaning'], findings))


class Images(NamedTuple):
  """Images (or vectors) from a file, their labels or None, and how many levels a stored value has (None: floats)."""

  x: np.ndarray
  label: np.ndarray | None
  levels: int | None


def read(path: str | pathlib.Path, class_names: Sequence[str]) -> Images:
  """Images of a folder, or of an .npz.

  Args:
    path: a folder of images, directly in it or in subfolders named as the classes; or an .npz with `images` (or
      `samples`, or one array) and perhaps `labels`: uint8 from 0 to 255 unless it holds `levels`, or float vectors.
    class_names: of the data they are compared with.

  Raises:
    ValueError: nothing there, an unreadable image, several shapes, wrong types or ranges, or unknown classes.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix != '.npz':
    found = sources.folder(str(path)).load()
    unknown = sorted(set(found.class_names) - set(class_names))
    if unknown:
      raise ValueError(
        f'{path} has a folder {unknown[0]!r}, the classes are {", ".join(class_names) or "none"}'
      )
    if not found.class_names:
      return Images(found.x, None, 256)
    label = np.array([class_names.index(name) for name in found.class_names], np.int32)[found.label]
    # Class by class in turn, as runs draw them: metrics that look at a part then look at the same part.
    place = np.array([np.count_nonzero(label[:i] == own) for i, own in enumerate(label)])
    order = np.lexsort((label, place))
    return Images(found.x[order], label[order], 256)
  if not path.is_file():
    raise ValueError(f'no file {path}')
  with np.load(path) as stored:
    arrays = dict(stored)
  label, levels = arrays.pop('labels', None), arrays.pop('levels', None)
  names = [name for name in ('images', 'samples') if name in arrays] or list(arrays)
  if len(names) != 1:
    raise ValueError(
      f'{path} must hold `images` or one array, it holds {", ".join(names) or "none"}'
    )
  x = arrays[names[0]]
  features_.check_examples(x)
  if label is not None and label.shape != x.shape[:1]:
    raise ValueError(f'{path} holds {len(x)} images and labels of shape {list(label.shape)}')
  levels = None if x.ndim == 2 else 256 if levels is None else int(levels)
  if levels is not None and x.max() >= levels:
    raise ValueError(f'{path} says it has {levels} levels, and holds {x.max()}')
  return Images(x, label, levels)


def measure(
  images: str | pathlib.Path, run: str | pathlib.Path, metrics: Sequence[str], features: str
) -> tuple[list[MetricResult], list[str], dict[str, Any]]:
  """What the metrics say of images beside a run's data, split as the run split it.

  Args:
    images: see `read`.
    run: folder of the run whose data, splits and units are taken.
    metrics, features: see `by_name.choose_metrics` and `by_name.choose_features`.

  Returns:
    (findings, what a reader must know, a record of what was inputs).

  Raises:
    ValueError: as those raise; other data than the run's; images of another shape.
  """
  begin = time.perf_counter()
  split = data_of(pathlib.Path(run).expanduser().absolute())
  data = split.dataset
  given = read(images, data.class_names)
  if given.x.shape[1:] != data.x.shape[1:]:
    shapes = list(given.x.shape[1:]), list(data.x.shape[1:])
    raise ValueError(f'{images} holds examples of shape {shapes[0]}, {data.name} has {shapes[1]}')
  inputs, notes = _beside(given, split)
  sizes = split.sizes
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
  notes += [f'left out {name}: {why}' for name, why in left_out.items()]
  findings = []
  for name, metric in found.items():
    findings += findings_of(name, functools.partial(metric.measure, inputs))
  record = {
    'time': provenance.now(),
    'images': str(images),
    'count': len(given.x),
    'data': data_record(split),
    'features': features_.label(chosen),
    'command': provenance.command(),
    'code': provenance.code()['commit'],
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
        f'images with more than the {units.levels} levels of the data: both are inputs in brightness, 0 to 255'
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
