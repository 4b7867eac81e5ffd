"""The loop: it reads one row a logged dispatch, honors the callbacks of each run, and saves however it ends."""

import contextlib
import math
import types
from typing import Any, NamedTuple

import numpy as np
import pytest

from diffusion import devices
from diffusion.runs import evaluating, loop, training
from diffusion.runs.run import Position, Run
from diffusion.training import callbacks
from diffusion.training import state as states
from diffusion.training.callbacks import (
  Callback,
  Continue,
  Remember,
  Rollback,
  Save,
  SetLearningRateScale,
  Stop,
)
from diffusion.training.experiment import check_cadence
from tests.training import tiny


class State(NamedTuple):
  """What of a state the loop changes, replicated."""

  step: np.ndarray
  batches_seen: np.ndarray
  skipped: np.ndarray
  skipped_in_a_row: np.ndarray
  learning_rate_scale: np.ndarray


def state_at(step, batches_seen) -> State:
  """Such a state on two devices."""
  scale = np.ones(2, np.float32)
  return State(*(np.full(2, n, np.int32) for n in (step, batches_seen, 0, 0)), scale)


class Counted:
  """An array that counts how often the host converts it."""

  conversions = 0

  def __init__(self, value):
    self.value = np.asarray([value])  # of the first device

  def __array__(self, dtype=None, copy=None):
    Counted.conversions += 1
    return self.value

  def __float__(self):
    Counted.conversions += 1
    return float(self.value[0])


class Noted(Run):
  """A run that notes what it writes and saves; what it saves lies in its folder, if it has one."""

  def __init__(self, calls=(), num_steps=100, log_every=10, validate_every=50, *, k=1, folder=None):
    made = tiny.experiment(
      num_steps=num_steps, log_every=log_every, validate_every=validate_every, steps_per_dispatch=k,
      callbacks=list(calls),
    )  # fmt: skip
    super().__init__(
      experiment=made, data=None, config=None, source=None, folder=folder, used=[],
      record={'num_steps': num_steps, 'saved': None},
    )  # fmt: skip
    self.rows, self.saves, self.drawn, self.order = [], [], [], []
    self.data = types.SimpleNamespace(
      dataset=types.SimpleNamespace(num_classes=3),
      asked=lambda count: (np.arange(count) % 3, np.arange(count) % 3),
      train_in_memory=(np.eye(4),),
      kinds=3,
      held_out=(np.eye(4),),
    )
    self.checked = folder is not None
    if self.checked:
      self.resume(devices.to_host(state_at(0, 0)))

  def note(self, **changes):
    self.record |= changes

  def write(self, row, timing):
    self.rows.append(row)
    self.order.append(f'row {row["step"]}')

  @property
  def sample(self):
    def draw(weights, labels, numbers):
      self.drawn.append((int(weights.step[0]), labels.tolist(), numbers.tolist()))
      return 100.0 * weights.step[0] + numbers

    return draw

  def save(self, replicated, metric=math.inf, guarded=False):
    position = self.position
    assert position == Position(int(replicated.step[0]), int(replicated.batches_seen[0]))
    states = {name: dict(state) for name, state in self.callback_states.items()}
    self.saves.append(Saved(*position, metric, self.reason, states, guarded))
    self.order.append(f'save {position.step}')
    if self.checked:
      super().save(replicated, metric, guarded)


class Saved(NamedTuple):
  """A save."""

  step: int
  batches_seen: int
  metric: float
  reason: str
  states: dict[str, Any]
  guarded: bool


