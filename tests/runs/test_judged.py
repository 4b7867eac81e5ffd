"""What an evaluation has found outlives its end, and evaluations do not meet: not each other, nor a run that trains."""

import json
import logging
import math
import os
import pathlib
import signal

import numpy as np
import pytest

import diffusion
from diffusion import calling, devices, provenance, signals
from diffusion.evaluation.metric import Metric, MetricResult, check_nothing, proportion
from diffusion.proportions import Counts
from diffusion.provenance import read_record
from diffusion.reporting.rows import read_json_lines
from diffusion.runs import judged as judging
from diffusion.runs import loading, samples
from diffusion.runs.judged import kept_judgment
from diffusion.runs.run import prepare
from diffusion.training.callbacks import Callback, Save
from diffusion.training.experiment import AS_THE_RUN
from tests.training import tiny

MADE = []  # the parts that were judged, in their order
MEANWHILE = {}  # what happens when a part is judged, once


class Heard(logging.Handler):
  """By which a metric, whose description holds all that it refers to, lets something happen."""

  def emit(self, record):
    MADE.append(record.msg)
    MEANWHILE.pop(record.msg, lambda: None)()


logging.getLogger('judged').addHandler(Heard())


def first():
  def measure(inputs):
    logging.getLogger('judged').warning('first')
    return [
      proportion('share', Counts(1, 20, null_successes=2, null_trials=7), 'of 20'),
      MetricResult('of nothing', math.nan, 'a number that is none'),
    ]

  return Metric(check_nothing, measure)


def second():
  def measure(inputs):
    logging.getLogger('judged').warning('second')
    return [MetricResult('mean', float(inputs.samples.mean()), 'of all', unit='gray')]

  return Metric(check_nothing, measure)


def scaled(factor):
  def measure(inputs):
    return [MetricResult(f'{factor} times the mean', factor * float(inputs.samples.mean()), '')]

  return Metric(check_nothing, measure)


def saving(meanwhile):
  """A callback that saves each time, and does something else at step 30 of 40."""

  def update(state, look):
    if look.step == 30:
      meanwhile()
    return state, Save(look.row['validation/eps'])

  return Callback(name='saving', init=dict, update=update, every=10)


