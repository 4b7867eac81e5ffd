"""The loop: it reads one row a logged dispatch, honors its callbacks, and saves however it ends."""

import numpy as np
import pytest

from diffusion import devices
from diffusion.training import callbacks, loop
from diffusion.training.callbacks import (
  Callback,
  Continue,
  Remember,
  Rollback,
  Save,
  SetLearningRateScale,
  Snapshot,
  Stop,
)
from diffusion.training.loop import Cadence, Tools


class Counted:
  """An array that counts how often the host converts it."""

  conversions = 0

  def __init__(self, value):
    self.value = np.asarray(value)

  def __getitem__(self, index):  # the first device's copy
    return self

  def __array__(self, dtype=None, copy=None):
    Counted.conversions += 1
    return self.value

  def __float__(self):
    Counted.conversions += 1
    return float(self.value)


class Scene:
  """Tools over a state that is a Python integer, and what they were asked to do."""

  def __init__(self, k=1, interrupt_at=None, losses=None):
    self.rows, self.saves, self.drawn, self.validated = [], [], [], []
    self.scales, self.snapshots = [], []
    self.k, self.interrupt_at, self.losses, self.steps = k, interrupt_at, losses, 0
    self.tools = Tools(
      self.dispatch, self.validate, self.save, lambda step, state: self.drawn.append((step, state)),
      lambda state, per_class: {'memorized/fraction': state / per_class},
      lambda row, timing: self.rows.append(row), lambda: 'SIGTERM' if self.steps == interrupt_at else None,
      lambda state: state, lambda state, scale: self.scales.append(scale) or state,
      lambda step, state: self.snapshots.append((step, state)), self.recall,
    )  # fmt: skip

  def dispatch(self, state, seen):
    self.steps = state + self.k
    value = self.losses[self.steps - 1] if self.losses else 1.0
    return self.steps, {
      'loss': Counted(value),
      'skipped_in_a_row': Counted(0),
      'loss_bucket': Counted([1.0, 2.0]),
    }

  def validate(self, state):
    self.validated.append(state)
    return {'validation/eps': 10.0 - state if state < 60 else state}

  def save(self, place, state, states, metric, reason, remember):
    assert place.step == state
    states = {k: dict(v) for k, v in states.items()}
    self.saves.append((place.step, metric, reason, states, remember and place.cursor))

  def recall(self, place, steps, state):
    known = [one for one in self.saves if one[4] and one[4] <= place.cursor - steps]
    return known and loop.Remembered(known[-1][0], known[-1][0], known[-1][3]) or None

  def train(self, cadence, calls=(), start=0, states=None):
    states = states or {c.name: c.init() for c in calls}
    place = loop.Place(start, start)
    return loop.train(start, place, cadence, calls, states, self.tools)


@pytest.fixture(autouse=True)
def _no_device(monkeypatch):
  monkeypatch.setattr(
    devices, 'wait', lambda tree: None
  )  # there is nothing to wait for in a Counted
  Counted.conversions = 0


def test_one_host_conversion_of_each_metric_per_logged_dispatch():
  scene = Scene()
  scene.train(Cadence(100, 10, 50, 1), [])
  assert len(scene.rows) == 10
  assert (
    Counted.conversions == 10 * 3
  )  # three metrics, ten logged dispatches, none in the ninety others
  assert scene.rows[-1] == {
    'step': 100, 'cursor': 100, 'loss': 1.0, 'skipped_in_a_row': 0, 'loss_bucket/0': 1.0,
    'loss_bucket/1': 2.0, 'validation/eps': 100
  }  # fmt: skip


def test_a_planted_conversion_is_counted():
  scene = Scene()
  honest = scene.tools.dispatch

  def planted(state, seen):
    state, metrics = honest(state, seen)
    float(metrics['loss'])
    return state, metrics

  scene.tools = scene.tools._replace(dispatch=planted)
  scene.train(Cadence(100, 10, 50, 1), [])
  assert Counted.conversions == 10 * 3 + 100


def test_a_row_that_nobody_waits_for_is_written_after_the_next_dispatch():
  scene = Scene()
  order = []
  scene.tools = scene.tools._replace(
    dispatch=lambda s, seen: (order.append(f'dispatch {s + 1}'), scene.dispatch(s, seen))[1],
    write=lambda row, timing: order.append(f'row {row["step"]}'),
  )
  scene.train(Cadence(4, 2, 4, 1), [])
  assert order == ['dispatch 1', 'dispatch 2', 'dispatch 3', 'row 2', 'dispatch 4', 'row 4']


def test_early_stop_saves_once_with_every_callback_state_and_the_reason():
  calls = [callbacks.checkpoint(), callbacks.early_stopping(patience=20)]
  scene = Scene()
  outcome = scene.train(Cadence(200, 10, 10, 1), calls)
  assert outcome.finished
  assert outcome.place.step == 70  # the best is at 50, the rise from 60 on
  assert outcome.reason.startswith('early stopping')
  assert [save[0] for save in scene.saves] == list(range(10, 80, 10))
  step, metric, reason, states, _ = scene.saves[-1]
  assert (step, metric, reason) == (70, 70, outcome.reason)
  assert states['early_stopping'] == {'best': {'validation/eps': [-40.0, 50]}, 'since': 50}
  assert states['checkpoint']['last_save'] == 70
  assert scene.saves[4][2] is None


def test_the_last_step_is_saved_even_if_nobody_asked():
  scene = Scene(k=5)
  outcome = scene.train(Cadence(35, 5, 20, 5), [])
  assert outcome.finished
  assert [(s[0], s[1]) for s in scene.saves] == [(35, np.inf)]
  assert outcome.reason == 'all 35 steps done'


