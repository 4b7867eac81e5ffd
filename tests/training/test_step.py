"""The step: all or nothing, alive in every knob, the same in one call or in many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices, rng
from diffusion.data import augment, pipeline
from diffusion.objectives import times
from diffusion.optimizers import averaging, chains, optimizers, schedules
from diffusion.training import experiment as experiments
from diffusion.training import gradient as gradients
from diffusion.training import step as steps
from diffusion.training.state import evaluation_parameters
from diffusion.types import Curriculum, Rows
from tests.training import tiny

COUNTERS = {'.step', '.batches_seen', '.skipped', '.skipped_in_a_row'}


def one_device(experiment):
  """The step on one device, outside of pmap."""
  return tiny.one_device(experiment, experiments.load_data(experiment))


def begin(experiment):
  """(its first state, its data, its step)."""
  _, state, data = tiny.start(experiment)
  return state, data, one_device(experiment)


@functools.cache
def begun(**knobs):
  """`begin` of the tiny experiment with these knobs, compiled once for all tests."""
  return begin(tiny.experiment(**knobs))


def go(begun, count):
  """(state, metrics) after so many steps."""
  state, data, step = begun
  for _ in range(count):
    state, metrics = step(state, data)
  return state, metrics


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_non_finite_batch_leaves_everything_but_the_counters(value):
  state, data, step = begun()
  for _ in range(3):
    state, _ = step(state, data)
  before = tiny.leaves(state)
  bad = data._replace(x=data.x.at[:].set(value))
  state, _ = step(state, bad)
  state, metrics = step(state, bad)
  after = tiny.leaves(state)
  changed = {name for name in before if not np.array_equal(before[name], after[name])}
  assert changed == COUNTERS
  assert after['.step'] == 5
  assert after['.batches_seen'] == 5
  assert metrics['skipped'] == 2
  assert metrics['skipped_in_a_row'] == 2
  state, metrics = step(state, data)  # and it recovers
  assert metrics['skipped'] == 2
  assert metrics['skipped_in_a_row'] == 0
  assert int(state.averages['ema'].count) == 4


def test_an_overflowing_update_is_skipped_too():
  wild = begun(learning_rate=3e38, weight_decay=1e6)
  before, *_ = wild
  state, metrics = go(wild, 1)
  assert metrics['skipped'] == 1
  for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(state.params), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_loss_or_a_gradient_that_alone_is_not_finite_is_skipped():
  """A loss of infinity without a slope; and a slope whose norm overflows, of which clipping would make nothing."""
  plain = tiny.experiment().terms['denoise'][1]

  def leaf(context):  # it is zero at the start
    return context.params['Dense_1']['bias'][0]

  for more in (lambda context: jnp.inf, lambda context: 1e30 * leaf(context)):
    term = plain._replace(
      apply=lambda params, context, more=more: plain.apply(params, context) + more(context)
    )
    state, data, step = begin(tiny.experiment(terms={'denoise': (1.0, term)}))
    after, metrics = step(state, data)
    assert metrics['skipped'] == 1
    before, found = tiny.leaves(state), tiny.leaves(after)
    assert {n for n in before if not np.array_equal(before[n], found[n])} == COUNTERS


def test_window_means_leave_skipped_steps_out_and_restart():
  experiment = tiny.experiment(log_every=4)
  state, data, step = begin(experiment)
  bad = data._replace(x=data.x * np.nan)
  alone = one_device(experiment._replace(log_every=1))
  singles = []
  for i, d in enumerate([data, bad, data, data, data]):
    old = state
    state, metrics = step(state, d)
    fresh = alone(old, d)[1]  # a window of this step alone
    singles.append(float(fresh['loss']))
    if i == 3:
      good = [singles[0], singles[2], singles[3]]
      np.testing.assert_allclose(metrics['loss'], np.mean(good), rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], singles[4], rtol=1e-6)


def test_a_window_that_begins_with_a_skipped_step_has_nothing_of_the_one_before():
  begun = begin(tiny.experiment(log_every=4))
  state, data, step = begun
  bad = data._replace(x=data.x * np.nan)
  for d in (data, data, data, data, bad, data):
    state, metrics = step(state, d)
    assert state.window['steps'] == {4: 4, 5: 0, 6: 1}.get(int(state.step), state.step)
  alone = one_device(tiny.experiment(log_every=1))
  old, _ = go(begun, 4)
  old, _ = step(old, bad)
  np.testing.assert_allclose(metrics['loss'], alone(old, data)[1]['loss'], rtol=1e-6)


def test_the_loss_by_noise_level_is_that_of_the_rows_of_each_eighth_of_t():
  """By hand from the draws; the first eighth is that of the least noise."""
  made = tiny.experiment(times=times.uniform())
  split, state, data = tiny.start(made)
  rows = Rows(jnp.arange(32), 32)

  @jax.jit
  def by_hand(given):
    batch = gradients.take_batch(made, split.units, state, data, given, rows)
    draws = gradients.draw(made, state, batch, rows)
    return draws, gradients.whole(made, state, batch, draws, lambda tree: tree).rows_loss

  draws, losses = by_hand(tiny.rows_of(made, split, 0))
  losses = np.asarray(losses)
  part = np.floor(8 * np.asarray(draws.t)).astype(int)
  found = tiny.one_device(made, split)(state, data)[1]['loss_bucket']
  wanted = [np.mean(losses[part == i]) if (part == i).any() else np.nan for i in range(8)]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  assert np.nanmax(np.abs(np.subtract(wanted, wanted[::-1]))) > 1e-2


def test_the_scale_of_the_learning_rate_scales_the_step():
  state, data, step = begun(clip_norm=None)
  moved = {}
  for scale in (0.0, 0.5, 1.0):
    after, metrics = step(state._replace(learning_rate_scale=jnp.float32(scale)), data)
    moved[scale] = tiny.leaves(jax.tree.map(jnp.subtract, after.params, state.params))
    np.testing.assert_allclose(metrics['learning_rate'], scale * 1e-2, rtol=1e-6)
    length = np.sqrt(sum((value**2).sum() for value in moved[scale].values()))
    np.testing.assert_allclose(metrics['update_norm'], length, rtol=1e-4)
  for name, whole in moved[1.0].items():
    np.testing.assert_allclose(moved[0.5][name], whole / 2, atol=1e-7, err_msg=name)
    assert not moved[0.0][name].any()
  assert max(np.abs(value).max() for value in moved[1.0].values()) > 5e-3


def test_progress_is_of_steps_and_not_of_batches_seen():
  """So that what a rollback undid is undone in a curriculum, too."""
  seen = {}

  def noting(name, result):
    def note(*arguments):
      *_, seen[name] = arguments if name != 'times' else arguments[:4]
      return result(*arguments)

    return note

  base = tiny.experiment()
  paced = Curriculum(
    rank=None,
    share=noting('share', lambda progress: 1.0),
    transform=noting('transform', lambda b, p: b),
  )
  drawn = base.times._replace(draw=noting('times', base.times.draw))
  made = base._replace(curriculum=paced, times=drawn)
  split, state, data = tiny.start(base)
  state = state._replace(step=jnp.int32(10), batches_seen=jnp.int32(30))
  data = data._replace(order=jnp.asarray(split.split.train))
  rows = Rows(jnp.arange(32), 32)
  batch = gradients.take_batch(made, split.units, state, data, tiny.rows_of(made, split, 30), rows)
  gradients.draw(made, state, batch, rows)
  assert {name: float(value) for name, value in seen.items()} == dict.fromkeys(
    ('share', 'transform', 'times'), 0.25
  )


def test_what_is_drawn_for_a_batch_is_of_the_batches_seen():
  """After a rollback the step is smaller, and the draws of the batches before it do not come again."""
  made = tiny.experiment()
  split, state, data = tiny.start(made)
  rows = Rows(jnp.arange(32), 32)

  @jax.jit
  def drawn(step, seen):
    at = state._replace(step=step, batches_seen=seen)
    batch = gradients.take_batch(made, split.units, at, data, jnp.arange(32), rows)
    found = gradients.draw(made, at, batch, rows)
    return batch.condition, found._replace(dropout=jax.random.key_data(found.dropout), term=None)

  back, ahead, before = (
    tiny.leaves(drawn(*map(jnp.int32, at))) for at in ((10, 30), (30, 30), (10, 10))
  )
  for name, value in back.items():
    np.testing.assert_array_equal(value, ahead[name], err_msg=name)
    assert 'importance' in name or not np.array_equal(value, before[name]), name


def test_a_term_is_told_of_the_draws_of_its_rows_and_may_ask_the_network_once_more():
  """By the formulas of the cosine schedule, where v is predicted, with a network that is none."""
  state, data, _ = begun()
  base, asked, seen = tiny.experiment(times=times.uniform()), [], []

  def apply(variables, z, noise, told, **mode):
    asked.append((variables, told, mode))
    return 0.5 * z + noise[:, None] + told.condition[:, None], {'moved': len(asked)}

  def note(params, context):
    seen.append(context)
    return jnp.arange(32.0)

  made = base._replace(
    model=base.model._replace(apply=apply),
    terms={'noted': (2.0, base.terms['denoise'][1]._replace(apply=note))},
  )
  units, rows = experiments.load_data(base).units, Rows(jnp.arange(32), 32)
  curve = lambda t: made.diffusion.schedule.log_snr((), t)  # noqa: E731
  state = state._replace(params=state.params._replace(terms={'noted': ()}), seed=jnp.uint32(8))

  @jax.jit
  def by_hand(state):
    batch = gradients.take_batch(made, units, state, data, jnp.arange(32), rows)
    draws = gradients.draw(made, state, batch, rows)
    level = curve(draws.t), jax.vmap(jax.grad(curve))(draws.t)
    loss = gradients.make_loss(made, state, batch, draws, lambda tree: tree)(state.params, level)
    (context,) = seen
    again = context.predict(context.z + 1)
    (of, told, first), (_, _, second) = asked
    assert context.params is of['params'] is state.params.network and context.batch is batch
    assert told.condition is batch.condition and told.augment is batch.augment_label
    assert 'forward_mode' not in first and second.pop('forward_mode')
    assert first == second and first['keys'] is draws.dropout and first['update_statistics']
    assert context.keys is draws.term
    context = context._replace(predict=None, keys=None, params=None)
    draws = draws._replace(dropout=None, term=None)
    return batch, draws, level, loss, context, again, jax.random.key_data(first['batch_key'])

  batch, draws, (log_snr, slope), loss, context, again, key = by_hand(state)
  value, (terms, rows_loss, moved) = loss
  np.testing.assert_allclose(rows_loss, 2 * np.arange(32))
  np.testing.assert_allclose(terms['noted'], np.arange(32))
  assert value == 31 and moved == {'moved': 1}
  alpha, sigma = (np.sqrt(jax.nn.sigmoid(by * log_snr))[:, None] for by in (1, -1))
  z = alpha * batch.x + sigma * draws.eps
  v = 0.5 * z - log_snr[:, None] / 8 + batch.condition[:, None]
  for name, wanted in {
    'eps': draws.eps, 't': draws.t, 'log_snr': log_snr, 'slope': slope, 'z': z, 'marginal.alpha': alpha[:, 0],
    'marginal.sigma': sigma[:, 0], 'prediction.x0': alpha * z - sigma * v, 'prediction.eps': sigma * z + alpha * v,
  }.items():  # fmt: skip
    given = functools.reduce(getattr, name.split('.'), context)
    np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
  more = alpha * (z + 1) - sigma * (v + 0.5)
  np.testing.assert_allclose(again.x0, more, rtol=1e-4, atol=1e-5)
  shared = jax.random.fold_in(rng.batch_key(8, 'dropout', 0), rng.tag('batch'))
  np.testing.assert_array_equal(key, jax.random.key_data(shared))


def test_what_a_curriculum_makes_of_a_batch_is_what_is_learned_from():
  made = tiny.experiment()
  double = Curriculum(
    rank=None, share=lambda _: 1.0, transform=lambda b, p: b._replace(x=2 * b.x + p)
  )
  split, state, data = tiny.start(made)
  state, data = state._replace(step=jnp.int32(10)), data._replace(order=jnp.arange(len(data.x)))
  rows, given = Rows(jnp.arange(32), 32), jnp.asarray(tiny.rows_of(made, split, 0))
  plain, changed = (
    gradients.take_batch(one, split.units, state, data, given, rows)
    for one in (made, made._replace(curriculum=double))
  )
  np.testing.assert_allclose(changed.x, 2 * plain.x + 10 / 40, rtol=1e-6)


def test_the_importance_of_a_row_scales_what_is_learned_from_it():
  """A row of importance 0 counts for nothing, and one of importance 2 twice, in the gradient and in the loss."""
  base = tiny.experiment(dropout=0.0)

  def weighing(*factors):
    def draw(state, key, rows, progress, path):
      t, importance = base.times.draw(state, key, rows, progress, path)
      return t, importance * jnp.where(rows.index < 16, *factors)

    return base._replace(times=base.times._replace(draw=draw))

  split, state, data = tiny.start(base)
  rows = Rows(jnp.arange(32), 32)

  @functools.partial(jax.jit, static_argnums=0)
  def found(*factors):
    made = weighing(*factors[0])
    batch = gradients.take_batch(made, split.units, state, data, jnp.arange(32), rows)
    draws = gradients.draw(made, state, batch, rows)
    whole = gradients.whole(made, state, batch, draws, lambda tree: tree)
    return whole.value, whole.gradient.network

  one, other, both = (
    tiny.leaves(found(factors)) for factors in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0))
  )
  for name, value in both.items():
    np.testing.assert_allclose(
      value, 2 * one[name] + 3 * other[name], rtol=1e-4, atol=1e-5, err_msg=name
    )
  assert one['[0]'] > 0 and other['[0]'] > 0


def run_each(make, values, count):
  """(state, metrics) after so many steps with each value of a knob, traced as in a population: by one program."""
  split, first, data = tiny.start(make(values[0]))

  @jax.jit
  def step(value, state, given):
    return tiny.one_step(make(value), split)(state, data, given)

  found = []
  for value in values:
    state = first
    for _ in range(count):
      state, metrics = step(value, state, tiny.rows_of(make(value), split, state.batches_seen))
    found.append((state, metrics))
  return found


def difference(a, b):
  return np.sqrt(
    sum(
      float(((x - y) ** 2).sum())
      for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
  )


def kernels(state):
  return {n: v for n, v in tiny.leaves(state.params.network).items() if 'kernel' in n}


def test_dropout_is_live_and_grows():
  found = run_each(lambda rate: tiny.experiment(dropout=rate), (0.02, 0.5), 3)
  small, large = (state for state, _ in found)
  reference, _ = go(begun(dropout=0.0), 3)
  assert 0 < difference(reference.params, small.params) < difference(reference.params, large.params)


def test_weight_decay_shrinks_kernels_in_proportion_and_nothing_else():
  without = begun(weight_decay=0.0)
  start, *_ = without
  plain, _ = go(without, 1)
  decays = (0.1, 1.0)
  found = run_each(lambda decay: tiny.experiment(weight_decay=decay), decays, 1)
  for decay, (decayed, _) in zip(decays, found, strict=True):
    before, a, b = (tiny.leaves(s.params.network) for s in (start, plain, decayed))
    for name, weights in before.items():
      shrink = 1e-2 * decay * weights if 'kernel' in name else 0 * weights
      np.testing.assert_allclose(a[name] - b[name], shrink, atol=2e-7)


def test_clipping_bounds_the_gradient_that_adam_sees():
  norms, clips = {}, (1e-3, 1e-1)
  found = run_each(lambda clip: tiny.experiment(clip_norm=clip), clips, 1)
  for clip, (state, metrics) in zip(
    (None, *clips), (go(begun(clip_norm=None), 1), *found), strict=True
  ):
    adam = state.optimizer['direction']
    moments = np.concatenate([np.ravel(x) for x in jax.tree.leaves(adam.mu)])
    norms[clip] = float(np.linalg.norm(moments) / 0.1)  # mu = (1 - b1) g after one step
    pre_clip = float(metrics['gradient_norm'])
  assert pre_clip > 0.1
  np.testing.assert_allclose(norms[None], pre_clip, rtol=1e-5)
  np.testing.assert_allclose(norms[1e-3], 1e-3, rtol=1e-5)
  np.testing.assert_allclose(norms[1e-1], 1e-1, rtol=1e-5)


def test_ema_lags_more_with_a_larger_decay():
  experiment = tiny.experiment()._replace(
    averages={
      'fast': averaging.ema(0.05),
      'slow': averaging.ema(0.999),
      'last': averaging.ema(0.0),
    },
    evaluation_average='slow',
  )
  state, _ = go(begin(experiment), 30)
  lag = {n: difference(a.params, state.params) for n, a in state.averages.items()}
  assert lag['last'] == 0
  assert 0 < lag['fast'] < lag['slow']


def test_without_an_average_what_the_optimizer_reads_is_evaluated():
  """The schedule-free update takes gradients at y = (1 - b) z + b x, and x is what it has learned."""
  free = chains.schedule_free(optimizers.adam(b1=0.0), schedules.constant(1e-2), momentum=0.8)
  made = tiny.experiment(optimizer=free, averages={}, evaluation_average='')
  state, _ = go(begin(made), 4)
  found, y, z = (
    tiny.leaves(tree)
    for tree in (evaluation_parameters(made, state), state.params, state.optimizer['free'].z)
  )
  for name, value in found.items():
    np.testing.assert_allclose(y[name], 0.2 * z[name] + 0.8 * value, atol=1e-6, err_msg=name)
  assert max(np.abs(y[name] - value).max() for name, value in found.items()) > 1e-3


def test_augmentation_and_label_dropout_reach_the_step():
  plain, _ = go(begun(augment=augment.chain()), 2)
  dropped, _ = go(begun(), 2)
  assert difference(plain.params, dropped.params) > 0


def test_loss_factor_scales_the_gradient():
  term = tiny.experiment().terms['denoise'][1]
  _, one = go(begun(dropout=0.0), 1)
  _, three = go(begin(tiny.experiment(dropout=0.0, terms={'denoise': (3.0, term)})), 1)
  np.testing.assert_allclose(three['gradient_norm'], 3 * one['gradient_norm'], rtol=1e-5)
  np.testing.assert_allclose(three['loss/denoise'], one['loss/denoise'], rtol=1e-6)
  np.testing.assert_allclose(three['loss'], 3 * one['loss'], rtol=1e-5)
  np.testing.assert_allclose(one['loss'], one['loss/denoise'], rtol=1e-5)


def test_loss_buckets_partition_the_batch():
  state, metrics = go(begun(), 1)
  np.testing.assert_allclose(
    state.window['bucket_count'], 4
  )  # stratified: 32 rows in 8 equal parts
  np.testing.assert_allclose(np.mean(metrics['loss_bucket']), metrics['loss'], rtol=1e-5)


def test_k_scanned_steps_equal_k_single_steps():
  experiment = tiny.images()
  split, state, _ = tiny.start(experiment)
  end = {}
  for k in (1, 4):
    program = tiny.single(experiment._replace(steps_per_dispatch=k), split, state)
    for _ in range(8 // k):
      metrics = tiny.dispatch(program)
    end[k] = tiny.leaves(devices.to_host(program.get(0))), metrics
  for name, value in end[1][0].items():
    np.testing.assert_allclose(value, end[4][0][name], rtol=2e-4, atol=2e-6, err_msg=name)
  np.testing.assert_allclose(end[1][1]['loss'], end[4][1]['loss'], rtol=1e-5)


class Compilations:
  """Counts what XLA compiles."""

  def __enter__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self.listen)
    return self

  def listen(self, event, duration, **rest):
    self.count += 'backend_compile' in event

  def __exit__(self, *error):
    jax.monitoring.unregister_event_duration_listener(self.listen)


def test_nothing_is_compiled_after_the_first_dispatch():
  experiment = tiny.experiment()
  split, state, _ = tiny.start(experiment)
  program = tiny.single(experiment, split, state)
  dataset = split.dataset
  devices.replicate(pipeline.InMemoryData(dataset.x, dataset.label))  # so that placing is compiled
  with Compilations() as first:
    fetch = program.dispatch([0])
  fetch(0)  # what copies to the host is compiled once too
  with Compilations() as later:
    for _ in range(5):
      tiny.dispatch(program)
  with Compilations() as planted:  # the counter does count
    state = program.get(0)
    program.put(0, state._replace(step=state.step.astype(jnp.float32)))
    tiny.dispatch(program)
  assert first.count == 1  # compiled apart, and not once more when it runs
  assert later.count == 0
  assert planted.count >= 1


def lowered(experiment):
  _, state, data = tiny.start(experiment)
  step = steps.make_step(experiment, pipeline.NormalizationStatistics())
  program = devices.parallelize(step, experiment.batch_size)
  given = np.zeros((4, 1, experiment.batch_size // 4), np.int32)
  return program.lower(devices.replicate(state), devices.replicate(data), given).as_text()


def test_no_callback_to_the_host_in_the_lowered_step():
  assert 'callback' not in lowered(tiny.experiment())

  def planted(keys, batch):
    jax.debug.callback(lambda x: None, batch.x)
    return batch

  assert 'callback' in lowered(tiny.experiment(augment=planted))


def test_what_is_off_leaves_no_trace_in_the_program():
  def text(**off):
    experiment = tiny.experiment(**off)
    return lowered(experiment)

  plain = text(dropout=0.0, weight_decay=0.0, clip_norm=None, augment=lambda keys, batch: batch)
  off = text(dropout=0, weight_decay=0, clip_norm=0, augment=augment.chain())
  on = text(dropout=0.1, weight_decay=0.0, clip_norm=None, augment=lambda keys, batch: batch)
  assert plain == off
  assert plain != on


def test_conditioned_augmentation_reaches_the_network():
  """The map of the label has a gradient in a step."""
  made = tiny.images(
    augment=augment.conditioned(0.5, augment.flip(), augment.shift(1)),
    optimizer=chains.adamw(schedules.constant(1e-2)),  # decay would move it, too
  )
  split, state, data = tiny.start(made)
  kernel = jax.tree_util.tree_leaves_with_path(state.params.network)
  (name,) = [path for path, _ in kernel if "['augment']" in jax.tree_util.keystr(path)]
  step = tiny.one_device(made, split)
  moved = state
  for _ in range(
    3
  ):  # the network's output starts at zero, and with it every gradient but the output's
    moved, _ = step(moved, data)
  before, after = (
    tiny.leaves(s.params.network)[jax.tree_util.keystr(name)] for s in (state, moved)
  )
  assert before.shape[0] == 3
  assert np.abs(after - before).max() > 1e-6
