"""Judging again, and judging what others made: the same samples give the same numbers, whoever asks."""

import functools
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from diffusion import devices
from diffusion.commands import evaluate
from diffusion.data import pipeline, splits
from diffusion.evaluation import by_name
from diffusion.evaluation.metric import (
  Metric,
  MetricResult,
  Plan,
  name_of,
  proportion,
  results_to_json,
  told,
)
from diffusion.models import mlp
from diffusion.process import parameterizations
from diffusion.proportions import Counts
from diffusion.provenance import read_record
from diffusion.reporting.rows import read_json
from diffusion.runs import evaluating, samples, showing
from diffusion.runs.run import data_record
from diffusion.sampling import grids, samplers, solvers
from diffusion.sampling import plan as plans
from diffusion.sampling.plan import Sampling
from diffusion.training.experiment import EvaluationSettings, resolved
from tests.evaluation.given import inputs_of
from tests.programs import Program
from tests.training import tiny

NUMBERS = (
  '--config.num_steps=20', '--config.log_every=5', '--config.validate_every=10', '--config.width=8',
  '--config.blocks=1', '--config.batch_size=16', '--config.sampling_steps=4', '--config.samples_per_class=4',
  '--config.warmup_steps=2', '--config.steps_per_dispatch=5', '--config.multipliers=(1,)',
)  # fmt: skip


