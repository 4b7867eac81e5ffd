"""Learning rates in closed form, at the joints above all."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.optimizers import schedules


def values(rate, counts):
  return np.asarray(jax.jit(jax.vmap(rate))(jnp.asarray(counts, jnp.int32)), np.float64)


@pytest.mark.parametrize('final', [0.0, 1e-4])
def test_warmup_cosine_in_closed_form(final):
  peak, warmup, total = 2e-3, 40, 240
  rate = schedules.warmup_cosine(peak, total, warmup, final)
  expected = {
    0: 0.0,
    1: peak / 40,
    20: peak / 2,
    39: peak * 39 / 40,
    40: peak,
    90: final + (peak - final) * (1 + math.sqrt(0.5)) / 2,  # a quarter of the way: cos(pi / 4)
    140: (peak + final) / 2,
    190: final + (peak - final) * (1 - math.sqrt(0.5)) / 2,
    240: final,
    241: final,
    10**9: final,
  }
  np.testing.assert_allclose(
    values(rate, list(expected)), list(expected.values()), rtol=1e-5, atol=1e-9
  )


def test_warmup_cosine_rises_then_falls_without_a_jump():
  rate = schedules.warmup_cosine(1.0, 100, 10, 0.1)
  curve = values(rate, np.arange(130))
  assert curve.argmax() == 10
  assert (np.diff(curve[:11]) > 0).all()
  assert (np.diff(curve[10:101]) < 0).all()
  assert abs(np.diff(curve)).max() < 0.1 + 1e-6  # the slope of the warm-up
  assert curve.min() == 0
  assert curve[10:].min() == pytest.approx(0.1, abs=1e-7)


def test_warmup_cosine_without_warmup_starts_at_the_peak():
  np.testing.assert_allclose(
    values(schedules.warmup_cosine(0.5, 10), [0, 5, 10]), [0.5, 0.25, 0], atol=1e-7
  )


def test_warmup_constant():
  rate = schedules.warmup_constant(3e-4, 5000)
  counts = [0, 1, 2500, 4999, 5000, 5001, 2**31 - 1]
  expected = [3e-4 * min(n / 5000, 1) for n in counts]
  np.testing.assert_allclose(values(rate, counts), expected, rtol=1e-6, atol=1e-10)


def test_constant():
  np.testing.assert_allclose(values(schedules.constant(0.25), [0, 1, 10**9]), 0.25)


def test_a_peak_may_be_traced():
  traced = jax.jit(lambda peak, n: schedules.warmup_cosine(peak, 100, 10, 0.01)(n))
  for n in (5, 10, 60, 200):
    expected = float(schedules.warmup_cosine(0.3, 100, 10, 0.01)(jnp.asarray(n)))
    assert float(traced(0.3, n)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  ('factory', 'arguments', 'message'),
  [
    (schedules.constant, (-1e-3,), r'learning_rate .*-0\.001'),
    (schedules.constant, (math.inf,), 'learning_rate .*inf'),
    (schedules.warmup_constant, (math.nan, 10), 'learning_rate .*nan'),
    (schedules.warmup_constant, (0.1, 0), 'warmup_steps .*0'),
    (schedules.warmup_cosine, (-0.1, 10), r'learning_rate .*-0\.1'),
    (schedules.warmup_cosine, (0.1, 10, -1), 'warmup_steps .*-1'),
    (schedules.warmup_cosine, (0.1, 10, 2.5), r'warmup_steps .*2\.5'),
    (schedules.warmup_cosine, (0.1, 10, 10), 'total_steps .* 11, got 10.*must exceed warmup_steps'),
    (schedules.warmup_cosine, (0.1, 10, 2, 0.2), r'final .*0\.1.* got 0\.2'),
    (schedules.warmup_cosine, (0.1, 10, 2, -0.1), r'final .* got -0\.1'),
  ],
)
def test_bad_arguments_are_named(factory, arguments, message):
  with pytest.raises(ValueError, match=message):
    factory(*arguments)


def test_linear_in_closed_form():
  rate = schedules.linear(1.0, 110, 10, 0.2)
  expected = {0: 0.0, 5: 0.5, 10: 1.0, 60: 0.6, 110: 0.2, 500: 0.2}
  np.testing.assert_allclose(
    values(rate, list(expected)), list(expected.values()), rtol=1e-5, atol=1e-9
  )


def test_exponential_halves():
  rate = schedules.exponential(3.0, 20, 4)
  np.testing.assert_allclose(
    values(rate, [2, 4, 24, 44, 64]), [1.5, 3, 1.5, 0.75, 0.375], rtol=1e-5
  )


def test_steps_fall_at_their_boundaries():
  rate = schedules.steps(2.0, (10, 30), 0.1)
  np.testing.assert_allclose(
    values(rate, [0, 9, 10, 29, 30, 99]), [2, 2, 0.2, 0.2, 0.02, 0.02], rtol=1e-5
  )
  np.testing.assert_allclose(
    values(schedules.steps(2.0, (10,), 0.5, 4), [2, 13, 14]), [1, 2, 1], rtol=1e-5
  )


def test_cyclical_restarts_and_grows():
  rate = schedules.cyclical(1.0, 10, final=0.1)
  np.testing.assert_allclose(values(rate, [0, 5, 10, 15, 20]), [1, 0.55, 1, 0.55, 1], rtol=1e-5)
  rate = schedules.cyclical(1.0, 8, growth=2.0, decay=0.5)
  # Cycles start at 0, 8, 24, 56 and their peaks halve; their middles are half of that.
  np.testing.assert_allclose(
    values(rate, [0, 4, 8, 16, 24, 40, 56]), [1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125], atol=1e-4
  )


@pytest.mark.parametrize('period', [7, 41, 47, 61, 93])
def test_every_restart_is_at_the_peak_where_the_rate_is_compiled(period):
  """A compiled quotient k 41 / 41 is below k for some k: the rate of that update would be the lowest."""
  rate = jax.jit(schedules.cyclical(1.0, period))
  np.testing.assert_array_equal(rate(jnp.arange(40) * period), np.ones(40))


def test_one_cycle_rises_and_falls():
  rate = schedules.one_cycle(1.0, 100, 0.3, 0.04, 1e-2)
  found = values(rate, np.arange(101))
  np.testing.assert_allclose(found[[0, 30, 100]], [0.04, 1.0, 0.04 * 1e-2], rtol=1e-4)
  np.testing.assert_allclose(found[15], (1 + 0.04) / 2, rtol=1e-4)  # the middle of a cosine
  assert (np.diff(found[:31]) > 0).all()
  assert (np.diff(found[30:]) < 0).all()
  # PyTorch's peak is a step earlier, at float(rise * total_steps) - 1, as the docstring says.
  assert found.argmax() == 30
  assert 'OneCycleLR' in schedules.one_cycle.__doc__


def test_inverse_sqrt_is_constant_then_falls_as_the_root():
  rate = schedules.inverse_sqrt(2.0, 100, 10)
  np.testing.assert_allclose(
    values(rate, [0, 5, 10, 100, 400, 10_000]), [0, 1, 2, 2, 1, 0.2], rtol=1e-5
  )
  # Without a warm-up the first update has the peak, too.
  np.testing.assert_allclose(values(schedules.inverse_sqrt(2.0, 100), [0, 1, 400]), [2, 2, 1])


GIVEN = {
  schedules.constant: {'value': 0.5},
  schedules.warmup_constant: {'peak': 0.5, 'warmup_steps': 8},
  schedules.warmup_cosine: {'peak': 0.5, 'total_steps': 40, 'warmup_steps': 8, 'final': 0.1},
  schedules.linear: {'peak': 0.5, 'total_steps': 40, 'warmup_steps': 8, 'final': 0.1},
  schedules.exponential: {'peak': 0.5, 'half_life': 9, 'warmup_steps': 8},
  schedules.steps: {'peak': 0.5, 'boundaries': (20, 30), 'factor': 0.5, 'warmup_steps': 8},
  schedules.cyclical: {'peak': 0.5, 'period': 9, 'growth': 2.0, 'decay': 0.5, 'final': 0.1},
  schedules.one_cycle: {'peak': 0.5, 'total_steps': 40, 'rise': 0.5, 'start': 0.1, 'final': 0.1},
  schedules.inverse_sqrt: {'peak': 0.5, 'reference_steps': 9, 'warmup_steps': 8},
}


@pytest.mark.parametrize('make', GIVEN)
def test_every_argument_of_a_rate_reaches_it(make):
  given, counts = GIVEN[make], np.arange(42)
  assert given.keys() == inspect.signature(make).parameters.keys()
  base = values(make(**given), counts)
  for name, value in given.items():
    if name == 'boundaries':
      other = (20, 25)
    else:
      other = value + 3 if isinstance(value, int) else value * 0.6
    assert np.abs(values(make(**given | {name: other}), counts) - base).max() > 1e-3, name


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda: schedules.linear(-1.0, 10), 'learning_rate .* got -1.0'),
    (lambda: schedules.linear(1.0, 10, 10), 'total_steps .* got 10'),
    (lambda: schedules.linear(1.0, 10, 2, -0.5), 'final .* got -0.5'),
    (lambda: schedules.exponential(-1.0, 5), 'learning_rate .* got -1.0'),
    (lambda: schedules.exponential(1.0, 0), 'half_life .* got 0'),
    (lambda: schedules.exponential(1.0, 5, -1), 'warmup_steps .* got -1'),
    (lambda: schedules.steps(-1.0, (5,)), 'learning_rate .* got -1.0'),
    (lambda: schedules.steps(1.0, (9, 5)), r'boundaries must increase, got \(9, 5\)'),
    (lambda: schedules.steps(1.0, (5, 5)), r'boundaries must increase, got \(5, 5\)'),
    (lambda: schedules.steps(1.0, (0,)), 'boundaries .* got 0'),
    (lambda: schedules.steps(1.0, (3,), 1.0), 'factor .* got 1.0'),
    (lambda: schedules.cyclical(-1.0, 5), 'learning_rate .* got -1.0'),
    (lambda: schedules.cyclical(1.0, 0), 'period .* got 0'),
    (lambda: schedules.cyclical(1.0, 5, growth=0.5), 'growth .* got 0.5'),
    (lambda: schedules.cyclical(1.0, 5, decay=0.0), 'decay .* got 0.0'),
    (lambda: schedules.cyclical(1.0, 5, final=2.0), 'final .* got 2.0'),
    (lambda: schedules.one_cycle(0.0, 10), 'learning_rate .* got 0.0'),
    (lambda: schedules.one_cycle(1.0, 1), 'total_steps .* got 1'),
    (lambda: schedules.one_cycle(1.0, 10, rise=1.0), 'rise .* got 1.0'),
    (lambda: schedules.one_cycle(1.0, 10, start=0.0), 'start .* got 0.0'),
    (lambda: schedules.one_cycle(1.0, 10, final=1.5), 'final .* got 1.5'),
    (lambda: schedules.inverse_sqrt(-1.0, 5), 'learning_rate .* got -1.0'),
    (lambda: schedules.inverse_sqrt(1.0, 0), 'reference_steps .* got 0'),
    (lambda: schedules.inverse_sqrt(1.0, 5, -1), 'warmup_steps .* got -1'),
  ],
)
def test_bad_arguments_of_the_other_rates_are_named(make, names):
  with pytest.raises(ValueError, match=names):
    make()
