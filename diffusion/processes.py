"""Several processes as one run: how they find each other, agree, follow process 0, and end together.

Each process runs the same program with the same flags and drives its own devices. Process 0 alone writes the run's
folder and decides what only one can decide, which it tells the others in a few words of JSON. What the folder holds
each reads there, so it must lie where all see it. A single process pays nothing: every function here then returns at
once.
"""

import contextlib
import errno
import importlib.util
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from diffusion import checks
from diffusion.naming import printable

_MEET = 1800  # seconds for all to come where they must meet: loading data may take one longer than another
_PATIENCE = 9.0  # seconds for this process to end in order
AGAIN = 'start all processes again with the same command, the run goes on from the last checkpoint'


class Agreed(ValueError):
  """An error that all processes know of, so that one of them is enough to say it."""


def check_flags(coordinator: str, num_processes: int | None, process_id: int | None) -> bool:
  """Whether the processes are given by flags.

  Args:
    coordinator: host:port of process 0; '' where it is not given.
    num_processes: how many there are, >= 1; None where it is not given.
    process_id: this one's number, in [0, num_processes); None where it is not given.

  Raises:
    ValueError: some of the three flags without the others, or one out of its range.
  """
  names = '--coordinator', '--num_processes', '--process_id'
  values = coordinator or None, num_processes, process_id
  missing = [name for name, value in zip(names, values, strict=True) if value is None]
  if 0 < len(missing) < 3:
    raise ValueError(
      f'{", ".join(names)} go together, and {" and ".join(missing)} is missing: give all three or none'
    )
  if missing:
    return False
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
  if given:
    method, count = 'deactivate', num_processes
  else:
    method, count = cluster(os.environ, jax.config.jax_platforms) or (None, 0)
  if count == 0 or (given and count == 1):
    return 1
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      coordinator or None, num_processes, process_id, cluster_detection_method=method,
      heartbeat_timeout_seconds=heartbeat_seconds,
    )  # fmt: skip
  except (RuntimeError, ValueError, OSError) as error:
    where = coordinator or 'the address that the cluster gives'
    raise ValueError(
      f'the processes did not find each other at {where}: {one_line(error)}'
    ) from None
  return count


def joined() -> bool:
  """Whether `initialize` has joined processes, though it may be one alone; asks no device."""
  return jax.distributed.is_initialized()


def alone() -> bool:
  """Whether this is the only process."""
  return not joined() or jax.process_count() == 1


def is_writer() -> bool:
  """Whether this process writes the run's folder: process 0."""
  return alone() or jax.process_index() == 0


def quiet() -> None:
  """Keeps the standard output of all but the writer silent, that of C++ included."""
  if not is_writer():
    sys.stdout.flush()
    with open(os.devnull, 'wb') as nowhere:
      os.dup2(nowhere.fileno(), 1)


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
    late = str(error).partition('timed out task names:')[2].split('RPC:')[0].split()
    if not late:
      raise
    raise ValueError(
      f'process {" and ".join(late)} of {jax.process_count()} did not come to {name!r} within {seconds:g} s: {AGAIN}'
    ) from None


def gather(x: np.ndarray) -> np.ndarray:
  """The arrays of all processes, of one shape, on each of them: [processes, ...]."""
  return x[None] if alone() else multihost_utils.process_allgather(x)


def texts(name: str, text: str) -> list[str]:
  """The texts of all processes, in their order, once all have come to the place of this name."""
  barrier(name)  # some may take longer to come than a collective waits
  data = np.frombuffer(text.encode(), np.uint8)
  size = 1 + gather(np.asarray(len(data))).max()
  rows = gather(np.pad(data, (0, size - len(data))))
  return [row.tobytes().rstrip(b'\0').decode() for row in rows]


@contextlib.contextmanager
def together(name: str) -> Iterator[None]:
  """All processes succeed in the body, or all fail.

  Raises:
    Agreed: where the body raised ValueError or OSError in any of them, with what process 0 has to say if no other says
      anything else, and else with what each says.
    ValueError: as `barrier` does.
  """
  said = ''
  try:
    yield
  except (ValueError, OSError) as error:
    if alone() or isinstance(error, Agreed):
      raise
    said = one_line(error)
  found = texts(name, said)
  if set(found) - {''} == {found[0]}:
    raise Agreed(found[0])
  if any(found):
    raise Agreed('; '.join(f'process {i}: {one}' for i, one in enumerate(found) if one))


