"""A run is known by what is built: other things are refused by name, allowed if asked and then told, or begun anew."""

import importlib.util
import json
import pathlib
import secrets
import subprocess
import sys

import jax
import numpy as np
import pytest

import diffusion
from diffusion import provenance
from diffusion.models import mlp
from diffusion.optimizers import chains, schedules
from diffusion.reporting.rows import read_json_lines
from diffusion.runs import claiming, loading
from diffusion.runs.claiming import Terms
from diffusion.runs.run import prepare
from diffusion.sampling import samplers
from diffusion.training import callbacks, checkpoint
from tests.training import tiny

SOURCE = """
import dataclasses
import diffusion
from diffusion.models import mlp
from tests.training import tiny
import beside

@dataclasses.dataclass
class Config(diffusion.Numbers):
  width: int = 16
  batch_size: int = 32

def build(c):
  return tiny.experiment(seed=c.seed, model=mlp.mlp(c.width, 2, 0, num_classes=2), augment=beside.augment)
"""
BESIDE = """
STRENGTH = 1

def augment(key, batch):
  return batch._replace(x=batch.x * STRENGTH)
"""


class Place:
  """An experiment file, one that it imports, and a folder; nothing is trained."""

  def __init__(self, root, monkeypatch):
    self.source, self.run, self._patch = root / 'mine.py', root / 'run', monkeypatch
    self.source.write_text(SOURCE)
    self.beside()

  def beside(self, text=BESIDE):
    path = self.source.with_name('beside.py')
    path.write_text(text)
    self._patch.setitem(sys.modules, 'beside', imported(path))

  def prepared(self, terms=claiming.AS_IT_IS, source=None, **config):
    module = imported(source or self.source)
    return prepare(
      module.build, module.Config(**config), source or self.source, self.run, terms=terms
    )

  def claimed(self, *given, **config):
    run = self.prepared(*given, **config)
    run.claim()
    return run

  def edit(self, old='mlp.mlp(c.width, 2', new='mlp.mlp(c.width, 3'):
    text = self.source.read_text()
    assert old in text
    self.source.write_text(text.replace(old, new))

  def record(self):
    return provenance.read_record(self.run)

  def copy(self, name='experiment.py'):
    return (self.run / name).read_text()


