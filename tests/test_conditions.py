"""A condition is an opaque tree: data of any shape, told by any arrays, trains and samples, nothing else changed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion
from diffusion import conditions
from diffusion.data import augment, splits
from diffusion.data.sources import Dataset, Source
from diffusion.models.functional import from_linen
from diffusion.objectives import losses, weights
from diffusion.optimizers import chains, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.sampling import samplers


def series(n=240):
  """[n, 12, 3]: each a constant of its own, which its vector [4] says by the mean of its entries; a mask beside it."""
  random = np.random.default_rng(0)
  vector = random.normal(size=(n, 4)).astype(np.float32)
  x = vector.mean(1)[:, None, None] + 0.05 * random.normal(size=(n, 12, 3))
  told = {'vector': vector, 'parts': [np.ones((n, 2), np.int32)]}
  dataset = Dataset('series', x.astype(np.float32), np.zeros(n, np.int32), None, condition=told)
  return Source('series', lambda: dataset, lambda: dataset)


class Network(nn.Module):
  @nn.compact
  def __call__(self, z, noise, conditioning, mode):
    told = conditioning.condition
    here = jnp.concatenate([told['vector'], told['parts'][0], noise[:, None]], 1)
    h = jnp.concatenate([z.reshape(len(z), -1), nn.silu(nn.Dense(32)(here))], 1)
    return nn.Dense(36)(nn.silu(nn.Dense(64)(h))).reshape(z.shape)


def null(told):
  return jax.tree.map(jnp.zeros_like, told)


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
  )  # fmt: skip


def test_series_told_by_a_tree_train_and_sample(tmp_path):
  run = diffusion.train(experiment(), tmp_path / 'run')
  assert run.status == 'finished'
  assert run.record['data']['class_names'] == []
  results = run.record['results']
  assert results['test/eps']['estimate'] < 0.5
  with np.load(tmp_path / 'run' / 'samples.npz') as kept:
    assert kept['samples'].shape == (30, 12, 3)
  trained = diffusion.load(tmp_path / 'run', experiment())
  vector = np.linspace(-1, 1, 21)[:, None] * np.ones((21, 4))
  told = {'vector': vector, 'parts': [np.ones((21, 2))]}
  samples = trained.sample(told, seed=1)
  # The network does what it is told: a sample's mean follows its vector's.
  assert np.corrcoef(samples.mean((1, 2)), vector.mean(1))[0, 1] > 0.9
  with pytest.raises(ValueError, match='conditions must be like'):
    trained.sample({'vector': vector})
  again = trained.denoiser(told)(jnp.ones((21, 12, 3)), jnp.full(21, 0.5))
  assert again.x0.shape == (21, 12, 3)


def test_descriptions_are_json_and_give_one_row():
  told = {'a': np.ones((5, 3), np.float32), 'b': [np.arange(5)]}
  described = conditions.describe(told)
  row = conditions.example(described)
  assert jax.tree.map(np.shape, row) == {'a': (1, 3), 'b': [(1,)]}
  assert jax.tree.map(lambda x: x.dtype, row) == jax.tree.map(lambda x: x.dtype, told)
  assert conditions.example(None).shape == (1,)
  with pytest.raises(ValueError, match='a tree of dicts, lists and NumPy arrays, got tuple'):
    conditions.describe((np.ones(3),))


def test_a_class_label_is_the_plainest_condition():
  labels = jnp.array([3, 0, 2])
  assert conditions.null_label(labels).tolist() == [-1, -1, -1]
  assert conditions.take(labels, np.array([2, 0])).tolist() == [2, 3]
