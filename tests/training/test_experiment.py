"""The sampling plan of an experiment: what it refuses before training, what it notes, what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import rng
from diffusion.data import augment, pipeline, sources, splits
from diffusion.evaluation import memorization
from diffusion.evaluation.metric import Metric, Plan
from diffusion.models import mlp
from diffusion.optimizers import averaging
from diffusion.process import gaussian
from diffusion.runs import evaluating, loading
from diffusion.runs.run import prepare, techniques
from diffusion.sampling import grids, guidance, samplers, solvers
from diffusion.sampling.draw import make_sample, stored
from diffusion.sampling.plan import Sampling
from diffusion.sampling.plan import plan as planned
from diffusion.training import callbacks, guards
from diffusion.training import experiment as experiments
from diffusion.training import state as states
from diffusion.types import Prediction
from tests.training import tiny


def plan(**changes):
  return tiny.experiment(sampling=Sampling(**changes))


@pytest.mark.parametrize(
  'changes, count',
  [
    ({'steps': 10}, 10),
    ({'steps': 10, 'guidance': 2.0}, 20),
    ({'steps': 10, 'guidance': 2.0, 'sampler': solvers.heun}, 38),
    ({'steps': 18, 'sampler': solvers.heun, 'grid': grids.karras}, 35),
  ],
)
def test_evaluations_count_guidance_and_stages(changes, count):
  assert experiments.evaluations_of_a_sample(plan(**changes), (8,)) == count


def test_evaluations_inside_an_interval_are_counted_by_level():
  made = plan(steps=10, guidance=2.0, interval=(-2.0, 2.0))
  path = gaussian.bind(made.diffusion, ())
  level = np.asarray(path.log_snr(jnp.linspace(1.0, 0.1, 10)))
  inside = ((level >= -2) & (level <= 2)).sum()
  assert 0 < inside < 10
  assert experiments.evaluations_of_a_sample(made, (8,)) == 10 + inside


def test_the_techniques_of_sampling_are_noted_where_a_run_checks_them():
  made = plan(
    sampler=lambda path: samplers.ancestral(path, temperature=0.9),
    guidance=1.5,
    interval=(-3.0, 3.0),
    wrappers=(
      functools.partial(guidance.score_temperature, temperature=0.8),
      guidance.threshold_x0,
    ),
  )
  experiments.check(made)
  assert {
    'ancestral sampler', 'classifier-free guidance', 'guidance interval', 'score temperature',
    'dynamic thresholding of x0',
  } <= {one.name for one in techniques(made)}  # fmt: skip


def test_wrappers_act_in_turn_around_the_guided_denoiser():
  def one_more(denoise, path):
    return lambda z, t, key=None: denoise(z + 1, t)

  def doubled(denoise, path):
    return lambda z, t, key=None: denoise(2 * z, t)

  made = plan(wrappers=(one_more, doubled))
  path = gaussian.bind(made.diffusion, ())
  keys = rng.row_keys(jax.random.key(0), jnp.arange(1))
  found = planned(
    made.sampling, path, lambda z, t, key=None: z, lambda z, t, key=None: z, keys, jnp.arange(1)
  )
  # The last wrapper is the outermost: doubled, then plus one.
  assert found.denoise(3.0, None) == 7.0


@pytest.mark.parametrize(
  'changes, names',
  [
    ({'guidance': -1.0}, 'guidance .* got -1.0'),
    ({'guidance': 2.0, 'interval': (1.0, -1.0)}, 'log_snr_low < log_snr_high, got 1.0, -1.0'),
    ({'steps': 0}, 'sampling_steps .* got 0'),
    ({'per_class': 0}, 'per_class .samples of each class. must be an integer >= 1, got 0'),
    ({'grid_rows': 0}, 'grid_rows .* must be an integer >= 1, got 0'),
    ({'sampler': lambda path: samplers.ddim(path, eta=3.0)}, 'eta .* got 3.0'),
    (
      {'grid': lambda path, steps: jnp.array([1.0, 0.2, 0.4, 0.0])},
      'must decrease, got 0.2 before 0.4',
    ),
  ],
)
def test_a_bad_plan_is_refused_before_training(changes, names):
  with pytest.raises(ValueError, match=names):
    experiments.check(plan(**changes))


def test_guidance_needs_a_null_class():
  made = plan(guidance=2.0)._replace(model=mlp.mlp(16, 2, 0.0))
  with pytest.raises(ValueError, match='guidance of an unconditional network must be 1, got 2.0'):
    experiments.check(made)


def test_guidance_of_a_network_that_never_learned_to_do_without_labels_is_refused():
  """Whatever the augmentation is, it is asked whether it drops labels; 0 asks for the null network alone."""
  for drops in (augment.chain(), augment.label_dropout(0), augment.chain(augment.label_dropout(0))):
    for scale in (0.0, 2.0):
      with pytest.raises(
        ValueError, match=rf'guidance {scale:g} asks .* augment.label_dropout.0.1.'
      ):
        experiments.load_data(plan(guidance=scale)._replace(augment=drops))
    experiments.load_data(plan()._replace(augment=drops))

  def own(keys, batch):  # drops every label of an odd row
    return batch._replace(condition=jnp.where(batch.index % 2, -1, batch.condition))

  for drops in (own, augment.label_dropout(0.1), augment.chain(augment.label_dropout(1.0))):
    experiments.load_data(plan(guidance=2.0)._replace(augment=drops))


def test_rows_that_say_nothing_teach_the_network_to_do_without():
  null = lambda told: jax.tree.map(jnp.zeros_like, told)  # noqa: E731
  x = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
  for silent in (False, True):
    told = {'a': np.where(silent and np.arange(60)[:, None] % 3 == 0, 0, x[:, :1])}
    made = plan(guidance=2.0)._replace(
      data=sources.arrays('told', x, levels=None, condition=told), augment=augment.chain()
    )
    made = made._replace(model=made.model._replace(null=null, num_classes=0))
    if silent:
      experiments.load_data(made)
    else:
      with pytest.raises(ValueError, match='guidance 2 asks'):
        data = experiments.load_data(made._replace(sampling=Sampling()))
        experiments.load_data(made)
  # Rows that are silent of one of two things, or held out, do not.
  one = {'a': np.zeros((60, 1)), 'b': x[:, :1]}
  unseen = np.setdiff1d(np.arange(60), data.split.train)
  held_out = {'a': np.where(np.isin(np.arange(60), unseen)[:, None], 0, x[:, :1])}
  assert len(unseen) > 10
  for told in (one, held_out):
    other = made._replace(data=sources.arrays('told', x, levels=None, condition=told))
    with pytest.raises(ValueError, match='guidance 2 asks'):
      experiments.load_data(other)


def test_a_run_without_label_dropout_is_not_guided_later_either(tmp_path):
  """What it learned is in its record: neither another configuration nor another plan changes that."""
  plain = tiny.experiment(augment=augment.chain())
  run = prepare(lambda _: plain, {}, 'plain', tmp_path / 'run')
  run.claim()
  guided = plan(guidance=3.0)  # with label dropout, which the run did not have
  again = prepare(lambda _: guided, {}, 'plain', tmp_path / 'run')
  with pytest.raises(ValueError, match='guidance 3 asks'):
    evaluating.evaluate(again, 'evaluate', experiments.AS_THE_RUN)
  with pytest.raises(ValueError, match='guidance 3 asks'):
    loading.load(tmp_path / 'run', guided)
  trained = loading.Trained(
    experiment=guided, step=0, state=None, shape=(8,), units=pipeline.NormalizationStatistics(), num_classes=2,
    parameters=None, null_learned=False,
  )  # fmt: skip
  with pytest.raises(ValueError, match='guidance 3 asks'):
    trained.sample([0, 1])
  with pytest.raises(ValueError, match=r'the label -1 says nothing, .* augment.label_dropout'):
    trained.denoiser([0, -1])
  with pytest.raises(ValueError, match='the label -1 says nothing'):
    loading.Ensemble((trained,)).sample([-1])


def test_turned_digits_with_labels_are_warned_of_once_by_name(capsys):
  flipped = tiny.images(augment=tiny.augment.flip())
  experiments.load_data(flipped)
  said = capsys.readouterr().err
  assert said.count('warning: flip of digits may make an image of another class') == 1
  told = tiny.images(augment=tiny.augment.conditioned(0.1, tiny.augment.flip()))
  experiments.load_data(told)
  experiments.load_data(flipped._replace(model=mlp.mlp(16, 1)))  # which is told no class
  assert capsys.readouterr().err == ''


def test_clipping_follows_standardized_data():
  """Samples of a standardized run reach the darkest and the brightest level, which [-1, 1] would cut off."""
  made = tiny.images(normalization=pipeline.standardized())
  data = experiments.load_data(made)
  low, high = data.units.range
  assert low < 0 and high > 1.5
  (clip,) = experiments.fitted(made, data.units).sampling.wrappers
  path = gaussian.bind(made.diffusion, ())
  z, t = jnp.array([[-9.0], [9.0]]), jnp.full(2, 0.5)
  found = clip(lambda z, t, key=None: Prediction(z, z), path)(z, t).x0
  np.testing.assert_allclose(found, [[low], [high]], rtol=1e-6)
  plain = tiny.images()
  fitted = experiments.fitted(plain, experiments.load_data(plain).units)
  assert fitted.sampling.wrappers == (guidance.clip_x0,)


def floats(x, **changes):
  return tiny.experiment(
    data=sources.arrays('floats', x.astype(np.float32), levels=None), model=mlp.mlp(32, 2, 0.0),
    augment=tiny.augment.chain(), normalization=None, **changes,
  )  # fmt: skip


@pytest.mark.parametrize(('mean', 'deviation'), [(0, 1), (5000, 1000)])
def test_samples_of_floats_have_the_moments_of_their_data(mean, deviation):
  """Whatever the data's units: the loss is of order 1, and no sample ends at a threshold."""
  x = np.random.default_rng(0).normal(mean, deviation, (400, 3))
  made = floats(x, steps_per_dispatch=100, log_every=100, validate_every=100, num_steps=300)
  data, state, _ = tiny.start(made)
  made = experiments.fitted(made, data.units)
  program = tiny.single(made, data, state)
  loss = [tiny.dispatch(program)['loss'] for _ in range(3)][-1]
  draw = make_sample(made.model, made.diffusion, made.sampling, (3,))
  numbers = np.arange(1000)
  found = stored(draw, data.units)(states.weights(made, program.get(0)), 0 * numbers, numbers)
  print(loss, found.mean(0), found.std(0))
  assert 0.1 < loss < 3
  assert np.unique(found, return_counts=True)[1].max() < 5
  np.testing.assert_allclose(found.mean(), x.mean(), atol=0.15 * deviation)
  np.testing.assert_allclose(found.std() / x.std(), 1, atol=0.15)


