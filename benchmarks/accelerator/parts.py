"""The seven parts: what is asked, in which order, and what must be known for it.

A row that needs more seconds than are left is left out: about what it took on an H100 with nothing compiled. Rows of a
Transformer and of other precisions have not come to their end there yet, and are guessed.
"""

import json
import math
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.accelerator.bench import Bench, LeftOut, Process, missing, reason, stop
from benchmarks.accelerator.plans import PLANS

_WORKS = '20 steps of the digits network, and 10, saved, 10 more'
_BESIDE = 'its losses beside the CPU'
# Measured to be not enough by itself on an H100 with jax 0.11.2; so also without choosing kernels by their time.
_DETERMINISTIC = '--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0'
_PEERS_NEED = ('torch',)
_SAME = 'rows equal to the bit to those of the run left alone'
_RUNS_NEED = ('ml_collections', 'tensorboardX', 'sklearn', 'matplotlib', 'tqdm', 'PIL')
_FILES_NEED = ('grain', 'array_record', 'tensorflow_datasets')


def works(bench: Bench) -> None:
  """1: the accelerator's losses beside the CPU's, and what is the same to the bit."""
  bench.note(
    1, 'devices', lambda: {key: bench.header[key] for key in ('platform', 'kind', 'devices')}
  )
  on_cpu = None
  if not (bench.known(1, _WORKS) and bench.known(1, _BESIDE)):
    on_cpu = bench.start_function('first_losses', {'JAX_PLATFORMS': 'cpu'})
  try:
    here = bench.ask(1, _WORKS, 'works', 100)
    bench.note(1, _BESIDE, lambda: _beside_cpu(bench, here, on_cpu))
  finally:
    if on_cpu is not None:
      stop(on_cpu)
  if here and _differs(here) and bench.header['platform'] in ('gpu', 'cuda'):
    flags = f'{os.environ.get("XLA_FLAGS", "")} {_DETERMINISTIC}'.strip()
    bench.ask(1, f'the same with {_DETERMINISTIC}', 'repeatable', 60, {'XLA_FLAGS': flags})


def _differs(found: dict[str, Any]) -> bool:
  return any(value for name, value in found.items() if name.startswith('differ'))


def _beside_cpu(bench: Bench, here: dict[str, Any] | None, on_cpu: Process | None) -> dict:
  if here is None or on_cpu is None:
    raise LeftOut('there are no losses to compare')
  there = bench.result(on_cpu, bench.finish(on_cpu))
  pairs = list(zip(here['losses'], there['losses'], strict=True))
  return {
    'largest relative difference': max(abs(a - b) / abs(b) for a, b in pairs),
    'first, here and there': pairs[0],
    'last': pairs[-1],
  }


def training_step(bench: Bench) -> None:
  """2: images a second of the training step, ours and PyTorch's."""

  def ours(name: str, which: str, needs: float = 125, **options: Any) -> None:
    bench.ask(2, f'{name}, ours', 'step', needs, which=which, **options)

  def theirs(
    name: str, which: str, needs: float = 125, eager: bool = False, **options: Any
  ) -> None:
    if _has_peers(bench):
      title = f'{name}, PyTorch {"eager" if eager else "compiled"}'
      options |= {'which': which, 'compiled': not eager}
      bench.ask(2, title, 'torch_step', needs, packages=_PEERS_NEED, **options)

  ours('U-Net bfloat16', 'unet', narrow=True, count=True)
  theirs('U-Net bfloat16', 'unet', narrow=True)
  ours('U-Net TF32', 'float_unet', precision='tensorfloat32')
  theirs('U-Net TF32', 'float_unet', tf32=True)
  ours('DiT-B/2 bfloat16', 'dit', 100, narrow=True, count=True)
  theirs('DiT-B/2 bfloat16', 'dit', 100, narrow=True)
  ours('U-Net float32', 'float_unet', precision='highest')
  theirs('U-Net float32', 'float_unet')
  ours('U-Net bfloat16, one step a dispatch', 'unet', 125, narrow=True, per_dispatch=1)
  theirs('U-Net bfloat16', 'unet', 30, eager=True, narrow=True)
  if bench.header['devices'] > 1:
    ours('U-Net bfloat16, one device of all', 'unet', narrow=True, one_device=True)
  if bench.header['platform'] in ('gpu', 'cuda'):
    ours('DiT-B/2 bfloat16, cuDNN attention', 'dit', 100, narrow=True, fused_attention=True)


def _has_peers(bench: Bench) -> bool:
  """PyTorch is asked on NVIDIA's and AMD's cards, and as a toy."""
  return bench.header['platform'] in ('gpu', 'cuda', 'rocm') or bench.plan == 'tiny'


def sampling(bench: Bench) -> None:
  """3: DDIM, ours and PyTorch's."""
  bench.ask(3, 'U-Net bfloat16, ours', 'sample', 40)
  if _has_peers(bench):
    bench.ask(3, 'U-Net bfloat16, PyTorch compiled', 'torch_sample', 40, packages=_PEERS_NEED)


def populations(bench: Bench) -> None:
  """4: many seeds as one program against one run."""
  bench.ask(4, 'mixture', 'members', 60, which='mixture')
  bench.ask(4, 'digits', 'members', 100, which='digits')


