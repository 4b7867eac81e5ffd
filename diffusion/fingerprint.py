"""What was built, in words: the names and arguments of factories, and the source of a user's own functions.

Two starts that build the same thing describe it alike, on any machine: where data lies, devices and workers are not in
it, and neither are comments, docstrings and layout of the user's code. What this package and the libraries do under the
same names is recorded by their versions.
"""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import itertools
import json
import pathlib
import re
import sys
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion import citations
from diffusion.user_code import (
  behind,
  full_name,
  in_a_library,
  is_of_a_library,
  is_ours,
  is_written,
  names_in,
  own_of,
  said_in,
  source_of,
  states_in,
  without_state,
  wraps,
)

_VALUES = (  # whose text is all that they are
  complex, range, slice, enum.Enum, pathlib.PurePath, re.Pattern, np.dtype, fractions.Fraction, decimal.Decimal,
  datetime.date, datetime.time, datetime.timedelta,
)  # fmt: skip
_OF_CODE = ('source', 'holds', 'uses', 'made', 'members')  # which a reader need not know of
_SAID_AS_NUMBERS = ('nan', 'inf', '-inf')
_NOT_PART = ('load', 'raw', 'stream')  # of a data source: how and from where it is read


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


def changes(old: Any, new: Any, at: str = '') -> list[str]:
  """'place: old -> new' for each smallest part in which two descriptions differ, in a few words.

  Args:
    old, new: what `describe` returns.
    at: where they are.
  """
  if json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True):
    return []
  if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    old, new = ({str(i): part for i, part in enumerate(one)} for one in (old, new))
  if isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() & new.keys():
    nothing = object()
    pairs = [(key, old.get(key, nothing), new.get(key, nothing)) for key in sorted({*old, *new})]
    found = []
    for key, one, other in pairs:
      place = at if key in _OF_CODE else '.'.join(filter(None, (at, key.rpartition('.')[2])))
      if one is nothing or other is nothing:
        found.append(f'{place}: {_part(one, nothing)} -> {_part(other, nothing)}')
      else:
        found += changes(one, other, place)
    return found
  both = [str(one).splitlines() if isinstance(one, str) else [] for one in (old, new)]
  if all(len(lines) > 1 for lines in both):  # of a function: the first line in which they differ
    pairs = itertools.zip_longest(*both, fillvalue='')
    old, new = next([one.strip(), other.strip()] for one, other in pairs if one != other)
  return [f'{at}: {_part(old)} -> {_part(new)}']


def _part(told: Any, nothing: Any = None) -> str:
  """A part of a description in at most 80 characters."""
  if told is nothing and nothing is not None:
    return '(none)'
  text = _in_words(told) if isinstance(told, Mapping | list) else repr(told)
  return text if len(text) <= 80 else f'{text[:77]}...'


def _in_words(told: Any) -> str:
  if isinstance(told, list):
    return ', '.join(map(_in_words, told))
  if not isinstance(told, Mapping):
    return str(told).rpartition('.')[2] if isinstance(told, str) else str(told)
  if 'partial' in told:
    function, positional, named = told['partial']
    given = [*map(_in_words, positional), *(f'{k}={_in_words(v)}' for k, v in named.items())]
    return f'{_in_words(function)}({", ".join(given)})'
  if 'wraps' in told:
    return _in_words(told['wraps'])
  if 'source' in told:  # the user's own: a lambda as it is written, the name of a function
    text = told['source']
    return text.partition('(')[0].removeprefix('def ') if text.startswith('def ') else text
  if not told:
    return 'none'
  name, arguments = next(iter(told.items()))
  if name in ('function', 'class', 'method'):
    return _in_words(arguments)
  given = arguments.items() if isinstance(arguments, Mapping) else ()
  return f'{_in_words(name)}({", ".join(f"{k}={_in_words(v)}" for k, v in given)})'