def imported(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[path.stem] = module
  # Not by its loader: a file that was edited within the second is taken from what Python keeps compiled.
  exec(compile(path.read_text(), path, 'exec'), vars(module))
  return module


@pytest.fixture
def place(tmp_path, monkeypatch):
  made = Place(tmp_path, monkeypatch)
  for name in ('mine', 'other'):
    monkeypatch.setitem(sys.modules, name, None)
  made.claimed()
  return made


def test_an_edit_of_build_or_of_a_file_that_it_imports_is_refused_and_named(place, monkeypatch):
  before = {path.name: path.read_bytes() for path in place.run.iterdir()}
  place.edit()
  says = r'another experiment \(model\.mlp\.depth: 2 -> 3\): undo this, .*--allow_changes'
  with pytest.raises(ValueError, match=says):
    place.claimed()
  place.edit('(c.width, 3', '(c.width, 2')
  place.claimed()
  place.beside(BESIDE.replace('1', '2'))
  with pytest.raises(ValueError, match=r'\(augment\.STRENGTH: 1 -> 2\)'):
    place.claimed()
  place.beside(BESIDE.replace('batch.x *', 'batch.x +'))
  with pytest.raises(ValueError, match=r'\(augment: .*return .*x \* STRENGTH.* -> .*x \+ STR'):
    place.claimed()
  place.beside()
  with pytest.raises(ValueError, match=r'\(width: 16 -> 8; model\.mlp\.width: 16 -> 8\)'):
    place.claimed(width=8)
  assert len(place.record()['starts']) == 2
  after = {path.name: path.read_bytes() for path in place.run.iterdir()}
  assert before.keys() == after.keys()
  assert {name for name in after if before[name] != after[name]} == {'run.json'}


def test_another_file_of_the_same_build_is_the_same_run_and_its_copy_stays(place):
  text = place.copy()
  other = place.source.with_name('other.py')
  other.write_text(SOURCE.replace('import diffusion\n', 'import diffusion  # a comment\n', 1))
  place.claimed(source=other)
  assert place.record()['experiment'] == 'mine'
  assert place.copy() == text
  other.write_text(SOURCE.replace('(c.width, 2', '(c.width, 3'))
  with pytest.raises(ValueError, match='another experiment'):
    place.claimed(source=other)


@pytest.mark.parametrize(
  ('settings', 'says'),
  [
    (lambda: jax.enable_x64(True), 'jax_enable_x64: False -> True'),
    (lambda: jax.default_prng_impl('rbg'), "jax_default_prng_impl: 'threefry2x32' -> 'rbg'"),
    (lambda: jax.default_matmul_precision('highest'), "matmul_precision: None -> 'highest'"),
    (lambda: jax.threefry_partitionable(False), 'jax_threefry_partitionable: True -> False'),
  ],
)
def test_other_settings_of_jax_are_refused_by_name(place, settings, says):
  with settings(), pytest.raises(ValueError, match=says):
    place.claimed()
  place.claimed()


def test_another_offset_of_jax_seeds_is_refused_by_name(place):
  try:
    jax.config.update('jax_random_seed_offset', 1)
    with pytest.raises(ValueError, match='jax_random_seed_offset: 0 -> 1'):
      place.claimed()
  finally:
    jax.config.update('jax_random_seed_offset', 0)


def test_allowed_changes_are_told_and_both_files_are_kept(place, capsys):
  old = place.copy()
  place.edit()
  before = place.record()
  run = place.claimed(Terms(allow_changes=True), width=8)
  assert place.record()['config']['width'] == 16  # until it trains
  run._fresh['smoke'] = True  # as of the small configuration
  assert place.copy() == old
  run.adopt()
  said = ['width: 16 -> 8', 'model.mlp.depth: 2 -> 3', 'model.mlp.width: 16 -> 8']
  record = place.record()
  start = record['starts'][1]
  assert start['changes'] == said
  assert (
    start['fingerprint']['to'] == record['fingerprint']['digest'] != start['fingerprint']['from']
  )
  assert f'goes on with changes: {"; ".join(said)}' in capsys.readouterr().out
  assert record['config']['width'] == 8
  assert (before['smoke'], record['smoke']) == (False, True)
  assert start['fingerprint']['from'] == before['fingerprint']['digest']
  assert place.copy('experiment_before_start_2.py') == old
  assert place.copy() == place.source.read_text() != old
  assert loading.recorded_experiment(place.run, record).model.init is not None
  assert capsys.readouterr().out == ''  # it builds what was trained
  place.claimed(width=8)
  assert 'changes' not in place.record()['starts'][2]
  place.edit('(c.width, 3', '(c.width, 2')
  with pytest.raises(ValueError, match=r'depth: 3 -> 2\)'):
    place.claimed(width=8)


def test_what_is_adopted_is_recorded_as_a_run_begun_so_would_be(place):
  """Of all that is recorded of what is built."""
  before = place.record()
  place.source = place.source.rename(place.source.with_name('other.py'))
  place.edit(
    'seed=c.seed',
    'seed=7, sampling=Sampling(steps=9), evaluation_noise=gap.evaluation_noise(levels=4, draws=3)',
  )
  imports = 'from diffusion.evaluation import gap\nfrom diffusion.sampling.plan import Sampling\n'
  place.source.write_text(imports + place.source.read_text())
  place.edit('augment=beside.augment', 'augment=beside.augment, clip_norm=2.0, micro_batches=2')
  place.claimed(Terms(allow_changes=True), width=8).adopt()
  adopted = place.record()
  place.run = place.run.with_name('fresh')
  place.claimed(width=8)
  fresh = place.record()
  same = ('experiment', 'config', 'data', 'bank', 'seed', 'num_steps', 'techniques', 'fingerprint')
  assert {name: adopted[name] for name in same} == {name: fresh[name] for name in same}
  names = ('experiment', 'config', 'bank', 'seed', 'techniques', 'fingerprint')
  assert all(before[name] != adopted[name] for name in names)


def test_an_end_that_has_passed_is_no_change_to_go_on_with(place):
  place.edit('seed=c.seed', 'seed=c.seed, num_steps=20')
  run = place.claimed(Terms(allow_changes=True))
  before = place.record()
  run.position = run.position.after(30)
  with pytest.raises(ValueError, match='is at step 30, and now shall end at step 20'):
    run.adopt()
  run.position = run.position.after(-10)
  with pytest.raises(ValueError, match='is at step 20, and now shall end at step 20: give'):
    run.adopt()
  assert place.record() == before
  run.position = run.position.after(-10)
  run.adopt()
  assert run.num_steps == 20
  # One that was extended ends where its extension does, whatever the experiment says.
  provenance.write_record(place.run, place.record() | {'num_steps': 70, 'extended_at': 20})
  place.edit('num_steps=20', 'num_steps=60')
  run = place.claimed(Terms(allow_changes=True))
  run.position = run.position.after(65)
  run.adopt()
  assert run.num_steps == 70


def test_what_an_experiment_from_python_takes_over_has_no_file_any_more(place):
  """What it was before is kept."""
  old, (module, config) = place.copy(), (imported(place.source), {})
  made = module.build(module.Config())._replace(num_steps=20)
  run = prepare(lambda _: made, config, 'python', place.run, terms=Terms(allow_changes=True))
  run.claim()
  run.adopt()
  assert not (place.run / 'experiment.py').exists()
  assert place.copy('experiment_before_start_2.py') == old
  record = place.record()
  assert (record['experiment'], record['source'], record['config']) == ('python', None, {})


def test_changes_are_told_by_their_first_six():
  assert claiming.in_words(list('abcdef')) == 'a; b; c; d; e; f'
  assert claiming.in_words(list('abcdefgh')) == 'a; b; c; d; e; f; and 2 more'


@pytest.mark.parametrize(
  ('old', 'new', 'places'),
  [
    ({'n': 1, 'folder': 'here'}, {'n': 1, 'folder': 'there'}, True),
    ({'n': 1, 'folders': None}, {'n': 1, 'folders': ['here', 'there']}, True),
    ({'n': 1, 'folder': 'here'}, {'n': 2, 'folder': 'there'}, False),
    ({'n': 'one'}, {'n': 1}, False),
    ({'n': 1}, {'n': 'one'}, False),
    ({'folders': ['here', 1]}, {'folders': ['here', 'there']}, False),
    ({'folder': 'here'}, {'folder': 'here', 'more': 'there'}, False),
    ({'folder': 'here', 'more': 'there'}, {'folder': 'there'}, False),
  ],
)
def test_only_texts_may_say_where_data_lies(old, new, places):
  assert claiming._are_places(old, new) == places


def test_a_package_of_another_commit_is_said_and_only_what_both_starts_had_is_edited(capsys):
  def start(version, digest, commit, **own):
    code = {'digest': digest, 'commit': commit, 'own': own}
    return {'versions': {'jax': version, 'numpy': '2'}, 'code': code}

  old = start('1', 'a', 40 * '0', **{'b.py': 'x', 'a.py': 'x', 'gone.py': 'x', 'same.py': 'x'})
  new = start('2', 'b', 40 * '1', **{'b.py': 'y', 'a.py': 'z', 'new.py': 'x', 'same.py': 'x'})
  claiming._say_versions(old, new)
  assert capsys.readouterr().out == (
    "since the start before: jax: '1' -> '2'; the code of this package: 0000000000 -> 1111111111; "
    'edited: a.py, b.py\n'
  )
  claiming._say_versions(start('1', 'a', 40 * '0'), start('1', 'a', 40 * '1'))
  assert capsys.readouterr().out == ''  # another commit of the same code


def test_what_a_start_leaves_that_is_killed_at_once_is_no_run_and_in_nobody_s_way(
  tmp_path, monkeypatch
):
  place = Place(tmp_path, monkeypatch)
  monkeypatch.setitem(sys.modules, 'mine', None)
  place.run.mkdir()
  (place.run / 'before_restart_2').mkdir()
  for name in ('experiment.py', '.run.json.tmp', '.run.json.lock'):
    (place.run / name).touch()
  place.claimed()
  assert place.copy() == SOURCE
  assert len(place.record()['starts']) == 1


def test_a_copy_of_the_experiment_that_is_lost_or_altered_is_not_run_and_is_written_anew(place, capsys):  # fmt: skip
  text = place.copy()
  (place.run / 'experiment.py').write_text(text + '\nraise AssertionError\n')
  with pytest.raises(ValueError, match=r'experiment\.py is not as it was written: put it back, or'):
    loading.recorded_experiment(place.run, place.record())
  place.claimed()
  assert 'experiment.py is not as it was written: written anew' in capsys.readouterr().out
  assert place.copy() == text
  assert 'AssertionError' in place.copy('experiment_before_start_2.py')
  (place.run / 'experiment.py').unlink()
  with pytest.raises(ValueError, match=r'has no experiment\.py'):
    loading.recorded_experiment(place.run, place.record())
  place.claimed()
  assert 'is lost: written anew' in capsys.readouterr().out
  loading.recorded_experiment(place.run, place.record())
  place.beside(BESIDE.replace('1', '2'))
  loading.recorded_experiment(place.run, place.record())
  assert 'builds something else than was trained: augment.STRENGTH: 1' in capsys.readouterr().out


def test_other_versions_and_edited_files_are_said_and_every_start_has_its_own(place, capsys, monkeypatch):  # fmt: skip
  monkeypatch.setattr(provenance, 'versions', lambda: {'jax': '9.9'})
  place.edit('import diffusion\n', 'import diffusion  # why\n')
  place.beside(BESIDE + '# no more\n')
  monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '0')
  key = secrets.token_hex()
  monkeypatch.setenv('JAX_MY_TOKEN', key)
  place.claimed()
  said = capsys.readouterr().out
  assert said.startswith('since the start before: ') and "-> '9.9'" in said
  assert 'edited: beside.py, mine.py' in said
  first, second = place.record()['starts']
  assert first['versions']['jax'] == jax.__version__ != second['versions']['jax']
  assert second['environment']['NVIDIA_TF32_OVERRIDE'] == '0'
  assert key not in json.dumps(place.record())
  assert first['settings'] == second['settings']
  assert first['devices'] == second['devices']
  place.claimed()  # nothing has changed since the second
  assert 'since the start before' not in capsys.readouterr().out


