"""Samples of a run: drawn once when it is evaluated, to be read and added to later; and as a picture."""

import math
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion import conditions, devices, processes
from diffusion.data import files, pipeline, sources
from diffusion.data.splits import SplitData
from diffusion.reporting import pace
from diffusion.runs.run import Run
from diffusion.sampling import draw
from diffusion.types import Condition

_KEPT_EVERY = 60.0  # seconds of drawing that a kill may cost


def drawn(
  run: Run, weights: Any, labels: np.ndarray, condition: Condition, identity: dict[str, Any]
) -> np.ndarray:
  """Samples with these labels [n], as the data is stored, from the run's folder as far as it has them.

  Sample i depends on its number, the sampler's seed and what else `identity` holds, never on how many there are.

  Args:
    run: whose record knows what was drawn before.
    weights: replicated (parameters, statistics, sampler seed).
    labels: [n]; those of fewer samples are their beginning.
    condition: what the network is told of each.
    identity: all that the samples depend on, as JSON: checkpoint, seed, configuration, sampler.
  """
  file = next((one['file'] for one in _of(run.record, identity) if one['count']), None)
  have = None
  if file:
    have = processes.from_folder(lambda: _kept(run.folder / file))
    everywhere = processes.gather(np.asarray(have is not None)).all()  # or drawing would not meet
    have = have[: len(labels)] if everywhere else None
    if have is None:
      _count(run, identity, 0)
  found = [] if have is None else [have]
  start, due = sum(map(len, found)), time.monotonic() + _KEPT_EVERY
  if start == len(labels):
    return have
  for new in _draw(run, weights, condition, start, len(labels)):
    found.append(new)
    if time.monotonic() > due:
      begin = time.monotonic()
      _keep(run, np.concatenate(found), labels, identity)
      due = time.monotonic() + max(_KEPT_EVERY, 20 * (time.monotonic() - begin))
  samples = np.concatenate(found)
  _keep(run, samples, labels, identity)
  return samples


def _of(record: Mapping[str, Any], identity: dict[str, Any]) -> list[dict[str, Any]]:
  """What a record says of the samples of this identity: one entry, or none."""
  return [one for one in record['samples'] if one['identity'] == identity]


def _keep(run: Run, samples: np.ndarray, labels: np.ndarray, identity: dict[str, Any]) -> None:
  """Writes the first of the samples with these labels, on the process that writes.

  Their file's name is theirs from before it is written: another evaluation may be drawing others.
  """
  if not processes.is_writer():
    return

  def reserve(record: dict[str, Any]) -> dict[str, Any]:
    if _of(record, identity):
      return {}
    count = len(record['samples'])
    file = f'samples_{count}.npz' if count else 'samples.npz'
    return {'samples': [*record['samples'], {'file': file, 'identity': identity, 'count': 0}]}

  run.amend(reserve)
  (own,) = _of(run.record, identity)
  if own['count'] < len(samples):
    save(run.folder / own['file'], samples, labels[: len(samples)], run.data.units.levels)
    _count(run, identity, len(samples))


def _count(run: Run, identity: dict[str, Any], number: int) -> None:
  """Notes how many samples of this identity there are, on the process that writes."""

  def count(record: dict[str, Any]) -> dict[str, Any]:
    same = [one['identity'] == identity for one in record['samples']]
    entries = zip(same, record['samples'], strict=True)
    return {'samples': [one | {'count': number} if own else one for own, one in entries]}

  if processes.is_writer():
    run.amend(count)


def _draw(
  run: Run, weights: Any, condition: Condition, start: int, stop: int
) -> Iterator[np.ndarray]:
  """Samples number `start` and on, in blocks that fill the devices once; the last block has the rest too."""
  each = draw.CHUNK * devices.describe()['devices']
  edges = range(start + each, stop - each + 1, each)
  with pace.counter(stop - start, 'samples', shown=processes.is_writer()) as update:
    for numbers in np.split(np.arange(start, stop), [edge - start for edge in edges]):
      yield run.sample(weights, conditions.take(condition, numbers), numbers)
      update(len(numbers))


