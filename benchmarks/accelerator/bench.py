"""One call of the benchmark: rows measured in processes of their own while time is left, each written down at once."""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.accelerator import sections
from benchmarks.accelerator.sections import Row

_ROOT = pathlib.Path(__file__).parents[2]
_TETHERED = pathlib.Path(__file__).with_name('tethered.py')
_MOST = 180  # seconds for a row: one that hangs must not take those behind it


class Process(NamedTuple):
  """A program that runs, where it says what happens to it, and the file it writes its result to, if it does."""

  popen: subprocess.Popen
  log: pathlib.Path
  result: pathlib.Path


def reason(process: Process) -> str:
  """Why a program failed: the error it ended with, or its last line; with a remedy where something is missing."""
  text = process.log.read_text(errors='replace')
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  errors = [line for line in lines if re.match(r'[A-Za-z_][\w.]*(Error|Exception)\b', line)]
  last = (errors or lines or ['it said nothing'])[-1][:300]
  missing = last.partition('No module named ')[2].strip("'")
  if missing:
    return f'not installed: {missing} (--wheels=DIR brings it)'
  status = process.popen.returncode
  return last if status and status > 0 else f'{last} (ended with status {status})'


class Bench:
  """What a call measures, writes and has time for.

  Args:
    out: the folder of results; rows that are there already are kept.
    plan: name of the plan.
    deadline: `time.monotonic()` at which everything ends.
    scratch: a folder that is deleted afterwards.
    environment: of all processes, beside this one's.
    data_dir: where MNIST is prepared, or ''.
    only: what the name of a row must have in it to be measured.

  Raises:
    ValueError: the folder has results of something else.
  """

  def __init__(
    self,
    out: pathlib.Path,
    plan: str,
    deadline: float,
    scratch: pathlib.Path,
    environment: Mapping[str, str],
    data_dir: str = '',
    only: re.Pattern[str] = re.compile(''),
  ):
    self.out, self.plan, self.deadline, self.scratch = out, plan, deadline, scratch
    self.data_dir, self.only = data_dir, only
    self.environment = dict(environment)
    self.header: dict[str, Any] = {}
    path = out / 'results.json'
    try:
      kept = json.loads(path.read_text()) if path.exists() else {'calls': [], 'rows': []}
      self.calls: list[dict[str, Any]] = kept['calls']
      self.rows = [Row(**row) for row in kept['rows']]
    except (ValueError, TypeError, KeyError):
      raise ValueError(f'{path} is not of this benchmark: name another folder by --out') from None
    self._count = 0

  def begin(self, header: Mapping[str, Any]) -> None:
    """Notes what this call runs on."""
    self.header = dict(header)
    self.calls.append(self.header)

  def left(self) -> float:
    """Seconds until the end."""
    return self.deadline - time.monotonic()

  def require(self, needs: float) -> None:
    """Raises LeftOut where fewer seconds are left."""
    if self.left() < needs:
      raise LeftOut(f'{max(0, self.left()):.0f} s were left of the {needs:.0f} it may take')

  def write(self, row: Row) -> None:
    """Keeps a row, prints it, and writes everything there is; a row without numbers leaves those there were."""
    print(sections.line(row), flush=True)
    same = [r for r in self.rows if (r.part, r.name) == (row.part, row.name)]
    if row.found is None and any(r.found and self.alike(r) for r in same):
      return
    self.rows = [r for r in self.rows if r not in same] + [row]
    data = {'calls': self.calls, 'rows': [r._asdict() for r in self.rows]}
    self._replace('results.json', json.dumps(data, indent=1))
    try:
      text = sections.write(self.rows, self.calls)
    except Exception as error:  # noqa: BLE001 - what was measured matters more than its text
      text = f'The rows of results.json could not be written as text: {error!r}\n'
    self._replace('sections.md', text)

  def _replace(self, name: str, text: str) -> None:
    """Writes a file whole, or leaves the one before."""
    beside = self.out / f'.{name}'
    beside.write_text(text)
    beside.replace(self.out / name)

  def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
    """Starts a program of this environment's Python; its output goes into a file."""
    self._count += 1
    log, result = (self.scratch / f'{self._count}{end}' for end in ('.log', '.json'))
    with log.open('w') as output:
      popen = subprocess.Popen(
        [sys.executable, str(_TETHERED), str(os.getpid()), sys.executable, *command],
        cwd=_ROOT, stdout=output, stderr=subprocess.STDOUT,
        env=os.environ | self.environment | dict(environment or {}), process_group=0,
      )  # fmt: skip
    return Process(popen, log, result)

  def start_function(
    self, function: str, environment: Mapping[str, str] | None = None, **arguments: Any
  ) -> Process:
    """Starts a function of `measure`."""
    result = self.scratch / f'{self._count + 1}.json'
    command = ['-m', 'benchmarks.accelerator.child', function, self.plan, str(result)]
    return self.start([*command, json.dumps(arguments)], environment)

  def finish(self, process: Process, most: float = math.inf) -> bool:
    """Waits for a program, so many seconds and to the deadline at most, and ends it there; whether it ended itself."""
    try:
      process.popen.wait(max(0.0, min(most, self.left())))
    except subprocess.TimeoutExpired:
      stop(process)
      return False
    return True

  def result(self, process: Process, whole: bool) -> dict[str, Any]:
    """What a function's process found that has ended, `whole` if by itself; raises LeftOut where that is not all."""
    found = json.loads(process.result.read_text()) if process.result.exists() else None
    if not whole:
      why = f'it took more than {_MOST} s' if self.left() > 0 else 'the time of this call was over'
      raise LeftOut(why, found, 'cut off')
    if process.popen.returncode:
      raise LeftOut(reason(process), found, 'failed')
    return found

  def ask(
    self,
    part: int,
    name: str,
    function: str,
    needs: float = 0.0,
    environment: Mapping[str, str] | None = None,
    packages: Sequence[str] = (),
    **arguments: Any,
  ) -> dict[str, Any] | None:
    """Measures a row by a function of `measure`, or says why not.

    Args:
      part: of the benchmark.
      name: of the row.
      function: in `measure`.
      needs: seconds that must be left to begin, in full size.
      environment: of its process.
      packages: that it imports and that may be missing.
      **arguments: of the function.

    Returns:
      What was found; None where nothing was. A row that the folder has already is not measured again.
    """

    def measure() -> dict[str, Any]:
      missing(packages)
      self.require(needs if self.plan == 'full' else 0.0)
      process = self.start_function(function, environment, **arguments)
      try:
        return self.result(process, self.finish(process, _MOST))
      finally:
        stop(process)

    return self.note(part, name, measure)

  def note(self, part: int, name: str, function: Callable[[], dict[str, Any]]) -> Any:
    """A row that a function of this process finds; what it raises is the row's reason."""
    known = self.known(part, name)
    if known is not None or not self.only.search(name):
      return known
    begin = time.monotonic()
    try:
      found, status, why = function(), 'measured', ''
    except LeftOut as error:
      found, status, why = error.found, error.status, str(error)
    except Exception as error:  # noqa: BLE001 - told in the row; the next one follows
      found, status, why = None, 'failed', f'{type(error).__name__}: {error}'
    self.write(Row(part, name, status, why, time.monotonic() - begin, found, self.call))
    return found

  def known(self, part: int, name: str) -> dict[str, Any] | None:
    """What the folder says of a row that was measured by this code on this card."""
    for row in self.rows:
      if (row.part, row.name, row.status) == (part, name, 'measured') and self.alike(row):
        return row.found
    return None

  def alike(self, row: Row) -> bool:
    """Whether a row was measured by this code on this card."""
    return sections.alike(self.calls[row.call], self.header)

  @property
  def call(self) -> int:
    """The number of this call among those of the folder."""
    return len(self.calls) - 1


class LeftOut(Exception):
  """Why a row was not measured, or only in part, with what was found; `status` as in `Row`."""

  def __init__(self, why: str, found: dict[str, Any] | None = None, status: str = 'left out'):
    super().__init__(why)
    self.found, self.status = found, status


def missing(packages: Sequence[str]) -> None:
  """Raises LeftOut with those of the packages that cannot be imported."""
  absent = [name for name in packages if importlib.util.find_spec(name) is None]
  if absent:
    raise LeftOut(f'not installed: {", ".join(absent)} (--wheels=DIR brings them)')


def stop(process: Process) -> None:
  """Ends a program and all that it started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.popen.pid, signal.SIGKILL)
  process.popen.wait()
