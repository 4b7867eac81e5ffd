"""Loading a run into Python: its weights, and its data as it was split.

A run is its folder's `experiment.py`, which is executed, as any program is: read one that somebody else gave you before
you load it. `load_parameters` and `load_snapshots` read arrays alone.
"""

import pathlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import checkout, conditions, devices, fingerprint, processes, provenance, rng
from diffusion.data import pipeline
from diffusion.data.splits import SplitData
from diffusion.process import gaussian
from diffusion.provenance import read_record
from diffusion.runs import claiming
from diffusion.runs.run import data_record, lost_best
from diffusion.sampling import ensembles
from diffusion.sampling.draw import make_denoiser, make_sample, stored
from diffusion.sampling.plan import check_guidance
from diffusion.training import state as states
from diffusion.training import trees
from diffusion.training.checkpoint import open_checkpoints
from diffusion.training.experiment import Experiment, fitted, load_data, resolved
from diffusion.training.manifest import INCOMPLETE, find_fault
from diffusion.types import NULL, Condition, Denoiser


class Trained(NamedTuple):
  """A trained run in Python.

  Attributes:
    experiment: what `build` made of the recorded configuration.
    step: of the best checkpoint.
    state: its TrainState, NumPy arrays.
    shape, units, num_classes: of the data.
    condition: what `conditions.describe` says of it; None for class labels.
    class_names: as they were when it was trained, label after label.
    null_learned: see `experiment.null_is_learned`.
    parameters: the judged (averaged) weights.
  """

  experiment: Experiment
  step: int
  state: Any
  shape: tuple[int, ...]
  units: pipeline.NormalizationStatistics
  num_classes: int
  parameters: Any
  condition: Any = None
  class_names: tuple[str, ...] = ()
  null_learned: bool = True

  def _checked(self, condition: Condition) -> Condition:
    """Labels or other conditions as the data has them; raises ValueError for what it does not have or never learned."""
    if self.condition is not None:
      row = conditions.example(self.condition)
      same = jax.tree.structure(row) == jax.tree.structure(condition)
      if not same or any(
        np.shape(one)[1:] != wanted.shape[1:]
        for one, wanted in zip(jax.tree.leaves(condition), jax.tree.leaves(row), strict=True)
      ):
        raise ValueError(f'conditions must be like {self.condition}, rows before the shape of each')
      told = jax.tree.map(lambda one, wanted: np.asarray(one, wanted.dtype), condition, row)
      conditions.check(told, len(jax.tree.leaves(told)[0]))
      return told
    labels = np.asarray(condition)
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in 'iu':
      raise ValueError(
        f'labels must be integers [n], n >= 1, got {labels.dtype} {list(labels.shape)}: {condition!r}'
      )
    outside = labels[(labels < NULL) | (labels >= max(1, self.num_classes))]
    if outside.size:
      raise ValueError(
        f'labels must be in [0, {max(1, self.num_classes)}), or {NULL} for none, got {outside[0]}'
      )
    if not self.null_learned and self.experiment.model.null and NULL in labels:
      raise ValueError(
        f'the label {NULL} says nothing, which the network never learned, as label dropout was 0: train with '
        'augment.label_dropout(0.1), or ask for labels'
      )
    return labels.astype(np.int32)

  def denoiser(self, labels: Condition) -> Denoiser:
    """(z [B, ...], t [B]) -> Prediction, for these labels [B] (-1 is the null label) or other conditions."""
    labels = jax.tree.map(jnp.asarray, self._checked(labels))
    path = gaussian.bind(self.experiment.diffusion, self.parameters.schedule)
    made, statistics = self.experiment, self.state.evaluation_statistics
    return make_denoiser(
      made.model, made.diffusion, path, self.parameters.network, statistics, labels
    )

  def _draw(self, members: int = 0) -> Callable[..., np.ndarray]:
    made = self.experiment
    check_guidance(made.sampling, self.null_learned)
    draw = make_sample(made.model, made.diffusion, made.sampling, self.shape, members=members)
    return stored(draw, self.units)

  def sample(self, labels: Condition, seed: int = 0) -> np.ndarray:
    """Samples of these labels [n] or other conditions, as the data is stored (uint8 levels, or floats): [n, *shape]."""
    rng.check_seed('seed', seed)
    labels, draw = self._checked(labels), self._draw()
    weights = devices.replicate(
      (self.parameters, self.state.evaluation_statistics, jnp.asarray(seed, jnp.uint32))
    )
    return draw(weights, labels, np.arange(len(jax.tree.leaves(labels)[0])))


