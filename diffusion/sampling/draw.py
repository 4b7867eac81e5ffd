"""Samples from a network: its weights as a denoiser, and the compiled function that draws on all devices."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, Num

from diffusion import devices, rng
from diffusion.data import pipeline
from diffusion.process import gaussian
from diffusion.sampling import ensembles, samplers
from diffusion.sampling.plan import Sampling, plan
from diffusion.types import (
  Array,
  Condition,
  Conditioning,
  Denoiser,
  Diffusion,
  Examples,
  Keys,
  Model,
  Path,
  PerRow,
)

CHUNK = 128  # samples that a device draws at a time


def make_denoiser(
  model: Model,
  diffusion: Diffusion,
  path: Path,
  parameters: Any,
  statistics: Any,
  condition: Condition,
  **mode: bool,
) -> Denoiser:
  """The network with given weights as a denoiser; a key turns dropout on.

  Args:
    model, diffusion: what was trained.
    path: bound to the schedule's parameters.
    parameters, statistics: of the network.
    condition: of each example.
    **mode: with forward_mode=True it has a jvp, which likelihoods need.
  """
  batch_key = rng.stream(0, 'dropout')  # one draw for all samples, whatever the chunk

  def network(z: Examples, noise: PerRow, key: Keys | None) -> Examples:
    conditioning = Conditioning(condition, jnp.zeros((z.shape[0], 0), z.dtype))
    variables = {'params': parameters, **statistics}
    return model.apply(variables, z, noise, conditioning, keys=key, batch_key=batch_key, **mode)[0]

  return gaussian.denoiser(path, diffusion.parameterization, network)


def make_sample(
  model: Model,
  diffusion: Diffusion,
  sampling: Sampling,
  shape: tuple[int, ...],
  chunk: int = CHUNK,
  members: int = 0,
) -> Callable[..., Float[np.ndarray, ' n *shape']]:
  """Draws samples on all devices.

  Args:
    model, diffusion: what was trained.
    sampling: the plan.
    shape: of one sample.
    chunk: samples a device draws at a time.
    members: of an ensemble, whose parameters and statistics then come as tuples, one each; 0 for a single network.

  Returns:
    (replicated (parameters, statistics, sampler seed), condition, number [n]) -> samples [n, *shape] in network
    units; the parameters are a run's, with `network` and `schedule`. Sample `number` is a function of (weights, seed,
    number, condition) alone.

  Raises:
    ValueError: (when called) as `plan` does.
  """
  return devices.over_rows(on_a_device(model, diffusion, sampling, shape, members), chunk)


def on_a_device(
  model: Model, diffusion: Diffusion, sampling: Sampling, shape: tuple[int, ...], members: int = 0
) -> Callable[..., Examples]:
  """What `make_sample` does on each device: ((parameters, statistics, seed), condition, number [b]) -> [b, *shape].

  Args:
    model, diffusion, sampling, shape, members: see `make_sample`.
  """

  def denoiser(path: Path, parameters: Any, statistics: Any, condition: Condition) -> Denoiser:
    return make_denoiser(model, diffusion, path, parameters.network, statistics, condition)

  def draw(weights, condition: Condition, number: Integer[Array, ' b']) -> Examples:
    *networks, seed = weights
    networks = list(zip(*networks, strict=True)) if members else [networks]
    path = gaussian.bind(diffusion, networks[0][0].schedule)
    conditional, null = (
      ensembles.mean([denoiser(path, *one, told) for one in networks])
      if members
      else denoiser(path, *networks[0], told)
      for told in (condition, model.null(condition) if model.null else condition)
    )
    keys = rng.row_keys(rng.stream(seed, 'sampler'), number)
    planned = plan(sampling, path, conditional, null, keys, number)
    return samplers.sample(planned.denoise, path, planned.sampler, planned.grid, keys, shape)

  return draw


def class_labels(num_classes: int, per_class: int) -> Integer[np.ndarray, ' n']:
  """Labels 0, 1, ..., each `per_class` times in turn, row by row of a grid; one class where there is none."""
  return np.tile(np.arange(max(1, num_classes), dtype=np.int32), per_class)


def picture_labels(
  sampling: Sampling, levels: int | None, num_classes: int
) -> Integer[np.ndarray, ' n']:
  """Labels of the samples in a picture: `grid_rows` of each class for images, `per_class` for points of vectors.

  Args:
    sampling: the plan.
    levels: of the stored data; None for vectors.
    num_classes: 0 where nothing is labelled.
  """
  count = sampling.per_class if levels is None else min(sampling.grid_rows, sampling.per_class)
  return class_labels(num_classes, count)


def stored(
  sample: Callable[..., Float[np.ndarray, ' n *shape']], units: pipeline.NormalizationStatistics
) -> Callable[..., Num[np.ndarray, ' n *shape']]:
  """What `make_sample` makes, with samples as the data is stored: uint8 levels, or floats."""
  return lambda *given: pipeline.denormalize(sample(*given), units)
