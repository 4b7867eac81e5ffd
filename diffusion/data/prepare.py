"""MNIST, Fashion-MNIST, CIFAR-10: official raw files to TFDS `array_record`, without TensorFlow.

The result is what `tfds.data_source(name, split=..., data_dir=DIR, download=False)` reads. TFDS's
own generators of these sets need TensorFlow to read, unpack and encode; here only its download
manager and its writer are used.
"""

import contextlib
import difflib
import io
import json
import os
import pathlib
import queue
import shutil
import threading
from collections.abc import Iterator
from typing import Any

from diffusion.data import archives, raw
from diffusion.data.archives import PrepareError
from diffusion.reporting import encoding, pace

_CONNECTION_PATIENCE = 5  # seconds to connect, and again for the first bytes
_PREFLIGHT_PATIENCE = 12  # seconds in all, as name resolution has no timeout of its own


def prepare(
  name: str,
  data_dir: raw.FilePath,
  source: raw.FilePath | None = None,
  allow_partial: bool = False,
  allow_unverified: bool = False,
) -> pathlib.Path:
  """Writes the TFDS `array_record` directory of a data set from its official raw files.

  Nothing has the final name before it is complete: the set is written beside it, then renamed.
  A complete directory that is there already is left as it is.

  Args:
    name: 'mnist', 'fashion_mnist' or 'cifar10'.
    data_dir: TFDS data directory, created if absent; downloads stay in its `downloads/`.
    source: folder of the official raw files, or CIFAR-10's archive; None downloads them.
    allow_partial: accept any number >= 1 of examples, not the official one alone; for trials. No checksum is known
      of such a set.
    allow_unverified: accept raw files that are not the official ones to the bit, or were unpacked.

  Returns:
    The version directory, `data_dir/name/version`.

  Raises:
    PrepareError: unknown name, raw files absent, damaged, or other than the checksums that TFDS ships say, no network,
      or something incomplete has the final name.
  """
  if name not in raw.SPECS:
    near = difflib.get_close_matches(name, raw.SPECS, n=1, cutoff=0.4)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise PrepareError(f'unknown data set {name!r}; {hint}Known: {", ".join(sorted(raw.SPECS))}')
  if '**' in str(data_dir):
    raise PrepareError(f'TFDS expands the ** in {data_dir}: choose another --data_dir')
  import tensorflow_datasets as tfds

  spec, official = raw.SPECS[name], tfds.builder_cls(name)
  data_dir = pathlib.Path(data_dir).expanduser().absolute()
  target = data_dir / name / str(official.VERSION)
  if _is_prepared(target, official(data_dir=data_dir).info, spec.counts, allow_partial):
    return target
  with _workspace(data_dir / f'.preparing_{name}') as workspace:
    if source is None:
      files = _download(name, spec, data_dir / 'downloads')
    else:
      files = raw.find(pathlib.Path(source).expanduser(), spec)
    archives.verify(files, checksums(name), allow_partial or allow_unverified)
    splits = raw.read(files, source or data_dir, spec)
    for split, content in splits.items():
      raw.validate(split, content, spec, allow_partial)
    written = _write(official, splits, spec.label_names, workspace)
    target.parent.mkdir(exist_ok=True)
    for path in (*written.rglob('*'), written):
      encoding.sync(path)
    os.replace(written, target)
    encoding.sync(target.parent)
  print(f'{target}: prepared', {split: len(content.labels) for split, content in splits.items()})
  return target


def checksums(name: str) -> dict[str, tuple[int, str]]:
  """The official packed files of a data set -> (size in bytes, SHA-256), as TFDS ships them for its own downloads."""
  import tensorflow_datasets as tfds

  infos = tfds.builder_cls(name).url_infos
  return {
    url.removeprefix(raw.SPECS[name].url): (int(one.size), one.checksum)
    for url, one in infos.items()
  }


def _preflight(url: str) -> str | None:
  """Why `url` cannot be had, or None: TFDS by itself would retry for minutes."""
  import requests  # what TFDS downloads with: the same proxies and certificates

  answer = queue.SimpleQueue()

  def attempt() -> None:
    try:
      with requests.get(url, stream=True, timeout=_CONNECTION_PATIENCE) as response:
        answer.put(None if response.ok else f'HTTP status {response.status_code}')
    except OSError as error:
      answer.put(type(error).__name__)

  threading.Thread(target=attempt, daemon=True).start()
  try:
    return answer.get(timeout=_PREFLIGHT_PATIENCE)
  except queue.Empty:
    return f'no answer within {_PREFLIGHT_PATIENCE} s'


