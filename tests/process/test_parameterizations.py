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
  'score': parameterizations.score,
  'velocity': parameterizations.velocity,
  'edm': lambda: parameterizations.edm(0.7),
}
PLAIN = [name for name in ALL if name != 'edm']  # the network sees z itself
LOG_SNR = np.linspace(-15, 15, 31)


def draws(seed=0):
  """(x0, eps, marginal, z) on 31 noise levels, in float64."""
  rng = np.random.default_rng(seed)
  x0, eps = jnp.asarray(rng.normal(size=(2, LOG_SNR.size, 4, 3)))
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
  output = jnp.asarray(np.random.default_rng(1).normal(size=z.shape))
  found = ALL[name]().decode(output, z, marginal)
  alpha, sigma = (np.asarray(c)[:, None, None] for c in marginal)
  np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, z, atol=1e-10)


@pytest.mark.parametrize('other', ALL)
@pytest.mark.parametrize('name', ALL)
def test_one_prediction_is_the_same_in_every_parameterization(name, other, x64):
  *_, marginal, z = draws()
  first, second = ALL[name](), ALL[other]()
  output = jnp.asarray(np.random.default_rng(2).normal(size=z.shape))
  prediction = first.decode(output, z, marginal)
  again = second.decode(second.target(*prediction, marginal), z, marginal)
  scale = 1 + np.abs(prediction.x0).max()  # an eps output at log-SNR -15 means an x0 of thousands
  np.testing.assert_allclose(again.x0, prediction.x0, atol=1e-10 * scale)
  scale = 1 + np.abs(prediction.eps).max()
  np.testing.assert_allclose(again.eps, prediction.eps, atol=1e-10 * scale)


@pytest.mark.parametrize('name', PLAIN)
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


PROCESSES = (
  marginals.variance_preserving,
  marginals.variance_exploding,
  marginals.rectified_flow,
  marginals.sub_variance_preserving,
)


@pytest.mark.parametrize('process', PROCESSES, ids=lambda f: f.__name__)
@pytest.mark.parametrize('other', ALL)
@pytest.mark.parametrize('name', ALL)
def test_round_trips_between_all_parameterizations(name, other, process):
  """(x0, eps) -> output of one -> prediction -> output of the other -> prediction, at 50 log-SNR from -15 to 15.

  Relative to the larger of the halves; in float32 within 8 units in the last place times the condition of z.
  """
  log_snr = np.linspace(-15, 15, 50)
  rng = np.random.default_rng(0)
  draws = rng.normal(size=(2, 50, 64))
  for dtype, wide in ((np.float64, True), (np.float32, False)):
    with jax.enable_x64(wide):
      x0, eps = (jnp.asarray(a, dtype) for a in draws)
      marginal = process(jnp.asarray(log_snr, dtype))
      alpha, sigma = (c[:, None] for c in marginal)
      z = alpha * x0 + sigma * eps
      first, second = ALL[name](), ALL[other]()
      prediction = first.decode(first.target(x0, eps, marginal), z, marginal)
      found = second.decode(second.target(*prediction, marginal), z, marginal)
      assert found.x0.dtype == dtype
      condition = np.maximum(1, np.maximum(sigma / alpha, alpha / sigma))
      limit = 1e-10 if wide else 8 * 2.0**-23 * condition
      size = max(np.abs(draws[0]).max(), np.abs(draws[1]).max())
      assert (np.abs(np.asarray(found.x0) - draws[0]) <= limit * size).all()
      assert (np.abs(np.asarray(found.eps) - draws[1]) <= limit * size).all()


@pytest.mark.parametrize('sigma_data', [0.3, 0.5, 2.0])
def test_edm_has_unit_variance_at_its_input_and_its_target(sigma_data, x64):
  """The defining property, by moments: data of deviation sigma_data, any process, every noise level."""
  levels = jnp.array([-9.0, -2.0, 0.0, 3.0, 9.0])
  rng = np.random.default_rng(4)
  x0, eps = sigma_data * rng.normal(size=(5, 200_000)), rng.normal(size=(5, 200_000))
  made = parameterizations.edm(sigma_data)
  for process in PROCESSES:
    marginal = process(levels)
    z = np.asarray(marginal.alpha)[:, None] * x0 + np.asarray(marginal.sigma)[:, None] * eps
    inputs, noise = made.encode(jnp.asarray(z), marginal)
    np.testing.assert_allclose(np.var(inputs, axis=1), 1, rtol=0.02)
    np.testing.assert_allclose(
      np.var(made.target(jnp.asarray(x0), jnp.asarray(eps), marginal), axis=1), 1, rtol=0.02
    )
    np.testing.assert_allclose(noise, -np.asarray(levels) / 8, atol=1e-12)


def test_score_output_is_the_gradient_of_the_log_density(x64):
  """For a point mass at x0 the score of z is -(z - alpha x0) / sigma^2."""
  x0, eps, marginal, z = draws()
  alpha, sigma = (np.asarray(c)[:, None, None] for c in marginal)
  target = parameterizations.score().target(x0, eps, marginal)
  np.testing.assert_allclose(target, -(z - alpha * x0) / sigma**2, rtol=1e-6)


@pytest.mark.parametrize('value', [0.0, -1.0, np.nan, np.inf])
def test_a_bad_sigma_data_is_named(value):
  with pytest.raises(ValueError, match=f'sigma_data .* got {value}'):
    parameterizations.edm(value)


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
