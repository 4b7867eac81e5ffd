"""Which techniques a run used, and what to cite for each.

A factory says so once, above its definition; whoever builds a run collects what was called:

    @technique('dropout', 'network', 'srivastava2014dropout', active=lambda rate: rate != 0)
    def dropout(rate): ...

    with citations.collect() as used:
      experiment = build(config)
    citations.all_keys(used)

Nothing is noted outside `collect`, and a decorated factory returns what it returned before.
"""

import contextlib
import contextvars
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
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


_collections: contextvars.ContextVar[tuple[list[Technique], ...]] = contextvars.ContextVar(
  'diffusion_techniques', default=()
)


@contextlib.contextmanager
def collect() -> Iterator[list[Technique]]:
  """Notes the techniques whose factories are called inside the `with` block.

  Returns:
    A list that fills in order of first use, each technique once. A collection around another
    collection gets what the inner one gets.
  """
  used: list[Technique] = []
  token = _collections.set((*_collections.get(), used))
  try:
    yield used
  finally:
    _collections.reset(token)


def technique(
  name: str, place: str, *keys: str, active: Callable[..., bool] | None = None
) -> Callable[[Factory], Factory]:
  """Decorator of a factory: names the technique it makes, its place, and its sources.

  Args:
    name: what the field calls it.
    place: one of `PLACES`.
    *keys: BibTeX keys, each as firstauthorYEARword.
    active: says from the factory's arguments, taken by name (any subset, defaults filled in),
      whether the technique is on; a call that turns it off is not noted. Where the answer depends
      on a JAX tracer the technique counts as on. Always on by default.

  Returns:
    The decorator. A call that raises is not noted. The decorated factory has the record as its
    attribute `technique`.

  Raises:
    ValueError: for an empty name, an unknown place, a malformed key, or an `active` that asks for
      an argument the factory does not have.
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
    is_active = _always if active is None else _from_arguments(factory, active)

    @functools.wraps(factory)
    def noted(*args, **kwargs):
      collections = _collections.get()
      made = factory(*args, **kwargs)
      if collections and is_active(args, kwargs):
        for used in collections:
          if record not in used:
            used.append(record)
      return made

    noted.technique = record
    return noted

  return decorate


def all_keys(used: Sequence[Technique]) -> tuple[str, ...]:
  """The citation keys of the techniques, each once, in order of first use."""
  return tuple(dict.fromkeys(key for one in used for key in one.keys))


def _always(args: tuple, kwargs: dict) -> bool:
  del args, kwargs
  return True


def _from_arguments(factory: Factory, active: Callable[..., bool]) -> Callable[..., bool]:
  """`active` as a function of a call's `(args, kwargs)`."""
  signature = inspect.signature(factory)
  asked = inspect.signature(active).parameters.values()
  takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in asked)
  by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  names = [one.name for one in asked if one.kind in by_name]
  for one in asked:
    if one.kind in by_name and one.default is one.empty and one.name not in signature.parameters:
      raise ValueError(f'active asks for {one.name!r}, {factory.__qualname__} has no such argument')
    if one.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
      raise ValueError(f'active must take its arguments by name, got {one}')

  def is_active(args: tuple, kwargs: dict) -> bool:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    given = {key: value for key, value in bound.arguments.items() if takes_all or key in names}
    try:
      return bool(active(**given))
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
