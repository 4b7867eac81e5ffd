"""What a run costs beside its steps: from process start to first step, and the loop around the steps.

Run     python -m benchmarks.overhead

Starts the digits experiment as a user does, once with an empty folder of compiled programs and then again, and reads
the times of its rows; its first row follows its first dispatch, of ten steps. The bare step is the same program
dispatched again and again in a process of its own. The loop is everything from one row to another: rows, progress,
checkpoints, early stopping, validation. It is measured from the row after the first validation, which has a program to
compile or to load, to the row after the last one that another row follows.
"""

import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl import app, flags

from benchmarks import contest
from diffusion import checkout, devices
from diffusion.reporting import tables
from diffusion.reporting.rows import read_json_lines
from diffusion.training.experiment import load_data
from diffusion.training.program import SingleRun
from diffusion.training.state import init_state
from experiments import digits

ROUNDS = flags.DEFINE_integer('rounds', 3, 'Runs, each after bare steps.')
STEPS = flags.DEFINE_integer('steps', 320, 'Steps of a run.', lower_bound=220)


def bare(steps: int) -> tuple:
  """(work, units, facts): one dispatch of the digits experiment."""
  experiment = digits.build(digits.Config(num_steps=steps))
  devices.configure(experiment.batch_size)
  devices.choose_convolutions()
  data = load_data(experiment)
  program = SingleRun(experiment, data)
  program.put(0, devices.replicate(init_state(experiment, data.example, data.units)))
  program.validate(0)
  begin = time.perf_counter()
  program.validate(0)
  validation = time.perf_counter() - begin
  seen = itertools.count(0, experiment.steps_per_dispatch)

  def work() -> None:
    program.dispatch([next(seen)])(0)  # whose metrics are waited for

  return work, experiment.steps_per_dispatch, {'validation': validation}


def run(folder: pathlib.Path, cache: pathlib.Path, steps: int) -> tuple[float, float]:
  """(seconds from the process's start to its first row, seconds a step of the loop)."""
  begin = time.perf_counter()
  command = [sys.executable, '-m', 'experiments.digits', f'--workdir={folder}', f'--config.num_steps={steps}',
             '--config.samples_per_class=2', '--config.sampling_steps=2']  # fmt: skip
  process = subprocess.Popen(
    command, env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)}, stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )  # fmt: skip
  rows, path = [], folder / 'metrics.jsonl'
  while not rows and process.poll() is None:
    time.sleep(0.02)
    rows = read_json_lines(path) if path.exists() else []
  started = time.perf_counter() - begin
  if process.wait():
    raise RuntimeError(f'{" ".join(command)} ended with status {process.returncode}')
  every, after = digits.Config.validate_every, digits.Config.log_every
  clock = {row['cursor']: row['timing']['wall_seconds'] for row in read_json_lines(path)}
  validations = (steps - after - 1) // every  # that a row follows which is not the last
  first, last = every + after, validations * every + after
  return started, (clock[last] - clock[first]) / (last - first)


def main(_) -> None:
  """Measures and prints."""
  top = pathlib.Path(tempfile.mkdtemp())
  cold, warm, ratio, steps = [], [], [], []
  running = contest.start(contest.Contender(bare, (STEPS.value,)), 5.0)
  try:
    for i in range(ROUNDS.value + 1):
      speed, others = running.measure()
      seconds, each = run(top / f'run{i}', top / 'cache', STEPS.value)
      print(f'others took {others:.2f} cores; start {seconds:.1f} s; {1e3 * each:.1f} ms a step in the run, '
            f'{1e3 / speed:.1f} bare', flush=True)  # fmt: skip
      (warm if i else cold).append(seconds)
      steps.append(1e3 * each)
      ratio.append(each * speed)
  finally:
    running.process.kill()
    shutil.rmtree(top)
  rows = [
    (name, *(f(values) for f in (np.median, np.min, np.max)))
    for name, values in (
      ('process start to first row, nothing compiled (s)', cold),
      ('process start to first row, again (s)', warm),
      ('a step in the run (ms)', steps),
      ('a step in the run / a bare step', ratio),
    )
  ]
  print(tables.markdown(['digits', 'median', 'least', 'most'], rows))
  print(
    f'one validation takes {running.facts["validation"]:.3f} s, every {digits.Config().validate_every} steps'
  )
  print(f'{contest.machine()}, jax {jax.__version__}, commit {checkout.code()["commit"]}')


if __name__ == '__main__':
  app.run(main)
