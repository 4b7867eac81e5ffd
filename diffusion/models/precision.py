"""The arithmetic a network computes in: a wrapper of models."""

from typing import Any

import jax
import jax.numpy as jnp

from diffusion.citations import technique
from diffusion.types import Conditioning, Examples, Model, PerRow, Variables


@technique('bfloat16 arithmetic', 'network', 'micikevicius2018mixed', 'kalamkar2019study')
def bfloat16(model: Model) -> Model:
  """The model with activations and products in bfloat16; parameters, sums of norms and softmax, and loss in float32.

  Halves the memory of activations and uses the matrix units of GPUs and TPUs. The noise level's features stay in
  float32, whose finest ones bfloat16 cannot tell apart. Gradients reach the parameters as float32; their scale needs no
  care, because bfloat16 has float32's range.

  Args:
    model: any network of this project.

  Source: Micikevicius et al. (2018), section 3.1, for the float32 parameters; Kalamkar et al. (2019) for bfloat16
  without a scale of the loss.
  """

  def narrow(tree: Any) -> Any:
    return jax.tree.map(
      lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )

  def apply(
    variables: Variables, z: Examples, noise: PerRow, conditioning: Conditioning, **options: Any
  ) -> tuple[Examples, Variables]:
    variables = {**variables, 'params': narrow(variables['params'])}
    output, statistics = model.apply(variables, narrow(z), noise, narrow(conditioning), **options)
    return output.astype(z.dtype), statistics

  return model._replace(apply=apply)
