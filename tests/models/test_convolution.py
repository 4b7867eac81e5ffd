"""The canonical convolution is the plain one: values, both gradients, and the form the gradients promise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffusion.models import convolution

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
SAME, DDPM, NONE = ((1, 1), (1, 1)), ((0, 1), (0, 1)), ((0, 0), (0, 0))
CASES = [  # taps, stride, sides, padding
  ((3, 3), 1, (8, 8), SAME),
  ((3, 3), 1, (7, 5), ((0, 2), (1, 0))),
  ((1, 1), 1, (4, 5), NONE),
  ((1, 1), 1, (4, 4), SAME),  # its input gradient crops: a negative padding
  ((2, 2), 1, (5, 6), DDPM),
  ((5, 2), 1, (7, 7), ((2, 2), (0, 1))),
  ((3, 3), 2, (8, 8), DDPM),
  ((3, 3), 2, (8, 6), SAME),
  ((3, 3), 2, (7, 5), SAME),
  ((3, 3), 2, (7, 9), NONE),
  ((2, 2), 2, (6, 7), NONE),
  ((1, 1), 2, (6, 5), NONE),
  ((4, 3), 2, (9, 8), ((1, 2), (0, 1))),
]


def convolve(x, kernel, stride, padding):
  return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


@pytest.mark.parametrize('taps, stride, sides, padding', CASES)
def test_canonical_equals_lax_in_value_and_in_both_gradients(taps, stride, sides, padding, x64):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, *sides, 3)))
  kernel = jnp.asarray(rng.normal(size=(*taps, 3, 4)))

  @jax.jit
  def both(x, kernel, g):
    ours, pull = jax.vjp(lambda *a: convolution.canonical(*a, (stride, stride), padding), x, kernel)
    theirs, pull_theirs = jax.vjp(lambda *a: convolve(*a, stride, padding), x, kernel)
    return (ours, *pull(g)), (theirs, *pull_theirs(g))

  shape = jax.eval_shape(lambda: convolve(x, kernel, stride, padding)).shape
  ours, theirs = both(x, kernel, jnp.asarray(rng.normal(size=shape)))
  for found, expected in zip(ours, theirs, strict=True):
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_convolution_is_a_sum_over_its_window(x64):
  """Against the definition in NumPy, so that the library is not its own witness."""
  rng = np.random.default_rng(1)
  x, kernel = rng.normal(size=(1, 5, 6, 2)), rng.normal(size=(3, 3, 2, 3))
  padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  expected = np.zeros((1, 2, 3, 3))
  for i in range(2):
    for j in range(3):
      window = padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
      expected[0, i, j] = np.einsum('hwc,hwco->o', window, kernel)
  found = convolution.canonical(jnp.asarray(x), jnp.asarray(kernel), (2, 2), DDPM)
  np.testing.assert_allclose(found[:, :2], expected, atol=1e-12)


def convolutions(function, platform, *arguments):
  """Each convolution in the program for a platform, as its text says what it does."""
  text = jax.export.export(jax.jit(function), platforms=[platform])(*arguments).mlir_module()
  return sorted(
    line.partition('stablehlo.convolution')[2].partition(')')[2].partition(' loc(')[0]
    for line in text.splitlines()
    if 'stablehlo.convolution' in line
  )


def gradient(apply, stride):
  def total(x, kernel):
    return (apply(x, kernel, (stride, stride), DDPM) ** 2).sum()

  return jax.grad(total, (0, 1))


@pytest.mark.parametrize('stride', [1, 2])
def test_gradients_are_plain_stride_one_convolutions_on_cpu(stride):
  """What makes them fast inside a loop there. The library's own are not, which is what the file is for."""
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

  def is_plain(one):
    # Strides and dilations of one are not written.
    unusual = ('stride =', 'lhs_dilate =', 'rhs_dilate =')
    return '[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]' in one and not any(u in one for u in unusual)

  ours = convolutions(gradient(convolution.canonical, stride), 'cpu', x, kernel)
  assert len(ours) == 3
  assert all(is_plain(one) for one in ours)
  library = gradient(lambda *a: convolution.plain(*a, dimension_numbers=LAYOUT), stride)
  assert not all(is_plain(one) for one in convolutions(library, 'cpu', x, kernel))


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize('stride', [1, 2])
def test_gradients_are_the_library_s_own_on_accelerators(stride, platform):
  """A vendor has kernels for those, and none for a window of the image's own size."""
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
  library = gradient(lambda *a: convolution.plain(*a, dimension_numbers=LAYOUT), stride)
  ours = convolutions(gradient(convolution.canonical, stride), platform, x, kernel)
  assert ours == convolutions(library, platform, x, kernel)
  assert len(ours) == 3


