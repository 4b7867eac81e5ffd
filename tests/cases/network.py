"""Rows of the catalogue: network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.models import (
  activations,
  dropout,
  initializers,
  magnitude,
  mlp,
  normalization,
  precision,
  rematerialization,
  unet,
)
from diffusion.models.functional import Mode
from diffusion.types import Conditioning
from tests.cases.base import add, rising, same

IMAGE = (6, 6, 4)


def dropped(one, depth=1.0):
  """The share of zeros a drop makes of ones."""
  keys = jax.random.split(jax.random.key(0), 300)
  return float((jax.vmap(lambda key: one.act(key, jnp.ones(IMAGE), depth))(keys) == 0).mean())


def live_drop(make):
  def live():
    assert make(0).act is None  # off leaves no code
    rising(0, dropped(make(0.1)), dropped(make(0.3)), dropped(make(0.6)))

  return live


for name, line in {
  'elements': 'model=unet.unet(..., dropout=0.1)',
  'at_input': 'model=unet.unet(..., drops=[dropout.at_input(0.05)])',
  'spatial': 'model=unet.unet(..., drops=[dropout.spatial(0.1)])',
  'drop_block': 'model=unet.unet(..., drops=[dropout.drop_block(0.1, size=3)])',
  'drop_connect': 'model=unet.unet(..., drops=[dropout.drop_connect(0.1)])',
  'stochastic_depth': 'model=unet.unet(..., drops=[dropout.stochastic_depth(0.1)])',
}.items():
  proof = 'test_drop_block_drops_squares_of_about_the_share_and_keeps_the_sum'
  if name != 'drop_block':
    proof = 'test_every_member_keeps_the_mean_and_drops_its_share'
  add(
    f'models.dropout.{name}', line, f'models/test_dropout.py::{proof}', live_drop(getattr(dropout, name))
  )  # fmt: skip


class Layer(nn.Module):
  norm: Any

  @nn.compact
  def __call__(self, x, mode):
    return self.norm(x, mode)


def live_norm(make, axes, centered=True):
  """Whatever the scale and shift of its input, the output is that of the input alone: off, it is not."""

  def live():
    x = np.random.default_rng(0).normal(size=(16, 4, 4, 8)).astype(np.float32)
    x = x * np.linspace(0.5, 1.5, 8)
    mode = Mode(update_statistics=True)

    def run(norm, x):
      module = Layer(norm)
      variables = module.init(jax.random.key(0), x, Mode())
      return np.asarray(module.apply(variables, x, mode, mutable=['batch_stats'])[0])

    moved = 3 * x + (5 if centered else 0)
    same(run(normalization.none(), moved), moved)
    np.testing.assert_allclose(run(make(), moved), run(make(), x), atol=1e-3)
    np.testing.assert_allclose((run(make(), x) ** 2).mean(axes), 1.0, atol=0.05)

  return live


for name, axes in {'group': (1, 2, 3), 'layer': 3, 'rms': 3, 'batch': (0, 1, 2)}.items():
  where = 'test_group_layer_and_rms_norm_in_closed_form'
  if name == 'batch':
    where = 'test_batch_norm_uses_the_batch_in_training_and_the_running_averages_after'
  add(
    f'models.normalization.{name}', f'model=unet.unet(..., norm=normalization.{name}())',
    f'models/test_normalization.py::{where}',
    live_norm(getattr(normalization, name), axes, centered=name != 'rms'),
  )  # fmt: skip


def live_activation(make, low, high):
  """Its values at -1 and 1, which tell all six apart."""

  def live():
    np.testing.assert_allclose(make(jnp.array([-1.0, 1.0])), [low, high], atol=1e-4)

  return live


for name, low, high in (
  ('silu', -0.26894, 0.73106), ('relu', 0.0, 1.0), ('leaky_relu', -0.01, 1.0), ('elu', -0.63212, 1.0),
  ('gelu', -0.15866, 0.84134), ('mish', -0.30340, 0.86510),
):  # fmt: skip
  add(
    f'models.activations.{name}', f'model=unet.unet(..., activation=activations.{name})',
    'models/test_activations.py::test_closed_form_and_slope',
    live_activation(getattr(activations, name), low, high),
  )  # fmt: skip


def live_initializer(make, gain):
  def live():
    w = np.asarray(make()(jax.random.key(0), (400, 200), jnp.float32))
    np.testing.assert_allclose(400 * w.var(), gain, rtol=0.05)

  return live


for name, gain in {'lecun': 1.0, 'he': 2.0, 'xavier': 4 / 3, 'orthogonal': 1.0}.items():
  where = 'test_variance_of_dense_and_convolution_kernels'
  add(
    f'models.initializers.{name}', f'model=unet.unet(..., kernel_init=initializers.{name}())',
    f'models/test_initializers.py::{"test_orthogonal_rows_or_columns" if name == "orthogonal" else where}',
    live_initializer(getattr(initializers, name), gain),
  )  # fmt: skip


def live_outputs():
  def last(zero):
    """The size of the kernel behind which the network's output lies."""
    model, told = (
      mlp.mlp(8, 1, zero_outputs=zero),
      Conditioning(jnp.zeros(1, int), jnp.zeros((1, 0))),
    )
    made = model.init(jax.random.key(0), jnp.zeros((1, 4)), jnp.zeros(1), told)
    return float(jnp.abs(model.apply(made, jnp.ones((1, 4)), jnp.zeros(1), told)[0]).max())

  assert last(True) == 0 < last(False)


