"""Archives and packed files that somebody gives: verified, bounded, and unpacked into memory alone."""

import gzip
import hashlib
import io
import pathlib
import sys
import tarfile
import zlib
from collections.abc import Mapping
from typing import NamedTuple

_LARGEST = 2**28  # bytes of a file once unpacked; CIFAR-10's archive has 184 million
_MEMBERS = 32  # of an archive; CIFAR-10's has 9


class PrepareError(ValueError):
  """Arguments, raw files or network do not allow a preparation; one line with the remedy."""


class RawFile(NamedTuple):
  """One raw file, unpacked."""

  where: str  # for messages
  data: bytes


def damaged(where: str, problem: str) -> PrepareError:
  """The error of a file that is not as it should be."""
  return PrepareError(f'{where}: {problem}; get the official file again')


def verify(
  files: Mapping[pathlib.Path, str], registered: Mapping[str, tuple[int, str]], allow: bool
) -> None:
  """Whether raw files are the official ones to the bit.

  Args:
    files: path -> official name of each, as `raw.find` returns them.
    registered: official name -> (size in bytes, SHA-256) of the packed files, as TFDS ships them.
    allow: take other files as well, and say so.

  Raises:
    PrepareError: one is not, or nothing is known of it, as of a file that was unpacked.
  """
  faults = {path: _difference(path, registered.get(name)) for path, name in files.items()}
  said = [f'{path} {fault}' for path, fault in faults.items() if fault]
  if said and not allow:
    packed = ', '.join(registered)
    raise PrepareError(
      f'{said[0]}: get the official {packed} again, or take it as it is with --allow_unverified'
    )
  if said:
    print(f'NOT VERIFIED: {"; ".join(said)}', file=sys.stderr, flush=True)


def _difference(path: pathlib.Path, official: tuple[int, str] | None) -> str:
  """In what a file is not the official one; '' where it is."""
  if official is None:
    return 'is no archive whose checksum TFDS knows'
  size, sha256 = official
  found = path.stat().st_size
  if found != size:
    return f'has {found} bytes, officially {size}'
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return '' if digest == sha256 else f'has SHA-256 {digest[:16]}..., officially {sha256[:16]}...'


def content(path: pathlib.Path) -> RawFile:
  """A file, unpacked where it is gzip: to its end, where gzip has a checksum of its own."""
  with path.open('rb') as file:
    packed = file.read(2) == b'\x1f\x8b'
  try:
    with gzip.open(path) if packed else path.open('rb') as file:
      data = file.read(_LARGEST + 1)
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise damaged(str(path), f'truncated or damaged gzip data ({error})') from error
  if len(data) > _LARGEST:
    raise damaged(str(path), f'more than {_LARGEST} bytes once unpacked')
  return RawFile(str(path), data)


def unpack(path: pathlib.Path) -> dict[str, RawFile]:
  """The files of an archive, by the last part of their names; nothing is written."""
  where, data = content(path)
  found: dict[str, RawFile] = {}
  try:
    with tarfile.open(fileobj=io.BytesIO(data), mode='r:') as tar:
      for count, member in enumerate(tar):
        fault = _odd(member, found) if count < _MEMBERS else f'has more than {_MEMBERS} members'
        if fault:
          raise damaged(where, f'the archive {fault}')
        if not member.isdir():
          name = pathlib.PurePosixPath(member.name).name
          found[name] = RawFile(f'{path}:{member.name}', tar.extractfile(member).read())
  except (tarfile.TarError, EOFError, OverflowError, UnicodeError) as error:
    raise damaged(where, f'truncated or damaged archive ({error})') from error
  return found


def _odd(member: tarfile.TarInfo, found: Mapping[str, RawFile]) -> str:
  """What no official archive has of a member; '' for nothing."""
  name = pathlib.PurePosixPath(member.name)
  if name.is_absolute() or '..' in name.parts:
    return f'has a member outside of its folder, {member.name!r}'
  if not member.isdir() and (not member.isreg() or member.issparse()):
    return f'has a member that is no plain file, {member.name!r}'
  return f'has two members {name.name!r}' if name.name in found else ''
