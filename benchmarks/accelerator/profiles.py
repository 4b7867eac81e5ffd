"""What a trace of JAX's profiler says: the operations that took the time."""

import collections
import pathlib
import re
from collections.abc import Iterator
from typing import Any


def _events(planes: list[Any]) -> Iterator[Any]:
  """The operations of one device; without one, those that XLA ran on the host."""
  device = next((plane for plane in planes if plane.name.startswith('/device:')), None)
  if device is None:
    for plane in planes:
      for line in plane.lines:
        yield from (e for e in line.events if any(name == 'hlo_op' for name, _ in e.stats))
    return
  lines = list(device.lines)  # a GPU's kernels by stream; a TPU has operations alone
  streams = [line for line in lines if line.name.startswith('Stream')]
  for line in streams or [line for line in lines if line.name == 'XLA Ops']:
    yield from line.events


def top_operations(folder: pathlib.Path, count: int = 12) -> list[tuple[str, int, float]]:
  """(operation without its number, how often it ran, share of the time) of the costliest ones in a trace.

  Args:
    folder: where the trace was written.
    count: how many to name.

  Raises:
    ValueError: a trace without operations.
  """
  import jax

  (path,) = folder.rglob('*.xplane.pb')
  calls, time = collections.Counter(), collections.Counter()
  for event in _events(list(jax.profiler.ProfileData.from_file(str(path)).planes)):
    name = re.sub(r'([._]\d+)+$', '', event.name)
    calls[name] += 1
    time[name] += event.duration_ns
  total = time.total()
  if not total:
    raise ValueError(f'no operation in the trace {path}')
  return [(name, calls[name], took / total) for name, took in time.most_common(count)]
