"""Stable, regularized training of diffusion models, measured.

From Python: `diffusion.train(experiment, folder)` trains, `diffusion.load(folder)` loads what was trained (and runs the
folder's `experiment.py`; `load_parameters` runs nothing of it); an `Experiment` says all that a run is. The names below
are loaded when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from diffusion.calling import evaluate, train
  from diffusion.runs.loading import load, load_ensemble, load_parameters, load_snapshots
  from diffusion.sampling.plan import Sampling
  from diffusion.training.experiment import Experiment, Numbers

__all__ = [
  'Experiment',
  'Numbers',
  'Sampling',
  'evaluate',
  'load',
  'load_ensemble',
  'load_parameters',
  'load_snapshots',
  'train',
]

_WHERE = {
  'Experiment': 'diffusion.training.experiment',
  'Numbers': 'diffusion.training.experiment',
  'Sampling': 'diffusion.sampling.plan',
  'evaluate': 'diffusion.calling',
  'load': 'diffusion.runs.loading',
  'load_ensemble': 'diffusion.runs.loading',
  'load_parameters': 'diffusion.runs.loading',
  'load_snapshots': 'diffusion.runs.loading',
  'train': 'diffusion.calling',
}


def __getattr__(name: str) -> Any:
  if name not in _WHERE:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
