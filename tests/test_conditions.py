"""A condition is an opaque tree: data of any shape, told by any arrays, trains and samples, nothing else changed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion
from diffusion import conditions
from diffusion.data import augment, cleaning, pipeline, sources, splits
from diffusion.evaluation import bits_per_dim, membership
from diffusion.evaluation.metric import Metric, MetricResult, Plan, check_network
from diffusion.models import mlp
from diffusion.models.functional import from_linen
from diffusion.objectives import losses, weights
from diffusion.optimizers import chains, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.sampling import samplers
from diffusion.types import Conditioning


def series(n=240):
  """[n, 12, 3]: each a constant of its own, which its vector [4] says by the mean of its entries; a mask beside it."""
  random = np.random.default_rng(0)
  vector = random.normal(size=(n, 4)).astype(np.float32)
  x = vector.mean(1)[:, None, None] + 0.05 * random.normal(size=(n, 12, 3))
  told = {'vector': vector, 'parts': [np.ones((n, 2), np.int32)]}
  return sources.arrays('series', x, levels=None, condition=told)


class Network(nn.Module):
  @nn.compact
  def __call__(self, z, noise, conditioning, mode):
    told = conditioning.condition
    here = jnp.concatenate([told['vector'], told['parts'][0], noise[:, None]], 1)
    h = jnp.concatenate([z.reshape(len(z), -1), nn.silu(nn.Dense(32)(here))], 1)
    return nn.Dense(36)(nn.silu(nn.Dense(64)(h))).reshape(z.shape)


def null(told):
  return jax.tree.map(jnp.zeros_like, told)


def obeyed():
  """A metric that asks the network, at pure noise, of held-out examples: does its x0 follow what it is told of each?"""

  def measure(inputs):
    x, told = inputs.x('held_out'), inputs.told('held_out')

    def x0(query, shared):
      return query.denoise(jnp.zeros_like(query.x), jnp.ones(len(query.x))).x0.mean((1, 2))

    found = np.corrcoef(inputs.network.apply(x0, x, told), x.mean((1, 2)))[0, 1]
    return [MetricResult('obeyed', float(found), 'correlation of x0 and x')]

  return Metric(check_network, measure)


def experiment(num_steps=400):
  return diffusion.Experiment(
    seed=0, num_steps=num_steps, batch_size=64, log_every=100, validate_every=200, steps_per_dispatch=20,
    data=series(),
    split=splits.Fractions(0.2, 0.2),
    augment=augment.label_dropout(0.1, null),
    diffusion=gaussian.Diffusion(noise.cosine(), marginals.variance_preserving, parameterizations.v()),
    model=from_linen(Network())._replace(null=null),
    terms={'denoise': (1.0, losses.denoising(weights.uniform('v')))},
    optimizer=chains.adamw(schedules.constant(3e-3)),
    sampling=diffusion.Sampling(samplers.ddim, 20, 1.5, wrappers=(), per_class=30),
    metrics=[obeyed(), membership.membership((0.0,), 4, 20), bits_per_dim.likelihood(20, 4)],
  )  # fmt: skip


def test_series_told_by_a_tree_train_and_sample(tmp_path):
  made = experiment()
  run = diffusion.train(made, tmp_path / 'run')
  assert run.status == 'finished'
  assert run.record['data']['class_names'] == []
  results = run.record['results']
  assert results['test/eps']['estimate'] < 0.5
  assert results['obeyed'] > 0.9
  assert {'membership AUC, log-SNR 0', 'test bits/dim'} <= set(results)
  with np.load(tmp_path / 'run' / 'samples.npz') as kept:
    assert kept['samples'].shape == (30, 12, 3)
  trained = diffusion.load(tmp_path / 'run', experiment())
  average = made.averages['ema'].read(trained.state.averages['ema'])
  trees = average, trained.parameters, trained.state.params
  for one, same, raw in zip(*map(jax.tree.leaves, trees), strict=True):  # the average is judged
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, raw)
  vector = np.linspace(-1, 1, 21)[:, None] * np.ones((21, 4))
  told = {'vector': vector, 'parts': [np.ones((21, 2))]}
  samples = trained.sample(told, seed=1)
  # The network does what it is told: a sample's mean follows its vector's.
  assert np.corrcoef(samples.mean((1, 2)), vector.mean(1))[0, 1] > 0.9
  with pytest.raises(ValueError, match='conditions must be like'):
    trained.sample({'vector': vector})
  with pytest.raises(ValueError, match=r'must have a row for each of the \d+ examples'):
    trained.sample(told | {'vector': vector[:5]})
  again = trained.denoiser(told)(jnp.ones((21, 12, 3)), jnp.full(21, 0.5))
  assert again.x0.shape == (21, 12, 3)


def test_a_condition_that_does_not_fit_is_refused():
  x = np.zeros((5, 3))
  load = lambda told, **more: sources.arrays('s', x, levels=None, condition=told, **more).load()  # noqa: E731
  for told, error in (
    ({'a': np.ones(4)}, r"condition\['a'\] must have a row for each of the 5 examples, got \[4\]"),
    (
      {'a': np.ones((5, 2)), 'b': [np.ones((6, 5))]},
      r"condition\['b'\]\[0\] must have a row .* got \[6, 5\]",
    ),
    ({'a': np.ones(5), 'b': np.array([1, np.inf] * 2 + [0])}, r"condition\['b'\] must be finite"),
    (np.array(1.0), r'condition must have a row for each of the 5 examples, got \[\]'),
    ([np.full(5, np.nan)], r'condition\[0\] must be finite'),
    (np.array(['a'] * 5), 'must be finite numbers, got <U1: encode'),
    ((np.ones(5),), 'a tree of dicts, lists and NumPy arrays, got tuple'),
  ):
    with pytest.raises(ValueError, match=error):
      load(told)
  for kind in (bool, np.uint8, np.int64, np.float16):  # all of them numbers
    load({'a': np.ones((5, 2), kind)})
  with pytest.raises(ValueError, match='a test set of its own does not go with conditions'):
    load(np.ones(5), test=(x, np.zeros(5, int)))
  with pytest.raises(ValueError, match='part examples from their conditions'):
    cleaning.checked(sources.arrays('s', x, levels=None, condition=np.ones(5))).load()
  plan = Plan(samples=9, classes=0, shape=(3,), train=9, held_out=9, conditions=True)
  with pytest.raises(ValueError, match='knows class labels alone'):
    membership.copying_distance().check(plan)


def test_what_is_told_is_of_the_data():
  """Other conditions are other data, and those of a split are its examples' own."""
  n = 50
  x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)

  def split(told):
    data = sources.arrays('s', x, levels=None, condition=told).load()
    return splits.split_data(data, splits.Fractions(0.2, 0.2), pipeline.unit_range)

  one, other = split({'a': x[:, :1].copy()}), split({'a': x[:, 1:2].copy()})
  assert one.split.fingerprint != other.split.fingerprint
  assert one.split.fingerprint == split({'a': x[:, :1].copy()}).split.fingerprint
  np.testing.assert_array_equal(one.told['train']['a'], one.train[0][:, :1])
  np.testing.assert_array_equal(one.told['held_out']['a'], one.held_out[0][:, :1])


