"""Whether this checkout's runs are those of another one, to the bit: the tests of a rewrite of the engine.

  git worktree add --detach ../before COMMIT
  python -m benchmarks.characterize --against=../before

Stays until the engine's rewrite is done; not part of CI. Each case is run twice on the CPU in processes of its own,
with the package and the experiments of CHECKOUT and then of this checkout: smoke runs, runs that are killed, extended
or rolled back, a population, two processes, data from files, and runs whose batches are spied on. Compared is what they
leave: the rows of metrics without their timing, the values of the last checkpoint whatever their names, the samples,
the results, and which rows of which split were used. A change that means to rename goes into the tables of
`benchmarks/characterized/found.py`. Of `tampered.py` beside it a checkout uses its own copy where it has one.

Prints a table; the status is 1 if any case differs or does not run.
"""

import difflib
import json
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import app, flags, logging

from benchmarks import checkouts, prepared
from benchmarks.characterized import found
from diffusion.reporting import tables

AGAINST = flags.DEFINE_string('against', None, "Another commit's working tree.", required=True)
ONLY = flags.DEFINE_list('only', [], 'Names of the cases to run; all by default.')
KEEP = flags.DEFINE_string('keep', '', 'An empty folder to leave the runs in.')

TAMPERED = pathlib.Path('benchmarks', 'characterized', 'tampered.py')
ARMS = (
  'batch_norm', 'micro_batches', 'curriculum_by_difficulty', 'schedule_free', 'importance_times', 'plateau'
)  # fmt: skip
SECONDS = 900  # for a process, on a busy machine
# The smoke run of the mixture made longer: a row every 5 steps, a checkpoint every 20.
LONGER = (
  '--smoke', '--config.num_steps=160', '--config.steps_per_dispatch=5', '--config.log_every=5',
  '--config.dropout=0.2', '--cpu_devices=1',
)  # fmt: skip


class Start(NamedTuple):
  """One start of a run, which the same folder may have several of.

  Attributes:
    experiment: its name.
    arguments: of its command line, but for the folder.
    orders: of `tampered.Orders`, but for the experiment and the spy's file; None starts the experiment itself.
    spied: whether a spy watches.
    status: that it shall end with.
    processes: that train together.
  """

  experiment: str
  arguments: Sequence[str] = ('--smoke', '--cpu_devices=2')
  orders: Mapping[str, Any] | None = None
  spied: bool = False
  status: int = 0
  processes: int = 1


class Case(NamedTuple):
  """Starts one after another; where in their folder the runs lie; whether one of them must have gone back."""

  starts: Sequence[Start]
  runs: Sequence[str] = ('',)
  goes_back: bool = False


def cases(data_dir: pathlib.Path) -> dict[str, Case]:
  """All of them; `data_dir` holds a small prepared set for those that read files."""
  smokes = ('digits', 'mixture', 'regularized', 'mnist_flow')
  smoke, one, two = '--smoke', '--cpu_devices=1', '--cpu_devices=2'
  spied = {
    'mixture': (), 'regularized': (), 'ablation': ('--config.arm=curriculum_by_difficulty',)
  }  # fmt: skip
  files = (
    smoke, two, '--noconfig.synthetic', f'--config.data_dir={data_dir}', '--data_workers=0'
  )  # fmt: skip
  return {
    **{name: Case([Start(name)]) for name in smokes},
    **{arm: Case([Start('ablation', (smoke, f'--arm={arm}', two))]) for arm in ARMS},
    'resume': Case([
      Start('mixture', LONGER, {'end': (50, 'SIGTERM')}, status=128 + signal.SIGTERM),
      Start('mixture', LONGER, {'end': (50, 'SIGKILL')}, status=-signal.SIGKILL),
      Start('mixture', LONGER, {}),
    ]),
    'extend': Case([Start('mixture'), Start('mixture', (smoke, two, '--extend=40'))]),
    'rollback': Case([Start('mixture', LONGER, {'spike': (98, 106)}, spied=True)], goes_back=True),
    'population': Case(
      [Start('mixture', (smoke, two, '--population=seed=0..2'))], [f'seed={i}' for i in range(3)]
    ),
    'two processes': Case([Start('digits', (smoke, one), processes=2)]),
    'streamed': Case([Start('mnist_flow', files)]),
    **{
      f'rows {name}': Case([Start(name, (smoke, one, *more), {}, spied=True)])
      for name, more in spied.items()
    },
  }  # fmt: skip


def run(case: Case, root: pathlib.Path, folder: pathlib.Path, cache: pathlib.Path) -> str:
  """Makes the runs of a case with the package of the checkout at `root`; '' or how it failed."""
  for start in case.starts:
    workdir, notes = folder / 'run', folder / 'notes.jsonl'
    environment = checkouts.environment(
      root, JAX_PLATFORMS='cpu', JAX_COMPILATION_CACHE_DIR=str(cache)
    )
    command = [sys.executable, '-m', f'experiments.{start.experiment}']
    if start.orders is not None:
      own = root / TAMPERED
      command = [sys.executable, '-P', str(own if own.exists() else checkouts.HERE / TAMPERED)]
      orders = {'experiment': start.experiment, 'spy': str(notes) if start.spied else ''}
      environment['TAMPERED'] = json.dumps(orders | dict(start.orders))
    command += [f'--workdir={workdir}', *start.arguments]
    failure = _ended(_commands(command, start.processes), start.status, root, folder, environment)
    if failure:
      return failure
  return ''


