"""An experiment under odd circumstances: `python -m benchmarks.resume.under CIRCUMSTANCE MODULE FLAGS`.

earlier   the clock stands three days before the true time, as where it was set back between two starts
nohup     SIGHUP is ignored, as `nohup` leaves it
"""

import datetime
import runpy
import signal
import sys
import time

DAYS = 3
_time, _time_ns = time.time, time.time_ns


class Earlier(datetime.datetime):
  """`datetime`, whose present is three days ago."""

  @classmethod
  def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
    """As `datetime.now`."""
    return super().now(tz) - datetime.timedelta(days=DAYS)


def earlier() -> None:
  """Sets Python's clocks back; those of C++ and of the file system go on."""
  time.time = lambda: _time() - 86400 * DAYS
  time.time_ns = lambda: _time_ns() - 86400 * DAYS * 10**9
  datetime.datetime = Earlier


def nohup() -> None:
  """Ignores SIGHUP."""
  signal.signal(signal.SIGHUP, signal.SIG_IGN)


if __name__ == '__main__':
  _, circumstance, module, *arguments = sys.argv
  {'earlier': earlier, 'nohup': nohup}[circumstance]()
  sys.argv = [module, *arguments]
  runpy.run_module(module, run_name='__main__', alter_sys=True)
