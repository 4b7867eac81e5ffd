"""An experiment: everything a run is, as values and pure functions, and the checks that need all of it."""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import checks, devices, naming, rng
from diffusion.data import augment, pipeline, sources, splits
from diffusion.data.pipeline import NormalizationStatistics
from diffusion.data.records import DiskRecords
from diffusion.data.splits import SplitData
from diffusion.evaluation import gap
from diffusion.evaluation.metric import Metric, Plan
from diffusion.objectives import times
from diffusion.optimizers import averaging
from diffusion.sampling import plan as plans
from diffusion.sampling.guidance import clip_x0
from diffusion.sampling.plan import Sampling
from diffusion.training.callbacks import Callback, checkpoint
from diffusion.types import (
  Augment,
  Average,
  Condition,
  Curriculum,
  Diffusion,
  Keys,
  Model,
  Optimizer,
  Term,
  Times,
)


@dataclasses.dataclass
class Numbers:
  """The numbers common to all experiments, each a flag; an experiment file's `Config` inherits and adds its own.

  Attributes:
    seed: root of all random streams.
    num_steps, batch_size, steps_per_dispatch, log_every, validate_every: see `Experiment`.
    learning_rate: at its highest.
    clip_norm: the largest gradient norm.
    ema_decay: of the average that is evaluated.
    sampling_steps: of the sampler.
  """

  seed: int = 0
  num_steps: int = 500
  batch_size: int = 128
  steps_per_dispatch: int = 10
  log_every: int = 10
  validate_every: int = 100
  learning_rate: float = 2e-3
  clip_norm: float = 1.0
  ema_decay: float = 0.99
  sampling_steps: int = 25

  def loop(self) -> dict[str, int]:
    """Those that `Experiment` takes by their names."""
    names = ('seed', 'num_steps', 'batch_size', 'steps_per_dispatch', 'log_every', 'validate_every')
    return {name: getattr(self, name) for name in names}


class _Fields(NamedTuple):
  """See `Experiment`."""

  seed: int
  num_steps: int
  batch_size: int
  log_every: int
  validate_every: int
  data: sources.Source
  diffusion: Diffusion
  model: Model
  terms: Mapping[str, tuple[float, Term]]
  optimizer: Optimizer
  times: Times = times.stratified()
  averages: Mapping[str, Average] = MappingProxyType({'ema': averaging.ema(0.999)})
  evaluation_average: str | None = None
  callbacks: Sequence[Callback] = (checkpoint(),)
  augment: Augment = augment.chain()
  split: splits.Fractions = splits.Fractions()
  evaluation_noise: gap.EvaluationNoise = gap.evaluation_noise()
  sampling: Sampling = Sampling()
  metrics: Sequence[Metric] = ()
  steps_per_dispatch: int = 1
  normalization: pipeline.Normalization | None = None
  curriculum: Curriculum | None = None
  micro_batches: int = 1
  gradient_noise: bool = False


RENAMED = {'judged': 'evaluation_average', 'bank': 'evaluation_noise'}  # fields of earlier versions


class Experiment(_Fields):
  """Everything a run is, as values and pure functions; an experiment file builds one from its numbers.

  Attributes:
    seed: root of all random streams.
    num_steps, batch_size: of training; the batch is the global one.
    log_every, validate_every: steps; each a multiple of the one before, the first of `steps_per_dispatch`.
    data, split: where the data comes from and how much of it is held out.
    diffusion, model, times, optimizer: one each.
    terms: name -> (factor, term) of the loss.
    averages: name -> average.
    evaluation_average: which of them is validated and sampled, '' for the weights themselves; by default the first one,
      or the weights where there are no averages.
    augment: transformation of training batches.
    callbacks: in order.
    evaluation_noise: noise levels and draws of validation.
    sampling: how samples are drawn.
    metrics: what measures the samples of the finished run.
    steps_per_dispatch: training steps in one call of the devices; more costs nothing but a slower reaction to signals.
    normalization: (training split as stored, levels) -> units, from `data.pipeline`; None is `pipeline.usual` of the
      data: images to [-1, 1], anything else standardized.
    curriculum: which examples are drawn, from `data.curriculum`; None draws all.
    micro_batches: parts of a batch whose gradients are summed one after another, to fit a large batch into memory.
    gradient_noise: log the gradient's noise scale, in examples; it needs micro_batches >= 2 to compare.
  """

  __slots__ = ()

  def __new__(cls, **fields: Any) -> 'Experiment':
    """Raises TypeError for a field that there is not, or is no longer, or is missing."""
    _check_names(fields)
    return super().__new__(cls, **fields)

  def _replace(self, **fields: Any) -> 'Experiment':
    """The experiment with other fields; raises TypeError as the constructor does."""
    _check_names(fields)
    return super()._replace(**fields)


def _check_names(fields: Mapping[str, Any]) -> None:
  for name in fields:
    if name in RENAMED:
      raise TypeError(f'the field {name} of an Experiment is now {RENAMED[name]}')
    if name not in _Fields._fields:
      near = naming.nearest(name, _Fields._fields)
      raise TypeError(f'an Experiment has no field {name}: the nearest is {near}')


