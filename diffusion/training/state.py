"""All that a training run is, as one tree of arrays. What is not here or in a callback's state does not exist."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion import streams
from diffusion.types import (
  Array,
  Average,
  Conditioning,
  Diffusion,
  Model,
  Optimizer,
  Params,
  Term,
  Times,
  Variables,
)


class Parameters(NamedTuple):
  """Everything that is learned."""

  network: Params
  schedule: Params
  terms: dict[str, Params]


class TrainState(NamedTuple):
  """The state of a run between two steps.

  Attributes:
    seed: uint32, the root of every random stream.
    step: int32, batches on this trajectory; a rollback turns it back.
    cursor: int32, batches drawn so far; nothing turns it back.
    skipped: int32, steps left out because something was not finite.
    skipped_in_a_row: int32, of those the ones at the very end.
    params: what is learned.
    learning_rate_scale: a factor of the learning rate, which callbacks set.
    statistics: the network's other variables, e.g. batch-norm averages.
    judged_statistics: those of the judged weights, made before each validation.
    optimizer: the optimizer's state.
    averages: one state an average, by name.
    times: the state of the draw of t.
    window: sums of the metrics since the last logged step; see `training.step`.
  """

  seed: Array
  step: Array
  cursor: Array
  skipped: Array
  skipped_in_a_row: Array
  params: Parameters
  learning_rate_scale: Array
  statistics: Variables
  judged_statistics: Variables
  optimizer: Any
  averages: dict[str, Any]
  times: Any
  window: dict[str, Array]


def init_parameters(
  seed: int,
  model: Model,
  diffusion: Diffusion,
  terms: Mapping[str, Term],
  example: Array,
  augment_size: int = 0,
) -> tuple[Parameters, Variables]:
  """Parameters and other variables from the seed's 'init' stream.

  Args:
    seed: of the run.
    model, diffusion, terms: the pieces that may have parameters.
    example: one example in network units, with a batch axis: [1, ...].
    augment_size: numbers in an augmentation label.

  Returns:
    (parameters, statistics).
  """
  key = streams.stream(seed, 'init')
  conditioning = Conditioning(jnp.zeros(1, jnp.int32), jnp.zeros((1, augment_size), example.dtype))
  variables = model.init(key, example, jnp.zeros(1, example.dtype), conditioning)
  statistics = {name: value for name, value in variables.items() if name != 'params'}
  parameters = Parameters(
    variables['params'],
    diffusion.schedule.init(jax.random.fold_in(key, streams.tag('schedule'))),
    {n: t.init(jax.random.fold_in(key, streams.tag(f'term {n}'))) for n, t in terms.items()},
  )
  return parameters, statistics


def init_state(
  seed: int,
  parameters: Parameters,
  statistics: Variables,
  optimizer: Optimizer,
  averages: Mapping[str, Average],
  times: Times,
  window: dict[str, Array],
) -> TrainState:
  """The state before the first step. Every leaf has a buffer of its own, as donation demands."""
  zeros = [jnp.zeros((), jnp.int32) for _ in range(4)]
  return TrainState(
    jnp.asarray(seed, jnp.uint32),
    *zeros,
    params=parameters,
    learning_rate_scale=jnp.ones(()),
    statistics=statistics,
    judged_statistics=jax.tree.map(jnp.copy, statistics),
    optimizer=optimizer.init(parameters),
    averages={name: average.init(parameters) for name, average in averages.items()},
    times=times.init(),
    window=window,
  )
