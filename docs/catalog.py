"""Writes docs/CATALOG.md and docs/references.bib from the techniques' docstrings and tests: `python -m docs.catalog`.

The functions say what they do, their ranges and their sources; `tests/cases/` say the line to write and the tests.
"""

import importlib
import inspect
import pathlib
import pkgutil
import re
from collections.abc import Callable
from typing import Any

import diffusion
from diffusion import citations
from diffusion.reporting import bibliography
from tests.cases import CASES
from tests.cases.base import Case
from tests.mutants import faults

ROOT = pathlib.Path(__file__).parents[1]
HEAD = """# Catalogue

Every technique of stable, regularized training that this codebase has: {count} of them. Each is one pure function in
the room of the place where it acts, is turned on by the line under its name (one keyword of `diffusion.Experiment`; the
dots stand for what the experiment has anyway), and is cited by the report of a run that uses it.

For each row two tests run: *live* compares it on with it off, in the direction it claims; *form* holds its closed form
or its statistics. What is off costs nothing: the program of a step with everything off is the plain step's to the
letter. All are in `tests/test_catalog.py` and `tests/cases/`. *Faults* are small wrong edits of it that tests must
notice: `python -m tests.mutants --only=NAME` plants one in a copy of the tree and runs them.

Random draws come from separate streams (`diffusion/rng.py`): split, initialization, order of the data, curriculum,
augmentation, noise level, noise, dropout, terms of the loss, validation, sampler, likelihood. Turning one technique on
leaves the draws of all others as they were (`tests/test_rng.py`).

This page is generated: change the docstrings or `tests/cases/`, then run `python -m docs.catalog`.
"""


def rows() -> list[citations.Technique]:
  """Every technique of the package but those of the core, by place, then by function."""
  found = set()
  for info in pkgutil.walk_packages(diffusion.__path__, 'diffusion.'):
    module = importlib.import_module(info.name)
    for value in vars(module).values():
      record = getattr(value, 'technique', None)
      own = isinstance(record, citations.Technique) and value.__module__ == info.name
      if own and record.place != 'core':
        found.add(record)
  order = citations.PLACES.index
  return sorted(found, key=lambda one: (order(one.place), one.qualified_name))


def _sections(docstring: str) -> dict[str, str]:
  """The parts of a docstring: its text under '', and what follows 'Args:', 'Raises:', 'Source:' and so on."""
  parts, name = {'': []}, ''
  for line in inspect.cleandoc(docstring).splitlines():
    head = re.match(r'(Args|Returns|Raises|Source|Attributes):\s*(.*)', line)
    if head:
      name = head[1]
      parts[name] = [head[2]]
    else:
      parts[name].append(line)
  texts = {name: inspect.cleandoc('\n'.join(lines)).strip() for name, lines in parts.items()}
  if 'Source' not in texts and 'Source: ' in texts['']:  # a docstring of one paragraph
    texts[''], _, texts['Source'] = texts[''].partition('Source: ')
  return texts


def _paragraph(text: str) -> str:
  return ' '.join(text.split())


def _arguments(text: str, function: object) -> list[str]:
  """One item an argument: its text, and its default."""
  defaults = inspect.signature(function).parameters
  items = []
  for entry in re.split(r'\n(?=\S)', text):
    names, _, meaning = entry.partition(':')
    given = [
      f'{name} = {defaults[name].default!r}'
      for name in re.split(r',\s*', names.strip())
      if name in defaults and defaults[name].default is not inspect.Parameter.empty
      and isinstance(defaults[name].default, int | float | str | bool | None)
    ]  # fmt: skip
    default = f' Default {", ".join(given)}.' if given else ''
    items.append(f'  - `{names.strip()}`: {_paragraph(meaning)}{default}')
  return items


def shown(turn_on: Callable[[], dict[str, Any]] | str) -> str:
  """The line that turns a technique on: the source of what the tests run, with dots for names in capitals.

  Raises:
    ValueError: a function that is not written as the rows write it, so that its source cannot be told apart.
  """
  if isinstance(turn_on, str):
    return turn_on
  source = inspect.getsource(turn_on)
  line = re.fullmatch(r'\s*turn_on=lambda: fields\((.*)\),\s*', source, re.DOTALL)
  if not line:
    raise ValueError(
      f'a row needs lines of their own for turn_on=lambda: fields(...), got {source!r}'
    )
  return re.sub(r'\*{0,2}\b[A-Z][A-Z_]*\b', '...', ' '.join(line[1].split()))


def entry(case: Case) -> str:
  """One technique's section."""
  record, parts = case.factory.technique, _sections(case.factory.__doc__)
  lines = [f'### {record.name}', '', f'`{shown(case.turn_on)}`', '']
  lines += [_paragraph(text) + '\n' for text in parts[''].split('\n\n')]
  lines.append(f'- Function: `{record.qualified_name}`')
  if 'Args' in parts:
    lines += ['- Arguments:', *_arguments(parts['Args'], case.factory)]
  keys = ', '.join(f'`{key}`' for key in record.keys)
  lines.append(f'- Source: {_paragraph(parts["Source"])} [{keys}]')
  lines.append(f'- Live: `tests/test_catalog.py::test_the_technique_is_live[{case.name}]`')
  lines.append(f'- Form: `{case.proof}`')
  planted = [one.name for one in faults.every() if record.name in one.techniques]
  lines.append(f'- Faults: {"; ".join(planted)}')
  return '\n'.join(lines)


def files() -> dict[str, str]:
  """Path in the repository -> text of the generated files."""
  cases = {case.factory.technique: case for case in CASES}
  parts, keys = [HEAD.format(count=len(cases))], []
  for place in citations.PLACES[1:]:
    here = [one for one in rows() if one.place == place]
    keys += [key for one in here for key in one.keys]
    parts.append(f'## {place.capitalize()} ({len(here)})\n')
    parts += [entry(cases[one]) + '\n' for one in here]
  return {
    'docs/CATALOG.md': '\n'.join(parts),
    'docs/references.bib': bibliography.entries(sorted(set(keys))).rstrip() + '\n',
  }


if __name__ == '__main__':
  for path, text in files().items():
    (ROOT / path).write_text(text)
    print(path)
