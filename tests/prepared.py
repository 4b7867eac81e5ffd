"""A TFDS set of random digits, for tests that read files."""

import pytest

from benchmarks import prepared


def mnist(folder, train=9, test=4):
  """MNIST's official files with a few random digits, prepared in folder / 'sets'; split -> (images, labels)."""
  pytest.importorskip('tensorflow_datasets')
  return prepared.noise_as_mnist(folder, train, test)
