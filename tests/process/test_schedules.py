"""Schedules: finite, strictly decreasing, with the stated end points, and the papers' own definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, special

from diffusion import citations
from diffusion.process import betas, marginals, schedules
from diffusion.types import Schedule

# What log-SNR must be at t = 1 and at t = 0, from each schedule's definition.
LINEAR_BETA_END = -np.log(np.exp(0.1 + (20.0 - 0.1) / 2) - 1)
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
SCHEDULES = {
  'cosine': (schedules.cosine, -15.0, 15.0),
  'cosine, skewed': (lambda: schedules.cosine(-20.0, 3.0), -20.0, 3.0),
  'cosine, noisy half only': (lambda: schedules.cosine(-9.0, -1.0), -9.0, -1.0),
  'cosine, widest': (lambda: schedules.cosine(-80.0, 80.0), -80.0, 80.0),
  'linear beta': (schedules.linear_beta, LINEAR_BETA_END, 9.21),
  'linear beta, constant': (
    lambda: schedules.linear_beta(2.0, 2.0, 6.0),
    -np.log(np.exp(2.0) - 1),
    6.0,
  ),
  'sigmoid': (schedules.sigmoid, -15.0, 15.0),
  'sigmoid, skewed': (lambda: schedules.sigmoid(0.0, 3.0, 0.3, -12.0, 9.0), -12.0, 9.0),
  'geometric': (schedules.geometric, -2 * np.log(50.0), -2 * np.log(0.01)),
  'EDM': (schedules.edm, -2 * np.log(80.0), -2 * np.log(0.002)),
  'rectified flow': (schedules.rectified_flow, -15.0, 15.0),
  'shifted': (
    lambda: schedules.shifted(schedules.cosine(), 0.25),
    -15 - 4 * np.log(2),
    15 - 4 * np.log(2),
  ),
  'clipped': (lambda: schedules.clipped(schedules.linear_beta(), -8.0, 6.0), -8.0, 6.0),
  'discrete': (
    lambda: schedules.discrete(betas.linear()),
    np.log(ABAR[-1] / (1 - ABAR[-1])),
    np.log(ABAR[0] / (1 - ABAR[0])),
  ),
}


@pytest.mark.parametrize('name', SCHEDULES)
def test_log_snr_is_finite_strictly_decreasing_and_ends_where_it_says(name):
  make, low, high = SCHEDULES[name]
  schedule = make()
  assert schedule.init(jax.random.key(0)) == ()
  log_snr = np.asarray(schedule.log_snr((), jnp.linspace(0.0, 1.0, 5001)))
  assert log_snr.dtype == np.float32
  assert np.isfinite(log_snr).all()
  assert (np.diff(log_snr) < 0).all()
  np.testing.assert_allclose(log_snr[[0, -1]], [high, low], rtol=2e-6)


@pytest.mark.parametrize('name', SCHEDULES)
def test_ends_are_exact_in_float64(name, x64):
  make, low, high = SCHEDULES[name]
  np.testing.assert_allclose(make().log_snr((), jnp.array([1.0, 0.0])), [low, high], rtol=1e-11)


@pytest.mark.parametrize('ends', [(-15.0, 15.0), (-20.0, 3.0), (-30.0, 30.0)])
def test_cosine_is_a_quarter_circle_walked_at_constant_speed(ends, x64):
  low, high = ends
  # u at the ends from alpha^2 = SNR / (1 + SNR) and alpha = cos(pi u / 2); in between u is linear in t.
  first, last = (2 / np.pi * np.arccos(1 / np.sqrt(1 + np.exp(-end))) for end in (high, low))
  t = jnp.linspace(0.0, 1.0, 257)
  u = (1 - t) * first + t * last
  alpha, sigma = marginals.variance_preserving(schedules.cosine(low, high).log_snr((), t))
  # arccos near 1 keeps half the digits: 1e-16 becomes 1e-8 in u, and no more than that in sigma.
  np.testing.assert_allclose(alpha, np.cos(np.pi * u / 2), atol=1e-8)
  np.testing.assert_allclose(sigma, np.sin(np.pi * u / 2), atol=1e-8)
  # Constant speed, from the curve alone.
  angle = np.arctan2(np.asarray(sigma), np.asarray(alpha))
  np.testing.assert_allclose(np.diff(angle), (angle[-1] - angle[0]) / 256, rtol=1e-9)


@pytest.mark.parametrize('numbers', [(0.1, 20.0, 9.21), (0.5, 12.0, 7.0), (3.0, 3.0, 5.0)])
def test_linear_beta_solves_the_stochastic_differential_equation(numbers, x64):
  """dx = -beta x du / 2 + sqrt(beta) dw: mean factor and variance by quadrature, nothing in closed form."""
  beta_min, beta_max, log_snr_max = numbers

  def beta(u):
    return beta_min + u * (beta_max - beta_min)

  def area(u):
    return integrate.quad(beta, 0, u, epsabs=1e-13)[0]

  def log_snr(u):
    alpha = np.exp(-area(u) / 2)
    kept = integrate.quad(
      lambda w: beta(w) * np.exp(area(w) - area(u)), 0, u, epsabs=1e-15, epsrel=1e-12
    )[0]
    return np.log(alpha**2 / kept)

  start = optimize.brentq(lambda u: log_snr(u) - log_snr_max, 1e-9, 1, xtol=1e-14)
  t = np.linspace(0, 1, 6)
  expected = [log_snr(start + x * (1 - start)) for x in t]
  found = schedules.linear_beta(*numbers).log_snr((), jnp.asarray(t))
  np.testing.assert_allclose(found, expected, atol=1e-8)


def test_linear_betas_are_those_of_ddpm():
  table = betas.linear()()
  assert table.dtype == np.float64
  assert (table.shape, table[0], table[-1]) == ((1000,), 1e-4, 0.02)
  np.testing.assert_allclose(np.diff(table), 0.0199 / 999, rtol=1e-10)


def test_discrete_reproduces_the_table_of_ddpm(x64):
  schedule = schedules.discrete(betas.linear())
  alpha, sigma = marginals.variance_preserving(schedule.log_snr((), np.arange(1000) / 999))
  np.testing.assert_allclose(alpha**2, ABAR, rtol=1e-9)
  np.testing.assert_allclose(sigma**2, 1 - ABAR, rtol=1e-9)
  # The known ends of the table: 1 - beta_1, and alpha-bar at step 1,000.
  np.testing.assert_allclose(alpha[0] ** 2, 0.9999, rtol=1e-12)
  np.testing.assert_allclose(alpha[-1] ** 2, 4.0358e-5, rtol=1e-5)


def test_discrete_on_its_steps_in_float32():
  schedule = schedules.discrete(betas.linear())
  found = schedule.log_snr((), jnp.linspace(0.0, 1.0, 1000))
  np.testing.assert_allclose(found, np.log(ABAR / (1 - ABAR)), atol=3e-4)


def test_discrete_is_linear_in_log_snr_between_steps(x64):
  table = np.array([0.02, 0.3, 0.05, 0.6])
  abar = np.cumprod(1 - table)
  log_snr = np.log(abar / (1 - abar))
  t = np.array([0.5, 1.25, 2.75]) / 3
  expected = [
    0.5 * log_snr[0] + 0.5 * log_snr[1],
    0.75 * log_snr[1] + 0.25 * log_snr[2],
    0.25 * log_snr[2] + 0.75 * log_snr[3],
  ]
  np.testing.assert_allclose(schedules.discrete(table).log_snr((), t), expected, rtol=1e-12)


def test_sigmoid_is_the_difference_of_sigmoids(x64):
  """alpha^2 from its definition at times found by root search, not from hyperbolic sines."""
  start, end, temperature = -3.0, 3.0, 0.9
  schedule = schedules.sigmoid(start, end, temperature, -9.0, 7.0)

  def alpha_squared(u):
    low, high, x = (special.expit(v / temperature) for v in (start, end, start + u * (end - start)))
    return (high - x) / (high - low)

  def time(value):
    return optimize.brentq(
      lambda u: special.logit(alpha_squared(u)) - value, 1e-9, 1 - 1e-9, xtol=1e-15
    )

  first, last = time(7.0), time(-9.0)
  t = jnp.linspace(0.0, 1.0, 33)
  expected = special.logit(alpha_squared(first + t * (last - first)))
  np.testing.assert_allclose(schedule.log_snr((), t), expected, atol=1e-8)


def test_geometric_and_edm_walk_sigma_as_they_say(x64):
  t = np.linspace(0.0, 1.0, 17)
  sigma = np.exp(-0.5 * np.asarray(schedules.geometric(0.02, 30.0).log_snr((), t)))
  np.testing.assert_allclose(sigma[1:] / sigma[:-1], (30.0 / 0.02) ** (1 / 16), rtol=1e-12)
  sigma = np.exp(-0.5 * np.asarray(schedules.edm(0.002, 80.0, 7.0).log_snr((), t)))
  np.testing.assert_allclose(
    np.diff(sigma ** (1 / 7)), (80 ** (1 / 7) - 0.002 ** (1 / 7)) / 16, rtol=1e-9
  )
  linear = np.exp(-0.5 * np.asarray(schedules.edm(0.002, 80.0, 1.0).log_snr((), t)))
  np.testing.assert_allclose(np.diff(linear), (80 - 0.002) / 16, rtol=1e-12)


def test_rectified_flow_is_a_straight_line_walked_at_constant_speed(x64):
  t = np.linspace(0.0, 1.0, 33)
  alpha, sigma = marginals.rectified_flow(schedules.rectified_flow(-12.0, 9.0).log_snr((), t))
  np.testing.assert_allclose(alpha + sigma, 1, rtol=1e-14)
  np.testing.assert_allclose(np.diff(sigma), (sigma[-1] - sigma[0]) / 32, rtol=1e-10)


def test_clipped_is_the_same_curve_in_between(x64):
  """Between its ends every value of the original is found at a time that is linear in the original's."""
  whole, part = schedules.linear_beta(), schedules.clipped(schedules.linear_beta(), -8.0, 6.0)
  fine = jnp.linspace(0.0, 1.0, 200_001)
  log_snr = np.asarray(whole.log_snr((), fine))
  t = jnp.linspace(0.0, 1.0, 9)
  original = np.interp(-np.asarray(part.log_snr((), t)), -log_snr, fine)
  np.testing.assert_allclose(np.diff(original), (original[-1] - original[0]) / 8, atol=1e-7)


