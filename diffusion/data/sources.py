"""Where data comes from. A Source is a name and a function that loads; nothing is read before it is called."""

import functools
import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Num

from diffusion import checks, conditions
from diffusion.citations import technique
from diffusion.data import pictures, records
from diffusion.naming import printable
from diffusion.types import Condition

_ORIENTED = ('mnist', 'emnist', 'kmnist', 'svhn_cropped', 'omniglot')
_PARTS = {'train', 'training', 'val', 'valid', 'validation', 'test', 'testing'}

Test = tuple[Num[np.ndarray, ' m *shape'], Integer[np.ndarray, ' m']]


class Dataset(NamedTuple):
  """A data set, as stored.

  Attributes:
    name: what tables call it.
    x: uint8 [n, h, w, c] for images, float32 [n, d] for vectors;
      `records.DiskRecords` for images that stay in their files.
    label: in [0, num_classes); zeros where num_classes is 0.
    levels: number of levels a stored value has (0 ... levels - 1), or None for floats.
    class_names: one a class; empty when there are none.
    test: (x, label) of an official test set, or None.
    note: what a reader of results must know, e.g. that the data is synthetic; empty otherwise.
    found: what `cleaning.checked` found, by name.
    condition: what a network may be told of each example beside or in place of its label, a tree of arrays [n, ...] in
      dicts and lists; None where that is the label.
    oriented: a mirrored or turned example may be of another class, as with digits and letters.
    validation: rows of x that the data itself holds out for validation; None where they are carved.
  """

  name: str
  x: records.Stored
  label: Integer[np.ndarray, ' n']
  levels: int | None
  class_names: tuple[str, ...] = ()
  test: Test | None = None
  note: str = ''
  found: Mapping[str, int | str] = MappingProxyType({})
  oriented: bool = False
  condition: Condition | None = None
  validation: Integer[np.ndarray, ' v'] | None = None

  @property
  def conditions(self) -> Condition:
    """What a network may be told of each example."""
    return self.label if self.condition is None else self.condition

  @property
  def num_classes(self) -> int:
    """Classes without the null class."""
    return len(self.class_names)


class Source(NamedTuple):
  """A data set to be: `load()` reads it and raises one readable error when it cannot.

  `raw()` reads it without refusing what `cleaning.checked` can mend. `stream(workers)` leaves the training images in
  their files, see `streamed`; None where there are no files to read rows from.
  """

  name: str
  load: Callable[[], Dataset]
  raw: Callable[[], Dataset]
  stream: Callable[[int], Dataset] | None = None


def _source(name: str, raw: Callable[[], Dataset]) -> Source:
  return Source(name, lambda: validated(raw()), raw)


def validated(data: Dataset) -> Dataset:
  """The same data, if it has nothing that would surface hours later; all its names are `printable`.

  Raises:
    ValueError: wrong types or shapes, NaN, labels out of range, a class name given twice, no example, or a condition
      that does not fit the examples.
  """
  twice = [name for i, name in enumerate(data.class_names) if name in data.class_names[:i]]
  if twice:
    raise ValueError(f'{data.name}: two classes are called {twice[0]!r}: name each differently')
  parts = {'train': (data.x, data.label)} | ({'test': data.test} if data.test else {})
  for part, (x, label) in parts.items():
    where = f'{data.name} ({part})'
    if len(x) == 0 or len(x) != len(label):
      raise ValueError(f'{where}: {len(x)} examples and {len(label)} labels')
    if label.ndim != 1:
      raise ValueError(
        f'{where}: a label is one number an example, got shape {label.shape}: of one-hot rows give label.argmax(1), of '
        'a column label[:, 0]'
      )
    if data.levels is not None and (x.dtype != np.uint8 or x.ndim != 4):
      raise ValueError(
        f'{where}: images must be uint8 [n, H, W, C], got {x.dtype} {x.shape}: give gray ones an axis of one channel; '
        'say levels=None for numbers that are no images'
      )
    if x.shape[1:] != data.x.shape[1:]:
      raise ValueError(
        f'{where}: examples of shape {x.shape[1:]}, those to train on have {data.x.shape[1:]}'
      )
    if data.levels is not None and data.levels < 256 and x.max() >= data.levels:
      raise ValueError(f'{where}: a value {x.max()} where levels are 0 to {data.levels - 1}')
    if data.levels is None and not np.isfinite(x).all():
      bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
      raise ValueError(f'{where}: {bad.size} examples are not finite, the first is {bad[0]}')
    if label.min() < 0 or label.max() >= max(1, data.num_classes):
      remedy = '' if data.num_classes else ': give class_names, or no labels'
      labels = f'labels {label.min()} to {label.max()}'
      raise ValueError(f'{where}: {labels} for {data.num_classes} classes{remedy}')
  if data.condition is not None:
    if data.test is not None:
      raise ValueError(
        f'{data.name}: a test set of its own does not go with conditions: leave it out'
      )
    conditions.check(data.condition, len(data.x))
  found = {
    printable(what): printable(one) if isinstance(one, str) else one
    for what, one in data.found.items()
  }
  return data._replace(
    name=printable(data.name),
    class_names=tuple(map(printable, data.class_names)),
    note=printable(data.note),
    found=found,
  )


