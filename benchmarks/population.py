"""What a population is worth: K runs of an experiment as one program against K runs one after another.

Run     python -m benchmarks.population --members=16
        python -m benchmarks.population --members=4 --experiment=digits --dispatches=2

Both in one process, in interleaved rounds, compilation apart. A run alone is timed on one device and on all, and
the faster of the two is what a population is compared with; runs one after another take K times as long. Then members
stop: first all but K/2 + 1, where nothing is moved if K is a power of two, then one more, where the rest moves
together. Nothing is gated: machines are noisy.

Expect  on 2 quiet CPU cores 16 runs one after another take 1.63 [1.57, 1.71] times as long (docs/PERFORMANCE.md).
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import engine
from diffusion import devices, provenance
from diffusion.reporting import tables
from diffusion.training import assembly, population
from diffusion.training.running import Running
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


def alone(experiment: Any) -> dict[str, Callable[[], Any]]:
  """Dispatches of one run, on one device and on all."""

  def make(one_device: bool) -> Callable[[], Any]:
    training = engine.training(experiment, one_device)
    state = training.first()

    def run() -> Any:
      nonlocal state
      state, metrics = training.dispatch(state)
      return metrics

    return run

  return {'one run, one device': make(True), 'one run, all devices': make(False)}


def together(module: Any, loaded: assembly.Loaded, count: int) -> Running:
  """A population of seeds."""
  values = [{'seed': seed} for seed in range(count)]

  def build(one):
    return module.build(dataclasses.replace(module.Config(), **one))

  made = population.gather(build, values, [build(one) for one in values], [loaded] * count)
  states = population.init_states(made, range(count))
  return Running(made, states, side_by_side=SIDE_BY_SIDE.value)


def busy() -> float:
  """CPU seconds that all processes of this machine have taken; Linux only."""
  numbers = pathlib.Path('/proc/stat').read_text().splitlines()[0].split()[1:]
  idle = int(numbers[3]) + int(numbers[4])
  return (sum(map(int, numbers)) - idle) / os.sysconf('SC_CLK_TCK')


def seconds(run: Callable[[], Any], dispatches: int) -> tuple[float, float]:
  """(seconds of a dispatch, waiting for each; cores that other processes kept busy meanwhile)."""
  begin, mine, all_of_them = time.perf_counter(), time.process_time(), busy()
  for _ in range(dispatches):
    devices.wait(run())
  passed = time.perf_counter() - begin
  others = (busy() - all_of_them - (time.process_time() - mine)) / passed
  return passed / dispatches, max(others, 0.0)


def main(_) -> None:
  """Measures and prints."""
  module, count = EXPERIMENTS[EXPERIMENT.value], MEMBERS.value
  experiment = module.build(module.Config())
  devices.configure(experiment.batch_size, CPU_DEVICES.value, cache=False)
  devices.choose_convolutions(experiment.data.side())
  loaded = assembly.load_data(experiment)
  running = together(module, loaded, count)

  def members(live: int) -> Callable[[], Any]:
    return lambda: running.dispatch(range(live))[0][1]['loss']

  whole = f'{count} members'
  arms = alone(experiment) | {whole: members(count)}
  compiling = {name: 2 * seconds(run, 2)[0] for name, run in arms.items()}
  found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
  for _ in range(ROUNDS.value):
    for name, run in arms.items():
      found[name].append(seconds(run, DISPATCHES.value))
  for live in (
    count // 2 + 1,
    count // 2,
  ):  # after these the population is smaller, so they come last
    name = f'{live} of {count} members live'
    compiling[name] = 2 * seconds(members(live), 2)[0]
    found[name] = [seconds(members(live), DISPATCHES.value) for _ in range(ROUNDS.value)]
  report(found, compiling, whole, experiment, count)
  print(f'\nprograms of {running.sizes} members were made')
  print(f'{devices.describe()}, jax {jax.__version__}, commit {provenance.code()["commit"]}')


def report(
  found: dict[str, list[tuple[float, float]]],
  compiling: dict[str, float],
  whole: str,
  experiment: Any,
  count: int,
) -> None:
  """Prints the table, and the ratio over the rounds in which other processes were quiet."""
  every, rows = experiment.steps_per_dispatch, []
  for name, rounds in found.items():
    moving = 1 if name.startswith('one') else int(name.split()[0])
    times, others = np.array(rounds).T
    images = moving * experiment.batch_size * every / np.median(times)
    milliseconds = [1e3 * f(times) / every for f in (np.median, min, max)]
    rows.append((name, *milliseconds, images, np.median(others), compiling[name]))
  head = ['', 'ms/step', 'min', 'max', 'images/s', 'cores others took', 'first two dispatches, s']
  print(tables.markdown(head, rows))
  best = min((n for n in found if n.startswith('one')), key=lambda n: np.median(found[n], 0)[0])
  pairs = [
    (count * one[0] / all_of_them[0], max(one[1], all_of_them[1]))
    for one, all_of_them in zip(found[best], found[whole], strict=True)
  ]
  quiet = [ratio for ratio, others in pairs if others < 0.1] or [ratio for ratio, _ in pairs]
  print(
    f'\n{count} times {best} over {whole}: {np.median(quiet):.2f} [{min(quiet):.2f}, {max(quiet):.2f}] in '
    f'{len(quiet)} of {len(pairs)} rounds; quiet ones: {sum(others < 0.1 for _, others in pairs)}'
  )


if __name__ == '__main__':
  app.run(main)
