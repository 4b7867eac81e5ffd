"""What the metrics of a finished run are given, and what they return."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, Num

from diffusion import devices, rng
from diffusion.data import pipeline
from diffusion.data.pipeline import NormalizationStatistics
from diffusion.evaluation.features import Embedded, Features, remembered
from diffusion.process import gaussian
from diffusion.proportions import Counts
from diffusion.reporting import tables
from diffusion.sampling.draw import make_denoiser
from diffusion.statistics import Interval
from diffusion.types import NULL, Array, Condition, Denoiser, Diffusion, Keys, Model, Path
from diffusion.types import Examples as InNetworkUnits

Stored = Num[np.ndarray, ' n *shape']
Examples = tuple[Stored, Integer[np.ndarray, ' n']]  # and labels
HeldOut = tuple[Num[np.ndarray, ' h *shape'], Integer[np.ndarray, ' h']]


class Plan(NamedTuple):
  """What will be measured, known before training: numbers of samples, classes and examples, and an example's shape.

  `network` is False where there are images alone, `labels` where nobody knows what was asked for; `conditions` is True
  where the network is told other things than class labels.
  """

  samples: int
  classes: int
  shape: tuple[int, ...]
  train: int
  held_out: int
  network: bool = True
  labels: bool = True
  conditions: bool = False


class Query(NamedTuple):
  """What the evaluated network is asked about, on a device.

  Attributes:
    denoise: the denoiser, of rows with these conditions.
    path: the bound schedule and process.
    keys: one a row.
    x: examples in network units.
    condition: what the network is told of each; null labels where it is told nothing.
  """

  denoise: Denoiser
  path: Path
  keys: Keys
  x: InNetworkUnits
  condition: Condition


class Network(NamedTuple):
  """The evaluated network.

  Attributes:
    apply: (function(Query, shared) -> tree of [b, ...], x as stored [n, *shape], condition, shared tree) -> tree of
      NumPy arrays [n, ...], row by row on all devices.
    normalize: x as stored -> network units.
    log_snr: the lowest and the highest of its schedule, nats.
  """

  apply: Callable[..., Any]
  normalize: Callable[[Stored], InNetworkUnits]
  log_snr: tuple[float, float]


class MetricInputs(NamedTuple):
  """Samples beside the data, all as stored (uint8 levels, or floats).

  Attributes:
    samples: as they were drawn.
    labels: what was asked for.
    train, held_out: examples and their labels; held_out is validation and then test.
    validation: how many of held_out are of the validation split.
    class_names: one a class.
    units: of the stored data.
    network: the evaluated one; None where there are samples only.
    kept: what `once` remembers.
    conditions: what the network may be told of the 'train' and the 'held_out' examples, where that is not the label.
  """

  samples: Num[np.ndarray, ' m *shape']
  labels: Integer[np.ndarray, ' m']
  train: Examples
  held_out: HeldOut
  validation: int
  class_names: tuple[str, ...]
  units: NormalizationStatistics
  network: Network | None
  kept: dict[Hashable, Any]
  conditions: Mapping[str, Condition] | None = None

  def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` returns, computed for the first metric that asks for `key` and remembered for the others."""
    if key not in self.kept:
      self.kept[key] = make()
    return self.kept[key]

  def x(self, which: str) -> Stored:
    """The 'samples', or the 'train' or 'held_out' examples, as stored."""
    return self.samples if which == 'samples' else getattr(self, which)[0]

  def told(self, which: str) -> Condition:
    """What the network may be told of the 'train' or 'held_out' examples."""
    return getattr(self, which)[1] if self.conditions is None else self.conditions[which]

  def embed(self, features: Features, which: str) -> Embedded:
    """Features of the 'samples', 'train' or 'held_out'; computed once; of the data kept on disk."""

    def make() -> Embedded:
      x = shown(self.x(which), self.units.levels)
      keep = features.digest and which != 'samples'
      return remembered(features, x) if keep else features.apply(x)

    return self.once((features, which), make)


def shown(x: Stored, levels: int | None) -> Num[np.ndarray, 'n ...']:
  """Stored examples as features take them: uint8 images of brightness 0 to 255, or float vectors [n, d]."""
  return x.reshape(len(x), -1) if levels is None else pipeline.to_uint8(x, levels)


def subset(x: Stored, limit: int, seed: int = 0) -> Num[np.ndarray, ' m *shape']:
  """Rows chosen at random, in their order: samples come class by class in turn, so no fixed stride.

  Args:
    x: examples or features.
    limit: rows at most, >= 1; all where there are no more.
    seed: of the choice.
  """
  if len(x) <= limit:
    return x
  return x[np.sort(np.random.default_rng(seed).choice(len(x), limit, replace=False))]


