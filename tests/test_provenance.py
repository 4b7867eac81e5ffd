"""A run's folder is taken by that run alone, and its record is what was written or named in one line."""

import dataclasses
import datetime
import importlib.machinery
import json
import platform
import re
import sys
import types

import jax
import numpy as np
import pytest

import diffusion
from diffusion import provenance
from diffusion.commands import evaluate
from diffusion.data import augment
from diffusion.runs import claiming, compare, loading
from diffusion.runs.run import prepare
from diffusion.training.checkpoint import open_checkpoints
from tests.training import tiny


def test_what_a_start_left_that_was_killed_at_once_is_in_nobodys_way(tmp_path):
  folder, source = tmp_path / 'run', tmp_path / 'digits.py'
  folder.mkdir()
  source.write_text('whole')
  (folder / 'experiment.py').write_text('who')
  (folder / '.run.json.7.tmp').write_text('{')
  fresh = {'starts': [{}], 'config': {}, 'data': {}, 'format': provenance.RECORD_FORMAT}
  claiming.claim(folder, fresh, source.read_bytes())
  assert provenance.read_record(folder) == fresh
  assert (folder / 'experiment.py').read_text() == 'whole'


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(ValueError, match=r'is not empty and holds no run \(thesis.tex\)'):
    claiming.claim(tmp_path, {}, None)


@pytest.fixture
def run(tmp_path):
  """A run that has its folder, and not begun."""
  made = prepare(lambda _: tiny.experiment(), {}, 'tiny', tmp_path / 'run')
  made.claim()
  return made


def without(name):
  def edit(text):
    record = json.loads(text)
    *path, last = name.split('.')
    inner = record
    for one in path:
      inner = inner[int(one) if one.isdecimal() else one]
    del inner[last]
    return json.dumps(record)

  return edit


