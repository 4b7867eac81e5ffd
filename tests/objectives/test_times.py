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
EVERY = ALL | {
  'log-normal': times.log_normal,
  'logit-normal': times.logit_normal,
  'importance': lambda: times.importance(4),
  'curriculum': lambda: times.curriculum(times.importance(4), 5),
  'curriculum by loss': lambda: times.curriculum_by_loss(times.importance(4), 5),
}


def many(name, rows, draws, seed=0):
  """[draws, rows] times, one batch a key."""
  sampler = ALL[name]()
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(draws))
  whole = Rows(jnp.arange(rows), rows)
  draw = jax.jit(jax.vmap(lambda key: sampler.draw((), key, whole, 0.0, None)))
  t, importance = draw(keys)
  np.testing.assert_array_equal(importance, np.ones((draws, rows)))
  return np.asarray(t, np.float64)


def alone(tree):
  """The mean over devices where there is one."""
  return tree


@pytest.mark.parametrize('name', [*ALL, 'logit-normal', 'curriculum by loss'])
def test_rows_draw_and_teach_the_same_wherever_they_are_held(name):
  """Each device has rows of its own part of t; all must know what one device with all rows knows."""
  sampler = EVERY[name]()

  def one(index):
    # Losses whose squares add up without rounding, in any order.
    t, loss = (index + 0.5) / 24, (1 + 7 * index % 11).astype(jnp.float32)
    state = sampler.update(sampler.init(), t, loss, lambda tree: jax.lax.pmean(tree, 'device'))
    return state, sampler.draw(state, jax.random.key(3), Rows(index, 24), 0.0, None)

  run, rows = jax.jit(jax.vmap(one, axis_name='device')), jnp.arange(24)
  learned, drawn = run(rows[None])
  for parts, index in ((1, rows[::-1]), (4, rows)):
    state, pieces = run(index.reshape(parts, -1))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(learned), strict=True):
      np.testing.assert_allclose(a, np.repeat(b, parts, axis=0), rtol=1e-6)
    for piece, whole in zip(pieces, drawn, strict=True):
      np.testing.assert_array_equal(piece.ravel(), whole[0][index])


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
  quantiles = np.sort(stats.norm.cdf(logit, 0.3, 0.8), axis=1)
  assert np.abs(quantiles - (np.arange(64) + 0.5) / 64).max() < 1.2 / 64


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


def test_importance_follows_the_window_of_the_steps_that_hit_a_bucket_and_forgets_none():
  """By its definition: the density between and within buckets, and weights of 1 / (K p), of one bucket without loss."""
  made = times.importance(buckets=4, decay=0.7, uniform_share=0.2)
  generator, update = np.random.default_rng(1), jax.jit(lambda *a: made.update(*a, alone))
  state, squares = made.init(), {k: [] for k in range(4)}
  for _ in range(10):
    bucket, inside, loss = (
      generator.integers(4, size=4), *generator.uniform(0.1, 0.9, (2, 4)).astype(np.float32)
    )  # fmt: skip
    loss[bucket == 0] = 0
    state = update(state, jnp.asarray(bucket + inside) / 4, loss)
    for k in set(bucket):
      squares[k].append(np.mean(loss[bucket == k] ** 2))
  hits = [len(squares[k]) for k in range(4)]
  assert 0 < min(hits) < max(hits) < 10
  root = np.sqrt(
    [np.average(squares[k], weights=0.7 ** np.arange(hits[k])[::-1]) for k in range(4)]
  )
  share = 0.8 * root / root.sum() + 0.2 / 4
  draw = jax.jit(lambda s: made.draw(s, jax.random.key(0), Rows(jnp.arange(4000), 4000), 0.0, None))
  t, weight = (np.asarray(one, np.float64) for one in draw(state))
  bucket = (4 * t).astype(int)
  below = (np.cumsum(share) - share)[bucket] + share[bucket] * (4 * t - bucket)  # P(T < t)
  # Stratified: at every quantile, not only on average.
  np.testing.assert_allclose(np.sort(below), (np.arange(4000) + 0.5) / 4000, atol=0.6 / 4000)
  np.testing.assert_allclose(weight, 0.25 / share[bucket], rtol=1e-5)


