"""How many images a second reach a step: from the device's memory, and from files by threads or worker processes.

Run     python -m benchmarks.data --data_dir=DIR --rounds=7

DIR is where MNIST is prepared (`python -m diffusion.data.prepare mnist --data_dir=DIR`). The step does nothing but
bring its rows into network units and average them, so this is what data can feed, not what training takes. What was
read ahead of a round is taken before its clock starts. Rounds are interleaved; medians and spread, nothing is gated.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from diffusion import devices, provenance
from diffusion.data import feed, pipeline, sources
from diffusion.reporting import tables

DATA_DIR = flags.DEFINE_string('data_dir', None, "Where MNIST is prepared; by default TFDS's own.")
BATCH = flags.DEFINE_integer('batch_size', 128, 'Rows of a batch.')
STEPS = flags.DEFINE_integer('steps', 5, 'Steps of a dispatch.')
DISPATCHES = flags.DEFINE_integer('dispatches', 40, 'Timed dispatches of a round.')
ROUNDS = flags.DEFINE_integer('rounds', 7, 'Rounds of each.')
WORKERS = flags.DEFINE_multi_integer('workers', [0, 1, 2], 'Processes that read; 0 for threads.')
CPU_DEVICES = flags.DEFINE_integer('cpu_devices', 0, 'Virtual devices on CPU; 0 chooses.')
DRAINED = 10  # dispatches before the clock starts, more than any feed reads ahead


def step(cursor, data, rows, cross_mean):
  """Takes a batch of either kind and averages it."""
  units = pipeline.Units(256)
  if isinstance(data, pipeline.Drawn):
    batch = pipeline.in_units(data, units)
  else:
    index = pipeline.indices(jnp.uint32(0), 0, cursor, rows, data.x.shape[0])
    batch = pipeline.gather(data, index, units)
  return cursor + 1, cross_mean(batch.x.mean())


def resident(source: sources.Source) -> Callable[[], float]:
  """() -> images a second of a round, from the device."""
  data = source.load()
  held = devices.replicate(pipeline.Resident(data.x, data.label))
  dispatch = devices.parallelize(step, BATCH.value, STEPS.value)
  return lambda: measure(lambda cursor, i: dispatch(cursor, held))


def streamed(source: sources.Source, workers: int) -> Callable[[], float]:
  """() -> images a second of a round, from the files."""
  records = sources.streamed(source, workers).load().x
  rows = devices.rows_of_this_process(BATCH.value)
  dispatch = devices.parallelize(step, BATCH.value, STEPS.value, data_by_step=True)

  def rate() -> float:
    given = feed.Feed(records, rows, BATCH.value, STEPS.value)

    def one(cursor, i):
      result = dispatch(cursor, given.take(feed.Place(0, 0, i * STEPS.value)))
      given.ahead()
      return result

    try:
      return measure(one)
    finally:
      given.close()

  return rate


def measure(dispatch: Callable) -> float:
  """Images a second; the loop waits for the dispatch before the last one, as training does."""
  cursor, previous = devices.replicate(jnp.zeros((), jnp.int32)), None
  for i in range(DRAINED + DISPATCHES.value):
    if i == DRAINED:
      devices.wait(cursor)
      begin = time.perf_counter()
    cursor, mean = dispatch(cursor, i)
    if previous is not None:
      devices.wait(previous)
    previous = mean
  devices.wait(previous)
  return DISPATCHES.value * STEPS.value * BATCH.value / (time.perf_counter() - begin)


def main(_) -> None:
  """Measures and prints."""
  logging.set_verbosity(logging.WARNING)  # TFDS tells of every file
  devices.configure(BATCH.value, CPU_DEVICES.value)
  source = sources.tfds('mnist', DATA_DIR.value)
  ways = {'on the device': resident(source)}
  ways |= {
    f'files, {n} processes' if n else 'files, threads': streamed(source, n) for n in WORKERS.value
  }
  rates = {name: [] for name in ways}
  for i in range(ROUNDS.value + 1):
    for name, rate in ways.items():
      found = rate()
      if i:  # the first round compiles
        rates[name].append(found)
  rows = [(name, *(f(found) for f in (np.median, min, max))) for name, found in rates.items()]
  print(tables.markdown(['data', 'median images/s', 'min', 'max'], rows))
  print(f'{devices.describe()}, jax {jax.__version__}, commit {provenance.code()["commit"]}')


if __name__ == '__main__':
  app.run(main)
