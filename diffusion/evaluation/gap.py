"""The paired generalization gap: held-out and training loss on fixed evaluation noise.

The evaluation noise fixes log-SNR, not t, so its numbers mean the same under every schedule, and both splits get the
same, so their difference is not the noise's.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Float, Integer, Num

from diffusion import checks, devices, rng
from diffusion.data import pipeline
from diffusion.objectives.losses import eps_loss
from diffusion.process import gaussian
from diffusion.types import (
  Array,
  Condition,
  Conditioning,
  Denoiser,
  Diffusion,
  Examples,
  Keys,
  Model,
  Path,
  PerRow,
)


class EvaluationNoise(NamedTuple):
  """Noise levels (log-SNR in nats, from clean to noisy) and the draws of eps at each."""

  log_snr: tuple[float, ...]
  draws: int


def evaluation_noise(
  high: float = 8.0, low: float = -8.0, levels: int = 8, draws: int = 4
) -> EvaluationNoise:
  """Evaluation noise at log-SNR in equal steps.

  Args:
    high, low: the first and the last log-SNR, nats, low < high.
    levels: how many, >= 2.
    draws: of eps at each, >= 1.

  Raises:
    ValueError: an argument out of its range or order.
  """
  checks.integer('levels', levels, 2)
  checks.integer('draws', draws)
  if not low < high:
    raise ValueError(f'evaluation noise needs low < high, got low={low!r}, high={high!r}')
  return EvaluationNoise(tuple(np.linspace(high, low, levels).tolist()), draws)


def evaluation_losses(
  diffusion: Diffusion,
  model: Model,
  units: pipeline.NormalizationStatistics,
  noise: EvaluationNoise,
  chunk: int = 256,
) -> Callable[..., Float[np.ndarray, 'n l']]:
  """`make_losses` on all devices; its first argument is replicated.

  Args:
    diffusion, model: what is evaluated.
    units: of the stored data.
    noise: noise levels and draws.
    chunk: examples a device takes at a time, >= 1.
  """
  return devices.over_rows(make_losses(diffusion, model, units, noise), chunk)


def make_losses(
  diffusion: Diffusion,
  model: Model,
  units: pipeline.NormalizationStatistics,
  noise: EvaluationNoise,
) -> Callable[..., Float[Array, 'n l']]:
  """The eps-loss of every example at every level of the evaluation noise, without dropout or augmentation.

  Args:
    diffusion, model: what is evaluated.
    units: of the stored data.
    noise: noise levels and draws.

  Returns:
    ((parameters, statistics, seed), x as stored [n, *shape], condition, position [n]) -> losses [n, l], the mean over
    the draws. Row i's noise depends on position[i], the level and the draw.
  """

  def losses(
    shared, x: Num[Array, ' n *shape'], condition: Condition, position: Integer[Array, ' n']
  ) -> Float[Array, 'n l']:
    parameters, statistics, seed = shared
    path = gaussian.bind(diffusion, parameters.schedule)
    x = pipeline.normalize(x, units)
    conditioning = Conditioning(condition, jnp.zeros((x.shape[0], 0), x.dtype))
    variables = {'params': parameters.network, **statistics}

    def network(z: Examples, noise: PerRow, key: Keys | None) -> Examples:
      return model.apply(variables, z, noise, conditioning)[0]

    denoise = gaussian.denoiser(path, diffusion.parameterization, network)
    keys = rng.row_keys(rng.stream(seed, 'validation'), position)
    return denoiser_losses(denoise, path, x, keys, noise)

  return losses


def denoiser_losses(
  denoise: Denoiser, path: Path, x: Examples, keys: Keys, noise: EvaluationNoise
) -> Float[Array, 'b l']:
  """The eps-loss of any denoiser at every level of the evaluation noise, the mean over its draws.

  With an exact denoiser it is the floor of the loss: of training examples with `analytic.empirical`, of fresh ones
  with `analytic.gaussian_mixture`.

  Args:
    denoise: the denoiser.
    path: the bound schedule and process.
    x: examples in network units.
    keys: one a row; its draws depend on its key, the level and the draw.
    noise: noise levels and draws.
  """

  def measure(z: Examples, t: PerRow, eps: Examples) -> PerRow:
    return eps_loss(x, eps, denoise(z, t), path.log_snr(t))

  return on_evaluation_noise(path, x, keys, noise, measure)


def on_evaluation_noise(
  path: Path,
  x: Examples,
  keys: Keys,
  noise: EvaluationNoise,
  measure: Callable[[Examples, PerRow, Examples], Any],
) -> Any:
  """The mean over the draws of what is measured of each row of x at every level of the evaluation noise.

  Args:
    path: the bound schedule and process.
    x: examples in network units.
    keys: one a row; its draws depend on its key, the level and the draw.
    noise: noise levels and draws.
    measure: (z, t, eps) -> a tree of [b].

  Returns:
    That tree with [b, l].
  """
  times = path.time(jnp.asarray(noise.log_snr))

  def one(_, i: Integer[Array, '']):
    eps = rng.normal(jax.vmap(jax.random.fold_in, (0, None))(keys, i), x.shape[1:])
    t = jnp.broadcast_to(times[i // noise.draws], x.shape[:1])
    return None, measure(gaussian.diffuse(x, eps, path.marginal(t)), t, eps)

  _, values = jax.lax.scan(one, None, jnp.arange(len(noise.log_snr) * noise.draws))
  return jax.tree.map(lambda v: v.reshape(len(noise.log_snr), noise.draws, -1).mean(1).T, values)


def summarize(
  train: Float[np.ndarray, 'n l'], validation: Float[np.ndarray, 'm l'], confidence: float = 0.95
) -> dict[str, float]:
  """The validation row: means over examples and levels, and the gap with Welch's interval over examples.

  Args:
    train: losses of training examples.
    validation: losses of held-out examples, on the same noise.
    confidence: of the interval, in (0, 1).

  Returns:
    validation/eps, train/eps, validation/gap (their difference), its gap_low and gap_high, and per level
    validation/level/i and train/level/i.
  """
  a, b = train.mean(1, dtype=np.float64), validation.mean(1, dtype=np.float64)
  gap = b.mean() - a.mean()
  row = {'validation/eps': b.mean(), 'train/eps': a.mean(), 'validation/gap': gap}
  interval = scipy.stats.ttest_ind(b, a, equal_var=False).confidence_interval(confidence)
  row |= {'validation/gap_low': interval.low, 'validation/gap_high': interval.high}
  for name, losses in (('validation', validation), ('train', train)):
    row |= {f'{name}/level/{i}': v for i, v in enumerate(losses.mean(0, dtype=np.float64))}
  return {name: float(value) for name, value in row.items()}


def check_evaluation_noise(
  noise: EvaluationNoise, diffusion: Diffusion, schedule_params: Any
) -> None:
  """Whether the schedule reaches every level of the evaluation noise.

  Args:
    noise: noise levels and draws.
    diffusion: whose schedule it is.
    schedule_params: of the schedule.

  Raises:
    ValueError: a level outside the schedule's range.
  """
  path = gaussian.bind(diffusion, schedule_params)
  high, low = float(path.log_snr(jnp.zeros(()))), float(path.log_snr(jnp.ones(())))
  for level in noise.log_snr:
    if not low <= level <= high:
      raise ValueError(
        f'the evaluation noise has log-SNR {level:g}, the schedule spans [{low:.3g}, {high:.3g}]: use a narrower range'
      )


def per_level(row: Mapping[str, float], noise: EvaluationNoise) -> list[list[float]]:
  """Rows (log-SNR, train, validation, gap) of a validation row, for a table."""
  table = []
  for i, level in enumerate(noise.log_snr):
    train, held_out = row[f'train/level/{i}'], row[f'validation/level/{i}']
    table.append([level, train, held_out, held_out - train])
  return table
