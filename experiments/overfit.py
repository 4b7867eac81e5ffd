"""A hundred handwritten digits: what comes first, the gap, the best held-out loss, or the copies? Plain or regularized.

Protocol, fixed before the runs: 8x8 digits, n = 100 training examples in balance, another hundred for every seed (the
        held-out ones stay), 2,500 steps of 32 (a pilot with seed 0 gave the length), constant rate, no early stopping;
        every 100 steps 200 samples are compared with the training set. Two variants of seeds 1 to 6: as below, and
        --config.dropout=0.3 --config.weight_decay=0.1. Read off (`evaluation.onset`): when the gap's interval leaves 0,
        when the held-out loss is least (where early stopping lands), when the memorized fraction leaves its null.
        Expected in this order; whatever comes out is reported.
Expect  in all 12 runs the gap, then the least held-out loss, then copying: at steps 71 [47, 105], 415 [373, 462] and
        914 [838, 997] plain, 76 [46, 125], 897 [812, 990] and 1738 [1523, 1983] regularized (docs/STUDIES.md). 150 s a
        run on 2 quiet CPU cores. jax 0.10.2, commit d69ea96.
Run     python -m experiments.overfit --workdir=runs/overfit_0 --seed=0
Smoke   python -m experiments.overfit --workdir=runs/smoke --smoke
"""

import dataclasses

import diffusion
from diffusion import launch
from diffusion.data import sources, splits
from diffusion.evaluation import gap, memorization
from diffusion.models import unet
from diffusion.objectives import losses, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.training import callbacks


@dataclasses.dataclass
class Config(diffusion.Numbers):
  """The numbers beside those common to all experiments; every one is a flag, e.g. --config.dropout=0.2."""

  num_steps: int = 2500
  batch_size: int = 32
  steps_per_dispatch: int = 5
  log_every: int = 50
  validate_every: int = 50
  train_limit: int = 100
  width: int = 24
  multipliers: tuple[int, ...] = (1, 2)
  dropout: float = 0.0
  weight_decay: float = 0.0
  look_every: int = 100
  looked_at_per_class: int = 20
  samples_per_class: int = 50
  synthetic: bool = False


SMOKE = Config(
  num_steps=20, batch_size=16, log_every=5, validate_every=10, width=8, multipliers=(1,), sampling_steps=4,
  look_every=10, looked_at_per_class=1, samples_per_class=2, synthetic=True,
)  # fmt: skip


def build(c: Config) -> diffusion.Experiment:
  """The experiment of these numbers."""
  return diffusion.Experiment(
    **c.loop(),
    data=sources.real_or_synthetic(sources.digits(), c.synthetic, (8, 8, 1)),
    split=splits.Fractions(0.1, 0.1, c.train_limit, subset=f'seed {c.seed}'),
    diffusion=gaussian.Diffusion(
      noise.cosine(), marginals.variance_preserving, parameterizations.v()
    ),
    model=unet.unet(c.width, c.multipliers, 1, (), c.dropout, num_classes=10),
    terms={'denoise': (1.0, losses.denoising(weights.uniform('v')))},
    optimizer=chains.adamw(schedules.constant(c.learning_rate), c.weight_decay, c.clip_norm),
    averages={'ema': averaging.ema(c.ema_decay)},
    callbacks=[
      callbacks.checkpoint(),
      callbacks.watch_memorization(c.look_every, c.looked_at_per_class),
      callbacks.divergence_guard(c.log_every),
    ],
    evaluation_noise=gap.evaluation_noise(draws=2),
    sampling=diffusion.Sampling(steps=c.sampling_steps, per_class=c.samples_per_class),
    metrics=[memorization.nearest_neighbor_ratio(), memorization.authenticity()],
  )


if __name__ == '__main__':
  launch.run(build, Config(), SMOKE)