class Counting:
  """A `Program` whose states count, and which notes what it is asked to do."""

  def __init__(self, runs, losses=None):
    self.runs, self.losses = runs, losses
    self.states = [state_at(*run.position) for run in runs]
    self.dispatched, self.validated, self.settled = [], [], []

  def dispatch(self, seen):
    self.dispatched.append(list(seen))
    for k, at in enumerate(seen):
      state, more = self.states[k], self.runs[k].experiment.steps_per_dispatch
      if at is not None:
        assert at == state.batches_seen[0]
        self.states[k] = state._replace(
          step=state.step + more, batches_seen=state.batches_seen + more
        )
    self.runs[0].order.append(f'dispatch {len(self.dispatched)}')
    metrics = [self.metrics(int(state.step[0])) for state in self.states]
    return lambda k: devices.to_host(metrics[k])

  def metrics(self, step):
    return {
      'loss': Counted(self.losses[step - 1] if self.losses else 1.0),
      'skipped_in_a_row': Counted(0),
      'loss_bucket': Counted([1.0, 2.0]),
    }

  def recompute_statistics(self, k):
    self.settled.append((k, int(self.states[k].step[0])))

  def validate(self, k):
    step = int(self.states[k].step[0])
    assert self.settled[-1] == (k, step)
    self.validated.append(step)
    return {'validation/eps': 10.0 - step if step < 60 else step}

  def get(self, k):
    return self.states[k]

  def put(self, k, state):
    self.states[k] = state

  def close(self):
    pass


def train(run, program=None, interrupt_at=None):
  """One run, to its end."""
  program = program or Counting([run])
  return loop.train(
    [run], program, lambda: 'SIGTERM' if run.position.step == interrupt_at else None
  )


@pytest.fixture(autouse=True)
def _weights(monkeypatch):
  """The state is all there is to draw from; `test_look` has networks."""
  monkeypatch.setattr(states, 'weights', lambda experiment, state: state)
  Counted.conversions = 0


def test_one_host_conversion_of_each_metric_per_logged_dispatch():
  run = Noted()
  assert train(run) is None
  assert len(run.rows) == 10
  # Three metrics, ten logged dispatches, none in the ninety others.
  assert Counted.conversions == 10 * 3
  assert run.rows[-1] == {
    'step': 100, 'cursor': 100, 'loss': 1.0, 'skipped_in_a_row': 0, 'loss_bucket/0': 1.0,
    'loss_bucket/1': 2.0, 'validation/eps': 100
  }  # fmt: skip


def test_the_speed_of_a_row_is_of_the_time_since_the_one_before(monkeypatch):
  """By a clock that goes on by a second a dispatch, and by ten in one between the rows of 40 and 50."""
  clock, found = [0.0], {}
  monkeypatch.setattr(loop.time, 'perf_counter', lambda: clock[0])

  class Timed(Counting):
    def dispatch(self, seen):
      clock[0] += 10.0 if seen == [65] else 1.0
      return super().dispatch(seen)

  run = Noted()
  walls = {}

  def write(row, timing):
    found[row['step']] = timing['steps_per_second']
    walls[row['step']] = timing['wall_seconds']

  run.write, run.position = (
    write,
    Position(0, 20),
  )  # as after a rollback: batches count, and not steps
  train(run, Timed([run]))
  assert list(found) == list(range(10, 101, 10))
  assert found[30] == pytest.approx(1, rel=0.15) and found[90] == pytest.approx(1, rel=0.15)
  assert found[50] == pytest.approx(10 / 19, rel=0.15)
  assert found[10] == pytest.approx(1, rel=0.15)
  # Of all of this start; a row is written once the next call is on its way.
  assert (walls[10], walls[100]) == (pytest.approx(10, abs=1), pytest.approx(109, abs=1))


def test_a_planted_conversion_is_counted():
  class Planted(Counting):
    def metrics(self, step):
      found = super().metrics(step)
      float(found['loss'])
      return found

  run = Noted()
  train(run, Planted([run]))
  assert Counted.conversions == 10 * 3 + 100


def test_a_row_that_nobody_waits_for_is_written_after_the_next_dispatch():
  run = Noted((), 4, 2, 4)
  train(run)
  assert run.order == [
    'dispatch 1', 'dispatch 2', 'dispatch 3', 'row 2', 'dispatch 4', 'row 4', 'save 4',
  ]  # fmt: skip


