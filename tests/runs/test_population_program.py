"""A member of a population is the run made alone, whoever its companions are; members that have ended stand still."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices
from diffusion.data import pipeline, splits
from diffusion.evaluation import gap
from diffusion.models import mlp, normalization
from diffusion.optimizers import chains, schedules
from diffusion.runs import population
from diffusion.runs.population import Population, fit
from diffusion.runs.run import Run
from diffusion.training import state as states
from diffusion.training.experiment import load_data
from tests.programs import Program
from tests.training import tiny

STEPS, EACH = 20, 5
# Everything that may vary, with a decay and a dropout that are 0 for one member alone, on four training subsets.
VALUES = [
  {'seed': 3, 'learning_rate': 1e-2, 'weight_decay': 0.0, 'dropout': 0.2, 'ema_decay': 0.9, 'limit': 40},
  {'seed': 4, 'learning_rate': 2e-2, 'weight_decay': 0.1, 'dropout': 0.0, 'ema_decay': 0.99, 'limit': 96},
  {'seed': 3, 'learning_rate': 5e-3, 'weight_decay': 0.2, 'dropout': 0.3, 'ema_decay': 0.5, 'limit': 40},
  {'seed': 9, 'learning_rate': 1e-2, 'weight_decay': 0.1, 'dropout': 0.1, 'ema_decay': 0.8, 'limit': 65},
  {'seed': 5, 'learning_rate': 3e-2, 'weight_decay': 0.3, 'dropout': 0.4, 'ema_decay': 0.7, 'limit': 33},
]  # fmt: skip


def build(values):
  """The tiny experiment of a member, its batch in two parts; in float32 with units of its own, too.

  Stored float32 data meets a solo run's units in float32, so in float64 they could not agree to more than that.
  """
  values = dict(values)
  limit = values.pop('limit', 0)
  exact = jax.config.jax_enable_x64
  return tiny.experiment(
    steps_per_dispatch=EACH, split=splits.Fractions(0.25, 0.25, limit), micro_batches=2, gradient_noise=True,
    normalization=pipeline.unit_range if exact else pipeline.standardized(), **values,
  )  # fmt: skip


def run_of(made, data=None):
  """A run without a folder."""
  return Run(
    experiment=made, data=data or load_data(made), config=None, source=None, folder=None, used=[],
    record={'num_steps': made.num_steps},
  )  # fmt: skip


def runs_of(values, make=build):
  return [run_of(make(one)) for one in values]


def as_float(tree, kind):
  return jax.tree.map(lambda x: x.astype(kind) if x.dtype == np.float32 else x, tree)


def together(values, kind, make=build, side_by_side=None):
  """(program, runs) of these members, at their first states."""
  runs = runs_of(values, make)
  first = population.first_states(runs, values, make)
  for run in runs:
    run.target = run.make_target()
  begin = [as_float(state, kind) for state in first]
  return Population(runs, values, make, begin, side_by_side=side_by_side), runs


def advance(program, seen, steps=STEPS):
  """So many steps of each member that `seen` has no None for; the last metrics, by member."""
  for _ in range(steps // EACH):
    fetch = program.dispatch(seen)
    seen = [None if at is None else at + EACH for at in seen]
  return [fetch(k) for k in range(len(seen))]


def furthest(one, other):
  """The largest difference of two trees or rows."""
  one, other = tiny.leaves(one), tiny.leaves(other)
  assert one.keys() == other.keys()
  return max(
    float(np.abs(np.asarray(one[n], np.float64) - other[n]).max()) for n in one if one[n].size
  )


def alone(run, kind):
  """(state, row, validation row) of a member's solo run after `STEPS`."""
  made, data = run.experiment, run.data
  state = states.init_state(made, data.example, data.units)
  program = tiny.single(made, data, as_float(state, kind))
  for _ in range(STEPS // EACH):
    row = tiny.dispatch(program)
  program.recompute_statistics(0)
  return devices.to_host(program.get(0)), row, program.validate(0)


def differences(kind, ways):
  """way -> the largest differences (state, metrics, validation) from the solo runs of the first two members."""
  solo, found = {}, {}
  for name, (count, side_by_side) in ways.items():
    program, runs = together(VALUES[:count], kind, side_by_side=side_by_side)
    rows = advance(program, [0] * count)
    worst = np.zeros(3)
    # The first two, of which each lacks something of the other's, and the last one, beside the fillers.
    for k in {0, 1, count - 1} if kind == 'float64' else {1, count - 1}:
      if k not in solo:
        solo[k] = alone(runs[k], kind)
      state, row, validated = solo[k]
      assert int(state.step) == STEPS
      assert rows[k].keys() == row.keys()
      # The noise scale is a ratio of small differences, of which both are compared.
      row = {n: v for n, v in row.items() if np.isfinite(v).all() and n != 'noise_scale'}
      differ = (
        furthest(state, devices.to_host(program.get(k))),
        furthest(row, {n: rows[k][n] for n in row}),
        furthest(validated, program.validate(k)),
      )
      worst = np.maximum(worst, differ)
    found[name] = worst.tolist()
  if kind == 'float32':
    standing_still(solo[1][0])
  return found


def standing_still(state):
  """Members end one after another; asserts that each then stays, and that the last one is as alone."""
  program, runs = together(VALUES[:4], 'float32')
  rows = advance(program, [0, 0, 0, 0], EACH)
  frozen = devices.to_host(program.get(0))
  more = advance(program, [None, EACH, EACH, EACH], 2 * EACH)
  assert furthest(devices.to_host(program.get(0)), frozen) == 0
  assert furthest(rows[0], more[0]) == 0
  advance(program, [None, 3 * EACH, None, None], EACH)
  assert furthest(devices.to_host(program.get(0)), frozen) == 0
  assert [int(devices.to_host(program.get(k)).step) for k in range(4)] == [5, 20, 15, 15]
  assert furthest(state, devices.to_host(program.get(1))) < 1e-4
  assert len(runs) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
  ('kind', 'ways'),
  [
    ('float64', {'loop 4': (4, False), 'vmap 5': (5, True)}),
    ('float32', {'vmap 2': (2, True), 'loop 5': (5, False)}),
  ],
)
def test_a_member_is_the_run_made_alone_after_twenty_steps(kind, ways):
  """On 4 devices, one or two members on each, filled up where they do not divide, and when others end."""
  program = Program('tests.runs.test_population_program', kind, json.dumps(ways))
  status, output = program.finish()
  assert status == 0, output
  found = json.loads(output.splitlines()[-1])
  print(kind, found)
  assert found.keys() == ways.keys()
  for worst in found.values():
    assert max(worst) <= {'float64': 1e-9, 'float32': 1e-4}[kind]


