"""A member of a population is the run made alone, wherever it lies; stopped members are still, and are moved out."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices
from diffusion.data import pipeline, splits
from diffusion.models import mlp, normalization
from diffusion.optimizers import chains, schedules
from diffusion.training import assembly, population
from diffusion.training.running import Running, fitted_size
from tests.training import tiny

STEPS = 20
# Everything that may vary, with a decay and a dropout that are 0 for one member alone, on two training subsets.
VALUES = [
  {'seed': 3, 'learning_rate': 1e-2, 'weight_decay': 0.0, 'dropout': 0.2, 'ema_decay': 0.9, 'limit': 40},
  {'seed': 4, 'learning_rate': 2e-2, 'weight_decay': 0.1, 'dropout': 0.0, 'ema_decay': 0.99, 'limit': 96},
  {'seed': 3, 'learning_rate': 5e-3, 'weight_decay': 0.2, 'dropout': 0.3, 'ema_decay': 0.5, 'limit': 40},
  {'seed': 9, 'learning_rate': 1e-2, 'weight_decay': 0.1, 'dropout': 0.1, 'ema_decay': 0.8, 'limit': 65},
]  # fmt: skip


def build(values):
  """The tiny experiment of a member, its batch in two parts; in float32 with units of its own, too.

  Stored float32 data meets a solo run's units in float32, so in float64 they could not agree to more than that.
  """
  values = dict(values)
  limit = values.pop('limit', 0)
  exact = jax.config.jax_enable_x64
  return tiny.experiment(
    steps_per_dispatch=5, split=splits.Fractions(0.25, 0.25, limit), micro_batches=2, gradient_noise=True,
    normalization=pipeline.unit_range if exact else pipeline.standardized(), **values,
  )  # fmt: skip


def together(values, make=build):
  """(population, first states, the members' data) of these members."""
  made = [make(one) for one in values]
  loaded = [assembly.load_data(one) for one in made]
  whole = population.gather(make, values, made, loaded)
  return whole, population.init_states(whole, [one.seed for one in made]), loaded


def as_float(tree, kind):
  return jax.tree.map(lambda x: x.astype(kind) if x.dtype == np.float32 else x, tree)


def advance(running, live, dispatches):
  """The last metrics of the members."""
  for _ in range(dispatches):
    found = running.dispatch(live)
    devices.wait(next(iter(found.values()))[1]['loss'])
  return {k: metrics['row']() for k, (_, metrics) in found.items()}


def furthest(one, other):
  """The largest difference of two trees or rows."""
  one, other = tiny.leaves(one), tiny.leaves(other)
  assert one.keys() == other.keys()
  return max(
    float(np.abs(np.asarray(one[n], np.float64) - other[n]).max()) for n in one if one[n].size
  )


def alone(values, loaded, kind, make=build):
  """(state, row, validation row) of a member's solo run after `STEPS`."""
  made = make(values)
  state = assembly.init_state(made, loaded.train[0][:1], loaded.units)
  programs = assembly.programs(made, loaded)
  state = devices.replicate(as_float(state, kind))
  for _ in range(STEPS // made.steps_per_dispatch):
    state, metrics = tiny.dispatch(programs, state)
    devices.wait(metrics)
  state = programs.settle(state)
  row = programs.validate(assembly.weights(made, state))
  return devices.to_host(state), devices.to_host(metrics), row


def differences(kind, ways):
  """way -> the largest differences (state, metrics, validation) from the solo runs of the first two members."""
  solo, found = {}, {}
  for name, (count, side_by_side) in ways.items():
    whole, states, loaded = together(VALUES[:count])
    states = [as_float(state, kind) for state in states]
    running = Running(whole, states, side_by_side=side_by_side)
    rows = advance(running, range(count), STEPS // 5)
    worst = np.zeros(3)
    for k in range(2):
      if k not in solo:
        solo[k] = alone(VALUES[k], loaded[k], kind)
      state, row, validated = solo[k]
      assert int(state.step) == STEPS
      # The noise scale is a ratio of small differences, of which both are compared.
      row = {n: v for n, v in row.items() if np.isfinite(v).all() and n != 'noise_scale'}
      differ = (
        furthest(state, population.fit(running.own(k), state)),
        furthest(row, {n: rows[k][n] for n in row}),
        furthest(validated, running.validate(k)),
      )
      worst = np.maximum(worst, differ)
    found[name] = worst.tolist()
  if kind == 'float32':
    stopping(solo[1][0])
  return found


def stopping(state):
  """Members stop one after another; asserts that each then stays, that the last is as alone, and the sizes."""
  whole, states, _ = together(VALUES)
  running = Running(whole, states)
  advance(running, [0, 1, 2, 3], 1)
  frozen = running.own(0)
  advance(running, [1, 2, 3], 1)  # three of four places: nothing is moved, one stands still
  assert furthest(running.own(0), frozen) == 0
  assert int(running.own(1).step) == 2 * int(frozen.step) == 10
  assert running.sizes == [4]
  advance(running, [1, 3], 1)
  advance(running, [1], 1)
  assert running.sizes == [4, 2, 1]
  assert furthest(state, population.fit(running.own(1), state)) < 1e-4


PROGRAM = """
import json, sys
import jax
count, kind, ways = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
jax.config.update('jax_enable_x64', kind == 'float64')
jax.config.update('jax_num_cpu_devices', count)
from tests.training import test_population
print(json.dumps(test_population.differences(kind, ways)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ('count', 'kind', 'ways'),
  [
    (4, 'float64', {'apart': (4, False), 'rows, vmap': (2, True)}),
    (4, 'float32', {'apart, vmap': (4, True), 'rows': (2, False)}),
  ],
)
def test_a_member_is_the_run_made_alone_after_twenty_steps(count, kind, ways):
  """On 4 devices, members apart and rows apart, side by side and one after another, and when others stop."""
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, str(count), kind, json.dumps(ways)],
    env=os.environ | {'PYTHONPATH': os.getcwd()},
    capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  print(count, kind, found)
  assert found.keys() == ways.keys()
  for worst in found.values():
    assert max(worst) <= {'float64': 1e-9, 'float32': 1e-4}[kind]


def test_a_member_with_batch_normalization_is_validated_as_alone(x64):
  """Its losses, not its parameters: of a bias before a norm the gradient is rounding, which Adam walks along."""

  def make(values):
    model = mlp.mlp(16, 2, values['dropout'], num_classes=2, norm=normalization.batch(0.9))
    return build(values)._replace(model=model, micro_batches=1, gradient_noise=False)

  whole, states, loaded = together(VALUES, make)
  running = Running(whole, [as_float(state, 'float64') for state in states])
  advance(running, range(4), STEPS // 5)
  settled = [running.settle(k) for k in range(4)]
  for k in (0, 1):
    _, _, row = alone(VALUES[k], loaded[k], 'float64', make)
    assert furthest(row, running.validate(settled[k])) < 1e-9


@pytest.mark.parametrize('values', [[2**31, 0], [-(2**31), 0]])
def test_a_whole_number_beyond_32_bits_is_named(values):
  members = [{'limit': value} for value in values]
  made = tiny.experiment()
  loaded = [assembly.load_data(made)] * 2
  with pytest.raises(ValueError, match=f'^limit must be below 2\\^31 .* got {values[0]}: '):
    population.gather(lambda one: made, members, [made, made], loaded)


def test_sizes_are_powers_of_two_below_the_whole():
  found = [fitted_size(live, 11) for live in (11, 9, 8, 5, 4, 3, 2, 1)]
  assert found == [11, 11, 8, 8, 4, 4, 2, 1]


@pytest.mark.parametrize('name', ['num_steps', 'batch_size', 'log_every', 'steps_per_dispatch'])
def test_a_number_of_the_structure_cannot_vary(name):
  def structure(values):
    return tiny.experiment(**{'num_steps': 40, **values})

  with pytest.raises(ValueError, match=f'^{name} cannot vary in a population'):
    population.check_numbers(structure, {'seed': 0, 'learning_rate': 0.1, name: 10})


def test_a_number_that_a_step_must_know_is_named():
  def looked_into(values):
    def augment(keys, batch):
      return batch._replace(x=batch.x * (2.0 if values['strength'] > 1 else 1.0))

    return tiny.experiment(augment=augment, seed=values['seed'])

  values = [{'seed': 0, 'strength': 1.5}, {'seed': 1, 'strength': 0.5}]
  population.check_numbers(looked_into, values[0])  # building alone does not see it
  whole, states, _ = together(values, lambda v: tiny.experiment(seed=v['seed']))
  with pytest.raises(ValueError, match='^strength cannot vary in a population'):
    population.check_program(whole._replace(build=looked_into), values[0], states[0])


def test_members_of_different_data_are_refused():
  values = [{'seed': 0}, {'seed': 1}]
  made = [build(one) for one in values]
  loaded = [assembly.load_data(one) for one in made]
  data = loaded[1].dataset
  loaded[1] = loaded[1]._replace(dataset=data._replace(x=data.x + 1))
  with pytest.raises(ValueError, match='share one data set, and theirs differ'):
    population.gather(build, values, made, loaded)


def test_a_clip_norm_of_zero_is_off_when_it_varies():
  """The only knob whose 0 is not the limit of small values."""
  params = {'kernel': jnp.ones((3, 2))}

  def update(clip):
    optimizer = chains.adamw(schedules.constant(0.1), clip_norm=clip, eps=1.0)
    return optimizer.update(params, optimizer.init(params), params, learning_rate=0.1)[0]

  assert furthest(jax.jit(update)(0.0), update(0.0)) < 1e-6
  assert furthest(update(1e-3), update(0.0)) > 1e-2