def program(name, *flags):
  """(exit status, output) of a program."""
  return Program(name, *flags).finish()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A short run on the real digits."""
  folder = tmp_path_factory.mktemp('judging') / 'run'
  status, output = program('experiments.digits', f'--workdir={folder}', *NUMBERS)
  assert status == 0, output
  return folder


def other_code_does_not_get_old_samples(run, tmp_path):
  """The hash of the experiment and of the package is in what names stored samples."""

  from diffusion import checkout

  identity = read_record(run)['samples'][0]['identity']
  assert identity['code'] == checkout.code_digest(run / 'experiment.py')
  edited = tmp_path / 'edited.py'
  edited.write_text((run / 'experiment.py').read_text() + '# edited')
  assert checkout.code_digest(edited) != identity['code']


def another_sampler_is_another_set_of_samples(run):
  status, output = program(
    'experiments.digits', f'--workdir={run}', '--mode=evaluate', '--sampler=heun', '--sampler_steps=3',
    '--metrics=authenticity',
  )  # fmt: skip
  assert status == 0, output
  record = read_record(run)
  one = record['samples'][-1]
  assert (one['identity']['sampler'], one['identity']['steps']) == ('heun', 3)
  assert (run / one['file']).is_file()
  assert record['evaluations'][-1]['results']['evaluations a sample'] == 2 * (2 * 2 + 1)  # guided
  assert record['evaluations'][-1]['sampling']['sampler'] == 'heun'
  report = sorted(run.glob('report_evaluation*.md'))[-1].read_text()
  assert re.search(
    r'Samples of step \d+: heun, 3 steps, grid geometric, guidance 1.5, seed 0', report
  )
  assert re.search(r'\| command \| .*--mode=evaluate --sampler=heun --sampler_steps=3', report)
  assert 'alaa2022faithful' in (run / 'references.bib').read_text()


def training_images_are_called_so_and_odd_brightness_is_said(run, tmp_path):
  from diffusion.data import sources

  x = pipeline.to_uint8(sources.digits().load().x[:30], 17)
  np.savez(tmp_path / 'copies.npz', images=x)
  findings, notes, _ = evaluate.measure(tmp_path / 'copies.npz', run, ['authenticity'], 'pixels')
  assert any('ARE training examples' in note for note in notes)
  np.savez(tmp_path / 'odd.npz', images=np.where(x == 0, np.uint8(3), x))
  findings, notes, _ = evaluate.measure(tmp_path / 'odd.npz', run, ['authenticity'], 'pixels')
  assert len(notes) == 1
  assert 'more than the 17 levels' in notes[0]
  assert findings
  stored = sources.digits().load().x[:30]  # as a run stores them, with their number of levels
  np.savez(tmp_path / 'stored.npz', samples=stored, levels=17)
  _, notes, record = evaluate.measure(tmp_path / 'stored.npz', run, ['authenticity'], 'pixels')
  assert any('ARE training examples' in note for note in notes)
  assert record['results']['authenticity']['estimate'] < 0.5


def samples_are_drawn_once_and_images_of_them_are_judged_alike(run, tmp_path):
  """40 of a run, 60 in a second judgment of which 40 are read; PNGs of the 60 get the same numbers from the other
  program."""
  first, _ = samples.stored(run / 'samples.npz')
  assert len(first) == 40
  names = 'nearest_neighbor_ratio,authenticity,frechet,kernel,vendi,density_coverage,recognition'
  judging = (f'--workdir={run}', '--mode=evaluate', '--num_samples=60', f'--metrics={names}')
  status, output = program('experiments.digits', *judging, '--features=digits')
  assert status == 2
  assert 'metric frechet' in output
  assert 'at least 130 samples, got 60' in output
  names = names.replace('frechet,', '')
  judging = (f'--workdir={run}', '--mode=evaluate', '--num_samples=60', f'--metrics={names}')
  status, output = program('experiments.digits', *judging, '--features=digits')
  assert status == 0, output
  record = read_record(run)
  more, labels = samples.stored(run / 'samples.npz')
  np.testing.assert_array_equal(more[:40], first)
  assert len(more) == 60
  assert [one['count'] for one in record['samples']] == [60]
  made = record['evaluations'][1]
  assert made['request']['metrics'] == names.split(',')
  assert made['samples'] == 60

  pictures = pipeline.to_uint8(more, 17)
  for i, (image, label) in enumerate(zip(pictures, labels, strict=True)):
    folder = tmp_path / 'png' / record['data']['class_names'][label]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0]).save(folder / f'{i:05d}.png')
  where = (f'--run={run}', f'--metrics={names}', '--features=digits')
  output_file = tmp_path / 'peer.json'
  status, output = program(
    'diffusion.commands.evaluate', f'--images={tmp_path / "png"}', *where, f'--output={output_file}'
  )
  assert status == 0, output
  found = read_json(output_file)
  assert found['count'] == 60
  assert found['notes'] == []
  expected = made['results']
  shared = set(found['results']) & set(expected)
  assert len(shared) == len(found['results']) >= 10
  for name in shared:
    assert json.dumps(found['results'][name]) == json.dumps(expected[name]), name


@pytest.mark.slow
def test_a_run_judged_again_and_images_judged_beside_it(run, tmp_path):
  """One test, so that one worker makes the run once."""
  samples_are_drawn_once_and_images_of_them_are_judged_alike(run, tmp_path)
  other_code_does_not_get_old_samples(run, tmp_path)
  another_sampler_is_another_set_of_samples(run)
  training_images_are_called_so_and_odd_brightness_is_said(run, tmp_path)


def test_what_is_recorded_of_the_sampling_is_what_samples_were_drawn_with():
  plan = Sampling(
    functools.partial(samplers.ddim, eta=0.5), 7, guidance=3.0, interval=(-2.0, 4.0),
    grid=lambda path, steps: grids.karras(path, steps, 5.0),
  )  # fmt: skip
  made = resolved(tiny.images(sampling=plan), 17)
  found = showing.sampling_record(made, (8, 8, 1), 40, 5)
  assert (found['sampler'], found['steps'], found['seed']) == ('ddim(eta=0.5)', 7, 5)
  assert found['grid'] == 'lambda path, steps: grids.karras(path, steps, 5.0)'
  assert (found['guidance'], found['guided log-SNR']) == (3.0, [-2.0, 4.0])
  assert 7 < found['evaluations a sample'] < 14  # twice inside the interval
  assert found['around the denoiser'] == ['clip_x0']
  for changes, weights in (
    ({'evaluation_average': None}, 'ema'),  # the first one, where none is named
    ({'evaluation_average': ''}, 'as trained'),
    ({'evaluation_average': None, 'averages': {}}, 'as trained'),
  ):
    other = showing.sampling_record(made._replace(**changes), (8, 8, 1), 40, 5)
    assert other['weights'] == weights
  own = showing.sampling_record(made._replace(sampling=Sampling()), (8, 8, 1), 40, 0)
  assert (own['sampler'], own['grid']) == ('ddim', 'uniform_time')
  heun = showing.sampling_record(made._replace(sampling=Sampling(solvers.heun)), (8, 8, 1), 40, 0)
  assert (heun['sampler'], heun['grid']) == ('heun', 'geometric')


def test_the_held_out_losses_of_a_report_stand_under_their_names():
  """The test split is asked about as it is shown, each example on the noise of its place, with the mean over levels."""
  x, label = np.arange(5.0)[:, None], np.arange(5)
  given = np.random.default_rng(0).uniform(size=(5, 3))

  def losses(weights, *asked):
    for one, wanted in zip(asked, (x, label, np.arange(5)), strict=True):
      np.testing.assert_array_equal(one, wanted)
    return given

  run = SimpleNamespace(data=SimpleNamespace(shown_test=(x, label)), losses=losses)
  row = {
    'validation/eps': 0.3, 'train/eps': 0.2, 'validation/gap': 0.1, 'validation/gap_low': 0.05,
    'validation/gap_high': 0.2,
  }  # fmt: skip
  found = {one.name: one.value for one in evaluating._loss_findings(run, 'weights', row)}
  assert found['validation/eps'] == 0.3
  assert found['validation gap'] == (0.1, 0.05, 0.2)
  interval = stats.ttest_1samp(given.mean(1), 0).confidence_interval(0.95)
  np.testing.assert_allclose(found['test/eps'], (given.mean(), *interval))
  run.data.shown_test = (x[:1], label[:1])  # one example has no interval
  assert 'test/eps' not in {one.name for one in evaluating._loss_findings(run, 'weights', row)}


def test_samples_are_drawn_by_what_is_asked_for_and_known_by_it(monkeypatch):
  made = tiny.experiment(
    sampling=Sampling(steps=3, wrappers=(), per_class=2), split=splits.Fractions(0.25, 0.125)
  )
  data, state, _ = tiny.start(made)
  run = SimpleNamespace(experiment=made, data=data, config={'width': 3}, source='here')
  best = SimpleNamespace(number=17, record={'step': 12})
  weights = devices.replicate((state.params, state.statistics, np.uint32(5)))
  seen = []
  monkeypatch.setattr(evaluating, 'drawn', lambda run, *given: seen.append(given) or 'samples')
  monkeypatch.setattr(evaluating.checkout, 'code_digest', lambda source: f'code of {source}')
  asked = EvaluationSettings(seed=9, samples=4, sampler='heun', grid='karras', steps=8)
  inputs = evaluating._inputs(run, weights, best, asked)
  ((seeded, labels, condition, identity),) = seen
  assert inputs.samples == 'samples'
  # Beside them lies the data, each part as what it is.
  parts, x = data.split, data.dataset.x
  held_out = np.concatenate([parts.validation, parts.test])
  for found, rows in ((inputs.train, parts.train), (inputs.held_out, held_out)):
    np.testing.assert_array_equal(found[0], x[rows])
    np.testing.assert_array_equal(found[1], data.dataset.label[rows])
  assert inputs.validation == len(parts.validation) != len(parts.test)
  assert (inputs.class_names, inputs.units) == (data.dataset.class_names, data.units)
  np.testing.assert_array_equal(inputs.labels, labels)
  np.testing.assert_array_equal(labels, [0, 1, 0, 1])
  assert devices.to_host(seeded[2]) == 9
  for one, other in zip(jax.tree.leaves(seeded[:2]), jax.tree.leaves(weights[:2]), strict=True):
    np.testing.assert_array_equal(one, other)
  wanted = {
    'checkpoint': 17,
    'config': {'width': 3},
    'code': 'code of here',
    'seed': 9,
    'sampler': 'heun',
    'grid': 'karras',
    'steps': 8,
  }
  assert {name: identity[name] for name in wanted} == wanted
  for name, other in (('seed', 8), ('sampler', 'ddim'), ('grid', ''), ('steps', 9)):
    changed = asked._replace(**{name: other})
    evaluating._inputs(run, weights, best, changed)
    assert seen.pop()[-1] != identity
    assert samples._of({'samples': [{'identity': identity | {name: other}}]}, identity) == []
  kept = {'identity': dict(identity), 'file': 'a.npz'}
  assert samples._of({'samples': [kept]}, identity) == [kept]
  # An evaluation may be given another experiment than the run's: what of it a sample depends on, and what not.
  for known, changes in (
    (False, {'model': mlp.mlp(16, 1, num_classes=2)}),
    (False, {'diffusion': made.diffusion._replace(parameterization=parameterizations.eps())}),
    (False, {'evaluation_average': 'another'}),
    (False, {'sampling': made.sampling._replace(sampler=solvers.heun)}),
    (True, {'sampling': made.sampling._replace(per_class=9, grid_rows=3)}),
    (True, {'batch_size': 9}),
  ):
    run.experiment = made._replace(**changes)
    evaluating._inputs(run, weights, best, asked)
    assert (seen.pop()[-1] == identity) == known, changes


def test_as_many_samples_are_drawn_as_are_asked_for_or_more_where_classes_do_not_divide_them():
  made = tiny.experiment(sampling=Sampling(steps=3, wrappers=(), per_class=2))
  run = SimpleNamespace(experiment=made, data=tiny.experiments.load_data(made), used=[])
  for asked, each in ((0, 2), (4, 2), (5, 3), (1, 1)):
    run.experiment = made
    evaluating._apply(run, EvaluationSettings(samples=asked))
    assert run.experiment.sampling.per_class == each


def test_metrics_that_are_asked_for_take_the_place_of_the_run_s_and_are_cited_once():
  """What judges is told how many samples there will be, be it asked for or the run's own."""
  plans = []

  def own():
    return Metric(lambda plan: plans.append(plan.samples), lambda inputs: [])

  made = tiny.experiment(sampling=Sampling(steps=3, wrappers=(), per_class=2), metrics=[own()])
  run = SimpleNamespace(experiment=made, data=tiny.experiments.load_data(made), used=[])
  plans.clear()
  evaluating._apply(run, EvaluationSettings(samples=5))
  assert plans == [6]
  assert run.experiment.metrics == made.metrics
  for _ in range(2):
    evaluating._apply(run, EvaluationSettings(metrics=('authenticity', 'vendi')))
    assert [name_of(metric) for metric in run.experiment.metrics] == ['authenticity', 'vendi']
    keys = [key for one in run.used for key in one.keys]
    assert 'alaa2022faithful' in keys and len(run.used) == len(set(run.used))


