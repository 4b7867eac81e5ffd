"""Embeddings of the noise level and of the label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.models import embeddings
from diffusion.types import NULL, Conditioning


def test_fourier_features_are_waves_of_geometric_frequencies(x64):
  noise = jnp.linspace(-2.0, 2.0, 9)
  features = embeddings.fourier(noise, 16)
  assert features.shape == (9, 16)
  cosine, sine = np.asarray(features[:, :8]), np.asarray(features[:, 8:])
  np.testing.assert_allclose(cosine**2 + sine**2, 1, atol=1e-12)
  # The angular frequency is the derivative of the sine at zero.
  slope = np.asarray(jax.jacfwd(lambda c: embeddings.fourier(c, 16))(jnp.zeros(1)))[0, 8:, 0]
  np.testing.assert_allclose(slope[[0, -1]] / (2 * np.pi), [1 / 16, 16], rtol=1e-9)
  np.testing.assert_allclose(slope[1:] / slope[:-1], 256 ** (1 / 7), rtol=1e-9)


def test_fourier_features_tell_noise_levels_apart():
  """Every pair of levels at least an eighth of a nat apart over 30 nats, in the width of the smallest U-Net."""
  log_snr = jnp.linspace(-15.0, 15.0, 241)
  features = np.asarray(embeddings.fourier(-log_snr / 8, 8))
  distance = np.linalg.norm(features[:, None] - features[None], axis=-1)
  assert distance[~np.eye(241, dtype=bool)].min() > 0.02


def test_an_odd_number_of_features_is_an_error():
  with pytest.raises(ValueError, match='features .* got 7'):
    embeddings.fourier(jnp.zeros(2), 7)


def told(label, size=0):
  """Labels, and augmentation labels of zero."""
  return Conditioning(label, jnp.zeros((len(label), size)))


def test_every_label_has_a_vector_of_its_own_and_the_null_label_too():
  module = embeddings.ConditioningEmbedding(16, 3)
  noise, labels = jnp.zeros(4), jnp.array([0, 1, 2, NULL])
  variables = jax.jit(module.init)(jax.random.key(0), noise, told(labels))
  out = np.asarray(module.apply(variables, noise, told(labels)))
  assert out.shape == (4, 16)
  assert len(np.unique(out, axis=0)) == 4
  # Only the row of its own label moves an embedding.
  gradient = jax.jit(jax.jacrev(lambda v: module.apply(v, noise, told(labels)).sum(-1)))(variables)
  table = np.abs(np.asarray(gradient['params']['Embed_0']['embedding'])).sum(-1)
  assert table.shape == (4, 4)
  np.testing.assert_array_equal(table > 0, np.eye(4, dtype=bool))


def test_classes_are_as_loud_as_the_noise_level_from_the_start():
  module = embeddings.ConditioningEmbedding(64, 100)
  start = jax.jit(module.init)(jax.random.key(0), jnp.zeros(1), told(jnp.zeros(1, int)))
  table = np.asarray(start['params']['Embed_0']['embedding'])
  assert table.shape == (101, 64)
  assert abs(table.var() - 1) < 5 * np.sqrt(2 / table.size)


def test_without_classes_the_label_is_not_read():
  module = embeddings.ConditioningEmbedding(16, 0)
  variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros(2), told(jnp.zeros(2, int)))
  assert 'Embed_0' not in variables['params']
  noise = jnp.array([0.3, -0.8])
  np.testing.assert_array_equal(
    module.apply(variables, noise, told(jnp.zeros(2, int))),
    module.apply(variables, noise, told(jnp.ones(2, int))),
  )
  out = np.asarray(module.apply(variables, noise, told(jnp.zeros(2, int))))
  assert np.abs(out[0] - out[1]).max() > 1e-3  # but the noise level is


def test_an_augmentation_label_of_zero_is_no_label_and_others_are_heard():
  """Sampling passes no label at all; that equals label zero for a network that has learned with labels."""
  module = embeddings.ConditioningEmbedding(16, 0)
  noise, label = jnp.array([0.3, -0.8]), jnp.zeros(2, int)
  variables = module.init(jax.random.key(0), noise, told(label, 3))
  assert {n: p.shape for n, p in variables['params']['augment'].items()} == {
    'kernel': (3, 16)
  }  # no bias
  silent = module.apply(variables, noise, told(label))
  np.testing.assert_array_equal(module.apply(variables, noise, told(label, 3)), silent)
  heard = module.apply(variables, noise, Conditioning(label, jnp.eye(3)[:2]))
  assert np.abs(np.asarray(heard - silent)).max(1).min() > 1e-3
