"""Range checks of factory arguments: one readable error that quotes the argument, the value and the remedy.

A tracer is let through, so that a factory can be called inside a transformed function with a number that varies
(one concrete call validates first).
"""

import math
from typing import Any

import jax
import numpy as np


def traced(value: Any) -> bool:
  """Whether `value` is a JAX tracer, which has no value to check."""
  return isinstance(value, jax.core.Tracer)


def off(value: Any) -> bool:
  """Whether a knob is off: a Python zero or None. Only these remove code; a traced zero does not."""
  return value is None or (not traced(value) and isinstance(value, (int, float)) and value == 0)


def in_range(
  name: str, value: Any, low: float, high: float, *, ends: str = '[]', remedy: str = ''
) -> None:
  """Whether `low` <= `value` <= `high`, a finite bound belonging to the range or not.

  Args:
    name: the argument's name, quoted in the error.
    value: a number, or a tracer, which passes.
    low, high: the bounds; may be infinite. With a traced one every value passes.
    ends: '[]', '(]', '[)' or '()': which bounds belong to the range.
    remedy: what to do instead, appended to the message.

  Raises:
    ValueError: `value` is no number, NaN, or out of the range.
  """
  if traced(value) or traced(low) or traced(high):
    return
  number = isinstance(value, (int, float)) or getattr(value, 'ndim', None) == 0
  good = number and not math.isnan(value)
  if good:
    above = value >= low if ends[0] == '[' else value > low
    below = value <= high if ends[1] == ']' else value < high
    good = above and below
  if not good:
    tail = f': {remedy}' if remedy else ''
    raise ValueError(
      f'{name} must be a number in {ends[0]}{low:g}, {high:g}{ends[1]}, got {value!r}{tail}'
    )


def at_least(name: str, value: Any, low: float, remedy: str = '') -> None:
  """Whether `value` is finite and >= `low`.

  Args:
    name: the argument's name, quoted in the error.
    value: a number, or a tracer, which passes.
    low: the least that is allowed.
    remedy: what to do instead, appended to the message.

  Raises:
    ValueError: it is not.
  """
  in_range(name, value, low, math.inf, ends='[)', remedy=remedy)


def positive(name: str, value: Any, remedy: str = '') -> None:
  """Whether `value` is finite and > 0.

  Args:
    name: the argument's name, quoted in the error.
    value: a number, or a tracer, which passes.
    remedy: what to do instead, appended to the message.

  Raises:
    ValueError: it is not.
  """
  in_range(name, value, 0, math.inf, ends='()', remedy=remedy)


def integer(name: str, value: Any, low: int = 1, remedy: str = '') -> None:
  """Whether `value` is an int >= `low`.

  Args:
    name: the argument's name, quoted in the error.
    value: what was given; a bool, a float and a tracer are no integers.
    low: the least that is allowed.
    remedy: what to do instead, appended to the message.

  Raises:
    ValueError: it is not.
  """
  tail = f': {remedy}' if remedy else ''
  if isinstance(value, bool) or not isinstance(value, int) or value < low:
    raise ValueError(f'{name} must be an integer >= {low}, got {value!r}{tail}')


def finite(name: str, values: Any) -> None:
  """Whether all numbers of an array are finite.

  Args:
    name: the argument's name, quoted in the error.
    values: an array, or a tracer, which passes.

  Raises:
    ValueError: one is not, named with its place.
  """
  if traced(values):
    return
  wrong = np.argwhere(~np.isfinite(np.asarray(values)))
  if len(wrong):
    place = ', '.join(map(str, wrong[0]))
    raise ValueError(
      f'{name} must be finite, got {np.asarray(values)[tuple(wrong[0])]} at [{place}]'
    )


def shares(name: str, values: Any) -> None:
  """Whether the numbers are the weights of a mixture: finite, positive, and summing to one within 1e-5.

  Args:
    name: the argument's name, quoted in the error.
    values: an array, or a tracer, which passes.

  Raises:
    ValueError: they are not.
  """
  if traced(values):
    return
  given = np.asarray(values, np.float64)
  positive = (given > 0).all() and np.isfinite(given).all()
  if not (positive and abs(given.sum() - 1) <= 1e-5):
    remedy = f'divide them by {given.sum():g}' if positive else 'give each a finite one above 0'
    raise ValueError(f'{name} must be positive and sum to one, got {given}: {remedy}')