def test_early_stop_saves_once_with_every_callback_state_and_the_reason():
  run = Noted([callbacks.checkpoint(), callbacks.early_stopping(patience=20)], 200, 10, 10)
  assert train(run) is None
  assert run.position.step == 70  # the best is at 50, the rise from 60 on
  assert run.reason.startswith('early stopping')
  assert [save.step for save in run.saves] == list(range(10, 80, 10))
  last = run.saves[-1]
  assert (last.step, last.metric, last.reason) == (70, 70, run.reason)
  assert last.states['early_stopping'] == {'best': {'validation/eps': [-40.0, 50]}, 'since': 50}
  assert last.states['checkpoint']['last_save'] == 70
  assert run.saves[4].reason == ''


def test_the_last_step_is_saved_even_if_nobody_asked():
  run = Noted((), 35, 5, 20, k=5)
  assert train(run) is None
  assert [(save.step, save.metric) for save in run.saves] == [(35, np.inf)]
  assert run.reason == run.saves[0].reason == 'all 35 steps done'


def test_a_signal_saves_at_that_step_and_is_not_a_finish():
  run = Noted([callbacks.divergence_guard(10)])
  assert train(run, interrupt_at=13) == 'SIGTERM'
  assert (run.position.step, run.reason) == (13, '')
  assert [(save.step, save.reason) for save in run.saves] == [(13, '')]
  assert [row['step'] for row in run.rows] == [10]


def test_a_row_that_waits_is_written_when_a_signal_comes():
  run = Noted()
  assert train(run, interrupt_at=10) == 'SIGTERM'
  assert run.order[-2:] == ['row 10', 'save 10']


def test_a_signal_in_the_last_dispatch_is_told_and_costs_no_second_save():
  run = Noted((), 20, 10, 20)
  assert train(run, interrupt_at=20) == 'SIGTERM'
  assert run.reason == 'all 20 steps done'
  assert [save.step for save in run.saves] == [20]


def test_the_time_that_a_run_took_is_of_all_its_starts():
  noted = {}
  run = types.SimpleNamespace(
    record={'wall_seconds': 5.0}, position=Position(7, 7), reason='all 7 steps done',
    note=lambda **found: noted.update(found),
  )  # fmt: skip
  training._conclude(run, 2.0, types.SimpleNamespace(name=''), False)
  assert (noted['wall_seconds'], noted['step'], noted['status']) == (7.0, 7, 'finished')


def test_how_training_ended_is_noted_and_said(capsys):
  """By its reason, where there is one, else by the signal; after that an extension is not asked for again."""
  noted = {}
  run = types.SimpleNamespace(
    record={'wall_seconds': 5.0}, position=Position(7, 9), note=lambda **found: noted.update(found)
  )
  quiet, left = (
    types.SimpleNamespace(name=None),
    types.SimpleNamespace(name='SIGINT', seconds=lambda: 2.34),
  )
  saved = 'SIGINT: saved at step 7, 2.3 s after the signal; the same command goes on from there'
  for reason, signals, extended, status, said in (
    ('diverged: loss', quiet, False, 'diverged', 'diverged: loss'),
    ('enough', left, True, 'finished',
     'enough; SIGINT: left before the evaluation, which the same command makes'),
    ('', left, False, 'interrupted', saved),
    ('', left, True, 'interrupted', f'{saved}, without --extend'),
  ):  # fmt: skip
    run.reason = reason
    training._conclude(run, 2.0, signals, extended)
    assert (noted['status'], noted['reason'], noted['step']) == (status, reason or 'SIGINT', 7)
    assert capsys.readouterr().out == f'{said}\n'


