"""What distances between sets of images are measured on: functions images -> [n, f] with a name and a hash.

A distance is a number of its features as much as of the samples, so both stand in its name.
"""

import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Num

from diffusion import devices, processes
from diffusion.data import files
from diffusion.reporting import encoding

Shown = Num[np.ndarray, ' n *shape']
Embedded = Float32[np.ndarray, 'n f']


class Features(NamedTuple):
  """A function of examples with the name and hash that its distances carry.

  Attributes:
    name: of the network and its layer.
    digest: the first digits of the SHA-256 of its weights; '' without weights.
    width: f; 0 if it is the examples' own number of values.
    apply: uint8 images [n, h, w, c] (brightness 0 to 255), or float vectors [n, d] -> features.
    call: the same -> class probabilities [n, k], where they are a classifier's.
    shape: of the images that the classifier takes.
    note: what a reader of its distances must know; '' for nothing.
    refuses: shape of an example -> why there are no such features of it; '' where there are.
  """

  name: str
  digest: str
  width: int
  apply: Callable[[Shown], Embedded]
  call: Callable[[Shown], Float32[np.ndarray, 'n k']] | None = None
  shape: tuple[int, ...] | None = None
  note: str = ''
  refuses: Callable[[tuple[int, ...]], str] = lambda shape: ''


def label(features: Features) -> str:
  """Name and hash, as they stand in a distance's name."""
  return f'{features.name}, {features.digest}' if features.digest else features.name


def distance_name(features: Features) -> str:
  """'FD(name, hash)'; 'FID' for the standard Inception weights alone."""
  return 'FID' if features.name == 'inception-v3 pool' else f'FD({label(features)})'


def width(features: Features, shape: tuple[int, ...]) -> int:
  """The number of features of an example of this shape."""
  return features.width or int(np.prod(shape))


def check_examples(x: Shown) -> None:
  """Whether x is uint8 images [n, h, w, c], c in {1, 3}, or finite float vectors [n, d].

  Raises:
    ValueError: it is neither.
  """
  if x.ndim == 4 and x.shape[-1] in (1, 3):
    if x.dtype != np.uint8:
      raise ValueError(
        f'images must be uint8 from 0 to 255, got {x.dtype} in [{x.min():g}, {x.max():g}]: '
        'scale them to 0 ... 255 and round'
      )
  elif x.ndim != 2 or x.dtype.kind != 'f' or not np.isfinite(x).all():
    raise ValueError(
      f'examples must be uint8 images [B, H, W, 1 or 3] or finite float vectors [B, d], got {x.dtype} {list(x.shape)}'
    )


_VERSION = 1  # to be raised when a change of code changes what networks make of images


def remembered(features: Features, x: Shown) -> Embedded:
  """Features of examples, read from disk where the same features of the same examples were computed before.

  They lie in $DIFFUSION_FEATURES, or ~/.cache/diffusion/features, under the name and hash of the features, the kind of
  device, and the SHA-256 of the examples.
  """
  default = pathlib.Path.home() / '.cache' / 'diffusion' / 'features'
  folder = pathlib.Path(os.environ.get('DIFFUSION_FEATURES') or default)
  content = hashlib.sha256(f'{x.dtype} {x.shape}'.encode())
  content.update(np.ascontiguousarray(x))
  kind = devices.describe()['platform']
  name = f'{features.name} {features.digest} {kind} v{_VERSION}'.replace(' ', '-')
  path = folder / f'{name}-{content.hexdigest()[:24]}.npy'
  kept = _kept(path)
  # Else none of several processes takes what it has: computing takes all.
  if processes.gather(np.asarray(kept is not None)).all():
    return kept
  found = features.apply(x)
  if kept is None:  # hosts may have a cache each
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, found)
    encoding.write(path, content.getvalue())
    encoding.write(path.with_suffix('.sha256'), _line(path).encode())
  return found


def _kept(path: pathlib.Path) -> Embedded | None:
  """What was kept there; None where nothing was, or, which is said, where it is not what was written."""
  if not path.is_file():
    return None
  beside = path.with_suffix('.sha256')
  if beside.is_file() and beside.read_bytes() == _line(path).encode():
    return files.array(path, 'remove it, and it is computed again')
  print(f'{path} is not as it was written: its features are computed again', flush=True)
  return None


def _line(path: pathlib.Path) -> str:
  """What `sha256sum` says of a file."""
  with path.open('rb') as file:
    return f'{hashlib.file_digest(file, "sha256").hexdigest()}  {path.name}\n'


@functools.cache  # one function, so that what is computed of it is computed once
def pixels() -> Features:
  """The numbers themselves: brightness / 255 of images of any number of channels, vectors as they are."""

  def apply(x: Shown) -> Embedded:
    if x.ndim != 4 or x.dtype != np.uint8:
      check_examples(x)
    flat = x.reshape(len(x), -1).astype(np.float32)
    return flat / 255 if x.dtype == np.uint8 else flat

  return Features('pixels', '', 0, apply)
