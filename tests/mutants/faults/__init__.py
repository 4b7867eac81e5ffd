"""The faults, a file a room."""

import importlib
import pkgutil

from tests.mutants.fault import KINDS, Fault


def every() -> list[Fault]:
  """All faults; raises ValueError for names that are not unique and kinds that there are not."""
  modules = sorted(one.name for one in pkgutil.iter_modules(__path__))
  found = [one for name in modules for one in importlib.import_module(f'{__name__}.{name}').FAULTS]
  names = [one.name for one in found]
  twice = sorted({name for name in names if names.count(name) > 1})
  wrong = sorted({one.kind for one in found} - set(KINDS))
  if twice or wrong:
    raise ValueError(f'faults of one name: {twice}; kinds that there are not: {wrong}')
  return found
