"""What the loop drives: states on the devices, one run's or several's, and the compiled functions that move them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from diffusion import devices
from diffusion.data import pipeline, prefetch, splits
from diffusion.data.pipeline import NormalizationStatistics, Order
from diffusion.data.splits import SplitData
from diffusion.evaluation import gap
from diffusion.training import state as states
from diffusion.training.experiment import Experiment
from diffusion.training.state import TrainState
from diffusion.training.step import STATISTICS_BATCHES, make_recompute_statistics, make_step

Fetch = Callable[[int], Mapping[str, Any]]  # run -> its metrics on the host, which it waits for


class Program(Protocol):
  """The states of one or more runs, and what can be done with them; runs are numbered from 0.

  All but `dispatch` act on one run, between two dispatches.
  """

  def dispatch(self, seen: Sequence[int | None]) -> Fetch:
    """Begins `steps_per_dispatch` steps of each run, after so many batches seen; a run with None stays as it is.

    It returns at once, but for waiting until the dispatch before the last is through: at most two are in flight.
    """

  def recompute_statistics(self, k: int) -> None:
    """Gives the evaluation parameters of a run batch statistics of their own, where the network has any."""

  def validate(self, k: int) -> dict[str, float]:
    """The validation row of a run whose statistics are recomputed."""

  def get(self, k: int) -> TrainState:
    """The state of a run, replicated."""

  def put(self, k: int, state: TrainState) -> None:
    """Goes on from another state of a run, replicated."""


class Batches(NamedTuple):
  """What steps are given: rows of the data on the devices, or (where `data()` is None) what the host reads of them.

  Attributes:
    data: () -> what every device holds.
    take: batches seen -> what the steps of a dispatch are given.
    first: () -> the batches that `make_recompute_statistics` takes, as one step's.
    ahead: () -> None; prepares what the next dispatch takes.
    close: () -> None.
  """

  data: Callable[[], Any]
  take: Callable[[int], Any]
  first: Callable[[], Any]
  ahead: Callable[[], None] = lambda: None
  close: Callable[[], None] = lambda: None


def make_batches(experiment: Experiment, data: SplitData) -> Batches:
  """The run's batches. The data goes to every device when first needed, once; where it is streamed, batch by batch."""
  size, count = experiment.batch_size, experiment.steps_per_dispatch
  order = Order(experiment.seed, data.split.train)

  def first_of(read: Callable[[int, int], Any]) -> Callable[[], Any]:
    # Once: the order would forget the epochs that training is in.
    return functools.cache(lambda: jax.tree.map(lambda x: x[:, None], read(0, STATISTICS_BATCHES)))

  if data.streamed:
    rows = devices.rows_of_this_process(size)
    fed = prefetch.Prefetcher(
      data.dataset.x, data.dataset.label, order, rows, batch_size=size, steps=count
    )
    return Batches(
      data=lambda: None, take=fed.take, first=first_of(fed.read), ahead=fed.ahead, close=fed.close
    )
  resident = pipeline.InMemoryData(data.dataset.x, data.dataset.conditions, data.order)

  def read(seen: int, steps: int = count) -> np.ndarray:
    return devices.split_rows(order.batches(seen, steps, size))

  held = functools.cache(lambda: devices.replicate(resident))
  return Batches(data=held, take=read, first=first_of(read))


class SingleRun:
  """The `Program` of one run, which divides each batch over all devices."""

  def __init__(self, experiment: Experiment, data: SplitData, validate: Callable | None = None):
    """Compiles nothing yet; `validate` as `make_validate` makes it, which is the default. Its state is to be `put`."""
    self._experiment = experiment
    self._batches = make_batches(experiment, data)
    step = make_step(experiment, data.units)
    self._step = devices.compile_apart(devices.parallelize(step, experiment.batch_size))
    recompute = make_recompute_statistics(experiment, data.units)
    self._recompute_statistics = devices.parallelize(
      lambda *given: (recompute(*given), ()), experiment.batch_size
    )
    self._validate = validate or make_validate(data, make_losses(experiment, data.units))
    self._state = self._last = None

  def dispatch(self, seen: Sequence[int | None]) -> Fetch:
    """See `Program`."""
    batches, (at,) = self._batches, seen
    self._state, metrics = self._step(self._state, batches.data(), batches.take(at))
    batches.ahead()
    before, self._last = self._last, metrics['loss']
    if before is not None:
      devices.wait(before)
    return lambda k: devices.to_host(metrics)

  def recompute_statistics(self, k: int) -> None:
    """See `Program`."""
    if self._state.statistics:
      self._state, _ = self._recompute_statistics(
        self._state, self._batches.data(), self._batches.first()
      )

  def validate(self, k: int) -> dict[str, float]:
    """See `Program`."""
    return self._validate(states.weights(self._experiment, self._state))

  def get(self, k: int) -> TrainState:
    """See `Program`."""
    return self._state

  def put(self, k: int, state: TrainState) -> None:
    """See `Program`."""
    self._state = state

  def close(self) -> None:
    """Ends what reads ahead."""
    self._batches.close()


def make_losses(
  experiment: Experiment, units: NormalizationStatistics
) -> Callable[..., np.ndarray]:
  """(weights, x as stored [n, ...], condition, position [n]) -> losses [n, L] on the evaluation noise."""
  return gap.evaluation_losses(
    experiment.diffusion, experiment.model, units, experiment.evaluation_noise
  )


def make_validate(
  data: SplitData, losses: Callable[..., np.ndarray]
) -> Callable[[Any], dict[str, float]]:
  """Weights -> validation row: losses of the validation split and of as many training examples on the evaluation noise.

  Training examples are taken evenly over the split and keep the same positions, hence the same noise.
  """
  rows = splits.evenly(data)
  seen, held_out = data.shown(rows), data.shown(data.split.validation)

  def validate(weights: Any) -> dict[str, float]:
    return gap.summarize(*(losses(weights, *p, np.arange(len(p[0]))) for p in (seen, held_out)))

  return validate
