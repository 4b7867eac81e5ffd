"""What the command line can ask of a checkpoint or of a folder of images: metrics and features by name."""

import difflib
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from diffusion.evaluation.features import Features, pixels
from diffusion.evaluation.metric import Metric, Plan
from diffusion.sampling import samplers, solvers
from diffusion.training.experiment import Experiment
from diffusion.types import Path, Sampler

METRICS = (
  'nearest_neighbor_ratio', 'calibrated_ratio', 'authenticity', 'data_copying', 'feature_likelihood', 'membership',
  'copying_distance', 'frechet', 'kernel', 'precision_recall', 'density_coverage', 'vendi', 'sliced_wasserstein',
  'class_balance', 'recognition', 'likelihood',
)  # fmt: skip
OF_THE_NETWORK = ('membership', 'copying_distance', 'likelihood')  # images alone cannot tell


def make(name: str, chosen: Features) -> Metric:
  """The metric of a name in `METRICS`, of these features where it compares features."""
  # Here, because a training needs few of them.
  from diffusion.evaluation import (
    bits_per_dim,
    classifier,
    frechet,
    manifold,
    membership,
    memorization,
    novelty,
    recognition,
  )

  with_features = {
    'data_copying': novelty.data_copying,
    'feature_likelihood': novelty.feature_likelihood,
    'frechet': frechet.frechet,
    'kernel': frechet.kernel,
    'precision_recall': manifold.precision_recall,
    'density_coverage': manifold.density_coverage,
    'vendi': manifold.vendi,
    'class_balance': lambda f: classifier.class_balance(f.name.removesuffix(' classifier')),
  }
  if name in with_features:
    return with_features[name](chosen)
  return {
    'nearest_neighbor_ratio': memorization.nearest_neighbor_ratio,
    'calibrated_ratio': memorization.calibrated_ratio,
    'authenticity': memorization.authenticity,
    'membership': membership.membership,
    'copying_distance': membership.copying_distance,
    'sliced_wasserstein': manifold.sliced_wasserstein,
    'recognition': recognition.support_vectors,
    'likelihood': bits_per_dim.variational_bound,
  }[name]()


SAMPLERS: dict[str, Callable[[Path], Sampler]] = {
  'ddim': samplers.ddim,
  'ancestral': samplers.ancestral,
  'euler': solvers.euler,
  'euler_maruyama': solvers.euler_maruyama,
  'heun': solvers.heun,
  'dpm_solver': solvers.dpm_solver,
}


class Request(NamedTuple):
  """What a judgment is asked to do differently from the run's own; the empty value of each leaves it as it is.

  Attributes:
    seed: of the sampler.
    samples: how many, rounded up to equally many of each class.
    sampler: of `SAMPLERS`.
    steps: of the sampler's grid.
    metrics: of `METRICS`, or 'all'.
    features: see `choose_features`.
  """

  seed: int = 0
  samples: int = 0
  sampler: str = ''
  steps: int = 0
  metrics: tuple[str, ...] = ()
  features: str = 'pixels'

  def applied(self, experiment: Experiment) -> Experiment:
    """The experiment with this sampler and steps, and without its own metrics where others are asked for.

    Raises:
      ValueError: an unknown sampler.
    """
    plan = experiment.sampling
    if self.sampler:
      if self.sampler not in SAMPLERS:
        raise ValueError(f'sampler must be one of {", ".join(SAMPLERS)}, got {self.sampler!r}')
      plan = plan._replace(sampler=SAMPLERS[self.sampler])
    if self.steps:
      plan = plan._replace(steps=self.steps)
    metrics = () if self.metrics else experiment.metrics
    return experiment._replace(sampling=plan, metrics=metrics)


AS_THE_RUN = Request()


def choose_features(name: str) -> Features:
  """'pixels', the name of a classifier in this package, or the path of the standard Inception weights.

  Raises:
    ValueError: another name, or a file with another checksum.
  """
  if name == 'pixels':
    return pixels()
  from diffusion.evaluation import classifier, inception  # here, because a training needs neither

  if name in classifier.NAMES:
    return classifier.features(name)
  if pathlib.Path(name).expanduser().is_file():
    return inception.features(pathlib.Path(name).expanduser())
  raise ValueError(
    f'features must be pixels, {", ".join(classifier.NAMES)}, or the path of {inception.FILE}, got {name!r}'
  )


def choose(
  names: Sequence[str], chosen: Features, plan: Plan, network: bool
) -> tuple[dict[str, Metric], dict[str, str]]:
  """The metrics of these names, checked; 'all' means each that can judge what is planned.

  Args:
    names: of `METRICS`, or the one name 'all'.
    chosen: features of those metrics that compare features.
    plan: what will be judged.
    network: whether there is a network to ask.

  Returns:
    (name -> metric, name -> why it was left out); the second is empty unless all were asked for.

  Raises:
    ValueError: an unknown name, or a named metric that cannot judge this.
  """
  unknown = sorted(set(names) - set(METRICS) - {'all'})
  if unknown:
    near = difflib.get_close_matches(unknown[0], METRICS, 1, 0.0)[0]
    raise ValueError(
      f'unknown metric {unknown[0]!r}: the nearest is {near!r} (all: {", ".join(METRICS)})'
    )
  found, left_out = {}, {}
  for name in METRICS if 'all' in names else names:
    try:
      if name in OF_THE_NETWORK and not network:
        raise ValueError('it asks the network, and there are images alone')
      metric = make(name, chosen)
      metric.check(plan)
      found[name] = metric
    except ValueError as error:
      if 'all' not in names:
        raise ValueError(f'metric {name}: {error}') from error
      left_out[name] = str(error)
  return found, left_out
