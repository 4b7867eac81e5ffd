"""Samples of a run: drawn once when it is evaluated, to be read and added to later; and as a picture."""

import hashlib
import io
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion import conditions, devices, processes
from diffusion.data import files, pipeline, sources
from diffusion.data.splits import SplitData
from diffusion.reporting import encoding, pace
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
  known = next((one for one in _of(run.record, identity) if one['count']), None)
  have = None
  if known is not None:
    have = processes.from_folder(lambda: _kept(run.folder / known['file'], known['sha256']))
    everywhere = processes.gather(np.asarray(have is not None)).all()  # or drawing would not meet
    have = have[: len(labels)] if everywhere else None
    if have is None:
      _note(run, identity, count=0, sha256=[])
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
  """Writes the first of the samples with these labels, on the process that writes, one evaluation at a time.

  Their file's name is noted before it is written, and so is its hash, beside that of what it replaces.
  """
  if not processes.is_writer():
    return
  content = pack(samples, labels[: len(samples)], run.data.units.levels)
  digest = hashlib.sha256(content).hexdigest()

  def reserve(record: dict[str, Any]) -> dict[str, Any]:
    count = len(record['samples'])
    file = f'samples_{count}.npz' if count else 'samples.npz'
    new = {'file': file, 'identity': identity, 'count': 0, 'sha256': []}
    return {} if _of(record, identity) else {'samples': [*record['samples'], new]}

  with encoding.locked(run.folder / 'samples', seconds=600):
    run.amend(reserve)
    (own,) = _of(run.record, identity)
    if own['count'] < len(samples):
      path = run.folder / own['file']
      _note(run, identity, sha256=[*own['sha256'], digest])
      if path.is_dir():  # which no file can replace
        path.rename(encoding.aside(run.folder, path.name))
      encoding.write(path, content)
      _note(run, identity, count=len(samples), sha256=[digest])


def _note(run: Run, identity: dict[str, Any], **changes: Any) -> None:
  """Changes what the record says of the samples of this identity, on the process that writes."""

  def change(record: dict[str, Any]) -> dict[str, Any]:
    of_each = [changes if one['identity'] == identity else {} for one in record['samples']]
    return {'samples': [old | new for old, new in zip(record['samples'], of_each, strict=True)]}

  if processes.is_writer():
    run.amend(change)


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


def pack(samples: np.ndarray, labels: np.ndarray, levels: int | None) -> bytes:
  """Samples as the content of an .npz.

  Args:
    samples: [n, ...] as the data is stored.
    labels: [n].
    levels: of a stored value; None where it has none.
  """
  more = {} if levels is None else {'levels': np.asarray(levels)}
  content = io.BytesIO()
  np.savez_compressed(content, samples=samples, labels=labels, **more)
  return content.getvalue()


def stored(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """(samples, labels) of such a file; raises ValueError for a file that is missing or damaged."""
  found = files.arrays(path, 'its samples are to be drawn again', ('samples', 'labels'))
  return found['samples'], found['labels']


def _kept(path: pathlib.Path, digests: Sequence[str]) -> np.ndarray | None:
  """The samples that were drawn before; None, and said so, where they are lost or not as they were saved."""
  try:
    samples = stored(path)[0]
  except ValueError as error:
    print(error, flush=True)
    return None
  if hashlib.sha256(path.read_bytes()).hexdigest() not in digests:
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
