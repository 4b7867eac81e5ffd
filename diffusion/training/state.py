"""All that a training run is, as one tree of arrays. What is not here or in a callback's state does not exist."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import devices, rng
from diffusion.data import pipeline
from diffusion.data.pipeline import NormalizationStatistics, StoredBatch
from diffusion.evaluation import gap
from diffusion.training.experiment import Experiment, evaluated_average, live_terms
from diffusion.types import Array, Batch, Conditioning, Params, Variables

BUCKETS = 8  # equal parts of [0, 1) by t, for the loss per noise level


class Parameters(NamedTuple):
  """Everything that is learned."""

  network: Params
  schedule: Params
  terms: dict[str, Params]


class TrainState(NamedTuple):
  """The state of a run between two steps.

  Attributes:
    seed: uint32, the root of every random stream.
    step: int32, batches on this trajectory; a rollback turns it back.
    batches_seen: int32, batches drawn so far; nothing turns it back.
    skipped: int32, steps left out because something was not finite.
    skipped_in_a_row: int32, of those the ones at the very end.
    params: what is learned.
    learning_rate_scale: a factor of the learning rate, which callbacks set.
    statistics: the network's other variables, e.g. batch-norm averages.
    evaluation_statistics: those of the evaluation parameters, made before each validation.
    optimizer: the optimizer's state.
    averages: one state an average, by name.
    times: the state of the draw of t.
    window: sums of the metrics since the last logged step; see `training.step`.
  """

  seed: Array
  step: Array
  batches_seen: Array
  skipped: Array
  skipped_in_a_row: Array
  params: Parameters
  learning_rate_scale: Array
  statistics: Variables
  evaluation_statistics: Variables
  optimizer: Any
  averages: dict[str, Any]
  times: Any
  window: dict[str, Array]


def empty_window(experiment: Experiment) -> dict[str, Array]:
  """Sums of nothing, one buffer a leaf."""
  names = ['steps', 'loss', 'gradient_norm', 'update_norm', *experiment.optimizer.measured]
  names += [f'loss/{name}' for name in live_terms(experiment)]
  names += ['gradient_square', 'gradient_variance'] * experiment.gradient_noise
  return {name: jnp.zeros(()) for name in names} | {
    'bucket_sum': jnp.zeros(BUCKETS),
    'bucket_count': jnp.zeros(BUCKETS),
  }


def make_init(
  experiment: Experiment, example: StoredBatch, units: NormalizationStatistics
) -> Callable[[Array, Array], TrainState]:
  """(seed, one example as stored, with a batch axis) -> the state before the first step.

  Everything comes from the seed's 'init' stream, and every leaf has a buffer of its own, as donation demands.

  Args:
    experiment: what is trained.
    example: such an example; only its shapes and types matter.
    units: of the stored data.
  """
  size = jax.eval_shape(lambda one: _augment_label(experiment, one, units), example).shape[1]

  def init(seed: Array, example: pipeline.StoredBatch) -> TrainState:
    parameters, statistics = init_parameters(
      experiment, seed, pipeline.in_units(example, units), size
    )
    step, batches_seen, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(4))
    return TrainState(
      seed=jnp.asarray(seed, jnp.uint32),
      step=step,
      batches_seen=batches_seen,
      skipped=skipped,
      skipped_in_a_row=in_a_row,
      params=parameters,
      learning_rate_scale=jnp.ones(()),
      statistics=statistics,
      evaluation_statistics=jax.tree.map(jnp.copy, statistics),
      optimizer=experiment.optimizer.init(parameters),
      averages={n: average.init(parameters) for n, average in experiment.averages.items()},
      times=experiment.times.init(),
      window=empty_window(experiment),
    )

  return init


def _augment_label(
  experiment: Experiment, example: StoredBatch, units: NormalizationStatistics
) -> Array:
  zero = jnp.zeros(1, jnp.int32)
  batch = pipeline.in_units(example, units)
  return experiment.augment(rng.row_keys(jax.random.key(0), zero), batch).augment_label


def init_parameters(
  experiment: Experiment, seed: Array | int, example: Batch, augment_size: int = 0
) -> tuple[Parameters, Variables]:
  """Parameters and other variables from the seed's 'init' stream.

  Args:
    experiment: whose pieces may have parameters.
    seed: of the run.
    example: a batch of one.
    augment_size: numbers in an augmentation label.

  Returns:
    (parameters, statistics).
  """
  key = rng.stream(seed, 'init')
  x = example.x
  conditioning = Conditioning(example.condition, jnp.zeros((1, augment_size), x.dtype))
  variables = experiment.model.init(key, x, jnp.zeros(1, x.dtype), conditioning)
  statistics = {name: value for name, value in variables.items() if name != 'params'}
  terms = {
    name: term.init(jax.random.fold_in(key, rng.tag(f'term {name}')))
    for name, (_, term) in live_terms(experiment).items()
  }
  schedule = experiment.diffusion.schedule.init(jax.random.fold_in(key, rng.tag('schedule')))
  return Parameters(variables['params'], schedule, terms), statistics


def init_state(
  experiment: Experiment, example: StoredBatch, units: NormalizationStatistics
) -> TrainState:
  """The state before the first step, on one device.

  Args:
    experiment, example, units: as `make_init` takes them.

  Raises:
    ValueError: a network that does not take such an example, a evaluation noise outside the schedule, or batch
      normalization of single rows.
  """
  # Leaf by leaf it takes seconds.
  init = devices.compile_quickly(make_init(experiment, example, units))
  state = init(jnp.uint32(experiment.seed), example)
  check_state(experiment, state)
  return state


def check_state(experiment: Experiment, state: TrainState) -> None:
  """Raises ValueError for a evaluation noise outside the schedule, or batch normalization of single rows."""
  rows = devices.rows_of_a_device(experiment.batch_size) // experiment.micro_batches
  if state.statistics and rows < 2:
    raise ValueError(
      f'batch normalization needs at least 2 rows a device and micro-batch, got {rows}: use a batch_size above '
      f'{experiment.batch_size}, fewer micro_batches, or another normalization'
    )
  gap.check_evaluation_noise(
    experiment.evaluation_noise, experiment.diffusion, state.params.schedule
  )


def host_target(make: Callable[[], TrainState]) -> Any:
  """The shapes and types of the state that `make` would return, as NumPy arrays to restore into."""
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(make))


def evaluation_parameters(experiment: Experiment, state: TrainState) -> Parameters:
  """The parameters that are validated and sampled: the evaluation average, or the last ones."""
  name = evaluated_average(experiment)
  if not name:
    return experiment.optimizer.read(state.optimizer, state.params)
  return experiment.averages[name].read(state.averages[name])


def weights(experiment: Experiment, state: TrainState) -> tuple:
  """What validation and sampling need of a replicated state: (evaluation parameters, their statistics, seed)."""
  return evaluation_parameters(experiment, state), state.evaluation_statistics, state.seed


def rescaled(state: TrainState, scale: float) -> TrainState:
  """A replicated state with this learning-rate scale."""
  kind = state.learning_rate_scale.dtype
  return state._replace(learning_rate_scale=devices.replicate(np.asarray(scale, kind)))


def gone_back(restored: TrainState, now: TrainState) -> TrainState:
  """A restored host state, to go on from at the replicated state `now`: replicated.

  It has the old state's trajectory and the new one's data: `batches_seen` stays, so that the batches
  since are not seen again, and what was skipped stays counted.
  """
  batches_seen, skipped = devices.to_host((now.batches_seen, now.skipped))
  state = restored._replace(
    batches_seen=batches_seen, skipped=skipped, skipped_in_a_row=np.zeros_like(skipped)
  )
  return devices.replicate(jax.tree.map(np.asarray, state))
