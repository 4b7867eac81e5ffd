"""The folder of a run: its record, its claim on the folder, and its report.

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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion import citations, provenance
from diffusion.evaluation.evaluate import Finding
from diffusion.reporting import bibliography, encoding, run_report
from diffusion.reporting.rows import read_json, write_json
from diffusion.statistics import Interval

RECORD_FORMAT = 2


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


def findings_to_json(findings: Sequence[Finding]) -> dict[str, Any]:
  """name -> value, an interval as {estimate, low, high}."""
  return {
    finding.name: finding.value._asdict() if isinstance(finding.value, Interval) else finding.value
    for finding in findings
  }


def write_report(
  workdir: pathlib.Path,
  record: Mapping[str, Any],
  findings: Sequence[Finding],
  levels: Sequence[Sequence[float]],
  techniques: Sequence[citations.Technique],
  suffix: str,
) -> pathlib.Path:
  """Writes report.md and references.bib, and returns the report's path.

  Args:
    workdir: the run's folder; pictures that are there are shown.
    record: run.json.
    findings: the results, most important first.
    levels: rows (log-SNR, train, validation, gap).
    techniques: what `build` used.
    suffix: of the report's and the pictures' names.
  """
  bibtex = bibliography.entries(citations.all_keys(techniques))
  (workdir / 'references.bib').write_text(bibtex)
  captions = {
    f'samples{suffix}.png': 'Samples from the best checkpoint.',
    'curves.png': 'Training and held-out loss, their gap, and the optimizer.',
    f'nearest{suffix}.png': 'Samples above their nearest training examples, the smallest distance ratio first.',
  }
  pictures = [(text, name) for name, text in captions.items() if (workdir / name).exists()]
  start = record['starts'][-1]
  note = f' ({record["data"]["note"]})' if record['data']['note'] else ''
  kept = ('experiment', 'status', 'reason', 'step', 'wall_seconds')
  text = run_report.markdown_report(
    f'{record["experiment"]}: {record["data"]["name"]}{note}',
    summary_rows=[('how it ended', record['reason']), *((f.name, f.value) for f in findings)],
    pictures=pictures,
    tables=[
      ('What the numbers mean', ['quantity', 'meaning'], [(f.name, f.meaning) for f in findings]),
      ('Loss per noise level', ['log-SNR (nats)', 'train', 'validation', 'gap'], levels),
      *_speed(record.get('speed')),
    ],
    provenance={name: record[name] for name in kept}
    | {name: record[name] for name in ('config', 'data', 'versions')}
    | {'code': {'commit': start['code']['commit'], 'uncommitted changes': bool(start['code']['diff'])}}
    | {'devices': start['devices'], 'command': ' '.join(start['command']), 'starts': len(record['starts'])}
    | _resharded(record['starts']),
    techniques=techniques,
    bibtex=bibtex,
  )  # fmt: skip
  path = workdir / f'report{suffix}.md'
  path.write_text(text)
  return path


def _speed(speed: Mapping[str, Any] | None) -> list[tuple]:
  """The table of how fast the training was, if that is known."""
  if speed is None:
    return []
  rows = [
    ('images per second, median of the logged rows', speed['images_per_second']),
    ('floating-point operations of a training step per image', speed['flops_per_image']),
    ('floating-point operations per second', speed['flops_per_second']),
    ("share of the devices' peak in bfloat16", speed['utilization']),
    ('most memory of a device (CPU: of the process), bytes', speed['peak_memory']),
  ]
  return [('Speed', ['quantity', 'value'], rows)]


def _resharded(starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """At which steps a run went on with another number of devices, if it did."""
  changes = [one['resharded'] for one in starts if 'resharded' in one]
  said = '; '.join(f'step {one["step"]}: {one["from"]} to {one["to"]} devices' for one in changes)
  return {'resharded': said} if said else {}


def save_samples(
  path: pathlib.Path, samples: np.ndarray, labels: np.ndarray, levels: int | None
) -> None:
  """Samples as stored, their labels, and the levels of a stored value (if it has any), as an .npz."""
  more = {} if levels is None else {'levels': np.asarray(levels)}
  part = path.with_suffix('.part.npz')
  np.savez_compressed(part, samples=samples, labels=labels, **more)
  part.replace(path)  # whole or not at all


def load_samples(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """(samples, labels) that `save_samples` wrote."""
  with np.load(path) as stored:
    return stored['samples'], stored['labels']
