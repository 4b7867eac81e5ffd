"""Optimizers: first steps in closed form, a quadratic minimized, one step of a U-Net, states resumed to the bit."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.models import unet
from diffusion.optimizers import chains, clipping, optimizers, schedules
from diffusion.training import checkpoint
from diffusion.types import Conditioning

MADE = {
  'adam': lambda: chains.chain(optimizers.adam(), schedules.constant(0.05)),
  'adamw': lambda: chains.adamw(schedules.constant(0.05), 1e-6),
  'rmsprop': lambda: chains.chain(optimizers.rmsprop(), schedules.constant(0.01)),
  'momentum': lambda: chains.chain(optimizers.momentum(0.9), schedules.constant(0.02)),
  'nesterov': lambda: chains.chain(
    optimizers.momentum(0.9, nesterov=True), schedules.constant(0.02)
  ),
  'sgd': lambda: chains.chain(optimizers.momentum(0.0), schedules.constant(0.1)),
  'lion': lambda: chains.chain(optimizers.lion(), schedules.exponential(0.05, 60)),
  'muon': lambda: chains.chain(optimizers.muon(), schedules.exponential(0.1, 60)),
  'prodigy': lambda: chains.chain(optimizers.prodigy(), schedules.constant(1.0)),
  'schedule free': lambda: chains.schedule_free(optimizers.adam(b1=0.0), schedules.constant(0.1)),
}


def start(seed=0):
  random = np.random.default_rng(seed)
  return {
    'dense': {'kernel': jnp.asarray(random.normal(size=(4, 3)), jnp.float32), 'bias': jnp.ones(3)}
  }


TARGET = start(1)


def loss(params):
  """A quadratic with curvatures from 0.5 to 2."""
  scale = jnp.linspace(0.5, 2.0, 12).reshape(4, 3)
  kernel = ((params['dense']['kernel'] - TARGET['dense']['kernel']) ** 2 * scale).sum()
  return 0.5 * (kernel + ((params['dense']['bias'] - TARGET['dense']['bias']) ** 2).sum())


@pytest.mark.parametrize('name', MADE)
def test_each_minimizes_a_quadratic(name):
  optimizer = MADE[name]()

  def step(carry, _):
    params, state = carry
    update, state = optimizer.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, update), state), None

  params = start()
  (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=500)
  assert loss(optimizer.read(state, params)) < 1e-3 * loss(start())


@pytest.fixture(scope='module')
def of_unet():
  """(parameters, gradient) of a U-Net with convolutions, attention, embeddings and norms."""
  model = unet.unet(8, (1,), 1, (), 0.0, num_classes=3)
  z, conditioning = jnp.ones((2, 8, 8, 1)), Conditioning(jnp.zeros(2, jnp.int32), jnp.zeros((2, 0)))
  params = model.init(jax.random.key(0), z, jnp.zeros(2), conditioning)['params']

  def square(params):
    output, _ = model.apply({'params': params}, z, jnp.zeros(2), conditioning)
    return ((output - z) ** 2).mean()

  return params, jax.jit(jax.grad(square))(params)


@functools.cache
def begun(name):
  """(an optimizer, its compiled init), once for the tests that ask."""
  optimizer = MADE[name]()
  return optimizer, jax.jit(optimizer.init)


@pytest.mark.parametrize('name', MADE)
def test_each_takes_a_step_of_a_unet_and_its_state_is_data(name, of_unet):
  """All parameters move or stay finite; the state is a tree of arrays of fixed shapes; the rate is readable."""
  params, gradient = of_unet
  optimizer, init = begun(name)
  state = init(params)
  update, after = jax.jit(optimizer.update)(gradient, state, params)
  assert jax.tree.structure(state) == jax.tree.structure(after)
  for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
    assert (before.shape, before.dtype) == (now.shape, now.dtype)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(update))
  assert np.abs(update['output']['kernel']).max() > 0
  assert float(optimizer.learning_rate(after)) > 0


@pytest.mark.parametrize('name', MADE)
def test_each_resumes_from_a_checkpoint_to_the_bit(name, of_unet, tmp_path):
  """Two steps, saved to disk and restored by a new keeper into zeros, two more: as four without a stop."""
  params, gradient = of_unet
  optimizer, init = begun(name)

  @jax.jit
  def step(params, state):
    bent = jax.tree.map(lambda g, p: g + 0.01 * p, gradient, params)  # differs from step to step
    update, state = optimizer.update(bent, state, params)
    return optax.apply_updates(params, update), state

  two = step(*step(params, init(params)))
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  keeper.save(2, jax.tree.map(np.asarray, two), {}, 0.0)
  keeper.close()
  empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), two)
  reader = checkpoint.open_checkpoints(tmp_path / 'c', read_only=True)
  restored = reader.restore(empty, 'latest').state
  assert jax.tree.structure(restored) == jax.tree.structure(two)
  through = step(*step(*two))
  for found, expected in zip(
    jax.tree.leaves(step(*step(*restored))), jax.tree.leaves(through), strict=True
  ):
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize('name', MADE)
def test_a_replicated_state_is_read_copy_by_copy(name):
  """What is judged is read from the state of all devices at once."""
  optimizer = MADE[name]()
  params = start()
  update, state = optimizer.update(jax.grad(loss)(params), optimizer.init(params), params)
  params = optax.apply_updates(params, update)
  both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (state, params))
  for found, expected in zip(
    jax.tree.leaves(optimizer.read(*both)),
    jax.tree.leaves(optimizer.read(state, params)),
    strict=True,
  ):
    np.testing.assert_allclose(found, np.stack([expected, expected]), rtol=1e-6)


def one(direction, gradients, params=None):
  """The last of some directions."""
  params = start() if params is None else params
  state = direction.init(params)
  for gradient in gradients:
    found, state = direction.update(gradient, state, params)
  return found


@pytest.mark.filterwarnings('ignore:Explicitly requested dtype')
def test_first_and_second_steps_in_closed_form(x64):
  g, h = (jax.tree.map(lambda v: v.astype(jnp.float64), start(s)) for s in (2, 3))
  first, second = g['dense']['kernel'], h['dense']['kernel']

  def found(direction):
    return one(direction, [g, h], jax.tree.map(jnp.zeros_like, g))['dense']['kernel']

  np.testing.assert_allclose(found(optimizers.momentum(0.8)), 0.8 * first + second, rtol=1e-9)
  np.testing.assert_allclose(
    found(optimizers.momentum(0.8, nesterov=True)), 0.8 * (0.8 * first + second) + second, rtol=1e-9
  )
  v = 0.9 * 0.1 * first**2 + 0.1 * second**2
  np.testing.assert_allclose(
    found(optimizers.rmsprop(0.9, 1e-3)), second / (np.sqrt(v) + 1e-3), rtol=1e-9
  )
  m = (0.8 * 0.2 * first + 0.2 * second) / (1 - 0.8**2)
  v = (0.9 * 0.1 * first**2 + 0.1 * second**2) / (1 - 0.9**2)
  np.testing.assert_allclose(
    found(optimizers.adam(0.8, 0.9, 0.05)), m / (np.sqrt(v) + 0.05), rtol=1e-9
  )
  m = (1 - 0.99) * first
  np.testing.assert_allclose(
    found(optimizers.lion(0.9, 0.99)), np.sign(0.9 * m + 0.1 * second), rtol=1e-9
  )


DIRECTIONS = (
  optimizers.adam, optimizers.rmsprop, optimizers.momentum, optimizers.lion, optimizers.muon, optimizers.prodigy,
)  # fmt: skip


@pytest.mark.parametrize('make', DIRECTIONS, ids=lambda make: make.__name__)
def test_every_argument_of_a_direction_reaches_it(make):
  """After some steps; the first may be the sign of a gradient whatever the decays are."""
  random = np.random.default_rng(0)
  draw = lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
  gradients = [jax.tree.map(draw, TARGET) for _ in range(6)]
  defaults = {n: p.default for n, p in inspect.signature(make).parameters.items()}
  flags = {name: value for name, value in defaults.items() if isinstance(value, bool)}
  numbers = {name: value for name, value in defaults.items() if name not in flags}
  run = jax.jit(lambda given, flags=flags: one(make(**flags, **given), gradients))
  base = run(numbers)

  def change(other):
    pairs = zip(jax.tree.leaves(other), jax.tree.leaves(base), strict=True)
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)

  for name, value in flags.items():
    assert change(one(make(**{name: not value}), gradients)) > 1e-3, name
  for name, value in numbers.items():
    with pytest.raises(ValueError, match=f'{name} must .* got -0.5'):
      make(**{name: -0.5})
    others = [0.1] if name == 'eps' else [value / 2, 0.9 + value / 10]
    assert max(change(run(numbers | {name: other})) for other in others) > 1e-3, name


def test_muon_orthogonalizes_kernels_and_leaves_the_rest_to_adam():
  """Singular values of the update of a convolution's kernel, as a matrix, are nearly equal; a bias is left to Adam."""
  random = np.random.default_rng(4)
  gradient = {
    'conv': {
      'kernel': jnp.asarray(random.normal(size=(3, 3, 4, 8)) * np.geomspace(1, 30, 8), jnp.float32),
      'bias': jnp.ones(8) * 0.3,
    }
  }
  params = jax.tree.map(jnp.ones_like, gradient)
  found = one(optimizers.muon(), [gradient], params)
  values = np.linalg.svd(np.asarray(found['conv']['kernel']).reshape(36, 8), compute_uv=False)
  assert values.max() / values.min() < 2  # Newton-Schulz leaves them within 0.7 to 1.2
  raw = np.linalg.svd(np.asarray(gradient['conv']['kernel']).reshape(36, 8), compute_uv=False)
  assert raw.max() / raw.min() > 20
  adam = one(optax.scale_by_adam(0.9, 0.999, nesterov=True), [gradient], params)
  np.testing.assert_allclose(found['conv']['bias'], adam['conv']['bias'], rtol=1e-4)


