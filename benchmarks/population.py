"""What a population is worth: K runs of an experiment as one program against K runs one after another.

Run     python -m benchmarks.population --members=16
        python -m benchmarks.population --members=4 --experiment=digits --dispatches=2

In one process, in interleaved rounds, compilation apart. A run alone is timed on one device and on all, and the faster
of the two is what a population is compared with; runs one after another take K times as long. On CPU two processes,
each with half of the seeds as a population on one device and a core of its own, take part in the rounds: what the same
machine does without a program of all. Then members stop: all but K/2 + 1, with the others frozen in the program as it
is, and then a program of the K/2 that a run goes on with once half have ended. Nothing is gated: machines are noisy.

Expect  on 2 quiet CPU cores 16 runs one after another take 1.63 [1.57, 1.71] times as long (docs/PERFORMANCE.md).
"""

import dataclasses
import functools
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from benchmarks import engine
from diffusion import checkout, devices
from diffusion.reporting import tables
from experiments import digits, mixture

EXPERIMENTS = {'mixture': mixture, 'digits': digits}
MEMBERS = flags.DEFINE_integer('members', 16, 'Seeds in the population.', lower_bound=4)
EXPERIMENT = flags.DEFINE_enum('experiment', 'mixture', list(EXPERIMENTS), 'What is trained.')
ROUNDS = flags.DEFINE_integer('rounds', 5, 'Timed rounds of each.', lower_bound=1)
DISPATCHES = flags.DEFINE_integer('dispatches', 1, 'Timed dispatches in a round.', lower_bound=1)
CPU_DEVICES = flags.DEFINE_integer('cpu_devices', 0, 'Virtual devices on CPU; 0 chooses.')
SIDE_BY_SIDE = flags.DEFINE_boolean(
  'side_by_side', None, 'One batch of members (vmap), or one after another; the default chooses.'
)

ONE, ALL = 'one run, one device', 'one run, all devices'
HALVES = 'two processes, half the seeds each'


class Arm(NamedTuple):
  """What is timed: the runs that a dispatch of it moves, and `work`, which makes and waits for so many dispatches.

  `work` returns the CPU seconds that other processes took for it.
  """

  moving: int
  work: Callable[[int], float]


class Timed(NamedTuple):
  """A timed round: seconds a dispatch, and the cores that programs of others kept busy meanwhile."""

  seconds: float
  others: float


def build(name: str, seed: Any) -> Any:
  """The experiment of this name and seed."""
  module = EXPERIMENTS[name]
  return module.build(dataclasses.replace(module.Config(), seed=seed))


def alone(experiment: Any, one_device: bool) -> Arm:
  """One run, on one device or on all."""
  training = engine.training(experiment, one_device)
  state = training.first()

  def work(dispatches: int) -> float:
    nonlocal state
    for _ in range(dispatches):
      state, metrics = training.dispatch(state)
      engine.wait(metrics)
    return 0.0

  return Arm(1, work)


def members(dispatch: Callable[[int], Any], live: int) -> Arm:
  """A population of which so many live."""

  def work(dispatches: int) -> float:
    for _ in range(dispatches):
      engine.wait(dispatch(live))
    return 0.0

  return Arm(live, work)


def half(pipe: Any, name: str, seeds: range, core: int) -> None:
  """A process of `Halves`: trains its seeds on one core, so many dispatches whenever it is asked."""
  os.sched_setaffinity(0, {core})
  configure(name, 1)
  dispatch = engine.population(lambda seed: build(name, seeds[0] + seed), len(seeds))
  while dispatches := pipe.recv():
    begin = time.process_time()
    members(dispatch, len(seeds)).work(dispatches)
    pipe.send(time.process_time() - begin)


