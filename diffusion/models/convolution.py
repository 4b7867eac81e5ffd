"""The one convolution of the codebase: on CPU its gradients are plain convolutions too.

XLA for CPU runs the gradient of a convolution many times slower inside a loop than outside it, which several steps
per dispatch and gradient accumulation would meet. There both gradients are written as ordinary stride-1 NHWC
convolutions, which are fast everywhere on CPU. On accelerators the gradients are the library's own, which it knows how
to hand to the vendor's kernels: one of the image's size as a window is not among them. Nothing is lost outside of
loops; a jvp is, so likelihoods ask for `plain`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from diffusion.types import Array

Images = Float[Array, 'b h w c']
Kernels = Float[Array, 'kh kw c o']
Convolved = Float[Array, 'b oh ow o']
Padding = tuple[tuple[int, int], tuple[int, int]]
_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def _convolve(
  x: Images, kernel: Kernels, padding: Padding, strides: tuple[int, int] = (1, 1)
) -> Convolved:
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _gradients(
  x: Images, kernel: Kernels, g: Convolved, padding: Padding
) -> tuple[Images, Kernels]:
  """Those of a stride-1 convolution for x and kernel, as stride-1 convolutions."""
  # dx: g convolved with the kernel turned by half a turn, in and out exchanged.
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  rest = tuple((k - 1 - a, k - 1 - b) for k, (a, b) in zip(kernel.shape, padding, strict=False))
  dx = _convolve(g, turned, rest)
  # dw: x with channels as its batch, convolved with g as a kernel of the images' own size.
  dw = _convolve(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), padding)
  return dx, dw.transpose(1, 2, 0, 3)


def _halved(
  x: Images, kernel: Kernels, padding: Padding
) -> tuple[Float[Array, 'b hh hw cc'], Float[Array, 'hkh hkw cc o']]:
  """A stride-2 convolution as a stride-1 one on 2x2 blocks: pads, then moves each block into channels."""
  taps = kernel.shape[:2]
  size = tuple(k + k % 2 for k in taps)  # an even kernel, the new taps zero
  kernel = jnp.pad(kernel, [*((0, s - k) for s, k in zip(size, taps, strict=True)), (0, 0), (0, 0)])
  sides = []
  for axis, (before, after) in enumerate(padding):
    length = x.shape[1 + axis]
    out = (length + before + after - taps[axis]) // 2 + 1
    # Up to the (even) end of the last window: what lies beyond it is never looked at.
    sides.append((before, 2 * (out - 1) + size[axis] - length - before))
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((a, b, 0) for a, b in sides), (0, 0, 0)])
  b, h, w, c = x.shape
  x = (
    x.reshape(b, h // 2, 2, w // 2, 2, c)
    .transpose(0, 1, 3, 2, 4, 5)
    .reshape(b, h // 2, w // 2, 4 * c)
  )
  kh, kw, _, o = kernel.shape
  kernel = kernel.reshape(kh // 2, 2, kw // 2, 2, c, o).transpose(0, 2, 1, 3, 4, 5)
  return x, kernel.reshape(kh // 2, kw // 2, 4 * c, o)


@functools.cache  # one function for all layers alike, so that JAX traces each shape once
def _by_platform(
  strides: tuple[int, int], padding: Padding
) -> Callable[[Images, Kernels], Convolved]:
  """(x, kernel) -> convolution; the platform that a program is lowered for chooses its form, there and back."""

  def blocks(
    x: Images, kernel: Kernels
  ) -> tuple[Float[Array, 'b hh hw cc'], Float[Array, 'hkh hkw cc o']]:
    return (x, kernel) if strides == (1, 1) else _halved(x, kernel, padding)

  inner = padding if strides == (1, 1) else ((0, 0), (0, 0))

  def elsewhere(x: Images, kernel: Kernels) -> Convolved:
    return _convolve(x, kernel, padding, strides)

  def gradients_on_cpu(x: Images, kernel: Kernels, g: Convolved) -> tuple[Images, Kernels]:
    given, pull = jax.vjp(blocks, x, kernel)
    return pull(_gradients(*given, g, inner))

  def gradients_elsewhere(x: Images, kernel: Kernels, g: Convolved) -> tuple[Images, Kernels]:
    to_x = jax.linear_transpose(lambda x: elsewhere(x, kernel), x)
    to_kernel = jax.linear_transpose(lambda kernel: elsewhere(x, kernel), kernel)
    return *to_x(g), *to_kernel(g)

  @jax.custom_vjp
  def convolve(x: Images, kernel: Kernels) -> Convolved:
    def on_cpu(x: Images, kernel: Kernels) -> Convolved:
      return _convolve(*blocks(x, kernel), inner)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)

  def forward(x, kernel):
    return convolve(x, kernel), (x, kernel)

  def backward(residuals, g):
    return lax.platform_dependent(*residuals, g, cpu=gradients_on_cpu, default=gradients_elsewhere)

  convolve.defvjp(forward, backward)
  return convolve


def canonical(
  x: Images,
  kernel: Kernels,
  window_strides: Sequence[int],
  padding: Padding,
  *,
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  feature_group_count: int = 1,
  **unused: Any,
) -> Convolved:
  """The convolution x * kernel with canonical gradients.

  The signature is that of `lax.conv_general_dilated`, so that `nn.Conv(conv_general_dilated=canonical)` takes it.

  Args:
    x: images, or maps of features.
    kernel: of kh x kw taps.
    window_strides: (1, 1) or (2, 2).
    padding: rows and columns of zeros (before, after) each axis.
    lhs_dilation, rhs_dilation: None or (1, 1).
    feature_group_count: 1.
    **unused: what `nn.Conv` gives beside them: the layout, which is NHWC, and the precision.

  Raises:
    ValueError: strides other than 1 or 2, dilation or groups, which nothing here uses.
  """
  for name, value in (('lhs_dilation', lhs_dilation), ('rhs_dilation', rhs_dilation)):
    if value is not None and tuple(value) != (1, 1):
      raise ValueError(f'{name} must be (1, 1), got {tuple(value)}')
  if feature_group_count != 1:
    raise ValueError(f'feature_group_count must be 1, got {feature_group_count}')
  strides = tuple(window_strides)
  if strides not in ((1, 1), (2, 2)):
    raise ValueError(f'window_strides must be (1, 1) or (2, 2), got {strides}')
  return _by_platform(strides, tuple((int(a), int(b)) for a, b in padding))(x, kernel)


def plain(
  x: Images, kernel: Kernels, window_strides: Sequence[int], padding: Padding, **rest: Any
) -> Convolved:
  """`lax.conv_general_dilated` itself: the numbers of `canonical`, with a jvp.

  Args:
    x: images, or maps of features.
    kernel: of kh x kw taps.
    window_strides: of the rows and the columns.
    padding: rows and columns of zeros (before, after) each axis.
    **rest: as there.
  """
  return lax.conv_general_dilated(x, kernel, window_strides, padding, **rest)


def conv(
  features: int,
  *,
  stride: int = 1,
  kernel_init: Callable[..., Kernels] | None = None,
  forward_mode: bool = False,
  name: str | None = None,
) -> nn.Conv:
  """A 3x3 `nn.Conv` through the canonical convolution.

  Args:
    features: output channels.
    stride: 1, or 2 with DDPM's padding (nothing before, one after).
    kernel_init: of the kernel; LeCun's by default.
    forward_mode: use the plain convolution, which has a jvp.
    name: the Linen name.
  """
  return nn.Conv(
    features,
    (3, 3),
    strides=(stride, stride),
    padding=((1, 1), (1, 1)) if stride == 1 else ((0, 1), (0, 1)),
    kernel_init=kernel_init or nn.initializers.lecun_normal(),
    conv_general_dilated=plain if forward_mode else canonical,
    name=name,
  )
