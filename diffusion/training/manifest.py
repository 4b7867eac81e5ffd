"""What a folder of files must be, to the bit: the SHA-256 and the size of each, in one file beside it.

`120.sha256` tells of the folder `120`, in lines that `sha256sum -c 120.sha256` reads; the sizes, and the digest of the
manifest itself in its last line, are comments there.
"""

import hashlib
import pathlib

from diffusion.reporting import encoding

FORMAT_VERSION = 2  # of a checkpoint: the first had no manifest


def path_of(folder: pathlib.Path) -> pathlib.Path:
  """The manifest of a folder."""
  return folder.with_name(f'{folder.name}.sha256')


def write(folder: pathlib.Path) -> None:
  """Brings a folder to the disk (fsync), and then its manifest, whole or not at all.

  Raises:
    OSError: a file that cannot be read, or a manifest that cannot be written, naming it.
  """
  for path in [*folder.rglob('*'), folder, folder.parent]:
    encoding.sync(path)
  path = path_of(folder)
  text = ''.join(_describe(folder).values())
  with encoding.naming(path):
    encoding.replace(path, (text + _seal(text)).encode())


def fault(folder: pathlib.Path) -> str | None:
  """The first way in which a folder is not what its manifest says, naming the file; None if there is none."""
  path = path_of(folder)
  try:
    stored = path.read_bytes().decode(errors='replace')
    found = _describe(folder)
  except OSError as error:
    return f'{error.filename or folder} cannot be read: {error.strerror}'
  text, mark, seal = stored.rpartition('# of the above ')
  if mark + seal != _seal(text):
    return f'{path.name} is damaged'
  entries = text.split('# ')[1:]  # each '<bytes> bytes\n<digest>  <name>\n'
  wanted = {entry.partition('  ')[2].removesuffix('\n'): f'# {entry}' for entry in entries}
  for name in sorted(wanted.keys() | found.keys()):
    if name not in found:
      return f'{name} is missing'
    if name not in wanted:
      return f'{name} was not saved with it'
    if found[name] != wanted[name]:
      now, then = (entry.split()[1] for entry in (found[name], wanted[name]))
      return f'{name} has {now} bytes instead of {then}' if now != then else f'{name} has changed'
  return None


def _describe(folder: pathlib.Path) -> dict[str, str]:
  """What a manifest says of each file of a folder: name -> its size and its SHA-256."""
  found = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file():
      with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
      name = path.relative_to(folder.parent).as_posix()
      found[name] = f'# {path.stat().st_size} bytes\n{digest}  {name}\n'
  return found


def _seal(text: str) -> str:
  """The last line, by which a damaged manifest is told from a damaged file."""
  return f'# of the above {hashlib.sha256(text.encode()).hexdigest()}\n'
