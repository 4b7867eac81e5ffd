"""From Python: names that load when asked for, a stranger's notebook, and the same run as the command line's."""

import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import diffusion
from diffusion import calling
from diffusion.provenance import read_record
from diffusion.reporting.rows import read_json_lines
from diffusion.runs import evaluating
from experiments import mixture
from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[1]
HEAVY = (
  'ml_collections',
  'matplotlib',
  'sklearn',
  'tensorflow_datasets',
  'grain',
  'diffusion.launch',
)


def python(code, cwd):
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  environment.pop('JAX_NUM_CPU_DEVICES', None)
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_the_public_names_load_when_asked_for_and_nothing_heavy_with_them(tmp_path):
  code = f"""
import sys
class NotRead(list):
  def __getattribute__(self, name): raise AssertionError('sys.argv is read')
  def __getitem__(self, index): raise AssertionError('sys.argv is read')
  def __iter__(self): raise AssertionError('sys.argv is read')
  def __len__(self): raise AssertionError('sys.argv is read')
sys.argv = NotRead()
import diffusion
assert 'jax' not in sys.modules
for name in diffusion.__all__:
  assert name in dir(diffusion)
  getattr(diffusion, name)
print([name for name in {HEAVY} if name in sys.modules])
from absl import flags
print(['workdir' in flags.FLAGS, 'smoke' in flags.FLAGS])
"""
  assert python(code, tmp_path).splitlines() == ['[]', '[False, False]']


@pytest.mark.slow
def test_a_stranger_s_notebook_runs_from_top_to_bottom(tmp_path):
  cells = json.loads((ROOT / 'tests' / 'stranger.ipynb').read_text())['cells']
  code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
  python(
    f'cells = {code!r}\nnames = {{}}\n'
    'for i, cell in enumerate(cells): exec(compile(cell, f"<cell {i}>", "exec"), names)',
    tmp_path,
  )


def test_it_is_the_run_that_the_command_line_makes(tmp_path):
  made = diffusion.train(
    mixture.build(mixture.SMOKE), tmp_path / 'python', 'mixture', vars(mixture.SMOKE)
  )
  command = [
    sys.executable,
    '-m',
    'experiments.mixture',
    f'--workdir={tmp_path / "command"}',
    '--smoke',
  ]
  subprocess.run(
    [*command, '--cpu_devices=4'], cwd=ROOT, check=True, capture_output=True, timeout=300
  )
  ours, theirs = (read_record(tmp_path / name) for name in ('python', 'command'))
  assert json.loads(json.dumps(made.record)) == ours
  assert ours.keys() == theirs.keys()
  for name in (
    'experiment',
    'config',
    'data',
    'techniques',
    'fingerprint',
    'status',
    'reason',
    'step',
    'results',
  ):
    assert ours[name] == theirs[name], name
  rows = [read_json_lines(tmp_path / name / 'metrics.jsonl') for name in ('python', 'command')]
  for one, other in zip(*rows, strict=True):
    assert one | {'timing': 0} == other | {'timing': 0}
  states = [
    tiny.leaves(ocp.load(tmp_path / name / 'checkpoints' / '40')) for name in ('python', 'command')
  ]
  for path, leaf in states[0].items():
    np.testing.assert_array_equal(leaf, states[1][path])
  files = [{path.name for path in (tmp_path / name).iterdir()} for name in ('python', 'command')]
  assert files[1] - files[0] == {'experiment.py'}
  assert not files[0] - files[1]


def test_it_says_that_cpu_devices_cannot_be_changed_any_more(tmp_path):
  code = """
import jax
jax.devices()
from diffusion import devices
print(len(jax.devices()), devices.configure_or_keep(32))
"""
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  said = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True, timeout=60
  ).stdout  # fmt: skip
  assert 'JAX is in use already' in said or os.cpu_count() == 1


