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
from tests.cases.base import Case, fields, rising, same

SMALL = {'width': 8, 'multipliers': (1, 2), 'blocks': 1, 'attention': (), 'num_classes': 10}


def live_drop(make):
  """Off it leaves no code; on, the share of zeros it makes of ones rises with its rate."""

  def dropped(rate):
    keys = jax.random.split(jax.random.key(0), 300)
    act = make(rate).act
    return (jax.vmap(lambda key: act(key, jnp.ones((6, 6, 4)), 1.0))(keys) == 0).mean()

  assert make(0).act is None
  rising(0, dropped(0.1), dropped(0.3), dropped(0.6))


class Layer(nn.Module):
  norm: Any

  @nn.compact
  def __call__(self, x, mode):
    return self.norm(x, mode)


def live_norm(make, axes, centered=True):
  """Whatever the scale and shift of its input, the output is that of the input alone: off, it is not."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4, 4, 8)), jnp.float32)
  x = x * jnp.linspace(0.5, 1.5, 8)
  mode = Mode(update_statistics=True)

  def run(norm, x):
    module = Layer(norm)
    variables = module.init(jax.random.key(0), x, Mode())
    return np.asarray(module.apply(variables, x, mode, mutable=['batch_stats'])[0])

  moved = 3 * x + (5 if centered else 0)
  same(run(normalization.none(), moved), moved)
  np.testing.assert_allclose(run(make(), moved), run(make(), x), atol=1e-3)
  np.testing.assert_allclose((run(make(), x) ** 2).mean(axes), 1.0, atol=0.05)


def live_activation(function, low, high):
  """Its values at -1 and 1, which tell all six apart."""
  np.testing.assert_allclose(function(jnp.array([-1.0, 1.0])), [low, high], atol=1e-4)


def live_initializer(make, gain):
  """The variance of its weights, in units of one over their inputs."""
  w = np.asarray(make()(jax.random.key(0), (400, 200), jnp.float32))
  np.testing.assert_allclose(400 * w.var(), gain, rtol=0.05)


def live_outputs():
  def largest(zero):
    """Of what the network says at first."""
    model, told = (
      mlp.mlp(8, 1, zero_outputs=zero),
      Conditioning(jnp.zeros(1, int), jnp.zeros((1, 0))),
    )
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4)), jnp.zeros(1), told)
    return float(jnp.abs(model.apply(variables, jnp.ones((1, 4)), jnp.zeros(1), told)[0]).max())

  assert largest(True) == 0 < largest(False)


def live_rescaled():
  x, h = jnp.full(3, 2.0), jnp.full(3, 4.0)
  np.testing.assert_allclose(unet.rescaled_sum(x, h), 6 / 2**0.5)
  same(unet.plain_sum(x, h), 6)


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


def live_magnitude():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(512, 32)), jnp.float32)
  layer = magnitude.Kernel(64)
  variables = layer.init(jax.random.key(0), x, Mode())
  long = jax.tree.map(lambda p: 9 * p, variables)
  np.testing.assert_allclose(layer.apply(long, x, Mode()).std(), 1.0, atol=0.05)
  assert (x @ long['params']['kernel']).std() > 9  # an ordinary layer of these weights


PLAIN = mlp.mlp(16, 1, zero_outputs=False)
GIVEN = (
  jnp.ones((2, 4)), jnp.zeros(2), Conditioning(jnp.zeros(2, int), jnp.zeros((2, 0)))
)  # fmt: skip


def live_bfloat16():
  variables = jax.jit(PLAIN.init)(jax.random.key(0), *GIVEN)

  def output(model):
    return jax.jit(model.apply)(variables, *GIVEN)[0]

  far = jnp.abs(output(precision.bfloat16(PLAIN)) - output(PLAIN)).max()
  rising(1e-6, far, 0.1)  # rounded, and no more


def live_rematerialization():
  variables = jax.eval_shape(PLAIN.init, jax.random.key(0), *GIVEN)

  def kept(model):
    """The numbers that the way back is given by the way there."""
    back = jax.eval_shape(lambda v: jax.vjp(lambda v: model.apply(v, *GIVEN)[0], v)[1], variables)
    return sum(leaf.size for leaf in jax.tree.leaves(back))

  rising(kept(rematerialization.rematerialize(PLAIN)), kept(PLAIN))


TABLE = (
  Case(dropout.elements, live=lambda: live_drop(dropout.elements),
    turn_on=lambda: fields(model=unet.unet(**SMALL, dropout=0.1)),
    proof='tests/models/test_dropout.py::test_every_member_keeps_the_mean_and_drops_its_share'),
  Case(dropout.at_input, live=lambda: live_drop(dropout.at_input),
    turn_on=lambda: fields(model=unet.unet(**SMALL, drops=[dropout.at_input(0.05)])),
    proof='tests/models/test_dropout.py::test_every_member_keeps_the_mean_and_drops_its_share'),
  Case(dropout.spatial, live=lambda: live_drop(dropout.spatial),
    turn_on=lambda: fields(model=unet.unet(**SMALL, drops=[dropout.spatial(0.1)])),
    proof='tests/models/test_dropout.py::test_every_member_keeps_the_mean_and_drops_its_share'),
  Case(dropout.drop_block, live=lambda: live_drop(dropout.drop_block),
    turn_on=lambda: fields(model=unet.unet(**SMALL, drops=[dropout.drop_block(0.1, size=3)])),
    proof='tests/models/test_dropout.py::test_drop_block_drops_squares_of_about_the_share_and_keeps_the_sum'),
  Case(dropout.drop_connect, live=lambda: live_drop(dropout.drop_connect),
    turn_on=lambda: fields(model=unet.unet(**SMALL, drops=[dropout.drop_connect(0.1)])),
    proof='tests/models/test_dropout.py::test_every_member_keeps_the_mean_and_drops_its_share'),
  Case(dropout.stochastic_depth, live=lambda: live_drop(dropout.stochastic_depth),
    turn_on=lambda: fields(model=unet.unet(**SMALL, drops=[dropout.stochastic_depth(0.1)])),
    proof='tests/models/test_dropout.py::test_every_member_keeps_the_mean_and_drops_its_share'),
  Case(normalization.group, live=lambda: live_norm(normalization.group, (1, 2, 3)),
    turn_on=lambda: fields(model=unet.unet(**SMALL, norm=normalization.group())),
    proof='tests/models/test_normalization.py::test_group_layer_and_rms_norm_in_closed_form'),
  Case(normalization.layer, live=lambda: live_norm(normalization.layer, 3),
    turn_on=lambda: fields(model=unet.unet(**SMALL, norm=normalization.layer())),
    proof='tests/models/test_normalization.py::test_group_layer_and_rms_norm_in_closed_form'),
  Case(normalization.rms, live=lambda: live_norm(normalization.rms, 3, centered=False),
    turn_on=lambda: fields(model=unet.unet(**SMALL, norm=normalization.rms())),
    proof='tests/models/test_normalization.py::test_group_layer_and_rms_norm_in_closed_form'),
  Case(normalization.batch, live=lambda: live_norm(normalization.batch, (0, 1, 2)),
    turn_on=lambda: fields(model=unet.unet(**SMALL, norm=normalization.batch())),
    proof='tests/models/test_normalization.py'
          '::test_batch_norm_uses_the_batch_in_training_and_the_running_averages_after'),
  Case(activations.silu, live=lambda: live_activation(activations.silu, -0.26894, 0.73106),
    turn_on=lambda: fields(model=unet.unet(**SMALL, activation=activations.silu)),
    proof='tests/models/test_activations.py::test_closed_form_and_slope'),
  Case(activations.relu, live=lambda: live_activation(activations.relu, 0.0, 1.0),
    turn_on=lambda: fields(model=unet.unet(**SMALL, activation=activations.relu)),
    proof='tests/models/test_activations.py::test_closed_form_and_slope'),
  Case(activations.leaky_relu, live=lambda: live_activation(activations.leaky_relu, -0.01, 1.0),
    turn_on=lambda: fields(model=unet.unet(**SMALL, activation=activations.leaky_relu)),
    proof='tests/models/test_activations.py::test_closed_form_and_slope'),
  Case(activations.elu, live=lambda: live_activation(activations.elu, -0.63212, 1.0),
    turn_on=lambda: fields(model=unet.unet(**SMALL, activation=activations.elu)),
    proof='tests/models/test_activations.py::test_closed_form_and_slope'),
  Case(activations.gelu, live=lambda: live_activation(activations.gelu, -0.15866, 0.84134),
    turn_on=lambda: fields(model=unet.unet(**SMALL, activation=activations.gelu)),
    proof='tests/models/test_activations.py::test_closed_form_and_slope'),
  Case(activations.mish, live=lambda: live_activation(activations.mish, -0.30340, 0.86510),
    turn_on=lambda: fields(model=unet.unet(**SMALL, activation=activations.mish)),
    proof='tests/models/test_activations.py::test_closed_form_and_slope'),
  Case(initializers.lecun, live=lambda: live_initializer(initializers.lecun, 1.0),
    turn_on=lambda: fields(model=unet.unet(**SMALL, kernel_init=initializers.lecun())),
    proof='tests/models/test_initializers.py::test_variance_of_dense_and_convolution_kernels'),
  Case(initializers.he, live=lambda: live_initializer(initializers.he, 2.0),
    turn_on=lambda: fields(model=unet.unet(**SMALL, kernel_init=initializers.he())),
    proof='tests/models/test_initializers.py::test_variance_of_dense_and_convolution_kernels'),
  Case(initializers.xavier, live=lambda: live_initializer(initializers.xavier, 4 / 3),
    turn_on=lambda: fields(model=unet.unet(**SMALL, kernel_init=initializers.xavier())),
    proof='tests/models/test_initializers.py::test_variance_of_dense_and_convolution_kernels'),
  Case(initializers.orthogonal, live=lambda: live_initializer(initializers.orthogonal, 1.0),
    turn_on=lambda: fields(model=unet.unet(**SMALL, kernel_init=initializers.orthogonal())),
    proof='tests/models/test_initializers.py::test_orthogonal_rows_or_columns'),
  Case(initializers.zeros, live=live_outputs,
    turn_on=lambda: fields(model=unet.unet(**SMALL, zero_outputs=True)),
    proof='tests/models/test_unet.py::test_output_is_zero_at_initialization'),
  Case(unet.rescaled_sum, live=live_rescaled,
    turn_on=lambda: fields(model=unet.unet(**SMALL, rescale=True)),
    proof='tests/models/test_unet.py::test_residual_block_starts_as_the_identity_over_root_two_if_rescaled'),
  Case(unet.concatenated, live=live_skips,
    turn_on=lambda: fields(model=unet.unet(**SMALL, skips=True)),
    proof='tests/models/test_unet.py::test_defaults_are_the_cifar10_network_of_ddpm'),
  Case(magnitude.unet, live=live_magnitude,
    turn_on=lambda: fields(model=magnitude.unet(**SMALL)),
    proof='tests/models/test_magnitude.py::test_blocks_keep_unit_variance_at_initialization'),
  Case(rematerialization.rematerialize, live=live_rematerialization,
    turn_on=lambda: fields(model=rematerialization.rematerialize(unet.unet(**SMALL))),
    proof='tests/models/test_rematerialization.py::test_value_and_gradient_stay_dropout_included'),
  Case(precision.bfloat16, live=live_bfloat16,
    turn_on=lambda: fields(model=precision.bfloat16(unet.unet(**SMALL))),
    proof='tests/models/test_precision.py'
          '::test_bfloat16_stays_near_float32_in_value_and_gradient_and_returns_float32'),
)  # fmt: skip
