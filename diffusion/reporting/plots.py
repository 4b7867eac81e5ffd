"""Pictures of a run: grids of samples, strips of nearest neighbors, scatter plots, curves.

Images are drawn pixel by pixel, enlarged by a whole factor and never resampled, so that an 8x8
digit is as sharp as it is.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from diffusion.reporting.drawing import (
  ACCENT,
  BLUE,
  FAINT,
  INK,
  Canvas,
  Path,
  line_height,
  new_axes,
  save_axes,
  text_width,
)
from diffusion.reporting.history import curves

__all__ = [
  'curves',
  'histogram',
  'image_grid',
  'memorization_strip',
  'rate_range',
  'vector_scatter',
  'vectors',
]

TILE_WIDTH = 72  # pixels an image is enlarged to, at least


def rate_range(
  rates: Sequence[float],
  losses: Sequence[float],
  smooth: Sequence[float],
  path: Path,
  *,
  marks: Mapping[str, float],
) -> pathlib.Path:
  """The loss against a rising learning rate, both on logarithmic axes.

  Args:
    rates, losses, smooth: one a row; `smooth` is drawn in full color over `losses`.
    path: the picture's file; its folder is created.
    marks: name -> rate, drawn as vertical lines.

  Returns:
    The path.

  Raises:
    OSError: where the file cannot be written.
  """
  axes = new_axes(6.4, 3.6)
  axes.plot(rates, losses, color=BLUE, linewidth=0.7, alpha=0.35)
  axes.plot(rates, smooth, color=BLUE, linewidth=1.6)
  for (name, rate), color in zip(marks.items(), (ACCENT, FAINT, INK), strict=False):
    axes.axvline(rate, color=color, linewidth=1.2, linestyle='--', label=f'{name}: {rate:.2g}')
  axes.set(xscale='log', yscale='log', xlabel='learning rate', ylabel='training loss')
  axes.legend(fontsize=8.5, framealpha=0.85, edgecolor='none')
  return save_axes(axes, path, 'Learning-rate range test')


def image_grid(
  images: np.ndarray,
  titles: Sequence[str] | Sequence[Sequence[str]],
  path: Path,
  *,
  title: str = '',
  gap: int = 4,
) -> pathlib.Path:
  """A grid of images, one class a column, its name above; or each image with its own name.

  Args:
    images: uint8 [rows, columns, H, W, C]; unless C is 1 or 3, each channel is a gray panel beside the others.
    titles: the columns' names, as many as columns; or for each row the names of its images.
    path: the picture's file, as a rule a .png; its folder is created.
    title: title of the whole.
    gap: pixels between two images, >= 0.

  Returns:
    The path.

  Raises:
    ValueError: for images of another shape or type, or a wrong number of titles.
    OSError: where the file cannot be written.
  """
  images = _checked_images('images', images, ndim=5)
  rows, columns = images.shape[:2]
  lines = [titles] if all(isinstance(one, str) for one in titles) else list(titles)
  if len(lines) not in (1, rows) or any(len(line) != columns for line in lines):
    raise ValueError(f'titles must name {columns} columns, or all images, got {list(titles)!r}')
  tiles = _enlarged(images)
  height, width = tiles.shape[2:4]
  names = [name for line in lines for name in line]
  text_size = _fitting_size(names, width + gap)
  head = line_height(text_size) if any(names) else 0
  pitch = height + gap + (head if len(lines) > 1 else 0)
  size = columns * (width + gap) - gap, (rows - 1) * pitch + height
  canvas = Canvas(size, title, top=head)
  for row in range(rows):
    for column in range(columns):
      left, top = column * (width + gap), row * pitch
      canvas.draw(left, top, tiles[row, column])
      if row < len(lines):
        middle = left + width / 2
        canvas.write(middle, top - 6, lines[row][column], size=text_size, align='center')
  return canvas.save(path)


def memorization_strip(
  samples: np.ndarray,
  neighbors: np.ndarray,
  ratios: np.ndarray,
  path: Path,
  *,
  title: str = '',
  threshold: float = 1 / 3,
  columns: int = 12,
) -> pathlib.Path:
  """Each sample above its nearest training image, the likeliest copies first.

  Args:
    samples: uint8 [N, H, W, C], see `image_grid`.
    neighbors: uint8, of the samples' shape: the nearest training image of each.
    ratios: [N], distance to the nearest over distance to the second nearest, in [0, 1].
    path: the picture's file; its folder is created.
    title: title of the whole.
    threshold: ratios below it are set in the color of a copy.
    columns: samples in a row, >= 1.

  Returns:
    The path.

  Raises:
    ValueError: for arrays of another shape or type, or a ratio that is not a number.
    OSError: where the file cannot be written.

  Source: the ratio and its threshold 1/3, Yoon et al. (2023) and Gu et al. (2023).
  """
  samples = _checked_images('samples', samples, ndim=4)
  neighbors = _checked_images('neighbors', neighbors, ndim=4)
  ratios = np.asarray(ratios, np.float64)
  if samples.shape != neighbors.shape:
    raise ValueError(f'neighbors must have shape {samples.shape}, got {neighbors.shape}')
  if ratios.shape != samples.shape[:1] or np.any(np.isnan(ratios)):
    raise ValueError(f'ratios must be {samples.shape[0]} numbers, got {ratios!r}')
  if columns < 1:
    raise ValueError(f'columns must be at least 1, got {columns!r}')
  order = np.argsort(ratios, kind='stable')
  pairs = _enlarged(np.stack([samples[order], neighbors[order]], axis=1))
  height, width = pairs.shape[2:4]
  gap, caption, left_text = 4, 22, 62
  block = 2 * height + gap + caption + 8
  columns = min(columns, len(order))
  blocks = -(-len(order) // columns)
  size = (left_text + columns * (width + gap) - gap, blocks * block - 8)
  canvas = Canvas(size, title)
  for place, (index, pair) in enumerate(zip(order, pairs, strict=True)):
    row, column = divmod(place, columns)
    left, top = left_text + column * (width + gap), row * block
    canvas.draw(left, top, pair[0])
    canvas.draw(left, top + height + gap, pair[1])
    color = ACCENT if ratios[index] < threshold else INK
    middle, bottom = left + width / 2, top + 2 * height + gap + caption - 5
    canvas.write(middle, bottom, f'{ratios[index]:.2f}', color=color, align='center')
    if column == 0:
      for name, base in (('sample', height / 2), ('nearest', 1.5 * height + gap)):
        canvas.write(left_text - 8, top + base + 4, name, align='right')
      canvas.write(left_text - 8, bottom, 'ratio', color=FAINT, align='right')
  return canvas.save(path)


def vectors(
  samples: np.ndarray, reference: np.ndarray, path: Path, *, title: str = ''
) -> pathlib.Path:
  """The picture of what is no image: a histogram of numbers, the first two coordinates of vectors [n, d], and of any
  other shape the two principal components along which the reference varies most.

  Args:
    samples: [M, ...]; those that are not finite are left out and counted in the legend.
    reference: [N, ...], N >= 2.
    path: the picture's file; its folder is created.
    title: title of the whole.

  Returns:
    The path.

  Raises:
    OSError: where the file cannot be written.
  """
  flat, data = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (samples, reference))
  if flat.shape[1] == 1:
    return histogram(flat[:, 0], data[:, 0], path, title=title)
  if np.ndim(samples) == 2:
    return vector_scatter(flat, data, path, title=title)
  center = data.mean(0)
  some = data[np.linspace(0, len(data) - 1, min(len(data), 500)).astype(int)]
  main = np.linalg.svd(some - center, full_matrices=False)[2][:2].T
  parts = ((x - center) @ main for x in (flat, data))
  return vector_scatter(*parts, path, title=title, axis='principal component')


def histogram(
  samples: np.ndarray, reference: np.ndarray, path: Path, *, title: str = ''
) -> pathlib.Path:
  """The density of single numbers over that of reference data, in common bins.

  Args:
    samples: [M]; those that are not finite are left out and counted in the legend.
    reference: [N], finite.
    path: the picture's file; its folder is created.
    title: title of the whole.

  Returns:
    The path.

  Raises:
    OSError: where the file cannot be written.
  """
  axes = new_axes(5.6, 3.8)
  finite = samples[np.isfinite(samples)]
  bins = int(np.clip(np.sqrt(min(len(finite) or 1, len(reference))), 8, 50))
  edges = np.histogram_bin_edges(np.concatenate([finite, reference]), bins)
  lost = len(samples) - len(finite)
  label = f'samples ({len(samples)})' + (f', {lost} not finite' if lost else '')
  axes.hist(reference, edges, density=True, color='#c3c9ce', label=f'data ({len(reference)})')
  look = {'color': BLUE, 'linewidth': 1.6, 'label': label}
  if len(finite):
    axes.hist(finite, edges, density=True, histtype='step', **look)
  else:  # a density of nothing is none, but the legend counts them
    axes.plot([], [], **look)
  axes.set(xlabel='value', ylabel='density')
  axes.legend(frameon=False, fontsize=9)
  return save_axes(axes, path, title)


def vector_scatter(
  samples: np.ndarray,
  reference: np.ndarray,
  path: Path,
  *,
  title: str = '',
  axis: str = 'coordinate',
) -> pathlib.Path:
  """The first two coordinates of samples over those of reference data.

  Args:
    samples: [M, d], d >= 2; points that are not finite are left out and counted in the legend.
    reference: [N, d].
    path: the picture's file; its folder is created.
    title: title of the whole.
    axis: what a coordinate is called.

  Returns:
    The path.

  Raises:
    ValueError: for arrays of another shape.
    OSError: where the file cannot be written.
  """
  samples, reference = np.asarray(samples), np.asarray(reference)
  for name, points in (('samples', samples), ('reference', reference)):
    if points.ndim != 2 or points.shape[1] < 2 or points.shape[1] != samples.shape[-1]:
      raise ValueError(f'{name} must be [N, d] with one d >= 2 for both, got {points.shape}')
  axes = new_axes(5.6, 5.2)
  looks = (('data', reference, '#8d969f', 0.45), ('samples', samples, BLUE, 0.8))
  crowd = max(len(samples), len(reference), 1)
  size = float(np.clip(16000 / crowd, 5, 30))
  for name, points, color, alpha in looks:
    finite = points[np.all(np.isfinite(points[:, :2]), axis=1)]
    lost = len(points) - len(finite)
    label = f'{name} ({len(points)})' + (f', {lost} not finite' if lost else '')
    axes.scatter(*finite[:, :2].T, s=size, color=color, alpha=alpha, linewidths=0, label=label)
  axes.set_aspect('equal', adjustable='datalim')
  axes.set(xlabel=f'{axis} 1', ylabel=f'{axis} 2')
  # Below the points, or it would be read with those behind it.
  legend = axes.legend(
    frameon=False, fontsize=9, ncols=2, loc='upper center', bbox_to_anchor=(0.5, -0.1)
  )
  for handle in legend.legend_handles:
    handle.set_alpha(1.0)
    handle.set_sizes([24])
  return save_axes(axes, path, title)


def _checked_images(name: str, images: np.ndarray, ndim: int) -> np.ndarray:
  images = np.asarray(images)
  layout = '[rows, columns, H, W, C]' if ndim == 5 else '[N, H, W, C]'
  if images.dtype != np.uint8:
    raise ValueError(f'{name} must be uint8, got {images.dtype}')
  if images.ndim != ndim or 0 in images.shape:
    raise ValueError(f'{name} must be {layout}, none of them 0, got shape {images.shape}')
  return images


def _enlarged(images: np.ndarray) -> np.ndarray:
  """RGB, each pixel a square: the least whole factor that makes an image TILE_WIDTH wide.

  Channels that are no colors become gray images side by side, with a white line between two.
  """
  factor = -(-TILE_WIDTH // images.shape[-2])
  images = images.repeat(factor, axis=-3).repeat(factor, axis=-2)
  if images.shape[-1] == 3:
    return images
  line = np.full((*images.shape[:-2], 2, 1), 255, np.uint8)
  channels = np.split(images, images.shape[-1], axis=-1)
  panels = [part for channel in channels for part in (line, channel)][1:]
  return np.concatenate(panels, axis=-2).repeat(3, axis=-1)


def _fitting_size(texts: Sequence[str], width: float) -> float:
  """Points at which every text is at most `width` pixels wide, in [6, 10]."""
  widest = max((text_width(text, 1.0) for text in texts), default=0.0)
  return float(np.clip(width / widest if widest else 10, 6, 10))
