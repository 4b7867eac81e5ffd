"""The Optax chains against the papers' algorithms written out in NumPy; every knob is live."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion import citations
from diffusion.models import mlp, unet
from diffusion.optimizers import chains, clipping, optimizers, schedules
from diffusion.types import Conditioning


def tree(seed, scale=1.0):
  """Two kernels, a bias, a norm's scale and an embedding, as NumPy float64."""
  random = np.random.default_rng(seed)
  return {
    'Dense_0': {
      'kernel': scale * random.normal(size=(3, 4)),
      'bias': scale * random.normal(size=4),
    },
    'GroupNorm_0': {'scale': scale * random.normal(size=4)},
    'Embed_0': {'embedding': scale * random.normal(size=(5, 2))},
    'conv': {'kernel': scale * random.normal(size=(3, 3, 2, 2))},
  }


def norm(values):
  return math.sqrt(sum(np.square(v).sum() for v in jax.tree.leaves(values)))


def assert_trees_close(found, expected, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def decayed(name):
  return name in ('Dense_0/kernel', 'conv/kernel')


def reference(params, gradients, rates, weight_decay, clip_norm, b1=0.9, b2=0.999, eps=1e-8):
  """AdamW as in Loshchilov & Hutter, algorithm 2, and clipping as in Pascanu et al., algorithm 1: every update."""
  names = {f'{a}/{b}': value.copy() for a, inner in params.items() for b, value in inner.items()}
  first = dict.fromkeys(names, 0.0)
  second = dict.fromkeys(names, 0.0)
  updates = []
  for n, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
    g = {f'{a}/{b}': value for a, inner in gradient.items() for b, value in inner.items()}
    length = norm(g)
    if clip_norm and length > clip_norm:
      g = {k: v * clip_norm / length for k, v in g.items()}
    update = {}
    for k, w in names.items():
      first[k] = b1 * first[k] + (1 - b1) * g[k]
      second[k] = b2 * second[k] + (1 - b2) * g[k] ** 2
      step = first[k] / (1 - b1**n) / (np.sqrt(second[k] / (1 - b2**n)) + eps)
      update[k] = -rate * (step + (weight_decay * w if decayed(k) else 0))
    updates.append(update)
    names = {k: v + update[k] for k, v in names.items()}
  return updates


def run(optimizer, params, gradients):
  """Every update, by the flat names of `reference`."""
  state, updates = optimizer.init(params), []
  for gradient in gradients:
    update, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, update)
    updates.append({f'{a}/{b}': v for a, inner in update.items() for b, v in inner.items()})
  return updates


pytestmark = pytest.mark.filterwarnings('ignore:Explicitly requested dtype float64')


@pytest.mark.usefixtures('x64')
def test_the_first_step_in_closed_form():
  """m_hat = g and v_hat = g^2, so the update is -lr (g / (|g| + eps) + decay w on kernels)."""
  params, gradient = tree(0), tree(1)
  optimizer = chains.adamw(schedules.constant(0.01), 0.3, None, eps=0.1)
  update = run(optimizer, params, [gradient])[0]
  for name, value in update.items():
    a, b = name.split('/')
    g, w = gradient[a][b], params[a][b]
    expected = -0.01 * (g / (abs(g) + 0.1) + (0.3 * w if decayed(name) else 0))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert value.dtype == np.float64


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
@pytest.mark.parametrize('clip_norm', [None, 0, 1.0, 100.0])
def test_many_steps_against_the_papers(weight_decay, clip_norm):
  rate = schedules.warmup_cosine(0.02, 8, 2, 0.001)
  gradients = [tree(10 + n, 10.0 ** (n % 3 - 1)) for n in range(6)]  # norms from 0.8 to 80
  rates = [float(rate(jnp.int32(n))) for n in range(6)]
  optimizer = chains.adamw(rate, weight_decay, clip_norm, b1=0.8, b2=0.95, eps=1e-3)
  expected = reference(tree(0), gradients, rates, weight_decay, clip_norm, 0.8, 0.95, 1e-3)
  assert_trees_close(run(optimizer, tree(0), gradients), expected, rtol=1e-10, atol=1e-15)


def variables(model, shape):
  example = jnp.zeros((1, *shape))
  conditioning = Conditioning(jnp.zeros(1, jnp.int32), jnp.zeros((1, 0)))
  return jax.eval_shape(model.init, jax.random.key(0), example, jnp.zeros(1), conditioning)


