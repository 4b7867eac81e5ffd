"""Normalizations against NumPy, and what batch normalization owes to its batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.models import normalization
from diffusion.models.functional import Mode, from_linen

X = np.random.default_rng(0).normal(3.0, 2.0, size=(6, 4, 5, 8))
RUNNING, BATCH = Mode(), Mode(update_statistics=True)


class Layer(nn.Module):
  """One normalization."""

  norm: normalization.Norm

  @nn.compact
  def __call__(self, x, noise, conditioning, mode):
    return self.norm(x, mode)


def start(norm, x=X):
  """(module, variables) with scales and shifts that are not ones and zeros."""
  module = Layer(norm)
  variables = module.init(jax.random.key(0), jnp.asarray(x), None, None, RUNNING)
  rng = np.random.default_rng(1)
  moved = jax.tree.map(lambda p: jnp.asarray(rng.uniform(0.5, 2.0, p.shape)), variables)
  return module, moved


def parameters(variables):
  values = [np.asarray(p) for p in jax.tree.leaves(variables['params'])]
  return values[::-1] if len(values) == 2 else values  # (scale, bias)


def standard(x, axes, epsilon=1e-6):
  return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def test_group_layer_and_rms_norm_in_closed_form(x64):
  for norm, groups in ((normalization.group(), 2), (normalization.group(most=1), 1)):
    module, variables = start(norm)
    grouped = standard(X.reshape(6, 4, 5, groups, -1), (1, 2, 4)).reshape(X.shape)
    scale, bias = parameters(variables)
    found = module.apply(variables, jnp.asarray(X), None, None, RUNNING)
    np.testing.assert_allclose(found, grouped * scale + bias, atol=1e-8)
  module, variables = start(normalization.layer())
  scale, bias = parameters(variables)
  found = module.apply(variables, jnp.asarray(X), None, None, RUNNING)
  np.testing.assert_allclose(found, standard(X, (3,)) * scale + bias, atol=1e-8)
  module, variables = start(normalization.rms())
  (scale,) = parameters(variables)
  root = np.sqrt((X**2).mean(3, keepdims=True) + 1e-6)
  np.testing.assert_allclose(
    module.apply(variables, jnp.asarray(X), None, None, RUNNING), X / root * scale, atol=1e-8
  )


def test_none_is_the_identity_without_parameters():
  module = Layer(normalization.none())
  assert module.init(jax.random.key(0), X, None, None, RUNNING) == {}
  np.testing.assert_array_equal(module.apply({}, X, None, None, RUNNING), X)


def test_batch_norm_uses_the_batch_in_training_and_the_running_averages_after(x64):
  module, variables = start(normalization.batch(0.9))
  scale, bias = (np.asarray(variables['params']['BatchNorm_0'][n]) for n in ('scale', 'bias'))
  before = {k: np.asarray(v) for k, v in variables['batch_stats']['BatchNorm_0'].items()}
  axes = (0, 1, 2)
  found, moved = module.apply(variables, jnp.asarray(X), None, None, BATCH, mutable=['batch_stats'])
  np.testing.assert_allclose(found, standard(X, axes, 1e-5) * scale + bias, atol=1e-8)
  after = moved['batch_stats']['BatchNorm_0']
  np.testing.assert_allclose(after['mean'], 0.9 * before['mean'] + 0.1 * X.mean(axes), rtol=1e-12)
  np.testing.assert_allclose(
    after['variance'], 0.9 * before['variance'] + 0.1 * X.var(axes), rtol=1e-12
  )
  plain = (X - before['mean']) / np.sqrt(before['variance'] + 1e-5) * scale + bias
  np.testing.assert_allclose(
    module.apply(variables, jnp.asarray(X), None, None, RUNNING), plain, atol=1e-8
  )
  # Another decay for one call, as for the statistics of averaged weights.
  mode = BATCH._replace(statistics_decay=0.0)
  _, replaced = module.apply(variables, jnp.asarray(X), None, None, mode, mutable=['batch_stats'])
  replaced = replaced['batch_stats']['BatchNorm_0']
  np.testing.assert_allclose(replaced['mean'], X.mean(axes), rtol=1e-12)
  np.testing.assert_allclose(replaced['variance'], X.var(axes), rtol=1e-12)


def test_a_batch_in_two_halves_with_a_common_mean_is_one_batch(x64):
  module, variables = start(normalization.batch())

  def half(x, _):
    mean = lambda tree: jax.lax.pmean(tree, 'halves')  # noqa: E731
    mode = Mode(cross_mean=mean, update_statistics=True)
    return module.apply(variables, x, None, None, mode, mutable=['batch_stats'])

  found, moved = jax.vmap(half, axis_name='halves')(
    jnp.asarray(X).reshape(2, 3, 4, 5, 8), np.zeros(2)
  )
  whole, expected = module.apply(
    variables, jnp.asarray(X), None, None, BATCH, mutable=['batch_stats']
  )
  np.testing.assert_allclose(found.reshape(X.shape), whole, atol=1e-10)
  for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a[0], b, rtol=1e-10)
    np.testing.assert_allclose(a[1], b, rtol=1e-10)


def test_evaluation_of_an_image_does_not_depend_on_its_batch_mates():
  model = from_linen(Layer(normalization.batch()))
  x = jnp.asarray(X, jnp.float32)
  noise = jnp.zeros(6)  # the layer is told nothing
  variables = model.init(jax.random.key(0), x, noise, None)
  alone, statistics = model.apply(variables, x[:1], noise[:1], None)
  together, _ = model.apply(variables, x, noise, None)
  np.testing.assert_array_equal(alone, together[:1])
  assert set(statistics) == {'batch_stats'}
  # ... and in training it does.
  trained, moved = model.apply(variables, x, noise, None, update_statistics=True)
  other, _ = model.apply(variables, x[:3], noise[:3], None, update_statistics=True)
  assert np.abs(np.asarray(trained[:3]) - np.asarray(other)).max() > 1e-3
  assert not np.allclose(
    moved['batch_stats']['BatchNorm_0']['mean'], statistics['batch_stats']['BatchNorm_0']['mean']
  )


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match='decay .* got 1.0'):
    normalization.batch(1.0)
  with pytest.raises(ValueError, match='most .* got 0'):
    normalization.group(0)
