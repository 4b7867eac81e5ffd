"""The only file that names devices: what runs on one device elsewhere runs on all of them through here.

A function is written for the rows one device holds; what it needs across devices (the mean of the gradients)
arrives as an argument. The devices may belong to several processes: `diffusion/processes.py` says how those find each
other, agree and end.

`pmap` is the mechanism, and this is the one place to change it. What would replace it is `jax.jit` of `jax.shard_map`
over a `Mesh` of all devices with this one axis, which is what JAX makes of `pmap` today: the functions below keep their
`pmean` over the same axis name; states are arrays with a replicated `NamedSharding` in place of stacked copies, batches
arrays whose rows are sharded over the axis; `replicate`, `spread` and `place_members` put them so.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import math
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion import checks, conditions, processes
from diffusion.types import CrossMean, Rows

_AXIS = 'devices'
_ENOUGH_ROWS = 16
# bfloat16 products without sparsity, by the name that the device gives itself; FLOP/s of what JAX counts as one device.
_PEAKS = {
  'NVIDIA A100-SXM4-40GB': 312e12, 'NVIDIA A100-SXM4-80GB': 312e12, 'NVIDIA A100-PCIE-40GB': 312e12,
  'NVIDIA A100 80GB PCIe': 312e12, 'NVIDIA H100 80GB HBM3': 989e12, 'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H200': 989e12, 'NVIDIA B200': 2250e12, 'NVIDIA L4': 121e12, 'TPU v2': 22.5e12, 'TPU v3': 61.5e12,
  'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5': 459e12, 'TPU v5p': 459e12, 'TPU v6 lite': 918e12,
}  # fmt: skip

_SETTINGS = (
  'jax_default_prng_impl', 'jax_threefry_partitionable', 'jax_random_seed_offset', 'jax_enable_x64',
  'jax_default_matmul_precision',
)  # fmt: skip
_VARIABLES = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'NVIDIA_TF32_OVERRIDE')

Step = Callable[[Any, Any, Any, Rows, CrossMean], tuple[Any, Any]]


def configure(
  batch_size: int, cpu_devices: int = 0, cache: bool = True, num_processes: int = 1
) -> None:
  """Sets JAX up; to be called before its first use, and after `processes.initialize`.

  On CPU one virtual device a core is faster than one device that owns all cores, as long as each has rows enough to
  outweigh its own update of the parameters; the result of a run depends on it only by rounding. Where an accelerator is
  used the CPU is left alone.

  Args:
    batch_size: rows of a global batch.
    cpu_devices: virtual CPU devices of a process; 0 chooses the most, up to the cores and eight, that divide the
      batch and have 16 rows or more each.
    cache: keep compiled programs, so that a second start skips compilation.
    num_processes: that share the batch, >= 1.

  Raises:
    ValueError: `cpu_devices` (of all processes) or processes that do not divide the batch, or `cpu_devices` where an
      accelerator is used.
  """
  checks.integer('batch_size', batch_size)
  checks.integer('cpu_devices', cpu_devices, 0)
  accelerator = _accelerator()
  if cpu_devices and accelerator:
    raise ValueError(
      f'--cpu_devices={cpu_devices} divides a CPU, and JAX_PLATFORMS or a plugin of JAX says {accelerator!r}: leave it '
      'out, or set JAX_PLATFORMS=cpu to stay on the CPU'
    )
  several = f' x {num_processes} processes' if num_processes > 1 else ''
  if cpu_devices and batch_size % (cpu_devices * num_processes):
    raise ValueError(
      f'batch_size {batch_size} is not divisible by cpu_devices {cpu_devices}{several}'
    )
  if batch_size % num_processes:
    raise ValueError(f'batch_size {batch_size} is not divisible by the {num_processes} processes')
  if not accelerator:
    fitting = _fitting_devices(batch_size // num_processes, os.cpu_count() or 1)
    jax.config.update('jax_num_cpu_devices', cpu_devices or fitting)
  if cache:
    use_cache()


def configure_or_keep(batch_size: int) -> list[str]:
  """`configure` where JAX has not been used yet and nobody has said how many CPU devices, else what there is.

  Returns:
    What a user should know of the latter.

  Raises:
    ValueError: a batch that the devices cannot share.
  """
  wanted = _fitting_devices(batch_size, os.cpu_count() or 1)
  chosen = max(0, jax.config.jax_num_cpu_devices) if not _accelerator() else 0
  said = []
  try:
    configure(batch_size, chosen)
  except RuntimeError:  # JAX says so of a setting that comes too late
    use_cache()
    if jax.local_device_count() != wanted and batch_size % wanted == 0:
      said = [
        f'JAX is in use already, so the run takes the {jax.local_device_count()} CPU devices that there are, and '
        f'{wanted} would suit it: train before JAX is used, or set jax_num_cpu_devices first'
      ]
  check_batch(batch_size)
  return said


def _fitting_devices(rows: int, cores: int) -> int:
  """How many virtual CPU devices a process divides its rows over."""
  fit = [n for n in range(1, min(cores, 8) + 1) if rows % n == 0]
  return max(n for n in fit if n == 1 or rows // n >= _ENOUGH_ROWS)


def _accelerator() -> str | None:
  """What JAX will use in place of the CPU: what JAX_PLATFORMS names, else a plugin's name; asks no device."""
  platforms = jax.config.jax_platforms
  if platforms:
    return None if platforms.split(',')[0] == 'cpu' else platforms.split(',')[0]
  plugins = [one.name for one in importlib.metadata.entry_points(group='jax_plugins')]
  return next(iter(plugins), 'tpu' if importlib.util.find_spec('libtpu') is not None else None)


