"""Which techniques an experiment is made of, and what to cite for each.

A factory says so once, above its definition, and what it returns carries how it was made:

    @technique('dropout', 'network', 'srivastava2014dropout', active=lambda rate: rate != 0)
    def dropout(rate): ...

    citations.techniques(experiment)   # what is in it, wherever; what was made and not used is not

The mark, a `Use`, hangs on the function that the factory returns, or on the first function of a NamedTuple. A function
that is the technique itself, as an activation is, is one by being there.
"""

import dataclasses
import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

PLACES = ('core', 'data', 'noise level', 'network', 'loss', 'update', 'trajectory', 'sampling')
KEY_FORM = re.compile(r'[a-z]+[0-9]{4}[a-z0-9]+')

Factory = Callable[..., Any]


class Technique(NamedTuple):
  """One technique: its name, the place where it acts, what to cite, and the factory behind it."""

  name: str
  place: str
  keys: tuple[str, ...]
  qualified_name: str


class Use(NamedTuple):
  """How something was made: the technique, the factory's arguments by name, and what the factory returned."""

  technique: Technique
  arguments: Mapping[str, Any]
  made: Any


def technique(
  name: str, place: str, *keys: str, active: Callable[..., bool] | None = None
) -> Callable[[Factory], Factory]:
  """Decorator of a factory, or of a function that is a technique itself: its name, its place, and its sources.

  Args:
    name: what the field calls it.
    place: one of `PLACES`.
    *keys: BibTeX keys, each as firstauthorYEARword.
    active: says from the factory's arguments, taken by name (a subset, defaults filled in), whether the technique is
      on; what a call returns that turns it off carries no mark. Where the answer depends on a JAX tracer the technique
      counts as on. Always on by default.

  Returns:
    The decorator. The decorated function has the record as its attribute `technique`.

  Raises:
    ValueError: for an empty name, an unknown place, a malformed key, or an `active` that asks for an argument the
      factory does not have.
  """
  if not name:
    raise ValueError(f'name must not be empty, got {name!r}')
  if place not in PLACES:
    raise ValueError(f'place must be one of {", ".join(PLACES)}, got {place!r}')
  for key in keys:
    if not KEY_FORM.fullmatch(key):
      raise ValueError(f'keys must have the form firstauthorYEARword, got {key!r}')

  def decorate(factory: Factory) -> Factory:
    record = Technique(name, place, keys, f'{factory.__module__}.{factory.__qualname__}')
    signature = inspect.signature(factory)
    is_active = _by_name(factory, active or (lambda: True))

    @functools.wraps(factory)
    def marking(*args, **kwargs):
      made = factory(*args, **kwargs)
      bound = signature.bind(*args, **kwargs)
      bound.apply_defaults()
      return _marked(made, record, bound.arguments) if is_active(bound.arguments) else made

    marking.technique = record
    return marking

  return decorate


def techniques(value: Any) -> list[Technique]:
  """The techniques that a value is made of, each once, in the order in which they are met.

  Followed are tuples, lists, mappings, dataclasses, partials, what functions hold in their closures and defaults, and
  the arguments of the factories that made them: so that a term which a user's lambda wraps is found, and what was made
  but is not in the value is not.
  """
  found: dict[Technique, None] = {}
  seen: dict[int, Any] = {}  # holds what was seen, so that no identity is used again

  def visit(one: Any) -> None:
    if id(one) in seen or isinstance(one, str | bytes | int | float | None):
      return
    seen[id(one)] = one
    if is_technique(one):
      found.setdefault(one.technique)
      return
    for use in uses(one):
      found.setdefault(use.technique)
      visit(use.arguments)
    for part in parts(one):
      visit(part)

  visit(value)
  return list(found)


def all_keys(used: Sequence[Technique]) -> tuple[str, ...]:
  """The citation keys of the techniques, each once, in order of first use."""
  return tuple(dict.fromkeys(key for one in used for key in one.keys))


def uses(value: Any) -> tuple[Use, ...]:
  """The marks of what `technique` made, the innermost factory's first; () where there are none."""
  return getattr(value, 'uses', ()) if callable(value) and not isinstance(value, type) else ()


def is_technique(value: Any) -> bool:
  """Whether it is a function that `technique` decorates."""
  return isinstance(getattr(value, 'technique', None), Technique)


def parts(value: Any) -> Iterator[Any]:
  """What a value holds: items, fields, what a function closes over and its defaults; nothing of anything else."""
  if isinstance(value, Mapping):
    yield from value.values()
  elif isinstance(value, tuple | list | set | frozenset):
    yield from value
  elif isinstance(value, functools.partial):
    yield from (value.func, value.args, value.keywords)
  elif isinstance(value, types.MethodType):
    yield from (value.__func__, value.__self__)
  elif isinstance(value, types.FunctionType):
    yield from holds(value).values()
    yield from (value.__defaults__ or (), value.__kwdefaults__ or {})
  elif hasattr(value, '__wrapped__'):  # a compiled function
    yield value.__wrapped__
  elif dataclasses.is_dataclass(value) and not isinstance(value, type):
    yield from (getattr(value, field.name, None) for field in dataclasses.fields(value))


def holds(function: types.FunctionType) -> dict[str, Any]:
  """What a function closes over, by name; what is not yet assigned is left out."""
  found = {}
  for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
    try:
      found[name] = cell.cell_contents
    except ValueError:  # an empty cell
      continue
  return found


def _marked(made: Any, record: Technique, arguments: Mapping[str, Any]) -> Any:
  """What a factory made, marked: a function, a NamedTuple of functions; anything else as it is."""
  use = Use(record, arguments, made)
  if isinstance(made, tuple) and hasattr(made, '_fields'):
    functions = [name for name in made._fields if _is_function(getattr(made, name))]
    own = [name for name in functions if _is_own(getattr(made, name))]
    for name in (own or functions)[:1]:
      made = made._replace(**{name: _with(getattr(made, name), use)})
    return made
  return _with(made, use) if _is_function(made) else made


def _with(function: Callable, use: Use) -> Callable:
  """The function with one more mark; where others may have it as well, a partial that stands for it."""
  marked = function if _is_own(function) else functools.partial(function)
  marked.uses = (*uses(function), use)
  return marked


def _is_function(value: Any) -> bool:
  return callable(value) and not isinstance(value, type)


def _is_own(function: Any) -> bool:
  """Whether a function was made by the call of another one, so that nobody else has it."""
  return isinstance(function, types.FunctionType) and '<locals>' in function.__qualname__


def _by_name(factory: Factory, active: Callable[..., bool]) -> Callable[[Mapping[str, Any]], bool]:
  """`active` as a function of all arguments by name."""
  asked, known = inspect.signature(active).parameters, inspect.signature(factory).parameters
  for one in asked.values():
    if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
      raise ValueError(f'active must take its arguments by name, got {one}')
    if one.name not in known:
      raise ValueError(f'active asks for {one.name!r}, {factory.__qualname__} has no such argument')

  def is_active(arguments: Mapping[str, Any]) -> bool:
    try:
      return bool(active(**{name: arguments[name] for name in asked}))
    except Exception as error:
      if isinstance(error, _tracer_errors()):
        return True
      raise

  return is_active


def _tracer_errors() -> tuple[type[Exception], ...]:
  """What JAX raises for the truth or value of a tracer; no tracer exists before jax is imported."""
  if 'jax' not in sys.modules:
    return ()
  errors = sys.modules['jax'].errors
  return (
    errors.ConcretizationTypeError,
    errors.TracerArrayConversionError,
    errors.TracerIntegerConversionError,
  )
