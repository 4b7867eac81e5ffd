"""What holds of every schedule, process, parameterization and sampler, whatever its arguments in range."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion import rng
from diffusion.process import analytic, betas, gaussian, marginals, parameterizations, schedules
from diffusion.sampling import grids, samplers, solvers
from tests.properties import examples, interval, number, randoms


@st.composite
def cut(draw, make):
  """A schedule that takes the log-SNR of its ends, and what they are."""
  low, high = draw(interval(-80, 80, 1))
  return make(low, high), low, high


@st.composite
def linear_beta(draw):
  beta_min, beta_max = sorted(draw(st.tuples(number(1e-3, 70), number(1e-3, 70))))
  area = (beta_min + beta_max) / 2
  low = -math.log(math.expm1(area))
  high = draw(number(low + 1, 80))
  return schedules.linear_beta(beta_min, beta_max, high), low, high


@st.composite
def sigmoid(draw):
  start, width = draw(number(-10, 10)), draw(number(0.1, 20))
  low, high = draw(interval(-80, 80, 1))
  temperature = draw(number(0.01, 10))
  return schedules.sigmoid(start, start + width, temperature, low, high), low, high


@st.composite
def geometric(draw):
  low, high = draw(interval(-80, 80, 1))
  return schedules.geometric(math.exp(-high / 2), math.exp(-low / 2)), low, high


@st.composite
def edm(draw):
  low, high = draw(interval(-80, 80, 1))
  rho = draw(number(max(-low, high) / 159, 500))
  return schedules.edm(math.exp(-high / 2), math.exp(-low / 2), rho), low, high


TABLES = st.one_of(
  st.builds(lambda ends: betas.linear(50, *ends), interval(1e-6, 0.5, 0)),
  st.builds(lambda ends: betas.scaled_linear(50, *ends), interval(1e-6, 0.5, 0)),
  st.builds(functools.partial(betas.cosine, 50), number(0, 2), number(0.3, 0.999)),
)


@st.composite
def discrete(draw):
  table = draw(TABLES)()
  kept = np.cumsum(np.log1p(-table))
  low, high = (kept[i] - np.log(-np.expm1(kept[i])) for i in (-1, 0))
  return schedules.discrete(table), low, high


@st.composite
def shifted(draw):
  low, high = draw(interval(-40, 40, 1))
  factor = draw(number(1e-8, 1e8))
  shift = 2 * math.log(factor)
  return schedules.shifted(schedules.cosine(low, high), factor), low + shift, high + shift


@st.composite
def clipped(draw):
  low, high = draw(interval(-10, 10, 2))
  inner = draw(interval(low, high, 1))
  return schedules.clipped(schedules.rectified_flow(low, high), *inner), *inner


@st.composite
def learned(draw):
  low, high = draw(interval(-80, 80, 1))
  random = draw(randoms)
  made = schedules.learned(low, high, 8)
  # Whatever training made of the parameters.
  params = {name: random.normal(0, 3, 8) for name in ('height', 'steepness', 'center')}
  return made._replace(log_snr=lambda _, t: made.log_snr(params, t)), low, high


SCHEDULES = {
  'cosine': cut(schedules.cosine),
  'rectified flow': cut(schedules.rectified_flow),
  'linear beta': linear_beta(),
  'sigmoid': sigmoid(),
  'geometric': geometric(),
  'EDM': edm(),
  'discrete': discrete(),
  'shifted': shifted(),
  'clipped': clipped(),
  'learned': learned(),
}
MARGINALS = {  # and what holds of each
  marginals.variance_preserving: lambda alpha, sigma: alpha**2 + sigma**2,
  marginals.variance_exploding: lambda alpha, sigma: alpha,
  marginals.rectified_flow: lambda alpha, sigma: alpha + sigma,
  marginals.sub_variance_preserving: lambda alpha, sigma: alpha**2 + sigma,
}


@pytest.mark.parametrize('name', SCHEDULES)
@examples(8)
@given(data=st.data())
def test_log_snr_falls_strictly_between_its_ends_and_its_slope_is_its_own(name, data):
  """In float32 as in training; the slope in float64, in the middle of a table's steps."""
  with jax.enable_x64(True):  # a clipped schedule is inverted where it is made
    schedule, low, high = data.draw(SCHEDULES[name])
  found = np.asarray(schedule.log_snr((), jnp.linspace(0.0, 1.0, 50)))
  assert np.isfinite(found).all()
  assert (np.diff(found) < 0).all()
  np.testing.assert_allclose(found[[0, -1]], [high, low], rtol=1e-5, atol=2e-4)
  with jax.enable_x64(True):
    path = gaussian.bind(
      gaussian.Diffusion(schedule, marginals.variance_preserving, parameterizations.v()), ()
    )
    np.testing.assert_allclose(path.log_snr(jnp.array([0.0, 1.0])), [high, low], atol=1e-9)
    t, h = (np.arange(49) + 0.5) / 49, 1e-6
    secant = (path.log_snr(jnp.asarray(t + h)) - path.log_snr(jnp.asarray(t - h))) / (2 * h)
    np.testing.assert_allclose(path.slope(jnp.asarray(t)), secant, rtol=1e-4, atol=1e-6)