def check(experiment: Experiment) -> None:
  """Raises ValueError for what no single factory can see: names, cadences and batches that do not fit together."""
  for name in ('num_steps', 'batch_size', 'log_every', 'validate_every', 'steps_per_dispatch'):
    checks.integer(name, getattr(experiment, name))
  rng.check_seed('seed', experiment.seed)
  devices.check_batch(experiment.batch_size)
  parts, rows = experiment.micro_batches, devices.rows_of_a_device(experiment.batch_size)
  checks.integer('micro_batches', parts)
  if rows % parts:
    raise ValueError(f'micro_batches must divide the {rows} rows of a device, got {parts}')
  if experiment.gradient_noise and parts < 2:
    raise ValueError(
      f'gradient_noise compares parts of a batch: set micro_batches >= 2, got {parts}'
    )
  check_cadence(experiment)
  if not live_terms(experiment):
    raise ValueError('no term of the loss is on: an experiment needs one')
  named = experiment.evaluation_average
  if named and named not in experiment.averages:
    raise ValueError(
      f'evaluation_average names the average {experiment.evaluation_average!r}, there are {sorted(experiment.averages)}'
    )
  names = [callback.name for callback in experiment.callbacks]
  if len(set(names)) < len(names):
    raise ValueError(f'two callbacks of one name: {names}')
  for callback in experiment.callbacks:
    if callback.survives_rollback and not any(one.saves for one in experiment.callbacks):
      raise ValueError(
        f'{callback.name} goes back to checkpoints, and the experiment saves none: add callbacks.checkpoint(...)'
      )
  plans.check(experiment.sampling, experiment.diffusion, experiment.model.null is not None)


def evaluated_average(experiment: Experiment) -> str:
  """The name of the average that is validated and sampled; '' for the weights themselves."""
  name = experiment.evaluation_average
  return next(iter(experiment.averages), '') if name is None else name


def live_terms(experiment: Experiment) -> dict[str, tuple[float, Term]]:
  """The terms whose factor is on: a Python 0 leaves no code behind."""
  return {name: term for name, term in experiment.terms.items() if not checks.off(term[0])}


def check_cadence(experiment: Experiment) -> None:
  """Raises ValueError where a period is not a multiple of the one it must contain.

  Callbacks see logged rows, so their periods are multiples of `log_every`.
  """
  log_every, dispatch = experiment.log_every, experiment.steps_per_dispatch
  pairs = [
    ('log_every', log_every, 'steps_per_dispatch', dispatch),
    ('validate_every', experiment.validate_every, 'log_every', log_every),
    ('num_steps', experiment.num_steps, 'steps_per_dispatch', dispatch),
    *(
      (f'{c.name} every', c.every, 'log_every', log_every) for c in experiment.callbacks if c.every
    ),
  ]
  for name, value, other, unit in pairs:
    if value < 1 or value % unit:
      raise ValueError(f'{name} must be a positive multiple of {other} = {unit}, got {value}')


def load_data(experiment: Experiment, class_names: Sequence[str] = ()) -> SplitData:
  """Reads and splits the data, and checks what of the experiment can be checked now.

  Args:
    experiment: checked.
    class_names: in the order in which the run recorded them, if there is one.

  Raises:
    ValueError: one readable error where the data cannot be read or split, or does not go with the experiment.
  """
  dataset = sources.in_order_of(experiment.data.load(), class_names)
  if dataset.condition is None and experiment.model.num_classes not in (0, dataset.num_classes):
    names = ', '.join([*dataset.class_names[:10], *['...'] * (dataset.num_classes > 10)]) or 'none'
    empty = dataset.found.get('folders without an image')
    raise ValueError(
      f'the network has num_classes={experiment.model.num_classes}, {dataset.name} has {dataset.num_classes} classes '
      f'({names}{f"; without an image that Pillow reads: {empty}" if empty else ""}): make them agree'
    )
  turned = augment.leaky_turns(experiment.augment)
  if turned and dataset.oriented and experiment.model.num_classes:
    print(
      f'warning: {" and ".join(turned)} of {dataset.name} may make an image of another class, and the network is not '
      'told: put it into augment.conditioned, or leave it out',
      file=sys.stderr,
      flush=True,
    )
  curriculum = experiment.curriculum
  if isinstance(dataset.x, DiskRecords) and curriculum is not None and curriculum.rank is not None:
    raise ValueError(
      'a curriculum that ranks the examples needs them in memory: it does not go with streamed data'
    )
  evaluations_of_a_sample(experiment, dataset.x.shape[1:])  # what its steps refuse, they refuse now
  few = plans.too_few(experiment.sampling, experiment.diffusion)
  if few:
    print(f'warning: {few}', file=sys.stderr, flush=True)
  experiment = resolved(experiment, dataset.levels)
  data = splits.split_data(dataset, experiment.split, experiment.normalization, curriculum)
  clipped = fitted(experiment, data.units).sampling
  plans.check_range(clipped, experiment.diffusion, *pipeline.span(dataset.x, data.units))
  if experiment.metrics:
    data.check_comparable('metrics')
  for callback in experiment.callbacks:
    callback.check(data)
  if experiment.sampling.guidance != 1:
    plans.check_guidance(experiment.sampling, null_is_learned(experiment, data))
  plan = evaluation_plan(experiment, data)
  for metric in experiment.metrics:
    metric.check(plan)
  return data


