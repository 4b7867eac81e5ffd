"""CIFAR-10, 32x32: the full DDPM recipe, 35.7M parameters, on a GPU or a TPU.

Expect  Not yet run in full: it takes hours on a GPU or a TPU. Only --smoke has been run, on a CPU.
Run     python -m experiments.cifar10 --workdir=runs/cifar10 --config.data_dir=~/tensorflow_datasets
Smoke   python -m experiments.cifar10 --workdir=runs/smoke --smoke

The data is prepared once, without TensorFlow, by `python -m diffusion.commands.prepare cifar10 --data_dir=...`.

The recipe is that of Ho et al. (2020), appendix B: linear betas, eps-prediction, uniform weight, Adam at 2e-4 with
5,000 steps of warm-up, batch 128, 800,000 steps, dropout 0.1, horizontal flips, EMA 0.9999, clipping at 1, ancestral
sampling in 1,000 steps. What differs: time is continuous and its draws are stratified, 2 % of the training images are
held out for validation, and the network embeds log-SNR. DDPM's optimizer had no weight decay, nor has this.
"""

import dataclasses

import diffusion
from diffusion import launch
from diffusion.data import augment, sources, splits
from diffusion.evaluation import gap, memorization
from diffusion.models import unet
from diffusion.objectives import losses, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.sampling import samplers
from diffusion.training import callbacks


@dataclasses.dataclass
class Config(diffusion.Numbers):
  """The numbers beside those common to all experiments; every one is a flag, e.g. --config.dropout=0.2."""

  data_dir: str = ''
  num_steps: int = 800_000
  log_every: int = 100
  validate_every: int = 5_000
  validation_fraction: float = 0.02
  patience: int = 200_000
  width: int = 128
  multipliers: tuple[int, ...] = (1, 2, 2, 2)
  blocks: int = 2
  dropout: float = 0.1
  learning_rate: float = 2e-4
  warmup_steps: int = 5_000
  weight_decay: float = 0.0
  ema_decay: float = 0.9999
  sampling_steps: int = 1_000
  samples: int = 1_000
  grid_rows: int = 64
  synthetic: bool = False


SMOKE = Config(
  num_steps=2, batch_size=4, steps_per_dispatch=1, log_every=2, validate_every=2, width=8, blocks=1,
  multipliers=(1,),
  warmup_steps=1, validation_fraction=0.2, sampling_steps=2, samples=4, grid_rows=4, synthetic=True,
)  # fmt: skip


def build(c: Config) -> diffusion.Experiment:
  """The experiment of these numbers."""
  real = sources.tfds('cifar10', c.data_dir or None)
  return diffusion.Experiment(
    **c.loop(),
    data=sources.unlabelled(sources.real_or_synthetic(real, c.synthetic, (32, 32, 3), 64)),
    split=splits.Fractions(c.validation_fraction),
    augment=augment.chain(augment.flip()),
    diffusion=gaussian.Diffusion(
      noise.linear_beta(), marginals.variance_preserving, parameterizations.eps()
    ),
    model=unet.unet(c.width, c.multipliers, c.blocks, (16,), c.dropout),
    terms={'denoise': (1.0, losses.denoising(weights.uniform('eps')))},
    optimizer=chains.adamw(
      schedules.warmup_constant(c.learning_rate, c.warmup_steps), c.weight_decay, c.clip_norm
    ),
    averages={'ema': averaging.ema(c.ema_decay)},
    callbacks=[
      callbacks.checkpoint(),
      callbacks.early_stopping(patience=c.patience),
      callbacks.divergence_guard(c.log_every),
    ],
    evaluation_noise=gap.evaluation_noise(draws=1),
    sampling=diffusion.Sampling(
      samplers.ancestral, c.sampling_steps, grid_rows=c.grid_rows, per_class=c.samples
    ),
    metrics=[memorization.nearest_neighbor_ratio(mirrored=True)],
  )


if __name__ == '__main__':
  launch.run(build, Config(), SMOKE)
