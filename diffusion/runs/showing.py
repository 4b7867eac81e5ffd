"""What an evaluation shows: the pictures of a run and its report, of whatever samples there are."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion import fingerprint, processes
from diffusion.data import pipeline
from diffusion.evaluation import gap, memorization
from diffusion.evaluation.metric import MetricInputs, MetricResult, told
from diffusion.reporting import plots
from diffusion.reporting.run_report import drawn_in_words, write_report
from diffusion.runs.attempts import attempt
from diffusion.runs.run import Run
from diffusion.runs.samples import picture
from diffusion.sampling import grids
from diffusion.sampling import plan as plans
from diffusion.sampling.draw import picture_labels
from diffusion.training.experiment import Experiment, evaluated_average, evaluations_of_a_sample


def nearest_images(run: Run, inputs: MetricInputs | None) -> memorization.Ratios | None:
  """The nearest training image of each sample and how near it is; None where there are no images to compare."""
  images = run.data.dataset.levels is not None and run.data.comparable
  return memorization.input_ratios(inputs, 'samples') if images and inputs else None


def sampling_record(
  experiment: Experiment, shape: tuple[int, ...], step: int, seed: int
) -> dict[str, Any]:
  """How samples are drawn, in words and numbers, for the record and a reader.

  Args:
    experiment: as it is evaluated.
    shape: of a sample.
    step: of the checkpoint.
    seed: of the sampler.
  """
  plan = experiment.sampling
  _, planned = plans.rehearsed(plan, experiment.diffusion)
  return {
    'checkpoint': step,
    'weights': evaluated_average(experiment) or 'as trained',
    'sampler': fingerprint.short(plan.sampler),
    'grid': fingerprint.short(plan.grid or planned.sampler.grid or grids.uniform_time),
    'steps': plan.steps,
    'evaluations a sample': evaluations_of_a_sample(experiment, shape),
    'guidance': plan.guidance,
    'guided log-SNR': plan.interval and list(plan.interval),
    'around the denoiser': [fingerprint.short(wrap) for wrap in plan.wrappers or ()],
    'thinned networks': plan.monte_carlo,
    'seed': seed,
  }


class Shown(NamedTuple):
  """What the pictures of an evaluation show.

  Attributes:
    samples: [n, ...] as stored, at least those of the picture; None where there are none.
    nearest: (row of the nearest training image, ratio of distances) of each, for images.
    rows: of metrics.jsonl.
    sampling: how the samples were drawn, see `sampling_record`.
  """

  samples: np.ndarray | None
  nearest: memorization.Ratios | None
  rows: Sequence[Mapping[str, Any]]
  sampling: Mapping[str, Any]


def draw_pictures(
  run: Run, folder: pathlib.Path, shown: Shown, suffix: str = ''
) -> list[MetricResult]:
  """Draws the pictures of an evaluation, on the process that writes.

  Args:
    run: whose pictures they are.
    folder: where they are written.
    shown: what is on them.
    suffix: of the names.

  Returns:
    A line for each picture that failed.

  Raises:
    OSError: one cannot be written.
  """
  if not processes.is_writer():
    return []
  data, samples = run.data.pictured, shown.samples
  note = f' ({data.note})' if data.note else ''

  def grid() -> None:
    # The picture's labels are the first of the metrics' labels, so its samples are too.
    count = len(picture_labels(run.experiment.sampling, data.levels, data.num_classes))
    checkpoint, _, drawn = drawn_in_words(shown.sampling).partition(': ')
    title = f'{data.name}{note}: samples of {checkpoint}\n{drawn}'
    path = folder / f'samples{suffix}.png'
    picture(data, run.data.validation[0], samples[:count], path, title)

  def curves() -> None:
    levels, step = run.experiment.evaluation_noise.log_snr, shown.sampling['checkpoint']
    title, path = f'{data.name}{note}', folder / 'curves.png'
    plots.curves(shown.rows, path, title=title, best_step=step, log_snr=levels)

  def strip() -> None:
    index, ratio = shown.nearest
    closest = np.argsort(ratio)[:24]
    train = run.data.split.train[index[closest]]
    pairs = (samples[closest], data.x[train])
    plots.memorization_strip(
      *(pipeline.to_uint8(x, data.levels) for x in pairs), ratio[closest], folder / f'nearest{suffix}.png',
      title='samples above their nearest training images',
    )  # fmt: skip

  drawn = {
    'curves.png': curves,
    f'samples{suffix}.png': grid if samples is not None else None,
    f'nearest{suffix}.png': strip if shown.nearest is not None else None,
  }
  return [line for name, draw in drawn.items() if draw for line in attempt(name, draw)[1]]


def write_run_report(
  run: Run,
  folder: pathlib.Path,
  record: Mapping[str, Any],
  findings: Sequence[MetricResult],
  row: Mapping[str, float],
  suffix: str,
) -> pathlib.Path:
  """Writes the report of an evaluation and returns its path.

  Args:
    run: that is evaluated.
    folder: where it is written, beside its pictures.
    record: run.json, as it is when this is done.
    findings: what was found.
    row: of the validation.
    suffix: of the report's and the pictures' names.
  """
  levels = gap.per_level(row, run.experiment.evaluation_noise)
  return write_report(folder, record, told(findings), levels, run.used, suffix)
