"""Ensembles of denoisers: their mean is a denoiser, and their disagreement a measure of what is not known."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Array, Denoiser, Examples, Keys, PerRow, Prediction


def _stacked(
  members: Sequence[Denoiser], z: Examples, t: PerRow, key: Keys | None
) -> tuple[Float[Array, ' m b *shape'], Float[Array, ' m b *shape']]:
  return jax.tree.map(lambda *p: jnp.stack(p), *(member(z, t, key) for member in members))


@technique('ensemble of denoisers', 'sampling', 'lakshminarayanan2017simple')
def mean(members: Sequence[Denoiser]) -> Denoiser:
  """The mean of the members' predictions, x0 and eps alike (both are linear in each other at given z and t).

  Args:
    members: at least one.

  Raises:
    ValueError: no member.

  Source: Lakshminarayanan et al. (2017), section 2.4, for regression.
  """
  if not members:
    raise ValueError('an ensemble needs at least one member')

  def denoise(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    return jax.tree.map(lambda p: p.mean(0), _stacked(members, z, t, key))

  return denoise


def disagreement(members: Sequence[Denoiser], z: Examples, t: PerRow) -> PerRow:
  """The members' variance of eps, the mean over dimensions.

  The mean of the members' eps-losses is the ensemble's eps-loss plus this, exactly.

  Args:
    members: at least two.
    z: noised examples.
    t: their times, in [0, 1].

  Raises:
    ValueError: fewer than two members.

  Source: Krogh & Vedelsby (1995), equation 6.
  """
  checks.integer('members', len(members), 2)
  eps = _stacked(members, z, t, None).eps
  return eps.var(0).mean(tuple(range(1, z.ndim)))


@technique(
  'Monte-Carlo dropout', 'sampling', 'gal2016dropout', active=lambda draws: not checks.off(draws)
)  # fmt: skip
def monte_carlo(denoise: Denoiser, keys: Keys | None, draws: int) -> Denoiser:
  """The mean of `draws` thinned networks; each keeps what it dropped throughout all steps of a sample.

  With one draw a sample comes from one thinned network, so samples of one starting noise show what the weights do not
  determine. What DropConnect drops is the same in all draws.

  Args:
    denoise: a denoiser whose network has dropout.
    keys: one a sample; None without draws.
    draws: >= 0; 0 is off.

  Raises:
    ValueError: a negative number.

  Source: Gal & Ghahramani (2016), section 3.
  """
  checks.integer('monte_carlo', draws, 0)
  if not draws:
    return denoise

  def thinned(z: Examples, t: PerRow, key: Keys | None = None) -> Prediction:
    def one(i: int) -> Prediction:
      return denoise(z, t, jax.vmap(jax.random.fold_in, (0, None))(keys, i))

    return jax.tree.map(lambda *p: sum(p) / draws, *(one(i) for i in range(draws)))

  return thinned
