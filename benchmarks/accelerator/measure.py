"""What is measured in a process of its own: each function takes the plan and yields what it knows so far, as JSON.

The last thing yielded counts; what a process yielded before it was cut off is kept. Nothing is imported before it is
needed, so that a process for PyTorch leaves the card to it.
"""

import functools
import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import contenders, sizes
from benchmarks.accelerator import profiles
from benchmarks.accelerator.plans import Plan

Found = Iterator[dict[str, Any]]
_PIECES = 5


def _speed(run: Callable[[int], None], images: int, seconds: float) -> dict[str, float]:
  """Images a second: median, least and most of five pieces of about a fifth of `seconds`, after one that warms up.

  Args:
    run: does so many pieces of work and waits for the last one.
    images: in a piece of work.
    seconds: to measure for, at least five pieces of work.
  """
  begin = time.perf_counter()
  run(1)
  repeats = max(1, round(seconds / _PIECES / (time.perf_counter() - begin)))
  rates = []
  for _ in range(_PIECES):
    begin = time.perf_counter()
    run(repeats)
    rates.append(images * repeats / (time.perf_counter() - begin))
  return {'images/s': statistics.median(rates), 'least': min(rates), 'most': max(rates)}


def describe(plan: Plan) -> Found:
  """The devices."""
  import jax

  from benchmarks import engine

  yield engine.machine() | {'jax': jax.__version__}


def _dispatches(training, state) -> tuple[Callable[[int], None], Callable[[], Any]]:
  """(run so many dispatches, as a loop does that looks at results one dispatch later; the state they lead to)."""
  from benchmarks import engine

  def run(count: int) -> None:
    nonlocal state
    previous = None
    for _ in range(count):
      state, metrics = training.dispatch(state)
      if previous is not None:
        engine.wait(previous)
      previous = metrics
    engine.wait(previous)

  return run, lambda: state


def first_losses(plan: Plan) -> Found:
  """The losses of 20 steps of the digits network, in the highest precision of products."""
  import jax

  from benchmarks import engine

  engine.configure(plan.digits.batch)
  with jax.default_matmul_precision('highest'):
    training = engine.training(engine.experiment(plan.digits, 1, log_every=1))
    state, found = training.first(), []
    for _ in range(20):
      state, metrics = training.dispatch(state)
      found.append(float(metrics['loss'].ravel()[0]))
  yield {'losses': found}


def repeatable(plan: Plan) -> Found:
  """Whether 20 steps are the same to the bit when made again, and when saved and restored after 10; and their speed.

  Where they are not, how far the state is from itself made again, as the norm of the difference over the norm, says
  whether it is rounding.
  """
  from benchmarks import engine

  engine.configure(plan.digits.batch)
  training = engine.training(engine.experiment(plan.digits, 10))

  def twenty(between: Callable[[Any], Any] = lambda state: state) -> list[tuple[str, Any]]:
    state, _ = training.dispatch(training.first())
    state, _ = training.dispatch(between(state))
    return engine.numbers(state)

  expected, again = twenty(), twenty()
  with tempfile.TemporaryDirectory() as folder:
    continued = twenty(lambda s: engine.saved_and_restored(s, pathlib.Path(folder) / 'checkpoints'))

  def differing(found: list[tuple[str, Any]]) -> int:
    return sum(
      one.tobytes() != other.tobytes() for (_, one), (_, other) in zip(found, expected, strict=True)
    )

  def distance() -> float:
    pairs = [(one, other) for (_, one), (_, other) in zip(again, expected, strict=True)]
    real = [(a.astype(float), b.astype(float)) for a, b in pairs if a.dtype.kind == 'f']
    return math.sqrt(
      sum(((a - b) ** 2).sum() for a, b in real) / sum((b**2).sum() for _, b in real)
    )

  run, _ = _dispatches(training, training.first())
  yield {
    'arrays': len(expected),
    'differ when made again': differing(again),
    'differ when saved and continued': differing(continued),
    'distance when made again': distance(),
  } | _speed(run, training.images, plan.seconds)


