"""One run with everything on, made in ways that must come to the same.

The run, which was interrupted, is what `tests/written_out.py` says, from the pieces and the formulas alone. What is
loaded samples what was evaluated; an evaluation that is asked for something is that of an experiment that says so; a
member of a population is the run alone; judged again, a run has its results. An option that gets lost on one of the
ways parts them, whichever it is.
"""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import diffusion
from diffusion.data import augment, curriculum, pipeline, sources, splits
from diffusion.evaluation import gap, membership, memorization
from diffusion.models import mlp, normalization
from diffusion.objectives import losses, penalties, times, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.provenance import read_record
from diffusion.reporting.rows import read_json_lines
from diffusion.runs import population
from diffusion.runs.run import prepare
from diffusion.runs.samples import stored
from diffusion.sampling import grids, samplers, solvers
from diffusion.training import callbacks, guards
from diffusion.types import Model
from tests import shapes, written_out

pytestmark = pytest.mark.slow  # a minute and a half of one core


@dataclasses.dataclass
class Config(diffusion.Numbers):
  """Numbers of a short run."""

  seed: int = 3
  num_steps: int = 40
  batch_size: int = 32
  steps_per_dispatch: int = 5
  log_every: int = 5
  validate_every: int = 10
  sampling_steps: int = 4


def fail(state, look):
  """Ends the run at step 30 while a file says so."""
  if look.step == 30 and (look.folder.parent / 'fail').exists():
    raise RuntimeError('as it was asked to')
  return state, callbacks.Continue()


def on_images(model: Model) -> Model:
  """A network for vectors, of the pixels of images: it is compiled in a tenth of the time of one for images."""

  def flat(z):
    return z.reshape(len(z), -1)

  def apply(variables, z, *given, **more):
    output, moved = model.apply(variables, flat(z), *given, **more)
    return output.reshape(z.shape), moved

  return model._replace(init=lambda key, z, *given: model.init(key, flat(z), *given), apply=apply)


