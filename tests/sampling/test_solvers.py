"""Solvers against the probability flow of a Gaussian mixture: order of convergence, moments, temperature, NFE."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import samplers as benchmark
from diffusion import rng
from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules
from diffusion.sampling import grids, guidance, likelihood, samplers, solvers, wrappers
from diffusion.types import Prediction, Sampler
from tests.compiled import optimized

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[1.0, 1.0], [-1.0, -0.5]])
COVARIANCES = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.25, -0.05], [-0.05, 0.4]]])
PROCESSES = {
  'variance preserving': (schedules.cosine, marginals.variance_preserving),
  'variance exploding': (lambda: schedules.edm(0.01, 60.0), marginals.variance_exploding),
  'rectified flow': (schedules.rectified_flow, marginals.rectified_flow),
}


def path_of(name='variance preserving'):
  schedule, process = PROCESSES[name]
  return gaussian.bind(gaussian.Diffusion(schedule(), process, parameterizations.v()), ())


def mixture(path):
  return analytic.gaussian_mixture(path, WEIGHTS, MEANS, COVARIANCES)


def row_keys(count, seed=0):
  return rng.row_keys(jax.random.key(seed), jnp.arange(count))


ORDERS = {
  'DDIM': (samplers.ddim, 1),
  'Euler': (solvers.euler, 1),
  'Heun': (solvers.heun, 2),
  'DPM-Solver++ 2M': (solvers.dpm_solver, 2),
}


@functools.cache
def solved(process):
  """(z at a log-SNR of -8, its adaptive solution at 6 and at 1e-11), which all samplers are held to."""
  path = path_of(process)
  start, end = (float(path.time(jnp.asarray(v))) for v in (-8.0, 6.0))
  scale = path.marginal(jnp.asarray(start)).sigma
  z = scale * jnp.asarray(np.random.default_rng(0).normal(size=(16, 2)))
  return z, likelihood.solve(mixture(path), path, z, start, end, rtol=1e-11, atol=1e-11).z


@pytest.mark.parametrize('process', PROCESSES)
@pytest.mark.parametrize('name', ORDERS)
def test_order_of_convergence_on_the_probability_flow_of_a_mixture(name, process, x64):
  """log-SNR from -8 to 6 in equal steps."""
  make, order = ORDERS[name]
  path = path_of(process)
  denoise = mixture(path)
  z, exact = solved(process)
  counts, errors = np.array([160, 320, 640]), []
  for steps in counts:
    grid = grids.uniform_log_snr(path, int(steps), -8.0, 6.0)
    run = functools.partial(
      samplers.sample, denoise, path, make(path), grid, z=z, denoise_last=False
    )
    found = jax.jit(lambda keys, run=run: run(keys, (2,)))(row_keys(16))
    errors.append(float(np.sqrt(((found - exact) ** 2).sum(1).mean())))
  slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
  print(f'{name}, {process}: order {slope:.3f}, errors {[f"{e:.2e}" for e in errors]}')
  assert abs(slope - order) < 0.2, (slope, errors)


STOCHASTIC = {
  'ancestral': samplers.ancestral,
  'ancestral, forward variance': lambda path: samplers.ancestral(path, 'forward'),
  'DDIM, eta 0.5': lambda path: samplers.ddim(path, 0.5),
  'DDIM, eta 1': lambda path: samplers.ddim(path, 1.0),
  'Euler-Maruyama': solvers.euler_maruyama,
  'Heun, churn 0.02': lambda path: solvers.heun(path, churn=0.02),
  'Heun, churn 0.2': lambda path: solvers.heun(path, churn=0.2),
  'SDE-DPM-Solver++ 2M': lambda path: solvers.dpm_solver(path, stochastic=True),
}


def assert_the_mixture(x, slack=0.0):
  """Mean, covariance and component shares within 4.5 standard errors, plus a stated slack for discretization."""
  n = len(x)
  mean = WEIGHTS @ MEANS
  spread = sum(
    w * (c + np.outer(m - mean, m - mean))
    for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
  )
  assert (np.abs(x.mean(0) - mean) < 4.5 * np.sqrt(np.diag(spread) / n) + slack).all()
  products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
  error = products.std(0) / np.sqrt(n)
  assert (np.abs(products.mean(0) - spread) < 4.5 * error + slack).all()
  density = [
    w
    * np.exp(-0.5 * np.einsum('ni,ij,nj->n', x - m, np.linalg.inv(c), x - m))
    / np.sqrt(np.linalg.det(c))
    for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
  ]
  first = (density[0] / sum(density)).mean()  # E of the responsibility is the share
  assert abs(first - WEIGHTS[0]) < 4.5 * 0.5 / np.sqrt(n) + slack


@pytest.mark.parametrize('name', STOCHASTIC)
def test_a_thousand_stochastic_steps_reach_the_mixture(name):
  path = path_of()
  denoise, sampler = mixture(path), STOCHASTIC[name](path)
  grid = grids.uniform_log_snr(path, 1000, -12.0, 10.0)
  run = optimized(lambda keys: samplers.sample(denoise, path, sampler, grid, keys, (2,)))
  count = 5000 if 'churn' in name else 20_000  # churn looks up its time for every row
  assert_the_mixture(np.asarray(run(row_keys(count)), np.float64), slack=0.004)


def test_langevin_corrections_repair_a_coarse_predictor():
  """Thirty steps of the reverse chain alone are off; corrections at every level bring its moments closer."""
  path = path_of()
  denoise = analytic.gaussian_mixture(path, np.ones(1), np.full((1, 2), 0.5), np.full(1, 0.5))
  grid = grids.uniform_log_snr(path, 30, -12.0, 3.0)

  def variance(sampler):
    run = optimized(
      lambda keys: samplers.sample(denoise, path, sampler, grid, keys, (2,), denoise_last=False)
    )
    return np.asarray(run(row_keys(20_000)), np.float64).var()

  alpha, sigma = path.marginal(grid[-1])
  exact = float(alpha**2 * 0.25 + sigma**2)
  coarse = variance(samplers.ancestral(path))
  corrected = variance(wrappers.predictor_corrector(path, samplers.ancestral(path), 8, 0.16))
  assert abs(coarse - exact) > 0.02  # there is something to repair
  assert abs(corrected - exact) < 0.6 * abs(coarse - exact)


GAUSSIAN = 0.5  # standard deviation of the data of the temperature tests


def recursion(path, grid, sampler, temperature, score):
  """Variance at the end of the walk for Gaussian data, step by step: every step is linear in z plus noise. NumPy only.

  A step is z_s = a z_t + b n; a is read off the sampler's own formula with E[x0|z], E[eps|z] linear in z.
  """
  log_snr = np.asarray(path.log_snr(jnp.asarray(grid)), np.float64)
  alpha, sigma = 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))
  variance = sigma[0] ** 2
  for i in range(len(grid) - 1):
    a, s, a_next, s_next = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
    eps = (
      s / (a**2 * GAUSSIAN**2 + s**2) / score
    )  # E[eps | z] / z, divided by the score's temperature
    x0 = (1 - s * eps) / a
    fresh = -np.expm1(log_snr[i] - log_snr[i + 1])
    if sampler == 'ancestral':
      gain = (1 - fresh) * a_next / a + a_next * fresh * x0
      noise = fresh * s_next**2
    else:  # DDIM with eta
      eta = sampler
      gain = a_next * x0 + s_next * np.sqrt(1 - eta**2 * fresh) * eps
      noise = eta**2 * fresh * s_next**2
    variance = gain**2 * variance + temperature**2 * noise
  return variance


@pytest.mark.parametrize(
  'temperature, score', [(1.0, 1.0), (0.7, 1.0), (1.2, 1.0), (1.0, 0.7), (1.0, 1.3)]
)
@pytest.mark.parametrize('sampler', ['ancestral', 0.0, 0.6])
def test_temperatures_follow_the_finite_step_recursion(sampler, temperature, score):
  path = path_of()
  grid = grids.uniform_log_snr(path, 12, -6.0, 5.0)
  denoise = guidance.score_temperature(
    analytic.gaussian_mixture(path, np.ones(1), np.zeros((1, 4)), np.full(1, GAUSSIAN)), path, score
  )
  made = (
    samplers.ancestral(path, temperature=temperature)
    if sampler == 'ancestral'
    else samplers.ddim(path, sampler, temperature)
  )
  sigma = float(path.marginal(grid[0]).sigma)
  z = sigma * jax.random.normal(jax.random.key(9), (40_000, 4))
  run = jax.jit(
    lambda keys, z: samplers.sample(denoise, path, made, grid, keys, (4,), z=z, denoise_last=False)
  )
  found = np.asarray(run(row_keys(40_000), z), np.float64)
  exact = recursion(path, np.asarray(grid), sampler, temperature, score)
  print(
    f'{sampler}, noise {temperature}, score {score}: variance {found.var():.5f}, recursion {exact:.5f}'
  )
  assert abs(found.var() - exact) < 4.5 * exact * np.sqrt(2 / found.size)


def test_score_temperature_is_not_the_temperature_of_the_data():
  """Dividing the score by 0.5 does not halve the variance: the recursion's limit is another number."""
  path = path_of()
  exact = recursion(
    path, np.asarray(grids.uniform_log_snr(path, 2000, -10.0, 9.0)), 'ancestral', 1, 0.5
  )
  assert abs(exact / GAUSSIAN**2 - 0.5) > 0.05


