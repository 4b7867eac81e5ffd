"""Programs as processes of their own, without seconds of imports for each.

They are forked from a server that has done the imports and nothing of JAX.
"""

import contextlib
import gc
import multiprocessing
import os
import pathlib
import runpy
import sys
from collections.abc import Mapping
from typing import Any

_IMPORTED = (
  'benchmarks.processes', 'diffusion.launch', 'experiments.cifar10', 'experiments.digits', 'matplotlib.figure',
  'orbax.checkpoint.v1', 'scipy.stats', 'sklearn.datasets', 'tensorboardX', 'tqdm',
)  # fmt: skip


def _program(
  module: str,
  arguments: tuple[str, ...],
  log: pathlib.Path,
  errors: pathlib.Path,
  environment: Mapping[str, str | None],
) -> None:
  gc.freeze()  # what the server has imported need not be looked through again
  for channel, path in ((1, log), (2, errors)):
    with path.open('ab') as file:
      os.dup2(file.fileno(), channel)
  sys.stdout.reconfigure(line_buffering=True)  # what is aborted has said what it said
  for name, value in environment.items():
    with contextlib.suppress(KeyError):
      del os.environ[name]
    if value is not None:
      os.environ[name] = value
  sys.argv = [module, *arguments]
  runpy.run_module(module, run_name='__main__', alter_sys=True)


def run_module(
  module: str,
  *arguments: str,
  log: pathlib.Path,
  errors: pathlib.Path | None = None,
  environment: Mapping[str, str | None] | None = None,
) -> Any:
  """`python -m module`, started; its output is added to `log`.

  Args:
    module: its name.
    *arguments: of its command line.
    log: where it writes.
    errors: where it writes what goes to standard error; None is there too.
    environment: variables that it has beside the server's, or (None) has not; those that are read by an import are not
      changed by it.
  """
  server = multiprocessing.get_context('forkserver')
  server.set_forkserver_preload(list(_IMPORTED))
  process = server.Process(
    target=_program, args=(module, arguments, log, errors or log, environment or {})
  )
  process.start()
  return process


def start(
  workdir: pathlib.Path,
  *arguments: str,
  experiment: str = 'mixture',
  log: pathlib.Path | None = None,
) -> Any:
  """An experiment on a folder, started; its output is added to `log`, or `<workdir>.log`."""
  log = log or workdir.with_suffix('.log')
  return run_module(f'experiments.{experiment}', f'--workdir={workdir}', *arguments, log=log)


def finish(process: Any, workdir: pathlib.Path) -> str:
  """What a process on a folder wrote, when it has ended; raises RuntimeError if it did not end well."""
  process.join()
  output = workdir.with_suffix('.log').read_text()
  if process.exitcode:
    raise RuntimeError(f'exit status {process.exitcode}: {output}')
  return output
