"""The Inception-v3 of the FID, in JAX, with the standard weights read from a user's file.

The network is the one of the 2015-12-05 TensorFlow graph: average pools do not count the padding, and the last block
pools by maximum. Images are resized to 299 x 299 as TensorFlow 1 did it and scaled to (x - 128) / 128. That is what the
original FID and torch-fidelity do; pytorch-fid, whose file of weights is read, resizes with half-pixel centers and
scales to 2 x / 255 - 1, clean-fid resizes bicubically with antialiasing: their numbers of small images are others.
"""

import hashlib
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from diffusion import devices
from diffusion.evaluation import features as features_
from diffusion.evaluation import torch_files
from diffusion.evaluation.features import Features
from diffusion.models.convolution import Images
from diffusion.types import Array

SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
FILE = 'pt_inception-2015-12-05-6726825d.pth'
WIDTH = 2048
SIDE = 299
NOTE = 'images resized as TensorFlow 1 and torch-fidelity do, not as pytorch-fid or clean-fid'

# (layer, x, channels, kernel, stride = 1, padding = 'SAME') -> x: a convolution without bias, normalized by running
# statistics, and ReLU
Convolve = Callable[..., Images]
Weights = Mapping[str, tuple[Float[Array, 'kh kw i o'], Float[Array, ' o']]]


def features(path: str | pathlib.Path) -> Features:
  """The 2,048 pooled features of Inception-v3 with the standard weights, by which the FID is defined.

  Args:
    path: the published file pt_inception-2015-12-05-6726825d.pth (also named weights-inception-...).

  Raises:
    ValueError: a file with another checksum.
    OSError: the file cannot be read.

  Source: Szegedy et al. (2016) for the network; Heusel et al. (2017) for the features, and the resizing: that of
  TensorFlow 1, as theirs and torch-fidelity's, not pytorch-fid's or clean-fid's.
  """
  found = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
  if found != SHA256:
    raise ValueError(
      f'{path} has SHA-256 {found[:16]}..., the standard weights {FILE} have {SHA256[:16]}...: only those give an FID'
    )
  weights = prepare(torch_files.read(path))
  mapped: list = []  # made at the first call: factories touch no device

  def apply(x: features_.Shown) -> features_.Embedded:
    features_.check_examples(x)
    if refuses(x.shape[1:]):
      raise ValueError(refuses(x.shape[1:]))
    if not mapped:
      mapped.extend((devices.over_rows(pooled, 32), devices.replicate(weights)))
    function, shared = mapped
    return function(shared, x)

  return Features('inception-v3 pool', found[:8], WIDTH, apply, note=NOTE, refuses=refuses)


def refuses(shape: tuple[int, ...]) -> str:
  """Why there are no features of examples of this shape; '' where there are."""
  said = f'Inception takes images [H, W, 1 or 3], the data has {list(shape)}'
  return '' if len(shape) == 3 and shape[-1] in (1, 3) else said


def prepare(
  state: Mapping[str, Shaped[np.ndarray, '...']],
) -> dict[str, tuple[Float32[np.ndarray, 'kh kw i o'], Float32[np.ndarray, ' o']]]:
  """PyTorch's arrays as what the network multiplies and adds: layer -> (kernel, offset).

  The normalization by running statistics (epsilon 0.001) is folded into the kernel, in float64.

  Raises:
    ValueError: an array that is missing or has another shape, by name.
  """
  prepared = {}
  for layer, shape in layout().items():
    names = ('conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')
    parts = []
    for name in (f'{layer}.{name}' for name in names):
      wanted = shape if name.endswith('conv.weight') else shape[:1]
      got = state[name].shape if name in state else 'no such array'
      if got != wanted:
        raise ValueError(f'the Inception weights need {name} of shape {wanted}, the file has {got}')
      parts.append(state[name].astype(np.float64))
    kernel, scale, offset, mean, variance = parts
    gain = scale / np.sqrt(variance + 1e-3)
    prepared[layer] = (
      (kernel * gain[:, None, None, None]).transpose(2, 3, 1, 0).astype(np.float32),
      (offset - mean * gain).astype(np.float32),
    )
  return prepared


def layout() -> dict[str, tuple[int, int, int, int]]:
  """Layer -> shape (out, in, h, w) of its kernel in PyTorch's files: what the network asks for as it runs."""
  found = {}

  def record(layer, x, channels, kernel, stride=1, padding='SAME'):
    found[layer] = (channels, x.shape[-1], *kernel)
    return _convolution(x, jnp.zeros((*kernel, x.shape[-1], channels)), stride, padding)

  jax.eval_shape(lambda x: _network(record, x), jnp.zeros((1, SIDE, SIDE, 3)))
  return found


def pooled(weights: Weights, images: UInt8[Array, 'b h w c']) -> Float[Array, 'b 2048']:
  """Features of images of 1 or 3 channels, with `prepare`d weights."""

  def convolve(layer, x, channels, kernel, stride=1, padding='SAME'):
    factor, offset = weights[layer]
    return jax.nn.relu(_convolution(x, factor, stride, padding) + offset)

  x = jnp.broadcast_to(images, (*images.shape[:3], 3)).astype(jnp.float32)
  return _network(convolve, (resize(x, SIDE) - 128) / 128)


def _convolution(
  x: Images, kernel: Float[Array, 'kh kw c o'], stride: int, padding: str
) -> Float[Array, 'b oh ow o']:
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=jax.lax.Precision.HIGHEST,  # a GPU would round to ten bits
  )


