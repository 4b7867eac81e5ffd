"""Experiments as processes of their own, without seconds of imports for each.

They are forked from a server that has done the imports and nothing of JAX.
"""

import multiprocessing
import os
import pathlib
import runpy
import sys
from typing import Any

_IMPORTED = (
  'benchmarks.processes', 'diffusion.launch', 'experiments.cifar10', 'experiments.digits', 'matplotlib.figure',
  'orbax.checkpoint.v1', 'scipy.stats', 'sklearn.datasets', 'tensorboardX', 'tqdm',
)  # fmt: skip


def _program(experiment: str, arguments: tuple[str, ...], log: pathlib.Path) -> None:
  with log.open('ab') as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  sys.argv = [experiment, *arguments]
  runpy.run_module(f'experiments.{experiment}', run_name='__main__', alter_sys=True)


def start(
  workdir: pathlib.Path,
  *arguments: str,
  experiment: str = 'mixture',
  log: pathlib.Path | None = None,
) -> Any:
  """An experiment on a folder, started; its output is added to `log`, or `<workdir>.log`."""
  server = multiprocessing.get_context('forkserver')
  server.set_forkserver_preload(list(_IMPORTED))
  log = log or workdir.with_suffix('.log')
  process = server.Process(
    target=_program, args=(experiment, (f'--workdir={workdir}', *arguments), log)
  )
  process.start()
  return process


def finish(process: Any, workdir: pathlib.Path) -> str:
  """What a process on a folder wrote, when it has ended; raises RuntimeError if it did not end well."""
  process.join()
  output = workdir.with_suffix('.log').read_text()
  if process.exitcode:
    raise RuntimeError(f'exit status {process.exitcode}: {output}')
  return output
