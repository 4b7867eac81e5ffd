"""Draws of t in [0, 1), each row from its place in the global batch."""

import jax
import jax.numpy as jnp

from diffusion import streams
from diffusion.citations import technique
from diffusion.types import Array, Key, Rows, Times


def _stateless(draw) -> Times:
  return Times(init=lambda: (), draw=draw, update=lambda state, t, loss, cross_mean: state)


@technique('uniform times', 'noise level', 'ho2020denoising')
def uniform() -> Times:
  """t ~ U[0, 1), independent for each row. Source: Ho et al. (2020), algorithm 1, in continuous time."""

  def draw(state, key: Key, rows: Rows, progress: Array) -> tuple[Array, Array]:
    t = jax.vmap(jax.random.uniform)(streams.row_keys(key, rows.index))
    return t, jnp.ones_like(t)

  return _stateless(draw)


@technique('stratified times', 'noise level', 'kingma2021variational')
def stratified() -> Times:
  """t_i = (u + i / B) mod 1 with one u ~ U[0, 1) a batch: uniform margins, evenly spread over the batch of B.

  Source: Kingma et al. (2021), appendix I.1.
  """

  def draw(state, key: Key, rows: Rows, progress: Array) -> tuple[Array, Array]:
    t = (jax.random.uniform(key) + rows.index / rows.total) % 1.0
    return t, jnp.ones_like(t)

  return _stateless(draw)
