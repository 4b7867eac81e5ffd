"""Rows of the catalogue: update."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.optimizers import averaging, chains, clipping, optimizers, schedules
from diffusion.runs import lr_range
from diffusion.training import callbacks, gradient
from diffusion.training.callbacks import SetLearningRateScale
from tests.cases.base import CALLBACKS, TREE, Case, differs, fields, rising, same
from tests.training import tiny
from tests.training.looks import Seen

rate = schedules.constant(0.1)  # in lower case: the catalogue shows it by name
ADAM = (optimizers.adam(), rate)
GRADIENT = jax.tree.map(lambda w: 3.0 + 0 * w, TREE)


def updated(gradient=GRADIENT, params=TREE, count=1, direction=None, **parts):
  """The last of `count` updates of the kernel with the same gradient."""
  optimizer = chains.chain(direction or optimizers.momentum(0.0), rate, **parts)
  state = optimizer.init(params)
  for _ in range(count):
    update, state = optimizer.update(gradient, state, params)
  return np.asarray(update['a']['kernel'])


def live_direction(direction):
  """It goes elsewhere than the plain gradient, and downhill all the same."""
  plain = updated(count=2)
  found = updated(direction=direction, count=2)
  differs(found, plain)
  assert (found * plain).sum() > 0


def live_clipping(make):
  """A tighter limit lets less through; a wide one lets all through."""
  rising(0, *(np.abs(updated(clip=make(limit))).sum() for limit in (0.01, 0.1, 1e6)))
  same(updated(clip=make(1e6)), updated())


def live_decay(knob):
  """Without a gradient only the decay moves weights, toward zero and the more so; off, nothing moves."""
  rest = jax.tree.map(jnp.zeros_like, TREE)
  small, large = (updated(rest, **{knob: amount}) for amount in (0.1, 1.0))
  assert (small * np.asarray(TREE['a']['kernel']) < 0).all()
  rising(np.abs(small).sum(), np.abs(large).sum())
  same(updated(rest, **{knob: 0.0}), 0)


def live_fixed_norm():
  w = np.asarray(TREE['a']['kernel'])
  on, off = w + updated(fix_norms=True), w + updated(fix_norms=False)
  np.testing.assert_allclose(np.linalg.norm(on, axis=0), np.linalg.norm(w, axis=0), rtol=1e-5)
  differs(np.linalg.norm(off, axis=0), np.linalg.norm(w, axis=0))
  differs(on, w)


def live_schedule_free():
  optimizer = chains.schedule_free(optimizers.momentum(0.0), rate)
  state, params = optimizer.init(TREE), TREE
  for _ in range(3):
    update, state = optimizer.update(GRADIENT, state, params)
    params = optax.apply_updates(params, update)
  judged = optimizer.read(state, params)['a']['kernel']
  differs(judged, params['a']['kernel'])
  plain = chains.chain(optimizers.momentum(0.0), rate)
  same(plain.read(plain.init(TREE), TREE)['a']['kernel'], TREE['a']['kernel'])


def live_rate(schedule, shape):
  """The rate at updates 0, 25, 50, 75, 99 rises (+), falls (-) or stays (=) between them, as `shape` says."""
  values = [float(schedule(jnp.int32(n))) for n in (0, 25, 50, 75, 99)]
  signs = ['=+-'[(b > a) - (b < a)] for a, b in itertools.pairwise(values)]
  assert ''.join(signs) == shape, values


def live_plateau():
  plateau = callbacks.reduce_on_plateau(factor=0.5, patience=10)
  state, _ = plateau.update(plateau.init(), Seen(10, {'validation/eps': 1.0}))
  _, better = plateau.update(state, Seen(20, {'validation/eps': 0.5}))
  _, level = plateau.update(state, Seen(20, {'validation/eps': 1.0}))
  assert not isinstance(better, SetLearningRateScale)
  assert level == SetLearningRateScale(0.5)
  optimizer = chains.chain(optimizers.momentum(0.0), rate)
  full, _ = optimizer.update(GRADIENT, optimizer.init(TREE), TREE)
  half, _ = optimizer.update(GRADIENT, optimizer.init(TREE), TREE, learning_rate=0.05)
  np.testing.assert_allclose(half['a']['kernel'], 0.5 * full['a']['kernel'], rtol=1e-6)


def live_accumulation():
  """The step walks over its parts in a loop of their number; with one part there is no loop."""

  def loops(parts):
    made = tiny.experiment(micro_batches=parts)
    split, state, data = tiny.shapes(made)
    given = jnp.zeros(32, jnp.int32)
    program = jax.make_jaxpr(tiny.one_step(made, split))(state, data, given)
    return [e.params['length'] for e in program.eqns if e.primitive.name == 'scan']

  assert loops(4).count(4) == loops(1).count(4) + 1


def live_noise_scale():
  """Parts that agree have no noise; parts that differ have some, and the more the more they differ."""

  def variance(small):
    found = gradient.noise_estimates(jnp.asarray(small), jnp.asarray(4.0), 32, 4)
    return found['gradient_variance']

  rising(-1e-9, variance(4.0), variance(5.0), variance(8.0))


def live_range():
  tried = lr_range.rising(1e-6, 1.0, 101)
  np.testing.assert_allclose([tried(n) for n in (0, 50, 100)], [1e-6, 1e-3, 1.0], rtol=1e-5)


def live_average(average):
  """Of a walk 0, 1, 2, ... it lags behind the last weights; without averaging they are the last weights."""

  def walk(average):
    state = average.init({'w': jnp.zeros(())})
    for n in range(1, 51):
      state = average.update(state, {'w': jnp.asarray(float(n))})
    return float(average.read(state)['w'])

  rising(0, walk(average), walk(averaging.ema(0.0)))
  assert walk(averaging.ema(0.0)) == 50


TABLE = (
  Case(optimizers.adam, live=lambda: live_direction(optimizers.adam()),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.adam(), rate)),
    proof='tests/optimizers/test_optimizers.py::test_first_and_second_steps_in_closed_form'),
  Case(optimizers.rmsprop, live=lambda: live_direction(optimizers.rmsprop()),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.rmsprop(), rate)),
    proof='tests/optimizers/test_optimizers.py::test_first_and_second_steps_in_closed_form'),
  Case(optimizers.momentum, live=lambda: live_direction(optimizers.momentum()),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.momentum(0.9), rate)),
    proof='tests/optimizers/test_optimizers.py::test_first_and_second_steps_in_closed_form'),
  Case(optimizers.lion, live=lambda: live_direction(optimizers.lion()),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.lion(), rate)),
    proof='tests/optimizers/test_optimizers.py::test_first_and_second_steps_in_closed_form'),
  Case(optimizers.muon, live=lambda: live_direction(optimizers.muon()),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.muon(), rate)),
    proof='tests/optimizers/test_optimizers.py::test_muon_orthogonalizes_kernels_and_leaves_the_rest_to_adam'),
  Case(optimizers.prodigy, live=lambda: live_direction(optimizers.prodigy()),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.prodigy(), rate)),
    proof='tests/optimizers/test_optimizers.py::test_each_minimizes_a_quadratic'),
  Case(clipping.global_norm, live=lambda: live_clipping(clipping.global_norm),
    turn_on=lambda: fields(optimizer=chains.chain(*ADAM, clip=clipping.global_norm(1.0))),
    proof='tests/optimizers/test_clipping.py::test_global_norm'),
  Case(clipping.blocks, live=lambda: live_clipping(clipping.blocks),
    turn_on=lambda: fields(optimizer=chains.chain(*ADAM, clip=clipping.blocks(1.0))),
    proof='tests/optimizers/test_clipping.py::test_blocks_are_clipped_one_by_one'),
  Case(clipping.adaptive, live=lambda: live_clipping(clipping.adaptive),
    turn_on=lambda: fields(optimizer=chains.chain(*ADAM, clip=clipping.adaptive(0.01))),
    proof='tests/optimizers/test_clipping.py::test_adaptive_compares_units_with_their_weights'),
  Case(clipping.value, live=lambda: live_clipping(clipping.value),
    turn_on=lambda: fields(optimizer=chains.chain(*ADAM, clip=clipping.value(1.0))),
    proof='tests/optimizers/test_clipping.py::test_value_clips_entries'),
  Case(chains.decoupled_decay, live=lambda: live_decay('weight_decay'),
    turn_on=lambda: fields(optimizer=chains.chain(*ADAM, weight_decay=0.01)),
    proof='tests/optimizers/test_chains.py::test_many_steps_against_the_papers'),
  Case(chains.coupled_decay, live=lambda: live_decay('coupled_l2'),
    turn_on=lambda: fields(optimizer=chains.chain(*ADAM, coupled_l2=1e-4)),
    proof='tests/optimizers/test_chains.py'
          '::test_coupled_decay_is_the_gradient_of_a_square_and_goes_through_the_moments'),
  Case(chains.proximal_l1, live=lambda: live_decay('l1'),
    turn_on=lambda: fields(optimizer=chains.chain(*ADAM, l1=1e-4)),
    proof='tests/optimizers/test_chains.py::test_proximal_l1_makes_exact_zeros_and_shrinks_the_rest'),
  Case(chains.fixed_norm, live=live_fixed_norm,
    turn_on=lambda: fields(optimizer=chains.chain(*ADAM, fix_norms=True)),
    proof='tests/optimizers/test_chains.py::test_fixed_norms_stay_to_1e_5_over_many_steps_and_directions_move'),
  Case(chains.schedule_free, live=live_schedule_free,
    turn_on=lambda: fields(optimizer=chains.schedule_free(optimizers.adam(b1=0.0), rate), evaluation_average=''),
    proof='tests/optimizers/test_optimizers.py::test_schedule_free_judges_an_average_between_gradients'),
  Case(schedules.warmup_cosine, live=lambda: live_rate(schedules.warmup_cosine(1e-3, 100, 25), '+---'),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.adam(), schedules.warmup_cosine(1e-3, 100, 25))),
    proof='tests/optimizers/test_schedules.py::test_warmup_cosine_in_closed_form'),
  Case(schedules.linear, live=lambda: live_rate(schedules.linear(1e-3, 100), '----'),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.adam(), schedules.linear(1e-3, 100))),
    proof='tests/optimizers/test_schedules.py::test_linear_in_closed_form'),
  Case(schedules.exponential, live=lambda: live_rate(schedules.exponential(1e-3, 25), '----'),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.adam(), schedules.exponential(1e-3, 25))),
    proof='tests/optimizers/test_schedules.py::test_exponential_halves'),
  Case(schedules.steps, live=lambda: live_rate(schedules.steps(1e-3, (30, 60)), '=--='),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.adam(), schedules.steps(1e-3, (30, 60)))),
    proof='tests/optimizers/test_schedules.py::test_steps_fall_at_their_boundaries'),
  Case(schedules.cyclical, live=lambda: live_rate(schedules.cyclical(1e-3, 60), '--+-'),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.adam(), schedules.cyclical(1e-3, 60))),
    proof='tests/optimizers/test_schedules.py::test_cyclical_restarts_and_grows'),
  Case(schedules.one_cycle, live=lambda: live_rate(schedules.one_cycle(1e-3, 100), '+---'),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.adam(), schedules.one_cycle(1e-3, 100))),
    proof='tests/optimizers/test_schedules.py::test_one_cycle_rises_and_falls'),
  Case(schedules.inverse_sqrt, live=lambda: live_rate(schedules.inverse_sqrt(1e-3, 25), '=---'),
    turn_on=lambda: fields(optimizer=chains.chain(optimizers.adam(), schedules.inverse_sqrt(1e-3, 25))),
    proof='tests/optimizers/test_schedules.py::test_inverse_sqrt_is_constant_then_falls_as_the_root'),
  Case(callbacks.reduce_on_plateau, live=live_plateau,
    turn_on=lambda: fields(callbacks=[*CALLBACKS, callbacks.reduce_on_plateau(patience=1000)]),
    proof='tests/training/test_callbacks.py::test_a_plateau_reduces_the_rate_by_factors_down_to_its_floor'),
  Case(gradient.accumulated, live=live_accumulation,
    turn_on=lambda: fields(micro_batches=4),
    proof='tests/training/test_accumulation.py::test_micro_batches_are_one_batch_to_rounding'),
  Case(gradient.noise_estimates, live=live_noise_scale,
    turn_on=lambda: fields(micro_batches=2, gradient_noise=True),
    proof='tests/training/test_accumulation.py::test_the_noise_scale_is_unbiased_for_known_gradients'),
  Case(lr_range.rising, live=live_range,
    turn_on='--mode=lr_range --lr_low=1e-6 --lr_high=1',
    proof='tests/runs/test_lr_range.py::test_the_suggestions_are_the_steepest_fall_and_the_minimum'),
  Case(averaging.ema, live=lambda: live_average(averaging.ema(0.999)),
    turn_on=lambda: fields(averages={'ema': averaging.ema(0.999)}),
    proof='tests/optimizers/test_averaging.py::test_it_is_the_weighted_sum_of_the_trajectory'),
  Case(averaging.half_life, live=lambda: live_average(averaging.half_life(500_000, 128)),
    turn_on=lambda: fields(averages={'ema': averaging.half_life(500_000, 128)}),
    proof='tests/optimizers/test_averaging.py::test_half_life_halves_the_past'),
  Case(averaging.power, live=lambda: live_average(averaging.power(0.05)),
    turn_on=lambda: fields(averages={'ema': averaging.power(0.05)}),
    proof='tests/optimizers/test_averaging.py::test_a_width_between_two_tracks_is_reconstructed_from_snapshots'),
  Case(averaging.swa, live=lambda: live_average(averaging.swa(20)),
    turn_on=lambda: fields(averages={'ema': averaging.swa(20)}),
    proof='tests/optimizers/test_averaging.py::test_swa_is_the_plain_mean_of_what_it_samples'),
)  # fmt: skip
