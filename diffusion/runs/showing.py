"""What an evaluation shows: the pictures of a run and its report, of whatever samples there are."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion import processes
from diffusion.data import pipeline
from diffusion.evaluation import gap, memorization
from diffusion.evaluation.metric import MetricInputs, MetricResult
from diffusion.reporting import plots
from diffusion.reporting.run_report import write_report
from diffusion.runs.attempts import attempt
from diffusion.runs.run import Run
from diffusion.runs.samples import picture
from diffusion.sampling.draw import picture_labels


def nearest_images(run: Run, inputs: MetricInputs | None) -> memorization.Ratios | None:
  """The nearest training image of each sample and how near it is; None where there are no images to compare."""
  images = run.data.dataset.levels is not None and run.data.comparable
  return memorization.input_ratios(inputs, 'samples') if images and inputs else None


def draw_pictures(
  run: Run,
  folder: pathlib.Path,
  *,
  samples: np.ndarray | None,
  nearest: memorization.Ratios | None,
  rows: Sequence[Mapping[str, Any]],
  step: int,
  suffix: str = '',
) -> list[MetricResult]:
  """Draws the pictures of an evaluation, on the process that writes.

  Args:
    run: whose pictures they are.
    folder: where they are written.
    samples: [n, ...] as stored, at least those of the picture; None where there are none.
    nearest: (row of the nearest training image, ratio of distances) of each, for images.
    rows: of metrics.jsonl.
    step: of the checkpoint.
    suffix: of the names.

  Returns:
    A line for each picture that failed.

  Raises:
    OSError: one cannot be written.
  """
  if not processes.is_writer():
    return []
  data = run.data.pictured
  note = f' ({data.note})' if data.note else ''

  def grid() -> None:
    # The picture's labels are the first of the metrics' labels, so its samples are too.
    count = len(picture_labels(run.experiment.sampling, data.levels, data.num_classes))
    title = f'{data.name}: samples from step {step}{note}'
    path = folder / f'samples{suffix}.png'
    picture(data, run.data.validation[0], samples[:count], path, title)

  def curves() -> None:
    plots.curves(rows, folder / 'curves.png', title=f'{data.name}{note}', best_step=step)

  def strip() -> None:
    index, ratio = nearest
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
    f'nearest{suffix}.png': strip if nearest is not None else None,
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
  return write_report(folder, record, findings, levels, run.used, suffix)
