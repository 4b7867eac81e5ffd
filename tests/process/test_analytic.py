"""The exact denoiser of a mixture against brute force: quadrature, enumeration, and the score of the density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules

T = np.array([0.02, 0.2, 0.5, 0.8, 0.98])


def cosine_path():
  diffusion = gaussian.Diffusion(
    schedules.cosine(), marginals.variance_preserving, parameterizations.v()
  )
  return gaussian.bind(diffusion, ())


WEIGHTS, MEANS, SCALES = np.array([0.5, 0.3, 0.2]), np.array([-1.2, 0.4, 2.0]), [0.3, 0.7, 0.1]


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
