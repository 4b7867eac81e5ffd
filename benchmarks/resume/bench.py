"""The bench of the chaos test: programs on folders, the runs that are hurt, and those that were left alone."""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks import checkouts
from benchmarks.processes import run_module

ROW_EVERY = 10  # steps
# Every 10 steps a row, every 20 a checkpoint. The rate is far too large, so that the best comes early and stays.
SHORT = (
  '--config.num_steps=200', '--config.train_limit=8', '--config.examples=64', '--config.batch_size=16',
  '--config.steps_per_dispatch=5', '--config.log_every=10', '--config.validate_every=20', '--config.width=8',
  '--config.depth=1', '--config.patience=5000', '--config.dropout=0.2', '--config.learning_rate=0.3',
  '--config.ema_decay=0.5', '--config.sampling_steps=3', '--config.samples=20', '--config.seed=1', '--cpu_devices=2',
)  # fmt: skip
# The same, long enough for many kills.
LONG = (*SHORT, '--config.num_steps=1500')
LIMIT = 150  # seconds after which a program counts as hanging


class Ended(NamedTuple):
  """How a program ended: its status, None where it had to be killed as it hung; all that it said; its seconds."""

  status: int | None
  said: str
  seconds: float

  def errors(self) -> list[str]:
    """The lines in which it says what is wrong."""
    return [line for line in self.said.splitlines() if line.startswith('error: ')]


class Started:
  """A program that runs, forked or an interpreter of its own."""

  def __init__(self, process: Any, log: pathlib.Path):
    """Keeps them."""
    self._process, self._log, self._begin = process, log, time.monotonic()

  def said(self) -> str:
    """What it has written so far."""
    return self._log.read_text(errors='replace') if self._log.exists() else ''

  def status(self) -> int | None:
    """Its exit status; None while it runs."""
    if isinstance(self._process, subprocess.Popen):
      return self._process.poll()
    return self._process.exitcode

  def send(self, number: int) -> None:
    """A signal, where it still runs."""
    if self.status() is None:
      os.kill(self._process.pid, number)

  def wait_until(self, seen: Callable[[], Any], seconds: float = LIMIT) -> bool:
    """Whether `seen` came true while it ran; time in which this process was stopped does not count."""
    waited, last = 0.0, time.monotonic()
    while self.status() is None and waited < seconds:
      if seen():
        return True
      time.sleep(0.001)
      now = time.monotonic()
      waited, last = waited + min(now - last, 1), now
    return False

  def end(self, seconds: float = LIMIT) -> Ended:
    """Waits for its end; after so many seconds it is killed."""
    if not self.wait_until(lambda: False, seconds) and self.status() is None:
      self.send(signal.SIGKILL)
      self._join()
      return Ended(None, self.said(), time.monotonic() - self._begin)
    self._join()
    return Ended(self.status(), self.said(), time.monotonic() - self._begin)

  def kill(self) -> bool:
    """Whether `kill -9` met it alive."""
    self.send(signal.SIGKILL)
    self._join()
    return self.status() == -signal.SIGKILL

  def _join(self) -> None:
    wait = self._process.wait if isinstance(self._process, subprocess.Popen) else self._process.join
    wait()


