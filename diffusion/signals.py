"""What asks a program to end: signals, and a reader of its output that is gone; what has been done is kept.

Ctrl-C (SIGINT), SIGTERM, which `kill` and schedulers send, SIGHUP, which a terminal sends that is closed, and SIGUSR1,
which a cluster can send before the time is up.
"""

import contextlib
import errno
import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from diffusion.processes import alone, joined, preemption

_AT_ONCE = 0.5  # seconds in which several signals are one: a terminal that closes may send more


class Interrupted(KeyboardInterrupt):
  """What a signal other than Ctrl-C raises outside of training; its text is the signal's name."""


def _asking() -> list[signal.Signals]:
  """The signals beside SIGTERM and Ctrl-C that ask a program to end.

  A terminal sends SIGHUP when it is closed, a cluster SIGUSR1 before the time is up. What the program was started to
  ignore, as by `nohup`, it goes on ignoring.
  """
  both = signal.SIGHUP, signal.SIGUSR1
  return [number for number in both if signal.getsignal(number) is not signal.SIG_IGN]


def _interrupt(number: int, frame: object) -> None:
  """Handles a signal outside of training; SIGTERM again ends at once."""
  if joined() and number != signal.SIGTERM:
    os.kill(os.getpid(), signal.SIGTERM)  # JAX notes it; from `end_on_sigterm` on it comes here
    return
  for other in _asking():
    signal.signal(other, signal.SIG_IGN)  # a terminal sends it twice
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  raise Interrupted(signal.Signals(number).name)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Within the block SIGTERM, SIGHUP and SIGUSR1 raise `Interrupted`, as Ctrl-C raises KeyboardInterrupt.

  Of several processes, SIGTERM is JAX's from `initialize` on until `end_on_sigterm`, and the others become one.
  """
  if threading.current_thread() is not threading.main_thread():
    yield  # Python hands signals to the main thread alone
    return
  before = {n: signal.signal(n, _interrupt) for n in (*_asking(), signal.SIGTERM)}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def end_on_sigterm() -> None:
  """From here on SIGTERM interrupts this process, of several: JAX only notes it, for `preemption` to be asked."""
  if joined():
    signal.signal(signal.SIGTERM, _interrupt)


def stopped_by(interrupt: KeyboardInterrupt, said: str) -> int:
  """Says in one line that a signal stopped the program, and returns the exit status: 128 and the signal's number.

  Args:
    interrupt: what the signal raised.
    said: what that means.
  """
  name = str(interrupt) if isinstance(interrupt, Interrupted) else 'SIGINT'
  print(f'{name}: {said}', file=sys.stderr, flush=True)
  return 128 + signal.Signals[name]


class _Output(io.FileIO):
  """A channel that nobody may read any more: what goes there is then lost, and the program goes on."""

  def write(self, content: Any) -> int | None:
    """Writes, or finds that a terminal was closed or a pipe's reader is gone."""
    try:
      return super().write(content)
    except OSError as error:
      if error.errno not in (errno.EPIPE, errno.EIO):
        error.filename = f'/dev/fd/{self.fileno()}'  # as nobody else knows where it goes
        raise
    with open(os.devnull, 'wb') as nowhere:
      os.dup2(nowhere.fileno(), self.fileno())
    return len(content)


def outlive_readers() -> None:
  """Lets the program go on where nobody reads what it says: the terminal was closed, or Ctrl-C ended `tee` too."""
  for name in ('stdout', 'stderr'):
    old = getattr(sys, name)
    if old is None:
      continue
    old.flush()
    channel = io.BufferedWriter(_Output(old.fileno(), 'wb', closefd=False))
    new = io.TextIOWrapper(
      channel, old.encoding, old.errors, line_buffering=old.line_buffering, write_through=old.write_through
    )  # fmt: skip
    setattr(sys, name, new)


class Signals:
  """What `caught_signals` gives: the `name` of the signal that asks to leave, or None."""

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
def caught_signals(seen: int, steps: int) -> Iterator[Signals]:
  """Notes the first SIGINT, SIGTERM, SIGHUP or SIGUSR1; one of the first two after it acts as usual.

  Of several processes all leave after the same dispatch, whichever got the signal: JAX has SIGTERM and tells the others
  of it, and the first of any other becomes one.

  Args:
    seen: batches seen where training begins.
    steps: of a dispatch.
  """
  by_itself = alone()
  if by_itself and threading.current_thread() is not threading.main_thread():
    yield Signals()  # Python hands signals to the main thread alone
    return
  signals = Signals(None if by_itself else preemption(seen, steps))
  first = math.inf  # when it came

  def again(number: int) -> None:
    if number == signal.SIGINT:
      raise KeyboardInterrupt
    if number == signal.SIGTERM:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)

  def note(number: int, frame: object) -> None:
    nonlocal first
    if time.monotonic() > first + _AT_ONCE:
      again(number)
    if not math.isinf(first):
      return
    first, name = time.monotonic(), signal.Signals(number).name
    if by_itself:
      signals.note(name)
    else:
      os.kill(os.getpid(), signal.SIGTERM)
    who = 'saving, then leaving' if by_itself else 'all processes save, then leave'
    with contextlib.suppress(
      OSError
    ):  # past Python's buffer, which may be in use, to whoever still reads
      os.write(2, f'\n{name}: {who} (Ctrl-C to leave at once)\n'.encode())

  numbers = [signal.SIGINT, *_asking(), *([signal.SIGTERM] if by_itself else [])]
  before = {number: signal.signal(number, note) for number in numbers}
  try:
    yield signals
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    if not by_itself:
      end_on_sigterm()
