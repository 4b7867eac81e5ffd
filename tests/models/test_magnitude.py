"""Magnitude preservation: unit variance in, unit variance out, whatever the length of the weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from diffusion import rng
from diffusion.models import magnitude
from diffusion.models.functional import Mode
from diffusion.optimizers import chains, optimizers, schedules
from diffusion.types import NULL, Conditioning
from tests.models.test_dropout import PLAIN, row_keys

compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
SMALL = {'width': 16, 'multipliers': (1, 2), 'blocks': 1, 'attention': (4,), 'num_classes': 3}


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('side', [0, 1, 3])
def test_a_kernel_keeps_unit_variance_at_any_length_of_its_weights(side):
  layer = magnitude.Kernel(64, side)
  x = normal(64, 16, 16, 32)
  variables = compiled(lambda: layer.init(jax.random.key(0), x, Mode()))()
  for scale in (1.0, 30.0):
    longer = scale * np.geomspace(0.1, 10, 64)  # each output's by a factor of its own
    y = layer.apply(jax.tree.map(lambda p, s=longer: s * p, variables), x, Mode())
    np.testing.assert_allclose(np.asarray(y[:, 1:-1, 1:-1]).std((0, 1, 2)), 1.0, atol=0.15)
    np.testing.assert_allclose(np.asarray(y[:, 1:-1, 1:-1]).std(), 1.0, atol=0.05)


def test_activation_sum_and_concatenation_keep_unit_variance():
  a, b = normal(200_000), normal(200_000, seed=1)
  np.testing.assert_allclose((np.asarray(magnitude.mp_silu(a)) ** 2).mean(), 1.0, atol=0.01)
  for share in (0.0, 0.3, 0.5, 1.0):
    np.testing.assert_allclose(np.asarray(magnitude.mp_sum(a, b, share)).std(), 1.0, atol=0.01)
  both = np.asarray(magnitude.mp_concatenate(normal(5000, 8), normal(5000, 24, seed=1)))
  np.testing.assert_allclose((both**2).mean(), 1.0, atol=0.02)
  np.testing.assert_allclose((both[:, :8] ** 2).sum(), (both[:, 8:] ** 2).sum(), rtol=0.05)


def test_blocks_keep_unit_variance_at_initialization():
  # Attention averages values, and padding with zeros loses some at the border: looked at without either.
  x, embedding = normal(16, 16, 16, 16), normal(16, 64)
  for encoder in (True, False):
    block = magnitude.Block(32, encoder, False, (), 1.0)
    y = compiled(lambda b=block: b.init_with_output(jax.random.key(0), x, embedding, Mode())[0])()
    np.testing.assert_allclose((np.asarray(y)[:, 2:-2, 2:-2] ** 2).mean(), 1.0, atol=0.05)


def weights(kernel):
  """As they are used: each output's of unit length, in NumPy."""
  axes = tuple(range(kernel.ndim - 1))
  fan_in = kernel.size // kernel.shape[-1]
  return kernel / np.sqrt(fan_in * ((kernel**2).mean(axes) + 1e-8))


def convolved(x, kernel):
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  return np.einsum('bhwcij,ijco->bhwo', windows, weights(kernel))


def pixel_norm(x):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8)


def loud_silu(x):
  return x * special.expit(x) / 0.596


def added(a, b):
  return (0.7 * a + 0.3 * b) / 0.58**0.5


