"""A run's written record: rows of metrics as they come, and JSON documents.

A `Sink` takes one row of metrics at a time. Sinks are independent of each other and `chain` makes
one of several:

    sink = chain(json_lines(path, step), tensorboard(folder, step), progress(total, step))
    sink.write({'step': 100, 'loss': 0.21}, {'images_per_second': 812.0})
    sink.close()

A row holds what the seed determines; everything that depends on the clock goes to `timing`, apart,
so that the records of two equal runs are equal. Non-finite numbers, which JSON does not have, are
written as the strings "nan", "inf", "-inf" and read back as numbers.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from diffusion.reporting import encoding
from diffusion.reporting.pace import Pace

Scalar = float | int | str | None
Path = str | os.PathLike[str]

ROW_START = b'{"step": '
SHOWN = ('loss', 'validation/eps')
Written = Mapping[str, int | str]
NOTHING: Written = {'rows': 0, 'sha256': hashlib.sha256().hexdigest()}
OWN_GROUPS = ('loss', 'loss_bucket', 'train', 'validation')  # of the names that a run itself logs


class Sink(NamedTuple):
  """A receiver of rows of metrics: `write(row, timing)` for each, `close()` at the end.

  `sync()` waits until what is resumed from is on the disk, also after `close`. `written()` is what `differing` knows
  the rows by that are written so far: their number, and the SHA-256 of their bytes.
  """

  write: Callable[[Mapping[str, Scalar], Mapping[str, Scalar]], None]
  close: Callable[[], None]
  sync: Callable[[], None] = lambda: None
  written: Callable[[], Written] = lambda: NOTHING


def json_lines(path: Path, start_step: int = 0, key: str = 'step') -> Sink:
  """A file with one JSON object per row: `step` first, the metrics by name, `timing` last.

  Floats are written exactly (`repr`). Each row is handed to the operating system before `write`
  returns. Opening an existing file resumes it: rows beyond `start_step` and a last row torn by a
  kill are removed, atomically, and all others keep their bytes.

  Args:
    path: the file; its folder is created.
    start_step: the step training starts from, >= 0; 0 for a fresh run.
    key: what of a row is compared with it, e.g. 'cursor' where steps can be turned back.

  Returns:
    The sink. A row needs an integer `step`; its other values are numbers, text, or None.

  Raises:
    ValueError: for a negative start_step, or a file that holds something other than such rows.
    OSError: where the file cannot be written, naming it.
  """
  path = pathlib.Path(path)
  if start_step < 0:
    raise ValueError(f'start_step must be at least 0, got {start_step!r}')
  with encoding.naming(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      _keep_until(path, start_step, key)
    file = path.open('ab')
    content = path.read_bytes()
  count, digest = content.count(b'\n'), hashlib.sha256(content)

  def write(row: Mapping[str, Scalar], timing: Mapping[str, Scalar]) -> None:
    nonlocal count
    content = encoding.encode(_ordered(row, timing))
    line = (json.dumps(content, ensure_ascii=False, allow_nan=False) + '\n').encode()
    with encoding.naming(path):
      file.write(line)
      file.flush()
    count += 1
    digest.update(line)

  def sync() -> None:
    with encoding.naming(path):
      encoding.sync(path)

  def close() -> None:
    with encoding.naming(path):
      file.close()

  def written() -> Written:
    return {'rows': count, 'sha256': digest.hexdigest()}

  return Sink(write, close, sync, written)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
  """The rows of a `json_lines` file, a row torn by a kill (or being written) left out.

  Args:
    path: the file.

  Returns:
    The rows in the file's order, non-finite numbers as floats.

  Raises:
    ValueError: for a line that is no row, naming file and line.
    OSError: where the file cannot be read.
  """
  return [encoding.decode(row) for _, row in _parsed(pathlib.Path(path))]


def differing(path: Path, written: Sequence[Written], until: int, key: str = 'step') -> str:
  """How a file of rows differs from what was written to it; '' where it does not.

  Args:
    path: the file.
    written: what its sink said at one time after another, last when all rows up to `until` were written.
    until: the last step of these; what follows may be anything that is a row.
    key: what of a row is compared with it.

  Returns:
    How many rows there are in place of how many, how many are known to be as they were written, and the first line that
    is wrong by itself.

  Raises:
    OSError: a file that is there and cannot be read.
  """
  path, wanted = pathlib.Path(path), written[-1]
  if not path.exists():
    return f'it is gone, with {wanted["rows"]} rows' if wanted['rows'] else ''
  last, digest, wrong, row = -math.inf, hashlib.sha256(), '', None
  prefixes = [digest.hexdigest()]
  for number, (line, row) in enumerate(_lines(path), start=1):
    if row is None or type(row.get(key)) is not int:
      wrong = wrong or f'line {number} is not a row'
    elif row[key] <= until:
      digest.update(line)
      prefixes.append(digest.hexdigest())
      if row[key] <= last:
        wrong = wrong or f'line {number} does not follow the one before'
      last = row[key]
  if row is not None and last == row.get(key) and not path.read_bytes().endswith(b'\n'):
    wrong = wrong or f'line {number} has no end'
  same = [one for one in written if prefixes[one['rows'] : one['rows'] + 1] == [one['sha256']]]
  if wanted in same and len(prefixes) == 1 + wanted['rows']:
    return wrong
  counted = f'{len(prefixes) - 1} rows up to {key} {until} in place of {wanted["rows"]}'
  as_written = max((one['rows'] for one in same), default=0)
  return f'{counted}, the first {as_written} as they were written{wrong and "; " + wrong}'


def salvaged(path: Path, key: str = 'step') -> list[tuple[bytes, dict[str, Any]]]:
  """The bytes and the content of each row with an integer `key` that none before it has; [] for a file that is gone."""
  path, found = pathlib.Path(path), {}
  for line, row in _lines(path) if path.exists() else ():
    if row is not None and type(row.get(key)) is int:
      found.setdefault(row[key], (line, encoding.decode(row)))
  return list(found.values())


def tensorboard(directory: Path, start_step: int = 0) -> Sink:
  """TensorBoard event files: every number of a row under its key, of timing under `timing/`.

  Non-finite numbers are written as they are; text and None are left out. A resumed run hides the
  events beyond `start_step`. Rows reach the disk within ten seconds: a kill can lose the last ones
  here, not in `json_lines`.

  Args:
    directory: folder of the event files; it is created.
    start_step: the step training starts from, >= 0.

  Returns:
    The sink.

  Raises:
    OSError: where the folder cannot be written, naming it.
  """
  # Not its SummaryWriter: that writes in a thread, and waits for it forever once the disk is full.
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import Event, SessionLog
  from tensorboardX.proto.summary_pb2 import Summary

  directory = pathlib.Path(directory)
  purge = SessionLog(status=SessionLog.START)
  with encoding.naming(directory):
    directory.mkdir(parents=True, exist_ok=True)
    # Names go by the second: without more a quick restart would overwrite its own events.
    writer = EventsWriter(str(directory / 'events'), f'.{time.time_ns()}')
    writer.write_event(Event(wall_time=time.time(), step=start_step + 1, session_log=purge))
    writer.flush()
  flushed = time.monotonic()

  def write(row: Mapping[str, Scalar], timing: Mapping[str, Scalar]) -> None:
    nonlocal flushed
    line = _ordered(row, timing)
    step = line.pop('step')
    clock = {f'timing/{key}': value for key, value in line.pop('timing').items()}
    values = [
      Summary.Value(tag=key, simple_value=value)
      for key, value in (line | clock).items()
      if isinstance(value, int | float)
    ]
    with encoding.naming(directory):
      writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
      if time.monotonic() > flushed + 10:
        writer.flush()
        flushed = time.monotonic()

  def close() -> None:
    with encoding.naming(directory):
      writer.close()

  return Sink(write, close)


def progress(
  total_steps: int,
  start_step: int = 0,
  stream: TextIO | None = None,
  batch_size: int | None = None,
) -> Sink:
  """Where the run stands: a live bar on a terminal, one line per row elsewhere.

  Shown are the step, the latest of `loss` and `validation/eps`, images per second (the timing's
  `images_per_second`, else counted from `batch_size`), and the time to go. That is reckoned without the rows that say
  something for the first time: before them something was compiled.

  Args:
    total_steps: the run's last step, >= 1.
    start_step: the step training starts from, >= 0.
    stream: where to write; standard error by default.
    batch_size: images per step, for counting where the timing does not say.

  Returns:
    The sink.
  """
  import tqdm

  stream = sys.stderr if stream is None else stream
  live = stream.isatty()
  bar = tqdm.tqdm(
    total=total_steps,
    initial=start_step,
    file=stream,
    unit=' steps',
    dynamic_ncols=True,
    disable=not live,
  )
  begin, pace = time.monotonic(), Pace()
  last, known = start_step, set()
  shown: dict[str, str] = {}

  def write(row: Mapping[str, Scalar], timing: Mapping[str, Scalar]) -> None:
    nonlocal last
    step = int(row['step'])
    pace.advance(step - last, first_time=not known.issuperset(row))
    last = step
    known.update(row)
    rate = (step - start_step) / max(time.monotonic() - begin, 1e-9)
    shown.update({key: _short(row[key]) for key in SHOWN if key in row})
    if 'images_per_second' in timing:
      shown['images/s'] = _short(timing['images_per_second'])
    elif batch_size is not None and rate > 0:
      shown['images/s'] = _short(rate * batch_size)
    if live:
      bar.set_postfix(shown, refresh=False)
      bar.update(step - bar.n)
      bar.refresh()
    else:
      left = pace.left(total_steps - step)
      fields = ''.join(f'  {key} {value}' for key, value in shown.items())
      print(f'step {step}/{total_steps}{fields}  left {left}', file=stream, flush=True)

  return Sink(write, bar.close)


def chain(*sinks: Sink) -> Sink:
  """One sink of several.

  Args:
    *sinks: each gets every row, in this order; all are closed even where closing one fails. The first one says what
      was written.

  Returns:
    The sink.
  """

  def write(row: Mapping[str, Scalar], timing: Mapping[str, Scalar]) -> None:
    for sink in sinks:
      sink.write(row, timing)

  def close() -> None:
    with contextlib.ExitStack() as stack:
      for sink in sinks:
        stack.callback(sink.close)

  def sync() -> None:
    for sink in sinks:
      sink.sync()

  return Sink(write, close, sync, sinks[0].written) if sinks else Sink(write, close, sync)


def write_json(path: Path, data: Any) -> None:
  """Writes a JSON document whole or not at all (temporary file, fsync, replace).

  Args:
    path: the file; its folder is created.
    data: mappings with text keys, sequences, arrays, text, numbers, booleans, None.

  Raises:
    TypeError: for a value JSON cannot hold.
    ValueError: for text that reads as a non-finite number ("nan", "inf", "-inf").
    OSError: where the file cannot be written, naming it.
  """
  path = pathlib.Path(path)
  content = encoding.encode(encoding.plain(data))
  text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2)
  encoding.write(path, text.encode() + b'\n')


def read_json(path: Path) -> Any:
  """The document that `write_json` wrote.

  Args:
    path: the file.

  Returns:
    Its content, arrays and tuples as lists, non-finite numbers as floats.

  Raises:
    ValueError: for a file that is not JSON.
    OSError: where the file cannot be read.
  """
  return encoding.decode(json.loads(pathlib.Path(path).read_text(encoding='utf-8')))


def _ordered(row: Mapping[str, Scalar], timing: Mapping[str, Scalar]) -> dict[str, Any]:
  """Step, metrics in natural order of their names, timing: one order for equal rows."""
  row, timing = encoding.plain(row), encoding.plain(timing)
  if 'step' not in row or type(row['step']) is not int:
    raise ValueError(f'a row needs an integer step, got {row!r}')
  if 'timing' in row:
    raise ValueError(f'a row must leave the key "timing" to the second argument, got {row!r}')
  for key, value in (row | timing).items():
    if isinstance(value, list | dict):
      raise TypeError(f'a row holds single values, got {key}={value!r}')
  metrics = sorted((key for key in row if key != 'step'), key=_natural)
  ordered = {key: row[key] for key in ('step', *metrics)}
  return ordered | {'timing': {key: timing[key] for key in sorted(timing, key=_natural)}}


def _natural(key: str) -> list[tuple[int, str]]:
  """Sorts `bucket/2` before `bucket/10`."""
  return [(int(part), '') if part.isdecimal() else (-1, part) for part in re.split(r'(\d+)', key)]


def _keep_until(path: pathlib.Path, start: int, key: str) -> None:
  """Removes the rows beyond `start` and a torn last one; the others keep their bytes."""
  kept = b''.join(line for line, row in _parsed(path) if row[key] <= start)
  if kept != path.read_bytes():
    encoding.replace(path, kept)


def _parsed(path: pathlib.Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
  """Each row's bytes, newline included, and content; raises ValueError for a line that is none."""
  for number, (line, row) in enumerate(_lines(path), start=1):
    if row is None:
      raise ValueError(
        f'{path}, line {number}: not a row of metrics: {line[:-1][:80]!r}: put a copy of the file back, or delete it'
      )
    yield line, row


def _lines(path: pathlib.Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
  """Each line's bytes, newline included, and content, None if it is no row; without a last row that was cut short."""
  *lines, rest = path.read_bytes().split(b'\n')
  for line in lines:
    yield line + b'\n', _row(line)
  row = _row(rest)
  torn = row is None and (rest.startswith(ROW_START) or ROW_START.startswith(rest))
  if rest and not torn:
    yield rest + b'\n', row


def _row(line: bytes) -> dict[str, Any] | None:
  """The content of a line that is a row, else None."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):  # JSONDecodeError and UnicodeDecodeError are ValueErrors
    return None
  own = isinstance(row, dict) and type(row.get('step')) is int
  return row if own and isinstance(row.get('timing', {}), dict) else None


def _short(value: Any) -> str:
  value = encoding.plain(value)
  if not isinstance(value, int | float):
    return str(value)
  return f'{value:.0f}' if 1e3 <= abs(value) < 1e7 else f'{value:.4g}'
