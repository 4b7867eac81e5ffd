"""The bound as a metric: asked of the network, row by row on all devices, with its parts named."""

import re

import numpy as np
import pytest

from diffusion import devices
from diffusion.data import pipeline
from diffusion.evaluation import bits_per_dim, gap
from diffusion.evaluation.metric import MetricInputs, Network, make_network
from diffusion.process import gaussian, marginals, parameterizations, schedules
from diffusion.sampling import likelihood as exact
from diffusion.training import state as states
from tests.training import tiny


def inputs_of(made, data, weights):
  x, label = data.train
  return MetricInputs(
    samples=x,
    labels=label,
    train=data.train,
    held_out=data.test,
    validation=len(data.test[0]) // 2,
    class_names=data.dataset.class_names,
    units=data.units,
    network=make_network(made.model, made.diffusion, data.units, weights),
    kept={},
  )


def test_bits_are_the_mean_of_the_rows_and_do_not_depend_on_their_company():
  """The metric against the bound computed here for the same rows and keys, from the experiment's own pieces."""
  made = tiny.experiment()
  data, state, _ = tiny.start(made)
  weights = states.weights(made, devices.replicate(state))
  given = inputs_of(made, data, weights)
  found = {f.name: f for f in bits_per_dim.likelihood(limit=40, draws=4).measure(given)}
  assert set(found) == {'validation bits/dim', 'test bits/dim', 'training bits/dim'}
  value = found['training bits/dim'].value
  assert value.low < value.estimate < value.high
  for name, of in (('training', 40), ('validation', 32), ('test', 32)):
    meaning = found[f'{name} bits/dim'].meaning
    assert meaning.startswith(f'bound of {of} examples, continuous time: reconstruction')
    assert found[f'{name} bits/dim'].better == 'lower'

  def rows(query, shared):
    return exact.bound(query.denoise, query.path, query.x, query.keys, levels=None, draws=4).total

  x, label = data.train
  chosen = np.linspace(0, len(x) - 1, 40).round().astype(int)
  nats = given.network.apply(rows, x[chosen], label[chosen])
  np.testing.assert_allclose(value.estimate, nats.mean() / (8 * np.log(2)), rtol=1e-6)
  alone = given.network.apply(rows, x[chosen[:1]], label[chosen[:1]])
  np.testing.assert_allclose(alone[0], nats[0], rtol=1e-4)


def test_each_split_has_the_bound_of_its_own_examples_with_the_steps_that_are_asked_for():
  path = gaussian.Diffusion(
    schedules.cosine(-3.0, 4.0), marginals.variance_preserving, parameterizations.v()
  )  # at whose end something is left of x, so that the prior counts
  made = tiny.experiment(diffusion=path, evaluation_noise=gap.evaluation_noise(3, -2, 3, 1))
  data, state, _ = tiny.start(made)
  given = inputs_of(made, data, states.weights(made, devices.replicate(state)))
  cut = given.validation
  given = given._replace(held_out=(given.held_out[0].copy(), given.held_out[1]))
  given.held_out[0][cut:] *= 3  # test examples far out, of which the bound is higher
  metric = bits_per_dim.likelihood(limit=1000, draws=4, steps=5)
  measured = metric.measure(given)
  assert all(' examples, 5 steps: ' in finding.meaning for finding in measured)
  found = {finding.name: finding.value.estimate for finding in measured}

  def rows(query, shared):
    return exact.bound(
      query.denoise, query.path, query.x, query.keys, levels=None, draws=4, steps=5
    )

  for name, (x, label) in {
    'validation': tuple(part[:cut] for part in given.held_out),
    'test': tuple(part[cut:] for part in given.held_out),
    'training': data.train,
  }.items():
    parts = given.network.apply(rows, np.asarray(x), np.asarray(label))
    np.testing.assert_allclose(
      found[f'{name} bits/dim'], parts.total.mean() / (8 * np.log(2)), rtol=1e-5
    )
    np.testing.assert_allclose(parts.total, sum(parts), rtol=1e-5)
    assert parts.prior.mean() > 1e-3 * abs(parts.total.mean())
  assert found['test bits/dim'] > found['validation bits/dim'] + 0.1


