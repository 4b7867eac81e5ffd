"""How many images a second reach a step: from the device's memory, and from files by threads or worker processes.

Run     python -m benchmarks.data --data_dir=DIR --rounds=7

DIR is where MNIST is prepared (`python -m diffusion.commands.prepare mnist --data_dir=DIR`). The step does nothing but
bring its rows into network units and average them, so this is what data can feed, not what training takes. What was
read ahead of a round is taken before its clock starts. Rounds are interleaved; medians and spread, nothing is gated.
"""

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks import engine
from diffusion import checkout, devices
from diffusion.reporting import tables

DATA_DIR = flags.DEFINE_string('data_dir', None, "Where MNIST is prepared; by default TFDS's own.")
BATCH = flags.DEFINE_integer('batch_size', 128, 'Rows of a batch.')
STEPS = flags.DEFINE_integer('steps', 5, 'Steps of a dispatch.')
DISPATCHES = flags.DEFINE_integer('dispatches', 40, 'Timed dispatches of a round.')
ROUNDS = flags.DEFINE_integer('rounds', 7, 'Rounds of each.')
WORKERS = flags.DEFINE_multi_integer('workers', [0, 1, 2], 'Processes that read; 0 for threads.')
CPU_DEVICES = flags.DEFINE_integer('cpu_devices', 0, 'Virtual devices on CPU; 0 chooses.')


def main(_) -> None:
  """Measures and prints."""
  logging.set_verbosity(logging.WARNING)  # TFDS tells of every file
  devices.configure(BATCH.value, CPU_DEVICES.value)
  source = engine.mnist(DATA_DIR.value)
  plan = engine.Feeding(BATCH.value, STEPS.value, DISPATCHES.value)
  ways = {'on the device': engine.resident(source, plan)}
  for n in WORKERS.value:
    name = f'files, {n} processes' if n else 'files, threads'
    ways[name] = engine.streamed(source, n, plan)
  rates = {name: [] for name in ways}
  for i in range(ROUNDS.value + 1):
    for name, rate in ways.items():
      found = rate()
      if i:  # the first round compiles
        rates[name].append(found)
  rows = [(name, *(f(found) for f in (np.median, min, max))) for name, found in rates.items()]
  print(tables.markdown(['data', 'median images/s', 'min', 'max'], rows))
  print(f'{devices.describe()}, jax {jax.__version__}, commit {checkout.code()["commit"]}')


if __name__ == '__main__':
  app.run(main)
