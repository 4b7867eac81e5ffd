"""All that the benchmarks of speed take from inside the package, so that they outlive a change of its engine.

Every function makes something to be measured, in the process that measures it, on whatever devices JAX has there.
"""

import itertools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import sizes
from benchmarks.sizes import Size, Transformer
from diffusion import devices
from diffusion.data import augment, pipeline, prefetch, sources, splits
from diffusion.data.pipeline import Order
from diffusion.data.splits import SplitData
from diffusion.evaluation import gap
from diffusion.models import dit, mlp, precision, unet
from diffusion.objectives import losses, times, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.runs.population import Population, first_states
from diffusion.runs.run import Run
from diffusion.sampling import draw
from diffusion.sampling.plan import Sampling
from diffusion.training.checkpoint import open_checkpoints
from diffusion.training.experiment import Experiment, fitted, load_data
from diffusion.training.program import Fetch, make_batches
from diffusion.training.state import init_state
from diffusion.training.state import weights as judged_weights
from diffusion.training.step import make_step, step_flops
from diffusion.types import Model, Rows

_DRAINED = 10  # dispatches before the clock starts, more than any feed reads ahead


class Training(NamedTuple):
  """A run's training step.

  Attributes:
    dispatch: state -> (state, metrics), donating the state; nothing is waited for.
    first: () -> the first state on the devices; what is dispatched then begins with the first batch.
    images: that a dispatch trains on.
    parameters: of the network.
    flops: () -> floating-point operations for an image, of products and convolutions, forward and backward.
  """

  dispatch: Callable[[Any], tuple[Any, Any]]
  first: Callable[[], Any]
  images: int
  parameters: int
  flops: Callable[[], int]


def configure(batch: int, cpu_devices: int = 0) -> None:
  """Sets JAX up as a run does."""
  devices.configure(batch, cpu_devices)
  devices.choose_convolutions()


def network(size: Size | Transformer) -> Model:
  """This project's network of a size."""
  if isinstance(size, Transformer):
    return dit.dit(
      size.width, size.depth, size.heads, size.patch, size.dropout, size.num_classes
    )  # fmt: skip
  return unet.unet(
    size.width, size.multipliers, size.blocks, size.attention, size.dropout, size.num_classes
  )


def experiment(
  size: Size | Transformer,
  per_dispatch: int,
  narrow: bool = False,
  log_every: int = 0,
  seed: int = 0,
) -> Experiment:
  """The experiment of a size: what the peers do too, and no more.

  Args:
    size: network and batch.
    per_dispatch: steps of a dispatch.
    narrow: compute in bfloat16.
    log_every: steps whose losses are averaged; a hundred dispatches by default.
    seed: of the run.
  """
  x = sizes.images(size)
  names = tuple(map(str, range(size.num_classes)))
  source = sources.arrays('noise', x, np.zeros(len(x), np.int32), class_names=names)
  model = network(size)
  model = precision.bfloat16(model) if narrow else model
  every = log_every or 100 * per_dispatch
  return _experiment(
    source, model, size.batch, per_dispatch, every, seed, gap.evaluation_noise(draws=1)
  )


def mixture(seed: int, width: int = 128, per_dispatch: int = 50) -> Experiment:
  """The mixture experiment's step: a residual MLP on a Gaussian mixture in eight dimensions."""
  means = np.stack([np.ones(8), -np.ones(8)])
  drawn = sources.gaussian_mixture(means, np.ones(2), np.full(2, 0.5), 4096)
  source, model = sources.unlabelled(drawn), mlp.mlp(width, 3)
  fixed = gap.evaluation_noise(levels=9, draws=4)
  made = _experiment(source, model, 256, per_dispatch, 2 * per_dispatch, seed, fixed)
  return made._replace(split=splits.Fractions(0.25, 0.25, 256))


def _experiment(
  source: sources.Source, model: Model, batch: int, per_dispatch: int, every: int, seed: Any, fixed
) -> Experiment:
  return Experiment(
    seed=seed, num_steps=10**6, batch_size=batch, log_every=every, validate_every=every,
    steps_per_dispatch=per_dispatch, data=source, augment=augment.chain(),
    diffusion=gaussian.Diffusion(noise.cosine(), marginals.variance_preserving, parameterizations.v()),
    model=model, terms={'denoise': (1.0, losses.denoising(weights.uniform('v')))}, times=times.uniform(),
    optimizer=chains.adamw(schedules.constant(2e-4), 1e-2, 1.0), averages={'ema': averaging.ema(0.999)},
    evaluation_average='ema', callbacks=[], evaluation_noise=fixed,
  )  # fmt: skip