def test_what_an_evaluation_from_python_is_asked_for_reaches_it(tmp_path, monkeypatch):
  """Each setting has a value of its own; what is judged by them is not what is asked here."""
  asked = {
    'samples': 12, 'metrics': ('fld', 'prdc'), 'features': 'digits', 'sampler': 'heun', 'grid': 'karras', 'steps': 9,
    'seed': 7,
  }  # fmt: skip
  found = {}

  class Judged:
    record = {'evaluations': [{'results': {'a': 1}}, {'results': {'a': 2}}]}

  def prepare(build, config, source, folder):
    found.update(made=build(config), source=source, folder=folder)
    return Judged

  def judge(run, mode, settings):
    found.update(run=run, mode=mode, settings=settings)

  monkeypatch.setattr(calling, 'read_record', lambda folder: {'config': {}, 'experiment': 'mine'})
  monkeypatch.setattr(calling, 'prepare', prepare)
  monkeypatch.setattr(evaluating, 'evaluate', judge)
  assert diffusion.evaluate(tmp_path, tiny.experiment(), **asked) == {'a': 2}
  assert found['settings']._asdict() == asked
  assert (found['run'], found['mode'], found['folder']) == (Judged, 'evaluate', tmp_path)
  assert found['made'].sampling.steps == 9


def test_an_evaluation_is_of_what_the_record_says_and_of_where_the_data_lies_now(
  tmp_path, monkeypatch
):
  """The experiment file is its source where there is one; one name of a metric is a list of it."""
  record = {'config': {'place': 'here', 'width': 2}, 'experiment': 'mine'}
  judged = SimpleNamespace(record={'evaluations': [{'results': {}}]})
  found = []

  def rebuilt(*given):
    found.append(given)
    return tiny.experiment(batch_size=24)

  def prepare(build, config, source, folder):
    found.append((config, source, folder, build(config).batch_size))
    return judged

  monkeypatch.setattr(calling, 'read_record', lambda folder: record)
  monkeypatch.setattr(calling, 'recorded_experiment', rebuilt)
  monkeypatch.setattr(calling.devices, 'configure_or_keep', found.append)
  monkeypatch.setattr(calling, 'prepare', prepare)
  monkeypatch.setattr(evaluating, 'evaluate', lambda run, mode, asked: found.append(asked.metrics))
  moved = {'place': 'there'}
  config = {'place': 'there', 'width': 2}
  for source in ('mine', tmp_path / 'experiment.py'):
    diffusion.evaluate(str(tmp_path), metrics='fld', moved=moved)
    wanted = [(tmp_path, record, moved), 24, (config, source, tmp_path, 24), ('fld',)]
    assert found == wanted
    found.clear()
    (tmp_path / 'experiment.py').touch()
  assert record['config']['place'] == 'here'


def test_what_a_training_from_python_is_asked_for_reaches_it(tmp_path, monkeypatch, capsys):
  """And an interruption is the caller's where training has not ended, and said where it has."""
  run, found = SimpleNamespace(status='running'), []
  interrupted = []

  def prepare(build, config, source, folder, terms):
    found.append((build(None).batch_size, config, source, folder, terms._asdict()))
    return run

  def train(run, extend):
    found.append((run, extend))
    if interrupted:
      raise KeyboardInterrupt

  monkeypatch.setattr(calling.devices, 'configure_or_keep', lambda size: [f'for {size} rows'])
  monkeypatch.setattr(calling, 'prepare', prepare)
  monkeypatch.setattr(calling.training, 'train', train)
  made = tiny.experiment(batch_size=24)
  for extend, changes, restart in ((30, True, False), (0, False, True)):
    given = {'extend': extend, 'allow_changes': changes, 'restart': restart}
    assert diffusion.train(made, str(tmp_path / 'a'), 'mine', {'width': 3}, **given) is run
    terms = {'allow_changes': changes, 'restart': restart}
    assert found == [(24, {'width': 3}, 'mine', tmp_path / 'a', terms), (run, extend)]
    found.clear()
  assert capsys.readouterr().out == 2 * 'for 24 rows\n'
  interrupted.append(True)
  with pytest.raises(KeyboardInterrupt):
    diffusion.train(made, tmp_path)
  for run.status in ('finished', 'diverged'):
    try:
      assert diffusion.train(made, tmp_path) is run
    except KeyboardInterrupt:
      pytest.fail('it would look as if training had been interrupted')
    assert 'interrupted: the same call makes the evaluation' in capsys.readouterr().out
