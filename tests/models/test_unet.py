"""The U-Net of DDPM: its size, its start, and that each of its parts is alive."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.models import activations, initializers, normalization, unet
from diffusion.models.functional import Mode
from diffusion.types import NULL, Conditioning
from tests.models.test_dropout import PLAIN

ROWS = 3
# These programs run once: compiling them with little optimization takes a third of the time.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
SMALL = {'width': 8, 'multipliers': (1, 2), 'blocks': 1, 'attention': (4,), 'num_classes': 2}


def conditioning(rows=ROWS, label=0):
  return Conditioning(jnp.full(rows, label), jnp.zeros((rows, 0)))


def inputs(rows=ROWS, dtype=jnp.float32):
  generator = np.random.default_rng(0)
  z, noise = generator.normal(size=(rows, 8, 8, 2)), generator.uniform(-1, 1, size=rows)
  return jnp.asarray(z, dtype), jnp.asarray(noise, dtype)


def perturbed(variables, scale=0.1, seed=0):
  """Moves every parameter, the zero ones too, as training would."""
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: p + scale * jnp.asarray(generator.normal(size=p.shape), p.dtype), variables
  )


def filled(model, dtype=jnp.float32, scale=0.3):
  """Variables of a model as if trained: random numbers in every shape, without running its initialization."""
  z, noise = inputs()
  shapes = jax.eval_shape(model.init, jax.random.key(0), z, noise, conditioning())
  generator = np.random.default_rng(0)

  def fill(path, p):
    fan_in = max(1, p.size // p.shape[-1])
    offset = 'scale' in jax.tree_util.keystr(path)  # of a normalization
    values = offset + scale * generator.normal(size=p.shape) * (
      1 if p.ndim < 2 else 3 / fan_in**0.5
    )
    return jnp.asarray(values, dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def evaluation():
  """(variables, compiled evaluation) of the small network."""
  model = unet.unet(**SMALL)
  return filled(model), compiled(lambda *arguments: model.apply(*arguments)[0])


@functools.cache
def training():
  """Compiled training pass of the small network."""

  @compiled
  def run(variables, z, noise, told, keys, rate):
    return unet.unet(**SMALL, dropout=rate).apply(variables, z, noise, told, keys=keys)[0]

  return run


def parameters(model, side=32, channels=3):
  arguments = (jnp.zeros((2, side, side, channels)), jnp.zeros(2), conditioning(2))
  variables = jax.eval_shape(model.init, jax.random.key(0), *arguments)
  assert set(variables) == {'params'}
  return sum(p.size for p in jax.tree.leaves(variables))


def test_defaults_are_the_cifar10_network_of_ddpm():
  # DDPM's published count, less what a softmax cannot see: the key biases of six attentions of 256 channels.
  assert parameters(unet.unet()) == 35_746_307 - 6 * 256


def test_classes_and_attention_add_what_they_should():
  plain = parameters(unet.unet())
  assert parameters(unet.unet(num_classes=10)) - plain == 11 * 512
  # Attention at 16x16: two blocks down and three up of 256 channels, a norm and four projections each.
  without = parameters(unet.unet(attention=()))
  assert plain - without == 5 * (2 * 256 + 4 * 256 * 256 + 3 * 256)


def test_without_long_skips_nothing_but_the_level_below_reaches_a_block_on_the_way_up():
  shapes = lambda **options: {  # noqa: E731
    jax.tree_util.keystr(path): leaf.shape[2]
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      jax.eval_shape(
        unet.unet(**SMALL, **options).init, jax.random.key(0), *inputs(), conditioning()
      )
    )
    if 'conv_in' in jax.tree_util.keystr(path) and leaf.ndim == 4
  }
  # Down, middle and up: 8 and 16 channels; on the way up beside those of the level itself, and of the one above it.
  assert list(shapes(skips=False).values()) == [8, 8, 16, 16, 16, 16, 16, 8]
  assert list(shapes().values()) == [8, 8, 16, 16, 32, 24, 24, 16]


def test_output_is_zero_at_initialization():
  model = unet.unet(**SMALL, rescale=True)
  z, noise = inputs()
  variables = compiled(model.init)(jax.random.key(0), z, noise, conditioning())
  assert any(np.any(np.asarray(p)) for p in jax.tree.leaves(variables))
  output, statistics = compiled(model.apply)(variables, z, noise, conditioning())
  assert statistics == {}
  np.testing.assert_array_equal(output, np.zeros(z.shape))


def test_everything_it_is_told_changes_the_output():
  variables, apply = evaluation()
  z, noise = inputs()
  base = np.asarray(apply(variables, z, noise, conditioning()))
  assert base.shape == z.shape
  changed = {
    'z': apply(variables, z + 0.5, noise, conditioning()),
    'noise': apply(variables, z, noise + 0.25, conditioning()),
    'label': apply(variables, z, noise, conditioning(label=1)),
    'null label': apply(variables, z, noise, conditioning(label=NULL)),
  }
  for name, output in changed.items():
    assert (np.abs(np.asarray(output) - base).max((1, 2, 3)) > 1e-3).all(), name


@functools.cache
def derivatives():
  """Of the small network in float64 with one row of each label, in forward and in reverse mode; NumPy."""
  model = unet.unet(**SMALL)
  variables = filled(model, jnp.float64)
  z, noise = inputs(ROWS, jnp.float64)
  told = Conditioning(jnp.array([0, 1, NULL]), jnp.zeros((ROWS, 0)))
  generator = np.random.default_rng(1)
  direction, g = (jnp.asarray(a) for a in generator.normal(size=(2, *z.shape)))

  def both(z, direction, g):
    y, pull = jax.vjp(lambda v, z: model.apply(v, z, noise, told)[0], variables, z)
    same, pushed = jax.jvp(
      lambda z: model.apply(variables, z, noise, told, forward_mode=True)[0], (z,), (direction,)
    )
    gradient, pulled = pull(g)
    return y, same, (g * pushed).sum(), (pulled * direction).sum(), gradient

  with pytest.raises(
    TypeError, match='jvp'
  ):  # the trained form has no jvp: what `forward_mode` is for
    jax.jvp(lambda z: model.apply(variables, z, noise, told)[0], (z,), (direction,))
  return jax.tree.map(np.asarray, compiled(both)(z, direction, g))


def test_forward_mode_is_the_same_function_with_a_jvp(x64):
  y, same, forward, reverse, _ = derivatives()
  assert np.abs(y).max() > 0.1
  np.testing.assert_allclose(same, y, atol=1e-10)
  np.testing.assert_allclose(forward, reverse, rtol=1e-9)


def test_every_parameter_is_alive(x64):
  """No part is built and then left out: the gradient of the output reaches every single number."""
  *_, gradient = derivatives()
  leaves = jax.tree_util.tree_flatten_with_path(gradient)[0]
  assert len(leaves) > 50
  for path, g in leaves:
    name = jax.tree_util.keystr(path)
    sizes = np.abs(g)
    assert sizes.min() > 1e-9 * sizes.max() > 1e-12, name


def test_skips_and_upsampling_are_wired_as_in_the_paper():
  """Seen from outside: into each block of the way up goes what came before it, beside its twin of the way down."""
  variables, _ = evaluation()
  z, noise = inputs()

  @compiled
  def run():
    entered, left = {}, {}

    def watch(call, arguments, kwargs, context):
      y = call(*arguments, **kwargs)
      if len(context.module.path) == 1 and context.method_name == '__call__':
        (name,) = context.module.path
        entered[name], left[name] = arguments[0], y
      return y

    with nn.intercept_methods(watch):
      output, _ = unet.unet(**SMALL).apply(variables, z, noise, conditioning())
    return entered, left, output

  entered, left, output = jax.tree.map(np.asarray, run())
  np.testing.assert_array_equal(entered['stem'], z)
  np.testing.assert_array_equal(left['output'], output)
  # Down: block 0, halving, block 1 with attention. Middle: blocks 2 and 3. Up: 4 and 5 at 4x4, 6 and 7 at 8x8.
  for name, before, skip in (
    ('ResidualBlock_4', 'ResidualBlock_3', 'Attention_0'),
    ('ResidualBlock_5', 'Attention_2', 'down_0'),
    ('ResidualBlock_6', 'up_1', 'ResidualBlock_0'),
    ('ResidualBlock_7', 'ResidualBlock_6', 'stem'),
  ):
    expected = np.concatenate([left[before], left[skip]], axis=-1)
    np.testing.assert_array_equal(entered[name], expected, err_msg=name)
  for i in range(8):
    for j in range(8):  # nearest neighbor
      np.testing.assert_array_equal(
        entered['up_1'][:, i, j], left['Attention_3'][:, i // 2, j // 2]
      )


def test_a_row_does_not_see_the_others():
  variables, apply = evaluation()
  z, noise = inputs()
  whole = apply(variables, z, noise, conditioning())
  others = apply(variables, z.at[:2].set(5.0), noise.at[:2].set(1.0), conditioning())
  np.testing.assert_allclose(others[2], whole[2], atol=1e-5)


def test_images_need_not_be_square():
  model, z = unet.unet(**SMALL), jnp.ones((2, 8, 12, 2))
  variables = filled(model)
  output, _ = jax.eval_shape(model.apply, variables, z, jnp.zeros(2), conditioning(2))
  assert output.shape == z.shape


def row_keys(rows=ROWS, seed=0):
  return rng.row_keys(jax.random.key(seed), jnp.arange(rows))


def test_dropout_of_a_row_follows_its_key_through_the_network():
  variables, evaluate = evaluation()
  z, noise = (jnp.repeat(a[:1], 8, axis=0) for a in inputs())  # eight times the same image
  keys, told = row_keys(8), conditioning(8)
  output = np.asarray(training()(variables, z, noise, told, keys, 0.3))
  assert np.abs(output[0] - output[1]).max() > 1e-3
  order = np.array([2, 0, 1, 7, 6, 5, 3, 4])
  again = training()(variables, z, noise, told, keys[order], 0.3)
  np.testing.assert_allclose(again, output[order], atol=1e-5)
  # Turned up, it moves the output further from that of evaluation; at a (traced) zero it is evaluation.
  expected = evaluate(variables, z[:ROWS], noise[:ROWS], conditioning())[0]
  distance = [
    float(jnp.abs(training()(variables, z, noise, told, keys, rate) - expected).mean())
    for rate in (0.0, 0.05, 0.2, 0.6)
  ]
  assert distance[0] < 1e-5 < distance[1] < distance[2] < distance[3]


def test_without_dropout_the_program_has_no_random_operation():
  dry, wet = unet.unet(**SMALL), unet.unet(**SMALL, dropout=0.1)
  variables, _ = evaluation()
  z, noise = inputs()

  def program(model, keys):
    def run(z, keys):
      return model.apply(variables, z, noise, conditioning(), keys=keys)

    return str(jax.make_jaxpr(run)(z, keys))

  assert 'random' not in program(dry, row_keys())
  assert 'random' not in program(wet, None)
  assert 'random_bits' in program(wet, row_keys())


def style(rescale):
  return unet.Style(
    norm=normalization.group(),
    activation=activations.silu,
    kernel_init=initializers.lecun(),
    output_init=initializers.zeros,
    add=unet.rescaled_sum if rescale else unet.plain_sum,
  )


@pytest.mark.parametrize('rescale', [False, True])
def test_residual_block_starts_as_the_identity_over_root_two_if_rescaled(rescale):
  block = unet.ResidualBlock(8, (), 1.0, style(rescale))
  x = jnp.repeat(inputs()[0], 4, axis=-1)
  embedding = jnp.ones((ROWS, 16))
  variables = compiled(lambda: block.init(jax.random.key(0), x, embedding, Mode()))()
  apply = compiled(lambda variables, embedding: block.apply(variables, x, embedding, Mode()))
  out = apply(variables, embedding)
  np.testing.assert_allclose(out, np.asarray(x) / (2**0.5 if rescale else 1), rtol=1e-6)
  moved = perturbed(variables)
  first, second = (apply(moved, scale * embedding) for scale in (1.0, 2.0))
  assert np.abs(first - second).max() > 1e-3  # the embedding arrives


def normalized(x, layer):
  """In groups of four channels."""
  grouped = x.reshape(*x.shape[:3], -1, 4)
  center = grouped.mean((1, 2, 4), keepdims=True)
  grouped = (grouped - center) / np.sqrt(grouped.var((1, 2, 4), keepdims=True) + 1e-6)
  return grouped.reshape(x.shape) * layer['scale'] + layer['bias']


def convolved(x, layer):
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  return np.einsum('bhwcij,ijco->bhwo', windows, layer['kernel']) + layer['bias']


def test_a_residual_block_is_that_of_the_paper_written_out(x64):
  """With more channels than come in, ReLU, and the drops that draw nothing at a depth of 1/4."""
  generator = np.random.default_rng(0)
  x, embedding = generator.normal(size=(2, 3, 4, 8)), generator.normal(size=(2, 5))
  mode = Mode(row_keys(2))
  block = unet.ResidualBlock(12, PLAIN, 0.25, style(True)._replace(activation=activations.relu))
  given = jnp.asarray(x), jnp.asarray(embedding), mode
  shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), *given))
  variables = jax.tree.map(lambda p: generator.normal(size=p.shape), shapes)
  found = compiled(lambda v: block.apply(v, *given))(variables)
  p = variables['params']
  h = convolved(np.maximum(normalized(x, p['GroupNorm_0']), 0), p['conv_in'])
  h = h + (embedding @ p['embedding']['kernel'] + p['embedding']['bias'])[:, None, None]
  h = convolved(np.maximum(normalized(h, p['GroupNorm_1']), 0) + 1, p['conv_out'])
  shortcut = x @ p['shortcut']['kernel'] + p['shortcut']['bias']
  np.testing.assert_allclose(found, (shortcut + 1.25 * h) / 2**0.5, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('rescale', [False, True])
def test_attention_is_softmax_attention_over_pixels(rescale, x64):
  """Against NumPy: normalize by groups, project, softmax(q k^T / sqrt c) v, project, add."""
  generator = np.random.default_rng(0)
  x = generator.normal(size=(2, 3, 4, 12))
  attention = unet.Attention(style(rescale))
  start = compiled(lambda: attention.init(jax.random.key(0), jnp.asarray(x), Mode()))()
  apply = compiled(lambda variables, x: attention.apply(variables, x, Mode()))
  same = np.asarray(apply(start, x))
  np.testing.assert_allclose(same, x / (2**0.5 if rescale else 1), rtol=1e-6)  # zero at the start
  variables = perturbed(jax.tree.map(lambda p: p.astype(jnp.float64), start), 0.5)
  p = jax.tree.map(np.asarray, variables['params'])
  grouped = x.reshape(2, 12, 3, 4)  # three groups of four channels
  center = grouped.mean((1, 3), keepdims=True)
  normal = (grouped - center) / np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-6)
  normal = normal.reshape(2, 12, 12) * p['GroupNorm_0']['scale'] + p['GroupNorm_0']['bias']
  q = normal @ p['query']['kernel'] + p['query']['bias']
  k = normal @ p['key']['kernel']
  v = normal @ p['value']['kernel'] + p['value']['bias']
  logits = np.einsum('bic,bjc->bij', q, k) / np.sqrt(12)
  share = np.exp(logits - logits.max(-1, keepdims=True))
  share /= share.sum(-1, keepdims=True)
  mixed = (share @ v) @ p['out']['kernel'] + p['out']['bias']
  expected = (x + mixed.reshape(x.shape)) / (2**0.5 if rescale else 1)
  assert np.abs(mixed).max() > 0.1
  np.testing.assert_allclose(apply(variables, x), expected, atol=1e-10)


def test_group_sizes():
  for channels in range(1, 600):
    g = normalization.groups(channels)
    assert channels % g == 0
    assert g <= 32
    assert g == 1 or channels // g >= 4
    better = [n for n in range(g + 1, 33) if channels % n == 0 and channels // n >= 4]
    assert better == [], channels
  # DDPM's 32 groups wherever its network has 128 channels or more.
  assert [normalization.groups(c) for c in (128, 256, 384, 512)] == [32] * 4


@pytest.mark.parametrize(
  'arguments, names',
  [
    ({'width': 12}, 'width .* got 12'),
    ({'width': 0}, 'width .* got 0'),
    ({'multipliers': ()}, r'multipliers .* got \(\)'),
    ({'multipliers': (1, 0)}, 'multipliers .* got 0'),
    ({'multipliers': (1, 1.5)}, 'multipliers .* got 1.5'),
    ({'blocks': 0}, 'blocks .* got 0'),
    ({'dropout': 1.0}, 'dropout .* got 1.0'),
    ({'dropout': 1.2}, 'dropout .* got 1.2'),
    ({'dropout': -0.1}, 'dropout .* got -0.1'),
    ({'num_classes': -1}, 'num_classes .* got -1'),
  ],
)
def test_bad_arguments_are_named_with_their_value(arguments, names):
  with pytest.raises(ValueError, match=names):
    unet.unet(**arguments)


@pytest.mark.parametrize('shape', [(2, 6, 8, 2), (2, 8, 6, 2), (2, 8, 2), (2, 9, 9, 2)])
def test_an_image_that_cannot_be_halved_is_an_error_with_its_shape(shape):
  model = unet.unet(width=8, multipliers=(1, 1, 1), blocks=1, attention=())
  message = r'3 levels .* H and W divisible by 4, got ' + re.escape(str(shape))
  with pytest.raises(ValueError, match=message):
    model.init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(2), conditioning(2))
  whole = (jnp.zeros((2, 4, 12, 2)), jnp.zeros(2), conditioning(2))  # the least of them
  variables = jax.eval_shape(model.init, jax.random.key(0), *whole)
  with pytest.raises(ValueError, match=message):  # and when applied, as documented
    jax.eval_shape(model.apply, variables, jnp.zeros(shape), jnp.zeros(2), conditioning(2))
