"""An experiment's pieces put together: the functions that a run calls, compiled for all devices."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import devices, streams
from diffusion.data import augment, feed, pipeline, records, sources, splits
from diffusion.data.order import Order, check_size
from diffusion.data.records import Records, select
from diffusion.evaluation import gap
from diffusion.evaluation.metric import Asked, Network, Plan
from diffusion.models import summary
from diffusion.process import gaussian
from diffusion.sampling import ensembles, samplers
from diffusion.sampling.guidance import clip_x0
from diffusion.training import experiment as experiments
from diffusion.training import state as states
from diffusion.training import step as steps
from diffusion.training.experiment import Experiment
from diffusion.types import (
  NULL,
  Array,
  Conditioning,
  Denoiser,
  Path,
  Rows,
)


class Loaded(NamedTuple):
  """The data of an experiment, split; arrays as stored. `order` is the training examples' by the curriculum.

  `order` are rows of `dataset`. The training images are `Records` where they are streamed, which read on demand.
  """

  dataset: sources.Dataset
  split: splits.Split
  units: pipeline.Units
  order: np.ndarray | None
  train: tuple[np.ndarray | Records, np.ndarray]
  validation: tuple[np.ndarray, np.ndarray]
  test: tuple[np.ndarray, np.ndarray]

  @property
  def streamed(self) -> bool:
    """The training images stay in their files."""
    return isinstance(self.train[0], Records)

  @property
  def comparable(self) -> bool:
    """All training examples may be read into memory, to compare with them."""
    return not self.streamed or self.train[0].fits

  @property
  def train_in_memory(self) -> tuple[np.ndarray, np.ndarray]:
    """All training examples; raises ValueError where they are streamed and too many."""
    return np.asarray(self.train[0]), self.train[1]

  @property
  def held_out(self) -> tuple[np.ndarray, np.ndarray]:
    """Validation and test examples together."""
    return tuple(np.concatenate(pair) for pair in zip(self.validation, self.test, strict=True))


def load_data(experiment: Experiment) -> Loaded:
  """Loads and splits the data; raises one readable ValueError when it cannot."""
  data = experiment.data.load()
  if experiment.model.num_classes not in (0, data.num_classes):
    raise ValueError(
      f'the network has num_classes={experiment.model.num_classes}, {data.name} has {data.num_classes} classes: make '
      'them agree'
    )
  turned = augment.leaky_turns(experiment.augment)
  if turned and data.oriented and experiment.model.num_classes:
    print(
      f'warning: {" and ".join(turned)} of {data.name} may make an image of another class, and the network is not '
      'told: put it into augment.conditioned, or leave it out',
      file=sys.stderr,
      flush=True,
    )
  split = splits.make(data.x, data.label, experiment.split, data.test is not None)
  streamed = isinstance(data.x, Records)
  check_size(len(split.train))
  if len(split.validation) < 2:
    raise ValueError(
      f'validation needs at least 2 examples, got {len(split.validation)}: hold out more'
    )
  parts = [(data.x[i], data.label[i]) for i in (split.validation, split.test)]
  parts = [(select(data.x, split.train), data.label[split.train]), *parts]
  if streamed:
    _check_streamed(experiment, parts[0][0])
  if data.test is not None:
    parts[2] = data.test
    digests = splits.content_hashes(data.test[0], experiment.split.salt)
    split.hashes['test'] = splits.fingerprint(digests)
  train = parts[0]
  plan = judged_plan(experiment, data, [len(x) for x, _ in parts])
  for metric in experiment.metrics:
    metric.check(plan)
  units = experiment.normalization(train[0], data.levels)
  order = None
  if experiment.curriculum is not None:
    score = (
      experiment.curriculum.rank(*train) if experiment.curriculum.rank else np.zeros(len(train[0]))
    )
    order = split.train[np.argsort(score, kind='stable')].astype(np.int32)
  return Loaded(data, split, units, order, *parts)


def _check_streamed(experiment: Experiment, train: Records) -> None:
  """Raises ValueError where an experiment looks at all training examples at once and they stay in their files."""
  if experiment.curriculum is not None and experiment.curriculum.rank is not None:
    raise ValueError(
      'a curriculum that ranks the examples needs them in memory: it does not go with streamed data'
    )
  looks = [c.name for c in experiment.callbacks if c.name == 'watch_memorization']
  if not train.fits and (experiment.metrics or looks):
    raise ValueError(
      f'{len(train)} streamed training images are too many to be compared with (the limit is {records.WHOLE} bytes): '
      'leave out metrics and watch_memorization'
    )


def judged_plan(experiment: Experiment, data: sources.Dataset, sizes: Sequence[int]) -> Plan:
  """What the metrics will be given; `sizes` are those of the training, validation and test splits."""
  samples = experiment.sampling.per_class * max(1, data.num_classes)
  return Plan(samples, data.num_classes, data.x.shape[1:], sizes[0], sizes[1] + sizes[2])


def fitted(experiment: Experiment, units: pipeline.Units) -> Experiment:
  """The experiment with the plain `clip_x0` of its sampling set to the range that the data has in these units."""
  if units.levels is None or units.range == (-1.0, 1.0):
    return experiment
  low, high = units.range
  clip = functools.partial(clip_x0, low=low, high=high)
  wrappers = tuple(clip if one is clip_x0 else one for one in experiment.sampling.wrappers)
  return experiment._replace(sampling=experiment.sampling._replace(wrappers=wrappers))


def init_state(
  experiment: Experiment, stored: np.ndarray, units: pipeline.Units
) -> states.TrainState:
  """The state before the first step, on one device.

  Args:
    experiment: what is trained.
    stored: one example as stored, with a batch axis; only its shape matters.
    units: of the stored data.

  Raises:
    ValueError: a network that does not take such an example, or a validation bank outside the schedule.
  """
  init = devices.compile_quickly(
    make_init(experiment, stored, units)
  )  # leaf by leaf it takes seconds
  state = init(jnp.uint32(experiment.seed), stored)
  check_state(experiment, state)
  return state


def check_state(experiment: Experiment, state: states.TrainState) -> None:
  """Raises ValueError for a validation bank outside the schedule, or statistics of single rows."""
  experiments.check_statistics(experiment, state.statistics)
  gap.check_bank(experiment.bank, experiment.diffusion, state.params.schedule)


def make_init(
  experiment: Experiment, stored: np.ndarray, units: pipeline.Units
) -> Callable[[Array, Array], states.TrainState]:
  """(seed, one example as stored, with a batch axis) -> the state before the first step; the rest as `init_state`."""
  live = experiments.live_terms(experiment)
  terms = {name: term for name, (_, term) in live.items()}

  def augmented(stored: Array) -> Array:
    batch = pipeline.gather(
      pipeline.Resident(stored, jnp.zeros(1, jnp.int32)), jnp.zeros(1, jnp.int32), units
    )
    keys = streams.row_keys(jax.random.key(0), jnp.arange(1))
    return experiment.augment(keys, batch).augment_label

  size = jax.eval_shape(augmented, stored).shape[1]

  def init(seed: Array, stored: Array) -> states.TrainState:
    parameters, statistics = states.init_parameters(
      seed, experiment.model, experiment.diffusion, terms, pipeline.normalize(stored, units), size
    )
    return states.init_state(
      seed, parameters, statistics, experiment.optimizer, experiment.averages,
      experiment.times, steps.empty_window(live, experiment.optimizer, experiment.gradient_noise),
    )  # fmt: skip

  return init


def pieces(experiment: Experiment, units: pipeline.Units) -> steps.Pieces:
  """The experiment's share of a training step."""
  return steps.Pieces(
    experiment.diffusion, experiment.model, experiments.live_terms(experiment), experiment.times,
    experiment.optimizer, experiment.averages, experiment.augment, units, experiment.num_steps, experiment.log_every,
    experiment.micro_batches, experiment.gradient_noise, experiment.curriculum,
  )  # fmt: skip


