"""The pieces that a command line can ask for by name: what the files of a room define, with no list beside them.

And how a name that somebody else has given is shown.
"""

import ast
import difflib
import functools
import importlib
import pathlib
from collections.abc import Callable, Mapping, Sequence


@functools.cache
def factories(room: str, kind: str, given: tuple[str, ...] = ()) -> Mapping[str, str]:
  """The public functions of a room that say they return such a thing, and need no more than what is given.

  They are read from the sources, because a command line names all of them and needs few.

  Args:
    room: a folder of the package, e.g. 'sampling'.
    kind: what their signatures return, e.g. 'Sampler'.
    given: the arguments that the caller has; all others have defaults.

  Returns:
    name -> module, in order of the modules' names.
  """
  return {
    node.name: f'diffusion.{room}.{file.stem}'
    for file in sorted((pathlib.Path(__file__).parent / room).glob('*.py'))
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith('_')
    if isinstance(node.returns, ast.Name) and node.returns.id == kind
    if set(_required(node.args)) <= set(given)
  }


def find(name: str, found: Mapping[str, str], what: str) -> Callable:
  """The function of a name that `factories` found.

  Args:
    name: asked for.
    found: by `factories`.
    what: it is, for the error.

  Raises:
    ValueError: an unknown name.
  """
  if name not in found:
    near = nearest(name, list(found))
    raise ValueError(f'unknown {what} {name!r}: the nearest is {near!r} (all: {", ".join(found)})')
  return getattr(importlib.import_module(found[name]), name)


def nearest(name: str, known: Sequence[str]) -> str:
  """The known name that is most like this one."""
  return difflib.get_close_matches(name, known, 1, 0.0)[0]


def _required(args: ast.arguments) -> list[str]:
  positional = [*args.posonlyargs, *args.args]
  keywords = zip(args.kwonlyargs, args.kw_defaults, strict=True)
  return [arg.arg for arg in positional[: len(positional) - len(args.defaults)]] + [
    arg.arg for arg, default in keywords if default is None
  ]


def printable(text: str) -> str:
  """The text in one line; what a terminal would obey (escapes, line breaks, marks of direction) is as Python writes it.

  The names of folders, files and classes are anybody's.
  """
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)