def test_a_member_with_batch_normalization_is_validated_as_alone(x64):
  """Its losses, not its parameters: of a bias before a norm the gradient is rounding, which Adam walks along."""

  def make(values):
    model = mlp.mlp(16, 2, values['dropout'], num_classes=2, norm=normalization.batch(0.9))
    return build(values)._replace(model=model, micro_batches=1, gradient_noise=False)

  program, runs = together(VALUES[:4], 'float64', make)
  advance(program, [0] * 4)
  for k in range(4):
    program.recompute_statistics(k)
  settled = devices.to_host(program.get(0)).evaluation_statistics
  for k in (0, 1):
    _, _, row = alone(runs[k], 'float64')
    assert furthest(row, program.validate(k)) < 1e-9
  # Settled again after a step that it does not make, a member stays as it is.
  advance(program, [None, STEPS, STEPS, STEPS], EACH)
  program.recompute_statistics(1)
  assert furthest(devices.to_host(program.get(0)).evaluation_statistics, settled) == 0


def test_a_state_that_is_put_is_that_members_alone():
  values = [{'seed': 0, 'dropout': 0.0}, {'seed': 1, 'dropout': 0.2}, {'seed': 2, 'dropout': 0.2}]
  program, _ = together(values, 'float32')
  advance(program, [0] * 3, EACH)
  before = [devices.to_host(program.get(k)) for k in range(3)]
  program.put(1, states.rescaled(program.get(1), 0.5))
  for k in (0, 2):
    assert furthest(devices.to_host(program.get(k)), before[k]) == 0
  expected = before[1]._replace(learning_rate_scale=np.float32(0.5))
  assert furthest(devices.to_host(program.get(1)), expected) == 0
  rates = [row['learning_rate'] for row in advance(program, [EACH] * 3, EACH)]
  np.testing.assert_allclose(rates, [1e-2, 5e-3, 1e-2], rtol=1e-6)


