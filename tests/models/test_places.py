"""Where the dropout family acts in each network: in every layer of its place, at the rate stated there, nowhere else.

One pass of each network with a drop of every place. Each layer of dropout is watched, and each kernel as it is used:
the entries that are zero are the share dropped, and the factor of the others tells the rates that acted.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.models import activations, dit, dropout, initializers, magnitude, mlp, unet
from diffusion.types import NULL, Conditioning

compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
ROWS, IMAGE, VECTOR = 64, (4, 4, 2), (6,)
KEYS = rng.row_keys(jax.random.key(1), jnp.arange(ROWS))
ELEMENTS, SPATIAL, INPUT, DEPTH, KERNELS = 0.2, 0.4, 0.3, 0.6, 0.1
DROPS = (
  dropout.spatial(SPATIAL), dropout.at_input(INPUT), dropout.stochastic_depth(DEPTH), dropout.drop_connect(KERNELS),
)  # fmt: skip
UNET = {'width': 8, 'blocks': 1, 'attention': (), 'num_classes': 3}
# Of each network: how it is made, the shape of an example, the rate of `dropout` in each block in the order in which
# they are run, and the share of the way of each branch.
LEVELS = (0.1, 0.35)
NETWORKS = {
  'unet': (
    functools.partial(unet.unet, **UNET, multipliers=(1, 2), zero_outputs=False, dropout=LEVELS), IMAGE,
    [LEVELS[level] for level in (0, 1, 1, 1, 1, 1, 0, 0)], [(i + 1) / 8 for i in range(8)],
  ),
  'magnitude': (
    functools.partial(magnitude.unet, **UNET, multipliers=(1,), dropout=ELEMENTS), IMAGE,
    [ELEMENTS] * 5, [(i + 1) / 5 for i in range(5)],
  ),
  'dit': (
    functools.partial(dit.dit, 16, 3, 2, 2, dropout=ELEMENTS, num_classes=3), IMAGE,
    [ELEMENTS] * 3, [1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1],
  ),
  'mlp': (
    functools.partial(mlp.mlp, 16, 3, dropout=ELEMENTS, num_classes=3, zero_outputs=False), VECTOR,
    [ELEMENTS] * 3, [1 / 3, 2 / 3, 1],
  ),
}  # fmt: skip


def inputs(shape, rows=ROWS):
  generator = np.random.default_rng(0)
  z, noise = generator.normal(size=(rows, *shape)), generator.uniform(-1, 1, size=rows)
  told = Conditioning(jnp.arange(rows) % 3, jnp.zeros((rows, 0)))
  return jnp.asarray(z, jnp.float32), jnp.asarray(noise, jnp.float32), told


@functools.cache
def awake(name):
  """Variables as if trained: none is zero."""
  make, shape, *_ = NETWORKS[name]
  shapes = jax.eval_shape(make().init, jax.random.key(0), *inputs(shape))
  generator = np.random.default_rng(0)
  return jax.tree.map(
    lambda p: jnp.asarray(
      0.5 * generator.normal(size=p.shape) / max(1, math.prod(p.shape[:-1])) ** 0.5, p.dtype
    ),
    shapes,
  )


@functools.cache
def watched(name):
  """(place -> [(path, before, after) of each layer in the order of the run], path of a kernel -> as it was used)."""
  make, shape, *_ = NETWORKS[name]
  model, layers = make(drops=DROPS), []

  @compiled
  def run(variables, keys, batch_key):
    seen, kernels = [], {}

    def watch(call, arguments, kwargs, context):
      module, y = context.module, call(*arguments, **kwargs)
      path = '/'.join(module.path)
      if isinstance(module, dropout.Dropout):
        layers.append((path, module.place))
        seen.append((arguments[0], y))
      elif 'kernel' in module.variables.get('params', {}):
        kernels[path] = module.variables['params']['kernel']
      return y

    with nn.intercept_methods(watch):
      model.apply(variables, *inputs(shape), keys=keys, batch_key=batch_key)
    return seen, kernels

  seen, kernels = jax.tree.map(np.asarray, run(awake(name), KEYS, jax.random.key(2)))
  places = {place: [] for place in dropout.PLACES}
  for (path, place), pair in zip(layers, seen, strict=True):
    places[place].append((path, *pair))
  return places, kernels


def near(found, rate, count):
  return abs(found - rate) < 4.5 * math.sqrt(rate * (1 - rate) / count) + 1e-9


def check(before, after, scale):
  """What is kept was multiplied by this and nothing else; returns what was kept."""
  kept = (after != 0) & (before != 0)
  np.testing.assert_allclose(after[kept], scale * before[kept], rtol=1e-4, atol=1e-6)
  assert (before != 0).mean() > 0.99
  return kept


@pytest.mark.parametrize('name', NETWORKS)
def test_units_are_dropped_in_every_block_at_its_rate_and_whole_channels_at_theirs(name):
  layers, rates = watched(name)[0]['units'], NETWORKS[name][2]
  assert len(layers) == len(rates) == len({path for path, *_ in layers})
  masks = {}
  for (path, before, after), rate in zip(layers, rates, strict=True):
    kept = check(before, after, 1 / ((1 - rate) * (1 - SPATIAL)))
    channels = kept.reshape(ROWS, -1, kept.shape[-1])
    if channels.shape[1] > 1:
      whole = channels.any(1)
      there = np.broadcast_to(whole[:, None], channels.shape)
      # Where there are few pixels, a channel may be lost by its units one by one.
      lost = 1 - (1 - SPATIAL) * (1 - rate ** channels.shape[1])
      assert near(1 - whole.mean(), lost, whole.size), path
      assert near(1 - kept.mean(), 1 - (1 - rate) * (1 - SPATIAL), whole.size), path
      if channels.shape[1] >= 4:
        assert near(1 - channels[there].mean(), rate, 0.9 * there.sum()), path
    else:
      assert near(1 - kept.mean(), 1 - (1 - rate) * (1 - SPATIAL), kept.size), path
    masks[path] = kept
  for one, other in zip(layers, layers[1:], strict=False):
    if one[1].shape == other[1].shape:
      assert (masks[one[0]] != masks[other[0]]).mean() > 0.1


@pytest.mark.parametrize('name', NETWORKS)
def test_branches_are_skipped_row_by_row_more_often_the_deeper_and_each_by_itself(name):
  layers, shares = watched(name)[0]['branch'], NETWORKS[name][3]
  assert len(layers) == len(shares) == len({path for path, *_ in layers})
  rows = []
  for (path, before, after), share in zip(layers, shares, strict=True):
    kept = check(before, after, 1 / (1 - DEPTH * share)).reshape(ROWS, -1)
    assert (kept.any(1) == (kept.mean(1) > 0.9)).all()  # a row is kept or skipped as a whole
    rows.append(kept.any(1))
    assert near(1 - rows[-1].mean(), DEPTH * share, ROWS), path
  assert len({row.tobytes() for row in rows}) == len(rows)


@pytest.mark.parametrize('name', NETWORKS)
def test_where_all_branches_are_skipped_a_row_goes_on_as_it_came(name):
  """Past them the output is heard from the row itself, as from no path that was dropped as a whole."""
  make, shape, *_ = NETWORKS[name]
  model, (z, noise, told) = make(dropout=0.0, drops=DROPS), inputs(shape, 4)

  def skip(call, arguments, kwargs, context):
    y = call(*arguments, **kwargs)
    is_branch = isinstance(context.module, dropout.Dropout) and context.module.place == 'branch'
    return jnp.zeros_like(y) if is_branch else y

  @compiled
  def run(z):
    with nn.intercept_methods(skip):
      return model.apply(awake(name), z, noise, told)[0]

  moved = np.abs(np.asarray(run(z + 0.5) - run(z))).reshape(4, -1)
  assert (moved.max(1) > 1e-3).all()


@pytest.mark.parametrize('name', NETWORKS)
def test_the_input_is_thinned_once(name):
  ((_, before, after),) = watched(name)[0]['input']
  np.testing.assert_array_equal(
    before.reshape(ROWS, -1), inputs(NETWORKS[name][1])[0].reshape(ROWS, -1)
  )
  kept = check(before, after, 1 / (1 - INPUT))
  assert near(1 - kept.mean(), INPUT, kept.size)


@pytest.mark.parametrize('name', NETWORKS)
def test_every_kernel_is_used_without_its_share_of_weights_and_each_loses_others(name):
  used = watched(name)[1]
  plain = {
    '/'.join(entry.key for entry in path[1:-1]): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(awake(name))
    if path[-1].key == 'kernel'
  }
  assert used.keys() == plain.keys()
  masks = {path: check(plain[path], used[path], 1 / (1 - KERNELS)) for path in used}
  for path, kept in masks.items():
    assert near(1 - kept.mean(), KERNELS, kept.size), path
  shapes = {}
  for kept in masks.values():
    if kept.size >= 64:
      shapes.setdefault(kept.shape, []).append(kept.tobytes())
  assert any(len(alike) > 1 for alike in shapes.values())
  assert all(len(set(alike)) == len(alike) for alike in shapes.values())


@pytest.mark.parametrize('name', NETWORKS)
def test_without_keys_of_the_rows_the_program_is_the_one_without_drops(name):
  """A key for the batch alone turns nothing on."""
  make, shape, *_ = NETWORKS[name]

  def program(drops, **options):
    model = make(dropout=0.0, drops=drops)
    return str(jax.make_jaxpr(lambda v: model.apply(v, *inputs(shape), **options))(awake(name)))

  plain = program(())
  assert program(DROPS, batch_key=jax.random.key(0)) == plain
  assert program(DROPS, keys=KEYS, batch_key=jax.random.key(0)) != plain


@pytest.mark.parametrize('name', ['dit', 'mlp'])  # of the U-Net see test_unet.py
def test_every_parameter_is_heard(name):
  make, shape, *_ = NETWORKS[name]
  model, (z, noise, told) = make(), inputs(shape, 4)
  told = told._replace(condition=jnp.array([0, 1, 2, NULL]))
  slope = compiled(jax.grad(lambda v: (model.apply(v, z, noise, told)[0] ** 3).sum()))(awake(name))
  for path, leaf in jax.tree_util.tree_leaves_with_path(slope):
    assert np.abs(np.asarray(leaf)).max() > 1e-7, jax.tree_util.keystr(path)


@pytest.mark.parametrize('name', ['dit', 'mlp'])
def test_blocks_start_as_the_identity(name):
  """With the last layer alone awake, neither the noise level nor the label is heard, nor one patch by another."""
  make, shape, *_ = NETWORKS[name]
  model = make(zero_outputs=True) if name == 'mlp' else make()
  z, noise, told = inputs(shape, 4)

  @compiled
  def run(z, noise, told):
    variables = model.init(jax.random.key(0), z, noise, told)
    last = variables['params']['output']
    wave = jnp.sin(1.0 + jnp.arange(last['kernel'].size)).reshape(last['kernel'].shape)
    params = variables['params'] | {'output': last | {'kernel': wave}}
    return model.apply(variables | {'params': params}, z, noise, told)[0]

  base = np.asarray(run(z, noise, told))
  assert np.abs(base).max() > 0.1
  other = told._replace(condition=told.condition + 1)
  for heard in (run(z, noise + 0.5, told), run(z, noise, other)):
    np.testing.assert_allclose(heard, base, rtol=1e-5, atol=1e-5)
  moved = np.abs(np.asarray(run(z.at[:, -1].add(2.0), noise, told)) - base)
  assert moved[:, -1].max() > 1e-3
  if name == 'dit':
    assert moved[:, :2].max() < 1e-5


# Of the networks whose parts can be chosen: how often a pass meets a norm and an activation, and the last layers of
# blocks and network. Of the U-Net 8 blocks and 4 attentions, at the height of 4 pixels and in the middle.
PARTS = {
  'unet': (functools.partial(unet.unet, 8, (1, 2), 1, (4,)), (8, 12, 2), 2 * 8 + 4 + 1, 2 * 8 + 1 + 2, 8 + 4 + 1),
  'mlp': (functools.partial(mlp.mlp, 16, 3), VECTOR, 3 + 1, 2 * 3 + 1 + 2, 3 + 1),
  'dit': (functools.partial(dit.dit, 16, 3, 2, 2), IMAGE, None, 3, None),
}  # fmt: skip


@pytest.mark.parametrize('name', PARTS)
def test_a_part_that_is_chosen_is_in_every_place(name):
  make, shape, norms, activated, last = PARTS[name]
  seen = {'norm': 0, 'activation': 0, 'kernel': 0}

  def counted(kind, function):
    def call(*given):
      seen[kind] += 1
      return function(*given)

    return call

  def counts(**more):
    seen.update(dict.fromkeys(seen, 0))
    model = make(activation=counted('activation', activations.relu), **more)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs(shape, 2))
    return dict(seen), [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes['params'])]

  if not norms:
    assert counts()[0]['activation'] == activated
    return
  chosen = {
    'norm': counted('norm', lambda x, mode: x),
    'kernel_init': counted('kernel', initializers.lecun()),
  }
  found, paths = counts(**chosen, zero_outputs=False)
  assert (found['norm'], found['activation']) == (norms, activated)
  # All kernels but the two of the noise level's embedding.
  assert found['kernel'] == sum(path[-1].key == 'kernel' for path in paths) - 2
  assert found['kernel'] - counts(**chosen)[0]['kernel'] == last
