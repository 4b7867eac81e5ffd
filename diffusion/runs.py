"""Runs: train one, judge one, describe one, load one into Python."""

import contextlib
import importlib.util
import json
import math
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import citations, devices, provenance, statistics, workdir
from diffusion.data import pipeline, splits
from diffusion.evaluation import gap, memorization
from diffusion.evaluation.evaluate import Finding, Judged
from diffusion.models import summary
from diffusion.process import gaussian
from diffusion.reporting import plots, records, tables
from diffusion.training import assembly, loop
from diffusion.training.assembly import Experiment, Loaded
from diffusion.training.checkpoint import Restored, open_checkpoints
from diffusion.types import Conditioning, Denoiser
from diffusion.workdir import read_record

__all__ = ['Run', 'Setting', 'describe', 'judge', 'load', 'read_record', 'train']


class Setting(NamedTuple):
  """What the command line decided."""

  build: Callable[[Any], Experiment]
  config: Any
  workdir: pathlib.Path | None
  extend: int
  smoke: bool
  source: pathlib.Path


@contextlib.contextmanager
def _watching() -> Iterator[Callable[[], str | None]]:
  """Turns the first SIGINT or SIGTERM into a flag; a second one acts as usual."""
  caught: list[int] = []
  before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def note(number, frame) -> None:
    caught.append(number)
    restore()
    print(
      f'\n{signal.Signals(number).name}: saving, then leaving (again to leave at once)',
      file=sys.stderr,
    )

  for number in before:
    signal.signal(number, note)
  try:
    yield lambda: signal.Signals(caught[0]).name if caught else None
  finally:
    restore()


def _data_record(loaded: Loaded) -> dict[str, Any]:
  data = loaded.dataset
  sizes = {name: len(getattr(loaded, name)[0]) for name in ('train', 'validation', 'test')}
  return {
    'name': data.name,
    'note': data.note,
    'shape': list(data.x.shape[1:]),
    'levels': data.levels,
    'fingerprint': splits.dataset_fingerprint(data.x, data.label),
    'class_names': list(data.class_names),
    'examples': sizes,
    'split_hashes': loaded.split.hashes,
  }


def _fresh_record(setting: Setting, loaded: Loaded, used, experiment: Experiment) -> dict[str, Any]:
  return {
    'format': workdir.RECORD_FORMAT,
    'experiment': setting.source.stem,
    'smoke': setting.smoke,
    'config': provenance.config_to_json(setting.config),
    'data': _data_record(loaded),
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
    'results': None,
    'evaluations': [],
  }


def _restore(keeper, target: Any, which: str) -> Restored | None:
  restored = keeper.restore(target, which)
  if restored is not None and restored.damaged:
    print(f'going on from checkpoint {restored.step}, the one before', flush=True)
  return restored


class _Session(NamedTuple):
  """One start of a run: what was decided, built, loaded and compiled, and the record on disk."""

  setting: Setting
  experiment: Experiment
  loaded: Loaded
  programs: assembly.Programs
  used: list[citations.Technique]
  record: dict[str, Any]

  @property
  def folder(self) -> pathlib.Path:
    return self.setting.workdir

  def note(self, **changes) -> None:
    """Changes run.json."""
    self.record.update(changes)
    workdir.write_record(self.folder, self.record)


def _open(setting: Setting) -> tuple[_Session, Any]:
  """Builds, checks, loads and initializes; nothing is written. Returns the session and the first state."""
  with citations.collect() as used:
    experiment = setting.build(setting.config)
  assembly.check(experiment)
  if setting.extend % experiment.steps_per_dispatch:
    raise ValueError(
      f'--extend must be a multiple of steps_per_dispatch = {experiment.steps_per_dispatch}, got {setting.extend}'
    )
  loaded = assembly.load_data(experiment)
  state = assembly.init_state(experiment, loaded.train[0][:1], loaded.dataset.levels)
  record = _fresh_record(setting, loaded, used, experiment)
  return _Session(
    setting, experiment, loaded, assembly.programs(experiment, loaded), used, record
  ), state