@pytest.mark.parametrize('stride', [1, 2])
def test_forward_mode_is_the_same_layer_with_a_jvp(stride, x64):
  rng = np.random.default_rng(2)
  x, direction = (jnp.asarray(a) for a in rng.normal(size=(2, 2, 6, 6, 3)))
  trained, forward = (
    convolution.conv(4, stride=stride, forward_mode=mode) for mode in (False, True)
  )
  variables = jax.jit(trained.init)(jax.random.key(0), x)
  shapes = jax.eval_shape(forward.init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
  g = jnp.asarray(rng.normal(size=(2, 6 // stride, 6 // stride, 4)))

  @jax.jit
  def both(x, direction, g):
    y, pull = jax.vjp(lambda x: trained.apply(variables, x), x)
    same, pushed = jax.jvp(lambda x: forward.apply(variables, x), (x,), (direction,))
    return y, same, pushed, pull(g)[0]

  y, same, pushed, pulled = (np.asarray(a) for a in both(x, direction, g))
  np.testing.assert_allclose(same, y, atol=1e-12)
  # <g, J d> = <J^T g, d>: the forward mode of one against the reverse mode of the other.
  np.testing.assert_allclose((g * pushed).sum(), (pulled * direction).sum(), rtol=1e-10)


def test_a_stride_two_layer_looks_at_its_pixel_and_the_two_after():
  """DDPM's padding: output i reads inputs 2i, 2i + 1 and 2i + 2, of which the last one may be the padding."""
  layer = convolution.conv(1, stride=2)
  variables = {'params': {'kernel': jnp.ones((3, 3, 1, 1)), 'bias': jnp.zeros(1)}}
  reads = jax.jit(jax.jacrev(lambda x: layer.apply(variables, x)))(jnp.ones((1, 6, 6, 1)))
  reads = np.asarray(reads).reshape(3, 3, 6, 6)
  for i in range(3):
    for j in range(3):
      expected = np.zeros((6, 6))
      expected[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] = 1
      np.testing.assert_array_equal(reads[i, j], expected)


def test_a_zero_layer_starts_at_zero_and_an_ordinary_one_at_unit_gain():
  x = jnp.asarray(np.random.default_rng(3).normal(size=(4, 16, 16, 32)), jnp.float32)
  zero, ordinary = (
    layer.init_with_output(jax.random.key(0), x)[0]
    for layer in (convolution.conv(64, kernel_init=nn.initializers.zeros), convolution.conv(64))
  )
  assert (np.asarray(zero) == 0).all()
  # LeCun: variance in = variance out; away from the border, where zeros are averaged in.
  assert abs(np.asarray(ordinary)[:, 1:-1, 1:-1].var() - 1) < 0.1


@pytest.mark.parametrize(
  'arguments, names',
  [
    ({'window_strides': (3, 3)}, r'\(3, 3\)'),
    ({'window_strides': (1, 2)}, r'\(1, 2\)'),
    # What nn.Conv passes for dilated and for grouped layers must not be dropped in silence.
    ({'window_strides': (1, 1), 'rhs_dilation': (2, 2)}, r'\(2, 2\)'),
    ({'window_strides': (1, 1), 'lhs_dilation': (2, 2)}, r'\(2, 2\)'),
    ({'window_strides': (1, 1), 'feature_group_count': 3}, '3'),
  ],
)
def test_what_is_not_supported_is_an_error_with_its_value(arguments, names):
  with pytest.raises(ValueError, match=names):
    convolution.canonical(jnp.ones((1, 6, 6, 3)), jnp.ones((3, 3, 3, 3)), padding=SAME, **arguments)
