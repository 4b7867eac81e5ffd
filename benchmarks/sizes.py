"""The networks that the benchmarks of speed train: those of the experiments, on images of noise."""

from typing import NamedTuple

import numpy as np

from diffusion.data import augment, sources
from diffusion.evaluation import gap
from diffusion.models import precision, unet
from diffusion.objectives import losses, times, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.training.experiment import Experiment
from experiments import cifar10, digits, mnist


class Size(NamedTuple):
  """A network and its batch; the names are those of `unet.unet`."""

  shape: tuple[int, int, int]
  width: int
  multipliers: tuple[int, ...]
  attention: tuple[int, ...]
  batch: int
  num_classes: int = 0
  blocks: int = 2
  dropout: float = 0.1


SIZES = {
  'digits': Size((8, 8, 1), 32, (1, 2), (), 128, num_classes=10),  # 0.92M parameters
  'mnist': Size((28, 28, 1), 32, (1, 2, 2), (7,), 64, num_classes=10),  # width 32 of 64
  'cifar10': Size((32, 32, 3), 128, (1, 2, 2, 2), (16,), 8),  # DDPM's, 35.7M
}
# As the experiments of these networks dispatch.
STEPS_PER_DISPATCH = {
  'digits': digits.Config.steps_per_dispatch,
  'mnist': mnist.Config.steps_per_dispatch,
  'cifar10': cifar10.Config.steps_per_dispatch,
}


def images(size: Size, examples: int = 512) -> np.ndarray:
  """Noise as stored images: uint8 [examples, H, W, C]."""
  return np.random.default_rng(0).integers(0, 256, (examples, *size.shape)).astype(np.uint8)


def experiment(size: Size, steps_per_dispatch: int, narrow: bool = False) -> Experiment:
  """The experiment of a size: what the peers do too, and no more; `narrow` computes in bfloat16."""
  x = images(size)
  model = unet.unet(
    size.width, size.multipliers, size.blocks, size.attention, size.dropout, size.num_classes
  )
  labels = np.zeros(len(x), np.int32)
  names = tuple(map(str, range(size.num_classes)))
  return Experiment(
    seed=0, num_steps=10**6, batch_size=size.batch, log_every=100 * steps_per_dispatch,
    validate_every=100 * steps_per_dispatch, steps_per_dispatch=steps_per_dispatch,
    data=sources.arrays('noise', x, labels, class_names=names),
    augment=augment.chain(),
    diffusion=gaussian.Diffusion(noise.cosine(), marginals.variance_preserving, parameterizations.v()),
    model=precision.bfloat16(model) if narrow else model,
    terms={'denoise': (1.0, losses.denoising(weights.uniform('v')))},
    times=times.uniform(),
    optimizer=chains.adamw(schedules.constant(2e-4), 1e-2, 1.0),
    averages={'ema': averaging.ema(0.999)}, judged='ema', callbacks=[], bank=gap.bank(draws=1),
  )  # fmt: skip
