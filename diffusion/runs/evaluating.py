"""Evaluating a run: samples, metrics, pictures and the report."""

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion import checkout, citations, devices, fingerprint, processes, provenance, statistics
from diffusion.evaluation import stability
from diffusion.evaluation.by_name import choose_features, choose_metrics
from diffusion.evaluation.metric import (
  MetricInputs,
  MetricResult,
  make_network,
  name_of,
  results_to_json,
  told,
)
from diffusion.provenance import read_record
from diffusion.reporting import encoding, pace, rows, tables
from diffusion.reporting.run_report import drawn_in_words
from diffusion.runs import claiming
from diffusion.runs.attempts import attempt, findings_of
from diffusion.runs.judged import Judged, kept_judgment
from diffusion.runs.loading import load
from diffusion.runs.run import Run, lost_best, restore
from diffusion.runs.samples import drawn, picture
from diffusion.runs.showing import (
  Shown,
  draw_pictures,
  nearest_images,
  sampling_record,
  write_run_report,
)
from diffusion.sampling.draw import picture_labels
from diffusion.sampling.plan import check_guidance
from diffusion.training import state as states
from diffusion.training.checkpoint import Checkpoints, Restored, open_checkpoints
from diffusion.training.experiment import (
  AS_THE_RUN,
  EvaluationSettings,
  Experiment,
  evaluated_average,
  evaluation_plan,
  evaluations_of_a_sample,
)
from diffusion.training.step import step_flops


def evaluate_best(run: Run, request: EvaluationSettings = AS_THE_RUN, again: bool = False) -> None:
  """Restores the best checkpoint, samples from it, applies the metrics, and writes pictures and report.

  A run's own judgment is its `results`; another one, as the request asks, stands beside it in `evaluations` and in
  files of its own.

  Args:
    run: claimed, or with the record that is on disk; its `target` is known.
    request: what to do differently.
    again: it is another judgment.

  Raises:
    ValueError: no checkpoint.
  """
  checkpoints = open_checkpoints(run.folder / 'checkpoints', read_only=True)
  best = restore(checkpoints, run.target, 'best')
  if best is None:
    raise ValueError(f'no checkpoint in {run.folder}: train first')
  with kept_judgment(run, best.number, request) as judged:
    _judge(run, checkpoints, best, judged, request, again)


def _judge(
  run: Run,
  checkpoints: Checkpoints,
  best: Restored,
  judged: Judged,
  request: EvaluationSettings,
  again: bool,
) -> None:
  """As `evaluate_best`, of the best of the checkpoints, part by part."""
  experiment = run.experiment
  begin, metrics = time.perf_counter(), [name_of(metric) for metric in experiment.metrics]
  parts = ['losses', 'samples', *metrics, 'pictures and report']
  following = pace.stages(parts, 'evaluation', shown=processes.is_writer())
  following()
  weights = states.weights(experiment, devices.replicate(best.state))
  row = judged.value('validation', lambda: run.validate(weights))
  step = best.record['step']
  lost = lost_best(run.record, best)
  findings = _what_is_judged(experiment, best, lost)
  findings += judged.findings('losses', lambda: _loss_findings(run, weights, row))
  following()
  inputs, failed = attempt('samples', lambda: _inputs(run, weights, best, request))
  findings += failed
  for number, metric in enumerate(experiment.metrics):
    following()  # also of what has no samples to judge, or the last stage would be called by its name
    part = f'{name_of(metric)}#{number}'
    if inputs is not None:
      findings += judged.findings(part, functools.partial(metric.measure, inputs))
  following()
  number, written = checkpoints.steps()[-1][0], checkpoints.written()
  logged, differing = processes.from_folder(lambda: _logged(run, written, number))
  findings += differing
  findings += findings_of('stability', lambda: _findings_of_the_run(run, best, logged))
  findings += findings_of(
    'callbacks', lambda: _callback_findings(run, checkpoints.last_record()['callbacks'])
  )
  samples = None if inputs is None else inputs.samples
  nearest, failed = attempt('nearest training images', lambda: nearest_images(run, inputs))
  findings += failed
  sampling = sampling_record(experiment, run.data.dataset.x.shape[1:], step, request.seed)
  shown = Shown(samples=samples, nearest=nearest, rows=logged, sampling=sampling)
  evaluation = {
    'time': provenance.now(),
    'command': provenance.command(),
    **checkout.code_in_brief(),
    'versions': provenance.versions(),
    'settings': devices.settings(),
    'devices': devices.describe(),
    'request': request._asdict(),
    'samples': 0 if samples is None else len(samples),
    'sampling': sampling,
    'seconds': time.perf_counter() - begin,
    'lost_best': lost,
  }
  state = best.state
  speed = {} if again else {'speed': attempt('speed', lambda: _speed(run, state, logged))[0]}
  with _in_turn(run):
    suffix = f'_evaluation{len(run.record["evaluations"])}' if again else ''
    findings += draw_pictures(run, run.folder, shown, suffix)
    known = _told(run, evaluation, findings, again) | speed
    if processes.is_writer():
      record = run.record | known | {'config': provenance.config_to_json(run.config)}
      path = write_run_report(run, run.folder, record, findings, row, suffix)
      _say(path, findings, step, lost)
      if not again:
        known['made'] = run.made()
    run.note(**known)  # at last: a run with results is complete


