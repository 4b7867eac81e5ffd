"""From a command line to a run: flags, configuration, the workdir, and the three modes.

An experiment file ends in `launch.run(build, Config(), SMOKE)`. Nothing below this file sees a configuration.
"""

import contextlib
import dataclasses
import inspect
import itertools
import math
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from diffusion import checks, devices, naming, processes, provenance, rng
from diffusion.commands import fail, parse_flags
from diffusion.data import sources
from diffusion.evaluation import by_name
from diffusion.provenance import read_record
from diffusion.runs import training
from diffusion.runs.run import prepare
from diffusion.sampling.plan import grid_names, sampler_names
from diffusion.training.experiment import EvaluationSettings, Experiment

# How each flag is defined, its name, its default, and what --help says of it.
_FLAGS = (
  (flags.DEFINE_string, 'workdir', None, 'Folder of the run; a second start on it resumes.'),
  (flags.DEFINE_boolean, 'smoke', False, 'Start from the small configuration: seconds, no download.'),
  (flags.DEFINE_integer, 'seed', None, 'Seed of training; with --mode=sample or evaluate, of the sampler.'),
  (flags.DEFINE_integer, 'num_samples', 0, 'Samples that --mode=evaluate judges; 0: as the run did.'),
  (flags.DEFINE_string, 'sampler', '', f"Sampler instead of the run's: {', '.join(sampler_names())}."),
  (flags.DEFINE_integer, 'sampler_steps', 0, 'Steps of the sampler; 0: as the run did.'),
  (flags.DEFINE_string, 'sampler_grid', '',
   f"Times of the steps instead of the sampler's own: {', '.join(grid_names())}."),
  (flags.DEFINE_list, 'metrics', [],
   f"Metrics of --mode=evaluate instead of the run's: all, or {', '.join(by_name.metrics())}."),
  (flags.DEFINE_string, 'features', 'pixels',
   'What metrics compare: pixels, digits, mnist, or a file of Inception weights.'),
  (flags.DEFINE_integer, 'extend', 0, 'Train so many steps past the end of a finished run.'),
  (flags.DEFINE_multi_string, 'population', [],
   'Train a run for each of these values as one program, e.g. seed=0..15 or learning_rate=1e-3,2e-3; given several '
   'times, for all combinations. Their folders lie in the workdir.'),
  (flags.DEFINE_boolean, 'dry_run', False, 'Print the configuration, model, arithmetic and splits, and leave.'),
  (flags.DEFINE_float, 'lr_low', 1e-6, 'First learning rate of --mode=lr_range.'),
  (flags.DEFINE_float, 'lr_high', 1.0, 'Last learning rate of --mode=lr_range.'),
  (flags.DEFINE_integer, 'data_workers', None,
   'Read batches of a TFDS set from its files, with so many processes (0: threads); by default the device holds it.'),
  (flags.DEFINE_integer, 'cpu_devices', 0, 'Virtual devices on CPU; 0 chooses.'),
  (flags.DEFINE_string, 'coordinator', '',
   'host:port of process 0, where several processes train together and no cluster says so.'),
  (flags.DEFINE_integer, 'num_processes', None, 'How many processes; with --coordinator.'),
  (flags.DEFINE_integer, 'process_id', None, 'Which of them this is, from 0; with --coordinator.'),
  (flags.DEFINE_integer, 'heartbeat_seconds', 10,
   'Silence after which a process counts as gone, and the others end.'),
  (flags.DEFINE_string, 'profile', '',
   'START:STOP: trace these steps for TensorBoard and Perfetto, into profile/ of the workdir.'),
  (flags.DEFINE_boolean, 'debug', False, 'Show the whole traceback of an error.'),
)  # fmt: skip

# In which modes a flag says something; in any other it would be passed over in silence.
_MODES = {
  **dict.fromkeys(('profile', 'extend'), ('train',)),
  **dict.fromkeys(('num_samples', 'metrics', 'features'), ('evaluate',)),
  **dict.fromkeys(('sampler', 'sampler_grid', 'sampler_steps'), ('evaluate', 'sample')),
  **dict.fromkeys(('lr_low', 'lr_high'), ('lr_range',)),
}
_MEMBERS = (
  10_000  # of a population, at most: more is a slip, and its numbers alone would fill the memory
)

