"""What was built, in words: the names and arguments of factories, and the source of a user's own functions.

Two starts that build the same thing describe it alike, on any machine: where data lies, devices and workers are not in
it, and neither are comments, docstrings and layout of the user's code. What this package and the libraries do under the
same names is recorded by their versions.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import linecache
import sys
import sysconfig
import textwrap
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion import citations

_LIBRARIES = tuple(
  sysconfig.get_paths()[name] for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')
)
_NOT_PART = ('load', 'raw', 'stream', 'side')  # of a data source: how and from where it is read


def describe(value: Any) -> Any:
  """The value as JSON: numbers and texts as they are, what a factory made as {its name: its arguments}.

  NamedTuples and dataclasses are their fields, other functions what they close over beside their name or (where they
  are the user's own) their source; arrays their shape, type and hash; what holds itself refers to where it began.
  """
  return _Description().of(value, '')


def digest(description: Any) -> str:
  """A short name of a description: 16 digits of its SHA-256."""
  return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def short(value: Any) -> str:
  """The value in a line, for a reader: the name of a factory or a function without its module, and its arguments."""
  return _in_words(describe(value))


def _in_words(told: Any) -> str:
  if isinstance(told, list):
    return ', '.join(map(_in_words, told))
  if not isinstance(told, Mapping):
    return str(told).rpartition('.')[2] if isinstance(told, str) else str(told)
  if 'partial' in told:
    function, positional, named = told['partial']
    given = [*map(_in_words, positional), *(f'{k}={_in_words(v)}' for k, v in named.items())]
    return f'{_in_words(function)}({", ".join(given)})'
  if 'source' in told:  # the user's own: a lambda as it is written, the name of a function
    text = told['source']
    return text.partition('(')[0].removeprefix('def ') if text.startswith('def ') else text
  name, arguments = next(iter(told.items()))
  if name in ('function', 'class', 'method'):
    return _in_words(arguments)
  given = arguments.items() if isinstance(arguments, Mapping) else ()
  return f'{_in_words(name)}({", ".join(f"{k}={_in_words(v)}" for k, v in given)})'


class _Description:
  """One description; it remembers where it has met each object, so that nothing is told twice."""

  def __init__(self):
    self._met: dict[int, tuple[Any, str]] = {}

  def of(self, value: Any, at: str) -> Any:  # noqa: PLR0911 - one kind a line
    """The description of a value at this path."""
    if value is None or isinstance(value, bool | int | str):
      return value
    if isinstance(value, float | np.generic):
      return _number(value)
    if isinstance(value, type | types.ModuleType):
      return _name(value)
    if hasattr(value, 'dtype') and hasattr(value, 'shape'):
      return _array(value)
    if isinstance(value, Mapping):
      return {str(key): self.of(one, f'{at}/{key}') for key, one in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, '_fields'):
      return [self.of(one, f'{at}/{i}') for i, one in enumerate(value)]
    if isinstance(value, set | frozenset):
      return sorted(json.dumps(self.of(one, at)) for one in value)
    # Of what is made by code alone: two equal numbers or tuples may be one object or two.
    if id(value) in self._met:
      return {'as': self._met[id(value)][1]}
    self._met[id(value)] = value, at
    return self._made(value, at)

  def _made(self, value: Any, at: str) -> Any:
    """Of a NamedTuple, a dataclass, a function, or anything else, by its type."""
    if isinstance(value, tuple):
      return self._fields(value, value._asdict(), at)
    if citations.is_technique(value):
      return value.technique.qualified_name
    marks = citations.uses(value)
    if marks:
      return self._used(marks[-1], at)
    if isinstance(value, functools.partial):
      return {'partial': self.of([value.func, value.args, value.keywords], at)}
    if isinstance(value, types.MethodType):
      return {'method': value.__func__.__qualname__, 'of': self.of(value.__self__, f'{at}/of')}
    if hasattr(value, '__wrapped__'):
      return self.of(value.__wrapped__, at)
    if isinstance(value, types.FunctionType):
      return self._function(value, at)
    if dataclasses.is_dataclass(value):
      fields = {
        f.name: getattr(value, f.name, None)
        for f in dataclasses.fields(value)
        if f.name != 'parent'
      }
      return self._fields(value, fields, at)
    return _name(type(value))

  def _fields(self, value: Any, fields: Mapping[str, Any], at: str) -> Any:
    """Of a NamedTuple or a dataclass: how it was made and what was changed since, or its fields."""
    kind, defaults = _name(type(value)), getattr(value, '_field_defaults', {})
    if kind == 'diffusion.data.sources.Source':
      fields = {name: one for name, one in fields.items() if name not in _NOT_PART}
    marks = [mark for one in fields.values() for mark in citations.uses(one)]
    if marks and isinstance(value, type(marks[-1].made)):
      original = marks[-1].made
      changed = {
        name: one for name, one in fields.items()
        if one is not getattr(original, name) and all(mark is not marks[-1] for mark in citations.uses(one))
      }  # fmt: skip
      told = self._used(marks[-1], at)
      return told | {'changed': self.of(changed, f'{at}/changed')} if changed else told
    named = {} if kind.startswith('diffusion.') else self._class(type(value))
    fields = {
      name: one for name, one in fields.items() if not (callable(one) and one is defaults.get(name))
    }
    return named | {name: self.of(one, f'{at}/{name}') for name, one in fields.items()}

  def _used(self, use: citations.Use, at: str) -> Any:
    """What a factory made: {its name: its arguments}."""
    name = use.technique.qualified_name
    name = name if name.startswith('diffusion.') else name.rpartition('.')[2]
    given = {key: self.of(one, f'{at}/{key}') for key, one in use.arguments.items()}
    return {name: given}

  def _function(self, function: types.FunctionType, at: str) -> Any:
    """Its name, or its source where it is the user's own, and what it holds."""
    held = {name: self.of(one, f'{at}/{name}') for name, one in citations.holds(function).items()}
    told = {'holds': held} if held else {}
    if function.__defaults__ or function.__kwdefaults__:
      defaults = [function.__defaults__, function.__kwdefaults__]
      told['defaults'] = self.of(defaults, f'{at}/defaults')
    if _is_of_a_library(function):
      return {'function': _name(function)} | told
    used = {
      name: function.__globals__[name] for name in _names(function.__code__)
      if _is_own(function.__globals__.get(name))
    }  # fmt: skip
    more = {'uses': self.of(used, f'{at}/uses')} if used else {}
    return {'source': _source(function)} | told | more

  def _class(self, kind: type) -> dict[str, Any]:
    """The class of an object, with its source where it is the user's own."""
    if _is_of_a_library(kind):
      return {'class': _name(kind)}
    try:
      tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
      return {'class': kind.__qualname__}
    return {'class': kind.__qualname__, 'source': ast.unparse(_without_docstrings(tree))}


def _name(value: Any) -> str:
  """Of a class or a function; of another library's without the modules inside of it, which are its own affair."""
  module, name = getattr(value, '__module__', None), getattr(value, '__qualname__', None)
  if module is None or name is None:
    return getattr(value, '__name__', type(value).__name__)
  if module.startswith('diffusion.'):
    return f'{module}.{name}'
  return f'{module.split(".")[0]}.{name.split(".")[0]}'


def _number(value: Any) -> Any:
  value = value.item() if isinstance(value, np.generic) else value
  return value if not isinstance(value, float) or np.isfinite(value) else repr(value)


def _array(value: Any) -> Any:
  told = {'array': str(value.dtype), 'shape': list(value.shape)}
  try:
    x = np.ascontiguousarray(np.asarray(value))
  except Exception:  # noqa: BLE001 - a traced value, or a key: its type is all there is to tell
    return told
  return told | {'sha256': hashlib.sha256(x.tobytes()).hexdigest()[:16]}


def _is_of_a_library(value: Any) -> bool:
  """Whether a function or a class is this package's, or lies in the folders of the environment."""
  package = (value.__module__ or '').split('.')[0]
  file = getattr(sys.modules.get(value.__module__), '__file__', None) or ''
  return package in ('diffusion', 'builtins') or file.startswith(_LIBRARIES)


def _is_own(value: Any) -> bool:
  """Whether a global that a user's function names says what it does: a constant, what a factory made, or their own."""
  if isinstance(value, bool | int | float | str | tuple | np.ndarray) or citations.uses(value):
    return True
  is_function = isinstance(value, types.FunctionType) and not citations.is_technique(value)
  return is_function and not _is_of_a_library(value)


def _names(code: types.CodeType) -> list[str]:
  """The globals that a function may read, those of the functions in it too."""
  inner = [
    name for one in code.co_consts if isinstance(one, types.CodeType) for name in _names(one)
  ]
  return sorted({*code.co_names, *inner})


def _source(function: types.FunctionType) -> str:
  """Its code, as Python writes it, without comments and docstrings; a hash of what it compiles to if it has no file."""
  code = function.__code__
  text = ''.join(linecache.getlines(code.co_filename, function.__globals__))
  try:
    tree = ast.parse(text)
  except SyntaxError:
    tree = ast.Module([], [])
  kinds = (ast.Lambda,) if code.co_name == '<lambda>' else (ast.FunctionDef, ast.AsyncFunctionDef)
  found = [
    node
    for node in ast.walk(tree)
    if isinstance(node, kinds) and _begins(node) == code.co_firstlineno
  ]
  if len(found) > 1:
    place = next((p[2] for p in code.co_positions() if p[0] is not None and p[2]), 0)
    found = [node for node in found if _spans(node, code.co_firstlineno, place)][-1:] or found
  if not found:
    compiled = (
      code.co_code.hex(),
      code.co_names,
      [repr(c) for c in code.co_consts if not isinstance(c, types.CodeType)],
    )
    return f'compiled {digest(compiled)}'
  return ast.unparse(_without_docstrings(found[0]))


def _begins(node: Any) -> int:
  decorators = getattr(node, 'decorator_list', [])
  return min([node.lineno, *(one.lineno for one in decorators)])


def _spans(node: ast.Lambda, line: int, column: int) -> bool:
  ends = node.end_lineno > line or column <= node.end_col_offset
  return ends and (node.lineno, node.col_offset) <= (line, column)


def _without_docstrings(tree: ast.AST) -> ast.AST:
  for node in ast.walk(tree):
    if (
      isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
      and ast.get_docstring(node) is not None
    ):
      node.body = node.body[1:] or [ast.Pass()]
  return tree
