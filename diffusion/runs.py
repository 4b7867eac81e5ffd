"""Runs: train one, judge one, describe one, load one into Python."""

import contextlib
import importlib.util
import json
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import citations, devices, provenance, statistics, workdir
from diffusion.data import pipeline
from diffusion.evaluation import gap, memorization
from diffusion.evaluation.evaluate import Finding, Judged
from diffusion.models import summary
from diffusion.process import gaussian
from diffusion.reporting import history, plots, records, tables
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
  steps_per_dispatch: int
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
  }


def _restore(keeper, target: Any, which: str) -> Restored | None:
  restored = keeper.restore(target, which)
  if restored is not None and restored.damaged:
    print(f'going on from checkpoint {restored.step}, the one before', flush=True)
  return restored


def train(setting: Setting) -> int:
  """Trains, or goes on training, and judges the best checkpoint; returns the program's exit status."""
  begin = time.perf_counter()
  with citations.collect() as used:
    experiment = setting.build(setting.config)
  assembly.check(experiment, setting.steps_per_dispatch)
  loaded = assembly.load_data(experiment)
  state = assembly.init_state(experiment, loaded.train[0][:1], loaded.dataset.levels)
  fresh = _fresh_record(setting, loaded, used, experiment)
  record = workdir.claim(setting.workdir, fresh, setting.source)
  keeper = open_checkpoints(setting.workdir / 'checkpoints')
  try:
    restored = _restore(keeper, assembly.host_target(state), 'latest')
    step = restored.step if restored else 0
    reason = restored.record['reason'] if restored else None
    if setting.extend:
      record['num_steps'] = max(record['num_steps'], step) + setting.extend
      workdir.write_record(setting.workdir, record)
    done = not setting.extend and (reason is not None or step >= record['num_steps'])
    if done and record['results'] is not None:
      print(
        f'{setting.workdir} is finished at step {step} ({record["reason"]}); --extend=N trains N steps more'
      )
      return 0
    if not done:
      outcome = _train_on(setting, experiment, loaded, record, keeper, restored, state)
      step, reason = outcome.step, outcome.reason
      record |= {
        'status': 'finished' if outcome.finished else 'interrupted',
        'reason': reason,
        'step': step,
      }
      record['wall_seconds'] += time.perf_counter() - begin
      workdir.write_record(setting.workdir, record)
      if not outcome.finished:
        print(
          f'interrupted ({reason}), saved at step {step}; the same command goes on from there',
          flush=True,
        )
        return 128 + signal.Signals[reason]
      print(reason, flush=True)
  finally:
    keeper.close()
  _judge(setting, experiment, loaded, record, used, sampler_seed=0)
  record['wall_seconds_with_evaluation'] = round(time.perf_counter() - begin, 1)
  workdir.write_record(setting.workdir, record)
  return 0


def _train_on(setting, experiment, loaded, record, keeper, restored, state) -> loop.Outcome:
  """The loop between the restored state (or the first) and the end, with everything it writes."""
  step = restored.step if restored else 0
  callback_states = {c.name: c.init() for c in experiment.callbacks}
  if restored:
    state = restored.state
    print(f'resuming from step {step}', flush=True)
    callback_states |= restored.record['callbacks']
  if setting.extend:
    callback_states = {
      c.name: c.extend(callback_states[c.name], step) for c in experiment.callbacks
    }
  sinks = records.chain(
    records.json_lines(setting.workdir / 'metrics.jsonl', step),
    records.tensorboard(setting.workdir / 'events', step),
    records.progress(record['num_steps'], step, batch_size=experiment.batch_size),
  )

  def write(row, timing) -> None:
    images = {'images_per_second': timing['steps_per_second'] * experiment.batch_size}
    sinks.write(row, timing | images)

  def save(step, state, callback_states, metric, reason) -> None:
    keeper.save(
      step, devices.to_host(state), {'callbacks': callback_states, 'reason': reason}, metric
    )

  def draw(step, state) -> None:
    path = setting.workdir / 'samples' / f'step_{step:08d}.png'
    _draw_grid(experiment, loaded, sample, assembly.shared(experiment, state), path, f'step {step}')

  sample = _sampler(experiment, loaded)
  plan = assembly.cadence(experiment, setting.steps_per_dispatch)._replace(
    num_steps=record['num_steps']
  )
  dispatch = assembly.make_dispatch(experiment, loaded, setting.steps_per_dispatch)
  validate = assembly.make_validate(experiment, loaded)
  try:
    with _watching() as interrupted:
      tools = loop.Tools(dispatch, validate, save, draw, write, interrupted)
      return loop.train(
        devices.replicate(state), step, plan, experiment.callbacks, callback_states, tools
      )
  finally:
    sinks.close()