def test_learned_starts_near_its_line_and_keeps_its_ends_and_order_whatever_the_parameters(x64):
  schedule = schedules.learned(-7.0, 11.0, width=16)
  t = jnp.linspace(0.0, 1.0, 2001)
  params = schedule.init(jax.random.key(0))
  line = 11 - 18 * np.asarray(t)
  assert np.abs(np.asarray(schedule.log_snr(params, t)) - line).max() < 1.5
  assert (params['steepness'] != schedule.init(jax.random.key(1))['steepness']).all()
  # By its formula, where its steps are high.
  high = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
  high['height'] = np.linspace(-1.0, 1.0, 16)
  high['center'] = np.linspace(0.0, 0.5, 16)
  a, b = (np.log1p(np.exp(high[name])) for name in ('height', 'steepness'))
  rise = t + special.expit(8 * b * (np.asarray(t)[:, None] - high['center'])) @ a
  share = (rise - rise[0]) / (rise[-1] - rise[0])
  np.testing.assert_allclose(schedule.log_snr(high, t), 11 - 18 * share, atol=1e-9)
  for seed in range(20):
    noise = np.random.default_rng(seed)
    wild = jax.tree.map(lambda leaf, n=noise: leaf + 3 * n.normal(size=leaf.shape), params)
    log_snr = np.asarray(schedule.log_snr(wild, t))
    assert (np.diff(log_snr) < 0).all()
    np.testing.assert_allclose(log_snr[[0, -1]], [11, -7], atol=1e-12)


