"""What holds of every learning rate, average and augmentation, whatever its arguments in range."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion import rng
from diffusion.data import augment
from diffusion.optimizers import averaging
from diffusion.optimizers import schedules as rates
from diffusion.types import NULL, Batch
from tests.properties import examples, interval, number, randoms

PEAK, WARMUP, LENGTH = number(1e-5, 10), st.integers(1, 200), st.integers(2, 1000)


def around(*updates):
  """The updates beside some, 5 each and each with the one after it, and some far off."""
  return np.concatenate([n + np.arange(-2, 3) for n in updates]).clip(0).astype(np.int32)


def assert_smooth(rate, joints, top, steepest):
  """Nowhere negative or above `top`, and no step from one update to the next that is steeper than its pieces are."""
  counts = around(*joints, 10**6)
  now, after = (np.asarray(rate(jnp.asarray(n)), np.float64) for n in (counts, counts + 1))
  assert now.min() >= -1e-6 * top
  assert now.max() <= top * (1 + 1e-6)
  assert np.abs(after - now).max() <= steepest + 1e-5 * top


@examples(8)
@given(peak=PEAK, warmup=st.integers(0, 200), rest=LENGTH, share=number(0, 1))
def test_a_warm_cosine_and_a_warm_line_are_smooth_and_end_where_they_say(peak, warmup, rest, share):
  final, total = share * peak, warmup + rest
  for make, factor in ((rates.warmup_cosine, math.pi / 2), (rates.linear, 1)):
    rate = make(peak, total, warmup, final)
    steepest = max(peak / warmup if warmup else 0, factor * (peak - final) / rest)
    assert_smooth(rate, (0, warmup, warmup + rest // 2, total), peak, steepest)
    found = rate(jnp.array([warmup, total, total + 1, 10 * total]))
    np.testing.assert_allclose(found, [peak, final, final, final], rtol=1e-5, atol=1e-6 * peak)
    if warmup:
      assert rate(0) == 0


@examples(12)
@given(peak=PEAK, warmup=WARMUP, length=LENGTH)
def test_rates_without_an_end_warm_up_to_their_peak_and_never_rise_again(peak, warmup, length):
  made = {
    'constant': (rates.warmup_constant(peak, warmup), peak, 0),
    'exponential': (rates.exponential(peak, length, warmup), peak, peak * math.log(2) / length),
    'inverse root': (
      rates.inverse_sqrt(peak, length, warmup),
      peak / math.sqrt(max(warmup / length, 1)),
      peak / length,
    ),
  }
  for name, (rate, top, slope) in made.items():
    assert_smooth(rate, (0, warmup, length, warmup + length), peak, peak / warmup + slope)
    assert rate(jnp.asarray(0)) == 0, name
    assert float(rate(jnp.asarray(warmup))) == pytest.approx(top, rel=1e-5), name
    later = np.asarray(rate(jnp.asarray(max(warmup, length) + np.arange(5) * length)))
    assert (np.diff(later) <= 0).all(), name
  assert float(made['exponential'][0](jnp.asarray(warmup + length))) == pytest.approx(
    peak / 2, rel=1e-5
  )


@examples(12)
@given(peak=PEAK, warmup=WARMUP, first=LENGTH, more=LENGTH, factor=number(0.01, 0.99), far=LENGTH)
def test_steps_are_flat_but_at_their_boundaries(peak, warmup, first, more, factor, far):
  rate = rates.steps(peak, (first, first + more), factor, warmup)
  counts = warmup + np.array([0, first - 1, first, first + more - 1, first + more, 3000 + far])
  found = rate(jnp.asarray(counts))
  np.testing.assert_allclose(found, peak * factor ** np.array([0, 0, 1, 1, 2, 2]), rtol=1e-5)


@examples(40)
@given(
  peak=PEAK,
  period=st.integers(2, 60),
  growth=st.one_of(st.just(1.0), number(-9, -2).map(lambda e: 1 + 10**e), number(1, 3)),
  decay=number(0.5, 1),
  share=number(0, 0.3),
)
def test_cycles_are_those_of_exact_arithmetic(peak, period, growth, decay, share):
  """Walked cycle by cycle; where rounding decides to which of two an update belongs, either is right."""
  final, counts = share * peak, np.arange(240, dtype=np.int32)
  found = np.asarray(rates.cyclical(peak, period, growth, decay, final)(jnp.asarray(counts)))
  assert final * (1 - 1e-6) <= found.min()
  assert found.max() <= peak * (1 + 1e-6)
  starts = np.cumsum([0.0, *period * growth ** np.arange(240.0)])
  cycle = np.searchsorted(starts, counts, side='right') - 1
  past = (counts - starts[cycle]) / (period * growth**cycle)
  top = np.maximum(peak * decay**cycle, final)
  expected = final + (top - final) * (1 + np.cos(np.pi * past)) / 2
  sure = (past > 1e-3) & (past < 1 - 1e-3) | (counts == 0)
  np.testing.assert_allclose(found[sure], expected[sure], rtol=2e-3, atol=2e-4 * peak)


@examples(8)
@given(
  peak=PEAK,
  total=st.integers(10, 2000),
  rise=number(0.1, 0.9),
  start=number(0.01, 1),
  final=number(1e-4, 1),
)
def test_one_cycle_is_smooth_and_has_its_three_rates(peak, total, rise, start, final):
  rate, up = jax.vmap(rates.one_cycle(peak, total, rise, start, final)), int(rise * total)
  lengths = min(up, total - up)
  assert_smooth(rate, (0, up, (up + total) // 2, total), peak, math.pi / 2 * peak / lengths)
  found = rate(jnp.array([0, up, total, 2 * total]))
  last = start * final
  np.testing.assert_allclose(
    found, peak * np.array([start, 1, last, last]), rtol=1e-4, atol=1e-6 * peak
  )


def averaged(average, trajectory):
  """The average after each update, in the order of the trajectory, whose first are the initial weights."""
  state, found = average.init(jnp.asarray(trajectory[0])), []
  for weights in trajectory[1:]:
    state = average.update(state, jnp.asarray(weights))
    found.append(np.asarray(average.read(state)))
  return np.array(found)


AVERAGES = {
  'ema': st.builds(averaging.ema, number(0, 0.9999)),
  'half-life': st.builds(
    averaging.half_life, number(1, 1e6), st.integers(1, 512), number(0.01, 10)
  ),
  'power': st.builds(averaging.power, number(0.01, 0.28)),
  'swa': st.builds(averaging.swa, st.integers(1, 6), st.integers(1, 3)),
}


@pytest.mark.parametrize('name', AVERAGES)
@examples(8)
@given(data=st.data(), random=randoms)
def test_an_average_stays_among_what_it_saw_and_commutes_with_lines(name, data, random):
  """So the average of constant weights is that constant, and of each weight it is an average by itself."""
  average = data.draw(AVERAGES[name])
  trajectory = random.normal(size=(9, 3)).astype(np.float32)
  found = averaged(average, trajectory)
  for n, one in enumerate(found):
    seen = trajectory[: n + 2]
    assert (one >= seen.min(0) - 1e-6).all()
    assert (one <= seen.max(0) + 1e-6).all()
  still = averaged(average, np.tile(trajectory[:1], (9, 1)))
  np.testing.assert_allclose(still, np.tile(trajectory[:1], (8, 1)), rtol=1e-6)
  moved = averaged(average, (2 * trajectory - 1)[:, ::-1])
  np.testing.assert_allclose(moved, (2 * found - 1)[:, ::-1], atol=2e-6)


@examples(12)
@given(start=st.integers(1, 10), every=st.integers(1, 4), random=randoms)
def test_swa_is_the_plain_mean_of_what_it_takes(start, every, random):
  trajectory = random.normal(size=(11, 3)).astype(np.float32)
  found = averaged(averaging.swa(start, every), trajectory)
  for n in range(1, 11):
    taken = trajectory[start : n + 1 : every] if n >= start else trajectory[n : n + 1]
    np.testing.assert_allclose(found[n - 1], taken.mean(0, dtype=np.float64), atol=1e-6)


@examples(15)
@given(
  widths=interval(0.03, 0.25, 0.02),
  times=interval(0.2, 1, 0.1),
  which=st.integers(0, 3),
  random=randoms,
)
def test_an_average_that_is_there_is_reconstructed_as_it_is(widths, times, which, random):
  snapshots = list(random.normal(size=(4, 3)))
  given_times, given_widths = np.repeat(times, 2) * 1000, [*widths, *widths]
  found = averaging.reconstruct(
    snapshots, given_times, given_widths, given_times[which], given_widths[which]
  )
  np.testing.assert_allclose(found, snapshots[which], atol=1e-5)


def keys_of(random, count=4):
  return rng.row_keys(jax.random.key(int(random.integers(2**31))), jnp.arange(count))


def batch_of(x):
  rows = len(x)
  return Batch(x, jnp.arange(rows), jnp.zeros((rows, 0)), jnp.arange(rows, dtype=jnp.int32))


MOVES = {
  'flip': (st.builds(augment.flip), augment.flip()),
  'shift': (st.builds(augment.shift, st.integers(0, 3)), augment.shift(0)),
  'rotate': (st.builds(augment.rotate, number(0, 180)), augment.rotate(0)),
  'scale': (st.builds(augment.scale, number(1, 3)), augment.scale(1)),
  'shear': (st.builds(augment.shear, number(0, 2)), augment.shear(0)),
  'crop': (st.builds(augment.crop, number(0.1, 1)), augment.crop(1)),
}


@pytest.mark.parametrize('name', MOVES)
@examples(4)
@given(data=st.data(), random=randoms)
def test_a_move_invents_no_color_and_one_of_no_size_is_none(name, data, random):
  """Also a plain image stays as it is, whatever is done to it."""
  drawn, none = MOVES[name]
  move = data.draw(drawn)
  x = jnp.asarray(random.normal(size=(4, 6, 6, 2)).astype(np.float32))
  batch, keys = batch_of(x), keys_of(random)
  found = np.asarray(move(keys, batch).x)
  low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
  assert (found >= low - 1e-5).all()
  assert (found <= high + 1e-5).all()
  plain = jnp.broadcast_to(x[:, :1, :1], x.shape)
  np.testing.assert_allclose(move(keys, batch_of(plain)).x, plain, atol=1e-5)
  if name == 'flip':  # twice by the same keys; and of a symmetric image
    np.testing.assert_array_equal(move(keys, move(keys, batch)).x, x)
    even = x + x[:, :, ::-1]
    np.testing.assert_array_equal(move(keys, batch_of(even)).x, even)
  else:
    np.testing.assert_allclose(none(keys, batch).x, x, atol=1e-5)


@examples(10)
@given(pixels=st.integers(1, 3), random=randoms)
def test_a_shift_moves_by_what_it_says(pixels, random):
  x = jnp.asarray(random.normal(size=(6, 6, 2)).astype(np.float32))
  key = jax.random.key(int(random.integers(2**31)))
  moved, did = augment.shift(pixels).transform(key, x)
  down, right = np.round(np.asarray(did) * pixels).astype(int)
  rows, columns = (np.clip(np.arange(6) - by, 0, 5) for by in (down, right))
  np.testing.assert_array_equal(moved, np.asarray(x)[rows][:, columns])


@examples(10)
@given(ranges=st.tuples(number(0, 1), number(0, 1), number(0, 2)), random=randoms)
def test_a_jitter_of_color_is_undone_by_what_it_says(ranges, random):
  x = random.normal(size=(6, 6, 3)).astype(np.float32)
  key = jax.random.key(int(random.integers(2**31)))
  found, did = map(np.asarray, augment.color_jitter(*ranges).transform(key, jnp.asarray(x)))
  assert (np.abs(did) <= np.array(ranges) + 1e-6).all()
  back = found - did[0]
  back = back.mean() + (back - back.mean()) / 2 ** did[1]
  gray = back.mean(-1, keepdims=True)
  np.testing.assert_allclose(gray + (back - gray) / 2 ** did[2], x, atol=1e-5)


@examples(10)
@given(rate=number(0, 1), random=randoms)
def test_dropped_labels_are_null_and_the_others_stay(rate, random):
  batch, keys = batch_of(jnp.zeros((4, 1, 1, 1))), keys_of(random)
  found = np.asarray(augment.label_dropout(rate)(keys, batch).condition)
  assert ((found == NULL) | (found == batch.condition)).all()
  assert (augment.label_dropout(0)(keys, batch).condition == batch.condition).all()
  assert (augment.label_dropout(1.0)(keys, batch).condition == NULL).all()