@pytest.mark.parametrize('slope', [0.0, 0.05])
def test_schedule_free_judges_an_average_between_gradients(slope):
  """With constant rate x is the plain mean of the z that gradient descent walks from the y in between.

  Where the rate rises, they count by the squares of the rates, as Optax counts them: each by that of the one after it.
  """

  def rate(n):
    return 0.1 + slope * n

  optimizer = chains.schedule_free(optimizers.momentum(0.0), rate, momentum=0.8)
  params = {'w': {'kernel': jnp.array([[2.0]])}}
  state = optimizer.init(params)
  x = z = 2.0
  for n in range(1, 6):
    y = float(params['w']['kernel'][0, 0])
    np.testing.assert_allclose(y, 0.2 * z + 0.8 * x, rtol=1e-5)
    update, state = optimizer.update({'w': {'kernel': jnp.array([[y]])}}, state, params)
    params = optax.apply_updates(params, update)
    z = z - rate(n - 1) * y
    share = rate(n) ** 2 / sum(rate(i) ** 2 for i in range(1, n + 1))
    x = (1 - share) * x + share * z
    np.testing.assert_allclose(optimizer.read(state, params)['w']['kernel'][0, 0], x, rtol=1e-5)
    np.testing.assert_allclose(optimizer.learning_rate(state), rate(n), rtol=1e-6)
    assert chains.at_rate(optimizer, lambda n: 10 + n).learning_rate(state) == 10 + n
  # A rate that the caller gives, as of a plateau, moves z by as much less.
  small, large = (
    optimizer.update({'w': {'kernel': jnp.array([[y]])}}, state, params, learning_rate=lr)[1]
    for lr in (0.01, 0.03)
  )
  moved = [one['free'].z['w']['kernel'] - z for one in (small, large)]
  np.testing.assert_allclose(moved, [[[-0.01 * y]], [[-0.03 * y]]], rtol=1e-3)


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda: optimizers.adam(b1=1.0), 'b1 .* got 1.0'),
    (lambda: optimizers.adam(eps=0.0), 'eps .* got 0.0'),
    (lambda: optimizers.rmsprop(decay=-0.1), 'decay .* got -0.1'),
    (lambda: optimizers.momentum(1.0), 'decay .* got 1.0'),
    (lambda: optimizers.lion(b2=2.0), 'b2 .* got 2.0'),
    (lambda: optimizers.muon(beta=1.0), 'beta .* got 1.0'),
    (lambda: optimizers.prodigy(b1=-1.0), 'b1 .* got -1.0'),
    (
      lambda: chains.schedule_free(optimizers.adam(), schedules.constant(0.1), momentum=0.0),
      'momentum .* got 0.0',
    ),
  ],
)
def test_bad_arguments_are_named_with_their_value(make, names):
  with pytest.raises(ValueError, match=names):
    make()


def test_prodigy_begins_with_adams_bias_correction_and_says_that_its_authors_package_does_not():
  """The first step is d0 sign(g), d0 = 1e-6; without the correction it would be (1 - b1) / sqrt(1 - b2), 3.2 of it."""
  direction = optimizers.prodigy()
  params, gradient = {'w': jnp.array([1.0, 2.0])}, {'w': jnp.array([0.3, -5.0])}
  step, _ = direction.update(gradient, direction.init(params), params)
  np.testing.assert_allclose(np.abs(step['w']), 1e-6, rtol=1e-3)
  assert 'use_bias_correction' in optimizers.prodigy.__doc__


def test_a_clip_in_front_of_schedule_free_is_measured():
  optimizer = chains.schedule_free(
    optimizers.momentum(0.0), schedules.constant(0.1), clip=clipping.global_norm(1e-3)
  )
  state = optimizer.init(start())
  _, state = optimizer.update(jax.grad(loss)(start()), state, start())
  assert optimizer.measure(state) == {'clip_rate': 1.0}