def train(setting: Setting) -> int:
  """Trains, or goes on training, and judges the best checkpoint; returns the program's exit status."""
  begin = time.perf_counter()
  session, state = _open(setting)
  session = session._replace(record=workdir.claim(setting.workdir, session.record, setting.source))
  target = assembly.host_target(state)
  keeper = open_checkpoints(session.folder / 'checkpoints')
  try:
    restored = _restore(keeper, target, 'latest')
    step, reason = (restored.step, restored.record['reason']) if restored else (0, None)
    done = reason is not None or step >= session.record['num_steps']
    if setting.extend:
      if not done:
        raise ValueError(
          f'{session.folder} is not finished: leave --extend out to go on with it first'
        )
      session.note(num_steps=step + setting.extend, results=None)
    elif done and session.record['results'] is not None:
      end = session.record['reason']
      print(f'{session.folder} is finished at step {step} ({end}); --extend=N goes on')
      return 0
    if setting.extend or not done:
      outcome = _train_on(session, keeper, restored, state)
      seconds = session.record['wall_seconds'] + time.perf_counter() - begin
      status = 'finished' if outcome.finished else 'interrupted'
      session.note(status=status, reason=outcome.reason, step=outcome.step, wall_seconds=seconds)
      if not outcome.finished:
        print(
          f'{outcome.reason}: saved at step {outcome.step}; the same command goes on from there'
          + (', without --extend' if setting.extend else ''),
          flush=True,
        )
        return 128 + signal.Signals[outcome.reason]
      print(outcome.reason, flush=True)
  finally:
    keeper.close()
  _judge(session, target, sampler_seed=0)
  return 0


def _train_on(session: _Session, keeper, restored: Restored | None, state: Any) -> loop.Outcome:
  """The loop between the restored state (or the first) and the end, with everything it writes."""
  experiment, programs = session.experiment, session.programs
  step, num_steps = restored.step if restored else 0, session.record['num_steps']
  callback_states = {c.name: c.init() for c in experiment.callbacks}
  if restored:
    print(f'resuming from step {step}', flush=True)
    state, callback_states = restored.state, callback_states | restored.record['callbacks']
  if session.setting.extend:
    callback_states = {
      c.name: c.extend(callback_states[c.name], step) for c in experiment.callbacks
    }
  sinks = records.chain(  # the file first: it alone is flushed row by row, and its error names it
    records.json_lines(session.folder / 'metrics.jsonl', step),
    records.tensorboard(session.folder / 'events', step),
    records.progress(num_steps, step, batch_size=experiment.batch_size),
  )

  def write(row, timing) -> None:
    images = {'images_per_second': timing['steps_per_second'] * experiment.batch_size}
    sinks.write(row, timing | images)

  def save(step, state, callback_states, metric, reason) -> None:
    record = {'callbacks': callback_states, 'reason': reason}
    keeper.save(step, devices.to_host(state), record, metric)

  def draw(step, state) -> None:
    path = session.folder / 'samples' / f'step_{step:08d}.png'
    weights = assembly.weights(experiment, state)
    data = session.loaded.dataset
    labels = assembly.picture_labels(experiment, data.levels, data.num_classes)
    samples = _sample(programs.sample, weights, labels, data.levels)
    _draw(data, session.loaded.validation[0], samples, path, f'step {step}')

  plan = assembly.cadence(experiment)._replace(num_steps=num_steps)
  try:
    with _watching() as interrupted:
      tools = loop.Tools(
        dispatch=programs.dispatch,
        validate=lambda state: programs.validate(assembly.weights(experiment, state)),
        save=save,
        draw=draw,
        write=write,
        interrupted=interrupted,
      )
      return loop.train(
        devices.replicate(state), step, plan, experiment.callbacks, callback_states, tools
      )
  finally:
    sinks.close()


def _sample(sample: Callable, weights: Any, labels: np.ndarray, levels: int | None) -> np.ndarray:
  """Samples 0, 1, ... with these labels, as the data is stored."""
  return pipeline.denormalize(sample(weights, labels, np.arange(len(labels))), levels)


def _draw(data, reference: np.ndarray, samples: np.ndarray, path: pathlib.Path, title: str) -> None:
  """Images: one class a column, as `assembly.class_labels` orders them. Vectors: a scatter plot over the reference."""
  if data.levels is None:
    plots.vector_scatter(samples, reference, path, title=title)
    return
  # Unlabelled samples in rows of the largest divisor of their number up to its root: a square if it is one.
  root = math.isqrt(len(samples))
  columns = data.num_classes or max(n for n in range(1, root + 1) if len(samples) % n == 0)
  images = pipeline.to_uint8(samples, data.levels).reshape(-1, columns, *samples.shape[1:])
  plots.image_grid(images, data.class_names or [''] * columns, path, title=title)


