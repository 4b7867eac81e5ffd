"""What a checkpoint of the large state costs, and how long a signal takes."""

import pathlib
import re
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks import resume
from benchmarks.processes import start
from diffusion.data import pipeline
from diffusion.reporting import tables
from diffusion.training.checkpoint import open_checkpoints
from diffusion.training.state import init_state
from experiments import cifar10


def terminate(folder: pathlib.Path, experiment: str, count: int, *arguments: str) -> tuple:
  """A row of the table: seconds from SIGTERM to the exit of runs in the middle of training, and what they saved."""
  seconds, saved = [], []
  for i in range(count):
    workdir = folder / f'{experiment}{i}'
    process = start(workdir, *arguments, experiment=experiment)
    resume.wait_for_progress(process, workdir, np.random.default_rng(i))
    begin = time.perf_counter()
    process.terminate()
    process.join()
    seconds.append(time.perf_counter() - begin)
    said = re.search(r'saved at step (\d+)', workdir.with_suffix('.log').read_text())
    saved.append(f'step {said[1]}' if said else 'nothing')
  return experiment, np.median(seconds), min(seconds), max(seconds), ', '.join(saved)


def large_state() -> Any:
  """A first state of the 35.7M U-Net with Adam's moments and the average, on the host."""
  experiment = cifar10.build(cifar10.Config())
  example = np.zeros((1, 32, 32, 3), np.uint8)
  return jax.device_get(
    init_state(experiment, example, pipeline.NormalizationStatistics(levels=256))
  )


def cost(folder: pathlib.Path, state: Any, rounds: int) -> list[tuple]:
  """Rows of the table of times of a checkpoint of `state`."""
  target = jax.tree.map(np.zeros_like, state)
  times = {
    'save: the loop waits': [],
    'save: manifest written': [],
    'open and check': [],
    'restore': [],
  }
  for i in range(rounds):
    keeper = open_checkpoints(folder / 'large')
    begin = time.perf_counter()
    keeper.save(i, state, {}, 0.0)
    times['save: the loop waits'].append(time.perf_counter() - begin)
    keeper.wait()
    times['save: manifest written'].append(time.perf_counter() - begin)
    keeper.close()
    begin = time.perf_counter()
    keeper = open_checkpoints(folder / 'large')
    times['open and check'].append((time.perf_counter() - begin) / len(keeper.steps()))
    begin = time.perf_counter()
    keeper.restore(target, 'latest')
    times['restore'].append(time.perf_counter() - begin)
    keeper.close()
  return [(name, *(f(of) for f in (np.median, min, max))) for name, of in times.items()]


def measure(rounds: int) -> None:
  """Prints both tables.

  Args:
    rounds: signals to each experiment, and saves and restores of the large state.
  """
  spread = ['median s', 'min', 'max']
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    ended = [
      terminate(folder, 'digits', rounds),
      terminate(folder, 'mixture', rounds, '--smoke', '--config.num_steps=100000'),
    ]
    print(tables.markdown(['from SIGTERM to exit', *spread, 'saved'], ended), flush=True)
    state = large_state()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    head = [f'checkpoint of {size:.0f} MiB', *spread]
    print(tables.markdown(head, cost(folder, state, rounds)))