def arrays(
  name: str,
  x: Num[np.ndarray, ' n *shape'],
  label: Integer[np.ndarray, ' n'] | None = None,
  *,
  levels: int | None = 256,
  class_names: Sequence[str] = (),
  test: Test | None = None,
  note: str = '',
  condition: Condition | None = None,
) -> Source:
  """Arrays of your own.

  Args:
    name: what tables call the data.
    x: uint8 images [n, h, w, c] with `levels` levels, or floats [n, ...] with levels=None.
    label: of each example, or None for unlabelled data.
    levels: levels a value can have, 2 to 256; None for floats.
    class_names: one a class; without labels, none.
    test: (x, label) of a test set kept apart, or None to have one carved.
    note: printed beside every result.
    condition: what a network may be told of each example where that is not its label: arrays [n, ...] in dicts and
      lists.

  Raises:
    ValueError: levels out of range; (on load) shapes, types, ranges or labels that do not fit.
  """
  if levels is not None:
    checks.integer('levels', levels, 2)
    checks.in_range('levels', levels, 2, 256)

  def load() -> Dataset:
    def part(
      x: Num[np.ndarray, ' n *shape'], label: Integer[np.ndarray, ' n'] | None
    ) -> tuple[Num[np.ndarray, ' n *shape'], Integer[np.ndarray, ' n']]:
      labels = np.zeros(len(x), np.int32) if label is None else np.asarray(label)
      if labels.dtype.kind not in 'iu' or (labels.astype(np.int32) != labels).any():
        raise ValueError(
          f'{name}: a label must be an integer of 32 bits, got {labels.dtype}, {labels.flat[:3].tolist()} ...: '
          'number the classes from 0, e.g. by np.unique(label, return_inverse=True)'
        )
      return np.asarray(x) if levels is not None else _floats(name, x), labels.astype(np.int32)

    examples, labels = part(x, label)
    return Dataset(
      name=name,
      x=examples,
      label=labels,
      levels=levels,
      class_names=tuple(map(str, class_names)),
      test=None if test is None else part(*test),
      note=note,
      condition=condition,
    )

  return _source(name, load)


def _floats(name: str, x: Num[np.ndarray, ' n *shape']) -> Num[np.ndarray, ' n *shape']:
  """Numbers as float32; raises ValueError for what is no real number, or loses what distinguishes the examples."""
  given = np.asarray(x)
  if given.dtype.kind not in 'fiub':
    raise ValueError(f'{name}: values must be real numbers, got {given.dtype}')
  kept = given.astype(np.float32, copy=False)
  if given.dtype.itemsize >= 4 and given.size and np.isfinite(kept).all() and np.ptp(given) > 0:
    lost, deviation = float(np.abs(kept - given).max()), float(given.std())
    if lost > 1e-3 * deviation:
      raise ValueError(
        f'{name}: float32 rounds the values by up to {lost:.3g}, and they vary by {deviation:.3g} around '
        f'{given.mean():.6g}: subtract that first'
      )
  return kept


