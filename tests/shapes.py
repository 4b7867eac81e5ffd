"""What signatures say of arrays, checked at run time: shapes and dtypes by jaxtyping, as beartype asks it.

`tests/conftest.py` hangs `check` into the import of the rooms below. Everything else a signature says is left to the
code, whose own errors name the argument and the remedy.
"""

import contextlib
import functools
import typing
from collections.abc import Callable, Iterator

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.vale import Is

ROOMS = ('rng', 'process', 'data', 'models', 'objectives', 'optimizers', 'sampling', 'evaluation')
CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float
_checked = {}  # a function within a factory is made anew at every call, its check is not


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
  """Signatures are not checked: what is passed is wrong, and the code's own error is what is asked for."""
  jaxtyping.config.update('jaxtyping_disable', True)
  try:
    yield
  finally:
    jaxtyping.config.update('jaxtyping_disable', False)


def check(function: Callable) -> Callable:
  """The function with the arrays among its arguments and results checked at every call."""
  # By what the hints say: one that stands within a factory is an object of its own at every call.
  names = function.__module__, function.__qualname__, function.__code__.co_varnames
  key = (*names, str(function.__annotations__))
  if key not in _checked:
    hints = {name: arrays(hint) for name, hint in function.__annotations__.items()}
    function.__annotations__ = {name: hint for name, hint in hints.items() if hint is not None}
    _checked[key] = beartype(conf=CONF)(function) if function.__annotations__ else function
  return _checked[key]


@functools.cache
def arrays(hint: typing.Any) -> typing.Any:
  """The hint if it speaks of arrays, else None; a NamedTuple's is what its fields say, but for those that are None."""
  if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
    return hint
  if typing.get_origin(hint) is Callable:  # what it takes is seen when it is called
    return None
  fields = typing.get_type_hints(hint) if hasattr(hint, '_fields') else {}
  checked = {name: arrays(one) for name, one in fields.items() if arrays(one) is not None}
  if checked:
    fits = lambda value: all(  # noqa: E731
      getattr(value, name) is None or is_bearable(getattr(value, name), one, conf=CONF)
      for name, one in checked.items()
    )
    return typing.Annotated[hint, Is[fits]]
  return hint if any(arrays(one) is not None for one in typing.get_args(hint)) else None
