"""The plan by which samples are drawn: sampler, grid, guidance, and what is wrapped around the denoiser."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from diffusion import checks, citations, naming, rng
from diffusion.process import gaussian
from diffusion.sampling import grids, samplers
from diffusion.sampling.ensembles import monte_carlo
from diffusion.sampling.guidance import classifier_free, clip_x0, in_interval, threshold_x0
from diffusion.types import (
  Array,
  Denoiser,
  Diffusion,
  Examples,
  Keys,
  Path,
  PerRow,
  Prediction,
  Sampler,
)

Wrapper = Callable[[Denoiser, Path], Denoiser]


class Sampling(NamedTuple):
  """How pictures and evaluation samples are drawn.

  Attributes:
    sampler: path -> sampler, e.g. `samplers.ddim`.
    steps: steps of the grid.
    guidance: classifier-free guidance scale; 1 is the conditional model alone.
    interval: of log-SNR (low, high) in nats to guide in; None guides everywhere.
    wrappers: (denoiser, path) -> denoiser, in turn around the guided one; None is `usual_wrappers` of the data: x0 is
      clipped to the range of images, and nothing else is.
    grid_rows: samples of each class in `samples.png`.
    per_class: samples of each class that the metrics judge; unlabelled data counts as one class.
    grid: (path, steps) -> times, from `sampling.grids`; None for the one that suits the sampler.
    monte_carlo: thinned networks averaged in every evaluation, which keeps dropout on; 0 turns it off.
  """

  sampler: Callable[[Path], Sampler] = samplers.ddim
  steps: int = 50
  guidance: float = 1.0
  interval: tuple[float, float] | None = None
  wrappers: Sequence[Wrapper] | None = None
  grid_rows: int = 8
  per_class: int = 100
  grid: Callable[[Path, int], grids.Grid] | None = None
  monte_carlo: int = 0


def sampler_names() -> Mapping[str, str]:
  """name -> module: every function of this room that makes a sampler of a path alone."""
  return naming.factories('sampling', 'Sampler', ('path',))


def sampler(name: str) -> Callable[[Path], Sampler]:
  """The sampler of a name, with its own defaults.

  Raises:
    ValueError: an unknown name.
  """
  return naming.find(name, sampler_names(), 'sampler')


def grid_names() -> Mapping[str, str]:
  """name -> module: every function of this room that makes a grid of a path and a number of steps alone."""
  return naming.factories('sampling', 'Grid', ('path', 'steps'))


def grid(name: str) -> Callable[[Path, int], grids.Grid]:
  """The grid of a name, with its own defaults.

  Raises:
    ValueError: an unknown name.
  """
  return naming.find(name, grid_names(), 'sampler_grid')


def usual_wrappers(levels: int | None) -> tuple[Wrapper, ...]:
  """What a plan that names no wrappers has: `clip_x0` for images, whose levels end; nothing for floats."""
  return () if levels is None else (clip_x0,)


class Planned(NamedTuple):
  """What a plan comes to, once the path is bound."""

  denoise: Denoiser
  sampler: Sampler
  grid: grids.Grid


def plan(
  sampling: Sampling,
  path: Path,
  conditional: Denoiser,
  null: Denoiser,
  keys: Keys | None,
  number: Integer[Array, ' b'],
) -> Planned:
  """The plan around two denoisers.

  Args:
    sampling: the plan.
    path: bound.
    conditional, null: denoisers with the labels and without.
    keys: one a sample, for Monte-Carlo dropout; None without it.
    number: of each sample, for samplers that are others for each.

  Raises:
    ValueError: what the plan's pieces refuse.
  """
  if sampling.monte_carlo:
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, rng.tag('monte carlo'))
  conditional, null = (monte_carlo(one, keys, sampling.monte_carlo) for one in (conditional, null))
  denoise = classifier_free(conditional, null, sampling.guidance)
  if sampling.interval is not None:
    denoise = in_interval(denoise, conditional, path, *sampling.interval)
  for wrap in sampling.wrappers or ():
    denoise = wrap(denoise, path)
  sampler = sampling.sampler(path)
  times = (sampling.grid or sampler.grid or grids.uniform_time)(path, sampling.steps)
  return Planned(denoise, sampler.of_rows(number) if sampler.of_rows else sampler, times)


def rehearsed(sampling: Sampling, diffusion: Diffusion) -> tuple[Path, Planned]:
  """The path as its schedule begins, and the plan around a denoiser that knows nothing; raises as `plan` does."""
  path = gaussian.bind(diffusion, diffusion.schedule.init(jax.random.key(0)))

  def nothing(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    return Prediction(z, z)

  number = jnp.arange(1)
  keys = rng.row_keys(jax.random.key(0), number)
  return path, plan(sampling, path, nothing, nothing, keys, number)


def check(sampling: Sampling, diffusion: Diffusion, conditional: bool) -> None:
  """Plans with nothing behind it, so that errors surface before training.

  Args:
    sampling: the plan.
    diffusion: whose schedule is taken as it begins.
    conditional: whether the network is told anything.

  Raises:
    ValueError: steps, samples or guidance out of range, guidance of an unconditional network, a grid that does not
      decrease, or what the plan's pieces refuse.
  """
  checks.integer('sampling_steps', sampling.steps)
  checks.integer('per_class (samples of each class)', sampling.per_class)
  checks.integer('grid_rows (samples of each class in a picture)', sampling.grid_rows)
  checks.at_least('guidance', sampling.guidance, 0)
  if sampling.guidance != 1 and not conditional:
    raise ValueError(f'guidance of an unconditional network must be 1, got {sampling.guidance}')
  _, planned = rehearsed(sampling, diffusion)
  samplers.check_grid(planned.grid[:-1] if len(planned.grid) > 2 else planned.grid)


def too_few(sampling: Sampling, diffusion: Diffusion) -> str:
  """What to tell of a plan that asks for fewer steps than its sampler's samples need; empty where it does not.

  Args:
    sampling: the plan, checked.
    diffusion: whose schedule is taken as it begins.
  """
  path = gaussian.bind(diffusion, diffusion.schedule.init(jax.random.key(0)))
  fewest = sampling.sampler(path).fewest
  if sampling.steps >= fewest:
    return ''
  return (
    f'sampling_steps = {sampling.steps} are few for this sampler: its samples may be poor below {fewest} '
    'steps (the table of samplers in docs/STUDIES.md)'
  )


def check_range(sampling: Sampling, diffusion: Diffusion, low: float, high: float) -> None:
  """Raises ValueError where a wrapper thresholds x0 so that data between `low` and `high` would not pass unchanged.

  Args:
    sampling: the plan, with its wrappers.
    diffusion: whose schedule is taken as it begins.
    low, high: the range of the data in network units.
  """
  path = gaussian.bind(diffusion, diffusion.schedule.init(jax.random.key(0)))
  ends, t = jnp.array([[low], [high]]), jnp.full(2, 0.5)
  z = (
    path.marginal(t).alpha[:, None] * ends
  )  # which is ends without noise, to wrappers that divide the noise as well

  def exact(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    return Prediction(ends, jnp.zeros_like(ends))

  thresholds = {clip_x0.technique, threshold_x0.technique}
  for wrapped in [wrap(exact, path) for wrap in sampling.wrappers or ()]:
    used = thresholds.intersection(citations.techniques(wrapped))
    if used and not np.allclose(wrapped(z, t).x0, ends, rtol=1e-4, atol=1e-6):
      raise ValueError(
        f'{used.pop().name} would cut the data off, which spans [{low:.4g}, {high:.4g}] in the units of the network: '
        'leave it out of sampling.wrappers (wrappers=()), or give it this range'
      )


def evaluations(sampling: Sampling, diffusion: Diffusion, shape: tuple[int, ...]) -> int:
  """How many evaluations of the network one sample takes, by tracing its steps with nothing behind them.

  Args:
    sampling: the plan, checked.
    diffusion: whose schedule is taken as it begins.
    shape: of a sample.

  Returns:
    The number, guidance included (inside its interval, by the level at the start of each step).

  Raises:
    ValueError: what the steps refuse.
  """
  path, planned = rehearsed(sampling, diffusion)
  draws = max(1, sampling.monte_carlo)
  calls = draws * samplers.evaluations(planned.sampler, sampling.steps, shape)
  if sampling.guidance == 1:
    return calls
  if sampling.interval is None:
    return 2 * calls
  level = np.asarray(path.log_snr(planned.grid[:-1]))
  inside = (level >= sampling.interval[0]) & (level <= sampling.interval[1])
  a_step = samplers.evaluations(planned.sampler, 1, shape, denoise_last=False)
  return calls + draws * int(a_step * inside[:-1].sum() + inside[-1])