def works(plan: Plan) -> Found:
  """The first losses, and whether steps are repeatable."""
  (losses,) = first_losses(plan)
  yield losses
  (again,) = repeatable(plan)
  yield losses | again


def step(
  plan: Plan,
  which: str,
  per_dispatch: int = 0,
  narrow: bool = False,
  precision: str = 'default',
  one_device: bool = False,
  fused_attention: bool = False,
  count: bool = False,
) -> Found:
  """This project's training step: speed, memory, time to compile, operations; and where its time goes.

  Args:
    plan: sizes.
    which: the network, a field of the plan.
    per_dispatch: steps of a dispatch; 0 as the plan says.
    narrow: compute in bfloat16.
    precision: of float32 products: 'default', 'tensorfloat32' or 'highest'.
    one_device: leave the others alone.
    fused_attention: ask for cuDNN's.
    count: trace the step for its operations, and the device for what they take.
  """
  import jax

  from benchmarks import engine

  jax.config.update('jax_default_matmul_precision', precision)
  if fused_attention:
    engine.fused_attention()
  size = getattr(plan, which)
  engine.configure(size.batch)
  made = engine.experiment(size, per_dispatch or plan.per_dispatch, narrow)
  training = engine.training(made, one_device)
  run, _ = _dispatches(training, training.first())
  begin = time.perf_counter()
  run(1)
  found = {'batch': size.batch, 'steps a dispatch': made.steps_per_dispatch}
  found |= {'first dispatch (s)': time.perf_counter() - begin, 'parameters': training.parameters}
  found |= _speed(run, training.images, plan.seconds)
  found['peak memory'] = engine.peak_memory()
  yield found
  if not count:
    return
  found['flops an image'] = training.flops()
  yield found
  yield found | _traced(run, made.steps_per_dispatch)


def _traced(run: Callable[[int], None], steps: int) -> dict[str, Any]:
  """Where the time of one dispatch of so many steps goes."""
  from benchmarks import engine

  with tempfile.TemporaryDirectory() as folder:
    engine.trace(pathlib.Path(folder), lambda: run(1))
    return {'steps traced': steps, 'operations': profiles.top_operations(pathlib.Path(folder))}


def sample(plan: Plan, narrow: bool = True) -> Found:
  """DDIM of the U-Net."""
  from benchmarks import engine

  engine.configure(plan.samples)
  size = plan.unet._replace(batch=plan.samples)
  draw = engine.sampler(engine.experiment(size, 1, narrow), plan.samples, plan.evaluations)
  begin = time.perf_counter()
  draw()
  found = {'batch': plan.samples, 'first call (s)': time.perf_counter() - begin}

  def run(count: int) -> None:
    for _ in range(count):
      draw()  # waits: it returns host arrays

  yield found | _speed(run, plan.samples, plan.seconds) | {'peak memory': engine.peak_memory()}


def members(plan: Plan, which: str) -> Found:
  """One run, then populations of more and more seeds as one program: images a second of each."""
  from benchmarks import engine

  mixture = which == 'mixture'
  engine.configure(256 if mixture else plan.digits.batch)

  def build(seed):
    if mixture:
      return engine.mixture(seed, plan.mixture_width, 5 * plan.per_dispatch)
    return engine.experiment(plan.digits, plan.per_dispatch, seed=seed)

  found: dict[str, Any] = {}
  traced = None
  for count in plan.mixture if mixture else plan.members:
    begin = time.perf_counter()
    if count == 1:
      training = engine.training(build(0))
      (run, _), images = _dispatches(training, training.first()), training.images
    else:
      dispatch, images = engine.many(build, count)
      run = functools.partial(_overlapped, dispatch)
    run(1)
    first = {'first dispatch (s)': time.perf_counter() - begin}
    found[str(count)] = first | _speed(run, images, plan.seconds / 2)
    yield found
    if mixture and count == max(c for c in plan.mixture if c <= 16):  # what a goal is about
      traced = count, run
  if traced is not None:  # at last: a trace may harm what is measured after it
    found[str(traced[0])] |= _traced(traced[1], 5 * plan.per_dispatch)
    yield found


