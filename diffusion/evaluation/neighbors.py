"""Nearest neighbors, exactly: searched in float32 on the devices, measured and certified in float64."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64, Integer, Num

from diffusion import checks, devices
from diffusion.types import Array

_SPARE = 6  # candidates beyond those asked for: what rounding can put out of order is among them
_BLOCK = (
  2048  # references compared at a time: memory does not grow with their number times the queries'
)

Queries = Num[np.ndarray, 'm d']
References = Num[np.ndarray, 'n d']
Center = Float64[np.ndarray, ' d']


class Neighbors(NamedTuple):
  """The nearest references of each query: their rows, nearest first, and Euclidean distances."""

  index: Integer[np.ndarray, 'm k']
  distance: Float64[np.ndarray, 'm k']


def distinct(x: Num[np.ndarray, ' n *shape']) -> Integer[np.ndarray, ' u']:
  """The rows that stand first among their exact duplicates, ascending."""
  _, kept = np.unique(x.reshape(len(x), -1), axis=0, return_index=True)
  return np.sort(kept)


def nearest(
  queries: Num[np.ndarray, ' m *shape'],
  reference: Num[np.ndarray, ' n *shape'],
  count: int = 2,
  chunk: int = 256,
) -> Neighbors:
  """The `count` nearest references of each query, exactly, without an m x n (x d) array.

  |q - r|^2 = |q|^2 + |r|^2 - 2 q.r in float32 chooses a few candidates more than are asked for; their distances are
  then measured directly in float64. Where the error bound of float32 cannot exclude that a reference was passed over,
  the query is searched again in float64. Of references at equal distances any may be given.

  Args:
    queries: examples or features.
    reference: likewise, n >= count.
    count: k >= 1.
    chunk: queries a device takes at a time.

  Raises:
    ValueError: fewer than `count` references, other shapes, or numbers that are not finite.
  """
  checks.integer('count', count)
  q, r = (x.reshape(len(x), -1) for x in (queries, reference))
  if len(r) < count:
    raise ValueError(f'{count} nearest neighbors need at least {count} references, got {len(r)}')
  if q.shape[1] != r.shape[1]:
    raise ValueError(f'queries have {q.shape[1]} numbers each, the references {r.shape[1]}')
  for name, x in (('queries', q), ('reference', r)):
    if x.dtype.kind == 'f' and not np.isfinite(x).all():
      raise ValueError(f'{name} hold a number that is not finite')
  center = r.mean(0, dtype=np.float64)  # near the origin the identity above keeps its digits
  near, worst = _candidates(q, r, center, min(count + _SPARE, len(r)), chunk)
  found = [_measured(q[i : i + chunk], r, near[i : i + chunk], count) for i in range(0, len(q), chunk)]  # fmt: skip
  index, distance = (np.concatenate(part) for part in zip(*found, strict=True))
  norm = np.linalg.norm(q - center, axis=1)
  # All that was left out is farther than the worst candidate, but for float32's error of a sum of d products.
  error = 4 * (q.shape[1] + 4) * np.finfo(np.float32).eps * (norm + worst) ** 2
  doubtful = np.flatnonzero(
    ~(distance[:, -1] ** 2 <= worst**2 - error)
  )  # NaN of an overflow is in doubt, too
  if near.shape[1] < len(r) and doubtful.size:
    again = _in_float64(q[doubtful], r, center, count)
    index[doubtful], distance[doubtful] = again
  return Neighbors(index, distance)


@functools.cache
def _search(count: int, chunk: int) -> Callable:
  """(replicated (references [blocks, b, d], their squared norms), queries) -> (rows, distance of the last)."""

  def search(
    shared: Any, part: Float[Array, 'm d']
  ) -> tuple[Integer[Array, 'm k'], Float[Array, ' m']]:
    size = shared[0].shape[1]

    def block(best, one):
      points, norms, first = one
      square = norms - 2 * jnp.matmul(part, points.T, precision=jax.lax.Precision.HIGHEST)
      new, place = jax.lax.top_k(-square, min(count, size))
      values = jnp.concatenate([best[0], new], 1)
      rows = jnp.concatenate([best[1], first + place], 1)
      values, order = jax.lax.top_k(values, count)
      return (values, jnp.take_along_axis(rows, order, 1)), None

    start = jnp.full((len(part), count), -jnp.inf), jnp.zeros((len(part), count), jnp.int32)
    firsts = jnp.arange(len(shared[0]), dtype=jnp.int32) * size
    (values, rows), _ = jax.lax.scan(block, start, (*shared, firsts))
    square = (part**2).sum(1) - values[:, -1]
    return rows, jnp.sqrt(jnp.maximum(square, 0))  # rounding may leave a tiny negative square

  return devices.over_rows(search, chunk)


def _candidates(
  q: Queries, r: References, center: Center, count: int, chunk: int
) -> tuple[Integer[np.ndarray, 'm k'], Float32[np.ndarray, ' m']]:
  """(rows of the nearest in float32, the distance of the last of them)."""
  size = min(_BLOCK, -(-len(r) // 32) * 32)
  padding = -len(r) % size
  centered = np.pad((r - center).astype(np.float32), ((0, padding), (0, 0)))
  norms = (centered**2).sum(1)
  norms[len(r) :] = np.inf
  blocks = centered.reshape(-1, size, r.shape[1]), norms.reshape(-1, size)
  return _search(count, chunk)(devices.replicate(blocks), (q - center).astype(np.float32))


def _measured(
  q: Queries, r: References, near: Integer[np.ndarray, 'm c'], count: int
) -> tuple[Integer[np.ndarray, 'm k'], Float64[np.ndarray, 'm k']]:
  """The `count` nearest among the candidates, by differences in float64."""
  difference = q[:, None].astype(np.float64) - r[near].astype(np.float64)
  distance = np.linalg.norm(difference, axis=2)
  order = np.argsort(distance, axis=1, kind='stable')[:, :count]
  return np.take_along_axis(near, order, 1), np.take_along_axis(distance, order, 1)


def _in_float64(
  q: Queries, r: References, center: Center, count: int, chunk: int = 64
) -> tuple[Integer[np.ndarray, 'm k'], Float64[np.ndarray, 'm k']]:
  """The search on the host, for the queries that float32 cannot decide: in float64, or, where that cannot either, by
  the differences themselves."""
  centered = r - center
  norms = (centered**2).sum(1)
  wide = min(count + _SPARE, len(r))
  found = []
  for start in range(0, len(q), chunk):
    part = q[start : start + chunk]
    own = part - center
    square = (own**2).sum(1)[:, None] + norms - 2 * own @ centered.T
    near = np.argpartition(square, wide - 1, axis=1)[:, :wide]
    index, distance = _measured(part, r, near, count)
    worst = np.take_along_axis(square, near, 1).max(1)
    reach = np.sqrt((own**2).sum(1)) + np.sqrt(norms.max())
    error = 4 * (q.shape[1] + 4) * np.finfo(np.float64).eps * reach**2
    for i in np.flatnonzero(~(distance[:, -1] ** 2 <= worst - error)):
      every = np.linalg.norm(part[i].astype(np.float64) - r, axis=1)
      index[i] = np.argsort(every, kind='stable')[:count]
      distance[i] = every[index[i]]
    found.append((index, distance))
  return tuple(np.concatenate(column) for column in zip(*found, strict=True))
