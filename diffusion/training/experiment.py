"""An experiment: everything a run is, as values and pure functions, and the checks that need all of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import checks, devices, streams
from diffusion.citations import technique
from diffusion.data import augment, pipeline, sources, splits
from diffusion.evaluation import gap
from diffusion.evaluation.metric import Metric
from diffusion.process import gaussian
from diffusion.sampling import grids, samplers
from diffusion.sampling.ensembles import monte_carlo
from diffusion.sampling.guidance import classifier_free, clip_x0, in_interval
from diffusion.training.callbacks import Callback
from diffusion.training.loop import Cadence, check_cadence
from diffusion.types import (
  Array,
  Augment,
  Average,
  Curriculum,
  Denoiser,
  Diffusion,
  Key,
  Model,
  Optimizer,
  Path,
  Prediction,
  Sampler,
  Term,
  Times,
  Variables,
)


class Sampling(NamedTuple):
  """How pictures and evaluation samples are drawn.

  Attributes:
    sampler: path -> sampler, e.g. `samplers.ddim`.
    steps: steps of the grid.
    guidance: classifier-free guidance scale; 1 is the conditional model alone.
    interval: of log-SNR (low, high) in nats to guide in; None guides everywhere.
    wrappers: (denoiser, path) -> denoiser, in turn around the guided one; by default x0 is clipped to [-1, 1], which
      is for images.
    grid_rows: samples of each class in `samples.png`.
    per_class: samples of each class that the metrics judge; unlabelled data counts as one class.
    grid: (path, steps) -> times [steps + 1], from `sampling.grids`; uniform in t by default.
    monte_carlo: thinned networks averaged in every evaluation, which keeps dropout on; 0 turns it off.
  """

  sampler: Callable[[Path], Sampler] = samplers.ddim
  steps: int = 50
  guidance: float = 1.0
  interval: tuple[float, float] | None = None
  wrappers: Sequence[Callable[[Denoiser, Path], Denoiser]] = (clip_x0,)
  grid_rows: int = 8
  per_class: int = 100
  grid: Callable[[Path, int], Array] = lambda path, steps: grids.uniform_time(steps)
  monte_carlo: int = 0


class Experiment(NamedTuple):
  """Everything a run is, as values and pure functions; an experiment file builds one from its numbers.

  Attributes:
    seed: root of all random streams.
    num_steps, batch_size: of training; the batch is the global one.
    log_every, validate_every: steps; each a multiple of the one before, the first of `steps_per_dispatch`.
    data, split: where the data comes from and how much of it is held out.
    diffusion, model, times, optimizer: one each.
    terms: name -> (factor, term) of the loss.
    averages: name -> average; `judged` names the one that is validated and sampled ('' for the weights themselves).
    augment: transformation of training batches.
    callbacks: in order.
    bank: noise levels and draws of validation.
    sampling: how samples are drawn.
    metrics: what judges the samples of the finished run.
    steps_per_dispatch: training steps in one call of the devices; more costs nothing but a slower reaction to signals.
    normalization: (training split as stored, levels) -> units, from `data.pipeline`.
    curriculum: which examples are drawn, from `data.curriculum`; None draws all.
    micro_batches: parts of a batch whose gradients are summed one after another, to fit a large batch into memory.
    gradient_noise: log the gradient's noise scale, in examples; it needs micro_batches >= 2 to compare.
  """

  seed: int
  num_steps: int
  batch_size: int
  log_every: int
  validate_every: int
  data: sources.Source
  diffusion: Diffusion
  model: Model
  terms: Mapping[str, tuple[float, Term]]
  times: Times
  optimizer: Optimizer
  averages: Mapping[str, Average]
  judged: str
  callbacks: Sequence[Callback]
  augment: Augment = augment.chain()
  split: splits.Fractions = splits.Fractions()
  bank: gap.Bank = gap.bank()
  sampling: Sampling = Sampling()
  metrics: Sequence[Metric] = ()
  steps_per_dispatch: int = 1
  normalization: pipeline.Normalization = pipeline.unit_range
  curriculum: Curriculum | None = None
  micro_batches: int = 1
  gradient_noise: bool = False


def check(experiment: Experiment) -> None:
  """Raises ValueError for what no single factory can see: names, cadences and batches that do not fit together."""
  checks.integer('num_steps', experiment.num_steps)
  checks.integer('batch_size', experiment.batch_size)
  checks.integer('seed', experiment.seed, 0)
  checks.integer('log_every', experiment.log_every)
  checks.integer('validate_every', experiment.validate_every)
  checks.integer('steps_per_dispatch', experiment.steps_per_dispatch)
  checks.integer('sampling_steps', experiment.sampling.steps)
  checks.at_least('guidance', experiment.sampling.guidance, 0)
  devices.check_batch(experiment.batch_size)
  _check_micro_batches(experiment)
  check_cadence(cadence(experiment), experiment.callbacks)
  if not live_terms(experiment):
    raise ValueError('no term of the loss is on: an experiment needs one')
  if experiment.judged and experiment.judged not in experiment.averages:
    raise ValueError(
      f'judged names the average {experiment.judged!r}, there are {sorted(experiment.averages)}'
    )
  names = [callback.name for callback in experiment.callbacks]
  if len(set(names)) < len(names):
    raise ValueError(f'two callbacks of one name: {names}')
  for callback in experiment.callbacks:
    if callback.survives_rollback and not any(one.saves for one in experiment.callbacks):
      raise ValueError(
        f'{callback.name} goes back to checkpoints, and the experiment saves none: add callbacks.checkpoint(...)'
      )
  check_sampling(experiment, (1,))


@technique('gradient accumulation', 'update', 'goyal2017accurate', active=lambda parts: parts != 1)
def accumulation(parts: int, rows: int) -> int:
  """`parts` micro-batches of a device's `rows`, whose gradients are summed: one batch to rounding in less memory.

  Args:
    parts: >= 1; 1 is off.
    rows: of a device.

  Raises:
    ValueError: parts that do not divide the rows.

  Source: Goyal et al. (2017), section 2; batch statistics are of a micro-batch.
  """
  checks.integer('micro_batches', parts)
  if rows % parts:
    raise ValueError(f'micro_batches must divide the {rows} rows of a device, got {parts}')
  return parts


@technique('gradient noise scale', 'update', 'mccandlish2018empirical', active=lambda on: on)
def noise_scale(on: bool, parts: int) -> bool:
  """tr(Sigma) / |G|^2 in examples, logged: the batch size above which a larger batch hardly helps.

  From the square norms of the gradients of micro-batches and of whole batches, both means over the logged window.

  Args:
    on: measure it.
    parts: micro-batches, >= 2 if on.

  Raises:
    ValueError: one micro-batch, which has nothing to be compared with.

  Source: McCandlish et al. (2018), equation 2.9 and appendix A.1.
  """
  if on and parts < 2:
    raise ValueError(
      f'gradient_noise compares parts of a batch: set micro_batches >= 2, got {parts}'
    )
  return on


def _check_micro_batches(experiment: Experiment) -> None:
  parts = accumulation(experiment.micro_batches, devices.rows_of_a_device(experiment.batch_size))
  noise_scale(experiment.gradient_noise, parts)


def check_statistics(experiment: Experiment, statistics: Variables) -> None:
  """Raises ValueError where batch normalization would see one row of a device at a time."""
  rows = devices.rows_of_a_device(experiment.batch_size) // experiment.micro_batches
  if statistics and rows < 2:
    raise ValueError(
      f'batch normalization needs at least 2 rows a device and micro-batch, got {rows}: use a batch_size above '
      f'{experiment.batch_size}, fewer micro_batches, or another normalization'
    )


def live_terms(experiment: Experiment) -> dict[str, tuple[float, Term]]:
  """The terms whose factor is on: a Python 0 leaves no code behind."""
  return {name: term for name, term in experiment.terms.items() if not checks.off(term[0])}


def off_factories(experiment: Experiment) -> set[str]:
  """Qualified names of the factories whose terms are all off, which a run did not use.

  A factory is known by the function it defines: `apply` inside of it.
  """

  def factory(term: Term) -> str:
    return f'{term.apply.__module__}.{term.apply.__qualname__.split(".<locals>")[0]}'

  used = {factory(term) for _, term in live_terms(experiment).values()}
  return {factory(term) for _, term in experiment.terms.values()} - used


def cadence(experiment: Experiment) -> Cadence:
  """The experiment's periods as the loop wants them."""
  return Cadence(
    experiment.num_steps,
    experiment.log_every,
    experiment.validate_every,
    experiment.steps_per_dispatch,
  )