flags.disclaim_key_flags()  # they are the experiment's, so that its --help lists them


def _define_flags(arms: Mapping[str, Any] | None) -> None:
  for define, *about in _FLAGS:
    define(*about)
  flags.DEFINE_enum(
    'mode',
    'train',
    ('train', 'sample', 'evaluate', 'lr_range'),
    'train; or sample or evaluate from the best checkpoint; or lr_range: try rising learning rates.',
  )
  if arms is not None:
    flags.DEFINE_string('arm', None, 'Which of the arms to run; short for --config.arm.')
    flags.DEFINE_boolean('list_arms', False, 'Print the arms and leave.')


def _check_keys(argv: Sequence[str], config: Any) -> None:
  """Ends the program for a --config key that does not exist, naming the nearest one."""
  names = [field.name for field in dataclasses.fields(config)]
  for argument in argv:
    key = re.match(r'--?config\.?([^=]*)', argument)
    if key and not key[1]:
      fail(f'{argument!r} names no number: give --config.key=value (keys: {", ".join(names)})')
    if key and key[1] not in names:
      near = naming.nearest(key[1], names)
      fail(
        f'unknown configuration key --config.{key[1]}: the nearest is --config.{near} (all: {", ".join(names)})'
      )


def _check_config(config: Any) -> None:
  """Ends the program for a configuration that is no dataclass of its own, or lacks what every run needs."""
  kind, file = type(config), inspect.getsourcefile(type(config))
  if '__dataclass_fields__' not in vars(kind):  # an inherited one has none of its own numbers
    fail(f'{file}: {kind.__name__} is no dataclass: write @dataclasses.dataclass above it')
  names = [field.name for field in dataclasses.fields(config)]
  if 'batch_size' not in names:
    fail(
      f'{file}: {kind.__name__} has no batch_size, which says how many devices suit the run (it has '
      f'{", ".join(names)}): let it inherit diffusion.Numbers, or give it that field'
    )


def run(
  build: Callable[[Any], Experiment], config: Any, smoke: Any, arms: Mapping[str, Any] | None = None
) -> None:
  """Runs an experiment file as a program, and leaves with a status of the table in README.md.

  Args:
    build: configuration -> Experiment; pure.
    config: the dataclass of numbers.
    smoke: another instance of it, for --smoke.
    arms: named variants, one of which `config.arm` names; they give the program --arm and --list_arms.
  """
  _check_config(config)
  _check_keys(sys.argv[1:], config)
  _define_flags(arms)
  config_flags.DEFINE_config_dataclass('config', config)

  def main(arguments: Sequence[str]) -> int:
    if len(arguments) > 1:
      fail(
        f'unexpected argument {arguments[1]!r}: every setting is a --flag or a --config.key=value'
      )
    if arms is not None and flags.FLAGS.list_arms:
      for name, arm in arms.items():  # and what of its line in the source follows the arguments
        line = inspect.getsource(arm).strip().rstrip(',')
        print(f'{name:<28} {line.partition("lambda c: ")[2]}')
      return 0
    try:
      return processes.finish(_main(build, *_configured(config, smoke, arms)))
    except Exception as error:
      _end_of(error)
    except KeyboardInterrupt:
      print(
        'interrupted outside of training; the same command goes on from the last checkpoint',
        file=sys.stderr,
      )
      processes.leave(130)

  app.run(main, flags_parser=parse_flags)