class Halves:
  """Two processes that train half of the seeds each, at the same time; they end with this one, or by `close`."""

  def __init__(self, name: str, count: int):
    """Of so many seeds together, on the first two cores of this process."""
    spawn, cores = multiprocessing.get_context('spawn'), sorted(os.sched_getaffinity(0))
    self._pipes, self._processes = [], []
    for i, seeds in enumerate((range(count // 2), range(count // 2, count))):
      here, there = spawn.Pipe()
      given = there, name, seeds, cores[i % len(cores)]
      process = spawn.Process(target=half, args=given, daemon=True)
      process.start()
      there.close()  # so that to ask one that has ended is an error
      self._pipes.append(here)
      self._processes.append(process)

  def work(self, dispatches: int) -> float:
    """As `Arm.work`; in both at once."""
    for pipe in self._pipes:
      pipe.send(dispatches)
    return sum([pipe.recv() for pipe in self._pipes])

  def close(self) -> None:
    """Ends them."""
    for process in self._processes:
      process.kill()


def configure(name: str, cpu_devices: int) -> None:
  """Sets JAX up as a run of the experiment does, without programs that were compiled before."""
  made = build(name, 0)
  devices.configure(made.batch_size, cpu_devices, cache=False)
  devices.choose_convolutions()


def busy() -> float:
  """CPU seconds that all processes of this machine have taken; Linux only."""
  numbers = pathlib.Path('/proc/stat').read_text().splitlines()[0].split()[1:]
  idle = int(numbers[3]) + int(numbers[4])
  return (sum(map(int, numbers)) - idle) / os.sysconf('SC_CLK_TCK')


def timed(arm: Arm, dispatches: int) -> Timed:
  """A round of an arm."""
  begin, mine, all_of_them = time.perf_counter(), time.process_time(), busy()
  elsewhere = arm.work(dispatches)
  passed = time.perf_counter() - begin
  others = busy() - all_of_them - (time.process_time() - mine) - elsewhere
  return Timed(passed / dispatches, max(others / passed, 0.0))


def main(_) -> None:
  """Measures and prints."""
  name, count = EXPERIMENT.value, MEMBERS.value
  configure(name, CPU_DEVICES.value)
  experiment, seeds = build(name, 0), functools.partial(build, name)
  whole = engine.population(seeds, count, SIDE_BY_SIDE.value)
  arms = {
    ONE: alone(experiment, True),
    ALL: alone(experiment, False),
    f'{count} members': members(whole, count),
  }
  halves = Halves(name, count) if devices.describe()['platform'] == 'cpu' else None
  if halves is not None:
    arms[HALVES] = Arm(count, halves.work)
  compiling = {one: 2 * timed(arm, 2).seconds for one, arm in arms.items()}
  found: dict[str, list[Timed]] = {one: [] for one in arms}
  for _ in range(ROUNDS.value):
    for one, arm in arms.items():
      found[one].append(timed(arm, DISPATCHES.value))
  if halves is not None:
    halves.close()
  frozen, left = count // 2 + 1, count // 2
  rest = engine.population(seeds, left, SIDE_BY_SIDE.value)
  late = {f'{frozen} of {count} members live': members(whole, frozen)}
  late[f'{left} members, the other program'] = members(rest, left)
  for one, arm in late.items():
    compiling[one] = 2 * timed(arm, 2).seconds
    found[one] = [timed(arm, DISPATCHES.value) for _ in range(ROUNDS.value)]
  report(arms | late, found, compiling, experiment)
  print(f'{devices.describe()}, jax {jax.__version__}, commit {checkout.code()["commit"]}')


def report(
  arms: dict[str, Arm], found: dict[str, list[Timed]], compiling: dict[str, float], experiment: Any
) -> None:
  """Prints the table, and what the population is worth beside runs one after another, and beside two processes."""
  every, rows = experiment.steps_per_dispatch, []
  for name, rounds in found.items():
    times, others = np.array(rounds).T
    images = arms[name].moving * experiment.batch_size * every / np.median(times)
    milliseconds = [1e3 * f(times) / every for f in (np.median, min, max)]
    rows.append((name, *milliseconds, images, np.median(others), compiling[name]))
  head = ['', 'ms/step', 'min', 'max', 'images/s', 'cores others took', 'first two dispatches, s']
  print(tables.markdown(head, rows), '\n')
  count = MEMBERS.value
  best = min((ONE, ALL), key=lambda n: np.median(found[n], 0)[0])
  print(ratio(f'{count} times {best}', count, found[best], found[f'{count} members']))
  if HALVES in found:
    print(ratio(HALVES, 1, found[HALVES], found[f'{count} members']))


def ratio(name: str, times: int, one: list[Timed], whole: list[Timed]) -> str:
  """So many times the seconds of one arm over the population's, in the rounds where other programs were quiet."""
  pairs = [
    (times * a.seconds / b.seconds, max(a.others, b.others))
    for a, b in zip(one, whole, strict=True)
  ]
  quiet = [value for value, others in pairs if others < 0.1]
  said = quiet or [value for value, _ in pairs]
  return (
    f'{name} over {MEMBERS.value} members: {np.median(said):.2f} [{min(said):.2f}, {max(said):.2f}] in '
    f'{len(said)} of {len(pairs)} rounds; quiet ones: {len(quiet)}'
  )


if __name__ == '__main__':
  app.run(main)