def load(folder: str | pathlib.Path, experiment: Experiment | None = None) -> Trained:
  """The experiment and best weights of a run.

  The folder's `experiment.py` is executed, unless an experiment is given; `load_parameters` is for a folder that you do
  not trust.

  Args:
    folder: the run's workdir.
    experiment: to use instead of the recorded one, e.g. with another sampler.

  Raises:
    ValueError: no run in the folder, no checkpoint, weights of another network, or guidance of a run that never learned
      to do without labels.
  """
  devices.use_cache()
  folder = pathlib.Path(folder).expanduser().absolute()
  record = processes.from_folder(lambda: read_record(folder))
  if experiment is None:
    experiment = recorded_experiment(folder, record)
  data = record['data']
  units = pipeline.NormalizationStatistics(data['levels'], data['mean'], data['deviation'])
  experiment = fitted(experiment, units)
  check_guidance(experiment.sampling, record['null_learned'])
  example = pipeline.StoredBatch(
    x=np.zeros((1, *data['shape']), np.float32 if data['levels'] is None else np.uint8),
    condition=conditions.example(data['condition']),
    index=np.zeros(1, np.int32),
  )
  init = states.make_init(experiment, example, units)
  target = states.host_target(lambda: init(np.uint32(experiment.seed), example))
  best = open_checkpoints(folder / 'checkpoints', read_only=True).restore(target, 'best')
  if best is None:
    raise ValueError(f'no checkpoint in {folder}: train first')
  lost = lost_best(record, best)
  if lost:
    said = f'the best checkpoint, of step {lost["step"]}, is lost or damaged'
    print(f'{folder}: {said}: loaded is step {best.record["step"]}', flush=True)
  return Trained(
    experiment=experiment,
    step=best.record['step'],
    state=best.state,
    shape=tuple(data['shape']),
    units=units,
    num_classes=len(data['class_names']),
    parameters=states.evaluation_parameters(experiment, best.state),
    condition=data['condition'],
    class_names=tuple(data['class_names']),
    null_learned=record['null_learned'],
  )


def load_parameters(folder: str | pathlib.Path) -> dict[str, Any]:
  """The weights in the best checkpoint of a run, as NumPy arrays in dicts; no code of the folder is executed.

  Args:
    folder: the run's workdir, of which only `checkpoints/` is read.

  Returns:
    `trained`: what was trained: its `network`, `schedule` and `terms`; `averages`: the same of each average, by name
    (report.md says which one was judged); `statistics`: the network's other variables, as batch normalization has them.

  Raises:
    ValueError: no checkpoint, or none that can be read.
  """
  root = pathlib.Path(folder).expanduser().absolute()
  best = open_checkpoints(root / 'checkpoints', read_only=True).restore(None, 'best')
  if best is None:
    raise ValueError(f'no checkpoint in {root}: train first')
  return {
    'trained': best.state['params'],
    'averages': {name: one['params'] for name, one in best.state['averages'].items()},
    'statistics': best.state['evaluation_statistics'],
  }


