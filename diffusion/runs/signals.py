"""SIGINT and SIGTERM while a run trains: they are noted, the run is saved, and then left."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

from diffusion import processes


class Signals:
  """What `caught` gives: the `name` of the signal that asks to leave, or None."""

  def __init__(self, reached: Callable[[], str | None] | None = None):
    """Notes signals by `note`, or asks `reached` for their name."""
    self._reached = reached
    self.name: str | None = None
    self._since = 0.0

  def note(self, name: str) -> None:
    """Notes a signal, now."""
    self.name, self._since = name, time.perf_counter()

  def __call__(self) -> str | None:
    """The name of the signal that asks to leave, or None; to be asked once after each dispatch."""
    if self.name is None and self._reached is not None:
      name = self._reached()
      if name is not None:
        self.note(name)
    return self.name

  def seconds(self) -> float:
    """Since it was noted."""
    return time.perf_counter() - self._since


@contextlib.contextmanager
def caught(seen: int, steps: int) -> Iterator[Signals]:
  """Notes the first SIGINT or SIGTERM; a second one acts as usual, and afterwards every one.

  Of several processes all leave after the same dispatch, whichever got the signal: JAX has SIGTERM and tells the others
  of it, and the first Ctrl-C becomes one.

  Args:
    seen: batches seen where training begins.
    steps: of a dispatch.
  """
  alone = processes.alone()
  signals = Signals(None if alone else processes.preemption(seen, steps))
  numbers = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
  before = {number: signal.getsignal(number) for number in numbers}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def note(number: int, frame: object) -> None:
    restore()
    name = signal.Signals(number).name
    who = 'saving, then leaving' if alone else 'all processes save, then leave'
    print(f'\n{name}: {who} (again to leave at once)', file=sys.stderr)
    if alone:
      signals.note(name)
    else:
      os.kill(os.getpid(), signal.SIGTERM)

  for number in numbers:
    signal.signal(number, note)
  try:
    yield signals
  finally:
    restore()
    if not alone:
      processes.end_on_sigterm()
