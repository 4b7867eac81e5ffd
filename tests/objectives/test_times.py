"""Draws of t: the same for any number of devices, uniform, unbiased, and stratified where promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion.objectives import times
from diffusion.process import gaussian, marginals, parameterizations, schedules
from diffusion.types import Rows

ALL = {'uniform': times.uniform, 'stratified': times.stratified}


def many(name, rows, draws, seed=0):
  """[draws, rows] times, one batch a key."""
  sampler = ALL[name]()
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(draws))
  whole = Rows(jnp.arange(rows), rows)
  draw = jax.jit(jax.vmap(lambda key: sampler.draw((), key, whole, 0.0, None)))
  t, importance = draw(keys)
  np.testing.assert_array_equal(importance, np.ones((draws, rows)))
  return np.asarray(t, np.float64)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('parts', [2, 4])
def test_rows_draw_the_same_t_wherever_they_are_held(name, parts):
  sampler, key = ALL[name](), jax.random.key(3)
  whole, _ = sampler.draw(sampler.init(), key, Rows(jnp.arange(24), 24), 0.0, None)
  pieces = [
    sampler.draw(sampler.init(), key, Rows(index, 24), 0.0, None)[0]
    for index in jnp.split(jnp.arange(24), parts)
  ]
  np.testing.assert_array_equal(np.concatenate(pieces), whole)
  backwards, _ = sampler.draw(sampler.init(), key, Rows(jnp.arange(24)[::-1], 24), 0.0, None)
  np.testing.assert_array_equal(backwards[::-1], whole)


@pytest.mark.parametrize('name', ALL)
def test_t_is_a_function_of_the_key(name):
  sampler, rows = ALL[name](), Rows(jnp.arange(8), 8)
  first, again, other = (
    np.asarray(sampler.draw((), jax.random.key(seed), rows, 0.0, None)[0]) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).all()


@pytest.mark.parametrize('name', ALL)
def test_every_row_is_uniform_on_the_unit_interval(name):
  t = many(name, 8, 4000)
  assert (t >= 0).all()
  assert (t < 1).all()
  for row in range(8):
    # Fixed seed: with uniform margins the smallest of eight p-values is below 1e-3 in 0.8 % of seeds.
    assert stats.kstest(t[:, row], 'uniform').pvalue > 1e-3


@pytest.mark.parametrize('rows', [4, 16, 12, 100])
def test_stratified_puts_one_t_in_every_stratum(rows):
  t = np.sort(many('stratified', rows, 200), axis=1)
  # Evenly spaced around the circle: each of the B intervals of length 1 / B holds exactly one, wherever they start.
  gaps = np.diff(np.concatenate([t, t[:, :1] + 1], axis=1), axis=1)
  np.testing.assert_allclose(gaps, 1 / rows, atol=3e-7)
  inside = (t * rows) % 1
  clear = ((inside > 1e-3) & (inside < 1 - 1e-3)).all(1)  # of a rounding across an edge
  assert clear.mean() > 0.9
  assert (np.floor(t[clear] * rows) == np.arange(rows)).all()


@pytest.mark.parametrize('name', ALL)
def test_batch_mean_of_a_function_of_t_is_unbiased(name):
  means = np.exp(many(name, 16, 4000)).mean(1)
  error = means.std() / np.sqrt(4000)
  assert abs(means.mean() - (np.e - 1)) < 4 * error


def test_stratified_means_vary_less_than_uniform_ones():
  uniform, stratified = (np.exp(many(name, 16, 2000)).mean(1).var() for name in ALL)
  # Var exp(t) / 16 for independent rows; a systematic sample of 16 has about 1 / 16 of that left.
  np.testing.assert_allclose(uniform, ((np.e**2 - 1) / 2 - (np.e - 1) ** 2) / 16, rtol=0.15)
  assert stratified < uniform / 10


def test_uniform_rows_are_independent():
  t = many('uniform', 8, 4000)
  correlation = np.corrcoef(t.T)
  assert np.abs(correlation - np.eye(8)).max() < 5 / np.sqrt(4000)
  # Not only uncorrelated: the difference of two rows is uniform around the circle.
  assert stats.kstest((t[:, 1] - t[:, 0]) % 1, 'uniform').pvalue > 1e-3


@pytest.mark.parametrize('name', ALL)
def test_update_keeps_the_empty_state(name):
  sampler = ALL[name]()
  assert sampler.init() == ()
  assert sampler.update((), jnp.zeros(3), jnp.ones(3), lambda tree: tree) == ()


def path_of(schedule):
  diffusion = gaussian.Diffusion(schedule, marginals.variance_exploding, parameterizations.eps())
  return gaussian.bind(diffusion, ())


def normal_draws(make, path, rows=64, draws=400):
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(draws))
  whole = Rows(jnp.arange(rows), rows)
  t, importance = jax.jit(jax.vmap(lambda key: make.draw((), key, whole, 0.0, path)))(keys)
  np.testing.assert_array_equal(importance, np.ones((draws, rows)))
  return np.asarray(t)


def test_log_normal_draws_sigma_log_normally_on_any_schedule():
  """log sigma has the mean, deviation and distribution asked for; each batch covers it evenly."""
  for schedule in (schedules.edm(), schedules.geometric(0.001, 200.0)):
    path = path_of(schedule)
    t = normal_draws(times.log_normal(-1.2, 1.2), path)
    log_sigma = -0.5 * np.asarray(path.log_snr(jnp.asarray(t)))
    # Stratified draws of one batch are dependent: test one row over independent batches.
    assert stats.kstest(log_sigma[:, 3], stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    quantiles = np.sort(stats.norm.cdf(log_sigma, -1.2, 1.2), axis=1)
    assert np.abs(quantiles - (np.arange(64) + 0.5) / 64).max() < 1.2 / 64


def test_logit_normal_draws_t_so():
  t = normal_draws(times.logit_normal(0.3, 0.8), None)
  logit = np.log(t) - np.log1p(-t)
  assert stats.kstest(logit[:, 5], stats.norm(0.3, 0.8).cdf).pvalue > 1e-3


def test_importance_follows_the_root_second_moment_and_keeps_the_mean(x64):
  """Loss known exactly on 8 buckets: the share of draws, unbiasedness, and a variance below uniform's."""
  made = times.importance(buckets=8, decay=0.9, uniform_share=0.01)
  size = jnp.array([8.0, 4, 2, 1, 0.5, 0.25, 0.1, 0.05])
  whole = Rows(jnp.arange(64), 64)

  def loss(t):
    return size[(t * 8).astype(int)] * (1 + 0.5 * jnp.sin(40 * t))

  def one(state, key):
    t, w = made.draw(state, key, whole, 0.0, None)
    return made.update(state, t, loss(t), lambda tree: tree), (t, w)

  keys = jax.random.split(jax.random.key(0), 600)
  state, (t, w) = jax.lax.scan(one, made.init(), keys)
  t, w = np.asarray(t)[200:], np.asarray(w)[200:]
  fine = jnp.linspace(0, 1, 80_001)[:-1] + 0.5 / 80_000
  exact = np.asarray(loss(fine))
  root = np.sqrt((exact**2).reshape(8, -1).mean(1))
  share = 0.99 * root / root.sum() + 0.01 / 8
  found = np.bincount((t * 8).astype(int).ravel(), minlength=8) / t.size
  np.testing.assert_allclose(found, share, rtol=0.1, atol=2e-3)
  estimate = (w * np.asarray(loss(t))).mean(1)
  assert abs(estimate.mean() - exact.mean()) < 4 * estimate.std() / np.sqrt(len(estimate)) + 0.005
  # One row alone, so that stratification does not hide it: less variance than a uniform draw.
  assert (w[:, 0] * np.asarray(loss(t[:, 0]))).var() < 0.5 * exact.var()


