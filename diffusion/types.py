"""The nouns of the codebase: what the rooms pass to each other. Annotations only, no code.

A component is a factory that returns a NamedTuple of pure functions. The tuples that belong to one room (`Schedule`,
`Model`, `Sampler`, ...) are here as well, so that a room can be read without opening another one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Key = jax.Array  # a typed key, or an array of them: one a row
Params = Any
Variables = Any
NULL = -1  # the label that says nothing, whatever the number of classes
CrossMean = Callable[
  [Any], Any
]  # the mean of a tree over the devices of a run; the identity on one


class Batch(NamedTuple):
  """A batch on one device: x[B, ...] in network units, and what is known of each row."""

  x: Array
  label: Array  # int32 [B]; NULL is the null label
  augment_label: Array  # float [B, A]: what an augmentation did, zero at sampling; A may be 0
  index: Array  # int32 [B]: the example's row in its split


class Rows(NamedTuple):
  """Which rows of the global batch this device holds. All randomness is keyed by `index`."""

  index: Array  # int32 [B]
  total: int  # rows of the global batch


class Conditioning(NamedTuple):
  """What the network is told beside the noise level."""

  label: Array  # int32 [B]; NULL is the null label
  augment: Array  # float [B, A]


class Marginal(NamedTuple):
  """z = alpha x0 + sigma eps, with eps ~ N(0, I)."""

  alpha: Array
  sigma: Array


class Prediction(NamedTuple):
  """What a network believes of a noised z: both halves of z = alpha x0 + sigma eps."""

  x0: Array
  eps: Array


class Schedule(NamedTuple):
  """`log_snr(params, t)`: t in [0, 1] to log(alpha^2 / sigma^2) in nats, finite and decreasing."""

  init: Callable[[Key], Params]  # () when nothing is learned
  log_snr: Callable[[Params, Array], Array]


Process = Callable[[Array], Marginal]  # log-SNR -> (alpha, sigma), of the same shape


class Parameterization(NamedTuple):
  """What the network's output means. z is [B, ...]; the marginal's arrays are [B]."""

  encode: Callable[[Array, Marginal], tuple[Array, Array]]  # (z, m) -> (network input, c_noise [B])
  decode: Callable[[Array, Array, Marginal], Prediction]  # (output, z, m)
  target: Callable[[Array, Array, Marginal], Array]  # (x0, eps, m) -> what the output should be


class Diffusion(NamedTuple):
  """The three choices that define a diffusion model."""

  schedule: Schedule
  process: Process
  parameterization: Parameterization


class Path(NamedTuple):
  """A schedule and a process with their parameters bound."""

  log_snr: Callable[[Array], Array]
  slope: Callable[[Array], Array]  # d log_snr / dt, negative
  time: Callable[[Array], Array]  # the inverse of log_snr
  marginal: Callable[[Array], Marginal]  # of t


class Denoiser(Protocol):
  """(z [B, ...], t [B], key=None) -> Prediction. Row keys [B] turn dropout on."""

  def __call__(self, z: Array, t: Array, key: Key | None = None) -> Prediction:
    """Predicts x0 and eps."""
    ...


class Model(NamedTuple):
  """A network as two pure functions.

  `init(key, z, noise, conditioning) -> variables`, a dict with 'params' and, for batch norm, 'batch_stats'.
  `apply(variables, z, noise, conditioning, *, keys=None, batch_key=None, cross_mean=identity, update_statistics=False,
  statistics_decay=None, forward_mode=False) -> (output, statistics)`. Row keys [B] turn dropout on, `batch_key` is for
  drops that all rows share; `update_statistics` normalizes by the batch, over devices through `cross_mean`, and moves
  the running statistics, by `statistics_decay` where it is given; `forward_mode` uses operations that have a jvp (the
  canonical convolution has only a vjp). `num_classes` is 0 for an unconditional network.
  """

  init: Callable[..., Variables]
  apply: Callable[..., tuple[Array, Variables]]
  num_classes: int = 0


class Context(NamedTuple):
  """All that a loss term may look at: the one network output of the step and what led to it."""

  params: Params  # the network's
  batch: Batch
  eps: Array
  z: Array
  t: Array
  log_snr: Array  # [B]
  slope: Array  # d log_snr / dt [B], negative
  marginal: Marginal
  prediction: Prediction
  predict: Callable[[Array], Prediction]  # of another z at the same t; it has a jvp
  keys: Key  # one a row, for the terms' own draws


class Term(NamedTuple):
  """A term of the loss. `apply(term_params, context) -> [B]`, unreduced."""

  init: Callable[[Key], Params]
  apply: Callable[[Params, Context], Array]


class Times(NamedTuple):
  """How t is drawn. `draw(state, key, rows, progress, path) -> (t [B], importance weight [B])`."""

  init: Callable[[], Any]
  draw: Callable[[Any, Key, Rows, Array, Path], tuple[Array, Array]]
  update: Callable[[Any, Array, Array, CrossMean], Any]  # (state, t, loss [B], cross_mean) -> state


Augment = Callable[[Key, Batch], Batch]  # row keys [B]


class Sampler(NamedTuple):
  """A reverse-time solver. `step(denoise, keys, state, t, s) -> state` with s < t; the state's first leaf is z."""

  init: Callable[[Array], Any]
  step: Callable[[Denoiser, Key, Any, Array, Array], Any]


class Optimizer(NamedTuple):
  """An Optax transformation that can be looked into.

  Attributes:
    init, update: as in Optax; `update` takes `learning_rate=` in place of its schedule's.
    learning_rate: of the next update by its schedule, from the state.
    count: updates so far, from the state.
    measure: state -> numbers of the last update to log; their names are `measured`.
    measured: names.
    read: (state, parameters) -> the parameters to evaluate, where the optimizer keeps an average of its own.
  """

  init: Callable[[Params], Any]
  update: Callable[..., tuple[Any, Any]]
  learning_rate: Callable[[Any], Array]
  count: Callable[[Any], Array]
  measure: Callable[[Any], dict[str, Array]] = lambda state: {}
  measured: tuple[str, ...] = ()
  read: Callable[[Any, Params], Params] = lambda state, params: params


class Curriculum(NamedTuple):
  """Which training examples are drawn, and how they look, as training goes on.

  Attributes:
    rank: (x as stored [n, ...], label [n]) -> a score of each example, easy ones low; None where order plays no part.
    share: progress in [0, 1] -> share of the examples, the easiest first, that may be drawn.
    transform: (batch, progress) -> batch.
  """

  rank: Callable[[Any, Any], Any] | None
  share: Callable[[Array], Array]
  transform: Callable[[Batch, Array], Batch]


class Average(NamedTuple):
  """An average of the parameters along the trajectory."""

  init: Callable[[Params], Any]
  update: Callable[[Any, Params], Any]
  read: Callable[[Any], Params]