@pytest.mark.parametrize(('name', 'ended'), [(None, [1]), ('SIGTERM', [0, 1])])
def test_how_training_ended_is_noted_of_those_that_have_ended_or_of_all_after_a_signal(
  monkeypatch, name, ended
):
  """One of them speaks for all, of the longest way and from where the first one stands."""
  asked, opened = {}, []

  def run(k, num_steps, position):
    made = types.SimpleNamespace(
      number=k, num_steps=num_steps, position=position, reason='', wait=lambda: opened.append(f'waits {k}'),
      experiment=tiny.experiment(batch_size=24, steps_per_dispatch=5),
    )  # fmt: skip
    made.open_rows = lambda *shown: opened.append((k, *shown))
    return made

  def loop_train(runs, program, signals):
    asked['loop'] = [one.number for one in runs], program, signals.name
    runs[1].reason = 'enough'

  progress = types.SimpleNamespace(close=lambda: opened.append('closed'))

  def begun(*given, **more):
    asked['progress'] = (*given, more)
    return progress

  def caught(*given):
    asked['signals'] = given
    return contextlib.nullcontext(types.SimpleNamespace(name=name))

  concluded = []
  monkeypatch.setattr(training.loop, 'train', loop_train)
  monkeypatch.setattr(training.rows, 'progress', begun)
  monkeypatch.setattr(training, 'caught_signals', caught)
  monkeypatch.setattr(training.time, 'perf_counter', lambda: 107.5)
  monkeypatch.setattr(
    training, '_conclude',
    lambda run, seconds, signals, extended: concluded.append((run.number, seconds, signals.name, extended)),
  )  # fmt: skip
  runs = [run(0, 40, Position(10, 15)), run(1, 60, Position(20, 20))]
  assert training.train_together(runs, 'program', 100.0, True) == name
  assert asked == {
    'progress': (60, 20, {'batch_size': 24}), 'signals': (15, 5), 'loop': ([0, 1], 'program', name),
  }  # fmt: skip
  assert opened == [(0, progress), (1,), 'waits 0', 'waits 1', 'closed']
  assert concluded == [(k, 7.5, name, True) for k in ended]


def test_each_run_without_results_is_judged_when_training_is_over(monkeypatch, capsys):
  judged = []
  monkeypatch.setattr(evaluating, 'evaluate_best', lambda run: judged.append(run.folder))
  monkeypatch.setattr(training, 'end_on_sigterm', lambda: judged.append('from here on it ends'))
  runs = [
    types.SimpleNamespace(folder=folder, record={'results': results}, status=status)
    for folder, results, status in (
      ('a', None, 'diverged'), ('b', {}, 'finished'), ('c', None, 'finished')
    )
  ]  # fmt: skip
  assert training.finish(runs, 'SIGINT') == 130 and judged == []
  assert training.finish(runs, None) == training.DIVERGED_STATUS
  assert judged == ['from here on it ends', 'a', 'c']
  assert capsys.readouterr().out == '\na\n\nc\n'
  assert training.finish(runs[2:], None) == 0
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
  ('position', 'reason', 'record', 'goes_on', 'noted'),
  [
    (Position(99, 120), '', {}, True, {}),
    (Position(100, 100), '', {}, False, {'status': 'finished', 'reason': 'all 100 steps done', 'step': 100}),
    (Position(30, 40), 'diverged: loss', {}, False, {'status': 'diverged', 'reason': 'diverged: loss', 'step': 30}),
    (Position(30, 40), 'enough', {'status': 'finished', 'step': 9}, False, {}),
    (Position(30, 40), 'spike', {'status': 'diverged', 'step': 9}, False, {}),
    # A kill before the first checkpoint of an extension; and a run whose first one is not there yet.
    (Position(30, 40), 'enough', {'status': 'finished', 'extended_at': 30}, True, {}),
    (Position(0, 0), '', {'extended_at': 0, 'num_steps': 100}, True, {}),
  ],
)  # fmt: skip
def test_what_a_start_finds_is_finished_or_goes_on(
  capsys, position, reason, record, goes_on, noted
):
  follows = Callback('c', 10, dict, None, extend=lambda state, step: state | {'since': step})
  run = Noted([follows])
  run.position, run.reason = position, reason
  old = {'status': 'running', 'reason': reason, 'step': 3, 'extended_at': None, 'results': {'a': 1}}
  run.record |= old | record
  before, checked = dict(run.record), []
  run.check_files = lambda: checked.append('files')
  assert training.to_train(run, 0) == goes_on
  assert run.record == before | noted
  assert checked == ([] if goes_on else ['files'])
  said, end = capsys.readouterr().out, run.record['reason']
  over = f'None is finished at step {position.step} ({end}); --extend=N goes on\n'
  assert said == ('' if goes_on else over)
  extended = record.get('extended_at') == 30
  assert run.callback_states == {'c': {'since': 30} if extended else {}}
  assert run.reason == ('' if extended else reason)