def build(c: Config) -> diffusion.Experiment:
  """The digits, standardized, with something of every kind that a run may have."""
  rate = schedules.warmup_cosine(c.learning_rate, c.num_steps, 5, 1e-5)
  return diffusion.Experiment(
    **c.loop(),
    data=sources.digits(),
    split=splits.Fractions(0.05, 0.05, 200),
    normalization=pipeline.standardized(),
    augment=augment.chain(
      augment.conditioned(0.3, augment.shift(1), augment.flip()), augment.label_dropout(0.2)
    ),
    curriculum=curriculum.by_class(tuple(range(10))),
    diffusion=gaussian.Diffusion(
      noise.learned(-9.0, 9.0, width=4), marginals.variance_preserving, parameterizations.v()
    ),
    model=on_images(mlp.mlp(32, 2, 0.2, num_classes=10, norm=normalization.batch(0.9))),
    terms={'denoise': (1.0, losses.uncertain(weights.min_snr(), 4)), 'l2': (1e-4, penalties.l2())},
    times=times.importance(buckets=4),
    optimizer=chains.adamw(rate, 0.05, c.clip_norm),
    averages={'wide': averaging.power(0.1), 'ema': averaging.ema(0.8)},
    evaluation_average='ema',
    callbacks=[
      callbacks.checkpoint('step'),  # so that the best is not the last
      callbacks.reduce_on_plateau('train/eps', patience=10, min_delta=10.0),  # it always is one
      callbacks.watch_memorization(10, per_class=2),
      guards.spike_guard(c.log_every, back=10),
      callbacks.Callback('fail', c.log_every, dict, fail),
    ],
    evaluation_noise=gap.evaluation_noise(levels=3, draws=1),
    sampling=diffusion.Sampling(
      solvers.heun, c.sampling_steps, 1.5, interval=(-4.0, 4.0), grid=grids.karras, per_class=2, grid_rows=1,
      monte_carlo=2,
    ),
    metrics=[memorization.nearest_neighbor_ratio(), membership.membership((0.0,), 2, 16)],
  )  # fmt: skip


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(its folder, the run), which failed at step 30 and went on from its checkpoint of step 20."""
  root = tmp_path_factory.mktemp('everything')
  folder, told, config = root / 'run', root / 'fail', Config()
  told.touch()
  with pytest.raises(RuntimeError, match='asked to'):
    diffusion.train(build(config), folder, 'everything', dataclasses.asdict(config))
  told.unlink()
  kept = {path.name for path in (folder / 'checkpoints').iterdir() if path.is_dir()}
  assert kept == {'10', '20'}
  run = diffusion.train(build(config), folder, 'everything', dataclasses.asdict(config))
  return folder, run


def test_it_has_everything_on(made):
  folder, run = made
  assert run.status == 'finished'
  rows = read_json_lines(folder / 'metrics.jsonl')
  # The plateau has halved the rate once or more, beside the schedule's own fall.
  rate = schedules.warmup_cosine(2e-3, 40, 5, 1e-5)
  low = [row['step'] for row in rows if row['learning_rate'] < 0.6 * rate(row['step'] - 1)]
  assert low == [25, 30, 35, 40]
  assert any('memorized/fraction' in row for row in rows)
  assert {'validation/eps', 'test/eps', 'memorized fraction'} <= set(run.record['results'])


@pytest.fixture(scope='module')
def written(made):
  """(the experiment, its data, the states and the numbers of each step), as written out; see `tests/written_out.py`."""
  _, run = made
  e, stored = build(Config()), run.data
  x = 2 * stored.dataset.x.astype(np.float64) / (stored.dataset.levels - 1) - 1
  known = x[stored.split.train]
  x = ((x - known.mean()) / known.std()).astype(np.float32)
  data = written_out.Data(x, stored.dataset.label, stored.split.train)
  scales = np.repeat([1.0, 1.0, 0.5, 0.25], 10)  # by the plateau, at 20 and 30
  with shapes.unchecked():
    return e, data, *written_out.trained(e, data, scales)


def test_the_run_is_the_one_written_out(made, written):
  folder, _ = made
  e, _, states, said = written
  rows = read_json_lines(folder / 'metrics.jsonl')
  logged = [row for row in rows if 'loss' in row]
  assert len(logged) == len(said) // e.log_every
  clipped = []
  for row, window in zip(logged, np.reshape(said, (-1, e.log_every, 3)), strict=True):
    found = [row[name] for name in ('loss', 'loss/denoise', 'gradient_norm')]
    np.testing.assert_allclose(found, window.mean(0), rtol=1e-3)
    assert row['clip_rate'] == pytest.approx((window[:, 2] > Config().clip_norm).mean())
    clipped.append(row['clip_rate'])
  assert len(set(clipped)) > 1  # or the rate of other steps would be the same


def test_its_last_state_is_the_one_written_out(made, written):
  folder, _ = made
  e, _, states, _ = written
  last = states[-1]
  saved = ocp.load(folder / 'checkpoints' / str(e.num_steps))
  for name, tree in last._asdict().items():
    for (path, found), known in zip(
      jax.tree_util.tree_leaves_with_path(saved[name]), jax.tree.leaves(tree), strict=True
    ):
      np.testing.assert_allclose(found, known, rtol=1e-2, atol=1e-4, err_msg=f'{name} {path}')


def test_its_validations_are_those_written_out(made, written):
  folder, run = made
  e, data, states, _ = written
  split = run.data.split
  beside = split.train[
    np.linspace(0, len(split.train) - 1, len(split.validation)).round().astype(int)
  ]
  rows = [row for row in read_json_lines(folder / 'metrics.jsonl') if 'validation/eps' in row]
  assert [row['step'] for row in rows] == [10, 20, 30, 40]
  losses, judged = written_out.asking(e, data), written_out.judging(e, data)
  for row in rows:
    weights = judged(states[row['step']])
    for name, of in (('validation', split.validation), ('train', beside)):
      levels = losses(*weights, of).mean(0)
      found = [row[f'{name}/level/{i}'] for i in range(len(levels))]
      np.testing.assert_allclose(found, levels, rtol=1e-3)
      np.testing.assert_allclose(row[f'{name}/eps'], levels.mean(), rtol=1e-3)


def test_its_results_and_samples_are_those_written_out(made, written):
  folder, run = made
  e, data, states, _ = written
  params, statistics = written_out.judging(e, data)(
    states[10]
  )  # the "best" of `checkpoint('step')`
  results = run.record['results']
  assert results['best step'] == 10
  test = written_out.asking(e, data)(params, statistics, run.data.split.test).mean()
  np.testing.assert_allclose(results['test/eps']['estimate'], test, rtol=1e-3)
  kept, labels = stored(folder / 'samples.npz')
  units = run.data.units
  ends = [(end - units.mean) / units.deviation for end in (-1, 1)]
  samples = written_out.sampled(e, params, statistics, labels, kept.shape[1:], ends, 0)
  levels = (
    (samples * units.deviation + units.mean + 1) / 2 * (run.data.dataset.levels - 1)
  ).round()
  assert (np.abs(kept - levels) <= 1).all()
  assert (kept != levels).mean() < 0.01


def test_what_is_loaded_samples_what_was_judged(made, unchecked):
  folder, _ = made
  kept, labels = stored(folder / 'samples.npz')
  run = diffusion.load(folder, build(Config()))
  np.testing.assert_array_equal(run.sample(labels, seed=0), kept)
  assert (run.sample(labels, seed=1) != kept).any()


def test_judged_again_it_has_its_results(made):
  folder, run = made
  assert diffusion.evaluate(folder, build(Config())) == run.record['results']


def test_what_an_evaluation_is_asked_for_is_what_an_experiment_says(made):
  folder, run = made
  plan = build(Config()).sampling
  for asked, said in (
    (
      {'sampler': 'dpm_solver', 'steps': 5, 'samples': 30},
      {'sampler': solvers.dpm_solver, 'steps': 5, 'grid': None, 'per_class': 3},
    ),
    (
      {'sampler': 'ddim', 'grid': 'quadratic_time'},
      {'sampler': samplers.ddim, 'grid': grids.quadratic_time},
    ),
  ):
    told = build(Config())._replace(sampling=plan._replace(**said))
    found, samples, judges = [], [], ['nearest_neighbor_ratio']
    for experiment, request in ((build(Config()), asked), (told, {})):
      found.append(diffusion.evaluate(folder, experiment, metrics=judges, **request))
      samples.append(stored(folder / read_record(folder)['samples'][-1]['file'])[0])
    assert found[0] == found[1] != run.record['results']
    np.testing.assert_array_equal(*samples)


def test_a_member_of_a_population_is_the_run_alone(made, tmp_path):
  folder, alone = made
  values = [{'seed': seed} for seed in (3, 4)]
  runs = [
    prepare(build, Config(**one), pathlib.Path(__file__), tmp_path / f'seed={one["seed"]}') for one in values
  ]  # fmt: skip
  assert population.train(runs, values, lambda one: build(Config(**one))) == 0
  rows = [read_json_lines(one / 'metrics.jsonl') for one in (folder, tmp_path / 'seed=3')]
  for one, other in zip(*rows, strict=True):
    assert one.keys() == other.keys()
    numbers = [[float(row[n]) for n in sorted(row) if n != 'timing'] for row in (one, other)]
    np.testing.assert_allclose(*numbers, rtol=1e-3, atol=1e-5)
  one, other = alone.record['results'], runs[0].record['results']
  assert one.keys() == other.keys()
  np.testing.assert_allclose(other['validation/eps'], one['validation/eps'], rtol=1e-4)
  np.testing.assert_allclose(other['test/eps']['estimate'], one['test/eps']['estimate'], rtol=1e-4)
  samples = [stored(at / 'samples.npz')[0].astype(int) for at in (folder, tmp_path / 'seed=3')]
  assert (samples[0] != samples[1]).mean() < 0.01