def main_job(bench: Bench) -> None:
  """5: the digits from process start to report, cold, warm, and killed."""
  folder = bench.scratch / 'digits'
  # Programs of their own: what is cold is cold, whatever was measured before.
  environment = {'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled')}

  def cold() -> dict[str, Any]:
    missing(_RUNS_NEED)
    found = _experiment(bench, 'digits', folder / 'cold', environment=environment)
    shutil.copy(folder / 'cold' / 'samples.png', bench.out / 'digits.png')
    return found

  def killed() -> dict[str, Any]:
    missing(_RUNS_NEED)
    found = _experiment(bench, 'digits', folder / 'killed', environment=environment, kill=True)
    try:
      found |= _experiment(bench, 'digits', folder / 'killed', environment=environment)
    except LeftOut as error:
      raise LeftOut(f'continued: {error}', found, error.status) from None
    alone, again = (_rows(folder / name) for name in ('cold', 'killed'))
    return found | ({_SAME: alone == again} if alone else {})

  bench.note(5, 'digits, nothing compiled', cold)
  bench.note(5, 'digits, again, killed by kill -9 and continued', killed)


def _rows(folder: pathlib.Path) -> list[str]:
  """A run's rows, without their times."""
  path = folder / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  rows = [json.loads(line) for line in lines]
  return [json.dumps({k: v for k, v in row.items() if k != 'timing'}) for row in rows]


def _experiment(
  bench: Bench,
  name: str,
  folder: pathlib.Path,
  *flags: str,
  environment: Mapping[str, str] | None = None,
  kill: bool = False,
) -> dict[str, Any]:
  """Runs an experiment as a user does: seconds to its first row and to its report, and its results.

  A run that the deadline comes near is told to save and leave; with `kill` it is killed after some rows.
  """
  bench.require(30)
  begin, path = time.monotonic(), folder / 'metrics.jsonl'
  before = _lines(path)
  command = ['-m', f'experiments.{name}', f'--workdir={folder}', *PLANS[bench.plan].flags, *flags]
  process = bench.start(command, environment)
  found: dict[str, Any] = {}
  try:
    while process.popen.poll() is None:
      rows = _lines(path)
      if rows and not before and not found:
        found['first row (s)'] = time.monotonic() - begin
      if kill and rows >= 2 and any((folder / 'checkpoints').glob('*.sha256')):
        process.popen.kill()
        process.popen.wait()
        return found | {'rows when it was killed': rows}
      if bench.left() < 10:
        process.popen.send_signal(signal.SIGTERM)
        bench.finish(process)
        raise LeftOut('the time of this call was over', found | _last(path), 'cut off')
      time.sleep(0.005)
  finally:
    stop(process)
  if process.popen.returncode:
    raise LeftOut(reason(process), found or None, 'failed')
  if kill:
    raise LeftOut('it was finished before it could be killed', found)
  record = json.loads((folder / 'run.json').read_text())
  found |= {'report (s)': time.monotonic() - begin, 'steps': record['step']}
  return found | {'end': record['reason'], 'results': record['results'], 'speed': record['speed']}


def _lines(path: pathlib.Path) -> int:
  return path.read_bytes().count(b'\n') if path.exists() else 0


def _last(path: pathlib.Path) -> dict[str, Any]:
  """The last validation of a run that was not judged."""
  text = path.read_text() if path.exists() else ''
  rows = [json.loads(line) for line in text.split('\n')[:-1]]  # without a line half written
  held_out = [row for row in rows if 'validation/eps' in row]
  if not held_out:
    return {}
  return {
    'steps': held_out[-1]['step'],
    'results': {'validation/eps': held_out[-1]['validation/eps']},
  }


def feeding(bench: Bench) -> None:
  """6: what reaches the devices against what the step needs."""
  bench.ask(6, 'MNIST network, the step', 'step', 40, which='mnist')
  bench.ask(6, 'feeding', 'feeding', 40, packages=_FILES_NEED, data_dir=bench.data_dir)


def real_run(bench: Bench) -> None:
  """7: a run on real data in what time is left."""

  def run() -> dict[str, Any]:
    missing(_RUNS_NEED)
    name, flags = _affordable(bench)
    folder = bench.scratch / 'real'
    found = _experiment(bench, name, folder, *flags)
    for picture in ('samples.png', 'curves.png'):
      shutil.copy(folder / picture, bench.out / picture)
    return {'experiment': name, 'flags': ' '.join(flags)} | found

  bench.note(7, 'a real run', run)


def _affordable(bench: Bench, overhead: float = 100.0, share: float = 0.7) -> tuple[str, list[str]]:
  """(experiment, flags) that fit into the time left.

  Args:
    bench: the call.
    overhead: seconds for start, compilation and judging.
    share: of the bare step's speed that a run is taken to have.
  """
  if bench.plan == 'tiny':
    return 'mnist' if bench.data_dir else 'mixture', []
  if not bench.data_dir:
    return 'digits', ['--seed=1']
  missing(_FILES_NEED)
  speed = bench.known(6, 'MNIST network, the step')
  if speed is None:
    raise LeftOut('it is sized by the speed of the step, which part 6 measures')
  steps = share * speed['images/s'] * (bench.left() - overhead) / PLANS[bench.plan].mnist.batch
  count = min(20_000, math.floor(steps / 500) * 500)
  if count < 1000:  # of which 500 warm up
    raise LeftOut(f'{max(0, bench.left()):.0f} s were left, too little for 1,000 steps')
  return 'mnist', [f'--config.data_dir={bench.data_dir}', f'--config.num_steps={count}']


PARTS: dict[int, Callable[[Bench], None]] = {
  1: works,
  2: training_step,
  3: sampling,
  4: populations,
  5: main_job,
  6: feeding,
  7: real_run,
}