def test_what_is_judged_is_called_by_its_step_and_its_weights():
  made, best = tiny.experiment(), SimpleNamespace(record={'step': 12}, metric=0.5)
  for average, weights in (('ema', 'ema'), ('', 'as trained')):
    judged = made._replace(evaluation_average=average)
    (one,) = evaluating._what_is_judged(judged, best, None)
    assert (one.name, one.value) == ('best step', 12)
    assert one.meaning == f'of the lowest held-out loss; all below is of its weights: {weights}'
  lost = {'number': 40, 'step': 30, 'metric': 0.25}
  gone, one = evaluating._what_is_judged(made, best, lost)
  assert [(gone.name, gone.value), (one.name, one.value)] == [
    ('lost best step', 30),
    ('best step', 12),
  ]
  assert 'of the lowest held-out loss of those left; ' in one.meaning
  assert gone.meaning == (
    'of checkpoint 40, lost or damaged, whose loss 0.25 was the lowest; that of the best step is 0.5'
  )


def test_what_callbacks_found_is_of_their_own_states():
  def counting(name, finding=lambda state: None):
    return SimpleNamespace(name=name, finding=finding)

  callbacks = [
    counting('guard', lambda state: ('rollbacks', state['n'], 'went back')),
    counting('silent'),
    counting('new', lambda state: ('new', state['n'], 'added since')),
    counting('other', lambda state: ('others', state['n'], 'did more')),
  ]
  run = SimpleNamespace(experiment=SimpleNamespace(callbacks=callbacks))
  states = {'other': {'n': 7}, 'silent': {'n': 5}, 'guard': {'n': 2}}
  found = evaluating._callback_findings(run, states)
  assert found == [
    MetricResult('rollbacks', 2, 'went back', unit='times', better='lower'),
    MetricResult('others', 7, 'did more', unit='times', better='lower'),
  ]