@technique('handwritten digits data', 'core', 'alpaydin1998digits')
def digits() -> Source:
  """The 1,797 handwritten digits of scikit-learn: 8x8x1, 17 levels, 10 classes; inside its wheel, so offline.

  Source: Alpaydin & Kaynak (1998), the test part of the UCI set "Optical recognition of handwritten digits".
  """

  def load() -> Dataset:
    from sklearn import datasets

    data = datasets.load_digits()
    return Dataset(
      name='digits',
      x=data.images.astype(np.uint8)[..., None],
      label=data.target.astype(np.int32),
      levels=17,
      class_names=tuple('0123456789'),
      oriented=True,
    )

  return _source('digits', load)


def unlabelled(source: Source) -> Source:
  """The same data without its labels, for an unconditional model."""

  def load() -> Dataset:
    data = source.raw()
    test = data.test and (data.test[0], np.zeros_like(data.test[1]))
    label = np.zeros_like(data.label)
    return data._replace(label=label, class_names=(), test=test, condition=None)

  return _source(source.name, load)


def with_held_out(
  source: Source, validation: Source | None = None, test: Source | None = None
) -> Source:
  """The same data, with examples of your own held out from training: nothing is carved for the parts that are given.

  Args:
    source: what is trained on.
    validation: examples to validate by, at least two; None carves them.
    test: examples for the final test; None keeps those of `source`, or carves them.

  Raises:
    ValueError: (on load) examples of another shape or other levels, classes that `source` does not have, conditions, or
      a source that holds out examples to validate by already.
  """

  def load() -> Dataset:
    data = source.load()
    if test is not None:
      part, found = _fitting(data, test)
      data = data._replace(test=part, found={**data.found, **found})
    if validation is None:
      return data
    if data.validation is not None:
      raise ValueError(
        f'{data.name} holds out {len(data.validation)} examples to validate by already: put all of them into one source'
      )
    (x, label), found = _fitting(data, validation)
    rows = np.arange(len(data.x), len(data.x) + len(x))
    both = np.concatenate([data.x, x]), np.concatenate([data.label, label])
    found = {**data.found, **found}
    return data._replace(x=both[0], label=both[1], validation=rows, found=found)

  return _source(source.name, load)


def _fitting(data: Dataset, source: Source) -> tuple[Test, dict[str, int | str]]:
  """The examples of another source, labelled as the classes of the data, and what was found in it."""
  other = source.load()
  for name, one, two in (
    ('examples of shape', data.x.shape[1:], other.x.shape[1:]),
    ('levels', data.levels, other.levels),
  ):
    if one != two:
      raise ValueError(
        f'{other.name} is to be held out of {data.name} and has {name} {two}, not {one}'
      )
  if data.condition is not None or other.condition is not None:
    raise ValueError(f'{other.name} cannot be held out of {data.name}: one of them has conditions')
  unknown = [name for name in other.class_names if name not in data.class_names]
  if data.class_names and (unknown or not other.class_names):
    named = repr(unknown[0]) if unknown else 'no labels'
    raise ValueError(
      f'{other.name} is to be held out of {data.name} and has {named}; the classes are {", ".join(data.class_names)}'
    )
  found = {f'{what} ({other.name})': count for what, count in other.found.items()}
  if not data.class_names:
    return (other.x, np.zeros(len(other.x), np.int32)), found
  own = np.array([data.class_names.index(name) for name in other.class_names], np.int32)
  return (other.x, own[other.label]), found


def in_order_of(data: Dataset, class_names: Sequence[str]) -> Dataset:
  """The same data, its classes in this order where they are the same: a run's labels stay what they were.

  Args:
    data: as it was read.
    class_names: as a run recorded them; none where there is no run.
  """
  if set(class_names) != set(data.class_names) or len(class_names) != data.num_classes:
    return data
  place = np.array([class_names.index(name) for name in data.class_names], np.int32)
  if not data.num_classes or (place == np.arange(place.size)).all():
    return data
  test = data.test and (data.test[0], place[data.test[1]])
  return data._replace(label=place[data.label], class_names=tuple(class_names), test=test)


