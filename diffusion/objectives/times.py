"""Draws of t in [0, 1), each row from its place in the global batch."""

import math

import jax
import jax.numpy as jnp

from diffusion import checks, rng
from diffusion.citations import technique
from diffusion.types import CrossMean, Key, Number, Path, PerRow, Rows, Scalar, Times


def _stateless(draw) -> Times:
  return Times(init=lambda: (), draw=draw, update=lambda state, t, loss, cross_mean: state)


def _spread(key: Key, rows: Rows) -> PerRow:
  """Stratified uniform draws in [0, 1): see `stratified`."""
  return (jax.random.uniform(key) + rows.index / rows.total) % 1.0


@technique('uniform times', 'noise level', 'ho2020denoising')
def uniform() -> Times:
  """t ~ U[0, 1), independent for each row. Source: Ho et al. (2020), algorithm 1, in continuous time."""

  def draw(state, key: Key, rows: Rows, progress: Number, path: Path) -> tuple[PerRow, PerRow]:
    t = jax.vmap(jax.random.uniform)(rng.row_keys(key, rows.index))
    return t, jnp.ones_like(t)

  return _stateless(draw)


@technique('stratified times', 'noise level', 'kingma2021variational')
def stratified() -> Times:
  """t_i = (u + i / B) mod 1 with one u ~ U[0, 1) a batch: uniform margins, evenly spread over the batch of B.

  Source: Kingma et al. (2021), appendix I.1.
  """

  def draw(state, key: Key, rows: Rows, progress: Number, path: Path) -> tuple[PerRow, PerRow]:
    t = _spread(key, rows)
    return t, jnp.ones_like(t)

  return _stateless(draw)


def _check_normal(mean: float, deviation: float) -> None:
  checks.in_range('mean', mean, -math.inf, math.inf, ends='()')
  checks.positive('deviation', deviation)


def _standard_normal(key: Key, rows: Rows) -> PerRow:
  """Stratified N(0, 1): the quantiles of stratified uniform draws, held off the ends by half a float32 step."""
  u = _spread(key, rows)
  return jax.scipy.special.ndtri(jnp.clip(u, 2.0**-25, 1 - 2.0**-24))


@technique('log-normal noise levels', 'noise level', 'karras2022edm')
def log_normal(mean: float = -1.2, deviation: float = 1.2) -> Times:
  """log(sigma / alpha) ~ N(mean, deviation^2), stratified over the batch; t is its time on the schedule.

  A draw beyond an end of the schedule takes that end; the schedule should span mean +- 4 deviations.

  Args:
    mean: nats; -1.2 in the paper.
    deviation: nats, > 0; 1.2 in the paper.

  Raises:
    ValueError: arguments out of range.

  Source: Karras et al. (2022), table 1; stratified as in Kingma et al. (2021).
  """
  _check_normal(mean, deviation)

  def draw(state, key: Key, rows: Rows, progress: Number, path: Path) -> tuple[PerRow, PerRow]:
    t = path.time(-2 * (mean + deviation * _standard_normal(key, rows)))
    return t, jnp.ones_like(t)

  return _stateless(draw)


@technique('logit-normal times', 'noise level', 'esser2024scaling')
def logit_normal(mean: float = 0.0, deviation: float = 1.0) -> Times:
  """log(t / (1 - t)) ~ N(mean, deviation^2), stratified over the batch.

  Args:
    mean: 0 is centered.
    deviation: > 0; 1 in the paper.

  Raises:
    ValueError: arguments out of range.

  Source: Esser et al. (2024), equation 19.
  """
  _check_normal(mean, deviation)

  def draw(state, key: Key, rows: Rows, progress: Number, path: Path) -> tuple[PerRow, PerRow]:
    t = jax.nn.sigmoid(mean + deviation * _standard_normal(key, rows))
    return t, jnp.ones_like(t)

  return _stateless(draw)


@technique('importance-sampled times', 'noise level', 'nichol2021improved')
def importance(buckets: int = 32, decay: float = 0.99, uniform_share: float = 0.01) -> Times:
  """t with density p_k on bucket k, p_k proportional to sqrt(E[L^2 | k]), and importance weight 1 / (K p_k).

  So the loss keeps its mean and loses variance. E[L^2] of a bucket is the mean of an exponential window over the steps
  that hit it; until every bucket was hit, t is uniform.

  Args:
    buckets: K equal parts of [0, 1), >= 2.
    decay: of the window a step, in [0, 1).
    uniform_share: of draws that stay uniform, in (0, 1], so that no bucket is forgotten.

  Raises:
    ValueError: arguments out of range.

  Source: Nichol & Dhariwal (2021), section 3.3; they keep the last ten losses of each discrete step.
  """
  checks.integer('buckets', buckets, 2)
  checks.in_range('decay', decay, 0, 1, ends='[)')
  checks.in_range('uniform_share', uniform_share, 0, 1, ends='(]')

  def init():
    return {'square': jnp.zeros(buckets), 'weight': jnp.zeros(buckets)}

  def draw(state, key: Key, rows: Rows, progress: Number, path: Path) -> tuple[PerRow, PerRow]:
    root = jnp.sqrt(state['square'] / jnp.maximum(state['weight'], 1e-12))
    share = root / jnp.maximum(root.sum(), 1e-30)
    ready = (state['weight'] > 0).all() & (root.sum() > 0)
    even = 1.0 / buckets
    share = jnp.where(ready, (1 - uniform_share) * share + uniform_share * even, even)
    edges = jnp.concatenate([jnp.zeros(1), jnp.cumsum(share)])
    u = _spread(key, rows) * edges[-1]
    bucket = jnp.clip(jnp.searchsorted(edges, u, side='right') - 1, 0, buckets - 1)
    inside = (u - edges[bucket]) / share[bucket]
    t = (bucket + jnp.clip(inside, 0, 1 - 2.0**-20)) / buckets
    return t, even / share[bucket]

  def update(state, t: PerRow, loss: PerRow, cross_mean: CrossMean):
    hit = jax.nn.one_hot((t * buckets).astype(jnp.int32), buckets)
    square, count = cross_mean((loss**2 @ hit, hit.sum(0)))
    seen = count > 0
    return {
      'square': jnp.where(
        seen,
        decay * state['square'] + (1 - decay) * square / jnp.maximum(count, 1e-12),
        state['square'],
      ),
      'weight': jnp.where(seen, decay * state['weight'] + (1 - decay), state['weight']),
    }

  return Times(init, draw, update)


