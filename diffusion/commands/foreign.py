"""Samples that another program made: read from its files, and brought beside a run's data, or refused by name."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, Num

from diffusion.data import files, pipeline, sources
from diffusion.data.splits import SplitData
from diffusion.evaluation import features as features_

FilePath = str | pathlib.Path
Examples = Num[np.ndarray, ' n *shape']
_REMEDY = 'it is cut off, or no file of plain arrays; write it again with np.savez'
_DARK = 1 / 4  # of the data's brightest value: up to it, levels were taken for brightness
_FAR = 0.4  # of the data's range: an end so far from the data's is worth a warning


class Images(NamedTuple):
  """Images (or vectors) from a file.

  Attributes:
    x: as stored.
    label: of each; None where nobody says.
    levels: how many a stored value has; None for floats.
    said: the levels were said, not assumed.
  """

  x: Examples
  label: Integer[np.ndarray, ' n'] | None
  levels: int | None
  said: bool


def read(path: FilePath, class_names: Sequence[str], levels: int | None = None) -> Images:
  """Images of a folder, or of an .npz.

  Args:
    path: a folder of images, directly in it or in subfolders named as the classes; or an .npz with `images` (or
      `samples`, or one array) and perhaps `labels`, or with `arr_0` and `arr_1`, images and labels as ADM writes them:
      uint8 from 0 to 255 unless it holds `levels`, or float vectors.
    class_names: of the data they are compared with.
    levels: of a stored value, 2 to 256, in place of what the file says; None to go by the file.

  Raises:
    ValueError: nothing there, a file that cannot be read, several shapes, wrong types or ranges, or unknown classes.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix not in ('.npz', '.npy'):
    if path.is_file():
      raise ValueError(f'{path} is neither a folder of images nor an .npz')
    return _folder(path, class_names, levels)
  if not path.is_file():
    raise ValueError(f'no file {path}')
  if path.suffix == '.npy':
    arrays = {'images': files.array(path, _REMEDY)}
  else:
    arrays = files.arrays(path, _REMEDY)
  if set(arrays) == {'arr_0', 'arr_1'}:
    arrays = {'images': arrays['arr_0'], 'labels': arrays['arr_1']}
  label, stated = arrays.pop('labels', None), arrays.pop('levels', None)
  names = [name for name in ('images', 'samples') if name in arrays] or list(arrays)
  if len(names) != 1:
    raise ValueError(
      f'{path} must hold `images` or one array, it holds {", ".join(names) or "none"}: labels are called `labels`'
    )
  x = arrays[names[0]]
  if not x.size:
    raise ValueError(f'{path} holds no images: `{names[0]}` has shape {list(x.shape)}')
  _check(x, path)
  others = [n for n, one in arrays.items() if one.shape[:1] == x.shape[:1] and n != names[0]]
  if label is None and others:
    raise ValueError(
      f'{path} holds {others[0]!r}, one of each image, and no `labels`: call it so if these are the classes, or leave '
      'it out'
    )
  label = None if label is None else _labels(label, len(x), class_names, path)
  if x.ndim == 2:
    if levels is not None:
      raise ValueError(f'{path} holds vectors, which have no levels: leave --levels={levels} out')
    return Images(x, label, None, True)
  who = f'{path} says it has' if levels is None else f'{path}: --levels says there are'
  levels = _levels(stated, path) if levels is None else levels
  found = Images(x, label, levels or 256, levels is not None)
  if x.max() >= found.levels:
    raise ValueError(
      f'{who} {found.levels} levels, 0 to {found.levels - 1}, and it holds {x.max()}'
    )
  return found


def _folder(path: pathlib.Path, class_names: Sequence[str], levels: int | None) -> Images:
  found = sources.folder(str(path)).load()
  unknown = sorted(set(found.class_names) - set(class_names))
  if unknown:
    raise ValueError(
      f'{path} has a folder {unknown[0]!r}, the classes are {", ".join(class_names) or "none"}'
    )
  x, label = found.x, None
  if found.class_names:
    label = np.array([class_names.index(name) for name in found.class_names], np.int32)[found.label]
    # Class by class in turn, as runs draw them: metrics that look at a part then look at the same part.
    place = np.array([np.count_nonzero(label[:i] == own) for i, own in enumerate(label)])
    order = np.lexsort((label, place))
    x, label = x[order], label[order]
  if levels is not None and x.max() >= levels:
    raise ValueError(f'{path} holds brightness {x.max()}, which --levels={levels} does not have')
  return Images(x, label, levels or 256, levels is not None)


def _check(x: np.ndarray, path: pathlib.Path) -> None:
  try:
    features_.check_examples(x)
  except ValueError as error:
    remedy = ''
    if x.ndim == 3 and x.dtype == np.uint8:
      remedy = ': give gray images a channel, images[..., None]'
    elif x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[-1] not in (1, 3):
      remedy = ': put the channels last, images.transpose(0, 2, 3, 1)'
    raise ValueError(f'{path}: {error}{remedy}') from error