def test_a_signal_saves_at_that_step_and_is_not_a_finish():
  scene = Scene(interrupt_at=13)
  outcome = scene.train(Cadence(100, 10, 50, 1), [callbacks.divergence_guard(10)])
  assert not outcome.finished
  assert (outcome.place.step, outcome.reason) == (13, 'SIGTERM')
  assert [(s[0], s[2]) for s in scene.saves] == [(13, None)]
  assert [row['step'] for row in scene.rows] == [10]


def test_stopping_by_divergence():
  scene = Scene(losses=[1.0] * 20 + [50.0] * 80)
  outcome = scene.train(Cadence(100, 10, 50, 1), [callbacks.divergence_guard(10)])
  assert outcome.place.step == 30
  assert outcome.reason.startswith('diverged')
  assert scene.saves[-1][0] == 30


def test_a_save_holds_the_state_of_callbacks_that_come_later_in_the_list():
  def counting(name, action):
    return Callback(name, 10, lambda: {'n': 0}, lambda s, e: ({'n': s['n'] + 1}, action))

  scene = Scene()
  scene.train(
    Cadence(10, 10, 10, 1), [counting('first', Save(1.0)), counting('second', Continue())]
  )
  assert scene.saves[0][3] == {'first': {'n': 1}, 'second': {'n': 1}}


def test_the_first_stop_wins_and_later_callbacks_still_update():
  def stopping(name):
    return Callback(name, 10, dict, lambda s, e: ({'seen': e.step}, Stop(name)))

  outcome = Scene().train(Cadence(50, 10, 10, 1), [stopping('a'), stopping('b')])
  assert outcome.reason == 'a'
  assert outcome.callback_states == {'a': {'seen': 10}, 'b': {'seen': 10}}


def test_a_rollback_turns_back_the_step_and_all_callbacks_but_the_guard():
  def act(state, event):
    state = {'seen': state['seen'] + 1}
    if event.step == 30 and state['seen'] == 3:
      return state, Rollback(10, 'spike')
    return state, Remember() if event.step == 20 else Continue()

  def count(state, event):
    return {'n': state['n'] + 1}, Continue()

  guard = Callback('guard', 10, lambda: {'seen': 0}, act, survives_rollback=True)
  other = Callback('other', 10, lambda: {'n': 0}, count)
  scene = Scene()
  outcome = scene.train(Cadence(50, 10, 50, 1), [other, guard])
  assert [(row['step'], row['cursor']) for row in scene.rows] == [
    (10, 10), (20, 20), (30, 30), (30, 40), (40, 50), (50, 60),
  ]  # fmt: skip
  assert outcome.place == loop.Place(50, 60)
  assert outcome.callback_states == {'guard': {'seen': 6}, 'other': {'n': 5}}
  # The state gone back to is saved at once, with the guard's count.
  assert scene.saves[0] == (20, np.inf, None, {'guard': {'seen': 2}, 'other': {'n': 2}}, 20)
  assert scene.saves[1] == (20, np.inf, None, {'guard': {'seen': 3}, 'other': {'n': 2}}, False)


def test_a_rollback_without_a_state_to_go_back_to_ends_the_run():
  guard = Callback('guard', 10, dict, lambda s, e: (s, Rollback(10, 'diverged')))
  outcome = Scene().train(Cadence(50, 10, 50, 1), [guard])
  assert outcome.place.step == 10
  assert outcome.reason == 'diverged, and there is no checkpoint to go back to'


def test_scales_and_snapshots_reach_the_tools():
  def act(state, event):
    return state, SetLearningRateScale(0.5) if event.step == 20 else Snapshot()

  scene = Scene()
  scene.train(Cadence(30, 10, 30, 1), [Callback('c', 10, dict, act)])
  assert scene.scales == [0.5]
  assert scene.snapshots == [(10, 10), (30, 30)]


def test_a_measurement_is_a_row_of_its_own_written_before_the_save():
  """With growth 2 looks come at 10, 20, 40, 80: each at least twice the one before."""
  scene = Scene()
  order = []
  write, save = scene.tools.write, scene.tools.save
  scene.tools = scene.tools._replace(
    write=lambda row, timing: order.append('memorized/fraction' in row) or write(row, timing),
    save=lambda *given: order.append('save') or save(*given),
  )
  calls = [callbacks.watch_memorization(10, per_class=5, growth=2.0), callbacks.checkpoint('loss')]
  outcome = scene.train(Cadence(100, 10, 10, 1), calls)
  found = {
    row['step']: row['memorized/fraction'] for row in scene.rows if 'memorized/fraction' in row
  }
  assert found == {10: 2, 20: 4, 40: 8, 80: 16}
  assert order[:3] == [False, True, 'save']
  assert outcome.callback_states['watch_memorization'] == {'next': 160.0}


@pytest.mark.parametrize(
  ('cadence', 'message'),
  [
    (
      Cadence(100, 10, 25, 1),
      'validate_every must be a positive multiple of log_every = 10, got 25',
    ),
    (
      Cadence(100, 10, 50, 4),
      'log_every must be a positive multiple of steps_per_dispatch = 4, got 10',
    ),
    (
      Cadence(102, 10, 50, 5),
      'num_steps must be a positive multiple of steps_per_dispatch = 5, got 102',
    ),
  ],
)
def test_cadences_that_do_not_divide_are_refused(cadence, message):
  with pytest.raises(ValueError, match=message):
    loop.check_cadence(cadence, [])
  with pytest.raises(
    ValueError, match='sample_grid every must be a positive multiple of log_every = 10, got 15'
  ):
    loop.check_cadence(Cadence(100, 10, 50, 1), [callbacks.sample_grid(15)])
