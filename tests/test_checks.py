"""Range checks: each bound by itself, the value and the remedy in the message, tracers let through."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import checks

ACCEPTED = {  # ends -> which of 0, 1/2, 1 lie in the range from 0 to 1
  '[]': (True, True, True),
  '(]': (False, True, True),
  '[)': (True, True, False),
  '()': (False, True, False),
}


def refused(check, *arguments, **options):
  try:
    check(*arguments, **options)
  except ValueError:
    return True
  return False


@pytest.mark.parametrize('ends', ACCEPTED)
@pytest.mark.parametrize('kind', [float, np.float32, np.float64, jnp.float32, np.array])
def test_the_ends_of_a_range(ends, kind):
  for value, accepted in zip((0, 0.5, 1), ACCEPTED[ends], strict=True):
    assert refused(checks.in_range, 'x', kind(value), 0, 1, ends=ends) != accepted
  for value in (-1e-9, 1 + 1e-6, math.inf, -math.inf, math.nan):
    assert refused(checks.in_range, 'x', kind(value), 0, 1, ends=ends)


@pytest.mark.parametrize('value', ['0.5', None, [0.5], np.array([0.5]), jnp.ones(2), 1j])
def test_what_is_no_number_is_refused(value):
  with pytest.raises(ValueError, match='x must be a number'):
    checks.in_range('x', value, 0, 1)


def test_infinity_belongs_to_a_range_only_if_it_says_so():
  checks.in_range('x', math.inf, 0, math.inf)
  for check in (checks.at_least, checks.positive):
    arguments = (0,) if check is checks.at_least else ()
    assert refused(check, 'x', math.inf, *arguments)
    assert refused(check, 'x', math.nan, *arguments)
    assert refused(check, 'x', -1e-30, *arguments)
    check('x', 1e30, *arguments)
  checks.at_least('x', 0.0, 0)
  assert refused(checks.positive, 'x', 0.0)


@pytest.mark.parametrize('value', [3, 4, 10**12])
def test_integers_in_range(value):
  checks.integer('x', value, 3)


@pytest.mark.parametrize('value', [2, -3, 3.0, True, '3', None, math.nan, jnp.ones(())])
def test_integers_refused(value):
  with pytest.raises(ValueError, match='x must be an integer >= 3, got'):
    checks.integer('x', value, 3)


def test_the_message_has_name_range_value_and_remedy():
  with pytest.raises(
    ValueError, match=r'^dropout must be a number in \[0, 1\), got 1\.5: use less$'
  ):
    checks.in_range('dropout', 1.5, 0, 1, ends='[)', remedy='use less')
  with pytest.raises(ValueError, match=r'^rate must be a number in \(0, inf\), got -2: flip it$'):
    checks.positive('rate', -2, 'flip it')
  with pytest.raises(ValueError, match=r'^rate must be a number in \[-1, inf\), got -2: more$'):
    checks.at_least('rate', -2, -1, 'more')
  with pytest.raises(ValueError, match=r"^steps must be an integer >= 1, got '5': no quotes$"):
    checks.integer('steps', '5', remedy='no quotes')
  with pytest.raises(ValueError, match=r'got 7$'):  # no remedy, no colon
    checks.in_range('x', 7, 0, 1)


@pytest.mark.parametrize(
  ('weights', 'remedy'),
  [
    ([1.0, 3.0], 'divide them by 4'),
    ([1.5, -0.5], 'give each a finite one above 0'),  # their sum is 1 already
    ([1.0, 0.0], 'give each a finite one above 0'),
    ([0.5, math.inf], 'give each a finite one above 0'),
    ([0.5, math.nan], 'give each a finite one above 0'),
  ],
)
def test_the_remedy_for_weights_helps(weights, remedy):
  with pytest.raises(
    ValueError, match=f'^weights must be positive and sum to one, got .*: {remedy}$'
  ):
    checks.shares('weights', weights)


def test_weights_may_be_off_by_rounding_and_no_more():
  for off in (-0.9e-5, 0.0, 0.9e-5):
    checks.shares('weights', [0.25, 0.75 + off])
  checks.shares('weights', [1.0])
  for off in (-1.1e-5, 1.1e-5):
    with pytest.raises(ValueError, match='divide them by'):
      checks.shares('weights', [0.25, 0.75 + off])


def test_the_first_number_that_is_not_finite_is_named_with_its_place():
  whole = np.zeros((2, 3))
  checks.finite('means', whole)
  for bad, other in ((math.nan, math.inf), (math.inf, -math.inf), (-math.inf, math.nan)):
    x = whole.copy()
    x[1, 0], x[1, 2] = bad, other
    with pytest.raises(ValueError, match=rf'^means must be finite, got {bad} at \[1, 0\]$'):
      checks.finite('means', x)
  with pytest.raises(ValueError, match=r'got nan at \[\]$'):
    checks.finite('scale', math.nan)


@pytest.mark.parametrize('transform', [jax.jit, jax.vmap, jax.grad])
def test_tracers_pass(transform):
  def factory(value):
    assert checks.traced(value)
    assert not checks.off(value)
    checks.in_range('x', value, 0, 1)
    checks.at_least('x', value, 100)
    checks.positive('x', value)
    checks.in_range('x', 7.0, value, 1)  # a bound that is traced lets all pass
    checks.in_range('x', -7.0, 0, value)
    checks.finite('x', value / 0)
    checks.shares('x', value)
    return -2 * value

  argument = jnp.full(3, -5.0) if transform is jax.vmap else -5.0
  expected = -2 if transform is jax.grad else 10
  np.testing.assert_allclose(transform(factory)(argument), expected)
  assert not checks.traced(jnp.ones(()))
  assert not checks.traced(-5.0)


@pytest.mark.parametrize(
  ('value', 'expected'),
  [(0, True), (0.0, True), (-0.0, True), (None, True), (1e-300, False), (-1, False)]
  + [(math.nan, False), (jnp.zeros(()), False), ('', False), ((), False)],
)
def test_off_is_a_python_zero_or_none(value, expected):
  assert checks.off(value) is expected


def test_a_path_must_leave_room_for_the_files_of_a_run():
  part = 'd' * 199
  checks.short_enough(pathlib.Path('/', *[part] * 17))  # 3,400 characters
  checks.short_enough(pathlib.Path('/', *[part] * 18, 'd' * 294))  # 3,895
  with pytest.raises(
    ValueError, match=r"the path of the workdir, '/d{59}' and so on, has 3896 bytes, .*allows 3895"
  ):
    checks.short_enough(pathlib.Path('/', *[part] * 18, 'd' * 295))
  with pytest.raises(ValueError, match='choose a shorter one'):
    checks.short_enough(pathlib.Path('/', *['ö' * 99] * 20))
