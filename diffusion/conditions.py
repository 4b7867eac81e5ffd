"""Conditions: what a network is told of each example, a tree of arrays [n, ...] that only data and networks look into.

A class label, an integer a row, is the plainest. What stands for "not told" is the network's affair, its `Model.null`.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.types import NULL


def null_label(label: Any) -> Any:
  """The label that says nothing, for each of these."""
  return jnp.full_like(label, NULL)


def take(condition: Any, rows: Any) -> Any:
  """The conditions of some rows."""
  return jax.tree.map(lambda leaf: leaf[rows], condition)


def check(condition: Any, n: int) -> None:
  """Whether a condition is one of n examples.

  Raises:
    ValueError: what `describe` refuses, an array of other than n rows, or one that is not finite.
  """
  describe(condition)
  for path, leaf in jax.tree_util.tree_leaves_with_path(condition):
    where = f'condition{jax.tree_util.keystr(path)}'
    if leaf.shape[:1] != (n,):
      raise ValueError(
        f'{where} must have a row for each of the {n} examples, got {list(leaf.shape)}'
      )
    if leaf.dtype.kind not in 'iufb' or not np.isfinite(leaf).all():
      raise ValueError(f'{where} must be finite numbers, got {leaf.dtype}: encode what it says')


def describe(condition: Any) -> Any:
  """The tree, by name, with [type, shape of a row] in place of each array, for run.json; a class label is None.

  Raises:
    ValueError: a tree that is made of other things than dicts, lists and arrays, which JSON would not give back.
  """
  if isinstance(condition, dict):
    return {name: describe(one) for name, one in sorted(condition.items())}
  if isinstance(condition, list):
    return [describe(one) for one in condition]
  if not isinstance(condition, np.ndarray):
    raise ValueError(
      f'a condition is a tree of dicts, lists and NumPy arrays, got {type(condition).__name__}'
    )
  return {'dtype': condition.dtype.name, 'row': list(condition.shape[1:])}


def fingerprint(condition: Any, salt: str) -> str:
  """A hash of a salt and of all that a condition says, 16 hexadecimal digits."""
  whole = hashlib.sha256(f'{salt}|{describe(condition)}'.encode())
  for leaf in jax.tree.leaves(condition):
    whole.update(np.ascontiguousarray(leaf).data)
  return whole.hexdigest()[:16]


def example(description: Any) -> Any:
  """One row of zeros, as `describe` describes it; a class label for None."""
  if description is None:
    return np.zeros(1, np.int32)
  if isinstance(description, list):
    return [example(one) for one in description]
  if set(description) == {'dtype', 'row'} and isinstance(description['dtype'], str):
    return np.zeros((1, *description['row']), description['dtype'])
  return {name: example(one) for name, one in description.items()}
