"""How steadily a run went: clipping, gradient norms, spikes of the loss and the time to recover from them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion import checks
from diffusion.evaluation.metric import MetricResult
from diffusion.statistics import usual


class Spike(NamedTuple):
  """Where the logged loss rose, and after how many steps it was back; inf if it was not."""

  step: int
  recovery: float


def spikes(
  steps: Sequence[int],
  losses: Sequence[float],
  deviations: float = 10.0,
  window: int = 200,
  minimum: int = 20,
  floor: float = 0.05,
) -> list[Spike]:
  """The spikes of a logged loss.

  A row is high when its log-loss exceeds median + deviations x max(1.4826 MAD, floor) of the last `window` rows that
  were not high, at least `minimum` of them; a loss that is not finite is high. Consecutive high rows are one spike. It
  is over at the first row within a third of that distance from the median.

  Args:
    steps, losses: of the logged rows, in order; where steps were turned back, the batches drawn so far instead.
    deviations, floor: see above, > 0.
    window, minimum: rows, >= 1.

  Raises:
    ValueError: arguments out of range, lists of different lengths, or a loss that is not positive.
  """
  checks.positive('deviations', deviations)
  checks.positive('floor', floor)
  checks.integer('minimum', minimum)
  checks.integer('window', window, minimum)
  if len(steps) != len(losses):
    raise ValueError(f'a loss needs a step each, got {len(steps)} steps and {len(losses)} losses')
  if any(loss <= 0 for loss in losses):
    raise ValueError(
      f'spikes are of the logarithm of a loss, which must be positive, got {min(losses)!r}'
    )
  past: list[float] = []
  found: list[Spike] = []
  since = None
  for step, loss in zip(steps, losses, strict=True):
    value = math.log(loss) if math.isfinite(loss) else math.inf
    if len(past) < minimum:
      past += [value] if math.isfinite(value) else []
      continue
    center, reach = usual(past[-window:], deviations, floor)
    if since is not None and value <= center + reach / 3:
      found[-1] = Spike(since, step - since)
      since = None
    if value > center + reach:
      if since is None:
        since = step
        found.append(Spike(step, math.inf))
    elif since is None:
      past.append(value)
  return found


def findings(rows: Sequence[Mapping[str, Any]]) -> list[MetricResult]:
  """What the rows of a run's metrics.jsonl say of its stability; quantities that no row has are left out."""
  logged = [row for row in rows if 'loss' in row]
  found = []
  if any('clip_rate' in row for row in logged):
    rate = float(np.mean([row['clip_rate'] for row in logged if 'clip_rate' in row]))
    meaning = 'of the steps, those whose gradient was clipped'
    found.append(MetricResult('clip rate', rate, meaning, unit='share'))
  norms = [row['gradient_norm'] for row in logged if math.isfinite(row.get('gradient_norm', math.nan))]  # fmt: skip
  if norms:
    middle, high = np.quantile(norms, [0.5, 0.99])
    meaning = 'of the logged rows, each a mean over steps'
    found += [
      MetricResult('gradient norm, median', float(middle), meaning, unit='L2 norm'),
      MetricResult('gradient norm, 99 %', float(high), meaning, unit='L2 norm'),
    ]
  if any(row['loss'] <= 0 for row in logged):  # learned uncertainty may take a loss below 0
    return found
  # The cursor goes on where a rollback turns the steps back.
  times = [row['cursor' if 'cursor' in row else 'step'] for row in logged]
  risen = spikes(times, [row['loss'] for row in logged])
  meaning = 'log-loss above median + 10 deviations of the last 200 rows'
  found.append(MetricResult('loss spikes', len(risen), meaning, unit='times', better='lower'))
  if risen:
    longest = max(spike.recovery for spike in risen)
    meaning = 'from a spike until the loss was back; inf: never'
    found.append(MetricResult('longest recovery', longest, meaning, unit='steps', better='lower'))
  return found
