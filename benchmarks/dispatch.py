"""What a dispatch costs: K scanned training steps against K single ones, interleaved in one process.

Run     python -m benchmarks.dispatch --scanned=5 --rounds=9

Prints the time of one step of the digits experiment (real data, dropout, clipping, AdamW, EMA) both ways and their
ratio round by round, with medians and spread. Nothing is gated: machines are noisy.
"""

import time

import jax
import numpy as np
from absl import app, flags

from diffusion import checkout, devices
from diffusion.reporting import tables
from diffusion.training.experiment import load_data
from diffusion.training.program import SingleRun
from diffusion.training.state import init_state
from experiments import digits

SCANNED = flags.DEFINE_integer('scanned', 5, 'Steps in one dispatch.')
ROUNDS = flags.DEFINE_integer('rounds', 9, 'Timed rounds of each.')
CPU_DEVICES = flags.DEFINE_integer('cpu_devices', 0, 'Virtual devices on CPU; 0 chooses.')


def seconds_per_step(program: SingleRun, steps: int, per_dispatch: int) -> float:
  """Seconds a step over `steps` steps, waiting for each dispatch."""
  begin = time.perf_counter()
  for seen in range(0, steps, per_dispatch):
    program.dispatch([seen])(0)
  return (time.perf_counter() - begin) / steps


def main(_) -> None:
  """Measures and prints."""
  experiment = digits.build(digits.Config())
  devices.configure(experiment.batch_size, CPU_DEVICES.value)
  devices.choose_convolutions()
  data = load_data(experiment)
  counts = (1, SCANNED.value)
  programs = {k: SingleRun(experiment._replace(steps_per_dispatch=k), data) for k in counts}
  first = init_state(experiment, data.example, data.units)
  for program in programs.values():
    program.put(0, devices.replicate(first))
  times = {k: [] for k in counts}
  for i in range(ROUNDS.value + 1):
    for k in counts:
      seconds = seconds_per_step(programs[k], 2 * SCANNED.value, k)
      if i:  # the first round compiles
        times[k].append(seconds)
  rows = [
    (
      f'{k} a dispatch',
      *(1e3 * f(times[k]) for f in (np.median, min, max)),
      experiment.batch_size / np.median(times[k]),
    )
    for k in counts
  ]
  ratio = np.array(times[counts[1]]) / np.array(times[1])
  rows.append(('ratio', np.median(ratio), ratio.min(), ratio.max(), None))
  print(tables.markdown(['steps', 'median ms/step', 'min', 'max', 'images/s'], rows))
  print(f'{devices.describe()}, jax {jax.__version__}, commit {checkout.code()["commit"]}')


if __name__ == '__main__':
  app.run(main)
