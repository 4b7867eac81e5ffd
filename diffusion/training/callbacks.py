"""Callbacks: pure functions of their own state and what just happened, answering with an action.

A callback sees an event every so many steps and returns its new state and what the loop should do. Its state is a
dict of numbers and strings that is saved in every checkpoint, so patience survives a restart.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffusion import checks
from diffusion.citations import technique

CallbackState = dict[str, Any]


class Event(NamedTuple):
  """What a callback is told: the step, and the logged row of metrics (means since the last one, and validation)."""

  step: int
  row: Mapping[str, Any]


class Continue(NamedTuple):
  """Nothing to do."""


class Stop(NamedTuple):
  """End the run after saving it. `reason` goes into the record."""

  reason: str


class Save(NamedTuple):
  """Save a checkpoint; `metric` is the value by which the best is kept, smaller is better."""

  metric: float


class DrawSamples(NamedTuple):
  """Write a picture of samples from the averaged weights."""


Action = Continue | Stop | Save | DrawSamples


class Callback(NamedTuple):
  """`update(state, event) -> (state, action)`, called at every step divisible by `every`.

  `every` = 0 means whenever the run validates. `extend(state)` is the state when a finished run is taken further.
  """

  name: str
  every: int
  init: Callable[[], CallbackState]
  update: Callable[[CallbackState, Event], tuple[CallbackState, Action]]
  extend: Callable[[CallbackState, int], CallbackState] = lambda state, step: state


def _metric(row: Mapping[str, Any], name: str) -> float:
  if name not in row:
    raise ValueError(f'no metric {name!r} to follow: there are {", ".join(sorted(map(str, row)))}')
  return row[name]


@technique('early stopping on held-out loss', 'trajectory', 'prechelt1998early')
def early_stopping(
  metric: str = 'validation/eps', patience: int = 1000, min_delta: float = 0.0
) -> Callback:
  """Stops when `metric` has not fallen by more than `min_delta` below its best for `patience` steps.

  Args:
    metric: a name in the validation row; smaller is better. A value that is not finite is no improvement.
    patience: steps, >= 1.
    min_delta: >= 0.

  Raises:
    ValueError: an argument out of its range, or (when called) a metric that the row does not have.

  Source: Prechelt (1998), "Early stopping - but when?", criterion UP in steps.
  """
  checks.integer('patience', patience)
  checks.at_least('min_delta', min_delta, 0)

  def update(state: CallbackState, event: Event) -> tuple[CallbackState, Action]:
    value = _metric(event.row, metric)
    if math.isfinite(value) and value < state['best'] - min_delta:
      return {'best': value, 'best_step': event.step, 'since': event.step}, Continue()
    if event.step - state['since'] >= patience:
      best = f'{state["best"]:.6g} at step {state["best_step"]}'
      return state, Stop(
        f'early stopping: {metric} has not fallen below {best} for {event.step - state["since"]} steps'
      )
    return state, Continue()

  return Callback(
    'early_stopping',
    0,
    lambda: {'best': math.inf, 'best_step': 0, 'since': 0},
    update,
    lambda state, step: state | {'since': step},
  )


def checkpoint(metric: str = 'validation/eps', every: int = 0) -> Callback:
  """Saves whenever `metric` is the best so far at a validation, and otherwise every `every` steps.

  Args:
    metric: a name in the validation row; smaller is better. A value that is not finite is never the best.
    every: steps between saves without an improvement, counted from the last save; 0 for every validation.
  """
  checks.integer('every', every, 0)

  def update(state: CallbackState, event: Event) -> tuple[CallbackState, Action]:
    value = _metric(event.row, metric)
    value = value if math.isfinite(value) else math.inf  # NaN would sort anywhere
    improved = value < state['best']
    if improved or event.step - state['last_save'] >= every:
      best = {'best': value, 'best_step': event.step} if improved else {}
      return state | best | {'last_save': event.step}, Save(value)
    return state, Continue()

  return Callback(
    'checkpoint', 0, lambda: {'best': math.inf, 'best_step': 0, 'last_save': 0}, update
  )


def sample_grid(every: int) -> Callback:
  """Writes a picture of samples every `every` steps, >= 1."""
  checks.integer('every', every)
  return Callback('sample_grid', every, dict, lambda state, event: (state, DrawSamples()))


@technique('divergence guard', 'trajectory', 'chowdhery2022palm')
def divergence_guard(every: int, max_skipped: int = 10, factor: float = 10.0) -> Callback:
  """Stops a run that is lost: too many non-finite steps in a row, or a loss far above where it began.

  Args:
    every: steps between looks, >= 1.
    max_skipped: non-finite steps in a row at which to stop, >= 1.
    factor: stop when the logged loss exceeds this multiple of the first logged one, > 1.

  Raises:
    ValueError: an argument out of its range.

  Source: Chowdhery et al. (2022), section 5.1, describe the spikes; this guard only ends what does not recover.
  """
  checks.integer('every', every)
  checks.integer('max_skipped', max_skipped)
  checks.in_range('factor', factor, 1, math.inf, ends='()')

  def update(state: CallbackState, event: Event) -> tuple[CallbackState, Action]:
    in_a_row, loss = event.row['skipped_in_a_row'], event.row['loss']
    first = state['first'] if state['first'] is not None else loss
    state = {'first': first if math.isfinite(first) else None}
    if in_a_row >= max_skipped:
      return state, Stop(f'diverged: {in_a_row} non-finite steps in a row (limit {max_skipped})')
    if state['first'] is not None and loss > factor * state['first']:
      return state, Stop(
        f'diverged: loss {loss:.4g} is more than {factor:g} times the first one, {state["first"]:.4g}'
      )
    return state, Continue()

  return Callback('divergence_guard', every, lambda: {'first': None}, update)
