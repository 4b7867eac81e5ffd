"""The project's chaos test: runs are killed and hurt, and what becomes of them is judged.

  python -m benchmarks.resume --out=chaos.jsonl --seed=0 --count=40       # again and again: it goes on where it stands
  python -m benchmarks.resume --out=chaos.jsonl --only='kill -9|signals' --kills=10
  python -m benchmarks.resume --out=chaos.jsonl --table                   # what all of them have found
  python -m benchmarks.resume --quick                                     # a minute: what the tests run
  python -m benchmarks.resume --out=before.jsonl --checkout=../before     # plain files and paths, of another commit
  python -m benchmarks.resume --times=5                                   # what a checkpoint costs, and a signal takes

Small runs of `experiments.mixture` are killed (`kill -9`) at every kind of moment, get signals, full and read-only
disks, odd paths, other clocks, neighbors and other code; copies of a killed and of a finished one have each of their
files hurt. Then the same command is started again. `benchmarks.resume.judge` says in which ways a case ends, and is
strict: all that a run has is compared to the bit with a run that was left alone.
"""

import json
import os
import pathlib
import platform
import re
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import app, flags, logging

from benchmarks import checkouts
from benchmarks.resume import cases, checkpoints, disks, edits, kills, neighbors, paths
from benchmarks.resume.bench import Bench
from benchmarks.resume.cases import Case
from benchmarks.resume.judge import BADLY, LOST, OUTCOMES, SILENT, Verdict
from diffusion import devices
from diffusion.reporting import tables

OUT = flags.DEFINE_string('out', '', 'JSON-lines file to which what is found is appended.')
SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn: moments, bytes, bits.')
ONLY = flags.DEFINE_string('only', '', 'A regular expression: cases whose "kind: name" has it.')
COUNT = flags.DEFINE_integer(
  'count', 0, 'So many cases at most; those that --out has are passed by. 0: all.'
)
REPEATS = flags.DEFINE_integer('repeats', 3, 'Random damages of each kind.')
KILLS = flags.DEFINE_integer('kills', 6, 'Kills of one run.')
FOLDER = flags.DEFINE_string(
  'folder', '', 'Where the runs that are copied are kept for the next time.'
)
CHECKOUT = flags.DEFINE_string('checkout', '', 'Another working tree to judge, in what it shares.')
QUICK = flags.DEFINE_boolean('quick', False, 'A fixed small selection.')
LIST = flags.DEFINE_boolean('list', False, 'Print the cases and leave.')
TABLE = flags.DEFINE_boolean('table', False, 'Print the table of what --out has, and leave.')
TIMES = flags.DEFINE_integer('times', 0, 'Measure so many checkpoints and signals instead.')

QUICK_CASES = (
  r'run\.json: (\{\}|truncated 0), whole',
  r'metrics\.jsonl: (a value altered|a row lost), whole$',
  r'samples\.npz: altered',
  r'a checkpoint: newest bit flipped 0, killed',
  r'checkpoints/ gone: removed, whole$',
  r'the best checkpoint: removed, killed',
  r'paths: x\[1\]',
  r'changed code: the loss weight$',
  r'kill -9: compile',
)


def all_cases(repeats: int, count: int) -> Iterator[Case]:
  """Every case; so many random damages of a kind, and so many kills of a run."""
  yield from cases.of_the_record(repeats)
  yield from cases.of_the_rows(repeats)
  yield from cases.of_the_samples(repeats)
  yield from checkpoints.of_the_checkpoints(repeats)
  yield from cases.of_the_experiment()
  yield from cases.of_what_is_drawn()
  yield from cases.left_over()
  yield from paths.paths()
  yield from edits.edits()
  yield from kills.kills(count)
  yield from kills.signals()
  yield from disks.disks()
  yield from neighbors.clocks()
  yield from neighbors.neighbors()


def name_of(case: Case) -> str:
  """Its kind and its name."""
  return f'{case.kind}: {case.name}'


