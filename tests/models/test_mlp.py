"""The residual MLP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.models import activations, mlp, normalization
from diffusion.types import NULL, Conditioning
from tests.models.test_dropout import PLAIN, row_keys

# These programs run once: compiling them with little optimization is quicker.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def conditioning(rows, label=0):
  return Conditioning(jnp.full(rows, label), jnp.zeros((rows, 0)))


def inputs(rows=5, dimension=3, seed=0):
  generator = np.random.default_rng(seed)
  z, noise = generator.normal(size=(rows, dimension)), generator.uniform(-1, 1, size=rows)
  return jnp.asarray(z, jnp.float32), jnp.asarray(noise, jnp.float32)


def started(model, d=3, scale=0.3):
  """Variables as if trained: random numbers in every shape, none of them left at zero."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs(2, d), conditioning(2))
  generator = np.random.default_rng(0)
  return jax.tree.map(
    lambda p: jnp.asarray(scale * generator.normal(size=p.shape), p.dtype), shapes
  )


def evaluation(model):
  return compiled(lambda *a, keys=None: model.apply(*a, keys=keys)[0])


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
  variables = compiled(model.init)(jax.random.key(0), z, noise, conditioning(5))
  output, statistics = compiled(model.apply)(variables, z, noise, conditioning(5))
  assert statistics == {}
  np.testing.assert_array_equal(output, np.zeros((5, 3)))


def test_everything_it_is_told_changes_the_output():
  model, (z, noise) = mlp.mlp(32, 2, num_classes=3), inputs()
  variables, apply = started(model), evaluation(model)
  base = np.asarray(apply(variables, z, noise, conditioning(5)))
  changed = {
    'z': apply(variables, z + 0.5, noise, conditioning(5)),
    'noise': apply(variables, z, noise + 0.25, conditioning(5)),
    'label': apply(variables, z, noise, conditioning(5, 1)),
    'null label': apply(variables, z, noise, conditioning(5, NULL)),
  }
  for name, output in changed.items():
    assert (np.abs(np.asarray(output) - base).max(1) > 1e-3).all(), name


def test_it_is_its_formula_written_out():
  """In NumPy, with another norm and activation than by default, both of which are in all their places."""
  model = mlp.mlp(
    16, 2, num_classes=3, drops=PLAIN, norm=normalization.rms(), activation=activations.relu
  )
  (z, noise), variables = inputs(3), started(model)
  label = np.array([1, NULL, 0])
  told = conditioning(3)._replace(condition=label)
  found = evaluation(model)(variables, z, noise, told, keys=row_keys(3))
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables['params'])

  def dense(x, layer):
    return x @ layer['kernel'] + layer['bias']

  def relu(x):
    return np.maximum(x, 0)

  def norm(x, layer):
    return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6) * layer['scale']

  level = p['ConditioningEmbedding_0']
  angle = 2 * np.pi * np.asarray(noise, np.float64)[:, None] * np.array([1 / 16, 16])
  waves = np.concatenate([np.cos(angle), np.sin(angle)], 1)
  e = dense(relu(dense(waves, level['Dense_0'])), level['Dense_1'])
  e = relu(e + level['Embed_0']['embedding'][label])
  h = dense(2 * np.asarray(z, np.float64), p['stem'])
  for i in range(2):
    inner, told, outer = (p[f'Dense_{3 * i + j}'] for j in range(3))
    r = relu(dense(relu(norm(h, p[f'RMSNorm_{i}'])), inner) + dense(e, told)) + 1
    h = h + (1 + (i + 1) / 2) * dense(r, outer)
  expected = dense(relu(norm(h, p['RMSNorm_2'])), p['output'])
  assert np.abs(expected).max(1).min() > 0.1
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_row_does_not_see_the_others():
  model, (z, noise) = mlp.mlp(32, 2), inputs()
  variables, apply = started(model), evaluation(model)
  whole = apply(variables, z, noise, conditioning(5))
  others = apply(variables, z.at[:3].set(4.0), noise.at[:3].set(1.0), conditioning(5))
  np.testing.assert_allclose(others[3:], whole[3:], atol=1e-5)
  assert (np.abs(np.asarray(others - whole)[:3]).max(1) > 1e-3).all()


def test_dropout_is_live_in_training_and_absent_in_evaluation():
  z, noise = inputs(64)
  keys = rng.row_keys(jax.random.key(1), jnp.arange(64))
  told, variables = conditioning(64), started(mlp.mlp(32, 2))
  expected = np.asarray(evaluation(mlp.mlp(32, 2))(variables, z, noise, told))
  wet = evaluation(mlp.mlp(32, 2, dropout=0.2))
  np.testing.assert_array_equal(wet(variables, z, noise, told), expected)

  @compiled
  def trained(rate):
    return mlp.mlp(32, 2, dropout=rate).apply(variables, z, noise, told, keys=keys)[0]

  np.testing.assert_allclose(trained(0.0), expected, atol=1e-5)
  np.testing.assert_allclose(trained(0.2), wet(variables, z, noise, told, keys=keys), atol=1e-4)
  spread = [np.square(np.asarray(trained(rate)) - expected).mean() for rate in (0.05, 0.2, 0.6)]
  assert 1e-4 < spread[0] < spread[1] < spread[2]


def test_a_traced_dropout_rate_varies_over_a_population():
  z, noise = inputs(8)
  keys = rng.row_keys(jax.random.key(1), jnp.arange(8))
  told, variables = conditioning(8), started(mlp.mlp(16, 2))

  def output(rate):
    return mlp.mlp(16, 2, dropout=rate).apply(variables, z, noise, told, keys=keys)[0]

  rates = [0.0, 0.3, 0.6]
  together = compiled(jax.vmap(output))(jnp.array(rates))
  for row, rate in enumerate(rates[:2]):
    expected = evaluation(mlp.mlp(16, 2, dropout=rate))(variables, z, noise, told, keys=keys)
    np.testing.assert_allclose(together[row], expected, atol=1e-4)


def test_forward_mode_is_the_same_function():
  model, (z, noise) = mlp.mlp(32, 2), inputs()
  variables, told = started(model), conditioning(5)

  @compiled
  def both(z, direction):
    plain = model.apply(variables, z, noise, told)[0]
    options = {'forward_mode': True}
    return plain, *jax.jvp(
      lambda z: model.apply(variables, z, noise, told, **options)[0], (z,), (direction,)
    )

  plain, same, tangent = both(z, jnp.ones_like(z))
  np.testing.assert_allclose(same, plain, atol=1e-6)
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


@pytest.mark.parametrize('shape', [(4, 3), (2, 2, 3), (3, 1, 2, 2)])
def test_examples_of_any_shape_are_vectors(shape):
  model = mlp.mlp(8, 1)
  z, noise = inputs(5, 12)
  variables = started(model, 12)
  flat = evaluation(model)(variables, z, noise, conditioning(5))
  shaped = evaluation(model)(variables, z.reshape(5, *shape), noise, conditioning(5))
  assert shaped.shape == (5, *shape)
  np.testing.assert_array_equal(shaped.reshape(5, -1), flat)
