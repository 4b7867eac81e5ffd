"""Processes: the coefficients of z = alpha x0 + sigma eps."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.process import marginals


def test_variance_preserving_is_on_the_unit_circle_at_every_log_snr():
  log_snr = np.linspace(-80, 80, 321)
  alpha, sigma = marginals.variance_preserving(jnp.asarray(log_snr, jnp.float32))
  alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
  assert np.isfinite(alpha).all()
  assert np.isfinite(sigma).all()
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=3e-7)
  # Neither tail loses its digits: 80 nats are e^-40 in the smaller coefficient.
  np.testing.assert_allclose(alpha, 1 / np.sqrt(1 + np.exp(-log_snr)), rtol=1e-5)
  np.testing.assert_allclose(sigma, 1 / np.sqrt(1 + np.exp(log_snr)), rtol=1e-5)


def test_variance_preserving_has_the_log_snr_it_is_given(x64):
  log_snr = jnp.linspace(-80.0, 80.0, 101).reshape(101, 1)
  alpha, sigma = marginals.variance_preserving(log_snr)
  assert alpha.shape == sigma.shape == (101, 1)
  np.testing.assert_allclose(2 * np.log(alpha / sigma), log_snr, atol=1e-11)


PROCESSES = {
  'variance preserving': (marginals.variance_preserving, lambda a, s: a**2 + s**2),
  'variance exploding': (marginals.variance_exploding, lambda a, s: a),
  'rectified flow': (marginals.rectified_flow, lambda a, s: a + s),
  'sub-variance preserving': (marginals.sub_variance_preserving, lambda a, s: s + a**2),
}


@pytest.mark.parametrize('name', PROCESSES)
def test_a_process_has_its_log_snr_and_its_law(name, x64):
  """2 log(alpha / sigma) is what was asked, and the one quantity that defines the process is 1 everywhere."""
  process, law = PROCESSES[name]
  log_snr = jnp.linspace(-80.0, 80.0, 161)
  alpha, sigma = process(log_snr)
  np.testing.assert_allclose(2 * (np.log(alpha) - np.log(sigma)), log_snr, atol=1e-11)
  np.testing.assert_allclose(law(np.asarray(alpha), np.asarray(sigma)), 1, rtol=1e-13)


@pytest.mark.parametrize('name', PROCESSES)
def test_a_process_is_finite_and_positive_in_float32(name):
  for coefficient in PROCESSES[name][0](jnp.linspace(-80.0, 80.0, 161)):
    assert np.isfinite(coefficient).all()
    assert (np.asarray(coefficient) > 0).all()


@pytest.mark.parametrize('shape', [(3,), (3, 2), (3, 4, 5, 6)])
def test_expand_lines_coefficients_up_with_rows(shape):
  coefficient = jnp.array([1.0, 2.0, 4.0])
  product = np.asarray(marginals.expand(coefficient, jnp.ones(shape)) * jnp.ones(shape))
  assert product.shape == shape
  for row, value in enumerate([1.0, 2.0, 4.0]):
    assert (product[row] == value).all()