NETWORKS = {
  'unet': (unet.unet(8, (1, 2), 1, (4,), 0.0, num_classes=3), (8, 8, 1)),
  'mlp': (mlp.mlp(16, 2, num_classes=3), (5,)),
}


@pytest.mark.parametrize('network', NETWORKS)
def test_decay_reaches_the_matrices_of_a_real_network_alone(network):
  model, shape = NETWORKS[network]
  shapes = variables(model, shape)['params']
  params = jax.tree.map(lambda s: np.full(s.shape, 2.0, np.float32), shapes)
  transform = chains.decoupled_decay(0.25)
  zeros = jax.tree.map(np.zeros_like, params)
  update, _ = transform.update(zeros, transform.init(params), params)
  kinds = {True: 0, False: 0}
  for path, value in jax.tree_util.tree_leaves_with_path(update):
    name = jax.tree_util.keystr(path)
    matrix = value.ndim >= 2 and 'Embed_' not in name  # biases and norms are vectors
    np.testing.assert_array_equal(value, 0.5 if matrix else 0, err_msg=name)
    kinds[matrix] += 1
  assert min(kinds.values()) >= 5
  assert any(
    'Embed_' in jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(update)
  )


def test_clip_leaves_a_short_gradient_and_scales_a_long_one():
  gradient = tree(3)
  length = norm(gradient)
  for factor in (0.3, 0.99, 1.01, 20.0):
    transform = clipping.global_norm(length * factor)
    clipped, _ = transform.update(gradient, transform.init(gradient))
    if factor > 1:
      assert_trees_close(clipped, gradient, rtol=1e-7)
    else:
      assert norm(clipped) == pytest.approx(length * factor, rel=1e-6)
      assert_trees_close(clipped, jax.tree.map(lambda g: g * factor, gradient), rtol=1e-6)  # noqa: B023


@pytest.mark.parametrize('off', [None, 0, 0.0])
def test_clip_off_is_not_in_the_chain(off):
  optimizer = chains.adamw(schedules.constant(0.1), 0.0, off)
  assert set(optimizer.init(tree(0))) == {'direction', 'rate'}
  assert optimizer.measured == ()


def last_update(gradients, params=None, **knobs):
  knobs = {'learning_rate': schedules.constant(0.1), 'clip_norm': None} | knobs
  return run(chains.adamw(**knobs), tree(0) if params is None else params, gradients)[-1]


def test_raising_the_weight_decay_pulls_kernels_to_zero_in_proportion():
  plain = last_update([tree(1)])
  params = tree(0)
  pulls = []
  for rate in (0.1, 0.2, 0.4):
    update = last_update([tree(1)], weight_decay=rate)
    pull = {k: np.asarray(update[k] - plain[k]) for k in update}
    assert all((pull[k] == 0).all() for k in pull if not decayed(k))
    kernel = pull['conv/kernel']
    assert (np.sign(kernel) == -np.sign(params['conv']['kernel'])).all()
    pulls.append(norm(kernel))
  np.testing.assert_allclose(pulls, np.array([1, 2, 4]) * pulls[0], rtol=1e-4)


def test_raising_the_clip_norm_lets_a_spike_through():
  """One gradient 1,000 times too long turns the next steps away from where the usual gradients point."""
  usual = norm(tree(1))
  gradients = [tree(1)] * 3 + [tree(2, 1000.0)] + [tree(1)] * 3
  undisturbed = last_update([tree(1)] * 7)

  def agreement(clip_norm):
    update = last_update(gradients, clip_norm=clip_norm)
    product = sum(np.sum(update[k] * undisturbed[k]) for k in update)
    return float(product) / norm(update) / norm(undisturbed)

  agreements = [agreement(usual * c) for c in (1.001, 3, 10, 2000)]
  assert agreements == sorted(agreements, reverse=True)
  assert agreements[0] > 0.9
  assert agreements[-1] < 0.6
  assert agreements[-1] == pytest.approx(agreement(None), rel=1e-5)  # beyond the spike: as if off


def test_raising_the_learning_rate_scales_the_update():
  base = last_update([tree(1), tree(2)], learning_rate=schedules.constant(1e-3), weight_decay=0.1)
  # The same parameters at the second step, so that the decay is of the same weights:
  one = run(chains.adamw(schedules.constant(1e-3), 0.1), tree(0), [tree(1)])[0]
  three = run(chains.adamw(schedules.constant(3e-3), 0.1), tree(0), [tree(1)])[0]
  assert_trees_close(three, jax.tree.map(lambda u: 3 * u, one), rtol=1e-5)
  assert norm(base) > 0


