"""Looks at a run while it trains: pictures of samples, how near they are to the training set, averages kept."""

import math
import pathlib

import numpy as np
from orbax.checkpoint import v1 as ocp

from diffusion import devices, processes
from diffusion.data import pipeline, sources
from diffusion.runs.run import Run
from diffusion.sampling import draw
from diffusion.training.state import TrainState, weights


def drawn(run: Run, state: TrainState, labels: np.ndarray) -> np.ndarray:
  """Samples with these labels from the judged weights of a replicated state, as the data is stored."""
  return run.sample(weights(run.experiment, state), labels, np.arange(len(labels)))


def samples(run: Run, state: TrainState) -> None:
  """Writes a picture of samples."""
  step, dataset = run.position.step, run.data.dataset
  labels = draw.picture_labels(run.experiment.sampling, dataset.levels, dataset.num_classes)
  path = run.folder / 'samples' / f'step_{step:08d}.png'
  picture(dataset, run.data.validation[0], drawn(run, state, labels), path, f'step {step}')


def memorization(run: Run, state: TrainState, per_class: int) -> dict[str, float]:
  """A row of how near so many samples of each class are to the training set."""
  labels = draw.class_labels(run.data.dataset.num_classes, per_class)
  return run.nearness(drawn(run, state, labels))


def snapshot(run: Run, state: TrainState) -> None:
  """Keeps the averages as they are, for later reconstruction."""
  averages = devices.to_host(
    {name: one.read(state.averages[name]) for name, one in run.experiment.averages.items()}
  )
  folder = run.folder / 'snapshots'
  folder.mkdir(exist_ok=True)
  ocp.save(folder.absolute() / f'step_{run.position.step:08d}', averages, overwrite=True)


def picture(
  dataset: sources.Dataset,
  reference: np.ndarray,
  samples: np.ndarray,
  path: pathlib.Path,
  title: str,
) -> None:
  """Images: one class a column, as `draw.class_labels` orders them. Vectors: a scatter plot over the reference."""
  if not processes.is_writer():
    return
  from diffusion.reporting import plots  # here, because most runs draw when they are over

  if dataset.levels is None:
    plots.vector_scatter(samples, reference, path, title=title)
    return
  # Unlabelled samples in rows of the largest divisor of their number up to its root: a square if it is one.
  root = math.isqrt(len(samples))
  columns = dataset.num_classes or max(n for n in range(1, root + 1) if len(samples) % n == 0)
  images = pipeline.to_uint8(samples, dataset.levels).reshape(-1, columns, *samples.shape[1:])
  plots.image_grid(images, dataset.class_names or [''] * columns, path, title=title)
