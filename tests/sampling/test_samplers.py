"""Samplers against exact solutions: point mass, Gaussian, order of convergence, moments, and the loop itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules
from diffusion.sampling import grids, samplers
from diffusion.types import Prediction, Sampler

MEAN, SPREAD = 0.6, 0.5  # of the Gaussian data


def cosine_path(low=-15.0, high=15.0):
  diffusion = gaussian.Diffusion(
    schedules.cosine(low, high), marginals.variance_preserving, parameterizations.v()
  )
  return gaussian.bind(diffusion, ())


def one_gaussian(path, dimension, mean=MEAN, spread=SPREAD):
  return analytic.gaussian_mixture(
    path, np.ones(1), np.full((1, dimension), mean), np.full(1, spread)
  )


def row_keys(count, seed=0):
  return rng.row_keys(jax.random.key(seed), jnp.arange(count))


def levels(path, grid):
  """(alpha, sigma) on a grid, as float64 NumPy, from log-SNR alone."""
  log_snr = np.asarray(path.log_snr(grid), np.float64)
  return 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))


@pytest.mark.parametrize('steps', [1, 4, 50])
def test_ddim_is_exact_for_a_point_mass(steps):
  """Every trajectory is a constant eps around the point: any grid gives alpha_s mu + sigma_s eps."""
  path = cosine_path()
  mu = jnp.array([0.3, -0.9, 0.1])
  denoise = analytic.gaussian_mixture(path, jnp.ones(1), mu[None], jnp.zeros(1))
  eps = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
  grid = jnp.linspace(1.0, 0.3, steps + 1)
  (alpha_1, sigma_1), (alpha, sigma) = path.marginal(grid[0]), path.marginal(grid[-1])
  run = jax.jit(
    functools.partial(samplers.sample, denoise, path, samplers.ddim(path), grid, shape=(3,)),
    static_argnames='denoise_last',
  )
  keys = row_keys(5)
  z = run(keys, z=alpha_1 * mu + sigma_1 * eps, denoise_last=False)
  np.testing.assert_allclose(z, alpha * mu + sigma * eps, atol=1e-5)
  np.testing.assert_allclose(run(keys), np.tile(mu, (5, 1)), atol=1e-6)


def ddim_factor(alpha_t, sigma_t, alpha_s, sigma_s):
  """One DDIM step of centered Gaussian data: alpha_s E[x0 | z] + sigma_s E[eps | z] by linear regression on z.

  z = alpha x0 + sigma eps, Var z = alpha^2 s^2 + sigma^2, Cov(x0, z) = alpha s^2, Cov(eps, z) = sigma.
  """
  covariance = np.array([SPREAD**2 * alpha_t, sigma_t])
  return np.array([alpha_s, sigma_s]) @ covariance / (alpha_t**2 * SPREAD**2 + sigma_t**2)


@pytest.mark.parametrize('grid', ['time', 'log-SNR'])
def test_ddim_of_a_gaussian_is_the_product_of_its_step_factors(grid):
  path = cosine_path()
  grid = (
    grids.uniform_time(path, 12) if grid == 'time' else grids.uniform_log_snr(path, 12, -9.0, 6.0)
  )
  z = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)), jnp.float32)
  found = samplers.sample(
    one_gaussian(path, 2),
    path,
    samplers.ddim(path),
    grid,
    row_keys(4),
    (2,),
    z=z,
    denoise_last=False,
  )
  alpha, sigma = levels(path, grid)
  factor = np.prod([ddim_factor(alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]) for i in range(12)])
  expected = alpha[-1] * MEAN + factor * (np.asarray(z, np.float64) - alpha[0] * MEAN)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ddim_converges_to_the_probability_flow_with_order_one(x64):
  """The flow of Gaussian data keeps the marginals and, in one dimension, the order of points: it is affine."""
  path = cosine_path()
  z = jnp.array([[-1.5], [0.2], [1.1]])
  alpha, sigma = levels(path, jnp.array([1.0, 0.1]))
  deviation = np.sqrt(alpha**2 * SPREAD**2 + sigma**2)
  exact = alpha[1] * MEAN + deviation[1] / deviation[0] * (np.asarray(z) - alpha[0] * MEAN)
  counts, errors = np.array([16, 32, 64, 128, 256]), []
  for steps in counts:
    grid = jnp.linspace(1.0, 0.1, int(steps) + 1)
    found = samplers.sample(
      one_gaussian(path, 1),
      path,
      samplers.ddim(path),
      grid,
      row_keys(3),
      (1,),
      z=z,
      denoise_last=False,
    )
    errors.append(np.abs(np.asarray(found) - exact).max())
  slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
  assert abs(slope + 1) < 0.2, (slope, errors)
  assert errors[-1] < 5e-3


def moments(path, grid, variance):
  """Mean and variance at the end of a walk with the exact denoiser of Gaussian data, by conditioning. NumPy only.

  A step draws z_s given (z_t, x0 = E[x0 | z_t]): linear in z_t, so the two moments close.
  """
  alpha, sigma = levels(path, grid)
  mean, spread = 0.0, sigma[0] ** 2  # the prior's
  for i in range(len(grid) - 1):
    a = alpha[i] / alpha[i + 1]  # of the forward chain z_t = a z_s + b n
    b2 = sigma[i] ** 2 - a**2 * sigma[i + 1] ** 2
    gain = a * sigma[i + 1] ** 2 / sigma[i] ** 2  # of E[z_s | z_t, x0] in z_t - alpha_t x0
    noise = sigma[i + 1] ** 2 - gain * a * sigma[i + 1] ** 2 if variance == 'posterior' else b2
    slope = alpha[i] * SPREAD**2 / (alpha[i] ** 2 * SPREAD**2 + sigma[i] ** 2)  # of E[x0 | z_t]
    guess = MEAN + slope * (mean - alpha[i] * MEAN)
    per_z = alpha[i + 1] * slope + gain * (1 - alpha[i] * slope)
    mean = alpha[i + 1] * guess + gain * (mean - alpha[i] * guess)
    spread = per_z**2 * spread + noise
  return mean, spread


STOCHASTIC = {
  'ancestral': (samplers.ancestral, 'posterior'),
  'ancestral, forward variance': (lambda path: samplers.ancestral(path, 'forward'), 'forward'),
  'ddim, eta 1': (lambda path: samplers.ddim(path, eta=1.0), 'posterior'),
}


def drawn(path, make, grid, rows=4096, dimension=8):
  run = jax.jit(
    lambda keys: samplers.sample(
      one_gaussian(path, dimension), path, make(path), grid, keys, (dimension,), denoise_last=False
    )
  )
  return np.asarray(run(row_keys(rows)), np.float64)


def assert_moments(z, mean, variance):
  assert abs(z.mean() - mean) < 4.5 * np.sqrt(variance / z.size)
  assert abs(z.var() - variance) < 4.5 * variance * np.sqrt(2 / z.size)


@pytest.mark.parametrize('name', STOCHASTIC)
def test_few_stochastic_steps_have_the_moments_of_the_recursion(name):
  """Eight steps are far from converged, which is what makes this sharp: each sampler has moments of its own."""
  make, variance = STOCHASTIC[name]
  path = cosine_path(-8.0, 8.0)
  grid = jnp.linspace(1.0, 0.2, 9)
  assert_moments(drawn(path, make, grid), *moments(path, grid, variance))


@pytest.mark.parametrize('name', STOCHASTIC)
def test_many_stochastic_steps_reach_the_data(name):
  make, variance = STOCHASTIC[name]
  path = cosine_path()
  grid = grids.uniform_time(path, 400)
  expected = moments(path, grid, variance)
  # What discretization leaves is first order, and about as small as the Monte-Carlo error below.
  coarse = moments(path, grids.uniform_time(path, 100), variance)
  bias, coarse_bias = abs(expected[1] - SPREAD**2), abs(coarse[1] - SPREAD**2)
  assert bias < 0.025 * SPREAD**2
  assert 3 < coarse_bias / bias < 5
  z = drawn(path, make, grid)
  assert_moments(z, *expected)
  assert abs(z.mean() - MEAN) < 5 * SPREAD / np.sqrt(z.size)
  assert abs(z.var() - SPREAD**2) < SPREAD**2 * (0.025 + 5 * np.sqrt(2 / z.size))


@pytest.mark.parametrize('eta', [0.0, 0.3, 0.7, 1.0])
def test_every_eta_keeps_the_marginals_of_a_point_mass(eta):
  """With the exact denoiser of a point, z_s ~ N(alpha_s mu, sigma_s^2 I) at every s, whatever eta."""
  path = cosine_path()
  grid = jnp.linspace(1.0, 0.5, 6)
  denoise = one_gaussian(path, 8, spread=0.0)
  run = jax.jit(
    lambda keys: samplers.sample(
      denoise, path, samplers.ddim(path, eta), grid, keys, (8,), denoise_last=False
    )
  )
  (alpha, *_), (sigma, *_) = levels(path, grid[-1:])
  assert_moments(np.asarray(run(row_keys(4096)), np.float64), alpha * MEAN, sigma**2)


def stepper(sampler, denoise):
  """One compiled step of all rows from t to s."""

  @jax.jit
  def step(z, keys, t, s):
    rows = jnp.ones(z.shape[0], z.dtype)
    return sampler.step(denoise, keys, z, t * rows, s * rows)

  return lambda *arguments: np.asarray(step(*arguments))


def test_ddim_with_eta_one_is_ancestral_given_the_same_noise(x64):
  path = cosine_path()
  denoise, keys = one_gaussian(path, 3), row_keys(5)
  z = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3)))
  full = stepper(samplers.ddim(path, 1.0), denoise)
  other = stepper(samplers.ancestral(path), denoise)
  for t, s in ((1.0, 0.9), (0.6, 0.2), (0.31, 0.3), (0.05, 0.0)):
    np.testing.assert_allclose(full(z, keys, t, s), other(z, keys, t, s), atol=1e-10)


def test_eta_scales_the_noise_of_a_step(x64):
  """Same prediction, two noises: the difference is tau (n1 - n2), and tau is proportional to eta."""
  path = cosine_path()
  denoise, z = one_gaussian(path, 3), jnp.ones((5, 3))
  difference = {}
  for eta in (0.0, 0.25, 1.0):
    step = stepper(samplers.ddim(path, eta), denoise)
    first, second = (step(z, row_keys(5, seed), 0.6, 0.3) for seed in (0, 1))
    difference[eta] = first - second
  assert (difference[0.0] == 0).all()
  assert (np.abs(difference[1.0]) > 1e-6).all()
  np.testing.assert_allclose(difference[0.25], 0.25 * difference[1.0], rtol=1e-9)


def test_giant_steps_with_eta_one_are_finite():
  """When SNR_t / SNR_s is below a rounding, all of sigma_s^2 is fresh noise and no more than that."""
  path = cosine_path()
  s = jnp.linspace(0.0, 0.3, 512)  # one row each
  step = jax.jit(
    lambda keys, s: samplers.ddim(path, 1.0).step(
      one_gaussian(path, 1), keys, jnp.ones((512, 1)), jnp.ones(512), s
    )
  )
  assert np.isfinite(step(row_keys(512), s)).all()


def test_a_traced_eta_is_the_same_number(x64):
  path = cosine_path()
  denoise, z, keys = one_gaussian(path, 3), jnp.ones((2, 3)), row_keys(2)

  def step(eta):
    rows = jnp.ones(2)
    return samplers.ddim(path, eta).step(denoise, keys, z, 0.6 * rows, 0.3 * rows)

  together = jax.jit(jax.vmap(step))(jnp.array([0.0, 0.5, 1.0]))
  for row, eta in enumerate([0.0, 0.5, 1.0]):
    np.testing.assert_allclose(together[row], jax.jit(functools.partial(step, eta))(), atol=1e-12)


def mixture_sampler(path, make=samplers.ancestral):
  denoise = analytic.gaussian_mixture(
    path, np.full(2, 0.5), np.array([[1.0, 1.0], [-1.0, -1.0]]), np.full(2, 0.3)
  )
  grid = grids.uniform_time(path, 10)
  return jax.jit(lambda keys: samplers.sample(denoise, path, make(path), grid, keys, (2,)))


def test_a_sample_is_a_function_of_its_key_alone():
  run, keys = mixture_sampler(cosine_path()), row_keys(6)
  together = np.asarray(run(keys))
  assert len(np.unique(together.round(4), axis=0)) == 6
  for i in (0, 3, 5):
    np.testing.assert_allclose(run(keys[i : i + 1]), together[i : i + 1], atol=1e-5)
  for order in ([5, 1, 0, 3, 4, 2], [2, 2, 4, 4, 1, 2]):  # other places, and twins
    np.testing.assert_allclose(run(keys[np.array(order)]), together[order], atol=1e-5)


@pytest.mark.parametrize('make', [samplers.ancestral, samplers.ddim])
def test_a_seed_gives_the_same_samples_to_the_bit(make):
  run = mixture_sampler(cosine_path(), make)
  first, again, other = (np.asarray(run(row_keys(4, seed))) for seed in (7, 7, 8))
  np.testing.assert_array_equal(first, again)
  assert (np.abs(first - other).max(1) > 1e-3).all()


def counting(z, t, key=None):
  """A 'denoiser' whose answer is one more than its input: a walk counts its own evaluations."""
  return Prediction(z + 1, z)


COUNTER = Sampler(
  init=lambda z: z, step=lambda denoise, keys, z, t, s: denoise(z, t).x0
)  # keeps what it was told


@pytest.mark.parametrize('denoise_last', [True, False])
@pytest.mark.parametrize('steps', [1, 2, 25])
def test_evaluations_are_as_many_as_steps(steps, denoise_last):
  count = samplers.sample(
    counting,
    cosine_path(),
    COUNTER,
    grids.uniform_time(cosine_path(), steps),
    row_keys(2),
    (3,),
    z=jnp.zeros((2, 3)),
    denoise_last=denoise_last,
  )
  np.testing.assert_array_equal(count, np.full((2, 3), steps))


@pytest.mark.parametrize('make', [*(make for make, _ in STOCHASTIC.values()), samplers.ddim])
def test_a_step_evaluates_the_denoiser_once_at_t(make):
  path, asked = cosine_path(), []

  def denoise(z, t, key=None):
    asked.append((np.asarray(t), key))
    return Prediction(z, z)

  times = jnp.full(2, 0.7), jnp.full(2, 0.4)
  make(path).step(denoise, row_keys(2), jnp.ones((2, 3)), *times)
  ((t, key),) = asked
  np.testing.assert_allclose(t, [0.7, 0.7], rtol=1e-6)
  assert key is None  # sampling is without dropout


def test_the_loop_walks_every_interval_of_the_grid_in_order():
  """A sampler whose state is the log of the intervals it was given."""

  def step(denoise, keys, z, t, s):
    return jnp.concatenate([z[:, 1:], jnp.stack([t, s], axis=-1)[:, None]], axis=1)

  grid = np.array([1.0, 0.8, 0.5, 0.45, 0.0], np.float32)
  intervals = np.stack([grid[:-1], grid[1:]], axis=-1)
  path = cosine_path()
  log = Sampler(init=lambda z: z, step=step)
  keys, z = row_keys(2), jnp.zeros((2, 4, 2))
  run = functools.partial(
    samplers.sample, counting, path, log, jnp.asarray(grid), keys, (4, 2), z=z
  )
  np.testing.assert_array_equal(run(denoise_last=False), np.stack([intervals] * 2))
  # The last interval becomes a prediction at its start instead: the log of the first three, plus one.
  found = np.asarray(run())
  np.testing.assert_array_equal(found[:, 1:], np.stack([intervals[:3]] * 2) + 1)


def test_the_last_prediction_is_made_at_the_last_time_but_one():
  def clock(z, t, key=None):
    return Prediction(jnp.broadcast_to(t[:, None], z.shape), z)

  grid = jnp.array([1.0, 0.6, 0.25, 0.0])
  found = samplers.sample(clock, cosine_path(), COUNTER, grid, row_keys(2), (3,))
  np.testing.assert_allclose(found, 0.25)


def test_every_step_draws_new_noise_and_none_is_the_prior():
  def step(denoise, keys, z, t, s):
    return jnp.concatenate([z[:, 1:], rng.normal(keys, (1,))], axis=1)

  path, log = cosine_path(), Sampler(init=lambda z: z, step=step)
  draws = samplers.sample(
    counting, path, log, grids.uniform_time(path, 5), row_keys(3), (6,), denoise_last=False
  )
  assert (
    len(np.unique(np.asarray(draws))) == 18
  )  # one value of the prior and five steps, three rows


def test_the_first_leaf_of_a_larger_state_is_returned():
  def step(denoise, keys, state, t, s):
    z, steps = state
    return z + 1, steps + 10

  log = Sampler(init=lambda z: (z, jnp.zeros(())), step=step)
  found = samplers.sample(
    counting,
    cosine_path(),
    log,
    grids.uniform_time(cosine_path(), 4),
    row_keys(2),
    (3,),
    z=jnp.zeros((2, 3)),
    denoise_last=False,
  )
  np.testing.assert_array_equal(found, np.full((2, 3), 4))


def test_without_a_start_the_walk_begins_at_the_prior():
  path = cosine_path(-1.0, 15.0)  # sigma_1^2 = e / (1 + e): the prior is not simply N(0, I)
  stay = Sampler(init=lambda z: z, step=lambda denoise, keys, z, t, s: z)
  z = samplers.sample(
    counting, path, stay, grids.uniform_time(path, 2), row_keys(4096), (8,), denoise_last=False
  )
  assert_moments(np.asarray(z, np.float64), 0.0, np.e / (1 + np.e))


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda path: samplers.ddim(path, eta=1.1), 'eta .* got 1.1'),
    (lambda path: samplers.ddim(path, eta=-0.1), 'eta .* got -0.1'),
    (lambda path: samplers.ddim(path, eta=np.nan), 'eta .* got nan'),
    (lambda path: samplers.ddim(path, temperature=-1.0), 'temperature .* got -1.0'),
    (lambda path: samplers.ancestral(path, 'learned'), "'learned'"),
  ],
)
def test_bad_arguments_are_named_with_their_value(make, names):
  with pytest.raises(ValueError, match=names):
    make(cosine_path())


@pytest.mark.parametrize('start', [1.0, 0.6])
def test_the_noise_is_that_of_the_first_time_of_the_grid(start):
  """Of variance exploding, where the noise of t = 1 is 30 times that of t = 0.6."""
  made = gaussian.Diffusion(
    schedules.geometric(), marginals.variance_exploding, parameterizations.eps()
  )
  path = gaussian.bind(made, ())
  stay = Sampler(init=lambda z: z, step=lambda denoise, keys, z, t, s: z)
  grid = jnp.array([start, 0.0])
  found = samplers.sample(counting, path, stay, grid, row_keys(4096), (8,), denoise_last=False)
  expected = 0.01 * (50 / 0.01) ** start  # sigma(t), in closed form
  np.testing.assert_allclose(np.std(found), expected, rtol=0.02)
