"""The nouns of the codebase: what the rooms pass to each other. Annotations only, no code.

A component is a factory that returns a NamedTuple of pure functions. The tuples that belong to one room (`Schedule`,
`Model`, `Sampler`, ...) are here as well, so that a room can be read without opening another one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Float, Integer, Num
from jaxtyping import Key as KeyArray

# Axes are named alike everywhere: b rows of a batch, n examples, d dimensions, l noise levels, h w c of an image,
# *shape the axes of one example, whatever they are.
Array = jax.Array
AnyArray = jax.Array | np.ndarray  # on the devices or the host
Key = KeyArray[Array, '']
Keys = KeyArray[Array, ' b']  # one a row
Scalar = Float[Array, '']
Number = Scalar | float | np.floating
Whole = Integer[Array, ''] | int | np.integer
PerRow = Float[Array, ' b']  # a number a row, such as t, a log-SNR or a loss
Examples = Float[Array, ' b *shape']  # an example a row in network units, such as x0, eps or z
AnyShape = Float[Array, '*any']  # the same shape wherever a signature says it again
Params = Any
Variables = Any
Condition = Any  # a tree of arrays [n, ...] that data and networks alone look into; the plainest is a label, int32 [n]
NULL = -1  # the label that says nothing, whatever the number of classes
CrossMean = Callable[
  [Any], Any
]  # the mean of a tree over the devices of a run; the identity on one


class Batch(NamedTuple):
  """A batch on one device: x[B, ...] in network units, and what is known of each row."""

  x: Array
  condition: Condition
  augment_label: Array  # float [B, A]: what an augmentation did, zero at sampling; A may be 0
  index: Array  # int32 [B]: the example's row in its split


class Rows(NamedTuple):
  """Which rows of the global batch this device holds. All randomness is keyed by `index`."""

  index: Integer[Array, ' b']
  total: int  # rows of the global batch


class Conditioning(NamedTuple):
  """What the network is told beside the noise level."""

  condition: Condition
  augment: Array  # float [B, A]


class Marginal(NamedTuple):
  """z = alpha x0 + sigma eps, with eps ~ N(0, I)."""

  alpha: AnyShape
  sigma: AnyShape


class Prediction(NamedTuple):
  """What a network believes of a noised z: both halves of z = alpha x0 + sigma eps."""

  x0: Examples
  eps: Examples


class Schedule(NamedTuple):
  """`log_snr(params, t)`: t in [0, 1] to log(alpha^2 / sigma^2) in nats, finite and decreasing."""

  init: Callable[[Key], Params]  # () when nothing is learned
  log_snr: Callable[[Params, AnyShape], AnyShape]


Process = Callable[[AnyShape], Marginal]  # log-SNR -> (alpha, sigma), of the same shape


class Parameterization(NamedTuple):
  """What the network's output means. The marginal m is that of each row.

  Attributes:
    encode: (z, m) -> (network input, c_noise).
    decode: (output, z, m) -> both halves of z.
    target: (x0, eps, m) -> what the output should be.
  """

  encode: Callable[[Examples, Marginal], tuple[Examples, PerRow]]
  decode: Callable[[Examples, Examples, Marginal], Prediction]
  target: Callable[[Examples, Examples, Marginal], Examples]


class Diffusion(NamedTuple):
  """The three choices that define a diffusion model."""

  schedule: Schedule
  process: Process
  parameterization: Parameterization


class Path(NamedTuple):
  """A schedule and a process with their parameters bound."""

  log_snr: Callable[[AnyShape], AnyShape]
  slope: Callable[[AnyShape], AnyShape]  # d log_snr / dt, negative
  time: Callable[[AnyShape], AnyShape]  # the inverse of log_snr
  marginal: Callable[[AnyShape], Marginal]  # of t


class Denoiser(Protocol):
  """What answers a noised example with a prediction."""

  def __call__(
    self, z: Float[AnyArray, ' b *shape'], t: Float[AnyArray, ' b'], key: Keys | None = None
  ) -> Prediction:
    """Predicts x0 and eps.

    Args:
      z: noised examples.
      t: their times, in [0, 1].
      key: of the rows, which turn dropout on; None is evaluation.
    """


class Model(NamedTuple):
  """A network as two pure functions.

  `init(key, z, noise, conditioning) -> variables`, a dict with 'params' and, for batch norm, 'batch_stats'.
  `apply(variables, z, noise, conditioning, *, keys=None, batch_key=None, cross_mean=identity, update_statistics=False,
  statistics_decay=None, forward_mode=False) -> (output, statistics)`. Row keys [B] turn dropout on, `batch_key` is for
  drops that all rows share; `update_statistics` normalizes by the batch, over devices through `cross_mean`, and moves
  the running statistics, by `statistics_decay` where it is given; `forward_mode` uses operations that have a jvp (the
  canonical convolution has only a vjp). `null` makes of conditions those that say nothing; None where the network
  is told nothing in any case. `num_classes` are those of a network that is told a class label, else 0.
  """

  init: Callable[..., Variables]
  apply: Callable[..., tuple[Examples, Variables]]
  null: Callable[[Condition], Condition] | None = None
  num_classes: int = 0


class Context(NamedTuple):
  """All that a loss term may look at: the one network output of the step and what led to it."""

  params: Params  # the network's
  batch: Batch
  eps: Examples
  z: Examples
  t: PerRow
  log_snr: PerRow  # nats
  slope: PerRow  # d log_snr / dt, negative
  marginal: Marginal  # of each row
  prediction: Prediction
  predict: Callable[[Examples], Prediction]  # of another z at the same t; it has a jvp
  keys: Keys  # for the terms' own draws


class Term(NamedTuple):
  """A term of the loss. `apply(term_params, context)` is unreduced."""

  init: Callable[[Key], Params]
  apply: Callable[[Params, Context], PerRow]


class Times(NamedTuple):
  """How t is drawn. `draw(state, key, rows, progress, path) -> (t, importance weight)`."""

  init: Callable[[], Any]
  draw: Callable[[Any, Key, Rows, Number, Path], tuple[PerRow, PerRow]]
  update: Callable[[Any, PerRow, PerRow, CrossMean], Any]  # (state, t, loss, cross_mean) -> state


Augment = Callable[[Keys, Batch], Batch]


class Sampler(NamedTuple):
  """A reverse-time solver.

  Attributes:
    init: z -> state, whose first leaf is z.
    step: (denoise, keys, state, t, s) -> state, with s < t.
    grid: (path, steps) -> times that suit it, where a plan names none; uniform in t by default.
    fewest: steps below which its samples may be poor; a run that asks for fewer is told so.
    finish: what is done to the samples at the very end.
    of_rows: numbers of samples [b] -> the sampler for them, where it is another one for each.
  """

  init: Callable[[Examples], Any]
  step: Callable[[Denoiser, Keys, Any, PerRow, PerRow], Any]
  grid: Callable[[Path, int], Float[Array, ' l']] | None = None
  fewest: int = 1
  finish: Callable[[Examples], Examples] = lambda z: z
  of_rows: Callable[[Integer[Array, ' b']], 'Sampler'] | None = None


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
  learning_rate: Callable[[Any], Scalar]
  count: Callable[[Any], Integer[Array, '']]
  measure: Callable[[Any], dict[str, Scalar]] = lambda state: {}
  measured: tuple[str, ...] = ()
  read: Callable[[Any, Params], Params] = lambda state, params: params


class Curriculum(NamedTuple):
  """Which training examples are drawn, and how they look, as training goes on.

  Attributes:
    rank: (x as stored, label) -> a score of each example, easy ones low; None where order plays no part.
    share: progress in [0, 1] -> share of the examples, the easiest first, that may be drawn.
    transform: (batch, progress) -> batch.
  """

  rank: (
    Callable[[Num[np.ndarray, ' n *shape'], Integer[np.ndarray, ' n']], Num[np.ndarray, ' n']]
    | None
  )
  share: Callable[[Number], Number]
  transform: Callable[[Batch, Number], Batch]


class Average(NamedTuple):
  """An average of the parameters along the trajectory."""

  init: Callable[[Params], Any]
  update: Callable[[Any, Params], Any]
  read: Callable[[Any], Params]
