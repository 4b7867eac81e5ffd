"""How fast a run was, and a trace of some of its steps."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusion import devices, processes
from diffusion.reporting.rows import read_json_lines
from diffusion.runs.session import Session
from diffusion.training import assembly


class Span(NamedTuple):
  """Steps start, ..., stop - 1, counted as batches drawn."""

  start: int
  stop: int


def parse_span(text: str) -> Span | None:
  """START:STOP as a Span; None for an empty text.

  Raises:
    ValueError: anything else, or no step between the two.
  """
  if not text:
    return None
  start, colon, stop = text.partition(':')
  if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
    raise ValueError(f'--profile takes START:STOP, two steps with START < STOP, got {text!r}')
  return Span(int(start), int(stop))


def traced(
  dispatch: Callable[[Any, int], tuple[Any, Any]],
  span: Span,
  cursor: int,
  steps: int,
  folder: pathlib.Path,
) -> tuple[Callable[[Any, int], tuple[Any, Any]], Callable[[], None]]:
  """The same dispatches, those that touch the span traced.

  Args:
    dispatch: (state, batches seen) -> (state, metrics), so many `steps` each time.
    span: what to trace.
    cursor: batches drawn before the first dispatch.
    steps: of a dispatch.
    folder: where the trace is written.

  Returns:
    (dispatch, close), where `close` ends a trace that is still going on.
  """
  place, tracing, done = cursor, False, False

  def close() -> None:
    nonlocal tracing, done
    if not (tracing or done):
      print(f'no trace: no step of {span.start} to {span.stop} was made', flush=True)
    if tracing:
      tracing, done = False, True
      devices.stop_trace()
      print(f'trace of steps {max(span.start, cursor)} to {place} in {folder}', flush=True)

  def inner(state: Any, seen: int) -> tuple[Any, Any]:
    nonlocal place, tracing
    if not tracing and place < span.stop and place + steps > span.start:
      devices.wait(state)
      devices.start_trace(str(folder))
      tracing = True
    result = dispatch(state, seen)
    place += steps
    if tracing and place >= span.stop:
      devices.wait(result)
      close()
    return result

  return inner, close


def measured_speed(session: Session, state: Any) -> dict[str, float | int | None] | None:
  """What run.json says of the speed: the median of the logged rows, and what it comes to.

  Args:
    session: of a run that has been trained.
    state: its shapes.

  Returns:
    images_per_second: median over the logged rows of all starts, validation and saving included where they fell.
    flops_per_image: of all products and convolutions of a training step, on the traced program.
    flops_per_second: the product of the two.
    utilization: its share of the devices' bfloat16 peak; None where that is not known.
    peak_memory: bytes when training ended, see `devices.peak_memory`; None where it was killed at its very end.
    None for a member of a population, whose steps are not its own.
  """
  rows = processes.from_folder(lambda: read_json_lines(session.folder / 'metrics.jsonl'))
  rates = [
    row['timing']['images_per_second'] for row in rows if 'images_per_second' in row['timing']
  ]
  if not rates or any('population' in one for one in session.record['starts']):
    return None
  flops = assembly.step_flops(session.experiment, session.loaded, state)
  speed, peak = float(np.median(rates)), devices.peak_flops()
  return {
    'images_per_second': speed,
    'flops_per_image': flops,
    'flops_per_second': speed * flops,
    'utilization': speed * flops / peak if peak else None,
    'peak_memory': session.record.get('peak_memory'),
  }
