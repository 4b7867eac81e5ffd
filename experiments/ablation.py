"""One technique at a time on the digits: an arm is the baseline's run but for one line of `ARMS`.

Run     python -m experiments.ablation --workdir=runs/dropout --arm=dropout
        python -m experiments.ablation --workdir=runs/dropouts --arm=dropout --population=seed=0..3    (as one program)
        python -m experiments.ablation --list_arms
Smoke   python -m experiments.ablation --workdir=runs/smoke --arm=dropout --smoke

Expect  Every arm makes an experiment that passes its checks (`tests/test_ablation.py`); `python -m benchmarks.arms`
        makes the smoke run of each. No arm's effect has been measured over seeds yet, so none is claimed.

Arms of one seed are paired: what an arm does not toggle draws the same numbers, from the split to the sampler. The
baseline is a plain run: Adam with clipping, a warm-up and a cosine, an average of the weights, and no regularizer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffusion
from diffusion import launch
from diffusion.data import augment, cleaning, curriculum, pipeline, sources, splits
from diffusion.evaluation import gap, memorization, recognition
from diffusion.models import (
  activations,
  dit,
  dropout,
  initializers,
  magnitude,
  normalization,
  precision,
  unet,
)
from diffusion.objectives import losses, penalties, times, weights
from diffusion.optimizers import averaging, chains, clipping, optimizers, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.sampling import guidance, samplers, solvers
from diffusion.training import callbacks, guards
from diffusion.types import Diffusion, Model, Optimizer


@dataclasses.dataclass
class Config(diffusion.Numbers):
  """The numbers of the experiment; `--arm` names the line of `ARMS`."""

  arm: str = 'baseline'
  steps_per_dispatch: int = 5
  validate_every: int = 50
  width: int = 32
  blocks: int = 2
  warmup_steps: int = 30
  samples_per_class: int = 100
  train_limit: int = 0
  synthetic: bool = False


SMOKE = Config(
  num_steps=20, batch_size=16, log_every=5, validate_every=10, width=8, blocks=1, warmup_steps=2,
  sampling_steps=4, samples_per_class=2, synthetic=True,
)  # fmt: skip


def data(c: Config) -> sources.Source:
  """The digits, or images of their shape."""
  return sources.real_or_synthetic(sources.digits(), c.synthetic, (8, 8, 1))


def network(c: Config, dropout: Any = 0.0, **parts: Any) -> Model:
  """The baseline's network with some parts chosen."""
  return unet.unet(c.width, (1, 2), c.blocks, (), dropout, num_classes=10, **parts)


def rate(c: Config, peak: float | None = None) -> schedules.LearningRate:
  """The baseline's learning rate, or one of another height."""
  return schedules.warmup_cosine(peak or c.learning_rate, c.num_steps, c.warmup_steps)


def update(c: Config, direction: Any = None, learning_rate: Any = None, **parts: Any) -> Optimizer:
  """The baseline's update with some parts chosen."""
  if 'clip' not in parts:
    parts['clip'] = clipping.global_norm(c.clip_norm)
  return chains.chain(direction or optimizers.adam(), learning_rate or rate(c), **parts)


