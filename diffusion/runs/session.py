"""One start of a run: its pieces built, its data loaded, its programs made; what training and judging share."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusion import citations, devices, processes, provenance, workdir
from diffusion.data import pipeline, sources
from diffusion.reporting import plots
from diffusion.training import assembly
from diffusion.training import experiment as experiments
from diffusion.training.assembly import Loaded
from diffusion.training.checkpoint import Checkpoints, Restored
from diffusion.training.experiment import Experiment


class Setting(NamedTuple):
  """What the command line decided."""

  build: Callable[[Any], Experiment]
  config: Any
  workdir: pathlib.Path | None
  extend: int
  smoke: bool
  source: pathlib.Path
  profile: tuple[int, int] | None = None  # steps to trace


class Session(NamedTuple):
  """One start of a run: what was decided, built, loaded and compiled, and the record on disk."""

  setting: Setting
  experiment: Experiment
  loaded: Loaded
  programs: assembly.Programs
  used: list[citations.Technique]
  record: dict[str, Any]

  @property
  def folder(self) -> pathlib.Path:
    """The run's workdir."""
    return self.setting.workdir

  def note(self, **changes) -> None:
    """Changes the record, and run.json with it."""
    self.record.update(changes)
    if processes.is_writer():
      workdir.write_record(self.folder, self.record)


def open_session(setting: Setting) -> tuple[Session, Any]:
  """Builds, checks, loads and initializes; nothing is written. Returns the session and the first state.

  Of several processes all succeed, or all fail with what any of them has to say.
  """
  with processes.together('the start'):
    session = build_session(setting)
    stored = session.loaded.train[0][:1]
    state = assembly.init_state(session.experiment, stored, session.loaded.units)
  processes.check_same('the data', session.record['data']['fingerprint'])
  return session, state


def build_session(
  setting: Setting, share: Callable[[Loaded], Loaded] = lambda loaded: loaded
) -> Session:
  """`open_session` without a first state; `share` may return data equal to what it is given, held once for several."""
  with citations.collect() as used:
    experiment = setting.build(setting.config)
    devices.choose_convolutions(experiment.data.side())  # before JAX starts, with the check
    experiments.check(experiment)  # plans the sampling too, whose techniques are used later
  unused = experiments.off_factories(experiment)
  used = [one for one in used if one.qualified_name not in unused]
  if setting.extend % experiment.steps_per_dispatch:
    raise ValueError(
      f'--extend must be a multiple of steps_per_dispatch = {experiment.steps_per_dispatch}, got {setting.extend}'
    )
  loaded = share(assembly.load_data(experiment))
  experiment = assembly.fitted(experiment, loaded.units)
  record = _fresh_record(setting, loaded, used, experiment)
  return Session(setting, experiment, loaded, assembly.programs(experiment, loaded), used, record)


def data_record(loaded: Loaded) -> dict[str, Any]:
  """What run.json says of the data: names, shapes, sizes, fingerprints."""
  data = loaded.dataset
  sizes = {name: len(getattr(loaded, name)[0]) for name in ('train', 'validation', 'test')}
  return {
    'name': data.name,
    'note': data.note,
    'shape': list(data.x.shape[1:]),
    'levels': data.levels,
    'mean': loaded.units.mean,
    'deviation': loaded.units.deviation,
    'fingerprint': loaded.split.fingerprint,
    'class_names': list(data.class_names),
    'found': dict(data.found),
    'examples': sizes,
    'split_hashes': loaded.split.hashes,
  }


def _fresh_record(setting: Setting, loaded: Loaded, used, experiment: Experiment) -> dict[str, Any]:
  return {
    'format': workdir.RECORD_FORMAT,
    'experiment': setting.source.stem,
    'smoke': setting.smoke,
    'config': provenance.config_to_json(setting.config),
    'data': data_record(loaded),
    'bank': {'log_snr': list(experiment.bank.log_snr), 'draws': experiment.bank.draws},
    'seed': experiment.seed,
    'num_steps': experiment.num_steps,
    'techniques': [technique._asdict() for technique in used],
    'versions': provenance.versions(),
    'starts': [
      {
        'time': workdir.now(),
        'command': provenance.command(),
        'code': provenance.code(),
        'devices': devices.describe(),
      }
    ],
    'status': 'running',
    'reason': '',
    'step': 0,
    'wall_seconds': 0.0,
    'extended_at': None,
    'results': None,
    'speed': None,
    'peak_memory': None,
    'samples': [],
    'evaluations': [],
  }


def restore(keeper: Checkpoints, target: Any, which: str) -> Restored | None:
  """The 'latest' or 'best' checkpoint, None if there is none; says so when a damaged one was passed over."""
  restored = keeper.restore(target, which)
  if restored is not None and restored.damaged:
    print(f'going on from checkpoint {restored.number}, the one before', flush=True)
  return restored


def stored_samples(
  sample: Callable,
  weights: Any,
  labels: np.ndarray,
  units: pipeline.Units,
  numbers: np.ndarray | None = None,
) -> np.ndarray:
  """Samples with these numbers (by default all, 0, 1, ...) and their labels, as the data is stored."""
  numbers = np.arange(len(labels)) if numbers is None else numbers
  return pipeline.denormalize(sample(weights, labels[numbers], numbers), units)


def picture(
  data: sources.Dataset, reference: np.ndarray, samples: np.ndarray, path: pathlib.Path, title: str
) -> None:
  """Images: one class a column, as `assembly.class_labels` orders them. Vectors: a scatter plot over the reference."""
  if not processes.is_writer():
    return
  if data.levels is None:
    plots.vector_scatter(samples, reference, path, title=title)
    return
  # Unlabelled samples in rows of the largest divisor of their number up to its root: a square if it is one.
  root = math.isqrt(len(samples))
  columns = data.num_classes or max(n for n in range(1, root + 1) if len(samples) % n == 0)
  images = pipeline.to_uint8(samples, data.levels).reshape(-1, columns, *samples.shape[1:])
  plots.image_grid(images, data.class_names or [''] * columns, path, title=title)
