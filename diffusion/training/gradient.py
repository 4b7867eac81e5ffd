"""The gradient of a batch: what is drawn, what is lost, and its slope, in one part or in several."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion import rng
from diffusion.citations import technique
from diffusion.data import pipeline
from diffusion.data.pipeline import NormalizationStatistics
from diffusion.process import gaussian
from diffusion.training.experiment import Experiment, live_terms
from diffusion.training.state import Parameters, TrainState
from diffusion.types import Array, Batch, Conditioning, Context, CrossMean, Key, Rows, Variables


class Draws(NamedTuple):
  """What chance decides of a batch, by row [B]."""

  t: Array
  importance: Array
  eps: Array
  dropout: Key
  term: Key


def stream_key(state: TrainState, purpose: str) -> Key:
  """The key of one purpose for the batch that the state is about to see."""
  return rng.batch_key(state.seed, purpose, state.batches_seen)


def row_keys(state: TrainState, purpose: str, rows: Rows) -> Key:
  """The keys of one purpose, one a row.

  Args:
    state: before the step.
    purpose: of the draws, see `rng`.
    rows: places in the global batch, each of which has its key.
  """
  return rng.row_keys(stream_key(state, purpose), rows.index)


def draw(experiment: Experiment, state: TrainState, batch: Batch, rows: Rows) -> Draws:
  """Draws for these rows, each from its place in the global batch.

  Args:
    experiment: what is trained.
    state: before the step.
    batch: whose examples are to be noised.
    rows: places in the global batch.
  """
  path = gaussian.bind(experiment.diffusion, state.params.schedule)
  progress = state.step / experiment.num_steps
  t, importance = experiment.times.draw(
    state.times, stream_key(state, 'time'), rows, progress, path
  )
  eps = rng.normal(row_keys(state, 'noise', rows), batch.x.shape[1:])
  dropout, term = (row_keys(state, purpose, rows) for purpose in ('dropout', 'term'))
  return Draws(t=t, importance=importance, eps=eps, dropout=dropout, term=term)


def make_loss(
  experiment: Experiment, state: TrainState, batch: Batch, draws: Draws, cross_mean: CrossMean
) -> Callable:
  """The loss as a function of what is learned.

  Args:
    experiment: what is trained.
    state: before the step.
    batch, draws: of these rows.
    cross_mean: over devices, for statistics of the batch.

  Returns:
    (params, (log_snr, slope) [B]) -> (mean loss, (terms, loss of each row, new statistics)).
  """
  conditioning = Conditioning(batch.condition, batch.augment_label)
  parameterization, live = experiment.diffusion.parameterization, live_terms(experiment)
  batch_key = jax.random.fold_in(stream_key(state, 'dropout'), rng.tag('batch'))

  def loss(params: Parameters, level: tuple[Array, Array]):
    log_snr, slope = level
    marginal = experiment.diffusion.process(log_snr)
    variables = {'params': params.network, **state.statistics}

    def predict(z: Array, **mode):
      inputs, noise = parameterization.encode(z, marginal)
      output, moved = experiment.model.apply(
        variables, inputs, noise, conditioning, keys=draws.dropout, batch_key=batch_key,
        cross_mean=cross_mean, update_statistics=True, **mode,
      )  # fmt: skip
      return parameterization.decode(output, z, marginal), moved

    z = gaussian.diffuse(batch.x, draws.eps, marginal)
    prediction, moved = predict(z)
    context = Context(
      params=params.network, batch=batch, eps=draws.eps, z=z, t=draws.t, log_snr=log_snr, slope=slope,
      marginal=marginal, prediction=prediction, predict=lambda z: predict(z, forward_mode=True)[0], keys=draws.term,
    )  # fmt: skip
    terms = {name: term.apply(params.terms[name], context) for name, (_, term) in live.items()}
    rows_loss = sum(factor * terms[name] for name, (factor, _) in live.items())
    return jnp.mean(draws.importance * rows_loss), (terms, rows_loss, moved)

  return loss


class Gradient(NamedTuple):
  """The result of going forward and backward: `value` and `gradient` are means over rows, the next two are by row."""

  value: Array
  gradient: Parameters
  terms: dict[str, Array]
  rows_loss: Array
  statistics: Variables


def whole(
  experiment: Experiment, state: TrainState, batch: Batch, draws: Draws, cross_mean: CrossMean
) -> Gradient:
  """The gradient of these rows.

  A learned schedule follows the gradient of the mean *squared* loss (Kingma et al., 2021, appendix I.2). Row i's loss
  depends on the schedule through its own log-SNR and slope alone, so it is enough to multiply the gradient that
  reaches them by 2 loss_i on its way to the parameters.

  Args:
    experiment: what is trained.
    state: before the step.
    batch, draws: of these rows.
    cross_mean: over devices, for statistics of the batch.
  """

  def noise_level(schedule):
    path = gaussian.bind(experiment.diffusion, schedule)
    return path.log_snr(draws.t), path.slope(draws.t)

  level, to_schedule = jax.vjp(noise_level, state.params.schedule)
  loss = make_loss(experiment, state, batch, draws, cross_mean)
  forward_and_back = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  (value, (terms, rows_loss, moved)), (gradient, at_level) = forward_and_back(state.params, level)
  squared = jax.tree.map(lambda g: 2 * draws.importance * rows_loss * g, at_level)
  (schedule,) = to_schedule(squared)
  gradient = gradient._replace(schedule=schedule)
  return Gradient(
    value=value, gradient=gradient, terms=terms, rows_loss=rows_loss, statistics=moved
  )


@technique('gradient accumulation', 'update', 'goyal2017accurate')
def accumulated(
  experiment: Experiment, state: TrainState, batch: Batch, draws: Draws, cross_mean: CrossMean
) -> tuple[Gradient, Array]:
  """The gradient of all rows in `micro_batches` parts, one after another: one batch to rounding in less memory.

  The draws are made before, so the sum is that of one batch; only batch statistics are of a part.

  Args:
    experiment: with `micro_batches` >= 2, which divide the rows of a device.
    state: before the step.
    batch, draws: of all rows.
    cross_mean: over devices.

  Returns:
    (the gradient, the mean square norm of the parts').

  Source: Goyal et al. (2017), section 2.
  """
  count = experiment.micro_batches
  parts = jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), (batch, draws))

  def one(total, part):
    gradient, value, square, statistics = total
    found = whole(experiment, state._replace(statistics=statistics), *part, cross_mean)
    if experiment.gradient_noise:
      square += optax.tree.norm(cross_mean(found.gradient), squared=True) / count
    gradient = jax.tree.map(lambda a, b: a + b / count, gradient, found.gradient)
    total = gradient, value + found.value / count, square, found.statistics
    return total, (found.terms, found.rows_loss)

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  start = zeros, jnp.zeros(()), jnp.zeros(()), state.statistics
  (gradient, value, square, statistics), by_row = jax.lax.scan(one, start, parts)
  terms, rows_loss = jax.tree.map(lambda x: x.reshape(-1), by_row)
  found = Gradient(
    value=value, gradient=gradient, terms=terms, rows_loss=rows_loss, statistics=statistics
  )
  return found, square


@technique('gradient noise scale', 'update', 'mccandlish2018empirical')
def noise_estimates(small: Array, large: Array, rows: int, parts: int) -> dict[str, Array]:
  """tr(Sigma) / |G|^2 in examples, logged: the batch size above which a larger batch hardly helps.

  From the square norms of the gradients of micro-batches and of whole batches, both means over the logged window, whose
  estimates of |G|^2 and tr(Sigma) are unbiased.

  Args:
    small: mean square norm of the gradients of rows / parts.
    large: square norm of the gradient of all rows.
    rows: of the batch.
    parts: micro-batches, >= 2.

  Source: McCandlish et al. (2018), equation 2.9 and appendix A.1.
  """
  few = rows / parts
  return {
    'gradient_square': (rows * large - few * small) / (rows - few),
    'gradient_variance': (small - large) / (1 / few - 1 / rows),
  }


def take_batch(
  experiment: Experiment,
  units: NormalizationStatistics,
  state: TrainState,
  data: pipeline.InMemoryData | None,
  given: Array | pipeline.StoredBatch,
  rows: Rows,
) -> Batch:
  """The rows of this step's batch, gathered from the data or as the host has read them, and transformed.

  Args:
    experiment: what is trained.
    units: of the stored data.
    state: before the step.
    data: on the device; None where the host reads.
    given: the rows to gather, int32 [B], or what the host has read of them.
    rows: places in the global batch.
  """
  progress, curriculum = state.step / experiment.num_steps, experiment.curriculum
  if isinstance(given, pipeline.StoredBatch):
    batch = pipeline.in_units(given, units)
  else:
    if curriculum is not None:
      keys, share = row_keys(state, 'curriculum', rows), curriculum.share(progress)
      given = pipeline.restrict(given, keys, share, data.order, data.size)
    batch = pipeline.gather(data, given, units)
  batch = experiment.augment(row_keys(state, 'augmentation', rows), batch)
  return batch if curriculum is None else curriculum.transform(batch, progress)