def test_a_number_of_zero_leaves_a_member_with_the_state_of_the_run_alone():
  """What is 0 for one member alone the others have in their states; each gets its own back, to the leaf."""
  tree = {'a': np.ones(2), 'b': {'c': np.zeros(3)}}
  assert fit(tree, {'a': 0}) == {'a': tree['a']}
  whole = fit({'a': np.full(2, 5.0)}, tree, tree)
  assert whole['a'][0] == 5
  assert whole['b']['c'] is tree['b']['c']
  with pytest.raises(KeyError):
    fit({'a': 0}, tree)


@pytest.mark.parametrize('values', [[2**31, 0], [-(2**31), 0]])
def test_a_whole_number_beyond_32_bits_is_named(values):
  members = [{'limit': value} for value in values]
  run = run_of(tiny.experiment())
  with pytest.raises(ValueError, match=f'^limit must be below 2\\^31 .* got {values[0]}: '):
    Population([run, run], members, lambda one: run.experiment, [])


@pytest.mark.parametrize('name', ['num_steps', 'batch_size', 'log_every', 'steps_per_dispatch'])
def test_a_number_of_the_structure_cannot_vary(name):
  def structure(values):
    return tiny.experiment(**{'num_steps': 40, **values})

  values = [{'seed': 0, 'learning_rate': 0.1, name: 16}]
  with pytest.raises(ValueError, match=f'^{name} cannot vary in a population'):
    population.check_numbers(runs_of(values, structure), values, structure)


def test_a_number_that_a_step_must_know_is_named():
  def looked_into(values):
    def augment(keys, batch):
      return batch._replace(x=batch.x * (2.0 if values['strength'] > 1 else 1.0))

    return tiny.experiment(augment=augment, seed=values['seed'])

  values = [{'seed': 0, 'strength': 1.5}, {'seed': 1, 'strength': 0.5}]
  with pytest.raises(ValueError, match='^strength cannot vary in a population'):
    population.check_numbers(runs_of(values, looked_into), values, looked_into)


def test_members_of_different_data_are_refused():
  values = [{'seed': 0}, {'seed': 1}]
  one, other = runs_of(values)
  data = other.data.dataset
  other.data = other.data._replace(dataset=data._replace(x=data.x + 1))
  with pytest.raises(ValueError, match='share one data set, and theirs differ'):
    Population([one, other], values, build, [])
  other.data = other.data._replace(dataset=data._replace(label=1 - data.label))
  with pytest.raises(ValueError, match='share one data set, and theirs differ'):
    population.share_data([one], other.data)


def test_numbers_of_members_are_whole_where_all_are_and_rows_are_filled_up_with_zeros():
  members = [{'n': 2**31 - 1, 'x': 1, 'y': 0.5}, {'n': 1 - 2**31, 'x': 0.25, 'y': 2.0}]
  found = population._arrays(members)
  assert [found[name].dtype for name in 'nxy'] == [np.int32, np.float32, np.float32]
  assert {name: one.tolist() for name, one in found.items()} == {
    'n': [2**31 - 1, 1 - 2**31],
    'x': [1, 0.25],
    'y': [0.5, 2],
  }
  table = population._table([np.array([3, 1]), np.array([7, 8, 9])])
  assert (table.tolist(), table.dtype) == ([[3, 1, 0], [7, 8, 9]], np.int32)


