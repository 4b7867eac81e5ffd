"""Callbacks: functions of their own state and a look at the run, answering with an action.

A callback has a look every so many steps and returns its new state and what the loop should do. Its state is a dict of
numbers and strings that is saved in every checkpoint, so patience survives a restart; what else it finds it logs. The
spike guard, which goes back, is in `guards`.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffusion import checks
from diffusion.citations import technique
from diffusion.data.splits import SplitData
from diffusion.evaluation import memorization
from diffusion.sampling import draw
from diffusion.types import Condition, Denoiser

CallbackState = dict[str, Any]
DIVERGED = 'diverged'  # the reason of a guard that stops a run begins so


class Look(Protocol):
  """What a callback sees of a run; what it asks for is computed then, once for all callbacks.

  Of several processes all see the same and must ask for the same, in the same order.

  Attributes:
    step: of the run.
    row: this step's metrics: means since the last row, what was validated, and what callbacks before have logged.
    experiment: `training.experiment.Experiment`.
    data: loaded and split.
    folder: of the run.
  """

  step: int
  row: Mapping[str, Any]
  experiment: Any
  data: SplitData
  folder: pathlib.Path

  def log(self, numbers: Mapping[str, float]) -> None:
    """Adds numbers to this step's row: 'group/name' -> number; a group is a panel of `curves.png`.

    Raises:
      ValueError: a name without a group or one that the row has, or what is no number.
    """

  def parameters(self, average: str | None = None) -> Any:
    """The evaluation parameters, or those of an average, as NumPy arrays: `network`, `schedule` and `terms`."""

  def denoiser(self, condition: Condition) -> Denoiser:
    """(z [B, ...], t [B]) -> Prediction of the evaluation parameters for these B conditions (label -1 is the null)."""

  def samples(self, count: int) -> np.ndarray:
    """The first samples of the evaluation parameters, of the classes in turn, as the data is stored: [count, ...].

    Every look draws from the same starting noise, so that what changes is the network.
    """

  def picture(self, samples: np.ndarray, name: str) -> None:
    """Writes samples, in the order in which `samples` has them, as samples/NAME.png of the run's folder."""

  def once(self, key: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, computed at the first look of this start and kept for the later ones."""


class Continue(NamedTuple):
  """Nothing to do."""


class Stop(NamedTuple):
  """End the run after saving it. `reason` goes into the record; one that begins with `DIVERGED` is its status, too."""

  reason: str


class Save(NamedTuple):
  """Save a checkpoint; `metric` is the value by which the best is kept, smaller is better."""

  metric: float


class SetLearningRateScale(NamedTuple):
  """Multiply the schedule's learning rate by this from now on."""

  scale: float


class Remember(NamedTuple):
  """Save a checkpoint as one to go back to; the newest two of these are kept."""


class Rollback(NamedTuple):
  """Go back to what was saved by `Remember` at least so many steps ago, without the batches seen since."""

  steps: int
  reason: str


Action = Continue | Stop | Save | SetLearningRateScale | Remember | Rollback


class Callback(NamedTuple):
  """`update(state, look) -> (state, action)`, called at every step divisible by `every`.

  Attributes:
    name: one in an experiment.
    every: steps, a multiple of `log_every`; 0 means whenever the run validates.
    init: () -> its first state, a dict that JSON can hold.
    update: see above.
    extend: (state, step) -> the state when a run that was finished at that step is taken further.
    survives_rollback: its state is kept where the others' are turned back.
    saves: it asks for checkpoints, whatever happens.
    finding: state -> what a report says of it, as (quantity, number, meaning), or None.
    check: raises ValueError before training for data it cannot look at.
  """

  name: str
  every: int
  init: Callable[[], CallbackState]
  update: Callable[[CallbackState, Look], tuple[CallbackState, Action]]
  extend: Callable[[CallbackState, int], CallbackState] = lambda state, step: state
  survives_rollback: bool = False
  saves: bool = False
  finding: Callable[[CallbackState], tuple[str, float, str] | None] = lambda state: None
  check: Callable[[SplitData], None] = lambda data: None


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

  def update(state: CallbackState, look: Look) -> tuple[CallbackState, Action]:
    state = {'since': state['since'], 'best': dict(state['best'])}
    for name in metrics:
      value, best = _metric(look.row, name), state['best'].get(name, [math.inf, 0])
      if math.isfinite(value) and value < best[0] - min_delta:
        state['best'][name] = [value, look.step]
        state['since'] = look.step
    waited = look.step - state['since']
    if waited >= max(patience, share * look.step):
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

  def update(state: CallbackState, look: Look) -> tuple[CallbackState, Action]:
    value = _metric(look.row, metric)
    if math.isfinite(value) and value < state['best'] - min_delta:
      return state | {'best': value, 'since': look.step}, Continue()
    if look.step - state['since'] < patience or state['scale'] <= min_scale:
      return state, Continue()
    scale = max(state['scale'] * factor, min_scale)
    return state | {'scale': scale, 'since': look.step}, SetLearningRateScale(scale)

  return Callback(
    'reduce_on_plateau', 0, lambda: {'best': math.inf, 'since': 0, 'scale': 1.0}, update
  )


def snapshots(every: int) -> Callback:
  """Keeps the averages every `every` steps, >= 1, in the run's `snapshots`, for `averaging.reconstruct`."""
  checks.integer('every', every)

  def update(state: CallbackState, look: Look) -> tuple[CallbackState, Action]:
    from diffusion.training import trees  # here, because most runs keep none

    averages = {name: look.parameters(name) for name in look.experiment.averages}
    folder = look.folder.absolute() / 'snapshots'
    folder.mkdir(exist_ok=True)
    trees.save(folder / f'step_{look.step:08d}', averages)
    return state, Continue()

  return Callback('snapshots', every, dict, update)


def checkpoint(metric: str = 'validation/eps', every: int = 0) -> Callback:
  """Saves whenever `metric` is the best so far at a validation, and otherwise every `every` steps.

  Args:
    metric: a name in the validation row; smaller is better. A value that is not finite is never the best.
    every: steps between saves without an improvement, counted from the last save; 0 for every validation.
  """
  checks.integer('every', every, 0)

  def update(state: CallbackState, look: Look) -> tuple[CallbackState, Action]:
    value = _metric(look.row, metric)
    value = value if math.isfinite(value) else math.inf  # NaN would sort anywhere
    improved = value < state['best']
    if improved or look.step - state['last_save'] >= every:
      best = {'best': value, 'best_step': look.step} if improved else {}
      return state | best | {'last_save': look.step}, Save(value)
    return state, Continue()

  return Callback(
    'checkpoint', 0, lambda: {'best': math.inf, 'best_step': 0, 'last_save': 0}, update, saves=True
  )


def sample_grid(every: int) -> Callback:
  """Writes a picture of samples every `every` steps, >= 1, into the run's `samples`."""
  checks.integer('every', every)

  def update(state: CallbackState, look: Look) -> tuple[CallbackState, Action]:
    dataset = look.data.pictured
    labels = draw.picture_labels(look.experiment.sampling, dataset.levels, dataset.num_classes)
    look.picture(look.samples(len(labels)), f'step_{look.step:08d}')
    return state, Continue()

  return Callback('sample_grid', every, dict, update)


@technique('memorization while training', 'core', 'yoon2023memorize')
def watch_memorization(
  every: int, per_class: int = 50, growth: float = 1.0, mirrored: bool = False
) -> Callback:
  """Logs the memorized fraction of samples as training goes on: `memorized/fraction`, and `memorized/null` beside it.

  Args:
    every: steps between looks, >= 1; with `growth` the least distance.
    per_class: samples of each class, >= 1; unlabelled data counts as one class.
    growth: the next look is at least at this multiple of the step, >= 1: 1.2 looks at geometric distances.
    mirrored: for a network trained with flips, whose mirrored copies are copies.

  Raises:
    ValueError: an argument out of its range; before training, mirrors of what is no image.

  Source: the fraction is that of Yoon et al. (2023); see `memorization.nearest_neighbor_ratio`.
  """
  checks.integer('every', every)
  checks.integer('per_class', per_class)
  checks.at_least('growth', growth, 1)

  def update(state: CallbackState, look: Look) -> tuple[CallbackState, Action]:
    if look.step < state['next']:
      return state, Continue()
    train, held_out = look.data.train_in_memory[0], look.data.held_out[0]
    measure = look.once(
      'watch_memorization', lambda: memorization.watch(train, held_out, mirrored=mirrored)
    )
    look.log(measure(look.samples(per_class * look.data.kinds)))
    return {'next': growth * look.step}, Continue()

  def check(data: SplitData) -> None:
    data.check_comparable('watch_memorization')
    if mirrored:
      memorization.check_mirrors(data.dataset.x.shape[1:])

  return Callback('watch_memorization', every, lambda: {'next': 0.0}, update, check=check)


@technique('divergence guard', 'trajectory', 'chowdhery2022palm')
def divergence_guard(every: int, max_skipped: int = 10, factor: float = 10.0) -> Callback:
  """Stops a run that is lost: too many non-finite steps in a row, or a loss far above where it began.

  Args:
    every: steps between looks, >= 1.
    max_skipped: non-finite steps in a row at which to stop, >= 1.
    factor: stop when the logged loss exceeds this multiple of the first logged one, where that is positive, > 1.

  Raises:
    ValueError: an argument out of its range.

  Source: Chowdhery et al. (2022), section 5.1, describe the spikes; this guard only ends what does not recover.
  """
  checks.integer('every', every)
  checks.integer('max_skipped', max_skipped)
  checks.in_range('factor', factor, 1, math.inf, ends='()')

  def update(state: CallbackState, look: Look) -> tuple[CallbackState, Action]:
    in_a_row, loss = look.row['skipped_in_a_row'], look.row['loss']
    first = state['first'] if state['first'] is not None else loss
    state = {'first': first if math.isfinite(first) else None}
    if in_a_row >= max_skipped:
      return state, Stop(f'{DIVERGED}: {in_a_row} non-finite steps in a row (limit {max_skipped})')
    # A multiple says nothing of a loss that is not positive, as that of sliced score matching.
    if state['first'] is not None and loss > factor * state['first'] > 0:
      return state, Stop(
        f'{DIVERGED}: loss {loss:.4g} is more than {factor:g} times the first one, {state["first"]:.4g}'
      )
    return state, Continue()

  return Callback('divergence_guard', every, lambda: {'first': None}, update)
