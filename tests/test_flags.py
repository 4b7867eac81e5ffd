"""What each flag reaches: programs as they are started, but for what they would begin.

`python -m tests.test_flags` reads command lines from its input, forks for each, and prints what each would have begun.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

import diffusion
from diffusion import launch
from tests.training import tiny

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass
class Config:
  """Numbers that nothing is made of."""

  seed: int = 0
  batch_size: int = 32
  width: int = 3
  depth: int = 2
  arm: str = 'plain'


class Begun(str):
  """A run, as far as it matters here."""

  data = None


SMOKE = Config(width=1)
ARMS = {'plain': lambda c: c, 'other': lambda c: c, 'third': lambda c: c}
RECORDED = {'config': {'seed': 5, 'batch_size': 64, 'width': 7, 'depth': 9, 'arm': 'third'}}


def build(c: Config) -> diffusion.Experiment:
  """Something whose plan of sampling can be asked about."""
  steps = 10 * c.width + c.depth
  return tiny.experiment(seed=c.seed, sampling=diffusion.Sampling(steps=steps, wrappers=()))


def told(command: list[str]) -> dict:
  """What a program with these arguments begins, by the name of each function, as (arguments by place or name)."""
  found: dict = {}

  def noting(name, result=None):
    def note(*places, **names):
      found.setdefault(name, []).append(
        [*map(plain, places), {n: plain(v) for n, v in names.items()}]
      )
      return result

    return note

  def prepare(make, config, source, folder, **more):
    made = make(config)
    noting('prepare')(config, folder, **more)
    found['plan'] = [str(made.sampling.sampler), str(made.sampling.grid), made.sampling.steps]
    return Begun('the run')

  from diffusion.runs import describing, evaluating, lr_range, population

  launch.prepare = prepare
  launch.processes.initialize = noting('initialize', 1)
  launch.processes.check_same = noting('check_same')
  launch.devices.configure = noting('configure')
  launch.sources.streamed = lambda data, workers: noting('streamed', data)(workers)
  launch.read_record = lambda folder: RECORDED
  launch.training.train = noting('train', 0)
  describing.describe = noting('describe', 'described')
  evaluating.evaluate = noting('evaluate', 0)
  lr_range.train_rising = noting('train_rising', 0)

  def members(runs, values, make, extend):
    made = [make(one) for one in values]
    found['members'] = [
      (str(run), one.seed, one.sampling.steps) for run, one in zip(runs, made, strict=True)
    ]
    return noting('population', 0)(values, extend)

  population.share_data, population.train = noting('share_data'), members
  sys.argv = ['program', *command]
  with tempfile.TemporaryFile('w+') as said:
    try:
      with contextlib.redirect_stderr(said):
        launch.run(build, Config(), SMOKE, ARMS)
    except SystemExit as end:
      found['status'] = end.code
    said.seek(0)
    return found | {'said': said.read()}


def plain(value):
  """For JSON."""
  if dataclasses.is_dataclass(value):
    return dataclasses.asdict(value)
  if hasattr(value, '_asdict'):
    return value._asdict()
  return value if isinstance(value, str | int | float | dict | list | None) else str(value)


COMMANDS = {
  'bare': [],
  'seed': ['--seed=7'],
  'smoke': ['--smoke', '--config.depth=4'],
  'train': ['--extend=30', '--profile=10:20', '--allow_changes', '--data_workers=2', '--cpu_devices=3'],
  'restart': ['--restart', '--arm=other', '--config.arm=third'],
  'processes': [
    '--coordinator=here:1', '--num_processes=3', '--process_id=2', '--heartbeat_seconds=4', '--config.width=9',
  ],
  'evaluate': [
    '--mode=evaluate', '--seed=7', '--num_samples=12', '--sampler=heun', '--sampler_grid=karras',
    '--sampler_steps=9', '--metrics=fld,prdc', '--features=digits', '--config.width=8',
  ],
  'sample': ['--mode=sample', '--sampler_grid=karras', '--arm=other'],
  'lr_range': ['--mode=lr_range', '--lr_low=1e-5', '--lr_high=0.5'],
  'dry_run': ['--dry_run', '--config.depth=5'],
  'population': ['--population=width=1,2', '--population=depth=0..1', '--extend=30', '--seed=7'],
  'small population': ['--population=width=5', '--smoke', '--allow_changes', '--cpu_devices=3'],
  'population of seeds': ['--population=seed=3', '--restart'],
}  # fmt: skip
# What is refused once the flags are known, and what is said of it.
REFUSED = {
  '--population=width=1,2 --mode=sample': '--population is for training: name the folder of one member',
  '--population=width=1,2 --dry_run': '--population is for training: name the folder of one member',
  '--population=width=1,2 --profile=1:2': '--profile is for a single run, not for a --population',
  '--population=width=1,2 --data_workers=0': '--population keeps its data on the devices',
  '--population=width=1 --population=seed=1 --seed=0': '--seed and --population=seed=... both name seeds',
  '--config=width': "'--config=width' names no number: give --config.key=value (keys: seed, batch_size, width, depth",
  '--config.widht=3': 'unknown configuration key --config.widht: the nearest is --config.width (all: seed,',
}
COMMANDS |= {command: command.split() for command in REFUSED}


@pytest.fixture(scope='module')
def begun():
  """By command: what it begins."""
  done = subprocess.run(
    [sys.executable, '-m', 'tests.test_flags'], cwd=ROOT, input=json.dumps(COMMANDS), capture_output=True,
    text=True, timeout=300, check=False, env=os.environ | {'PYTHONPATH': str(ROOT)},
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def config_of(found):
  (config, *_), *_ = found['prepare']
  return config


def test_the_configuration_is_that_of_the_flags(begun):
  plain = dataclasses.asdict(Config())
  assert config_of(begun['bare']) == plain
  assert config_of(begun['seed']) == plain | {'seed': 7}
  assert config_of(begun['smoke']) == plain | {'width': 1, 'depth': 4}
  assert config_of(begun['restart']) == plain | {'arm': 'other'}  # --arm goes before --config.arm
  assert config_of(begun['dry_run']) == plain | {'depth': 5}
  assert begun['dry_run']['describe'] and 'train' not in begun['dry_run']


def test_a_run_is_judged_as_it_was_configured_but_for_what_the_command_line_names(begun):
  assert config_of(begun['evaluate']) == RECORDED['config'] | {'width': 8}
  assert config_of(begun['sample']) == RECORDED['config'] | {'arm': 'other'}


def test_what_a_judgment_is_asked_for_reaches_it(begun):
  ((run, mode, request, _),) = begun['evaluate']['evaluate']
  assert (run, mode) == ('the run', 'evaluate')
  assert request == {
    'seed': 7, 'samples': 12, 'sampler': 'heun', 'grid': 'karras', 'steps': 9, 'metrics': ['fld', 'prdc'],
    'features': 'digits',
  }  # fmt: skip
  sampler, grid, steps = begun['evaluate']['plan']
  assert 'heun' in sampler and 'karras' in grid and steps == 9
  ((_, mode, request, _),) = begun['sample']['evaluate']
  assert mode == 'sample'
  assert (request['grid'], request['seed'], request['features']) == ('karras', 0, 'pixels')
  assert 'karras' in begun['sample']['plan'][1]


def test_what_a_training_is_asked_for_reaches_it(begun):
  assert begun['bare']['train'] == [['the run', 0, None, {}]]
  assert begun['train']['train'] == [['the run', 30, {'start': 10, 'stop': 20}, {}]]
  terms = lambda name: begun[name]['prepare'][0][-1]['terms']  # noqa: E731
  assert terms('bare') == {'allow_changes': False, 'restart': False}
  assert terms('train') == {'allow_changes': True, 'restart': False}
  assert terms('restart') == {'allow_changes': False, 'restart': True}
  smoke = [begun[name]['prepare'][0][-1]['smoke'] for name in ('bare', 'smoke')]
  assert smoke == [False, True]
  assert begun['train']['streamed'] == [[2, {}]]
  assert begun['train']['configure'] == [[32, 3, {'num_processes': 1}]]
  assert 'streamed' not in begun['bare']
  assert begun['bare']['configure'] == [[32, 0, {'num_processes': 1}]]
  assert begun['processes']['initialize'] == [['here:1', 3, 2, 4, {}]]
  assert begun['lr_range']['train_rising'] == [['the run', 1e-5, 0.5, {}]]
  said = begun['processes']['check_same'][0][1]
  assert said['num_processes'] == 3 and 'process_id' not in said  # what processes may not differ in
  assert said['width'] == 9


def test_a_population_is_of_all_combinations_with_the_other_flags(begun):
  told = begun['population']
  configs = [config for config, *_ in told['prepare']]
  assert [(c['width'], c['depth'], c['seed']) for c in configs] == [
    (1, 0, 7), (1, 1, 7), (2, 0, 7), (2, 1, 7),
  ]  # fmt: skip
  folders = [pathlib.Path(folder).name for _, folder, _ in told['prepare']]
  assert folders == ['width=1,depth=0', 'width=1,depth=1', 'width=2,depth=0', 'width=2,depth=1']
  (((values, extend, _),),) = [told['population']]
  assert extend == 30
  assert values == [{'width': w, 'depth': d} for w in (1, 2) for d in (0, 1)]
  # Each is built of its own numbers, and of the configuration for the others.
  assert told['members'] == [['the run', 7, 10 * w + d] for w in (1, 2) for d in (0, 1)]
  plain = {'allow_changes': False, 'restart': False}
  for name, seed, steps, terms, smoke in (
    ('population', 7, 10, {}, False),
    ('small population', 0, 52, {'allow_changes': True}, True),
    ('population of seeds', 3, 32, {'restart': True}, False),
  ):
    told = begun[name]
    assert told['prepare'][0][-1] == {'smoke': smoke, 'terms': plain | terms}
    assert told['members'][0] == ['the run', seed, steps]
    assert told['share_data'][0][1:] == [None, {}]
    assert (told['status'], told['said']) == (0, '')
  assert begun['small population']['configure'] == [[32, 3, {'num_processes': 1}]]


@pytest.mark.parametrize('command', REFUSED)
def test_what_does_not_go_together_is_one_line_and_nothing_begins(begun, command):
  told = begun[command]
  assert told['said'].startswith('error: ') and told['said'].count('\n') == 1
  assert REFUSED[command] in told['said']
  assert told['status'] == 2
  assert not told.keys() & {'prepare', 'train', 'population', 'evaluate'}


def main() -> None:
  """Forks for each command line, since flags are defined once a process."""
  results = {}
  for name, command in json.load(sys.stdin).items():
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
      os.dup2(2, 1)
      with os.fdopen(writes, 'w') as out:
        json.dump(told(['--workdir=somewhere', *command]), out)
      os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as given:
      text = given.read()
    os.waitpid(child, 0)
    results[name] = json.loads(text or '{}')
  print(json.dumps(results))


if __name__ == '__main__':
  main()