@pytest.mark.parametrize(
  ('made', 'says'),
  [
    (
      lambda: floats(np.linspace(-2, 2, 400)[:, None] + np.zeros(3), sampling=Sampling(wrappers=(guidance.clip_x0,))),
      r'static thresholding of x0 would cut .* \[-1.7',
    ),
    (
      lambda: tiny.experiment(sampling=Sampling(wrappers=(lambda d, p: guidance.clip_x0(d, p, -2.0, 2.0),))),
      'static thresholding of x0 would cut',
    ),
    (
      lambda: tiny.images(normalization=pipeline.standardized(), sampling=Sampling(wrappers=(guidance.threshold_x0,))),
      'dynamic thresholding of x0 would cut',
    ),
  ],
)  # fmt: skip
def test_data_that_leaves_the_range_of_a_threshold_is_refused(made, says):
  with pytest.raises(ValueError, match=says):
    experiments.load_data(made())


@pytest.mark.parametrize(
  'wrap', [guidance.clip_x0, guidance.threshold_x0, lambda d, p: guidance.score_temperature(d, p, 0.9)]
)  # fmt: skip
def test_images_in_their_range_pass_every_wrapper(wrap):
  experiments.load_data(tiny.images(sampling=Sampling(wrappers=(wrap,))))


def test_a_guard_needs_checkpoints_to_go_back_to():
  guard = guards.spike_guard(10)
  with pytest.raises(
    ValueError, match=r'spike_guard goes back .* saves none: add callbacks.checkpoint'
  ):
    experiments.check(tiny.experiment(callbacks=[guard]))
  experiments.check(tiny.experiment(callbacks=[guard, callbacks.checkpoint()]))


