"""Draws of t in [0, 1), each row from its place in the global batch."""

import math

import jax
import jax.numpy as jnp

from diffusion import checks, streams
from diffusion.citations import technique
from diffusion.types import Array, CrossMean, Key, Path, Rows, Times


def _stateless(draw) -> Times:
  return Times(init=lambda: (), draw=draw, update=lambda state, t, loss, cross_mean: state)


def _spread(key: Key, rows: Rows) -> Array:
  """Stratified uniform draws in [0, 1): see `stratified`."""
  return (jax.random.uniform(key) + rows.index / rows.total) % 1.0


@technique('uniform times', 'noise level', 'ho2020denoising')
def uniform() -> Times:
  """t ~ U[0, 1), independent for each row. Source: Ho et al. (2020), algorithm 1, in continuous time."""

  def draw(state, key: Key, rows: Rows, progress: Array, path: Path) -> tuple[Array, Array]:
    t = jax.vmap(jax.random.uniform)(streams.row_keys(key, rows.index))
    return t, jnp.ones_like(t)

  return _stateless(draw)


@technique('stratified times', 'noise level', 'kingma2021variational')
def stratified() -> Times:
  """t_i = (u + i / B) mod 1 with one u ~ U[0, 1) a batch: uniform margins, evenly spread over the batch of B.

  Source: Kingma et al. (2021), appendix I.1.
  """

  def draw(state, key: Key, rows: Rows, progress: Array, path: Path) -> tuple[Array, Array]:
    t = _spread(key, rows)
    return t, jnp.ones_like(t)

  return _stateless(draw)


def _check_normal(mean: float, deviation: float) -> None:
  checks.in_range('mean', mean, -math.inf, math.inf, ends='()')
  checks.positive('deviation', deviation)


def _standard_normal(key: Key, rows: Rows) -> Array:
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

  def draw(state, key: Key, rows: Rows, progress: Array, path: Path) -> tuple[Array, Array]:
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

  def draw(state, key: Key, rows: Rows, progress: Array, path: Path) -> tuple[Array, Array]:
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

  def draw(state, key: Key, rows: Rows, progress: Array, path: Path) -> tuple[Array, Array]:
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

  def update(state, t: Array, loss: Array, cross_mean: CrossMean):
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
