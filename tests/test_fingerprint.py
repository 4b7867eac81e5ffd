"""The fingerprint of what was built: equal for equal builds, another for any change that may change a run."""

import dataclasses
import functools
import importlib.util
import json
import linecache
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import fingerprint
from diffusion.data import sources
from diffusion.models import activations, dropout, mlp, unet
from diffusion.objectives import losses, penalties, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.reporting.rows import read_json, write_json
from diffusion.training import callbacks
from diffusion.types import Term
from experiments import digits
from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[1]
SOURCE = '''
  import numpy as np
  from diffusion.objectives import losses, weights
  SHIFT = 1.0

  OTHER = weights.min_snr(5.0)

  def helper(x, more=np.zeros(2)):
    return OTHER(x) + SHIFT + more.sum()

  def bell(center):
    """Says nothing."""

    def weight(log_snr):
      # A comment.
      return np.exp(-helper(log_snr - center))

    return weight

  made = {'term': losses.denoising(bell(0.5)), 'lambdas': (lambda x: x + 1, lambda x: x + 2)}
'''


def load(tmp_path, text, name='mine'):
  path = tmp_path / f'{name}.py'
  path.write_text(textwrap.dedent(text))
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.made


def described(value):
  told = fingerprint.describe(value)
  return json.loads(json.dumps(told))  # it is JSON


def built(**changes):
  return digits.build(dataclasses.replace(digits.SMOKE, **changes))


def test_a_factory_is_its_name_and_arguments():
  told = described(built(dropout=0.25))
  assert told['model']['diffusion.models.unet.unet']['dropout'] == 0.25
  assert told['averages'] == {'ema': {'diffusion.optimizers.averaging.ema': {'decay': 0.99}}}
  assert told['terms']['denoise'][1] == {
    'diffusion.objectives.losses.denoising': {
      'weight': {'diffusion.objectives.weights.uniform': {'on': 'v'}}
    }
  }


BASE = tiny.images()


@pytest.mark.parametrize(
  'changes',
  [
    {'seed': 1},
    {'terms': {'denoise': (1.0, losses.denoising(weights.uniform('eps')))}},
    {'terms': BASE.terms | {'l1': (1e-6, penalties.l1())}},
    {'model': unet.unet(8, (1,), 1, (), 0.2, num_classes=10, activation=activations.relu)},
    {'model': unet.unet(8, (1,), 1, (), 0.2, num_classes=10, drops=[dropout.spatial(0.1)])},
    {'optimizer': chains.adamw(schedules.constant(2e-3))},
    {'optimizer': chains.adamw(schedules.constant(1e-3), b2=0.99)},
    {'averages': {'ema': averaging.ema(0.5)}},
    {'sampling': BASE.sampling._replace(sampler=functools.partial(BASE.sampling.sampler, eta=1))},
    {
      'model': BASE.model._replace(
        apply=lambda *given, **more: BASE.model.apply(*given[:4], **more)
      )
    },
    {'callbacks': [callbacks.early_stopping(patience=10)]},
    {'augment': tiny.augment.flip()},
  ],
)
def test_any_change_is_seen(changes):
  assert described(BASE._replace(**changes)) != described(BASE)


def test_where_data_lies_and_who_reads_it_is_not_in_it(tmp_path):
  one, other = (sources.tfds('mnist', str(tmp_path / name)) for name in 'ab')
  assert described(one) == described(other) == described(sources.streamed(other, 2))
  assert described(one) != described(sources.digits())


def test_a_user_s_function_is_its_source_without_comments_and_docstrings(tmp_path):
  base = described(load(tmp_path, SOURCE))
  plainer = (
    SOURCE.replace('"""Says nothing."""', '')
    .replace('# A comment.', '')
    .replace('  SHIFT', '\n\n  SHIFT')
  )
  assert described(load(tmp_path, plainer, 'plainer')) == base
  for old, new in (
    ('-helper(', 'helper('), ('SHIFT = 1.0', 'SHIFT = 2.0'), (') + SHIFT', ') - SHIFT'), ('bell(0.5)', 'bell(0.6)'),
    ('lambda x: x + 2', 'lambda x: x + 3'), ('weights.min_snr(5.0)', 'weights.min_snr(4.0)'),
    ('zeros(2)', 'ones(2)'),
  ):  # fmt: skip
    assert described(load(tmp_path, SOURCE.replace(old, new), f'a{abs(hash(new))}')) != base, new


