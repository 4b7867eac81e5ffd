"""Batches as a function of integers: every epoch is a permutation, wherever it is cut, from a stream that stays."""

import math

import numpy as np
import pytest
from scipy import stats

from diffusion import devices, rng
from diffusion.data import pipeline
from diffusion.data.pipeline import Order

MASK = 2**64 - 1


def philox(counter, key):
  """Philox 4x64 with ten rounds, in exact integers (Salmon et al., 2011, section 4)."""
  a, b, c, d = ((counter >> 64 * i) & MASK for i in range(4))
  k, m = key
  for _ in range(10):
    left, right = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
    a, b, c, d = (right >> 64) ^ b ^ k, right & MASK, (left >> 64) ^ d ^ m, left & MASK
    k, m = (k + 0x9E3779B97F4A7C15) & MASK, (m + 0xBB67AE8584CAA73B) & MASK
  return a, b, c, d


def test_philox_has_the_published_values():
  """The known answers that come with the authors' implementation (Random123, kat_vectors)."""
  assert philox(0, (0, 0)) == (
    0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
  )  # fmt: skip
  assert philox(2**256 - 1, (MASK, MASK)) == (
    0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
  )  # fmt: skip


@pytest.mark.parametrize(
  ('seed', 'epoch', 'examples'), [(0, 0, 1), (3, 5, 9), (2**32 - 1, 10**9, 6)]
)
def test_an_epoch_is_the_order_of_its_draws(seed, epoch, examples):
  """A change of NumPy's stream, or of the layout of its counters, would change every run."""
  counters = -(-examples // 4)
  draws = []
  for i in range(counters):
    # NumPy counts before it draws.
    draws += philox(epoch * counters + i + 1, (seed, rng.tag('order')))
  expected = sorted(range(examples), key=lambda j: draws[j])
  assert pipeline.permutations(seed, epoch, 1, examples)[0].tolist() == expected


def draw(seens, size, examples, seed=0):
  """[len(seens), size]: each batch drawn on its own."""
  made = Order(seed, np.arange(examples))
  return np.concatenate([made.batches(int(seen), 1, size) for seen in seens])


SIZES = [
  (10, 4),
  (7, 16),
  (5, 5),
  (1, 3),
  (13, 8),
  (64, 8),
]  # (examples, batch), across and beyond epochs


@pytest.mark.parametrize(('examples', 'size'), SIZES)
def test_every_epoch_visits_every_example_once(examples, size):
  found = draw(np.arange(2 * size * examples // size + 1), size, examples).reshape(-1)
  assert found.dtype == np.int32
  epochs = found[: found.size // examples * examples].reshape(-1, examples)
  assert len(epochs) >= 2 * size
  np.testing.assert_array_equal(
    np.sort(epochs, axis=1), np.tile(np.arange(examples), (len(epochs), 1))
  )
  if examples >= 10:
    assert np.unique(epochs, axis=0).shape[0] == len(epochs)  # each epoch has an order of its own


@pytest.mark.parametrize(('examples', 'size'), SIZES)
def test_a_dispatch_of_batches_is_the_batches(examples, size):
  singles = draw(np.arange(3, 24), size, examples, seed=4)
  made = Order(4, np.arange(examples))
  for steps in (1, 3, 7, 21):
    parts = [made.batches(seen, steps, size) for seen in range(3, 24, steps)]
    np.testing.assert_array_equal(np.concatenate(parts), singles)


def test_a_batch_is_a_function_of_the_seed_and_the_batches_seen_alone():
  forward = draw(np.arange(20), 16, 100, seed=2)
  np.testing.assert_array_equal(forward, draw(np.arange(20)[::-1], 16, 100, seed=2)[::-1])
  np.testing.assert_array_equal(forward[13:14], draw([13], 16, 100, seed=2))
  assert (forward == draw(np.arange(20), 16, 100, seed=3)).mean() < 0.1


def test_what_was_asked_before_changes_nothing():
  """The epochs that are known lie at the beginning, in the middle, or at the end of those that are asked for."""
  for first in range(0, 16, 3):
    made = Order(0, np.arange(96))
    made.batches(first, 5, 20)
    np.testing.assert_array_equal(
      made.batches(0, 20, 20), Order(0, np.arange(96)).batches(0, 20, 20)
    )


def test_a_subset_is_drawn_by_its_rows():
  rows = np.array([7, 100, 3, 5000])
  found = Order(1, rows).batches(2, 3, 2)
  np.testing.assert_array_equal(found, rows[Order(1, np.arange(4)).batches(2, 3, 2)])


def test_devices_share_a_batch_between_them():
  batches = Order(4, np.arange(7)).batches(0, 9, 16)
  split = devices.split_rows(batches)
  assert split.shape == (4, 9, 4)
  np.testing.assert_array_equal(np.concatenate(split, axis=1), batches)


@pytest.mark.parametrize(
  ('examples', 'size', 'first'),
  [(1000, 64, 2_000_000_000), (37, 256, 2**31 - 100), (3, 500, 2**40)],
)
def test_epochs_stay_whole_at_very_large_numbers(examples, size, first):
  found = draw(first + np.arange(3 * -(-examples // size) + 2), size, examples).reshape(-1)
  epochs = {}
  for i, example in enumerate(found.tolist()):
    epochs.setdefault((first * size + i) // examples, []).append(
      example
    )  # Python integers do not overflow
  whole = [sorted(members) for members in epochs.values()][1:-1]  # the ends are cut
  assert len(whole) >= 1
  assert all(members == list(range(examples)) for members in whole)


@pytest.mark.parametrize('examples', [60_000, 2**16 + 1])
def test_large_orders_show_no_trace_of_what_went_in(examples):
  one, other = (pipeline.permutations(seed, 0, 1, examples)[0] for seed in (0, 1))
  # A random permutation has one fixed point on average, and two agree in one place on average (Poisson).
  assert (one == np.arange(examples)).sum() < 10
  assert (one == other).sum() < 10
  # Rank correlation has standard deviation 1 / sqrt(n - 1).
  for a, b in ((one, np.arange(examples)), (one[1:], one[:-1]), (one, other)):
    assert abs(stats.spearmanr(a, b).statistic) < 5 / math.sqrt(examples)


@pytest.mark.parametrize('size', [2, 3, 5, 12, 33])
def test_orders_are_uniform_over_epochs(size):
  count = 10_000
  orders = pipeline.permutations(7, 0, count, size)
  places = np.zeros((size, size))
  np.add.at(places, (np.broadcast_to(np.arange(size), orders.shape), orders), 1)
  # Rows and columns of the table have fixed sums: (size - 1)^2 degrees of freedom, and the statistic of a uniform
  # permutation is a factor size / (size - 1) larger than that of independent cells with those margins.
  statistic = ((places - count / size) ** 2 / (count / size)).sum() * (size - 1) / size
  low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], (size - 1) ** 2)
  assert low < statistic < high
  if size == 3:
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert counts.size == math.factorial(3)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_what_cannot_be_ordered_is_refused():
  with pytest.raises(ValueError, match='no example'):
    Order(0, np.arange(0))
  with pytest.raises(ValueError, match=r'2147483648 training examples exceed'):
    pipeline.check_size(2**31)
  for examples in (1, 2**31 - 1):
    pipeline.check_size(examples)