def test_a_picture_of_another_seed_says_what_was_drawn(monkeypatch, tmp_path):
  """By the experiment that is asked for, of the classes in turn, beside the validation examples."""
  made = tiny.experiment(sampling=Sampling(steps=3, wrappers=(), per_class=3))
  data = tiny.experiments.load_data(made)
  recorded = {'data': data_record(data), 'null_learned': True}
  run = SimpleNamespace(experiment=made, data=data, folder=tmp_path, record=dict(recorded))
  trained, shown = SimpleNamespace(step=30), []
  trained.sample = lambda condition, seed: np.stack([condition, np.full(len(condition), seed)], 1)

  def load(folder, experiment):
    assert (folder, experiment) == (tmp_path, made)
    return trained

  monkeypatch.setattr(evaluating, 'read_record', lambda folder: recorded)
  monkeypatch.setattr(evaluating.claiming, 'changes', lambda record, fresh: [])
  monkeypatch.setattr(evaluating, 'load', load)
  monkeypatch.setattr(evaluating, 'picture', lambda *given: shown.append(given))
  assert evaluating.evaluate(run, 'sample', EvaluationSettings(seed=7)) == 0
  ((dataset, reference, drawn, path, title),) = shown
  np.testing.assert_array_equal(drawn, [[0, 7], [1, 7]] * 3)
  np.testing.assert_array_equal(reference, data.dataset.x[data.split.validation])
  assert (dataset.name, path) == (data.dataset.name, tmp_path / 'samples_seed7.png')
  assert title == 'step 30\nddim, 3 steps, grid uniform_time, guidance 1, seed 7'
  run.record = recorded | {'data': recorded['data'] | {'fingerprint': 'x'}}
  with pytest.raises(ValueError, match=f'the data is not what {tmp_path} was trained on: '):
    evaluating.evaluate(run, 'sample', EvaluationSettings(seed=7))
  assert len(shown) == 1


