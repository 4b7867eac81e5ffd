"""An experiment, and its pieces put together: the functions that a run calls, compiled for all devices."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import checks, devices, streams
from diffusion.data import augment, pipeline, sources, splits
from diffusion.evaluation import gap
from diffusion.evaluation.evaluate import Apply, Metric
from diffusion.process import gaussian
from diffusion.sampling import grids, guidance, samplers
from diffusion.training import state as states
from diffusion.training import step as steps
from diffusion.training.callbacks import Callback
from diffusion.training.loop import Cadence, check_cadence
from diffusion.types import (
  NULL,
  Array,
  Augment,
  Average,
  Conditioning,
  Denoiser,
  Diffusion,
  Model,
  Optimizer,
  Path,
  Sampler,
  Term,
  Times,
)


class Sampling(NamedTuple):
  """How pictures and evaluation samples are drawn.

  Attributes:
    sampler: path -> sampler, e.g. `samplers.ddim`.
    steps: steps of the grid.
    guidance: classifier-free guidance scale; 1 is the conditional model alone.
    clip: clip the predicted x0 to [-1, 1]; for images.
    grid_rows: samples of each class in `samples.png`.
    per_class: samples of each class that the metrics judge; unlabelled data counts as one class.
    grid: (path, steps) -> times [steps + 1], from `sampling.grids`; uniform in t by default.
  """

  sampler: Callable[[Path], Sampler] = samplers.ddim
  steps: int = 50
  guidance: float = 1.0
  clip: bool = True
  grid_rows: int = 8
  per_class: int = 100
  grid: Callable[[Path, int], Array] = lambda path, steps: grids.uniform_time(steps)


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
  check_cadence(cadence(experiment), experiment.callbacks)
  if not experiment.terms:
    raise ValueError('terms is empty: an experiment needs a loss')
  if experiment.judged and experiment.judged not in experiment.averages:
    raise ValueError(
      f'judged names the average {experiment.judged!r}, there are {sorted(experiment.averages)}'
    )
  names = [callback.name for callback in experiment.callbacks]
  if len(set(names)) < len(names):
    raise ValueError(f'two callbacks of one name: {names}')


def cadence(experiment: Experiment) -> Cadence:
  """The experiment's periods as the loop wants them."""
  return Cadence(
    experiment.num_steps,
    experiment.log_every,
    experiment.validate_every,
    experiment.steps_per_dispatch,
  )


class Loaded(NamedTuple):
  """The data of an experiment, split; arrays as stored."""

  dataset: sources.Dataset
  split: splits.Split
  train: tuple[np.ndarray, np.ndarray]
  validation: tuple[np.ndarray, np.ndarray]
  test: tuple[np.ndarray, np.ndarray]


def load_data(experiment: Experiment) -> Loaded:
  """Loads and splits the data; raises one readable ValueError when it cannot."""
  data = experiment.data.load()
  if experiment.model.num_classes not in (0, data.num_classes):
    raise ValueError(
      f'the network has num_classes={experiment.model.num_classes}, {data.name} has {data.num_classes} classes: make '
      'them agree'
    )
  samples = experiment.sampling.per_class * max(1, data.num_classes)
  for metric in experiment.metrics:
    metric.check(samples, data.num_classes)
  split = splits.make(data.x, data.label, experiment.split, data.test is not None)
  pipeline.check_size(len(split.train), experiment.batch_size)
  if len(split.validation) < 2:
    raise ValueError(
      f'validation needs at least 2 examples, got {len(split.validation)}: hold out more'
    )
  parts = [(data.x[i], data.label[i]) for i in (split.train, split.validation, split.test)]
  if data.test is not None:
    parts[2] = data.test
    digests = splits.content_hashes(data.test[0], experiment.split.salt)
    split.hashes['test'] = splits.fingerprint(digests)
  return Loaded(data, split, *parts)


