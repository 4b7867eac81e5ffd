"""What the metrics of a finished run are given, and what they return."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusion.data.pipeline import Units
from diffusion.statistics import Interval

# (function, x as stored [n, ...], label [n]) -> tree of NumPy arrays [n, ...]: function(denoise, path, keys [b],
# x [b, ...] in network units) of the judged weights, row by row on all devices.
Apply = Callable[[Callable, np.ndarray, np.ndarray], Any]


class Judged(NamedTuple):
  """Samples beside the data, all as stored (uint8 levels, or floats).

  Attributes:
    samples: [m, ...].
    labels: [m], what was asked for.
    train, held_out: (x [n, ...], label [n]); held_out is validation and test together.
    class_names: one a class.
    units: of the stored data.
    apply: asks the judged network.
  """

  samples: np.ndarray
  labels: np.ndarray
  train: tuple[np.ndarray, np.ndarray]
  held_out: tuple[np.ndarray, np.ndarray]
  class_names: tuple[str, ...]
  units: Units
  apply: Apply


class Finding(NamedTuple):
  """One number of a report: its name, its value or interval, and what it says in one line."""

  name: str
  value: float | Interval
  meaning: str


class Metric(NamedTuple):
  """What judges the samples of a finished run.

  Attributes:
    check: (number of samples, number of classes) -> None; raises ValueError before training for what it cannot judge.
    measure: the findings of the samples.
  """

  check: Callable[[int, int], None]
  measure: Callable[[Judged], list[Finding]]
