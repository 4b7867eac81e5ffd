"""Several processes as one run: how they find each other, agree, share what process 0 knows, and end together.

Each process runs the same program with the same flags and drives its own devices. Process 0 alone writes the run's
folder, and the others are sent what they need of it, but for checkpoints: all read them, so the folder must lie where
all see it. A single process pays nothing: every function here then returns at once.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from diffusion import checks, witness

_TIMEOUT = 300  # seconds to find each other in
_MEET = 1800  # seconds for all to come where they must meet: loading data may take one longer than another
_PIECE = 1 << 26  # bytes sent at a time


class Agreed(ValueError):
  """An error that all processes know of, so that one of them is enough to say it."""


def check_flags(coordinator: str, num_processes: int | None, process_id: int | None) -> bool:
  """Whether the processes are given by flags.

  Raises:
    ValueError: some of the three flags without the others, or one out of its range.
  """
  given = {
    '--coordinator': coordinator or None,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == 3:
    return False
  if missing:
    raise ValueError(
      f'{", ".join(given)} go together, and {" and ".join(missing)} is missing: give all three or none'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal():
    raise ValueError(f'--coordinator must be host:port of process 0, got {coordinator!r}')
  checks.integer('--num_processes', num_processes)
  checks.integer('--process_id', process_id, 0)
  if process_id >= num_processes:
    raise ValueError(
      f'--process_id must be below --num_processes = {num_processes}, got {process_id}'
    )
  return True


def cluster(env: Mapping[str, str], platforms: str | None) -> tuple[str | None, int] | None:
  """A cluster that JAX knows how to join.

  Only the environment is looked at, so that a plain host neither asks nor waits. Tasks that are alone (`srun -n 1`, an
  interactive allocation, a TPU host of its own) are no cluster.

  Args:
    env: the environment.
    platforms: those that JAX may use; 'cpu' leaves the chips of a TPU alone.

  Returns:
    (its name in JAX, None where JAX shall search; the processes, 1 if unknown), or None.
  """
  if env.get('TPU_ML_PLATFORM') == 'JAX' and platforms != 'cpu':  # JAX has seen chips
    hosts = env.get('TPU_PROCESS_ADDRESSES') or env.get('TPU_WORKER_HOSTNAMES')
    count = len(hosts.split(',')) if hosts else 1
    return (None, count) if hosts is None or count > 1 else None
  if 'SLURM_PROCID' in env and int(env.get('SLURM_STEP_NUM_TASKS') or 1) > 1:
    return 'slurm', int(env['SLURM_STEP_NUM_TASKS'])
  indexed = 'KUBERNETES_SERVICE_HOST' in env and 'JOB_COMPLETION_INDEX' in env
  return ('k8s', 1) if indexed and importlib.util.find_spec('kubernetes') else None


def initialize(
  coordinator: str = '',
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_seconds: int = 10,
) -> int:
  """Joins the processes of a run; to be called before anything else of JAX.

  By flags, or where the environment names a TPU pod, a SLURM step of several tasks or an indexed Kubernetes job, as JAX
  finds it there. Anywhere else it does nothing.

  Args:
    coordinator: host:port of process 0, which the others can reach.
    num_processes: of the run.
    process_id: of this one, in [0, num_processes).
    heartbeat_seconds: a process that gave no sign of life for so long is gone, and all others end.

  Returns:
    The number of processes, as far as it is known without asking a device; else 1.

  Raises:
    ValueError: flags that do not go together, or processes that do not find each other within five minutes.
  """
  given = check_flags(coordinator, num_processes, process_id)
  checks.integer('--heartbeat_seconds', heartbeat_seconds)
  joining = 'deactivate', num_processes
  if not given:
    joining = cluster(os.environ, jax.config.jax_platforms) or (None, 0)
  method, count = joining
  if count == 0 or (given and count == 1):
    return 1
  _call_witness(count)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      coordinator or None, num_processes, process_id, cluster_detection_method=method,
      initialization_timeout=_TIMEOUT, heartbeat_timeout_seconds=heartbeat_seconds,
    )  # fmt: skip
  except (RuntimeError, ValueError, OSError) as error:
    where = f' at {coordinator}' if coordinator else ''
    raise ValueError(
      f'the {count} processes did not find each other{where}: {one_line(error)}'
    ) from error
  return count


def _call_witness(total: int) -> None:
  """Starts `witness` to read what the runtime writes to the standard error; Python keeps writing to the old one."""
  readable, writable = os.pipe()
  program = pathlib.Path(__file__).with_name('witness.py')
  os.posix_spawn(
    sys.executable,
    [sys.executable, '-I', '-S', str(program), str(total)],
    os.environ,
    file_actions=[(os.POSIX_SPAWN_DUP2, readable, 0)],
    setsid=True,  # or Ctrl-C in a terminal would end it first
  )
  sys.stderr.flush()
  sys.stderr = os.fdopen(os.dup(2), 'w', buffering=1, errors='backslashreplace')
  os.dup2(writable, 2)
  os.close(readable)
  os.close(writable)


def joined() -> bool:
  """Whether `initialize` has joined processes, though it may be one alone; asks no device."""
  return jax.distributed.is_initialized()


def alone() -> bool:
  """Whether this is the only process."""
  return not joined() or jax.process_count() == 1


def is_writer() -> bool:
  """Whether this process reads and writes the run's folder: process 0."""
  return alone() or jax.process_index() == 0


