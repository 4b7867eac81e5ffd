"""The learning-rate range test: one short training with a rate that rises until the loss does."""

import json
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from diffusion import checks, devices, processes, provenance
from diffusion.citations import technique
from diffusion.optimizers import chains
from diffusion.optimizers.schedules import LearningRate
from diffusion.reporting import plots
from diffusion.runs.run import Run
from diffusion.training.program import SingleRun

_LOST = 4.0  # times the lowest loss so far, where the test ends


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
  if len(rates) < 10:
    raise ValueError(
      f'a range test needs at least 10 logged rows, got {len(rates)}: log more often'
    )
  size = max(3, len(rates) // 10) | 1
  padded = np.pad(np.asarray(losses, np.float64), size // 2, mode='edge')
  smooth = np.convolve(padded, np.full(size, 1 / size), 'valid')
  lowest = int(np.argmin(smooth))
  slope = np.gradient(smooth, np.log(rates))
  steepest = int(np.argmin(slope[: lowest + 1])) if lowest else 0
  return smooth, float(rates[steepest]), float(rates[lowest])


def train_rising(run: Run, low: float, high: float) -> int:
  """Trains over `num_steps` with a rising rate and writes `lr_range.json` and `lr_range.png`; no checkpoint is touched.

  It ends early where the loss is not finite or four times its lowest.

  Args:
    run: prepared.
    low, high: the first and the last rate, 0 < low < high.

  Returns:
    The program's exit status.

  Raises:
    ValueError: rates out of order, or too few rows to see a slope.
  """
  experiment, state = run.experiment, run.first_state()
  schedule = rising(low, high, experiment.num_steps)
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
  rates, losses = (list(column) for column in zip(*finite, strict=True))
  smooth, steepest, best = suggest(rates, losses)
  if not processes.is_writer():
    return 0
  folder = run.folder
  folder.mkdir(parents=True, exist_ok=True)
  result = {
    'time': provenance.now(), 'rates': rates, 'losses': losses, 'steepest': steepest, 'lowest': best,
    'ended_early': len(rows) < experiment.num_steps // every - 1,
  }  # fmt: skip
  (folder / 'lr_range.json').write_text(json.dumps(result, indent=2) + '\n')
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
