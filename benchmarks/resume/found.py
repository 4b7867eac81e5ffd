"""What cases have found: lines of a file, which many short runs append to, and their table."""

import collections
import json
import os
import pathlib
import platform
import time
import zlib
from collections.abc import Sequence

import numpy as np

from benchmarks.resume.bench import Bench
from benchmarks.resume.cases import Case
from benchmarks.resume.judge import BADLY, OUTCOMES, Verdict
from benchmarks.resume.selection import name_of
from diffusion.reporting import tables


def full_name(line: dict) -> str:
  """The same of a line of the file."""
  return f'{line["kind"]}: {line["case"]}'


def read(path: str) -> list[dict]:
  """What a file has; nothing where there is none."""
  file = pathlib.Path(path)
  lines = file.read_text().splitlines() if path and file.exists() else []
  return [json.loads(line) for line in lines]


def run_case(bench: Bench, case: Case, seed: int) -> list[dict]:
  """What became of a case, as lines of the file."""
  generator = np.random.default_rng([seed, zlib.crc32(name_of(case).encode())])
  begin = time.perf_counter()
  try:
    verdicts = case.run(bench, generator)
  except Exception as error:  # noqa: BLE001 - a judge that fails has not acquitted
    verdicts = [Verdict(BADLY, f'the bench failed: {error!r}'[:600])]
  finally:
    bench.clear()
  about = {
    'kind': case.kind,
    'case': case.name,
    'seed': seed,
    'seconds': round(time.perf_counter() - begin, 1),
    'commit': bench.commit,
    'machine': machine(),
  }
  return [about | verdict._asdict() for verdict in verdicts]


def machine() -> str:
  """Where this runs."""
  return f'{os.cpu_count()} CPU cores, Python {platform.python_version()}'


def table(found: Sequence[dict]) -> str:
  """A row for each kind of case, and one for all; below it the commits and machines.

  Of a case that was run at several commits the last one counts.
  """
  last = {(full_name(line), line['seed']): line['commit'] for line in found}
  found = [line for line in found if line['commit'] == last[full_name(line), line['seed']]]
  kinds = list(dict.fromkeys(line['kind'] for line in found))

  def row(name: str, lines: Sequence[dict]) -> tuple:
    counts = [sum(line['outcome'] == outcome for line in lines) for outcome in OUTCOMES]
    return name, len(lines), *counts

  rows = [row(kind, [line for line in found if line['kind'] == kind]) for kind in kinds]
  counts = collections.Counter(line['commit'] for line in found)
  commits = ', '.join(f'{commit} ({count})' for commit, count in counts.items())
  machines = sorted({line['machine'] for line in found})
  head = ['what happens to a run', 'cases', *OUTCOMES]
  shown = tables.markdown(head, [*rows, row('all', found)])
  return f'{shown}\n\ncommit {commits}; {"; ".join(machines)}'
