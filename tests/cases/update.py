"""Rows of the catalogue: update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.optimizers import averaging, chains, clipping, optimizers, schedules
from diffusion.runs import lr_range
from diffusion.training import callbacks, gradient
from diffusion.training.callbacks import Event, SetLearningRateScale
from tests.cases.base import TREE, add, differs, rising, same
from tests.training import tiny

GRADIENT = jax.tree.map(lambda w: 3.0 + 0 * w, TREE)
ONCE = schedules.constant(0.1)


def updated(gradient=GRADIENT, params=TREE, count=1, direction=None, **parts):
  """The last of `count` updates of the kernel with the same gradient."""
  optimizer = chains.chain(direction or optimizers.momentum(0.0), ONCE, **parts)
  state = optimizer.init(params)
  for _ in range(count):
    update, state = optimizer.update(gradient, state, params)
  return np.asarray(update['a']['kernel'])


def live_direction(make):
  def live():
    plain = updated(count=2)
    found = updated(direction=make(), count=2)
    differs(found, plain)
    assert (found * plain).sum() > 0  # downhill all the same

  return live


for name, line in {
  'adam': 'optimizers.adam()', 'rmsprop': 'optimizers.rmsprop()', 'momentum': 'optimizers.momentum(0.9)',
  'lion': 'optimizers.lion()', 'muon': 'optimizers.muon()', 'prodigy': 'optimizers.prodigy()',
}.items():  # fmt: skip
  where = 'test_muon_orthogonalizes_kernels_and_leaves_the_rest_to_adam'
  if name != 'muon':
    where = (
      'test_first_and_second_steps_in_closed_form'
      if name != 'prodigy'
      else 'test_each_minimizes_a_quadratic'
    )
  add(
    f'optimizers.optimizers.{name}', f'optimizer=chains.chain({line}, rate)',
    f'optimizers/test_optimizers.py::{where}', live_direction(getattr(optimizers, name)),
  )  # fmt: skip


def live_clipping(make, low, high):
  """A tighter limit lets less through; a wide one lets all through."""

  def live():
    off = updated()
    length = [np.abs(updated(clip=make(limit))).sum() for limit in (low, high, 1e6)]
    rising(0, *length)
    same(updated(clip=make(1e6)), off)

  return live


for name, line, where in (
  ('global_norm', 'clipping.global_norm(1.0)', 'test_global_norm'),
  ('blocks', 'clipping.blocks(1.0)', 'test_blocks_are_clipped_one_by_one'),
  ('adaptive', 'clipping.adaptive(0.01)', 'test_adaptive_compares_units_with_their_weights'),
  ('value', 'clipping.value(1.0)', 'test_value_clips_entries'),
):
  add(
    f'optimizers.clipping.{name}', f'optimizer=chains.chain(..., clip={line})',
    f'optimizers/test_clipping.py::{where}', live_clipping(getattr(clipping, name), 0.01, 0.1),
  )  # fmt: skip


def live_decay(knob, at_rest):
  """Without a gradient only the decay moves weights, toward zero and the more so; off, nothing moves."""

  def live():
    rest = jax.tree.map(jnp.zeros_like, TREE)
    w = np.asarray(TREE['a']['kernel'])
    small, large = (updated(rest, **{knob: rate}) for rate in at_rest)
    assert (small * w < 0).all()
    rising(np.abs(small).sum(), np.abs(large).sum())
    same(updated(rest, **{knob: 0.0}), 0)

  return live


for name, knob, value, where in (
  ('decoupled_decay', 'weight_decay', 0.01, 'test_many_steps_against_the_papers'),
  (
    'coupled_decay',
    'coupled_l2',
    1e-4,
    'test_coupled_decay_is_the_gradient_of_a_square_and_goes_through_the_moments',
  ),
  ('proximal_l1', 'l1', 1e-4, 'test_proximal_l1_makes_exact_zeros_and_shrinks_the_rest'),
):
  add(
    f'optimizers.chains.{name}', f'optimizer=chains.chain(..., {knob}={value:g})',
    f'optimizers/test_chains.py::{where}', live_decay(knob, (0.1, 1.0)),
  )  # fmt: skip


def live_fixed_norm():
  w = np.asarray(TREE['a']['kernel'])
  on, off = w + updated(fix_norms=True), w + updated(fix_norms=False)
  np.testing.assert_allclose(np.linalg.norm(on, axis=0), np.linalg.norm(w, axis=0), rtol=1e-5)
  differs(np.linalg.norm(off, axis=0), np.linalg.norm(w, axis=0))
  differs(on, w)


add(
  'optimizers.chains.fixed_norm',
  'optimizer=chains.chain(..., fix_norms=True)',
  'optimizers/test_chains.py::test_fixed_norms_stay_to_1e_5_over_many_steps_and_directions_move',
  live_fixed_norm,
)


def live_schedule_free():
  optimizer = chains.schedule_free(optimizers.momentum(0.0), ONCE)
  state, params = optimizer.init(TREE), TREE
  for _ in range(3):
    update, state = optimizer.update(GRADIENT, state, params)
    params = optax.apply_updates(params, update)
  judged = optimizer.read(state, params)['a']['kernel']
  differs(judged, params['a']['kernel'])
  plain = chains.chain(optimizers.momentum(0.0), ONCE)
  same(plain.read(plain.init(TREE), TREE)['a']['kernel'], TREE['a']['kernel'])


add(
  'optimizers.chains.schedule_free',
  "optimizer=chains.schedule_free(optimizers.adam(b1=0.0), rate), evaluation_average=''",
  'optimizers/test_optimizers.py::test_schedule_free_judges_an_average_between_gradients',
  live_schedule_free,
)


def live_rate(make, shape):
  """The rate at updates 0, 25, 50, 75, 100 rises (+), falls (-) or stays (=) between them, as `shape` says."""

  def live():
    values = [float(make(jnp.int32(n))) for n in (0, 25, 50, 75, 99)]
    for sign, a, b in zip(shape, values, values[1:], strict=False):
      assert {'+': a < b, '-': a > b, '=': a == b}[sign], (shape, values)

  return live


for name, line, shape, where in (
  (
    'warmup_cosine',
    'schedules.warmup_cosine(1e-3, 100, 25)',
    '+---',
    'test_warmup_cosine_in_closed_form',
  ),
  ('linear', 'schedules.linear(1e-3, 100)', '----', 'test_linear_in_closed_form'),
  ('exponential', 'schedules.exponential(1e-3, 25)', '----', 'test_exponential_halves'),
  ('steps', 'schedules.steps(1e-3, (30, 60))', '=--=', 'test_steps_fall_at_their_boundaries'),
  ('cyclical', 'schedules.cyclical(1e-3, 60)', '--+-', 'test_cyclical_restarts_and_grows'),
  ('one_cycle', 'schedules.one_cycle(1e-3, 100)', '+---', 'test_one_cycle_rises_and_falls'),
  (
    'inverse_sqrt',
    'schedules.inverse_sqrt(1e-3, 25)',
    '=---',
    'test_inverse_sqrt_is_constant_then_falls_as_the_root',
  ),
):
  add(
    f'optimizers.schedules.{name}', f'optimizer=chains.chain(optimizers.adam(), {line})',
    f'optimizers/test_schedules.py::{where}', live_rate(eval(line), shape),
  )  # fmt: skip


def live_plateau():
  plateau = callbacks.reduce_on_plateau(factor=0.5, patience=10)
  state, _ = plateau.update(plateau.init(), Event(10, {'validation/eps': 1.0}))
  assert not isinstance(
    plateau.update(state, Event(20, {'validation/eps': 0.5}))[1], SetLearningRateScale
  )
  assert plateau.update(state, Event(20, {'validation/eps': 1.0}))[1] == SetLearningRateScale(0.5)
  optimizer = chains.chain(optimizers.momentum(0.0), ONCE)
  full, _ = optimizer.update(GRADIENT, optimizer.init(TREE), TREE)
  half, _ = optimizer.update(GRADIENT, optimizer.init(TREE), TREE, learning_rate=0.05)
  np.testing.assert_allclose(half['a']['kernel'], 0.5 * full['a']['kernel'], rtol=1e-6)


add(
  'training.callbacks.reduce_on_plateau',
  'callbacks=[..., callbacks.reduce_on_plateau(patience=1000)]',
  'training/test_callbacks.py::test_a_plateau_reduces_the_rate_by_factors_down_to_its_floor',
  live_plateau,
)


def live_accumulation():
  """The step walks over its parts in a loop of their number; with one part there is no loop."""

  def loops(parts):
    made = tiny.experiment(micro_batches=parts)
    split, state, data = tiny.start(made)
    given = jnp.zeros(32, jnp.int32)
    program = jax.make_jaxpr(tiny.one_step(made, split))(state, data, given)
    return [e.params['length'] for e in program.eqns if e.primitive.name == 'scan']

  assert loops(4).count(4) == loops(1).count(4) + 1


def live_noise_scale():
  """Parts that agree have no noise; parts that differ have some, and the more the more they differ."""
  small = [4.0, 5.0, 8.0]
  rising(
    -1e-9,
    *(
      gradient.noise_estimates(jnp.asarray(s), jnp.asarray(4.0), 32, 4)['gradient_variance']
      for s in small
    ),
  )


add(
  'training.gradient.accumulated',
  'micro_batches=4',
  'training/test_accumulation.py::test_micro_batches_are_one_batch_to_rounding',
  live_accumulation,
)
add(
  'training.gradient.noise_estimates',
  'micro_batches=2, gradient_noise=True',
  'training/test_accumulation.py::test_the_noise_scale_is_unbiased_for_known_gradients',
  live_noise_scale,
)


def live_range():
  rate = lr_range.rising(1e-6, 1.0, 101)
  np.testing.assert_allclose([rate(n) for n in (0, 50, 100)], [1e-6, 1e-3, 1.0], rtol=1e-5)


add(
  'runs.lr_range.rising',
  '--mode=lr_range --lr_low=1e-6 --lr_high=1',
  'runs/test_lr_range.py::test_the_suggestions_are_the_steepest_fall_and_the_minimum',
  live_range,
)


def live_average(make):
  """Of a walk 0, 1, 2, ... it lags behind the last weights; without averaging they are the last weights."""

  def live():
    def walk(average):
      state = average.init({'w': jnp.zeros(())})
      for n in range(1, 51):
        state = average.update(state, {'w': jnp.asarray(float(n))})
      return float(average.read(state)['w'])

    rising(0, walk(make), walk(averaging.ema(0.0)))
    assert walk(averaging.ema(0.0)) == 50

  return live


for name, line, where in (
  ('ema', 'averaging.ema(0.999)', 'test_it_is_the_weighted_sum_of_the_trajectory'),
  ('half_life', 'averaging.half_life(500_000, 128)', 'test_half_life_halves_the_past'),
  (
    'power',
    'averaging.power(0.05)',
    'test_a_width_between_two_tracks_is_reconstructed_from_snapshots',
  ),
  ('swa', 'averaging.swa(20)', 'test_swa_is_the_plain_mean_of_what_it_samples'),
):
  add(
    f'optimizers.averaging.{name}', f"averages={{'ema': {line}}}", f'optimizers/test_averaging.py::{where}',
    live_average(eval(line)),
  )  # fmt: skip
