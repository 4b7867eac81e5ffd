"""Initial weights: their variance, that they keep or gain what they say, and zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.models import initializers, unet
from diffusion.types import Conditioning

VARIANCE = {  # of fan-in n and fan-out m
  'lecun': lambda n, m: 1 / n,
  'he': lambda n, m: 2 / n,
  'xavier': lambda n, m: 2 / (n + m),
}


@pytest.mark.parametrize('name', VARIANCE)
@pytest.mark.parametrize('shape', [(400, 300), (3, 3, 64, 96)])
def test_variance_of_dense_and_convolution_kernels(name, shape):
  w = np.asarray(getattr(initializers, name)()(jax.random.key(0), shape, jnp.float32))
  taps = int(np.prod(shape[:-2]))
  expected = VARIANCE[name](taps * shape[-2], taps * shape[-1])
  np.testing.assert_allclose(w.var(), expected, rtol=0.05)
  assert abs(w.mean()) < 5 * np.sqrt(expected / w.size)


@pytest.mark.parametrize('shape', [(40, 25), (25, 40), (3, 3, 4, 20)])
def test_orthogonal_rows_or_columns(shape):
  w = np.asarray(initializers.orthogonal(1.5)(jax.random.key(0), shape, jnp.float32), np.float64)
  matrix = w.reshape(-1, shape[-1])
  small = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
  np.testing.assert_allclose(small, 2.25 * np.eye(len(small)), atol=1e-5)


@pytest.mark.parametrize('zero', [True, False])
def test_initializers_reach_the_kernels_of_a_network(zero):
  def start(make):
    model = unet.unet(8, (1, 2), 1, (), kernel_init=make(), zero_outputs=zero)
    told = Conditioning(jnp.zeros(1, int), jnp.zeros((1, 0)))
    arguments = (jax.random.key(0), jnp.zeros((1, 8, 8, 2)), jnp.zeros(1), told)
    return model.init(*arguments)['params']

  lecun, he = start(initializers.lecun), start(initializers.he)
  for path in (('stem',), ('ResidualBlock_0', 'conv_in'), ('down_0',)):
    a, b = lecun, he
    for name in path:
      a, b = a[name], b[name]
    np.testing.assert_allclose(b['kernel'], np.sqrt(2) * np.asarray(a['kernel']), rtol=1e-5)
  ends = [lecun['output']['kernel'], lecun['ResidualBlock_0']['conv_out']['kernel']]
  assert all(np.any(end) != zero for end in ends)


def test_a_gain_out_of_range_is_refused():
  with pytest.raises(ValueError, match='gain .* got 0'):
    initializers.orthogonal(0)