def training(made: Experiment, one_device: bool = False) -> Training:
  """The training step of an experiment, on all devices or on one."""
  data = load_data(made)
  first = jax.device_get(init_state(made, data.example, data.units))
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), first)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
  step, place = (_on_one_device if one_device else _on_all_devices)(made, data)
  devices.give_back_memory()  # as a run does
  seen = 0

  def begin() -> Any:
    nonlocal seen
    seen = 0
    return place(first)

  def dispatch(state: Any) -> tuple[Any, Any]:
    nonlocal seen
    at, seen = seen, seen + made.steps_per_dispatch
    return step(state, at)

  images = made.batch_size * made.steps_per_dispatch
  return Training(dispatch, begin, images, parameters, lambda: step_flops(made, data, shapes))


def _on_all_devices(made: Experiment, data: SplitData) -> tuple[Callable, Callable]:
  """((state, batches seen) -> (state, metrics), host state -> state), as `program.SingleRun` makes them."""
  step = devices.parallelize(make_step(made, data.units), made.batch_size)
  batches, step = make_batches(made, data), devices.compile_apart(step)

  def dispatch(state: Any, seen: int) -> tuple[Any, Any]:
    return step(state, batches.data(), batches.take(seen))

  return dispatch, devices.replicate


def _on_one_device(made: Experiment, data: SplitData) -> tuple[Callable, Callable]:
  """The same without any of the others."""
  step, size = make_step(made, data.units), made.batch_size
  rows, order = Rows(jnp.arange(size), size), Order(made.seed, data.split.train)
  held = pipeline.InMemoryData(*map(jnp.asarray, (data.dataset.x, data.dataset.label)))

  def repeat(state: Any, held: pipeline.InMemoryData, given: jax.Array) -> tuple[Any, Any]:
    def one(state: Any, given: jax.Array) -> tuple[Any, Any]:
      return step(state, held, given, rows, lambda tree: tree)

    return devices.repeat(one, state, given)

  compiled = jax.jit(repeat, donate_argnums=0)

  def dispatch(state: Any, seen: int) -> tuple[Any, Any]:
    return compiled(state, held, order.batches(seen, made.steps_per_dispatch, size))

  return dispatch, lambda first: jax.tree.map(jnp.array, first)


