"""MNIST, 28x28: rectified flow. Straight lines from data to noise, velocity prediction, Euler.

Run     python -m experiments.mnist_flow --workdir=runs/mnist_flow --config.data_dir=~/tensorflow_datasets
Smoke   python -m experiments.mnist_flow --workdir=runs/smoke --smoke

Expect  Not yet run in full: it wants a GPU. A REDUCED run (width 16 for 64, 1,000 steps of 64 images, 1.1 epochs)
        reached validation/eps 0.145 and test/eps 0.14313 [0.14273, 0.14353], 0 of 200 samples memorized, 100
        evaluations a sample with guidance; nearly all samples can be read as their class. 16.6 minutes on 2 CPU
        cores that other work shared; seed 0, commit 2bf9cd9, printed by
          python -m experiments.mnist_flow --workdir=runs/mnist_flow --config.data_dir=DIR --config.width=16
            --config.batch_size=64 --config.num_steps=1000 --config.log_every=20 --config.validate_every=500
            --config.validation_fraction=0.004 --config.learning_rate=0.002 --config.warmup_steps=50
            --config.ema_decay=0.99 --config.samples_per_class=20

Liu et al. (2023) on the U-Net of `experiments.mnist`, with the logit-normal times of Esser et al. (2024).

The data is prepared once, without TensorFlow, by `python -m diffusion.commands.prepare mnist --data_dir=...`.
"""

import dataclasses

import diffusion
from diffusion import launch
from diffusion.data import augment, sources, splits
from diffusion.evaluation import gap, memorization
from diffusion.models import unet
from diffusion.objectives import losses, times, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.sampling import solvers
from diffusion.training import callbacks


@dataclasses.dataclass
class Config(diffusion.Numbers):
  """The numbers beside those common to all experiments; every one is a flag, e.g. --config.dropout=0.2."""

  data_dir: str = ''
  num_steps: int = 20_000
  log_every: int = 50
  validate_every: int = 500
  validation_fraction: float = 0.02
  patience: int = 5_000
  width: int = 64
  multipliers: tuple[int, ...] = (1, 2, 2)
  blocks: int = 2
  dropout: float = 0.1
  label_dropout: float = 0.1
  shift: int = 2
  learning_rate: float = 5e-4
  warmup_steps: int = 500
  final_learning_rate: float = 1e-5
  weight_decay: float = 1e-2
  time_mean: float = 0.0
  time_deviation: float = 1.0
  ema_decay: float = 0.999
  guidance: float = 1.5
  sampling_steps: int = 50
  samples_per_class: int = 100
  synthetic: bool = False


SMOKE = Config(
  num_steps=4, batch_size=8, steps_per_dispatch=1, log_every=2, validate_every=4, width=8, blocks=1,
  multipliers=(1,),
  warmup_steps=1, validation_fraction=0.2, sampling_steps=2, samples_per_class=1, synthetic=True,
)  # fmt: skip


def build(c: Config) -> diffusion.Experiment:
  """The experiment of these numbers."""
  real = sources.tfds('mnist', c.data_dir or None)
  rate = schedules.warmup_cosine(
    c.learning_rate, c.num_steps, c.warmup_steps, c.final_learning_rate
  )
  return diffusion.Experiment(
    **c.loop(),
    data=sources.real_or_synthetic(real, c.synthetic, (28, 28, 1), 64),
    split=splits.Fractions(c.validation_fraction),
    augment=augment.chain(augment.shift(c.shift), augment.label_dropout(c.label_dropout)),
    diffusion=gaussian.Diffusion(
      noise.rectified_flow(), marginals.rectified_flow, parameterizations.velocity()
    ),
    model=unet.unet(c.width, c.multipliers, c.blocks, (7,), c.dropout, num_classes=10),
    terms={'denoise': (1.0, losses.denoising(weights.uniform('velocity')))},
    times=times.logit_normal(c.time_mean, c.time_deviation),
    optimizer=chains.adamw(rate, c.weight_decay, c.clip_norm),
    averages={'ema': averaging.ema(c.ema_decay)},
    callbacks=[
      callbacks.checkpoint(),
      callbacks.early_stopping(patience=c.patience),
      callbacks.divergence_guard(c.log_every),
      callbacks.sample_grid(c.validate_every),
    ],
    evaluation_noise=gap.evaluation_noise(draws=1),
    sampling=diffusion.Sampling(
      solvers.euler, c.sampling_steps, c.guidance, grid_rows=8, per_class=c.samples_per_class
    ),
    metrics=[memorization.nearest_neighbor_ratio()],
  )


if __name__ == '__main__':
  launch.run(build, Config(), SMOKE)
