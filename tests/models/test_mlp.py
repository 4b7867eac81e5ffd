"""The residual MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import streams
from diffusion.models import mlp
from diffusion.types import Conditioning


def conditioning(rows, label=0):
  return Conditioning(jnp.full(rows, label), jnp.zeros((rows, 0)))


def inputs(rows=5, dimension=3, seed=0):
  rng = np.random.default_rng(seed)
  z, noise = rng.normal(size=(rows, dimension)), rng.uniform(-1, 1, size=rows)
  return jnp.asarray(z, jnp.float32), jnp.asarray(noise, jnp.float32)


def perturbed(variables, scale=0.2, seed=0):
  """Moves every parameter, the zero ones too, as training would."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: p + scale * jnp.asarray(rng.normal(size=p.shape), p.dtype), variables
  )


def started(model, rows=5, dimension=3):
  z, noise = inputs(rows, dimension)
  return perturbed(model.init(jax.random.key(0), z, noise, conditioning(rows)))


@pytest.mark.parametrize('width, depth, d, classes', [(32, 2, 3, 0), (64, 4, 8, 10)])
def test_number_of_parameters(width, depth, d, classes):
  """By hand: every dense layer in times out plus out, two vectors a normalization, a row a class."""
  model = mlp.mlp(width, depth, num_classes=classes)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((2, d)), jnp.zeros(2), conditioning(2)
  )
  square = width * width + width
  embedding = (width // 4) * width + width + square + (classes + 1 if classes else 0) * width
  block = 3 * square + 2 * width
  expected = embedding + (d * width + width) + depth * block + 2 * width + width * d + d
  assert sum(p.size for p in jax.tree.leaves(variables['params'])) == expected


def test_output_is_zero_at_initialization():
  model, (z, noise) = mlp.mlp(32, 2), inputs()
  variables = model.init(jax.random.key(0), z, noise, conditioning(5))
  output, statistics = model.apply(variables, z, noise, conditioning(5))
  assert statistics == {}
  np.testing.assert_array_equal(output, np.zeros((5, 3)))


def test_everything_it_is_told_changes_the_output():
  model, (z, noise) = mlp.mlp(32, 2, num_classes=3), inputs()
  variables = started(model)
  base = np.asarray(model.apply(variables, z, noise, conditioning(5))[0])
  changed = {
    'z': model.apply(variables, z + 0.5, noise, conditioning(5))[0],
    'noise': model.apply(variables, z, noise + 0.25, conditioning(5))[0],
    'label': model.apply(variables, z, noise, conditioning(5, 1))[0],
    'null label': model.apply(variables, z, noise, conditioning(5, 3))[0],
  }
  for name, output in changed.items():
    assert (np.abs(np.asarray(output) - base).max(1) > 1e-3).all(), name


def test_a_row_does_not_see_the_others():
  model, (z, noise) = mlp.mlp(32, 2), inputs()
  variables = started(model)
  whole = model.apply(variables, z, noise, conditioning(5))[0]
  alone = model.apply(variables, z[3:4], noise[3:4], conditioning(1))[0]
  np.testing.assert_allclose(alone, whole[3:4], atol=1e-5)


def test_dropout_is_live_in_training_and_absent_in_evaluation():
  z, noise = inputs(64)
  keys = streams.row_keys(jax.random.key(1), jnp.arange(64))
  dry = mlp.mlp(32, 2)
  variables = started(dry)
  expected = np.asarray(dry.apply(variables, z, noise, conditioning(64))[0])
  np.testing.assert_array_equal(
    dry.apply(variables, z, noise, conditioning(64), keys=keys)[0], expected
  )
  spread = []
  for rate in (0.05, 0.2, 0.6):
    model = mlp.mlp(32, 2, dropout=rate)
    np.testing.assert_array_equal(model.apply(variables, z, noise, conditioning(64))[0], expected)
    dropped = np.asarray(model.apply(variables, z, noise, conditioning(64), keys=keys)[0])
    spread.append(np.square(dropped - expected).mean())
  assert 0 < spread[0] < spread[1] < spread[2]


def test_a_traced_dropout_rate_varies_over_a_population():
  z, noise = inputs(8)
  keys = streams.row_keys(jax.random.key(1), jnp.arange(8))
  variables = started(mlp.mlp(16, 2))

  def output(rate):
    model = mlp.mlp(16, 2, dropout=rate)
    return model.apply(variables, z, noise, conditioning(8), keys=keys)[0]

  rates = [0.0, 0.3, 0.6]
  together = jax.jit(jax.vmap(output))(jnp.array(rates))
  for row, rate in enumerate(rates):
    np.testing.assert_allclose(together[row], output(rate), atol=1e-4)


def test_forward_mode_is_the_same_function():
  model, (z, noise) = mlp.mlp(32, 2), inputs()
  variables = started(model)
  plain = model.apply(variables, z, noise, conditioning(5))[0]
  same, tangent = jax.jvp(
    lambda z: model.apply(variables, z, noise, conditioning(5), forward_mode=True)[0],
    (z,),
    (jnp.ones_like(z),),
  )
  np.testing.assert_array_equal(same, plain)
  assert np.abs(tangent).min() > 0


@pytest.mark.parametrize(
  'arguments, names',
  [
    ({'width': 12}, 'width .* got 12'),
    ({'width': 0}, 'width .* got 0'),
    ({'width': 16.0}, 'width .* got 16.0'),
    ({'depth': 0}, 'depth .* got 0'),
    ({'dropout': 1.0}, 'dropout .* got 1.0'),
    ({'dropout': -0.5}, 'dropout .* got -0.5'),
    ({'num_classes': -1}, 'num_classes .* got -1'),
  ],
)
def test_bad_arguments_are_named_with_their_value(arguments, names):
  with pytest.raises(ValueError, match=names):
    mlp.mlp(**arguments)
