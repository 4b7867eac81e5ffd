"""The project's chaos test: runs are killed and hurt, and what becomes of them is judged.

  python -m benchmarks.resume --out=chaos.jsonl --seed=0 --count=40       # again and again: it goes on where it stands
  python -m benchmarks.resume --out=chaos.jsonl --only='kill -9|signals' --kills=10
  python -m benchmarks.resume --out=chaos.jsonl --table                   # what all of them have found
  python -m benchmarks.resume --quick                                     # a minute: some of what the tests run
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
import signal
import sys
import tempfile

from absl import app, flags, logging

from benchmarks import checkouts
from benchmarks.resume import selection
from benchmarks.resume.bench import Bench
from benchmarks.resume.cases import Case
from benchmarks.resume.found import full_name, read, run_case, table
from benchmarks.resume.judge import BADLY, LOST, SILENT
from benchmarks.resume.selection import all_cases, matches, name_of
from diffusion import devices

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


def selected() -> list[Case]:
  """The cases that the flags ask for."""
  quick = QUICK.value
  every = (
    selection.selected(selection.QUICK_CASES) if quick else all_cases(REPEATS.value, KILLS.value)
  )
  found = [case for case in every if matches(ONLY.value, case)]
  return [case for case in found if case.plain or not CHECKOUT.value]


def main(_) -> None:
  """Runs cases, appends what it finds, and prints the table of this time; status 1 where something is not right."""
  logging.set_verbosity(logging.ERROR)
  if TABLE.value:
    print(table(read(OUT.value)))
    return
  if LIST.value:
    print('\n'.join(map(name_of, selected())))
    return
  devices.use_cache()
  if TIMES.value:
    from benchmarks.resume import cost

    cost.measure(TIMES.value)
    print(f'{devices.describe()}, commit {checkouts.commit(checkouts.HERE)}')
    return
  # Programs inherit this, and are compiled quickly; the cases compare no times.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  quick = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  os.environ.setdefault('XLA_FLAGS', quick)
  checkout = checkouts.find(CHECKOUT.value) if CHECKOUT.value else None
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaving programs and disks as they were
  with tempfile.TemporaryDirectory() as temporary:
    bench = Bench(pathlib.Path(FOLDER.value or temporary).absolute(), checkout)
    known = {(one['commit'], one['seed'], full_name(one)) for one in read(OUT.value)}
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
