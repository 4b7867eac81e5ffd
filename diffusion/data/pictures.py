"""Pictures as people have them: which files of a folder are images, and the pixels that a viewer would show of each."""

import collections
import concurrent.futures
import os
import pathlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num, UInt8

from diffusion.naming import printable

_IDENTIFIED_ONLY = {'BUFR', 'GRIB', 'HDF5', 'MPEG', 'WMF'}  # Pillow knows them, and reads none
_NOT_THE_USERS = {'__MACOSX', '@eaDir'}  # which archives of a Mac and disks of Synology add
_DEEP_RAW = re.compile(r'(?!(BGR|RGB);1[56]$).*;(16|32)')  # raw modes, but 5 and 6 bits a channel
_DEPTHS = (10, 12, 14, 16)
_FRAMES = 'of several frames, the first taken'
_NAMED = 3  # files of a kind that a summary names

Pixels = UInt8[np.ndarray, 'h w c']


class Reading(NamedTuple):
  """How images become pixels.

  Attributes:
    size: side to which each is center-cropped and resized; None keeps it.
    background: brightness, 0 to 255, that is seen through transparent pixels.
    white: value shown as white in images of more than 8 bits a channel; None refuses them.
  """

  size: int | None = None
  background: int = 255
  white: float | None = None


class Picture(NamedTuple):
  """One image: uint8 [h, w, c], c being 1 or 3, and what was done to it, in words."""

  pixels: Pixels
  changes: tuple[str, ...]


def find(root: pathlib.Path) -> tuple[list[pathlib.Path], dict[str, int | str]]:
  """The image files below a folder in order, links to folders followed, and what was left out: reason -> how many.

  Files and folders whose names begin with a dot are left out, and what has no suffix of a format that Pillow reads
  (those of plugins that the program has imported included).

  Args:
    root: the folder.

  Raises:
    ValueError: a name that is not UTF-8. OSError: a folder that cannot be read.
  """
  from PIL import Image

  known = Image.registered_extensions()  # the call imports the plugins that Image.OPEN lists
  suffixes = {
    one for one, form in known.items()
    if (form in Image.OPEN or form == 'MPO') and form not in _IDENTIFIED_ONLY
  }  # fmt: skip
  images, hidden, others = [], 0, collections.Counter()
  empty = set()
  for folder, below, names in _walk(root):
    mine = [name for name in names if not _is_hidden(name)]
    hidden += len(names) - len(mine) + sum(map(_is_hidden, below))
    for name in mine:
      suffix = pathlib.Path(name).suffix.lower()
      if suffix in suffixes:
        images.append(folder / name)
      else:
        others[printable(suffix) or 'without a suffix'] += 1
    if folder.parent == root:
      empty.add(folder.name)
  for path in images:
    _check_name(path)
  empty -= {path.relative_to(root).parts[0] for path in images}
  left_out = {
    'hidden, left out': hidden,
    'of no format that Pillow reads, left out': ', '.join(
      f'{name} {count}' for name, count in sorted(others.items())
    ),
    'folders without an image': some(sorted(empty)),
  }
  return sorted(images), {reason: count for reason, count in left_out.items() if count}


def _walk(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, list[str], list[str]]]:
  """(folder, folders in it, files in it) of each that is not hidden; a link back to where it came from is not taken."""

  def refuse(error: OSError) -> None:
    raise error

  above = {root: frozenset()}  # of a folder to be walked, where those on the way to it really are
  for place, below, names in os.walk(root, followlinks=True, onerror=refuse):
    folder = pathlib.Path(place)
    yield folder, list(below), names
    real = folder.resolve()
    way = above.pop(folder) | {real, *real.parents}
    below[:] = [
      name for name in below if not _is_hidden(name) and (folder / name).resolve() not in way
    ]
    above |= {folder / name: way for name in below}


def _is_hidden(name: str) -> bool:
  return name.startswith('.') or name in _NOT_THE_USERS


def _check_name(path: pathlib.Path) -> None:
  """Raises ValueError for a name that is not UTF-8: no record could hold it."""
  try:
    str(path).encode()
  except UnicodeEncodeError:
    raise ValueError(
      f'the name {os.fsencode(path)!r} is not UTF-8: rename it, e.g. with convmv'
    ) from None


