"""The diffusion transformer: its start, its places, and that every part is alive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from diffusion import rng
from diffusion.models import dit
from diffusion.models.dropout import stochastic_depth
from diffusion.types import Conditioning
from tests.models.test_dropout import PLAIN, row_keys

compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
SMALL = {'width': 16, 'depth': 2, 'heads': 2, 'num_classes': 3}


def inputs(rows=3):
  generator = np.random.default_rng(0)
  z, noise = generator.normal(size=(rows, 8, 4, 2)), generator.uniform(-1, 1, size=rows)
  told = Conditioning(jnp.zeros(rows, int), jnp.zeros((rows, 1)))
  return jnp.asarray(z, jnp.float32), jnp.asarray(noise, jnp.float32), told


@functools.cache
def network(**changes):
  model = dit.dit(**SMALL | changes)
  variables = compiled(model.init)(jax.random.key(0), *inputs())
  generator = np.random.default_rng(1)
  moved = jax.tree.map(
    lambda p: p + 0.2 * jnp.asarray(generator.normal(size=p.shape), p.dtype), variables
  )
  return model, variables, moved


def test_output_is_zero_at_initialization():
  model, variables, _ = network()
  output, statistics = compiled(model.apply)(variables, *inputs())
  assert statistics == {}
  np.testing.assert_array_equal(output, np.zeros((3, 8, 4, 2)))


def test_dit_small_has_the_published_number_of_parameters():
  """DiT-S/2 of 1,000 classes on 32x32x4 latents has 33.0 million, its learned variance and key biases left out."""
  model = dit.dit(num_classes=1000)
  arguments = (
    jnp.zeros((1, 32, 32, 4)),
    jnp.zeros(1),
    Conditioning(jnp.zeros(1, int), jnp.zeros((1, 0))),
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments)
  count = sum(p.size for p in jax.tree.leaves(shapes))
  assert abs(count / 33.0e6 - 1) < 0.02


def test_everything_it_is_told_changes_the_output():
  model, _, moved = network()
  z, noise, told = inputs()
  apply = compiled(lambda *a: model.apply(moved, *a)[0])
  base = np.asarray(apply(z, noise, told))
  for changed in (
    (z + 0.5, noise, told), (z, noise + 0.3, told), (z, noise, told._replace(condition=jnp.ones(3, int))),
    (z, noise, told._replace(augment=jnp.ones((3, 1)))),
  ):  # fmt: skip
    assert (np.abs(np.asarray(apply(*changed)) - base).max((1, 2, 3)) > 1e-3).all()


def written_out(p, z, noise, told):
  """The network of two heads and patches of 2 x 2, in NumPy, with the drops that draw nothing."""

  def dense(x, layer):
    return x @ layer['kernel'] + layer.get('bias', 0)

  def silu(x):
    return x * special.expit(x)

  def shared_out(x):
    return x.reshape(*x.shape[:2], 2, -1)

  def adapted(x, shift, scale):
    x = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + 1e-6)
    return x * (1 + scale[:, None]) + shift[:, None]

  z = 2 * z
  level = p['ConditioningEmbedding_0']
  angle = 2 * np.pi * noise[:, None] * np.array([1 / 16, 16])
  waves = np.concatenate([np.cos(angle), np.sin(angle)], 1)
  e = dense(silu(dense(waves, level['Dense_0'])), level['Dense_1'])
  e = silu(
    e + level['Embed_0']['embedding'][told.condition] + dense(told.augment, level['augment'])
  )
  rows, columns = (side // 2 for side in z.shape[1:3])
  grid = [(i, j) for i in range(rows) for j in range(columns)]
  h = np.stack([z[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(len(z), -1) for i, j in grid], 1)
  steps = 10000.0 ** -(np.arange(4) / 4)
  places = [[f(n * steps) for n in place for f in (np.cos, np.sin)] for place in grid]
  h = dense(h, p['stem']) + np.reshape(places, (len(grid), 16))
  for depth in (1, 2):
    block, more = p[f'Block_{depth - 1}'], 1 + depth / 2
    shift, scale, gate, *of_mlp = np.split(dense(e, block['modulation']), 6, 1)
    x, layers = adapted(h, shift, scale), block['attention']
    q, k, v = (shared_out(dense(x, layers[name])) for name in ('query', 'key', 'value'))
    share = special.softmax(np.einsum('bihc,bjhc->bhij', q, k) / 8**0.5, axis=3)
    mixed = np.einsum('bhij,bjhc->bihc', share, v).reshape(h.shape)
    h = h + more * gate[:, None] * dense(mixed, layers['out'])
    inner = dense(adapted(h, *of_mlp[:2]), block['mlp_in'])
    inner = inner * special.ndtr(inner) + 1
    h = h + more * of_mlp[2][:, None] * dense(inner, block['mlp_out'])
  h = dense(adapted(h, *np.split(dense(e, p['modulation']), 2, 1)), p['output'])
  output = np.zeros(z.shape)
  for n, (i, j) in enumerate(grid):
    output[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = h[:, n].reshape(len(z), 2, 2, -1)
  return output


def test_it_is_the_network_of_the_paper_written_out():
  (_, _, moved), (z, noise, _) = network(), inputs()
  model, keys = dit.dit(**SMALL, drops=PLAIN), row_keys(3)
  told = Conditioning(jnp.array([2, 0, -1]), jnp.array([[0.5], [0.0], [-1.0]]))
  found = compiled(lambda v: model.apply(v, z, noise, told, keys=keys)[0])(moved)
  as_numpy = jax.tree.map(lambda a: np.asarray(a, np.float64), (moved['params'], z, noise))
  expected = written_out(*as_numpy, jax.tree.map(np.asarray, told))
  assert np.abs(expected).max((1, 2, 3)).min() > 0.5
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_patches_see_each_other_and_know_their_places():
  model, _, moved = network()
  z, noise, told = inputs(1)
  apply = compiled(lambda z: model.apply(moved, z, noise, told)[0])
  base = np.asarray(apply(z))
  far = np.asarray(apply(z.at[0, 7, 3, 1].add(2.0)))
  assert np.abs(far - base)[0, :2, :2].max() > 1e-4  # attention carries it to the first patch
  # With equal patches everywhere, only the positions tell them apart.
  flat = np.asarray(apply(jnp.ones_like(z)))
  assert np.abs(flat[0, :2, :2] - flat[0, 2:4, :2]).max() > 1e-3


def test_positions_are_distinct_unit_circles():
  grid = dit.positions(5, 7, 24)
  assert grid.shape == (35, 24)
  assert len(np.unique(grid.round(6), axis=0)) == 35
  np.testing.assert_allclose(
    (grid**2).sum(1), 12, rtol=1e-12
  )  # cos^2 + sin^2 for each of 12 frequencies
  np.testing.assert_array_equal(grid[0, :12], grid[1, :12])  # the same row
  np.testing.assert_array_equal(grid[0, 12:], grid[7, 12:])  # the same column


def test_dropout_and_stochastic_depth_act_by_row_and_only_with_keys():
  model, _, moved = network(dropout=0.3, drops=(stochastic_depth(0.5),))
  z, noise, told = (jnp.repeat(a[:1], 6, axis=0) for a in inputs()[:2]), None, None
  z, noise = z
  told = Conditioning(jnp.zeros(6, int), jnp.zeros((6, 1)))
  apply = compiled(lambda keys: model.apply(moved, z, noise, told, keys=keys)[0])
  dry = np.asarray(compiled(lambda: model.apply(moved, z, noise, told)[0])())
  np.testing.assert_allclose(dry[0], dry[1], atol=1e-5)
  keys = rng.row_keys(jax.random.key(0), jnp.arange(6))
  wet = np.asarray(apply(keys))
  assert np.abs(wet[0] - wet[1]).max() > 1e-3
  np.testing.assert_allclose(apply(keys[::-1]), wet[::-1], atol=1e-5)


def test_it_has_a_jvp_that_agrees_with_its_gradient():
  model, _, moved = network()
  z, noise, told = inputs()
  run = lambda z: model.apply(moved, z, noise, told)[0]  # noqa: E731
  v, g = jnp.cos(jnp.arange(z.size)).reshape(z.shape), jnp.sin(jnp.arange(z.size)).reshape(z.shape)

  @compiled
  def both(z):
    _, pushed = jax.jvp(run, (z,), (v,))
    _, pull = jax.vjp(run, z)
    return (g * pushed).sum(), (v * pull(g)[0]).sum()

  a, b = both(z)
  np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'width': 12}, 'width .* got 12'), ({'width': 16, 'heads': 3}, 'heads = 3'), ({'depth': 0}, 'depth'),
    ({'patch': 0}, 'patch'), ({'dropout': 1.0}, 'dropout'), ({'num_classes': -1}, 'num_classes'),
  ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    dit.dit(**arguments)


def test_images_that_are_not_made_of_patches_are_refused():
  model = dit.dit(**SMALL | {'patch': 3})
  with pytest.raises(ValueError, match='a patch of 3 pixels does not divide images of 8 x 4'):
    jax.eval_shape(model.init, jax.random.key(0), *inputs())
