"""Callbacks: pure functions of their own state and what just happened, answering with an action.

A callback sees an event every so many steps and returns its new state and what the loop should do. Its state is a
dict of numbers and strings that is saved in every checkpoint, so patience survives a restart. The spike guard, which
goes back, is in `guards`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
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


class MeasureMemorization(NamedTuple):
  """Draw so many samples of each class from the averaged weights and log how near they are to the training set."""

  per_class: int


class SetLearningRateScale(NamedTuple):
  """Multiply the schedule's learning rate by this from now on."""

  scale: float


class Snapshot(NamedTuple):
  """Keep the averages as they are now, for later reconstruction."""


class Remember(NamedTuple):
  """Save a checkpoint as one to go back to; the newest two of these are kept."""


class Rollback(NamedTuple):
  """Go back to what was saved by `Remember` at least so many steps ago, without the batches seen since."""

  steps: int
  reason: str


Action = (
  Continue | Stop | Save | DrawSamples | MeasureMemorization | SetLearningRateScale | Snapshot | Remember | Rollback
)  # fmt: skip


class Callback(NamedTuple):
  """`update(state, event) -> (state, action)`, called at every step divisible by `every`.

  `every` = 0 means whenever the run validates. `extend(state, step)` is the state when a run that was finished at that
  step is taken further. `survives_rollback`: its state is kept where the others' are turned back. `saves`: it asks for
  checkpoints, whatever happens. `finding(state)` is what a report says of it, as (quantity, number, meaning), or None.
  """

  name: str
  every: int
  init: Callable[[], CallbackState]
  update: Callable[[CallbackState, Event], tuple[CallbackState, Action]]
  extend: Callable[[CallbackState, int], CallbackState] = lambda state, step: state
  survives_rollback: bool = False
  saves: bool = False
  finding: Callable[[CallbackState], tuple[str, float, str] | None] = lambda state: None


def _metric(row: Mapping[str, Any], name: str) -> float:
  if name not in row:
    raise ValueError(f'no metric {name!r} to follow: there are {", ".join(sorted(map(str, row)))}')
  return row[name]


@technique('early stopping on held-out loss', 'trajectory', 'prechelt1998early')
def early_stopping(
  metric: str | Sequence[str] = 'validation/eps',
  patience: int = 1000,
  min_delta: float = 0.0,
  *,
  share: float = 0.0,
) -> Callback:
  """Stops when no metric has fallen by more than `min_delta` below its best for `patience` steps.

  With a `share` the patience is max(patience, share x step): a long run waits longer.

  Args:
    metric: a name in the validation row, or several; smaller is better. A value that is not finite is no improvement.
    patience: steps, >= 1.
    min_delta: >= 0.
    share: of the elapsed steps, in [0, 1); 0 is off.

  Raises:
    ValueError: an argument out of its range, or (when called) a metric that the row does not have.

  Source: Prechelt (1998), "Early stopping - but when?", criterion UP in steps.
  """
  metrics = (metric,) if isinstance(metric, str) else tuple(metric)
  if not metrics:
    raise ValueError(f'metric must name at least one metric, got {metric!r}')
  checks.integer('patience', patience)
  checks.at_least('min_delta', min_delta, 0)
  checks.in_range('share', share, 0, 1, ends='[)')

  def update(state: CallbackState, event: Event) -> tuple[CallbackState, Action]:
    state = {'since': state['since'], 'best': dict(state['best'])}
    for name in metrics:
      value, best = _metric(event.row, name), state['best'].get(name, [math.inf, 0])
      if math.isfinite(value) and value < best[0] - min_delta:
        state['best'][name] = [value, event.step]
        state['since'] = event.step
    waited = event.step - state['since']
    if waited >= max(patience, share * event.step):
      bests = [(name, *state['best'].get(name, [math.inf, 0])) for name in metrics]
      below = ', '.join(f'{name} has not fallen below {b:.6g} at step {s}' for name, b, s in bests)
      return state, Stop(f'early stopping: {below} for {waited} steps')
    return state, Continue()

  return Callback(
    'early_stopping', 0, lambda: {'since': 0, 'best': {}}, update,
    extend=lambda state, step: state | {'since': step},
  )  # fmt: skip


@technique('reduced learning rate on a plateau', 'update', 'goodfellow2016deep')
def reduce_on_plateau(
  metric: str = 'validation/eps',
  factor: float = 0.5,
  patience: int = 1000,
  min_delta: float = 0.0,
  min_scale: float = 1e-3,
) -> Callback:
  """Multiplies the learning rate by `factor` when `metric` has not fallen by `min_delta` for `patience` steps.

  Args:
    metric: a name in the validation row; smaller is better.
    factor: in (0, 1).
    patience: steps, >= 1, counted anew after each reduction.
    min_delta: >= 0.
    min_scale: the least product of factors, in (0, 1).

  Raises:
    ValueError: an argument out of its range.

  Source: Goodfellow et al. (2016), section 8.3.1, name it as what practice does; the rule is folklore.
  """
  checks.in_range('factor', factor, 0, 1, ends='()')
  checks.integer('patience', patience)
  checks.at_least('min_delta', min_delta, 0)
  checks.in_range('min_scale', min_scale, 0, 1, ends='()')

  def update(state: CallbackState, event: Event) -> tuple[CallbackState, Action]:
    value = _metric(event.row, metric)
    if math.isfinite(value) and value < state['best'] - min_delta:
      return state | {'best': value, 'since': event.step}, Continue()
    if event.step - state['since'] < patience or state['scale'] <= min_scale:
      return state, Continue()
    scale = max(state['scale'] * factor, min_scale)
    return state | {'scale': scale, 'since': event.step}, SetLearningRateScale(scale)

  return Callback(
    'reduce_on_plateau', 0, lambda: {'best': math.inf, 'since': 0, 'scale': 1.0}, update
  )


def snapshots(every: int) -> Callback:
  """Keeps the averages every `every` steps, >= 1, in the run's `snapshots`, for `averaging.reconstruct`."""
  checks.integer('every', every)
  return Callback('snapshots', every, dict, lambda state, event: (state, Snapshot()))


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
    'checkpoint', 0, lambda: {'best': math.inf, 'best_step': 0, 'last_save': 0}, update, saves=True
  )


def sample_grid(every: int) -> Callback:
  """Writes a picture of samples every `every` steps, >= 1."""
  checks.integer('every', every)
  return Callback('sample_grid', every, dict, lambda state, event: (state, DrawSamples()))


@technique('memorization while training', 'core', 'yoon2023memorize')
def watch_memorization(every: int, per_class: int = 50, growth: float = 1.0) -> Callback:
  """Logs the memorized fraction of samples as training goes on: `memorized/fraction`, and `memorized/null` beside it.

  Every look draws from the same starting noise, so that what changes is the network.

  Args:
    every: steps between looks, >= 1; with `growth` the least distance.
    per_class: samples of each class, >= 1; unlabelled data counts as one class.
    growth: the next look is at least at this multiple of the step, >= 1: 1.2 looks at geometric distances.

  Raises:
    ValueError: an argument out of its range.

  Source: the fraction is that of Yoon et al. (2023); see `memorization.nearest_neighbor_ratio`.
  """
  checks.integer('every', every)
  checks.integer('per_class', per_class)
  checks.at_least('growth', growth, 1)

  def update(state: CallbackState, event: Event) -> tuple[CallbackState, Action]:
    if event.step < state['next']:
      return state, Continue()
    return {'next': growth * event.step}, MeasureMemorization(per_class)

  return Callback('watch_memorization', every, lambda: {'next': 0.0}, update)


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
