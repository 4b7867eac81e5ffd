"""The network that the benchmarks measure against is the same function: only where PyTorch is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sizes
from diffusion.models import unet
from diffusion.types import Conditioning

torch = pytest.importorskip('torch')


@pytest.mark.parametrize('name', sizes.SIZES)
def test_the_peer_is_the_same_function_of_the_same_weights(name):
  from benchmarks import torch_peer

  size = sizes.SIZES[name]._replace(width=8)
  model = unet.unet(
    size.width, size.multipliers, size.blocks, size.attention, size.dropout, size.num_classes, zero_outputs=False
  )  # fmt: skip
  x = np.random.default_rng(0).normal(size=(2, *size.shape)).astype(np.float32)
  noise, label = np.float32([0.3, -0.7]), np.int32([-1, 3 % (size.num_classes + 1)])
  told = Conditioning(jnp.asarray(label), jnp.zeros((2, 0)))
  variables = model.init(jax.random.key(0), x, noise, told)
  ours = jax.jit(lambda v: model.apply(v, x, noise, told)[0])(variables)
  peer = torch_peer.UNet(size)
  torch_peer.load(peer, jax.tree.map(np.asarray, variables['params']))
  peer.eval()
  with torch.no_grad():
    images = torch.tensor(x).permute(0, 3, 1, 2)
    theirs = peer(images, torch.tensor(noise), torch.tensor(label).long())
  assert sum(p.numel() for p in peer.parameters()) == sum(
    leaf.size for leaf in jax.tree.leaves(variables)
  )
  np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=2e-5)
