"""Optimizers without their learning rate: gradient to direction, to be put into `chains.chain`."""

import jax
import optax

from diffusion import checks
from diffusion.citations import technique
from diffusion.types import Params

Direction = optax.GradientTransformation


def _check_decay(name: str, value: float) -> None:
  checks.in_range(name, value, 0, 1, ends='[)')


@technique('Adam', 'update', 'kingma2015adam')
def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
  """m_hat / (sqrt(v_hat) + eps), the moments m, v of the gradient with decays b1, b2, debiased.

  Args:
    b1, b2: in [0, 1).
    eps: > 0.

  Raises:
    ValueError: arguments out of range.

  Source: Kingma & Ba (2015), algorithm 1.
  """
  _check_decay('b1', b1)
  _check_decay('b2', b2)
  checks.positive('eps', eps)
  return optax.scale_by_adam(b1, b2, eps)


@technique('RMSprop', 'update', 'hinton2012rmsprop')
def rmsprop(decay: float = 0.9, eps: float = 1e-8) -> Direction:
  """g / (sqrt(v) + eps), v the second moment with this decay from zero, not debiased.

  Args:
    decay: in [0, 1).
    eps: > 0.

  Raises:
    ValueError: arguments out of range.

  Source: Hinton et al. (2012), lecture 6.
  """
  _check_decay('decay', decay)
  checks.positive('eps', eps)
  return optax.scale_by_rms(decay, eps, eps_in_sqrt=False)


@technique(
  'momentum', 'update', 'polyak1964methods', active=lambda decay: not checks.off(decay)
)  # fmt: skip
def momentum(decay: float = 0.9, nesterov: bool = False) -> Direction:
  """m <- decay m + g, and the direction is m; with `nesterov` decay m + g. Decay 0 is plain gradient descent.

  Args:
    decay: in [0, 1).
    nesterov: look ahead.

  Raises:
    ValueError: decay out of its range.

  Source: Polyak (1964); Nesterov's variant as in Sutskever et al. (2013).
  """
  _check_decay('decay', decay)
  return optax.identity() if checks.off(decay) else optax.trace(decay, nesterov)


@technique('Lion', 'update', 'chen2023lion')
def lion(b1: float = 0.9, b2: float = 0.99) -> Direction:
  """sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g: wants a rate three to ten times below Adam's.

  Args:
    b1, b2: in [0, 1).

  Raises:
    ValueError: arguments out of range.

  Source: Chen et al. (2023), algorithm 2.
  """
  _check_decay('b1', b1)
  _check_decay('b2', b2)
  return optax.scale_by_lion(b1, b2)


def _matrices(params: Params) -> Params:
  """How Muon sees each parameter: kernels as matrices of their inputs by outputs, None for the rest."""

  def dimensions(path, leaf):
    if not path or str(getattr(path[-1], 'key', '')) != 'kernel' or leaf.ndim < 2:
      return None
    axes = range(leaf.ndim)
    return optax.contrib.MuonDimensionNumbers(tuple(axes[:-1]), axes[-1])

  return jax.tree_util.tree_map_with_path(dimensions, params)


@technique('Muon', 'update', 'jordan2024muon')
def muon(beta: float = 0.95, b1: float = 0.9, b2: float = 0.999) -> Direction:
  """Kernels: the nearest orthogonal matrix of the momentum, by five Newton-Schulz steps; the rest: Nesterov's Adam.

  A convolution's kernel [h, w, in, out] is a matrix of h w in rows, which Optax by itself leaves to Adam.

  Args:
    beta: decay of the momentum, in [0, 1).
    b1, b2: of Adam, in [0, 1).

  Raises:
    ValueError: arguments out of range.

  Source: Jordan et al. (2024).
  """
  for name, given in (('beta', beta), ('b1', b1), ('b2', b2)):
    _check_decay(name, given)
  made = optax.contrib.muon(
    1.0, beta=beta, adam_b1=b1, adam_b2=b2, muon_weight_dimension_numbers=_matrices
  )
  return optax.chain(made, optax.scale(-1.0))


@technique('Prodigy', 'update', 'mishchenko2024prodigy')
def prodigy(b1: float = 0.9, b2: float = 0.999) -> Direction:
  """Adam with a step size d that grows to an estimate of the distance to the solution; its learning rate is 1.

  Args:
    b1, b2: in [0, 1).

  Raises:
    ValueError: arguments out of range.

  Source: Mishchenko & Defazio (2024), algorithm 4, as Optax has it: with Adam's bias correction in the step size, which
  the authors' package `prodigyopt` leaves out unless use_bias_correction=True, so that the first steps are not its.
  """
  _check_decay('b1', b1)
  _check_decay('b2', b2)
  return optax.chain(optax.contrib.prodigy(1.0, (b1, b2)), optax.scale(-1.0))
