"""MNIST, Fashion-MNIST, CIFAR-10: official raw files to TFDS `array_record`, without TensorFlow.

  python -m diffusion.data.prepare mnist --data_dir=DIR               downloads, checksums verified
  python -m diffusion.data.prepare cifar10 --data_dir=DIR --source=RAW               no network

The result is what `tfds.data_source(name, split=..., data_dir=DIR, download=False)` reads. TFDS's
own generators of these sets need TensorFlow to read, unpack and encode; here only its download
manager and its writer are used.
"""

import contextlib
import difflib
import gzip
import io
import json
import math
import os
import pathlib
import queue
import shutil
import signal
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

_Path = str | os.PathLike[str]
_IDX_DTYPES = {0x08: '>u1', 0x09: '>i1', 0x0B: '>i2', 0x0C: '>i4', 0x0D: '>f4', 0x0E: '>f8'}
_NUM_CLASSES = 10
_CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_FOLDER = 'cifar-10-batches-bin'
_CIFAR_LABEL_FILE = 'batches.meta.txt'
_CONNECTION_PATIENCE = 5  # seconds to connect, and again for the first bytes
_PREFLIGHT_PATIENCE = 12  # seconds in all, as name resolution has no timeout of its own


class PrepareError(ValueError):
  """Arguments, raw files or network do not allow a preparation; one line with the remedy."""


class _Raw(NamedTuple):
  where: str  # for messages
  data: bytes


class _Split(NamedTuple):
  images: np.ndarray  # [N, height, width, channels]
  labels: np.ndarray  # [N]
  where: str


class _Spec(NamedTuple):
  url: str  # where the official builder downloads
  downloads: tuple[str, ...]
  parts: dict[str, tuple[str, ...]]  # split -> raw files once unpacked
  parse: Callable[[list[_Raw]], _Split]
  shape: tuple[int, int, int]
  counts: dict[str, int]
  label_names: tuple[str, ...]  # () where the official builder declares them itself

  @property
  def official(self) -> str:
    """The official files in words."""
    return f'{", ".join(self.downloads)} from {self.url}'


def read_idx(path: _Path) -> np.ndarray:
  """Reads one IDX file, the format of MNIST, gzipped or not.

  Two zero bytes, one for the dtype, one for the number of dimensions, each dimension as big-endian
  uint32, then the values, big-endian, last index fastest.

  Args:
    path: the file; gzip is told by its first bytes, not by its name.

  Returns:
    The array in one of the format's six dtypes (MNIST: uint8), native byte order.

  Raises:
    PrepareError: wrong magic number, dtype or length.

  Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", "File formats".
  """
  return _parse_idx(_open(pathlib.Path(path)))


def read_cifar10_binary(path: _Path) -> tuple[np.ndarray, np.ndarray]:
  """Reads one batch of the binary version of CIFAR-10.

  Records of 1 + 3072 bytes: the label, then the red, the green and the blue plane, by rows.

  Args:
    path: a file such as `data_batch_1.bin` (official: 10,000 records), gzipped or not.

  Returns:
    Images [N, 32, 32, 3] and labels [N] in 0..9, both uint8.

  Raises:
    PrepareError: the length is not a whole number of records, or a label is outside 0..9.

  Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images";
    https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
  """
  return _parse_cifar_batch(_open(pathlib.Path(path)))


def prepare(
  name: str, data_dir: _Path, source: _Path | None = None, allow_partial: bool = False
) -> pathlib.Path:
  """Writes the TFDS `array_record` directory of a data set from its official raw files.

  Nothing has the final name before it is complete: the set is written beside it, then renamed.
  A complete directory that is there already is left as it is.

  Args:
    name: 'mnist', 'fashion_mnist' or 'cifar10'.
    data_dir: TFDS data directory, created if absent; downloads stay in its `downloads/`.
    source: folder of the official raw files, or CIFAR-10's archive; None downloads them.
    allow_partial: accept any number >= 1 of examples, not the official one alone; for trials.

  Returns:
    The version directory, `data_dir/name/version`.

  Raises:
    PrepareError: unknown name, raw files absent or wrong, no network, or something incomplete
      has the final name.
  """
  if name not in _SPECS:
    near = difflib.get_close_matches(name, _SPECS, n=1, cutoff=0.4)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise PrepareError(f'unknown data set {name!r}; {hint}Known: {", ".join(sorted(_SPECS))}')
  import tensorflow_datasets as tfds

  spec, official = _SPECS[name], tfds.builder_cls(name)
  data_dir = pathlib.Path(data_dir).expanduser().absolute()
  target = data_dir / name / str(official.VERSION)
  if _is_prepared(target, official(data_dir=data_dir).info, spec.counts, allow_partial):
    return target
  with _workspace(data_dir / f'.preparing_{name}') as workspace:
    if source is None:
      files = _download(name, spec, data_dir / 'downloads')
    else:
      files = _find(pathlib.Path(source).expanduser(), spec)
    splits = _read(files, source or data_dir, spec)
    for split, content in splits.items():
      _validate(split, content, spec, allow_partial)
    written = _write(official, splits, spec.label_names, workspace)
    target.parent.mkdir(exist_ok=True)
    os.replace(written, target)
  print(f'{target}: prepared', {split: len(content.labels) for split, content in splits.items()})
  return target


