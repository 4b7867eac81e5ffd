"""Tables and documents for LaTeX (booktabs), from the same rows as the Markdown ones."""

import math
import numbers
import re
from collections.abc import Sequence

from diffusion.naming import printable
from diffusion.reporting import tables
from diffusion.statistics import Interval, format_interval

_SPECIAL = {
  '\\': r'\textbackslash{}', '&': r'\&', '%': r'\%', '$': r'\$', '#': r'\#', '_': r'\_', '{': r'\{', '}': r'\}',
  '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}', '>': r'\textgreater{}',
  '–': '--', '±': r'$\pm$', '−': '$-$', '×': r'$\times$', '…': r'\dots{}',
}  # fmt: skip


def escape(text: str) -> str:
  """Text in one line as LaTeX shows it; a character that pdflatex does not know becomes a question mark."""
  known = ''.join(_SPECIAL.get(c, c) for c in printable(text))
  return known.encode('ascii', 'replace').decode()


def tabular(headers: Sequence[str], rows: Sequence[Sequence[object]], digits: int = 3) -> str:
  """A booktabs tabular: columns with numbers right, the others left; an interval in brackets after its estimate.

  Args:
    headers: one title a column.
    rows: cells as `tables.markdown` takes them.
    digits: significant digits of floats.

  Raises:
    ValueError: for no headers, or a row of another length.
  """
  if not headers or any(len(row) != len(headers) for row in rows):
    raise ValueError(f'every row must have {len(headers)} cells, as the headers {list(headers)!r}')
  columns = ''.join(
    'r' if any(isinstance(row[i], numbers.Real | Interval) for row in rows) else 'l'
    for i in range(len(headers))
  )
  cells = [map(escape, headers), *([_cell(value, digits) for value in row] for row in rows)]
  first, *others = (' & '.join(line) + r' \\' for line in cells)
  return '\n'.join([
    rf'\begin{{tabular}}{{@{{}}{columns}@{{}}}}', r'\toprule', first, r'\midrule', *others,
    r'\bottomrule', r'\end{tabular}',
  ])  # fmt: skip


def table(caption: str, content: str, label: str) -> str:
  """A table environment around a tabular, scaled down where it is wider than the line.

  Args:
    caption: plain text.
    content: from `tabular`.
    label: to refer to it by.
  """
  return '\n'.join([
    r'\begin{table}[htbp]', r'\centering', rf'\caption{{{escape(caption)}}}', rf'\label{{{label}}}', r'\small',
    r'\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%', content + '}', r'\end{table}',
  ])  # fmt: skip


def figure(caption: str, file: str, label: str) -> str:
  """A figure environment around a picture, as wide as the line.

  Args:
    caption: plain text.
    file: the picture's, from the document's folder.
    label: to refer to it by.
  """
  return '\n'.join([
    r'\begin{figure}[htbp]', r'\centering', rf'\includegraphics[width=\linewidth]{{{file}}}',
    rf'\caption{{{escape(caption)}}}', rf'\label{{{label}}}', r'\end{figure}',
  ])  # fmt: skip


def document(title: str, parts: Sequence[str], bibliography: str) -> str:
  """A whole article that pdflatex compiles.

  Args:
    title: plain text.
    parts: of the body, in LaTeX.
    bibliography: name of the .bib file, all of which is listed; '' for none.
  """
  cited = [r'\nocite{*}', r'\bibliographystyle{plain}', rf'\bibliography{{{bibliography}}}']
  return '\n\n'.join([
    r'\documentclass[a4paper]{article}',
    r'\usepackage{booktabs,graphicx}' + '\n'
    r'\usepackage[margin=2cm]{geometry}',
    rf'\title{{{escape(title)}}}' + '\n' + r'\date{}',
    r'\begin{document}' + '\n' + r'\maketitle',
    *parts,
    *(['\n'.join(cited)] if bibliography else []),
    r'\end{document}',
  ]) + '\n'  # fmt: skip


def _cell(value: object, digits: int) -> str:
  if isinstance(value, Interval):
    return escape(format_interval(value))
  if value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool)):
    text = tables.number(value, digits)
    if value is not None and not math.isfinite(value):
      return text
    return re.sub(r'^(-?[0-9.]+)e([+-])0*(\d+)$', r'$\1 \\cdot 10^{\2\3}$', text).replace('{+', '{')
  return escape(str(value))