def _judge(session: _Session, target: Any, sampler_seed: int, again: bool = False) -> None:
  """Restores the best checkpoint, samples from it, applies the metrics, and writes pictures and report.

  A run's own judgment is its `results`; another one, with other numbers of sampling, stands beside it in `evaluations`
  and in files of its own.
  """
  experiment, loaded = session.experiment, session.loaded
  keeper = open_checkpoints(session.folder / 'checkpoints')
  best = _restore(keeper, target, 'best')
  keeper.close()
  if best is None:
    raise ValueError(f'no checkpoint in {session.folder}: train first')
  suffix = f'_evaluation{len(session.record["evaluations"])}' if again else ''
  begin = time.perf_counter()
  weights = assembly.weights(experiment, devices.replicate(best.state))
  row = session.programs.validate(weights)
  findings = [
    Finding(
      'best step', best.step, 'of the lowest held-out loss; all below is of its averaged weights'
    )
  ]
  findings += _loss_findings(session, weights, row)
  data = loaded.dataset
  labels = assembly.class_labels(data.num_classes, experiment.sampling.per_class)
  print(f'sampling {len(labels)} from the best checkpoint, step {best.step}', flush=True)
  sampler_weights = (*weights[:2], devices.replicate(jnp.asarray(sampler_seed, jnp.uint32)))
  samples = _sample(session.programs.sample, sampler_weights, labels, data.levels)
  workdir.save_samples(session.folder / f'samples{suffix}.npz', samples, labels)
  held_out = tuple(
    np.concatenate(pair) for pair in zip(loaded.validation, loaded.test, strict=True)
  )
  judged = Judged(samples, labels, loaded.train, held_out, data.class_names)
  for metric in experiment.metrics:
    findings += metric(judged)
  skipped = int(best.state.skipped)
  findings.append(
    Finding('skipped steps', skipped, 'steps left out because something was not finite')
  )
  _pictures(session, judged, best.step, suffix)
  config = provenance.config_to_json(session.setting.config)
  evaluation = {
    'time': workdir.now(),
    'sampler_seed': sampler_seed,
    'changed': provenance.differences(session.record['config'], config),
    'seconds': time.perf_counter() - begin,
    'results': workdir.findings_to_json(findings),
  }
  session.note(evaluations=[*session.record['evaluations'], evaluation])
  if not again:
    session.note(results=evaluation['results'])
  levels = gap.per_level(row, experiment.bank)
  path = workdir.write_report(
    session.folder, session.record | {'config': config}, findings, levels, session.used, suffix
  )
  print(tables.markdown(['quantity', 'value'], [(f.name, f.value) for f in findings]))
  print(f'report: {path}', flush=True)


def _loss_findings(session: _Session, weights: Any, row: Mapping[str, float]) -> list[Finding]:
  """Held-out losses of the best checkpoint; the only place where the test split's loss is looked at."""
  bounds = [row[f'validation/{name}'] for name in ('gap', 'gap_low', 'gap_high')]
  found = [
    Finding('validation/eps', row['validation/eps'], 'unweighted eps-loss on the fixed noise bank'),
    Finding(
      'validation gap',
      statistics.Interval(*bounds),
      'held-out minus training loss on the same noise',
    ),
  ]
  test = session.loaded.test
  if len(test[0]) > 1:
    values = session.programs.losses(weights, *test, np.arange(len(test[0]))).mean(1)
    found.insert(1, Finding('test/eps', statistics.mean_t(values), 'the same on the test split'))
  return found


def _pictures(session: _Session, judged: Judged, step: int, suffix: str) -> None:
  data, folder = session.loaded.dataset, session.folder
  note = f' ({data.note})' if data.note else ''
  # The picture's labels are the first of the metrics' labels, so its samples are too.
  shown = judged.samples[
    : len(assembly.picture_labels(session.experiment, data.levels, data.num_classes))
  ]
  title = f'{data.name}: samples from step {step}{note}'
  _draw(data, session.loaded.validation[0], shown, folder / f'samples{suffix}.png', title)
  rows = records.read_json_lines(folder / 'metrics.jsonl')
  plots.curves(rows, folder / 'curves.png', title=f'{data.name}{note}', best_step=step)
  if data.levels is not None:
    index, ratio = memorization.ratios(judged.samples, judged.train[0])
    closest = np.argsort(ratio)[:24]
    pairs = (judged.samples[closest], judged.train[0][index[closest]])
    plots.memorization_strip(
      *(pipeline.to_uint8(x, data.levels) for x in pairs), ratio[closest], folder / f'nearest{suffix}.png',
      title='samples above their nearest training images',
    )  # fmt: skip


def judge(setting: Setting, mode: str, sampler_seed: int) -> int:
  """--mode=sample: a new grid with another seed. --mode=evaluate: metrics and report anew."""
  session, state = _open(setting)
  record = read_record(session.folder)
  changed = provenance.differences(record['data'], session.record['data'])
  if changed:
    raise ValueError(f'the data is not what {session.folder} was trained on: {"; ".join(changed)}')
  session = session._replace(record=record)
  if mode == 'evaluate':
    _judge(session, assembly.host_target(state), sampler_seed, again=True)
    return 0
  run = load(session.folder, session.experiment)
  data = session.loaded.dataset
  labels = assembly.picture_labels(session.experiment, data.levels, data.num_classes)
  samples = run.sample(labels, sampler_seed)
  path = session.folder / f'samples_seed{sampler_seed}.png'
  _draw(data, session.loaded.validation[0], samples, path, f'step {run.step}, seed {sampler_seed}')
  print(path)
  return 0