def choose_convolutions() -> None:
  """Chooses Eigen's convolutions on a CPU that is one device; later than JAX's first use it has no effect.

  There they use all cores, and XLA's own use one. With several devices XLA's own are kept: in a loop of a program on
  several devices Eigen's answer wrongly for the first rows of each after some ten iterations (jaxlib 0.12.0.1; a test
  holds what a run chooses to one device's numbers). A choice in XLA_FLAGS stays.
  """
  if _accelerator() or jax.config.jax_num_cpu_devices > 1:
    return
  name, value = '--xla_cpu_experimental_ynn_fusion_type', '-individual_convolution'
  flags = os.environ.get('XLA_FLAGS', '')
  # A flag that XLA does not know ends the process.
  known = (0, 10) <= jax.__version_info__[:2] <= (0, 12)
  if known and name not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {name}={value}'.strip()


def give_back_memory() -> None:
  """Gives what is free back to the system, on CPU: what a run needs to begin would stay beside what a step needs."""
  if _accelerator() or sys.platform != 'linux':
    return
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # musl has none
  if trim is not None:
    trim(0)


def use_cache() -> None:
  """Keeps compiled programs in $JAX_COMPILATION_CACHE_DIR, or ~/.cache/diffusion/compiled."""
  default = os.path.expanduser('~/.cache/diffusion/compiled')
  directory = os.environ.get('JAX_COMPILATION_CACHE_DIR') or default
  jax.config.update('jax_compilation_cache_dir', directory)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def compile_quickly(function: Callable) -> Callable:
  """`jax.jit` for a program that runs once: on CPU half the compile time for slower code of the same results.

  Where XLA_FLAGS has a level of optimization, it is that.
  """
  option = 'xla_backend_optimization_level'
  chosen = jax.default_backend() == 'cpu' and option not in os.environ.get('XLA_FLAGS', '')
  return jax.jit(function, compiler_options={option: 1} if chosen else None)


def check_batch(batch_size: int) -> None:
  """Raises ValueError unless the batch divides evenly over the devices."""
  count = jax.device_count()
  if batch_size % count:
    raise ValueError(
      f'batch_size {batch_size} is not divisible by the {count} devices: use a multiple of {count}'
    )