class _Description:
  """One description; it remembers where it has met each object, so that nothing is told twice."""

  def __init__(self):
    self._met: dict[int, tuple[Any, str]] = {}
    self._within: list[citations.Use] = []  # the user's factories whose work is being told

  def of(self, value: Any, at: str) -> Any:  # noqa: PLR0911 - one kind a line
    """The description of a value at this path."""
    is_plain = isinstance(value, bool | int | str) and not isinstance(value, enum.Enum)
    if value is None or is_plain:
      return f'text {value}' if isinstance(value, str) and value in _SAID_AS_NUMBERS else value
    if isinstance(value, float | np.generic):
      return _number(value)
    if isinstance(value, _VALUES):
      return f'{type(value).__name__} {value}'
    if isinstance(value, bytes | bytearray):
      return f'bytes {hashlib.sha256(value).hexdigest()[:16]}'
    if isinstance(value, types.ModuleType) or (isinstance(value, type) and is_of_a_library(value)):
      return full_name(value)
    if _is_array(value):
      return self._array(value, at)
    if isinstance(value, types.SimpleNamespace):
      value = vars(value)
    if isinstance(value, Mapping):
      return {str(key): self.of(one, f'{at}/{key}') for key, one in value.items()}
    if isinstance(value, tuple | list | collections.deque) and not hasattr(value, '_fields'):
      return [self.of(one, f'{at}/{i}') for i, one in enumerate(value)]
    if isinstance(value, set | frozenset):
      return sorted(json.dumps(self.of(one, at)) for one in value)
    # Of what is made by code alone: two equal numbers or tuples may be one object or two.
    if id(value) in self._met:
      return {'as': self._met[id(value)][1]}
    self._met[id(value)] = value, at
    return self._made(value, at)

  def _made(self, value: Any, at: str) -> Any:  # noqa: PLR0911 - one kind a line
    """Of a class, a NamedTuple, a dataclass, a function, or anything else, by its type."""
    if isinstance(value, type):
      return self._class(value, at)
    if isinstance(value, tuple):
      return self._fields(value, value._asdict(), at)
    if citations.is_technique(value):
      name = value.technique.qualified_name
      return name if is_ours(name) else self.of(value.__wrapped__, at)
    marks = self._marks(value)
    if marks:
      return self._used(marks[-1], at)
    if isinstance(value, functools.partial):
      return {'partial': self.of([value.func, value.args, value.keywords], at)}
    if isinstance(value, types.MethodType):
      return {'method': value.__func__.__qualname__, 'of': self.of(value.__self__, f'{at}/of')}
    if isinstance(value, types.FunctionType) and not wraps(value):
      return self._function(value, at)
    if hasattr(value, '__wrapped__'):
      return self._wrapped(value, at)
    if dataclasses.is_dataclass(value):
      fields = {
        f.name: getattr(value, f.name, None)
        for f in dataclasses.fields(value)
        if f.name != 'parent'
      }
      return self._fields(value, fields, at)
    if callable(value) and isinstance(getattr(value, '__name__', None), str):
      return {'function': full_name(value)}  # compiled: math.exp, np.exp
    if is_of_a_library(type(value)):
      return full_name(type(value))
    slots = {name for kind in type(value).__mro__ for name in getattr(kind, '__slots__', ())}
    held = {name: getattr(value, name) for name in sorted(slots) if hasattr(value, name)}
    held |= getattr(value, '__dict__', {})
    members = [one for kind in type(value).__mro__ for one in vars(kind).values()]
    files = {one.__code__.co_filename for one in members if isinstance(one, types.FunctionType)}
    state = {name for file in files if not in_a_library(file) for name in states_in(file)}
    fields = {name: one for name, one in held.items() if f'self.{name}' not in state}
    return self._fields(value, fields, at)

  def _marks(self, value: Any) -> list[citations.Use]:
    """How it was made, but for the marks of what is being described."""
    return [use for use in citations.uses(value) if all(use is not one for one in self._within)]

  def _fields(self, value: Any, fields: Mapping[str, Any], at: str) -> Any:
    """Of a NamedTuple or a dataclass: how it was made and what was changed since, or its fields."""
    kind, defaults = full_name(type(value)), getattr(value, '_field_defaults', {})
    if kind == 'diffusion.data.sources.Source':
      fields = {name: one for name, one in fields.items() if name not in _NOT_PART}
    marks = [mark for one in fields.values() for mark in self._marks(one)]
    if marks and isinstance(value, type(marks[-1].made)):
      original = marks[-1].made
      changed = {
        name: one for name, one in fields.items()
        if one is not getattr(original, name) and all(mark is not marks[-1] for mark in citations.uses(one))
      }  # fmt: skip
      told = self._used(marks[-1], at)
      return told | {'changed': self.of(changed, f'{at}/changed')} if changed else told
    named = {}
    if is_ours(kind):  # what a field is by default is this package's affair
      fields = {
        name: one
        for name, one in fields.items()
        if not (callable(one) and one is defaults.get(name))
      }
    else:
      named = self._class(type(value), f'{at}/class')
    return named | {name: self.of(one, f'{at}/{name}') for name, one in fields.items()}

  def _used(self, use: citations.Use, at: str) -> Any:
    """What a factory made: {its name: its arguments}, and what that is where the factory is the user's own."""
    name = use.technique.qualified_name
    ours = is_ours(name)
    given = {key: self.of(one, f'{at}/{key}') for key, one in use.arguments.items()}
    told = {name if ours else name.rpartition('.')[2]: given}
    if ours:
      return told
    self._within.append(use)
    made = self._made(use.made, f'{at}/made')
    self._within.pop()
    return told | {'made': made}

  def _wrapped(self, value: Any, at: str) -> Any:
    """Of what a library made of a function: that one, and the numbers and texts that were said of it."""
    told = self.of(value.__wrapped__, at)
    said = said_in(value)
    return {'wraps': told, 'with': self.of(said, f'{at}/with')} if said else told

  def _function(self, function: types.FunctionType, at: str) -> Any:
    """Its name, or its source where it is the user's own, and what it holds."""
    held, file = citations.holds(function), function.__code__.co_filename
    if not is_of_a_library(function):
      held = without_state(held, file, names_in(function.__code__))
    told = {'holds': self.of(held, at)} if held else {}
    if function.__defaults__ or function.__kwdefaults__:
      defaults = [function.__defaults__, function.__kwdefaults__]
      told['defaults'] = self.of(defaults, f'{at}/defaults')
    if is_of_a_library(function):
      return {'function': full_name(function)} | told
    used = own_of(names_in(function.__code__), function.__globals__, file)
    more = {'uses': self.of(used, f'{at}/uses')} if used else {}
    return {'source': source_of(function)} | told | more

  def _class(self, kind: type, at: str) -> dict[str, Any]:
    """The class of an object, with what the user wrote in it where it is their own, and in those it inherits from."""
    if is_of_a_library(kind):
      return {'class': full_name(kind)}
    members = {name: behind(one) for name, one in vars(kind).items() if is_written(kind, name, one)}
    bases = [one for one in kind.__bases__ if one is not object]
    told = {'class': kind.__qualname__, 'members': self.of(members, f'{at}/members')}
    return told | ({'bases': self.of(bases, f'{at}/bases')} if bases else {})

  def _array(self, value: Any, at: str) -> Any:
    """An array's type, shape and content; of a traced one there is no content to tell."""
    told = {'array': str(value.dtype), 'shape': list(value.shape)}
    if getattr(value.dtype, 'hasobject', False):
      return told | ({'items': self.of(value.tolist(), at)} if hasattr(value, 'tolist') else {})
    try:
      x = np.ascontiguousarray(_numbers_of(value))
    except Exception:  # noqa: BLE001 - a traced value: its type is all there is to tell
      return told
    if x.dtype.hasobject:  # a shape with its type and no content: these are addresses
      return told
    return told | {'sha256': hashlib.sha256(x.tobytes()).hexdigest()[:16]}


def _is_array(value: Any) -> bool:
  """Whether it is NumPy's or JAX's; a module of a network may have such fields too."""
  if isinstance(value, type) or dataclasses.is_dataclass(value):
    return False
  return hasattr(value, 'dtype') and hasattr(value, 'shape') and is_of_a_library(type(value))


def _numbers_of(value: Any) -> np.ndarray:
  """An array's numbers, those of JAX's keys too."""
  jax = sys.modules.get('jax')  # there are none where it was never imported
  if jax is not None and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
    value = jax.random.key_data(value)
  return np.asarray(value)


def _number(value: Any) -> Any:
  value = value.item() if isinstance(value, np.generic) else value
  if isinstance(value, float) and not np.isfinite(value):
    return f'number {value}'  # run.json gives the texts of these back as numbers
  return value if isinstance(value, bool | int | float | str) else str(value)
