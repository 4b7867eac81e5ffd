"""The program of one run: how far it goes ahead, what it holds, and that what is put is what it goes on from."""

import time

import jax
import numpy as np
import pytest

from diffusion import devices
from diffusion.data import pipeline
from diffusion.training import state as states
from diffusion.training.program import SingleRun, make_batches, make_validate
from tests.training import tiny


def assert_same(one, other):
  one, other = tiny.leaves(one), tiny.leaves(other)
  assert one.keys() == other.keys()
  for name, value in one.items():
    assert value.tobytes() == other[name].tobytes(), name


@pytest.fixture(scope='module')
def began():
  """(program, first state) of a small run; each test puts the state that it goes on from."""
  made = tiny.experiment(log_every=1)
  data, state, _ = tiny.start(made)
  return SingleRun(made, data), state


def test_a_dispatch_returns_at_once_and_at_most_two_are_in_flight():
  """Steps that take half a second, and say on each of four devices when they are half done."""
  ended = []

  def slow(x):
    time.sleep(0.5)
    ended.append(time.perf_counter())
    return x

  def augment(keys, batch):
    shape = jax.ShapeDtypeStruct(batch.x.shape, batch.x.dtype)
    return batch._replace(x=jax.pure_callback(slow, shape, batch.x))

  made = tiny.experiment(augment=augment)
  data, state, _ = tiny.start(made)
  program = tiny.single(made, data, state)
  tiny.dispatch(program)  # compiled
  ended.clear()
  fetch, count = None, jax.device_count()
  for n in range(3):
    fetch = program.dispatch([1 + n])
    through = len(ended) // count
    assert through >= n  # all but the last are through
    assert n or through == 0  # and the last is not waited for
  assert fetch(0)['skipped'] == 0
  assert len(ended) == 3 * count


def test_it_goes_on_from_what_is_put_and_gives_back_what_it_holds(began):
  program, state = began
  given = devices.replicate(state)
  program.put(0, given)
  assert program.get(0) is given
  first = [tiny.dispatch(program) for _ in range(3)]
  end = devices.to_host(program.get(0))
  assert int(end.batches_seen) == 3
  tiny.dispatch(program)
  program.put(0, devices.replicate(state))  # back to the first step
  again = [tiny.dispatch(program) for _ in range(3)]
  assert_same(again, first)
  assert_same(devices.to_host(program.get(0)), end)


def test_the_order_of_the_examples_is_of_the_seed():
  found = {}
  for seed in (3, 4):
    made = tiny.experiment(seed=seed, steps_per_dispatch=5)
    data, *_ = tiny.shapes(made)
    taken = np.asarray(make_batches(made, data).take(10))
    found[seed] = np.concatenate([np.sort(step.ravel()) for step in np.moveaxis(taken, 1, 0)])
    order = pipeline.Order(seed, data.split.train)
    wanted = order.batches(10, 5, made.batch_size)
    np.testing.assert_array_equal(found[seed], np.sort(wanted, 1).ravel())
  assert (found[3] != found[4]).mean() > 0.5


def test_a_state_that_is_gone_back_to_is_the_old_one_but_for_what_was_seen_and_skipped(began):
  """Each counter has a value of its own before and now."""
  _, state = began
  host = jax.tree.map(np.asarray, state)
  counters = ('step', 'batches_seen', 'skipped', 'skipped_in_a_row')
  before, now, wanted = (
    host._replace(**{name: np.int32(n) for name, n in zip(counters, given, strict=True)})
    for given in ((10, 12, 1, 1), (30, 40, 5, 3), (10, 40, 5, 0))
  )
  now = devices.replicate(now._replace(learning_rate_scale=np.float32(0.5)))
  assert_same(devices.to_host(states.gone_back(before, now)), wanted)


def test_what_is_fetched_is_of_its_own_dispatch_though_others_followed(began):
  program, state = began
  program.put(0, devices.replicate(state))
  alone = [tiny.dispatch(program) for _ in range(3)]
  program.put(0, devices.replicate(state))
  later = [program.dispatch([n]) for n in range(3)]
  assert_same([fetch(0) for fetch in later], alone)
  assert len({float(row['loss']) for row in alone}) == 3


def test_the_batches_seen_choose_the_rows_and_the_state_the_draws(began):
  program, state = began
  found = []
  for seen in (0, 0, 1):
    program.put(0, devices.replicate(state))
    found.append(program.dispatch([seen])(0)['loss'])
  assert found[0] == found[1] != found[2]


def test_settling_a_network_without_statistics_does_nothing(began):
  program, state = began
  given = devices.replicate(state)
  program.put(0, given)
  program.recompute_statistics(0)
  assert program.get(0) is given
  assert_same(devices.to_host(given), state)  # nor were its buffers given away


def test_a_validation_asks_about_both_splits_on_the_same_noise():
  """As many training examples as held-out ones, from all over their split, and each number under its name."""
  data, *_ = tiny.shapes(tiny.experiment())
  asked = []

  def losses(weights, x, condition, position):
    asked.append((weights, x, condition, position))
    return len(asked) + (np.arange(len(x)) % 2)[:, None] * np.array([0.0, 2.0])

  row = make_validate(data, losses)('weights')
  assert row['train/eps'] == 1.5 and row['validation/eps'] == 2.5
  assert (row['train/level/1'], row['validation/level/1'], row['validation/gap']) == (2.0, 3.0, 1.0)
  train, held_out = data.split.train, data.split.validation
  chosen = train[np.linspace(0, len(train) - 1, len(held_out)).round().astype(int)]
  for (weights, x, condition, position), rows in zip(asked, (chosen, held_out), strict=True):
    assert weights == 'weights'
    np.testing.assert_array_equal(x, data.dataset.x[rows])
    np.testing.assert_array_equal(condition, data.dataset.label[rows])
    np.testing.assert_array_equal(position, np.arange(len(rows)))


def test_validating_moves_nothing_and_is_of_the_evaluation_parameters(began):
  program, state = began
  program.put(0, devices.replicate(state))
  for _ in range(3):
    tiny.dispatch(program)
  before = devices.to_host(program.get(0))
  row = program.validate(0)
  assert program.validate(0) == row
  assert_same(devices.to_host(program.get(0)), before)
  program.put(0, devices.replicate(before._replace(params=state.params)))  # the average is judged
  assert program.validate(0) == row
  program.put(0, devices.replicate(before._replace(averages=state.averages)))
  assert program.validate(0)['validation/eps'] != pytest.approx(row['validation/eps'], rel=1e-6)
  assert all(np.isfinite(value) for value in row.values())
