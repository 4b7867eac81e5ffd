"""Do the tests notice faults? Applies each to a copy of the tree, and runs its tests, then general ones and quick ones.

In the end all tests that noticed one are run on a copy without any: one that fails there has noticed nothing.

python -m tests.mutants --out=tests/mutants/found.jsonl     # all; goes on where it stands
python -m tests.mutants --only='dropout|key' --own          # those in whose name it is; their own tests alone
python -m tests.mutants --since=HEAD~3                      # those whose file or tests changed since
python -m tests.mutants --stale                             # those whose fragment is no longer there
python -m tests.mutants --out=tests/mutants/found.jsonl --table   # what was found
"""

import concurrent.futures
import hashlib
import json
import pathlib
import re
import subprocess
import sys

from absl import app, flags

from diffusion.reporting import tables
from tests.mutants import faults, runner
from tests.mutants.fault import Fault, StaleError, apply

OUT = flags.DEFINE_string('out', '', 'JSON-lines file to which what is found is appended.')
ONLY = flags.DEFINE_string('only', '', 'A regular expression, looked for in file, kind and name.')
SINCE = flags.DEFINE_string('since', '', 'Only faults whose file or tests changed since.')
JOBS = flags.DEFINE_integer('jobs', 2, 'Faults side by side.')
OWN = flags.DEFINE_boolean('own', False, "Only a fault's own tests.")
LIST = flags.DEFINE_boolean('list', False, 'Print the faults, and leave.')
IS_STALE = flags.DEFINE_boolean('stale', False, 'Print those that are stale, and leave.')
TABLE = flags.DEFINE_boolean('table', False, 'Print what --out has, and leave.')


def stale(every: list[Fault]) -> dict[str, str]:
  """Why, by name of the fault: its fragment is not there, or a file of its tests is not."""
  found = {}
  for one in every:
    gone = [name for name in one.tests if not (runner.ROOT / name.partition('::')[0]).exists()]
    try:
      path = runner.ROOT / one.file
      if not path.exists():
        raise StaleError(f'no file {one.file}')
      apply(path.read_text(), one)
      if gone or not one.tests:
        raise StaleError(f'no tests {gone}')
    except StaleError as error:
      found[one.name] = str(error)
  return found


def selected() -> list[Fault]:
  """The faults that the flags ask for."""
  found = [
    one for one in faults.every() if re.search(ONLY.value, f'{one.file} {one.kind}: {one.name}')
  ]
  if SINCE.value:
    told = ['git', '-C', str(runner.ROOT), 'diff', '--name-only', SINCE.value]
    changed = set(subprocess.run(told, check=True, capture_output=True, text=True).stdout.split())
    of = lambda one: {one.file, *(name.partition('::')[0] for name in one.tests)}  # noqa: E731
    found = [one for one in found if of(one) & changed]
  return found


def digest(fault: Fault) -> str:
  """Of a fault, of the source it is in and of its tests: what was found holds as long as it is the same."""
  whole = hashlib.sha256(repr(fault).encode())
  for name in sorted({fault.file, *(one.partition('::')[0] for one in fault.tests)}):
    path = runner.ROOT / name
    for file in sorted(path.rglob('*.py')) if path.is_dir() else [path]:
      whole.update(file.read_bytes())
  return whole.hexdigest()[:16]


def read(path: str) -> list[dict]:
  """What was found, the last of each fault."""
  text = pathlib.Path(path).read_text() if path and pathlib.Path(path).exists() else ''
  return list({line['name']: line for line in map(json.loads, text.splitlines())}.values())


def write(lines: list[dict]) -> None:
  """Appends them to --out, if there is one."""
  if OUT.value:
    with pathlib.Path(OUT.value).open('a') as file:
      file.writelines(json.dumps(line) + '\n' for line in lines)


def table(found: list[dict]) -> str:
  """How many were noticed, by room and by kind, and those that were not."""

  def counted(label: str) -> list[list[str]]:
    of = sorted({line[label] for line in found})
    groups = [[one, [line for line in found if line[label] == one]] for one in of] + [
      ['all', found]
    ]
    count = lambda lines, outcome: sum(line['outcome'] == outcome for line in lines)  # noqa: E731
    return [
      [name, str(len(lines)), str(count(lines, runner.KILLED)), str(count(lines, runner.SURVIVED)),
       f'{count(lines, runner.KILLED) / max(len(lines), 1):.1%}']
      for name, lines in groups
    ]  # fmt: skip

  parts = [
    tables.markdown([label, 'faults', 'killed', 'survived', 'killed'], counted(label))
    for label in ('room', 'kind')
  ]
  others = [
    [line['outcome'], line['file'], line['name'], line['by']]
    for line in found
    if line['outcome'] != runner.KILLED
  ]
  return '\n\n'.join([*parts, tables.markdown(['outcome', 'file', 'fault', ''], others)])


def main(_) -> None:
  """Runs what is asked for, appends what it finds, and prints it; status 1 where a fault was not noticed."""
  if TABLE.value:
    print(table(read(OUT.value)))
    return
  every = selected()
  old = stale(every)
  if LIST.value or IS_STALE.value:
    for one in every:
      if LIST.value or one.name in old:
        print(
          f'{one.file} {one.kind}: {one.name}' + (f': {old[one.name]}' if one.name in old else '')
        )
    print(f'{len(every)} faults, {len(old)} stale')
    return
  before = {line['name']: line for line in read(OUT.value)}
  known = {(name, line['digest']) for name, line in before.items()}
  due = [one for one in every if one.name not in old and (one.name, digest(one)) not in known]
  lines = {}
  # Where the tests keep it, so that the next command is quicker.
  compiled = runner.ROOT / '.pytest_cache' / 'compiled'
  compiled.mkdir(parents=True, exist_ok=True)
  with concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
    waiting = {
      pool.submit(
        runner.noticed, one, compiled, OWN.value, before.get(one.name, {'by': ''})['by']
      ): one
      for one in due
    }
    for number, future in enumerate(concurrent.futures.as_completed(waiting), start=1):
      one, found = waiting[future], future.result()
      print(
        f'{number}/{len(due)} {found.outcome:<9}{one.file}: {one.name} ({found.seconds:.0f} s) {found.by}',
        flush=True,
      )
      line = {
        'name': one.name,
        'file': one.file,
        'room': one.room,
        'kind': one.kind,
        'digest': digest(one),
      }
      lines[one.name] = line | found._asdict()
      write([lines[one.name]])
  results = before | lines
  told = {one.name: results[one.name] for one in every if one.name not in old}
  by = sorted({line['by'] for line in told.values() if '::' in line['by']}) if due else []
  wrong = runner.failing_without_fault(by, compiled)
  for name, line in told.items():
    if line['by'] in wrong:
      print(f'{name}: {line["by"]} fails without it, too')
      lines[name] = line | {'outcome': runner.BROKEN}
      write([lines[name]])
  survived = sum(line['outcome'] != runner.KILLED for line in lines.values())
  print(f'{len(due)} faults, {survived} not noticed, {len(old)} stale')
  if survived:
    sys.exit(1)


if __name__ == '__main__':
  app.run(main)