@pytest.mark.parametrize('process', PROCESSES)
def test_eulers_step_is_the_tangent_where_it_begins(process, x64):
  """By differences of the marginals: z + (s - t) (alpha' x0 + sigma' eps), all at t."""
  path, h = path_of(process), 1e-6
  t, s = jnp.array([0.9, 0.5, 0.3]), jnp.array([0.7, 0.2, 0.29])
  z, x0, eps = (jnp.asarray(a) for a in np.random.default_rng(0).normal(size=(3, 3, 2)))
  later, earlier = path.marginal(t + h), path.marginal(t - h)
  slope = [(a - b)[:, None] / (2 * h) for a, b in zip(later, earlier, strict=True)]
  asked = []

  def denoise(z, t, key=None):
    asked.append(t)
    return Prediction(x0, eps)

  found = solvers.euler(path).step(denoise, row_keys(3), z, t, s)
  expected = z + (s - t)[:, None] * (slope[0] * x0 + slope[1] * eps)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert len(asked) == 1
  np.testing.assert_array_equal(asked[0], t)
  # The stochastic equation without its noise moves by half of g^2 eps / sigma more.
  rate = (path.log_snr(t - h) - path.log_snr(t + h)) / (2 * h)
  expected += (s - t)[:, None] * (0.5 * path.marginal(t).sigma * rate)[:, None] * eps
  found = solvers.euler_maruyama(path, 0.0).step(denoise, row_keys(3), z, t, s)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_step_of_heun_is_the_trapezoid_but_where_it_is_long_and_above_the_data(x64):
  """Karras et al. (2022), algorithm 2, in z / alpha and s; the first of four steps alone is Euler's."""
  path = path_of()
  before, after = np.array([4.0, 4.0, 3.9, 0.5]), np.array([1.2, 1.5, 0.9, 0.4])
  t, s = (path.time(jnp.asarray(-2 * np.log(level))) for level in (before, after))
  z, x0, *eps = np.random.default_rng(0).normal(size=(5, 4, 2))
  asked = []

  def denoise(z, t, key=None):
    asked.append((z, t))
    return Prediction(jnp.asarray(x0), jnp.asarray(eps[len(asked) - 1]))

  found = solvers.heun(path).step(denoise, row_keys(4), jnp.asarray(z), t, s)
  alpha, then = (np.asarray(path.marginal(time).alpha)[:, None] for time in (t, s))
  length = (after - before)[:, None]
  euler = then * (z / alpha + length * eps[0])
  euler[0] = then[0] * (x0 + after[:, None] * eps[0])[0]
  trapezoid = then * (z / alpha + length * (eps[0] + eps[1]) / 2)
  np.testing.assert_allclose(asked[1][0], euler, rtol=1e-8)
  np.testing.assert_array_equal(asked[1][1], s)
  np.testing.assert_allclose(found, [euler[0], *trapezoid[1:]], rtol=1e-8)