def test_members_differ_in_what_is_not_alike_and_each_curriculum_has_its_own_length():
  known = load_data(tiny.experiment())

  def members(means, sizes):
    runs = []
    for mean, size in zip(means, sizes, strict=True):
      data = known._replace(
        units=known.units._replace(mean=mean, deviation=2.0),
        order=None if size is None else np.arange(size, dtype=np.int32)[::-1],
      )
      runs.append(SimpleNamespace(data=data))
    return population.members_of(runs, [{'n': 5}, {'n': 7}])

  found = members((0.5, 0.25), (3, 4))
  assert found.values['n'].tolist() == [5, 7]
  assert {name: one.tolist() for name, one in found.units.items()} == {
    'mean': [0.5, 0.25],
    'deviation': [2, 2],
  }
  assert found.order['order'].tolist() == [[2, 1, 0, 0], [3, 2, 1, 0]]
  assert found.order['size'].tolist() == [3, 4]
  alike = members((0.5, 0.5), (None, None))
  assert (alike.units, alike.order) == ({}, {})
  with pytest.raises(ValueError, match='streamed data does not go with a population'):
    population.share_data([], SimpleNamespace(streamed=True))


def test_members_of_unlike_splits_are_validated_by_their_own_rows_however_many_at_a_time(
  monkeypatch,
):
  """Each row on the noise of its place within its split; what fills a member up counts nowhere."""
  rows = [([0, 1, 2, 3, 4], [20, 21, 22]), ([9, 8, 7, 6], range(30, 37)), ([1, 2], [3, 4])]
  rows = [tuple(map(np.asarray, pair)) for pair in rows]

  def losses(row, place):
    return np.stack([1 + row + 100 * place, (1 + row) ** 2 + 7 * place], -1).astype(float)

  monkeypatch.setattr(devices, 'place_members', lambda tree: tree)
  monkeypatch.setattr(devices, 'collect_members', lambda tree: tree)
  for chunk in (4, 256):
    monkeypatch.setattr(population, '_EVALUATION_CHUNK', chunk)
    program, asked = object.__new__(Population), []
    program._losses, program._members, program._placed, program._data = None, None, 'state', None
    program._evaluation_rows = rows

    def measure(members, state, given, data, asked=asked):
      asked.append(given.shape[2])
      return losses(given[:, 0], given[:, 1])

    program._measure = measure
    for k in (1, 0, 2):
      wanted = gap.summarize(*(losses(part, np.arange(len(part))) for part in rows[k]))
      assert program.validate(k) == wanted
    assert asked == ([4, 4, 3] if chunk == 4 else [11])  # of all, when the first one asks


def test_equal_data_is_held_once_and_with_other_units_shares_its_examples():
  one, equal, shifted = (load_data(tiny.experiment()) for _ in range(3))
  shifted = shifted._replace(units=shifted.units._replace(mean=1.0))
  assert population.share_data([], one).dataset is one.dataset
  runs = [run_of(tiny.experiment(), one)]
  assert population.share_data(runs, equal).dataset is one.dataset
  found = population.share_data(runs, shifted)
  assert found.units == shifted.units
  assert found.dataset is one.dataset


def test_a_clip_norm_of_zero_is_off_when_it_varies():
  """The only knob whose 0 is not the limit of small values."""
  params = {'kernel': jnp.ones((3, 2))}

  def update(clip):
    optimizer = chains.adamw(schedules.constant(0.1), clip_norm=clip, eps=1.0)
    return optimizer.update(params, optimizer.init(params), params, learning_rate=0.1)[0]

  assert furthest(jax.jit(update)(0.0), update(0.0)) < 1e-6
  assert furthest(update(1e-3), update(0.0)) > 1e-2


if __name__ == '__main__':
  jax.config.update('jax_enable_x64', sys.argv[1] == 'float64')
  jax.config.update('jax_num_cpu_devices', 4)
  print(json.dumps(differences(sys.argv[1], json.loads(sys.argv[2]))))
