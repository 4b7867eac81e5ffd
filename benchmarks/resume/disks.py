"""The cases in which the disk is full or cannot be written. Where mounting is not allowed, they are left out."""

import contextlib
import pathlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.resume.bench import LONG, SHORT, Bench, Ended, Started, rows
from benchmarks.resume.cases import Case
from benchmarks.resume.judge import (
  BADLY,
  HARMLESS,
  LOST,
  NOTICED,
  SILENT,
  Before,
  Expected,
  Verdict,
  differing,
  judge,
  judged_once,
  last_line,
  misbehaved,
  parts,
)


@contextlib.contextmanager
def disk(bench: Bench, megabytes: int) -> Iterator[pathlib.Path | None]:
  """A small disk of its own, or None."""
  folder = bench.place('disk')
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(folder)]
  if (
    not shutil.which('mount')
    or subprocess.run(command, check=False, capture_output=True).returncode
  ):
    print('left out: mounting is not allowed here', flush=True)
    yield None
    return
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', str(folder)], check=False, capture_output=True)


def fill(path: pathlib.Path) -> None:
  """Leaves no byte of a disk."""
  with contextlib.suppress(OSError), path.open('ab', buffering=0) as file:
    for size in (65536, 4096, 1):
      with contextlib.suppress(OSError):
        while True:
          file.write(b'x' * size)


def disks() -> Iterator[Case]:
  """A full and a read-only disk end a start in one line that names a path of the run, soon; afterwards it goes on."""
  for when in ('before it starts', 'while it trains', 'while it is judged', 'at the report'):
    yield Case('full disk', when, _on_a_disk(when, _full))
  yield Case('full disk', 'before there is a folder', _on_a_disk('new', _full))
  # Not while it trains or is judged: a disk on which a file is open to be written cannot be made read-only.
  yield Case('read-only disk', 'before it starts', _on_a_disk('before it starts', _read_only))
  yield Case('read-only disk', 'a finished run is asked again', _asked_read_only)


def _full(folder: pathlib.Path) -> Callable[[], None]:
  fill(folder / 'ballast')
  return (folder / 'ballast').unlink


def _read_only(folder: pathlib.Path) -> Callable[[], None]:
  subprocess.run(['mount', '-o', 'remount,ro', str(folder)], check=True)
  return lambda: subprocess.run(['mount', '-o', 'remount,rw', str(folder)], check=True)


def _on_a_disk(
  when: str, hurt: Callable[[pathlib.Path], Callable[[], None]]
) -> Callable[[Bench, np.random.Generator], list[Verdict]]:
  def run(bench: Bench, generator: np.random.Generator) -> list[Verdict]:
    with disk(bench, 16) as folder:
      if folder is None:
        return []
      workdir = folder / 'run'
      long = when == 'while it trains'
      flags = LONG if long else SHORT
      whole = bench.left_alone(*LONG) if long else bench.whole
      if when not in ('new', 'while it trains'):
        shutil.copytree(bench.killed, workdir)
      if when in ('new', 'before it starts'):
        mend = hurt(folder)
        program = bench.start(workdir, *flags)
      else:
        program = bench.start(workdir, *flags)
        _wait_for(when, program, workdir, generator)
        if program.status() is not None:
          return []  # it was over before
        mend = hurt(folder)
      ended = _end_while(program, folder if hurt is _full else None)
      mend()
      (folder / 'ballast').unlink(missing_ok=True)
      return [_mended(bench, workdir, whole, flags, ended, folder)]

  return run


def _wait_for(
  when: str, program: Started, workdir: pathlib.Path, generator: np.random.Generator
) -> None:
  if when == 'while it trains':
    program.wait_until(lambda: rows(workdir) >= generator.integers(5, 60))
  else:
    said = 'evaluation 1/' if when == 'while it is judged' else 'pictures and report, the last'
    program.wait_until(lambda: said in program.said())


def _end_while(program: Started, folder: pathlib.Path | None) -> Ended:
  """Its end; a disk is filled again and again, as old checkpoints may be deleted meanwhile."""
  end = time.monotonic() + 100
  while folder is not None and program.status() is None and time.monotonic() < end:
    fill(folder / 'ballast')
    time.sleep(0.005)
  return program.end(60)


def _mended(
  bench: Bench,
  workdir: pathlib.Path,
  whole: pathlib.Path,
  flags: tuple[str, ...],
  ended: Ended,
  folder: pathlib.Path,
) -> Verdict:
  """How it ended, and what became of the run when the disk was mended."""
  fault = misbehaved(ended)
  after = bench.go(workdir, *flags)
  if after.status != 0:
    return Verdict(LOST, f'the next start: status {after.status}: {last_line(after.said)}')
  expected = judged_once(bench, whole)
  wrong = differing(parts(bench, workdir, 0), expected)
  if 'state' in wrong:
    return Verdict(LOST, f'differs: {wrong}')
  if fault:
    return Verdict(BADLY, fault)
  lines = ended.errors()
  if ended.status == 0:
    # A part of the judgment that could not be made is said, and what could not be written.
    said = re.search(r'(?i)[^\n]*(No space left|Read-only)[^\n]*', ended.said)
    if wrong and not said:
      return Verdict(SILENT, f'differs: {wrong}')
    return (
      Verdict(NOTICED, said[0].strip()[:300]) if said else Verdict(HARMLESS, 'equal to the bit')
    )
  if len(lines) != 1 or str(folder) not in lines[0]:
    return Verdict(BADLY, f'status {ended.status}, names no path: {last_line(ended.said)}')
  if wrong:
    return Verdict(SILENT, f'differs: {wrong}')
  return Verdict(NOTICED, lines[0][:300])


def _asked_read_only(bench: Bench, _: np.random.Generator) -> list[Verdict]:
  """The same command on a finished run says that it is, or that the disk cannot be written."""
  with disk(bench, 16) as folder:
    if folder is None:
      return []
    workdir = folder / 'run'
    shutil.copytree(bench.whole, workdir)
    before = Before.of(workdir)
    mend = _read_only(folder)
    ended = bench.go(workdir, *SHORT)
    mend()
    return [
      judge(
        bench,
        workdir,
        ended,
        before,
        parts(bench, bench.whole, 0),
        0,
        Expected(re.escape(str(folder)), None),
      )
    ]