def quiet() -> None:
  """Keeps the standard output of all but the writer silent, that of C++ included."""
  if not is_writer():
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def barrier(name: str, seconds: float = _MEET) -> None:
  """Waits until all processes are here.

  Args:
    name: of the place, the same on all processes.
    seconds: to wait at most, > 0.

  Raises:
    ValueError: naming the processes that did not come in time.
  """
  if alone():
    return
  try:
    multihost.get_barrier_sync_fn()(key=f'diffusion {name}', timeout_ms=int(seconds * 1000))
  except jax.errors.JaxRuntimeError as error:
    if 'timed out' not in str(error):
      raise
    late = str(error).partition('timed out task names:')[2].split('RPC:')[0].split()
    raise ValueError(
      f'process {" and ".join(late)} of {jax.process_count()} did not come to {name!r} within {seconds:g} s'
    ) from error


def gather(x: np.ndarray) -> np.ndarray:
  """The arrays of all processes, of one shape, on each of them: [processes, ...]."""
  return x[None] if alone() else multihost_utils.process_allgather(x)


def texts(text: str) -> list[str]:
  """The texts of all processes, in their order."""
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = gather(np.asarray(len(data), np.int32))
  padded = np.zeros(max(1, sizes.max()), np.uint8)
  padded[: len(data)] = data
  found = zip(gather(padded), sizes, strict=True)
  return [row[:size].tobytes().decode() for row, size in found]


@contextlib.contextmanager
def together(name: str, seconds: float = _MEET) -> Iterator[None]:
  """All processes succeed in the body, or all fail.

  Raises:
    Agreed: with what each process has to say, where the body raised ValueError or OSError in any of them.
    ValueError: as `barrier` does.
  """
  try:
    yield
  except (ValueError, OSError) as error:
    if alone() or isinstance(error, Agreed):
      raise
    _compare(name, one_line(error), seconds)
    raise
  else:
    if not alone():
      _compare(name, '', seconds)


def _compare(name: str, said: str, seconds: float) -> None:
  barrier(name, seconds)
  found = texts(said)
  if len(set(found)) == 1 and found[0]:
    raise Agreed(found[0])
  if any(found):
    raise Agreed('; '.join(f'process {i}: {one}' for i, one in enumerate(found) if one))