def synthetic_images(
  shape: tuple[int, int, int], num_classes: int = 10, examples: int = 512, seed: int = 0
) -> Source:
  """Noise around one smooth random image a class: the right shape for a smoke run, and labelled as synthetic.

  Args:
    shape: (h, w, c).
    num_classes: >= 1.
    examples: how many.
    seed: of the images.
  """

  def load() -> Dataset:
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 255, (num_classes, 4, 4, shape[2]))
    rows = np.arange(shape[0]) * 4 // shape[0]
    columns = np.arange(shape[1]) * 4 // shape[1]
    label = random.integers(num_classes, size=examples).astype(np.int32)
    x = coarse[label][:, rows][:, :, columns] + random.normal(0, 16, (examples, *shape))
    return Dataset(
      name=f'synthetic {shape[0]}x{shape[1]}x{shape[2]}',
      x=np.clip(x, 0, 255).astype(np.uint8),
      label=label,
      levels=256,
      class_names=tuple(str(i) for i in range(num_classes)),
      note='SYNTHETIC images of the right shape: no result here says anything about real data',
    )

  return _source('synthetic', load)


def real_or_synthetic(
  real: Source, synthetic: bool, shape: tuple[int, int, int], examples: int = 512
) -> Source:
  """The real data, or for a smoke run `synthetic_images` of its shape, which need no download.

  Args:
    real: the data.
    synthetic: whether to take the other.
    shape: (h, w, c) of an image.
    examples: how many synthetic ones.
  """
  return synthetic_images(shape, examples=examples) if synthetic else real


def gaussian_mixture(
  means: Float[np.ndarray, 'k d'],
  scales: Float[np.ndarray, ' k'],
  weights: Float[np.ndarray, ' k'],
  examples: int,
  seed: int = 0,
) -> Source:
  """Draws from sum_k pi_k N(mu_k, s_k^2 I), whose exact denoiser is `process.analytic.gaussian_mixture`.

  Args:
    means: mu.
    scales: s, > 0.
    weights: pi, positive, summing to one.
    examples: how many draws, >= 1.
    seed: of the draws.

  Raises:
    ValueError: shapes that do not agree, scales out of range, or weights that do not sum to one.
  """
  means, scales, weights = np.asarray(means), np.asarray(scales), np.asarray(weights)
  checks.integer('examples', examples)
  if means.ndim != 2 or scales.shape != means.shape[:1] or weights.shape != means.shape[:1]:
    raise ValueError(
      f'a mixture needs means [K, d], scales [K], weights [K], got {means.shape}, {scales.shape}, {weights.shape}'
    )
  if not ((scales > 0).all() and np.isfinite(scales).all()):
    raise ValueError(f'scales must be positive and finite, got {scales}')
  checks.shares('weights', weights)
  checks.finite('means', means)

  def load() -> Dataset:
    random = np.random.default_rng(seed)
    shares = weights / weights.sum()  # NumPy asks for a sum of 1 to more digits than are asked here
    label = random.choice(len(weights), examples, p=shares).astype(np.int32)
    x = means[label] + scales[label][:, None] * random.normal(size=(examples, means.shape[1]))
    return Dataset(
      name='Gaussian mixture',
      x=x.astype(np.float32),
      label=label,
      levels=None,
      class_names=tuple(f'component {k}' for k in range(len(weights))),
    )

  return _source('Gaussian mixture', load)


