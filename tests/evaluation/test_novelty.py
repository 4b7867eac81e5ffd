"""The data-copying test at its null and on copies; the feature likelihood's fit, baseline and direction."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn import decomposition

from diffusion.evaluation import novelty
from diffusion.evaluation.metric import Plan, subset
from tests.evaluation.given import inputs_of, values


def clusters(random, n, width=4):
  """Three groups of unequal shares."""
  centers = 6 * np.eye(3, width)
  return random.normal(size=(n, width)) + centers[random.choice(3, n, p=(0.5, 0.3, 0.2))]


def test_copying_is_standard_normal_in_each_cell_at_its_null():
  """Fresh samples against held-out: z of up to 120 x 3 cells against N(0, 1), and C_T over the root of sum w^2."""
  random = np.random.default_rng(0)
  z, whole = [], []
  for seed in range(120):
    train = clusters(random, 60)
    found = novelty.copying_test(clusters(random, 150), clusters(random, 150), train, seed=seed)
    z += found.z.tolist()
    whole.append(found.statistic.estimate / np.sqrt((found.weights**2).sum()))
    assert found.weights.sum() == pytest.approx(1)
  assert len(z) > 340  # a cell of a few is left out now and then
  for values_ in (z, whole):
    assert scipy.stats.kstest(values_, 'norm').pvalue > 1e-3
    assert abs(np.var(values_) - 1) < 4.5 * np.sqrt(2 / len(values_))


def test_z_is_that_of_scipy():
  random = np.random.default_rng(1)
  a, b = random.normal(size=30), random.normal(0.3, 1, size=40)
  a[:5] = b[:5]  # ties
  expected = scipy.stats.mannwhitneyu(a, b, use_continuity=False, method='asymptotic')
  found = novelty._mann_whitney_z(a, b)
  assert 2 * scipy.stats.norm.sf(abs(found)) == pytest.approx(expected.pvalue, rel=1e-9)
  assert np.sign(found) == np.sign(expected.statistic - 600)
  assert novelty._mann_whitney_z(np.ones(5), np.ones(6)) == 0


def test_copies_are_strongly_negative_and_noise_strongly_positive():
  random = np.random.default_rng(2)
  train, held_out = clusters(random, 400), clusters(random, 300)
  copies = train[:300] + 0.05 * random.normal(size=(300, 4))
  noisy = clusters(random, 300) + random.normal(0, 1.5, size=(300, 4))
  fresh = clusters(random, 300)
  found = [
    values(novelty.data_copying(), inputs_of(x, train, held_out))['C_T']
    for x in (copies, fresh, noisy)
  ]
  assert found[0].high < -8
  assert abs(found[1].estimate) < 4.5
  assert found[2].low > 4


def test_a_cell_without_enough_is_left_out_and_none_is_an_error():
  random = np.random.default_rng(3)
  train = np.concatenate([random.normal(size=(50, 2)), random.normal(50, 1, (50, 2))])
  near = random.normal(size=(40, 2))
  for least in (20, 40):  # of 40 of each
    found = novelty.copying_test(near, near + 0.1, train, cells=2, least=least)
    assert found.z.shape == (1,)
  with pytest.raises(ValueError, match='none of the 2 cells holds 41 samples'):
    novelty.copying_test(near, near + 0.1, train, cells=2, least=41)
  with pytest.raises(ValueError, match='none of the 2 cells holds 20 samples'):
    novelty.copying_test(near, 50 + near, train, cells=2)
  with pytest.raises(
    ValueError, match='in 3 cells needs at least 60 samples and held-out examples, got 59 and 90'
  ):
    novelty.data_copying().check(Plan(59, 0, (4,), 100, 90))
  with pytest.raises(ValueError, match='60 samples and held-out examples, got 90 and 59'):
    novelty.data_copying().check(Plan(90, 0, (4,), 100, 59))
  novelty.data_copying().check(Plan(60, 0, (4,), 100, 60))
  with pytest.raises(ValueError, match='at least 2 samples and 4 training examples, got 1 and 9'):
    novelty.feature_likelihood().check(Plan(1, 0, (4,), 9, 9))
  novelty.feature_likelihood().check(Plan(2, 0, (4,), 4, 9))
  # Where there are no clusters, what the cells are is up to the seed.
  even = random.uniform(size=(3, 150, 2))
  one, same, other = (novelty.copying_test(*even, 9, 2, seed).z for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert not np.array_equal(one, other)


def test_one_width_in_closed_form():
  """A single center: s^2 = mean |x - c|^2 / F, whatever the start."""
  random = np.random.default_rng(4)
  x, center = random.normal(2, 3, (500, 4)), np.ones((1, 4))
  found = novelty.fit_widths(center, x, steps=3)
  expected = np.log(((x - center) ** 2).sum(1).mean() / 4)
  assert float(found.log_variance[0]) == pytest.approx(expected, rel=1e-5)
  assert novelty.log_density(found, x) == pytest.approx(
    scipy.stats.multivariate_normal(np.ones(4), np.exp(expected)).logpdf(x), rel=1e-4
  )
  held_out = random.normal(0, 2, (90, 4))
  density = scipy.stats.multivariate_normal(np.ones(4), np.exp(expected)).logpdf(held_out)
  assert novelty.likelihood_divergence(center, x, held_out) == pytest.approx(
    -100 * density.mean() / 4, rel=1e-4
  )


def test_the_density_of_several_gaussians_is_the_mean_of_theirs():
  random = np.random.default_rng(14)
  x, centers = random.normal(size=(7, 2)), random.normal(size=(3, 2)).astype(np.float32)
  variance = np.array([0.5, 1.0, 3.0], np.float32)
  expected = np.mean(
    [scipy.stats.multivariate_normal(c, v).pdf(x) for c, v in zip(centers, variance, strict=True)],
    axis=0,
  )
  made = novelty.CenteredGaussians(jnp.asarray(centers), jnp.log(variance))
  found = novelty.log_density(made, x, chunk=3)
  np.testing.assert_allclose(found, np.log(expected), rtol=1e-4)


def test_the_likelihood_never_falls_and_ends_at_the_true_widths():
  random = np.random.default_rng(5)
  centers = np.array([[0.0, 0.0], [30.0, 0.0]])
  x = np.concatenate([random.normal(0, 1, (3000, 2)), centers[1] + random.normal(0, 4, (3000, 2))])
  likelihoods = [
    novelty.log_density(novelty.fit_widths(centers, x, n), x).mean() for n in (1, 2, 5, 20)
  ]
  assert all(b >= a - 1e-5 for a, b in zip(likelihoods, likelihoods[1:], strict=False))
  widths = np.exp(0.5 * np.asarray(novelty.fit_widths(centers, x).log_variance))
  np.testing.assert_allclose(widths, [1, 4], rtol=0.05)


def test_a_center_on_a_point_keeps_the_least_width():
  x = np.random.default_rng(6).normal(size=(50, 3))
  points = np.repeat(x[:10], 3, axis=0)  # and the last chunk of them is filled up
  found = novelty.fit_widths(x[:10], points, floor=1e-3, chunk=7)
  square = ((x[:10, None] - x[:10]) ** 2).sum(2).mean() / 3
  np.testing.assert_allclose(np.exp(found.log_variance), 1e-3 * square, rtol=1e-4)
  assert np.isfinite(novelty.log_density(found, x)).all()


def test_real_data_scores_its_baseline_and_copies_and_collapse_are_worse():
  random = np.random.default_rng(7)
  train, held_out = clusters(random, 600), clusters(random, 300)
  fresh, copies = clusters(random, 300), train[:300]
  collapsed = random.normal(0, 0.1, (300, 4)) + 6 * np.eye(3, 4)[0]
  found = [
    values(novelty.feature_likelihood(), inputs_of(x, train, held_out))['FLD']
    for x in (fresh, copies, collapsed)
  ]
  assert abs(found[0]) < 3
  assert found[1] > 15
  assert found[2] > 15


def test_a_limit_on_centers_hides_no_copies():
  """Copies of every second of 1,000 training examples, 400 centers: the widths are fitted to all 1,000."""
  random = np.random.default_rng(9)
  train, held_out = clusters(random, 1000, 32), clusters(random, 450, 32)
  metric = novelty.feature_likelihood(limit=400)
  copies, fresh, few = (
    values(metric, inputs_of(x, train, held_out))['FLD']
    for x in (train[::2], clusters(random, 500, 32), clusters(random, 60, 32))
  )
  print(copies, fresh, few)
  # 400 centers on both sides, and as many held-out examples as the limit says.
  samples, real, others = novelty.standardized(train[::2], train, held_out)
  one = novelty.likelihood_divergence(subset(samples, 400), real, subset(others, 400))
  other = novelty.baseline_divergence(real, subset(others, 400), 400)
  assert copies == pytest.approx(one - other)
  assert copies > 3
  assert abs(fresh) < 1
  assert abs(few) < 2  # few perfect samples are compared with as few real ones


def test_chunks_do_not_matter():
  random = np.random.default_rng(10)
  centers, x = clusters(random, 20), clusters(random, 130)
  whole, parts = (novelty.fit_widths(centers, x, 5, chunk=chunk) for chunk in (1000, 32))
  np.testing.assert_allclose(whole.log_variance, parts.log_variance, rtol=1e-4, atol=1e-4)


def test_everything_is_standardized_by_the_training_set():
  random = np.random.default_rng(11)
  train = random.normal(3, (1, 5, 20), (400, 3))
  samples, held_out = random.normal(-50, 0.1, (60, 3)), random.normal(9, 1, (70, 3))
  constant = lambda x: np.insert(x, 1, 7.0, axis=1)  # noqa: E731  # left out
  found = novelty.standardized(*map(constant, (samples, train, held_out)))
  for one, x in zip(found, (samples, train, held_out), strict=True):
    np.testing.assert_allclose(one, (x - train.mean(0)) / train.std(0), rtol=1e-5, atol=1e-5)


def test_the_data_copying_test_looks_along_what_varies_in_the_training_set():
  """Samples that vary most elsewhere, with the components of another library."""
  random = np.random.default_rng(12)
  train, held_out = (random.normal(size=(n, 6)) * (9, 8, 1, 1, 1, 1) for n in (300, 200))
  samples = random.normal(size=(200, 6)) * (1, 1, 1, 1, 30, 40)
  found = values(novelty.data_copying(components=2, cells=1), inputs_of(samples, train, held_out))
  main = decomposition.PCA(2).fit(train)
  wanted = novelty.copying_test(*map(main.transform, (samples, held_out, train)), cells=1)
  np.testing.assert_allclose(found['C_T'], wanted.statistic, rtol=1e-6)
  assert found['C_T'].high < -5  # along them the samples crowd in the middle


def test_cells_weigh_by_their_shares_of_the_held_out_examples():
  random = np.random.default_rng(13)

  def of(*counts):
    places = np.repeat(np.arange(3), counts)
    return random.normal(size=(len(places), 4)) + 20 * np.eye(3, 4)[places]

  found = novelty.copying_test(of(60, 60, 60), of(100, 60, 40), of(200, 200, 200))
  np.testing.assert_allclose(np.sort(found.weights), [0.2, 0.3, 0.5])
  half = 1.959964 * np.sqrt(0.2**2 + 0.3**2 + 0.5**2)
  np.testing.assert_allclose(found.statistic.high - found.statistic.estimate, half, rtol=1e-5)


def test_components_are_the_leading_ones():
  random = np.random.default_rng(8)
  x = random.normal(size=(2000, 3)) * np.array([1, 5, 0.1]) + 7
  mean, directions = novelty.principal_components(x, 2)
  np.testing.assert_allclose(np.abs(directions), np.eye(3)[:, [1, 0]], atol=0.05)
  np.testing.assert_allclose(mean, 7, atol=0.4)
