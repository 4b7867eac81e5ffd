"""The networks that the benchmarks measure against are the same functions: only where PyTorch is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import engine, sizes
from diffusion.models import unet
from diffusion.types import Conditioning

torch = pytest.importorskip('torch')


def compare(size, model):
  """Both networks with the same random weights: as many parameters, and the same output."""
  from benchmarks import torch_peer

  x = np.random.default_rng(0).normal(size=(2, *size.shape)).astype(np.float32)
  noise, label = np.float32([0.3, -0.7]), np.int32([-1, 3 % (size.num_classes + 1)])
  told = Conditioning(jnp.asarray(label), jnp.zeros((2, 0)))
  variables = model.init(jax.random.key(0), x, noise, told)
  # What starts at zero would hide the rest.
  random = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda leaf: leaf + 0.05 * random.normal(size=leaf.shape).astype(np.float32), variables
  )
  ours = jax.jit(lambda v: model.apply(v, x, noise, told)[0])(variables)
  peer = torch_peer.network(size)
  torch_peer.load(peer, jax.tree.map(np.asarray, variables['params']))
  peer.eval()
  with torch.no_grad():
    images = torch.tensor(x).permute(0, 3, 1, 2)
    theirs = peer(images, torch.tensor(noise), torch.tensor(label).long()).permute(0, 2, 3, 1)
  assert sum(p.numel() for p in peer.parameters()) == sum(
    leaf.size for leaf in jax.tree.leaves(variables)
  )
  assert np.abs(ours).max() > 0.1
  np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(ours).max())


@pytest.mark.parametrize('name', sizes.SIZES)
def test_the_peer_is_the_same_function_of_the_same_weights(name):
  size = sizes.SIZES[name]._replace(width=8)
  compare(size, unet.unet(
    size.width, size.multipliers, size.blocks, size.attention, size.dropout, size.num_classes, zero_outputs=False
  ))  # fmt: skip


def test_so_is_the_transformer_s():
  size = sizes.DIT_B._replace(shape=(8, 12, 3), width=48, depth=2, num_classes=4, dropout=0.1)
  compare(size, engine.network(size))
