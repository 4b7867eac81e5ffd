"""A run whose folder was hurt: what is lost is said by name, in its record too, and a run that can go on does."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import diffusion
from diffusion.provenance import read_record
from diffusion.reporting import rows
from diffusion.runs import evaluating, samples, training
from diffusion.runs.run import prepare
from diffusion.training.callbacks import Callback, Save
from tests.training import tiny


def save_the_first_as_best(state, look):
  return state, Save(float(look.step))


EXPERIMENT = tiny.experiment(
  num_steps=60,
  callbacks=[Callback('rising', 0, dict, save_the_first_as_best, saves=True)],
)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The run that nothing happened to; of its checkpoints 20, 40 and 60 the first is the best."""
  folder = tmp_path_factory.mktemp('damaged') / 'run'
  made = diffusion.train(EXPERIMENT, folder)
  assert made.record['saved'] == {
    'number': 60,
    'step': 60,
    'best': {'number': 20, 'step': 20, 'metric': 20.0},
  }
  assert read_record(folder) == json.loads(json.dumps(made.record))
  return folder


@pytest.fixture
def folder(whole, tmp_path):
  """A copy to be hurt."""
  return shutil.copytree(whole, tmp_path / 'run')


def started(folder):
  """A start on the folder, as far as going to where it was."""
  run = prepare(lambda _: EXPERIMENT, {}, 'experiment', folder)
  run.claim()
  run.resume(run.make_target())
  return run


def lose(folder, number):
  shutil.rmtree(folder / 'checkpoints' / str(number))
  (folder / 'checkpoints' / f'{number}.sha256').unlink()


def test_a_run_whose_checkpoints_are_gone_is_refused_and_nothing_of_it_is_touched(folder):
  shutil.rmtree(folder / 'checkpoints')
  before = (folder / 'metrics.jsonl').read_bytes()
  for _ in range(2):
    with pytest.raises(
      ValueError, match='saved at step 60, and none .* --workdir, or .* --restart'
    ):
      started(folder)
  assert (folder / 'metrics.jsonl').read_bytes() == before


def test_where_the_newest_is_gone_it_is_said_and_noted(folder, capsys):
  lose(folder, 60)
  run = started(folder)
  run.close()
  assert run.position.step == 40
  said = 'checkpoint 60, the newest, of step 60, is gone: going on from step 40'
  assert said in capsys.readouterr().out
  assert read_record(folder)['starts'][-1]['lost'] == said
  assert read_record(folder)['saved']['best']['number'] == 20


def test_a_save_whose_note_a_kill_cut_off_is_noted_by_the_next_start(folder):
  record, last = read_record(folder), {'number': 60, 'step': 60}
  rows.write_json(folder / 'run.json', record | {'saved': None})
  started(folder).close()
  assert read_record(folder)['saved'] == last | {'best': last | {'metric': 60.0}}
  older = {'number': 40, 'step': 40, 'best': record['saved']['best']}
  rows.write_json(folder / 'run.json', record | {'saved': older})
  started(folder).close()
  assert read_record(folder)['saved'] == record['saved'] == last | {'best': older['best']}


def test_where_the_best_is_lost_another_is_judged_and_called_so(folder, capsys):
  """In the last line, the record, the report, and where it is loaded; not where the best is judged."""
  assert 'lost best step' not in read_record(folder)['results']
  lose(folder, 20)
  run = prepare(lambda _: EXPERIMENT, {}, 'experiment', folder)
  evaluating.evaluate(run, 'evaluate', evaluating.AS_THE_RUN)
  last = capsys.readouterr().out.splitlines()[-1]
  assert last.endswith('; the best checkpoint, of step 20, is lost: judged was step 40')
  (evaluation,) = read_record(folder)['evaluations'][1:]
  assert evaluation['lost_best'] == {'number': 20, 'step': 20, 'metric': 20.0}
  assert (evaluation['results']['lost best step'], evaluation['results']['best step']) == (20, 40)
  report = (folder / 'report_evaluation1.md').read_text()
  assert '| lost best step | 20' in report
  assert 'of the lowest held-out loss of those left' in report
  assert diffusion.load(folder, EXPERIMENT).step == 40
  assert 'of step 20, is lost or damaged: loaded is step 40' in capsys.readouterr().out
  run._note_saved(80, 80, 80.0)  # what is saved later does not hide it, but for a better one
  assert read_record(folder)['saved'] == {'number': 80, 'step': 80, 'best': evaluation['lost_best']}
  run._note_saved(100, 100, 10.0)
  assert read_record(folder)['saved']['best'] == {'number': 100, 'step': 100, 'metric': 10.0}
  run._note_saved(120, 110, 10.0)  # of equal ones the newest
  assert read_record(folder)['saved']['best'] == {'number': 120, 'step': 110, 'metric': 10.0}


def lines_of(folder):
  return (folder / 'metrics.jsonl').read_bytes().splitlines(keepends=True)