def test_descriptions_are_json_and_give_one_row():
  told = {'a': np.ones((5, 3), np.float32), 'b': [np.arange(5)]}
  described = conditions.describe(told)
  assert described == {'a': {'dtype': 'float32', 'row': [3]}, 'b': [{'dtype': 'int64', 'row': []}]}
  row = conditions.example(described)
  assert jax.tree.map(np.shape, row) == {'a': (1, 3), 'b': [(1,)]}
  assert jax.tree.map(lambda x: x.dtype, row) == jax.tree.map(lambda x: x.dtype, told)
  assert conditions.example(None).shape == (1,)
  unlucky = {'dtype': np.ones((5, 2)), 'row': np.ones(5)}  # names as in a description
  row = conditions.example(conditions.describe(unlucky))
  assert jax.tree.map(np.shape, row) == {'dtype': (1, 2), 'row': (1,)}
  with pytest.raises(ValueError, match='a tree of dicts, lists and NumPy arrays, got tuple'):
    conditions.describe((np.ones(3),))


def test_a_class_label_is_the_plainest_condition():
  labels = jnp.array([3, 0, 2])
  assert conditions.null_label(labels).tolist() == [-1, -1, -1]
  assert conditions.take(labels, np.array([2, 0])).tolist() == [2, 3]


def test_a_fingerprint_is_of_the_salt_and_of_every_entry_name_and_type():
  a, b = np.arange(6, dtype=np.int32).reshape(3, 2), np.arange(3)
  told = {'a': a, 'b': [b, b + 1]}
  found = conditions.fingerprint(told, 'salt')
  assert len(found) == 16
  assert found == conditions.fingerprint({**told, 'a': np.asfortranarray(a)}, 'salt')
  assert found == conditions.fingerprint(
    dict(reversed(told.items())), 'salt'
  )  # names have no order
  others = [conditions.fingerprint(told, 'pepper')] + [
    conditions.fingerprint(other, 'salt')
    for other in (
      {**told, 'a': a[::-1]}, {**told, 'b': [b, b + 2]}, {**told, 'b': [b[::-1], b + 1]}, {'a': a, 'c': told['b']},
      {**told, 'a': a.view(np.uint32)}, {**told, 'a': a.T.reshape(3, 2)}, {**told, 'a': a.reshape(3, 2, 1)},
    )
  ]  # fmt: skip
  assert len({found, *others}) == 9


def test_the_null_of_a_network_of_classes_says_nothing_and_is_no_class():
  model = mlp.mlp(8, 1, num_classes=3)
  z, level, label = jnp.ones((3, 2)), jnp.zeros(3), jnp.arange(3)
  given = Conditioning(label, jnp.zeros((3, 0)))
  variables = model.init(jax.random.key(0), z, level, given)
  leaves, tree = jax.tree.flatten(
    variables
  )  # the layers that start at zero would hide what is said
  leaves = [jnp.sin(i + jnp.arange(leaf.size)).reshape(leaf.shape) for i, leaf in enumerate(leaves)]
  apply = lambda label: model.apply(  # noqa: E731
    jax.tree.unflatten(tree, leaves), z, level, given._replace(condition=label)
  )[0]
  told, untold = apply(label), apply(model.null(label))
  np.testing.assert_array_equal(untold[1:], untold[:-1])
  assert np.abs(told - untold).max(1).min() > 1e-3
