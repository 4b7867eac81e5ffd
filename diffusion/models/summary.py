"""A model's table of parameters and its arithmetic."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusion.types import Params


def parameter_rows(params: Params, depth: int = 1) -> list[tuple[str, int, float]]:
  """(module, number of parameters, their root mean square) for each module down to `depth` levels."""
  totals: dict[str, list] = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    names = [str(getattr(entry, 'key', getattr(entry, 'name', entry))) for entry in path]
    total = totals.setdefault('/'.join(names[:depth]), [0, 0.0])
    total[0] += leaf.size
    total[1] += float(np.square(np.asarray(leaf, np.float64)).sum())
  return [(name, size, math.sqrt(square / size)) for name, (size, square) in totals.items()]


def _dot(equation) -> int:
  left, right = (variable.aval.shape for variable in equation.invars[:2])
  (_, contracted), (_, batch) = equation.params['dimension_numbers']
  free = math.prod(
    size for axis, size in enumerate(right) if axis not in contracted and axis not in batch
  )
  return 2 * math.prod(left) * free


def _convolution(equation) -> int:
  kernel = equation.invars[1].aval.shape
  out_features = kernel[equation.params['dimension_numbers'].rhs_spec[0]]
  taps = math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features
  # Between the pixels of a dilated image lie zeros, which nobody multiplies.
  return 2 * taps // math.prod(equation.params['lhs_dilation'])


def _count(jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      total += _dot(equation)
    elif equation.primitive.name == 'conv_general_dilated':
      total += _convolution(equation)
    repeats = equation.params['length'] if equation.primitive.name == 'scan' else 1
    by_platform = equation.params.get('branches_platforms') is not None
    for value in equation.params.values():
      branches = value if isinstance(value, (tuple, list)) else (value,)
      if by_platform and len(branches) > 1:
        branches = branches[-1:]  # the plain formula; the others are detours to the same result
      inner = [getattr(branch, 'jaxpr', branch) for branch in branches]
      counts = [_count(jaxpr) for jaxpr in inner if hasattr(jaxpr, 'eqns')]
      total += repeats * max(counts, default=0)
  return total


def flops(function: Callable, *arguments: Any) -> int:
  """Floating-point operations of all matrix products and convolutions in one call (a multiply-add is two).

  Counted on the traced program, since XLA's own count leaves some out. A `while` counts as one pass.

  Args:
    function: any traceable function.
    *arguments: arrays or shapes.
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)
