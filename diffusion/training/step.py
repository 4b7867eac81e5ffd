"""One training step as one pure function of one state, for the rows of one device."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from diffusion.data import pipeline
from diffusion.data.pipeline import NormalizationStatistics
from diffusion.data.splits import SplitData
from diffusion.process import gaussian
from diffusion.training import gradient
from diffusion.training.experiment import Experiment
from diffusion.training.state import BUCKETS, TrainState, evaluation_parameters
from diffusion.types import Array, Conditioning, CrossMean, Rows

STATISTICS_BATCHES = 16  # over which the evaluation parameters' batch statistics are taken


def summarize(
  window: Mapping[str, Array], learning_rate: Array, state: TrainState
) -> dict[str, Array]:
  """The means of a window of metrics; NaN where every step of it was skipped.

  Args:
    window: sums since the last logged step, see `state.empty_window`.
    learning_rate: of the step.
    state: whose counters are logged.
  """
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


def make_step(experiment: Experiment, units: NormalizationStatistics) -> Callable:
  """The step: (state, data, given, rows, cross_mean) -> (state, metrics); `data` and `given` as `take_batch` has them.

  A step is all or nothing: where the loss, the gradient or the update is not finite, the whole old state stays, and
  only `step`, `batches_seen` and the two counters of skipped steps move. The metrics are means over the window of
  `log_every` steps that the step lies in, skipped ones left out; the window is part of the state, so a resumed run
  logs the same numbers.
  """

  def step(
    state: TrainState,
    data: pipeline.InMemoryData | None,
    given: Array | pipeline.StoredBatch,
    rows: Rows,
    cross_mean: CrossMean,
  ):
    batch = gradient.take_batch(experiment, units, state, data, given, rows)
    draws = gradient.draw(experiment, state, batch, rows)
    if experiment.micro_batches == 1:
      found, parts_square = gradient.whole(experiment, state, batch, draws, cross_mean), None
    else:
      found, parts_square = gradient.accumulated(experiment, state, batch, draws, cross_mean)
    bucket = jax.nn.one_hot((draws.t * BUCKETS).astype(jnp.int32), BUCKETS)
    share = rows.total / rows.index.shape[0]  # so that the mean over devices is the sum over rows
    value, slope, means = cross_mean((found.value, found.gradient, {
      **{f'loss/{name}': jnp.mean(term) for name, term in found.terms.items()},
      'bucket_sum': share * (found.rows_loss @ bucket),
      'bucket_count': share * bucket.sum(0),
    }))  # fmt: skip

    rate = experiment.optimizer.learning_rate(state.optimizer) * state.learning_rate_scale
    updates, optimizer = experiment.optimizer.update(
      slope, state.optimizer, state.params, learning_rate=rate
    )
    params = optax.apply_updates(state.params, updates)
    norms = {'gradient_norm': optax.tree.norm(slope), 'update_norm': optax.tree.norm(updates)}
    good = (
      jnp.isfinite(value)
      & jnp.isfinite(norms['gradient_norm'])
      & jnp.isfinite(norms['update_norm'])
    )

    fresh = state.step % experiment.log_every == 0
    window = jax.tree.map(lambda total: jnp.where(fresh, 0, total), state.window)
    measured = {'steps': 1.0, 'loss': value, **norms, **means}
    measured |= experiment.optimizer.measure(optimizer)
    if experiment.gradient_noise:
      large = norms['gradient_norm'] ** 2
      measured |= gradient.noise_estimates(
        parts_square, large, rows.total, experiment.micro_batches
      )
    moved = state._replace(
      params=params,
      statistics=found.statistics,
      optimizer=optimizer,
      averages={n: a.update(state.averages[n], params) for n, a in experiment.averages.items()},
      times=experiment.times.update(state.times, draws.t, found.rows_loss, cross_mean),
      window={name: window[name] + measured[name] for name in window},
    )
    kept = state._replace(window=window)
    state = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, kept)
    bad = (~good).astype(jnp.int32)
    state = state._replace(
      step=state.step + 1,
      batches_seen=state.batches_seen + 1,
      skipped=state.skipped + bad,
      skipped_in_a_row=(state.skipped_in_a_row + bad) * bad,
    )
    return state, summarize(state.window, rate, state)

  return step


def make_recompute_statistics(experiment: Experiment, units: NormalizationStatistics) -> Callable:
  """(state, data, given, rows, cross_mean) -> the state with batch statistics of its evaluation parameters.

  The plain mean over the first `STATISTICS_BATCHES` batches of the run, which `given` has along a leading axis, with
  the run's noise and augmentations and without dropout: a function of the parameters, the seed and (where they adapt)
  the state of the times.
  """

  def recompute_statistics(
    state: TrainState, data, given, rows: Rows, cross_mean: CrossMean
  ) -> TrainState:
    params = evaluation_parameters(experiment, state)

    def one(statistics, at):
      i, given = at
      now = state._replace(params=params, step=jnp.full((), experiment.num_steps), batches_seen=i)
      batch = gradient.take_batch(experiment, units, now, data, given, rows)
      draws = gradient.draw(experiment, now, batch, rows)
      path = gaussian.bind(experiment.diffusion, params.schedule)
      marginal = path.marginal(draws.t)
      z = gaussian.diffuse(batch.x, draws.eps, marginal)
      inputs, noise = experiment.diffusion.parameterization.encode(z, marginal)
      _, statistics = experiment.model.apply(
        {'params': params.network, **statistics}, inputs, noise,
        Conditioning(batch.condition, batch.augment_label), cross_mean=cross_mean,
        update_statistics=True, statistics_decay=i / (i + 1),
      )  # fmt: skip
      return statistics, None

    each = jnp.arange(STATISTICS_BATCHES), given
    return state._replace(evaluation_statistics=jax.lax.scan(one, state.statistics, each)[0])

  return recompute_statistics


def step_flops(experiment: Experiment, data: SplitData, state: TrainState) -> int:
  """Floating-point operations of a training step per image.

  Args:
    experiment: what is trained.
    data: whose examples have the shape.
    state: of its shapes; the values do not matter.
  """
  from diffusion.models import summary  # here, because training does not need it

  step, size = make_step(experiment, data.units), experiment.batch_size

  def one(state, drawn):
    rows = Rows(jnp.arange(size), size)
    return step(state, None, drawn, rows, lambda tree: tree)

  drawn = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), data.example
  )
  return summary.flops(one, state, drawn) // size
