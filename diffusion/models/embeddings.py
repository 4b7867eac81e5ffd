"""Embeddings of what the network is told: the noise level and the label."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from diffusion.models.activations import Activation
from diffusion.types import Array, Conditioning, PerRow


def fourier(
  noise: PerRow, features: int, low: float = 1 / 16, high: float = 16.0
) -> Float[Array, 'b {features}']:
  """cos and sin of 2 pi f c at frequencies f spaced geometrically from `low` to `high`.

  The finest period, 1 / high in c = log(sigma / alpha) / 4, is half a nat of log-SNR: features smoother than
  DDPM's, whose fastest ones are noise for a continuous time.

  Args:
    noise: c_noise.
    features: an even number.
    low, high: the least and the greatest frequency, > 0.

  Raises:
    ValueError: an odd number of features.

  Source: Vaswani et al. (2017), section 3.5, with the range of frequencies fitted to c_noise.
  """
  if features % 2:
    raise ValueError(f'features must be even, got {features}')
  frequencies = jnp.geomspace(low, high, features // 2)
  angle = 2 * jnp.pi * noise[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class ConditioningEmbedding(nn.Module):
  """An MLP of the noise level's features, plus a learned vector a class and a linear map of the augmentation label.

  The last class vector is that of the null class.

  Attributes:
    features: width of the result.
    num_classes: classes without the null one; 0 for an unconditional network.
    activation: of the MLP.

  Source: Ho et al. (2020), appendix B, for the noise; Ho & Salimans (2022) for the null class; Karras et al. (2022), in
  their released networks, for the initial scale of the class vectors.
  """

  features: int
  num_classes: int
  activation: Activation = nn.silu

  @nn.compact
  def __call__(
    self, noise: PerRow, conditioning: Conditioning
  ) -> Float[Array, 'b {self.features}']:
    """The embedding of c_noise, labels and augmentation labels."""
    label, augment = conditioning  # a class label, or nothing to look at
    hidden = nn.Dense(self.features)(fourier(noise, self.features // 4))
    embedding = nn.Dense(self.features)(self.activation(hidden))
    if self.num_classes:
      # Unit variance, as loud as the noise level from the first step (EDM's initialization); Flax's default
      # starts at 1 / sqrt(features), and the label is ignored for thousands of steps.
      table = nn.Embed(
        self.num_classes + 1, self.features, embedding_init=nn.initializers.normal(1.0)
      )
      embedding += table(label % (self.num_classes + 1))  # NULL = -1 is the last row
    if augment.shape[1]:  # without a bias: label zero, which sampling uses, is no label at all
      embedding += nn.Dense(self.features, use_bias=False, name='augment')(augment)
    return self.activation(embedding)
