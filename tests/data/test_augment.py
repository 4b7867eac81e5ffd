"""Augmentations: exact on the elements of their group, each row by its own key, live, and gone when off."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import streams
from diffusion.data import augment
from diffusion.types import NULL, Batch

ROWS = 256


def batch(rows=ROWS, shape=(6, 5, 2), seed=0):
  random = np.random.default_rng(seed)
  return Batch(
    jnp.asarray(random.normal(size=(rows, *shape)), jnp.float32),
    jnp.asarray(random.integers(0, 10, rows), jnp.int32),
    jnp.zeros((rows, 0)),
    jnp.arange(rows),
  )


def keys(rows=ROWS, seed=0):
  return streams.row_keys(streams.stream(seed, 'augmentation'), jnp.arange(rows))


def apply(transform, seed=0, data=None):
  return jax.jit(transform)(keys(seed=seed), batch() if data is None else data)


def assert_only_x_changed(before, after):
  for name in ('label', 'augment_label', 'index'):
    np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def half(count, rows=ROWS):
  """Whether a count is plausible for `rows` fair coins: five standard deviations."""
  return abs(count - rows / 2) < 5 * math.sqrt(rows) / 2


def flipped(before, after):
  """[B]: True where the row is the mirror image; fails where it is neither that nor itself."""
  x, y = np.asarray(before.x), np.asarray(after.x)
  same = (y == x).all((1, 2, 3))
  mirror = (y == x[:, :, ::-1]).all((1, 2, 3))  # [B, H, W, C]: W is left to right
  assert (same ^ mirror).all()
  return mirror


def test_flip_gives_the_image_or_its_mirror():
  before = batch()
  after = apply(augment.flip())
  mirror = flipped(before, after)
  assert half(mirror.sum())
  assert_only_x_changed(before, after)
  again = jax.jit(augment.flip())(keys(), after)  # with the same keys: the mirror of the mirror
  np.testing.assert_array_equal(again.x, before.x)
  assert (mirror != flipped(before, apply(augment.flip(), seed=1))).any()


def shifted(image, down, right):
  """The image moved by whole pixels, its border repeated, with NumPy's indices alone."""
  height, width = image.shape[:2]
  rows = np.clip(np.arange(height) - down, 0, height - 1)
  columns = np.clip(np.arange(width) - right, 0, width - 1)
  return image[rows][:, columns]


def offsets(before, after, reach):
  """(down, right) of every row, found by trying all; fails where none or several fit."""
  found = []
  for x, y in zip(np.asarray(before.x), np.asarray(after.x), strict=True):
    tries = [(a, b) for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)]
    fits = [(a, b) for a, b in tries if (shifted(x, a, b) == y).all()]
    assert len(fits) == 1
    found.append(fits[0])
  return np.array(found)


@pytest.mark.parametrize('pixels', [1, 2])
def test_shift_reaches_every_offset_and_none_beyond(pixels):
  before, after = batch(), apply(augment.shift(pixels))
  found = offsets(before, after, pixels + 1)
  assert abs(found).max() == pixels
  sides = range(-pixels, pixels + 1)
  counts = np.array([[(found == (a, b)).all(1).sum() for a in sides] for b in sides])
  expected = ROWS / counts.size
  assert counts.min() > 0
  assert (abs(counts - expected) < 5 * math.sqrt(expected)).all()
  assert_only_x_changed(before, after)


def test_shift_is_a_roll_inside_the_border():
  before, after = batch(), apply(augment.shift(1))
  for x, y, (down, right) in zip(
    np.asarray(before.x), np.asarray(after.x), offsets(before, after, 1), strict=True
  ):
    rolled = np.roll(x, (down, right), (0, 1))
    np.testing.assert_array_equal(y[1:-1, 1:-1], rolled[1:-1, 1:-1])


def test_shift_of_zero_is_the_identity():
  np.testing.assert_array_equal(apply(augment.shift(0)).x, batch().x)