def check_same(name: str, value: Any) -> None:
  """Raises Agreed unless `value`, as JSON, is the same on all processes."""
  if alone():
    return
  barrier(name)
  found = texts(json.dumps(value))
  for number, one in enumerate(found):
    if one != found[0]:
      raise Agreed(
        f'{name} must be the same on all processes: {one} on process {number}, {found[0]} on process 0'
      )


def from_writer(make: Callable[[], Any]) -> Any:
  """What `make` returns on process 0, on all processes; the others do not call it.

  Args:
    make: reads or writes the run's folder; its result must be picklable, arrays NumPy.

  Raises:
    Agreed: on all, where it raised ValueError or OSError.
  """
  if alone():
    return make()
  message = b''
  if is_writer():
    try:
      message = pickle.dumps((True, make()), pickle.HIGHEST_PROTOCOL)
    except (ValueError, OSError) as error:
      message = pickle.dumps((False, one_line(error)))
  barrier('what process 0 knows')  # which may take it longer than a collective waits
  good, value = pickle.loads(_broadcast(message))
  if not good:
    raise Agreed(value)
  return value


def _broadcast(data: bytes) -> bytes:
  """The bytes of process 0, in pieces whose sizes are powers of two, so that few programs are compiled."""
  sent = np.asarray([len(data) >> 30, len(data) & (1 << 30) - 1], np.int32)
  high, low = (int(n) for n in multihost_utils.broadcast_one_to_all(sent))
  total, found = (high << 30) + low, []
  for start in range(0, total, _PIECE):
    size = min(_PIECE, total - start)
    piece = np.zeros(1 << (size - 1).bit_length(), np.uint8)
    if is_writer():
      piece[:size] = np.frombuffer(data[start : start + size], np.uint8)
    found.append(multihost_utils.broadcast_one_to_all(piece)[:size].tobytes())
  return b''.join(found)


def preemption(cursor: int, steps: int) -> Callable[[], str | None]:
  """A function to ask once a dispatch: 'SIGTERM' on all processes after the same one, soon after any got it; else None.

  JAX catches the signal, tells the others, and agrees with them on a number that none has asked for yet. Orbax asks for
  the numbers of its checkpoints, which are cursors, so these are asked for here, one by one.

  Args:
    cursor: where training starts.
    steps: that a dispatch moves it on.
  """
  starts = itertools.count(cursor + 1, steps)

  def interrupted() -> str | None:
    first = next(starts)
    reached = [
      multihost_utils.reached_preemption_sync_point(n) for n in range(first, first + steps)
    ]
    return 'SIGTERM' if any(reached) else None

  return interrupted


def end_on_sigterm() -> None:
  """From here on SIGTERM ends this process, of several: JAX only notes it, for `preemption` to be asked."""
  if joined():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def is_loss(error: BaseException | None) -> bool:
  """Whether an error, or what led to it, says that a collective failed, as it does where another process is gone."""
  while error is not None:
    if isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' not in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def lost(error: Exception, seconds: float) -> NoReturn:
  """Ends a process whose computation failed, as it does where another process is gone.

  Args:
    error: what the collective raised; it does not say which process is gone.
    seconds: for the runtime to find out and end this process, with the other's name.
  """
  time.sleep(seconds)
  print(
    f'error: a step of {jax.process_count()} processes failed, as it does where one is gone: '
    f'{one_line(error)}; {witness.AGAIN}',
    file=sys.stderr,
  )
  leave(1)


def leave(status: int) -> NoReturn:
  """Ends this process at once, of several: an orderly exit would wait for the others, who may be anywhere."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def finish(status: int) -> int:
  """Ends the run of several processes: waits for all, so that none takes the end of another for its death."""
  if not alone():
    barrier('the end')
    jax.distributed.shutdown()
  return status


def one_line(error: Exception) -> str:
  """The message of bad input, or an error's name and message, without line breaks."""
  text = ' '.join(str(error).split())
  return text if isinstance(error, ValueError) else f'{type(error).__name__}: {text}'
