"""Time and memory of the exact nearest-neighbor search: m MNIST test images against n training images.

  python -m benchmarks.neighbors --data_dir=...

Checked against NumPy in float64 on 100 of the queries. The peak is the process's largest resident set so far, data,
Python and JAX included; a table m x n of float32 would be what the last column says.
"""

import resource
import time

import numpy as np
from absl import app, flags, logging

from diffusion import checkout, devices
from diffusion.data import sources
from diffusion.evaluation import neighbors
from diffusion.reporting.tables import markdown

DATA_DIR = flags.DEFINE_string('data_dir', None, 'TFDS directory of MNIST.')


def peak() -> float:
  """The largest resident set so far, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(_):
  """Searches, checks, prints."""
  logging.set_verbosity(logging.ERROR)
  devices.configure(256)
  data = sources.tfds('mnist', data_dir=DATA_DIR.value).load()
  train, test = data.x, data.test[0]
  neighbors.nearest(test[:512], train[:4096])  # compiles nothing of what is timed, but starts JAX
  rows = []
  for m, n in ((2500, 15_000), (2500, 60_000), (10_000, 60_000)):
    begin = time.perf_counter()
    found = neighbors.nearest(test[:m], train[:n])
    seconds = time.perf_counter() - begin
    rows.append([m, n, seconds, peak(), m * n * 4 / 2**20])
  difference = test[:100].reshape(100, 1, -1).astype(np.float64)
  for i in range(100):
    distances = np.linalg.norm(difference[i] - train.reshape(len(train), -1), axis=1)
    nearest = np.sort(distances)[:2]
    assert np.allclose(found.distance[i], nearest, rtol=1e-12), i
    assert distances[found.index[i, 0]] == nearest[0], i
  print(
    markdown(
      ['queries', 'references', 'seconds', 'peak of the process (MiB)', 'm x n table (MiB)'], rows
    )
  )
  print("100 queries are NumPy's to the last digit")
  print(f'commit {checkout.code()["commit"]}, {devices.describe()}')


if __name__ == '__main__':
  app.run(main)