def _say(
  path: pathlib.Path, findings: Sequence[MetricResult], step: int, lost: Mapping[str, Any] | None
) -> None:
  """Prints the results, where the report is, and which step was judged where the best checkpoint is lost."""
  print(tables.markdown(['quantity', 'value', 'reading'], [row[:3] for row in told(findings)]))
  of = (
    f'; the best checkpoint, of step {lost["step"]}, is lost: judged was step {step}'
    if lost
    else ''
  )
  print(f'report: {path}{of}', flush=True)


@contextlib.contextmanager
def _in_turn(run: Run) -> Iterator[None]:
  """Within the block no other evaluation writes into the folder, and the record knows of those before."""
  if not processes.is_writer():
    yield
    return
  with encoding.locked(run.folder / 'evaluation', seconds=600):
    run.note()
    yield


def _told(
  run: Run, evaluation: Mapping[str, Any], findings: Sequence[MetricResult], again: bool
) -> dict[str, Any]:
  """What an evaluation changes in the record.

  Args:
    run: that is evaluated.
    evaluation: how it was made.
    findings: what it found.
    again: it is another judgment than the run's own.
  """
  evaluation = {
    **evaluation,
    'changed': run.changes,
    'results': results_to_json(findings),
    'readings': {finding.name: [finding.unit, finding.better] for finding in findings},
  }
  known = {'evaluations': [*run.record['evaluations'], evaluation]}
  if not again:
    known |= {name: evaluation[name] for name in ('results', 'readings')}
  return known


def _what_is_judged(
  experiment: Experiment, best: Restored, lost: Mapping[str, Any] | None
) -> list[MetricResult]:
  """The step that is judged; before it the one that should be, where that checkpoint is lost.

  Args:
    experiment: of the run.
    best: the best checkpoint there is.
    lost: what `lost_best` says.
  """
  judged = evaluated_average(experiment) or 'as trained'
  of = f'of the lowest held-out loss{" of those left" if lost else ""}'
  meaning = f'{of}; all below is of its weights: {judged}'
  step = MetricResult('best step', best.record['step'], meaning, unit='steps')
  if not lost:
    return [step]
  why = f'of checkpoint {lost["number"]}, lost or damaged, whose loss {lost["metric"]:.6g} was the lowest'
  why += f'; that of the best step is {best.metric:.6g}'
  return [MetricResult('lost best step', lost['step'], why, unit='steps'), step]


