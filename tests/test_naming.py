"""What a command line can ask for by name is what the files define, found without a list."""

import importlib
import inspect
import pathlib
import pkgutil

import pytest

from diffusion import naming
from diffusion.evaluation import by_name
from diffusion.evaluation.metric import Metric
from diffusion.sampling import plan
from diffusion.types import Sampler

ROOT = pathlib.Path(naming.__file__).parent


def by_import(room, kind, given):
  """The same by importing every file of the room and asking its functions."""
  found = {}
  for one in pkgutil.iter_modules([str(ROOT / room)]):
    module = importlib.import_module(f'diffusion.{room}.{one.name}')
    for name, function in inspect.getmembers(module, inspect.isfunction):
      signature = inspect.signature(function)
      own = function.__module__ == module.__name__ and not name.startswith('_')
      needs = {p.name for p in signature.parameters.values() if p.default is p.empty}
      if own and signature.return_annotation is kind and needs <= set(given):
        assert name not in found, f'{name} is defined twice'
        found[name] = module.__name__
  return found


def test_every_metric_and_sampler_has_its_functions_name():
  assert by_name.metrics() == by_import('evaluation', Metric, ['features'])
  assert plan.sampler_names() == by_import('sampling', Sampler, ['path'])
  assert {'recognition', 'likelihood', 'class_balance', 'frechet'} <= set(by_name.metrics())
  assert {'ddim', 'ancestral', 'euler', 'euler_maruyama', 'heun', 'dpm_solver'} == set(
    plan.sampler_names()
  )


def test_a_new_file_of_a_room_is_found_and_its_private_and_unready_functions_are_not(
  tmp_path, monkeypatch
):
  (tmp_path / 'room').mkdir()
  (tmp_path / 'room' / 'new.py').write_text(
    'def ready(path, *, eta=0.0) -> Sampler: ...\n'
    'def unready(path, other) -> Sampler: ...\n'
    'def keyword(path, *, other) -> Sampler: ...\n'
    'def of_another_kind(path) -> Grid: ...\n'
    'def _private(path) -> Sampler: ...\n'
  )
  for letter in 'badc':
    (tmp_path / 'room' / f'{letter}.py').write_text(f'def of_{letter}(*, a=1) -> Sampler: ...\n')
  monkeypatch.setattr(naming, '__file__', str(tmp_path / 'naming.py'))
  found = naming.factories('room', 'Sampler', ('path',))
  assert list(found.items()) == [
    *((f'of_{letter}', f'diffusion.room.{letter}') for letter in 'abcd'),
    ('ready', 'diffusion.room.new'),
  ]
  assert list(naming.factories('room', 'Sampler')) == ['of_a', 'of_b', 'of_c', 'of_d']


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
  found = {'ddim': 'diffusion.sampling.samplers', 'heun': 'diffusion.sampling.solvers'}
  with pytest.raises(
    ValueError, match=r"unknown sampler 'dim': the nearest is 'ddim' \(all: ddim, heun\)"
  ):
    naming.find('dim', found, 'sampler')
  assert naming.find('heun', found, 'sampler').__name__ == 'heun'
  assert naming.nearest('qqq', ['ddim', 'heun']) in found  # one however far they all are
