"""What a metric is given, made of arrays alone."""

import numpy as np

from diffusion.data import pipeline
from diffusion.evaluation.metric import MetricInputs


def inputs_of(samples, train, held_out, levels=None, network=None) -> MetricInputs:
  """Unlabelled samples beside two splits: float rows, or uint8 images with 256 levels."""

  def pair(x):
    return x, np.zeros(len(x), np.int32)

  levels = 256 if samples.dtype == np.uint8 else levels
  units = pipeline.NormalizationStatistics(levels)
  return MetricInputs(*pair(samples), pair(train), pair(held_out), 0, (), units, network, {})


def values(metric, given) -> dict:
  """name -> value of a metric's findings; the name without what stands in brackets."""
  return {
    finding.name.split('(')[0] + finding.name.partition(')')[2]: finding.value
    for finding in metric.measure(given)
  }
