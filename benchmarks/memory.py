"""Memory: what 20,000 dispatches leave behind, and the peak of the largest network's training step.

Run     python -m benchmarks.memory

Prints the resident memory of a process that makes the mixture experiment's dispatches after 1,000 and after 20,000 of
them, and the peak of another process that trains DDPM's CIFAR-10 network at batch 8.
"""

import multiprocessing
from collections.abc import Callable

import jax
import psutil
from absl import app, flags

from benchmarks import contenders, contest, sizes
from diffusion import checkout, devices
from diffusion.reporting import tables
from diffusion.training.experiment import load_data
from diffusion.training.program import SingleRun
from diffusion.training.state import init_state
from experiments import mixture

FIRST = flags.DEFINE_integer('first', 1_000, 'Dispatches before the first look.')
LAST = flags.DEFINE_integer('last', 20_000, 'Dispatches before the last look.')
PEAK = flags.DEFINE_boolean('peak', True, 'Measure the peak of the large network, too.')


def after_dispatches(counts: tuple[int, int]) -> list[float]:
  """InMemoryData MB of this process after so many dispatches of one step of the mixture experiment."""
  experiment = mixture.build(mixture.Config(steps_per_dispatch=1))
  devices.configure(experiment.batch_size)
  devices.choose_convolutions()
  data = load_data(experiment)
  program, found = SingleRun(experiment, data), []
  program.put(0, devices.replicate(init_state(experiment, data.example, data.units)))
  for i in range(1, max(counts) + 1):
    program.dispatch([i - 1])
    if i in counts:
      found.append(psutil.Process().memory_info().rss / 1e6)
  return found


def peak_of_large(_) -> list[float]:
  """The most resident MB of this process while it trains the CIFAR-10 network for a few steps."""
  work, _, _ = contenders.step(sizes.SIZES['cifar10'])
  before = devices.peak_memory() / 1e6
  for _ in range(4):
    work()
  return [before, devices.peak_memory() / 1e6]


def _apart(function: Callable, argument) -> list[float]:
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    return pool.apply(function, (argument,))


def main(_) -> None:
  """Measures and prints."""
  early, late = _apart(after_dispatches, (FIRST.value, LAST.value))
  rows = [
    (f'mixture, after {FIRST.value} dispatches', early),
    (f'mixture, after {LAST.value} dispatches', late),
    ('ratio', late / early),
  ]
  if PEAK.value:
    before, peak = _apart(peak_of_large, None)
    rows += [
      ('cifar10, batch 8, before the first step', before),
      ('cifar10, batch 8, peak after 4', peak),
    ]
  print(tables.markdown(['process', 'resident MB'], rows, 4))
  print(f'{contest.machine()}, jax {jax.__version__}, commit {checkout.code()["commit"]}')


if __name__ == '__main__':
  app.run(main)