def test_the_speed_of_a_run_is_the_median_of_its_rows(monkeypatch):
  monkeypatch.setattr(evaluating, 'step_flops', lambda experiment, data, state: 10)
  run = SimpleNamespace(experiment=None, data=None, record={'starts': [{}]})
  logged = [{'timing': {'images_per_second': rate}} for rate in (1.0, 40.0, 3.0, 2.0, 90.0)]
  logged.insert(1, {'timing': {}})
  found = evaluating._speed(run, None, logged)
  assert (found['images_per_second'], found['flops_per_second']) == (3.0, 30.0)
  assert (found['flops_per_image'], found['utilization'], found['peak_memory']) == (10, None, None)
  monkeypatch.setattr(evaluating.devices, 'peak_flops', lambda: 120.0)
  run.record |= {'peak_memory': 7}
  found = evaluating._speed(run, None, logged)
  assert (found['utilization'], found['peak_memory']) == (0.25, 7)
  assert evaluating._speed(run, None, [{'timing': {}}, {'step': 1}]) is None
  apart = SimpleNamespace(record={'starts': [{'population': 2}, {}]})  # it went on alone
  assert evaluating._speed(apart, None, logged) is None
  member = SimpleNamespace(record={'starts': [{'population': {}}]})
  assert evaluating._speed(member, None, logged) is None


def test_another_judgment_stands_beside_the_runs_own_results():
  own = {'results': {'a': 1}, 'readings': {'a': ['', '']}, 'evaluations': [{'results': {'a': 1}}]}
  run = SimpleNamespace(record=own, changes=['width: 1 -> 2'])
  finding = MetricResult('a', 2, 'the second', unit='steps', better='lower')
  again, first = (evaluating._told(run, {}, [finding], again=one) for one in (True, False))
  assert set(again) == {'evaluations'}
  assert [one['results'] for one in again['evaluations']] == [{'a': 1}, {'a': 2}]
  assert first['results'] == {'a': 2} and first['evaluations'] == again['evaluations']
  assert first['readings'] == {'a': ['steps', 'lower']} == again['evaluations'][-1]['readings']
  assert again['evaluations'][-1]['changed'] == ['width: 1 -> 2']


def test_skipped_steps_are_those_of_the_whole_run_wherever_its_best_checkpoint_lies():
  run = SimpleNamespace(
    experiment=tiny.experiment(), data=SimpleNamespace(dataset=SimpleNamespace(x=np.zeros((1, 8))))
  )
  best = SimpleNamespace(state=SimpleNamespace(skipped=np.int32(1)))
  for logged, count in (([], 1), ([{'skipped': 1}, {'skipped': 7}, {'validation/eps': 0.1}], 7)):
    found = {one.name: one.value for one in evaluating._findings_of_the_run(run, best, logged)}
    assert found['skipped steps'] == count


def test_what_is_zero_is_not_told_and_what_is_told_has_its_unit_and_direction():
  found = [
    MetricResult('skipped steps', 0, 'left out', unit='steps', better='lower'),
    MetricResult('clip rate', 0.0, 'clipped', unit='share'),
    proportion('copies', Counts(0, 20), 'of 20', better='lower'),
    MetricResult('loss', 0.5, 'held out', unit='nats', better='lower'),
  ]
  assert [(name, reading) for name, _, reading, _ in told(found)] == [
    ('copies', 'share, lower is better'),
    ('loss', 'nats, lower is better'),
  ]
  assert set(results_to_json(found)) == {'skipped steps', 'clip rate', 'copies', 'loss'}
  assert results_to_json(found)['copies']['counts']['trials'] == 20


def write(folder, name, size, mode='L'):
  folder.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size).save(folder / name)


