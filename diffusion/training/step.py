"""One training step as one pure function of one state, for the rows of one device."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion import streams
from diffusion.data import pipeline
from diffusion.process import gaussian
from diffusion.training.state import Parameters, TrainState
from diffusion.types import (
  Array,
  Augment,
  Average,
  Batch,
  Conditioning,
  Context,
  CrossMean,
  Diffusion,
  Model,
  Optimizer,
  Prediction,
  Rows,
  Term,
  Times,
)

BUCKETS = 8  # equal parts of [0, 1) by t, for the loss per noise level


class Pieces(NamedTuple):
  """What a step is made of.

  Attributes:
    diffusion, model, times, optimizer, augment: one each.
    terms: name -> (factor, term); the loss is the sum of factor x term. 'denoise' is the one that plots follow.
    averages: name -> average.
    levels: of the stored data, None for floats.
    num_steps: the horizon of `progress` in [0, 1].
    log_every: steps whose metrics are averaged into one logged row.
  """

  diffusion: Diffusion
  model: Model
  terms: Mapping[str, tuple[float, Term]]
  times: Times
  optimizer: Optimizer
  averages: Mapping[str, Average]
  augment: Augment
  levels: int | None
  num_steps: int
  log_every: int


def empty_window(terms: Mapping[str, tuple[float, Term]], optimizer: Optimizer) -> dict[str, Array]:
  """Sums of nothing, one buffer a leaf."""
  names = ['steps', 'loss', 'gradient_norm', 'update_norm', *optimizer.measured]
  names += [f'loss/{name}' for name in terms]
  return {name: jnp.zeros(()) for name in names} | {
    'bucket_sum': jnp.zeros(BUCKETS),
    'bucket_count': jnp.zeros(BUCKETS),
  }


def summarize(
  window: Mapping[str, Array], learning_rate: Array, state: TrainState
) -> dict[str, Array]:
  """The means of a window of metrics; NaN where every step of it was skipped."""
  means = {
    name: value / window['steps']
    for name, value in window.items()
    if name != 'steps' and 'bucket' not in name
  }
  return means | {
    'loss_bucket': window['bucket_sum'] / window['bucket_count'],
    'learning_rate': learning_rate,
    'skipped': state.skipped,
    'skipped_in_a_row': state.skipped_in_a_row,
  }


def _draws(pieces: Pieces, state: TrainState, batch: Batch, rows: Rows) -> tuple[Array, ...]:
  """This batch's t, importance weights, eps, and row keys of dropout and of the terms' own draws."""

  def key(purpose: str):
    return streams.batch_key(state.seed, purpose, state.salt, state.cursor)

  path = gaussian.bind(pieces.diffusion, state.params.schedule)
  progress = state.step / pieces.num_steps
  t, importance = pieces.times.draw(state.times, key('time'), rows, progress, path)
  eps = streams.normal(streams.row_keys(key('noise'), rows.index), batch.x.shape[1:])
  dropout, term = (streams.row_keys(key(name), rows.index) for name in ('dropout', 'term'))
  return t, importance, eps, dropout, term


def _loss(pieces: Pieces, state: TrainState, batch: Batch, rows: Rows, t, draws) -> Callable:
  """(params, (log_snr, slope) [B]) -> (mean loss, (terms, loss of each row))."""
  importance, eps, dropout, term_keys = draws
  conditioning = Conditioning(batch.label, batch.augment_label)
  parameterization = pieces.diffusion.parameterization

  def loss(params: Parameters, level: tuple[Array, Array]):
    log_snr, slope = level
    marginal = pieces.diffusion.process(log_snr)
    variables = {'params': params.network, **state.statistics}

    def predict(z: Array, **mode) -> Prediction:
      inputs, noise = parameterization.encode(z, marginal)
      output, _ = pieces.model.apply(variables, inputs, noise, conditioning, keys=dropout, **mode)
      return parameterization.decode(output, z, marginal)

    z = gaussian.diffuse(batch.x, eps, marginal)
    context = Context(
      params.network, batch, eps, z, t, log_snr, slope, marginal, predict(z),
      functools.partial(predict, forward_mode=True), term_keys,
    )  # fmt: skip
    terms = {
      name: term.apply(params.terms[name], context) for name, (_, term) in pieces.terms.items()
    }
    rows_loss = sum(factor * terms[name] for name, (factor, _) in pieces.terms.items())
    return jnp.mean(importance * rows_loss), (terms, rows_loss)

  return loss


def _gradient(pieces: Pieces, state: TrainState, batch: Batch, rows: Rows):
  """(mean loss, its gradient, terms, loss of each row, t).

  A learned schedule follows the gradient of the mean *squared* loss (Kingma et al., 2021, appendix I.2). Row i's loss
  depends on the schedule through its own log-SNR and slope alone, so it is enough to multiply the gradient that
  reaches them by 2 loss_i on its way to the parameters.
  """
  t, *draws = _draws(pieces, state, batch, rows)

  def noise_level(schedule):
    path = gaussian.bind(pieces.diffusion, schedule)
    return path.log_snr(t), path.slope(t)

  level, to_schedule = jax.vjp(noise_level, state.params.schedule)
  loss = jax.value_and_grad(
    _loss(pieces, state, batch, rows, t, draws), argnums=(0, 1), has_aux=True
  )
  (value, (terms, rows_loss)), (gradient, at_level) = loss(state.params, level)
  squared = jax.tree.map(lambda g: 2 * draws[0] * rows_loss * g, at_level)
  (schedule,) = to_schedule(squared)
  return value, gradient._replace(schedule=schedule), terms, rows_loss, t


def make_step(pieces: Pieces) -> Callable:
  """The step: (state, data, rows, cross_mean) -> (state, metrics).

  A step is all or nothing: where the loss, the gradient or the update is not finite, the whole old state stays, and
  only `step`, `cursor` and the two counters of skipped steps move. The metrics are means over the window of
  `log_every` steps that the step lies in, skipped ones left out; the window is part of the state, so a resumed run
  logs the same numbers.
  """

  def step(state: TrainState, data: pipeline.Resident, rows: Rows, cross_mean: CrossMean):
    index = pipeline.indices(state.seed, state.salt, state.cursor, rows, data.x.shape[0])
    batch = pipeline.gather(data, index, pieces.levels)
    augmentation = streams.batch_key(state.seed, 'augmentation', state.salt, state.cursor)
    batch = pieces.augment(streams.row_keys(augmentation, rows.index), batch)

    value, gradient, terms, rows_loss, t = _gradient(pieces, state, batch, rows)
    bucket = jax.nn.one_hot((t * BUCKETS).astype(jnp.int32), BUCKETS)
    value, gradient, means = cross_mean((value, gradient, {
      **{f'loss/{name}': jnp.mean(term) for name, term in terms.items()},
      'bucket_sum': rows_loss @ bucket,
      'bucket_count': bucket.sum(0),
    }))  # fmt: skip

    rate = pieces.optimizer.learning_rate(state.optimizer)
    updates, optimizer = pieces.optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = {'gradient_norm': optax.tree.norm(gradient), 'update_norm': optax.tree.norm(updates)}
    good = (
      jnp.isfinite(value)
      & jnp.isfinite(norms['gradient_norm'])
      & jnp.isfinite(norms['update_norm'])
    )

    fresh = state.step % pieces.log_every == 0
    window = jax.tree.map(lambda total: jnp.where(fresh, 0, total), state.window)
    measured = {'steps': 1.0, 'loss': value, **norms, **means}
    measured |= pieces.optimizer.measure(optimizer)
    moved = state._replace(
      params=params,
      optimizer=optimizer,
      averages={n: a.update(state.averages[n], params) for n, a in pieces.averages.items()},
      times=pieces.times.update(state.times, t, rows_loss, cross_mean),
      window={name: window[name] + measured[name] for name in window},
    )
    kept = state._replace(window=window)
    state = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, kept)
    bad = (~good).astype(jnp.int32)
    state = state._replace(
      step=state.step + 1,
      cursor=state.cursor + 1,
      skipped=state.skipped + bad,
      skipped_in_a_row=(state.skipped_in_a_row + bad) * bad,
    )
    return state, summarize(state.window, rate, state)

  return step
