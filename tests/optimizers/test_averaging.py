"""The moving average: starts at the weights, follows the stated recursion, and owns its buffers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.optimizers import averaging


def weights(seed):
  random = np.random.default_rng(seed)
  return {
    'a': random.normal(size=(3, 2)).astype(np.float32),
    'b': {'c': np.float32(random.normal())},
  }


def average(decay, trajectory, start):
  ema = averaging.ema(decay)
  update = jax.jit(ema.update)
  state = ema.init(jax.tree.map(jnp.asarray, start))
  for params in trajectory:
    state = update(state, params)
  return ema.read(state)


def assert_trees_close(found, expected, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def test_it_starts_equal_to_the_parameters():
  jax.tree.map(np.testing.assert_array_equal, average(0.9999, [], weights(0)), weights(0))


@pytest.mark.parametrize('decay', [0.0, 0.5, 0.99])
def test_it_is_the_weighted_sum_of_the_trajectory(decay):
  """Unrolled: w_k enters with (1 - d_k) prod_{j > k} d_j, where d_n = min(decay, (1 + n) / (10 + n))."""
  steps = 60
  trajectory = [weights(1 + n) for n in range(steps)]
  rates = [min(decay, (1 + n) / (10 + n)) for n in range(steps)]
  shares = [(1 - rates[k]) * math.prod(rates[k + 1 :]) for k in range(steps)]
  start = math.prod(rates)
  assert start + sum(shares) == pytest.approx(1)
  expected = jax.tree.map(
    lambda first, *rest: start * np.float64(first) + sum(s * r for s, r in zip(shares, rest, strict=True)),
    weights(0), *trajectory,
  )  # fmt: skip
  assert_trees_close(average(decay, trajectory, weights(0)), expected, rtol=2e-5, atol=2e-6)


def test_no_decay_is_the_last_parameters():
  trajectory = [weights(n) for n in range(1, 5)]
  assert_trees_close(average(0.0, trajectory, weights(0)), trajectory[-1], rtol=0)


def test_constant_parameters_stay_as_they_are():
  """No bias toward zero, at the start or later."""
  for steps in (1, 5, 50):
    found = average(0.9999, [weights(0)] * steps, weights(0))
    assert_trees_close(found, weights(0), rtol=1e-5)


def test_the_warmup_forgets_the_initialization():
  far = jax.tree.map(lambda w: w + 1000, weights(0))
  found = average(0.9999, [weights(0)] * 200, far)
  # prod (1 + n) / (10 + n) over 200 steps is 9! 200! / 209!, about 6e-16; without the warm-up 0.98 would be left.
  assert_trees_close(found, weights(0), rtol=1e-3, atol=1e-3)


def test_raising_the_decay_makes_it_slower():
  """After a jump of all weights by one, the average lags by its memory."""
  start = {'w': np.zeros(())}
  trajectory = [start] * 200 + [{'w': np.ones(())}] * 20
  decays = [0.0, 0.5, 0.8, 0.9]
  followed = [float(average(d, trajectory, start)['w']) for d in decays]
  np.testing.assert_allclose(followed, [1 - d**20 for d in decays], rtol=1e-4)
  assert followed == sorted(followed, reverse=True)


def test_donated_states_hold_no_buffer_twice():
  ema = averaging.ema(0.9)
  params = jax.tree.map(jnp.asarray, weights(0))
  state = {'params': params, 'average': ema.init(params)}
  pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
  assert len(set(pointers)) == len(pointers)

  def step(state):
    moved = jax.tree.map(lambda w: w + 1, state['params'])
    return {'params': moved, 'average': ema.update(state['average'], moved)}

  donating = jax.jit(step, donate_argnums=0)
  new = donating(donating(state))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # it was in fact donated
  assert_trees_close(new['params'], jax.tree.map(lambda w: w + 2, weights(0)), rtol=1e-6)
  # d = 1/10, then 2/11: the average of w, w + 1, w + 2 is w + 0.9 and then w + (2 x 0.9 + 9 x 2) / 11.
  expected = jax.tree.map(lambda w: w + 1.8, weights(0))
  assert_trees_close(ema.read(new['average']), expected, rtol=1e-5)


def test_types_are_kept():
  params = {'half': jnp.ones(3, jnp.bfloat16), 'single': jnp.ones(3)}
  ema = averaging.ema(0.5)
  state = ema.update(ema.init(params), params)
  assert jax.tree.map(lambda a: a.dtype, ema.read(state)) == {
    'half': jnp.bfloat16,
    'single': jnp.float32,
  }


@pytest.mark.parametrize('decay', [-0.1, 1.0, 1.5, math.nan])
def test_bad_decays_are_named(decay):
  with pytest.raises(ValueError, match=rf'decay must .* got {decay}'):
    averaging.ema(decay)