def save(path: pathlib.Path, samples: np.ndarray, labels: np.ndarray, levels: int | None) -> None:
  """Writes samples as an .npz, whole or not at all.

  Args:
    path: the file.
    samples: [n, ...] as the data is stored.
    labels: [n].
    levels: of a stored value; None where it has none.
  """
  more = {} if levels is None else {'levels': np.asarray(levels)}
  part = path.with_suffix('.part.npz')
  np.savez_compressed(part, samples=samples, labels=labels, **more)
  part.replace(path)


def stored(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """(samples, labels) that `save` wrote; raises ValueError for a file that is missing or damaged."""
  found = files.arrays(path, 'its samples are to be drawn again', ('samples', 'labels'))
  return found['samples'], found['labels']


def _kept(path: pathlib.Path) -> np.ndarray | None:
  """The samples that were drawn before; None, and said so, where they are lost."""
  try:
    return stored(path)[0]
  except ValueError as error:
    print(error, flush=True)
    return None


def picture(
  dataset: sources.Dataset,
  reference: np.ndarray,
  samples: np.ndarray,
  path: pathlib.Path,
  title: str,
) -> None:
  """Images: one class a column. Anything else: `plots.vectors`, over the reference. Nothing but on the writing process.

  Args:
    dataset: of whose kind the samples are.
    reference: examples, as stored.
    samples: as stored, of the classes in turn.
    path: the file.
    title: of the picture.

  Raises:
    OSError: where the file cannot be written.
  """
  if not processes.is_writer():
    return
  from diffusion.reporting import plots  # here, because most runs draw when they are over

  if dataset.levels is None:
    plots.vectors(samples, reference, path, title=title)
    return
  # Unlabelled samples in rows of the largest divisor of their number up to its root: a square if it is one.
  root = math.isqrt(len(samples))
  columns = dataset.num_classes or max(n for n in range(1, root + 1) if len(samples) % n == 0)
  images = pipeline.to_uint8(samples, dataset.levels).reshape(-1, columns, *samples.shape[1:])
  if images.shape[-1] not in (1, 3):
    title = f'{title}, {images.shape[-1]} channels side by side'
  plots.image_grid(images, dataset.class_names or [''] * columns, path, title=title)


def draw_data(runs: Sequence[tuple[pathlib.Path, SplitData]]) -> None:
  """Writes data.png of runs on images where it is missing: 64 training examples as the network sees them, with classes.

  The examples are taken evenly, class after class. What cannot be drawn is said, and ends no run.

  Args:
    runs: (folder, data) of each.
  """
  drawn: dict[bytes, pathlib.Path] = {}
  for folder, data in runs if processes.is_writer() else ():
    path, dataset, train = folder / 'data.png', data.dataset, data.split.train
    if dataset.levels is None or path.exists():
      continue
    by_class = train[np.argsort(dataset.label[train], kind='stable')]
    count = min(len(train), 64)
    rows = by_class[np.linspace(0, len(train) - 1, count // 8 * 8 or count).astype(int)]
    try:
      if rows.tobytes() in drawn:
        shutil.copyfile(drawn[rows.tobytes()], path)
      else:
        _draw_examples(dataset, rows, path)
      drawn[rows.tobytes()] = path
    except Exception as error:  # noqa: BLE001 - whatever it is, the training is worth more
      print(f'{path.name} could not be drawn: {processes.one_line(error)}', file=sys.stderr)


def _draw_examples(dataset: sources.Dataset, rows: np.ndarray, path: pathlib.Path) -> None:
  from diffusion.reporting import plots

  images = pipeline.to_uint8(dataset.x[rows], dataset.levels)
  names = [dataset.class_names[k] if dataset.num_classes else '' for k in dataset.label[rows]]
  if images.shape[-1] not in (1, 3):  # a panel for each channel
    channels = images.shape[-1]
    names = [f'{name} {channel}'.strip() for name in names for channel in range(channels)]
    images = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3], 1)
  columns = min(8, len(images))
  images = images[: len(images) // columns * columns]
  titles = [names[i : i + columns] for i in range(0, len(images), columns)]
  title = f'{dataset.name}: training examples as the network sees them'
  plots.image_grid(images.reshape(-1, columns, *images.shape[1:]), titles, path, title=title)
