"""A residual MLP for vectors."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Float

from diffusion import checks
from diffusion.citations import technique
from diffusion.models import activations, initializers, normalization
from diffusion.models import dropout as dropouts
from diffusion.models.activations import Activation
from diffusion.models.dropout import Drop, Dropout
from diffusion.models.embeddings import ConditioningEmbedding
from diffusion.models.functional import Mode, block_output, from_linen
from diffusion.models.initializers import Initializer
from diffusion.models.normalization import Norm
from diffusion.types import Array, Conditioning, Model, PerRow


class ResidualMLP(nn.Module):
  """See `mlp`."""

  width: int
  depth: int
  drops: tuple[Drop, ...]
  num_classes: int
  norm: Norm
  activation: Activation
  kernel_init: Initializer
  output_init: Initializer

  @nn.compact
  def __call__(
    self, z: Float[Array, ' b *shape'], noise: PerRow, conditioning: Conditioning, mode: Mode
  ) -> Float[Array, ' b *shape']:
    """The network's output.

    Args:
      z: noised examples.
      noise: c_noise of each.
      conditioning: what it is told beside the noise level.
      mode: how it is applied.
    """
    shape, z = z.shape, z.reshape(len(z), -1)
    embedding = ConditioningEmbedding(self.width, self.num_classes, self.activation)(
      noise, conditioning
    ).astype(z.dtype)

    def dense(name: str | None = None) -> nn.Dense:
      return nn.Dense(self.width, kernel_init=self.kernel_init, name=name)

    h = dense('stem')(Dropout(self.drops, 'input', name='input')(z, mode.keys))
    for i in range(self.depth):
      r = dense()(self.activation(self.norm(h, mode))) + dense()(embedding)
      r = Dropout(self.drops)(self.activation(r), mode.keys)
      r = nn.Dense(self.width, kernel_init=self.output_init)(r)
      h += Dropout(self.drops, 'branch', (i + 1) / self.depth, name=f'branch_{i}')(r, mode.keys)
      h = block_output(h)
    h = self.activation(self.norm(h, mode))
    return nn.Dense(z.shape[-1], kernel_init=self.output_init, name='output')(h).reshape(shape)


@technique('residual MLP', 'core', 'he2016residual')
def mlp(
  width: int = 128,
  depth: int = 3,
  dropout: float = 0.0,
  num_classes: int = 0,
  *,
  drops: Sequence[Drop] = (),
  norm: Norm | None = None,
  activation: Activation | None = None,
  kernel_init: Initializer | None = None,
  zero_outputs: bool = True,
) -> Model:
  """A residual network of `depth` blocks of two dense layers, with the noise level added inside each block.

  Args:
    width: hidden units, a positive multiple of 8.
    depth: residual blocks.
    dropout: rate before the second dense layer of a block, in [0, 1).
    num_classes: classes of a class-conditional network, which has a null class beside them, or 0.
    drops: more of the dropout family, from `models.dropout`.
    norm: from `models.normalization`; layer normalization by default.
    activation: from `models.activations`; SiLU by default.
    kernel_init: from `models.initializers`; LeCun's by default.
    zero_outputs: start the last layer of every block and of the network at zero.

  Returns:
    A Model of z [b, ...], which it takes as vectors; its output is zero at initialization, if `zero_outputs`.

  Raises:
    ValueError: an argument out of its range.
  """
  checks.integer('width', width)
  if width % 8:
    raise ValueError(
      f'width must be a multiple of 8 (noise features are a quarter of it), got {width}'
    )
  checks.integer('depth', depth)
  checks.integer('num_classes', num_classes, 0)
  init = kernel_init or initializers.lecun()
  module = ResidualMLP(
    width=width,
    depth=depth,
    drops=(dropouts.elements(dropout), *drops),
    num_classes=num_classes,
    norm=norm or normalization.layer(),
    activation=activation or activations.silu,
    kernel_init=init,
    output_init=initializers.zeros if zero_outputs else init,
  )
  return from_linen(module, num_classes, drops)
