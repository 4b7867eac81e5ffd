"""Rematerialization keeps less for the gradient, which stays what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.models import rematerialization
from tests.models.test_precision import NETWORKS, inputs, perturbed, slope


@pytest.mark.parametrize('name', ['unet', 'batch norm', 'dit'])
def test_value_and_gradient_stay_dropout_included(name):
  model, shape = NETWORKS[name]
  variables = perturbed(model, shape)
  keys = jax.random.split(jax.random.key(3), shape[0])
  options = {'keys': keys, 'batch_key': jax.random.key(4), 'update_statistics': True}
  expected, found = (
    slope(one, variables, shape, **options)
    for one in (model, rematerialization.rematerialize(model))
  )
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', NETWORKS)
def test_only_what_blocks_hand_on_is_kept(name):
  model, shape = NETWORKS[name]
  variables = jax.eval_shape(model.init, jax.random.key(1), *inputs(shape))
  known = {leaf.shape for leaf in jax.tree.leaves((variables, inputs(shape)))}

  def kept(one):
    """Elements that the way back needs, weights and inputs apart."""
    back = jax.eval_shape(
      lambda v: jax.vjp(lambda v: one.apply(v, *inputs(shape))[0], v)[1], variables
    )
    return sum(leaf.size for leaf in jax.tree.leaves(back) if leaf.shape not in known)

  handed_on = kept(rematerialization.rematerialize(model))
  assert 0 < handed_on < 0.35 * kept(model)
  if name == 'mlp':
    assert handed_on == 2 * 5 * 16  # blocks, rows, width


def test_the_second_computation_is_in_the_program():
  """A GPU's or a TPU's compiler may not merge the two: a barrier stands between them."""
  model, shape = NETWORKS['unet']
  variables = jax.eval_shape(model.init, jax.random.key(1), *inputs(shape))

  def program(one):
    def loss(v):
      return jnp.sum(one.apply(v, *inputs(shape))[0] ** 2)

    return jax.jit(jax.grad(loss)).lower(variables).as_text()

  plain, twice = program(model), program(rematerialization.rematerialize(model))
  assert 'optimization_barrier' in twice
  assert 'optimization_barrier' not in plain
  assert plain.count('stablehlo.convolution') < twice.count('stablehlo.convolution')
