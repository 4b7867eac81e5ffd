"""The spike guard: what is a spike, what is not, and what it remembers."""

import json
import math

import numpy as np
import pytest

from diffusion.training import guards
from diffusion.training.callbacks import Continue, Remember, Rollback, Stop
from tests.training.looks import Seen


def rows(count, seed=0, buckets=4, noise=0.1):
  """Logged rows of a calm run whose loss falls."""
  rng = np.random.default_rng(seed)
  made = []
  for i in range(count):
    level = 0.2 + math.exp(-i / 30)
    losses = level * np.exp(noise * rng.normal(size=buckets)) * (1 + np.arange(buckets))
    row = {f'loss_bucket/{k}': float(v) for k, v in enumerate(losses)}
    made.append(
      row | {'loss': float(losses.mean()), 'gradient_norm': float(np.exp(0.2 * rng.normal()))}
    )
  return made


def play(guard, given, start=0):
  state, actions = guard.init(), []
  for i, row in enumerate(given, 1):
    look = Seen(start + 10 * i, row)
    state, action = guard.update(json.loads(json.dumps(state)), look)
    actions.append(action)
  return state, actions


def kinds(actions):
  return [type(action) for action in actions]


def test_a_calm_run_is_remembered_every_so_often_and_never_turned_back():
  state, actions = play(guards.spike_guard(10, back=50), rows(2000))
  assert set(kinds(actions)) == {Continue, Remember}
  assert [i for i, a in enumerate(actions, 1) if isinstance(a, Remember)] == list(range(5, 2001, 5))
  assert state['rollbacks'] == 0
  assert max(len(h) for h in state['history'].values()) == 200


def spiked(count=40, at=30, factor=1e4, names=('loss_bucket/2',), length=3):
  given = rows(count)
  for i in range(at, at + length):
    given[i] = given[i] | {name: given[i][name] * factor for name in names}
  return given


def test_two_high_visits_of_one_noise_level_are_a_spike_and_one_is_not():
  guard = guards.spike_guard(10, back=50)
  _, actions = play(guard, spiked(length=1))
  assert Rollback not in kinds(actions)
  state, actions = play(guard, spiked(length=2))
  assert kinds(actions).index(Rollback) == 31
  back = actions[31]
  assert back.steps == 50
  level = spiked(length=2)[31]['loss_bucket/2']
  assert back.reason == f'diverged: loss_bucket/2 at {level:.3g} at step 320 after 0 rollbacks'
  assert state['rollbacks'] == 1
  # Two of three visits, with a calm one in between.
  given = spiked(length=1)
  given[32] = spiked(at=32, length=1)[32]
  assert kinds(play(guard, given)[1]).index(Rollback) == 32


def test_a_state_after_a_high_visit_is_not_remembered():
  guard = guards.spike_guard(10, back=50)
  _, actions = play(guard, spiked(at=34, length=1))
  assert isinstance(actions[29], Remember)
  assert not isinstance(actions[34], Remember)
  assert isinstance(actions[39], Remember)


def test_a_gradient_norm_or_a_row_without_a_finite_loss_is_a_spike_at_once():
  guard = guards.spike_guard(10)
  given = rows(40)
  given[30] = given[30] | {'gradient_norm': 50.0}
  assert kinds(play(guard, given)[1]).index(Rollback) == 30
  given = rows(40)
  given[30] = dict.fromkeys(given[30], math.nan)
  assert kinds(play(guard, given)[1]).index(Rollback) == 30


def test_nothing_is_judged_before_the_minimum_and_an_empty_level_is_no_visit():
  guard = guards.spike_guard(10, minimum=20)
  assert Rollback not in kinds(play(guard, spiked(at=10))[1])
  given = rows(60)
  for i in range(25, 60):
    given[i] = given[i] | {'loss_bucket/1': math.nan}
  state, actions = play(guard, given)
  assert Rollback not in kinds(actions)
  assert len(state['history']['loss_bucket/1']) == 25


def test_what_was_high_is_not_what_later_rows_are_compared_with():
  guard = guards.spike_guard(10, back=50)
  given = spiked(at=30, length=1)
  given[35] = given[35] | {'gradient_norm': 50.0}
  history = play(guard, given)[0]['history']
  wanted = [math.log(row['loss_bucket/2']) for i, row in enumerate(given) if i != 30]
  np.testing.assert_allclose(history['loss_bucket/2'], wanted)
  wanted = [row['gradient_norm'] for i, row in enumerate(given) if i != 35]
  np.testing.assert_allclose(history['norm'], wanted)


def test_each_threshold_is_what_it_was_asked_to_be():
  """Beside a flat history the reach of a log-loss is deviations x floor, 0.3; the gradient's norm may be three times.

  One low row is in the history, by which a mean would be told from the median.
  """
  asked = {'deviations': 3.0, 'floor': 0.1, 'norm_factor': 3.0, 'minimum': 6, 'window': 7}
  guard = guards.spike_guard(10, back=20, **asked)
  flat = {'loss': 1.0, 'loss_bucket/0': 2.0, 'gradient_norm': 1.0}
  low = {'loss': 1.0, 'loss_bucket/0': 0.2, 'gradient_norm': 0.1}
  for count, risen, spikes in (
    (5, math.exp(0.29), False), (5, math.exp(0.31), True), (9, math.exp(0.31), True), (4, math.exp(0.31), False),
  ):  # fmt: skip
    high = flat | {'loss_bucket/0': 2.0 * risen}
    state, actions = play(guard, [low] + [flat] * count + [high] * 2)
    assert (kinds(actions)[-1] is Rollback) == spikes, (count, risen)
    assert len(state['history']['norm']) == min(count + 3, 7)
  for count, norm, spikes in ((5, 2.9, False), (5, 3.1, True), (4, 3.1, False)):
    _, actions = play(guard, [low] + [flat] * count + [flat | {'gradient_norm': norm}])
    assert (kinds(actions)[-1] is Rollback) == spikes, (count, norm)
  assert actions[0] == Continue() and actions[1] == Remember()
  at_once = guards.spike_guard(10, limit=0, **asked)
  _, actions = play(at_once, [low] + [flat] * 5 + [flat | {'gradient_norm': 31.0}])
  assert actions[-1] == Stop('diverged: a gradient norm of 31 at step 70 after 0 rollbacks')


def test_after_its_limit_it_stops_the_run_with_the_count():
  guard = guards.spike_guard(10, limit=2)
  given = rows(30) + [rows(1)[0] | {'gradient_norm': 1e3}] * 3
  state, actions = play(guard, given)
  assert kinds(actions)[30:] == [Rollback, Rollback, Stop]
  assert 'after 2 rollbacks' in actions[-1].reason
  assert guard.finding(state) == ('rollbacks', 2, 'times the spike guard went back')
  assert guard.survives_rollback


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'every': 0}, 'every'), ({'every': 10, 'back': 15}, 'back must be a multiple of every = 10, got 15'),
    ({'every': 10, 'limit': -1}, 'limit'), ({'every': 10, 'deviations': 0}, 'deviations'),
    ({'every': 10, 'norm_factor': 1}, 'norm_factor'), ({'every': 10, 'minimum': 1}, 'minimum'),
    ({'every': 10, 'window': 5}, 'window'), ({'every': 10, 'floor': 0}, 'floor'),
  ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    guards.spike_guard(**arguments)