def test_importance_is_uniform_until_every_bucket_was_seen():
  made = times.importance(buckets=4)
  whole, key = Rows(jnp.arange(16), 16), jax.random.key(2)
  state = made.update(made.init(), jnp.array([0.1, 0.3]), jnp.ones(2), lambda tree: tree)
  for given in (made.init(), state):
    t, w = made.draw(given, key, whole, 0.0, None)
    expected, _ = times.stratified().draw((), key, whole, 0.0, None)
    np.testing.assert_allclose(t, expected, atol=1e-6)
    np.testing.assert_array_equal(w, 1)


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda: times.log_normal(deviation=0.0), 'deviation .* got 0.0'),
    (lambda: times.log_normal(mean=np.inf), 'mean .* got inf'),
    (lambda: times.logit_normal(deviation=-1.0), 'deviation .* got -1.0'),
    (lambda: times.importance(buckets=1), 'buckets .* got 1'),
    (lambda: times.importance(decay=1.0), 'decay .* got 1.0'),
    (lambda: times.importance(uniform_share=0.0), 'uniform_share .* got 0.0'),
  ],
)
def test_bad_arguments_are_named_with_their_value(make, names):
  with pytest.raises(ValueError, match=names):
    make()


@pytest.mark.parametrize('base', [times.uniform, times.stratified])
def test_a_timestep_curriculum_opens_the_noisy_end_first_and_ends_as_its_base(base):
  made = times.curriculum(base(), clusters=5, until=0.5)
  rows, key = Rows(jnp.arange(4000), 4000), jax.random.key(0)
  for progress, opened in ((0.0, 1), (0.13, 2), (0.3, 3), (0.49, 4)):
    t = np.asarray(made.draw((), key, rows, jnp.asarray(progress), None)[0])
    low = 1 - opened / 5
    assert low <= t.min() < low + 0.01
    assert 0.99 < t.max() < 1
    np.testing.assert_allclose(t.mean(), (1 + low) / 2, atol=0.02)  # even over what is open
  expected = base().draw((), key, rows, 0.5, None)
  for progress in (0.5, 1.0):
    for a, b in zip(made.draw((), key, rows, jnp.asarray(progress), None), expected, strict=True):
      np.testing.assert_array_equal(a, b)