def test_the_parts_of_the_bound_add_up_to_it_in_the_units_of_the_data():
  made = tiny.experiment(normalization=pipeline.standardized())
  data, state, _ = tiny.start(made)
  given = inputs_of(made, data, states.weights(made, devices.replicate(state)))
  assert abs(np.log2(data.units.deviation)) > 0.1
  for finding in bits_per_dim.likelihood(limit=20, draws=4).measure(given):
    parts = [float(one) for one in re.findall(r' (-?\d+\.\d+)(?:,|$)', finding.meaning)]
    assert len(parts) == 4
    np.testing.assert_allclose(sum(parts), finding.value.estimate, atol=3e-4)
    # Numbers that lie wider apart than those of the network are as much rarer, each.
    units = float(re.search(r'units (-?\d+\.\d+)', finding.meaning)[1])
    assert units == pytest.approx(np.log2(data.dataset.x[data.split.train].std()), abs=1e-3)


def test_images_are_evaluated_by_their_levels():
  """An untrained network on 17 levels: the bound is finite and above the entropy of a constant guess of nothing."""
  made = tiny.images()
  data, state, _ = tiny.start(made)
  given = inputs_of(made, data, states.weights(made, devices.replicate(state)))
  found = bits_per_dim.likelihood(limit=8, draws=8).measure(given)
  *bounds, uniform = found
  for finding in bounds:
    assert np.isfinite(finding.value.estimate)
    assert finding.value.estimate > 1
  assert uniform.name == 'uniform bits/dim'
  assert 2**uniform.value == pytest.approx(17)
  assert {finding.unit for finding in found} == {'bits/dim'}


def test_splits_are_told_of_their_own_and_one_of_a_single_example_is_left_out():
  x, label = np.arange(7.0)[:, None], np.arange(7)
  given = MetricInputs(x, label, (x, label), (-x, -label), 0, (), None, None, {})
  for cut, wanted in (
    (0, {'test': 7}),
    (1, {'test': 6}),
    (5, {'validation': 5, 'test': 2}),
    (6, {'validation': 6}),
  ):
    found = bits_per_dim._splits(given._replace(validation=cut))
    assert {name: len(split[0]) for name, split in found.items()} == wanted | {'training': 7}
    for split in found.values():
      np.testing.assert_array_equal(split[0][:, 0], split[1])
  told = {'train': {'a': -label}, 'held_out': {'a': label}}
  found = bits_per_dim._splits(given._replace(validation=3, conditions=told))
  for split in found.values():
    np.testing.assert_array_equal(split[0][:, 0], -split[1]['a'])

  def apply(function, x, told):  # which knows the bound of every example
    np.testing.assert_array_equal(x[:, 0], told)
    return exact.Bound(x[:, 0] ** 2, x[:, 0], 3 + 0 * x[:, 0])

  units = pipeline.NormalizationStatistics(None)
  given = given._replace(validation=4, network=Network(apply, None, (0.0, 1.0)), units=units)
  measured = {one.name: one for one in bits_per_dim.likelihood(limit=3).measure(given)}
  for name, rows in (('training', [0, 3, 6]), ('validation', [0, -2, -3]), ('test', [-4, -5, -6])):
    nats = [k**2 + k + 3 for k in rows]
    found = measured[f'{name} bits/dim']
    assert found.value.estimate == pytest.approx(np.mean(nats) / np.log(2))
    reconstruction = np.mean(np.square(rows)) / np.log(2)
    assert f'time: reconstruction {reconstruction:.4f}, diffusion ' in found.meaning


@pytest.mark.parametrize('numbers', [{'limit': 1}, {'draws': 0}, {'steps': 0}])
def test_bad_arguments_are_named_with_their_value(numbers):
  (name, value), *_ = numbers.items()
  with pytest.raises(ValueError, match=f'{name} .* got {value}'):
    bits_per_dim.likelihood(**numbers)
