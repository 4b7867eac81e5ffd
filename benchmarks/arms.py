"""Runs the smoke run of every arm of `experiments.ablation`, two at a time, and prints how each ended.

  python -m benchmarks.arms --workdir=runs/arms

Printed: a line an arm (exit status, seconds, held-out loss), then the count. Status 1 if any failed.
"""

import concurrent.futures
import pathlib
import subprocess
import sys
import time

from absl import app, flags

from diffusion.provenance import read_record
from experiments import ablation

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the runs.', required=True)
JOBS = flags.DEFINE_integer('jobs', 2, 'Runs at a time.', lower_bound=1)


def smoke(arm: str) -> tuple[str, int, float, str]:
  """(arm, exit status, seconds, held-out loss or the last line of an error)."""
  folder = pathlib.Path(WORKDIR.value) / arm
  command = [sys.executable, '-m', 'experiments.ablation', f'--workdir={folder}', f'--arm={arm}']
  begin = time.perf_counter()
  done = subprocess.run([*command, '--smoke'], capture_output=True, text=True, check=False)
  seconds = time.perf_counter() - begin
  if done.returncode:
    return arm, done.returncode, seconds, (done.stderr or done.stdout).strip().splitlines()[-1]
  return arm, 0, seconds, f'{read_record(folder)["results"]["validation/eps"]:.4f}'


def main(_) -> None:
  """Runs and prints."""
  failed = 0
  with concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
    for arm, status, seconds, said in pool.map(smoke, ablation.ARMS):
      failed += status != 0
      print(f'{arm:<28} {status:>3} {seconds:6.1f} s  {said}', flush=True)
  print(f'{len(ablation.ARMS) - failed} of {len(ablation.ARMS)} arms passed')
  sys.exit(int(failed > 0))


if __name__ == '__main__':
  app.run(main)
