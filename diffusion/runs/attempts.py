"""What may fail without harm to the rest: a picture, or one finding of an evaluation."""

import math
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from diffusion import processes
from diffusion.evaluation.metric import MetricResult

Made = TypeVar('Made')


def attempt(what: str, make: Callable[[], Made]) -> tuple[Made | None, list[MetricResult]]:
  """(what `make` returns, []); where it fails, which is said, (None, [the line of the report that says so and why]).

  A disk that is full, and another process that is gone, end the run as ever: nothing else would be written either.

  Args:
    what: is made, for the reader.
    make: makes it.
  """
  try:
    return make(), []
  except Exception as error:
    if isinstance(error, OSError) or (processes.joined() and processes.is_loss(error)):
      raise
    if not isinstance(
      error, ValueError
    ):  # nobody foresaw it, and whoever wrote it will want to see where
      traceback.print_exception(error)
    why = processes.one_line(error)
    print(f'{what} failed: {why}', file=sys.stderr, flush=True)
    return None, [MetricResult(name=f'{what} failed', value=math.nan, meaning=why)]


def findings_of(name: str, make: Callable[[], list[MetricResult]]) -> list[MetricResult]:
  """The findings that `make` returns; where it fails, that it failed and why, so that the others are not lost."""
  found, failed = attempt(name, make)
  return failed if found is None else found
