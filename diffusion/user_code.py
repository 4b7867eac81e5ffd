"""The user's own code, as against this package's and the libraries': which it is, its source, and what it names."""

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import linecache
import pathlib
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusion import citations

_LIBRARIES = tuple(
  sysconfig.get_paths()[name] for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')
)


# What changes a container, and what gives an object its first attributes.
_CHANGING = frozenset((
  'append', 'appendleft', 'extend', 'insert', 'pop', 'popleft', 'popitem', 'remove', 'clear', 'add', 'discard',
  'update', 'setdefault', 'sort', 'reverse',
))  # fmt: skip
_BEGINNINGS = ('__init__', '__post_init__', '__new__', 'setup')


def is_ours(name: str) -> bool:
  """Whether it is the full name of something in this package."""
  return name.startswith('diffusion.')


def full_name(value: Any) -> str:
  """Of a class or a function; of another library's without the modules inside of it, which are its own affair."""
  module, name = getattr(value, '__module__', None), getattr(value, '__qualname__', None)
  if module is None or name is None:
    return getattr(value, '__name__', type(value).__name__)
  if module.startswith('diffusion.'):
    return f'{module}.{name}'
  return f'{module.split(".")[0]}.{name.split(".")[0]}'


def in_a_library(file: str) -> bool:
  """Whether a file lies in the folders of this environment, or of another one."""
  inside = not {'site-packages', 'dist-packages'}.isdisjoint(pathlib.PurePath(file).parts)
  return inside or file.startswith(_LIBRARIES)


def is_of_a_library(value: Any) -> bool:
  """Whether a function, a class or a module is this package's, or lies in the folders of the environment."""
  module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__ or ''
  package = module.split('.')[0]
  file = getattr(sys.modules.get(module), '__file__', None) or ''
  without_file = not file and package in sys.stdlib_module_names - {'__main__'}
  return package == 'diffusion' or without_file or in_a_library(file)


def wraps(function: types.FunctionType) -> bool:
  """Whether a library made it of another function, whose name and module it then has."""
  return hasattr(function, '__wrapped__') and in_a_library(function.__code__.co_filename)


def _module(function: types.FunctionType) -> str:
  """Of its code: `functools.wraps` gives it the name of another one."""
  return function.__globals__.get('__name__') or ''


def said_in(function: Any) -> dict[str, Any]:
  """The numbers and texts that were said of a function to JAX, which wraps it, e.g. the axes of `jax.vmap`."""
  found = {}
  if isinstance(function, types.FunctionType) and _module(function).split('.')[0] == 'jax':
    for name, one in citations.holds(function).items():
      inner = {name: one} if _is_said(one) and name != 'docstr' else said_in(one)
      found |= inner
  return found


def _is_said(value: Any) -> bool:
  """Whether it is a number or a text, or holds nothing else."""
  if isinstance(value, tuple | list):
    return all(one is None or _is_said(one) for one in value)  # None is an axis that is not mapped
  return isinstance(value, bool | int | float | str)


def own_of(
  names: Sequence[str], scope: Mapping[str, Any], file: str, *outer: Any
) -> dict[str, Any]:
  """What these names are in a module and in the user's other modules that it names: libraries' things by their names.

  Args:
    names: that a function reads, as globals or as attributes.
    scope: the module's names.
    file: of the module; what its functions change is their state, and not said.
    *outer: modules that this one was reached from.
  """
  found = {}
  for name, value in without_state({name: scope.get(name) for name in names}, file, names).items():
    if name.startswith('__'):  # what the module is called, and where it lies
      continue
    if isinstance(value, types.ModuleType) and not is_of_a_library(value):
      if all(value is not one for one in outer):
        inner = own_of(names, vars(value), getattr(value, '__file__', None) or '', value, *outer)
        found |= {name: inner} if inner else {}
    elif name in scope:
      found[name] = full_name(value) if _is_known_by_name(value) else value
  return found


def without_state(held: Mapping[str, Any], file: str, names: Sequence[str]) -> dict[str, Any]:
  """What is held, by name, but for the containers and numbers that a file's functions change.

  Args:
    held: by a function, or in the module of one.
    file: where it is written; where that cannot be read, a container counts as changed if the function may do that.
    names: that the function reads.
  """
  state, unread = states_in(file), not linecache.getlines(file) and not _CHANGING.isdisjoint(names)
  return {
    name: one
    for name, one in held.items()
    if not (unread and isinstance(one, list | dict | set))
    and (name not in state or callable(one) or isinstance(one, tuple))  # `update` may be pure
  }


def states_in(file: str) -> frozenset[str]:
  """What a file's functions change: names of globals and of what they hold, and attributes, as 'self.name'.

  A list to which a callback appends says what has happened, and not what is built.
  """
  return _states_in(''.join(linecache.getlines(file)))


@functools.lru_cache(16)
def _states_in(text: str) -> frozenset[str]:
  try:
    tree = ast.parse(text)
  except SyntaxError:
    return frozenset()
  found = set()
  for function in ast.walk(tree):
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      found |= _states_of(function)
  return frozenset(found)


