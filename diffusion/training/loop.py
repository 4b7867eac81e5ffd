"""The loop. It dispatches, and looks at results one dispatch later."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion import devices
from diffusion.training.callbacks import Callback, CallbackState, DrawSamples, Event, Save, Stop


class Cadence(NamedTuple):
  """Steps: in all, between rows, between validations, and in one dispatch. Each divides by the ones below it."""

  num_steps: int
  log_every: int
  validate_every: int
  steps_per_dispatch: int


class Tools(NamedTuple):
  """What the loop acts through. `state` is the replicated TrainState throughout.

  Attributes:
    dispatch: state -> (state, metrics on the device); donates the state.
    validate: state -> a row of metrics.
    save: (step, state, callback states, metric, reason to stop or None) -> None.
    draw: (step, state) -> None.
    write: (row, timing) -> None.
    interrupted: () -> the name of the signal that asks to leave, or None.
  """

  dispatch: Callable[[Any], tuple[Any, Any]]
  validate: Callable[[Any], dict[str, float]]
  save: Callable[[int, Any, dict[str, CallbackState], float, str | None], None]
  draw: Callable[[int, Any], None]
  write: Callable[[dict[str, Any], dict[str, float]], None]
  interrupted: Callable[[], str | None]


class Outcome(NamedTuple):
  """How a run ended. `finished` is False when a signal interrupted it."""

  state: Any
  step: int
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


def train(
  state: Any,
  start: int,
  cadence: Cadence,
  callbacks: Sequence[Callback],
  callback_states: Mapping[str, CallbackState],
  tools: Tools,
) -> Outcome:
  """Trains from step `start` until `num_steps`, a callback's Stop, or a signal.

  A row that nothing waits for is written after the next dispatch is on its way, so that the device never idles for a
  number; at most two dispatches are in flight. However the run ends, its last state is saved.
  """
  states, step, clock = dict(callback_states), start, _Clock(start)
  pending, previous, saved, reason = None, None, None, None

  def write(row_step: int, metrics: Any, more: Mapping[str, float]) -> dict[str, Any]:
    row = {'step': row_step} | flatten(devices.to_host(metrics)) | dict(more)
    tools.write(row, clock.lap(row_step))
    return row

  while step < cadence.num_steps and reason is None:
    state, metrics = tools.dispatch(state)
    step += cadence.steps_per_dispatch
    if previous is not None:
      devices.wait(previous)
    previous = metrics['loss']
    if pending is not None:
      write(*pending, {})
      pending = None
    if step % cadence.log_every == 0:
      validating = step % cadence.validate_every == 0
      due = [c for c in callbacks if (step % c.every == 0 if c.every else validating)]
      if due or validating:
        row = write(step, metrics, tools.validate(state) if validating else {})
        metric, draw, reason = _react(due, states, Event(step, row))
        if metric is not None or reason is not None:
          tools.save(step, state, states, math.inf if metric is None else metric, reason)
          saved = step
        if draw:
          tools.draw(step, state)
      else:
        pending = (step, metrics)
    signal = tools.interrupted()
    if signal is not None and reason is None:
      break
  else:
    signal = None
  if pending is not None:
    write(*pending, {})
  finished = signal is None
  reason = reason or (f'all {cadence.num_steps} steps done' if finished else signal)
  if saved != step and step > start:
    tools.save(step, state, states, math.inf, reason if finished else None)
  return Outcome(state, step, states, reason, finished)


def _react(
  due: Sequence[Callback], states: dict[str, CallbackState], event: Event
) -> tuple[float | None, bool, str | None]:
  """Updates the callbacks that are due, all of them before anything acts, so that a save holds their new states.

  Returns:
    (the metric to save with, or None for no save; whether to draw; the first reason to stop, or None).
  """
  actions = []
  for callback in due:
    states[callback.name], action = callback.update(states[callback.name], event)
    actions.append(action)
  metrics = [action.metric for action in actions if isinstance(action, Save)]
  reasons = [action.reason for action in actions if isinstance(action, Stop)]
  draw = any(isinstance(action, DrawSamples) for action in actions)
  return next(iter(metrics), None), draw, next(iter(reasons), None)
