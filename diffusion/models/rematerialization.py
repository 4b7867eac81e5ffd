"""Memory for time: what a network computes forward is computed again on the way back."""

from typing import Any

import jax

from diffusion.citations import technique
from diffusion.models.functional import BLOCK
from diffusion.types import Conditioning, Examples, Model, PerRow, Variables


@technique('rematerialization', 'network', 'chen2016training')
def rematerialize(model: Model) -> Model:
  """The model that keeps for its gradient what each block hands on, and computes the inside of blocks twice.

  Values and gradients are the same, to rounding: dropout draws the same masks again. The memory of activations falls to
  that of the blocks' outputs and of one block; a training step costs one more forward pass, a third. It is for GPU and
  TPU: XLA's CPU compiler finds the second computation equal to the first and removes it, with the saving.

  Args:
    model: any network of this project.

  Source: Chen et al. (2016), section 4.1.
  """
  keep = jax.checkpoint_policies.save_only_these_names(BLOCK)

  def apply(
    variables: Variables, z: Examples, noise: PerRow, conditioning: Conditioning, **options: Any
  ) -> tuple[Examples, Variables]:
    def one(variables: Variables, z: Examples, noise: PerRow) -> tuple[Examples, Variables]:
      return model.apply(variables, z, noise, conditioning, **options)

    return jax.checkpoint(one, policy=keep)(variables, z, noise)

  return model._replace(apply=apply)