@pytest.mark.parametrize('process', PROCESSES)
@pytest.mark.parametrize('stochastic', [False, True])
def test_three_unequal_steps_of_dpm_solver_by_the_paper(process, stochastic, x64):
  """Lu et al. (2022), algorithm 2: predictions of three times, half log-SNRs that are 1, 0.4 and 1.5 apart."""
  path = path_of(process)
  level = np.array([-1.0, 0.0, 0.4, 1.9])
  times = path.time(jnp.asarray(2 * level))
  x0 = np.random.default_rng(1).normal(size=(3, 2))
  z = np.array([0.7, -1.1])
  alpha, sigma = (np.asarray(c) for c in path.marginal(times))
  solver = solvers.dpm_solver(path, stochastic, temperature=0.0)
  state, expected = solver.init(jnp.asarray(z)[None]), z
  for i in range(3):
    h = level[i + 1] - level[i]
    d = x0[i]
    if i:
      r = (level[i] - level[i - 1]) / h
      d = (1 + 1 / (2 * r)) * x0[i] - x0[i - 1] / (2 * r)
    kept = sigma[i + 1] / sigma[i] * (np.exp(-h) if stochastic else 1)
    expected = kept * expected + alpha[i + 1] * (1 - np.exp((-2 if stochastic else -1) * h)) * d
    predict = lambda z, t, i=i: Prediction(jnp.asarray(x0[i])[None], z)  # noqa: E731
    state = solver.step(predict, row_keys(1), state, times[i][None], times[i + 1][None])
    np.testing.assert_allclose(state.z[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
  'make', [solvers.euler_maruyama, functools.partial(solvers.dpm_solver, stochastic=True)]
)
def test_noise_of_a_step_is_proportional_to_its_temperature(make, x64):
  path = path_of()
  denoise, z = mixture(path), jnp.ones((3, 2))
  t, s = jnp.array([0.6, 0.9, 0.3]), jnp.array([0.5, 0.4, 0.28])

  def difference(temperature):
    sampler = make(path, temperature=temperature)
    ends = [
      jax.tree.leaves(sampler.step(denoise, row_keys(3, seed), sampler.init(z), t, s))[0]
      for seed in (0, 1)
    ]
    return ends[0] - ends[1]

  np.testing.assert_allclose(difference(0.3), 0.3 * difference(1.0), rtol=1e-9)
  assert (difference(0.0) == 0).all()
  assert (np.abs(difference(1.0)) > 1e-4).all()
  # g sqrt(t - s) at t, and sigma sqrt(1 - exp(-2 h)) at s, of the row's own draw.
  if make is solvers.euler_maruyama:
    rate = (path.log_snr(t - 1e-6) - path.log_snr(t + 1e-6)) / 2e-6
    deviation = path.marginal(t).sigma * np.sqrt(rate * (t - s))
  else:
    deviation = path.marginal(s).sigma * np.sqrt(1 - np.exp(path.log_snr(t) - path.log_snr(s)))
  drawn = rng.normal(row_keys(3, 0), (2,)) - rng.normal(row_keys(3, 1), (2,))
  np.testing.assert_allclose(difference(1.0), deviation[:, None] * drawn, rtol=1e-6)


def test_churn_keeps_the_marginal_at_the_higher_level():
  """z_t noised to s (1 + gamma) is distributed as z at that level: seen by a denoiser that answers with its input."""
  path = path_of('variance exploding')
  t = jnp.full(50_000, 0.5)
  now = float(jnp.exp(-0.5 * path.log_snr(t[0])))
  x0 = 0.7 * jax.random.normal(jax.random.key(0), (50_000, 1))
  z = x0 + now * jax.random.normal(jax.random.key(1), (50_000, 1))
  seen = []

  def spy(z, t, key=None):
    seen.append((z, t))
    return Prediction(z, z * 0)

  solvers.heun(path, churn=0.3).step(spy, row_keys(50_000), z, t, jnp.full(50_000, 0.4))
  higher, later = seen[0]
  np.testing.assert_allclose(np.exp(-0.5 * np.asarray(path.log_snr(later))), 1.3 * now, rtol=1e-5)
  expected = 0.49 + (1.3 * now) ** 2
  assert abs(float(higher.var()) - expected) < 4.5 * expected * np.sqrt(2 / 50_000)


@pytest.mark.parametrize('amount', [0.0, 0.5, 1.0, 1.5])
def test_the_noise_of_churn_is_scaled(amount):
  """By a denoiser that sees no noise, so that z / alpha moves by what is added alone."""
  path, count = path_of(), 20000
  none = lambda z, t, key=None: Prediction(z, jnp.zeros_like(z))  # noqa: E731
  t, s = jnp.full(count, 0.6), jnp.full(count, 0.5)
  sampler = solvers.heun(path, churn=0.3, noise_scale=amount)
  found = np.asarray(sampler.step(none, row_keys(count), jnp.ones((count, 2)), t, s))
  (alpha_t, sigma_t), (alpha_s, _) = ([float(c[0]) for c in path.marginal(time)] for time in (t, s))
  moved = found / alpha_s - 1 / alpha_t
  added = amount * (1.3**2 - 1) ** 0.5 * sigma_t / alpha_t
  np.testing.assert_allclose(moved.std(), added, rtol=4 / (2 * count) ** 0.5, atol=1e-5)


def test_churn_stops_at_the_end_of_the_schedule_and_outside_its_interval():
  path = path_of('variance exploding')

  def first_time(t, **interval):
    seen = []

    def spy(z, t, key=None):
      seen.append(t)
      return Prediction(z, z)

    sampler = solvers.heun(path, churn=0.4, **interval)
    sampler.step(spy, row_keys(1), jnp.ones((1, 1)), jnp.full(1, t), jnp.full(1, t / 2))
    return float(seen[0][0])

  assert first_time(1.0) == 1.0
  assert first_time(0.5) > 0.5
  assert first_time(0.5, churn_high=1e-3) == 0.5
  assert first_time(0.5, churn_low=59.0) == 0.5
  now = float(jnp.exp(-0.5 * path.log_snr(jnp.full(1, 0.5)))[0])
  assert first_time(0.5, churn_low=now, churn_high=now) > 0.5  # both ends belong to it


COUNTS = {
  'DDIM': (samplers.ddim, 25, 25),
  'Heun': (solvers.heun, 18, 35),  # Karras et al.'s 35 evaluations of 18 steps
  'DPM-Solver++': (solvers.dpm_solver, 10, 10),
  'predictor-corrector': (
    lambda path: wrappers.predictor_corrector(path, samplers.ancestral(path), 2),
    5,
    13,
  ),
}


@pytest.mark.parametrize('name', COUNTS)
def test_evaluations_are_counted_as_they_happen(name):
  make, steps, expected = COUNTS[name]
  path = path_of()
  assert samplers.evaluations(make(path), steps, (2,)) == expected
  called = 0

  def spy(z, t, key=None):
    nonlocal called
    called += 1
    return Prediction(z, z)

  with jax.disable_jit():  # the scan becomes a loop: every call is a call
    grid = grids.uniform_time(path, steps)
    samplers.sample(spy, path, make(path), grid, row_keys(1), (2,))
  assert called == expected


def test_a_trace_holds_the_walk_and_ends_where_the_sample_does():
  path = path_of()
  denoise, sampler, grid = mixture(path), solvers.dpm_solver(path), grids.uniform_time(path, 6)
  keys = row_keys(3)
  seen = samplers.trace(denoise, path, sampler, grid, keys, (2,))
  end = samplers.sample(denoise, path, sampler, grid, keys, (2,), denoise_last=False)
  assert seen.z.shape == (7, 3, 2)
  assert seen.x0.shape == (6, 3, 2)
  np.testing.assert_allclose(seen.z[-1], end, atol=1e-5)
  for i in range(6):
    predicted = denoise(seen.z[i], jnp.full(3, grid[i])).x0
    np.testing.assert_allclose(seen.x0[i], predicted, atol=1e-5)


def test_a_trace_of_inpainting_ends_with_what_is_known():
  path = path_of()
  known, mask = jnp.array([[0.3, -0.2]]), jnp.array([[True, False]])
  sampler = wrappers.inpaint(path, samplers.ddim(path), known, mask)
  walk = mixture(path), path, sampler, grids.uniform_time(path, 4), row_keys(3), (2,)
  seen, end = samplers.trace(*walk), samplers.sample(*walk, denoise_last=False)
  np.testing.assert_array_equal(seen.z[-1, :, 0], known[0, 0])
  np.testing.assert_allclose(seen.z[-1], end, atol=1e-5)


def test_inpainting_keeps_what_is_known_and_repeats_bring_the_rest_to_its_condition():
  """Two strongly correlated coordinates, one known: the other's mean is known in closed form."""
  path = path_of()
  covariance = np.array([[1.0, 0.9], [0.9, 1.0]])
  denoise = analytic.gaussian_mixture(path, np.ones(1), np.zeros((1, 2)), covariance[None])
  known = jnp.broadcast_to(jnp.array([1.0, 0.0]), (4000, 2))
  mask = jnp.array([True, False])
  grid = grids.uniform_log_snr(path, 60, -10.0, 8.0)

  def mean(repeats):
    sampler = wrappers.inpaint(path, samplers.ancestral(path), known, mask, repeats)
    run = jax.jit(
      lambda keys: samplers.sample(denoise, path, sampler, grid, keys, (2,), denoise_last=False)
    )
    x = np.asarray(run(row_keys(4000)))
    np.testing.assert_array_equal(x[:, 0], 1)
    return x[:, 1].mean()

  once, often = mean(1), mean(10)
  assert abs(often - 0.9) < 0.5 * abs(once - 0.9)
  assert abs(often - 0.9) < 0.1


def test_a_langevin_step_is_of_the_level_that_the_predictor_arrived_at():
  """By a predictor that stays, and a denoiser that says what time it is told."""
  path, count = path_of(), 20000
  stay = Sampler(init=lambda z: z, step=lambda denoise, keys, z, t, s: z)
  stay = stay._replace(of_rows=lambda number: stay._replace(of_rows=None), finish=jnp.square)
  tell = lambda z, t, key=None: Prediction(z, jnp.broadcast_to(t[:, None], z.shape))  # noqa: E731
  z, t, s = jnp.zeros((count, 2)), jnp.full(count, 0.6), jnp.full(count, 0.3)
  sampler = wrappers.predictor_corrector(path, stay, 1, 0.2)
  of_rows = sampler.of_rows(jnp.arange(count))
  found = sampler.step(tell, row_keys(count), z, t, s)
  np.testing.assert_allclose(of_rows.step(tell, row_keys(count), z, t, s), found, rtol=1e-5)
  assert sampler.finish is of_rows.finish is jnp.square  # what the predictor brings stays
  sigma = float(path.marginal(s).sigma[0])
  size = 2 * (0.2 * sigma) ** 2
  deviation = (2 * size) ** 0.5
  close = 4 * deviation / (2 * count) ** 0.5
  np.testing.assert_allclose(found.mean(), -size * 0.3 / sigma, atol=close)
  np.testing.assert_allclose(found.std(), deviation, rtol=4 / (4 * count) ** 0.5)


def test_known_pixels_are_noised_to_the_step_and_back_for_a_repeat():
  """By a sampler that swaps the two coordinates, so that the unknown one ends as what the last repeat began with."""
  path, count = path_of(), 20000
  swap = Sampler(init=lambda z: z, step=lambda denoise, keys, z, t, s: z[:, ::-1])
  known, mask = jnp.array([[0.8, 0.0], [0.8, 0.0]]), jnp.array([True, False])
  t, s = jnp.full(count, 0.6), jnp.full(count, 0.3)
  z = 5 + jnp.zeros((count, 2))
  once, twice = (
    wrappers.inpaint(path, swap, known, mask, repeats)
    .of_rows(jnp.arange(count))
    .step(None, row_keys(count), z, t, s)
    for repeats in (1, 2)
  )
  for found, time in ((once[:, 0], s), (twice[:, 0], s), (twice[:, 1], t)):
    alpha, sigma = (float(one[0]) for one in path.marginal(time))
    np.testing.assert_allclose(found.mean(), 0.8 * alpha, atol=4 * sigma / count**0.5)
    np.testing.assert_allclose(found.std(), sigma, rtol=4 / (2 * count) ** 0.5)


def test_inpainting_around_what_differs_by_sample_tells_it_the_numbers_and_lets_it_finish():
  path = path_of()

  def told(number):
    step = lambda denoise, keys, z, t, s: z + number[:, None]  # noqa: E731
    return Sampler(init=lambda z: z, step=step, finish=lambda z: 10 * z, of_rows=told)

  known, mask = jnp.array([[7.0, 0.0]]), jnp.array([True, False])
  number, t, s = jnp.array([5, 3]), jnp.full(2, 0.6), jnp.full(2, 0.3)
  sampler = wrappers.inpaint(path, told(0 * number), known, mask).of_rows(number)
  z = sampler.step(None, row_keys(2), jnp.ones((2, 2)), t, s)
  np.testing.assert_array_equal(z[:, 1], [6, 4])
  np.testing.assert_array_equal(sampler.finish(z), [[7, 60], [7, 40]])


def test_each_repeat_of_inpainting_draws_its_own_noise():
  """By a sampler that adds noise, with nothing known: variances add up, those of equal draws would do so as amounts."""
  path, count = path_of(), 20000
  add = Sampler(
    init=lambda z: z, step=lambda denoise, keys, z, t, s: z + rng.normal(keys, z.shape[1:])
  )
  t, s = jnp.full(count, 0.6), jnp.full(count, 0.3)
  sampler = wrappers.inpaint(path, add, jnp.zeros((1, 2)), jnp.array([False, False]), 3)
  found = np.asarray(sampler.step(None, row_keys(count), jnp.zeros((count, 2)), t, s))
  (alpha_t, sigma_t), (alpha_s, sigma_s) = (
    [float(c[0]) for c in path.marginal(time)] for time in (t, s)
  )
  back = alpha_t / alpha_s  # and the noise between is what is missing to sigma_t
  variance = 1.0
  for _ in range(2):
    variance = back**2 * variance + sigma_t**2 - (back * sigma_s) ** 2 + 1
  np.testing.assert_allclose(found.var(), variance, rtol=4 / count**0.5)


@pytest.mark.parametrize(
  'grid, names',
  [
    ([1.0, 0.5, 0.6, 0.0], 'must decrease, got 0.5 before 0.6 at 1'),
    ([1.0, 0.5, 0.5, 0.0], 'must decrease'),
    ([1.0, 0.5, 0.5], 'must decrease'),
    ([1.2, 0.5, 0.0], r'in \[0, 1\], got 0 to 1.2'),
    ([1.0, -0.1], r'in \[0, 1\], got -0.1'),
    ([1.0, np.nan, 0.0], r'in \[0, 1\]'),
    ([1.0], 'at least 2 times'),
  ],
)
def test_a_bad_grid_is_named(grid, names):
  path = path_of()
  with pytest.raises(ValueError, match=names):
    samplers.sample(
      mixture(path),
      path,
      samplers.ddim(path),
      jnp.array(grid),
      row_keys(1),
      (2,),
      denoise_last=False,
    )
  with pytest.raises(ValueError, match=names):
    samplers.trace(mixture(path), path, samplers.ddim(path), jnp.array(grid), row_keys(1), (2,))


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda p: solvers.euler_maruyama(p, temperature=-1.0), 'temperature .* got -1.0'),
    (lambda p: solvers.heun(p, churn=0.5), 'churn .* got 0.5'),
    (lambda p: solvers.heun(p, churn_low=2.0, churn_high=1.0), 'churn_high .* got 1.0'),
    (lambda p: solvers.heun(p, noise_scale=math.nan), 'noise_scale .* got nan'),
    (lambda p: solvers.dpm_solver(p, temperature=-0.1), 'temperature .* got -0.1'),
    (lambda p: wrappers.predictor_corrector(p, solvers.euler(p), 0), 'corrections .* got 0'),
    (
      lambda p: wrappers.predictor_corrector(p, solvers.euler(p), 1, 0.0),
      'signal_to_noise .* got 0.0',
    ),
    (
      lambda p: wrappers.inpaint(p, solvers.euler(p), jnp.ones(1), jnp.ones(1), 0),
      'repeats .* got 0',
    ),
    (
      lambda p: wrappers.inpaint(p, solvers.dpm_solver(p), jnp.ones(1), jnp.ones(1)),
      'z alone, got one with 4 parts',
    ),
    (lambda p: wrappers.predictor_corrector(p, solvers.dpm_solver(p)), 'single-step sampler'),
    (lambda p: samplers.ancestral(p, temperature=-1.0), 'temperature .* got -1.0'),
    (lambda p: guidance.score_temperature(mixture(p), p, 0.0), 'temperature .* got 0.0'),
  ],
)
def test_bad_arguments_are_named_with_their_value(make, names):
  with pytest.raises(ValueError, match=names):
    make(path_of())


