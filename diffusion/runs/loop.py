"""The loop: it trains one run, or several side by side, and does what their callbacks ask for."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion.runs.look import LookAtRun
from diffusion.runs.run import Position, Run
from diffusion.training.callbacks import (
  Action,
  Callback,
  Remember,
  Rollback,
  Save,
  SetLearningRateScale,
  Stop,
)
from diffusion.training.program import Fetch, Program
from diffusion.training.state import gone_back, rescaled


def train(
  runs: Sequence[Run],
  program: Program,
  signaled: Callable[[], str | None],
) -> str | None:
  """Trains each run from where it stands to its last step or a callback's Stop, or all of them to a signal.

  One call of the devices makes the next steps of all runs. A row that nothing waits for is written after the next call
  is on its way, so that the devices never idle for a number. A run that has ended stays as it is; when half of several
  have, the others are saved and left, for a smaller program to go on with. However a run is left, its last state is
  saved, and its `reason` is why it ended, or '' where it has not.

  Args:
    runs: with their rows open, in the order in which the program holds their states.
    program: compiled for them.
    signaled: () -> the name of the signal that asks to leave, or None; asked once a call.

  Returns:
    The signal that ended it, or None.
  """
  trained = [InTraining(run, k, program) for k, run in enumerate(runs)]
  living, signal = trained, None
  while len(living) > len(runs) // 2 and signal is None:
    fetch = program.dispatch(
      [None if one.run.reason else one.run.position.batches_seen for one in trained]
    )
    for one in living:
      one.follow(fetch)
    living = [one for one in living if not one.run.reason]
    signal = signaled()
  for one in living:
    one.leave()
  return signal


class InTraining:
  """A run in the loop: its number in the program, the row that waits to be written, and what is saved."""

  def __init__(self, run: Run, k: int, program: Program):
    """Begins where the run stands."""
    self.run, self.k, self.program = run, k, program
    self.saved, self.waiting = run.position, None
    self._begin = self._lap = time.perf_counter()
    self._seen = run.position.batches_seen

  def follow(self, fetch: Fetch) -> None:
    """What follows a dispatch: a row, what the callbacks make of it, and what they ask for."""
    run, experiment = self.run, self.run.experiment
    run.position = run.position.after(experiment.steps_per_dispatch)
    self._write_what_waits()
    step = run.position.step
    if step % experiment.log_every == 0:
      validating = step % experiment.validate_every == 0
      due = [c for c in experiment.callbacks if (step % c.every == 0 if c.every else validating)]
      if due or validating:
        self._ask(due, fetch, validating)
      else:
        self.waiting = run.position, fetch
    if not run.reason and run.position.step >= run.num_steps:
      self._write_what_waits()
      run.reason = f'all {run.num_steps} steps done'
      if self.saved != run.position:
        self._save(recomputed=False)

  def leave(self) -> None:
    """Saves where the run stands, for another start to go on."""
    self._write_what_waits()
    if self.saved != self.run.position:
      self._save(recomputed=False)

  def _ask(self, due: Sequence[Callback], fetch: Fetch, validating: bool) -> None:
    """Lets the callbacks look, writes the row with what they log, and does what they ask for."""
    run, program, k = self.run, self.program, self.k
    if validating:
      program.recompute_statistics(k)
    validated = program.validate(k) if validating else {}
    row, timing = self._row(run.position, fetch)
    look = LookAtRun(run, k, program, row=row | validated, recomputed=validating)
    actions = []
    try:  # all of them before anything acts, so that a save holds their new states
      for callback in due:
        state, action = callback.update(run.callback_states[callback.name], look)
        run.callback_states[callback.name] = state
        actions.append(action)
    finally:
      run.write(look.row, timing)
    self._act(actions, look)

  def _act(self, actions: Sequence[Action], look: LookAtRun) -> None:
    """Does what the callbacks ask for, the first of each kind."""
    run, program, k = self.run, self.program, self.k
    asked = {type(action): action for action in reversed(actions)}
    if Rollback in asked:
      self._go_back(asked[Rollback])
      return
    if SetLearningRateScale in asked:
      program.put(k, rescaled(program.get(k), asked[SetLearningRateScale].scale))
    if Stop in asked:
      run.reason = asked[Stop].reason
    if not asked.keys().isdisjoint({Save, Stop, Remember}):
      look.recompute_statistics()
      metric = asked[Save].metric if Save in asked else math.inf
      self._save(metric, guarded=Remember in asked)

  def _go_back(self, back: Rollback) -> None:
    """Goes on from before a spike; where nothing was saved for it, the run ends."""
    state = self.run.go_back(back.steps)
    if state is None:
      self.run.reason = f'{back.reason}, and there is no checkpoint to go back to'
    else:
      self.program.put(self.k, gone_back(state, self.program.get(self.k)))
    self._save(recomputed=state is not None)

  def _save(
    self, metric: float = math.inf, *, recomputed: bool = True, guarded: bool = False
  ) -> None:
    if not recomputed:
      self.program.recompute_statistics(self.k)
    self.run.save(self.program.get(self.k), metric, guarded=guarded)
    self.saved = self.run.position

  def _write_what_waits(self) -> None:
    if self.waiting is not None:
      self.run.write(*self._row(*self.waiting))
      self.waiting = None

  def _row(self, position: Position, fetch: Fetch) -> tuple[dict[str, Any], dict[str, float]]:
    """A row, which waits for the device, and what timing says of it: the time since the one before."""
    row = position.as_row() | flatten(fetch(self.k))
    now = time.perf_counter()
    rate = (position.batches_seen - self._seen) / (now - self._lap)
    self._lap, self._seen = now, position.batches_seen
    return row, {'wall_seconds': now - self._begin, 'steps_per_second': rate}


def flatten(metrics: Mapping[str, Any]) -> dict[str, float | int]:
  """Host metrics as a flat row: vectors become name/0, name/1, ..."""
  row = {}
  for name, value in metrics.items():
    for key, item in (
      [(name, value)] if np.ndim(value) == 0 else [(f'{name}/{i}', v) for i, v in enumerate(value)]
    ):
      row[key] = np.asarray(item).item()
  return row
