"""Callbacks: decisions as pure functions of JSON state."""

import json
import math
import types

import numpy as np
import pytest

from diffusion.sampling.plan import Sampling
from diffusion.training import callbacks
from diffusion.training.callbacks import (
  Continue,
  Save,
  SetLearningRateScale,
  Stop,
)
from tests.training.looks import Seen


def play(callback, values, metric='validation/eps', period=10, state=None):
  """Feeds a metric's values at steps 10, 20, ... through JSON, as a checkpoint would; returns the actions."""
  state = callback.init() if state is None else state
  actions = []
  for i, value in enumerate(values, 1):
    state, action = callback.update(
      json.loads(json.dumps(state)), Seen(i * period, {metric: value})
    )
    actions.append(action)
    if isinstance(action, Stop):
      break
  return actions, state


def test_early_stopping_counts_patience_in_steps_from_the_best():
  stop = callbacks.early_stopping(patience=30)
  actions, state = play(stop, [5, 4, 3, 3.5, 3.2, 3.1, 3.3])
  assert [isinstance(a, Stop) for a in actions] == [False] * 5 + [
    True
  ]  # step 60: 30 after the best at 30
  assert state['best'] == {'validation/eps': [3, 30]}
  assert '3 at step 30 for 30 steps' in actions[-1].reason


def test_early_stopping_with_patience_below_the_period_stops_at_the_first_rise():
  actions, _ = play(callbacks.early_stopping(patience=1), [5, 4, 4])
  assert len(actions) == 3
  assert isinstance(actions[-1], Stop)


def test_early_stopping_needs_more_than_min_delta():
  falling = [1 - 0.01 * i for i in range(20)]
  actions, _ = play(callbacks.early_stopping(patience=50), falling)
  assert len(actions) == 20
  actions, _ = play(callbacks.early_stopping(patience=50, min_delta=0.2), falling)
  assert isinstance(actions[-1], Stop)


def test_early_stopping_recovers_from_a_nan_first_metric():
  actions, state = play(callbacks.early_stopping(patience=30), [math.nan, 2, 1, math.nan, 0.5])
  assert all(isinstance(a, Continue) for a in actions)
  assert state['best'] == {'validation/eps': [0.5, 50]}
  _, state = play(callbacks.early_stopping(patience=30), [2, -math.inf, 1])
  assert state['best'] == {'validation/eps': [1, 30]}


def test_early_stopping_with_a_share_waits_longer_in_a_longer_run():
  values = [5, 4] + [4.5] * 30
  short, _ = play(callbacks.early_stopping(patience=20), values)
  assert len(short) == 4  # best at 20, stopped at 40
  shared, _ = play(callbacks.early_stopping(patience=20, share=0.5), values)
  assert len(shared) == 4  # 20 of 40 steps
  longer, _ = play(callbacks.early_stopping(patience=20, share=0.75), values)
  assert len(longer) == 8  # 60 of 80 steps


def test_early_stopping_of_several_metrics_waits_for_the_last_to_stop_falling():
  stop = callbacks.early_stopping(['a', 'b'], patience=20)
  state = stop.init()
  for step, (a, b) in enumerate([(5, 5), (4, 6), (4, 4), (4, 4), (4, 4)], 1):
    state, action = stop.update(state, Seen(10 * step, {'a': a, 'b': b}))
    assert isinstance(action, Stop) == (step == 5)
  assert 'a has not fallen below 4 at step 20, b has not fallen below 4 at step 30' in action.reason


def test_a_plateau_reduces_the_rate_by_factors_down_to_its_floor():
  plateau = callbacks.reduce_on_plateau(factor=0.5, patience=20, min_scale=0.2)
  actions, state = play(plateau, [3, 2] + [2] * 10)
  scales = [a.scale if isinstance(a, SetLearningRateScale) else None for a in actions]
  assert scales == [None] * 3 + [0.5, None, 0.25, None, 0.2] + [None] * 4
  assert state['scale'] == 0.2
  assert not any(isinstance(a, SetLearningRateScale) for a in play(plateau, range(50, 0, -1))[0])
  # What is not finite is no fall, nor is one of no more than min_delta; another metric may be followed.
  plateau = callbacks.reduce_on_plateau('train/eps', 0.5, patience=30, min_delta=0.5)
  actions, state = play(plateau, [5, 4, -math.inf, 3.5, math.nan], 'train/eps')
  assert actions == [Continue()] * 4 + [SetLearningRateScale(0.5)]
  assert state == {'best': 4, 'since': 50, 'scale': 0.5}


def test_a_restart_in_the_middle_changes_nothing():
  values = [5, 4, 3, 3.5, 3.2, 3.1, 3.3]
  stop = callbacks.early_stopping(patience=30)
  whole, _ = play(stop, values)
  first, state = play(stop, values[:4])
  rest = []
  for i, value in enumerate(values[4:], 5):
    state, action = stop.update(state, Seen(i * 10, {'validation/eps': value}))
    rest.append(action)
  assert (first + rest)[: len(whole)] == whole


def test_extending_gives_a_stopped_run_its_patience_again():
  stop = callbacks.early_stopping(patience=20)
  _, state = play(stop, [3, 4, 4])
  state = stop.extend(state, 30)
  state, action = stop.update(state, Seen(40, {'validation/eps': 4}))
  assert isinstance(action, Continue)
  assert state['best'] == {'validation/eps': [3, 10]}
  _, action = stop.update(state, Seen(50, {'validation/eps': 4}))
  assert isinstance(action, Stop)