def step_flops(experiment: Experiment, loaded: Loaded, state: states.TrainState) -> int:
  """Floating-point operations of a training step per image; `state` gives the shapes."""
  step, size = steps.make_step(pieces(experiment, loaded.units)), experiment.batch_size

  def one(state, x, label, index):
    rows = Rows(jnp.arange(size), size)
    return step(state, None, pipeline.Drawn(x, label, index), rows, lambda tree: tree)

  whole = jax.ShapeDtypeStruct((size,), jnp.int32)
  x = jax.ShapeDtypeStruct((size, *loaded.dataset.x.shape[1:]), loaded.dataset.x.dtype)
  return summary.flops(one, state, x, whole, whole) // size


def judged_parameters(experiment: Experiment, state: states.TrainState) -> states.Parameters:
  """The parameters that are validated and sampled: the judged average, or the last ones."""
  if not experiment.judged:
    return experiment.optimizer.read(state.optimizer, state.params)
  return experiment.averages[experiment.judged].read(state.averages[experiment.judged])


def weights(experiment: Experiment, state: states.TrainState) -> tuple:
  """What validation and sampling need of a replicated state: (judged parameters, their statistics, seed)."""
  return judged_parameters(experiment, state), state.judged_statistics, state.seed


class Programs(NamedTuple):
  """The compiled functions of a run, made once; all take replicated trees.

  Attributes:
    dispatch: (state, batches seen) -> (state, metrics); donates the state.
    settle: state -> state with the judged weights' own batch statistics, donating it; or the same state, where there
      are none.
    losses: (weights, x as stored [n, ...], label [n], position [n]) -> bank losses [n, L].
    validate: weights -> validation row.
    sample: ((parameters, statistics, sampler seed), label [n], number [n]) -> samples [n, ...] in network units.
    close: () -> None; ends what reads ahead of `dispatch`.
  """

  dispatch: Callable[[Any, int], tuple[Any, Any]]
  settle: Callable[[Any], Any]
  losses: Callable[..., np.ndarray]
  validate: Callable[[Any], dict[str, float]]
  sample: Callable[..., np.ndarray]
  close: Callable[[], None]