def test_gradient_of_learned_is_that_of_finite_differences(x64):
  schedule = schedules.learned(width=5)
  params = schedule.init(jax.random.key(1))
  t = jnp.linspace(0.05, 0.95, 7)
  weight = jnp.asarray(np.random.default_rng(0).normal(size=7))
  value = lambda p: (weight * schedule.log_snr(p, t)).sum()  # noqa: E731
  gradient = jax.grad(value)(params)
  for name, leaf in params.items():
    for i in range(leaf.size):
      ahead, behind = (value(params | {name: leaf.at[i].add(d)}) for d in (1e-5, -1e-5))
      np.testing.assert_allclose(gradient[name][i], (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
  'make, names',
  [
    (lambda: schedules.cosine(3.0, 3.0), 'log_snr_min=3.0'),
    (lambda: schedules.cosine(5.0, -5.0), 'log_snr_min=5.0, log_snr_max=-5.0'),
    (lambda: schedules.cosine(-80.5, 0.0), 'log_snr_min=-80.5'),
    (lambda: schedules.cosine(-1.0, np.inf), 'log_snr_max=inf'),
    (lambda: schedules.cosine(np.nan, 1.0), 'log_snr_min=nan'),
    (lambda: schedules.linear_beta(beta_min=0.0), 'beta_min .* got 0.0'),
    (lambda: schedules.linear_beta(beta_min=1.0, beta_max=0.5), 'beta_max .* got 0.5'),
    (lambda: schedules.linear_beta(beta_max=np.inf), 'beta_max .* got inf'),
    (lambda: schedules.linear_beta(log_snr_max=-11.0), 'log_snr_max=-11.0'),
    # exp(1000) does not fit a float64: still this error, not an overflow.
    (lambda: schedules.linear_beta(beta_max=2000.0), 'log_snr_min=-1000'),
    (lambda: schedules.sigmoid(start=2.0, end=1.0), 'start=2.0, end=1.0'),
    (lambda: schedules.sigmoid(temperature=0.0), 'temperature .* got 0.0'),
    (lambda: schedules.geometric(1.0, 1.0), 'sigma_min=1.0, sigma_max=1.0'),
    (lambda: schedules.geometric(0.0, 1.0), 'sigma_min .* got 0.0'),
    (lambda: schedules.geometric(1e-20, 1.0), 'log_snr_max=92'),
    (lambda: schedules.edm(80.0, 0.002), 'sigma_min=80.0, sigma_max=0.002'),
    (lambda: schedules.edm(rho=0.0), 'rho .* got 0.0'),
    (lambda: schedules.edm(rho=0.07), 'rho .* got 0.07: .* leaves float32'),
    (lambda: schedules.rectified_flow(1.0, -1.0), 'log_snr_min=1.0'),
    (lambda: schedules.shifted(schedules.cosine(), 0.0), 'factor .* got 0.0'),
    (lambda: schedules.shifted(schedules.cosine(-70.0, 0.0), 1e-4), 'log_snr_min=-88'),
    (
      lambda: schedules.clipped(schedules.cosine(-15.0, 12.0), -16.0, 0.0),
      'inside the schedule, -15 to 12, got log_snr_min=-16.0, log_snr_max=0.0',
    ),
    (lambda: schedules.clipped(schedules.cosine(-15.0, 12.0), 0.0, 12.5), 'log_snr_max=12.5'),
    (lambda: schedules.clipped(schedules.cosine(), 3.0, -3.0), 'log_snr_min=3.0'),
    (lambda: schedules.clipped(schedules.learned(), -1.0, 1.0), 'without parameters'),
    (lambda: schedules.learned(width=0), 'width .* got 0'),
    (lambda: schedules.learned(5.0, -5.0), 'log_snr_min=5.0'),
    (lambda: betas.linear(steps=1), 'steps .* got 1'),
    (lambda: betas.linear(steps=10.0), 'steps .* got 10.0'),
    (lambda: betas.linear(first=0.0), 'first .* got 0.0'),
    (lambda: betas.linear(last=1.0), 'last .* got 1.0'),
    (lambda: betas.linear(first=0.1, last=0.05), 'last .* got 0.05'),
    (lambda: schedules.discrete(np.full((2, 2), 0.1)), r'shape \(2, 2\)'),
    (lambda: schedules.discrete([0.1]), r'shape \(1,\)'),
    (lambda: schedules.discrete([0.1, 0.2, 1.5]), r'betas\[2\] = .*1.5'),
    (lambda: schedules.discrete([0.1, np.nan]), r'betas\[1\] = .*nan'),
  ],
)
def test_bad_arguments_are_named_with_their_value(make, names):
  with pytest.raises(ValueError, match=names):
    make()


@pytest.mark.parametrize('factor', [0.25, 1.0, 4.0])
def test_shifted_moves_log_snr_by_twice_the_log_of_its_factor(factor):
  """log_snr(t) of noise scaled by the resolution: sigma / alpha divided by the factor at every t."""
  t = jnp.linspace(0, 1, 9)
  learned = Schedule(lambda key: jnp.ones(1), lambda fall, t: 5 - fall * t)
  used = {one.name for one in citations.techniques(schedules.shifted(schedules.cosine(), factor))}
  assert used - {'cosine noise schedule'} == ({'shifted noise schedule'} if factor != 1 else set())
  for plain in (schedules.cosine(), learned):
    moved = schedules.shifted(plain, factor)
    params = jax.tree.map(lambda leaf: 7 * leaf, moved.init(jax.random.key(0)))
    difference = moved.log_snr(params, t) - plain.log_snr(params, t)
    np.testing.assert_allclose(difference, 2 * np.log(factor), atol=1e-4)