def folder(
  directory: str, size: int | None = None, *, background: int = 255, white: float | None = None
) -> Source:
  """A folder of images: one subfolder a class, or images directly in it for unlabelled data.

  Every format that Pillow reads, as a viewer shows it: see `pictures.read`. What was converted or left out is counted
  in `Dataset.found`. Gray images among color ones are made color. Class folders may be links; they are in the order of
  the alphabet, or of numbers where they differ by a number alone. Hidden files and folders are ignored.

  Args:
    directory: path of the folder.
    size: side in pixels to which every image is center-cropped and resized; None keeps images of one size as they are.
    background: brightness, 0 to 255, that is seen through transparent pixels; by default white.
    white: the value that is white in images of more than 8 bits a channel, which are read at 8, e.g. 4095 for 12 bits;
      None refuses them.

  Raises:
    ValueError: an argument out of its range; (on load) no folder, no image, an unreadable or too large or deep image,
      a name that is not UTF-8, images of several sizes, or folders of parts (train, test) in place of classes.
  """
  if size is not None:
    checks.integer('size', size)
  checks.integer('background', background, 0)
  checks.in_range('background', background, 0, 255)
  if white is not None:
    checks.positive('white', white)
  reading = pictures.Reading(size, background, white)
  root = pathlib.Path(directory).expanduser()

  def load() -> Dataset:
    if not directory:
      raise ValueError("a folder of images needs a directory, got ''")
    if not root.is_dir():
      raise ValueError(f'no folder of images at {root}')
    paths, left_out = pictures.find(root)
    if not paths:
      said = ''.join(f'; {reason}: {count}' for reason, count in left_out.items())
      raise ValueError(f'no image that Pillow reads in {root}{said}')
    owners = [p.relative_to(root).parts[0] if p.parent != root else '' for p in paths]
    names = pictures.in_order(set(owners))
    if '' in names and len(names) > 1:
      raise ValueError(
        f'{root} has images beside class folders, e.g. {paths[owners.index("")].name}'
      )
    if len(names) > 1 and _PARTS.issuperset(map(str.lower, names)):
      raise ValueError(
        f'{root} has the folders {", ".join(names)}, which are parts of a data set, not classes: give the one to train '
        'on, and the others by sources.with_held_out'
      )
    x, found = pictures.read_all(paths, reading)
    deeper = sum(len(p.relative_to(root).parts) > 2 for p in paths)
    if deeper:
      found['in folders below the class folders, which make no classes'] = deeper
    return Dataset(
      name=root.name,
      x=x,
      label=np.array([names.index(owner) for owner in owners], np.int32),
      levels=256,
      class_names=() if names == [''] else tuple(names),
      found=found | left_out,
    )

  return _source(root.name, load)


def tfds(name: str, data_dir: str | None = None, size: int | None = None) -> Source:
  """A prepared TensorFlow dataset of labelled images, read without TensorFlow; its test split is the test set.

  Args:
    name: the official name, e.g. 'mnist'.
    data_dir: where it was prepared; None for TFDS's own default.
    size: side in pixels to which images are reduced by averaging equal blocks; None keeps them.

  Raises:
    ValueError: (on load) an unknown name, or a data set that is not prepared in `data_dir` as array_record or has no
      images, classes or training split.
  """

  def read(workers: int | None) -> Dataset:
    builder = records.prepared(name, data_dir)
    parts = {
      split: records.of_split(builder, split, size, workers or 0)
      for split in ('train', 'test')
      if split in builder.info.splits
    }
    others = set(builder.info.splits) - set(parts)
    train = parts.pop('train')
    x, label = train.whole() if workers is None else (train, train.labels())
    return Dataset(
      name=name,
      x=x,
      label=label,
      levels=256,
      class_names=tuple(builder.info.features['label'].names),
      test=parts['test'].whole() if parts else None,
      note='' if size is None else f'images reduced to {size}x{size} by averaging blocks',
      found={'splits, left out': ', '.join(sorted(others))} if others else {},
      oriented=name in _ORIENTED,
    )

  return _source(name, lambda: read(None))._replace(stream=read)


def streamed(source: Source, workers: int = 0) -> Source:
  """The same data, which stays in its files: every batch is read when its turn comes, ahead of the step that takes it.

  For data that does not fit on the device. The batches are the same rows in the same order, so a run may be
  interrupted with one and resumed with the other. The training split is read through at every start: for its
  hashes, and again for each statistic that the experiment asks of it. The validation examples are held in memory.

  Args:
    source: from `tfds`.
    workers: processes that read; 0 reads with threads of the training process.

  Raises:
    ValueError: a source without files to read rows from, or Grain is not installed.
  """
  checks.integer('workers', workers, 0)
  if source.stream is None:
    raise ValueError(
      f'data {source.name!r} is held in memory: only a plain sources.tfds is streamed'
    )
  if importlib.util.find_spec('grain') is None:
    raise ValueError('streamed data is read by Grain, which is not installed: pip install grain')
  load = functools.partial(source.stream, workers)
  return _source(source.name, load)