def _states_of(function: Any) -> set[str]:
  """What a function changes that is not its own."""
  nodes = list(_nodes_of(function))
  shared = {
    name for node in nodes if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names
  }
  own = {node.arg for node in nodes if isinstance(node, ast.arg)}
  own |= {
    node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
  }
  begins = getattr(function, 'name', '') in _BEGINNINGS
  found = set()
  for node in nodes:
    if (
      isinstance(node, ast.Call)
      and isinstance(node.func, ast.Attribute)
      and node.func.attr in _CHANGING
    ):
      place = node.func.value
    elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(
      node.ctx, ast.Store | ast.Del
    ):
      place = node.value if isinstance(node, ast.Subscript) or not _is_of_self(node) else node
    else:
      continue
    if isinstance(place, ast.Name):
      found.add(place.id)
    elif _is_of_self(place) and not begins:
      found.add(f'self.{place.attr}')
  return (found - (own - shared)) | shared


def _nodes_of(function: ast.AST) -> Iterator[ast.AST]:
  """Its nodes, without what classes in it begin with: that is looked at by itself, and changes nothing."""
  due = [function]
  while due:
    node = due.pop()
    yield node
    due += [
      one for one in ast.iter_child_nodes(node) if getattr(one, 'name', '') not in _BEGINNINGS
    ]


def _is_of_self(node: ast.AST) -> bool:
  return (
    isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'self'
  )


def _is_known_by_name(value: Any) -> bool:
  """Whether it is a module, a function or a class of a library, or one of this package that is no technique at work."""
  if citations.is_technique(value):
    return is_ours(value.technique.qualified_name)
  kinds = types.ModuleType | type | types.FunctionType | types.BuiltinFunctionType
  return isinstance(value, kinds) and not citations.uses(value) and is_of_a_library(value)


def is_written(kind: type, name: str, member: Any) -> bool:
  """Whether a member of a class was written there: what Python and its decorators add has no code of the user's.

  Args:
    kind: the class.
    name: of the member.
    member: what the class has under that name.
  """
  function = behind(member)
  if isinstance(function, types.FunctionType):
    made = function.__code__.co_filename == '<string>' and dataclasses.is_dataclass(kind)
    return not (made and name.startswith('__'))
  return not name.startswith(('__', '_abc_'))


def behind(member: Any) -> Any:
  """The function or functions behind a member of a class."""
  if isinstance(member, property):
    return [member.fget, member.fset] if member.fset else member.fget
  if isinstance(member, functools.cached_property):
    return member.func
  return getattr(member, '__func__', None) or member  # of a class method or a static one


def names_in(code: types.CodeType) -> list[str]:
  """The globals and attributes that a function may read, those of the functions in it too."""
  inner = [
    name for one in code.co_consts if isinstance(one, types.CodeType) for name in names_in(one)
  ]
  return sorted({*code.co_names, *inner})


def source_of(function: types.FunctionType) -> str:
  """Its code, as Python writes it, without comments and docstrings; a hash of what it compiles to if it has no file.

  A file that was edited since it was imported is not this function's: what it compiles to is compared.
  """
  code = function.__code__
  for look in (lambda _: None, linecache.checkcache):
    look(code.co_filename)
    text = ''.join(linecache.getlines(code.co_filename, function.__globals__))
    node = _node_of(code, text)
    if node is not None and _compiled(code) in _all_compiled(text):
      return ast.unparse(_without_docstrings(node))
  return f'compiled {hashlib.sha256(json.dumps(_compiled(code)).encode()).hexdigest()[:16]}'


def is_running(file: pathlib.Path, text: bytes) -> bool:
  """Whether the functions of the program, where it is this file, are those of its text."""
  module = sys.modules['__main__']
  place = pathlib.Path(getattr(module, '__file__', None) or '')
  if not place.is_file() or not file.samefile(place):
    return True
  try:
    whole = _all_compiled(text)
  except SyntaxError:
    return False
  functions = [one for one in vars(module).values() if isinstance(one, types.FunctionType)]
  codes = [inspect.unwrap(one).__code__ for one in functions]
  return all(_compiled(one) in whole for one in codes if one.co_filename == module.__file__)


def _node_of(code: types.CodeType, text: str) -> ast.AST | None:
  """The function of a text that begins where this code does; None where there is none."""
  try:
    tree = ast.parse(text)
  except SyntaxError:
    return None
  kinds = (ast.Lambda,) if code.co_name == '<lambda>' else (ast.FunctionDef, ast.AsyncFunctionDef)
  found = [
    node
    for node in ast.walk(tree)
    if isinstance(node, kinds) and _begins(node) == code.co_firstlineno
  ]
  if len(found) > 1:
    place = next((p[2] for p in code.co_positions() if p[0] is not None and p[2]), 0)
    found = [node for node in found if _spans(node, code.co_firstlineno, place)][-1:] or found
  return found[0] if found else None


@functools.lru_cache(16)
def _all_compiled(text: str | bytes) -> list[Any]:
  """What each function of a module's text compiles to."""
  todo, found = [compile(text, '<text>', 'exec', dont_inherit=True)], []
  while todo:
    inner = [one for one in todo.pop().co_consts if isinstance(one, types.CodeType)]
    todo += inner
    found += map(_compiled, inner)
  return found


def _compiled(code: types.CodeType) -> list[Any]:
  """What a function compiles to, those in it too; a set of constants has no order."""
  consts = [
    _compiled(one)
    if isinstance(one, types.CodeType)
    else sorted(map(repr, one))
    if isinstance(one, frozenset)
    else repr(one)
    for one in code.co_consts
  ]
  return [code.co_code.hex(), list(code.co_names), consts]


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
