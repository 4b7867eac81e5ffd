"""bfloat16 computes the same network more coarsely, and attention is its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import types
from diffusion.models import attention, dit, dropout, magnitude, mlp, normalization, precision, unet
from diffusion.types import Conditioning

IMAGE = (2, 8, 8, 3)
NETWORKS = {
  'unet': (unet.unet(8, (1, 2), 1, (8,), 0.1, 10, zero_outputs=False), IMAGE),
  'batch norm': (unet.unet(8, (1,), 1, (), norm=normalization.batch(), zero_outputs=False), IMAGE),
  'layer norm': (unet.unet(8, (1,), 1, (), norm=normalization.layer(), rescale=True, zero_outputs=False), IMAGE),
  'magnitude': (magnitude.unet(8, (1, 2), 1, (8,), num_classes=10), IMAGE),
  'dit': (dit.dit(16, 2, 2, 4, drops=[dropout.stochastic_depth(0.3)]), IMAGE),
  'mlp': (mlp.mlp(16, 2, 0.1), (5, 4)),
}  # fmt: skip
# Of one level where a gradient is compiled; that no level promotes is seen on the traced program.
COMPILED = NETWORKS | {
  'unet': (unet.unet(8, (1,), 1, (), 0.1, 10, zero_outputs=False), IMAGE),
  'magnitude': (magnitude.unet(8, (1,), 1, (), num_classes=10), IMAGE),
}


def inputs(shape):
  z = jax.random.normal(jax.random.key(0), shape)
  noise = jnp.linspace(-1, 1, shape[0])
  return z, noise, Conditioning(jnp.arange(shape[0]) - 1, jnp.zeros((shape[0], 0)))


def perturbed(model, shape):
  """Parameters without zeros, so that every part of the network is heard."""
  variables = jax.jit(model.init)(jax.random.key(1), *inputs(shape))
  leaves, tree = jax.tree.flatten(variables['params'])
  keys = jax.random.split(jax.random.key(2), len(leaves))
  leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return {**variables, 'params': jax.tree.unflatten(tree, leaves)}


def slope(model, variables, shape, **options):
  def loss(params):
    output, _ = model.apply({**variables, 'params': params}, *inputs(shape), **options)
    return jnp.mean(output**2), output

  (_, output), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])
  return output, gradient


@pytest.mark.parametrize('name', COMPILED)
def test_bfloat16_stays_near_float32_in_value_and_gradient_and_returns_float32(name):
  model, shape = COMPILED[name]
  variables = perturbed(model, shape)
  exact, exact_slope = slope(model, variables, shape)
  output, gradient = slope(precision.bfloat16(model), variables, shape)
  assert {x.dtype for x in [output, *jax.tree.leaves(gradient)]} == {np.dtype('float32')}
  error = jnp.linalg.norm(output - exact) / jnp.linalg.norm(exact)
  assert 1e-5 < error < 0.03, error  # rounded, to 2^-8 in each of some twenty layers
  flat, flat_exact = (
    jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (gradient, exact_slope)
  )
  error = jnp.linalg.norm(flat - flat_exact) / jnp.linalg.norm(flat_exact)
  assert 1e-5 < error < 0.1, error


def test_weights_and_examples_alone_are_rounded():
  """Of the noise level the finest features would be lost, and running statistics would stop moving."""

  def apply(variables, z, noise, conditioning, **options):
    return z, (variables, noise, conditioning, options)

  third = jnp.full(2, 1 / 3)
  variables = {'params': {'kernel': third}, 'batch_stats': {'mean': third}}
  told = Conditioning(jnp.arange(2), third[:, None])
  spied = precision.bfloat16(types.Model(None, apply))
  z, (given, noise, conditioning, options) = spied.apply(variables, third, third, told, keys=third)
  assert z.dtype == jnp.float32
  for rounded in (z, given['params']['kernel'], conditioning.augment):
    np.testing.assert_array_equal(rounded.ravel(), third.astype(jnp.bfloat16).astype(jnp.float32))
  for whole in (given['batch_stats']['mean'], noise, options['keys']):
    assert whole is third
  assert conditioning.condition is told.condition


@pytest.mark.parametrize('name', NETWORKS)
def test_bfloat16_leaves_no_large_product_in_float32(name):
  """Else an operand that was forgotten would silently promote all that follows."""
  model, shape = NETWORKS[name]
  variables = jax.eval_shape(model.init, jax.random.key(1), *inputs(shape))
  check_products(shape, lambda v: apply_with_dropout(model, v, shape), variables)


def test_a_traced_dropout_rate_leaves_no_large_product_in_float32():
  """As of a population's members: it is a float32 array, where a Python number would take the other's type."""

  def apply(rate, variables):
    model = unet.unet(8, (1, 2), 1, (8,), rate, 10, zero_outputs=False)
    return apply_with_dropout(model, variables, IMAGE)

  model, _ = NETWORKS['unet']
  variables = jax.eval_shape(model.init, jax.random.key(1), *inputs(IMAGE))
  check_products(IMAGE, apply, jnp.float32(0.1), variables)


def apply_with_dropout(model, variables, shape):
  keys = jax.random.split(jax.random.key(0), shape[0])
  return precision.bfloat16(model).apply(variables, *inputs(shape), keys=keys)[0]


def check_products(shape, function, *arguments):
  text = str(jax.make_jaxpr(function)(*arguments))
  products = [
    line for line in text.splitlines() if 'conv_general_dilated[' in line or 'dot_general[' in line
  ]
  # The embedding of the noise level is in float32; the last layer is not, and inherits what was promoted before it.
  wide = [line for line in products if f':f32[{shape[0]},8' in line or ':f32[2,4,4' in line]
  assert not wide, wide
  assert ':bf16[' in products[-1], products[-1]


@pytest.mark.parametrize('heads', [1, 3])
def test_attention_is_its_formula(heads, x64):
  parts = jax.random.normal(jax.random.key(0), (3, 2, 5, heads, 4))
  found = attention.attend(*parts)
  narrow = attention.attend(*parts.astype(jnp.float32))
  for b in range(2):
    for h in range(heads):
      q, k, v = (np.asarray(part[b, :, h]) for part in parts)
      share = np.exp(q @ k.T / 2)
      expected = share / share.sum(1, keepdims=True) @ v
      np.testing.assert_allclose(found[b, :, h], expected, rtol=1e-12)
      np.testing.assert_allclose(narrow[b, :, h], expected, rtol=1e-5, atol=1e-6)
