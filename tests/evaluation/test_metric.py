"""What every metric is handed: rows chosen at random, and a network with noise of its own."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import devices, rng
from diffusion.data import pipeline
from diffusion.evaluation import (
  features,
  frechet,
  manifold,
  memorization,
  metric,
  novelty,
  recognition,
)
from tests.evaluation.given import inputs_of
from tests.training import tiny


def test_a_subset_is_drawn_evenly_from_all_rows_and_keeps_their_order():
  x = np.arange(1000)
  every = [metric.subset(x, 100, seed) for seed in range(40)]
  for found in every:
    assert len(found) == 100 and (np.diff(found) > 0).all()
  counts = np.bincount(np.concatenate(every), minlength=1000).reshape(10, 100).sum(1)
  # A tenth of 4,000 draws each, without replacement: a deviation of at most 19.
  assert np.abs(counts - 400).max() < 5 * 19
  np.testing.assert_array_equal(every[3], metric.subset(x, 100, 3))
  assert metric.subset(x, 1000) is x


def test_the_noise_of_metrics_is_that_of_nothing_else():
  """Row by row from a stream that neither training, validation nor samples draw from."""
  made = tiny.experiment()
  data, state, _ = tiny.start(made)
  weights = devices.replicate((state.params, state.statistics, np.uint32(7)))
  network = metric.make_network(made.model, made.diffusion, data.units, weights, chunk=4)
  x, label = data.held_out
  found = network.apply(lambda query, _: jax.random.key_data(query.keys), x[:21], label[:21])
  keys = lambda purpose: jax.random.key_data(rng.row_keys(rng.stream(7, purpose), jnp.arange(21)))  # noqa: E731
  np.testing.assert_array_equal(found, keys('likelihood'))
  others = {*re.findall(r"'(\w+)'", rng.stream.__doc__)} - {'likelihood'}
  assert len(others) == 10
  for purpose in others:
    assert not (keys(purpose) == found).all(1).any()


def part(count, seed):
  """Two overlapping classes in the plane."""
  generator, label = np.random.default_rng(seed), np.arange(count, dtype=np.int32) % 2
  return generator.normal(label[:, None], 0.7, (count, 2)).astype(np.float32), label


HIGHER = (
  'precision', 'recall', 'density', 'coverage', 'Vendi score', 'authenticity', 'recognized as their label',
  'worst class',
)  # fmt: skip
LOOKED_AT = {  # of samples, training examples and held-out examples
  'FD(pixels)': 'samples train',
  'FD(pixels), infinite samples': 'samples train',
  'FD(pixels), 50 samples': 'samples train',
  'FD(pixels), 50 held-out examples': 'train held_out',
  'kernel distance(pixels)': 'samples train',
  'kernel distance(pixels), held-out': 'train held_out',
  'precision(pixels)': 'samples train',
  'recall(pixels)': 'samples train',
  'density(pixels)': 'samples train',
  'coverage(pixels)': 'samples train',
  'Vendi score(pixels)': 'samples',
  'Vendi score(pixels), held-out': 'held_out',
  'sliced Wasserstein distance': 'samples train',
  'sliced Wasserstein distance, held-out': 'train held_out',
  'memorized fraction': 'samples train',
  'its held-out null': 'train held_out',
  'authenticity': 'samples train',
  'authenticity, held-out': 'train held_out',
  'C_T(pixels)': 'samples train held_out',
  'FLD(pixels)': 'samples train held_out',
  'recognized as their label': 'samples train',
  'worst class': 'samples train',
  'held-out accuracy': 'train held_out',
}
BETTER = {
  name: 'higher' if name.partition('(')[0] in HIGHER else 'lower'
  for name in LOOKED_AT
  if 'held-out' not in name or 'examples' in name
} | {'C_T(pixels)': 'nearer 0'}
UNITS = {  # all others are shares
  'FD': 'squared distance', 'kernel': 'squared distance', 'density': 'balls', 'score(pixels), held-out': 'examples',
  'score': 'samples', 'sliced': "the data's", 'C_T': 'standard deviations', 'FLD': 'nats/dim x 100',
}  # fmt: skip
SHARED = (
  'recall(pixels)', 'coverage(pixels)', 'its held-out null', 'authenticity, held-out', 'held-out accuracy',
)  # fmt: skip


def test_each_finding_looks_at_the_sets_that_it_is_of():
  """A finding changes with a set that is drawn anew if it looks at it, and else not at all."""
  made = [
    frechet.frechet(), frechet.kernel(), manifold.precision_recall(), manifold.density_coverage(), manifold.vendi(),
    manifold.sliced_wasserstein(), memorization.nearest_neighbor_ratio(0.8), memorization.authenticity(),
    novelty.data_copying(cells=1), novelty.feature_likelihood(), recognition.recognition(),
  ]  # fmt: skip

  def found(**seeds):
    of = {'samples': part(60, 1), 'train': part(80, 2), 'held_out': part(50, 3)}
    of |= {name: part(len(of[name][0]), seed) for name, seed in seeds.items()}
    units = pipeline.NormalizationStatistics(None)
    given = metric.MetricInputs(
      *of['samples'], of['train'], of['held_out'], 25, ('a', 'b'), units, None, {}
    )
    return {one.name: one for each in made for one in each.measure(given)}

  known = found()
  assert {name: one.better for name, one in known.items() if one.better} == BETTER
  assert {name: one.unit for name, one in known.items()} == {
    name: next((unit for part, unit in UNITS.items() if part in name), 'share') for name in known
  }
  # Proportions of real examples are of the same ones in every run.
  shared = {name: one.counts.shared for name, one in known.items() if one.counts}
  assert shared == {name: name in SHARED for name in shared} and set(SHARED) < set(shared)
  changed = dict.fromkeys(known, '')
  for which in ('samples', 'train', 'held_out'):
    others = [found(**{which: seed}) for seed in (11, 12, 13)]
    for name, value in known.items():
      if any(repr(other[name].value) != repr(value.value) for other in others):
        changed[name] += f' {which}'
  assert {name: which.strip() for name, which in changed.items()} == LOOKED_AT


def test_features_are_made_once_of_brightness_and_only_those_of_the_data_are_kept_on_disk(
  monkeypatch, tmp_path
):
  monkeypatch.setenv('DIFFUSION_FEATURES', str(tmp_path))
  seen = []
  one = features.Features(
    'first', 'abc', 1, lambda x: seen.append(x) or x.reshape(len(x), -1)[:, :1].astype(np.float32)
  )
  last = features.Features(
    'last', '', 1, lambda x: x.reshape(len(x), -1)[:, -1:].astype(np.float32)
  )
  stored = [
    np.random.default_rng(n).integers(0, 17, (n, 3, 2, 1), dtype=np.uint8) for n in (4, 5, 6)
  ]
  given = inputs_of(*stored)
  given = given._replace(units=pipeline.NormalizationStatistics(17))
  for which, x in zip(('samples', 'train', 'held_out'), stored, strict=True):
    bright = np.rint(x / 16 * 255).reshape(len(x), -1)
    for _ in range(2):
      np.testing.assert_array_equal(given.embed(one, which), bright[:, :1])
      np.testing.assert_array_equal(given.embed(last, which), bright[:, -1:])
  assert [len(x) for x in seen] == [4, 5, 6]
  assert len([*tmp_path.glob('first-abc-*.npy')]) == 2 == len([*tmp_path.glob('*.npy')])
  # What is remembered for a metric of other features is not taken.
  for find in (
    lambda inputs, of: frechet.frechet(of).measure(inputs)[0].value,
    lambda inputs, of: memorization.input_ratios(inputs, 'samples', of)[1].tolist(),
  ):
    assert find(given, one) != find(given, last) == find(given._replace(kept={}), last)