@examples(30)
@given(table=TABLES, data=st.data())
def test_a_table_is_its_schedules_and_its_last_step_can_be_all_but_noise(table, data):
  given_betas = table()
  assert ((given_betas > 0) & (given_betas < 1)).all()
  np.testing.assert_allclose(
    betas.of(schedules.discrete(table), (), 50), given_betas, rtol=1e-9, atol=1e-14
  )
  kept = betas.alpha_bars(given_betas)
  last = data.draw(number(-36, math.log(kept[-1] / (1 - kept[-1])) - 1e-6))
  rescaled = betas.zero_terminal_snr(table, last)()
  assert ((rescaled > 0) & (rescaled < 1)).all()
  assert rescaled[0] == pytest.approx(given_betas[0], rel=1e-9)
  # 1 - beta is what float64 leaves of it.
  found = betas.log_alpha_bars(rescaled)[-1]
  assert found == pytest.approx(-math.log1p(math.exp(-last)), abs=1e-9 + 2**-52 * math.exp(-last))


@pytest.mark.parametrize('process', MARGINALS, ids=lambda process: process.__name__)
@examples(10)
@given(log_snr=number(-80, 80))
def test_a_marginal_has_the_snr_asked_for_and_keeps_its_law(process, log_snr):
  alpha, sigma = map(np.asarray, process(jnp.full((1,), log_snr)))
  assert alpha.dtype == np.float32
  np.testing.assert_allclose(2 * (np.log(alpha) - np.log(sigma)), log_snr, rtol=1e-6, atol=1e-5)
  np.testing.assert_allclose(MARGINALS[process](alpha, sigma), 1, rtol=1e-6)


PARAMETERIZATIONS = {
  'eps': st.builds(parameterizations.eps),
  'x0': st.builds(parameterizations.x0),
  'v': st.builds(parameterizations.v),
  'score': st.builds(parameterizations.score),
  'velocity': st.builds(parameterizations.velocity),
  'EDM': st.builds(parameterizations.edm, number(0.05, 20)),
}
PROCESSES = st.sampled_from(list(MARGINALS))


@pytest.mark.parametrize('name', PARAMETERIZATIONS)
@examples(10)
@given(process=PROCESSES, log_snr=st.lists(number(-20, 20), min_size=4, max_size=4), data=st.data())
def test_what_a_network_says_and_what_it_means_are_one(name, process, log_snr, data):
  """Target to halves and back, output to halves and back, for each row at its own noise."""
  made, random = data.draw(PARAMETERIZATIONS[name]), data.draw(randoms)
  with jax.enable_x64(True):
    x0, eps, output = jnp.asarray(random.normal(size=(3, 4, 2, 1)))
    marginal = process(jnp.asarray(log_snr))
    z = gaussian.diffuse(x0, eps, marginal)
    # A half that is a small share of z comes back with the digits that z has of it.
    coefficients = {'x0': marginal.alpha, 'eps': marginal.sigma}
    size = np.asarray(jnp.maximum(marginal.alpha, marginal.sigma))
    meant = made.decode(made.target(x0, eps, marginal), z, marginal)
    for half, expected in (('x0', x0), ('eps', eps)):
      error = np.abs(getattr(meant, half) - expected).max((1, 2))
      assert (error <= 1e-13 * size / np.asarray(coefficients[half])).all(), half
    said = made.decode(output, z, marginal)
    np.testing.assert_allclose(gaussian.diffuse(said.x0, said.eps, marginal), z, rtol=1e-9)
    again = made.target(said.x0, said.eps, marginal)
    np.testing.assert_allclose(again, output, rtol=1e-6, atol=1e-6)
    inputs, noise = made.encode(z, marginal)
    np.testing.assert_allclose(noise, -np.asarray(log_snr) / 8, rtol=1e-9, atol=1e-12)
    # The input is z up to a factor of each row.
    factor = np.asarray(inputs / z).reshape(4, 2)
    np.testing.assert_allclose(factor[:, 0], factor[:, 1], rtol=1e-12)


