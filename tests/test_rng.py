"""Random streams: distinct where they should be, equal where they must be, by purpose and row alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import rng

PURPOSES = (
  'init', 'order', 'time', 'noise', 'dropout', 'augmentation', 'sampler', 'validation',
)  # fmt: skip


def data(key):
  return jax.random.key_data(key)


def test_all_keys_differ():
  seeds, cursors = (0, 1, 2**31, 2**32 - 1), (0, 1, 2, 1000, 2**31 - 1)
  keys = [np.asarray(data(rng.stream(s, p))) for s in seeds for p in PURPOSES]
  batches = jax.jit(
    jax.vmap(lambda s, c: jnp.stack([data(rng.batch_key(s, p, c)) for p in PURPOSES]))
  )
  s, c = (np.array(v) for v in zip(*itertools.product(seeds, cursors), strict=True))
  keys = np.concatenate([keys, np.asarray(batches(s.astype(np.uint32), c)).reshape(-1, 2)])
  assert len(keys) == len(seeds) * len(PURPOSES) * (1 + len(cursors))
  assert len(np.unique(keys, axis=0)) == len(keys)


def test_a_traced_key_is_the_plain_one():
  """What is computed inside the compiled step and what a test or a notebook computes outside are the same."""
  traced = jax.jit(lambda s, c: data(rng.batch_key(s, 'noise', c)))
  plain = data(rng.batch_key(7, 'noise', 5))
  np.testing.assert_array_equal(traced(jnp.uint32(7), jnp.int32(5)), plain)


def test_tags_are_stable():
  """CRC-32 has a published check value; Python's own hash of a string would differ from process to process."""
  assert rng.tag('123456789') == 0xCBF43926
  assert len({rng.tag(p) for p in PURPOSES}) == len(PURPOSES)


def draws(purposes):
  """One uniform draw of each purpose, as a run that uses just these would make it."""
  return {p: float(jax.random.uniform(rng.batch_key(3, p, 10))) for p in purposes}


@pytest.mark.parametrize('off', PURPOSES)
def test_turning_one_purpose_off_leaves_the_others(off):
  everything = draws(PURPOSES)
  rest = draws([p for p in reversed(PURPOSES) if p != off])
  assert rest == {p: v for p, v in everything.items() if p != off}
  assert len(set(everything.values())) == len(PURPOSES)


@pytest.mark.parametrize('shares', [2, 3, 4])
def test_row_keys_do_not_depend_on_the_share(shares):
  key = rng.stream(0, 'noise')
  whole = data(rng.row_keys(key, jnp.arange(12)))
  parts = [data(rng.row_keys(key, jnp.asarray(r))) for r in np.split(np.arange(12), shares)]
  np.testing.assert_array_equal(whole, np.concatenate(parts))
  assert len(np.unique(whole, axis=0)) == 12
  order = np.array([5, 0, 11])
  np.testing.assert_array_equal(data(rng.row_keys(key, jnp.asarray(order))), whole[order])


def test_normal_draws_each_row_from_its_key():
  keys = rng.row_keys(rng.stream(1, 'noise'), jnp.arange(6))
  x = rng.normal(keys, (4, 3))
  assert x.shape == (6, 4, 3)
  for i in (0, 4):
    np.testing.assert_array_equal(x[i], jax.random.normal(keys[i], (4, 3)))
  np.testing.assert_array_equal(rng.normal(keys[2:4], (4, 3)), x[2:4])
  signs = rng.signs(keys, (4, 3))
  np.testing.assert_array_equal(np.abs(signs), np.ones((6, 4, 3)))
  for i in (0, 4):
    np.testing.assert_array_equal(signs[i], jax.random.rademacher(keys[i], (4, 3), float))
  assert len(np.unique(np.reshape(signs, (6, -1)), axis=0)) == 6


def test_rows_and_batches_are_standard_normal_and_uncorrelated():
  draw = jax.jit(
    jax.vmap(
      lambda c: rng.normal(rng.row_keys(rng.batch_key(0, 'noise', c), jnp.arange(16)), (20,))
    )
  )
  x = np.asarray(draw(jnp.arange(100)))  # [cursor, row, entry]
  assert stats.kstest(x.reshape(-1), 'norm').pvalue > 1e-4
  bound = 5 / np.sqrt(x.size)
  for axis in range(3):  # neighbors along each axis
    one, other = x.take(range(x.shape[axis] - 1), axis), x.take(range(1, x.shape[axis]), axis)
    assert abs(np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1]) < bound
