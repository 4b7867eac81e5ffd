"""Training and evaluating from Python, as the command line does: the same record, checkpoints, resume and report."""

import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from diffusion import devices
from diffusion.provenance import read_record
from diffusion.runs import training
from diffusion.runs.loading import recorded_experiment
from diffusion.runs.run import Run, prepare
from diffusion.training.experiment import EvaluationSettings, Experiment

Folder = str | pathlib.Path


def train(
  experiment: Experiment,
  workdir: Folder,
  name: str = 'experiment',
  config: Mapping[str, Any] | None = None,
  *,
  extend: int = 0,
) -> Run:
  """Trains an experiment, or goes on with it, evaluates its best checkpoint and writes the report.

  A call with the same folder goes on where the last one ended; Ctrl-C saves, and the run that is returned then says
  `interrupted` as its `status`. It takes the devices that there are: where JAX has not been used before, on CPU as many
  virtual ones as suit the batch.

  Args:
    experiment: all that the run is.
    workdir: its folder.
    name: of the experiment, in the record.
    config: the numbers it was built from, for the record and the tables of several runs; by name.
    extend: steps to go on past the end of a finished run.

  Returns:
    The run, whose `record` has the `results`; its `status` is `finished`, or `diverged` where a guard ended it.

  Raises:
    ValueError: an experiment that does not fit together, or a folder of another run.
    OSError: a folder that cannot be written.
  """
  for said in devices.configure_or_keep(experiment.batch_size):
    print(said, flush=True)
  run = prepare(lambda _: experiment, dict(config or {}), name, _absolute(workdir))
  try:
    training.train(run, extend)
  except KeyboardInterrupt:
    if run.status not in training.ENDED:  # it did not come in the evaluation
      raise
    print('interrupted: the same call makes the evaluation', flush=True)
  return run


def evaluate(
  workdir: Folder,
  experiment: Experiment | None = None,
  *,
  samples: int = 0,
  metrics: str | Sequence[str] = (),
  features: str = 'pixels',
  sampler: str = '',
  grid: str = '',
  steps: int = 0,
  seed: int = 0,
  moved: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
  """Evaluates the best checkpoint of a run anew; what stands in its record and its report stays beside it.

  Args:
    workdir: of the run.
    experiment: in place of the one that is recorded; needed where the run has no experiment file.
    samples: how many, rounded up to equally many of each class; 0 as the run did.
    metrics: names of `evaluation.by_name.metrics()`, or 'all' for each that can judge this; () as the run did.
    features: what metrics compare: 'pixels', the name of a classifier, or a file of Inception weights.
    sampler: of `sampling.plan.sampler_names()`, with the grid that suits it; '' as the run did.
    grid: of `sampling.plan.grid_names()`; '' as the run did.
    steps: of the grid; 0 as the run did.
    seed: of the sampler.
    moved: where the data lies now, by the texts of the configuration that say so, e.g. {'data_dir': '/sets'}.

  Returns:
    Name of the result -> a number, or {estimate, low, high}, of a proportion with its counts.

  Raises:
    ValueError: no run, no checkpoint, other data than the run's, or an unknown name.
  """
  from diffusion.runs import evaluating  # here, because a training needs it at its end only

  folder = _absolute(workdir)
  record = read_record(folder)
  names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
  settings = EvaluationSettings(
    seed=seed,
    samples=samples,
    sampler=sampler,
    grid=grid,
    steps=steps,
    metrics=names,
    features=features,
  )
  made = recorded_experiment(folder, record, moved) if experiment is None else experiment
  devices.configure_or_keep(made.batch_size)
  file = folder / 'experiment.py'
  source = file if file.exists() else record['experiment']
  run = prepare(lambda _: settings.applied(made), record['config'] | dict(moved), source, folder)
  evaluating.evaluate(run, 'evaluate', settings)
  return run.record['evaluations'][-1]['results']


def _absolute(folder: Folder) -> pathlib.Path:
  return pathlib.Path(folder).expanduser().absolute()
