"""Rows of the catalogue: trajectory."""

from diffusion.training import callbacks, guards
from diffusion.training.callbacks import Rollback, Stop
from tests.cases.base import CALLBACKS, Case, fields
from tests.training.looks import Seen


def last_action(callback, rows):
  state, action = callback.init(), None
  for i, row in enumerate(rows, 1):
    state, action = callback.update(state, Seen(10 * i, row))
    if isinstance(action, Stop | Rollback):
      return i, action
  return len(rows), action


def live_early_stopping():
  rows = [{'validation/eps': v} for v in (3.0, 2.0, 2.5, 2.4, 2.3, 2.2, 2.1)]
  ends = [last_action(callbacks.early_stopping(patience=p), rows) for p in (10, 30, 1000)]
  assert [i for i, _ in ends] == [3, 5, 7]
  assert [isinstance(a, Stop) for _, a in ends] == [True, True, False]


def calm(count, factor=1.0):
  row = {'loss': 1.0, 'gradient_norm': 1.0, 'loss_bucket/0': 1.0, 'skipped_in_a_row': 0}
  return [row] * count + [{k: v * factor for k, v in row.items()}] * 5


def live_divergence():
  rows = [
    last_action(callbacks.divergence_guard(10, factor=f), calm(5, 20.0))[0] for f in (10.0, 30.0)
  ]
  assert rows == [6, 10]


def live_spike():
  assert isinstance(last_action(guards.spike_guard(10), calm(30, 100.0))[1], Rollback)
  assert not isinstance(last_action(guards.spike_guard(10), calm(30, 1.3))[1], Rollback)


TABLE = (
  Case(callbacks.early_stopping, live=live_early_stopping,
    turn_on=lambda: fields(callbacks=[*CALLBACKS, callbacks.early_stopping(patience=1000, share=0.3)]),
    proof='tests/training/test_callbacks.py::test_early_stopping_counts_patience_in_steps_from_the_best'),
  Case(callbacks.divergence_guard, live=live_divergence,
    turn_on=lambda: fields(callbacks=[*CALLBACKS, callbacks.divergence_guard(10)]),
    proof='tests/training/test_callbacks.py::test_divergence_guard_stops_on_skips_in_a_row_and_on_a_risen_loss'),
  Case(guards.spike_guard, live=live_spike,
    turn_on=lambda: fields(callbacks=[*CALLBACKS, guards.spike_guard(10)]),
    proof='tests/training/test_guards.py::test_two_high_visits_of_one_noise_level_are_a_spike_and_one_is_not'),
)  # fmt: skip