def test_what_metrics_are_told_of_an_evaluation_is_of_its_plan_and_its_splits():
  made = tiny.images(split=splits.Fractions(0.1, 0.05), sampling=Sampling(per_class=7))
  data = experiments.load_data(made)
  held_out = len(data.split.validation) + len(data.split.test)
  wanted = Plan(
    samples=70, classes=10, shape=(8, 8, 1), train=len(data.split.train), held_out=held_out, conditions=False,
  )  # fmt: skip
  assert experiments.evaluation_plan(made, data) == wanted
  asked = []
  experiments.load_data(
    made._replace(metrics=[Metric(asked.append, None), Metric(asked.append, None)])
  )
  assert asked == [wanted] * 2  # each is asked before training
  assert len(data.split.train) + held_out == len(data.dataset.x)
  x = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
  plain = {'model': mlp.mlp(16, 1), 'augment': augment.chain(), 'sampling': Sampling(per_class=7)}
  for condition, told in ((None, False), ({'a': x[:, :1]}, True)):
    made = tiny.experiment(data=sources.arrays('x', x, levels=None, condition=condition), **plain)
    found = experiments.evaluation_plan(made, experiments.load_data(made))
    assert (found.samples, found.shape, found.conditions) == (7, (8,), told)


def test_an_evaluation_has_the_plan_of_the_run_but_for_what_it_is_asked():
  mine = Sampling(solvers.heun, steps=9, guidance=1.5, grid=grids.karras, per_class=3)
  made = tiny.experiment(sampling=mine, metrics=[memorization.nearest_neighbor_ratio()])

  def found(**asked):
    return experiments.EvaluationSettings(**asked).applied(made)

  assert found() == made == found(seed=5, samples=4, features='digits')
  assert found(metrics=('frechet',)) == made._replace(metrics=())
  for asked, changes in (
    ({'steps': 4}, {'steps': 4}),
    ({'grid': 'geometric'}, {'grid': grids.geometric}),
    ({'sampler': 'ddim'}, {'sampler': samplers.ddim, 'grid': None}),  # the grid that suits it
    (
      {'sampler': 'ddim', 'grid': 'geometric', 'steps': 5},
      {'sampler': samplers.ddim, 'grid': grids.geometric, 'steps': 5},
    ),
  ):
    assert found(**asked) == made._replace(sampling=mine._replace(**changes))