def check_same(name: str, value: Any) -> None:
  """Raises Agreed unless `value`, as JSON, is the same on all processes."""
  found = texts(name, json.dumps(value))
  for number, one in enumerate(found):
    if one != found[0]:
      raise Agreed(
        f'{name} must be the same on all processes: {one} on process {number}, {found[0]} on process 0'
      )


def from_writer(decide: Callable[[], Any]) -> Any:
  """What `decide` returns on process 0, on all processes; the others do not call it.

  Args:
    decide: may read and write the run's folder; returns something short that JSON gives back as it was: text, numbers,
      lists, dicts of them by text. Contents are read by each process instead, see `from_folder`.

  Raises:
    Agreed: on all of several, where it raised ValueError or OSError.
    TypeError: a value that is something else after JSON, as tuples and dicts by number are.
  """
  text = ''
  with together('what process 0 decides'):
    if is_writer():
      value = decide()
      text = json.dumps(value)
      if json.loads(text) != value:
        raise TypeError(f'process 0 tells only what JSON gives back as it was, got {value!r}')
  return json.loads(texts('what process 0 tells', text)[0])


def from_folder(read: Callable[[], Any]) -> Any:
  """What `read` finds in the run's folder, on each process, after all that process 0 wrote before.

  Raises:
    Agreed: on all, where it raised ValueError or OSError on any, e.g. since that one does not see the folder.
  """
  barrier("the run's folder")
  with together("the run's folder"):
    return read()


def preemption(batches_seen: int, steps: int) -> Callable[[], str | None]:
  """A function to ask once a dispatch: 'SIGTERM' on all processes after the same one, soon after any got it; else None.

  JAX catches the signal, tells the others, and agrees with them on a number that none has asked for yet. Orbax asks for
  the numbers of its checkpoints, which are cursors, so these are asked for here, one by one.

  Args:
    batches_seen: where training starts.
    steps: that a dispatch moves it on.
  """
  starts = itertools.count(batches_seen + 1, steps)

  def interrupted() -> str | None:
    first = next(starts)
    reached = map(multihost_utils.reached_preemption_sync_point, range(first, first + steps))
    return 'SIGTERM' if any(reached) else None

  return interrupted


def is_loss(error: BaseException | None) -> bool:
  """Whether an error, or what led to it, says that a collective failed, as it does where another process is gone.

  JAX raises its own error for it where it waits, and ValueError where it fetches the result.
  """
  while error is not None:
    runtime = isinstance(error, jax.errors.JaxRuntimeError)
    if runtime and 'RESOURCE_EXHAUSTED' not in str(error):
      return True
    if isinstance(error, ValueError) and re.search('(Gloo|NCCL) .*failed', str(error)):
      return True
    error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
  return False


def lost(error: Exception) -> NoReturn:
  """Ends a process whose computation failed, as it does where another process is gone, with one line.

  Where the runtime finds out first, it ends the process from C++, and its own text is all there is.

  Args:
    error: what the collective raised; it does not say which process is gone.
  """
  failed = f'a step of {jax.process_count()} processes failed, as it does where one is gone'
  print(f'error: {failed}: {one_line(error)[:300]}; {AGAIN}', file=sys.stderr)
  leave(1)


def leave(status: int) -> NoReturn:
  """Ends this process; of several at once: an orderly exit would wait for the others, who may be anywhere.

  One alone ends in order, unless what Python would wait for, as a thread that a failed save left, takes longer than
  `_PATIENCE`.

  Raises:
    SystemExit: where the process is the only one.
  """
  if joined():
    _end(status)
  late = threading.Timer(_PATIENCE, _end, [status])
  late.daemon = True
  late.start()
  raise SystemExit(status)


def _end(status: int) -> NoReturn:
  """Ends this process where it stands."""
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
  """The message of bad input, or an error's name and message, on a line for a terminal; of a disk, with what to do."""
  text = printable(' '.join(str(error).split()))
  if isinstance(error, ValueError):
    return text
  number, name = getattr(error, 'errno', None), getattr(error, 'filename', None)
  if number == errno.ENAMETOOLONG and name:
    start = printable(os.fsdecode(name)[:60])
    return (
      f'a path is too long, of {len(name)} characters, {start!r} and so on: choose a shorter one'
    )
  if number in (errno.ENOSPC, errno.EDQUOT):
    places = f'the workdir, {os.environ.get("TMPDIR", "/tmp")} (TMPDIR) or the output'
    text += ': make room there' if name else f': make room on the disk of {places}'
    text += ', then the same command goes on from what is saved'
  return f'{type(error).__name__}: {text}'