def resize(x: Images, side: int) -> Float[Array, 'b {side} {side} c']:
  """Images in another size, bilinear as TensorFlow 1: output i reads the input at i n / side.

  That is neither half-pixel centers nor aligned corners; the last rows repeat the edge.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    place = np.arange(side, dtype=np.float64) * size / side
    low = place.astype(int)
    high = np.minimum(low + 1, size - 1)
    share = jnp.asarray(place - low, x.dtype).reshape([-1 if a == axis else 1 for a in range(4)])
    x = jnp.take(x, low, axis) * (1 - share) + jnp.take(x, high, axis) * share
  return x


def _average(x: Images) -> Images:
  """3 x 3 means, stride 1, the padding not counted."""
  add = lambda v: jax.lax.reduce_window(v, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), 'SAME')  # noqa: E731
  return add(x) / add(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def _maximum(x: Images, stride: int) -> Float[Array, 'b oh ow c']:
  """3 x 3 maxima: stride 2 within the image, or stride 1 keeping its size."""
  padding = 'VALID' if stride == 2 else 'SAME'
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding
  )


def _network(conv: Convolve, x: Images) -> Float[Array, 'b f']:
  x = conv('Conv2d_1a_3x3', x, 32, (3, 3), 2, 'VALID')
  x = conv('Conv2d_2a_3x3', x, 32, (3, 3), 1, 'VALID')
  x = conv('Conv2d_2b_3x3', x, 64, (3, 3))
  x = _maximum(x, 2)
  x = conv('Conv2d_3b_1x1', x, 80, (1, 1))
  x = conv('Conv2d_4a_3x3', x, 192, (3, 3), 1, 'VALID')
  x = _maximum(x, 2)
  for name, channels in (('Mixed_5b', 32), ('Mixed_5c', 64), ('Mixed_5d', 64)):
    x = _block_a(conv, name, x, channels)
  x = _block_b(conv, 'Mixed_6a', x)
  for letter, channels in zip('bcde', (128, 160, 160, 192), strict=True):
    x = _block_c(conv, f'Mixed_6{letter}', x, channels)
  x = _block_d(conv, 'Mixed_7a', x)
  x = _block_e(conv, 'Mixed_7b', x, _average)
  x = _block_e(conv, 'Mixed_7c', x, lambda v: _maximum(v, 1))
  return x.mean((1, 2))


def _chain(
  conv: Convolve, name: str, x: Images, *layers: tuple[int, tuple[int, int]]
) -> Float[Array, 'b oh ow o']:
  """Convolutions (channels, kernel) of stride 1 one after another, named name_1, name_2, ..."""
  for i, (channels, kernel) in enumerate(layers, 1):
    x = conv(f'{name}_{i}', x, channels, kernel)
  return x


def _block_a(conv: Convolve, name: str, x: Images, pool: int) -> Float[Array, 'b oh ow o']:
  one = conv(f'{name}.branch1x1', x, 64, (1, 1))
  five = _chain(conv, f'{name}.branch5x5', x, (48, (1, 1)), (64, (5, 5)))
  three = _chain(conv, f'{name}.branch3x3dbl', x, (64, (1, 1)), (96, (3, 3)), (96, (3, 3)))
  pooled = conv(f'{name}.branch_pool', _average(x), pool, (1, 1))
  return jnp.concatenate([one, five, three, pooled], -1)


def _block_b(conv: Convolve, name: str, x: Images) -> Float[Array, 'b oh ow o']:
  three = conv(f'{name}.branch3x3', x, 384, (3, 3), 2, 'VALID')
  double = _chain(conv, f'{name}.branch3x3dbl', x, (64, (1, 1)), (96, (3, 3)))
  double = conv(f'{name}.branch3x3dbl_3', double, 96, (3, 3), 2, 'VALID')
  return jnp.concatenate([three, double, _maximum(x, 2)], -1)


def _block_c(conv: Convolve, name: str, x: Images, channels: int) -> Float[Array, 'b oh ow o']:
  wide, tall, first = (channels, (1, 7)), (channels, (7, 1)), (channels, (1, 1))
  one = conv(f'{name}.branch1x1', x, 192, (1, 1))
  seven = _chain(conv, f'{name}.branch7x7', x, first, wide, (192, (7, 1)))
  double = _chain(conv, f'{name}.branch7x7dbl', x, first, tall, wide, tall, (192, (1, 7)))
  pooled = conv(f'{name}.branch_pool', _average(x), 192, (1, 1))
  return jnp.concatenate([one, seven, double, pooled], -1)


def _block_d(conv: Convolve, name: str, x: Images) -> Float[Array, 'b oh ow o']:
  three = conv(f'{name}.branch3x3_1', x, 192, (1, 1))
  three = conv(f'{name}.branch3x3_2', three, 320, (3, 3), 2, 'VALID')
  seven = _chain(conv, f'{name}.branch7x7x3', x, (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
  seven = conv(f'{name}.branch7x7x3_4', seven, 192, (3, 3), 2, 'VALID')
  return jnp.concatenate([three, seven, _maximum(x, 2)], -1)


def _block_e(
  conv: Convolve, name: str, x: Images, pool: Callable[[Images], Images]
) -> Float[Array, 'b oh ow o']:
  def split(branch: str, x: Images) -> list[Images]:
    return [conv(branch + 'a', x, 384, (1, 3)), conv(branch + 'b', x, 384, (3, 1))]

  one = conv(f'{name}.branch1x1', x, 320, (1, 1))
  three = conv(f'{name}.branch3x3_1', x, 384, (1, 1))
  double = _chain(conv, f'{name}.branch3x3dbl', x, (448, (1, 1)), (384, (3, 3)))
  parts = [*split(f'{name}.branch3x3_2', three), *split(f'{name}.branch3x3dbl_3', double)]
  pooled = conv(f'{name}.branch_pool', pool(x), 192, (1, 1))
  return jnp.concatenate([one, *parts, pooled], -1)