def init_state(experiment: Experiment, stored: np.ndarray, levels: int | None) -> states.TrainState:
  """The state before the first step, on one device.

  Args:
    experiment: what is trained.
    stored: one example as stored, with a batch axis; only its shape matters.
    levels: of the stored data, None for floats.

  Raises:
    ValueError: a network that does not take such an example, or a validation bank outside the schedule.
  """
  terms = {name: term for name, (_, term) in experiment.terms.items()}

  @devices.compile_quickly  # as one program: leaf by leaf it takes seconds
  def init(seed: Array, stored: Array) -> states.TrainState:
    parameters, statistics = states.init_parameters(
      seed, experiment.model, experiment.diffusion, terms, pipeline.normalize(stored, levels)
    )
    return states.init_state(
      seed, parameters, statistics, experiment.optimizer, experiment.averages,
      experiment.times, steps.empty_window(experiment.terms),
    )  # fmt: skip

  state = init(jnp.uint32(experiment.seed), stored)
  gap.check_bank(experiment.bank, experiment.diffusion, state.params.schedule)
  return state


def pieces(experiment: Experiment, levels: int | None) -> steps.Pieces:
  """The experiment's share of a training step."""
  return steps.Pieces(
    experiment.diffusion, experiment.model, experiment.terms, experiment.times, experiment.optimizer,
    experiment.averages, experiment.augment, levels, experiment.num_steps, experiment.log_every,
  )  # fmt: skip


def judged_parameters(experiment: Experiment, state: states.TrainState) -> states.Parameters:
  """The parameters that are validated and sampled: the judged average, or the last ones."""
  if not experiment.judged:
    return state.params
  return experiment.averages[experiment.judged].read(state.averages[experiment.judged])


def weights(experiment: Experiment, state: states.TrainState) -> tuple:
  """What validation and sampling need of a replicated state: (judged parameters, statistics, seed)."""
  return judged_parameters(experiment, state), state.statistics, state.seed


class Programs(NamedTuple):
  """The compiled functions of a run, made once; all take replicated trees.

  Attributes:
    dispatch: state -> (state, metrics); donates the state.
    losses: (weights, x as stored [n, ...], label [n], position [n]) -> bank losses [n, L].
    validate: weights -> validation row.
    sample: ((parameters, statistics, sampler seed), label [n], number [n]) -> samples [n, ...] in network units.
  """

  dispatch: Callable[[Any], tuple[Any, Any]]
  losses: Callable[..., np.ndarray]
  validate: Callable[[Any], dict[str, float]]
  sample: Callable[..., np.ndarray]


def programs(experiment: Experiment, loaded: Loaded) -> Programs:
  """The run's functions on all devices. The training split is sent to every device when first needed, once."""
  data = loaded.dataset
  step = devices.parallelize(
    steps.make_step(pieces(experiment, data.levels)),
    experiment.batch_size,
    experiment.steps_per_dispatch,
  )
  resident = functools.cache(lambda: devices.replicate(pipeline.Resident(*loaded.train)))
  losses = gap.bank_losses(experiment.diffusion, experiment.model, data.levels, experiment.bank)
  return Programs(
    dispatch=lambda state: step(state, resident()),
    losses=losses,
    validate=_make_validate(losses, loaded),
    sample=make_sample(experiment, data.x.shape[1:]),
  )


def _make_validate(losses: Callable, loaded: Loaded) -> Callable[[Any], dict[str, float]]:
  """Weights -> validation row: the bank's losses of the validation split and of as many training examples.

  Training examples are taken evenly over the split and keep the same positions in the bank, hence the same noise.
  """
  held_out = loaded.validation
  count = min(len(held_out[0]), len(loaded.train[0]))
  even = np.linspace(0, len(loaded.train[0]) - 1, count).round().astype(int)
  seen = tuple(part[even] for part in loaded.train)

  def validate(weights: Any) -> dict[str, float]:
    return gap.summarize(*(losses(weights, *p, np.arange(len(p[0]))) for p in (seen, held_out)))

  return validate


