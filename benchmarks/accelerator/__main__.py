"""All that a reader asks of an accelerator, in minutes: does it work, how fast, beside PyTorch, how a real run goes.

Run     python -m benchmarks.accelerator --out=DIR --minutes=6 --parts=1,2,3,4
        python -m benchmarks.accelerator --out=DIR --minutes=6 --parts=5,6,7 --wheels=WHEELS --data_dir=DATA
Toy     python -m benchmarks.accelerator --out=DIR --tiny      (any CPU, under three minutes; the tests run this)

Rows are measured one after another, each in a process of its own, as long as there is time; what is known is in DIR
after each: results.json, sections.md for docs/PERFORMANCE.md, pictures. The same command goes on with what is missing.
A row that cannot be measured says why, and the next one follows. Nothing is downloaded.

1 the accelerator's losses beside the CPU's; what is the same to the bit   2 training step   3 sampling   4 populations
5 the digits from start to report, killed and continued   6 feeding   7 a real run in the time that is left
"""

import hashlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from benchmarks.accelerator.bench import Bench, LeftOut
from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.sections import Row
from diffusion import checkout, provenance

OUT = flags.DEFINE_string(
  'out', None, 'Folder of the results; what is there is kept.', required=True
)
MINUTES = flags.DEFINE_float('minutes', 6.0, 'When everything ends.', lower_bound=0.1)
PARTS_ = flags.DEFINE_list('parts', list(map(str, PARTS)), 'Which parts, of 1 to 7.')
ROWS = flags.DEFINE_string('rows', '', 'Only rows whose name has this regular expression in it.')
WHEELS = flags.DEFINE_string('wheels', '', 'A folder of wheels to use beside what is installed.')
DATA_DIR = flags.DEFINE_string('data_dir', '', 'Where MNIST is prepared, for parts 6 and 7.')
COMMIT = flags.DEFINE_string('commit', '', 'Which commit this is, in a copy where git cannot say.')
TINY = flags.DEFINE_boolean('tiny', False, 'Toy sizes: does the command work?')


def chosen(names: Sequence[str]) -> list[int]:
  """The parts of these names, in the order given; raises ValueError for one that there is not."""
  wrong = [name for name in names if name not in map(str, PARTS)]
  if wrong or not names:
    raise ValueError(f'--parts takes some of {",".join(map(str, PARTS))}, got {",".join(names)!r}')
  return list(dict.fromkeys(map(int, names)))


def pattern(rows: str) -> re.Pattern[str]:
  """Which rows are asked for; raises ValueError for what is no regular expression."""
  try:
    return re.compile(rows)
  except re.error as error:
    raise ValueError(f'--rows={rows} is not a regular expression: {error}') from None


def unpack(wheels: str, target: pathlib.Path) -> dict[str, str]:
  """The environment in which the wheels of a folder are found; raises ValueError where they cannot be unpacked."""
  if not wheels:
    return {}
  files = sorted(map(str, pathlib.Path(wheels).glob('*.whl')))
  if not files:
    raise ValueError(f'--wheels={wheels} has no wheel (*.whl) in it')
  pip = [
    sys.executable,
    '-m',
    'pip',
    'install',
    '--quiet',
    '--no-index',
    '--no-deps',
    '--no-compile',
  ]
  pip.append('--target')
  done = subprocess.run([*pip, str(target), *files], capture_output=True, text=True, check=False)
  if done.returncode:
    raise ValueError(
      f'--wheels={wheels}: {(done.stderr.strip().splitlines() or ["pip failed"])[-1]}'
    )
  sys.path.append(str(target))
  return {'PYTHONPATH': os.pathsep.join(filter(None, [os.environ.get('PYTHONPATH'), str(target)]))}


def version(package: str) -> str | None:
  """That of an installed package; None without it."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def digest() -> str:
  """A hash of all code that a row rests on: what another one measured is measured again."""
  whole, root = hashlib.sha256(), pathlib.Path(__file__).parents[2]
  for folder in ('benchmarks', 'diffusion', 'experiments'):
    for path in sorted((root / folder).rglob('*.py')):
      whole.update(path.read_bytes())
  return whole.hexdigest()[:16]


def driver() -> str | None:
  """NVIDIA's, None without one."""
  command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
  except (OSError, subprocess.SubprocessError):
    return None
  return ', '.join(sorted(set(done.stdout.split()))) or None


def look(bench: Bench) -> dict[str, Any]:
  """What this call runs on; raises ValueError where JAX does not start."""
  code = checkout.code()
  process = bench.start_function('describe')
  try:
    found = bench.result(process, bench.finish(process))
  except LeftOut as error:
    raise ValueError(f'JAX does not start: {error}') from None
  if found['platform'] == 'cpu' and bench.plan == 'full':
    raise ValueError(
      'JAX found no accelerator, and a CPU takes hours: --tiny tries the command there'
    )
  command = ' '.join(provenance.command())
  known = {name: version(name) for name in ('jaxlib', 'flax', 'optax', 'orbax-checkpoint')}
  return found | known | {
    'code': digest(), 'driver': driver(), 'torch': version('torch'), 'plan': bench.plan, 'command': command,
    'commit': code['commit'] or COMMIT.value or 'unknown', 'changed': bool(code['diff']),
  }  # fmt: skip


def main(_) -> None:
  """Measures, prints and writes."""
  begin = time.monotonic()
  out = pathlib.Path(OUT.value).absolute()
  scratch = pathlib.Path(tempfile.mkdtemp(prefix='accelerator'))
  try:
    parts = chosen(PARTS_.value)
    out.mkdir(parents=True, exist_ok=True)
    environment = unpack(WHEELS.value, scratch / 'wheels')
    # An empty folder of compiled programs: what is cold is cold.
    environment['JAX_COMPILATION_CACHE_DIR'] = str(scratch / 'compiled')
    environment['JAX_TRACEBACK_FILTERING'] = 'off'  # or the last lines are about the traceback
    if TINY.value:  # compiled in half the time, to code that nobody waits for
      quick = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
      environment['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', quick)
    data_dir = DATA_DIR.value and str(pathlib.Path(DATA_DIR.value).expanduser().absolute())
    plan, deadline = 'tiny' if TINY.value else 'full', begin + 60 * MINUTES.value
    bench = Bench(out, plan, deadline, scratch, environment, data_dir, pattern(ROWS.value))
    header = look(bench)
    print(', '.join(f'{name} {value}' for name, value in header.items()), flush=True)
    bench.begin(header)
    measure(bench, parts)
    print(f'{time.monotonic() - begin:.0f} s in all; {out / "sections.md"}')
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    raise SystemExit(2) from None
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def measure(bench: Bench, parts: Sequence[int]) -> None:
  """All parts in turn; one that fails says why in a row, and the next one follows."""
  for part in parts:
    begin = time.monotonic()
    try:
      PARTS[part](bench)
    except Exception as error:  # noqa: BLE001 - told in a row
      why, took = f'{type(error).__name__}: {error}', time.monotonic() - begin
      bench.write(Row(part, 'the part itself', 'failed', why, took, None, bench.call))
    print(f'part {part} took {time.monotonic() - begin:.1f} s', flush=True)


if __name__ == '__main__':
  app.run(main)
