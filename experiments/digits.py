"""Handwritten digits, 8x8: a class-conditional DDPM with dropout, stopped early. The main job, and the file to copy.

Expect  validation/eps 0.232, test/eps 0.2321 [0.2271, 0.2370]; of 1,000 samples (guidance 1.5) 0.999 [0.994, 1.000] are
        recognized as their label by a classifier that gets 0.986 of real held-out digits right; memorized fraction
        0 [0, 0.004] beside a held-out null of 0 [0, 0.010]. 2 min 14 s in all on 2 quiet CPU cores, first
        compilation included. Seed 0, Python 3.12, jax 0.12.0.1, commit 452fd97.
Run     python -m experiments.digits --workdir=runs/digits
Smoke   python -m experiments.digits --workdir=runs/smoke --smoke
"""

import dataclasses

import diffusion
from diffusion import launch
from diffusion.data import augment, sources, splits
from diffusion.evaluation import gap, memorization, recognition
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

  patience: int = 200  # steps without a lower validation/eps
  width: int = 32
  multipliers: tuple[int, ...] = (1, 2)
  blocks: int = 2
  dropout: float = 0.1
  label_dropout: float = 0.1
  warmup_steps: int = 30
  final_learning_rate: float = 1e-4
  weight_decay: float = 1e-2
  guidance: float = 1.5  # 1 is none
  samples_per_class: int = 100
  validation_fraction: float = 0.1
  test_fraction: float = 0.1
  train_limit: int = 0
  synthetic: bool = False


SMOKE = Config(
  num_steps=20, batch_size=16, steps_per_dispatch=5, log_every=5, validate_every=10, width=8, blocks=1, warmup_steps=2,
  multipliers=(1,), sampling_steps=4, samples_per_class=2, synthetic=True,
)  # fmt: skip


def build(c: Config) -> diffusion.Experiment:
  """The experiment of these numbers."""
  rate = schedules.warmup_cosine(
    c.learning_rate, c.num_steps, c.warmup_steps, c.final_learning_rate
  )
  return diffusion.Experiment(
    **c.loop(),
    data=sources.real_or_synthetic(sources.digits(), c.synthetic, (8, 8, 1)),
    split=splits.Fractions(c.validation_fraction, c.test_fraction, c.train_limit),
    augment=augment.chain(augment.label_dropout(c.label_dropout)),
    diffusion=gaussian.Diffusion(
      noise.cosine(), marginals.variance_preserving, parameterizations.v()
    ),
    model=unet.unet(c.width, c.multipliers, c.blocks, (), c.dropout, num_classes=10),
    terms={'denoise': (1.0, losses.denoising(weights.uniform('v')))},
    optimizer=chains.adamw(rate, c.weight_decay, c.clip_norm),
    averages={'ema': averaging.ema(c.ema_decay)},
    callbacks=[
      callbacks.checkpoint(),
      callbacks.early_stopping(patience=c.patience),
      callbacks.divergence_guard(c.log_every),
    ],
    evaluation_noise=gap.evaluation_noise(draws=1),
    sampling=diffusion.Sampling(
      samplers.ddim, c.sampling_steps, c.guidance, grid_rows=8, per_class=c.samples_per_class
    ),
    metrics=[recognition.recognition(), memorization.nearest_neighbor_ratio()],
  )


if __name__ == '__main__':
  launch.run(build, Config(), SMOKE)
