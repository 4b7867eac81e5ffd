"""The folder of a run: its record, and its claim on the folder.

run.json        what ran: configuration, code, versions, data, every start, how it ended, results
experiment.py   the experiment file as it was
metrics.jsonl   one row a logged step; events/ has the same for TensorBoard
checkpoints/    the latest and the best, each with its manifest (.sha256); damaged/ what was not as it was saved
samples.png, curves.png, nearest.png, report.md, references.bib, samples.npz; later judgments add
_evaluation1, _evaluation2, ... to these names
"""

import datetime
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from diffusion import provenance
from diffusion.reporting import encoding
from diffusion.reporting.rows import read_json, write_json

RECORD_FORMAT = 3


def now() -> str:
  """The time in UTC, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def read_record(workdir: pathlib.Path) -> dict[str, Any]:
  """run.json of a folder.

  Raises:
    ValueError: no run in the folder, or one of another format.
  """
  path = workdir / 'run.json'
  if not path.is_file():
    raise ValueError(f'no run in {workdir}: there is no run.json')
  record = read_json(path)
  if record['format'] != RECORD_FORMAT:
    raise ValueError(f'{path} has format {record["format"]}, this version reads {RECORD_FORMAT}')
  return record


def write_record(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes run.json in one piece."""
  write_json(workdir / 'run.json', record)


def claim(workdir: pathlib.Path, fresh: dict[str, Any], source: pathlib.Path) -> None:
  """Takes a folder for a run, or finds that it is this run's already; run.json then has this start in its `starts`.

  Args:
    workdir: the folder; created if need be.
    fresh: the record of a run that starts now.
    source: the experiment file, copied into a new folder.

  Raises:
    ValueError: the folder holds a run of another configuration, of other data, or something that is no run.
    OSError: the folder cannot be written.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  if (workdir / 'run.json').exists():
    record = read_record(workdir)
    for part in ('config', 'data'):
      changed = provenance.differences(record[part], fresh[part])
      if changed:
        raise ValueError(
          f'{workdir} holds a run of another {part} ({"; ".join(changed)}): choose another --workdir, or undo this'
        )
    record['starts'].append(fresh['starts'][0])
  else:
    # A start that was killed before its record was written leaves the copy, or a part of either.
    leftover = re.compile(r'experiment\.py|\..*\.tmp')
    others = [path.name for path in workdir.iterdir() if not leftover.fullmatch(path.name)]
    if others:
      raise ValueError(
        f'{workdir} is not empty and holds no run ({others[0]}): choose another --workdir'
      )
    record = fresh
    encoding.replace(workdir / 'experiment.py', pathlib.Path(source).read_bytes())
  write_record(workdir, record)