def test_a_run_goes_on_from_where_it_stands():
  run = Noted()
  run.position = Position(40, 60)
  program = Counting([run])
  train(run, program)
  assert program.dispatched[0] == [60]
  assert (run.position.step, run.position.batches_seen) == (100, 120)
  assert [row['cursor'] for row in run.rows] == list(range(70, 121, 10))


def test_an_extended_run_goes_to_the_last_step_of_its_record():
  run = Noted()
  run.record['num_steps'] = 120
  train(run)
  assert run.reason == 'all 120 steps done'


def test_an_extension_is_counted_from_where_the_run_stands():
  """Also where it stopped early, at 30 of 100 steps."""
  follows = Callback('c', 10, dict, None, extend=lambda state, step: state | {'since': step})
  run = Noted([follows], 100, 10, 10)
  run.position, run.reason = Position(30, 45), 'early stopping'
  run.record |= {'results': {'a': 1}, 'extended_at': None}
  assert training.to_train(run, 20)
  assert (run.record['num_steps'], run.record['extended_at'], run.record['results']) == (
    50,
    30,
    None,
  )
  assert run.reason == ''
  assert run.callback_states == {'c': {'since': 30}}


def test_stopping_by_divergence():
  run = Noted([callbacks.divergence_guard(10)])
  train(run, Counting([run], losses=[1.0] * 20 + [50.0] * 80))
  assert run.position.step == 30
  assert run.reason.startswith('diverged')
  assert run.saves[-1].step == 30


def test_a_save_holds_the_state_of_callbacks_that_come_later_in_the_list():
  def counting(name, action):
    return Callback(name, 10, lambda: {'n': 0}, lambda s, e: ({'n': s['n'] + 1}, action))

  run = Noted([counting('first', Save(1.0)), counting('second', Continue())], 10, 10, 10)
  train(run)
  assert run.saves[0].states == {'first': {'n': 1}, 'second': {'n': 1}}


def test_the_first_stop_wins_and_later_callbacks_still_update():
  def stopping(name):
    return Callback(name, 10, dict, lambda s, e: ({'seen': e.step}, Stop(name)))

  run = Noted([stopping('a'), stopping('b')], 50, 10, 10)
  train(run)
  assert run.reason == 'a'
  assert run.callback_states == {'a': {'seen': 10}, 'b': {'seen': 10}}


def guarding(spike_at, name='guard'):
  """A guard that remembers step 20, and goes back ten steps at its third look if that is at `spike_at`."""

  def act(state, event):
    state = {'seen': state['seen'] + 1}
    if event.step == spike_at and state['seen'] == 3:
      return state, Rollback(10, 'spike')
    return state, Remember() if event.step == 20 else Continue()

  return Callback(name, 10, lambda: {'seen': 0}, act, survives_rollback=True)


def counting():
  """A callback that counts its looks."""
  return Callback('other', 10, lambda: {'n': 0}, lambda s, e: ({'n': s['n'] + 1}, Continue()))