def test_moment_decays_are_live():
  gradients = [tree(1), tree(2), tree(3)]
  base = last_update(gradients)
  for knob in ({'b1': 0.5}, {'b2': 0.9}, {'eps': 0.1}):
    assert norm(jax.tree.map(lambda a, b: a - b, last_update(gradients, **knob), base)) > 1e-2


def test_learning_rate_is_that_of_the_next_update():
  rate = schedules.warmup_cosine(0.1, 6, 3, 0.01)
  for knobs in (
    (0.0, None),
    (0.1, 1.0),
  ):
    optimizer = chains.adamw(rate, *knobs)
    params = tree(0)
    state = optimizer.init(params)
    for n in range(8):
      announced = float(optimizer.learning_rate(state))
      assert announced == pytest.approx(float(rate(jnp.asarray(n))), rel=1e-6, abs=1e-12)
      update, state = optimizer.update(tree(1), state, params)
      bias = np.asarray(
        update['Dense_0']['bias']
      )  # equal gradients: Adam's step is their sign, undecayed
      np.testing.assert_allclose(
        bias, -announced * np.sign(tree(1)['Dense_0']['bias']), rtol=1e-4, atol=1e-9
      )


def test_numbers_may_be_traced():
  @jax.jit
  def update(weight_decay, clip_norm):
    optimizer = chains.adamw(schedules.constant(0.1), weight_decay, clip_norm)
    return optimizer.update(tree(1), optimizer.init(tree(0)), tree(0))[0]

  plain = chains.adamw(schedules.constant(0.1), 0.2, 0.5)
  expected, _ = plain.update(tree(1), plain.init(tree(0)), tree(0))
  assert_trees_close(update(0.2, 0.5), expected, rtol=1e-5)
  unclipped = chains.adamw(schedules.constant(0.1), 0.2, None)
  expected, _ = unclipped.update(tree(1), unclipped.init(tree(0)), tree(0))
  assert_trees_close(update(0.2, 0.0), expected, rtol=1e-5)  # 0 is off, and stops nothing


def test_what_is_off_is_not_cited():
  def named(*arguments):
    made = chains.adamw(schedules.constant(0.1), *arguments)
    return {one.name for one in citations.techniques(made)}

  assert named(0.0, None) == {'Adam'}
  assert named(0.1, 1.0) == {'Adam', 'decoupled weight decay', 'clipping by global norm'}


@pytest.mark.parametrize(
  ('knob', 'value'),
  [
    ('weight_decay', -0.1),
    ('weight_decay', math.nan),
    ('weight_decay', math.inf),
    ('clip_norm', -1.0),
    ('clip_norm', math.nan),
    ('b1', 1.0),
    ('b2', -0.1),
    ('eps', 0.0),
  ],
)
def test_bad_arguments_are_named(knob, value):
  with pytest.raises(ValueError, match=rf'{knob} must .* got {value}'):
    chains.adamw(schedules.constant(0.1), **{knob: value})


def kernels_of(update):
  return {name: np.asarray(value) for name, value in update.items() if decayed(name)}


def one_step(**knobs):
  optimizer = chains.chain(
    knobs.pop('direction', optimizers.momentum(0.0)), schedules.constant(0.1), **knobs
  )
  return run(optimizer, tree(0), [tree(1)])[0]


def flat(nested):
  return {f'{a}/{b}': v for a, inner in nested.items() for b, v in inner.items()}


@pytest.mark.usefixtures('x64')
def test_coupled_decay_is_the_gradient_of_a_square_and_goes_through_the_moments():
  """Under plain gradient descent the two decays are one; under Adam they differ as the algebra says."""
  coupled, decoupled = one_step(coupled_l2=0.3), one_step(weight_decay=0.3)
  for name, value in coupled.items():
    np.testing.assert_allclose(value, decoupled[name], rtol=1e-12)
    g, w = flat(tree(1))[name], flat(tree(0))[name]
    np.testing.assert_allclose(value, -0.1 * (g + (0.3 * w if decayed(name) else 0)), rtol=1e-12)
  adam = optimizers.adam(eps=0.1)
  coupled = one_step(direction=adam, coupled_l2=0.3)
  for name, value in kernels_of(coupled).items():
    g = flat(tree(1))[name] + 0.3 * flat(tree(0))[name]
    np.testing.assert_allclose(value, -0.1 * g / (np.abs(g) + 0.1), rtol=1e-9)