@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_label_dropout_drops_at_its_rate(rate):
  rows = 4000
  before = batch(rows, (1,))
  after = jax.jit(augment.label_dropout(rate))(keys(rows), before)
  dropped = np.asarray(after.label) == NULL
  assert abs(dropped.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / rows)
  np.testing.assert_array_equal(after.label[~dropped], before.label[~dropped])
  np.testing.assert_array_equal(after.x, before.x)
  # A lower rate drops a part of the same rows: nothing else of the draw depends on the rate.
  fewer = np.asarray(jax.jit(augment.label_dropout(rate / 2))(keys(rows), before).label) == NULL
  assert (dropped | ~fewer).all()
  assert fewer.sum() < dropped.sum()


def test_label_dropout_of_one_drops_all():
  assert (np.asarray(apply(augment.label_dropout(1.0)).label) == NULL).all()


def test_label_dropout_may_be_traced():
  traced = jax.jit(lambda rate, k, b: augment.label_dropout(rate)(k, b).label)
  for rate in (0.0, 0.3):
    expected = apply(augment.label_dropout(rate)).label
    np.testing.assert_array_equal(traced(rate, keys(), batch()), expected)


@pytest.mark.parametrize('off', [augment.label_dropout(0.0), augment.label_dropout(0)])
def test_off_leaves_no_code(off):
  assert jax.make_jaxpr(off)(keys(), batch()).eqns == []
  on = jax.make_jaxpr(augment.label_dropout(0.1))(keys(), batch())
  assert on.eqns != []


def test_an_empty_chain_is_the_identity():
  assert jax.make_jaxpr(augment.chain())(keys(), batch()).eqns == []


CHAIN = (augment.flip(), augment.shift(2), augment.label_dropout(0.3))


@pytest.mark.parametrize('transform', [*CHAIN, augment.chain(*CHAIN)])
def test_a_row_depends_on_its_own_key_alone(transform):
  """Not on its neighbors, its place, or on how many rows there are."""
  whole = apply(transform)
  chosen = np.array([200, 3, 77, 3])
  part = jax.jit(transform)(keys()[chosen], jax.tree.map(lambda a: a[chosen], batch()))
  for one, other in zip(part, whole, strict=True):
    np.testing.assert_array_equal(one, other[chosen])


def test_the_stages_of_a_chain_have_keys_of_their_own():
  before = batch()
  # Two flips by one coin would cancel in every row.
  twice = flipped(before, apply(augment.chain(augment.flip(), augment.flip())))
  assert half(twice.sum())
  # Two shifts by one draw would move every row by an even number of pixels.
  moved = apply(augment.chain(augment.shift(1), augment.shift(1)))
  tries = [(a, b) for a in range(-2, 3) for b in range(-2, 3)]
  found = []
  for x, y in zip(np.asarray(before.x), np.asarray(moved.x), strict=True):
    inside = [(np.roll(x, offset, (0, 1)) == y)[2:-2, 2:-2].all() for offset in tries]
    assert sum(inside) == 1
    found.append(tries[inside.index(True)])
  odd = (np.abs(found) == 1).mean()
  assert abs(odd - 4 / 9) < 5 * math.sqrt(20 / 81 / (2 * ROWS))  # the sum of two of {-1, 0, 1}


def test_a_chain_applies_its_stages_in_order():
  def double(k, b):
    return b._replace(x=2 * b.x)

  def increment(k, b):
    return b._replace(x=b.x + 1)

  x = batch().x
  np.testing.assert_array_equal(apply(augment.chain(double, increment)).x, 2 * x + 1)
  np.testing.assert_array_equal(apply(augment.chain(increment, double)).x, 2 * (x + 1))


@pytest.mark.parametrize('make', [augment.flip, lambda: augment.shift(1)])
def test_vectors_are_refused(make):
  with pytest.raises(ValueError, match=r'(flip|shift) needs images .* got shape \(256, 7\)'):
    make()(keys(), batch(shape=(7,)))


@pytest.mark.parametrize(
  ('factory', 'arguments', 'message'),
  [
    (augment.shift, (-1,), 'pixels .*-1'),
    (augment.shift, (1.5,), r'pixels .*1\.5'),
    (augment.label_dropout, (1.1,), r'label_dropout .*1\.1'),
    (augment.label_dropout, (-0.1,), r'label_dropout .*-0\.1'),
    (augment.label_dropout, (float('nan'),), 'label_dropout .*nan'),
  ],
)
def test_bad_arguments_are_named(factory, arguments, message):
  with pytest.raises(ValueError, match=message):
    factory(*arguments)
