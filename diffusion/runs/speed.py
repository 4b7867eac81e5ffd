"""How fast a run was, and a trace of some of its steps."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion import devices, processes
from diffusion.reporting import rows
from diffusion.runs.run import Run
from diffusion.training.step import step_flops


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


@contextlib.contextmanager
def traced(
  dispatch: Callable[[Sequence[int]], Any], span: Span, steps: int, folder: pathlib.Path
) -> Iterator[Callable[[Sequence[int]], Any]]:
  """The same dispatches of one run, those that touch the span traced.

  Args:
    dispatch: ([batches seen]) -> (run -> metrics), as `Program.dispatch`.
    span: what to trace.
    steps: of a dispatch.
    folder: where the trace is written.
  """
  begun = ended = last = None

  def end() -> None:
    devices.stop_trace()
    print(f'trace of steps {begun} to {ended} in {folder}', flush=True)

  tracing = False

  def inner(seen: Sequence[int]) -> Any:
    nonlocal begun, ended, last, tracing
    if begun is None and seen[0] < span.stop and seen[0] + steps > span.start:
      if last is not None:
        last(0)  # waits for it
      devices.start_trace(str(folder))
      begun, tracing = max(span.start, seen[0]), True
    last = dispatch(seen)
    if tracing:
      ended = seen[0] + steps
      if ended >= span.stop:
        last(0)
        end()
        tracing = False
    return last

  try:
    yield inner
  finally:
    if tracing:
      end()
    elif begun is None:
      print(f'no trace: no step of {span.start} to {span.stop} was made', flush=True)


def measured_speed(run: Run, state: Any) -> dict[str, float | int | None] | None:
  """What run.json says of the speed: the median of the logged rows, and what it comes to.

  Args:
    run: that has been trained.
    state: its shapes.

  Returns:
    images_per_second: median over the logged rows of all starts, validation and saving included where they fell.
    flops_per_image: of all products and convolutions of a training step, on the traced program.
    flops_per_second: the product of the two.
    utilization: its share of the devices' bfloat16 peak; None where that is not known.
    peak_memory: bytes when training ended, see `devices.peak_memory`; None where it was killed at its very end.
    None for a member of a population, whose steps are not its own.
  """
  logged = processes.from_folder(lambda: rows.read_json_lines(run.folder / 'metrics.jsonl'))
  rates = [
    row['timing']['images_per_second'] for row in logged if 'images_per_second' in row['timing']
  ]
  if not rates or any('population' in one for one in run.record['starts']):
    return None
  flops = step_flops(run.experiment, run.data, state)
  speed, peak = float(np.median(rates)), devices.peak_flops()
  return {
    'images_per_second': speed,
    'flops_per_image': flops,
    'flops_per_second': speed * flops,
    'utilization': speed * flops / peak if peak else None,
    'peak_memory': run.record.get('peak_memory'),
  }
