"""The manifest of a folder: what each of its files is to be, by which any change of them is noticed.

The manifest `120.sha256` of a folder `120` has the SHA-256 and the size of each of its files, in lines that `sha256sum
-c 120.sha256` reads, and last the digest of the manifest itself.
"""

import hashlib
import pathlib

from diffusion.reporting import encoding

INCOMPLETE = 'it has no manifest: the start before ended while saving it, or the file is lost'


def manifest_of(folder: pathlib.Path) -> pathlib.Path:
  """Where the manifest of a folder is."""
  return folder.with_name(f'{folder.name}.sha256')


def write_manifest(folder: pathlib.Path) -> None:
  """Brings a folder to the disk (fsync), and then its manifest, whole or not at all.

  Raises:
    OSError: a file that cannot be read, or a manifest that cannot be written, naming it.
  """
  for path in [*folder.rglob('*'), folder, folder.parent]:
    encoding.sync(path)
  text = ''.join(_describe(folder).values())
  with encoding.naming(manifest_of(folder)):
    encoding.replace(manifest_of(folder), (text + _seal(text)).encode())


def find_fault(folder: pathlib.Path) -> str | None:
  """The first way in which a folder is not what its manifest says, naming the file; None if there is none."""
  path = manifest_of(folder)
  if not path.exists():
    return INCOMPLETE
  if not folder.exists():
    return f'the folder {folder.name} is missing'
  try:
    stored, found = path.read_bytes().decode(errors='replace'), _describe(folder)
  except OSError as error:
    return f'{error.filename or folder} cannot be read: {error.strerror}'
  text, mark, seal = stored.rpartition('# of the above ')
  if mark + seal != _seal(text):
    return f'{path.name} is damaged'
  entries = text.split('# ')[1:]  # each '<bytes> bytes\n<digest>  <name>\n'
  wanted = {entry.partition('  ')[2].removesuffix('\n'): f'# {entry}' for entry in entries}
  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      sizes = [of.get(name, '# nothing').splitlines()[0][2:] for of in (wanted, found)]
      return f'{name} has changed: {sizes[0]} when it was saved, {sizes[1]} now'
  return None


def _describe(folder: pathlib.Path) -> dict[str, str]:
  """What a manifest says of each file of a folder: name -> its size and its SHA-256, `sha256sum`'s comment and line."""
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
