"""A Linen module as two functions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.models import functional, mlp, unet
from diffusion.types import NULL, Conditioning


class Recorder(nn.Module):
  """y = w z + c_noise + label, and ten more in forward mode; a thousand more with keys."""

  @nn.compact
  def __call__(self, z, noise, conditioning, mode):
    w = self.param('w', nn.initializers.constant(2.0), ())
    self.variable('extra', 'count', lambda: jnp.full((), 7.0))
    y = w * z + noise[:, None] + conditioning.condition[:, None]
    return y + (10 if mode.forward_mode else 0) + (1000 if mode.keys is not None else 0)


def test_a_model_passes_everything_on():
  model = functional.from_linen(Recorder())
  z, noise = jnp.array([[1.0], [3.0]]), jnp.array([0.25, 0.5])
  told = Conditioning(jnp.array([100, 200]), jnp.zeros((2, 0)))
  variables = model.init(jax.random.key(0), z, noise, told)
  assert set(variables) == {'params', 'extra'}
  output, statistics = model.apply(variables, z, noise, told)
  np.testing.assert_allclose(output, [[102.25], [206.5]])
  np.testing.assert_allclose(statistics['extra']['count'], 7)
  assert set(statistics) == {'extra'}  # all but the parameters, unchanged
  keys = jax.random.split(jax.random.key(0), 2)
  np.testing.assert_allclose(
    model.apply(variables, z, noise, told, forward_mode=True)[0], [[112.25], [216.5]]
  )
  np.testing.assert_allclose(
    model.apply(variables, z, noise, told, keys=keys)[0], [[1102.25], [1206.5]]
  )
  changed = model.apply(variables | {'params': {'w': jnp.array(0.0)}}, z, noise, told)[0]
  np.testing.assert_allclose(changed, [[100.25], [200.5]])


def test_a_model_says_how_many_classes_its_module_was_given():
  assert functional.from_linen(Recorder()).num_classes == 0
  assert functional.from_linen(Recorder(), 7).num_classes == 7
  for made in (mlp.mlp, unet.unet):
    assert made().num_classes == 0
    assert made(num_classes=3).num_classes == 3


def test_a_model_of_classes_has_a_null_label_and_one_without_has_none():
  for made in (mlp.mlp, unet.unet):
    assert made().null is None
    np.testing.assert_array_equal(made(num_classes=3).null(jnp.array([0, 2])), [NULL, NULL])


def test_identity_is_the_mean_over_one_device():
  tree = {'a': jnp.arange(3.0)}
  assert functional.identity(tree) is tree
