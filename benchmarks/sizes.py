"""The networks that the benchmarks of speed train, and images of noise to train them on; numbers alone."""

from typing import NamedTuple

import numpy as np


class Size(NamedTuple):
  """A U-Net and its batch; the names are those of `unet.unet`."""

  shape: tuple[int, int, int]
  width: int
  multipliers: tuple[int, ...]
  attention: tuple[int, ...]
  batch: int
  num_classes: int = 0
  blocks: int = 2
  dropout: float = 0.1


class Transformer(NamedTuple):
  """A diffusion transformer and its batch; the names are those of `dit.dit`."""

  shape: tuple[int, int, int]
  width: int
  depth: int
  heads: int
  patch: int
  batch: int
  num_classes: int = 0
  dropout: float = 0.0


SIZES = {
  'digits': Size((8, 8, 1), 32, (1, 2), (), 128, num_classes=10),  # 0.92M parameters
  'mnist': Size((28, 28, 1), 32, (1, 2, 2), (7,), 64, num_classes=10),  # width 32 of 64
  'cifar10': Size((32, 32, 3), 128, (1, 2, 2, 2), (16,), 8),  # DDPM's, 35.7M
}
DIT_B = Transformer((32, 32, 3), 768, 12, 12, 2, 128)  # DiT-B/2 on pixels, 130M
MIXTURE_BATCH, MIXTURE_PER_DISPATCH = 256, 50  # of `engine.mixture`, as its experiment's
STEPS_PER_DISPATCH = 10  # as the experiments of these networks dispatch; a test compares


def images(size: Size | Transformer, examples: int = 512) -> np.ndarray:
  """Noise as stored images: uint8 [examples, H, W, C]."""
  return np.random.default_rng(0).integers(0, 256, (examples, *size.shape)).astype(np.uint8)
