"""What every metric is handed: rows chosen at random, and a network with noise of its own."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import devices, rng
from diffusion.evaluation import metric
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
