"""MNIST, 28x28: variational diffusion. A learned noise schedule, the variational bound, bits per dimension.

Run     python -m experiments.mnist_vdm --workdir=runs/mnist_vdm --config.data_dir=~/tensorflow_datasets
Smoke   python -m experiments.mnist_vdm --workdir=runs/smoke --smoke

Expect  Not yet run in full: it wants a GPU. A REDUCED run (width 16 for 64, 1,000 steps of 64 images, 1.1 epochs)
        reached a bound of 1.868 [1.833, 1.904] bits/dim on 500 held-out images (1.903 [1.868, 1.939] on training
        ones), validation/eps 0.0719, test/eps 0.07057 [0.07026, 0.07088]; the schedule evened out what the noise
        levels add to the bound. Samples are strokes, few of them digits. 28 minutes on 2 CPU cores that two other
        jobs shared; seed 0, commit 2bf9cd9, printed by
          python -m experiments.mnist_vdm --workdir=runs/mnist_vdm --config.data_dir=DIR --config.width=16
            --config.batch_size=64 --config.num_steps=1000 --config.log_every=20 --config.validate_every=500
            --config.validation_fraction=0.004 --config.learning_rate=0.002 --config.warmup_steps=50
            --config.ema_decay=0.99 --config.samples=64 --config.likelihood_examples=500

Kingma et al. (2021) on the U-Net of `experiments.mnist`, without labels: the bound is the objective, and the schedule
between its fixed ends is trained to lower the variance of its estimate.

The data is prepared once, without TensorFlow, by `python -m diffusion.commands.prepare mnist --data_dir=...`.
"""

import dataclasses

import diffusion
from diffusion import launch
from diffusion.data import sources, splits
from diffusion.evaluation import bits_per_dim, gap, memorization
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
  num_steps: int = 20_000
  log_every: int = 50
  validate_every: int = 500
  validation_fraction: float = 0.02
  patience: int = 5_000
  width: int = 64
  multipliers: tuple[int, ...] = (1, 2, 2)
  blocks: int = 2
  dropout: float = 0.1
  log_snr_min: float = -9.0
  log_snr_max: float = 13.3
  learning_rate: float = 5e-4
  warmup_steps: int = 500
  final_learning_rate: float = 1e-5
  weight_decay: float = 1e-2
  ema_decay: float = 0.999
  sampling_steps: int = 50
  samples: int = 100
  likelihood_examples: int = 1000
  synthetic: bool = False


SMOKE = Config(
  num_steps=4, batch_size=8, steps_per_dispatch=1, log_every=2, validate_every=4, width=8, blocks=1,
  multipliers=(1,),
  warmup_steps=1, validation_fraction=0.2, sampling_steps=2, samples=4, likelihood_examples=8, synthetic=True,
)  # fmt: skip


def build(c: Config) -> diffusion.Experiment:
  """The experiment of these numbers."""
  real = sources.tfds('mnist', c.data_dir or None)
  rate = schedules.warmup_cosine(
    c.learning_rate, c.num_steps, c.warmup_steps, c.final_learning_rate
  )
  return diffusion.Experiment(
    **c.loop(),
    data=sources.unlabelled(sources.real_or_synthetic(real, c.synthetic, (28, 28, 1), 64)),
    split=splits.Fractions(c.validation_fraction),
    diffusion=gaussian.Diffusion(
      noise.learned(c.log_snr_min, c.log_snr_max),
      marginals.variance_preserving,
      parameterizations.v(),
    ),
    model=unet.unet(c.width, c.multipliers, c.blocks, (7,), c.dropout),
    terms={'denoise': (1.0, losses.weighted_bound(weights.uniform()))},
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
      samplers.ancestral, c.sampling_steps, grid_rows=64, per_class=c.samples
    ),
    metrics=[
      bits_per_dim.likelihood(c.likelihood_examples),
      memorization.nearest_neighbor_ratio(),
    ],
  )


if __name__ == '__main__':
  launch.run(build, Config(), SMOKE)
