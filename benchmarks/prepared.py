"""A TFDS set of noise, where a benchmark or a test reads files and there is no MNIST."""

import pathlib
import struct

import numpy as np

from diffusion.data import prepare


def noise_as_mnist(
  folder: pathlib.Path, train: int, test: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """MNIST's official files with random images, prepared in folder / 'sets'; split -> (images, labels)."""
  random, written = np.random.default_rng(3), {}
  (folder / 'raw').mkdir()
  for split, stem, n in (('train', 'train', train), ('test', 't10k', test)):
    x = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    label = random.integers(0, 10, n, dtype=np.uint8)
    for name, array in (('images-idx3', x), ('labels-idx1', label)):
      head = struct.pack(f'>I{array.ndim}I', 0x800 + array.ndim, *array.shape)
      (folder / 'raw' / f'{stem}-{name}-ubyte').write_bytes(head + array.tobytes())
    written[split] = x, label
  prepare.prepare('mnist', folder / 'sets', folder / 'raw', allow_partial=True)
  return written