class Walk(NamedTuple):
  """What a sampling plan comes to, once the path is bound."""

  denoise: Denoiser
  sampler: Sampler
  grid: Array


def plan_walk(
  experiment: Experiment, path: Path, conditional: Denoiser, null: Denoiser, keys: Key
) -> Walk:
  """The experiment's sampling plan around two denoisers; `keys`, one a sample, are for Monte-Carlo dropout.

  Raises:
    ValueError: guidance of an unconditional network, or what the plan's pieces refuse.
  """
  plan = experiment.sampling
  if plan.guidance != 1 and not experiment.model.num_classes:
    raise ValueError(f'guidance of an unconditional network must be 1, got {plan.guidance}')
  if plan.monte_carlo:
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, streams.tag('monte carlo'))
  conditional, null = (monte_carlo(one, keys, plan.monte_carlo) for one in (conditional, null))
  denoise = classifier_free(conditional, null, plan.guidance)
  if plan.interval is not None:
    denoise = in_interval(denoise, conditional, path, *plan.interval)
  for wrap in plan.wrappers:
    denoise = wrap(denoise, path)
  return Walk(denoise, plan.sampler(path), plan.grid(path, plan.steps))


def check_sampling(experiment: Experiment, shape: tuple[int, ...]) -> int:
  """Plans a walk with nothing behind it: errors surface before training, and the techniques it uses are noted.

  Returns:
    How many evaluations of the network one sample takes, guidance included (inside its interval, by the level at the
    start of each step).
  """
  schedule = experiment.diffusion.schedule.init(jax.random.key(0))
  path = gaussian.bind(experiment.diffusion, schedule)

  def nothing(z: Array, t: Array, key=None) -> Prediction:
    return Prediction(z, z)

  keys = streams.row_keys(jax.random.key(0), jnp.arange(1))
  walk = plan_walk(experiment, path, nothing, nothing, keys)
  samplers.check_grid(walk.grid[:-1] if len(walk.grid) > 2 else walk.grid)
  plan = experiment.sampling
  draws = max(1, plan.monte_carlo)
  calls = draws * samplers.evaluations(walk.sampler, plan.steps, shape)
  if plan.guidance == 1:
    return calls
  if plan.interval is None:
    return 2 * calls
  level = np.asarray(path.log_snr(walk.grid[:-1]))
  inside = (level >= plan.interval[0]) & (level <= plan.interval[1])
  a_step = samplers.evaluations(walk.sampler, 1, shape, denoise_last=False)
  return calls + draws * int(a_step * inside[:-1].sum() + inside[-1])
