"""The loop. It dispatches, and looks at results one dispatch later."""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion import devices
from diffusion.training.callbacks import (
  Action,
  Callback,
  CallbackState,
  DrawSamples,
  Event,
  MeasureMemorization,
  Remember,
  Rollback,
  Save,
  SetLearningRateScale,
  Snapshot,
  Stop,
)


class Cadence(NamedTuple):
  """Steps: in all, between rows, between validations, and in one dispatch. Each divides by the ones below it."""

  num_steps: int
  log_every: int
  validate_every: int
  steps_per_dispatch: int


class Place(NamedTuple):
  """Where a run is: `step` on its trajectory, `cursor` in the batches drawn. A rollback turns back the step alone."""

  step: int
  cursor: int

  def after(self, steps: int) -> 'Place':
    """So many steps on."""
    return Place(self.step + steps, self.cursor + steps)


class Remembered(NamedTuple):
  """A checkpoint to go back to, its state as if other batches had led to it."""

  step: int
  state: Any
  callback_states: dict[str, CallbackState]


class Tools(NamedTuple):
  """What the loop acts through. `state` is the replicated TrainState throughout.

  Attributes:
    dispatch: (state, batches seen) -> (state, metrics on the device); donates the state.
    validate: state -> a row of metrics.
    save: (place, state, callback states, metric, reason to stop or None, whether to go back to it) -> None.
    draw: (step, state) -> None.
    measure: (state, samples of each class) -> a row of how near samples are to the training set.
    write: (row, timing) -> None.
    interrupted: () -> the name of the signal that asks to leave, or None.
    settle: state -> state, before it is validated, drawn from or saved; donates the state.
    rescale: (state, scale) -> state with this learning-rate scale.
    snapshot: (step, state) -> None; keeps the averages of this step.
    recall: (place, steps, state) -> the newest checkpoint to go back to, at least so many steps ago, or None.
    fetch: metrics on the device -> on the host; waits for them.
  """

  dispatch: Callable[[Any, int], tuple[Any, Any]]
  validate: Callable[[Any], dict[str, float]]
  save: Callable[[Place, Any, dict[str, CallbackState], float, str | None, bool], None]
  draw: Callable[[int, Any], None]
  measure: Callable[[Any, int], dict[str, float]]
  write: Callable[[dict[str, Any], dict[str, float]], None]
  interrupted: Callable[[], str | None]
  settle: Callable[[Any], Any]
  rescale: Callable[[Any, float], Any]
  snapshot: Callable[[int, Any], None]
  recall: Callable[[Place, int, Any], Remembered | None]
  fetch: Callable[[Any], dict[str, Any]] = devices.to_host


class Outcome(NamedTuple):
  """How a run ended. `finished` is False when a signal interrupted it."""

  state: Any
  place: Place
  callback_states: dict[str, CallbackState]
  reason: str
  finished: bool


def check_cadence(cadence: Cadence, callbacks: Sequence[Callback]) -> None:
  """Raises ValueError where a period is not a multiple of the one it must contain.

  Callbacks see logged rows, so their periods are multiples of `log_every`.
  """
  pairs = [
    ('log_every', cadence.log_every, 'steps_per_dispatch', cadence.steps_per_dispatch),
    ('validate_every', cadence.validate_every, 'log_every', cadence.log_every),
    ('num_steps', cadence.num_steps, 'steps_per_dispatch', cadence.steps_per_dispatch),
    *((f'{c.name} every', c.every, 'log_every', cadence.log_every) for c in callbacks if c.every),
  ]
  for name, value, other, unit in pairs:
    if value < 1 or value % unit:
      raise ValueError(f'{name} must be a positive multiple of {other} = {unit}, got {value}')


def flatten(metrics: Mapping[str, Any]) -> dict[str, float | int]:
  """Host metrics as a flat row: vectors become name/0, name/1, ..."""
  row = {}
  for name, value in metrics.items():
    for key, item in (
      [(name, value)] if np.ndim(value) == 0 else [(f'{name}/{i}', v) for i, v in enumerate(value)]
    ):
      row[key] = np.asarray(item).item()
  return row


class _Clock:
  """Seconds and steps between rows."""

  def __init__(self, step: int):
    self.start = self.last = time.perf_counter()
    self.step = step

  def lap(self, step: int) -> dict[str, float]:
    now = time.perf_counter()
    timing = {
      'wall_seconds': now - self.start,
      'steps_per_second': (step - self.step) / (now - self.last),
    }
    self.last, self.step = now, step
    return timing


Walk = Generator[Any, tuple[Any, Any], Outcome]


def train(
  state: Any,
  start: Place,
  cadence: Cadence,
  callbacks: Sequence[Callback],
  callback_states: Mapping[str, CallbackState],
  tools: Tools,
) -> Outcome:
  """Trains from `start` until `num_steps`, a callback's Stop, or a signal."""
  steps, answer = walk(state, start, cadence, callbacks, callback_states, tools), None
  while True:
    try:
      asked = steps.send(answer)
    except StopIteration as end:
      return end.value
    answer = tools.dispatch(*asked)