def test_pixels_as_stored_are_no_network_units(unchecked):
  path, pixels = path_of(), np.full((1, 2), 200, np.uint8)
  with pytest.raises(ValueError, match='known must be in network units, got uint8'):
    wrappers.inpaint(path, solvers.euler(path), pixels, jnp.ones(1))


def on_the_line(name, schedule, process, calls):
  """The benchmark's distance to the mixture of a sampler on its own grid."""
  made = gaussian.Diffusion(schedule, process, parameterizations.v())
  path = gaussian.bind(made, schedule.init(jax.random.key(0)))
  distance = benchmark.mixture_distance(256)(path)
  return distance(benchmark.SAMPLERS[name](path), path, calls)


@pytest.mark.parametrize('calls', [20, 50])
@pytest.mark.parametrize('name', benchmark.SECOND_ORDER)
@pytest.mark.parametrize(
  'schedule, process',
  [
    (schedules.cosine(), marginals.variance_preserving),
    (schedules.cosine(log_snr_min=-40.0), marginals.variance_preserving),
    (schedules.edm(), marginals.variance_exploding),
    (schedules.rectified_flow(), marginals.rectified_flow),
  ],
  ids=['cosine', 'zero terminal SNR', 'EDM', 'rectified flow'],
)
def test_second_order_on_its_own_grid_is_no_worse_than_ddim_in_as_many_calls(
  schedule, process, name, calls
):
  found = on_the_line(name, schedule, process, calls)
  assert found <= 1.1 * on_the_line('DDIM', schedule, process, calls)


@pytest.mark.parametrize('lowest', [-15.0, -40.0])  # the second ends in noise alone
def test_heun_takes_the_long_steps_of_any_grid(lowest):
  path = gaussian.bind(
    gaussian.Diffusion(
      schedules.cosine(log_snr_min=lowest), marginals.variance_preserving, parameterizations.v()
    ),
    (),
  )
  distance = benchmark.mixture_distance(256)(path)
  uniform = solvers.heun(path)._replace(grid=grids.uniform_time)
  assert distance(uniform, path, 50) <= distance(samplers.ddim(path), path, 50)


def test_the_benchmark_walks_as_samples_are_drawn():
  path = path_of()
  sampler, keys, noise = solvers.heun(path), row_keys(5), rng.normal(row_keys(5, 1), (2,))
  grid = sampler.grid(path, 5)
  z = path.marginal(grid[0]).sigma * noise
  drawn = samplers.sample(mixture(path), path, sampler, grid, keys, (2,), z=z)
  np.testing.assert_allclose(
    benchmark.walk(mixture(path), path, sampler, 9, noise), drawn, atol=1e-5
  )