def some(names: Sequence[str]) -> str:
  """The first few of some names, and how many more there are; '' for none."""
  more = len(names) - _NAMED
  return ', '.join(map(printable, names[:_NAMED])) + (f' and {more} more' if more > 0 else '')


def in_order(names: set[str]) -> list[str]:
  """Class names in the order of the alphabet; where they differ by a number alone, in that of the numbers."""
  parts = {name: re.fullmatch(r'(\D*)(\d+)(\D*)', name) for name in names}
  if not all(parts.values()) or len({part.group(1, 3) for part in parts.values()}) != 1:
    return sorted(names)
  return sorted(names, key=lambda name: (int(parts[name][2]), name))


def read(path: pathlib.Path, reading: Reading) -> Picture:
  """An image file as a viewer shows it.

  Turned as its EXIF orientation says; what is transparent stands on the background; of several frames the first; color
  profiles are not applied. Gray, black and white, and a palette of grays have one channel, all else three.

  Args:
    path: the file.
    reading: how it becomes pixels.

  Raises:
    ValueError: naming the file, one that cannot be read, is too large, or has more than 8 bits a channel and no white.
  """
  from PIL import Image

  try:
    with Image.open(path) as opened:
      return _decoded(opened, path, reading)
  except Image.DecompressionBombError as error:
    size = str(error).partition(',')[0]
    raise ValueError(
      f'{path} is too large: {size}: make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS where you trust it'
    ) from None
  except Exception as error:  # noqa: BLE001 - whatever a damaged file makes its readers raise
    remedy = '' if isinstance(error, ValueError) else ': mend it, or take it out of the folder'
    raise ValueError(f'cannot read image {path}: {error or type(error).__name__}{remedy}') from None


def _decoded(opened: Any, path: pathlib.Path, reading: Reading) -> Picture:
  """What `read` returns, of an open image of Pillow."""
  from PIL import ExifTags, Image, ImageOps

  changes, bits = [], _bits(opened, path)
  if opened.format != 'MPO' and getattr(opened, 'is_animated', False):
    changes.append(_FRAMES)  # those of a phone's MPO are one picture
  if opened.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):  # a TIFF forgets it
    changes.append('turned upright as EXIF says')
  image = ImageOps.exif_transpose(opened)
  if bits > 8:
    image = _reduced(image, bits, reading.white)
    changes.append(f'reduced from more than 8 bits, white being {reading.white:g}')
  image, is_seen_through = _on_background(image, reading.background)
  if is_seen_through:
    changes.append(f'transparent, put on brightness {reading.background}')
  gray = image.mode in ('1', 'L') or (image.mode == 'P' and _is_gray(image.convert('RGB')))
  image = image.convert('L' if gray else 'RGB')
  if reading.size is not None:
    side = min(image.size)
    if side < reading.size:
      changes.append(f'smaller than {reading.size} pixels, enlarged')
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    image = image.resize((reading.size, reading.size), Image.LANCZOS)
  pixels = np.asarray(image, np.uint8)
  return Picture(pixels[..., None] if gray else pixels, tuple(changes))


def _bits(opened: Any, path: pathlib.Path) -> int:
  """Bits a channel in the file, whatever Pillow makes of them."""
  if opened.mode in ('I', 'F'):
    return 32
  given = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in opened.tile]
  raw = [one for args in given for one in args if isinstance(one, str)]
  if opened.mode.startswith('I;16') or any(map(_DEEP_RAW.match, raw)):
    return 16
  if opened.format == 'PPM':
    return max(one.bit_length() for args in given for one in (0, *args[1:]) if isinstance(one, int))
  if opened.format not in ('JPEG2000', 'AVIF'):
    return 8
  with path.open('rb') as file:
    head = file.read(1 << 16)
  size, av1 = head.find(b'\xff\x4f\xff\x51'), head.find(b'av1C')
  if opened.format == 'JPEG2000' and size >= 0:
    return (head[size + 42] & 0x7F) + 1
  if opened.format == 'AVIF' and av1 >= 0:
    return (12 if head[av1 + 6] & 0x20 else 10) if head[av1 + 6] & 0x40 else 8
  return 8