def divisible(rows: int) -> int:
  """The least number of rows, at least so many, that divides evenly over the devices."""
  return -(-rows // jax.device_count()) * jax.device_count()


def rows_of_a_device(batch_size: int) -> int:
  """Rows of a global batch that each device holds."""
  return batch_size // jax.device_count()


def rows_of_this_process(batch_size: int) -> np.ndarray:
  """Rows of a global batch that the devices of this process hold: [local devices, rows of a device]."""
  shape = (jax.local_device_count(), rows_of_a_device(batch_size))
  return jax.process_index() * math.prod(shape) + np.arange(math.prod(shape)).reshape(shape)


def split_rows(x: np.ndarray) -> np.ndarray:
  """What is by step and row of the global batch, [steps, rows, ...], for the devices of this process.

  Returns:
    [local devices, steps, rows of a device, ...].
  """
  return np.moveaxis(x[:, rows_of_this_process(x.shape[1])], 1, 0)


def describe() -> dict[str, Any]:
  """What the run runs on, for its record."""
  device = jax.devices()[0]
  return {
    'platform': device.platform,
    'kind': device.device_kind,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
    'host_cpus': os.cpu_count(),
    'python': sys.version.split()[0],
  }


def settings() -> dict[str, Any]:
  """What of JAX's configuration decides numbers: a run goes on under the same."""
  return {name: getattr(jax.config, name, None) for name in _SETTINGS}


def environment() -> dict[str, str]:
  """What the environment says to XLA and to JAX, as far as they know the name; nothing else of it is looked at."""
  said = {
    name for name in os.environ if name.startswith('JAX_') and hasattr(jax.config, name.lower())
  }
  return {name: os.environ[name] for name in sorted({*said, *_VARIABLES} & {*os.environ})}


def peak_flops() -> float | None:
  """What all devices of the run can do at most, in bfloat16 FLOP/s; None where the kind of device is not known."""
  peak = _PEAKS.get(jax.devices()[0].device_kind)
  return peak and peak * jax.device_count()


def peak_memory() -> int:
  """The most bytes in use so far: of one device, or on CPU of this process."""
  used = [(device.memory_stats() or {}).get('peak_bytes_in_use') for device in jax.local_devices()]
  if None not in used:
    return max(used)
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def start_trace(folder: str) -> None:
  """Begins a trace of everything on host and devices, for TensorBoard's profiler and for ui.perfetto.dev."""
  jax.profiler.start_trace(folder, create_perfetto_trace=True)


def stop_trace() -> None:
  """Ends the trace and writes it."""
  jax.profiler.stop_trace()


@functools.cache
def _one_each() -> NamedSharding:
  """Of arrays [local devices, ...]: each row on its device, as what `pmap` returns lies."""
  return NamedSharding(Mesh(np.asarray(jax.local_devices()), (_AXIS,)), PartitionSpec(_AXIS))


def replicate(tree: Any) -> Any:
  """A tree on every device, as the compiled steps return it (so that they compile once, not twice).

  Of several processes each gives the same tree, and holds the copies of its own devices.
  """
  count = jax.local_device_count()
  # By the host, and not by a program: one that copies a state takes a second to compile. NumPy has no weak types.
  return spread(
    jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), jax.device_get(tree))
  )


def spread(tree: Any) -> Any:
  """Host arrays [local devices, ...], each row on its device. They may still be on their way when it returns."""
  # In memory of its own: a step's buffers are donated.
  return jax.device_put(tree, _one_each(), may_alias=False)


def first(tree: Any) -> Any:
  """One device's copy of a replicated tree, still on the device; of several processes each has one of its own."""
  return flax.jax_utils.unreplicate(tree)


def to_host(tree: Any) -> Any:
  """A replicated tree as NumPy arrays: waits for it and copies it, once."""
  # All of it: while one device is still in a collective, the next one must not begin on another.
  jax.block_until_ready(tree)
  # Indexed here: on a device that is a program for each shape.
  held = jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)
  return jax.tree.map(lambda x: np.array(x[0]), jax.device_get(held))


def wait(tree: Any) -> None:
  """Waits until a tree is computed. Virtual CPU devices deadlock if too many steps are in flight."""
  jax.block_until_ready(tree)


def repeat(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, each: Any) -> tuple[Any, Any]:
  """Several steps as one loop inside a compiled program.

  Args:
    step: (state, its row of `each`) -> (state, metrics).
    state: before the first step.
    each: a tree of arrays [steps, ...].

  Returns:
    (the state after all steps, the last one's metrics).
  """
  if len(jax.tree.leaves(each)[0]) == 1:
    return step(state, jax.tree.map(lambda x: x[0], each))
  state, metrics = jax.lax.scan(step, state, each)
  return state, jax.tree.map(lambda m: m[-1], metrics)


def parallelize(step: Step, batch_size: int) -> Callable:
  """Training steps on all devices.

  Args:
    step: (state, data, given, rows, cross_mean) -> (state, metrics), for one device's rows. Gradients and metrics must
      go through `cross_mean`, so that the state stays equal on all devices.
    batch_size: rows of the global batch, divisible by the number of devices.

  Returns:
    (replicated state, replicated data, given) -> (replicated state, the last step's replicated metrics). `given` has
    the axes [local devices, steps, rows of a device, ...], see `split_rows`: a call makes so many steps, each with its
    own. The state's buffers are donated.

  Raises:
    ValueError: rows that do not divide.
  """
  check_batch(batch_size)
  local = batch_size // jax.device_count()

  def cross_mean(tree: Any) -> Any:
    return jax.lax.pmean(tree, _AXIS)

  def run(state, data, given):
    rows = Rows(jax.lax.axis_index(_AXIS) * local + jnp.arange(local), batch_size)
    return repeat(lambda s, now: step(s, data, now, rows, cross_mean), state, given)

  return jax.pmap(run, axis_name=_AXIS, donate_argnums=(0,))


