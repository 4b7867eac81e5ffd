"""What a row of the catalogue is, and what the rows share."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import rng
from diffusion.process import gaussian, marginals, parameterizations, schedules
from diffusion.training import callbacks


class Case(NamedTuple):
  """One technique, as a row of the tables.

  Attributes:
    factory: the function behind it, which `@technique` marks.
    live: raises unless the technique on differs from the technique off, in the direction it claims.
    turn_on: makes the `fields` of an experiment that has it. A test calls it, and docs/CATALOG.md shows its source,
      which therefore has lines of its own, with dots for each name in capitals: what an experiment has anyway.
      Where no field does it (a flag, a function of finished runs): the text to show.
    proof: path::name of the test of its closed form or statistic.
  """

  factory: Callable[..., Any]
  live: Callable[[], None]
  turn_on: Callable[[], dict[str, Any]] | str
  proof: str

  @property
  def name(self) -> str:
    """What tests and pages call it, e.g. models.dropout.spatial."""
    return f'{self.factory.__module__}.{self.factory.__qualname__}'.removeprefix('diffusion.')


def fields(**values: Any) -> dict[str, Any]:
  """Fields of an experiment, as its constructor takes them."""
  return values


CALLBACKS = [callbacks.checkpoint()]
TREE = {
  'a': {'kernel': jnp.array([[1.0, -2.0], [0.5, 4.0]]), 'bias': jnp.array([1.0, 1.0])}
}  # parameters
COSINE = schedules.cosine()
REST = (marginals.variance_preserving, parameterizations.v())  # of a diffusion beside its schedule
PATH = gaussian.bind(gaussian.Diffusion(COSINE, *REST), ())
ROW_KEYS = rng.row_keys(jax.random.key(0), jnp.arange(200))


def rising(*values):
  """Raises unless the numbers increase strictly."""
  found = [float(v) for v in values]
  assert all(a < b for a, b in itertools.pairwise(found)), found


def same(a, b):
  np.testing.assert_array_equal(a, b)


def differs(a, b, least=1e-4):
  assert np.abs(np.asarray(a) - np.asarray(b)).max() > least
