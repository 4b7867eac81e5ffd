"""The learning-rate range test: one short training with a rate that rises until the loss does."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from diffusion import checks, devices, processes, provenance
from diffusion.citations import technique
from diffusion.optimizers import chains
from diffusion.optimizers.schedules import LearningRate
from diffusion.reporting import plots
from diffusion.reporting.rows import write_json
from diffusion.runs.run import Run
from diffusion.training.program import SingleRun

_LOST = 4.0  # times the lowest loss so far, where the test ends
_ROWS = 10  # fewer show no slope


@technique('learning-rate range test', 'update', 'smith2017cyclical')
def rising(low: float, high: float, steps: int) -> LearningRate:
  """low (high / low)^(n / (steps - 1)) at update n.

  Args:
    low, high: 0 < low < high.
    steps: >= 2.

  Raises:
    ValueError: an argument out of its range.

  Source: Smith (2017), section 3.3, with a geometric rise for a linear one.
  """
  checks.positive('lr_low', low)
  checks.in_range('lr_high', high, low, math.inf, ends='()')
  checks.integer('num_steps', steps, 2)
  return lambda count: low * (high / low) ** (jnp.asarray(count) / (steps - 1))


def suggest(rates: Sequence[float], losses: Sequence[float]) -> tuple[np.ndarray, float, float]:
  """(smoothed losses, the rate of their steepest fall, the rate of their minimum).

  Smoothing is a centered mean over a tenth of the rows; the fall is a slope against log rate.

  Raises:
    ValueError: fewer than 10 rows.
  """
  if len(rates) < _ROWS:
    raise ValueError(f'a range test needs at least {_ROWS} rows, got {len(rates)}')
  size = max(3, len(rates) // 10) | 1
  padded = np.pad(np.asarray(losses, np.float64), size // 2, mode='edge')
  smooth = np.convolve(padded, np.full(size, 1 / size), 'valid')
  lowest = int(np.argmin(smooth))
  slope = np.gradient(smooth, np.log(rates))
  steepest = int(np.argmin(slope[: lowest + 1])) if lowest else 0
  return smooth, float(rates[steepest]), float(rates[lowest])


def check_rows(num_steps: int, steps_per_dispatch: int) -> None:
  """Raises ValueError where a run has too few dispatches, each of which is a row but the last."""
  if num_steps // steps_per_dispatch <= _ROWS:
    enough = (_ROWS + 1) * steps_per_dispatch
    raise ValueError(
      f'a range test needs more than {_ROWS} dispatches, and num_steps = {num_steps} are '
      f'{num_steps // steps_per_dispatch} of steps_per_dispatch = {steps_per_dispatch}: set '
      f'--config.num_steps={enough} or more (100 times steps_per_dispatch show a smooth curve)'
    )


def train_rising(run: Run, low: float, high: float) -> int:
  """Trains over `num_steps` with a rising rate and writes `lr_range.json` and `lr_range.png`; no checkpoint is touched.

  It ends early where the loss is not finite or four times its lowest.

  Args:
    run: prepared.
    low, high: the first and the last rate, 0 < low < high.

  Returns:
    The program's exit status.

  Raises:
    ValueError: before training, rates out of order or too few dispatches; after it, a loss that was lost at once.
  """
  experiment = run.experiment
  check_rows(experiment.num_steps, experiment.steps_per_dispatch)
  schedule = rising(low, high, experiment.num_steps)
  state = run.first_state()
  optimizer = chains.at_rate(experiment.optimizer, schedule)
  every = experiment.steps_per_dispatch
  experiment = experiment._replace(optimizer=optimizer, log_every=every)
  program = SingleRun(experiment, run.data, run.validate)
  program.put(0, devices.replicate(state))
  rows, lowest, previous = [], math.inf, None
  for seen in range(0, experiment.num_steps, every):
    fetch = program.dispatch([seen])
    if previous is not None:
      metrics = previous(0)
      rate, loss = float(metrics['learning_rate']), float(metrics['loss'])
      rows.append((rate, loss))
      lowest = min(lowest, loss) if math.isfinite(loss) else lowest
      if not math.isfinite(loss) or loss > _LOST * lowest:
        break
    previous = fetch
  program.close()
  finite = [row for row in rows if math.isfinite(row[1])]
  if len(finite) < _ROWS:
    raise ValueError(
      f'the loss was lost after {len(finite)} rows, at a learning rate of {rows[-1][0]:.2g}: begin lower, e.g. '
      f'--lr_low={low / 1000:.2g}'
    )
  rates, losses = (list(column) for column in zip(*finite, strict=True))
  smooth, steepest, best = suggest(rates, losses)
  if not processes.is_writer():
    return 0
  folder = run.folder
  result = {
    'time': provenance.now(), 'rates': rates, 'losses': losses, 'steepest': steepest, 'lowest': best,
    'ended_early': len(rows) < experiment.num_steps // every - 1,
  }  # fmt: skip
  write_json(folder / 'lr_range.json', result)
  path = plots.rate_range(
    rates,
    losses,
    smooth,
    folder / 'lr_range.png',
    marks={'steepest fall': steepest, 'lowest': best},
  )
  print(f'the loss falls fastest at a learning rate of {steepest:.2g} and is lowest at {best:.2g}')
  print(path)
  return 0