def test_a_curriculum_paced_by_loss_opens_when_the_loss_no_longer_falls():
  made = times.curriculum_by_loss(
    times.uniform(), clusters=3, patience=5, min_delta=0.01, decay=0.5
  )
  state, opened = made.init(), []
  losses = [2.0 * 0.8**i for i in range(20)] + [0.02] * 40
  for loss in losses:
    state = made.update(state, jnp.zeros(4), jnp.full(4, loss), lambda tree: tree)
    opened.append(int(state['opened']))
  assert opened[:20] == [1] * 20  # still falling
  assert opened[-1] == 3
  assert sorted(opened) == opened
  first, second = opened.index(2), opened.index(3)
  assert 20 <= first <= 40
  assert second >= first + 5
  rows, key = Rows(jnp.arange(1000), 1000), jax.random.key(0)
  early = np.asarray(made.draw(made.init(), key, rows, 0.0, None)[0])
  assert 2 / 3 <= early.min() < 0.68
  last = made.draw(state, key, rows, 0.0, None)[0]
  np.testing.assert_array_equal(last, times.uniform().draw((), key, rows, 0.0, None)[0])


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda: times.curriculum(times.uniform(), 1), 'clusters .* got 1'),
    (lambda: times.curriculum(times.uniform(), until=0.0), 'until .* got 0.0'),
    (lambda: times.curriculum_by_loss(times.uniform(), patience=0), 'patience .* got 0'),
    (lambda: times.curriculum_by_loss(times.uniform(), min_delta=1.0), 'min_delta .* got 1.0'),
    (lambda: times.curriculum_by_loss(times.uniform(), decay=1.0), 'decay .* got 1.0'),
  ],
)
def test_bad_curricula_are_refused(make, names):
  with pytest.raises(ValueError, match=names):
    make()