def test_a_restart_moves_all_aside_and_never_over_an_older_one(place, capsys, monkeypatch):
  (place.run / 'checkpoints').mkdir()
  (place.run / 'checkpoints' / '40').touch()
  place.edit()
  moved, rename = [], pathlib.Path.rename
  monkeypatch.setattr(
    pathlib.Path, 'rename', lambda path, to: [moved.append(path.name), rename(path, to)][1]
  )
  for number in (1, 2):
    held = {path.name for path in place.run.iterdir() if path.name[0] not in '.b'}
    moved.clear()
    place.claimed(Terms(restart=True))
    assert {*moved[:-2]} | {'run.json'} == held and moved[-2] == 'run.json'  # by which it is a run
    aside = place.run / f'before_restart_{number}'
    assert f'what was in {place.run} is now in {aside}' in capsys.readouterr().out
    assert {path.name for path in aside.iterdir()} == held
    assert len(place.record()['starts']) == 1
    place.claimed()
  assert (place.run / 'before_restart_1' / 'checkpoints' / '40').exists()
  (place.run / 'run.json').write_text('{')  # damaged, and given up
  place.claimed(Terms(restart=True))
  assert (place.run / 'before_restart_3' / 'run.json').read_text() == '{'


def test_a_restart_that_was_killed_goes_on(place):
  part = place.run / 'before_restart_1.part'
  part.mkdir()
  (place.run / 'experiment.py').rename(part / 'experiment.py')
  place.claimed(Terms(restart=True))
  assert not part.exists()
  names = {path.name for path in (place.run / 'before_restart_1').iterdir()}
  assert names == {'experiment.py', 'run.json'}