def test_a_rollback_turns_back_the_step_and_all_callbacks_but_the_guard(tmp_path, capsys):
  run = Noted([counting(), guarding(30)], 50, 10, 50, folder=tmp_path)
  program = Counting([run])
  train(run, program)
  assert [(row['step'], row['cursor']) for row in run.rows] == [
    (10, 10), (20, 20), (30, 30), (30, 40), (40, 50), (50, 60),
  ]  # fmt: skip
  assert run.position == Position(50, 60)
  assert run.callback_states == {'guard': {'seen': 6}, 'other': {'n': 5}}
  # The state gone back to is saved at once, with the guard's count.
  saved = {'metric': np.inf, 'reason': ''}
  assert run.saves[:2] == [
    Saved(step=20, batches_seen=20, states={'guard': {'seen': 2}, 'other': {'n': 2}}, guarded=True, **saved),
    Saved(step=20, batches_seen=30, states={'guard': {'seen': 3}, 'other': {'n': 2}}, guarded=False, **saved),
  ]  # fmt: skip
  assert 'step 30: going back to step 20' in capsys.readouterr().out
  run.close()


def test_how_far_a_rollback_goes_back_is_counted_in_batches_seen(tmp_path):
  """After a first one a step is a smaller number than the batches before it: by steps it would go back too far."""

  def act(state, event):
    state = {'seen': state['seen'] + 1}
    if (state['seen'], event.step) in ((3, 30), (6, 50)):
      return state, Rollback(10, 'spike')
    return state, Remember() if event.step in (20, 40) else Continue()

  guard = Callback('guard', 10, lambda: {'seen': 0}, act, survives_rollback=True)
  run = Noted([guard], 50, 10, 50, folder=tmp_path)
  train(run)
  assert [(row['step'], row['cursor']) for row in run.rows] == [
    (10, 10), (20, 20), (30, 30), (30, 40), (40, 50), (50, 60), (50, 70),
  ]  # fmt: skip
  run.close()


def test_a_rollback_keeps_what_was_skipped_but_not_in_a_row(tmp_path):
  class Skipping(Counting):
    def dispatch(self, seen):
      fetch = super().dispatch(seen)
      state = self.states[0]
      self.states[0] = state._replace(
        skipped=state.skipped + 1, skipped_in_a_row=state.skipped_in_a_row + 1
      )
      return fetch

  run = Noted([guarding(30)], 30, 10, 30, folder=tmp_path)
  program = Skipping([run])
  train(run, program)
  state = devices.to_host(program.get(0))
  assert (state.step, state.batches_seen, state.skipped, state.skipped_in_a_row) == (30, 40, 40, 10)
  run.close()


def test_a_rollback_without_a_state_to_go_back_to_ends_the_run(tmp_path):
  guard = Callback('guard', 10, dict, lambda s, e: (s, Rollback(10, 'diverged')))
  run = Noted([guard], 50, 10, 50, folder=tmp_path)
  train(run)
  assert run.position.step == 10
  assert run.reason == 'diverged, and there is no checkpoint to go back to'
  assert [(save.step, save.reason) for save in run.saves] == [(10, run.reason)]
  run.close()


def test_a_scale_reaches_the_state():
  def act(state, look):
    return state, SetLearningRateScale(0.5) if look.step == 20 else Continue()

  run = Noted([Callback('c', 10, dict, act)], 30, 10, 30)
  program = Counting([run])
  train(run, program)
  assert devices.to_host(program.get(0)).learning_rate_scale == 0.5


def test_a_save_of_the_same_step_has_the_scale_that_was_asked_for():
  class Scaled(Noted):
    def save(self, replicated, metric=math.inf, guarded=False):
      super().save(replicated, metric, guarded)
      self.saves[-1] = devices.to_host(replicated).learning_rate_scale

  plateau = Callback('plateau', 10, dict, lambda s, e: (s, SetLearningRateScale(1 / e.step)))
  run = Scaled([plateau, Callback('keep', 10, dict, lambda s, e: (s, Save(1.0)))], 30, 10, 30)
  train(run)
  np.testing.assert_allclose(run.saves, [1 / 10, 1 / 20, 1 / 30], rtol=1e-6)


def drawing(count, name='draw'):
  """Draws and logs; saves at steps other than 20."""

  def update(state, look):
    look.log({f'{name}/sum': look.samples(count).sum()})
    return state, Continue() if look.step == 20 else Save(1.0)

  return Callback(name, 10, dict, update)