def test_checkpoint_saves_improvements_and_in_between():
  actions, state = play(callbacks.checkpoint(every=30), [5, 6, 6, 6, 4, 7])
  assert actions == [Save(5), Continue(), Continue(), Save(6), Save(4), Continue()]
  assert state == {'best': 4, 'best_step': 50, 'last_save': 50}
  always, _ = play(callbacks.checkpoint(), [5, 6, 7])
  assert always == [Save(5), Save(6), Save(7)]


def test_checkpoint_never_takes_nan_for_the_best():
  actions, state = play(callbacks.checkpoint(every=1000), [5, math.nan, -math.inf, 4])
  assert actions == [Save(5), Continue(), Continue(), Save(4)]
  assert state['best'] == 4
  assert play(callbacks.checkpoint('a'), [math.nan, -math.inf], 'a')[0] == [Save(math.inf)] * 2


@pytest.mark.parametrize('mirrored', [False, True])
def test_memorization_is_watched_by_copies_of_training_examples_beside_held_out_ones(mirrored):
  pictures = np.random.default_rng(0).integers(0, 256, (90, 4, 4, 1), np.uint8)
  train, held_out, fresh = pictures[:40], pictures[40:70], pictures[70:]
  held_out[:6] = train[:6]  # a fifth of them, as near duplicates in a data set are
  watch = callbacks.watch_memorization(10, per_class=10, mirrored=mirrored)
  data = types.SimpleNamespace(train_in_memory=(train,), held_out=(held_out,), kinds=2)
  drawn = np.concatenate([train[10:15], train[15:20, :, ::-1], fresh[:10]])
  row = {}

  def samples(count):
    assert count == 20
    return drawn

  look = types.SimpleNamespace(
    step=10, data=data, samples=samples, log=row.update, once=lambda key, make: make()
  )
  assert watch.update(watch.init(), look) == ({'next': 10.0}, Continue())
  assert row['memorized/fraction'] == (0.5 if mirrored else 0.25)
  assert row['memorized/null'] == 0.2


def test_a_picture_has_the_samples_of_its_plan_and_the_name_of_its_step():
  """Two of each of three classes, whatever is judged."""
  seen, pictured = [], types.SimpleNamespace(levels=17, num_classes=3)
  look = types.SimpleNamespace(
    step=120, data=types.SimpleNamespace(pictured=pictured),
    experiment=types.SimpleNamespace(sampling=Sampling(grid_rows=2, per_class=5)),
    samples=np.arange, picture=lambda *given: seen.append(given),
  )  # fmt: skip
  assert callbacks.sample_grid(10).update({}, look) == ({}, Continue())
  ((drawn, name),) = seen
  assert drawn.tolist() == list(range(6)) and name == 'step_00000120'


def test_divergence_guard_stops_on_skips_in_a_row_and_on_a_risen_loss():
  guard = callbacks.divergence_guard(every=10, max_skipped=3, factor=2.0)

  def answer(state, loss, in_a_row):
    return guard.update(state, Seen(10, {'loss': loss, 'skipped_in_a_row': in_a_row}))

  state, action = answer(guard.init(), math.nan, 2)  # an all-skipped first window sets no mark
  assert isinstance(action, Continue)
  state, action = answer(state, 1.0, 0)
  assert isinstance(action, Continue)
  assert isinstance(answer(state, 1.9, 2)[1], Continue)
  risen = answer(state, 2.1, 0)[1].reason
  assert risen == 'diverged: loss 2.1 is more than 2 times the first one, 1'
  lost = answer(state, math.nan, 3)[1].reason
  assert lost == 'diverged: 3 non-finite steps in a row (limit 3)'
  for first in (-0.5, 0.0):  # of which no multiple is a rise
    state, action = answer(guard.init(), first, 0)
    assert isinstance(action, Continue)
    assert isinstance(answer(state, first + 0.4, 0)[1], Continue)


@pytest.mark.parametrize(
  ('factory', 'arguments', 'message'),
  [
    (callbacks.early_stopping, {'patience': 0}, 'patience must be an integer >= 1, got 0'),
    (callbacks.early_stopping, {'min_delta': -1.0}, 'min_delta'),
    (callbacks.early_stopping, {'share': 1.0}, 'share'),
    (callbacks.reduce_on_plateau, {'factor': 1.0}, 'factor'),
    (callbacks.reduce_on_plateau, {'patience': 0}, 'patience'),
    (callbacks.reduce_on_plateau, {'min_delta': -1.0}, 'min_delta'),
    (callbacks.reduce_on_plateau, {'min_scale': 0.0}, 'min_scale'),
    (callbacks.snapshots, {'every': 0}, 'every'),
    (callbacks.sample_grid, {'every': 0}, 'every'),
    (callbacks.watch_memorization, {'every': 0}, 'every'),
    (callbacks.watch_memorization, {'every': 1, 'per_class': 0}, 'per_class'),
    (callbacks.watch_memorization, {'every': 1, 'growth': 0.9}, 'growth'),
    (callbacks.divergence_guard, {'every': 0}, 'every'),
    (callbacks.divergence_guard, {'every': 1, 'max_skipped': 0}, 'max_skipped'),
    (callbacks.divergence_guard, {'every': 1, 'factor': 1.0}, 'factor'),
    (callbacks.checkpoint, {'every': -1}, 'every'),
  ],
)
def test_bad_numbers_are_refused(factory, arguments, message):
  with pytest.raises(ValueError, match=message):
    factory(**arguments)


def test_an_unknown_metric_is_named_with_the_known_ones():
  stop = callbacks.early_stopping('validation/loss')
  with pytest.raises(
    ValueError, match=r"no metric 'validation/loss' to follow: there are validation/eps"
  ):
    stop.update(stop.init(), Seen(1, {'validation/eps': 1.0}))