def test_a_restart_touches_no_folder_of_something_else(tmp_path, monkeypatch):
  place = Place(tmp_path, monkeypatch)
  place.run.mkdir()
  (place.run / 'thesis.tex').touch()
  with pytest.raises(ValueError, match=r'holds no run \(thesis\.tex\)'):
    place.claimed(Terms(restart=True))
  assert [path.name for path in place.run.iterdir()] == ['thesis.tex']


def test_a_folder_in_which_another_process_trains_is_left_alone(place):
  code = (
    'import fcntl, sys; file = open(sys.argv[1], "wb"); fcntl.lockf(file, fcntl.LOCK_EX);'
    'print(flush=True); sys.stdin.read()'
  )
  lock = place.run / '.checkpoints.lock'
  other = subprocess.Popen([sys.executable, '-c', code, lock], stdin=-1, stdout=-1)
  other.stdout.readline()
  before = place.record()
  for terms in (claiming.AS_IT_IS, Terms(restart=True), Terms(allow_changes=True)):
    with pytest.raises(ValueError, match='is in use by another process, which trains there'):
      place.claimed(terms)
  assert place.record() == before
  other.communicate()
  place.claimed()


@pytest.mark.parametrize('what', ['a folder', 'a dangling link'])
def test_what_is_no_lock_ends_no_start(place, what):
  lock = place.run / '.checkpoints.lock'
  lock.unlink()
  if what == 'a folder':
    lock.mkdir()
  else:
    lock.symlink_to('/nowhere/at/all')
  place.claimed()
  checkpoint.open_checkpoints(place.run / 'checkpoints').close()
  assert lock.is_file()


