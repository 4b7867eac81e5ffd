"""Augmentations: exact on the elements of their group, each row by its own key, live, and gone when off."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import rng
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
  return rng.row_keys(rng.stream(seed, 'augmentation'), jnp.arange(rows))


def compiled(transform):
  return jax.jit(lambda k, b: transform(k, b))  # noqa: PLW0108 - jit takes no named tuple


def apply(transform, seed=0, data=None, rows=ROWS):
  run = compiled(transform)
  return run(keys(rows, seed=seed), batch() if data is None else data)


def assert_only_x_changed(before, after):
  for name in ('condition', 'augment_label', 'index'):
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
  again = augment.flip()(keys(), after)  # with the same keys: the mirror of the mirror
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
  dropped = np.asarray(after.condition) == NULL
  assert abs(dropped.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / rows)
  np.testing.assert_array_equal(after.condition[~dropped], before.condition[~dropped])
  np.testing.assert_array_equal(after.x, before.x)
  # A lower rate drops a part of the same rows: nothing else of the draw depends on the rate.
  fewer = np.asarray(jax.jit(augment.label_dropout(rate / 2))(keys(rows), before).condition) == NULL
  assert (dropped | ~fewer).all()
  assert fewer.sum() < dropped.sum()


def test_what_is_dropped_of_other_conditions_is_what_the_null_says():
  told = {'vector': jnp.arange(2.0 * ROWS).reshape(ROWS, 2)}
  before = batch()._replace(condition=told)
  null = lambda condition: {'vector': jnp.full_like(condition['vector'], -7)}  # noqa: E731
  after = apply(augment.label_dropout(0.5, null), data=before).condition['vector']
  dropped = np.asarray(apply(augment.label_dropout(0.5)).condition) == NULL
  assert half(dropped.sum())
  np.testing.assert_array_equal(after, np.where(dropped[:, None], -7, told['vector']))


def test_label_dropout_of_one_drops_all():
  assert (np.asarray(apply(augment.label_dropout(1.0)).condition) == NULL).all()


def test_label_dropout_may_be_traced():
  traced = jax.jit(lambda rate, k, b: augment.label_dropout(rate)(k, b).condition)
  for rate in (0.0, 0.3):
    expected = apply(augment.label_dropout(rate)).condition
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
  part = compiled(transform)(keys()[chosen], jax.tree.map(lambda a: a[chosen], batch()))
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


def what(transformation, x, seed=0):
  """(transformed image, what it said it did) of one image."""
  changed, did = jax.jit(transformation.transform)(
    jax.random.key(seed), jnp.asarray(x, jnp.float32)
  )
  return np.asarray(changed), np.asarray(did)


def warped(x, matrix, offset=(0, 0)):
  """Bilinear sampling at matrix (p - center) + center + offset, pixel by pixel in NumPy; the border repeats."""
  height, width, _ = x.shape
  center = np.array([(height - 1) / 2, (width - 1) / 2])
  out = np.empty_like(x)
  for i in range(height):
    for j in range(width):
      p = np.asarray(matrix) @ (np.array([i, j]) - center) + center + offset
      p = np.clip(p, 0, [height - 1, width - 1])
      low = np.minimum(np.floor(p).astype(int), [height - 2, width - 2])
      a, b = p - low
      corners = x[low[0] : low[0] + 2, low[1] : low[1] + 2]
      out[i, j] = (
        (1 - a) * (1 - b) * corners[0, 0] + (1 - a) * b * corners[0, 1]
        + a * (1 - b) * corners[1, 0] + a * b * corners[1, 1]
      )  # fmt: skip
  return out


IMAGE = np.random.default_rng(3).normal(size=(7, 6, 2))


@pytest.mark.parametrize('seed', range(4))
def test_geometric_ones_sample_where_they_say(seed):
  """Each, from what it said it did, against bilinear sampling written out."""
  found, (c, s) = what(augment.rotate(90.0), IMAGE, seed)
  np.testing.assert_allclose(found, warped(IMAGE, [[c + 1, s], [-s, c + 1]]), atol=1e-4)
  found, (log_f,) = what(augment.scale(1.5), IMAGE, seed)
  np.testing.assert_allclose(found, warped(IMAGE, np.eye(2) * 2.0**-log_f), atol=1e-4)
  found, (slope,) = what(augment.shear(0.5), IMAGE, seed)
  np.testing.assert_allclose(found, warped(IMAGE, [[1, 0], [slope, 1]]), atol=1e-4)
  found, (down, right) = what(augment.shift(2), IMAGE, seed)
  expected = shifted(IMAGE, round(2 * float(down)), round(2 * float(right)))
  np.testing.assert_allclose(found, expected, atol=1e-6)
  found, (smaller, *center) = what(augment.crop(0.5), IMAGE, seed)
  offset = np.array(center) * IMAGE.shape[:2]
  np.testing.assert_allclose(found, warped(IMAGE, np.eye(2) * (1 - smaller), offset), atol=1e-4)


def test_a_quarter_turn_is_rot90():
  """On the group's own elements the warp is exact: 90 degrees of a square image, counterclockwise."""
  x = np.random.default_rng(4).normal(size=(5, 5, 1))
  turned = augment._warp(jnp.asarray(x), jnp.array([[0.0, 1.0], [-1.0, 0.0]]), jnp.zeros(2))
  np.testing.assert_allclose(turned, np.rot90(x), atol=1e-5)
  _, (c, s) = what(augment.rotate(30.0), x, 1)
  # The matrix above is that of cos = 0, sin = 1: a positive sine is counterclockwise.
  assert abs((c + 1) ** 2 + s**2 - 1) < 1e-5