def _logged(
  run: Run, written: Sequence[rows.Written], until: int
) -> tuple[list[dict[str, Any]], list[MetricResult]]:
  """The logged rows, and the line of the report that says so where they are not those that were written.

  Args:
    run: whose they are.
    written: what its checkpoints know of the rows before them.
    until: the number of the last one.
  """
  path = run.folder / 'metrics.jsonl'
  found, differing = rows.salvaged(path, 'cursor'), rows.differing(path, written, until, 'cursor')
  if differing:
    print(f'{path.name} is not as it was written ({differing})', flush=True)
  name = f'{path.name} is not as it was written'
  said = [MetricResult(name=name, value=math.nan, meaning=differing)] if differing else []
  return [row for _, row in found], said


def _inputs(run: Run, weights: Any, best: Restored, request: EvaluationSettings) -> MetricInputs:
  """Samples of the best checkpoint beside the data."""
  experiment, data, dataset = run.experiment, run.data, run.data.dataset
  labels, condition = data.asked(experiment.sampling.per_class * data.kinds)
  print(f'{len(labels)} samples from the best checkpoint, step {best.record["step"]}', flush=True)
  seeded = (*weights[:2], devices.replicate(jnp.asarray(request.seed, jnp.uint32)))
  # What of the experiment a sample depends on: an evaluation may be given another one than the run's.
  plan = experiment.sampling._replace(per_class=0, grid_rows=0)
  drawn_with = experiment.model, experiment.diffusion, experiment.evaluation_average, plan
  identity = {
    'checkpoint': best.number,
    'config': provenance.config_to_json(run.config),
    'code': checkout.code_digest(run.source),
    'built': fingerprint.digest(fingerprint.describe(drawn_with)),
    'seed': request.seed,
    'sampler': request.sampler,
    'grid': request.grid,
    'steps': request.steps,
  }
  return MetricInputs(
    samples=drawn(run, seeded, labels, condition, identity),
    labels=labels,
    train=data.train_in_memory if data.comparable else data.train,
    held_out=data.held_out,
    validation=data.sizes['validation'],
    class_names=dataset.class_names,
    units=data.units,
    network=make_network(experiment.model, experiment.diffusion, data.units, weights),
    kept={},
    conditions=data.told,
  )


def _findings_of_the_run(
  run: Run, best: Restored, rows: Sequence[Mapping[str, Any]]
) -> list[MetricResult]:
  """What sampling cost, and how steadily the run went."""
  count = evaluations_of_a_sample(run.experiment, run.data.dataset.x.shape[1:])
  # Of the whole run: the best checkpoint may lie before the trouble.
  skipped = max(
    [int(best.state.skipped), *(int(row['skipped']) for row in rows if 'skipped' in row)]
  )
  return [
    MetricResult(
      'evaluations a sample', count, 'of the network, guidance included', unit='network calls'
    ),
    MetricResult(
      'skipped steps',
      skipped,
      'left out because something was not finite',
      unit='steps',
      better='lower',
    ),
    *stability.findings(rows),
  ]


def _callback_findings(run: Run, states: Mapping[str, Any]) -> list[MetricResult]:
  """What the callbacks have to report of the whole run; `states`: theirs in its last checkpoint."""
  said = [c.finding(states[c.name]) for c in run.experiment.callbacks if c.name in states]
  return [MetricResult(*one, unit='times', better='lower') for one in said if one is not None]


def _loss_findings(run: Run, weights: Any, row: Mapping[str, float]) -> list[MetricResult]:
  """Held-out losses of the best checkpoint; the only place where the test split's loss is looked at."""
  bounds = [row[f'validation/{name}'] for name in ('gap', 'gap_low', 'gap_high')]
  unit, meaning = 'of the noise variance', 'unweighted eps-loss on the fixed evaluation noise'
  found = [
    MetricResult('validation/eps', row['validation/eps'], meaning, unit=unit, better='lower'),
    MetricResult(
      'validation gap',
      statistics.Interval(*bounds),
      'held-out minus training loss on the same noise',
      unit=unit,
      better='nearer 0',
    ),
  ]
  test = run.data.shown_test
  if len(test[0]) > 1:
    values = run.losses(weights, *test, np.arange(len(test[0]))).mean(1)
    loss = statistics.mean_t(values)
    found.insert(
      1, MetricResult('test/eps', loss, 'the same on the test split', unit=unit, better='lower')
    )
  return found