def stepwise(c: Config) -> schedules.LearningRate:
  """A rate that falls at half and at four fifths of training."""
  return schedules.steps(c.learning_rate, (c.num_steps // 2, c.num_steps * 4 // 5))


def without_schedule(c: Config) -> Optimizer:
  """The baseline's update with an average of its own in place of a schedule."""
  warmed = schedules.warmup_cosine(c.learning_rate, c.num_steps, c.warmup_steps, c.learning_rate)
  clip = clipping.global_norm(c.clip_norm)
  return chains.schedule_free(optimizers.adam(b1=0.0), warmed, clip=clip)


def stopping(*more: callbacks.Callback) -> list[callbacks.Callback]:
  """The baseline's callbacks and some more."""
  return [callbacks.checkpoint(), *more]


def loss(term: Any = None, **more: Any) -> dict[str, Any]:
  """The baseline's loss with another main term, or with more terms."""
  return {'denoise': (1.0, term or losses.denoising(weights.uniform('v')))} | more


def noising(schedule: Any) -> Diffusion:
  """The baseline's diffusion under another schedule."""
  return gaussian.Diffusion(schedule, marginals.variance_preserving, parameterizations.v())


def plan(c: Config, sampler: Any = samplers.ddim, **parts: Any) -> diffusion.Sampling:
  """The baseline's sampling with some parts chosen."""
  return diffusion.Sampling(sampler, c.sampling_steps, per_class=c.samples_per_class, **parts)


def build(c: Config) -> diffusion.Experiment:
  """The baseline but for the arm's line."""
  baseline = diffusion.Experiment(
    **c.loop(),
    data=data(c),
    split=splits.Fractions(limit=c.train_limit),
    diffusion=noising(noise.cosine()),
    model=network(c),
    terms=loss(),
    times=times.stratified(),
    optimizer=update(c),
    averages={'ema': averaging.ema(c.ema_decay)},
    callbacks=stopping(),
    evaluation_noise=gap.evaluation_noise(draws=2),
    sampling=plan(c),
    metrics=[recognition.recognition(), memorization.nearest_neighbor_ratio()],
  )
  return baseline._replace(**ARMS[c.arm](c))


# fmt: off
ARMS: dict[str, Callable[[Config], dict[str, Any]]] = {
  'baseline': lambda c: {},
  # the network
  'dropout': lambda c: {'model': network(c, dropout=0.1)},
  'dropout_by_level': lambda c: {'model': network(c, dropout=(0.0, 0.2))},
  'input_dropout': lambda c: {'model': network(c, drops=[dropout.at_input(0.05)])},
  'spatial_dropout': lambda c: {'model': network(c, drops=[dropout.spatial(0.1)])},
  'drop_block': lambda c: {'model': network(c, drops=[dropout.drop_block(0.1, 3)])},
  'drop_connect': lambda c: {'model': network(c, drops=[dropout.drop_connect(0.1)])},
  'stochastic_depth': lambda c: {'model': network(c, drops=[dropout.stochastic_depth(0.1)])},
  'layer_norm': lambda c: {'model': network(c, norm=normalization.layer())},
  'rms_norm': lambda c: {'model': network(c, norm=normalization.rms())},
  'batch_norm': lambda c: {'model': network(c, norm=normalization.batch())},
  'no_norm': lambda c: {'model': network(c, norm=normalization.none())},
  'relu': lambda c: {'model': network(c, activation=activations.relu)},
  'leaky_relu': lambda c: {'model': network(c, activation=activations.leaky_relu)},
  'elu': lambda c: {'model': network(c, activation=activations.elu)},
  'gelu': lambda c: {'model': network(c, activation=activations.gelu)},
  'mish': lambda c: {'model': network(c, activation=activations.mish)},
  'he_init': lambda c: {'model': network(c, kernel_init=initializers.he())},
  'xavier_init': lambda c: {'model': network(c, kernel_init=initializers.xavier())},
  'orthogonal_init': lambda c: {'model': network(c, kernel_init=initializers.orthogonal())},
  'no_zero_outputs': lambda c: {'model': network(c, zero_outputs=False)},
  'rescaled_sums': lambda c: {'model': network(c, rescale=True)},
  'no_skips': lambda c: {'model': network(c, skips=False)},
  'magnitude_preserving': lambda c: {'model': magnitude.unet(c.width, (1, 2), c.blocks, (), num_classes=10)},
  'bfloat16': lambda c: {'model': precision.bfloat16(network(c))},
  'transformer': lambda c: {'model': dit.dit(4 * c.width, 4, 4, num_classes=10)},
  # the loss
  'l1_penalty': lambda c: {'terms': loss(l1=(1e-6, penalties.l1()))},
  'l2_penalty': lambda c: {'terms': loss(l2=(1e-5, penalties.l2()))},
  'jacobian_penalty': lambda c: {'terms': loss(jacobian=(0.01, penalties.jacobian()))},
  'learned_uncertainty': lambda c: {'terms': loss(losses.uncertain(weights.uniform('v')))},
  'variational_bound': lambda c: {'terms': loss(losses.weighted_bound(weights.uniform()))},
  'uniform_eps': lambda c: {'terms': loss(losses.denoising(weights.uniform('eps')))},
  'min_snr': lambda c: {'terms': loss(losses.denoising(weights.min_snr(5.0)))},
  'p2': lambda c: {'terms': loss(losses.denoising(weights.p2()))},
  'sigmoid_weight': lambda c: {'terms': loss(losses.denoising(weights.sigmoid()))},
  # the update
  'weight_decay': lambda c: {'optimizer': update(c, weight_decay=0.01)},
  'coupled_l2': lambda c: {'optimizer': update(c, coupled_l2=1e-4)},
  'proximal_l1': lambda c: {'optimizer': update(c, l1=1e-4)},
  'fixed_norms': lambda c: {'optimizer': update(c, fix_norms=True)},
  'no_clipping': lambda c: {'optimizer': update(c, clip=None)},
  'clip_blocks': lambda c: {'optimizer': update(c, clip=clipping.blocks(0.1))},
  'adaptive_clipping': lambda c: {'optimizer': update(c, clip=clipping.adaptive(0.01))},
  'clip_values': lambda c: {'optimizer': update(c, clip=clipping.value(0.01))},
  'rmsprop': lambda c: {'optimizer': update(c, optimizers.rmsprop())},
  'momentum': lambda c: {'optimizer': update(c, optimizers.momentum(0.9), rate(c, 0.1))},
  'lion': lambda c: {'optimizer': update(c, optimizers.lion(), rate(c, 3e-4))},
  'muon': lambda c: {'optimizer': update(c, optimizers.muon())},
  'prodigy': lambda c: {'optimizer': update(c, optimizers.prodigy(), schedules.constant(1.0))},
  'schedule_free': lambda c: {'optimizer': without_schedule(c), 'evaluation_average': ''},
  'constant_rate': lambda c: {'optimizer': update(c, learning_rate=schedules.constant(c.learning_rate))},
  'linear_rate': lambda c: {'optimizer': update(c, learning_rate=schedules.linear(c.learning_rate, c.num_steps))},
  'exponential_rate': lambda c: {'optimizer': update(c, learning_rate=schedules.exponential(c.learning_rate, 100))},
  'stepwise_rate': lambda c: {'optimizer': update(c, learning_rate=stepwise(c))},
  'restarts': lambda c: {'optimizer': update(c, learning_rate=schedules.cyclical(c.learning_rate, 100))},
  'one_cycle': lambda c: {'optimizer': update(c, learning_rate=schedules.one_cycle(c.learning_rate, c.num_steps))},
  'inverse_sqrt': lambda c: {'optimizer': update(c, learning_rate=schedules.inverse_sqrt(c.learning_rate, 100))},
  'plateau': lambda c: {'callbacks': stopping(callbacks.reduce_on_plateau(patience=c.validate_every))},
  'micro_batches': lambda c: {'micro_batches': 4},
  # the averages
  'no_average': lambda c: {'averages': {}, 'evaluation_average': ''},
  'half_life': lambda c: {'averages': {'ema': averaging.half_life(5_000, c.batch_size)}},
  'power_average': lambda c: {'averages': {'ema': averaging.power(0.1)}},
  'swa': lambda c: {'averages': {'ema': averaging.swa(c.num_steps // 2)}},
  # the data
  'standardized': lambda c: {'normalization': pipeline.standardized()},
  'checked': lambda c: {'data': cleaning.checked(data(c), copies='drop')},
  'flip': lambda c: {'augment': augment.flip()},
  'shift': lambda c: {'augment': augment.shift(1)},
  'rotate': lambda c: {'augment': augment.rotate(10.0)},
  'scale': lambda c: {'augment': augment.scale(1.1)},
  'shear': lambda c: {'augment': augment.shear(0.1)},
  'crop': lambda c: {'augment': augment.crop(0.9)},
  'color_jitter': lambda c: {'augment': augment.color_jitter(0.1, 0.1)},
  'cutout': lambda c: {'augment': augment.cutout(2)},
  'non_leaky': lambda c: {'augment': augment.conditioned(0.12, augment.shift(1), augment.rotate(10.0))},
  'curriculum_by_class': lambda c: {'curriculum': curriculum.by_class(range(10))},
  'curriculum_by_difficulty': lambda c: {'curriculum': curriculum.by_difficulty()},
  'curriculum_by_resolution': lambda c: {'curriculum': curriculum.by_resolution(2)},
  # the noise level
  'linear_betas': lambda c: {'diffusion': noising(noise.linear_beta())},
  'sigmoid_schedule': lambda c: {'diffusion': noising(noise.sigmoid())},
  'uniform_times': lambda c: {'times': times.uniform()},
  'logit_normal_times': lambda c: {'times': times.logit_normal()},
  'importance_times': lambda c: {'times': times.importance()},
  'timestep_curriculum': lambda c: {'times': times.curriculum(times.stratified())},
  'timestep_curriculum_by_loss': lambda c: {'times': times.curriculum_by_loss(times.stratified())},
  # the trajectory
  'early_stopping': lambda c: {'callbacks': stopping(callbacks.early_stopping(patience=150))},
  'spike_guard': lambda c: {'callbacks': stopping(guards.spike_guard(c.log_every))},
  # sampling
  'monte_carlo_dropout': lambda c: {'model': network(c, dropout=0.1), 'sampling': plan(c, monte_carlo=4)},
  'ancestral': lambda c: {'sampling': plan(c, samplers.ancestral)},
  'dpm_solver': lambda c: {'sampling': plan(c, solvers.dpm_solver)},
  'cool_samples': lambda c: {'sampling': plan(c, wrappers=(lambda d, p: guidance.score_temperature(d, p, 0.9),))},
}
# fmt: on


if __name__ == '__main__':
  launch.run(build, Config(), SMOKE, arms=ARMS)
