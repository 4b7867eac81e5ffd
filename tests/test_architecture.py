"""The shape of the code, read from its source: rooms, what only one file may do, docstrings, experiment headers."""

import ast
import functools
import graphlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# From top to bottom: a room imports only rooms above it (and its own files).
ROOMS = (
  'types', 'checks', 'naming', 'conditions', 'rng', 'processes', 'signals', 'devices', 'statistics', 'proportions',
  'citations', 'user_code', 'fingerprint', 'reporting', 'process', 'data', 'models', 'objectives', 'optimizers',
  'sampling', 'evaluation', 'training', 'checkout', 'provenance', 'runs', 'calling', 'commands', 'launch',
)  # fmt: skip
# What speaks of devices. `diffusion/devices.py` is the one file to change when JAX changes its mind, and
# `diffusion/processes.py` where it is about its processes.
DEVICE_WORDS = {
  'pmap', 'shard_map', 'pmean', 'psum', 'pmax', 'pmin', 'all_gather', 'ppermute', 'axis_index', 'axis_name', 'Mesh',
  'NamedSharding', 'PartitionSpec', 'device_put', 'device_count', 'local_device_count', 'local_devices',
  'process_count', 'process_index', 'jax_utils', 'jax_num_cpu_devices', 'XLA_FLAGS',
}  # fmt: skip
PROCESS_WORDS = {'process_count', 'process_index'}
CORE = (
  'process', 'data.pipeline', 'data.splits', 'data.prefetch', 'data.augment', 'models', 'objectives', 'optimizers',
  'sampling', 'training', 'runs.run', 'runs.loop',
)  # fmt: skip
OPTIONAL = (
  'beartype',
  'grain',
  'tensorflow',
  'tensorflow_datasets',
  'ml_collections',
  'tensorboardX',
  'sklearn',
  'matplotlib',
)


def files(folder):
  return sorted(p.relative_to(ROOT) for p in (ROOT / folder).rglob('*.py'))


SOURCES = files('diffusion')
MOVED = ('agreement', 'evaluate', 'report')  # now in diffusion/commands
EXPERIMENTS = [p for p in files('experiments') if p.stem not in ('__init__', *MOVED)]
each_source = pytest.mark.parametrize('path', SOURCES, ids=str)


@functools.cache
def parse(path):
  return ast.parse((ROOT / path).read_text(), str(path))


def module_name(path):
  return '.'.join(path.with_suffix('').parts).removesuffix('.__init__')


MODULES = {module_name(path): path for path in SOURCES}


def imports(path):
  """Every module that a file imports, in functions too, as far down as it names one of ours."""
  found = set()
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno}: a relative import'
      full = {f'{node.module}.{alias.name}' for alias in node.names}
      found |= {name if name in MODULES else node.module for name in full}
  return found


def under(name, package):
  return name == package or name.startswith(f'{package}.')


def room(name):
  return name.split('.')[1]


def words(path):
  """Every name, attribute, keyword, imported name and string that is no docstring, with its line."""
  tree = parse(path)
  texts = {
    id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
  }  # docstrings and the like
  for node in ast.walk(tree):
    if isinstance(node, ast.Name):
      yield node.id, node.lineno
    elif isinstance(node, ast.Attribute):
      yield node.attr, node.lineno
    elif isinstance(node, ast.keyword) and node.arg:
      yield node.arg, node.lineno
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
      for alias in node.names:
        yield from ((part, node.lineno) for part in alias.name.split('.'))
      if isinstance(node, ast.ImportFrom):
        yield from ((part, node.lineno) for part in node.module.split('.'))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
      yield node.value, node.lineno


def test_every_file_is_in_a_room_and_every_room_exists():
  assert {room(name) for name in MODULES if name != 'diffusion'} == set(ROOMS)


@each_source
def test_a_room_imports_only_rooms_above_it(path):
  name = module_name(path)
  for imported in imports(path):
    if under(imported, 'diffusion'):
      assert imported in MODULES, f'{path} imports {imported}: name the modules that are needed'
      if name != 'diffusion' and room(imported) != room(
        name
      ):  # the package itself is below all of them
        above = ROOMS.index(room(imported)) < ROOMS.index(room(name))
        assert above, f'{path}: {room(name)} imports {room(imported)}, which is below it'


def test_no_file_imports_itself_by_a_detour():
  graph = {
    name: {i for i in imports(path) if i in MODULES and i != name} for name, path in MODULES.items()
  }
  assert sum(map(len, graph.values())) > 50  # or the graph has not been read
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle


@each_source
def test_only_devices_names_devices(path):
  allowed = PROCESS_WORDS if path == pathlib.Path('diffusion/processes.py') else set()
  found = sorted({word for word, _ in words(path)} & DEVICE_WORDS - allowed)
  if path == pathlib.Path('diffusion/devices.py'):
    assert {'pmap', 'pmean', 'axis_name', 'local_device_count'} <= set(
      found
    )  # the search does see them
  else:
    lines = [(line, word) for word, line in words(path) if word in DEVICE_WORDS]
    assert not found, f'{path}: {lines} belong into diffusion/devices.py'
    asked = [
      node.lineno
      for node in ast.walk(parse(path))
      if isinstance(node, ast.Attribute)
      and node.attr == 'devices'
      and isinstance(node.value, ast.Name)
      and node.value.id == 'jax'
    ]
    assert not asked, f'{path}:{asked}: jax.devices belongs into diffusion/devices.py'