def sampler(made: Experiment, count: int, evaluations: int) -> Callable[[], np.ndarray]:
  """() -> so many samples by DDIM in so many steps, as runs draw them."""
  data = load_data(made)
  made = fitted(made._replace(sampling=Sampling(steps=evaluations, per_class=count)), data.units)
  state = init_state(made, data.example, data.units)
  chunk, shape = max(1, count // jax.device_count()), data.dataset.x.shape[1:]
  sample = draw.make_sample(made.model, made.diffusion, made.sampling, shape, chunk)
  held = judged_weights(made, devices.replicate(state))
  label, number = np.zeros(count, np.int32), np.arange(count)
  return lambda: sample(held, label, number)


class Metrics:
  """The metrics of a dispatch on their way: a leaf that `wait` waits for as it does for an array.

  Attributes:
    of: member -> its metrics on the host, which it waits for.
  """

  def __init__(self, of: Fetch):
    """Those that a program's dispatch returned."""
    self.of = of

  def block_until_ready(self) -> None:
    """What JAX calls of a leaf that is to be waited for."""
    self.of(0)


def population(
  build: Callable[[Any], Experiment], members: int, side_by_side: bool | None = None
) -> Callable[[int], Any]:
  """Many seeds as one program.

  Args:
    build: seed, which may be traced -> experiment.
    members: seeds.
    side_by_side: see `devices.over_members`.

  Returns:
    Live members -> metrics to wait for, of a dispatch in which the first so many go on and the others stay.
  """
  seeds = range(members)
  data = load_data(build(0))
  runs = [
    Run(
      experiment=build(seed), data=data, config=None, source=pathlib.Path(__file__), folder=None,
      used=[], record={},
    )
    for seed in seeds
  ]  # fmt: skip
  given = runs, [{'seed': seed} for seed in seeds], lambda one: build(one['seed'])
  program = Population(*given, first_states(*given), side_by_side=side_by_side)
  seen = itertools.count(0, runs[0].experiment.steps_per_dispatch)

  def dispatch(live: int) -> Metrics:
    at = next(seen)
    return Metrics(program.dispatch([at if k < live else None for k in seeds]))

  return dispatch


def many(build: Callable[[Any], Experiment], members: int) -> tuple[Callable[[], Any], int]:
  """(a dispatch of a population of seeds as one program, to be waited for; the images in it)."""
  made, dispatch = build(0), population(build, members)
  return lambda: dispatch(members), members * made.batch_size * made.steps_per_dispatch


def saved_and_restored(state: Any, folder: pathlib.Path) -> Any:
  """A state on the devices, through a checkpoint on disk."""
  held = devices.to_host(state)
  checkpoints = open_checkpoints(folder)
  try:
    checkpoints.save(1, held, {'step': 1}, 0.0)
    checkpoints.wait()
    restored = checkpoints.restore(jax.tree.map(np.zeros_like, held), 'latest')
  finally:
    checkpoints.close()
  return devices.replicate(restored.state)


def numbers(state: Any) -> list[tuple[str, np.ndarray]]:
  """Every leaf of a state on the devices, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(devices.to_host(state))
  return [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves]


def wait(tree: Any) -> None:
  """Waits until a tree is computed."""
  devices.wait(tree)


def peak_memory() -> int:
  """The most bytes in use so far, of a device."""
  return devices.peak_memory()


def machine() -> dict[str, Any]:
  """What JAX found: its platform, kind and number of devices, and their peak in bfloat16 FLOP/s, None if unknown."""
  return devices.describe() | {'peak_flops': devices.peak_flops()}


def trace(folder: pathlib.Path, work: Callable[[], Any]) -> None:
  """Traces a piece of work into a folder."""
  devices.start_trace(str(folder))
  try:
    work()
  finally:
    devices.stop_trace()


def fused_attention() -> None:
  """From here on the transformer asks JAX for cuDNN's fused attention in place of XLA's."""

  def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    # The first state is made in float32, which cuDNN refuses.
    which = 'cudnn' if query.dtype == jnp.bfloat16 else None
    return jax.nn.dot_product_attention(query, key, value, implementation=which)

  dit.attend = attend


class Feeding(NamedTuple):
  """Rows of a batch, steps of a dispatch, and dispatches of a timed round."""

  batch: int
  steps: int
  dispatches: int


def mnist(data_dir: str | None) -> sources.Source:
  """MNIST as it is prepared there; None: in TFDS's own folder."""
  return sources.tfds('mnist', data_dir)


def _take(cursor, data, given, rows, cross_mean):
  """Takes a batch of either kind and averages it."""
  del rows
  units = pipeline.NormalizationStatistics(256)
  if isinstance(given, pipeline.StoredBatch):
    batch = pipeline.in_units(given, units)
  else:
    batch = pipeline.gather(data, given, units)
  return cursor + 1, cross_mean(batch.x.mean())


def resident(source: sources.Source, plan: Feeding) -> Callable[[], float]:
  """() -> images a second of a round that reach a step which only takes them, from the device's memory."""
  data = source.load()
  held = devices.replicate(pipeline.InMemoryData(data.x, data.label))
  order = Order(0, np.arange(len(data.x)))
  dispatch = devices.parallelize(_take, plan.batch)

  def one(cursor, i):
    rows = order.batches(i * plan.steps, plan.steps, plan.batch)
    return dispatch(cursor, held, devices.split_rows(rows))

  return lambda: _measure(one, plan)


def streamed(source: sources.Source, workers: int, plan: Feeding) -> Callable[[], float]:
  """The same from the files, through Grain with so many processes (0: threads)."""
  data = sources.streamed(source, workers).load()
  rows, order = devices.rows_of_this_process(plan.batch), Order(0, np.arange(len(data.x)))
  dispatch = devices.parallelize(_take, plan.batch)

  def rate() -> float:
    given = prefetch.Prefetcher(
      data.x, data.label, order, rows, batch_size=plan.batch, steps=plan.steps
    )

    def one(cursor, i):
      result = dispatch(cursor, None, given.take(i * plan.steps))
      given.ahead()
      return result

    try:
      return _measure(one, plan)
    finally:
      given.close()

  return rate


def _measure(dispatch: Callable, plan: Feeding) -> float:
  """Images a second; the loop waits for the dispatch before the last one, as training does."""
  cursor, previous = devices.replicate(jnp.zeros((), jnp.int32)), None
  for i in range(_DRAINED + plan.dispatches):
    if i == _DRAINED:
      devices.wait(cursor)
      begin = time.perf_counter()
    cursor, mean = dispatch(cursor, i)
    if previous is not None:
      devices.wait(previous)
    previous = mean
  devices.wait(previous)
  return plan.dispatches * plan.steps * plan.batch / (time.perf_counter() - begin)
