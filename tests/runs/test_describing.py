"""What a dry run says of a run before it is made."""

import re
from types import SimpleNamespace

import jax
import numpy as np

from diffusion.models import mlp
from diffusion.runs import describing
from diffusion.runs.run import prepare
from tests.training import tiny


def test_a_dry_run_tells_the_numbers_the_splits_the_parameters_and_the_arithmetic(monkeypatch):
  made = tiny.experiment(
    model=mlp.mlp(128, 2, num_classes=2), split=tiny.splits.Fractions(0.25, 0.125)
  )
  run = prepare(lambda _: made, {'width': 128}, 'mine', None)
  monkeypatch.setattr(
    run, 'first_state', run.make_target
  )  # shapes are enough, and are not compiled
  run.record['data'] |= {'name': 'signs', 'found': {'copies': 3, 'flat': 'none'}}
  said = describing.describe(run)
  assert '"width": 128' in said
  assert '\n\ndata signs: copies: 3; flat: none\n\n' in said
  data, split = run.data, run.data.split
  for name in ('train', 'validation', 'test'):
    assert f'| {name} | {len(getattr(split, name))} | {split.hashes[name]} |' in said
  x = data.dataset.x[split.train]
  found = re.search(r'standard deviation of the training split in network units: (\S+)', said)
  np.testing.assert_allclose(float(found[1]), x.std(), rtol=1e-3)
  leaves = jax.tree.leaves(run.make_target().params.network)
  total = re.search(r'\| total \| (\S+) \|', said)[1]
  assert int(total.replace(',', '')) == sum(leaf.size for leaf in leaves)
  products = 2 * sum(leaf.size for leaf in leaves if leaf.ndim == 2) / 1e6
  forward, both = re.search(r'image: (\S+) MFLOP forward, (\S+) MFLOP forward and', said).groups()
  np.testing.assert_allclose(float(forward), products, rtol=0.1, atol=0.06)
  assert 1.8 * products < float(both) < 3.1 * products
  counts = np.bincount(data.dataset.label[split.train])
  names = data.dataset.class_names
  assert f'training examples by class: {names[0]} {counts[0]}, {names[1]} {counts[1]}\n' in said


def test_of_many_classes_those_of_the_fewest_and_of_the_most_training_examples_are_told():
  def said(counts):
    names = tuple(f'c{k}' for k in range(len(counts)))
    label = np.repeat(np.arange(len(counts)), counts)
    data = SimpleNamespace(dataset=SimpleNamespace(class_names=names), train=(None, label))
    return describing._by_class(SimpleNamespace(data=data))

  assert said([]) == ''
  few = [3, 0, *range(5, 22), 0]  # the last one has none to train on
  assert said(few) == 'training examples by class: ' + ', '.join(
    f'c{k} {count}' for k, count in enumerate(few)
  )
  many = np.random.default_rng(0).permutation(21)
  places = {count: k for k, count in enumerate(many)}
  shown = ', '.join(f'c{places[n]} {n}' for n in (0, 1, 2, 3, 4, 16, 17, 18, 19, 20))
  assert said(many) == f'training examples by class (the least and the most): {shown}'
