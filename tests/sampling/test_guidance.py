"""Wrappers of denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules
from diffusion.sampling import guidance
from diffusion.types import Prediction


def cosine_path():
  diffusion = gaussian.Diffusion(
    schedules.cosine(), marginals.variance_preserving, parameterizations.v()
  )
  return gaussian.bind(diffusion, ())


def pair(path):
  """Two exact denoisers that disagree: one class, and all of them."""
  conditional = analytic.gaussian_mixture(path, np.ones(1), np.full((1, 3), 1.0), np.full(1, 0.5))
  everything = analytic.gaussian_mixture(
    path, np.full(2, 0.5), np.array([[1.0] * 3, [-1.0] * 3]), np.full(2, 0.5)
  )
  return jax.jit(conditional), jax.jit(everything)


def points(seed=0):
  z = np.random.default_rng(seed).normal(size=(6, 3))
  return jnp.asarray(z), jnp.linspace(0.1, 0.95, 6)


def test_scale_one_is_conditional_and_scale_zero_is_not(x64):
  path = cosine_path()
  conditional, unconditional = pair(path)
  z, t = points()
  for scale, alone in ((1.0, conditional), (1, conditional), (0.0, unconditional)):
    guided = guidance.classifier_free(conditional, unconditional, scale)(z, t)
    for found, expected in zip(guided, alone(z, t), strict=True):
      np.testing.assert_allclose(found, expected, atol=1e-14)


def test_scale_one_evaluates_one_network():
  def never(z, t, key=None):
    raise AssertionError('the unconditional network was called')

  path = cosine_path()
  guidance.classifier_free(pair(path)[0], never, 1.0)(*points())


def test_guidance_is_linear_in_its_scale_and_keeps_z(x64):
  path = cosine_path()
  z, t = points()
  both = pair(path)
  at = {s: guidance.classifier_free(*both, s)(z, t) for s in (0.0, 0.5, 1.0, 2.0, 7.0)}
  alpha, sigma = (np.asarray(c)[:, None] for c in path.marginal(t))
  for half in ('x0', 'eps'):
    start, end = (np.asarray(getattr(at[s], half)) for s in (0.0, 1.0))
    assert np.abs(end - start).max() > 0.1  # they disagree, so that the scale matters
    for scale in (0.5, 2.0, 7.0):
      found = np.asarray(getattr(at[scale], half))
      np.testing.assert_allclose(found - start, scale * (end - start), atol=1e-10)
  for prediction in at.values():
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, z, atol=1e-10)


def test_guidance_follows_the_product_of_densities(x64):
  """For c = N(m, s^2) and u = N(0, s^2) the score u + w (c - u) is that of N(w m, s^2): guidance moves the mean."""
  path = cosine_path()
  one, spread = np.ones(1), np.full(1, 0.8)
  conditional, unconditional, moved = (
    analytic.gaussian_mixture(path, one, np.full((1, 3), mean), spread) for mean in (0.7, 0.0, 2.1)
  )
  z, t = points()
  guided = guidance.classifier_free(conditional, unconditional, 3.0)(z, t)
  for found, expected in zip(guided, moved(z, t), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_traced_scale_is_the_same_number(x64):
  path = cosine_path()
  z, t = points()

  both = pair(path)

  def guided(scale):
    return guidance.classifier_free(*both, scale)(z, t).x0

  scales = jnp.array([0.0, 1.0, 4.0])
  together = jax.jit(jax.vmap(guided))(scales)
  for row, scale in enumerate([0.0, 1.0, 4.0]):
    np.testing.assert_allclose(together[row], guided(scale), atol=1e-12)


def test_keys_reach_both_networks():
  seen = []

  def network(z, t, key=None):
    seen.append(key)
    return Prediction(z, z)

  path = cosine_path()
  keys = rng.row_keys(jax.random.key(0), jnp.arange(6))
  guidance.classifier_free(network, network, 2.0)(*points(), keys)
  guidance.clip_x0(network, path)(*points(), keys)
  assert len(seen) == 3
  assert all(key is keys for key in seen)
  seen.clear()
  guidance.in_interval(network, network, path, -1.0, 1.0)(*points(), keys)
  assert len(seen) > 1
  assert all(key is keys for key in seen)


def test_clip_keeps_x0_in_range_and_both_halves_of_z(x64):
  path = cosine_path()
  z, t = points()
  wide = analytic.gaussian_mixture(path, np.ones(1), np.zeros((1, 3)), np.full(1, 3.0))
  free, clipped = wide(z, t), guidance.clip_x0(wide, path, -0.5, 0.75)(z, t)
  outside = (np.asarray(free.x0) < -0.5) | (np.asarray(free.x0) > 0.75)
  assert outside.any()
  assert not outside.all()
  assert clipped.x0.min() == -0.5
  assert clipped.x0.max() == 0.75
  np.testing.assert_allclose(clipped.x0[~outside], free.x0[~outside])
  np.testing.assert_allclose(clipped.eps[~outside], free.eps[~outside], atol=1e-10)
  assert (np.abs(clipped.eps - free.eps)[outside] > 1e-6).all()
  alpha, sigma = (np.asarray(c)[:, None] for c in path.marginal(t))
  np.testing.assert_allclose(alpha * clipped.x0 + sigma * clipped.eps, z, atol=1e-10)


def test_clip_is_to_plus_minus_one_by_default(x64):
  path = cosine_path()
  far = analytic.gaussian_mixture(path, np.ones(1), np.array([[5.0, -5.0, 0.5]]), np.zeros(1))
  z, t = points()
  np.testing.assert_allclose(
    guidance.clip_x0(far, path)(z, t).x0, np.tile([1.0, -1.0, 0.5], (6, 1))
  )


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda d, p: guidance.classifier_free(d, d, -0.5), 'guidance .* got -0.5'),
    (lambda d, p: guidance.classifier_free(d, d, np.nan), 'guidance .* got nan'),
    (lambda d, p: guidance.classifier_free(d, d, np.inf), 'guidance .* got inf'),
    (lambda d, p: guidance.clip_x0(d, p, 1.0, -1.0), '1.0, -1.0'),
    (lambda d, p: guidance.clip_x0(d, p, 0.5, 0.5), '0.5, 0.5'),
    (lambda d, p: guidance.clip_x0(d, p, np.nan, 1.0), 'nan, 1.0'),
  ],
)
def test_bad_arguments_are_named_with_their_value(make, names):
  path = cosine_path()
  with pytest.raises(ValueError, match=names):
    make(pair(path)[0], path)


def test_autoguidance_extrapolates_from_the_weak_model(x64):
  """Two Gaussians of different spread: the guided score is that of the sharper one, sharpened further."""
  path = cosine_path()
  one, center = np.ones(1), np.zeros((1, 3))
  good, weak = (analytic.gaussian_mixture(path, one, center, np.full(1, s)) for s in (0.5, 0.9))
  z, t = points()
  alpha, sigma = (np.asarray(c)[:, None] for c in path.marginal(t))
  precision = [1 / (alpha**2 * s**2 + sigma**2) for s in (0.5, 0.9)]
  found = guidance.autoguidance(good, weak, 2.0)(z, t)
  np.testing.assert_allclose(found.eps, sigma * (2 * precision[0] - precision[1]) * z, atol=1e-10)
  np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, z, atol=1e-10)
  alone = guidance.autoguidance(good, weak, 1.0)(z, t)
  np.testing.assert_allclose(alone.eps, good(z, t).eps, atol=1e-14)


def test_an_interval_guides_inside_and_leaves_the_rest(x64):
  path = cosine_path()
  conditional, unconditional = pair(path)
  guided = guidance.classifier_free(conditional, unconditional, 3.0)
  z, t = points()
  level = np.asarray(path.log_snr(t))
  low, high = np.sort(level)[[1, 3]]  # both ends belong to it
  found = guidance.in_interval(guided, conditional, path, low, high)(z, t)
  inside = (level >= low) & (level <= high)
  assert inside.sum() == 3
  expected = np.where(inside[:, None], guided(z, t).x0, conditional(z, t).x0)
  np.testing.assert_allclose(found.x0, expected, atol=1e-12)
  assert np.abs(guided(z, t).x0 - conditional(z, t).x0)[~inside].max() > 1e-3


def test_outside_an_interval_the_second_network_is_not_run():
  calls = []

  def noted(name, denoise):
    def run(z, t, key=None):
      jax.debug.callback(lambda: calls.append(name))
      return denoise(z, t)

    return run

  path = cosine_path()
  conditional, unconditional = pair(path)
  guided = guidance.classifier_free(noted('c', conditional), noted('u', unconditional), 2.0)
  run = jax.jit(guidance.in_interval(guided, noted('plain', conditional), path, -1.0, 1.0))
  z = jnp.ones((2, 3))
  jax.block_until_ready(run(z, jnp.full(2, 0.01)))
  jax.effects_barrier()
  assert set(calls) == {'plain'}
  calls.clear()
  jax.block_until_ready(run(z, jnp.full(2, 0.5)))
  jax.effects_barrier()
  assert set(calls) == {'c', 'u'}


def test_dynamic_thresholding_by_hand(x64):
  path = cosine_path()
  x0 = np.zeros((2, 10))
  x0[0] = np.linspace(-3, 3, 10)  # too large: clipped at its own percentile and scaled back
  x0[1] = np.linspace(-0.5, 0.5, 10)  # inside the range: untouched
  z, t = jnp.ones((2, 10)), jnp.full(2, 0.5)

  def denoise(z, t, key=None):
    return Prediction(jnp.asarray(x0), z)

  found = guidance.threshold_x0(denoise, path, 80.0)(z, t)
  s = np.percentile(np.abs(x0[0]), 80.0)
  assert 1 < s < 3
  np.testing.assert_allclose(found.x0[0], np.clip(x0[0], -s, s) / s, atol=1e-12)
  np.testing.assert_allclose(found.x0[1], x0[1], atol=1e-12)
  alpha, sigma = (np.asarray(c)[:, None] for c in path.marginal(t))
  np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, z, atol=1e-12)
  largest = guidance.threshold_x0(denoise, path, 100.0)(z, t).x0
  np.testing.assert_allclose(largest[0], x0[0] / 3, atol=1e-12)
  # To another bound, which the second example leaves as well; of pixels as of a row of them.
  pixels = lambda z, t, key=None: Prediction(jnp.asarray(x0).reshape(z.shape), z)  # noqa: E731
  found = guidance.threshold_x0(pixels, path, 80.0, 0.3)(z.reshape(2, 5, 2), t)
  s = np.percentile(np.abs(x0), 80.0, axis=1)[:, None]
  assert s.min() > 0.3
  np.testing.assert_allclose(found.x0.reshape(2, 10), np.clip(x0, -s, s) * 0.3 / s, atol=1e-12)


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda p, d: guidance.autoguidance(d, d, -1.0), 'guidance .* got -1.0'),
    (
      lambda p, d: guidance.in_interval(d, d, p, 1.0, 1.0),
      'log_snr_low < log_snr_high, got 1.0, 1.0',
    ),
    (lambda p, d: guidance.threshold_x0(d, p, 0.0), 'percentile .* got 0.0'),
    (lambda p, d: guidance.threshold_x0(d, p, 100.5), 'percentile .* got 100.5'),
    (lambda p, d: guidance.threshold_x0(d, p, bound=0.0), 'bound .* got 0.0'),
  ],
)
def test_bad_arguments_of_the_other_wrappers_are_named(make, names):
  path = cosine_path()
  with pytest.raises(ValueError, match=names):
    make(path, pair(path)[0])