def _sampler(experiment: Experiment, loaded: Loaded) -> Callable:
  return assembly.make_sample(experiment, loaded.dataset.x.shape[1:], loaded.dataset.num_classes)


def _draw_grid(experiment, loaded, sample, weights, path: pathlib.Path, title: str) -> None:
  """One class a column; for vectors a scatter plot over held-out data."""
  data = loaded.dataset
  rows = experiment.sampling.grid_rows
  columns = max(1, data.num_classes)
  if data.levels is None:
    labels = assembly.class_labels(columns, max(1, 512 // columns))
    samples = sample(weights, labels, np.arange(len(labels)))
    plots.vector_scatter(samples, loaded.validation[0], path, title=title)
    return
  labels = assembly.class_labels(columns, rows)
  samples = pipeline.denormalize(sample(weights, labels, np.arange(len(labels))), data.levels)
  images = pipeline.to_uint8(samples, data.levels).reshape(rows, columns, *samples.shape[1:])
  plots.image_grid(images, data.class_names or ['samples'], path, title=title)


def _judge(setting, experiment, loaded, record, used, sampler_seed: int) -> list[Finding]:
  """Restores the best checkpoint, samples from it, applies the metrics, and writes pictures and report."""
  keeper = open_checkpoints(setting.workdir / 'checkpoints')
  target = assembly.host_target(
    assembly.init_state(experiment, loaded.train[0][:1], loaded.dataset.levels)
  )
  best = _restore(keeper, target, 'best')
  keeper.close()
  if best is None:
    raise ValueError(f'no checkpoint in {setting.workdir}: train first')
  state = devices.replicate(best.state)
  weights = assembly.shared(experiment, state)
  row = assembly.make_validate(experiment, loaded)(state)
  findings = [
    Finding(
      'best step', best.step, 'the step with the lowest held-out loss, which everything here is of'
    )
  ]
  findings += _loss_findings(experiment, loaded, weights, row)
  data = loaded.dataset
  sample = _sampler(experiment, loaded)
  weights = (*weights[:2], devices.replicate(jnp.asarray(sampler_seed, jnp.uint32)))
  labels = assembly.class_labels(data.num_classes, experiment.sampling.per_class)
  print(f'sampling {len(labels)} from the best checkpoint, step {best.step}', flush=True)
  begin = time.perf_counter()
  samples = pipeline.denormalize(sample(weights, labels, np.arange(len(labels))), data.levels)
  seconds = time.perf_counter() - begin
  workdir.save_samples(setting.workdir / 'samples.npz', samples, labels)
  held_out = tuple(
    np.concatenate(pair) for pair in zip(loaded.validation, loaded.test, strict=True)
  )
  judged = Judged(samples, labels, loaded.train, held_out, data.class_names)
  for metric in experiment.metrics:
    findings += metric(judged)
  findings.append(
    Finding(
      'skipped steps', int(best.state.skipped), 'steps left out because something was not finite'
    )
  )
  findings.append(
    Finding('seconds to sample', seconds, f'{len(labels)} samples, compilation included')
  )
  _pictures(setting.workdir, experiment, loaded, sample, weights, judged, best.step)
  record['results'] = workdir.findings_to_json(findings)
  workdir.write_record(setting.workdir, record)
  levels = gap.per_level(row, experiment.bank)
  path = workdir.write_report(setting.workdir, record, findings, levels, used)
  print(tables.markdown(['quantity', 'value'], [(f.name, f.value) for f in findings]))
  print(f'report: {path}', flush=True)
  return findings


def _loss_findings(experiment: Experiment, loaded: Loaded, weights, row) -> list[Finding]:
  """Held-out losses of the best checkpoint; the only place where the test split is looked at."""
  gap_interval = statistics.Interval(
    row['validation/gap'], row['validation/gap_low'], row['validation/gap_high']
  )
  found = [
    Finding('validation/eps', row['validation/eps'], 'unweighted eps-loss on the fixed noise bank, averaged weights'),
    Finding('validation gap', gap_interval, 'held-out minus training loss on the same noise, 95 % interval over examples'),
  ]  # fmt: skip
  if len(loaded.test[0]):
    losses = gap.bank_losses(
      experiment.diffusion, experiment.model, loaded.dataset.levels, experiment.bank
    )
    values = losses(weights, *loaded.test, np.arange(len(loaded.test[0])))
    found.insert(
      1, Finding('test/eps', statistics.mean_t(values.mean(1)), 'the same on the test split')
    )
  return found


def _pictures(folder, experiment, loaded, sample, weights, judged: Judged, step: int) -> None:
  note = f' — {loaded.dataset.note}' if loaded.dataset.note else ''
  title = f'{loaded.dataset.name}: samples of step {step}{note}'
  _draw_grid(experiment, loaded, sample, weights, folder / 'samples.png', title)
  rows = records.read_json_lines(folder / 'metrics.jsonl')
  history.curves(rows, folder / 'curves.png', title=f'{loaded.dataset.name}{note}', best_step=step)
  if loaded.dataset.levels is not None:
    index, ratio = memorization.ratios(judged.samples, judged.train[0])
    closest = np.argsort(ratio)[:24]
    levels = loaded.dataset.levels
    plots.memorization_strip(
      pipeline.to_uint8(judged.samples[closest], levels),
      pipeline.to_uint8(judged.train[0][index[closest]], levels),
      ratio[closest], folder / 'nearest.png', title='samples (above) and their nearest training images',
    )  # fmt: skip


def judge(setting: Setting, mode: str, sampler_seed: int) -> int:
  """--mode=sample: a new grid with another seed. --mode=evaluate: metrics and report anew."""
  with citations.collect() as used:
    experiment = setting.build(setting.config)
  assembly.check(experiment, setting.steps_per_dispatch)
  record = read_record(setting.workdir)
  if mode == 'sample':
    run = load(setting.workdir, experiment)
    loaded = assembly.load_data(experiment) if run.levels is None else None
    path = setting.workdir / f'samples_seed{sampler_seed}.png'
    _draw_run(run, loaded, path, sampler_seed)
    print(path)
    return 0
  loaded = assembly.load_data(experiment)
  changed = provenance.differences(record['data'], _data_record(loaded))
  if changed:
    raise ValueError(f'the data is not what {setting.workdir} was trained on: {"; ".join(changed)}')
  _judge(setting, experiment, loaded, record, used, sampler_seed)
  return 0


def describe(setting: Setting) -> str:
  """What a run would be: configuration, splits, parameters and arithmetic."""
  experiment = setting.build(setting.config)
  assembly.check(experiment, setting.steps_per_dispatch)
  loaded = assembly.load_data(experiment)
  state = assembly.init_state(experiment, loaded.train[0][:1], loaded.dataset.levels)
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
  parts = [[name, size, data['split_hashes'][name] if name in data['split_hashes'] else ''] for name, size in data['examples'].items()]  # fmt: skip
  return '\n\n'.join([
    json.dumps(provenance.config_to_json(setting.config), indent=2),
    f'data: {data["name"]}, {data["shape"]}, {data["levels"]} levels, {len(data["class_names"])} classes. {data["note"]}',
    tables.markdown(['split', 'examples', 'hash'], parts),
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

  def denoiser(self, labels) -> Denoiser:
    """(z [B, ...], t [B]) -> Prediction, for examples with these labels [B] (num_classes is the null label)."""
    path = gaussian.bind(self.experiment.diffusion, self.parameters.schedule)
    labels = jnp.asarray(labels, jnp.int32)
    return assembly.make_denoiser(
      self.experiment, path, self.parameters, self.state.statistics, labels
    )

  def sample(self, labels, seed: int = 0) -> np.ndarray:
    """Samples with these labels [n], as the data is stored (uint8 levels, or floats): [n, *shape]."""
    draw = assembly.make_sample(self.experiment, self.shape, self.num_classes)
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
  folder = pathlib.Path(folder).absolute()
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


def _draw_run(run: Run, loaded: Loaded | None, path: pathlib.Path, seed: int) -> None:
  columns, rows = max(1, run.num_classes), run.experiment.sampling.grid_rows
  if loaded is not None:
    samples = run.sample(assembly.class_labels(columns, max(1, 512 // columns)), seed)
    plots.vector_scatter(samples, loaded.validation[0], path, title=f'seed {seed}')
    return
  images = pipeline.to_uint8(run.sample(assembly.class_labels(columns, rows), seed), run.levels)
  names = [str(k) for k in range(columns)] if run.num_classes else ['samples']
  plots.image_grid(
    images.reshape(rows, columns, *run.shape), names, path, title=f'step {run.step}, seed {seed}'
  )
