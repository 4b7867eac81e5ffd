"""The bound process: inverse, slope, posterior by Gaussian conditioning, prior, denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.process import betas, gaussian, marginals, parameterizations, schedules
from diffusion.types import Schedule

SCHEDULES = {
  'cosine': schedules.cosine,
  'linear beta': schedules.linear_beta,
  'discrete': lambda: schedules.discrete(betas.linear()),
}


def bound(schedule=None, params=()):
  schedule = schedules.cosine() if schedule is None else schedule
  return gaussian.bind(
    gaussian.Diffusion(schedule, marginals.variance_preserving, parameterizations.v()), params
  )


@pytest.mark.parametrize('name', SCHEDULES)
def test_time_is_the_inverse_of_log_snr(name, x64):
  path = bound(SCHEDULES[name]())
  time, t = jax.jit(path.time), jnp.linspace(0.0, 1.0, 101).reshape(101, 1)
  np.testing.assert_allclose(time(path.log_snr(t)), t, atol=1e-12)
  low, high = path.log_snr(jnp.array([1.0, 0.0]))
  values = jnp.linspace(low + 1e-9, high - 1e-9, 50)
  np.testing.assert_allclose(path.log_snr(time(values)), values, atol=1e-9)


@pytest.mark.parametrize('name', SCHEDULES)
def test_a_log_snr_beyond_an_end_has_that_end_as_its_time(name):
  path = bound(SCHEDULES[name]())
  np.testing.assert_array_equal(path.time(jnp.array([90.0, 16.0, -16.0, -90.0])), [0, 0, 1, 1])


def test_time_is_accurate_in_float32():
  path = bound()
  t = jnp.linspace(0.0, 1.0, 101)
  found = jax.jit(path.time)(path.log_snr(t))
  np.testing.assert_allclose(found, t, atol=3e-7)
  np.testing.assert_array_equal(found[jnp.array([0, 100])], [0, 1])  # the ends to the bit


@pytest.mark.parametrize('name', SCHEDULES)
def test_slope_is_the_derivative_of_log_snr(name, x64):
  path = bound(SCHEDULES[name]())
  t = (
    jnp.arange(0, 999, 37) + 0.5
  ) / 999  # between the steps of the table, which has corners on them
  step = 1e-6
  difference = (path.log_snr(t + step) - path.log_snr(t - step)) / (2 * step)
  np.testing.assert_allclose(path.slope(t), difference, rtol=1e-5)
  assert (np.asarray(path.slope(t)) < 0).all()


def test_binding_hands_the_parameters_to_the_schedule(x64):
  line = Schedule(lambda key: None, lambda params, t: params['top'] - params['fall'] * t)
  path = bound(line, {'top': 7.0, 'fall': 12.0})
  t = jnp.array([0.0, 0.25, 1.0])
  np.testing.assert_allclose(path.log_snr(t), [7, 4, -5])
  np.testing.assert_allclose(path.slope(t), -12)
  np.testing.assert_allclose(path.time(jnp.array([7.0, 1.0, -5.0])), [0, 0.5, 1], atol=1e-12)
  snr = np.exp([7.0, 4.0, -5.0])
  np.testing.assert_allclose(path.marginal(t).alpha ** 2, snr / (1 + snr))
  np.testing.assert_allclose(path.marginal(t).sigma ** 2, 1 / (1 + snr))

  # And hands back what they are to learn: d log_snr = d top - t d fall, and what follows from it.
  def of(params):
    path = bound(line, params)
    return path.log_snr(t), path.slope(t), *path.marginal(t)

  alpha, sigma = path.marginal(t)
  at_level = (1.0, None, alpha * sigma**2 / 2, -sigma * alpha**2 / 2)
  found = jax.jit(jax.jacobian(of))({'top': 7.0, 'fall': 12.0})
  for by, level in zip(found, at_level, strict=True):
    top, fall = (0, -1) if level is None else (level, -t * level)
    np.testing.assert_allclose(by['top'], np.broadcast_to(top, 3))
    np.testing.assert_allclose(by['fall'], np.broadcast_to(fall, 3))


def test_diffuse_noises_each_row_at_its_own_level(x64):
  generator = np.random.default_rng(0)
  x0, eps = generator.normal(size=(2, 3, 2, 2, 1))
  marginal = marginals.variance_preserving(jnp.array([-2.0, 0.0, 5.0]))
  z = gaussian.diffuse(jnp.asarray(x0), jnp.asarray(eps), marginal)
  for row, log_snr in enumerate([-2.0, 0.0, 5.0]):
    share = np.exp(log_snr) / (1 + np.exp(log_snr))  # of the signal in the variance
    np.testing.assert_allclose(z[row], share**0.5 * x0[row] + (1 - share) ** 0.5 * eps[row])


def conditioned(log_snr_t, log_snr_s, x0, z):
  """Mean and variance of z_s given (z_t, x0), from the joint covariance of the forward chain. NumPy only.

  z_s = alpha_s x0 + sigma_s n1, and z_t = a z_s + b n2 where a and b make z_t's own marginal right.
  """
  alpha_t, alpha_s = (1 / np.sqrt(1 + np.exp(-one)) for one in (log_snr_t, log_snr_s))
  sigma_t, sigma_s = (1 / np.sqrt(1 + np.exp(one)) for one in (log_snr_t, log_snr_s))
  a = alpha_t / alpha_s
  b = np.sqrt(sigma_t**2 - a**2 * sigma_s**2)
  root = np.array([[sigma_s, 0.0], [a * sigma_s, b]])  # (z_s, z_t) - mean = root @ (n1, n2)
  covariance = root @ root.T
  gain = covariance[0, 1] / covariance[1, 1]
  mean = alpha_s * x0 + gain * (z - alpha_t * x0)
  return mean, covariance[0, 0] - gain * covariance[0, 1]


@pytest.mark.parametrize('name', SCHEDULES)
def test_posterior_is_gaussian_conditioning(name, x64):
  path = bound(SCHEDULES[name]())
  generator = np.random.default_rng(1)
  pairs = np.sort(generator.uniform(size=(40, 2)), axis=1)
  s, t = jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1])
  z, x0 = generator.normal(size=(2, 40, 2, 3))
  posterior = jax.jit(lambda *arguments: gaussian.posterior(path, *arguments))
  mean, variance = posterior(z, x0, t, s)
  levels_t, levels_s = np.asarray(path.log_snr(t)), np.asarray(path.log_snr(s))
  assert mean.shape == z.shape
  assert variance.shape == (40,)
  for row in range(40):
    expected = conditioned(levels_t[row], levels_s[row], x0[row], z[row])
    np.testing.assert_allclose(mean[row], expected[0], atol=1e-10)
    np.testing.assert_allclose(variance[row], expected[1], rtol=1e-7, atol=1e-13)


def test_posterior_averaged_over_z_t_is_the_marginal_of_z_s(x64):
  """E and Var of z_s by total expectation and total variance over q(z_t | x0) must be alpha_s x0, sigma_s^2."""
  path = bound()
  s, t = jnp.array([0.05, 0.3, 0.7, 0.9]), jnp.array([0.4, 0.35, 0.99, 1.0])
  x0 = jnp.array([[1.3], [-0.4], [2.0], [0.7]])
  now, then = path.marginal(t), path.marginal(s)
  center = now.alpha[:, None] * x0
  mean, variance = gaussian.posterior(path, center, x0, t, s)
  np.testing.assert_allclose(mean, then.alpha[:, None] * x0, rtol=1e-12)
  up, _ = gaussian.posterior(path, center + now.sigma[:, None], x0, t, s)
  # The mean is linear in z_t: one standard deviation of z_t moves it by this much.
  np.testing.assert_allclose((up - mean)[:, 0] ** 2 + variance, then.sigma**2, rtol=1e-11)


def test_posterior_of_nearby_times_keeps_its_digits():
  """In float32, from the same log-SNR: 1 - SNR_t / SNR_s of times 2e-4 apart, where the ratio is nearly 1."""
  path = bound()
  s = jnp.linspace(0.1, 0.9, 50)
  t, zero = s + 2e-4, jnp.zeros((50, 1))
  _, variance = gaussian.posterior(path, zero, zero, t, s)
  levels = [np.asarray(path.log_snr(one), np.float64) for one in (t, s)]
  expected = [conditioned(*pair, 0.0, 0.0)[1] for pair in zip(*levels, strict=True)]
  np.testing.assert_allclose(variance, expected, rtol=3e-6)


def test_prior_is_normal_with_the_deviation_of_the_last_time():
  path = bound(schedules.cosine(-1.0, 15.0))  # sigma_1^2 = e / (1 + e), well below 1
  keys = rng.row_keys(jax.random.key(0), jnp.arange(4096))
  z = np.asarray(jax.jit(lambda keys: gaussian.prior(path, keys, (4, 4)))(keys), np.float64)
  assert z.shape == (4096, 4, 4)
  variance = np.e / (1 + np.e)
  n = z.size
  assert abs(z.mean()) < 5 * np.sqrt(variance / n)
  assert abs(z.var() - variance) < 5 * variance * np.sqrt(2 / n)
  assert abs((z**4).mean() / z.var() ** 2 - 3) < 5 * np.sqrt(96 / n)  # normal, not merely scaled
  path = bound()
  half, last = (gaussian.prior(path, keys[:3], (4,), t) for t in (0.5, 1.0))
  np.testing.assert_allclose(half, 0.5**0.5 * np.asarray(last), rtol=1e-5)  # of the time asked for
  neighbors = (z[:, 0, 0] * z[:, 0, 1]).mean() / variance
  assert abs(neighbors) < 5 / np.sqrt(4096)


def test_a_row_of_the_prior_depends_on_its_key_alone():
  path = bound()
  keys = rng.row_keys(jax.random.key(1), jnp.arange(6))
  prior = jax.jit(lambda keys: gaussian.prior(path, keys, (5,)))
  z, order = prior(keys), jnp.array([4, 0, 5, 2, 1, 3])
  np.testing.assert_array_equal(prior(keys[order]), z[order])
  np.testing.assert_array_equal(prior(keys[2:3]), z[2:3])
  assert len(np.unique(np.asarray(z))) == 30


@pytest.mark.parametrize('name', ['eps', 'x0', 'v'])
def test_a_network_that_knows_the_answer_is_an_exact_denoiser(name, x64):
  """The network gets z and c_noise alone; from c_noise it recovers the level and answers with the target."""
  path = bound()
  parameterization = getattr(parameterizations, name)()
  x0, eps = np.random.default_rng(2).normal(size=(2, 5, 3))
  t = jnp.linspace(0.1, 0.9, 5)
  z = gaussian.diffuse(jnp.asarray(x0), jnp.asarray(eps), path.marginal(t))
  seen = []

  def network(inputs, noise, key):
    seen.append(key)
    np.testing.assert_allclose(inputs, z)
    ratio = np.exp(4 * np.asarray(noise))  # sigma / alpha
    alpha, sigma = 1 / np.sqrt(1 + ratio**2), ratio / np.sqrt(1 + ratio**2)
    answers = {'eps': eps, 'x0': x0, 'v': alpha[:, None] * eps - sigma[:, None] * x0}
    return jnp.asarray(answers[name])

  denoise = gaussian.denoiser(path, parameterization, network)
  keys = rng.row_keys(jax.random.key(0), jnp.arange(5))
  for given in (None, keys):
    prediction = denoise(z, t, given)
    np.testing.assert_allclose(prediction.x0, x0, atol=1e-10)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-10)
    assert seen.pop() is given
