"""One training step as one pure function of one state, for the rows of one device."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from diffusion.data import pipeline
from diffusion.process import gaussian
from diffusion.training import gradient
from diffusion.training.gradient import Pieces
from diffusion.training.state import Parameters, TrainState
from diffusion.types import Array, Conditioning, CrossMean, Optimizer, Rows, Term

BUCKETS = 8  # equal parts of [0, 1) by t, for the loss per noise level
STATISTICS_BATCHES = 16  # over which the judged weights' batch statistics are taken


def empty_window(
  terms: Mapping[str, tuple[float, Term]], optimizer: Optimizer, gradient_noise: bool = False
) -> dict[str, Array]:
  """Sums of nothing, one buffer a leaf."""
  names = ['steps', 'loss', 'gradient_norm', 'update_norm', *optimizer.measured]
  names += [f'loss/{name}' for name in terms]
  names += ['gradient_square', 'gradient_variance'] * gradient_noise
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
  if 'gradient_square' in means:
    means['noise_scale'] = means['gradient_variance'] / means['gradient_square']
  return means | {
    'loss_bucket': window['bucket_sum'] / window['bucket_count'],
    'learning_rate': learning_rate,
    'skipped': state.skipped,
    'skipped_in_a_row': state.skipped_in_a_row,
  }


def make_step(pieces: Pieces) -> Callable:
  """The step: (state, data, given, rows, cross_mean) -> (state, metrics); `data` and `given` as `take_batch` has them.

  A step is all or nothing: where the loss, the gradient or the update is not finite, the whole old state stays, and
  only `step`, `cursor` and the two counters of skipped steps move. The metrics are means over the window of
  `log_every` steps that the step lies in, skipped ones left out; the window is part of the state, so a resumed run
  logs the same numbers.
  """

  def step(
    state: TrainState,
    data: pipeline.Resident | None,
    given: Array | pipeline.Drawn,
    rows: Rows,
    cross_mean: CrossMean,
  ):
    batch = gradient.take_batch(pieces, state, data, given, rows)
    draws = gradient.draw(pieces, state, batch, rows)
    if pieces.micro_batches == 1:
      found, parts_square = (
        gradient.whole(pieces, state, state.statistics, batch, draws, cross_mean),
        None,
      )
    else:
      found, parts_square = gradient.accumulated(pieces, state, batch, draws, cross_mean)
    bucket = jax.nn.one_hot((draws.t * BUCKETS).astype(jnp.int32), BUCKETS)
    share = rows.total / rows.index.shape[0]  # so that the mean over devices is the sum over rows
    value, slope, means = cross_mean((found.value, found.gradient, {
      **{f'loss/{name}': jnp.mean(term) for name, term in found.terms.items()},
      'bucket_sum': share * (found.rows_loss @ bucket),
      'bucket_count': share * bucket.sum(0),
    }))  # fmt: skip

    rate = pieces.optimizer.learning_rate(state.optimizer) * state.learning_rate_scale
    updates, optimizer = pieces.optimizer.update(
      slope, state.optimizer, state.params, learning_rate=rate
    )
    params = optax.apply_updates(state.params, updates)
    norms = {'gradient_norm': optax.tree.norm(slope), 'update_norm': optax.tree.norm(updates)}
    good = (
      jnp.isfinite(value)
      & jnp.isfinite(norms['gradient_norm'])
      & jnp.isfinite(norms['update_norm'])
    )

    fresh = state.step % pieces.log_every == 0
    window = jax.tree.map(lambda total: jnp.where(fresh, 0, total), state.window)
    measured = {'steps': 1.0, 'loss': value, **norms, **means}
    measured |= pieces.optimizer.measure(optimizer)
    if pieces.gradient_noise:
      large = norms['gradient_norm'] ** 2
      measured |= gradient.noise_estimates(parts_square, large, rows.total, pieces.micro_batches)
    moved = state._replace(
      params=params,
      statistics=found.statistics,
      optimizer=optimizer,
      averages={n: a.update(state.averages[n], params) for n, a in pieces.averages.items()},
      times=pieces.times.update(state.times, draws.t, found.rows_loss, cross_mean),
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


def make_statistics(pieces: Pieces) -> Callable:
  """(parameters, state, data, given, rows, cross_mean) -> statistics of these parameters.

  The plain mean over the first `STATISTICS_BATCHES` batches of the run, which `given` has along a leading axis, with
  the run's noise and augmentations and without dropout: a function of the parameters and the seed alone.
  """

  def statistics(
    params: Parameters, state: TrainState, data, given, rows: Rows, cross_mean: CrossMean
  ):
    def one(statistics, at):
      i, given = at
      now = state._replace(params=params, step=jnp.full((), pieces.num_steps), cursor=i)
      batch = gradient.take_batch(pieces, now, data, given, rows)
      draws = gradient.draw(pieces, now, batch, rows)
      path = gaussian.bind(pieces.diffusion, params.schedule)
      marginal = path.marginal(draws.t)
      z = gaussian.diffuse(batch.x, draws.eps, marginal)
      inputs, noise = pieces.diffusion.parameterization.encode(z, marginal)
      _, statistics = pieces.model.apply(
        {'params': params.network, **statistics}, inputs, noise,
        Conditioning(batch.label, batch.augment_label), cross_mean=cross_mean,
        update_statistics=True, statistics_decay=i / (i + 1),
      )  # fmt: skip
      return statistics, None

    return jax.lax.scan(one, state.statistics, (jnp.arange(STATISTICS_BATCHES), given))[0]

  return statistics
