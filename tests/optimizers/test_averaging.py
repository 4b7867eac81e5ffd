"""The moving average: starts at the weights, follows the stated recursion, and owns its buffers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.optimizers import averaging


def weights(seed):
  random = np.random.default_rng(seed)
  return {
    'a': random.normal(size=(3, 2)).astype(np.float32),
    'b': {'c': np.float32(random.normal())},
  }


def average(decay, trajectory, start):
  ema = averaging.ema(decay)
  update = jax.jit(ema.update)
  state = ema.init(jax.tree.map(jnp.asarray, start))
  for params in trajectory:
    state = update(state, params)
  return ema.read(state)


def assert_trees_close(found, expected, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def test_it_starts_equal_to_the_parameters():
  jax.tree.map(np.testing.assert_array_equal, average(0.9999, [], weights(0)), weights(0))


@pytest.mark.parametrize('decay', [0.0, 0.5, 0.99])
def test_it_is_the_weighted_sum_of_the_trajectory(decay):
  """Unrolled: w_k enters with (1 - d_k) prod_{j > k} d_j, where d_n = min(decay, (1 + n) / (10 + n))."""
  steps = 60
  trajectory = [weights(1 + n) for n in range(steps)]
  rates = [min(decay, (1 + n) / (10 + n)) for n in range(steps)]
  shares = [(1 - rates[k]) * math.prod(rates[k + 1 :]) for k in range(steps)]
  start = math.prod(rates)
  assert start + sum(shares) == pytest.approx(1)
  expected = jax.tree.map(
    lambda first, *rest: start * np.float64(first) + sum(s * r for s, r in zip(shares, rest, strict=True)),
    weights(0), *trajectory,
  )  # fmt: skip
  assert_trees_close(average(decay, trajectory, weights(0)), expected, rtol=2e-5, atol=2e-6)


def test_no_decay_is_the_last_parameters():
  trajectory = [weights(n) for n in range(1, 5)]
  assert_trees_close(average(0.0, trajectory, weights(0)), trajectory[-1], rtol=0)


def test_constant_parameters_stay_as_they_are():
  """No bias toward zero, at the start or later."""
  for steps in (1, 5, 50):
    found = average(0.9999, [weights(0)] * steps, weights(0))
    assert_trees_close(found, weights(0), rtol=1e-5)


def test_the_warmup_forgets_the_initialization():
  far = jax.tree.map(lambda w: w + 1000, weights(0))
  found = average(0.9999, [weights(0)] * 200, far)
  # prod (1 + n) / (10 + n) over 200 steps is 9! 200! / 209!, about 6e-16; without the warm-up 0.98 would be left.
  assert_trees_close(found, weights(0), rtol=1e-3, atol=1e-3)


def test_raising_the_decay_makes_it_slower():
  """After a jump of all weights by one, the average lags by its memory."""
  start = {'w': np.zeros(())}
  trajectory = [start] * 200 + [{'w': np.ones(())}] * 20
  decays = [0.0, 0.5, 0.8, 0.9]
  followed = [float(average(d, trajectory, start)['w']) for d in decays]
  np.testing.assert_allclose(followed, [1 - d**20 for d in decays], rtol=1e-4)
  assert followed == sorted(followed, reverse=True)


def test_donated_states_hold_no_buffer_twice():
  ema = averaging.ema(0.9)
  params = jax.tree.map(jnp.asarray, weights(0))
  state = {'params': params, 'average': ema.init(params)}
  pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
  assert len(set(pointers)) == len(pointers)

  def step(state):
    moved = jax.tree.map(lambda w: w + 1, state['params'])
    return {'params': moved, 'average': ema.update(state['average'], moved)}

  donating = jax.jit(step, donate_argnums=0)
  new = donating(donating(state))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # it was in fact donated
  assert_trees_close(new['params'], jax.tree.map(lambda w: w + 2, weights(0)), rtol=1e-6)
  # d = 1/10, then 2/11: the average of w, w + 1, w + 2 is w + 0.9 and then w + (2 x 0.9 + 9 x 2) / 11.
  expected = jax.tree.map(lambda w: w + 1.8, weights(0))
  assert_trees_close(ema.read(new['average']), expected, rtol=1e-5)


def test_types_are_kept():
  params = {'half': jnp.ones(3, jnp.bfloat16), 'single': jnp.ones(3)}
  ema = averaging.ema(0.5)
  state = ema.update(ema.init(params), params)
  assert jax.tree.map(lambda a: a.dtype, ema.read(state)) == {
    'half': jnp.bfloat16,
    'single': jnp.float32,
  }


@pytest.mark.parametrize('decay', [-0.1, 1.0, 1.5, math.nan])
def test_bad_decays_are_named(decay):
  with pytest.raises(ValueError, match=rf'decay must .* got {decay}'):
    averaging.ema(decay)


def walk(average, trajectory, start):
  state = average.init(start)
  for params in trajectory:
    state = average.update(state, params)
  return state


def scalars(values):
  return [{'w': jnp.asarray(v)} for v in values]


def test_half_life_halves_the_past(x64):
  """After a jump from 0 to 1 far into training, the distance halves every `images` images."""
  average = averaging.half_life(images=640.0, batch_size=64, ramp=0.05)
  state = walk(average, scalars([0.0] * 300), {'w': jnp.zeros(())})
  found = []
  for _ in range(30):
    state = average.update(state, {'w': jnp.ones(())})
    found.append(float(average.read(state)['w']))
  np.testing.assert_allclose(1 - np.array(found)[[9, 19, 29]], [0.5, 0.25, 0.125], rtol=1e-6)


def test_half_life_of_young_training_is_a_share_of_what_was_seen(x64):
  average = averaging.half_life(images=1e9, batch_size=10, ramp=0.1)
  state = walk(average, scalars([1.0]), {'w': jnp.zeros(())})
  np.testing.assert_allclose(average.read(state)['w'], 1 - 2.0 ** (-10 / 1.0), rtol=1e-6)


@pytest.mark.parametrize('width', [0.02, 0.05, 0.1, 0.2])
def test_power_has_the_width_it_is_named_for(width, x64):
  """The weights of 4,000 updates, read off by linearity: their standard deviation over the length is the width."""
  count = 4000
  average = averaging.power(width)
  n = np.arange(1, count + 1)
  beta = (1 - 1 / n) ** (averaging.power_exponent(width) + 1)
  shares = (1 - beta) * np.array([np.prod(beta[i + 1 :]) for i in range(count)])
  assert abs(shares.sum() - 1) < 1e-9
  mean = (shares * n / count).sum()
  np.testing.assert_allclose(np.sqrt((shares * (n / count - mean) ** 2).sum()), width, rtol=5e-3)
  trajectory = np.random.default_rng(0).normal(size=40)
  found = walk(average, scalars(trajectory), {'w': jnp.asarray(9.0)})
  b = (1 - 1 / np.arange(1, 41)) ** (averaging.power_exponent(width) + 1)
  expected = sum((1 - b[i]) * np.prod(b[i + 1 :]) * trajectory[i] for i in range(40))
  np.testing.assert_allclose(average.read(found)['w'], expected, rtol=1e-9)


@pytest.mark.parametrize('width', [0.06, 0.075, 0.09])
def test_a_width_between_two_tracks_is_reconstructed_from_snapshots(width, x64):
  """A drifting, noisy trajectory of 2,000 updates; the average of another width, tracked directly: 1e-3 relative."""
  rng = np.random.default_rng(1)
  count, size = 2000, 50
  drift = np.linspace(0, 3, count)[:, None] ** 0.5 * rng.normal(size=size)
  trajectory = drift + np.cumsum(0.02 * rng.normal(size=(count, size)), axis=0)
  tracks = {w: averaging.power(w) for w in (0.05, 0.1, width)}
  states = {w: track.init({'w': jnp.zeros(size)}) for w, track in tracks.items()}
  update = {w: jax.jit(track.update) for w, track in tracks.items()}
  snapshots, times, widths = [], [], []
  direct = {}
  for n, params in enumerate(trajectory, 1):
    states = {w: update[w](s, {'w': jnp.asarray(params)}) for w, s in states.items()}
    if n % 50 == 0:
      for w in (0.05, 0.1):
        snapshots.append(tracks[w].read(states[w]))
        times.append(n)
        widths.append(w)
    if n in (count // 2, count):
      direct[n] = np.asarray(tracks[width].read(states[width])['w'])
  for n, exact in direct.items():
    found = averaging.reconstruct(snapshots, times, widths, n, width)['w']
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    print(f'width {width} at {n}: relative error {error:.1e}')
    assert error < 1e-3
  other = averaging.reconstruct(snapshots, times, widths, count, 0.2)['w']
  assert np.linalg.norm(other - exact) > 1e-2 * np.linalg.norm(exact)  # the width matters


def test_a_tracked_width_is_reconstructed_as_itself(x64):
  snapshots = [{'w': np.array([float(i)])} for i in range(6)]
  times, widths = [1, 2, 3, 1, 2, 3], [0.05] * 3 + [0.1] * 3
  found = averaging.reconstruct(snapshots, times, widths, 3, 0.1)
  np.testing.assert_allclose(found['w'], [5.0], atol=1e-6)
  singles = [{'w': snapshot['w'].astype(np.float32)} for snapshot in snapshots]
  assert averaging.reconstruct(singles, times, widths, 3, 0.1)['w'].dtype == np.float32


@pytest.mark.parametrize('start, every', [(1, 1), (10, 1), (5, 4)])
def test_swa_is_the_plain_mean_of_what_it_samples(start, every, x64):
  trajectory = np.random.default_rng(2).normal(size=30)
  average = averaging.swa(start, every)
  state = average.init({'w': jnp.asarray(7.0)})
  for n, value in enumerate(trajectory, 1):
    state = average.update(state, {'w': jnp.asarray(value)})
    sampled = [trajectory[k - 1] for k in range(start, n + 1) if (k - start) % every == 0]
    if n < start:
      sampled = [value]
    if sampled:
      np.testing.assert_allclose(average.read(state)['w'], np.mean(sampled), rtol=1e-9)


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda: averaging.half_life(0.0, 8), 'images .* got 0.0'),
    (lambda: averaging.half_life(10.0, 0), 'batch_size .* got 0'),
    (lambda: averaging.half_life(10.0, 8, 0.0), 'ramp .* got 0.0'),
    (lambda: averaging.power(0.0), 'width .* got 0.0'),
    (lambda: averaging.power(0.3), 'width .* got 0.3'),
    (lambda: averaging.swa(0), 'start .* got 0'),
    (lambda: averaging.swa(1, 0), 'every .* got 0'),
    (lambda: averaging.reconstruct([{}], [1, 2], [0.1], 1, 0.1), 'one length, got 1, 2, 1'),
    (lambda: averaging.reconstruct([{}], [5], [0.1], 6, 0.1), r'time must be in \(0, 5\], got 6'),
    (lambda: averaging.reconstruct([{}], [5], [0.1], 0, 0.1), r'time must be in \(0, 5\], got 0'),
    (lambda: averaging.reconstruct([], [], [], 1, 0.1), 'one length, got 0, 0, 0'),
  ],
)
def test_bad_arguments_of_the_other_averages_are_named(make, names):
  with pytest.raises(ValueError, match=names):
    make()
