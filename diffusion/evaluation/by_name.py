"""The metrics and features that a command line can ask for, by name."""

import inspect
import pathlib
from collections.abc import Sequence

from diffusion import naming
from diffusion.evaluation.features import Features, pixels
from diffusion.evaluation.metric import Metric, Plan


def metrics() -> dict[str, str]:
  """name -> module: every function of this room that makes a metric, of features at most."""
  return naming.factories('evaluation', 'Metric', ('features',))


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
  names: Sequence[str], chosen: Features, plan: Plan
) -> tuple[dict[str, Metric], dict[str, str]]:
  """The metrics of these names, checked; 'all' means each that can judge what is planned.

  Args:
    names: of `metrics()`, or the one name 'all'.
    chosen: features of those metrics that compare features.
    plan: what will be judged.

  Returns:
    (name -> metric, name -> why it was left out); the second is empty unless all were asked for.

  Raises:
    ValueError: an unknown name, or a named metric that cannot judge this.
  """
  found, left_out = {}, {}
  everything = 'all' in names
  factories = {
    name: naming.find(name, metrics(), 'metric')
    for name in [*(metrics() if everything else ()), *names]
    if name != 'all'
  }
  for name, factory in factories.items():
    try:
      takes = 'features' in inspect.signature(factory).parameters
      metric = factory(features=chosen) if takes else factory()
      metric.check(plan)
      found[name] = metric
    except ValueError as error:
      if not everything:
        raise ValueError(f'metric {name}: {error}') from error
      left_out[name] = str(error)
  return found, left_out
