"""Likelihood of held-out data, beside that of training data."""

import math
from typing import Any

import numpy as np
from jaxtyping import Num

from diffusion import checks, conditions, statistics
from diffusion.evaluation.metric import (
  Metric,
  MetricInputs,
  MetricResult,
  Query,
  check_network,
)
from diffusion.sampling import likelihood as likelihoods
from diffusion.types import Condition

_BITS = 'bits/dim'


def likelihood(limit: int = 1000, draws: int = 64, steps: int | None = None) -> Metric:
  """The variational bound in bits a dimension, of validation, test and training examples, without guidance.

  For stored levels it bounds the probability of the levels, and what a uniform distribution over them takes stands
  beside it, log2 of their number; for continuous data it bounds the density.

  Args:
    limit: examples of each, evenly taken, >= 2.
    draws: noise levels an example, >= 1.
    steps: T of the discrete-time bound; None for continuous time.

  Raises:
    ValueError: arguments out of range.

  Source: Kingma et al. (2021); see `sampling.likelihood.bound`.
  """
  checks.integer('limit', limit, 2)
  checks.integer('draws', draws)
  if steps is not None:
    checks.integer('steps', steps)

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    def rows(query: Query, shared: Any):
      return likelihoods.bound(
        query.denoise,
        query.path,
        query.x,
        query.keys,
        levels=inputs.units.levels,
        support=inputs.units.range,
        steps=steps,
        draws=draws,
      )

    found = []
    time = 'continuous time' if steps is None else f'{steps} steps'
    for name, (x, condition) in _splits(inputs).items():
      chosen = np.linspace(0, len(x) - 1, min(limit, len(x))).round().astype(int)
      parts = inputs.network.apply(rows, x[chosen], conditions.take(condition, chosen))
      total, *each = (
        likelihoods.bits_per_dim(np.asarray(part, np.float64), x[0].size)
        for part in (parts.total, *parts)
      )
      shares = {n: v.mean() for n, v in zip(parts._fields, each, strict=True)}
      if inputs.units.levels is None:  # the density of the stored numbers, not of the standardized
        shares['units'] = math.log2(inputs.units.deviation)
        total = total + shares['units']
      said = ', '.join(f'{n} {v:.4f}' for n, v in shares.items())
      meaning = f'bound of {len(chosen)} examples, {time}: {said}'
      value = statistics.mean_t(total)
      found.append(MetricResult(f'{name} bits/dim', value, meaning, unit=_BITS, better='lower'))
    if inputs.units.levels is not None:
      levels = inputs.units.levels
      meaning = f'of a uniform distribution over the {levels} levels: a model that knows nothing'
      found.append(MetricResult('uniform bits/dim', math.log2(levels), meaning, unit=_BITS))
    return found

  return Metric(check_network, measure)


def _splits(inputs: MetricInputs) -> dict[str, tuple[Num[np.ndarray, ' k *shape'], Condition]]:
  """The splits by name; one of fewer than two examples is left out."""
  cut = inputs.validation
  held_out = inputs.x('held_out'), inputs.told('held_out')
  every = {
    'validation': conditions.take(held_out, slice(None, cut)),
    'test': conditions.take(held_out, slice(cut, None)),
    'training': (inputs.x('train'), inputs.told('train')),
  }
  return {name: split for name, split in every.items() if len(split[0]) > 1}
