"""What a run does when its training is over, tried before it begins: better now than after hours.

Sampling is traced, not compiled: what the network or the sampler refuses of the data's shape ends the run at once. The
pictures and the report are drawn of random samples, in a thread, while the step compiles: what fails of these is said
and ends nothing.
"""

import contextlib
import pathlib
import sys
import tempfile
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num

from diffusion import devices, processes, provenance
from diffusion.evaluation import gap
from diffusion.evaluation.metric import MetricResult
from diffusion.runs.attempts import attempt
from diffusion.runs.run import Run
from diffusion.sampling import draw
from diffusion.training import state as states
from diffusion.training.state import BUCKETS, TrainState
from diffusion.types import Conditioning, Examples

_ROWS = 2  # of a traced batch: one would pass for any number where shapes broadcast


def trace_sampling(run: Run, state: TrainState) -> None:
  """Traces the network and the drawing of samples.

  Args:
    run: prepared.
    state: of its shapes.

  Raises:
    ValueError: what the network or the sampler refuses, or a network that returns another shape than it is given, which
      broadcasting would hide.
  """
  e, shape = run.experiment, run.data.dataset.x.shape[1:]
  _, condition = run.data.asked(_ROWS)
  weights = jax.eval_shape(lambda state: states.weights(e, state), state)
  z = jax.ShapeDtypeStruct((_ROWS, *shape), state.learning_rate_scale.dtype)

  def network(weights: tuple, z: Examples) -> Examples:
    (parameters, statistics, _), nothing = weights, jnp.zeros((_ROWS, 0), z.dtype)
    told = Conditioning(jax.tree.map(jnp.asarray, condition), nothing)
    variables = {'params': parameters.network, **statistics}
    return e.model.apply(variables, z, jnp.zeros(_ROWS, z.dtype), told)[0]

  sample = draw.on_a_device(e.model, e.diffusion, e.sampling, shape)
  try:
    made = jax.eval_shape(network, weights, z)
    if made.shape == z.shape:
      jax.eval_shape(sample, weights, condition, np.arange(_ROWS))
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'the network or the sampler does not take examples of shape {list(shape)}: {processes.one_line(error)}'
    ) from error
  if made.shape != z.shape:
    raise ValueError(
      f'the network must return the shape it is given, {list(z.shape)}, and returns {list(made.shape)}'
    )


def rehearse(run: Run) -> list[MetricResult]:
  """Draws the pictures and writes the report of a run into a folder that is then removed.

  Returns:
    A line for each picture that failed.

  Raises:
    Exception: whatever the report raises.
  """
  from diffusion.runs import showing  # here, because a training that goes on needs none

  levels = len(run.experiment.evaluation_noise.log_snr)
  row = gap.summarize(*np.random.default_rng(0).exponential(size=(2, 9, levels)))
  numbers = {'loss': 1.0, 'gradient_norm': 1.0, 'learning_rate': 1e-3, 'skipped': 0}
  row |= numbers | {f'loss_bucket/{i}': 1.0 for i in range(BUCKETS)}
  rows = [{'step': step, 'cursor': step} | row for step in (1, run.num_steps)]
  samples, index = _random_samples(run), np.zeros(24, np.int32)
  images = run.data.dataset.levels is not None and run.data.comparable
  nearest = (index[: len(samples)], np.linspace(0, 1, 24)[: len(samples)]) if images else None
  with tempfile.TemporaryDirectory(prefix='diffusion-rehearsal-') as name:
    folder = pathlib.Path(name)
    sampling = showing.sampling_record(run.experiment, samples.shape[1:], 1, 0)
    shown = showing.Shown(samples=samples, nearest=nearest, rows=rows, sampling=sampling)
    failed = showing.draw_pictures(run, folder, shown)
    evaluation = {'sampling': sampling, 'samples': len(samples), 'changed': []}
    evaluation |= {'time': provenance.now(), 'command': provenance.command()}
    evaluation |= provenance.code_in_brief() | {'devices': devices.describe()}
    record = run.record | {'evaluations': [evaluation]}
    findings = [MetricResult(name='rehearsal', value=0.0, meaning='random samples')]
    showing.write_run_report(run, folder, record, findings + failed, row, '')
  return failed


def _random_samples(run: Run) -> Num[np.ndarray, ' n *shape']:
  """As many as the picture has, in the data's type and about its range."""
  random, data = np.random.default_rng(0), run.data.dataset
  count = len(draw.picture_labels(run.experiment.sampling, data.levels, data.num_classes))
  shape = (count, *data.x.shape[1:])
  if data.levels is not None:
    return random.integers(0, data.levels, shape, np.uint8)
  return (run.data.units.mean + run.data.units.deviation * random.normal(size=shape)).astype(
    data.x.dtype
  )


@contextlib.contextmanager
def alongside(run: Run) -> Iterator[None]:
  """Rehearses beside the body, on the process that writes; the body's end waits for it."""

  def quietly() -> None:
    try:
      attempt('rehearsal of the report', lambda: rehearse(run))
    except OSError as error:  # of the disk for what is temporary, which the run does not need
      print(f'no rehearsal of the report: {processes.one_line(error)}', file=sys.stderr, flush=True)

  thread = threading.Thread(target=quietly, daemon=True)
  if processes.is_writer():
    thread.start()
  try:
    yield
  finally:
    if thread.is_alive():
      thread.join()