def main() -> None:
  """Command line: NAME --data_dir=DIR [--source=DIR] [--allow_partial]."""
  from absl import app, flags

  # Not defined on import, where they would meet the flags of the importing program.
  flags.DEFINE_string('data_dir', None, 'TFDS data directory to write to.')
  flags.DEFINE_string('source', None, 'Folder of the official raw files; default: download them.')
  flags.DEFINE_bool('allow_partial', False, 'Accept an incomplete set; for tests and trials.')
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, _stop)
  app.run(_run)


def _stop(number: int, _: Any) -> None:
  raise SystemExit(128 + number)  # unwinds, so that the workspace is removed


def _run(argv: list[str]) -> None:
  from absl import flags, logging

  logging.set_verbosity(logging.WARNING)
  values = flags.FLAGS
  try:
    if len(argv) != 2 or not values.data_dir:
      known = '|'.join(sorted(_SPECS))
      raise PrepareError(f'usage: python -m diffusion.data.prepare {known} --data_dir=DIR')
    prepare(argv[1], values.data_dir, values.source, values.allow_partial)
  except (PrepareError, OSError, ImportError) as error:
    sys.exit(f'error: {error}')
  except SystemExit as stop:
    print('\nstopped; nothing half-made is left', file=sys.stderr, flush=True)
    # TFDS's download threads are not daemons: a plain exit would wait for them to end.
    os._exit(stop.code)


def _damaged(where: str, problem: str) -> PrepareError:
  return PrepareError(f'{where}: {problem}; get the official file again')


def _open(path: pathlib.Path) -> _Raw:
  data = path.read_bytes()
  if data.startswith(b'\x1f\x8b'):
    try:
      data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise _damaged(str(path), f'truncated or damaged gzip data ({error})') from error
  return _Raw(str(path), data)


def _unpack(path: pathlib.Path) -> dict[str, _Raw]:
  try:
    with tarfile.open(path) as tar:
      # One pass in the archive's order: seeking back would decompress it again.
      files = ((m.name, tar.extractfile(m)) for m in tar if m.isfile())
      return {name.split('/')[-1]: _Raw(f'{path}:{name}', file.read()) for name, file in files}
  except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise _damaged(str(path), f'truncated or damaged archive ({error})') from error


def _parse_idx(raw: _Raw) -> np.ndarray:
  where, data = raw
  if len(data) < 4 or data[:2] != b'\0\0' or data[2] not in _IDX_DTYPES or not data[3]:
    expected = '0x00000803 for MNIST images, 0x00000801 for labels'
    raise _damaged(where, f'magic number 0x{data[:4].hex()} is not of an IDX file ({expected})')
  dtype, start = np.dtype(_IDX_DTYPES[data[2]]), 4 + 4 * data[3]
  if len(data) < start:
    raise _damaged(where, f'truncated in its header, {len(data)} of {start} bytes')
  shape = tuple(np.frombuffer(data, '>u4', count=data[3], offset=4).tolist())
  size = start + dtype.itemsize * math.prod(shape)
  if len(data) != size:
    raise _damaged(where, f'truncated or too long, {len(data)} of {size} bytes for shape {shape}')
  return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder('='))


def _names(raws: list[_Raw]) -> str:
  return ' + '.join([raws[0].where, *(pathlib.PurePath(raw.where).name for raw in raws[1:])])


def _parse_mnist(raws: list[_Raw]) -> _Split:
  images, labels = (_parse_idx(raw) for raw in raws)
  _validate_labels(labels, raws[1].where)
  return _Split(images[..., None], labels, _names(raws))


def _parse_cifar_batch(raw: _Raw) -> tuple[np.ndarray, np.ndarray]:
  where, data = raw
  if len(data) % _CIFAR_RECORD or not data:
    problem = f'{len(data)} bytes are no whole number of CIFAR-10 records of {_CIFAR_RECORD}'
    raise _damaged(where, problem)
  rows = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD)
  _validate_labels(rows[:, 0], where)
  planes = rows[:, 1:].reshape(-1, 3, 32, 32)
  return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), rows[:, 0].copy()


def _parse_cifar(raws: list[_Raw]) -> _Split:
  images, labels = zip(*(_parse_cifar_batch(raw) for raw in raws), strict=True)
  return _Split(np.concatenate(images), np.concatenate(labels), _names(raws))


