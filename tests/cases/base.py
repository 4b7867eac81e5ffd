"""What the catalogue's rows are made of."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
  """One row: the line to write, a check that raises unless the technique is live, the test of its form."""

  line: str
  live: Callable[[], None]
  proof: str


CASES: dict[str, Case] = {}
TREE = {
  'a': {'kernel': jnp.array([[1.0, -2.0], [0.5, 4.0]]), 'bias': jnp.array([1.0, 1.0])}
}  # parameters


def add(function: str, line: str, proof: str, live: Callable[[], None]) -> None:
  assert function not in CASES, function
  CASES[function] = Case(line, live, f'tests/{proof}')


def rising(*values):
  """Raises unless the numbers increase strictly."""
  found = [float(v) for v in values]
  assert all(a < b for a, b in zip(found, found[1:], strict=False)), found


def same(a, b):
  np.testing.assert_array_equal(a, b)


def differs(a, b, least=1e-4):
  assert np.abs(np.asarray(a) - np.asarray(b)).max() > least