def _reduced(image: Any, bits: int, white: float | None) -> Any:
  """An image of more than 8 bits a channel with 8, `white` becoming 255; raises ValueError without one that fits."""
  from PIL import Image

  if not image.mode.startswith(('I', 'F')):  # Pillow has reduced color by itself
    full = 2**bits - 1
    if white != full:
      raise ValueError(
        f'it has {bits} bits a channel, of which Pillow reads 8: say sources.folder(..., white={full}) to take these, '
        'or convert it'
      )
    return image
  values = np.asarray(image).astype(np.float64)
  if not np.isfinite(values).all():
    raise ValueError('it has values that are not finite: convert it')
  low, high = float(values.min()), float(values.max())
  said = f'it has more than 8 bits a channel, and values from {low:g} to {high:g}'
  if white is None:
    whole = high > 1 and (values == np.rint(values)).all()
    likely = next((2**n - 1 for n in _DEPTHS if high < 2**n), high) if whole else max(high, 1)
    raise ValueError(
      f'{said}: say which is white in the experiment, e.g. sources.folder(..., white={likely:g}), or convert it'
    )
  if not (low >= 0 and high <= white) or image.has_transparency_data:
    more = 'and transparency' if low >= 0 and high <= white else f'outside of 0 to white={white:g}'
    raise ValueError(f'{said}, {more}: say another white, or convert it')
  return Image.fromarray(_to_levels(values, white))


def _to_levels(values: Num[np.ndarray, 'h w'], white: float) -> UInt8[np.ndarray, 'h w']:
  return np.rint(values * 255 / white).astype(np.uint8)


def _on_background(image: Any, brightness: int) -> tuple[Any, bool]:
  """The image without transparency, and whether any of it was to be seen through."""
  from PIL import Image

  if not image.has_transparency_data:
    return image, False
  gray = image.mode in ('1', 'L', 'LA', 'La')
  whole = (image.convert('LA') if image.mode == 'La' else image).convert('RGBA')
  seen_through = whole.getchannel('A').getextrema()[0] < 255
  under = Image.new('RGBA', whole.size, (brightness,) * 3 + (255,))
  flat = Image.alpha_composite(under, whole).convert('RGB')
  gray = gray or (image.mode in ('P', 'PA') and _is_gray(flat))
  return flat.convert('L') if gray else flat, seen_through


def _is_gray(image: Any) -> bool:
  pixels = np.asarray(image)
  return bool((pixels[..., :1] == pixels).all())


def read_all(
  paths: Sequence[pathlib.Path], reading: Reading
) -> tuple[UInt8[np.ndarray, 'n h w c'], dict[str, int | str]]:
  """Image files as one array, gray ones in color where any is in color, and what was done: change -> to how many.

  Args:
    paths: at least one.
    reading: how each becomes pixels.

  Raises:
    ValueError: as `read` does, or images of several sizes.
  """
  from PIL import Image

  with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor() as pool:
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # of half of what is refused
    pictures = list(pool.map(lambda path: read(path, reading), paths))
  sizes = {picture.pixels.shape[:2] for picture in pictures}
  if len(sizes) > 1:
    shown = ', '.join(f'{h}x{w}' for h, w in sorted(sizes)[:4])
    raise ValueError(f'images of several sizes (height x width), {shown}: give size=')
  channels = max(picture.pixels.shape[2] for picture in pictures)
  changed = collections.defaultdict(list)
  for path, picture in zip(paths, pictures, strict=True):
    is_made_color = picture.pixels.shape[2] < channels
    for change in picture.changes + ('gray among color, made color',) * is_made_color:
      changed[change].append(path.name)
  found = {'images': len(pictures)} | {what: len(changed[what]) for what in sorted(changed)}
  if _FRAMES in changed:
    found[_FRAMES] = f'{found[_FRAMES]} ({some(changed[_FRAMES])})'
  shape = (*pictures[0].pixels.shape[:2], channels)
  return np.stack([np.broadcast_to(picture.pixels, shape) for picture in pictures]), found