def experiment(meanwhile=lambda: None):
  return tiny.experiment(
    metrics=[first(), second(), scaled(2), scaled(3)],
    validate_every=10,
    callbacks=[saving(meanwhile)],
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that nothing happened to."""
  return diffusion.train(experiment(), tmp_path_factory.mktemp('judged') / 'whole')


def test_two_metrics_that_one_function_made_are_two(whole):
  found = whole.record['results']
  assert found['2 times the mean'] == pytest.approx(2 * found['mean'])
  assert found['3 times the mean'] == pytest.approx(3 * found['mean'])


def test_what_is_recorded_of_a_run_is_of_its_rows_its_best_checkpoint_and_all_its_samples(whole):
  record, found = whole.record, whole.record['results']
  logged = read_json_lines(whole.folder / 'metrics.jsonl')
  rates = [row['timing']['images_per_second'] for row in logged]
  assert rates == pytest.approx([32 * row['timing']['steps_per_second'] for row in logged])
  assert record['speed']['images_per_second'] == pytest.approx(np.median(rates))
  best = min(
    (row for row in logged if 'validation/eps' in row), key=lambda row: row['validation/eps']
  )
  assert found['best step'] == best['step']
  assert found['validation gap'] == {
    name: pytest.approx(best[f'validation/{of}'], rel=1e-5)
    for name, of in (('estimate', 'gap'), ('low', 'gap_low'), ('high', 'gap_high'))
  }
  (evaluation,) = record['evaluations']
  assert evaluation['sampling']['checkpoint'] == best['step']
  assert evaluation['samples'] == len(samples.stored(whole.folder / 'samples.npz')[0])
  assert (evaluation['results'], evaluation['changed']) == (found, [])
  assert not [name for name in found if 'not as it was written' in name or 'failed' in name]
  assert record['readings']['mean'] == ['gray', '']


def files(folder, pattern='*'):
  return sorted(path.name for path in folder.glob(pattern))


def results(folder):
  return json.dumps(read_record(folder)['results'])


def test_what_was_judged_before_a_signal_is_kept_and_what_is_damaged_of_it_is_not(
  tmp_path, whole, capsys
):
  run = tmp_path / 'run'
  MADE.clear()
  MEANWHILE['second'] = lambda: os.kill(os.getpid(), signal.SIGTERM)
  with signals.interruptible():
    assert diffusion.train(experiment(), run).record['results'] is None
  assert MADE == ['first', 'second']
  (kept,) = run.glob('judging_*.jsonl')
  good = kept.read_bytes()

  kept.write_bytes(good + b'torn by a ki')
  MEANWHILE['second'] = lambda: os.kill(os.getpid(), signal.SIGUSR1)
  with signals.interruptible():
    diffusion.train(experiment(), run)
  said = capsys.readouterr().out
  assert 'judged by a start that was ended, and not again: validation, losses, first\n' in said
  assert 'damaged' not in said
  assert kept.read_bytes() == good

  kept.write_bytes(good.replace(b'"successes": 1,', b'"successes": 3,'))
  assert diffusion.train(experiment(), run).status == 'finished'
  assert (
    f'{kept} is damaged: what it does not tell any more is judged again' in capsys.readouterr().out
  )
  assert MADE == ['first', 'second', 'second', 'first', 'second']
  assert results(run) == results(whole.folder)
  assert files(run) == files(whole.folder)


def test_findings_of_another_checkpoint_or_request_are_not_taken(whole, monkeypatch):
  run = prepare(lambda _: experiment(), {}, 'experiment', whole.folder)
  known, never = [1, 0.1, math.inf], lambda: pytest.fail('it is known')  # noqa: E731
  with pytest.raises(KeyboardInterrupt), kept_judgment(run, 40, AS_THE_RUN) as judged:
    assert judged.value('a', lambda: known) == known
    raise KeyboardInterrupt
  for other in ((30, AS_THE_RUN), (40, AS_THE_RUN._replace(seed=1))):
    with kept_judgment(run, *other) as judged:
      assert judged.value('a', lambda: 'new') == 'new'
  # Nor what was found of anything else that it depends on.
  split, described = run.data.split, devices.describe()
  for thing, name, other in (
    (run, 'config', {'width': 3}),
    (run, 'experiment', experiment()._replace(batch_size=8)),
    (run, 'data', run.data._replace(split=split._replace(fingerprint='other'))),
    (run, 'data', run.data._replace(split=split._replace(hashes={}))),
    (judging.checkout, 'code_digest', lambda source: 'other'),
    (judging.provenance, 'versions', lambda: {'jax': '9.9'}),
    (judging.devices, 'describe', lambda: described | {'devices': 99}),
  ):
    with monkeypatch.context() as patched:
      patched.setattr(thing, name, other)
      with kept_judgment(run, 40, AS_THE_RUN) as judged:
        assert judged.value('a', lambda: 'new') == 'new', name
  with kept_judgment(run, 40, AS_THE_RUN) as judged:
    assert judged.value('a', never) == known
  assert not files(whole.folder, 'judging*')


def test_evaluations_at_once_share_no_name_and_lose_nothing(whole):
  """One begins and ends while another judges."""
  made, folder = experiment(), whole.folder
  before = read_record(folder)['evaluations']
  MEANWHILE['first'] = lambda: calling.evaluate(folder, made, samples=40, seed=7)
  calling.evaluate(folder, made, samples=60, seed=8)
  record = read_record(folder)
  seeds = [one['request']['seed'] for one in record['evaluations'][len(before) :]]
  assert seeds == [7, 8]
  for number, one in enumerate(record['evaluations'][len(before) :], start=len(before)):
    text = (folder / f'report_evaluation{number}.md').read_text()
    assert f'seed {one["request"]["seed"]}' in text
  assert len({one['file'] for one in record['samples']}) == len(record['samples']) == 3
  for one in record['samples']:
    assert len(samples.stored(folder / one['file'])[0]) == one['count']


def test_a_run_that_trains_is_loaded_and_evaluated_from_beside_and_goes_on_undisturbed(
  tmp_path, whole
):
  run, seen = tmp_path / 'run', {}

  def beside():
    seen['loaded'] = loading.load(run, experiment()).step
    seen['results'] = calling.evaluate(run, experiment(), samples=30, seed=3)
    seen['record'] = read_record(run)

  diffusion.train(experiment(beside), run)
  assert seen['loaded'] in (10, 20)
  assert seen['results']['best step'] in (10, 20)
  assert (seen['record']['status'], seen['record']['results']) == ('running', None)
  record = read_record(run)
  assert [one['request']['seed'] for one in record['evaluations']] == [3, 0]
  assert record['status'] == 'finished'
  assert results(run) == results(whole.folder)
  assert '| how training ended | running |' in (run / 'report_evaluation0.md').read_text()
  rows = [
    [
      {name: value for name, value in row.items() if name != 'timing'}
      for row in read_json_lines(one / 'metrics.jsonl')
    ]
    for one in (run, whole.folder)
  ]
  assert rows[0] == rows[1]


def test_what_others_note_stays_and_a_lost_record_is_written_anew(tmp_path, whole, capsys):
  run = prepare(lambda _: experiment(), {}, 'experiment', tmp_path / 'run')
  run.claim()
  provenance.write_record(run.folder, read_record(run.folder) | {'speed': {'by': 'another'}})
  run.note(status='finished')
  assert run.record['speed'] == read_record(run.folder)['speed'] == {'by': 'another'}
  assert read_record(run.folder)['status'] == 'finished'
  (run.folder / 'run.json').unlink()
  run.note(step=7)
  assert 'no run.json: it is written anew, as this run knows it' in capsys.readouterr().out
  assert read_record(run.folder) == run.record
  assert (run.record['step'], run.record['speed']) == (7, {'by': 'another'})


def test_samples_drawn_before_a_kill_are_kept(whole, monkeypatch):
  """As they come, not when the last one is there."""
  monkeypatch.setattr(samples, '_KEPT_EVERY', 0.0)
  monkeypatch.setattr(samples.draw, 'CHUNK', 8)
  drawn, kept = samples._draw, []

  def killed(*given):
    for block in drawn(*given):
      if kept:
        raise KeyboardInterrupt
      yield block
      kept.append(len(block))

  with monkeypatch.context() as patched:
    patched.setattr(samples, '_draw', killed)
    with pytest.raises(KeyboardInterrupt):
      calling.evaluate(whole.folder, experiment(), samples=100, seed=11)
  one = read_record(whole.folder)['samples'][-1]
  assert one['count'] == kept[0] == 32
  before, _ = samples.stored(whole.folder / one['file'])
  calling.evaluate(whole.folder, experiment(), samples=100, seed=11)
  after, labels = samples.stored(whole.folder / one['file'])
  np.testing.assert_array_equal(after[: len(before)], before)
  assert len(after) == len(labels) == 100


def test_what_a_full_disk_does_not_take_names_its_file(whole, monkeypatch):
  """Also where closing tries once more: /dev/full takes nothing."""
  full = pathlib.Path('/dev/full')
  run = prepare(lambda _: experiment(), {}, 'experiment', whole.folder)
  monkeypatch.setattr(judging, '_take', lambda folder, name: (full, full.open('r+b')))
  monkeypatch.setattr(judging, '_good_lines', lambda path, file: [])
  with (
    pytest.raises(OSError, match="cannot write: No space left on device: '/dev/full'"),
    kept_judgment(run, 40, AS_THE_RUN) as kept,
  ):
    kept.value('part', lambda: 3)