def null_is_learned(experiment: Experiment, data: SplitData) -> bool:
  """Whether training tells the network nothing of some examples, by its augmentation or since the data has such rows.

  An augmentation is traced: one that hands every condition on as it is drops none. One that changes them is believed.

  Args:
    experiment: checked.
    data: loaded.
  """

  def told(keys: Keys, stored: pipeline.StoredBatch) -> Condition:
    return experiment.augment(keys, pipeline.in_units(stored, data.units)).condition

  keys = rng.row_keys(jax.random.key(0), jnp.zeros(1, jnp.int32))
  traced = jax.make_jaxpr(told)(keys, data.example).jaxpr
  if any(out not in traced.invars for out in traced.outvars):
    return True
  null, conditions = experiment.model.null, data.dataset.condition
  if null is None or conditions is None:
    return False
  pairs = zip(jax.tree.leaves(null(conditions)), jax.tree.leaves(conditions), strict=True)
  same = [(np.asarray(a) == b).reshape(len(b), -1).all(1) for a, b in pairs]
  return bool(np.all(same, axis=0)[data.split.train].any())


def evaluation_plan(experiment: Experiment, data: SplitData) -> Plan:
  """What the metrics will be given."""
  sizes = data.sizes
  return Plan(
    samples=experiment.sampling.per_class * data.kinds,
    classes=len(data.classes),
    shape=data.dataset.x.shape[1:],
    train=sizes['train'],
    held_out=sizes['validation'] + sizes['test'],
    conditions=data.dataset.condition is not None,
  )


def resolved(experiment: Experiment, levels: int | None) -> Experiment:
  """The experiment with the normalization and the wrappers that it leaves to the kind of its data.

  Args:
    experiment: as it was built.
    levels: of the data; None for floats.
  """
  if experiment.normalization is None:
    experiment = experiment._replace(normalization=pipeline.usual(levels))
  sampling = experiment.sampling
  if sampling.wrappers is None:
    sampling = sampling._replace(wrappers=plans.usual_wrappers(levels))
  return experiment._replace(sampling=sampling)


def fitted(experiment: Experiment, units: NormalizationStatistics) -> Experiment:
  """The experiment as it is `resolved`, its plain `clip_x0` set to the range that levels have in these units."""
  experiment = resolved(experiment, units.levels)
  if units.levels is None or units.range == (-1.0, 1.0):
    return experiment
  low, high = units.range
  clip = functools.partial(clip_x0, low=low, high=high)
  wrappers = tuple(clip if one is clip_x0 else one for one in experiment.sampling.wrappers)
  return experiment._replace(sampling=experiment.sampling._replace(wrappers=wrappers))


def evaluations_of_a_sample(experiment: Experiment, shape: tuple[int, ...]) -> int:
  """How many evaluations of the network one sample of this shape takes; see `sampling.plan.evaluations`."""
  return plans.evaluations(experiment.sampling, experiment.diffusion, shape)


class EvaluationSettings(NamedTuple):
  """What a judgment is asked to do differently from the run's own; the empty value of each leaves it as it is.

  Attributes:
    seed: of the sampler.
    samples: how many, rounded up to equally many of each class.
    sampler: a name of `plan.sampler_names()`; it comes with the grid that suits it.
    grid: a name of `plan.grid_names()`.
    steps: of the grid.
    metrics: names of `by_name.metrics()`, or 'all'.
    features: see `by_name.choose_features`.
  """

  seed: int = 0
  samples: int = 0
  sampler: str = ''
  grid: str = ''
  steps: int = 0
  metrics: tuple[str, ...] = ()
  features: str = 'pixels'

  def applied(self, experiment: Experiment) -> Experiment:
    """The experiment with this sampler, grid and steps, and without its own metrics where others are asked for.

    Raises:
      ValueError: an unknown sampler or grid, or a number out of its range.
    """
    rng.check_seed('seed', self.seed)
    for name in ('samples', 'steps'):
      checks.integer(name, getattr(self, name), 0)
    plan = experiment.sampling
    if self.sampler:
      plan = plan._replace(sampler=plans.sampler(self.sampler), grid=None)
    if self.grid:
      plan = plan._replace(grid=plans.grid(self.grid))
    if self.steps:
      plan = plan._replace(steps=self.steps)
    metrics = () if self.metrics else experiment.metrics
    return experiment._replace(sampling=plan, metrics=metrics)


AS_THE_RUN = EvaluationSettings()