def compile_apart(mapped: Callable) -> Callable:
  """What `parallelize` returns, on CPU compiled apart from its first run: between the two memory is given back.

  Compiling takes more of it than a step does beside the state, and would otherwise stay in the process.
  """
  compiled = _accelerator() is not None  # there the host's memory is not the step's

  def call(*arguments):
    nonlocal compiled
    if not compiled:
      mapped.lower(*arguments).compile()
      give_back_memory()
      compiled = True
    return mapped(*arguments)

  return call


def place_members(tree: Any, fill: float | None = None) -> Any:
  """Host arrays [members, ...] on the devices as `over_members` takes them, whole members.

  Where they do not divide over the devices, they are filled up with copies of the first one, or with `fill`.
  """
  count = jax.local_device_count()

  def divided(x: np.ndarray) -> np.ndarray:
    more = x[:1] if fill is None else np.full_like(x[:1], fill)
    x = np.concatenate([x, *[more] * (-len(x) % count)])
    return x.reshape(count, len(x) // count, *x.shape[1:])

  return spread(jax.tree.map(divided, tree))


def collect_members(tree: Any) -> Any:
  """NumPy arrays of what `place_members` or `over_members` put on the devices, fillers at their ends; waits for it."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(tree))


def over_members(
  function: Callable[..., Any], *, donate: bool = False, side_by_side: bool | None = None
) -> Callable:
  """A function of one member of a population, for all of them as one program.

  Each device takes its own members, with whole batches, and none waits for another inside the program.

  Args:
    function: (member, state, given, data) -> tree, for one member.
    donate: let the states' buffers go.
    side_by_side: compute a device's members as one batch of them (`vmap`), or one after another in a loop. By default
      one after another on CPU, where a core is full with one member and its state fits the cache (and where batched
      convolutions are slow), side by side elsewhere.

  Returns:
    (placed members, placed states, placed given, replicated data) -> placed tree.
  """
  if side_by_side is None:
    side_by_side = jax.default_backend() != 'cpu'

  def run(member, state, given, data):
    def one(own):
      return function(*own, data)

    each = jax.vmap(one) if side_by_side else functools.partial(jax.lax.map, one)
    return each((member, state, given))

  return jax.pmap(run, axis_name=_AXIS, donate_argnums=(1,) if donate else ())


def over_rows(function: Callable, chunk: int) -> Callable:
  """A function of rows on all devices, chunk by chunk.

  Of several processes each computes the rows of its devices, and all get all rows; they must call it alike.

  Args:
    function: (shared, *trees of arrays [b, ...]) -> tree of arrays [b, ...], row i from row i alone.
    chunk: rows a device takes at a time, at most; what is missing is filled with copies of the first row.

  Returns:
    (replicated shared, *trees of arrays [n, ...]) -> tree of NumPy arrays [n, ...].

  Raises:
    ValueError: chunk is not an integer >= 1.
  """
  checks.integer('chunk', chunk)
  count, here = jax.device_count(), jax.local_device_count()
  mine = slice(jax.process_index() * here, (jax.process_index() + 1) * here)
  mapped = jax.pmap(function, axis_name=_AXIS)

  def call(shared, *arrays):
    n = len(jax.tree.leaves(arrays)[0])
    # Rounded up to a power of two or a multiple of 32, so that splits of nearly one size share one program.
    each = -(-n // count)
    size = min(chunk, 1 << (each - 1).bit_length() if each <= 32 else -(-each // 32) * 32)
    whole = -(-n // (size * count)) * size * count
    index = np.concatenate([np.arange(n), np.zeros(whole - n, np.int64)]).reshape(-1, count, size)
    parts = [jax.device_get(mapped(shared, *conditions.take(arrays, rows[mine]))) for rows in index]
    return jax.tree.map(lambda *p: _rows_of_all(np.stack(p))[:n], *parts)

  return call


def _rows_of_all(x: np.ndarray) -> np.ndarray:
  """[chunks, local devices, size, ...] of each process as [chunks x devices x size, ...], in the order of the rows."""
  x = np.moveaxis(processes.gather(x), 0, 1)  # [chunks, processes, local devices, size, ...]
  return x.reshape(-1, *x.shape[4:])