def _validate_labels(labels: np.ndarray, where: str) -> None:
  wrong = np.flatnonzero((labels < 0) | (labels >= _NUM_CLASSES))
  if wrong.size:
    problem = (
      f'label {labels.flat[wrong[0]]} of example {wrong[0]} is outside 0..{_NUM_CLASSES - 1}'
    )
    raise _damaged(where, problem)


def _validate(split: str, content: _Split, spec: _Spec, allow_partial: bool) -> None:
  images, labels, where = content
  for array, shape in ((images, spec.shape), (labels, ())):
    if array.shape[1:] != shape or array.dtype != np.uint8:
      problem = f'{array.dtype} items of shape {array.shape[1:]}, expected are uint8 of {shape}'
      raise _damaged(where, problem)
  if len(images) != len(labels):
    raise _damaged(where, f'{len(images)} images but {len(labels)} labels')
  if len(images) == spec.counts[split]:
    return
  problem = f'{len(images)} {split} examples, officially {spec.counts[split]}'
  if not allow_partial or not len(images):
    raise _damaged(where, f'{problem} (--allow_partial accepts some, for trials)')
  print(f'PARTIAL SET, NOT FOR RESULTS: {where}: {problem}', file=sys.stderr)


def _find(source: pathlib.Path, spec: _Spec) -> dict[pathlib.Path, str]:
  """The raw files under `source`, packed or not -> their official names."""
  if source.is_file():
    return {source: source.name}
  parts = [part for names in spec.parts.values() for part in names]
  names = (*spec.downloads, *parts, _CIFAR_LABEL_FILE)
  paths = [folder / name for folder in (source, source / _CIFAR_FOLDER) for name in names]
  return {path: path.name for path in paths if path.is_file()}


def _read(files: dict[pathlib.Path, str], where: _Path, spec: _Spec) -> dict[str, _Split]:
  raws = {}
  for path, name in files.items():
    raws |= (
      _unpack(path)
      if name.endswith(('.tar.gz', '.tar'))
      else {name.removesuffix('.gz'): _open(path)}
    )
  for part in (part for names in spec.parts.values() for part in names):
    if part not in raws:
      raise PrepareError(f'{where}: no {part} there; needed: {spec.official}, packed or unpacked')
  # The official builder takes its label names from this file; they are known, so it is a check.
  if spec.label_names and (labels := raws.get(_CIFAR_LABEL_FILE)):
    found = labels.data.decode(errors='replace').split()
    if found != list(spec.label_names):
      raise _damaged(labels.where, f'label names {found} are not {list(spec.label_names)}')
  return {split: spec.parse([raws[n] for n in names]) for split, names in spec.parts.items()}


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


def _download(name: str, spec: _Spec, folder: pathlib.Path) -> dict[pathlib.Path, str]:
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


def _examples(split: str, content: _Split, with_id: bool) -> Iterator[tuple[int, dict[str, Any]]]:
  """Keys (they fix the order on disk) and ids as the official builders'."""
  import tqdm
  from PIL import Image

  rows = zip(content.images, content.labels, strict=True)
  bar = tqdm.tqdm(rows, f'Writing {split}', len(content.labels), unit=' images')
  for i, (image, label) in enumerate(bar):
    png = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(png, 'PNG')
    png.seek(0)
    example = {'image': png, 'label': int(label)}
    yield i, example | ({'id': f'{split}_{i:05d}'} if with_id else {})


def _write(
  official: Any, splits: dict[str, _Split], names: tuple[str, ...], workspace: pathlib.Path
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


_IDX_PARTS = {
  split: (f'{stem}-images-idx3-ubyte', f'{stem}-labels-idx1-ubyte')
  for split, stem in (('train', 'train'), ('test', 't10k'))
}
_MNIST = _Spec(
  url='https://storage.googleapis.com/cvdf-datasets/mnist/',
  downloads=tuple(f'{part}.gz' for parts in _IDX_PARTS.values() for part in parts),
  parts=_IDX_PARTS,
  parse=_parse_mnist,
  shape=(28, 28, 1),
  counts={'train': 60_000, 'test': 10_000},
  label_names=(),
)
_FASHION_URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/'
_CIFAR_BATCHES = tuple(f'data_batch_{i}.bin' for i in range(1, 6))
_CIFAR_LABELS = 'airplane automobile bird cat deer dog frog horse ship truck'
_CIFAR = _Spec(
  url='https://www.cs.toronto.edu/~kriz/',
  downloads=('cifar-10-binary.tar.gz',),
  parts={'train': _CIFAR_BATCHES, 'test': ('test_batch.bin',)},
  parse=_parse_cifar,
  shape=(32, 32, 3),
  counts={'train': 50_000, 'test': 10_000},
  label_names=tuple(_CIFAR_LABELS.split()),
)
_SPECS = {'mnist': _MNIST, 'fashion_mnist': _MNIST._replace(url=_FASHION_URL), 'cifar10': _CIFAR}

if __name__ == '__main__':
  main()