DAMAGES = {
  'gone': (None, 'it is gone, with 6 rows'),
  'emptied': (lambda a: [], '0 rows up to cursor 60 in place of 6, the first 0 as'),
  'cut': (lambda a: a[:3], '3 rows up to cursor 60 in place of 6, the first 2 as'),
  'a row lost': (lambda a: a[:4] + a[5:], '5 rows up to cursor 60 in place of 6, the first 4 as'),
  'a row twice': (
    lambda a: a[:3] + a[2:],
    '7 rows up to cursor 60 in place of 6, the first 2 as they were written; line 4 does not follow',
  ),
  'the last row twice': (
    lambda a: [*a, a[-1]],
    '7 rows up to cursor 60 in place of 6, the first 6 as they were written; line 7 ',
  ),
  'a number altered': (
    lambda a: [*a[:2], a[2].replace(b'"loss": ', b'"loss": 1'), *a[3:]],
    '6 rows up to cursor 60 in place of 6, the first 2 as they were written',
  ),
  'the last row without its end': (lambda a: [*a[:-1], a[-1][:-1]], 'line 6 has no end'),
  'torn in the middle': (
    lambda a: [*a[:3], a[3][:40] + b'\n', *a[4:]],
    '5 rows up to cursor 60 in place of 6, the first 2 as they were written; line 4 is not a row',
  ),
}


@pytest.mark.parametrize('kind', DAMAGES)
def test_damaged_rows_are_said_kept_as_they_are_and_end_nothing(folder, capsys, kind):
  change, said = DAMAGES[kind]
  path, before = folder / 'metrics.jsonl', lines_of(folder)
  if change is None:
    path.unlink()
  else:
    path.write_bytes(b''.join(change(before)))
  found = path.read_bytes() if path.exists() else None
  run = started(folder)
  left, (noted,) = evaluating._logged(run, run._checkpoints.written(), 60)
  assert noted.meaning.startswith(said)
  run.open_rows()
  run.close()
  out = capsys.readouterr().out
  assert f'metrics.jsonl is not as it was written ({said}' in out
  assert said in read_record(folder)['starts'][-1]['rows']
  copies = [*(folder / 'damaged').glob('*')] if found is not None else []
  assert [copy.read_bytes() for copy in copies] == ([] if found is None else [found])
  cursors = [row['cursor'] for row in rows.read_json_lines(path)]
  assert cursors == [row['cursor'] for row in left]
  assert cursors == sorted(set(cursors))
  assert len(cursors) == {'gone': 0, 'emptied': 0, 'cut': 3}.get(kind, 6 - (said[0] == '5'))


def test_what_a_finished_run_made_and_is_gone_is_named(folder, capsys):
  made = read_record(folder)['made']
  assert made == ['report.md', 'references.bib', 'curves.png', 'samples.png', 'events']
  training.train(prepare(lambda _: EXPERIMENT, {}, 'experiment', folder))
  assert ': gone' not in capsys.readouterr().out
  shutil.rmtree(folder / 'events')
  (folder / 'curves.png').unlink()
  training.train(prepare(lambda _: EXPERIMENT, {}, 'experiment', folder))
  said = 'curves.png, events: gone; --mode=evaluate makes a report anew'
  assert said in capsys.readouterr().out.splitlines()
  assert read_record(folder)['starts'][-1]['gone'] == said


def test_whole_rows_and_those_of_a_killed_start_are_no_damage(folder, capsys):
  path, before = folder / 'metrics.jsonl', lines_of(folder)
  more = before[-1].replace(b'"cursor": 60', b'"cursor": 70')
  path.write_bytes(b''.join(before) + more + more[:30])
  run = started(folder)
  run.open_rows()
  run.close()
  assert lines_of(folder) == before
  assert 'not as it was' not in capsys.readouterr().out
  assert not (folder / 'damaged').exists()


def test_a_folder_in_the_place_of_the_samples_is_set_aside_and_they_are_drawn_as_before(
  folder, capsys
):
  path = folder / 'samples.npz'
  before = samples.stored(path)
  path.unlink()
  (path / 'deep').mkdir(parents=True)
  run = started(folder)
  run.close()
  evaluating.evaluate(run, 'evaluate', evaluating.AS_THE_RUN)
  assert capsys.readouterr().out.count('drawn again') == 1
  for one, two in zip(samples.stored(path), before, strict=True):
    np.testing.assert_array_equal(one, two)
  assert (folder / 'damaged' / 'samples.npz' / 'deep').is_dir()


@pytest.mark.parametrize('kind', ['gone', 'truncated', 'altered'])
def test_samples_that_are_not_as_they_were_saved_are_drawn_again(folder, capsys, kind):
  path, (kept,) = folder / 'samples.npz', read_record(folder)['samples']
  content = path.read_bytes()
  assert kept['sha256'] == [hashlib.sha256(content).hexdigest()]
  assert samples._kept(path, kept['sha256']) is not None
  if kind == 'gone':
    path.unlink()
  elif kind == 'truncated':
    path.write_bytes(content[:-30])
  else:  # a number in the archive's own index that no reader looks at: the time of a file
    at = content.rindex(b'PK\x01\x02') + 12
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert samples.stored(path)
  assert samples._kept(path, kept['sha256']) is None
  assert capsys.readouterr().out.count('drawn again') == 1