@pytest.mark.slow
def test_a_run_that_changed_on_purpose_trains_on_and_one_of_another_network_stays_what_it_was(
  tmp_path, capsys
):
  sampling = diffusion.Sampling(samplers.ddim, 2, per_class=2)
  made = tiny.experiment(num_steps=20, callbacks=[callbacks.checkpoint()], sampling=sampling)
  other = made._replace(optimizer=chains.adamw(schedules.constant(0.02), 0.01, 1.0))
  folder = tmp_path / 'run'
  diffusion.train(made, folder)
  with pytest.raises(
    ValueError, match=r'optimizer\..*\.value: 0\.01 -> 0\.02\).* by allow_changes='
  ):
    diffusion.train(other, folder)
  bigger = made._replace(model=mlp.mlp(8, 2, 0.1, num_classes=2))
  before = provenance.read_record(folder)
  with pytest.raises(ValueError, match='is of another network'):
    diffusion.train(bigger, folder, extend=20, allow_changes=True)
  after = provenance.read_record(folder)
  assert len(after['starts']) == 2
  assert after | {'starts': 0} == before | {'starts': 0}
  assert 'changes' not in after['starts'][-1]
  run = diffusion.train(other, folder, extend=20, allow_changes=True)
  assert run.record['starts'][-1]['changes'][0].endswith('value: 0.01 -> 0.02')
  assert run.record['evaluations'][-1]['changed'] == []  # it is judged as it is now
  rates = [row['learning_rate'] for row in read_json_lines(folder / 'metrics.jsonl')]
  np.testing.assert_allclose(rates, [0.01, 0.01, 0.02, 0.02])
  with pytest.raises(ValueError, match=r'0\.02 -> 0\.01'):
    diffusion.train(made, folder)
  diffusion.evaluate(folder, made)
  changed = provenance.read_record(folder)['evaluations'][-1]['changed']
  assert len(changed) == 1 and changed[0].endswith('0.02 -> 0.01')
  with pytest.raises(ValueError, match='begins anew: leave --extend=20 out'):
    diffusion.train(made, folder, extend=20, restart=True)