def block_written_out(p, x, embedding, encoder):
  """With attention of four channels a head, and the drops that draw nothing at a depth of 1/4."""
  shortcut = weights(p['shortcut']['kernel'])[0, 0]
  if encoder:
    x = pixel_norm(x @ shortcut)
  h = convolved(loud_silu(x), p['conv_in']['kernel'])
  told = p['embedding']['gain'] * (embedding @ weights(p['embedding']['kernel']))
  h = convolved(loud_silu(h * (1 + told[:, None, None])) + 1, p['conv_out']['kernel'])
  x = added(x if encoder else x @ shortcut, (1 + 0.25) * h)
  b, height, width, c = x.shape
  q, k, v = (
    pixel_norm((x @ weights(p[name]['kernel'])[0, 0]).reshape(b, height * width, c // 4, 4))
    for name in ('query', 'key', 'value')
  )
  share = special.softmax(np.einsum('bihc,bjhc->bhij', q, k) / 2, axis=3)
  mixed = np.einsum('bhij,bjhc->bihc', share, v).reshape(x.shape)
  return added(x, mixed @ weights(p['out']['kernel'])[0, 0])


def test_a_block_is_that_of_the_paper_written_out(x64):
  """On the way down with pixel normalization, and on the way up without."""
  generator = np.random.default_rng(0)
  x, embedding = 3 * generator.normal(size=(2, 3, 4, 8)), generator.normal(size=(2, 5))
  given = jnp.asarray(x), jnp.asarray(embedding), Mode(row_keys(2))
  for encoder in (True, False):
    block = magnitude.Block(12, encoder, True, PLAIN, 0.25, heads_of=4)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), *given))  # noqa: B023
    variables = jax.tree.map(lambda p: generator.normal(size=p.shape), shapes)
    found = compiled(lambda v: block.apply(v, *given))(variables)  # noqa: B023
    expected = block_written_out(variables['params'], x, embedding, encoder)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_blocks_have_the_sizes_depths_and_attention_that_they_should():
  """Of three levels, the middle one with attention, of images that are wider than high."""
  model = magnitude.unet(8, (1, 3, 2), 1, (4,))
  z, told = jnp.zeros((2, 8, 12, 1)), Conditioning(jnp.zeros(2, int), jnp.zeros((2, 0)))
  found = []

  def watch(call, arguments, kwargs, context):
    one = context.module
    if isinstance(one, magnitude.Block) and context.method_name == '__call__':
      x, embedding, _ = arguments
      assert embedding.shape == (2, 3 * 8)
      found.append((x.shape[1:], one.features, one.encoder, one.attend, one.depth))
    return call(*arguments, **kwargs)

  with nn.intercept_methods(watch):
    jax.eval_shape(model.init, jax.random.key(0), z, jnp.zeros(2), told)
  # On the way up beside what the way down left there.
  expected = [
    ((8, 12, 8), 8, True, False), ((4, 6, 8), 24, True, True), ((2, 3, 24), 16, True, False),
    ((2, 3, 16), 16, False, True), ((2, 3, 16), 16, False, False),
    ((2, 3, 16 + 16), 16, False, False), ((2, 3, 16 + 24), 16, False, False),
    ((4, 6, 16 + 24), 24, False, True), ((4, 6, 24 + 8), 24, False, True),
    ((8, 12, 24 + 8), 8, False, False), ((8, 12, 8 + 8), 8, False, False),
  ]  # fmt: skip
  assert [one[:4] for one in found] == expected
  np.testing.assert_allclose([one[4] for one in found], np.arange(1, 12) / 11)
  with pytest.raises(ValueError, match=r'3 levels .* divisible by 4, got \(2, 8, 10, 1\)'):
    jax.eval_shape(model.init, jax.random.key(0), z[:, :, :10], jnp.zeros(2), told)


@functools.cache
def network():
  model = magnitude.unet(**SMALL, dropout=0.2)
  z, noise = normal(4, 8, 8, 2), normal(4)
  told = Conditioning(jnp.zeros(4, int), jnp.zeros((4, 2)))
  return model, z, noise, told, compiled(model.init)(jax.random.key(0), z, noise, told)


def test_all_that_the_network_is_told_comes_in_unit_magnitude():
  """At initialization: examples, noise level and label, and what each block hears of the last two together."""
  (model, *_, variables), rows = network(), 64
  # An augmentation label of zero is none, and makes the others no quieter.
  told = Conditioning(jnp.arange(rows) % 4 - 1, jnp.zeros((rows, 2)))
  given = normal(rows, 8, 12, 2), jnp.linspace(-1, 1, rows), told

  @compiled
  def run(variables):
    heard, entered, left = {}, {}, {}

    def watch(call, arguments, kwargs, context):
      y, path = call(*arguments, **kwargs), '/'.join(context.module.path)
      if isinstance(context.module, magnitude.Kernel):
        heard[path] = jnp.mean(arguments[0] ** 2)
      if isinstance(context.module, (magnitude.Kernel, magnitude.Block)):
        entered[path], left[path] = arguments[0][:3], y[:3]
      return y

    with nn.intercept_methods(watch):
      model.apply(variables, *given)
    return heard, entered, left

  heard, entered, left = jax.tree.map(np.asarray, run(variables))
  told = [path for path in heard if path.endswith('/embedding')]
  assert len(told) == 8
  for path in ('noise', 'label', 'stem', *told):
    np.testing.assert_allclose(heard[path], 1.0, atol=0.1, err_msg=path)

  # And each in its place. Down: block 0, halving, block 1. Middle: 2 and 3. Up: 4 and 5, doubling, 6 and 7.
  def joined(a, b):
    width = (a.shape[-1] + b.shape[-1]) / 2
    parts = (x * (width / x.shape[-1]) ** 0.5 for x in (a, b))
    return np.concatenate(list(parts), axis=-1)

  image, block = given[0][:3], [left[f'Block_{i}'] for i in range(8)]
  halved = block[0].reshape(3, 4, 2, 6, 2, 16).mean((2, 4))
  doubled = np.kron(block[5], np.ones((1, 2, 2, 1)))
  for path, expected in (
    ('stem', np.concatenate([image, np.ones((3, 8, 12, 1))], axis=-1)),
    ('Block_0', left['stem']), ('Block_1', halved), ('Block_2', block[1]), ('Block_3', block[2]),
    ('Block_4', joined(block[3], block[1])), ('Block_5', joined(block[4], halved)),
    ('Block_6', joined(doubled, block[0])), ('Block_7', joined(block[6], left['stem'])),
    ('output', block[7]),
  ):  # fmt: skip
    np.testing.assert_allclose(entered[path], expected, rtol=1e-4, atol=1e-5, err_msg=path)
  both = loud_silu((left['noise'] + left['label']) / 2**0.5)
  for i in range(8):
    np.testing.assert_allclose(entered[f'Block_{i}/embedding'], both, rtol=1e-4, atol=1e-5)


