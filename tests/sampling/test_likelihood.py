"""Likelihoods against exact densities: ODE, bound, dequantization, and the way to noise and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from diffusion import rng
from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules
from diffusion.sampling import likelihood
from diffusion.types import Marginal, Prediction

DIMENSION = 8
WEIGHTS = np.full(2, 0.5)
MEANS = np.stack(
  [np.ones(DIMENSION), -np.ones(DIMENSION)]
)  # the reference problem of Bonnaire et al.
PROCESSES = {
  'variance preserving': (schedules.cosine(), marginals.variance_preserving),
  'variance exploding': (schedules.geometric(6e-4, 2000.0), marginals.variance_exploding),
  'rectified flow': (schedules.rectified_flow(), marginals.rectified_flow),
}


def path_of(schedule=None, process=marginals.variance_preserving):
  made = gaussian.Diffusion(schedule or schedules.cosine(), process, parameterizations.v())
  return gaussian.bind(made, ())


def row_keys(count, seed=0):
  return rng.row_keys(jax.random.key(seed), jnp.arange(count))


def reference(path):
  return analytic.gaussian_mixture(path, WEIGHTS, MEANS, np.ones(2))


def drawn(count, seed=1):
  return analytic.draw(analytic.mixture(WEIGHTS, MEANS, np.ones(2)), row_keys(count, seed))


@pytest.mark.parametrize('name', PROCESSES)
def test_ode_log_likelihood_is_the_exact_log_density(name, x64):
  """d = 8, rtol 1e-5, exact divergence: within 1e-3 nats of the density of z at t = 0."""
  path = path_of(*PROCESSES[name])
  start = path.marginal(jnp.zeros(6))
  z = gaussian.diffuse(drawn(6), rng.normal(row_keys(6, 2), (DIMENSION,)), start)
  found = jax.jit(
    lambda z: likelihood.log_likelihood(reference(path), path, z, rtol=1e-5, atol=1e-5)
  )(z)
  exact = analytic.log_density(analytic.mixture(WEIGHTS, MEANS, np.ones(2)), z, start)
  error = np.abs(np.asarray(found.log_density - exact))
  print(f'{name}: largest error {error.max():.1e} nats, {int(found.evaluations.max())} evaluations')
  assert error.max() < 1e-3
  assert (found.evaluations % 6 == 0).all()  # of Tsitouras' method a step takes six
  # And the noise it came from is distributed as the prior: the flow of a Gaussian-like mixture ends there.
  assert np.abs(np.asarray(found.noise) / path.marginal(jnp.ones(())).sigma).max() < 6


def test_probes_estimate_the_divergence_without_bias(x64):
  path = path_of()
  z = drawn(1)
  many = jnp.broadcast_to(z, (400, DIMENSION))
  run = jax.jit(
    lambda z, k: likelihood.log_likelihood(reference(path), path, z, k, probes=1).log_density
  )
  found = np.asarray(run(many, row_keys(400)))
  exact = float(likelihood.log_likelihood(reference(path), path, z).log_density[0])
  error = found.std() / 20
  assert abs(found.mean() - exact) < 4 * error
  assert error < 0.1
  assert found.std() > 1e-3  # they are random
  # Nine of them are nine directions: their mean errs a third as much.
  more = jax.jit(
    lambda z, k: likelihood.log_likelihood(reference(path), path, z, k, probes=9).log_density
  )(many, row_keys(400, 1))
  assert 0.25 < np.asarray(more).std() / found.std() < 0.45


def test_each_draw_of_the_bound_is_a_time_of_its_stratum_and_a_noise_that_has_nothing_to_do_with_it():
  path, draws, rows, seen = path_of(), 4, 300, []

  def denoise(z, t, key=None):
    jax.debug.callback(lambda z, t: seen.append((np.asarray(z), np.asarray(t))), z, t)
    return Prediction(z, z)

  jax.block_until_ready(
    likelihood.bound(denoise, path, jnp.zeros((rows, 3)), row_keys(rows), levels=None, draws=draws)
  )
  jax.effects_barrier()
  order = np.argsort([t.mean() for _, t in seen])
  times = np.stack([seen[i][1] for i in order])
  np.testing.assert_array_equal(np.floor(times * draws), np.arange(draws)[:, None].repeat(rows, 1))
  within = (times * draws % 1).ravel()
  sigma = np.stack([path.marginal(jnp.asarray(t)).sigma for t in times])
  eps = np.stack([seen[i][0] for i in order]) / sigma[..., None]
  assert stats.kstest(within, 'uniform').pvalue > 1e-4
  assert stats.kstest(eps.ravel(), 'norm').pvalue > 1e-4
  each = (
    np.concatenate([within.reshape(draws, rows, 1), eps], axis=2)
    .transpose(1, 0, 2)
    .reshape(rows, -1)
  )
  correlation = stats.spearmanr(each).statistic - np.eye(each.shape[1])
  assert np.abs(correlation).max() < 5 / np.sqrt(rows)


def test_evaluations_are_those_that_were_made():
  path, calls = path_of(), []
  exact = reference(path)

  def denoise(z, t, key=None):
    jax.debug.callback(lambda t: calls.append(1), t)
    return exact(z, t)

  found = likelihood.solve(denoise, path, drawn(1), rtol=1e-3, atol=1e-3)
  jax.block_until_ready(found)
  jax.effects_barrier()
  assert (
    abs(len(calls) - int(found.evaluations[0])) <= 2
  )  # the first one, and the size of the first step


def test_each_tolerance_of_a_likelihood_saves_evaluations():
  path, z = path_of(), jnp.array([[0.4], [1.5]])
  narrow = analytic.gaussian_mixture(path, np.ones(1), np.zeros((1, 1)), np.full(1, 0.3))

  @jax.jit
  def evaluations(rtol, atol):
    return likelihood.log_likelihood(narrow, path, z, rtol=rtol, atol=atol).evaluations

  strict = evaluations(1e-5, 1e-5)
  assert (evaluations(1e-1, 1e-5) < strict).all()
  assert (evaluations(1e-5, 1e-1) < strict).all()


@pytest.mark.parametrize('name', ['variance preserving', 'variance exploding'])
def test_the_bound_lies_below_the_log_likelihood_and_approaches_it(name, x64):
  """-bound <= log p in the mean at every T, and rises with T to its continuous-time value."""
  schedule, process = PROCESSES[name]
  path = path_of(schedules.clipped(schedule, -14.0, 9.0), process)
  x = drawn(4000)
  data = Marginal(jnp.ones(4000), jnp.zeros(4000))
  exact = np.asarray(analytic.log_density(analytic.mixture(WEIGHTS, MEANS, np.ones(2)), x, data))
  keys, means, errors = row_keys(4000, 3), [], []
  for steps in (10, 30, 100, 1000, None):
    run = jax.jit(
      lambda x, k, n=steps: (
        likelihood.bound(reference(path), path, x, k, levels=None, steps=n, draws=64).total
      )
    )
    gap = exact + np.asarray(run(x, keys))  # log p - (-bound) >= 0 in the mean
    means.append(gap.mean())
    errors.append(gap.std() / np.sqrt(len(gap)))
    print(
      f'{name}, T = {steps}: log p exceeds the bound by {means[-1]:.4f} +- {errors[-1]:.4f} nats'
    )
  assert all(m > -3 * e for m, e in zip(means, errors, strict=True))
  assert means[0] > means[1] > means[2] > means[3] - 3 * errors[3]
  # The denoiser is exact, so in continuous time the bound is tight.
  assert abs(means[4]) < 4 * errors[4]


def boxes():
  """A discrete distribution on 5 x 5 levels of two dimensions, its cells and its entropy in bits."""
  generator = np.random.default_rng(0)
  share = generator.dirichlet(np.full(25, 0.7))
  values = np.linspace(-1, 1, 5)
  centers = np.stack(np.meshgrid(values, values, indexing='ij'), -1).reshape(25, 2)
  return share, centers, stats.entropy(share, base=2)


def test_dequantized_bits_per_dimension_of_a_box_mixture_are_its_entropy(x64):
  """The exact denoiser of the dequantized data: ODE likelihood in bits, against the entropy of the levels."""
  share, centers, entropy = boxes()
  path = path_of(schedules.cosine(-15.0, 12.0))
  denoise = analytic.box_mixture(path, share, centers, 0.5)
  count = 300
  cells = np.random.default_rng(1).choice(25, size=count, p=share)
  x = likelihood.dequantize(jnp.asarray(centers[cells]), row_keys(count, 4), levels=5)
  assert (np.abs(np.asarray(x) - centers[cells]) <= 0.25).all()
  start = path.marginal(jnp.zeros(count))
  z = gaussian.diffuse(x, rng.normal(row_keys(count, 5), (2,)), start)
  run = jax.jit(
    lambda z: likelihood.log_likelihood(denoise, path, z, rtol=1e-5, atol=1e-5).log_density
  )
  log_density = np.asarray(run(z)) + 2 * np.log(float(start.alpha[0]))
  bits = np.asarray(likelihood.bits_per_dim(-log_density, 2, levels=5))
  error = bits.std() / np.sqrt(count)
  print(f'{bits.mean():.4f} +- {error:.4f} bits a dimension, entropy {entropy / 2:.4f}')
  assert abs(bits.mean() - entropy / 2) < 2 * error + 0.01  # 0.01: z_0 is x plus noise of 0.0025
  assert error < 0.05


def test_the_discrete_bound_of_a_perfect_model_of_levels_is_near_their_entropy(x64):
  """Reconstruction, diffusion and prior of point masses on the levels, continuous time: the entropy, from above."""
  share, centers, entropy = boxes()
  path = path_of()
  denoise = analytic.gaussian_mixture(path, share, centers, np.zeros(25))
  cells = np.random.default_rng(2).choice(25, size=4000, p=share)
  parts = jax.jit(lambda x, k: likelihood.bound(denoise, path, x, k, levels=5, draws=128))(
    jnp.asarray(centers[cells]), row_keys(4000)
  )
  bits = np.asarray(likelihood.bits_per_dim(parts.total, 2))
  error = bits.std() / np.sqrt(len(bits))
  assert abs(bits.mean() - entropy / 2) < 3 * error
  assert np.asarray(parts.reconstruction).max() < 1e-6  # at log-SNR 15 a level is never mistaken


def test_reconstruction_is_the_posterior_over_levels(x64):
  """At a log-SNR where levels are confused: -log p(x | z_0) averaged, against a sum over levels by quadrature."""
  path = path_of(schedules.cosine(-15.0, 2.0))
  denoise = lambda z, t, key=None: Prediction(z, z)  # noqa: E731
  x = jnp.full((40_000, 2, 1), 0.5)  # two pixels a row, each as surprising
  found = np.asarray(
    likelihood.bound(
      denoise, path, x, row_keys(40_000), levels=5, support=(0.5, 2.5), draws=1
    ).reconstruction
  )
  s, values = np.exp(-1.0), np.linspace(0.5, 2.5, 5)  # x is the lowest
  y = 0.5 + s * np.linspace(-8, 8, 20_001)
  logits = -0.5 * ((y[:, None] - values) / s) ** 2
  surprise = special.logsumexp(logits, axis=1) + 0.5 * ((y - 0.5) / s) ** 2
  exact = np.trapezoid(surprise * stats.norm.pdf(y, 0.5, s), y)
  assert abs(found.mean() - 2 * exact) < 4 * found.std() / 200


def test_prior_is_the_divergence_of_two_gaussians(x64):
  path = path_of(schedules.cosine(-2.0, 15.0))
  x = jnp.asarray([[[0.3], [-0.8], [0.1]]])

  def denoise(z, t, key=None):
    """Off by 1 in each eps."""
    now = jax.tree.map(lambda c: c[:, None, None], path.marginal(t))
    eps = (z - now.alpha * x) / now.sigma + 1
    return Prediction((z - now.sigma * eps) / now.alpha, eps)

  parts = likelihood.bound(denoise, path, x, row_keys(1), levels=None, steps=4, draws=4)
  # Each of the four steps is drawn once, and its divergence is of the three errors of 1.
  levels = np.asarray(path.log_snr(jnp.linspace(0, 1, 5)))
  np.testing.assert_allclose(parts.diffusion, 1.5 * np.expm1(-np.diff(levels)).sum(), rtol=1e-8)
  np.testing.assert_allclose(parts.total, sum(parts), rtol=1e-12)
  found = parts.prior[0]
  alpha, sigma = (float(c) for c in path.marginal(jnp.ones(())))
  exact = sum(0.5 * (alpha * v / sigma) ** 2 for v in (0.3, -0.8, 0.1))
  np.testing.assert_allclose(found, exact, rtol=1e-10)


@pytest.mark.parametrize('tolerance', [1e-4, 1e-7])
def test_encode_then_decode_returns_the_input(tolerance, x64):
  path = path_of()
  z = drawn(8)
  there = likelihood.solve(reference(path), path, z, 0.0, 1.0, rtol=tolerance, atol=tolerance)
  back = likelihood.solve(reference(path), path, there.z, 1.0, 0.0, rtol=tolerance, atol=tolerance)
  error = float(jnp.abs(back.z - z).max())
  print(
    f'tolerance {tolerance:g}: round trip {error:.1e}, {int(there.evaluations.max())} evaluations there'
  )
  assert error < 200 * tolerance
  assert float(jnp.abs(there.z - z).max()) > 0.1  # it went somewhere


def test_a_row_is_solved_on_its_own(x64):
  path = path_of()
  z = drawn(5)
  together = likelihood.solve(reference(path), path, z)
  for i in (0, 4):
    alone = likelihood.solve(reference(path), path, z[i : i + 1])
    np.testing.assert_allclose(alone.z[0], together.z[i], rtol=1e-12)
    assert alone.evaluations[0] == together.evaluations[i]


def test_slerp_keeps_the_norm_of_unit_vectors_and_its_ends(x64):
  generator = np.random.default_rng(3)
  a, b = generator.normal(size=(2, 7, 4, 3))
  a, b = (v / np.sqrt((v**2).sum((1, 2), keepdims=True)) for v in (a, b))
  share = jnp.linspace(0, 1, 7)
  a, b = jnp.asarray(a), jnp.asarray(b)
  found = np.asarray(likelihood.slerp(a, b, share))
  np.testing.assert_allclose((found**2).sum((1, 2)), 1, rtol=1e-9)
  np.testing.assert_allclose(found[0], a[0], atol=1e-12)
  np.testing.assert_allclose(found[-1], b[-1], atol=1e-12)
  # Equal angles for equal shares.
  angle = np.arccos(np.minimum(1, (found * a).sum((1, 2))))
  np.testing.assert_allclose(angle, np.asarray(share) * np.arccos((a * b).sum((1, 2))), atol=1e-7)
  np.testing.assert_allclose(likelihood.slerp(a[:1], a[:1], share[3:4]), a[:1], atol=1e-12)
  # Of other norms the angle is the same, and each keeps its own factor.
  o = np.arccos((a * b).sum((1, 2)))[:, None, None]
  w = np.asarray(share)[:, None, None]
  wanted = (np.sin((1 - w) * o) * 3 * a + np.sin(w * o) * 5 * b) / np.sin(o)
  np.testing.assert_allclose(likelihood.slerp(3 * a, 5 * b, share), wanted, atol=1e-9)


def test_bits_of_levels_count_the_width_of_a_cell():
  """A uniform density on [-1 - w/2, 1 + w/2] is log2(levels) bits, whatever the dimension."""
  for levels in (2, 17, 256):
    width = 2 / (levels - 1)
    negative_log = 12 * np.log(levels * width)
    assert abs(likelihood.bits_per_dim(negative_log, 12, levels) - np.log2(levels)) < 1e-9


@pytest.mark.parametrize(
  'make, names',
  [
    (
      lambda p, d, x: likelihood.bound(d, p, x, row_keys(2), levels=None, steps=0),
      'steps .* got 0',
    ),
    (
      lambda p, d, x: likelihood.bound(d, p, x, row_keys(2), levels=None, draws=0),
      'draws .* got 0',
    ),
    (lambda p, d, x: likelihood.log_likelihood(d, p, x, probes=-1), 'probes .* got -1'),
    (lambda p, d, x: likelihood.log_likelihood(d, p, x, probes=2), 'need keys'),
    (
      lambda p, d, x: likelihood.log_likelihood(d, p, jnp.zeros((2, 65))),
      'at most 64 dimensions, got 65',
    ),
    (lambda p, d, x: likelihood.solve(d, p, x, 0.5, 0.5), 'got 0.5 and 0.5'),
    (lambda p, d, x: likelihood.solve(d, p, x, 0.5, 1.5), 'got 0.5 and 1.5'),
    (lambda p, d, x: likelihood.solve(d, p, x, rtol=0.0), 'rtol .* got 0.0'),
    (lambda p, d, x: likelihood.dequantize(x, row_keys(2), 1), 'levels .* got 1'),
  ],
)
def test_bad_arguments_are_named_with_their_value(make, names):
  path = path_of()
  with pytest.raises(ValueError, match=names):
    make(path, reference(path), jnp.zeros((2, DIMENSION)))