def _levels(stated: np.ndarray | None, path: pathlib.Path) -> int | None:
  if stated is None:
    return None
  if stated.size != 1 or stated.dtype.kind not in 'iuf' or stated.item() not in range(2, 257):
    raise ValueError(f'`levels` of {path} must be one whole number from 2 to 256, got {stated}')
  return int(stated.item())


def _labels(
  label: np.ndarray, count: int, class_names: Sequence[str], path: pathlib.Path
) -> Integer[np.ndarray, ' n'] | None:
  """One class each, whole numbers; None where the data has no classes, and the labels are all 0."""
  classes = len(class_names)
  if label.shape != (count,):
    remedy = ': one class each, a list of whole numbers'
    if label.shape == (count, 1):
      remedy += ', e.g. labels[:, 0]'
    elif label.shape == (count, classes):
      remedy += '; of one-hot rows that is labels.argmax(1)'
    raise ValueError(f'{path} holds {count} images and labels of shape {list(label.shape)}{remedy}')
  if label.dtype.kind not in 'iufb':
    raise ValueError(
      f'{path} has labels of type {label.dtype}: they must be the numbers of the classes, from 0'
    )
  known = (label == np.floor(label)) & (label >= 0) & (label < max(1, classes))
  if not known.all():
    row = int(np.argmin(known))
    have = f'{classes} classes, 0 to {classes - 1}' if classes else 'data, which has no classes'
    raise ValueError(f'{path}: label {label[row]:g} in row {row} is none of the {have}')
  return label.astype(np.int32) if classes else None


def alike(given: Images, split: SplitData, path: FilePath) -> tuple[Images, list[str]]:
  """The images with the data's channels, once their shape and range are known to be the data's.

  Args:
    given: as read.
    split: the data they are compared with.
    path: where they come from, for messages.

  Returns:
    (the images, what a reader must know).

  Raises:
    ValueError: another shape, color where the data is gray, or levels that seem to be taken for brightness.
  """
  given, notes = _channels(given, split.dataset, path)
  train, own = split.train_in_memory[0], split.units.levels
  if given.levels is None:
    return given, notes + _compare_vectors(given.x, train)
  low, high = (int(end) for end in _brightness(given.x, given.levels))
  dark, bright = (int(end) for end in _brightness(train, own))
  ranges = f'brightness {low} to {high}, {split.dataset.name} {dark} to {bright}'
  if not given.said and high <= _DARK * bright:
    levels = own if given.x.max() < own < 256 else int(given.x.max()) + 1
    raise ValueError(
      f'{path} holds {ranges}, 1/{bright / max(high, 1):.3g} of its range: if these are levels, say how many with '
      f'--levels={levels} (or `levels` in the .npz), if the images are that dark, --levels=256'
    )
  far = _FAR * (bright - dark)
  if bright - high > far or high - bright > far or low - dark > far or dark - low > far:
    notes = [*notes, f'WARNING: the images have {ranges}: are they scaled alike?']
  return given, notes


def _channels(given: Images, data: sources.Dataset, path: FilePath) -> tuple[Images, list[str]]:
  x, wanted = given.x, data.x.shape[1:]
  if x.shape[1:] == wanted:
    return given, []
  if x.ndim == 4 and x.shape[1:3] == wanted[:2] and {x.shape[-1], wanted[-1]} == {1, 3}:
    if wanted[-1] == 3:  # theirs have one
      return given._replace(x=x.repeat(3, axis=-1)), [
        'gray images, taken as color of equal channels'
      ]
    colored = (x != x[..., :1]).any((1, 2, 3))
    if not colored.any():
      return given._replace(x=x[..., :1]), ['gray images stored as color: one channel was taken']
    raise ValueError(
      f'{path} holds color in {colored.sum()} of {len(x)} images, and {data.name} is gray: convert them to gray first, '
      "e.g. Image.convert('L')"
    )
  raise ValueError(
    f'{path} holds examples of shape {list(x.shape[1:])}, {data.name} has {list(wanted)}'
  )


def _brightness(x: Examples, levels: int) -> Examples:
  """The least and the greatest, from 0 to 255."""
  return pipeline.to_uint8(np.array([x.min(), x.max()], np.uint8), levels)


def _compare_vectors(x: Examples, data: Examples) -> list[str]:
  """A warning where the numbers cannot be in the same units: a spread or a distance four times off."""
  spread, own = float(data.std()), float(x.std())
  apart = abs(float(x.mean()) - float(data.mean()))
  if spread / 4 <= own <= 4 * spread and apart <= 4 * spread:
    return []
  return [
    f'WARNING: the samples have mean {x.mean():.3g} and standard deviation {own:.3g}, the data {data.mean():.3g} and '
    f"{spread:.3g}: are they in the data's units?"
  ]
