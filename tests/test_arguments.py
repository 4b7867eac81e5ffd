"""Arguments that examples leave at their defaults reach what they say, each by what it must come to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import statistics
from diffusion.data import curriculum, sources
from diffusion.evaluation import (
  features,
  frechet,
  manifold,
  memorization,
  metric,
  novelty,
  same_noise,
  stability,
)
from diffusion.models import embeddings, normalization
from diffusion.process import betas, gaussian, marginals, parameterizations, schedules
from diffusion.reporting import latex, tables
from diffusion.sampling import grids, guidance, samplers, solvers
from diffusion.types import Prediction
from tests.evaluation.given import inputs_of

# What stands for a network: the first three of six numbers, scaled; distances of them are others than of all six.
FIRST = features.Features('first', '', 3, lambda x: x[:, :3] * np.float32([1, 2, -3]))


def rows(seed, count, shift=0.0):
  return np.random.default_rng(seed).normal(shift, 1, (count, 6)).astype(np.float32)


def sets():
  """Samples, training and held-out examples, a third of the samples near to training examples."""
  train, held_out = rows(0, 200), rows(1, 150)
  return np.concatenate([train[:50] + np.float32(0.01), rows(2, 100, 0.3)]), train, held_out


def found(one, parts):
  return [(result.value, result.counts) for result in one.measure(inputs_of(*parts))]


METRICS = {
  'frechet': frechet.frechet, 'kernel': frechet.kernel, 'precision and recall': manifold.precision_recall,
  'density and coverage': manifold.density_coverage, 'vendi': manifold.vendi, 'copying': novelty.data_copying,
  'likelihood': novelty.feature_likelihood,
  'ratio': lambda features=None: memorization.calibrated_ratio(0.1, features),
}  # fmt: skip


@pytest.mark.parametrize('name', METRICS)
def test_a_metric_of_features_is_the_plain_one_of_their_values(name):
  parts = sets()
  wanted = found(METRICS[name](), [FIRST.apply(part) for part in parts])
  of = found(METRICS[name](features=FIRST), parts)
  assert str(of) == str(wanted) != str(found(METRICS[name](), parts))


@pytest.mark.parametrize(
  'make',
  [
    frechet.kernel,
    manifold.precision_recall,
    manifold.density_coverage,
    manifold.vendi,
    manifold.sliced_wasserstein,
  ],
)
def test_a_limit_of_rows_is_the_metric_of_so_many(make):
  parts = sets()
  of = found(make(limit=60), parts)
  assert str(of) == str(found(make(), [metric.subset(part, 60) for part in parts]))
  assert str(of) != str(found(make(), parts))


def test_cells_with_too_few_are_left_out():
  """Of three clusters one has few samples."""
  centers = np.repeat(20.0 * np.arange(3), [100, 100, 5])[:, None]
  far = lambda seed: centers + np.random.default_rng(seed).normal(size=(205, 2))  # noqa: E731
  samples, held_out, train = map(far, range(3))
  counts = [len(novelty.copying_test(samples, held_out, train, 3, least).z) for least in (3, 20)]
  assert counts == [3, 2]
  every, some = (
    found(novelty.data_copying(least=least), (samples, train, held_out)) for least in (3, 20)
  )
  assert str(every) != str(some)


def test_input_ratios_of_features_are_those_of_their_values():
  samples, train, held_out = sets()
  index, ratio = memorization.input_ratios(inputs_of(samples, train, held_out), 'samples', FIRST)
  wanted = memorization.ratios(FIRST.apply(samples), FIRST.apply(train))
  np.testing.assert_array_equal(index, wanted[0])
  np.testing.assert_array_equal(ratio, wanted[1])


def test_the_threshold_of_what_is_watched_is_that_of_the_ratios():
  samples, train, held_out = sets()
  ratios = memorization.ratios(samples, train)[1]
  for threshold in (0.2, 0.6, 0.9):
    watched = memorization.watch(train, held_out, threshold)(samples)
    assert watched['memorized/fraction'] == (ratios < threshold).mean()
    assert watched['memorized/null'] == (memorization.ratios(held_out, train)[1] < threshold).mean()


def test_the_level_of_effective_memorization_is_where_the_fractions_cross_it():
  sizes, trials = np.array([10, 100, 1000]), np.full(3, 10_000)
  find = lambda **given: memorization.effective_memorization(  # noqa: E731
    sizes, np.array([9000, 5000, 1000]), trials, **given
  )
  np.testing.assert_allclose(find(level=0.5).estimate, 100)
  np.testing.assert_allclose(find(level=0.7).estimate, 10**1.5)
  assert find(level=0.5, seed=1) == find(level=0.5, seed=1) != find(level=0.5, seed=2)
  assert find(level=0.5, draws=100) != find(level=0.5, draws=200)


SEEDED = {
  'extrapolated': lambda seed: frechet.extrapolated(rows(0, 200), frechet.moments(rows(1, 300)), seed=seed),
  'kernel distance': lambda seed: frechet.kernel_distance(rows(0, 60), rows(1, 60), 4, seed),
  'sliced distance': lambda seed: manifold.sliced_distance(rows(0, 60), rows(1, 60), 8, seed),
  'sliced Wasserstein': lambda seed: found(manifold.sliced_wasserstein(8, seed=seed), sets())[0],
  'baseline': lambda seed: novelty.baseline_divergence(rows(0, 60), rows(1, 40), 30, seed),
  'agreement': lambda seed: str(
    same_noise.agreement(rows(0, 20), rows(1, 20), np.arange(20) % 2, rows(2, 9), rows(3, 9), seed)
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', SEEDED)
def test_what_is_drawn_is_of_its_seed(name):
  assert SEEDED[name](0) == SEEDED[name](0) != SEEDED[name](1)


def test_so_many_subsets_and_directions_are_drawn_as_are_asked_for(monkeypatch):
  reference, seen = frechet.moments(rows(1, 300)), []
  monkeypatch.setattr(frechet, 'distance', lambda *given: seen.append(given) or 1.0)
  for points in (3, 15):
    seen.clear()
    np.testing.assert_allclose(frechet.extrapolated(rows(0, 200), reference, points), 1.0)
    assert len(seen) == points
  one, many = (found(manifold.sliced_wasserstein(number), sets()) for number in (1, 64))
  assert one != many


def test_spikes_are_as_many_deviations_and_no_nearer_than_the_floor():
  steps, calm = range(60), 1 + 0.01 * np.sin(np.arange(60))
  jump = lambda factor: stability.spikes(steps, [*calm[:-1], factor], **given)  # noqa: E731
  for given, low, high in (
    ({'deviations': 10.0, 'floor': 1e-6}, 1.02, 1.4),
    ({'deviations': 100.0, 'floor': 1e-6}, 1.4, 5.0),
    ({'deviations': 10.0, 'floor': 0.05}, 1.4, 1.8),
  ):
    assert not jump(low), given
    assert len(jump(high)) == 1, given


INTERVALS = {
  'paired difference': lambda c: statistics.paired_difference([1.0, 2, 4, 3], [0.5, 1, 2, 2.5], c),
  'ratio of means': lambda c: statistics.ratio_of_means([1.0, 2, 4, 3], [0.5, 1, 2, 2.5], c),
  'paired ratio': lambda c: statistics.paired_ratio([1.0, 2, 4, 3], [0.5, 1, 2, 2.5], c),
}


@pytest.mark.parametrize('name', INTERVALS)
def test_an_interval_is_as_wide_as_its_confidence(name):
  widths = []
  for confidence in (0.5, 0.99):
    one = INTERVALS[name](confidence)
    ends = np.log([one.high, one.low]) if name == 'paired ratio' else [one.high, one.low]
    widths.append((ends[0] - ends[1]) / stats.t.ppf(0.5 + confidence / 2, 3))
  np.testing.assert_allclose(widths[1], widths[0], rtol=1e-9)


def test_a_bootstrap_s_interval_holds_its_confidence():
  """Of groups alike in themselves, whose mean is of eight draws of a coin."""
  groups = [[0.0] * 3] * 4 + [[1.0] * 3] * 4
  for confidence in (0.5, 0.9, 0.99):
    one = statistics.hierarchical_bootstrap(groups, confidence)
    tail = (1 - confidence) / 2
    assert one[1:] == (stats.binom.ppf(tail, 8, 0.5) / 8, stats.binom.ppf(1 - tail, 8, 0.5) / 8)


def test_numbers_have_as_many_digits_as_are_asked_for():
  table = tables.markdown(['a'], [[0.123456]], digits=5)
  assert '0.12346' in table
  assert '0.12346' in latex.tabular(['a'], [[0.123456]], digits=5)
  interval = statistics.Interval(0.123456, 0.1, 0.15)
  assert statistics.format_interval(interval, digits=4).startswith('0.12346 [0.10000, 0.15000]')


def test_scores_of_a_curriculum_are_those_that_are_given():
  score = lambda x, label: np.arange(len(x))[::-1]  # noqa: E731
  assert curriculum.by_difficulty(score).rank is score


def test_stand_ins_are_as_many_as_are_asked_for():
  made = sources.real_or_synthetic(sources.digits(), True, (8, 8, 1), 30).load()
  assert len(made.x) == 30
  assert len(sources.real_or_synthetic(sources.digits(), False, (8, 8, 1), 30).load().x) > 1000


def test_frequencies_lie_between_their_ends():
  noise = jnp.linspace(-1, 1, 5)
  found = embeddings.fourier(noise, 6, 0.5, 2.0)
  angle = 2 * np.pi * np.asarray(noise)[:, None] * np.array([0.5, 1.0, 2.0])
  np.testing.assert_allclose(found, np.concatenate([np.cos(angle), np.sin(angle)], 1), atol=1e-5)


def test_groups_are_at_most_so_many():
  assert [normalization.groups(256, most) for most in (1, 7, 32, 100)] == [1, 4, 32, 64]


def test_scaled_linear_betas_end_where_they_are_told_to():
  table = np.asarray(betas.scaled_linear(11, 0.01, 0.04)())
  np.testing.assert_allclose(table, np.linspace(0.1, 0.2, 11) ** 2, rtol=1e-6)


def path_of(schedule=None, process=marginals.variance_exploding):
  made = gaussian.Diffusion(schedule or schedules.edm(0.01, 60.0), process, parameterizations.v())
  return gaussian.bind(made, ())


@pytest.mark.parametrize('s_max', [5.0, 20.0])
def test_a_geometric_grid_begins_at_its_noisiest_level(s_max):
  path = path_of()
  first = grids.geometric(path, 12, s_max)[0]
  np.testing.assert_allclose(np.exp(-0.5 * float(path.log_snr(first))), s_max, rtol=1e-3)


def test_calls_are_those_of_the_walk_with_or_without_the_last_one():
  path = path_of()
  for make, step in ((samplers.ddim, 1), (solvers.heun, 2)):
    counts = [samplers.evaluations(make(path), 7, (2,), last) for last in (True, False)]
    assert counts == [6 * step + 1, 7 * step]


def test_a_trace_begins_where_it_is_told_to():
  path = path_of()
  still = lambda z, t, key=None: Prediction(z, jnp.zeros_like(z))  # noqa: E731
  keys = jax.random.split(jax.random.key(0), 3)
  z = jnp.arange(6.0).reshape(3, 2)
  seen = samplers.trace(
    still, path, samplers.ddim(path), grids.uniform_time(path, 3), keys, (2,), z=z
  )
  np.testing.assert_array_equal(seen.z[0], z)


WRAPPERS = {
  'classifier-free': lambda one, path: guidance.classifier_free(one, one, 2.0),
  'autoguidance': lambda one, path: guidance.autoguidance(one, one, 2.0),
  'temperature': lambda one, path: guidance.score_temperature(one, path, 0.5),
  'clipped': guidance.clip_x0,
  'threshold': guidance.threshold_x0,
}


@pytest.mark.parametrize('name', WRAPPERS)
def test_wrapped_denoisers_are_handed_the_key(name):
  """Around one that answers with a number of its key."""
  path = path_of(schedules.cosine(), marginals.variance_preserving)

  def told(z, t, key=None):
    answer = z * 0 if key is None else jax.vmap(jax.random.uniform)(key)[:, None] + z * 0
    return Prediction(answer, answer)

  denoise = WRAPPERS[name](told, path)
  z, t, keys = jnp.ones((2, 3)), jnp.full(2, 0.5), jax.random.split(jax.random.key(0), 4)
  one, other = (denoise(z, t, pair) for pair in (keys[:2], keys[2:]))
  assert (np.asarray(one.x0) != np.asarray(other.x0)).all()
