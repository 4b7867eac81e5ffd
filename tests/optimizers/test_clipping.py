"""Clipping by each rule written out in NumPy; each says when it acted."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.optimizers import chains, clipping, optimizers, schedules


def tree(seed, scale=1.0):
  random = np.random.default_rng(seed)
  return {
    'a': {'kernel': scale * random.normal(size=(3, 4)), 'bias': scale * random.normal(size=4)},
    'b': {'kernel': scale * random.normal(size=(3, 3, 2, 5))},
  }


def apply(transformation, gradient, params=None):
  changed, state = transformation.update(gradient, transformation.init(gradient), params)
  return changed, float(state.acted)


def assert_trees_close(found, expected, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def test_global_norm(x64):
  gradient = tree(0)
  length = math.sqrt(sum((v**2).sum() for v in jax.tree.leaves(gradient)))
  short, acted = apply(clipping.global_norm(0.5 * length), gradient)
  assert_trees_close(short, jax.tree.map(lambda g: 0.5 * g, gradient), rtol=1e-9)
  assert acted == 1
  same, acted = apply(clipping.global_norm(1.01 * length), gradient)
  assert_trees_close(same, gradient, rtol=0)
  assert acted == 0


def test_blocks_are_clipped_one_by_one(x64):
  gradient = tree(1)
  gradient['b']['kernel'] = 10 * gradient['b']['kernel']
  found, acted = apply(clipping.blocks(2.0), gradient)
  rms = np.sqrt((gradient['b']['kernel'] ** 2).mean())
  np.testing.assert_allclose(found['b']['kernel'], gradient['b']['kernel'] * 2 / rms, rtol=1e-9)
  assert_trees_close(found['a'], gradient['a'], rtol=0)
  assert acted == 1
  assert apply(clipping.blocks(100.0), gradient)[1] == 0


def test_adaptive_compares_units_with_their_weights(x64):
  params, gradient = tree(2), tree(3)
  params['a']['kernel'][:, 0] = 0  # the floor holds for what is zero
  found, acted = apply(clipping.adaptive(0.1, 0.01), gradient, params)
  for name, axes in (('a', 0), ('b', (0, 1, 2))):
    w, g = params[name]['kernel'], gradient[name]['kernel']
    weight, length = (np.sqrt((v**2).sum(axes, keepdims=True)) for v in (w, g))
    expected = g * np.minimum(1, 0.1 * np.maximum(weight, 0.01) / length)
    np.testing.assert_allclose(found[name]['kernel'], expected, rtol=1e-6)
  assert acted == 1
  assert apply(clipping.adaptive(1e6), gradient, params)[1] == 0


def test_value_clips_entries(x64):
  gradient = tree(4)
  found, acted = apply(clipping.value(0.5), gradient)
  assert_trees_close(found, jax.tree.map(lambda g: np.clip(g, -0.5, 0.5), gradient), rtol=1e-12)
  assert acted == 1
  assert apply(clipping.value(50.0), gradient)[1] == 0


@pytest.mark.parametrize(
  'make', [clipping.global_norm, clipping.blocks, clipping.adaptive, clipping.value]
)
def test_each_is_live_in_a_chain_and_measures_its_rate(make):
  """A tighter limit shortens the step of plain gradient descent; the rate says which steps it did."""
  params = jax.tree.map(jnp.asarray, tree(5))

  def step(clip):
    optimizer = chains.chain(optimizers.momentum(0.0), schedules.constant(1.0), clip=clip)
    state = optimizer.init(params)
    update, state = optimizer.update(jax.tree.map(jnp.asarray, tree(6)), state, params)
    length = math.sqrt(sum(float((v**2).sum()) for v in jax.tree.leaves(update)))
    return length, {k: float(v) for k, v in optimizer.measure(state).items()}

  tight, loose, off = step(make(0.01)), step(make(1e4)), step(None)
  assert tight[0] < 0.5 * off[0]
  assert loose[0] == off[0]
  assert tight[1] == {'clip_rate': 1.0}
  assert loose[1] == {'clip_rate': 0.0}
  assert off[1] == {}


@pytest.mark.parametrize(
  'make', [clipping.global_norm, clipping.blocks, clipping.adaptive, clipping.value]
)
@pytest.mark.parametrize('value', [0.0, -1.0, math.nan, math.inf])
def test_a_bad_limit_is_named(make, value):
  with pytest.raises(ValueError, match=f'got {value}'):
    make(value)