def test_the_network_starts_at_zero_and_hears_everything_once_its_gains_are_up():
  model, z, noise, told, variables = network()
  apply = compiled(lambda v, z, noise, told: model.apply(v, z, noise, told)[0])
  np.testing.assert_array_equal(apply(variables, z, noise, told), 0)
  names = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(variables)}
  assert not any('bias' in name or 'scale' in name for name in names)
  awake = jax.tree.map(lambda p: p + (p.ndim == 0), variables)
  base = np.asarray(apply(awake, z, noise, told))
  for changed in (
    (z + 0.5, noise, told), (z, noise + 0.3, told), (z, noise, told._replace(condition=jnp.full(4, -1))),
    (z, noise, told._replace(augment=jnp.ones((4, 2)))),
  ):  # fmt: skip
    assert np.abs(np.asarray(apply(awake, *changed)) - base).max() > 1e-3
  # Each label is a condition of its own, the null one too.
  alike = [jnp.repeat(a[:1], 4, axis=0) for a in (z, noise)]
  labels = told._replace(condition=jnp.array([0, 1, 2, NULL]))
  each = np.asarray(apply(awake, *alike, labels)).reshape(4, -1)
  assert (np.abs(each[:, None] - each).max(2) + np.eye(4) > 1e-3).all()
  keys = rng.row_keys(jax.random.key(0), jnp.arange(4))
  wet = compiled(lambda k: model.apply(awake, z, noise, told, keys=k)[0])(keys)
  assert np.abs(np.asarray(wet) - base).max() > 1e-3


def test_forward_mode_has_a_jvp_of_the_same_network():
  model, z, noise, told, variables = network()
  awake = jax.tree.map(lambda p: p + (p.ndim == 0), variables)

  @compiled
  def both(z):
    forward = lambda z: model.apply(awake, z, noise, told, forward_mode=True)[0]  # noqa: E731
    return model.apply(awake, z, noise, told)[0], *jax.jvp(forward, (z,), (jnp.ones_like(z),))

  plain, same, slope = both(z)
  np.testing.assert_allclose(plain, same, atol=1e-5)
  assert np.abs(np.asarray(slope)).max() > 1e-3


def test_with_fixed_norms_the_lengths_of_weights_stay_through_training():
  _, _, _, _, variables = network()
  params = variables['params']
  optimizer = chains.chain(optimizers.adam(), schedules.constant(0.05), fix_norms=True)
  state, first = optimizer.init(params), params
  for i in range(10):
    gradient = jax.tree.map(lambda p, i=i: normal(*p.shape, seed=i), params)
    updates, state = compiled(optimizer.update)(gradient, state, params)
    params = optax.apply_updates(params, updates)
  checked = 0
  for (path, before), after in zip(
    jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(params), strict=True
  ):
    if 'kernel' in jax.tree_util.keystr(path):
      axes = tuple(range(before.ndim - 1))
      old, new = (np.sqrt((np.asarray(w, np.float64) ** 2).sum(axes)) for w in (before, after))
      np.testing.assert_allclose(new, old, rtol=1e-5)
      assert np.abs(np.asarray(after) - np.asarray(before)).max() > 0.01
      checked += 1
  assert checked > 15


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'width': 12}, 'width .* got 12'), ({'multipliers': ()}, 'multipliers'), ({'blocks': 0}, 'blocks'),
    ({'dropout': 1.0}, 'dropout .* got 1.0'), ({'num_classes': -1}, 'num_classes'),
  ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    magnitude.unet(**arguments)
