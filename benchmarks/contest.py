"""Contenders in processes of their own, measured in turn, round by round, in quiet rounds only.

A ratio of speeds is worth something only if both sides ran under the same conditions. So each contender is a process
that has been warmed up and stands still (SIGSTOP) while another one runs; a round measures each of them once; and a
round in which other programs took more than a share of the machine is thrown away.
"""

import multiprocessing
import os
import pathlib
import platform
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil

from diffusion import checks
from diffusion.reporting import tables
from diffusion.statistics import format_interval, mean_t


class Contender(NamedTuple):
  """A process to measure.

  Attributes:
    make: (*arguments) -> (function of no arguments that does a piece of work and waits for it, units of work in it,
      facts to report); called in the process.
    arguments: of `make`; they must pickle.
  """

  make: Callable[..., tuple[Callable[[], Any], float, Mapping[str, Any]]]
  arguments: tuple = ()


def _serve(pipe, contender: Contender, seconds: float) -> None:
  try:
    work, units, facts = contender.make(*contender.arguments)
    for _ in range(3):
      begin = time.perf_counter()
      work()
      each = time.perf_counter() - begin
    repeats = max(1, round(seconds / each))
    pipe.send(dict(facts) | {'units': units * repeats})
  except Exception:  # noqa: BLE001 - told to the parent, which raises
    pipe.send(traceback.format_exc())
    return
  while pipe.recv() is not None:
    begin = time.perf_counter()
    for _ in range(repeats):
      work()
    pipe.send(time.perf_counter() - begin)


def _taken() -> tuple[float, float]:
  """Seconds of processor time that have passed idle, and all of them together."""
  times = psutil.cpu_times()
  return times.idle + times.iowait, sum(times)


def _own(pid: int) -> float:
  """Seconds of processor time that a process has taken, with those of its children that have ended."""
  times = psutil.Process(pid).cpu_times()
  return times.user + times.system + times.children_user + times.children_system


class Running(NamedTuple):
  """A contender that runs."""

  process: Any
  pipe: Any
  facts: dict[str, Any]

  def measure(self) -> tuple[float, float]:
    """(units of work a second, cores that other programs took meanwhile)."""
    os.kill(self.process.pid, signal.SIGCONT)
    own, idle = _own(self.process.pid), _taken()
    begin = time.perf_counter()
    self.pipe.send('go')
    seconds = self.pipe.recv()
    wall = time.perf_counter() - begin
    mine, idle_after = _own(self.process.pid) - own, _taken()
    os.kill(self.process.pid, signal.SIGSTOP)
    busy = (idle_after[1] - idle[1]) - (idle_after[0] - idle[0])
    return self.facts['units'] / seconds, max(0.0, busy - mine) / wall


def start(contender: Contender, seconds: float) -> Running:
  """Starts a contender, waits until it is warm, and stops it.

  Raises:
    RuntimeError: what it died of.
  """
  context = multiprocessing.get_context('spawn')
  here, there = context.Pipe()
  process = context.Process(target=_serve, args=(there, contender, seconds), daemon=True)
  process.start()
  there.close()
  try:
    facts = here.recv()
  except EOFError:
    process.join()
    raise RuntimeError(f'{contender} ended with status {process.exitcode}') from None
  if isinstance(facts, str):
    raise RuntimeError(facts)
  os.kill(process.pid, signal.SIGSTOP)
  return Running(process, here, facts)


class Rounds(NamedTuple):
  """Units a second of each contender in each kept round, what each said of itself, and how many rounds were made."""

  speed: dict[str, np.ndarray]
  facts: dict[str, dict[str, Any]]
  made: int

  def ratio(self, name: str, other: str) -> np.ndarray:
    """Speeds over speeds, round by round."""
    return self.speed[name] / self.speed[other]


def hold(
  contenders: Mapping[str, Contender],
  rounds: int,
  seconds: float = 2.0,
  noise: float = 0.1,
  most: int = 0,
) -> Rounds:
  """Measures all contenders in turn.

  Args:
    contenders: by name.
    rounds: quiet rounds to collect, >= 3.
    seconds: of work a contender does in a round.
    noise: cores that other programs may take in a quiet round.
    most: rounds after which to give up; four times `rounds` by default.

  Raises:
    ValueError: too few rounds asked for. RuntimeError: too few quiet ones, or what a contender died of.
  """
  checks.integer('rounds', rounds, 3)
  most, running = most or 4 * rounds, {}
  speed: dict[str, list[float]] = {name: [] for name in contenders}
  made = 0
  try:
    for name, contender in contenders.items():
      running[name] = start(contender, seconds)
    while len(next(iter(speed.values()))) < rounds and made < most:
      made += 1
      found = {name: one.measure() for name, one in running.items()}
      if max(others for _, others in found.values()) <= noise:
        for name, (value, _) in found.items():
          speed[name].append(value)
  finally:
    for one in running.values():
      os.kill(one.process.pid, signal.SIGKILL)
  if len(next(iter(speed.values()))) < 3:
    raise RuntimeError(f'fewer than 3 quiet rounds of {made}: other programs keep the machine busy')
  return Rounds(
    {name: np.array(values) for name, values in speed.items()},
    {name: one.facts for name, one in running.items()},
    made,
  )


def table(found: Rounds, base: str, unit: str, columns: Sequence[str] = ()) -> str:
  """A table of medians and ranges; ratios are to `base`, round by round."""
  rows = []
  for name, speed in found.speed.items():
    ratio = found.ratio(name, base)
    facts = (found.facts[name].get(column) for column in columns)
    rows.append((name, *facts, *(f(speed) for f in (np.median, np.min, np.max)),
                 *(f(ratio) for f in (np.median, np.min, np.max))))  # fmt: skip
  kept = len(next(iter(found.speed.values())))
  headers = [
    'contender',
    *columns,
    f'{unit}/s, median',
    'least',
    'most',
    f'/ {base}',
    'least',
    'most',
  ]
  return f'{tables.markdown(headers, rows)}\n\n{kept} quiet rounds of {found.made}'


def advantage(found: Rounds, name: str, other: str) -> str:
  """The mean ratio of speeds with its 95 % t interval over the rounds, as a line; above 1 is faster than `other`."""
  ratio = found.ratio(name, other)
  return f'{name} / {other}: {format_interval(mean_t(ratio))} over {len(ratio)} quiet rounds'


def per_operation(found: Rounds, other: str, column: str) -> str:
  """Ratios of operations a second of each contender to `other`'s, round by round, as lines."""
  lines = []
  for name in found.speed.keys() - {other}:
    share = found.facts[name][column] / found.facts[other][column]
    ratio = found.ratio(name, other) * share
    lines.append(
      f'operations a second, {name} / {other}: {np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}]'
    )
  return '\n'.join(sorted(lines))


def machine() -> str:
  """The processor and the cores there are."""
  lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return f'{names[0] if names else platform.processor()}, {os.cpu_count()} cores'
