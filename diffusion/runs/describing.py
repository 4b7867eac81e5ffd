"""Describing a run before it is made."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import devices, provenance
from diffusion.data import pipeline
from diffusion.models import summary
from diffusion.reporting import tables
from diffusion.runs.run import Run, found_in_words
from diffusion.types import Conditioning


def describe(run: Run) -> str:
  """What a run would be: configuration, splits, parameters and arithmetic."""
  state, experiment, units = run.first_state(), run.experiment, run.data.units
  example = run.data.example
  x = pipeline.normalize(jnp.asarray(example.x), units)
  conditioning = Conditioning(example.condition, jnp.zeros((1, 0)))

  def output(network):
    return experiment.model.apply(
      {'params': network, **state.statistics}, x, jnp.zeros(1), conditioning
    )[0]

  network = state.params.network
  forward = summary.flops(output, network)
  both = summary.flops(jax.grad(lambda p: output(p).sum()), network)
  rows = summary.parameter_rows(network)
  total = sum(row[1] for row in rows)
  data = run.record['data']
  hashes = data['split_hashes']
  sizes = [(name, size, hashes[name]) for name, size in data['examples'].items()]
  deviation = pipeline.sigma_data(run.data.train[0], units)
  shape = f'{data["shape"]}, {data["levels"]} levels, {len(data["class_names"])} classes'
  return '\n\n'.join([
    json.dumps(provenance.config_to_json(run.config), indent=2),
    f'data: {data["name"]}, {shape}. {data["note"]}',
    *filter(None, [found_in_words(data), _by_class(run)]),
    f'standard deviation of the training split in network units: {deviation:.4g}',
    tables.markdown(['split', 'examples', 'hash'], sizes),
    tables.markdown(['module', 'parameters', 'rms'], [*rows, ('total', total, '')]),
    f'arithmetic per image: {forward / 1e6:.1f} MFLOP forward, {both / 1e6:.1f} MFLOP forward and backward',
    f'devices: {devices.describe()}',
  ])  # fmt: skip


def _by_class(run: Run) -> str:
  """How many training examples each class has, the smallest and largest of many; '' without classes."""
  names, label = run.data.dataset.class_names, run.data.train[1]
  if not names:
    return ''
  counts = np.bincount(label, minlength=len(names))
  order = np.argsort(counts, kind='stable')
  shown = range(len(names)) if len(names) <= 20 else [*order[:5], *order[-5:]]
  said = ', '.join(f'{names[k]} {counts[k]}' for k in shown)
  return (
    f'training examples by class{"" if len(names) <= 20 else " (the least and the most)"}: {said}'
  )