def _configured(
  config: Any, smoke: Any, arms: Mapping[str, Any] | None
) -> tuple[Any, dict[str, Any]]:
  """The configuration, and what of it the command line names; raises ValueError for an arm there is not."""
  f = flags.FLAGS
  overrides = config_flags.get_override_values(f['config'])
  if arms is not None and f.arm is not None:
    overrides = overrides | {'arm': f.arm}
  config = dataclasses.replace(smoke if f.smoke else config, **overrides)
  if arms is not None and config.arm not in arms:
    near = naming.nearest(config.arm, list(arms))
    raise ValueError(f'unknown arm {config.arm!r}: the nearest is {near!r}; --list_arms shows all')
  return config, overrides


def _hush(unraisable: Any) -> None:
  """Leaves out what TensorStore prints, page by page, when a save fails and Orbax has closed its event loop."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def _end_of(error: Exception) -> NoReturn:
  """Ends the program with one line for bad input or a lost process, and a traceback for anything else."""
  if processes.joined() and processes.is_loss(error):
    processes.lost(error)
  if isinstance(error, ValueError | OSError) and not flags.FLAGS.debug:
    agreed = isinstance(error, processes.Agreed)
    if not agreed or processes.is_writer():
      print(f'error: {processes.one_line(error)}', file=sys.stderr, flush=True)
    if agreed:  # wait for the others, which end by it too, or they could take this end for a death
      with contextlib.suppress(Exception):
        processes.finish(2)
    processes.leave(2)
  if not processes.joined():
    raise error
  traceback.print_exception(error)
  processes.leave(1)


def members(texts: Sequence[str], config: Any) -> list[dict[str, int | float]]:
  """The numbers of each member that --population asks for: all combinations, the last one given varying first.

  Args:
    texts: 'field=values' each; values are numbers with commas between, or a range of integers, e.g. 0..15.
    config: the dataclass of numbers.

  Raises:
    ValueError: a field that is none or no number, one given twice, or a value that is no such number or comes twice.
  """
  names = [field.name for field in dataclasses.fields(config)]
  choices: dict[str, list[int | float]] = {}
  for text in texts:
    name, _, listed = text.partition('=')
    if name not in names:
      near = naming.nearest(name, names)
      raise ValueError(f'--population: unknown field {name!r}: the nearest is {near!r}')
    if name in choices:
      raise ValueError(f'--population: {name} is given twice: list its values with commas')
    kind = type(getattr(config, name))
    if kind not in (int, float):
      raise ValueError(f'--population: {name} is not a number: start runs of their own')
    choices[name] = [value for part in listed.split(',') for value in _values(name, part, kind)]
    if len(set(choices[name])) < len(choices[name]):
      raise ValueError(f'--population: {name} has a value twice: {listed}')
  return [dict(zip(choices, one, strict=True)) for one in itertools.product(*choices.values())]


def _values(name: str, text: str, kind: type) -> Sequence[int | float]:
  """The numbers that one part of a list names."""
  low, dots, high = text.partition('..')
  try:
    found = range(int(low), int(high) + 1) if dots and kind is int else [kind(text)]
  except ValueError:
    found = ()
  if isinstance(found, range) and found.stop - found.start > _MEMBERS:
    raise ValueError(f'--population: {name}={text} are more than {_MEMBERS} members')
  if not found or not all(math.isfinite(value) for value in found):
    example = '0..15 or 0,1,2' if kind is int else '1e-3,2e-3'
    raise ValueError(f'--population: {name} takes values like {example}, got {text!r}')
  return found


def _train_population(
  build: Callable[[Any], Experiment], config: Any, source: pathlib.Path, folder: pathlib.Path, small: bool
) -> int:  # fmt: skip
  """Trains a run for each member in a folder of its own."""
  f = flags.FLAGS
  if f.mode != 'train' or f.dry_run:
    raise ValueError('--population is for training: name the folder of one member to look at it')
  if not processes.alone():
    raise ValueError('--population is for one process: start it on each host with seeds of its own')
  if f.profile:
    raise ValueError('--profile is for a single run, not for a --population')
  if f.data_workers is not None:
    raise ValueError('--population keeps its data on the devices: leave --data_workers out')
  if f.seed is not None and any(text.startswith('seed=') for text in f.population):
    raise ValueError('--seed and --population=seed=... both name seeds: leave one out')
  from diffusion.runs import population

  values, runs = members(f.population, config), []
  for one in values:
    name = ','.join(f'{field}={value}' for field, value in one.items())
    own = dataclasses.replace(config, **one)
    run = prepare(build, own, source, folder / name, smoke=small)
    run.data = population.share_data(runs, run.data)
    runs.append(run)
  return population.train(
    runs, values, lambda one: build(dataclasses.replace(config, **one)), f.extend
  )


def _main(build: Callable[[Any], Experiment], config: Any, overrides: dict[str, Any]) -> int:
  f = flags.FLAGS
  # JAX and Orbax tell of every backend tried and every file touched, and whatever they raise a second time.
  logging.set_verbosity(logging.FATAL)
  sys.unraisablehook = _hush
  count = processes.initialize(f.coordinator, f.num_processes, f.process_id, f.heartbeat_seconds)
  with processes.together('the flags'):
    folder = _checked_workdir()
    config, profile = _resolved(config, overrides, folder), training.parse_span(f.profile)
    devices.configure(config.batch_size, f.cpu_devices, num_processes=count)
    processes.quiet()
  processes.check_same('the command', _said() | overrides)
  source = pathlib.Path(sys.modules['__main__'].__file__)
  if f.population:
    return _train_population(build, config, source, folder, f.smoke)
  if f.dry_run or f.mode != 'train':
    processes.end_on_sigterm()
  request = EvaluationSettings(
    seed=f.seed or 0,
    samples=f.num_samples,
    sampler=f.sampler,
    grid=f.sampler_grid,
    steps=f.sampler_steps,
    metrics=tuple(f.metrics),
    features=f.features,
  )

  def asked(config: Any) -> Experiment:
    experiment = build(config)
    if f.data_workers is not None:  # where the data lies is no part of a run
      experiment = experiment._replace(data=sources.streamed(experiment.data, f.data_workers))
    return request.applied(experiment)

  run = prepare(asked, config, source, folder, smoke=f.smoke)
  if f.mode == 'train' and not f.dry_run:
    return training.train(run, f.extend, profile)
  from diffusion.runs import describing, evaluating, lr_range  # here, because a training needs none

  if f.dry_run:
    print(describing.describe(run))
    return 0
  if f.mode == 'lr_range':
    return lr_range.train_rising(run, f.lr_low, f.lr_high)
  return evaluating.evaluate(run, f.mode, request)


def _said() -> dict[str, Any]:
  """The flags of the command line, but for the one in which processes differ."""
  known = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
  return {flag.name: flag.value for flag in known if flag.present and flag.name != 'process_id'}


def _checked_workdir() -> pathlib.Path | None:
  """The folder, once the flags are known to go together."""
  f = flags.FLAGS
  if not f.workdir and not f.dry_run:
    raise ValueError('--workdir is missing: name a folder for the run, e.g. --workdir=runs/first')
  for name in ('num_samples', 'sampler_steps', 'extend'):
    checks.integer(f'--{name}', f[name].value, 0)
  if f.seed is not None:
    rng.check_seed('--seed', f.seed)
  for name, modes in _MODES.items():
    if f[name].present and f.mode not in modes:
      raise ValueError(f'--{name} is for --mode={" or ".join(modes)}, and the mode is {f.mode}')
  return pathlib.Path(f.workdir).expanduser().absolute() if f.workdir else None


def _resolved(config: Any, overrides: dict[str, Any], workdir: pathlib.Path | None) -> Any:
  """The configuration to run: a finished run is judged as it was configured, but for what the command line names."""
  f = flags.FLAGS
  if f.mode in ('train', 'lr_range'):
    if f.seed is None:
      return config
    if 'seed' not in {field.name for field in dataclasses.fields(config)}:
      raise ValueError(f'--seed={f.seed}: {type(config).__name__} has no seed: give it that field')
    return dataclasses.replace(config, seed=f.seed)
  recorded = provenance.config_from_json(config, read_record(workdir)['config'])
  return dataclasses.replace(recorded, **overrides)