def test_folders_are_read_class_by_class_in_turn(tmp_path):
  for name, count in (('a', 3), ('b', 2)):
    for i in range(count):
      write(tmp_path / 'p' / name, f'{i}.png', (4, 4))
  found = evaluate.read(tmp_path / 'p', ('b', 'c', 'a'))
  assert found.label.tolist() == [0, 2, 0, 2, 2]
  assert (found.x.shape, found.levels) == ((5, 4, 4, 1), 256)
  write(tmp_path / 'flat', '0.png', (4, 4), 'RGB')
  write(tmp_path / 'flat', '1.png', (4, 4), 'RGB')
  assert evaluate.read(tmp_path / 'flat', ()).label is None


@pytest.mark.parametrize(
  'arrays, says',
  [
    (
      {'images': np.full((4, 2, 2, 1), 100.0)},
      r'must be uint8 from 0 to 255, got float64 in \[100, 100\]',
    ),
    (
      {'images': np.zeros((4, 2, 2, 1), np.uint8), 'labels': np.zeros(3)},
      r'4 images and labels of shape \[3\]',
    ),
    ({'a': np.zeros(3), 'b': np.zeros(3)}, 'must hold `images` or one array, it holds a, b'),
    (
      {'images': np.full((4, 2, 2, 1), 30, np.uint8), 'levels': 17},
      'says it has 17 levels, 0 to 16, and it holds 30',
    ),
    ({'images': np.zeros((4, 2, 2), np.uint8)}, r'got uint8 \[4, 2, 2\]'),
  ],
)
def test_odd_files_are_refused(tmp_path, arrays, says):
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(ValueError, match=says):
    evaluate.read(tmp_path / 'x.npz', ())


def test_missing_unreadable_and_strange_folders_are_refused(tmp_path):
  with pytest.raises(ValueError, match='no file'):
    evaluate.read(tmp_path / 'x.npz', ())
  with pytest.raises(ValueError, match='no folder of images'):
    evaluate.read(tmp_path / 'x', ())
  write(tmp_path / 'p' / 'z', '0.png', (4, 4))
  with pytest.raises(ValueError, match="has a folder 'z', the classes are a, b"):
    evaluate.read(tmp_path / 'p', ('a', 'b'))
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / '0.png').write_bytes(b'no picture')
  with pytest.raises(ValueError, match='cannot read image'):
    evaluate.read(tmp_path / 'bad', ())


def test_the_metrics_by_name_compare_the_features_that_were_chosen():
  random = np.random.default_rng(0)
  given = inputs_of(*(random.normal(size=(200, 6)) * [1, 1, 1, 1, 1, k] for k in (1, 4, 4)))
  plan = Plan(samples=200, classes=0, shape=(6,), train=200, held_out=200)
  alike = by_name.choose_features('pixels')._replace(
    name='all but one', apply=lambda x: x[:, :5].astype(np.float32)
  )
  (found,), (own,) = (
    by_name.choose_metrics(['frechet'], chosen, plan)[0].values()
    for chosen in (alike, by_name.choose_features('pixels'))
  )
  one, other = (metric.measure(given)[0].value for metric in (found, own))
  assert getattr(one, 'estimate', one) < getattr(other, 'estimate', other) / 4


def test_the_metrics_by_name_say_what_it_cannot_do():
  plan = Plan(samples=100, classes=0, shape=(8, 8, 1), train=300, held_out=100)
  pixels = by_name.choose_features('pixels')
  alone = plan._replace(network=False)
  found, left_out = by_name.choose_metrics(['all'], pixels, alone)
  assert {'recognition', 'calibrated_ratio', 'frechet', 'membership', 'class_balance'} <= set(
    left_out
  )
  assert 'authenticity' in found
  assert not set(found) & set(left_out)
  assert set(found) | set(left_out) == set(by_name.metrics())
  with pytest.raises(ValueError, match="unknown metric 'frechat': the nearest is 'frechet'"):
    by_name.choose_metrics(['frechat'], pixels, plan)
  with pytest.raises(ValueError, match='metric membership: it asks the network'):
    by_name.choose_metrics(['membership'], pixels, alone)
  with pytest.raises(
    ValueError, match="features must be pixels, digits, mnist, or the path of .* got 'resnet'"
  ):
    by_name.choose_features('resnet')
  with pytest.raises(ValueError, match="unknown sampler 'ddpm': the nearest is 'ddim'"):
    plans.sampler('ddpm')
