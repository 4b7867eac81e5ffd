"""What the network itself says of its training set: membership, and how near it is to the denoiser that copies."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, Num

from diffusion import checks, conditions, statistics
from diffusion.citations import technique
from diffusion.data.pipeline import NormalizationStatistics
from diffusion.evaluation import gap, memorization
from diffusion.evaluation.metric import (
  Metric,
  MetricInputs,
  MetricResult,
  Plan,
  Query,
  check_network,
)
from diffusion.process import analytic
from diffusion.types import Array, Condition, Denoiser, Examples, Path, PerRow

Reference = Callable[[Examples, PerRow], Examples]  # (z, t) -> x0
Train = Float[Array, ' n *shape']  # the training examples in network units
Distances = Float[np.ndarray, 'n l']


def _some(
  inputs: MetricInputs, which: str, limit: int
) -> tuple[Num[np.ndarray, ' some *shape'], Condition]:
  x = inputs.x(which)
  chosen = np.sort(np.random.default_rng(0).permutation(len(x))[:limit])
  return x[chosen], conditions.take(inputs.told(which), chosen)


def _noise(log_snr: Sequence[float], draws: int) -> gap.EvaluationNoise:
  checks.integer('draws', draws)
  if not log_snr or not all(math.isfinite(level) for level in log_snr):
    raise ValueError(f'log_snr must hold at least one finite level, got {log_snr!r}')
  return gap.EvaluationNoise(tuple(log_snr), draws)


def _check_levels(noise: gap.EvaluationNoise, inputs: MetricInputs) -> None:
  low, high = inputs.network.log_snr
  for level in noise.log_snr:
    if not low <= level <= high:
      raise ValueError(f'log_snr has {level:g}, the schedule spans [{low:.3g}, {high:.3g}]')


@technique('membership by loss', 'core', 'carlini2023extracting', 'matsumoto2023membership')
def membership(
  log_snr: Sequence[float] = (2.0, 0.0, -2.0), draws: int = 50, limit: int = 1000
) -> Metric:
  """The area under the curve by which the loss at fixed noise tells training from held-out examples; 1/2 is chance.

  The score of an example is minus its eps-loss, the mean over draws of eps.

  Args:
    log_snr: noise levels, each with an area of its own.
    draws: of eps at each, >= 1.
    limit: examples of each split, >= 2.

  Raises:
    ValueError: arguments out of range.

  Source: Matsumoto et al. (2023), section 3; Carlini et al. (2023), section 5.1, for what it says of privacy.
  """
  noise = _noise(log_snr, draws)
  checks.integer('limit', limit, 2)

  def rows(query: Query, shared: Any) -> Float[Array, 'b l']:
    return gap.denoiser_losses(query.denoise, query.path, query.x, query.keys, noise)

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    _check_levels(noise, inputs)
    train, held_out = (
      inputs.network.apply(rows, *_some(inputs, which, limit)) for which in ('train', 'held_out')
    )
    return [
      MetricResult(
        f'membership AUC, log-SNR {level:g}',
        statistics.auc(-train[:, i], -held_out[:, i]),
        f'{len(train)} training against {len(held_out)} held-out examples, {draws} draws; 0.5 is chance',
        unit='share of pairs',
        better='nearer 0.5',
      )
      for i, level in enumerate(noise.log_snr)
    ]

  return Metric(_two_of_each, measure)


def _two_of_each(plan: Plan) -> None:
  check_network(plan)
  if min(plan.train, plan.held_out) < 2:
    raise ValueError(
      f'membership needs at least 2 training and held-out examples, got {plan.train} and {plan.held_out}'
    )


@technique('distance to the empirical denoiser', 'core', 'gu2023memorization')
def copying_distance(
  log_snr: Sequence[float] = (4.0, 2.0, 0.0, -2.0),
  draws: int = 4,
  limit: int = 256,
  mirrored: bool = False,
) -> Metric:
  """M: how far the network is from the denoiser of the finite training set, which copies, at held-out examples.

  M = E|D - D_emp| / E|D_mean - D_emp| over noised held-out examples, D_mean the training set's mean: 0 is the copyist,
  1 as far from it as a denoiser that knows the mean alone. Where the examples' labels are told to the network, D_emp
  knows them too.

  Args:
    log_snr: noise levels.
    draws: of eps at each, >= 1.
    limit: held-out examples, >= 2.
    mirrored: for a network trained with flips: the training set has every image's mirror image as well.

  Raises:
    ValueError: arguments out of range; before training, a network that is told other things than class labels, or
      mirrors of what is no image.

  Source: the empirical denoiser: Gu et al. (2023), equation 3. The normalization is this project's.
  """

  def mean(path: Path, x: Train, units: NormalizationStatistics) -> Reference:
    center = x.mean(0)
    if mirrored:
      center = (center + center[:, ::-1]) / 2
    return lambda z, t: jnp.broadcast_to(center, z.shape)

  meaning = 'distance to the denoiser that copies, over that of the mean: 0 is the copyist'
  noise = _noise(log_snr, draws)
  return _beside_copyist(
    'M', meaning, mean, lambda near, far: near, noise, limit, mirrored=mirrored
  )


def score_position(
  truth: Callable[[Path], Denoiser],
  log_snr: Sequence[float] = (4.0, 2.0, 0.0, -2.0),
  draws: int = 4,
  limit: int = 1000,
) -> Metric:
  """G at several noise levels: 1 where the network is the population's denoiser D*, -1 where it is the copyist D_emp.

  G = (E|D - D_emp| - E|D - D*|) / E|D_emp - D*|, over noised held-out examples.

  Args:
    truth: path -> D*, the exact denoiser of the data in its own units (levels in [-1, 1]); it is brought to the
      network's, where the data is standardized.
    log_snr: noise levels.
    draws: of eps at each, >= 1.
    limit: held-out examples, >= 2.

  Raises:
    ValueError: arguments out of range; before training, a network that is told other things than class labels.

  Source: this project's.
  """

  def population(path: Path, x: Train, units: NormalizationStatistics) -> Reference:
    best = analytic.standardized(truth, path, units.mean, units.deviation)
    return lambda z, t: best(z, t).x0

  meaning = '1 is the denoiser of the population, -1 the one that copies'
  noise = _noise(log_snr, draws)
  return _beside_copyist(
    'G', meaning, population, lambda near, far: near - far, noise, limit, better='nearer 1'
  )


def _beside_copyist(
  name: str,
  meaning: str,
  reference: Callable[[Path, Train, NormalizationStatistics], Reference],
  numerator: Callable[[Distances, Distances], Distances],
  noise: gap.EvaluationNoise,
  limit: int,
  better: str = '',
  mirrored: bool = False,
) -> Metric:
  """E numerator(|D - D_emp|, |D - D_ref|) / E|D_emp - D_ref| at each level, over noised held-out examples.

  `reference` makes D_ref of the path, the training examples, and their units; D_emp copies mirror images where
  `mirrored`.
  """
  checks.integer('limit', limit, 2)

  def rows(
    units: NormalizationStatistics, query: Query, train: tuple[Train, Integer[Array, ' n']]
  ) -> tuple[Float[Array, 'b l'], ...]:
    copyist = analytic.empirical(query.path, *train, query.condition, flip=mirrored)
    other = reference(query.path, train[0], units)

    def measure(z: Examples, t: PerRow, eps: Examples) -> tuple[PerRow, ...]:
      parts = query.denoise(z, t).x0, copyist(z, t).x0, other(z, t)
      d, copy, ref = (part.reshape(len(z), -1) for part in parts)
      return tuple(jnp.linalg.norm(a - b, axis=1) for a, b in ((d, copy), (d, ref), (copy, ref)))

    return gap.on_evaluation_noise(query.path, query.x, query.keys, noise, measure)

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    _check_levels(noise, inputs)
    x, label = inputs.train
    train = inputs.network.normalize(x), jnp.asarray(label)
    asked = functools.partial(rows, inputs.units)
    near, far, scale = inputs.network.apply(asked, *_some(inputs, 'held_out', limit), train)
    top = numerator(near, far)
    return [
      MetricResult(
        f'{name}, log-SNR {level:g}',
        statistics.ratio_of_means(top[:, i], scale[:, i]),
        meaning,
        better=better,
      )
      for i, level in enumerate(noise.log_snr)
    ]

  def check(plan: Plan) -> None:
    _two_of_each(plan)
    if plan.conditions:
      raise ValueError(
        'the denoiser that copies knows class labels alone, and the network is told other things'
      )
    if mirrored:
      memorization.check_mirrors(plan.shape)

  return Metric(check, measure)
