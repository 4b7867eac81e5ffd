"""Samples of a run: drawn once when it is evaluated, to be read and added to later; and as a picture."""

import hashlib
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion import conditions, devices, processes
from diffusion.data import files, pipeline, sources
from diffusion.data.splits import SplitData
from diffusion.reporting import encoding, pace
from diffusion.runs.run import Run
from diffusion.sampling import draw
from diffusion.types import Condition


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
  kept = {one['file']: one for one in run.record['samples']}
  file = next((name for name, one in kept.items() if one['identity'] == identity), None)
  have = None
  if file:
    have = processes.from_folder(lambda: _kept(run.folder / file, kept[file]['sha256']))
    everywhere = processes.gather(np.asarray(have is not None)).all()  # or drawing would not meet
    have = have[: len(labels)] if everywhere else None
  start = 0 if have is None else len(have)
  if start == len(labels):
    return have
  new = _draw(run, weights, condition, start, len(labels))
  samples = new if have is None else np.concatenate([have, new])
  file = file or ('samples.npz' if not kept else f'samples_{len(kept)}.npz')
  digest = ''
  if processes.is_writer():
    digest = save(run.folder / file, samples, labels, run.data.units.levels)
  kept[file] = {'file': file, 'identity': identity, 'count': len(samples), 'sha256': digest}
  run.note(samples=list(kept.values()))
  return samples


def _draw(run: Run, weights: Any, condition: Condition, start: int, stop: int) -> np.ndarray:
  """Samples number `start` and on, in blocks that fill the devices once; the last block has the rest too."""
  each = draw.CHUNK * devices.describe()['devices']
  edges = range(start + each, stop - each + 1, each)
  found = []
  with pace.counter(stop - start, 'samples', shown=processes.is_writer()) as update:
    for numbers in np.split(np.arange(start, stop), [edge - start for edge in edges]):
      found.append(run.sample(weights, conditions.take(condition, numbers), numbers))
      update(len(numbers))
  return np.concatenate(found)


def save(path: pathlib.Path, samples: np.ndarray, labels: np.ndarray, levels: int | None) -> str:
  """Writes samples as an .npz, whole or not at all.

  Args:
    path: the file.
    samples: [n, ...] as the data is stored.
    labels: [n].
    levels: of a stored value; None where it has none.

  Returns:
    The SHA-256 of the file.

  Raises:
    OSError: it cannot be written.
  """
  more = {} if levels is None else {'levels': np.asarray(levels)}
  with encoding.naming(path), encoding.replacing(path) as file:
    np.savez_compressed(file, samples=samples, labels=labels, **more)
  return _digest(path)


def _digest(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def stored(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """(samples, labels) that `save` wrote; raises ValueError for a file that is missing or damaged."""
  found = files.arrays(path, 'its samples are to be drawn again', ('samples', 'labels'))
  return found['samples'], found['labels']


def _kept(path: pathlib.Path, digest: str) -> np.ndarray | None:
  """The samples that were drawn before; None, and said so, where they are lost or not as they were saved."""
  try:
    samples = stored(path)[0]
  except ValueError as error:
    print(error, flush=True)
    return None
  if _digest(path) != digest:
    print(f'{path} has changed since it was saved: its samples are to be drawn again', flush=True)
    return None
  return samples


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
        encoding.replace(path, drawn[rows.tobytes()].read_bytes())
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