def walk(
  state: Any,
  start: Place,
  cadence: Cadence,
  callbacks: Sequence[Callback],
  callback_states: Mapping[str, CallbackState],
  tools: Tools,
) -> Walk:
  """The loop, which yields what `Tools.dispatch` takes and is sent what it returns; it returns the Outcome.

  So whoever drives it can make the dispatches of several runs at once. A row that nothing waits for is written after
  the next dispatch is on its way, so that the device never idles for a number; at most two dispatches are in flight.
  However the run ends, its last state is saved.
  """
  states, place, clock = dict(callback_states), start, _Clock(start.cursor)
  pending, previous, saved, reason, signal = None, None, start, None, None

  def write(at: Place, metrics: Any, more: Mapping[str, float]) -> dict[str, Any]:
    row = at._asdict() | flatten(tools.fetch(metrics)) | dict(more)
    tools.write(row, clock.lap(at.cursor))
    return row

  while place.step < cadence.num_steps and reason is None and signal is None:
    state, metrics = yield state, place.cursor
    place = place.after(cadence.steps_per_dispatch)
    if previous is not None:
      devices.wait(previous)
    previous = metrics['loss']
    if pending is not None:
      write(*pending, {})
      pending = None
    if place.step % cadence.log_every == 0:
      validating = place.step % cadence.validate_every == 0
      due = [c for c in callbacks if (place.step % c.every == 0 if c.every else validating)]
      if due or validating:
        state = tools.settle(state) if validating else state
        row = write(place, metrics, tools.validate(state) if validating else {})
        actions = _react(due, states, Event(place.step, row))
        back = _first(actions, Rollback)
        if back is not None:
          state, place, states, reason = _go_back(back, place, state, states, callbacks, tools)
          if reason is None:
            tools.save(place, state, states, math.inf, None, False)
            saved = place
        else:
          state, done, reason = _act(actions, place, state, states, tools, settled=validating)
          saved = place if done else saved
      else:
        pending = (place, metrics)
    signal = tools.interrupted() if reason is None else None
  if pending is not None:
    write(*pending, {})
  finished = signal is None
  reason = reason or (f'all {cadence.num_steps} steps done' if finished else signal)
  if saved != place:
    state = tools.settle(state)
    tools.save(place, state, states, math.inf, reason if finished else None, False)
  return Outcome(state, place, states, reason, finished)


def _react(due: Sequence[Callback], states: dict[str, CallbackState], event: Event) -> list[Action]:
  """Updates the callbacks that are due, all of them before anything acts, so that a save holds their new states."""
  actions = []
  for callback in due:
    states[callback.name], action = callback.update(states[callback.name], event)
    actions.append(action)
  return actions


def _first(actions: Sequence[Action], kind: type) -> Any:
  """The first action of a kind, or None."""
  return next((action for action in actions if isinstance(action, kind)), None)


def _act(
  actions: Sequence[Action],
  place: Place,
  state: Any,
  states: dict[str, CallbackState],
  tools: Tools,
  settled: bool,
) -> tuple[Any, bool, str | None]:
  """Does what the callbacks ask. Returns (state, whether it was saved, the first reason to stop or None)."""
  scale, save, stop = (_first(actions, kind) for kind in (SetLearningRateScale, Save, Stop))
  if scale is not None:
    state = tools.rescale(state, scale.scale)
  draw, measure = (_first(actions, kind) for kind in (DrawSamples, MeasureMemorization))
  remember = _first(actions, Remember) is not None
  saving = remember or save is not None or stop is not None
  if (saving or draw is not None or measure is not None) and not settled:
    state = tools.settle(state)
  if measure is not None:  # before saving, so that no checkpoint is later than its row
    tools.write(place._asdict() | tools.measure(state, measure.per_class), {})
  if _first(actions, Snapshot) is not None:
    tools.snapshot(place.step, state)  # likewise
  if saving:
    metric = math.inf if save is None else save.metric
    tools.save(place, state, states, metric, stop and stop.reason, remember)
  if draw is not None:
    tools.draw(place.step, state)
  return state, saving, stop and stop.reason


def _go_back(
  back: Rollback,
  place: Place,
  state: Any,
  states: dict[str, CallbackState],
  callbacks: Sequence[Callback],
  tools: Tools,
) -> tuple[Any, Place, dict[str, CallbackState], str | None]:
  """(state, place, callback states) to go on from, and a reason to stop if there is nothing to go back to.

  The batches seen since are passed over: the cursor stays. What a guard has counted stays, or it would forget why it
  went back.
  """
  found = tools.recall(place, back.steps, state)
  if found is None:
    return state, place, states, f'{back.reason}, and there is no checkpoint to go back to'
  survivors = {c.name: states[c.name] for c in callbacks if c.survives_rollback}
  return found.state, Place(found.step, place.cursor), found.callback_states | survivors, None