add(
  'models.initializers.zeros',
  'model=unet.unet(..., zero_outputs=True)',
  'models/test_unet.py::test_output_is_zero_at_initialization',
  live_outputs,
)


def live_rescaled():
  x, h = jnp.full(3, 2.0), jnp.full(3, 4.0)
  np.testing.assert_allclose(unet.rescaled_sum(x, h), 6 / 2**0.5)
  same(unet.plain_sum(x, h), 6)


add(
  'models.unet.rescaled_sum',
  'model=unet.unet(..., rescale=True)',
  'models/test_unet.py::test_residual_block_starts_as_the_identity_over_root_two_if_rescaled',
  live_rescaled,
)


def live_skips():
  def inputs(skips):
    """Channels that the first block of the way up sees."""
    model = unet.unet(8, (1, 2), 1, (), skips=skips)
    told = Conditioning(jnp.zeros(1, int), jnp.zeros((1, 0)))
    shapes = jax.eval_shape(
      model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), told
    )
    return shapes['params']['ResidualBlock_4']['conv_in']['kernel'].shape[2]

  assert (inputs(False), inputs(True)) == (16, 32)


add(
  'models.unet.concatenated',
  'model=unet.unet(..., skips=True)',
  'models/test_unet.py::test_defaults_are_the_cifar10_network_of_ddpm',
  live_skips,
)


def live_magnitude():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(512, 32)), jnp.float32)
  layer = magnitude.Kernel(64)
  variables = layer.init(jax.random.key(0), x, Mode())
  long = jax.tree.map(lambda p: 9 * p, variables)
  np.testing.assert_allclose(layer.apply(long, x, Mode()).std(), 1.0, atol=0.05)
  assert (x @ long['params']['kernel']).std() > 9  # an ordinary layer of these weights


add(
  'models.magnitude.unet',
  'model=magnitude.unet(...)',
  'models/test_magnitude.py::test_blocks_keep_unit_variance_at_initialization',
  live_magnitude,
)


def live_bfloat16():
  plain = mlp.mlp(16, 1, zero_outputs=False)
  x, told = jnp.ones((2, 4)), Conditioning(jnp.zeros(2, int), jnp.zeros((2, 0)))
  variables = plain.init(jax.random.key(0), x, jnp.zeros(2), told)

  def output(model):
    return model.apply(variables, x, jnp.zeros(2), told)[0]

  far = jnp.abs(output(precision.bfloat16(plain)) - output(plain)).max()
  rising(1e-6, far, 0.1)  # rounded, and no more


def live_rematerialization():
  plain = mlp.mlp(16, 3, zero_outputs=False)
  x, told = jnp.ones((2, 4)), Conditioning(jnp.zeros(2, int), jnp.zeros((2, 0)))
  variables = plain.init(jax.random.key(0), x, jnp.zeros(2), told)

  def kept(model):
    _, back = jax.vjp(lambda v: model.apply(v, x, jnp.zeros(2), told)[0], variables)
    return sum(leaf.size for leaf in jax.tree.leaves(back))

  rising(kept(rematerialization.rematerialize(plain)), kept(plain))


add(
  'models.rematerialization.rematerialize',
  'model=rematerialization.rematerialize(unet.unet(...))',
  'models/test_rematerialization.py::test_value_and_gradient_stay_dropout_included',
  live_rematerialization,
)
add(
  'models.precision.bfloat16',
  'model=precision.bfloat16(unet.unet(...))',
  'models/test_precision.py::test_bfloat16_stays_near_float32_in_value_and_gradient_and_returns_float32',
  live_bfloat16,
)