@examples(15)
@given(process=PROCESSES, ends=interval(-40, 40, 1), times=interval(0, 1, 1e-3), random=randoms)
def test_a_posterior_and_the_noise_at_its_time_are_the_noise_before(process, ends, times, random):
  """q(z_s | z_t, x0) q(z_t | x0) summed over z_t is q(z_s | x0), in mean and in variance."""
  with jax.enable_x64(True):
    schedule = schedules.geometric(*(math.exp(-end / 2) for end in ends[::-1]))
    path = gaussian.bind(gaussian.Diffusion(schedule, process, parameterizations.v()), ())
    s, t = (jnp.full(1, time) for time in times)
    now, then = path.marginal(t), path.marginal(s)
    x0 = jnp.asarray(random.normal(size=(1, 3)))
    mean, variance = gaussian.posterior(path, now.alpha * x0, x0, t, s)
    np.testing.assert_allclose(mean, then.alpha * x0, rtol=1e-9)
    of_z, _ = gaussian.posterior(path, now.sigma * jnp.ones((1, 3)), 0 * x0, t, s)
    np.testing.assert_allclose(of_z[:, 0] ** 2 + variance, then.sigma**2, rtol=1e-9)


@jax.jit
def there_and_back(params, t):
  made = schedules.learned(-12.0, 9.0, 8)
  diffusion = gaussian.Diffusion(made, marginals.variance_preserving, parameterizations.v())
  path = gaussian.bind(diffusion, params)
  return path.time(path.log_snr(t))


@examples(20)
@given(random=randoms)
def test_time_is_the_inverse_of_log_snr_whatever_was_learned(random):
  with jax.enable_x64(True):
    params = {name: random.normal(0, 2, 8) for name in ('height', 'steepness', 'center')}
    t = np.concatenate([[0.0, 1.0], random.uniform(size=6)])
    np.testing.assert_allclose(there_and_back(params, t), t, atol=1e-9)


SOLVERS = {
  'DDIM': (samplers.ddim, 1),
  'Euler': (solvers.euler, 1),
  'Heun': (solvers.heun, 2),
  'DPM-Solver++': (solvers.dpm_solver, 2),
}


@functools.partial(jax.jit, static_argnames=('name', 'steps'))
def error(name, steps, params, mean, deviation):
  """Of samples of normal data, whose flow is exact: what is noise n at the start becomes mean + deviation n."""
  made = schedules.learned(-12.0, 14.0, 8)
  diffusion = gaussian.Diffusion(made, marginals.variance_preserving, parameterizations.v())
  path = gaussian.bind(diffusion, params)
  sampler = SOLVERS[name][0](path)
  grid = (sampler.grid or grids.uniform_time)(path, steps)
  denoise = analytic.gaussian_mixture(
    path, jnp.ones(1), jnp.full((1, 1), mean), jnp.full(1, deviation)
  )
  noise = jnp.linspace(-2.0, 2.0, 5)[:, None]
  alpha, sigma = path.marginal(grid[0])
  z = alpha * mean + jnp.sqrt((alpha * deviation) ** 2 + sigma**2) * noise
  keys = rng.row_keys(jax.random.key(0), jnp.arange(5))
  found = samplers.sample(denoise, path, sampler, grid, keys, (1,), z=z)
  return jnp.abs(found - mean - deviation * noise).max()


@pytest.mark.parametrize('name', SOLVERS)
@examples(5)
@given(mean=number(-1, 1), deviation=number(0.3, 1), random=randoms)
def test_twice_the_steps_on_a_samplers_own_grid_err_as_its_order_says(
  name, mean, deviation, random
):
  order = SOLVERS[name][1]
  with jax.enable_x64(True):
    params = {
      'height': random.uniform(-4, -2, 8),
      'steepness': random.uniform(-2, 1, 8),
      'center': np.linspace(0, 1, 8),
    }
    coarse, fine = (float(error(name, n, params, mean, deviation)) for n in (100, 200))
  # The geometric grid reaches farther with more steps: order 2 up to the square of a logarithm.
  assert fine < coarse * 2 ** (0.3 - order)