def test_a_network_of_other_classes_than_the_data_is_refused_by_their_names():
  said = r'num_classes=3, .* has 2 classes \(component 0, component 1\): make them agree'
  with pytest.raises(ValueError, match=said):
    experiments.load_data(tiny.experiment(model=mlp.mlp(16, 1, num_classes=3)))
  experiments.load_data(tiny.experiment(model=mlp.mlp(16, 1)))  # it is told none


@pytest.mark.parametrize(
  'name', ['num_steps', 'batch_size', 'log_every', 'validate_every', 'steps_per_dispatch']
)
def test_numbers_of_a_run_are_integers_of_at_least_one(name):
  for number in (0, 2.5):
    with pytest.raises(ValueError, match=f'^{name} must be an integer >= 1, got {number}'):
      experiments.check(tiny.experiment(**{name: number}))


def test_what_is_odd_of_a_plan_is_said_and_what_the_devices_cannot_share_is_refused(capsys):
  experiments.load_data(plan(sampler=solvers.heun, steps=10))
  assert capsys.readouterr().err == ''
  experiments.load_data(plan(sampler=solvers.heun, steps=9))
  assert capsys.readouterr().err.startswith('warning: sampling_steps = 9 are few')
  with pytest.raises(ValueError, match='batch_size 30 is not divisible by the 4 devices'):
    experiments.check(tiny.experiment(batch_size=30))


@pytest.mark.parametrize(
  ('name', 'says'),
  [
    ('judged', 'the field judged of an Experiment is now evaluation_average'),
    ('bank', 'the field bank of an Experiment is now evaluation_noise'),
    ('optimiser', 'an Experiment has no field optimiser: the nearest is optimizer'),
  ],
)
def test_a_field_that_is_not_there_names_the_one_that_is(name, says):
  made = plan()
  for make in (experiments.Experiment, made._replace):
    assert make(**made._asdict()) == made
    with pytest.raises(TypeError, match=says):
      make(**made._asdict(), **{name: 1})


def test_the_numbers_common_to_all_reach_the_experiment():
  numbers = experiments.Numbers(5, 70, 8, 7, 14, 28)
  assert numbers.loop() == {
    'seed': 5, 'num_steps': 70, 'batch_size': 8, 'steps_per_dispatch': 7, 'log_every': 14, 'validate_every': 28,
  }  # fmt: skip
  made = tiny.experiment(**numbers.loop())
  assert all(getattr(made, name) == value for name, value in numbers.loop().items())


def test_by_default_the_first_average_is_evaluated_and_without_one_the_weights():
  made = tiny.experiment(averages={'slow': averaging.ema(0.9), 'fast': averaging.ema(0.1)})
  made = made._replace(evaluation_average=None)
  _, state, _ = tiny.start(made)
  moved = state._replace(params=jax.tree.map(lambda p: p + 1, state.params))
  found = tiny.leaves(states.evaluation_parameters(made, moved))
  slow = tiny.leaves(made.averages['slow'].read(moved.averages['slow']))
  assert all((found[path] == leaf).all() for path, leaf in slow.items())
  bare = tiny.leaves(states.evaluation_parameters(made._replace(averages={}), moved))
  params = tiny.leaves(moved.params)
  assert all((bare[path] == leaf).all() for path, leaf in params.items())
  assert any((found[path] != params[path]).any() for path in params)
