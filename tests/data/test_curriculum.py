"""Curricula: what is held back, that nothing is at the end, and that easy comes first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.data import curriculum, pipeline
from diffusion.types import Batch
from tests.training import tiny


def test_the_pace_is_linear_and_ends_at_all():
  pace = curriculum.linear(0.2, 0.5)
  np.testing.assert_allclose(
    [pace(p) for p in (0.0, 0.25, 0.5, 0.9)], [0.2, 0.6, 1.0, 1.0], rtol=1e-6
  )


def restricted(share, rows=4000, n=50, examples=None):
  random = np.random.default_rng(0)
  order = jnp.asarray(random.permutation(n).astype(np.int32))
  index = jnp.asarray(random.integers(n, size=rows).astype(np.int32))
  keys = rng.row_keys(jax.random.key(0), jnp.arange(rows))
  found = pipeline.restrict(index, keys, jnp.asarray(share), order, examples)
  return np.asarray(found), np.asarray(index), np.asarray(order)


def test_a_restricted_batch_holds_the_first_share_evenly_and_a_full_one_is_the_epochs():
  found, index, order = restricted(0.3)
  counts = np.bincount(found, minlength=50)
  assert set(np.flatnonzero(counts)) == set(order[:15])
  expected = 4000 / 15
  assert ((counts[order[:15]] - expected) ** 2 / expected).sum() < 40  # chi-square, 14 degrees
  found, index, _ = restricted(1.0)
  np.testing.assert_array_equal(found, index)
  # 16.2, 16.6 and 0.05 of 50, and half of the first 21, to the nearest number but 0.
  for share, examples, count in (
    (0.324, None, 16),
    (0.332, None, 17),
    (0.001, None, 1),
    (0.45, 21, 9),
  ):
    assert set(restricted(share, examples=examples)[0]) == set(order[:count])


def test_by_class_ranks_by_the_given_order_and_refuses_another_one():
  label = np.array([2, 0, 1, 1, 2])
  made = curriculum.by_class([1, 2, 0])
  np.testing.assert_array_equal(made.rank(np.zeros((5, 1)), label), [1, 2, 0, 0, 1])
  for order in ([0, 1], [0, 1, 2, 2], [0, 1, 3]):
    with pytest.raises(ValueError, match='order must name every class once'):
      curriculum.by_class(order).rank(np.zeros((5, 1)), label)


def test_an_order_may_name_classes_that_have_no_training_example():
  made = curriculum.by_class([3, 1, 2, 0])
  np.testing.assert_array_equal(made.rank(np.zeros((3, 1)), np.array([1, 3, 0])), [1, 0, 3])


def test_a_pace_of_ones_own_is_the_share_that_may_be_drawn():
  pace = curriculum.linear(0.25, 0.4)
  for made in (curriculum.by_class([0, 1], pace), curriculum.by_difficulty(pace=pace)):
    np.testing.assert_allclose(
      [made.share(p) for p in (0.0, 0.2, 0.4)], [0.25, 0.625, 1], rtol=1e-6
    )
  for made in (curriculum.by_class([0, 1]), curriculum.by_difficulty()):
    np.testing.assert_allclose([made.share(p) for p in (0.0, 0.25, 0.5)], [0.2, 0.6, 1], rtol=1e-6)


def test_distance_to_the_class_mean_in_closed_form():
  x = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0], [10.0, 10.0]])
  found = curriculum.distance_to_class_mean(x, np.array([0, 0, 0, 1]))
  np.testing.assert_allclose(found, [np.sqrt(2), np.sqrt(2), 2.0, 0.0])


def batch():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 12, 2)))
  return Batch(x, jnp.zeros(3, int), jnp.zeros((3, 0)), jnp.zeros(3, int))


def test_by_resolution_averages_blocks_that_shrink_to_pixels():
  made = curriculum.by_resolution(2, 0.8)
  assert made.rank is None
  for progress, size in ((0.0, 4), (0.39, 4), (0.41, 2), (0.79, 2), (0.8, 1), (1.0, 1)):
    x = np.asarray(made.transform(batch(), jnp.asarray(progress)).x)
    blocks = x.reshape(3, 8 // size, size, 12 // size, size, 2)
    assert np.abs(blocks - blocks[:, :, :1, :, :1]).max() == 0  # constant within a block
    whole = np.asarray(batch().x).reshape(blocks.shape).mean((2, 4))
    np.testing.assert_allclose(blocks[:, :, 0, :, 0], whole, atol=1e-6)
  assert np.abs(x - np.asarray(batch().x)).max() == 0


def test_images_that_cannot_be_halved_are_refused():
  lying = batch()
  standing = lying._replace(x=lying.x.swapaxes(1, 2))
  for images, sides in ((lying, '8, 12'), (standing, '12, 8')):  # one side alone cannot
    with pytest.raises(ValueError, match=rf'sides divisible by 8, got \({sides}, 2\)'):
      curriculum.by_resolution(3).transform(images, jnp.zeros(()))


def indices_of(experiment, step):
  """Which rows of the data the batch at this step holds."""
  from diffusion.training import gradient
  from diffusion.types import Rows

  split, state, data = tiny.start(experiment)
  state = state._replace(step=jnp.int32(step), batches_seen=jnp.int32(step))
  rows = Rows(jnp.arange(experiment.batch_size), experiment.batch_size)
  given = tiny.rows_of(experiment, split, step)
  batch = gradient.take_batch(experiment, split.units, state, data, given, rows)
  return split, np.asarray(batch.index)


def test_a_step_sees_easy_examples_first_and_the_plain_run_in_the_end():
  plain = tiny.experiment()
  made = plain._replace(curriculum=curriculum.by_class([1, 0], curriculum.linear(0.3, 0.5)))
  data, early = indices_of(made, 0)
  label = data.dataset.label
  assert (label[early] == 1).all()
  assert set(label[indices_of(made, 19)[1]]) == {0, 1}
  assert set(early.tolist()) <= set(data.split.train.tolist())
  np.testing.assert_array_equal(indices_of(made, 20)[1], indices_of(plain, 20)[1])


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: curriculum.linear(0.0), 'start .* got 0'), (lambda: curriculum.linear(0.5, 1.5), 'until .* got 1.5'),
    (lambda: curriculum.by_resolution(0), 'halvings'), (lambda: curriculum.by_resolution(1, 0.0), 'until'),
  ],
)  # fmt: skip
def test_bad_arguments_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