def programs(experiment: Experiment, loaded: Loaded) -> Programs:
  """The run's functions on all devices.

  The data is sent to every device when first needed, once; where it is streamed, batch by batch.
  """
  parts = pieces(experiment, loaded.units)
  batches = _batches(experiment, loaded)
  step = devices.compile_apart(devices.parallelize(steps.make_step(parts), experiment.batch_size))

  def dispatch(state: Any, seen: int) -> tuple[Any, Any]:
    result = step(state, batches.data(), batches.take(seen))
    batches.ahead()
    return result

  losses = gap.bank_losses(experiment.diffusion, experiment.model, loaded.units, experiment.bank)
  return Programs(
    dispatch=dispatch,
    settle=_make_settle(experiment, steps.make_statistics(parts), batches),
    losses=losses,
    validate=_make_validate(losses, loaded),
    sample=make_sample(experiment, loaded.dataset.x.shape[1:]),
    close=batches.close,
  )


class _Batches(NamedTuple):
  """What steps are given: rows of the data on the devices, or (`data() = None`) what the host reads of them.

  Attributes:
    data: () -> what every device holds.
    take: batches seen -> what the steps of a dispatch are given.
    first: () -> the batches that `make_statistics` takes, as one step's.
    ahead: () -> None; prepares what the next dispatch takes.
    close: () -> None.
  """

  data: Callable[[], Any]
  take: Callable[[int], Any]
  first: Callable[[], Any]
  ahead: Callable[[], None]
  close: Callable[[], None]


def _batches(experiment: Experiment, loaded: Loaded) -> _Batches:
  size, count = experiment.batch_size, experiment.steps_per_dispatch
  order = Order(experiment.seed, loaded.split.train)

  def as_one(given: Any) -> Any:
    return jax.tree.map(lambda x: x[:, None], given)

  if loaded.streamed:
    rows = devices.rows_of_this_process(size)
    fed = feed.Feed(loaded.dataset.x, order, rows, size, count)
    first = functools.cache(lambda: as_one(fed.read(0, steps.STATISTICS_BATCHES)))
    return _Batches(
      lambda: None, fed.take, lambda: devices.spread(first()), fed.ahead, close=fed.close
    )
  resident = pipeline.Resident(loaded.dataset.x, loaded.dataset.label, loaded.order)
  return _Batches(
    data=functools.cache(lambda: devices.replicate(resident)),
    take=lambda seen: devices.split_rows(order.batches(seen, count, size)),
    first=lambda: as_one(devices.split_rows(order.batches(0, steps.STATISTICS_BATCHES, size))),
    ahead=lambda: None,
    close=lambda: None,
  )


def _make_settle(experiment: Experiment, statistics: Callable, batches: _Batches) -> Callable:
  def one(state: states.TrainState, data, given, rows, cross_mean):
    judged = judged_parameters(experiment, state)
    found = statistics(judged, state, data, given, rows, cross_mean)
    return state._replace(judged_statistics=found), ()

  settle = devices.parallelize(one, experiment.batch_size)

  def settled(state: Any) -> Any:
    if not state.statistics:
      return state
    return settle(state, batches.data(), batches.first())[0]

  return settled


def evenly(loaded: Loaded) -> np.ndarray:
  """As many training examples as there are held-out ones, if there are: their positions in the training split."""
  count = min(len(loaded.validation[0]), len(loaded.train[0]))
  return np.linspace(0, len(loaded.train[0]) - 1, count).round().astype(int)