def test_a_term_that_a_lambda_wraps_is_described_with_what_it_wraps():
  def wrapped(inner, factor):
    return Term(inner.init, lambda params, context: factor * inner.apply(params, context))

  base = described(wrapped(penalties.l1(), 2.0))
  assert described(wrapped(penalties.l1(), 2.0)) == base
  assert described(wrapped(penalties.l2(), 2.0)) != base
  assert described(wrapped(penalties.l1(), 3.0)) != base


STATES = """
  import optax

  seen, cache, count, fixed, table = [], {}, 0, [1], [2]

  class Watch:
    def __init__(self, limit):
      self.limit, self.met = limit, 0

    def __call__(self, x):
      self.met += 1
      return self.met < self.limit

  def maker():
    held, parts = [], []
    parts.append(3)

    def look(x):
      global count
      count += 1
      seen.append(x)
      held.append(x)
      cache[x] = fixed
      table = []
      table.append(x)
      return watch(x), parts

    return look

  def reads():
    return len(seen), table

  watch, chain = Watch(5), optax.sgd(11.0)

  def moves(x):
    return chain.update(x, chain.init(x))

  made = [maker(), reads, watch, moves]
"""


def test_what_a_function_changes_is_its_state_and_not_what_it_is(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'mine', None)
  made = load(tmp_path, STATES)
  before = described(made)
  made[0](1)
  assert described(made) == before
  for old, new in (
    ('[1]', '[7]'),
    ('[2]', '[7]'),
    ('append(3)', 'append(7)'),
    ('Watch(5)', 'Watch(7)'),
    ('11.0', '12.0'),
  ):
    assert described(load(tmp_path, STATES.replace(old, new), f'b{abs(hash(old))}')) != before, old


def test_a_list_to_which_a_cell_without_a_file_appends_is_its_state():
  scope = {}
  exec('seen, table = [], [1]\ndef look(x): seen.append(x)\ndef read(x): return table[x]', scope)
  before = described([scope['look'], scope['read']])
  scope['look'](1)
  assert described([scope['look'], scope['read']]) == before
  scope['table'][0] = 2
  assert described([scope['look'], scope['read']]) != before


def test_a_function_without_a_file_is_what_it_compiles_to():
  made = [eval(text) for text in ('lambda x: x + 1', 'lambda x: x + 1', 'lambda x: x * 2')]
  one, same, other = map(described, made)
  assert one == same != other


def test_equal_numbers_are_alike_whether_one_object_or_two():
  pair = (1, 2)
  assert described([pair, pair]) == described([(1, 2), tuple(range(1, 3))]) == [[1, 2], [1, 2]]


@pytest.mark.parametrize('kind', [np.asarray, jnp.asarray])
def test_an_array_is_its_shape_type_and_content(kind):
  x = kind(np.arange(6, dtype=np.float32))
  assert described(x) == described(kind(np.arange(6, dtype=np.float32)))
  assert described(x) != described(kind(np.arange(1, 7, dtype=np.float32)))
  assert described(x) != described(x.reshape(2, 3))


