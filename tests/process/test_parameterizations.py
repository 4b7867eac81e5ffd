"""Parameterizations: each maps the network's output to both halves of z, and all of them agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.process import marginals, parameterizations
from diffusion.types import Marginal

ALL = {
  'eps': parameterizations.eps,
  'x0': parameterizations.x0,
  'v': parameterizations.v,
}
LOG_SNR = np.linspace(-15, 15, 31)


def draws(seed=0):
  """(x0, eps, marginal, z) on 31 noise levels, in float64."""
  rng = np.random.default_rng(seed)
  x0, eps = rng.normal(size=(2, LOG_SNR.size, 4, 3))
  marginal = marginals.variance_preserving(jnp.asarray(LOG_SNR))
  alpha, sigma = (np.asarray(c)[:, None, None] for c in marginal)
  return x0, eps, marginal, alpha * x0 + sigma * eps


@pytest.mark.parametrize('name', ALL)
def test_decoding_the_target_gives_the_data_and_the_noise(name, x64):
  x0, eps, marginal, z = draws()
  parameterization = ALL[name]()
  found = parameterization.decode(parameterization.target(x0, eps, marginal), z, marginal)
  np.testing.assert_allclose(found.x0, x0, atol=1e-10)
  np.testing.assert_allclose(found.eps, eps, atol=1e-10)


@pytest.mark.parametrize('name', ALL)
def test_decoding_anything_gives_two_halves_of_z(name, x64):
  *_, marginal, z = draws()
  output = np.random.default_rng(1).normal(size=z.shape)
  found = ALL[name]().decode(output, z, marginal)
  alpha, sigma = (np.asarray(c)[:, None, None] for c in marginal)
  np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, z, atol=1e-10)


@pytest.mark.parametrize('other', ALL)
@pytest.mark.parametrize('name', ALL)
def test_one_prediction_is_the_same_in_every_parameterization(name, other, x64):
  *_, marginal, z = draws()
  first, second = ALL[name](), ALL[other]()
  output = np.random.default_rng(2).normal(size=z.shape)
  prediction = first.decode(output, z, marginal)
  again = second.decode(second.target(*prediction, marginal), z, marginal)
  scale = 1 + np.abs(prediction.x0).max()  # an eps output at log-SNR -15 means an x0 of thousands
  np.testing.assert_allclose(again.x0, prediction.x0, atol=1e-10 * scale)
  scale = 1 + np.abs(prediction.eps).max()
  np.testing.assert_allclose(again.eps, prediction.eps, atol=1e-10 * scale)


@pytest.mark.parametrize('name', ALL)
def test_network_sees_z_and_a_quarter_of_the_log_noise_to_signal_ratio(name, x64):
  *_, marginal, z = draws()
  inputs, noise = ALL[name]().encode(z, marginal)
  np.testing.assert_array_equal(inputs, z)
  np.testing.assert_allclose(noise, -LOG_SNR / 8, atol=1e-12)  # log(sigma / alpha) = -log_snr / 2


def test_noise_input_is_finite_at_the_widest_ends_in_float32():
  marginal = marginals.variance_preserving(jnp.array([-80.0, 80.0]))
  _, noise = parameterizations.v().encode(jnp.zeros((2, 3)), marginal)
  np.testing.assert_allclose(noise, [10, -10], rtol=1e-5)


def test_v_is_the_velocity_of_z_along_the_circle(x64):
  """With z = cos(phi) x0 + sin(phi) eps, v = dz / dphi: by central differences, not by its formula."""
  x0, eps, marginal, _ = draws()
  phi = np.arctan2(np.asarray(marginal.sigma), np.asarray(marginal.alpha))[:, None, None]
  step = 1e-5

  def z(angle):
    return np.cos(angle) * x0 + np.sin(angle) * eps

  velocity = (z(phi + step) - z(phi - step)) / (2 * step)
  np.testing.assert_allclose(parameterizations.v().target(x0, eps, marginal), velocity, atol=1e-9)


@pytest.mark.parametrize('name', ALL)
def test_a_process_that_does_not_preserve_variance_decodes_as_well(name, x64):
  x0, eps, *_ = draws()
  marginal = Marginal(jnp.full(31, 1.5), jnp.geomspace(0.01, 50.0, 31))
  z = 1.5 * x0 + np.asarray(marginal.sigma)[:, None, None] * eps
  parameterization = ALL[name]()
  found = parameterization.decode(parameterization.target(x0, eps, marginal), z, marginal)
  np.testing.assert_allclose(found.x0, x0, atol=1e-10)
  np.testing.assert_allclose(found.eps, eps, atol=1e-10)


@pytest.mark.parametrize('log_snr', [-15.0, 15.0])
def test_v_keeps_its_digits_in_float32_at_both_ends(log_snr):
  rng = np.random.default_rng(3)
  x0, eps = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(2, 1, 1000)))
  marginal = marginals.variance_preserving(jnp.array([log_snr]))
  z = marginal.alpha[:, None] * x0 + marginal.sigma[:, None] * eps
  v = parameterizations.v()
  found = jax.jit(v.decode)(v.target(x0, eps, marginal), z, marginal)
  np.testing.assert_allclose(found.x0, x0, atol=2e-6)
  np.testing.assert_allclose(found.eps, eps, atol=2e-6)