def test_importance_is_uniform_until_every_bucket_was_seen_and_had_a_loss():
  made = times.importance(buckets=4)
  whole, key = Rows(jnp.arange(16), 16), jax.random.key(2)
  draw = jax.jit(lambda state: made.draw(state, key, whole, 0.0, None))
  expected, _ = times.stratified().draw((), key, whole, 0.0, None)
  two = made.update(made.init(), jnp.array([0.1, 0.3]), jnp.ones(2), alone)
  lost = made.update(made.init(), jnp.array([0.1, 0.3, 0.6, 0.8]), jnp.zeros(4), alone)
  for given in (made.init(), two, lost):
    t, w = draw(given)
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


@pytest.mark.parametrize('name', ['log-normal', 'importance', 'curriculum'])
def test_a_curriculum_stretches_what_its_base_draws_and_lets_it_learn(name):
  """Bases that need the path, the state and the progress."""
  base, path, key = EVERY[name](), path_of(schedules.edm()), jax.random.key(4)

  def one(made):
    t, loss = (jnp.arange(8) + 0.5) / 8, jnp.arange(1.0, 9)
    state = made.update(made.init(), t, loss, alone)
    return state, made.draw(state, key, Rows(jnp.arange(100), 100), 0.3, path)

  kinds = base, times.curriculum(base, 4, until=0.5), times.curriculum_by_loss(base, 4)
  (state, (t, weight)), by_progress, by_loss = jax.jit(lambda: [one(made) for made in kinds])()
  # 1 + floor(3 * 0.3 / 0.5) = 2 of 4 are open by progress.
  for learned, drawn, opened in (
    (by_progress[0], by_progress[1], 0.5),
    (by_loss[0]['base'], by_loss[1], 0.25),
  ):
    assert jax.tree.structure(learned) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(learned), jax.tree.leaves(state), strict=True):
      np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(drawn[0], 1 - opened * (1 - t), atol=2e-7)
    np.testing.assert_array_equal(drawn[1], weight)


def paced(made, losses):
  """(state, clusters open after each step) of a curriculum that meets these losses."""

  def one(state, loss):
    state = made.update(state, jnp.zeros(4), jnp.full(4, loss), alone)
    return state, state['opened']

  state, opened = jax.jit(lambda losses: jax.lax.scan(one, made.init(), losses))(
    jnp.asarray(losses, jnp.float32)
  )
  return state, np.asarray(opened)


def test_a_curriculum_paced_by_loss_counts_steps_without_a_fall_and_starts_anew():
  def opened(losses, patience, min_delta=0.01, decay=0.0):
    made = times.curriculum_by_loss(times.uniform(), 4, patience, min_delta, decay)
    return paced(made, losses)[1]

  step = np.arange(30)
  # A loss at rest: the first step of a cluster sets the best, and `patience` more do not fall below it.
  np.testing.assert_array_equal(
    opened(np.ones(30), 5, decay=0.9), np.minimum(1 + (step + 1) // 6, 4)
  )
  # It takes four steps of 0.3 % to fall by 1 %.
  assert (opened(0.997**step, 4) == 1).all()
  np.testing.assert_array_equal(opened(0.997**step, 3)[:5], [1, 1, 1, 2, 2])
  # The average falls where the loss does, from the first step on; one lucky batch is not yet a fall of it.
  assert (opened(0.97**step, 2, decay=0.9) == 1).all()
  lucky = np.where(step == 4, 0.5, 1.0)
  for decay, first in ((0.0, 4 + 5), (0.9, 5)):
    assert list(opened(lucky, 5, 0.2, decay)).index(2) == first
  # The next cluster is harder: what its loss does alone counts, as if it were the first.
  harder = np.concatenate([50 * 0.97**step, np.full(10, 50 * 0.97**30)])
  both = opened(np.concatenate([np.ones(6), harder]), 5, decay=0.9)
  np.testing.assert_array_equal(both[:6], [1, 1, 1, 1, 1, 2])
  np.testing.assert_array_equal(both[6:], 1 + opened(harder, 5, decay=0.9))


def test_a_curriculum_paced_by_loss_opens_when_the_loss_no_longer_falls():
  made = times.curriculum_by_loss(
    times.uniform(), clusters=3, patience=5, min_delta=0.01, decay=0.5
  )
  state, opened = paced(made, [2.0 * 0.8**i for i in range(20)] + [0.02] * 40)
  opened = opened.tolist()
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