# Everything a user's file may say something with, beside the plain functions above.
OWN = """
  import dataclasses
  import functools
  import math
  import types

  import jax
  import jax.numpy as jnp
  import numpy as np
  from flax import linen as nn

  from diffusion.citations import technique
  from diffusion.types import Term
  import sibling

  TABLE = {'a': [1, 2]}
  PLACE = types.SimpleNamespace(gain=3.0)
  KEY = jax.random.key(5)
  CURVE = math.exp
  ROUND = np.floor

  def scaled(factor):
    def wrap(function):
      @functools.wraps(function)
      def inner(x):
        return factor * function(x)

      return inner

    return wrap

  @scaled(7.0)
  def decorated(x):
    return x

  @technique('bell', 'loss')
  def bell(center):
    def weight(log_snr):
      return jnp.exp(-((log_snr - center) ** 2) / 11)

    return weight

  @technique('own term', 'loss')
  def term():
    return Term(lambda *_: {}, lambda params, context: 13 * context)

  @technique('own activation', 'network')
  def bent(x):
    return x * 17

  class Base:
    def scale(self):
      return 19

  class Bell(Base):
    width = 23

    def __init__(self, center):
      self.center = center

    def __call__(self, x):
      return self.scale() * self.width * (x - self.center) * TABLE['a'][0] * PLACE.gain

  @dataclasses.dataclass
  class Settings:
    rate: float = 29.0

  class Net(nn.Module):
    shape: int = 31
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x):
      return nn.Dense(37)(x) * sibling.GAIN

  SETTINGS = Settings()

  def whole(x):
    return CURVE(ROUND(x)) + jax.random.normal(KEY) + SETTINGS.rate + sibling.deep.lift(x)

  made = [
    decorated, bell(41.0), term(), bent, Bell(43.0), Net(), Net, whole, jax.vmap(sibling.lift, in_axes=0),
    jnp.asarray([47.0]), range(53), b'59', np.dtype('float32'), 1e-3, float('inf'), 'nan',
  ]
"""
SIBLING = """
  import sibling as deep

  GAIN = 61

  def lift(x, by=67):
    return x + by * STEEP

  STEEP = 71
"""


def own(tmp_path, monkeypatch, text=OWN, sibling=SIBLING):
  """What the user's file makes, described; the file beside it is imported anew."""
  for name, content in (('mine', text), ('sibling', sibling)):
    (tmp_path / f'{name}.py').write_text(textwrap.dedent(content))
    linecache.checkcache(str(tmp_path / f'{name}.py'))
    spec = importlib.util.spec_from_file_location(name, tmp_path / f'{name}.py')
    monkeypatch.setitem(sys.modules, name, importlib.util.module_from_spec(spec))
  for name in ('sibling', 'mine'):
    path = tmp_path / f'{name}.py'
    exec(compile(path.read_text(), path, 'exec'), vars(sys.modules[name]))
  return described(sys.modules['mine'].made)


def test_every_number_that_a_user_wrote_is_in_it(tmp_path, monkeypatch):
  base = own(tmp_path, monkeypatch)
  assert own(tmp_path, monkeypatch) == base
  for file in ('text', 'sibling'):
    whole = {'text': OWN, 'sibling': SIBLING}[file]
    for found in re.finditer(r'\b(\d{2}|[357])(\.0)?\b', whole):
      changed = whole[: found.start()] + '97' + (found[2] or '') + whole[found.end() :]
      if 'float' in whole[max(0, found.start() - 5) : found.start()]:
        continue
      told = own(tmp_path, monkeypatch, **{file: changed})
      assert told != base, whole[found.start() - 30 : found.end() + 10]
  for old, new in (
    ('math.exp', 'math.sin'), ('np.floor', 'np.ceil'), ('in_axes=0', 'in_axes=1'), ("'nan'", "'inf'"),
    ("float('inf')", "float('nan')"), ("'float32')", "'float64')"), ("= 'float32'", "= 'float16'"),
    ('Bell(Base)', 'Bell'), ('import jax.numpy as jnp', 'import numpy as jnp'),
  ):  # fmt: skip
    assert own(tmp_path, monkeypatch, OWN.replace(old, new)) != base, old


def test_what_it_is_called_and_run_as_is_not_in_it(tmp_path, monkeypatch):
  base = own(tmp_path, monkeypatch)
  main = importlib.util.module_from_spec(importlib.util.spec_from_loader('elsewhere', None))
  monkeypatch.setitem(sys.modules, 'elsewhere', main)
  exec(compile((tmp_path / 'mine.py').read_text(), tmp_path / 'mine.py', 'exec'), vars(main))
  assert described(main.made) == base


def test_it_comes_back_from_run_json_as_it_was(tmp_path, monkeypatch):
  told = own(tmp_path, monkeypatch)
  write_json(tmp_path / 'told.json', {'built': told})
  assert read_json(tmp_path / 'told.json')['built'] == told


def test_a_file_that_was_edited_since_it_was_imported_is_not_taken_for_what_runs(tmp_path, monkeypatch):  # fmt: skip
  own(tmp_path, monkeypatch)
  before = described(sys.modules['sibling'].lift)
  assert 'source' in before and 'return x + by * STEEP' in before['source']
  path = tmp_path / 'sibling.py'
  path.write_text(path.read_text().replace('x + by', 'x - by'))
  linecache.checkcache(str(path))
  assert described(sys.modules['sibling'].lift)['source'].startswith('compiled ')
  exec(compile(path.read_text(), path, 'exec'), vars(sys.modules['sibling']))  # a reload
  assert 'x - by' in described(sys.modules['sibling'].lift)['source']