def _held_back(t: PerRow, open_share: Scalar) -> PerRow:
  """t in [0, 1) moved into [1 - open_share, 1): the noisiest share of times."""
  return jnp.minimum(1 - open_share * (1 - t), 1 - 2.0**-24)


@technique('timestep curriculum by progress', 'noise level', 'kim2024denoising')
def curriculum(base: Times, clusters: int = 20, until: float = 0.5) -> Times:
  """The noisiest times first: of `clusters` equal parts of [0, 1), one more is opened at equal shares of `until`.

  Much noise is the easy end: the denoiser has little to know there. The draw of `base` is stretched over what is open,
  and all is open from progress `until` on, where the draw is that of `base` itself.

  Args:
    base: a draw over all of [0, 1), such as `stratified()`.
    clusters: >= 2.
    until: progress in (0, 1].

  Raises:
    ValueError: an argument out of its range.

  Source: Kim et al. (2024), section 4.2, with clusters of equal length in t and a pace by progress.
  """
  checks.integer('clusters', clusters, 2)
  checks.in_range('until', until, 0, 1, ends='(]')

  def draw(state, key: Key, rows: Rows, progress: Number, path: Path) -> tuple[PerRow, PerRow]:
    t, weight = base.draw(state, key, rows, progress, path)
    opened = jnp.minimum(1 + jnp.floor((clusters - 1) * progress / until), clusters)
    return jnp.where(opened == clusters, t, _held_back(t, opened / clusters)), weight

  return Times(base.init, draw, base.update)


@technique('timestep curriculum by loss', 'noise level', 'kim2024denoising')
def curriculum_by_loss(
  base: Times,
  clusters: int = 20,
  patience: int = 100,
  min_delta: float = 0.01,
  decay: float = 0.95,
) -> Times:
  """As `curriculum`, but the next cluster is opened when the loss no longer falls.

  The batch loss is averaged exponentially; when the average has not fallen by the share `min_delta` below its best for
  `patience` steps, one more cluster is opened and the comparison starts anew.

  Args:
    base: a draw over all of [0, 1), such as `stratified()`.
    clusters: >= 2.
    patience: steps, >= 1.
    min_delta: share of the best average, in [0, 1).
    decay: of the average a step, in [0, 1).

  Raises:
    ValueError: an argument out of its range.

  Source: Kim et al. (2024), section 4.3, with clusters of equal length in t.
  """
  checks.integer('clusters', clusters, 2)
  checks.integer('patience', patience)
  checks.in_range('min_delta', min_delta, 0, 1, ends='[)')
  checks.in_range('decay', decay, 0, 1, ends='[)')

  def init():
    zero = {name: jnp.zeros(()) for name in ('average', 'weight')}
    return zero | {
      'base': base.init(),
      'opened': jnp.ones((), jnp.int32),
      'best': jnp.full((), jnp.inf),
      'waited': jnp.zeros((), jnp.int32),
    }

  def draw(state, key: Key, rows: Rows, progress: Number, path: Path) -> tuple[PerRow, PerRow]:
    t, weight = base.draw(state['base'], key, rows, progress, path)
    opened = state['opened']
    return jnp.where(opened == clusters, t, _held_back(t, opened / clusters)), weight

  def update(state, t: PerRow, loss: PerRow, cross_mean: CrossMean):
    total = decay * state['average'] + (1 - decay) * cross_mean(loss.mean())
    weight = decay * state['weight'] + (1 - decay)
    value = total / weight
    better = value < (1 - min_delta) * state['best']
    waited = jnp.where(better, 0, state['waited'] + 1)
    opens = (waited >= patience) & (state['opened'] < clusters)
    return {
      'base': base.update(state['base'], t, loss, cross_mean),
      'opened': state['opened'] + opens.astype(jnp.int32),
      'average': jnp.where(opens, 0.0, total),
      'weight': jnp.where(opens, 0.0, weight),
      'best': jnp.where(opens, jnp.inf, jnp.where(better, value, state['best'])),
      'waited': jnp.where(opens, 0, waited),
    }

  return Times(init, draw, update)
