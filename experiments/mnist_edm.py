"""MNIST, 28x28: EDM. Noise added to unscaled data, preconditioned network, log-normal noise levels, Heun.

Run     python -m experiments.mnist_edm --workdir=runs/mnist_edm --config.data_dir=~/tensorflow_datasets
Smoke   python -m experiments.mnist_edm --workdir=runs/smoke --smoke

Expect  Not yet run in full: it wants a GPU. A REDUCED run (width 16 for 64, 1,000 steps of 64 images, 1.1 epochs)
        reached validation/eps 0.0746 and test/eps 0.07303 [0.07269, 0.07338], 0 of 200 samples memorized, 70
        evaluations a sample with guidance; two thirds of the samples can be read as their class. 14.5 minutes on 2
        CPU cores that other work shared; seed 0, commit 2bf9cd9, printed by
          python -m experiments.mnist_edm --workdir=runs/mnist_edm --config.data_dir=DIR --config.width=16
            --config.batch_size=64 --config.num_steps=1000 --config.log_every=20 --config.validate_every=500
            --config.validation_fraction=0.004 --config.learning_rate=0.002 --config.warmup_steps=50
            --config.ema_decay=0.99 --config.samples_per_class=20

Karras et al. (2022), table 1: beside `experiments.mnist` the schedule, process, parameterization, loss weight, draw of
t and sampler are theirs, all else is the same. 18 steps of Heun are 35 evaluations. sigma_data is measured:
`--dry_run` prints it.

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
from diffusion.sampling import grids, solvers
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
  sigma_data: float = 0.616
  log_sigma_mean: float = -1.2
  log_sigma_deviation: float = 1.2
  ema_decay: float = 0.999
  guidance: float = 1.5
  sampling_steps: int = 18
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
      noise.edm(), marginals.variance_exploding, parameterizations.edm(c.sigma_data)
    ),
    model=unet.unet(c.width, c.multipliers, c.blocks, (7,), c.dropout, num_classes=10),
    terms={'denoise': (1.0, losses.denoising(weights.edm(c.sigma_data)))},
    times=times.log_normal(c.log_sigma_mean, c.log_sigma_deviation),
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
      solvers.heun,
      c.sampling_steps,
      c.guidance,
      wrappers=(),
      grid_rows=8,
      per_class=c.samples_per_class,
      grid=grids.karras,
    ),  # fmt: skip
    metrics=[memorization.nearest_neighbor_ratio()],
  )


if __name__ == '__main__':
  launch.run(build, Config(), SMOKE)
