"""Trees of arrays in folders, through Orbax: whatever the folder is called, and read back before they count."""

import contextlib
import hashlib
import os
import pathlib
import re
import tempfile
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from diffusion import processes
from diffusion.training import manifest

# Orbax expands globs in a path, and TensorStore and its own readers take `\` and `gs:` for something else. Letters are
# those of all alphabets; whatever is not here goes through a link, also what works today.
_LITERAL = re.compile(r'[\w./ =,+-]*')


def check_folder(folder: pathlib.Path) -> None:
  """Raises ValueError for a folder in which no run can be: its record and its checkpoints name it, in UTF-8."""
  try:
    str(folder).encode()
  except UnicodeEncodeError:
    raise ValueError(f'the name of {str(folder)!r} is not UTF-8: choose another folder') from None


def reachable(folder: pathlib.Path) -> pathlib.Path:
  """The folder, under a name that Orbax takes literally: its own, or that of a link in the folder of temporary files.

  The link's name is the hash of the folder's, so that all processes of a run have the same. It may be deleted at any
  time: ask each time anew.

  Args:
    folder: absolute; what is saved has a plain name in it.

  Raises:
    ValueError: there is no place for a link. OSError: it cannot be made.
  """
  if _LITERAL.fullmatch(str(folder)):
    return folder
  links = pathlib.Path(tempfile.gettempdir()).absolute() / f'diffusion-{os.getuid()}'
  remedy = f'{folder} is reached by a link in {links}: set TMPDIR to another folder'
  if not _LITERAL.fullmatch(str(links)):
    raise ValueError(f'{remedy}, of letters and digits alone')
  links.mkdir(mode=0o700, exist_ok=True)
  if links.is_symlink() or links.stat().st_uid != os.getuid():
    raise ValueError(f'{remedy}, since this one is not yours')
  link = links / hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
  if not link.is_symlink():
    with contextlib.suppress(FileExistsError):  # another process may be faster
      link.symlink_to(folder)
  if link.readlink() != folder:
    raise ValueError(f'{remedy}, since {link} leads elsewhere')
  return link


def begin(folder: pathlib.Path, tree: Any, about: dict[str, Any]) -> ocp.AsyncResponse:
  """Begins to save a tree, in the background.

  Args:
    folder: where, absolute; it must not be there.
    tree: NumPy arrays.
    about: what is saved with it, as JSON.

  Returns:
    `result()` waits for its end.
  """
  context = ocp.Context()
  # Else, where the folder cannot be made, threads that nothing can end wait for it, for 300 s.
  context.asynchronous.create_directories_asynchronously = False
  with context:
    return ocp.save_async(_literal(folder), tree, custom_metadata=about)


def check(folder: pathlib.Path, tree: Any) -> None:
  """Raises ValueError unless all arrays of the tree are found in the folder, with their shapes and types.

  What has been written is not always what can be read: Orbax merges the index of arrays at the end.
  """
  found = ocp.metadata(_literal(folder)).metadata  # None where it cannot be read
  there, here = (
    sorted(f'{one.dtype}{list(one.shape)}' for one in jax.tree.leaves(of)) for of in (found, tree)
  )
  if there != here:
    raise ValueError(f'read back, {folder} holds {len(there)} arrays and not the {len(here)} saved')


def about(folder: pathlib.Path) -> dict[str, Any]:
  """What was saved with a tree."""
  return ocp.metadata(_literal(folder)).custom_metadata


def load(folder: pathlib.Path, target: Any = None) -> Any:
  """The arrays of a folder, absolute, in the structure of `target`."""
  return ocp.load(_literal(folder), target)


def save(folder: pathlib.Path, tree: Any) -> None:
  """Saves a tree, over what is there, and writes its manifest; to be called on all processes.

  Args:
    folder: where, absolute.
    tree: NumPy arrays.

  Raises:
    ValueError: what was saved cannot be read back. OSError: it cannot be written.
  """
  if processes.is_writer():
    manifest.manifest_of(folder).unlink(missing_ok=True)
  ocp.save(_literal(folder), tree, overwrite=True)
  if processes.is_writer():
    check(folder, tree)
    manifest.write_manifest(folder)


def _literal(folder: pathlib.Path) -> pathlib.Path:
  return reachable(folder.parent) / folder.name
