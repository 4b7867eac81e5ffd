"""Judging a run: samples, metrics, pictures and the report."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion import citations, devices, processes, provenance, statistics, workdir
from diffusion.data import pipeline
from diffusion.evaluation import gap, memorization, stability
from diffusion.evaluation.metric import Finding, Judged, Metric, findings_to_json
from diffusion.reporting import plots, tables
from diffusion.reporting.rows import read_json_lines
from diffusion.reporting.run_report import write_report
from diffusion.runs import suite
from diffusion.runs.loading import load
from diffusion.runs.samples import drawn
from diffusion.runs.session import Session, Setting, open_session, picture, restore
from diffusion.runs.speed import measured_speed
from diffusion.runs.suite import Request
from diffusion.training import assembly
from diffusion.training.checkpoint import Restored, open_checkpoints
from diffusion.training.experiment import check_sampling
from diffusion.workdir import read_record


def judge_best(session: Session, target: Any, request: Request, again: bool = False) -> None:
  """Restores the best checkpoint, samples from it, applies the metrics, and writes pictures and report.

  A run's own judgment is its `results`; another one, as the request asks, stands beside it in `evaluations` and in
  files of its own.
  """
  experiment = session.experiment
  kept = open_checkpoints(session.folder / 'checkpoints', read_only=True)
  best = restore(kept, target, 'best')
  if best is None:
    raise ValueError(f'no checkpoint in {session.folder}: train first')
  suffix = f'_evaluation{len(session.record["evaluations"])}' if again else ''
  begin = time.perf_counter()
  weights = assembly.weights(experiment, devices.replicate(best.state))
  row = session.programs.validate(weights)
  step = best.record['step']
  meaning = 'of the lowest held-out loss; all below is of its averaged weights'
  findings = [Finding('best step', step, meaning), *_loss_findings(session, weights, row)]
  judged = _judged(session, weights, best, request)
  for metric in experiment.metrics:
    findings += _measured(metric, judged)
  findings += _findings_of_the_run(session, judged, best)
  findings += _callback_findings(session, kept.last_record()['callbacks'])
  _pictures(session, judged, step, suffix)
  config = provenance.config_to_json(session.setting.config)
  evaluation = {
    'time': workdir.now(),
    'code': provenance.code()['commit'],
    'request': request._asdict(),
    'samples': len(judged.samples),
    'changed': provenance.differences(session.record['config'], config),
    'seconds': time.perf_counter() - begin,
    'results': findings_to_json(findings),
  }
  known = {'evaluations': [*session.record['evaluations'], evaluation]}
  if not again:
    known |= {'results': evaluation['results'], 'speed': measured_speed(session, best.state)}
  if processes.is_writer():
    record = session.record | known | {'config': config}
    levels = gap.per_level(row, experiment.bank)
    path = write_report(session.folder, record, findings, levels, session.used, suffix)
    print(tables.markdown(['quantity', 'value'], [(f.name, f.value) for f in findings]))
    print(f'report: {path}', flush=True)
  session.note(**known)  # at last: a run with results is complete


def _measured(metric: Metric, judged: Judged) -> list[Finding]:
  """What a metric finds; where these samples are beyond it, that it failed and why, so that the others are not lost."""
  try:
    return metric.measure(judged)
  except ValueError as error:
    print(f'a metric failed: {error}', file=sys.stderr, flush=True)
    name = metric.measure.__qualname__.split('.')[0]
    return [Finding(f'{name} failed', math.nan, str(error))]


def _judged(session: Session, weights: Any, best: Restored, request: Request) -> Judged:
  """Samples of the best checkpoint beside the data."""
  experiment, loaded = session.experiment, session.loaded
  data = loaded.dataset
  labels = assembly.class_labels(data.num_classes, experiment.sampling.per_class)
  print(f'{len(labels)} samples from the best checkpoint, step {best.record["step"]}', flush=True)
  seeded = (*weights[:2], devices.replicate(jnp.asarray(request.seed, jnp.uint32)))
  identity = {
    'checkpoint': best.number,
    'config': provenance.config_to_json(session.setting.config),
    'code': provenance.code_digest(session.setting.source),
    'seed': request.seed,
    'sampler': request.sampler,
    'steps': request.steps,
  }
  return Judged(
    drawn(session, seeded, labels, identity),
    labels,
    loaded.train_in_memory if loaded.comparable else loaded.train,
    loaded.held_out,
    len(loaded.validation[0]),
    data.class_names,
    loaded.units,
    assembly.judged_network(experiment, loaded.units, weights),
    {},
  )


def _findings_of_the_run(session: Session, judged: Judged, best: Restored) -> list[Finding]:
  """What sampling cost, and how steadily the run went."""
  count = check_sampling(session.experiment, judged.samples.shape[1:])
  skipped = int(best.state.skipped)
  rows = processes.from_folder(lambda: read_json_lines(session.folder / 'metrics.jsonl'))
  return [
    Finding('evaluations a sample', count, 'of the network, guidance included'),
    Finding('skipped steps', skipped, 'steps left out because something was not finite'),
    *stability.findings(rows),
  ]


def _callback_findings(session: Session, states: Mapping[str, Any]) -> list[Finding]:
  """What the callbacks have to report of the whole run; `states`: theirs in its last checkpoint."""
  said = [c.finding(states[c.name]) for c in session.experiment.callbacks if c.name in states]
  return [Finding(*one) for one in said if one is not None]


def _loss_findings(session: Session, weights: Any, row: Mapping[str, float]) -> list[Finding]:
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


def _pictures(session: Session, judged: Judged, step: int, suffix: str) -> None:
  data, folder = session.loaded.dataset, session.folder
  images = data.levels is not None and session.loaded.comparable
  ratios = memorization.judged_ratios(judged, 'samples') if images else None
  if not processes.is_writer():
    return
  note = f' ({data.note})' if data.note else ''
  # The picture's labels are the first of the metrics' labels, so its samples are too.
  shown = judged.samples[
    : len(assembly.picture_labels(session.experiment, data.levels, data.num_classes))
  ]
  title = f'{data.name}: samples from step {step}{note}'
  picture(data, session.loaded.validation[0], shown, folder / f'samples{suffix}.png', title)
  rows = read_json_lines(folder / 'metrics.jsonl')
  plots.curves(rows, folder / 'curves.png', title=f'{data.name}{note}', best_step=step)
  if ratios is not None:
    index, ratio = ratios
    closest = np.argsort(ratio)[:24]
    pairs = (judged.samples[closest], judged.train[0][index[closest]])
    plots.memorization_strip(
      *(pipeline.to_uint8(x, data.levels) for x in pairs), ratio[closest], folder / f'nearest{suffix}.png',
      title='samples above their nearest training images',
    )  # fmt: skip


def judge(setting: Setting, mode: str, request: Request) -> int:
  """--mode=sample: a new grid with another seed. --mode=evaluate: metrics and report anew."""
  build = setting.build
  setting = setting._replace(build=lambda config: request.applied(build(config)))
  session, state = open_session(setting)
  record = processes.from_folder(lambda: read_record(session.folder))
  changed = provenance.differences(record['data'], session.record['data'])
  if changed:
    raise ValueError(f'the data is not what {session.folder} was trained on: {"; ".join(changed)}')
  session = session._replace(record=record)
  if mode == 'evaluate':
    session = _as_requested(session, request)
    judge_best(session, assembly.host_target(state), request, again=True)
    return 0
  run = load(session.folder, session.experiment)
  data = session.loaded.dataset
  labels = assembly.picture_labels(session.experiment, data.levels, data.num_classes)
  samples = run.sample(labels, request.seed)
  path = session.folder / f'samples_seed{request.seed}.png'
  picture(
    data, session.loaded.validation[0], samples, path, f'step {run.step}, seed {request.seed}'
  )
  print(path)
  return 0


def _as_requested(session: Session, request: Request) -> Session:
  """The session with the number of samples and the metrics of a request; says which metrics it leaves out, and why."""
  experiment, loaded = session.experiment, session.loaded
  classes = max(1, loaded.dataset.num_classes)
  if request.samples:
    per_class = -(-request.samples // classes)
    experiment = experiment._replace(sampling=experiment.sampling._replace(per_class=per_class))
  sizes = [len(part[0]) for part in (loaded.train, loaded.validation, loaded.test)]
  plan = assembly.judged_plan(experiment, loaded.dataset, sizes)
  with citations.collect() as used:
    if request.metrics:
      features = suite.choose_features(request.features)
      found, left_out = suite.choose(request.metrics, features, plan, network=True)
      experiment = experiment._replace(metrics=list(found.values()))
      for name, why in left_out.items():
        print(f'left out {name}: {why}', flush=True)
  for metric in experiment.metrics:
    metric.check(plan)
  known = {one.qualified_name for one in session.used}
  used = [*session.used, *(one for one in used if one.qualified_name not in known)]
  return session._replace(experiment=experiment, used=used)
