"""What the benchmarks of speed measure: each function makes its contender inside a process of its own.

They return (work, images in it, facts), as `contest.Contender` wants; the facts hold the parameters and the
floating-point operations of an image, of products and convolutions alone.
"""

import importlib
import sys
import types
from typing import Any

from benchmarks import sizes
from benchmarks.sizes import Size

_SAMPLING_STEPS = 25
_PEERS = "the peers are not installed: pip install -e '.[peers]'"


def step(size: Size, per_dispatch: int = 1, cpu_devices: int = 0, narrow: bool = False):
  """This project's training step, as runs make it."""
  import jax

  from diffusion import devices
  from diffusion.training import assembly

  devices.configure(size.batch, cpu_devices)
  devices.choose_convolutions(min(size.shape[:2]))
  experiment = sizes.experiment(size, per_dispatch, narrow)
  loaded = assembly.load_data(experiment)
  first = assembly.init_state(experiment, loaded.train[0][:1], loaded.units)
  dispatch = assembly.programs(experiment, loaded).dispatch
  state = devices.replicate(first)

  def work() -> None:
    nonlocal state
    state, metrics = dispatch(state)
    devices.wait(metrics)

  flops = assembly.step_flops(experiment, loaded, first)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(first.params))
  del first
  devices.give_back_memory()  # as a run does
  return work, size.batch * per_dispatch, _facts(parameters, flops)


def sample(size: Size, cpu_devices: int = 0, narrow: bool = False):
  """This project's DDIM sampler, as runs use it."""
  import jax
  import numpy as np

  from diffusion import devices
  from diffusion.training import assembly

  devices.configure(size.batch, cpu_devices)
  devices.choose_convolutions(min(size.shape[:2]))
  experiment = sizes.experiment(size, 1, narrow)
  experiment = experiment._replace(
    sampling=experiment.sampling._replace(steps=_SAMPLING_STEPS, per_class=size.batch)
  )
  loaded = assembly.load_data(experiment)
  state = assembly.init_state(experiment, loaded.train[0][:1], loaded.units)
  draw = assembly.programs(experiment, loaded).sample
  weights = assembly.weights(experiment, devices.replicate(state))
  label, number = np.zeros(size.batch, np.int32), np.arange(size.batch)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  return lambda: draw(weights, label, number), size.batch, _facts(parameters, None)


def pytorch_step(size: Size, device: str = 'cpu', compiled: bool = False, narrow: bool = False):
  """The same training step of the same network in PyTorch."""
  torch_peer, network = _pytorch(size, device, compiled)
  return _torch_step(torch_peer, network, size, device, narrow)


def pytorch_sample(size: Size, device: str = 'cpu', compiled: bool = False, narrow: bool = False):
  """The same sampler of the same network in PyTorch."""
  torch_peer, network = _pytorch(size, device, compiled)
  draw = torch_peer.make_sample(network, size, device, _SAMPLING_STEPS, narrow)
  return lambda: draw().cpu(), size.batch, _facts(_count(network), None)


def lucidrains_step(size: Size, device: str = 'cpu', compiled: bool = False, narrow: bool = False):
  """The training step with the U-Net of denoising-diffusion-pytorch, another network of nearly this size."""
  torch_peer, _ = _pytorch(size._replace(width=8), device, False)
  import torch

  for name in ('torchvision', 'torchvision.transforms', 'torchvision.utils'):
    try:  # its U-Net needs nothing of it, but its module imports it; there are hosts without a build of it
      importlib.import_module(name)
    except ImportError:
      sys.modules[name] = types.ModuleType(name)
  for name in ('transforms', 'utils'):
    setattr(sys.modules['torchvision'], name, sys.modules[f'torchvision.{name}'])
  from denoising_diffusion_pytorch import Unet

  class Network(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.inner = Unet(
        size.width, dim_mults=size.multipliers, channels=size.shape[2], dropout=size.dropout
      )

    def forward(self, x, noise, label):
      return self.inner(x, noise)

  network = Network().to(device)
  network = torch.compile(network) if compiled else network
  return _torch_step(torch_peer, network, size, device, narrow)


def _pytorch(size: Size, device: str, compiled: bool):
  try:
    from benchmarks import torch_peer
  except ImportError as error:
    raise ImportError(_PEERS) from error
  import torch

  network = torch_peer.UNet(size).to(device)
  if device != 'cpu':
    network = network.to(memory_format=torch.channels_last)
  return torch_peer, torch.compile(network) if compiled else network


def _torch_step(torch_peer, network, size: Size, device: str, narrow: bool):
  import torch

  images = torch.tensor(sizes.images(size)).permute(0, 3, 1, 2).contiguous().to(device)
  one = torch_peer.make_step(network, size, device, images, narrow)
  flops = torch_peer.flops(one) // size.batch

  def work() -> None:
    one().item()

  return work, size.batch, _facts(_count(network), flops)


def _count(network) -> int:
  return sum(parameter.numel() for parameter in network.parameters())


def _facts(parameters: int, flops: int | None) -> dict[str, Any]:
  return {'parameters': parameters, 'MFLOP/image': None if flops is None else round(flops / 1e6)}
