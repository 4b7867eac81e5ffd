"""The chaos test's fixed small selection, and its judge."""

import json

import numpy as np
import pytest

from benchmarks.resume import found, selection
from benchmarks.resume.bench import Bench, Ended
from benchmarks.resume.judge import (
  BADLY,
  HARMLESS,
  LOST,
  NOTICED,
  SILENT,
  Before,
  Expected,
  judge,
  parts,
)

CASES = {selection.name_of(case): case for case in selection.selected(selection.TESTED_CASES)}


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
  """The runs that are copied are made once."""
  return Bench(tmp_path_factory.mktemp('chaos'))


@pytest.mark.slow
@pytest.mark.parametrize('name', [*CASES])
def test_nothing_is_silent_lost_or_badly_ended(bench, name):
  lines = found.run_case(bench, CASES[name], seed=0)
  assert lines
  assert all(line['outcome'] in (NOTICED, HARMLESS) for line in lines), lines


def test_the_selection_has_each_of_its_patterns():
  assert len(CASES) >= len(selection.TESTED_CASES)
  for pattern in selection.TESTED_CASES:
    assert any(selection.matches(pattern, case) for case in CASES.values()), pattern


# The judge


@pytest.fixture
def checkout_bench(tmp_path):
  """It compares no states, which take a whole run."""
  return Bench(tmp_path / 'bench', checkout=tmp_path)


def folder(place, loss='0.5', result=1.0, rows=3):
  """A folder like that of a finished run."""
  place.mkdir()
  record = {'config': {'a': 1}, 'results': {'eps': result}, 'status': 'finished', 'starts': [1]}
  record['evaluations'] = [{'results': record['results']}]
  (place / 'run.json').write_text(json.dumps(record))
  lines = [f'{{"step": {i}, "loss": {loss}, "timing": {{}}}}\n' for i in range(rows)]
  (place / 'metrics.jsonl').write_text(''.join(lines))
  np.savez(place / 'samples.npz', samples=np.ones(3))
  (place / 'experiment.py').write_text('')
  return place


RIGHT = Expected(r'metrics\.jsonl', None, ('rows',))
FINISHED, SAID = Ended(0, 'finished', 1.0), Ended(0, 'metrics.jsonl: a row is lost', 1.0)


@pytest.mark.parametrize(
  'changes, ended, right, outcome',
  [
    ({}, FINISHED, RIGHT, HARMLESS),
    ({}, FINISHED, RIGHT._replace(must_say=True), SILENT),
    ({'rows': 2}, FINISHED, RIGHT, SILENT),
    ({'loss': 0.6}, FINISHED, RIGHT, SILENT),
    ({'rows': 2}, SAID, RIGHT, NOTICED),
    ({'rows': 2, 'result': 2.0}, SAID, RIGHT, LOST),
    ({'result': 2.0}, FINISHED, RIGHT, SILENT),
    ({}, FINISHED, RIGHT._replace(refused=True), SILENT),
    ({}, Ended(2, 'error: metrics.jsonl, line 3: no step', 1.0), RIGHT, NOTICED),
    ({}, Ended(2, 'error: metrics.jsonl, line 3', 1.0), RIGHT._replace(refused=False), LOST),
    ({}, Ended(2, 'error: Expecting value: line 3', 1.0), RIGHT, BADLY),
    ({}, Ended(2, 'error: metrics.jsonl\nerror: metrics.jsonl', 1.0), RIGHT, BADLY),
    ({}, Ended(1, 'Traceback (most recent call last):\nmetrics.jsonl', 1.0), RIGHT, BADLY),
    ({}, Ended(None, 'metrics.jsonl', 150.0), RIGHT, BADLY),
    ({}, Ended(-6, 'metrics.jsonl', 1.0), RIGHT, BADLY),
  ],
)
def test_the_judge_is_strict(checkout_bench, tmp_path, changes, ended, right, outcome):
  whole, hurt = folder(tmp_path / 'whole'), folder(tmp_path / 'hurt', **changes)
  expected = parts(checkout_bench, whole, 1)
  verdict = judge(checkout_bench, hurt, ended, Before.of(hurt), expected, 1, right)
  assert verdict.outcome == outcome, verdict


def test_a_refusal_that_has_deleted_rows_or_checkpoints_is_a_loss(checkout_bench, tmp_path):
  hurt = folder(tmp_path / 'hurt')
  (hurt / 'checkpoints').mkdir()
  (hurt / 'checkpoints' / '20.sha256').write_text('digest')
  before, refused = Before.of(hurt), Ended(2, 'error: metrics.jsonl is not as it was', 1.0)
  expected = parts(checkout_bench, hurt, 1)

  def outcome():
    return judge(checkout_bench, hurt, refused, before, expected, 1, RIGHT).outcome

  (hurt / 'aside').mkdir()
  (hurt / 'metrics.jsonl').rename(hurt / 'aside' / 'metrics.jsonl')
  assert outcome() == NOTICED
  (hurt / 'checkpoints' / '20.sha256').unlink()
  assert outcome() == LOST


@pytest.mark.parametrize('rows, outcome', [(2, NOTICED), (1, LOST)])
def test_rows_beyond_the_newest_checkpoint_may_go(checkout_bench, tmp_path, rows, outcome):
  """There is a row every ten steps, and a checkpoint at step 20."""
  hurt = folder(tmp_path / 'hurt')
  (hurt / 'checkpoints' / '20').mkdir(parents=True)
  before, path = Before.of(hurt), hurt / 'metrics.jsonl'
  path.write_bytes(b''.join(path.read_bytes().splitlines(True)[:rows]))
  refused = Ended(2, 'error: metrics.jsonl is not as it was', 1.0)
  expected = parts(checkout_bench, hurt, 1)
  assert judge(checkout_bench, hurt, refused, before, expected, 1, RIGHT).outcome == outcome


def test_what_several_short_runs_found_adds_up_to_one_table():
  of_all = {'machine': '2 cores', 'seed': 0}
  lines = [
    {'kind': kind, 'case': case, 'outcome': outcome, 'commit': commit} | of_all
    for commit, kind, case, outcome in (
      ('abc', 'a', '1', NOTICED), ('abc', 'a', '2', LOST), ('abc', 'b', '1', HARMLESS),
      ('abd', 'a', '2', SILENT), ('abd', 'a', '2', NOTICED),  # a case of two hurts, run again at another commit
    )
  ]  # fmt: skip
  said = found.table(lines).splitlines()
  assert said[0] == (
    '| what happens to a run | cases | noticed | harmless | badly ended | silent | lost |'
  )
  assert said[2:5] == [
    '| a | 3 | 2 | 0 | 0 | 1 | 0 |',
    '| b | 1 | 0 | 1 | 0 | 0 | 0 |',
    '| all | 4 | 2 | 1 | 0 | 1 | 0 |',
  ]
  assert said[-1] == 'commit abc (2), abd (2); 2 cores'
