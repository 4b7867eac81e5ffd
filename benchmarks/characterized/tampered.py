"""An experiment with a hand in its batches: spied on, multiplied by 1,000, or the process ended in the middle of them.

A program that `benchmarks.characterize` starts by its path, with the root of a checkout on PYTHONPATH, whose
`diffusion` and `experiments` it takes: it must work with both sides of the comparison. What to do is JSON in $TAMPERED,
the fields of `Orders`; the command line is that of the experiment. The augmentation calls the host once a batch, in the
order of the batches, so all of it needs --cpu_devices=1.
"""

import hashlib
import importlib
import itertools
import json
import os
import pathlib
import signal
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import io_callback

from diffusion import launch
from diffusion.evaluation import metric
from diffusion.training import callbacks, guards
from diffusion.types import Array, Batch


class Orders(NamedTuple):
  """What to do.

  Attributes:
    experiment: its name.
    spy: file to add a line to for each batch, and for each array that a metric is given; '' for none.
    spike: (first, beyond) of the batches, counted from the start of the process, that are multiplied by 1,000; a spike
      guard watches then.
    end: (batch, name of the signal) that ends the process; () for none.
  """

  experiment: str
  spy: str = ''
  spike: tuple[int, int] = (0, 0)
  end: tuple = ()


def digest(x: np.ndarray, decimals: int = 4) -> str:
  """A name for what an array holds, rounded where it is of floats, whatever its type."""
  x = np.asarray(x)
  held = np.round(x.astype(np.float64), decimals) + 0.0  # -0 becomes 0
  return hashlib.sha256(str(x.shape).encode() + held.tobytes()).hexdigest()[:16]


def write(path: str, line: dict[str, Any]) -> None:
  """Adds a line of JSON."""
  with pathlib.Path(path).open('a') as file:
    file.write(json.dumps(line) + '\n')


def tampered(made: Any, orders: Orders) -> Any:
  """The experiment as ordered."""
  counter = itertools.count()

  def on_host(x: Array, label: Array, index: Array) -> np.float32:
    batch = next(counter)
    if orders.spy:
      rows = [digest(row) for row in np.asarray(x)]
      write(
        orders.spy,
        {'batch': batch, 'x': rows, 'label': digest(label), 'index': np.asarray(index).tolist()},
      )
    if orders.end and batch == orders.end[0]:
      os.kill(os.getpid(), getattr(signal, orders.end[1]))
    return np.float32(1000 if orders.spike[0] <= batch < orders.spike[1] else 1)

  def augment(keys: Array, batch: Batch) -> Batch:
    shape = jax.ShapeDtypeStruct((), np.float32)
    factor = io_callback(on_host, shape, batch.x, batch.condition, batch.index)
    return made.augment(keys, batch._replace(x=batch.x * factor))

  changed = made._replace(augment=augment)
  if orders.spike[1]:
    guard = guards.spike_guard(made.log_every, back=4 * made.log_every, minimum=8)
    changed = changed._replace(callbacks=[callbacks.checkpoint('validation/eps'), guard])
  if orders.spy:
    changed = changed._replace(metrics=[*made.metrics, spying(orders.spy)])
  return changed


def spying(path: str) -> metric.Metric:
  """A metric that finds nothing and notes what it is given."""

  def measure(judged: Any) -> list[Any]:
    given = {'labels': judged.labels}
    for which in ('train', 'held_out'):
      x, label = getattr(judged, which)
      given |= {f'{which} x': x, f'{which} label': label}
    write(path, {name: [len(x), digest(x)] for name, x in given.items()})
    return []

  return metric.Metric(metric.check_nothing, measure)


if __name__ == '__main__':
  ORDERS = Orders(**json.loads(os.environ['TAMPERED']))
  MODULE = importlib.import_module(f'experiments.{ORDERS.experiment}')
  launch.run(lambda c: tampered(MODULE.build(c), ORDERS), MODULE.Config(), MODULE.SMOKE)