def test_color_jitter_by_its_formula():
  found, (b, c, s) = what(augment.color_jitter(0.3, 0.5, 0.7), IMAGE, 2)
  gray = IMAGE.mean(-1, keepdims=True)
  x = gray + 2.0**s * (IMAGE - gray)
  x = x.mean() + 2.0**c * (x - x.mean()) + b
  np.testing.assert_allclose(found, x, atol=1e-5)
  assert min(abs(b), abs(c), abs(s)) > 0
  many = jax.jit(jax.vmap(augment.color_jitter(0.3, 0.5, 0.7).transform))
  _, did = many(keys(1000), jnp.zeros((1000, 1, 1, 3)))
  for one, reach in zip(np.asarray(did, np.float64).T, (0.3, 0.5, 0.7), strict=True):
    assert stats.kstest(one / reach / 2 + 0.5, 'uniform').pvalue > 1e-3  # each has its own range


def test_cutout_zeroes_a_square_around_what_it_says():
  x = np.ones((9, 8, 1))
  seen = np.zeros((9, 8))
  images = jnp.asarray(np.broadcast_to(x, (400, 9, 8, 1)), jnp.float32)
  changed, said = jax.jit(jax.vmap(augment.cutout(3).transform))(keys(400), images)
  for found, (did, down, right) in zip(np.asarray(changed), np.asarray(said), strict=True):
    assert did == 1
    row, column = round((down + 0.5) * 9 - 0.5), round((right + 0.5) * 8 - 0.5)
    expected = np.ones((9, 8))
    expected[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 0
    np.testing.assert_array_equal(found[..., 0], expected)
    seen[row, column] += 1
  assert (seen > 0).mean() > 0.95  # every pixel can be its center


def test_the_place_of_a_crop_says_nothing_of_its_side():
  _, did = jax.jit(jax.vmap(augment.crop(0.3).transform))(keys(2000), jnp.zeros((2000, 4, 4, 1)))
  smaller, *place = np.asarray(did, np.float64).T
  assert stats.kstest(smaller / 0.7, 'uniform').pvalue > 1e-3  # sides from 0.3 to 1
  for one in place:
    share = one / smaller  # uniform on [-1/2, 1/2], whatever the side
    assert stats.kstest(share + 0.5, 'uniform').pvalue > 1e-3
    assert abs(np.corrcoef(share, smaller)[0, 1]) < 5 / math.sqrt(2000)


def test_whether_a_conditioned_one_acts_says_nothing_of_what_it_does():
  rows = 4000
  coin = apply(augment.conditioned(0.5, augment.flip()), data=batch(rows, (1, 2, 1)), rows=rows)
  assert abs(np.asarray(coin.augment_label).mean() - 1 / 4) < 5 * math.sqrt(3 / 16 / rows)


RANGES = {
  'rotate': (augment.rotate, 25.0, lambda did: np.rad2deg(np.arctan2(did[1], did[0] + 1)) / 25),
  'scale': (augment.scale, 2.0, lambda did: did[0]),
  'shear': (augment.shear, 0.4, lambda did: did[0] / 0.4),
}


@pytest.mark.parametrize('name', RANGES)
def test_parameters_fill_their_range_evenly(name):
  make, limit, share = RANGES[name]
  _, did = jax.jit(jax.vmap(make(limit).transform))(keys(2000), jnp.zeros((2000, 4, 4, 1)))
  found = np.array([share(row) for row in np.asarray(did)])
  assert np.abs(found).max() <= 1 + 1e-5
  assert stats.kstest((found + 1) / 2, 'uniform').pvalue > 1e-3


OFF = {
  'rotate': augment.rotate(0.0),
  'scale': augment.scale(1.0),
  'shear': augment.shear(0.0),
  'crop': augment.crop(1.0),
  'color_jitter': augment.color_jitter(),
  'cutout': augment.cutout(0),
}
ON = {
  'flip': augment.flip(),
  'shift': augment.shift(2),
  'rotate': augment.rotate(30.0),
  'scale': augment.scale(1.5),
  'shear': augment.shear(0.3),
  'crop': augment.crop(0.6),
  'color_jitter': augment.color_jitter(0.2, 0.3, 0.3),
  'cutout': augment.cutout(3),
}


@pytest.mark.parametrize('name', OFF)
def test_at_the_end_of_its_range_each_is_the_identity(name):
  np.testing.assert_allclose(apply(OFF[name]).x, batch().x, atol=1e-5)


@pytest.mark.parametrize('name', ON)
def test_each_is_live_leaves_the_rest_and_depends_on_its_own_row(name):
  before, after = batch(), apply(ON[name])
  _, did = jax.eval_shape(ON[name].transform, jax.random.key(0), before.x[0])
  assert (ON[name].name, did.shape) == (name, (ON[name].size,))
  assert (np.abs(np.asarray(after.x - before.x)).max((1, 2, 3)) > 1e-3).mean() > 0.4
  assert_only_x_changed(before, after)
  chosen = np.array([200, 3, 77])
  part = compiled(ON[name])(keys()[chosen], jax.tree.map(lambda a: a[chosen], before))
  np.testing.assert_allclose(part.x, np.asarray(after.x)[chosen], atol=1e-5)


def test_conditioned_acts_seldom_and_says_what_it_did():
  """Rows it left alone are themselves under label zero; the others are what their label says."""
  made = augment.conditioned(0.25, augment.flip(), augment.rotate(40.0))
  before = batch()._replace(augment_label=jnp.full((ROWS, 2), 7.0))  # of another one before
  after = apply(made, data=before)
  label = np.asarray(after.augment_label)
  assert label.shape == (ROWS, 2 + 3)
  np.testing.assert_array_equal(label[:, :2], 7)
  label = label[:, 2:]
  untouched = (label == 0).all(1)
  x, y = np.asarray(before.x), np.asarray(after.x)
  np.testing.assert_array_equal(y[untouched], x[untouched])
  assert abs(untouched.mean() - (1 - 0.25 / 2) * 0.75) < 5 * math.sqrt(0.25 / ROWS)
  for i in np.flatnonzero(~untouched)[:20]:
    flipped_, c, s = label[i]
    expected = x[i][:, ::-1] if flipped_ else x[i]
    if c or s:
      expected = warped(expected, [[c + 1, s], [-s, c + 1]])
    np.testing.assert_allclose(y[i], expected, atol=1e-4)
  np.testing.assert_array_equal(after.condition, before.condition)


def test_conditioned_transformations_are_independent_of_each_other():
  label = np.asarray(
    apply(augment.conditioned(0.5, augment.shift(1), augment.scale(2.0))).augment_label
  )
  acted = (label[:, 2] != 0).astype(float)
  other = (label[:, :2] != 0).any(1).astype(float)
  assert abs(np.corrcoef(acted, other)[0, 1]) < 5 / math.sqrt(ROWS)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: augment.rotate(181.0), r'degrees .*181'),
    (lambda: augment.rotate(-1.0), r'degrees .*-1'),
    (lambda: augment.scale(0.5), r'factor .*0\.5'),
    (lambda: augment.shear(-0.1), r'slope .*-0\.1'),
    (lambda: augment.crop(0.0), r'share .*0\.0'),
    (lambda: augment.color_jitter(contrast=-1.0), r'contrast .*-1'),
    (lambda: augment.cutout(1.5), r'pixels .*1\.5'),
    (lambda: augment.conditioned(0.0, augment.flip()), r'probability .*0\.0'),
    (lambda: augment.conditioned(0.1), 'at least one'),
    (
      lambda: augment.conditioned(0.1, augment.label_dropout(0.1)),
      'takes transformations of images',
    ),
  ],
)
def test_bad_arguments_of_the_others_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize('name', ON)
def test_vectors_are_refused_by_name(name):
  with pytest.raises(ValueError, match=rf'{name} needs images'):
    ON[name](keys(), batch(shape=(7,)))


def test_turns_that_nobody_is_told_of_are_named():
  given = augment.chain(
    augment.flip(), augment.shift(1), augment.rotate(46.0), augment.rotate(45.0)
  )
  assert augment.leaky_turns(given) == ['flip', 'rotate']
  assert augment.leaky_turns(augment.flip()) == ['flip']
  assert augment.leaky_turns(augment.conditioned(0.5, augment.flip())) == []
