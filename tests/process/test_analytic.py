"""The exact denoiser of a mixture against brute force: quadrature, enumeration, and the score of the density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import rng as keys_of
from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules
from diffusion.types import NULL, Marginal

T = np.array([0.02, 0.2, 0.5, 0.8, 0.98])


def cosine_path():
  diffusion = gaussian.Diffusion(
    schedules.cosine(), marginals.variance_preserving, parameterizations.v()
  )
  return gaussian.bind(diffusion, ())


WEIGHTS, MEANS, SCALES = map(np.array, ([0.5, 0.3, 0.2], [-1.2, 0.4, 2.0], [0.3, 0.7, 0.1]))


def quadrature(z, alpha, sigma):
  """(E[x | z], log p(z)) for the one-dimensional mixture, as sums over a grid of x."""
  x = np.linspace(-8, 8, 20_001)
  density = sum(w * stats.norm.pdf(x, m, s) for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True))
  joint = density * stats.norm.pdf(z, alpha * x, sigma)
  return (x * joint).sum() / joint.sum(), np.log(joint.sum() * (x[1] - x[0]))


def test_mixture_is_the_posterior_mean_by_quadrature(x64):
  path = cosine_path()
  denoise = jax.jit(analytic.gaussian_mixture(path, WEIGHTS, MEANS[:, None], SCALES))
  for z in (-2.0, -0.3, 0.9, 2.5):
    found = denoise(jnp.full((T.size, 1), z), jnp.asarray(T))
    for row, t in enumerate(T):
      alpha, sigma = (float(c) for c in path.marginal(jnp.asarray(t)))
      mean, log_density = quadrature(z, alpha, sigma)
      np.testing.assert_allclose(found.x0[row, 0], mean, atol=1e-7)
      # eps is minus sigma times the score: by differences of the density itself.
      step = 1e-4 * sigma
      ahead, behind = (quadrature(z + d, alpha, sigma)[1] for d in (step, -step))
      assert np.isfinite(log_density)
      score = (ahead - behind) / (2 * step)
      np.testing.assert_allclose(found.eps[row, 0], -sigma * score, atol=1e-5)


def test_mixture_in_several_dimensions_is_self_normalized_importance_sampling(x64):
  """E[x | z] as a weighted mean of 400,000 draws from the mixture, within five standard errors."""
  path = cosine_path()
  rng = np.random.default_rng(0)
  weights, scales = np.array([0.7, 0.3]), np.array([0.5, 1.0])
  means = np.array([[1.0, -1.0, 0.5], [-0.5, 0.8, 0.0]])
  z, t = np.array([0.2, -0.5, 0.4]), 0.6
  denoise = jax.jit(analytic.gaussian_mixture(path, weights, means, scales))
  found = denoise(z[None], jnp.array([t])).x0[0]
  alpha, sigma = (float(c) for c in path.marginal(jnp.asarray(t)))
  n = 400_000
  part = (rng.uniform(size=n) < weights[1]).astype(int)
  x = means[part] + scales[part][:, None] * rng.normal(size=(n, 3))
  likelihood = np.exp(-((z - alpha * x) ** 2).sum(1) / (2 * sigma**2))
  share = likelihood / likelihood.sum()
  mean = share @ x
  error = np.sqrt((share**2) @ (x - mean) ** 2)
  assert error.max() < 0.01  # sharp enough to refute
  assert (np.abs(np.asarray(found) - mean) < 5 * error).all()


def test_one_point_is_always_the_answer():
  path = cosine_path()
  point = np.array([[0.3, -1.7]])
  denoise = jax.jit(analytic.gaussian_mixture(path, np.ones(1), point, np.zeros(1)))
  rng = np.random.default_rng(1)
  t = jnp.linspace(0.0, 1.0, 9)
  eps = jnp.asarray(rng.normal(size=(9, 2)), jnp.float32)
  z = gaussian.diffuse(
    jnp.broadcast_to(jnp.asarray(point, jnp.float32), (9, 2)), eps, path.marginal(t)
  )
  found = denoise(z, t)
  np.testing.assert_allclose(found.x0, np.broadcast_to(point, (9, 2)), rtol=1e-6)
  # (z - alpha x0) / sigma: at log-SNR 15 sigma is 5.5e-4, so a rounding of z is 1e-4 in eps.
  np.testing.assert_allclose(found.eps, eps, atol=5e-4)


def test_points_are_weighed_by_enumeration(x64):
  """A mixture of point masses: the posterior over a finite set, point by point."""
  path = cosine_path()
  rng = np.random.default_rng(2)
  points, weights = rng.normal(size=(7, 4)), rng.dirichlet(np.ones(7))
  z = rng.normal(size=(5, 4))
  denoise = jax.jit(analytic.gaussian_mixture(path, weights, points, np.zeros(7)))
  found = denoise(z, jnp.asarray(T))
  for row, t in enumerate(T):
    alpha, sigma = (float(c) for c in path.marginal(jnp.asarray(t)))
    log_joint = [
      np.log(w) + stats.norm.logpdf(z[row], alpha * p, sigma).sum()
      for w, p in zip(weights, points, strict=True)
    ]
    posterior = np.exp(np.array(log_joint) - max(log_joint))
    posterior /= posterior.sum()
    np.testing.assert_allclose(found.x0[row], posterior @ points, atol=1e-10)


def covariances(seed=5, parts=2, dimension=3):
  a = np.random.default_rng(seed).normal(size=(parts, dimension, dimension))
  return a @ a.swapaxes(1, 2) / dimension + 0.1 * np.eye(dimension)


def test_full_covariances_by_linear_algebra(x64):
  """The formula of the posterior with inverses, component by component; eps against the gradient of the log-density."""
  path = cosine_path()
  weights, sigmas = np.array([0.3, 0.7]), covariances()
  means = np.array([[1.0, -1.0, 0.5], [-0.5, 0.8, 0.0]])
  z = np.random.default_rng(6).normal(size=(T.size, 3))
  denoise = jax.jit(analytic.gaussian_mixture(path, weights, means, sigmas))
  found = denoise(jnp.asarray(z), jnp.asarray(T))
  given = analytic.mixture(weights, means, sigmas)
  for row, t in enumerate(T):
    alpha, sigma = (float(c) for c in path.marginal(jnp.asarray(t)))
    c = alpha**2 * sigmas + sigma**2 * np.eye(3)
    density = [
      w * stats.multivariate_normal.pdf(z[row], alpha * m, v)
      for w, m, v in zip(weights, means, c, strict=True)
    ]
    share = np.array(density) / sum(density)
    mean = [
      m + alpha * s @ np.linalg.solve(v, z[row] - alpha * m)
      for m, s, v in zip(means, sigmas, c, strict=True)
    ]
    np.testing.assert_allclose(found.x0[row], share @ mean, atol=1e-10)
    marginal = Marginal(jnp.full(1, alpha), jnp.full(1, sigma))
    log_density = lambda y, m=marginal: analytic.log_density(given, jnp.asarray(y)[None], m)[0]  # noqa: E731
    np.testing.assert_allclose(log_density(z[row]), np.log(sum(density)), atol=1e-10)
    score = jax.grad(log_density)(jnp.asarray(z[row]))
    np.testing.assert_allclose(found.eps[row], -sigma * score, atol=1e-9)


def test_round_components_are_full_ones_with_multiples_of_the_identity(x64):
  path = cosine_path()
  weights, means, scales = (
    np.array([0.4, 0.6]),
    np.array([[1.0, 0.0], [-1.0, 0.5]]),
    np.array([0.3, 0.9]),
  )
  full = np.stack([s**2 * np.eye(2) for s in scales])
  z = jnp.asarray(np.random.default_rng(7).normal(size=(T.size, 2)))
  one, other = (
    analytic.gaussian_mixture(path, weights, means, s)(z, jnp.asarray(T)) for s in (scales, full)
  )
  np.testing.assert_allclose(one.x0, other.x0, atol=1e-12)
  np.testing.assert_allclose(one.eps, other.eps, atol=1e-12)


def test_draws_have_the_moments_of_the_mixture():
  weights, means, sigmas = (
    np.array([0.3, 0.7]),
    np.array([[2.0, 0, 0], [-1.0, 1, 0]]),
    covariances(),
  )
  given = analytic.mixture(weights, means, sigmas)
  x = np.asarray(analytic.draw(given, jax.random.split(jax.random.key(0), 100_000)), np.float64)
  mean = weights @ means
  spread = sum(
    w * (s + np.outer(m - mean, m - mean)) for w, m, s in zip(weights, means, sigmas, strict=True)
  )
  error = np.sqrt(np.diag(spread) / len(x))
  assert (np.abs(x.mean(0) - mean) < 4.5 * error).all()
  np.testing.assert_allclose(np.cov(x.T), spread, atol=0.06)


def test_entropy_of_one_gaussian_and_of_far_apart_ones():
  """Half log det(2 pi e Sigma); well separated components add the entropy of the choice."""

  def written_out(given, log_density, seed):
    """The mean over the draws of a seed, and its t interval."""
    x = analytic.draw(given, keys_of.row_keys(jax.random.key(seed), jnp.arange(50_000)))
    nats = -log_density(np.asarray(x, np.float64))
    half = stats.t.ppf(0.975, 49_999) * nats.std(ddof=1) / 50_000**0.5
    return nats.mean(), nats.mean() - half, nats.mean() + half

  sigma = covariances(parts=1)[0]
  exact = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * sigma)[1]
  normal = stats.multivariate_normal(np.zeros(3), sigma)
  alone = analytic.mixture(np.ones(1), np.zeros((1, 3)), sigma[None])
  one = analytic.entropy(alone, 50_000)
  np.testing.assert_allclose(one, written_out(alone, normal.logpdf, 0), rtol=1e-5)
  assert one.low - 0.01 < exact < one.high + 0.01
  assert one.high - one.low < 0.05
  weights = np.array([0.25, 0.75])
  far = np.array([[100.0, 0, 0], [-100.0, 0, 0]])
  pair = analytic.mixture(weights, far, np.stack([sigma, sigma]))
  two = analytic.entropy(pair, 50_000, seed=1)

  def nearest(x):  # the other component is too far to be heard
    which = np.log(weights)[(x[:, 0] < 0).astype(int)]
    return which + normal.logpdf(x - np.sign(x[:, :1]) * far[0])

  np.testing.assert_allclose(two, written_out(pair, nearest, 1), rtol=1e-4)
  assert abs(two.estimate - exact + weights @ np.log(weights)) < 0.03


def test_empirical_is_the_posterior_over_the_training_set_by_enumeration(x64):
  """Chunks that do not divide, classes, the null class: always the weights of a loop over the allowed examples."""
  path = cosine_path()
  rng = np.random.default_rng(8)
  x, labels = rng.normal(size=(23, 2, 3)), np.arange(23) % 3
  wanted = np.array([0, 2, NULL, 1, NULL])
  z = rng.normal(size=(5, 2, 3))
  for chunk in (4, 23, 1000):
    denoise = jax.jit(analytic.empirical(path, x, labels, jnp.asarray(wanted), chunk=chunk))
    found = denoise(jnp.asarray(z), jnp.asarray(T))
    for row, t in enumerate(T):
      alpha, sigma = (float(c) for c in path.marginal(jnp.asarray(t)))
      allowed = x if wanted[row] == NULL else x[labels == wanted[row]]
      log_w = np.array([-((z[row] - alpha * p) ** 2).sum() / (2 * sigma**2) for p in allowed])
      w = np.exp(log_w - log_w.max())
      expected = np.tensordot(w / w.sum(), allowed, 1)
      np.testing.assert_allclose(found.x0[row], expected, atol=1e-9)
      np.testing.assert_allclose(found.eps[row], (z[row] - alpha * expected) / sigma, atol=1e-6)


def test_empirical_with_flips_has_the_flipped_images_too(x64):
  path = cosine_path()
  x, labels = np.random.default_rng(9).normal(size=(6, 3, 4, 1)), np.array([0, 0, 1, 2, 1, 0])
  both, their = np.concatenate([x, np.flip(x, axis=2)]), np.concatenate([labels, labels])
  z = jnp.asarray(np.random.default_rng(10).normal(size=(5, 3, 4, 1)))
  wanted = jnp.array([0, 2, NULL, 1, NULL])
  made = (
    analytic.empirical(path, both, their, wanted),
    analytic.empirical(path, x, labels, wanted, flip=True, chunk=5),
    analytic.empirical(path, x, flip=True, chunk=5),
  )
  other, one, plain = jax.jit(lambda z, t: [denoise(z, t).x0 for denoise in made])(
    z, jnp.asarray(T)
  )
  np.testing.assert_allclose(one, other, atol=1e-10)
  np.testing.assert_allclose(plain[wanted == NULL], other[wanted == NULL], atol=1e-10)


def test_empirical_never_makes_an_array_of_pairs_and_dimensions():
  """The largest array in the program is B x chunk or the training set, not B x n x d."""
  path = cosine_path()
  x = jnp.zeros((4096, 64))
  program = jax.make_jaxpr(analytic.empirical(path, x, chunk=256))(
    jnp.zeros((128, 64)), jnp.full(128, 0.5)
  )
  sizes = [
    v.aval.size
    for jaxpr in [
      program.jaxpr,
      *(e.params['jaxpr'].jaxpr for e in program.eqns if e.primitive.name == 'scan'),
    ]
    for e in jaxpr.eqns
    for v in e.outvars
  ]
  assert max(sizes) <= 4096 * 64


def test_box_mixture_is_the_posterior_mean_by_quadrature(x64):
  path = cosine_path()
  weights, centers, width = np.array([0.2, 0.5, 0.3]), np.array([-0.8, 0.1, 0.5]), 0.25
  denoise = jax.jit(analytic.box_mixture(path, weights, centers[:, None], width))
  grid = (np.arange(4000) + 0.5) / 4000 - 0.5
  for z in (-2.0, -0.3, 0.9):
    found = denoise(jnp.full((T.size, 1), z), jnp.asarray(T))
    for row, t in enumerate(T):
      alpha, sigma = (float(c) for c in path.marginal(jnp.asarray(t)))
      x = centers[:, None] + width * grid
      joint = weights[:, None] * np.exp(
        stats.norm.logpdf(z, alpha * x, sigma) - stats.norm.logpdf(z, alpha * x, sigma).max()
      )
      mean = (joint * x).sum() / joint.sum()
      np.testing.assert_allclose(found.x0[row, 0], mean, atol=2e-6)
      np.testing.assert_allclose(found.eps[row, 0], (z - alpha * mean) / sigma, atol=5e-4)
  # A box of two dimensions is one of each: the mass of both weighs the means in either.
  corners = np.stack([centers, [0.3, -0.6, 0.2]], axis=1)
  point, x = np.array([0.4, -0.3]), corners[..., None] + width * grid
  found = jax.jit(analytic.box_mixture(path, weights, corners, width))(point[None], T[2:3])
  alpha, sigma = (float(c) for c in path.marginal(jnp.asarray(T[2])))
  density = stats.norm.pdf(point[:, None], alpha * x, sigma)
  share = weights * density.mean(2).prod(1)
  means = (density * x).sum(2) / density.sum(2)
  np.testing.assert_allclose(found.x0[0], share / share.sum() @ means, atol=2e-6)


def test_box_mixture_far_away_and_at_every_noise_level_is_finite(x64):
  path = cosine_path()
  denoise = analytic.box_mixture(
    path, np.full(2, 0.5), np.array([[-1.0, 1.0], [1.0, 0.0]]), 2 / 255
  )
  t = jnp.linspace(0.0, 1.0, 41)
  for far in (0.0, 3.0, -30.0):
    found = denoise(jnp.full((41, 2), far), t)
    assert np.isfinite(found.x0).all()
    assert (np.abs(np.asarray(found.x0)) < 1.01).all()


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
  'make, names',
  [
    (lambda p: analytic.empirical(p, np.zeros((0, 2))), 'got 0 examples'),
    (lambda p: analytic.empirical(p, np.zeros((3, 2)), labels=np.zeros(3, int)), 'together'),
    (lambda p: analytic.box_mixture(p, np.ones(1), np.zeros((1, 2)), 0.0), 'width .* got 0.0'),
    (lambda p: analytic.box_mixture(p, np.ones(2), np.zeros((1, 2)), 0.1), r'\(2,\), \(1, 2\)'),
    (
      lambda p: analytic.mixture(np.ones(1), np.zeros((1, 2)), np.diag([-1.0, 3.0])[None]),
      'semidefinite, got a smallest eigenvalue of -1 and an asymmetry of 0$',
    ),
    (lambda p: analytic.mixture([0.5, 0.6], np.zeros((2, 2)), np.ones(2)), 'weights .* by 1.1'),
    (
      lambda p: analytic.mixture([1.5, -0.5], np.zeros((2, 2)), np.ones(2)),
      'weights must be positive',
    ),
    (
      lambda p: analytic.mixture([np.nan, 1.0], np.zeros((2, 2)), np.ones(2)),
      'weights must be positive',
    ),
    (lambda p: analytic.mixture(np.ones(1), np.zeros((1, 2)), -np.ones(1)), 'scales must be >= 0'),
    (
      lambda p: analytic.mixture(np.ones(1), np.full((1, 2), np.inf), np.ones(1)),
      r'means .* inf at \[0, 0\]',
    ),
    (lambda p: analytic.box_mixture(p, np.ones(2), np.zeros((2, 2)), 0.1), 'weights .* by 2'),
    (
      lambda p: analytic.empirical(p, np.array([[0.0], [np.nan]])),
      r'x must be finite, got nan at \[1, 0\]',
    ),
    (
      lambda p: analytic.empirical(p, np.zeros((2, 1)), np.array([0, 1]), np.array([2])),
      'no example of label 2',
    ),
    (
      lambda p: analytic.mixture(np.ones(1), np.zeros((1, 2)), np.array([[[1, 2], [0, 1.0]]])),
      'symmetric .* an asymmetry of 2$',
    ),
  ],
)
def test_bad_arguments_are_named(make, names):
  with pytest.raises(ValueError, match=names):
    make(cosine_path())


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
  'weights, means, scales, names',
  [
    (np.ones(2), np.zeros((3, 1)), np.ones(3), r'\(2,\), \(3, 1\), \(3,\)'),
    (np.ones(3), np.zeros((3, 1)), np.ones(1), r'\(3,\), \(3, 1\), \(1,\)'),
    (np.ones(3), np.zeros(3), np.ones(3), r'\(3,\), \(3,\), \(3,\)'),
  ],
)
def test_shapes_that_do_not_agree_are_named(weights, means, scales, names):
  with pytest.raises(ValueError, match=names):
    analytic.gaussian_mixture(cosine_path(), weights, means, scales)


@pytest.mark.parametrize('mean, deviation', [(4.0, 0.5), (0.0, 0.5), (4.0, 1.0)])
def test_a_standardized_denoiser_keeps_log_snr_and_the_noise_that_was_added(mean, deviation):
  """Its path is that of the data: time and log-SNR invert each other, and a point mass gives back its own noise."""
  path = cosine_path()
  given, told = [], []

  def exact(own):
    given.append(own)
    denoise = analytic.gaussian_mixture(own, np.ones(1), np.full((1, 2), 6.0), np.zeros(1))

    def listening(z, t, key=None):
      told.append(key)
      return denoise(z, t)

    return listening

  denoise = analytic.standardized(exact, path, mean, deviation)
  t, eps = jnp.array([0.2, 0.9]), jnp.array([[1.0, -2.0], [0.5, 3.0]])
  alpha, sigma = (c[:, None] for c in path.marginal(t))
  x0, keys = (6 - mean) / deviation, jax.random.split(jax.random.key(0), 2)
  found = denoise(alpha * x0 + sigma * eps, t, keys)
  np.testing.assert_allclose(found.x0, np.full((2, 2), x0), rtol=1e-5)
  np.testing.assert_allclose(found.eps, eps, rtol=2e-4)
  (own,) = given
  assert told == [keys]
  ratio = own.marginal(t)
  np.testing.assert_allclose(
    own.log_snr(t), 2 * np.log(ratio.alpha / ratio.sigma), rtol=1e-4, atol=1e-4
  )
  np.testing.assert_allclose(own.time(own.log_snr(t)), t, rtol=1e-4)
  np.testing.assert_allclose(own.slope(t), jax.vmap(jax.grad(own.log_snr))(t), rtol=1e-4)
  assert analytic.standardized(lambda one: one, path, 0.0, 1.0) is path  # nothing to undo
