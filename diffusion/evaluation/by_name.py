"""The metrics and features that a command line can ask for, by name."""

import difflib
import pathlib
from collections.abc import Sequence

from diffusion.evaluation.features import Features, pixels
from diffusion.evaluation.metric import Metric, Plan

METRICS = (
  'nearest_neighbor_ratio', 'calibrated_ratio', 'authenticity', 'data_copying', 'feature_likelihood', 'membership',
  'copying_distance', 'frechet', 'kernel', 'precision_recall', 'density_coverage', 'vendi', 'sliced_wasserstein',
  'class_balance', 'recognition', 'likelihood',
)  # fmt: skip
OF_THE_NETWORK = ('membership', 'copying_distance', 'likelihood')  # images alone cannot tell


def _make(name: str, chosen: Features) -> Metric:
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


def choose_metrics(
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
      metric = _make(name, chosen)
      metric.check(plan)
      found[name] = metric
    except ValueError as error:
      if 'all' not in names:
        raise ValueError(f'metric {name}: {error}') from error
      left_out[name] = str(error)
  return found, left_out