class Ensemble(NamedTuple):
  """Several runs of one experiment, e.g. of several seeds, as one denoiser: the mean of theirs."""

  runs: tuple[Trained, ...]

  def _members(self, labels: np.ndarray) -> list[Denoiser]:
    return [run.denoiser(labels) for run in self.runs]

  def denoiser(self, labels: np.ndarray) -> Denoiser:
    """(z [B, ...], t [B]) -> the members' mean Prediction, for examples with these labels [B]."""
    return ensembles.mean(self._members(labels))

  def disagreement(self, z: np.ndarray, t: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The members' variance of eps, the mean over dimensions: [B].

    Args:
      z: noised examples in network units [B, ...].
      t: times [B].
      labels: [B]; -1 is the null label.

    Raises:
      ValueError: labels that the data does not have, or one member alone.
    """
    members = self._members(labels)
    return np.asarray(jax.jit(lambda z, t: ensembles.disagreement(members, z, t))(z, t))

  def sample(self, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Samples of the mean denoiser with these labels [n], as the data is stored: [n, *shape]."""
    rng.check_seed('seed', seed)
    one = self.runs[0]
    labels = [run._checked(labels) for run in self.runs][0]
    draw = one._draw(members=len(self.runs))
    members = [(run.parameters, run.state.evaluation_statistics) for run in self.runs]
    weights = devices.replicate((*zip(*members, strict=True), jnp.asarray(seed, jnp.uint32)))
    return draw(weights, labels, np.arange(len(jax.tree.leaves(labels)[0])))


def load_ensemble(folders: Sequence[str | pathlib.Path]) -> Ensemble:
  """Runs of one experiment as an ensemble; as `load`, it executes each folder's `experiment.py`.

  Where the schedule is learned, samples are drawn along that of the first run: a network is asked at log-SNRs.

  Args:
    folders: workdirs, at least one; all runs must have the same network, diffusion, classes and data units.

  Raises:
    ValueError: no folder, what `load` raises, or runs that do not go together.
  """
  runs = tuple(load(folder) for folder in folders)
  if not runs:
    raise ValueError('an ensemble needs at least one folder')
  for folder, run in zip(folders[1:], runs[1:], strict=True):
    different = _apart(runs[0], run)
    if different:
      raise ValueError(f'{folder} does not go together with {folders[0]}: {different[0]}')
  return Ensemble(runs)


def _apart(one: Trained, other: Trained) -> list[str]:
  """In what two runs differ that one denoiser cannot have both of: the first one's network decodes all outputs."""
  return fingerprint.changes(
    *(
      fingerprint.describe(
        {
          'parameters': jax.tree.map(lambda leaf: str(np.shape(leaf)), run.parameters),
          'model': run.experiment.model,
          'diffusion': run.experiment.diffusion,
          **{name: getattr(run, name) for name in ('shape', 'units', 'class_names')},
        }
      )
      for run in (one, other)
    )
  )


def load_snapshots(folder: str | pathlib.Path) -> dict[int, dict[str, Any]]:
  """The averages that `callbacks.snapshots` kept: step -> name -> parameters, steps ascending.

  Raises:
    ValueError: a folder without snapshots, or one that is not as it was saved.
  """
  root = pathlib.Path(folder).expanduser().absolute() / 'snapshots'
  names = {path.name.removesuffix('.sha256') for path in root.glob('step_*')}
  faults = {name: find_fault(root / name) for name in sorted(names) if name[5:].isdecimal()}
  for name, fault in faults.items():
    if fault == INCOMPLETE:  # as a kill leaves it
      print(f'snapshot {name} is left out: {fault}', flush=True)
    elif fault:
      raise ValueError(f'{root / name} is damaged ({fault}): put a copy back, or remove it')
  paths = [root / name for name, fault in faults.items() if not fault]
  if not paths:
    raise ValueError(f'no snapshots in {root}: give the run callbacks.snapshots(every)')
  return {int(path.name.removeprefix('step_')): trees.load(path) for path in paths}


def recorded_experiment(
  folder: pathlib.Path, record: dict[str, Any], moved: Mapping[str, str] = MappingProxyType({})
) -> Experiment:
  """Builds from the copy of the experiment file, so that a later edit of the original changes nothing.

  That file is executed.

  Args:
    folder: of the run.
    record: its run.json.
    moved: texts of its configuration that say where the data lies now, by name.

  Raises:
    ValueError: a run that was trained from Python and has no such file, or a name that is no text of the configuration.
  """
  if record['source'] is None or not (folder / 'experiment.py').exists():
    raise ValueError(
      f'{folder} has no experiment.py, as {record["experiment"]!r} was trained from Python: build the experiment again '
      'and pass it, e.g. load(folder, experiment)'
    )
  texts = _texts(record)
  unknown = [name for name in moved if name not in texts]
  if unknown:
    raise ValueError(
      f'{unknown[0]!r} does not say where the data of {folder} lies: its texts are {", ".join(texts) or "none"}'
    )
  module = _module(folder, record)
  config = provenance.config_from_json(module.Config(), record['config'] | dict(moved))
  made = module.build(config)
  built = fingerprint.describe(resolved(made, record['data']['levels']))
  changed = claiming.built_changes(record, {'fingerprint': {'built': built}})
  if changed:
    said = claiming.in_words(changed)
    print(f'{folder / "experiment.py"} builds something else than was trained: {said}', flush=True)
  return made


def _module(folder: pathlib.Path, record: dict[str, Any]) -> types.ModuleType:
  """The experiment file of a run, as it was written."""
  path = folder / 'experiment.py'
  text = path.read_bytes()
  if claiming.source_digest(text) != record['source']:
    raise ValueError(
      f'{path} is not as it was written: put it back, or build the experiment and pass it, e.g. load(folder, '
      'experiment)'
    )
  module = types.ModuleType(f'{checkout.LOADED}{folder.name}')
  module.__file__ = str(path)
  sys.modules[module.__name__] = module  # dataclasses look their module up by name
  exec(compile(text, path, 'exec'), vars(module))
  return module


def _texts(record: dict[str, Any]) -> list[str]:
  return [name for name, value in record['config'].items() if isinstance(value, str)]


def data_of(folder: pathlib.Path, moved: Mapping[str, str] = MappingProxyType({})) -> SplitData:
  """The data of a run, split as it was; the folder's `experiment.py` is executed.

  Args:
    folder: of the run.
    moved: as `recorded_experiment` takes it.

  Raises:
    ValueError: it cannot be read, or is not what the run recorded.
  """
  record = read_record(folder)
  experiment = recorded_experiment(folder, record, moved)
  try:
    devices.choose_convolutions()
    split = load_data(experiment._replace(metrics=()), record['data']['class_names'])
  except ValueError as error:
    said, config = str(error), record['config']
    names = sorted(_texts(record), key=lambda name: not config[name] or config[name] not in said)
    remedy = f'; if it has moved, say where to, e.g. --moved={names[0]}=PLACE' if names else ''
    raise ValueError(f'the data of {folder}: {error}{remedy}') from None
  changed = provenance.data_changes(record['data'], data_record(split))
  if changed:
    raise ValueError(f'the data is not what {folder} was trained on: {"; ".join(changed)}')
  return split