def test_what_is_saved_or_drawn_from_has_statistics_of_its_own_made_once():
  run = Noted([drawing(2), drawing(5, 'more')], 40, 10, 40)
  program = Counting([run])
  train(run, program)
  assert program.settled == [(0, 10), (0, 20), (0, 30), (0, 40)]


def test_samples_are_drawn_once_a_step_for_all_callbacks():
  run = Noted([drawing(2), drawing(5, 'more'), drawing(3, 'less')], 20, 10, 20)
  train(run)
  assert run.drawn == [(step, labels, numbers) for step in (10, 20)
                       for labels, numbers in (([0, 1], [0, 1]), ([2, 0, 1], [2, 3, 4]))]  # fmt: skip
  assert [row['draw/sum'] for row in run.rows] == [2001, 4001]
  assert [row['more/sum'] for row in run.rows] == [5010, 10010]
  assert [row['less/sum'] for row in run.rows] == [3003, 6003]


def test_what_is_logged_is_in_the_row_of_the_step_which_is_written_before_the_save():
  """With growth 2 looks come at 10, 20, 40, 80: each at least twice the one before."""
  watch = callbacks.watch_memorization(10, per_class=5, growth=2.0)
  run = Noted(
    [watch._replace(update=logging(watch.update)), callbacks.checkpoint('mine/step')], 100, 10, 10
  )
  train(run)
  found = {row['step']: row['loss'] for row in run.rows if 'memorized/fraction' in row}
  assert found == dict.fromkeys((10, 20, 40, 80), 1.0)
  assert len(run.rows) == 10
  assert [one for one in run.order if not one.startswith('dispatch')][:3] == [
    'row 10',
    'save 10',
    'row 20',
  ]
  assert run.callback_states['watch_memorization'] == {'next': 160.0}
  assert (
    run.callback_states['checkpoint']['best'] == 10.0
  )  # a later callback sees what an earlier one has logged


def logging(update):
  """With samples that can be compared, and the step logged."""

  def changed(state, look):
    look.log({'mine/step': look.step})
    drawn = types.SimpleNamespace(
      **vars(look),
      once=look.once,
      log=look.log,
      samples=lambda count: np.eye(4)[np.arange(count) % 4],
    )
    return update(state, drawn)

  return changed


@pytest.mark.parametrize(
  ('numbers', 'says'),
  [
    ({'mean': 1.0}, r"has a group before its name, e.g. mine/mean, got 'mean'"),
    ({'loss_bucket/0': 1.0}, 'loss_bucket/0 is in the row of step 10 already'),
    ({'validation/mine': 1.0}, "the group of validation/mine is the run's own"),
    ({'mine/x': [1.0, 2.0]}, r'mine/x must be one number, got \[1.0, 2.0\]'),
    ({'mine/x': 'high'}, "mine/x must be one number, got 'high'"),
  ],
)
def test_what_cannot_be_logged_is_named_and_the_row_is_not_lost(numbers, says):
  def update(state, look):
    look.log(numbers)
    return state, Continue()

  run = Noted([Callback('c', 10, dict, update)])
  with pytest.raises(ValueError, match=says):
    train(run)
  assert [row['step'] for row in run.rows] == [10]


# Several runs.


def stopping(step):
  """Stops at a step."""
  return Callback('stop', 10, dict, lambda s, e: (s, Stop('end') if e.step == step else Continue()))


def test_a_run_that_ends_stays_as_it_is_and_is_not_saved_again():
  runs = [Noted([stopping(30)]), Noted(), Noted()]
  program = Counting(runs)
  assert loop.train(runs, program, lambda: None) is None
  assert program.dispatched[29:31] == [[29, 29, 29], [None, 30, 30]]
  assert len(program.dispatched) == 100
  assert runs[0].position == Position(30, 30)
  assert program.get(0).step[0] == 30
  assert [(save.step, save.reason) for save in runs[0].saves] == [(30, 'end')]
  assert [row['step'] for row in runs[0].rows] == [10, 20, 30]
  for run in runs[1:]:
    assert run.reason == 'all 100 steps done'
    assert [save.step for save in run.saves] == [100]
    assert [row['step'] for row in run.rows] == list(range(10, 101, 10))


