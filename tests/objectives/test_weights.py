"""Weights: every name means what it says on the loss it names, whichever loss carries the factor."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.objectives import weights
from diffusion.process import marginals, parameterizations

LOG_SNR = np.linspace(-15, 15, 61)


def errors():
  """Mean squared errors of x0, eps and v of one wrong prediction on 61 levels, in NumPy from its definition."""
  rng = np.random.default_rng(0)
  alpha, sigma = (1 / np.sqrt(1 + np.exp(sign * LOG_SNR))[:, None] for sign in (-1, 1))
  x0, eps, guess = rng.normal(size=(3, LOG_SNR.size, 12))
  z = alpha * x0 + sigma * eps
  noise_guess = (z - alpha * guess) / sigma
  v, v_guess = alpha * eps - sigma * x0, alpha * noise_guess - sigma * guess
  pairs = {'x0': (guess, x0), 'eps': (noise_guess, eps), 'v': (v_guess, v)}
  pairs['velocity'] = (noise_guess - guess, eps - x0)
  return {name: ((a - b) ** 2).mean(1) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize('on', ['eps', 'x0', 'v', 'velocity'])
def test_uniform_is_the_plain_mean_squared_error_of_its_loss(on, x64):
  error = errors()
  weighted = weights.uniform(on)(jnp.asarray(LOG_SNR)) * error['eps']
  np.testing.assert_allclose(weighted, error[on], rtol=1e-9)


def test_uniform_is_on_eps_by_default():
  np.testing.assert_array_equal(weights.uniform()(jnp.asarray(LOG_SNR)), np.ones(61))


@pytest.mark.parametrize('on', ['eps', 'x0', 'v'])
def test_snr_weight_is_the_snr_times_its_loss(on, x64):
  error = errors()
  weighted = weights.snr(on)(jnp.asarray(LOG_SNR)) * error['eps']
  np.testing.assert_allclose(weighted, np.exp(LOG_SNR) * error[on], rtol=1e-9)


def test_snr_on_x0_is_uniform_on_eps():
  """Also in float32 and far out, where the two exponentials nearly leave it."""
  log_snr = jnp.linspace(-80.0, 80.0, 161)
  np.testing.assert_allclose(weights.snr('x0')(log_snr), weights.uniform()(log_snr), rtol=1e-6)


@pytest.mark.parametrize('gamma', [1.0, 5.0, 20.0])
def test_min_snr_in_its_three_forms(gamma, x64):
  error, snr = errors(), np.exp(LOG_SNR)
  weighted = weights.min_snr(gamma)(jnp.asarray(LOG_SNR)) * error['eps']
  np.testing.assert_allclose(weighted, np.minimum(snr, gamma) / snr * error['eps'], rtol=1e-9)
  np.testing.assert_allclose(weighted, np.minimum(snr, gamma) * error['x0'], rtol=1e-9)
  np.testing.assert_allclose(weighted, np.minimum(snr, gamma) / (snr + 1) * error['v'], rtol=1e-9)


def test_truncated_snr_is_the_larger_of_two_losses(x64):
  """max(SNR, 1) |x0 error|^2: the eps-loss where SNR > 1, the x0-loss below."""
  error = errors()
  weighted = weights.truncated_snr()(jnp.asarray(LOG_SNR)) * error['eps']
  np.testing.assert_allclose(weighted, np.maximum(error['eps'], error['x0']), rtol=1e-9)


@pytest.mark.parametrize('sigma_data', [0.5, 1.3])
def test_edm_weight_makes_the_loss_that_of_the_preconditioned_network(sigma_data, x64):
  """lambda(sigma) c_out^2 = 1: the weighted loss is the plain error of the raw output F."""
  rng = np.random.default_rng(1)
  x0, eps, off = jnp.asarray(rng.normal(size=(3, LOG_SNR.size, 12)))
  made = parameterizations.edm(sigma_data)
  marginal = marginals.variance_exploding(jnp.asarray(LOG_SNR))
  z = x0 + np.asarray(marginal.sigma)[:, None] * eps
  target = np.asarray(made.target(x0, eps, marginal))
  guess = made.decode(jnp.asarray(target + off), jnp.asarray(z), marginal)
  eps_error = ((np.asarray(guess.eps) - eps) ** 2).mean(1)
  weighted = weights.edm(sigma_data)(jnp.asarray(LOG_SNR)) * eps_error
  np.testing.assert_allclose(weighted, (off**2).mean(1), rtol=1e-6)


def test_p2_and_sigmoid_by_their_formulas(x64):
  snr = np.exp(LOG_SNR)
  np.testing.assert_allclose(
    weights.p2(2.0, 0.5)(jnp.asarray(LOG_SNR)), 1 / np.sqrt(2 + snr), rtol=1e-12
  )
  np.testing.assert_allclose(weights.p2(gamma=0.0)(jnp.asarray(LOG_SNR)), 1)
  np.testing.assert_allclose(
    weights.sigmoid(3.0)(jnp.asarray(LOG_SNR)), 1 / (1 + np.exp(LOG_SNR - 3)), rtol=1e-12
  )


def test_gamma_is_live():
  """A larger gamma leaves more weight on clean data, and the paper's 5 is the default."""
  log_snr = jnp.array([-3.0, 1.0, 4.0])
  low, high = weights.min_snr(1.0)(log_snr), weights.min_snr(20.0)(log_snr)
  assert low[0] == high[0] == 1
  assert low[1] < high[1]
  assert low[2] < high[2]
  np.testing.assert_array_equal(weights.min_snr()(log_snr), weights.min_snr(5.0)(log_snr))


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda: weights.uniform('score'), "'score'"),
    (lambda: weights.snr('epsilon'), "'epsilon'"),
    (lambda: weights.edm(0.0), 'sigma_data .* got 0.0'),
    (lambda: weights.p2(k=0.0), 'k .* got 0.0'),
    (lambda: weights.p2(gamma=-1.0), 'gamma .* got -1.0'),
    (lambda: weights.sigmoid(np.nan), 'bias .* got nan'),
    (lambda: weights.min_snr(0.0), 'gamma .* got 0.0'),
    (lambda: weights.min_snr(-1.0), 'gamma .* got -1.0'),
    (lambda: weights.min_snr(np.nan), 'gamma .* got nan'),
    (lambda: weights.min_snr(np.inf), 'gamma .* got inf'),
  ],
)
def test_bad_arguments_are_named_with_their_value(make, names):
  with pytest.raises(ValueError, match=names):
    make()