DAMAGES = {
  'truncated': (lambda text: text[: len(text) // 2], 'is no JSON .* line'),
  'empty': (lambda text: '', 'is empty'),
  'no key': (lambda text: '{}', 'is damaged: no format'),
  'a list': (lambda text: '[1, 2]', r'holds no JSON object, but \[1, 2\]'),
  'a number': (lambda text: '7', 'holds no JSON object, but 7'),
  'too deep': (lambda text: '[' * 100_000, 'is no JSON'),
  'not UTF-8': (
    lambda text: b'\xff\xfe' + text.encode(),
    "is no JSON .*'utf-8' codec can't decode",
  ),
  'no starts': (without('starts'), 'is damaged: no starts'),
  'starts are empty': (lambda text: _with(text, starts=[]), 'is damaged: nothing in starts'),
  'starts of nothing': (lambda text: _with(text, starts=[3]), r'is damaged: starts.0 is int'),
  'no code': (without('starts.0.code'), r'is damaged: no starts.0.code'),
  'no class names': (without('data.class_names'), 'is damaged: no data.class_names'),
  'data is a text': (lambda text: _with(text, data='digits'), 'is damaged: data is str'),
  'another number': (
    lambda text: text.replace('"step": 0', '"step": 1'),
    'is damaged: it is not as it was written',
  ),
  'another format': (lambda text: _with(text, format=1), 'has format 1, this version reads'),
}


def _with(text, **changes):
  return json.dumps(json.loads(text) | changes)


@pytest.mark.parametrize('case', DAMAGES)
def test_a_damaged_record_is_one_line_that_says_what_is_wrong_and_what_to_do(run, case):
  edit, says = DAMAGES[case]
  path = run.folder / 'run.json'
  damaged = edit(path.read_text())
  path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
  with pytest.raises(ValueError, match=rf'^{path} {says}.*choose another --workdir') as caught:
    provenance.read_record(run.folder)
  assert '\n' not in str(caught.value)
  assert len(str(caught.value)) < 500


def test_every_flipped_bit_of_a_record_is_noticed_or_harmless(run):
  path = run.folder / 'run.json'
  whole, record, noticed = path.read_bytes(), provenance.read_record(run.folder), 0
  for place in np.random.default_rng(0).integers(0, 8 * len(whole), 300):
    flipped = bytearray(whole)
    flipped[place // 8] ^= 1 << place % 8
    path.write_bytes(flipped)
    try:
      found = provenance.read_record(run.folder)
    except ValueError:
      noticed += 1
    else:  # a blank between two entries, or a letter of the name of the seal
      assert record.items() <= found.items()
  assert noticed > 200


def test_each_entry_that_is_read_of_a_record_is_missed_where_it_is_gone_or_something_else(run):
  path = run.folder / 'run.json'
  record = json.loads(path.read_text())
  del record['seal']
  record |= {'starts': record['starts'] * 2}

  def says(changed):
    path.write_text(json.dumps(changed))
    try:
      provenance.read_record(run.folder)
    except ValueError as error:
      return str(error).partition('is damaged: ')[2].partition(';')[0]
    return ''

  def missed(at, inner, put):
    return {
      name for name in inner
      if says(put({key: one for key, one in inner.items() if key != name})) == f'no {at}{name}'
    }  # fmt: skip

  assert missed('', record, lambda whole: whole) == record.keys() - {'speed', 'peak_memory'}
  data = record['data']
  assert missed('data.', data, lambda changed: record | {'data': changed}) == data.keys()
  first, second = record['starts']
  last = missed('starts.1.', second, lambda start: record | {'starts': [first, start]})
  assert last == {'time', 'command', 'code', 'devices', 'versions', 'settings'}
  for name, other in (
    ('step', '0'),
    ('smoke', 0),
    ('reason', None),
    ('techniques', {}),
    ('data', []),
  ):
    assert says(record | {name: other}) == f'{name} is {type(other).__name__}'
  assert says(record | {'bank': record['bank'] | {'draws': 1.5}}) == 'bank.draws is float'
  assert says(record) == ''


def test_a_record_says_with_what_and_when_it_was_made(monkeypatch):
  found = provenance.versions()
  assert set(found) == {
    'python', 'diffusion', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'numpy',
    'scipy',
  }  # fmt: skip
  known = found['python'], found['jax'], found['numpy']
  assert known == (platform.python_version(), jax.__version__, np.__version__)
  monkeypatch.setattr(provenance, 'PACKAGES', ('no-such-package', 'numpy'))
  assert provenance.versions() == {
    'python': known[0], 'no-such-package': None, 'numpy': known[2]
  }  # fmt: skip
  main = types.ModuleType('__main__')
  monkeypatch.setitem(sys.modules, '__main__', main)
  monkeypatch.setattr(sys, 'argv', ['/there/mine.py', '--a=1', 'b'])
  for spec, head in (
    (None, ['/there/mine.py']),
    ('experiments.digits', ['-m', 'experiments.digits']),
    ('diffusion.commands.__main__', ['-m', 'diffusion.commands']),
  ):
    main.__spec__ = spec and importlib.machinery.ModuleSpec(spec, None)
    assert provenance.command() == ['python', *head, '--a=1', 'b']
  said = provenance.now()
  age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(said)
  assert 0 <= age.total_seconds() < 60 and len(said) == len('2026-01-01T00:00:00+00:00')


@dataclasses.dataclass
class Numbers:
  width: int = 3
  multipliers: tuple = (1, 2)
  name: str = 'a'


def test_a_configuration_comes_back_as_it_was_and_differences_are_named():
  made = Numbers(5, (1, 4), 'b')
  told = provenance.config_to_json(made)
  assert told == {'width': 5, 'multipliers': [1, 4], 'name': 'b'}
  assert provenance.config_from_json(Numbers(), told) == made
  assert provenance.config_to_json({'m': (1,), 'n': 2}) == {'m': [1], 'n': 2}
  for other, names in ((told | {'more': 1}, ['more']), ({'width': 5}, ['multipliers', 'name'])):
    with pytest.raises(ValueError, match=re.escape(f'in the fields {names}')):
      provenance.config_from_json(Numbers(), other)
  old, new = {'b': None, 'a': 1, 'd': [1]}, {'a': 2, 'c': None, 'd': [1]}
  assert provenance.differences(old, new) == [
    'a: 1 -> 2',
    "b: None -> '(none)'",
    "c: '(none)' -> None",
  ]


def test_what_data_is_called_makes_no_other_data_and_all_else_does():
  base = {
    'name': 'a', 'note': '', 'found': {}, 'class_names': ['x', 'y'], 'fingerprint': 'f', 'shape': [8], 'levels': 17,
    'split_hashes': {'train': 't'}, 'condition': None,
  }  # fmt: skip
  for name, called in (
    ('name', 'b'),
    ('note', 'n'),
    ('found', {'k': 1}),
    ('class_names', ['y', 'z']),
  ):
    assert provenance.data_changes(base, base | {name: called}) == []
    both = provenance.data_changes(base, base | {name: called, 'fingerprint': 'g'})
    assert sorted(one.partition(':')[0] for one in both) == sorted([name, 'fingerprint'])
  for name, other in (
    ('class_names', ['x']), ('fingerprint', 'g'), ('shape', [9]), ('levels', None), ('split_hashes', {'train': 'u'}),
    ('condition', [1]),
  ):  # fmt: skip
    (said,) = provenance.data_changes(base, base | {name: other})
    assert said == f'{name}: {base[name]!r} -> {other!r}'


READERS = {
  'training': lambda run: run.claim(),
  'a start': lambda run: prepare(lambda _: tiny.experiment(), {}, 'tiny', run.folder),
  'load': lambda run: diffusion.load(run.folder),
  'an ensemble': lambda run: diffusion.load_ensemble([run.folder]),
  'evaluate': lambda run: diffusion.evaluate(run.folder),
  'report': lambda run: compare.load([run.folder]),
  'the data': lambda run: loading.data_of(run.folder),
  'images': lambda run: evaluate.measure(run.folder, run.folder, ('all',), 'pixels'),
}


@pytest.mark.parametrize('reader', READERS)
def test_every_reader_of_a_record_says_that_it_is_damaged(run, reader):
  path = run.folder / 'run.json'
  path.write_text('{}')
  with pytest.raises(ValueError, match=f'{path} is damaged: no format'):
    READERS[reader](run)
  path.unlink()
  path.mkdir()
  with pytest.raises(ValueError, match=f'{path} is a folder'):
    READERS[reader](run)


def test_a_record_that_was_changed_by_hand_is_read_without_its_seal(run):
  path = run.folder / 'run.json'
  record = json.loads(path.read_text()) | {'reason': 'by hand'}
  path.write_text(json.dumps(record))
  with pytest.raises(ValueError, match='delete its entry "seal"'):
    provenance.read_record(run.folder)
  del record['seal']
  path.write_text(json.dumps(record))
  assert provenance.read_record(run.folder)['reason'] == 'by hand'


def test_weights_are_read_without_the_record_and_without_running_the_folders_code(tmp_path):
  made = tiny.experiment(augment=augment.chain())
  _, state, _ = tiny.start(made)
  checkpoints = open_checkpoints(tmp_path / 'checkpoints')
  for number, loss in ((1, 0.5), (2, 0.7)):
    host = state._replace(step=np.int32(number), params=_times(state.params, number))
    checkpoints.save(number, _times(host, 1), {'step': number, 'callbacks': {}}, loss)
  checkpoints.close()
  (tmp_path / 'experiment.py').write_text('raise SystemExit("it was executed")')
  (tmp_path / 'run.json').write_text('no record')
  found = diffusion.load_parameters(str(tmp_path))
  assert set(found) == {'trained', 'averages', 'statistics'}
  best = tiny.leaves(state.params.network)
  for path, leaf in tiny.leaves(found['trained']['network']).items():
    assert isinstance(leaf, np.ndarray)
    np.testing.assert_array_equal(leaf, best[path])
  assert tiny.leaves(found['averages']['ema']['network']).keys() == best.keys()
  with pytest.raises(ValueError, match=f'no checkpoint in {tmp_path / "none"}'):
    diffusion.load_parameters(tmp_path / 'none')


def _times(tree, factor):
  return jax.tree.map(lambda leaf: np.asarray(factor * leaf, leaf.dtype), tree)
