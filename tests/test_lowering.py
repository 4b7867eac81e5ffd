"""The training step lowers for platforms that the tests do not run on."""

import jax
import jax.numpy as jnp
import pytest

from diffusion import devices
from diffusion.models import precision, unet
from diffusion.training import step as steps
from diffusion.types import Rows
from tests.training import tiny


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
@pytest.mark.parametrize('narrow', [False, True])
def test_the_step_lowers_for_other_platforms(platform, narrow):
  """K scanned steps with attention, dropout, batches from the device and means over an axis, as one program."""
  model = unet.unet(8, (1, 2), 1, (8,), 0.1, num_classes=10)
  experiment = tiny.images(model=precision.bfloat16(model) if narrow else model)
  split, state, data = tiny.shapes(experiment)
  step = steps.make_step(experiment, split.units)

  def run(state, data, given):
    rows = Rows(jnp.arange(experiment.batch_size), experiment.batch_size)

    def mean(tree):
      return jax.lax.pmean(tree, 'devices')

    return devices.repeat(lambda s, now: step(s, data, now, rows, mean), state, given)

  one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), state)
  whole = jax.jit(jax.vmap(run, in_axes=(0, None, None), axis_name='devices', axis_size=1))
  given = jnp.zeros((2, experiment.batch_size), jnp.int32)
  exported = jax.export.export(whole, platforms=[platform])(one, data, given)
  text = exported.mlir_module()
  assert exported.platforms == (platform,)
  assert 'stablehlo.convolution' in text
  assert ('bf16' in text) == narrow
