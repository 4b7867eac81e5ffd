"""How far a long work is, and how long it still takes: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

_EVERY = 5.0  # seconds between two lines of a count


class Pace:
  """How fast a work goes, without the spans in which something was done for the first time.

  Those hold compilation: counted like the others they would be multiplied by all that is left.
  """

  def __init__(self):
    """Begins now."""
    self._at, self._seconds, self._done = time.monotonic(), 0.0, 0

  def advance(self, count: int, first_time: bool = False) -> None:
    """Counts what was done since the last call.

    Args:
      count: how much; a span in which the work went back is left out.
      first_time: something in it was done for the first time.
    """
    now = time.monotonic()
    if count > 0 and not first_time:
      self._seconds, self._done = self._seconds + now - self._at, self._done + count
    self._at = now

  def left(self, count: int) -> str:
    """The time that so much more takes, as h:mm:ss; '?' where nothing says it yet."""
    import tqdm

    if count and not self._done:
      return '?'
    return tqdm.tqdm.format_interval(count * self._seconds / max(self._done, 1))


@contextlib.contextmanager
def counter(
  total: int, what: str, *, shown: bool = True, stream: TextIO | None = None
) -> Iterator[Callable[[int], None]]:
  """Counts a work: `update(n)` after n more are done.

  Off a terminal that is a line at its start, every few seconds, and at its end.

  Args:
    total: how much there is.
    what: it is of, e.g. 'samples'.
    shown: False counts in silence, as all processes but one do.
    stream: where to write; standard error by default.
  """
  import tqdm

  stream = sys.stderr if stream is None else stream
  if not shown or stream.isatty():
    with tqdm.tqdm(total=total, unit=f' {what}', file=stream, disable=not shown) as bar:
      yield bar.update
    return
  pace, done, said = Pace(), 0, time.monotonic()

  def update(count: int) -> None:
    nonlocal done, said
    pace.advance(count, first_time=done == 0)
    done += count
    if done >= total or time.monotonic() > said + _EVERY:
      print(f'{what} {done}/{total}  left {pace.left(total - done)}', file=stream, flush=True)
      said = time.monotonic()

  print(f'{what} 0/{total}', file=stream, flush=True)
  yield update


def stages(
  names: Sequence[str], what: str, *, shown: bool = True, stream: TextIO | None = None
) -> Callable[[], None]:
  """Announces the stages of a work one after another: each call prints a line with the next one, and what is left.

  Args:
    names: of the stages, in order.
    what: the work is, e.g. 'evaluation'.
    shown: False is silent.
    stream: where to write; standard error by default.
  """
  begin, number = time.monotonic(), 0

  def following() -> None:
    nonlocal number
    name, rest = names[number], names[number + 1 :]
    number += 1
    spent = f'{time.monotonic() - begin:.0f} s'
    then = f', then {", ".join(rest)}' if rest else ', the last'
    if shown:
      line = f'{what} {number}/{len(names)} after {spent}: {name}{then}'
      print(line, file=sys.stderr if stream is None else stream, flush=True)

  return following
