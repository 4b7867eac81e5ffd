"""The spike guard: it watches the loss of every noise level and goes back before a spike."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion import checks
from diffusion.citations import technique
from diffusion.statistics import usual
from diffusion.training.callbacks import (
  DIVERGED,
  Action,
  Callback,
  CallbackState,
  Continue,
  Look,
  Remember,
  Rollback,
  Stop,
)


def _logs(row: Mapping[str, Any]) -> dict[str, float]:
  """Log-losses of the noise levels that the row saw; +inf where nothing was finite."""
  if not math.isfinite(row['loss']):
    return {'all': math.inf}
  names = [name for name in row if name.startswith('loss_bucket/')]
  return {name: math.log(row[name]) for name in names if math.isfinite(row[name]) and row[name] > 0}


@technique('spike guard with rollback', 'trajectory', 'chowdhery2022palm')
def spike_guard(
  every: int,
  *,
  back: int = 100,
  limit: int = 5,
  deviations: float = 10.0,
  floor: float = 0.05,
  norm_factor: float = 10.0,
  window: int = 200,
  minimum: int = 20,
) -> Callback:
  """Goes back when a noise level's loss, or the gradient's norm, is far above what it has been.

  A logged row is a visit of every noise level in it. A level is high when its log-loss exceeds median + deviations x
  max(1.4826 MAD, floor) of its last `window` visits; 2 high ones in its last 3 visits are a spike, and so is one row
  whose gradient norm exceeds norm_factor times its median, or in which nothing was finite. The run then goes on from a
  checkpoint at least `back` steps before, without the batches since. High visits are not added to what they are
  compared with. Every `back` calm steps the guard asks for a checkpoint to go back to; the newest two are kept.

  Args:
    every: steps between looks, >= 1; the run's `log_every` sees spikes soonest.
    back: steps to go back at least, and between checkpoints to go back to; a multiple of `every`.
    limit: rollbacks in all; the run stops at the next spike.
    deviations: > 0.
    floor: least scale of a log-loss, > 0, so that a flat history does not make a spike of a ripple.
    norm_factor: > 1.
    window: visits remembered, >= minimum.
    minimum: visits before anything is judged, >= 2.

  Raises:
    ValueError: an argument out of its range.

  Source: Chowdhery et al. (2022), section 5.1 (go back about 100 steps and skip the batches around the spike); the
  rule that finds spikes is this project's.
  """
  checks.integer('every', every)
  checks.integer('back', back)
  if back % every:
    raise ValueError(f'back must be a multiple of every = {every}, got {back}')
  checks.integer('limit', limit, 0)
  checks.positive('deviations', deviations)
  checks.positive('floor', floor)
  checks.in_range('norm_factor', norm_factor, 1, math.inf, ends='()')
  checks.integer('minimum', minimum, 2)
  checks.integer('window', window, minimum)

  def above(past: Sequence[float], value: float) -> bool:
    center, reach = usual(past, deviations, floor)
    return value > center + reach

  def assess(state: CallbackState, row: Mapping[str, Any]) -> tuple[CallbackState, str | None]:
    """The state after this row, and what spiked, or None."""
    history, recent, spiked = dict(state['history']), dict(state['recent']), None
    for name, value in _logs(row).items():
      past = history.get(name, [])
      high = value == math.inf or (len(past) >= minimum and above(past, value))
      recent[name] = [*recent.get(name, []), high][-3:]
      if sum(recent[name]) >= 2 or value == math.inf:
        spiked = f'{name} at {math.exp(min(value, 700)):.3g}'
      if not high:
        history[name] = [*past, value][-window:]
    norm, past = row['gradient_norm'], history.get('norm', [])
    if math.isfinite(norm):
      if len(past) >= minimum and norm > norm_factor * statistics.median(past):
        spiked = spiked or f'a gradient norm of {norm:.3g}'
      else:
        history['norm'] = [*past, norm][-window:]
    return state | {'history': history, 'recent': recent}, spiked

  def update(state: CallbackState, look: Look) -> tuple[CallbackState, Action]:
    state, spiked = assess(state, look.row)
    if spiked is None:
      calm = not any(any(flags) for flags in state['recent'].values())
      return state, Remember() if calm and look.step % back == 0 else Continue()
    reason = f'{DIVERGED}: {spiked} at step {look.step} after {state["rollbacks"]} rollbacks'
    if state['rollbacks'] >= limit:
      return state, Stop(reason)
    state |= {'rollbacks': state['rollbacks'] + 1, 'recent': {}}
    return state, Rollback(back, reason)

  return Callback(
    'spike_guard', every, lambda: {'rollbacks': 0, 'history': {}, 'recent': {}}, update,
    survives_rollback=True,
    finding=lambda s: ('rollbacks', s['rollbacks'], 'times the spike guard went back'),
  )  # fmt: skip