@pytest.mark.usefixtures('x64')
def test_the_gradient_is_clipped_before_coupled_decay_is_added():
  limit = norm(tree(1)) / 4
  for name, value in one_step(clip=clipping.global_norm(limit), coupled_l2=0.3).items():
    g, w = flat(tree(1))[name], flat(tree(0))[name]
    np.testing.assert_allclose(value, -0.1 * (g / 4 + (0.3 * w if decayed(name) else 0)), rtol=1e-9)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('options', [{'weight_decay': 0.1}, {'l1': 2.0}])
def test_a_rate_that_the_caller_gives_stands_in_for_the_schedule_everywhere(options):
  """As a plateau's or a range test's: nothing of the schedule's own rate is left."""
  direction, params, gradient = optimizers.adam(eps=0.1), tree(0), tree(1)
  (found, state), (expected, _) = (
    made.update(gradient, made.init(params), params, **given)
    for made, given in (
      (chains.chain(direction, schedules.constant(0.1), **options), {'learning_rate': 0.02}),
      (chains.chain(direction, schedules.constant(0.02), **options), {}),
    )
  )
  assert_trees_close(found, expected, rtol=1e-12)
  # The schedule goes on all the same.
  assert chains.chain(direction, lambda n: 5 + n, **options).learning_rate(state) == 6


@pytest.mark.usefixtures('x64')
def test_proximal_l1_makes_exact_zeros_and_shrinks_the_rest():
  plain, shrunk = one_step(), one_step(l1=4.0)
  for name, w in flat(tree(0)).items():
    before, after = w + np.asarray(plain[name]), w + np.asarray(shrunk[name])
    if not decayed(name):
      np.testing.assert_array_equal(before, after)
      continue
    expected = np.sign(before) * np.maximum(np.abs(before) - 0.4, 0)  # lr x rate
    np.testing.assert_allclose(after, expected, atol=1e-15)
    zero = expected == 0
    assert zero.any()
    assert (np.abs(after[zero]) < 1e-15).all()


def test_zeros_of_proximal_l1_are_exact_in_the_parameters():
  optimizer = chains.chain(optimizers.momentum(0.0), schedules.constant(0.1), l1=5.0)
  params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), tree(0))
  update, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  after = optax.apply_updates(params, update)
  small = np.abs(np.asarray(params['conv']['kernel'])) < 0.5
  assert small.any()
  assert (np.asarray(after['conv']['kernel'])[small] == 0).all()


def test_fixed_norms_stay_to_1e_5_over_many_steps_and_directions_move():
  optimizer = chains.chain(optimizers.adam(), schedules.constant(0.1), fix_norms=True)
  params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), tree(0))
  params['zero'] = {'kernel': jnp.zeros((3, 2))}
  state, first = optimizer.init(params), params
  for n in range(50):
    gradient = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), tree(n + 5))
    gradient['zero'] = {'kernel': jnp.ones((3, 2))}
    update, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, update)
  for name in ('Dense_0', 'conv'):
    before, after = (np.asarray(p[name]['kernel']) for p in (first, params))
    axes = tuple(range(before.ndim - 1))
    np.testing.assert_allclose((after**2).sum(axes), (before**2).sum(axes), rtol=1e-5)
    assert np.abs(after - before).max() > 0.1
  assert np.abs(params['zero']['kernel']).max() > 0  # what starts at zero may grow
  assert np.abs(np.asarray(params['Dense_0']['bias'] - first['Dense_0']['bias'])).max() > 0.1


def test_two_decays_and_decays_of_fixed_norms_are_refused_by_name():
  with pytest.raises(ValueError, match='two weight decays: weight_decay=0.1 and coupled_l2=0.2'):
    one_step(weight_decay=0.1, coupled_l2=0.2)
  for name in ('weight_decay', 'coupled_l2', 'l1'):
    with pytest.raises(ValueError, match=f'fixed norms undo {name}=0.1'):
      one_step(fix_norms=True, **{name: 0.1})
    with pytest.raises(ValueError, match=f'{name} must .* got -0.1'):
      one_step(**{name: -0.1})


def test_what_is_off_is_not_in_the_chain():
  state = chains.chain(optimizers.adam(), schedules.constant(0.1)).init(tree(0))
  assert set(state) == {'direction', 'rate'}