class MetricResult(NamedTuple):
  """One number of a report.

  Attributes:
    name: of the quantity.
    value: a number, or with its interval.
    meaning: what it says, in one line.
    unit: what is counted or measured; '' for a pure number.
    better: what is better: 'lower', 'higher', 'nearer 0', ...; '' where nothing is, as of a number to compare with.
    counts: of a proportion, which reports of several runs pool.
  """

  name: str
  value: float | Interval
  meaning: str
  unit: str = ''
  better: str = ''
  counts: Counts | None = None


def proportion(name: str, counts: Counts, meaning: str, better: str = '') -> MetricResult:
  """A share with its interval, which keeps its counts.

  Args:
    name, meaning, better: see `MetricResult`.
    counts: of what.
  """
  return MetricResult(name, counts.interval(), meaning, unit='share', better=better, counts=counts)


def told(findings: Sequence[MetricResult]) -> list[tuple[str, float | Interval, str, str]]:
  """(name, value, reading, meaning) of each, as tables show them.

  Plain numbers that are 0 are left out: nothing was skipped, clipped or rolled back. The record has them.
  """
  return [
    (one.name, one.value, tables.reading(one.unit, one.better), one.meaning)
    for one in findings
    if isinstance(one.value, Interval) or one.value != 0
  ]


def results_to_json(findings: Sequence[MetricResult]) -> dict[str, Any]:
  """name -> value; one with an interval as {estimate, low, high}, a proportion with its counts beside them."""
  return {finding.name: _value_to_json(finding) for finding in findings}


def _value_to_json(finding: MetricResult) -> Any:
  if not isinstance(finding.value, Interval):
    return finding.value
  told = {} if finding.counts is None else {'counts': finding.counts._asdict()}
  return finding.value._asdict() | told


class Metric(NamedTuple):
  """What judges the samples of a finished run.

  Attributes:
    check: raises ValueError before training for what it cannot judge.
    measure: the findings of the samples.
  """

  check: Callable[[Plan], None]
  measure: Callable[[MetricInputs], list[MetricResult]]


def name_of(metric: Metric) -> str:
  """Of the function that made it."""
  return metric.measure.__qualname__.split('.')[0].strip('_')


def check_nothing(plan: Plan) -> None:
  """The check of a metric that can judge anything."""


def of_features(features: Features, check: Callable[[Plan], None]) -> Callable[[Plan], None]:
  """The check of a metric that looks at features: it refuses examples of which there are none, too."""

  def checked(plan: Plan) -> None:
    refused = features.refuses(plan.shape)
    if refused:
      raise ValueError(refused)
    check(plan)

  return checked


def check_network(plan: Plan) -> None:
  """The check of a metric that asks the network.

  Raises:
    ValueError: there is none.
  """
  if not plan.network:
    raise ValueError('it asks the network, and there are images alone')


def make_network(
  model: Model, diffusion: Diffusion, units: NormalizationStatistics, weights: Any, chunk: int = 64
) -> Network:
  """The evaluated network, for metrics that ask it, e.g. for likelihoods.

  Args:
    model, diffusion: what was trained.
    units: of the stored data.
    weights: replicated (parameters, statistics, seed); the parameters have `network` and `schedule`.
    chunk: rows a device takes at a time.
  """

  def tell(condition: Condition) -> Condition:
    if model.null is not None:
      return condition
    return jax.tree.map(lambda leaf: np.full_like(leaf, NULL), condition)

  def apply(function: Callable, x: Stored, condition: Condition, shared: Any = ()) -> Any:
    def rows(
      given, x: Num[Array, ' b *shape'], condition: Condition, position: Integer[Array, ' b']
    ) -> Any:
      (parameters, statistics, seed), more = given
      path = gaussian.bind(diffusion, parameters.schedule)
      denoise = make_denoiser(
        model, diffusion, path, parameters.network, statistics, condition, forward_mode=True
      )
      keys = rng.row_keys(rng.stream(seed, 'likelihood'), position)
      x = pipeline.normalize(x, units)
      return function(Query(denoise=denoise, path=path, keys=keys, x=x, condition=condition), more)

    given = (weights, devices.replicate(shared))
    return devices.over_rows(rows, chunk)(given, x, tell(condition), np.arange(len(x)))

  path = gaussian.bind(diffusion, devices.first(weights[0].schedule))
  ends = tuple(float(path.log_snr(t)) for t in (jnp.ones(()), jnp.zeros(())))
  return Network(apply, lambda x: pipeline.normalize(jnp.asarray(x), units), ends)
