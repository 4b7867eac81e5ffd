"""JSON documents that tell whether they are as they were written: their last entry, `seal`, is a hash of the others.

Who changes one by hand and means it removes that entry.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion.reporting import encoding, rows


class Document(NamedTuple):
  """What a file holds; `intact` says whether that is what was written, None where there is no seal to tell by."""

  content: dict[str, Any]
  intact: bool | None


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a document whole or not at all; raises as `rows.write_json` does."""
  plain = encoding.plain(content)
  rows.write_json(path, plain | {'seal': _seal(plain)})


def read(path: pathlib.Path) -> Document:
  """The document that `write` wrote.

  Raises:
    ValueError: it is none, saying in one line what it is.
    OSError: it cannot be read.
  """
  if path.is_dir():
    raise ValueError(f'{path} is a folder')
  content = path.read_bytes()
  try:
    found = encoding.decode(json.loads(content.decode()))
  except (ValueError, RecursionError) as error:  # what is not UTF-8 is a ValueError
    reason = ' '.join(str(error).split())
    raise ValueError(f'{path} is {f"no JSON ({reason})" if content else "empty"}') from None
  if not isinstance(found, dict):
    raise ValueError(f'{path} holds no JSON object, but {json.dumps(found)[:40]}')
  seal = found.pop('seal', None)
  return Document(content=found, intact=None if seal is None else seal == _seal(found))


def _seal(content: dict[str, Any]) -> str:
  text = json.dumps(encoding.encode(content), ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