def make_denoiser(
  experiment: Experiment, path: Path, parameters: Any, statistics: Any, label: Array, **mode: bool
) -> Denoiser:
  """The network with given weights as a denoiser of examples with these labels; a key turns dropout on.

  With forward_mode=True it has a jvp, which likelihoods need.
  """

  def network(z: Array, noise: Array, key) -> Array:
    conditioning = Conditioning(label, jnp.zeros((z.shape[0], 0), z.dtype))
    variables = {'params': parameters.network, **statistics}
    return experiment.model.apply(variables, z, noise, conditioning, keys=key, **mode)[0]

  return gaussian.denoiser(path, experiment.diffusion.parameterization, network)


def make_sample(
  experiment: Experiment, shape: tuple[int, ...], chunk: int = 128
) -> Callable[..., np.ndarray]:
  """Draws samples on all devices.

  Args:
    experiment: with its `sampling`.
    shape: of one sample.
    chunk: samples a device draws at a time.

  Returns:
    (replicated (parameters, statistics, sampler seed), label [n], number [n]) -> samples [n, *shape] in network
    units. Sample `number` is a function of (weights, seed, number, label) alone.

  Raises:
    ValueError: guidance of an unconditional network.
  """
  plan = experiment.sampling
  if plan.guidance != 1 and not experiment.model.num_classes:
    raise ValueError(f'guidance of an unconditional network must be 1, got {plan.guidance}')

  def draw(weights, label: Array, number: Array) -> Array:
    parameters, statistics, seed = weights
    path = gaussian.bind(experiment.diffusion, parameters.schedule)
    conditional, null = (
      make_denoiser(experiment, path, parameters, statistics, label)
      for label in (label, jnp.full_like(label, NULL))
    )
    denoise = guidance.classifier_free(conditional, null, plan.guidance)
    if plan.clip:
      denoise = guidance.clip_x0(denoise, path)
    keys = streams.row_keys(streams.stream(seed, 'sampler'), number)
    times = plan.grid(path, plan.steps)
    return samplers.sample(denoise, path, plan.sampler(path), times, keys, shape)

  return devices.over_rows(draw, chunk)


def evaluations(experiment: Experiment, shape: tuple[int, ...]) -> int:
  """How many evaluations of the network one sample takes, guidance included."""
  plan, schedule = experiment.sampling, experiment.diffusion.schedule.init(jax.random.key(0))
  path = gaussian.bind(experiment.diffusion, schedule)
  calls = samplers.evaluations(plan.sampler(path), plan.steps, shape)
  return calls if plan.guidance == 1 else 2 * calls


def make_apply(experiment: Experiment, levels: int | None, weights: Any, chunk: int = 64) -> Apply:
  """The judged network for metrics that ask it, e.g. for likelihoods; see `evaluate.Apply`."""

  def apply(function: Callable, x: np.ndarray, label: np.ndarray) -> Any:
    def rows(shared, x: Array, label: Array, position: Array) -> Any:
      parameters, statistics, seed = shared
      path = gaussian.bind(experiment.diffusion, parameters.schedule)
      denoise = make_denoiser(experiment, path, parameters, statistics, label, forward_mode=True)
      keys = streams.row_keys(streams.stream(seed, 'likelihood'), position)
      return function(denoise, path, keys, pipeline.normalize(x, levels))

    return devices.over_rows(rows, chunk)(weights, x, label, np.arange(len(x)))

  return apply


def class_labels(num_classes: int, per_class: int) -> np.ndarray:
  """Labels 0, 1, ..., each `per_class` times in turn: [max(1, num_classes) * per_class], row by row of a grid."""
  return np.tile(np.arange(max(1, num_classes), dtype=np.int32), per_class)


def picture_labels(experiment: Experiment, levels: int | None, num_classes: int) -> np.ndarray:
  """Labels of the samples in a picture: `grid_rows` of each class for images, `per_class` for points of vectors."""
  plan = experiment.sampling
  return class_labels(
    num_classes, plan.per_class if levels is None else min(plan.grid_rows, plan.per_class)
  )


def host_target(state: states.TrainState) -> Any:
  """The state's shapes and types as NumPy arrays, to restore into."""
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(lambda: state))
