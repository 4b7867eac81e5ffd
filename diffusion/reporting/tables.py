"""Markdown tables, and how numbers and anybody's texts are written in them."""

import math
import numbers
import re
from collections.abc import Sequence

from diffusion.naming import printable
from diffusion.statistics import Interval, format_interval

ABSENT = '–'
# What Markdown, or HTML in it, would read as more than text: of "_" what is at a word's end, of "]" what makes a link.
_MARKUP = re.compile(r'[\\`*|$<]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|~(?=~)')
_ENTITIES = {'<': '&lt;', '&': '&amp;'}


def number(value: float | int | None, digits: int = 3) -> str:
  """Text of a number with a stated number of significant digits.

  Args:
    value: a number; an integer is written whole, None as a dash.
    digits: significant digits of a float, >= 1.

  Returns:
    Plain notation for magnitudes in [1e-4, 1e6), scientific outside; `nan` and `inf` as such.

  Raises:
    ValueError: for digits < 1.
    TypeError: for a value that is not a number.
  """
  if digits < 1:
    raise ValueError(f'digits must be at least 1, got {digits!r}')
  if value is None:
    return ABSENT
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise TypeError(f'value must be a number, got {value!r}')
  if isinstance(value, numbers.Integral):
    return str(int(value))
  value = float(value)
  if not math.isfinite(value) or value == 0:
    return f'{value:g}'
  scientific = f'{value:.{digits - 1}e}'
  exponent = int(scientific.rpartition('e')[2])  # of the rounded value, 0.9996 -> 1.00
  if not -4 <= exponent < 6:
    return scientific
  return f'{value:.{max(digits - 1 - exponent, 0)}f}'


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]], digits: int = 3) -> str:
  """A Markdown table, columns of numbers aligned right.

  Args:
    headers: one title per column, at least one.
    rows: one sequence per row, as long as `headers`: text, numbers, `Interval`s, or None.
    digits: significant digits of floats.

  Returns:
    The table's text, no newline at its end.

  Raises:
    ValueError: for no headers, or a row of another length.
  """
  if not headers:
    raise ValueError(f'headers must name at least one column, got {headers!r}')
  for row in rows:
    if len(row) != len(headers):
      raise ValueError(f'a row must have {len(headers)} cells, as the headers, got {row!r}')
  texts = [[_cell(value, digits) for value in row] for row in rows]
  rules = ['---:' if _is_numeric(column) else '---' for column in zip(*rows, strict=True)]
  lines = [[_cell(title, digits) for title in headers], rules or ['---'] * len(headers), *texts]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def escape(text: str) -> str:
  """A text in one line of Markdown that shows it as it is; what a terminal would obey is written as Python does."""
  return _MARKUP.sub(lambda m: _ENTITIES.get(m[0], f'\\{m[0]}'), printable(text))


def reading(unit: str, better: str) -> str:
  """How a number is to be read: its unit, and what is better.

  Args:
    unit: what is counted or measured; '' for a pure number.
    better: 'lower', 'higher', 'nearer 0', ...; '' where nothing is.

  Returns:
    For example 'bits/dim, lower is better'.
  """
  return ', '.join(part for part in (unit, better and f'{better} is better') if part)


def _cell(value: object, digits: int) -> str:
  if isinstance(value, Interval):
    return format_interval(value)
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if value is None or isinstance(value, numbers.Real):
    return number(value, digits)
  return '<br>'.join(map(escape, str(value).splitlines()))


def _is_numeric(column: Sequence[object]) -> bool:
  of_number = [
    isinstance(value, numbers.Real | Interval) and not isinstance(value, bool)
    for value in column
    if value is not None
  ]
  return bool(of_number) and all(of_number)
