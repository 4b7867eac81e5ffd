"""Writes what the tests of the Inception compare with; needs torch and torch-fidelity, which no test needs.

  pip install torch torch-fidelity && python tests/evaluation/torch/make.py

features.npz  what torch-fidelity's Inception-v3 makes of `images()` with the weights `random_array` gives it
stream.pth, archive.pth  a small state dictionary, in both of PyTorch's formats
"""

import pathlib
import tempfile
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def random_array(name, shape):
  """An array of the state dictionary, from its name: activations keep their size, statistics are not trivial."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  if name.endswith('conv.weight'):
    return (random.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
  if name.endswith(('bn.weight', 'bn.running_var')):
    return random.uniform(0.5, 1.5, shape).astype(np.float32)
  return (0.1 * random.normal(size=shape)).astype(np.float32)


def images():
  """Two uint8 images that are not square."""
  return np.random.default_rng(0).integers(0, 256, (2, 40, 52, 3), dtype=np.uint8)


def small():
  """A state dictionary of three types, one array a transposed view."""
  base = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
  return {
    'a.weight': base,
    'a.view': base.T,
    'b.half': base[0].astype(np.float16),
    'steps': np.array(5),
  }


def main():
  """Writes the three files."""
  import torch
  from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

  class Unloaded(FeatureExtractorInceptionV3):
    def load_state_dict(self, state, **more):
      """Leaves the weights to what comes below."""

  with tempfile.NamedTemporaryFile(suffix='.pth') as empty:
    torch.save({}, empty.name)
    network = Unloaded('inception', ['2048'], feature_extractor_weights_path=empty.name)
  state = {
    name: torch.from_numpy(random_array(name, tuple(value.shape)))
    for name, value in network.state_dict().items()
    if value.dtype == torch.float32
  }
  torch.nn.Module.load_state_dict(network, state, strict=False)
  with torch.no_grad():
    (found,) = network(torch.from_numpy(images()).permute(0, 3, 1, 2))
  np.savez_compressed(HERE / 'features.npz', features=found.numpy())
  named = {name: torch.from_numpy(value) for name, value in small().items()}
  named['a.view'] = named['a.weight'].T  # shares its storage
  torch.save(named, HERE / 'archive.pth')
  torch.save(named, HERE / 'stream.pth', _use_new_zipfile_serialization=False)


if __name__ == '__main__':
  main()
