"""What the pictures share: figures without global state, their look, a canvas of whole pixels."""

import contextlib
import os
import pathlib
import sys
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffusion.reporting import encoding

Path = str | os.PathLike[str]

DPI = 100
MARGIN = 14
INK = '#222222'
FAINT = '#8a8a8a'
ACCENT = '#c8372d'
BLUE = '#2563a8'
ORANGE = '#d97706'


def figure_class() -> type:
  """Matplotlib's Figure, whatever MPLBACKEND says: pictures are written without a backend.

  A notebook hands its own to every program that it starts, and where that is not installed Matplotlib would not load.
  """
  backend = None if 'matplotlib' in sys.modules else os.environ.pop('MPLBACKEND', None)
  import matplotlib
  from matplotlib.figure import Figure

  if backend:
    os.environ['MPLBACKEND'] = backend
    with contextlib.suppress(ValueError):
      matplotlib.rcParams['backend'] = backend
  return Figure


def new_figure(width: float, height: float) -> Any:
  """A white figure of width x height inches that no global state knows of."""
  figure = figure_class()(figsize=(width, height), dpi=DPI, facecolor='white', layout='constrained')
  figure.get_layout_engine().set(w_pad=0.09, h_pad=0.09)
  return figure


def new_axes(width: float, height: float) -> Any:
  """The only axes of a `new_figure`."""
  return new_figure(width, height).add_subplot()


def style_axes(axes: Any) -> None:
  """The look of every plot here: no box, a faint grid, small dark text."""
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(FAINT)
  axes.grid(True, which='major', color='#e6e6e6', linewidth=0.7)
  axes.set_axisbelow(True)
  axes.tick_params(colors=INK, labelsize=8.5, length=3, color=FAINT)
  axes.tick_params(which='minor', length=1.5, color=FAINT)
  for label in (axes.xaxis.label, axes.yaxis.label):
    label.set(size=9.5, color=INK)


def save_axes(axes: Any, path: Path, title: str = '') -> pathlib.Path:
  """Styles axes, writes their figure, and returns the path.

  Args:
    axes: of a figure of their own.
    path: the picture's file; its folder is created.
    title: of the whole, if any.
  """
  style_axes(axes)
  return save_figure(axes.figure, path, title)


def save_figure(
  figure: Any, path: Path, title: str = '', *, dpi: float = 1.5 * DPI
) -> pathlib.Path:
  """Writes a figure, whole or not at all, and returns the path.

  Args:
    figure: of Matplotlib.
    path: the picture's file; its folder is created.
    title: of the whole, if any.
    dpi: pixels an inch.

  Raises:
    OSError: where it cannot be written, naming it.
  """
  path = pathlib.Path(path)
  if title:
    figure.suptitle(title, fontsize=12, color=INK)
  for text in figure.findobj(lambda one: hasattr(one, 'set_parse_math')):
    if text.get_text():  # not a tick of a logarithmic axis, which is yet to be written
      text.set_parse_math(False)  # the $ of somebody's name is no formula
  path.parent.mkdir(parents=True, exist_ok=True)
  with encoding.naming(path), encoding.replacing(path) as file:
    figure.savefig(file, format=path.suffix[1:] or 'png', dpi=dpi)
  return path


class Canvas:
  """A figure addressed in whole pixels from the picture's upper left corner."""

  def __init__(self, size: tuple[int, int], title: str, top: int = 0):
    """An empty one, as wide as its title needs.

    Args:
      size: (width, height) of what is drawn, pixels.
      title: above it, of one or more lines; '' for none.
      top: pixels between the title and what is drawn.
    """
    width, height = size
    title_size = 12
    lines = title.splitlines()
    title_width = int(max((text_width(line, title_size) for line in lines), default=0))
    header = (line_height(title_size) * len(lines) + 2 if title else 0) + top
    self.width = max(width, title_width) + 2 * MARGIN
    self.height = height + header + 2 * MARGIN
    self.left = (self.width - width) // 2
    self.top = MARGIN + header
    inches = (self.width / DPI, self.height / DPI)
    self.figure = figure_class()(figsize=inches, dpi=DPI, facecolor='white')
    if title:
      self.figure.text(
        0.5, 1 - MARGIN / self.height, title, size=title_size, ha='center', va='top', color=INK
      )

  def draw(self, x: int, y: int, tile: UInt8[np.ndarray, 'h w 3']) -> None:
    """Puts a tile, pixel on pixel.

    Args:
      x, y: of its upper left corner, pixels right and down.
      tile: red, green and blue of each pixel.
    """
    bottom = self.height - (self.top + y + tile.shape[0])
    self.figure.figimage(tile, xo=self.left + x, yo=bottom, origin='upper')

  def write(
    self, x: float, y: float, text: str, *, size: float = 8.5, color: str = INK, align: str = 'left'
  ) -> None:
    """Writes text.

    Args:
      x, y: of its baseline, pixels right and down.
      text: one line.
      size: in points.
      color: as Matplotlib names it.
      align: which end of the line is at x: 'left', 'center' or 'right'.
    """
    place = ((self.left + x) / self.width, 1 - (self.top + y) / self.height)
    self.figure.text(*place, text, size=size, color=color, ha=align, va='baseline')

  def save(self, path: Path) -> pathlib.Path:
    """Writes the picture, its folder made where it is missing, and returns the path."""
    return save_figure(self.figure, path, dpi=DPI)


def text_width(text: str, size: float) -> float:
  """Pixels of the text in the default font, on the generous side of 0.62 em a letter."""
  return 0.62 * size * DPI / 72 * len(text)


def line_height(size: float) -> int:
  """Pixels from one line of text to the next."""
  return round(1.5 * size * DPI / 72)