@pytest.mark.parametrize(('count', 'left_at'), [(2, 10), (3, 20), (4, 20), (5, 30)])
def test_when_half_have_ended_the_others_are_saved_and_left(count, left_at):
  """One after another ends, 10 steps apart: the last to go on are fewer than half, or half of an even number."""
  runs = [Noted([stopping(10 * (k + 1))]) for k in range(count)]
  program = Counting(runs)
  assert loop.train(runs, program, lambda: None) is None
  ended, left = runs[: left_at // 10], runs[left_at // 10 :]
  assert left
  assert len(program.dispatched) == left_at
  for k, run in enumerate(ended):
    assert (run.position.step, run.reason) == (10 * (k + 1), 'end')
    assert len(run.saves) == 1
  for run in left:
    assert (run.position.step, run.reason) == (left_at, '')
    assert [(save.step, save.reason) for save in run.saves] == [(left_at, '')]
    assert run.order[-2:] == [f'row {left_at}', f'save {left_at}']


def test_a_signal_saves_all_that_go_on_and_asks_once_a_dispatch():
  runs, asked = [Noted([stopping(10)]), Noted(), Noted()], []
  program = Counting(runs)

  def signaled():
    asked.append(len(program.dispatched))
    return 'SIGINT' if len(asked) == 17 else None

  assert loop.train(runs, program, signaled) == 'SIGINT'
  assert asked == list(range(1, 18))
  assert [[save.step for save in run.saves] for run in runs] == [[10], [17], [17]]
  assert [run.reason for run in runs] == ['end', '', '']


def test_a_rollback_of_one_run_turns_back_no_other(tmp_path):
  runs = [
    Noted([counting(), guarding(30 if k == 1 else 0)], 50, 10, 50, folder=tmp_path / str(k))
    for k in range(3)
  ]
  program = Counting(runs)
  loop.train(runs, program, lambda: None)
  for k in (0, 2):  # they end first, and it is left where it stands
    assert runs[k].position == Position(50, 50)
    assert [row['step'] for row in runs[k].rows] == [10, 20, 30, 40, 50]
    assert runs[k].callback_states == {'guard': {'seen': 5}, 'other': {'n': 5}}
  assert runs[1].position == Position(40, 50)
  assert [(row['step'], row['cursor']) for row in runs[1].rows] == [
    (10, 10), (20, 20), (30, 30), (30, 40), (40, 50),
  ]  # fmt: skip
  assert runs[1].callback_states == {'guard': {'seen': 5}, 'other': {'n': 4}}
  assert runs[1].reason == ''
  for run in runs:
    run.close()


@pytest.mark.parametrize(
  ('cadence', 'message'),
  [
    (
      (100, 10, 25, 1),
      'validate_every must be a positive multiple of log_every = 10, got 25',
    ),
    (
      (100, 10, 50, 4),
      'log_every must be a positive multiple of steps_per_dispatch = 4, got 10',
    ),
    (
      (102, 10, 50, 5),
      'num_steps must be a positive multiple of steps_per_dispatch = 5, got 102',
    ),
  ],
)
def test_cadences_that_do_not_divide_are_refused(cadence, message):
  names = ('num_steps', 'log_every', 'validate_every', 'steps_per_dispatch')
  made = tiny.experiment(**dict(zip(names, cadence, strict=True)))
  with pytest.raises(ValueError, match=message):
    check_cadence(made)
  grid = tiny.experiment(log_every=10, callbacks=[callbacks.sample_grid(15)])
  with pytest.raises(
    ValueError, match='sample_grid every must be a positive multiple of log_every = 10, got 15'
  ):
    check_cadence(grid)