class Bench:
  """Where the cases work: a folder, and the checkout whose programs are run (None: this one)."""

  def __init__(self, folder: pathlib.Path, checkout: pathlib.Path | None = None):
    """Makes nothing yet but folders."""
    self.root = checkout
    self.commit = checkouts.commit(checkout or checkouts.HERE)
    self.folder, self._bases = folder / 'cases', folder / f'bases {self.commit}'
    for path in (self.folder, self._bases):
      path.mkdir(parents=True, exist_ok=True)
    self._numbers, self._started = itertools.count(), []

  def place(self, name: str = 'run') -> pathlib.Path:
    """A path of this name where nothing is, for one case."""
    while True:
      parent = self.folder / str(next(self._numbers))
      with contextlib.suppress(FileExistsError):
        parent.mkdir()
        return parent / name

  def clear(self) -> None:
    """Ends and deletes what the cases left."""
    for program in self._started:
      program.kill()
    self._started.clear()
    shutil.rmtree(self.folder, ignore_errors=True)
    self.folder.mkdir(exist_ok=True)

  def start(
    self,
    workdir: pathlib.Path | str,
    *arguments: str,
    module: str = 'experiments.mixture',
    interpreter: bool = False,
    environment: Mapping[str, str | None] | None = None,
  ) -> Started:
    """A program on a folder.

    Args:
      workdir: the folder.
      *arguments: its other flags; where `module` takes arguments before them, those first.
      module: its name.
      interpreter: in a Python of its own, which has to import everything, as that of another checkout is in any case.
      environment: variables that it has beside the bench's.
    """
    log = self.folder / f'{next(self._numbers)}.log'
    while log.exists():
      log = self.folder / f'{next(self._numbers)}.log'
    command = (*arguments, f'--workdir={workdir}')
    if interpreter or self.root is not None:
      root = self.root or checkouts.HERE
      with log.open('wb') as file:
        process = subprocess.Popen(
          [sys.executable, '-u', '-m', module, *command], cwd=root, stdout=file, stderr=file,
          env=checkouts.environment(root, **(environment or {})),
        )  # fmt: skip
    else:
      process = run_module(module, *command, log=log, environment=environment)
    return self._noted(Started(process, log))

  def _noted(self, program: Started) -> Started:
    self._started.append(program)
    return program

  def go(self, workdir: pathlib.Path, *arguments: str, **more: Any) -> Ended:
    """The same, to its end."""
    return self.start(workdir, *arguments, **more).end()

  def fork(self, program: str, *arguments: str) -> Started:
    """A Python program from text, in an interpreter of its own, with the bench's package."""
    log, root = self.folder / f'program {next(self._numbers)}.log', self.root or checkouts.HERE
    with log.open('wb') as file:
      process = subprocess.Popen(
        [sys.executable, '-u', '-c', program, *arguments], cwd=root, stdout=file, stderr=file,
        env=checkouts.environment(root),
      )  # fmt: skip
    return self._noted(Started(process, log))

  def base(self, name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """A run that `make` made in a folder, once for all cases and all benches of this commit on this folder."""
    place, mark = self._bases / name, self._bases / f'{name}.made'
    if not mark.exists():
      shutil.rmtree(place, ignore_errors=True)
      make(place)
      mark.touch()
    return place

  def left_alone(self, *flags: str, module: str = 'experiments.mixture') -> pathlib.Path:
    """A run to its end that nothing happened to."""

    def make(place: pathlib.Path) -> None:
      ended = self.go(place, *flags, module=module)
      if ended.status != 0:
        raise RuntimeError(
          f'the run that nothing happens to ended with {ended.status}: {ended.said}'
        )

    return self.base(f'{module} {zlib.crc32(repr(flags).encode()):x}', make)

  @functools.cached_property
  def whole(self) -> pathlib.Path:
    """The short run, finished, and judged twice."""

    def make(place: pathlib.Path) -> None:
      for more in ((), ('--mode=evaluate',)):
        ended = self.go(place, *SHORT, *more)
        if ended.status != 0:
          raise RuntimeError(f'ended with {ended.status}: {ended.said}')

    return self.base('whole', make)

  @functools.cached_property
  def killed(self) -> pathlib.Path:
    """The short run, killed with rows beyond its last checkpoint, all of whose checkpoints are whole."""

    def make(place: pathlib.Path) -> None:
      for _ in range(20):
        shutil.rmtree(place, ignore_errors=True)
        program = self.start(place, *SHORT)
        program.wait_until(lambda: rows(place) >= 11)
        met = program.kill()
        for path in unsealed(place):  # as if the kill had come a moment before that save
          shutil.rmtree(path)
        found = numbers(place)
        if met and len(found) > 2 and found[-1] < ROW_EVERY * rows(place) < 200:
          return
      raise RuntimeError(f'twenty kills left no run as it is needed: {program.said()}')

    return self.base('killed', make)

  def copy(self, base: pathlib.Path, name: str = 'run') -> pathlib.Path:
    """A copy of a base, to be hurt."""
    place = self.place(name)
    shutil.copytree(base, place, symlinks=True)
    return place


def rows(workdir: pathlib.Path) -> int:
  """How many rows are written."""
  path = workdir / 'metrics.jsonl'
  return path.read_bytes().count(b'\n') if path.exists() else 0


def numbers(workdir: pathlib.Path) -> list[int]:
  """Those of the checkpoints, ascending."""
  folder = workdir / 'checkpoints'
  return sorted(int(path.name) for path in folder.glob('*') if path.name.isdecimal())


def unsealed(workdir: pathlib.Path) -> list[pathlib.Path]:
  """The checkpoints without a manifest, which are being saved, or were when their program was killed."""
  folder = workdir / 'checkpoints'
  with contextlib.suppress(FileNotFoundError):  # what goes while it is looked at
    return [
      path
      for path in folder.iterdir()
      if path.suffix != '.deleted'
      and path.is_dir()
      and not (folder / f'{path.name}.sha256').exists()
    ]
  return []


def record_of(workdir: pathlib.Path) -> dict[str, Any]:
  """run.json, as JSON alone."""
  return json.loads((workdir / 'run.json').read_text())
