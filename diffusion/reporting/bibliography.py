"""The project's BibTeX entries: `references.bib`, by key."""

import importlib.resources
import re
from collections.abc import Iterable

from diffusion import naming

ENTRY_START = re.compile(r'^@\w+\{([^,\s]+),', re.MULTILINE)


def load() -> dict[str, str]:
  """All BibTeX entries of the project.

  Returns:
    Key -> the text of its entry, in the file's order.

  Raises:
    ValueError: where the file gives one key twice.
  """
  resource = importlib.resources.files('diffusion.reporting') / 'references.bib'
  text = resource.read_text(encoding='utf-8')
  starts = list(ENTRY_START.finditer(text))
  ends = [match.start() for match in starts[1:]] + [len(text)]
  found: dict[str, str] = {}
  for match, end in zip(starts, ends, strict=True):
    if match[1] in found:
      raise ValueError(f'references.bib gives the key {match[1]!r} twice')
    found[match[1]] = text[match.start() : end].strip()
  return found


def entries(keys: Iterable[str]) -> str:
  """BibTeX text of the given keys.

  Args:
    keys: keys of `references.bib`; a repeated one is written once.

  Returns:
    Their entries in the given order, an empty line between two.

  Raises:
    KeyError: for an unknown key, naming the nearest known one.
  """
  known = load()
  chosen = list(dict.fromkeys(keys))
  for key in chosen:
    if key not in known:
      near = naming.nearest(key, list(known))
      raise KeyError(f'no entry {key!r} in references.bib; the nearest is {near!r}')
  return '\n\n'.join(known[key] for key in chosen)