def _commands(command: list[str], processes: int) -> list[list[str]]:
  """The command of each process."""
  if processes == 1:
    return [command]
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  together = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={processes}']
  return [[*command, *together, f'--process_id={i}'] for i in range(processes)]


def _ended(
  commands: list[list[str]],
  status: int,
  root: pathlib.Path,
  folder: pathlib.Path,
  environment: Mapping[str, str],
) -> str:
  """Lets the commands run side by side; '' if each ends with this status, else how one ended, with its last lines."""
  running = []
  for i, command in enumerate(commands):
    log = folder / f'log{i}.txt'
    with log.open('ab') as file:
      process = subprocess.Popen(
        command, cwd=root, env=dict(environment), stdout=file, stderr=subprocess.STDOUT
      )
    running.append((process, log))
  deadline, failure = time.monotonic() + SECONDS, ''
  for process, log in running:
    try:
      ended = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      ended = f'{process.wait()} after {SECONDS} s'
    if ended != status:
      tail = '\n'.join(log.read_text(errors='replace').splitlines()[-15:])
      failure = failure or f'status {ended} for {status} of {" ".join(process.args)}\n{tail}'
  return failure


def characterize(
  name: str, case: Case, roots: Mapping[str, pathlib.Path], folder: pathlib.Path
) -> tuple[list[dict[str, str]], list[str]]:
  """(cells of each run of the case, how it failed), the runs made in `folder`."""
  said = []
  for side, root in roots.items():
    place = folder / name.replace(' ', '_') / side
    place.mkdir(parents=True)
    failure = run(case, root, place, folder / 'cache')
    if failure:
      said.append(f'{name}, {side}: {failure}')
  if said:
    return [{'case': name, 'metrics': 'does not run'}], said
  rows = []
  for one in case.runs:
    label = f'{name} {one}'.strip()
    try:
      old, new = (_read(folder / name.replace(' ', '_') / side, one) for side in roots)
    except Exception as error:  # noqa: BLE001 - said, and the next case follows
      return [{'case': label, 'metrics': 'cannot be read'}], [f'{label}: {error!r}']
    rows.append({'case': label, **found.compare(old, new)})
    for side, its in zip(roots, (old, new), strict=True):
      if case.goes_back and all(step == cursor for step, cursor in its.steps):
        said.append(f'{label}, {side}: no rollback, so that none was compared')
        rows[-1]['metrics'] += ' (no rollback)'
  return rows, said


def _read(place: pathlib.Path, one: str) -> found.Found:
  return found.read(place / 'run' / one, place / 'notes.jsonl')


def _chosen(every: Mapping[str, Case]) -> dict[str, Case]:
  """The cases that --only names; raises ValueError for one there is not."""
  for name in ONLY.value:
    if name not in every:
      near = difflib.get_close_matches(name, every, 1, 0.0)[0]
      raise ValueError(
        f'--only: unknown case {name!r}: the nearest is {near!r} (all: {list(every)})'
      )
  return {name: case for name, case in every.items() if name in (ONLY.value or every)}


def _folder(scratch: pathlib.Path) -> pathlib.Path:
  """Where the runs go; raises ValueError for one that holds something, since runs would go on from it."""
  folder = pathlib.Path(KEEP.value).expanduser().resolve() if KEEP.value else scratch
  folder.mkdir(parents=True, exist_ok=True)
  if any(folder.iterdir()):
    raise ValueError(f'--keep={KEEP.value} is not empty: name a new folder')
  return folder


def main(_) -> None:
  """Runs, compares and prints."""
  logging.set_verbosity(logging.ERROR)
  with tempfile.TemporaryDirectory() as scratch:
    try:
      chosen = _chosen(cases(pathlib.Path(scratch, 'sets')))
      roots = {'old': checkouts.find(AGAINST.value), 'new': checkouts.HERE}
      folder = _folder(pathlib.Path(scratch, 'runs'))
    except (ValueError, OSError) as error:
      print(f'error: {error}', file=sys.stderr)
      raise SystemExit(2) from None
    commits = ', '.join(f'{side} {checkouts.commit(root)}' for side, root in roots.items())
    if 'streamed' in chosen:
      prepared.noise_as_mnist(pathlib.Path(scratch), 96, 16)
    rows, failures = [], []
    for name, case in chosen.items():
      begin = time.monotonic()
      cells, said = characterize(name, case, roots, folder)
      rows, failures = rows + cells, failures + said
      good = not said and all(map(_is_equal, cells))
      print(f'{name}: {"equal" if good else "differs"}, {time.monotonic() - begin:.0f} s', file=sys.stderr)  # fmt: skip
  header = ['case', *found.COLUMNS]
  print(tables.markdown(header, [[row.get(column, '') for column in header] for row in rows]))
  print(''.join(f'\n{said}\n' for said in failures))
  print(commits)
  equal = sum(map(_is_equal, rows))
  print(f'{equal} of {len(rows)} cases equal to the bit')
  raise SystemExit(int(equal < len(rows)))


def _is_equal(row: Mapping[str, str]) -> bool:
  return found.same({column: row.get(column, '') for column in found.COLUMNS})


if __name__ == '__main__':
  app.run(main)