def test_what_is_no_longer_there_is_told_as_well():
  of = {'averages': {'ema': {'averaging.ema': {'decay': 0.9}}}}
  (said,) = fingerprint.changes(of, {'averages': {}})
  assert said.startswith('averages: ema(')
  assert said.endswith(' -> none')
  assert fingerprint.changes({'terms': []}, {'terms': [1]}) == ['terms:  -> 1']


def test_two_descriptions_are_told_apart_in_a_few_words():
  base, other = (
    described(BASE._replace(**changes))
    for changes in (
      {'callbacks': [callbacks.early_stopping(patience=10)]},
      {
        'callbacks': [callbacks.early_stopping(patience=20)],
        'terms': BASE.terms | {'l1': (1e-6, penalties.l1())},
        'model': mlp.mlp(16, 2, num_classes=10),
        'augment': lambda key, batch: batch,
      },
    )
  )
  assert fingerprint.changes(base, base) == []
  augment, patience, model, l1 = fingerprint.changes(base, other)
  assert patience == 'callbacks.0.early_stopping.patience: 10 -> 20'
  assert l1 == 'terms.l1: (none) -> 1e-06, l1()'
  assert (
    model.startswith('model: mlp(width=16,') and ') -> unet(width=8, ' in model or '...' in model
  )
  assert augment.endswith('-> lambda key, batch: batch')
  one, two = (dict(base, seed=value) for value in (1, 1.0))
  assert fingerprint.changes(one, two) == ['seed: 1 -> 1.0']


# Built twice, in processes whose sets have other orders.
EVERY = """
import dataclasses, importlib, json, pathlib, sys
from diffusion import fingerprint
found = {}
for path in sorted(pathlib.Path('experiments').glob('[a-z]*.py')):
  module = importlib.import_module(f'experiments.{path.stem}')
  configs = [module.Config(), module.SMOKE] if hasattr(module, 'SMOKE') else []
  if hasattr(module, 'ARMS'):
    configs = [dataclasses.replace(module.SMOKE, arm=arm) for arm in module.ARMS]
  for i, config in enumerate(configs):
    told = fingerprint.describe(module.build(config))
    assert ' at 0x' not in json.dumps(told), path
    found[f'{path.stem} {i}'] = fingerprint.digest(told)
sys.path.insert(0, sys.argv[1])
import mine
found['mine'] = fingerprint.digest(fingerprint.describe(mine.made))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_experiment_is_described_alike_by_two_processes(tmp_path):
  for name, text in (('mine', OWN), ('sibling', SIBLING)):
    (tmp_path / f'{name}.py').write_text(textwrap.dedent(text))
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', EVERY, tmp_path], stdout=-1, text=True, env=os.environ | {'PYTHONHASHSEED': seed}, cwd=ROOT
    )
    for seed in '12'
  ]  # fmt: skip
  one, other = (json.loads(process.communicate(timeout=300)[0]) for process in processes)
  assert one == other
  assert len(one) > 100
  assert len(set(one.values())) > len(one) - 3
  assert one['digits 1'] == fingerprint.digest(described(built()))


class Held:
  """Of the user's own, with a number that it is given."""

  def __init__(self, size):
    self.size = size

  def get(self):
    return self.size


def made_inside(size):
  class Inside(Held):
    def __init__(self, size):
      self.size = size

  return Inside(size)


def test_sets_methods_and_objects_are_described_by_what_they_hold():
  """Also where the class is written in a function, and another one beside it has an attribute of that name."""
  assert (
    fingerprint.describe({3, 1, 2})
    == fingerprint.describe({2, 3, 1})
    != fingerprint.describe({2, 3})
  )
  for make in (Held, made_inside):
    assert (
      fingerprint.describe(make(1))
      == fingerprint.describe(make(1))
      != fingerprint.describe(make(2))
    )
    assert (
      fingerprint.describe(make(1).get)
      == fingerprint.describe(make(1).get)
      != fingerprint.describe(make(2).get)
    )