def test_only_launch_and_the_commands_read_a_command_line():
  def importers(package):
    return {module_name(p) for p in SOURCES if any(under(i, package) for i in imports(p))}

  assert importers('ml_collections') == {'diffusion.launch'}
  # Grain's readers ask for flags; the feed marks them as parsed where no program has.
  flags = importers('absl') - {'diffusion.launch', 'diffusion.data.prefetch'}
  assert len(flags) > 4
  assert all(under(name, 'diffusion.commands') for name in flags)


@pytest.mark.parametrize(
  'old', [*(f'experiments.{name}' for name in MOVED), 'diffusion.data.prepare']
)
def test_the_old_name_of_a_command_names_the_new_one(old):
  done = subprocess.run(
    [sys.executable, '-m', old, '--output=x', 'runs/a'], cwd=ROOT, capture_output=True, text=True,
    timeout=60, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  new = f'diffusion.commands.{old.rpartition(".")[2]}'
  assert done.stderr == f'error: this is now `python -m {new}`\n'
  assert new in MODULES


@pytest.mark.parametrize('path', SOURCES + EXPERIMENTS, ids=str)
def test_no_private_modules_of_dependencies(path):
  private = [(line, word) for word, line in words(path) if word == '_src' or '._src' in word]
  assert not private
  outside = {i for i in imports(path) if not under(i, 'diffusion')}
  assert not [i for i in outside if re.search(r'(^|\.)_(?!_)', i)]


@each_source
def test_the_library_imports_no_experiment_and_no_test(path):
  assert not [i for i in imports(path) if under(i, 'experiments') or under(i, 'tests')]


@pytest.mark.parametrize('name', ['statistics', 'citations', 'fingerprint', 'reporting'])
def test_what_reports_knows_nothing_of_jax(name):
  members = [path for module, path in MODULES.items() if under(module, f'diffusion.{name}')]
  assert members
  for path in members:
    assert not [i for i in imports(path) if under(i, 'jax') or under(i, 'flax')]


def public(path):
  """(name, node) of the module, its public classes and functions, and the public methods of those classes."""
  tree = parse(path)
  if tree.body:
    yield '(module)', tree
  definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
  for node in tree.body:
    if isinstance(node, definitions) and not node.name.startswith('_'):
      yield node.name, node
      if isinstance(node, ast.ClassDef):
        for member in node.body:
          if isinstance(member, definitions) and not member.name.startswith('_'):
            yield f'{node.name}.{member.name}', member


@each_source
def test_what_is_public_has_a_docstring(path):
  silent = [name for name, node in public(path) if not (ast.get_docstring(node) or '').strip()]
  assert not silent
  if path.name != '__init__.py':
    assert list(public(path))


@each_source
def test_public_arguments_and_results_are_annotated(path):
  bare = []
  for name, node in public(path):
    if isinstance(node, ast.FunctionDef):
      arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
      bare += [] if node.returns else [f'{name} ->']
      bare += [
        f'{name}({a.arg})' for a in arguments if not a.annotation and a.arg not in ('self', 'cls')
      ]
  assert not bare


@pytest.mark.parametrize('path', EXPERIMENTS, ids=str)
def test_an_experiment_says_how_to_run_it_and_has_its_parts(path):
  tree, command = parse(path), f'python -m experiments.{path.stem}'
  header = (ast.get_docstring(tree) or '').splitlines()
  assert header[0].strip()
  run = [line for line in header if re.match(r'Run\s', line)]
  smoke = [line for line in header if re.match(r'Smoke\s', line)]
  assert run
  assert smoke
  assert f'{command} ' in run[0]
  assert '--workdir=' in run[0]
  assert f'{command} ' in smoke[0]
  assert '--smoke' in smoke[0]
  names = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
  for node in tree.body:
    if isinstance(node, ast.Assign):
      names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    elif isinstance(node, ast.ImportFrom):
      names |= {alias.asname or alias.name for alias in node.names}
  assert {'Config', 'SMOKE', 'build'} <= names
  assert any(
    isinstance(node, ast.If) and '__name__' in ast.unparse(node.test) for node in tree.body
  )


def test_there_are_experiments():
  assert EXPERIMENTS


def test_the_training_core_needs_none_of_the_optional_packages():
  names = [
    name
    for name in MODULES
    if any(under(name, f'diffusion.{part}') for part in CORE)
    and MODULES[name].name != '__init__.py'
  ]
  assert len(names) > 20
  code = (
    f'import importlib, sys\nfor name in {OPTIONAL}: sys.modules[name] = None\n'
    'try:\n  import sklearn\nexcept ImportError: pass\nelse: sys.exit("not blocked")\n'
    f'for name in {names}: importlib.import_module(name)\n'
    'print(len(sys.modules))'
  )
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr
