"""Every bad input: one readable line, a non-zero status, nothing written, before any training."""

import concurrent.futures
import dataclasses
import pathlib
import time

import pytest

from tests.programs import Program

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass
class Case:
  """Flags (with {tmp} for the test's folder), the experiment, and what the line must say."""

  flags: tuple[str, ...]
  says: tuple[str, ...]
  experiment: str = 'mixture'
  seconds: float = 60


CASES = {
  'unknown key': Case(
    ('--workdir={tmp}/run', '--config.droput=0.1'), ('unknown configuration key --config.droput', '--config.dropout')
  ),
  'unknown flag': Case(('--workdir={tmp}/run', '--wrkdir=x'), ('wrkdir',)),
  'unknown mode': Case(('--workdir={tmp}/run', '--mode=evalute'), ("the nearest is 'evaluate'",)),
  'no number': Case(('--workdir={tmp}/run', '--lr_low=low'), ('lr_low', 'low')),
  'wrong type': Case(('--workdir={tmp}/run', '--config.num_steps=many'), ('num_steps', 'many')),
  'dropout': Case(('--workdir={tmp}/run', '--config.dropout=1.2'), ('dropout must be a number in [0, 1)', '1.2')),
  'learning rate': Case(('--workdir={tmp}/run', '--config.learning_rate=-0.1'), ('learning_rate', '-0.1')),
  'seed of more than 32 bits': Case(
    ('--workdir={tmp}/run', '--seed=4294967296'), ('--seed must be an integer from 0 to 2^32 - 1', '4294967296')
  ),
  'negative seed': Case(('--workdir={tmp}/run', '--mode=sample', '--seed=-1'), ('--seed must be an integer', '-1')),
  'zero steps': Case(('--workdir={tmp}/run', '--config.num_steps=0'), ('num_steps must be an integer >= 1, got 0',)),
  'batch and devices': Case(
    ('--workdir={tmp}/run', '--config.batch_size=30', '--cpu_devices=4'), ('batch_size 30', 'cpu_devices 4')
  ),
  'cadence': Case(
    ('--workdir={tmp}/run', '--config.log_every=30'), ('log_every must be a positive multiple of steps_per_dispatch',)
  ),
  'no workdir': Case((), ('--workdir is missing',)),
  'workdir below a file': Case(('--workdir={tmp}/file/run',), ('NotADirectoryError', '/file/run')),
  'workdir of something else': Case(('--workdir={tmp}',), ('is not empty and holds no run',)),
  'stray argument': Case(('--workdir={tmp}/run', 'dropout=0.1'), ("unexpected argument 'dropout=0.1'",)),
  'nothing to sample': Case(('--workdir={tmp}/run', '--mode=sample'), ('no run in', 'run.json')),
  'judging while training': Case(
    ('--workdir={tmp}/run', '--metrics=frechet'), ('--metrics is for --mode=evaluate, and the mode is train',)
  ),
  'judging nothing': Case(
    ('--workdir={tmp}/run', '--mode=evaluate', '--num_samples=-3'), ('--num_samples must be an integer >= 0', '-3')
  ),
  'population of a structure': Case(
    ('--workdir={tmp}/run', '--population=width=16,32'), ('width cannot vary in a population', 'runs of their own')
  ),
  'profile': Case(('--workdir={tmp}/run', '--profile=20:10'), ('--profile takes START:STOP', "'20:10'")),
  'profile of no training': Case(
    ('--workdir={tmp}/run', '--mode=sample', '--profile=1:2'), ('--profile is for --mode=train, and the mode is',)
  ),
  'negative extension': Case(('--workdir={tmp}/run', '--extend=-5'), ('--extend', '-5')),
  'unprepared data': Case(
    ('--workdir={tmp}/run', '--config.data_dir={tmp}/none'),
    ("'mnist' is not prepared", '--config.data_dir', 'python -m diffusion.commands.prepare mnist --data_dir='),
    'mnist', 15,
  ),
  'unprepared files': Case(
    ('--workdir={tmp}/run', '--config.data_dir={tmp}/none', '--data_workers=1'), ("'mnist' is not prepared",),
    'mnist', 15,
  ),
  'nothing to stream': Case(
    ('--workdir={tmp}/run', '--data_workers=0'),
    ("data 'Gaussian mixture' is held in memory: only a plain sources.tfds is streamed",),
  ),
}  # fmt: skip


def attempt(case, tmp):
  """(status, output, seconds) of the command."""
  (tmp / 'file').write_text('in the way')
  flags = [flag.format(tmp=tmp) for flag in case.flags]
  begin = time.monotonic()
  status, output = Program(f'experiments.{case.experiment}', *flags).finish()
  return status, output, time.monotonic() - begin


def faults(name, status, output, seconds, folder):
  """What is wrong with how a bad input was refused."""
  case = CASES[name]
  said = [line for line in output.strip().splitlines() if line.strip()]
  wrong = {
    'another status than 2': status != 2,
    'a traceback': 'Traceback' in output,
    'does not say it': any(words not in output for words in case.says),
    'more than one line': len(said) > 1,
    'something was written': [path.name for path in folder.iterdir()] != ['file'],
    'took too long': seconds > 2 * case.seconds,  # two at a time
  }
  return [what for what, is_so in wrong.items() if is_so]


@pytest.mark.slow
def test_each_bad_input_is_one_readable_line(tmp_path):
  folders = {name: tmp_path / str(i) for i, name in enumerate(CASES)}
  for folder in folders.values():
    folder.mkdir()
  with concurrent.futures.ThreadPoolExecutor(
    2
  ) as pool:  # by one test: each case is a program of its own
    results = list(pool.map(lambda name: attempt(CASES[name], folders[name]), CASES))
  wrong = {}
  for name, (status, output, seconds) in zip(CASES, results, strict=True):
    print(f'{name} ({seconds:.1f} s, status {status}): {output.strip()}')
    wrong[name] = faults(name, status, output, seconds, folders[name])
  assert not any(wrong.values()), {name: found for name, found in wrong.items() if found}


@pytest.mark.slow
def test_a_workdir_of_another_configuration_is_refused_with_the_differing_keys(tmp_path):
  def start(*flags):
    return Program('experiments.mixture', f'--workdir={tmp_path}/run', '--smoke', *flags).finish()

  assert start()[0] == 0
  before = (
    (tmp_path / 'run' / 'run.json').read_bytes(),
    (tmp_path / 'run' / 'metrics.jsonl').read_bytes(),
  )
  status, said = start('--config.dropout=0.3', '--seed=4')
  assert status == 2
  assert 'dropout: 0.0 -> 0.3; seed: 0 -> 4' in said
  assert (
    (tmp_path / 'run' / 'run.json').read_bytes(),
    (tmp_path / 'run' / 'metrics.jsonl').read_bytes(),
  ) == before