def describe(setting: Setting) -> str:
  """What a run would be: configuration, splits, parameters and arithmetic."""
  session, state = _open(setting)
  experiment, loaded = session.experiment, session.loaded
  x = pipeline.normalize(jnp.asarray(loaded.train[0][:1]), loaded.dataset.levels)
  conditioning = Conditioning(jnp.zeros(1, jnp.int32), jnp.zeros((1, 0)))

  def output(network):
    return experiment.model.apply(
      {'params': network, **state.statistics}, x, jnp.zeros(1), conditioning
    )[0]

  network = state.params.network
  forward = summary.flops(output, network)
  both = summary.flops(jax.grad(lambda p: output(p).sum()), network)
  rows = summary.parameter_rows(network)
  total = sum(row[1] for row in rows)
  data = _data_record(loaded)
  hashes = data['split_hashes']
  sizes = [(name, size, hashes[name]) for name, size in data['examples'].items()]
  shape = f'{data["shape"]}, {data["levels"]} levels, {len(data["class_names"])} classes'
  return '\n\n'.join([
    json.dumps(provenance.config_to_json(setting.config), indent=2),
    f'data: {data["name"]}, {shape}. {data["note"]}',
    tables.markdown(['split', 'examples', 'hash'], sizes),
    tables.markdown(['module', 'parameters', 'rms'], [*rows, ('total', total, '')]),
    f'arithmetic per image: {forward / 1e6:.1f} MFLOP forward, {both / 1e6:.1f} MFLOP forward and backward',
    f'devices: {devices.describe()}',
  ])  # fmt: skip


class Run(NamedTuple):
  """A finished run in Python.

  Attributes:
    experiment: what `build` made of the recorded configuration.
    step: of the best checkpoint.
    state: its TrainState, NumPy arrays.
    shape, levels, num_classes: of the data.
    parameters: the judged (averaged) weights.
  """

  experiment: Experiment
  step: int
  state: Any
  shape: tuple[int, ...]
  levels: int | None
  num_classes: int
  parameters: Any

  def denoiser(self, labels: np.ndarray) -> Denoiser:
    """(z [B, ...], t [B]) -> Prediction, for examples with these labels [B] (-1 is the null label)."""
    path = gaussian.bind(self.experiment.diffusion, self.parameters.schedule)
    labels = jnp.asarray(labels, jnp.int32)
    return assembly.make_denoiser(
      self.experiment, path, self.parameters, self.state.statistics, labels
    )

  def sample(self, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Samples with these labels [n], as the data is stored (uint8 levels, or floats): [n, *shape]."""
    draw = assembly.make_sample(self.experiment, self.shape)
    weights = devices.replicate(
      (self.parameters, self.state.statistics, jnp.asarray(seed, jnp.uint32))
    )
    labels = np.asarray(labels, np.int32)
    return pipeline.denormalize(draw(weights, labels, np.arange(len(labels))), self.levels)


def load(folder: str | pathlib.Path, experiment: Experiment | None = None) -> Run:
  """The experiment and best weights of a run.

  Args:
    folder: the run's workdir.
    experiment: to use instead of the recorded one, e.g. with another sampler.

  Raises:
    ValueError: no run in the folder, no checkpoint, or weights of another network.
  """
  devices.use_cache()
  folder = pathlib.Path(folder).expanduser().absolute()
  record = read_record(folder)
  if experiment is None:
    experiment = _recorded_experiment(folder, record)
  data = record['data']
  example = np.zeros((1, *data['shape']), np.float32 if data['levels'] is None else np.uint8)
  target = assembly.host_target(assembly.init_state(experiment, example, data['levels']))
  keeper = open_checkpoints(folder / 'checkpoints')
  best = keeper.restore(target, 'best')
  keeper.close()
  if best is None:
    raise ValueError(f'no checkpoint in {folder}: train first')
  parameters = assembly.judged_parameters(experiment, best.state)
  shape, classes = tuple(data['shape']), len(data['class_names'])
  return Run(experiment, best.step, best.state, shape, data['levels'], classes, parameters)


def _recorded_experiment(folder: pathlib.Path, record: dict[str, Any]) -> Experiment:
  """Builds from the copy of the experiment file, so that a later edit of the original changes nothing."""
  spec = importlib.util.spec_from_file_location(
    f'experiment_of_{folder.name}', folder / 'experiment.py'
  )
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses look their module up by name
  spec.loader.exec_module(module)
  return module.build(provenance.config_from_json(module.Config(), record['config']))