def _overlapped(dispatch: Callable[[], Any], count: int) -> None:
  """So many dispatches; each is waited for when the next one is on its way."""
  from benchmarks import engine

  previous = None
  for _ in range(count):
    current = dispatch()
    if previous is not None:
      engine.wait(previous)
    previous = current
  engine.wait(previous)


def _torch(plan: Plan, which: str, tf32: bool, compiled: bool):
  """(module torch, module torch_peer, network, its size, device)."""
  import torch

  on_card = torch.cuda.is_available()
  if not on_card and plan.backend == 'inductor':
    raise RuntimeError('PyTorch sees no GPU here')
  torch.backends.cuda.matmul.allow_tf32 = tf32
  torch.backends.cudnn.allow_tf32 = tf32
  torch.backends.cudnn.benchmark = True  # tries its convolutions, as XLA does
  size, device = getattr(plan, which), 'cuda' if on_card else 'cpu'
  torch_peer, network = contenders.peer(size, device, compiled, plan.backend)
  return torch, torch_peer, network, size, device


def _torch_speed(
  torch: Any, work: Callable[[], Any], images: int, seconds: float
) -> dict[str, Any]:
  wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

  def run(count: int) -> None:
    for _ in range(count):
      work()
    wait()

  begin = time.perf_counter()
  run(2)
  found = {'first dispatch (s)': time.perf_counter() - begin} | _speed(run, images, seconds)
  if torch.cuda.is_available():
    found['peak memory'] = torch.cuda.max_memory_allocated()
  return found


def torch_step(
  plan: Plan,
  which: str,
  narrow: bool = False,
  tf32: bool = False,
  compiled: bool = True,
) -> Found:
  """The same step of the same network in PyTorch; its arguments are those of `step`."""
  torch, torch_peer, network, size, device = _torch(plan, which, tf32, compiled)
  images = torch.tensor(sizes.images(size)).permute(0, 3, 1, 2).contiguous().to(device)
  work = torch_peer.make_step(network, size, device, images, narrow)
  yield {'batch': size.batch} | _torch_speed(torch, work, size.batch, plan.seconds)


def torch_sample(plan: Plan, narrow: bool = True) -> Found:
  """The same sampler of the same network in PyTorch."""
  torch, torch_peer, network, size, device = _torch(plan, 'unet', False, True)
  size = size._replace(batch=plan.samples)
  draw = torch_peer.make_sample(network, size, device, plan.evaluations, narrow)
  yield {'batch': size.batch} | _torch_speed(torch, lambda: draw().cpu(), size.batch, plan.seconds)


def feeding(plan: Plan, data_dir: str) -> Found:
  """Images a second that reach a step: from the device's memory, and from MNIST's files through Grain.

  Args:
    plan: sizes.
    data_dir: where MNIST is prepared; '' prepares noise in its form.
  """
  from benchmarks import engine, prepared

  batch = 128
  engine.configure(batch)
  with tempfile.TemporaryDirectory() as folder:
    if not data_dir:
      prepared.noise_as_mnist(pathlib.Path(folder), plan.images, 128)
      data_dir = str(pathlib.Path(folder) / 'sets')
    how = engine.Feeding(batch, plan.per_dispatch, max(1, plan.batches // plan.per_dispatch))
    source = engine.mnist(data_dir)
    found: dict[str, Any] = {}
    ways = {'the device': lambda: engine.resident(source, how)}
    for workers in (0, 8) if plan.backend == 'inductor' else (0, 2):
      name = f'files, {workers} processes' if workers else 'files, threads'
      ways[name] = lambda workers=workers: engine.streamed(source, workers, how)
    for name, make in ways.items():
      rate = make()
      rate()  # compiles
      rates = [rate() for _ in range(plan.rounds)]
      found[name] = {'images/s': statistics.median(rates), 'least': min(rates), 'most': max(rates)}
      yield found