def _make_validate(losses: Callable, loaded: Loaded) -> Callable[[Any], dict[str, float]]:
  """Weights -> validation row: the bank's losses of the validation split and of as many training examples.

  Training examples are taken evenly over the split and keep the same positions in the bank, hence the same noise.
  """
  held_out = loaded.validation
  seen = tuple(part[evenly(loaded)] for part in loaded.train)

  def validate(weights: Any) -> dict[str, float]:
    return gap.summarize(*(losses(weights, *p, np.arange(len(p[0]))) for p in (seen, held_out)))

  return validate


def make_denoiser(
  experiment: Experiment, path: Path, parameters: Any, statistics: Any, label: Array, **mode: bool
) -> Denoiser:
  """The network with given weights as a denoiser of examples with these labels; a key turns dropout on.

  With forward_mode=True it has a jvp, which likelihoods need.
  """

  batch_key = streams.stream(0, 'dropout')  # one draw for all samples, whatever the chunk

  def network(z: Array, noise: Array, key) -> Array:
    conditioning = Conditioning(label, jnp.zeros((z.shape[0], 0), z.dtype))
    variables = {'params': parameters.network, **statistics}
    return experiment.model.apply(
      variables, z, noise, conditioning, keys=key, batch_key=batch_key, **mode
    )[0]

  return gaussian.denoiser(path, experiment.diffusion.parameterization, network)


def make_sample(
  experiment: Experiment, shape: tuple[int, ...], chunk: int = 128, members: int = 0
) -> Callable[..., np.ndarray]:
  """Draws samples on all devices.

  Args:
    experiment: with its `sampling`.
    shape: of one sample.
    chunk: samples a device draws at a time.
    members: of an ensemble, whose parameters and statistics then come as tuples, one each; 0 for a single network.

  Returns:
    (replicated (parameters, statistics, sampler seed), label [n], number [n]) -> samples [n, *shape] in network
    units. Sample `number` is a function of (weights, seed, number, label) alone.

  Raises:
    ValueError: (when called) as `plan_walk` does.
  """

  def draw(weights, label: Array, number: Array) -> Array:
    *networks, seed = weights
    networks = list(zip(*networks, strict=True)) if members else [networks]
    path = gaussian.bind(experiment.diffusion, networks[0][0].schedule)
    conditional, null = (
      ensembles.mean([make_denoiser(experiment, path, *one, label) for one in networks])
      if members
      else make_denoiser(experiment, path, *networks[0], label)
      for label in (label, jnp.full_like(label, NULL))
    )
    keys = streams.row_keys(streams.stream(seed, 'sampler'), number)
    walk = experiments.plan_walk(experiment, path, conditional, null, keys)
    return samplers.sample(walk.denoise, path, walk.sampler, walk.grid, keys, shape)

  return devices.over_rows(draw, chunk)


def judged_network(
  experiment: Experiment, units: pipeline.Units, weights: Any, chunk: int = 64
) -> Network:
  """The judged network for metrics that ask it, e.g. for likelihoods; see `metric.Network`."""

  def tell(label: np.ndarray) -> np.ndarray:
    return label if experiment.model.num_classes else np.full_like(label, NULL)

  def apply(function: Callable, x: np.ndarray, label: np.ndarray, shared: Any = ()) -> Any:
    def rows(given, x: Array, label: Array, told: Array, position: Array) -> Any:
      (parameters, statistics, seed), more = given
      path = gaussian.bind(experiment.diffusion, parameters.schedule)
      denoise = make_denoiser(experiment, path, parameters, statistics, label, forward_mode=True)
      keys = streams.row_keys(streams.stream(seed, 'likelihood'), position)
      return function(Asked(denoise, path, keys, pipeline.normalize(x, units), told), more)

    given = (weights, devices.replicate(shared))
    return devices.over_rows(rows, chunk)(given, x, label, tell(label), np.arange(len(x)))

  path = gaussian.bind(experiment.diffusion, devices.first(weights[0]).schedule)
  ends = tuple(float(path.log_snr(jnp.asarray(t))) for t in (1.0, 0.0))
  return Network(apply, lambda x: pipeline.normalize(jnp.asarray(x), units), ends)


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
  return host_target_of(lambda: state)


def host_target_of(make: Callable[[], states.TrainState]) -> Any:
  """`host_target` of the state that `make` would return."""
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(make))