def evaluate(run: Run, mode: str, request: EvaluationSettings) -> int:
  """--mode=sample: a new grid with another seed. --mode=evaluate: metrics and report anew.

  Args:
    run: prepared as the request asks.
    mode: 'sample' or 'evaluate'.
    request: what to do differently.

  Raises:
    ValueError: other data than the run's, guidance that it has not learned, no run, or no checkpoint.
  """
  record = processes.from_folder(lambda: read_record(run.folder))
  changed = provenance.data_changes(record['data'], run.record['data'])
  if changed:
    raise ValueError(f'the data is not what {run.folder} was trained on: {"; ".join(changed)}')
  check_guidance(run.experiment.sampling, record['null_learned'])
  run.changes, run.record = claiming.changes(record, run.record), record
  if mode == 'evaluate':
    _apply(run, request)
    run.target = run.make_target()
    evaluate_best(run, request, again=True)
    return 0
  trained, dataset = load(run.folder, run.experiment), run.data.pictured
  count = len(picture_labels(run.experiment.sampling, dataset.levels, dataset.num_classes))
  samples = trained.sample(run.data.asked(count)[1], request.seed)
  path = run.folder / f'samples_seed{request.seed}.png'
  drawn_as = sampling_record(run.experiment, samples.shape[1:], trained.step, request.seed)
  title = drawn_in_words(drawn_as).replace(': ', '\n', 1)
  picture(dataset, run.data.validation[0], samples, path, title)
  print(path)
  return 0


def _apply(run: Run, request: EvaluationSettings) -> None:
  """Gives a run the number of samples and the metrics of a request; says which metrics it leaves out, and why."""
  experiment = run.experiment
  if request.samples:
    per_class = -(-request.samples // run.data.kinds)
    experiment = experiment._replace(sampling=experiment.sampling._replace(per_class=per_class))
  plan = evaluation_plan(experiment, run.data)
  if request.metrics:
    features = choose_features(request.features)
    found, left_out = choose_metrics(request.metrics, features, plan)
    experiment = experiment._replace(metrics=list(found.values()))
    for name, why in left_out.items():
      print(f'left out {name}: {why}', flush=True)
  for metric in experiment.metrics:
    metric.check(plan)
  run.used += [one for one in citations.techniques(experiment.metrics) if one not in run.used]
  run.experiment = experiment


def _speed(
  run: Run, state: Any, logged: Sequence[Mapping[str, Any]]
) -> dict[str, float | int | None] | None:
  """What run.json says of the speed: the median of the logged rows, and what it comes to.

  Args:
    run: that has been trained.
    state: its shapes.
    logged: its rows.

  Returns:
    images_per_second: median over the logged rows of all starts, validation and saving included where they fell.
    flops_per_image: of all products and convolutions of a training step, on the traced program.
    flops_per_second: the product of the two.
    utilization: its share of the devices' bfloat16 peak; None where that is not known.
    peak_memory: bytes when training ended, see `devices.peak_memory`; None where it was killed at its very end.
    None for a member of a population, whose steps are not its own.
  """
  rates = [
    row['timing']['images_per_second']
    for row in logged
    if 'images_per_second' in row.get('timing', ())
  ]
  if not rates or any('population' in one for one in run.record['starts']):
    return None
  flops = step_flops(run.experiment, run.data, state)
  speed, peak = float(np.median(rates)), devices.peak_flops()
  return {
    'images_per_second': speed,
    'flops_per_image': flops,
    'flops_per_second': speed * flops,
    'utilization': speed * flops / peak if peak else None,
    'peak_memory': run.record.get('peak_memory'),
  }