def full_name(line: dict) -> str:
  """The same of a line of the file."""
  return f'{line["kind"]}: {line["case"]}'


def found_in(path: str) -> list[dict]:
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
  about = {
    'kind': case.kind,
    'case': case.name,
    'seed': seed,
    'seconds': round(time.perf_counter() - begin, 1),
    'commit': bench.commit,
    'machine': machine(),
  }
  bench.clear()
  return [about | verdict._asdict() for verdict in verdicts]


def machine() -> str:
  """Where this runs."""
  return f'{os.cpu_count()} CPU cores, Python {platform.python_version()}'


def table(found: Sequence[dict]) -> str:
  """A row for each kind of case, and one for all; below it the commits and machines."""
  kinds = list(dict.fromkeys(line['kind'] for line in found))

  def row(name: str, lines: Sequence[dict]) -> tuple:
    counts = [sum(line['outcome'] == outcome for line in lines) for outcome in OUTCOMES]
    return name, len(lines), *counts

  rows = [row(kind, [line for line in found if line['kind'] == kind]) for kind in kinds]
  commits, machines = (sorted({line[name] for line in found}) for name in ('commit', 'machine'))
  head = ['what happens to a run', 'cases', *OUTCOMES]
  shown = tables.markdown(head, [*rows, row('all', found)])
  return f'{shown}\n\ncommit {", ".join(commits)}; {"; ".join(machines)}'


def matches(pattern: str, case: Case) -> bool:
  """Whether a regular expression is found in its kind and name."""
  return re.search(pattern, name_of(case)) is not None


def quick_cases() -> list[Case]:
  """A fixed small selection, one of each sort that takes a few seconds."""
  every = all_cases(repeats=1, count=2)
  return [case for case in every if any(matches(pattern, case) for pattern in QUICK_CASES)]


def selected() -> list[Case]:
  """The cases that the flags ask for."""
  every = quick_cases() if QUICK.value else all_cases(REPEATS.value, KILLS.value)
  found = [case for case in every if matches(ONLY.value, case)]
  return [case for case in found if case.plain or not CHECKOUT.value]


def main(_) -> None:
  """Runs cases, appends what it finds, and prints the table of this time; status 1 where something is not right."""
  logging.set_verbosity(logging.ERROR)
  if TABLE.value:
    print(table(found_in(OUT.value)))
    return
  if LIST.value:
    print('\n'.join(map(name_of, selected())))
    return
  # Programs are compiled quickly, once, and inherit this; the cases compare no times.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  devices.use_cache()
  if TIMES.value:
    from benchmarks.resume import cost

    cost.measure(TIMES.value)
    print(f'{devices.describe()}, commit {checkouts.commit(checkouts.HERE)}')
    return
  quick = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  os.environ.setdefault('XLA_FLAGS', quick)
  checkout = checkouts.find(CHECKOUT.value) if CHECKOUT.value else None
  with tempfile.TemporaryDirectory() as temporary:
    bench = Bench(pathlib.Path(FOLDER.value or temporary).absolute(), checkout)
    known = {(one['commit'], one['seed'], full_name(one)) for one in found_in(OUT.value)}
    due = [one for one in selected() if (bench.commit, SEED.value, name_of(one)) not in known]
    found = []
    for case in due[: COUNT.value or None]:
      lines = run_case(bench, case, SEED.value)
      for line in lines[:1]:
        print(
          f'{line["outcome"]:<12}{name_of(case)} ({line["seconds"]:.0f} s): {line["why"]}',
          flush=True,
        )
      found += lines
      if OUT.value:
        with pathlib.Path(OUT.value).open('a') as file:
          file.writelines(json.dumps(line) + '\n' for line in lines)
  print(table(found))
  if any(line['outcome'] in (BADLY, SILENT, LOST) for line in found):
    sys.exit(1)


if __name__ == '__main__':
  app.run(main)