def _remove_partial_downloads(folder: pathlib.Path) -> None:
  for partial in folder.glob('*.tmp.*'):
    shutil.rmtree(partial, ignore_errors=True)  # TFDS's threads may still be writing


def _download(name: str, spec: raw.Spec, folder: pathlib.Path) -> dict[pathlib.Path, str]:
  import tensorflow_datasets as tfds

  _remove_partial_downloads(folder / name)  # of a killed attempt
  infos = [info for info in (folder / name).glob('*.INFO') if info.with_suffix('').exists()]
  cached = {url for info in infos for url in json.loads(info.read_text())['urls']}
  urls = {spec.url + file: file for file in spec.downloads}
  remedy = f'fetch {spec.official} elsewhere and give its folder as --source=DIR'
  absent = [url for url in urls if url not in cached]
  if absent and (trouble := _preflight(absent[0])):
    raise PrepareError(f'cannot download {absent[0]} ({trouble}); {remedy}')
  # Its checksums are those registered for the official builder; a URL without one is refused.
  manager = tfds.download.DownloadManager(
    download_dir=folder, dataset_name=name, force_checksums_validation=True
  )
  try:
    paths = manager.download({file: url for url, file in urls.items()})
  except Exception as error:  # of requests, urllib3 and TFDS, whose types are not public
    reason = f'{type(error).__name__}: {error}'.splitlines()[0]
    raise PrepareError(f'cannot download {name} ({reason}); {remedy}') from error
  finally:
    _remove_partial_downloads(folder / name)
  return {pathlib.Path(path): file for file, path in paths.items()}


def _is_prepared(
  target: pathlib.Path, info: Any, official: dict[str, int], allow_partial: bool
) -> bool:
  if not target.exists():
    return False
  counts = {split: content.num_examples for split, content in info.splits.items()}
  files = [target / file for split in info.splits.values() for file in split.filenames]
  trouble = None
  if not files or not all(file.is_file() for file in files):
    trouble = 'is no complete TFDS directory'
  elif info.file_format.value != 'array_record':
    trouble = f'is in the format {info.file_format.value}, which only TensorFlow reads'
  elif counts != official and not allow_partial:
    trouble = f'is a partial set, {counts} of {official}'
  if trouble:
    raise PrepareError(f'{target} exists and {trouble}; remove it, or give another --data_dir')
  print(f'{target}: already prepared {counts}, nothing to do')
  return True


@contextlib.contextmanager
def _workspace(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """An empty directory for this process alone, removed at the end."""
  import fcntl  # POSIX; the module is to import everywhere

  path.mkdir(parents=True, exist_ok=True)
  lock = os.open(path, os.O_RDONLY)
  try:
    # A lock rather than the existence of the directory: it ends with its process, killed or not.
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    os.close(lock)
    raise PrepareError(f'{path}: another preparation is at work; wait for its end') from error
  try:
    for leftover in path.iterdir():
      shutil.rmtree(leftover)
    yield path
  finally:
    shutil.rmtree(path)
    os.close(lock)


def _examples(
  split: str, content: raw.RawSplit, with_id: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Keys (they fix the order on disk) and ids as the official builders'."""
  from PIL import Image

  rows = zip(content.images, content.labels, strict=True)
  with pace.counter(len(content.labels), f'images of {split}') as update:
    for i, (image, label) in enumerate(rows):
      png = io.BytesIO()
      Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(png, 'PNG')
      png.seek(0)
      example = {'image': png, 'label': int(label)}
      yield i, example | ({'id': f'{split}_{i:05d}'} if with_id else {})
      update(1)


def _write(
  official: Any, splits: dict[str, raw.RawSplit], names: tuple[str, ...], workspace: pathlib.Path
) -> pathlib.Path:
  import tensorflow_datasets as tfds

  class Prepared(official, skip_registration=True):
    """The official builder; its examples are PNG files, as arrays would need TensorFlow."""

    name = official.name

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      del dl_manager
      if names:
        self.info.features['label'].names = list(names)
      with_id = 'id' in self.info.features
      return {split: _examples(split, content, with_id) for split, content in splits.items()}

  Prepared.__module__ = official.__module__  # dataset_info.json records it
  builder = Prepared(data_dir=workspace)
  tfds.disable_progress_bar()  # ours knows the total
  try:
    # TFDS announces the directory of the moment, which is not where the set will be.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_dir=workspace / 'unused', file_format='array_record')
  finally:
    tfds.enable_progress_bar()
  return pathlib.Path(builder.data_dir)


if __name__ == '__main__':
  import sys

  print('error: this is now `python -m diffusion.commands.prepare`', file=sys.stderr)
  sys.exit(2)
