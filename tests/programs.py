"""Programs that tests start: what `python -m` does, without seconds of imports for each.

They are forked from a server that has done the imports. `tests/test_calling.py` and `test_writing_experiments.py` start
interpreters of their own.
"""

import os
import pathlib
import tempfile

from benchmarks import processes


def _file() -> pathlib.Path:
  descriptor, name = tempfile.mkstemp(suffix='.log')
  os.close(descriptor)
  return pathlib.Path(name)


class Program:
  """A started module, as far as tests ask a `subprocess.Popen`.

  What it says on both channels comes together, or (`apart`) standard error is in `errors` when it has ended.
  """

  def __init__(
    self,
    module: str,
    *flags: str,
    environment: dict[str, str | None] | None = None,
    apart: bool = False,
  ):
    self._logs = [_file() for _ in range(1 + apart)]
    self._log, self.errors = self._logs[0], ''
    self._process = processes.run_module(
      module, *flags, log=self._log, errors=self._logs[-1], environment=environment
    )
    self.pid = self._process.pid

  @property
  def returncode(self) -> int | None:
    return self._process.exitcode

  def poll(self) -> int | None:
    return self._process.exitcode

  def send_signal(self, number: int) -> None:
    os.kill(self.pid, number)

  def output(self) -> str:
    """What it has written so far."""
    return self._log.read_text()

  def finish(self, seconds: float = 300) -> tuple[int, str]:
    """(exit status, output), when it has ended."""
    self._process.join(seconds)
    if self._process.exitcode is None:
      self._process.kill()
      raise TimeoutError(f'not ended after {seconds:.0f} s: {self.output()}')
    found = self.output()
    self.errors = ''.join(log.read_text() for log in self._logs[1:])
    for log in self._logs:
      log.unlink()
    return self._process.exitcode, found
