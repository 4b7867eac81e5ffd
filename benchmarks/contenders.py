"""What the benchmarks of speed measure: each function makes its contender inside a process of its own.

They return (work, images in it, facts), as `contest.Contender` wants; the facts hold the parameters and the
floating-point operations of an image, of products and convolutions alone.
"""

import importlib
import pathlib
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

from benchmarks import checkouts, sizes
from benchmarks.sizes import Size, Transformer

_SAMPLING_STEPS = 25
_PEERS = "the peers are not installed: pip install -e '.[peers]'"


def step(
  size: Size, per_dispatch: int = 1, cpu_devices: int = 0, narrow: bool = False, members: int = 0
):
  """This project's training step, as runs make it; of a population of so many seeds where `members` is not 0."""
  from benchmarks import engine

  engine.configure(size.batch, cpu_devices)
  return _ours(
    engine, lambda seed: engine.experiment(size, per_dispatch, narrow, seed=seed), members
  )


def mixture_step(per_dispatch: int, cpu_devices: int = 0, members: int = 0):
  """The same of the mixture experiment."""
  from benchmarks import engine

  engine.configure(sizes.MIXTURE_BATCH, cpu_devices)
  return _ours(engine, lambda seed: engine.mixture(seed, per_dispatch=per_dispatch), members)


def _ours(engine: Any, build: Callable[[Any], Any], members: int):
  if members:
    dispatch, images = engine.many(build, members)
    return lambda: engine.wait(dispatch()), images, {}
  training = engine.training(build(0))
  state = training.first()

  def work() -> None:
    nonlocal state
    state, metrics = training.dispatch(state)
    engine.wait(metrics)

  return work, training.images, _facts(training.parameters, training.flops())


def first_row(root: str, experiment: str):
  """A process of an experiment's smoke run with the package of the checkout `root`, from its start to its first row."""

  def work() -> None:
    with tempfile.TemporaryDirectory() as folder:
      rows = pathlib.Path(folder, 'run', 'metrics.jsonl')
      log = pathlib.Path(folder, 'log')
      command = [
        sys.executable,
        '-m',
        f'experiments.{experiment}',
        '--smoke',
        f'--workdir={rows.parent}',
      ]
      with log.open('wb') as file:
        process = subprocess.Popen(
          command, cwd=root, env=checkouts.environment(root), stdout=file, stderr=file
        )
      while not (rows.exists() and b'\n' in rows.read_bytes()):
        if process.poll() is not None:
          raise RuntimeError(f'{" ".join(command)} ended without a row: {log.read_text()}')
        time.sleep(0.005)
      process.kill()
      process.wait()

  return work, 1, {}


def sample(size: Size, cpu_devices: int = 0, narrow: bool = False):
  """This project's DDIM sampler, as runs use it."""
  from benchmarks import engine

  engine.configure(size.batch, cpu_devices)
  made = engine.experiment(size, 1, narrow)
  return engine.sampler(made, size.batch, _SAMPLING_STEPS), size.batch, {}


def pytorch_step(
  size: Size | Transformer, device: str = 'cpu', compiled: bool = False, narrow: bool = False
):
  """The same training step of the same network in PyTorch."""
  torch_peer, network = peer(size, device, compiled)
  return _torch_step(torch_peer, network, size, device, narrow)


def pytorch_sample(size: Size, device: str = 'cpu', compiled: bool = False, narrow: bool = False):
  """The same sampler of the same network in PyTorch."""
  torch_peer, network = peer(size, device, compiled)
  draw = torch_peer.make_sample(network, size, device, _SAMPLING_STEPS, narrow)
  return lambda: draw().cpu(), size.batch, {}


def lucidrains_step(size: Size, device: str = 'cpu', compiled: bool = False, narrow: bool = False):
  """The training step with the U-Net of denoising-diffusion-pytorch, another network of nearly this size."""
  torch_peer, _ = peer(size._replace(width=8), device, False)
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


def peer(size: Size | Transformer, device: str, compiled: bool, backend: str = 'inductor'):
  """(module `torch_peer`, the network of a size on a device); raises ImportError where there is no PyTorch."""
  try:
    from benchmarks import torch_peer
  except ImportError as error:
    raise ImportError(_PEERS) from error
  import torch

  network = torch_peer.network(size).to(device)
  if device != 'cpu':
    network = network.to(memory_format=torch.channels_last)
  return torch_peer, torch.compile(network, backend=backend) if compiled else network


def _torch_step(torch_peer, network, size: Size | Transformer, device: str, narrow: bool):
  import torch

  images = torch.tensor(sizes.images(size)).permute(0, 3, 1, 2).contiguous().to(device)
  one = torch_peer.make_step(network, size, device, images, narrow)
  flops = torch_peer.flops(one) // size.batch

  def work() -> None:
    one().item()

  return work, size.batch, _facts(_count(network), flops)


def _count(network) -> int:
  return sum(parameter.numel() for parameter in network.parameters())


def _facts(parameters: int, flops: int) -> dict[str, Any]:
  return {'parameters': parameters, 'MFLOP/image': round(flops / 1e6)}
