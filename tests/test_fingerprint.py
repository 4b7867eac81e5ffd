"""The fingerprint of what was built: equal for equal builds, another for any change that may change a run."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import importlib.util
import json
import linecache
import math
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import fingerprint, user_code
from diffusion.data import sources
from diffusion.models import activations, dropout, mlp, unet
from diffusion.objectives import losses, penalties, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.reporting.rows import read_json, write_json
from diffusion.sampling import samplers
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


# Each way to change what is not a function's own, on a name that says which.
CHANGING = """
  def look(x, given):
    of_append.append(x), of_appendleft.appendleft(x), of_extend.extend(x), of_insert.insert(0, x), of_pop.pop()
    of_popleft.popleft(), of_popitem.popitem(), of_remove.remove(x), of_clear.clear(), of_add.add(x)
    of_discard.discard(x), of_update.update(x), of_setdefault.setdefault(x, 1), of_sort.sort(), of_reverse.reverse()
    of_item[0] = of_reading[0]
    of_sum[0] += of_call(x)
    of_attribute.name = of_reading.name
    del of_deletion[0]
    given.append(x)
    own = []
    own.append(x)

  def counts():
    global of_global
    of_global += 1

    def inner():
      nonlocal of_nonlocal
      of_nonlocal = 2

  async def waits(x):
    of_async.append(x)

  called = lambda x: of_lambda.append(x)

  class Of:
    def __init__(self):
      self.begun_init, self.begun_list[0] = 1, of_beginning.append(2)

    def __post_init__(self):
      self.begun_post = 1

    def __new__(cls):
      cls.begun_new, self.begun_new = 1, 2

    def setup(self):
      self.begun_setup = 1

    def __call__(self, x):
      self.of_self, self.read = 1, self.of_reading
      self.of_part.append(x)
      self.of_row[0] = x
      self.of_inner.name = x
      del self.of_gone
      return self.of_method(x)
"""


def test_each_way_to_change_what_is_not_its_own_makes_it_a_state(tmp_path):
  path = tmp_path / 'changing.py'
  path.write_text(textwrap.dedent(CHANGING))
  ways = (
    'append', 'appendleft', 'extend', 'insert', 'pop', 'popleft', 'popitem', 'remove', 'clear', 'add', 'discard',
    'update', 'setdefault', 'sort', 'reverse', 'item', 'sum', 'attribute', 'deletion', 'global', 'nonlocal', 'async',
    'lambda', 'beginning',
  )  # fmt: skip
  mine = {
    f'self.{name}' for name in ('of_self', 'read', 'of_part', 'of_row', 'of_inner', 'of_gone')
  }
  assert user_code.states_in(str(path)) == {f'of_{way}' for way in ways} | mine


def test_a_list_to_which_a_cell_without_a_file_appends_is_its_state():
  scope = {}
  exec(
    'seen, known, names, table = [], {}, set(), [1]\n'
    'def look(x):\n  seen.append(x)\n  known.update({x: x})\n  names.add(x)\n'
    'def read(x): return table[x]',
    scope,
  )
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


class Size(enum.Enum):
  SMALL = 1


class Level(enum.IntEnum):
  LOW = 1


def test_every_kind_of_value_is_told_by_what_it_is_and_of_which_kind():
  kinds = [
    complex, fractions.Fraction, decimal.Decimal, range, slice, str, float, int, datetime.time,
    lambda n: str(n).encode(), lambda n: re.compile(str(n)), lambda n: re.compile(str(n), re.IGNORECASE),
    lambda n: pathlib.Path(str(n)), lambda n: datetime.date(2000, n, 1), lambda n: datetime.datetime(2000, 1, 1, n),
    datetime.timedelta, lambda n: np.dtype(f'float{16 * n}'), lambda n: [n], lambda n: {'n': n}, lambda n: {'m': n},
    lambda n: {n, 3}, lambda n: (n, None), lambda n: types.SimpleNamespace(k=n), lambda n: collections.deque([7, n]),
    lambda n: types.MappingProxyType({'p': n}), lambda n: np.array([n, None]), lambda n: np.array([[n, None]]),
    lambda n: np.array([n], np.int8), jax.random.key,
  ]  # fmt: skip
  told, again = ([json.dumps(described(kind(n))) for kind in kinds for n in (1, 2)] for _ in 'ab')
  assert told == again
  assert len(set(told)) == len(told)
  assert described([Size.SMALL, Level.LOW, True]) == ['Size Size.SMALL', 'Level 1', True]
  assert described([np.float32(0.5), np.int8(3), np.float32(math.inf)]) == [0.5, 3, 'number inf']
  assert described(['nan', math.nan, 'inf', -math.inf]) == [
    'text nan', 'number nan', 'text inf', 'number -inf'
  ]  # fmt: skip
  traced = []
  jax.make_jaxpr(lambda x: traced.append(described(x)))(jnp.zeros((2, 3)))
  assert traced == [{'array': 'float32', 'shape': [2, 3]}]


MEMBERS = """
  import dataclasses, functools

  class Own:
    'Says nothing.'

    def __init__(self):
      self.x = 11

    @property
    def one(self):
      return 12

    @property
    def two(self):
      return 13

    @two.setter
    def two(self, value):
      print(14 * value)

    @functools.cached_property
    def three(self):
      return 15

    @staticmethod
    def four():
      return 16

    @classmethod
    def five(cls):
      return 17

    def __len__(self):
      return 18

  @dataclasses.dataclass
  class Data:
    rate: float = 19.0

    def scale(self):
      return 20

    def __post_init__(self):
      print(21)

  def with_defaults(x):
    def positional(y, by=x):
      return y

    def named(y, *, by=2 * x):
      return y

    return positional, named

  def nested():
    return lambda x: lambda y: y + x

  rows = (lambda x: x +
    22, lambda x: x *
    23)
  made = [Own(), Data(), with_defaults(24)[0], with_defaults(25)[1], nested()(26), rows]
"""


def test_each_member_of_a_class_and_each_default_is_told(tmp_path):
  base = described(load(tmp_path, MEMBERS))
  assert described(load(tmp_path, MEMBERS.replace('Says nothing.', 'Says more.'), 'said')) == base
  for n in range(11, 27):
    assert described(load(tmp_path, MEMBERS.replace(str(n), '97'), f'with_{n}')) != base, n
  assert base[4]['source'] == 'lambda y: y + x'
  assert [one['source'] for one in base[5]] == ['lambda x: x + 22', 'lambda x: x * 23']


def test_what_holds_itself_or_another_thing_twice_refers_to_where_that_began():
  one, other = Held(1), Held(1)
  assert described([one, other, one])[2] == {'as': '/0'} != described([one, other, other])[2]
  one.size = {'deep': [one]}
  assert described([other, one])[1]['size'] == {'deep': [{'as': '/1'}]}


def test_what_was_changed_of_what_a_factory_made_is_told_beside_it():
  changed = BASE.model._replace(num_classes=77, null=BASE.model.null)
  assert described(changed) == described(BASE.model) | {'changed': {'num_classes': 77}}


@pytest.mark.parametrize(
  ('one', 'other'),
  [({'in_axes': (0, None)}, {'in_axes': (None, 0)}), ({'in_axes': (0, 1)}, {'in_axes': (1, 0)}), ({'out_axes': 1}, {})],
)  # fmt: skip
def test_the_axes_that_jax_maps_over_are_told(one, other):
  def function(x, y):
    return x * y

  assert described(jax.vmap(function, **one)) != described(jax.vmap(function, **other))


def test_a_line_for_a_reader_has_names_and_arguments_without_modules():
  for value, line in (
    (functools.partial(samplers.ddim, eta=0.5), 'ddim(eta=0.5)'),
    (functools.partial(load, 1, [2, 3], name=4), 'load(1, 2, 3, name=4)'),
    (jax.vmap(load), 'load'), (lambda x: x + 1, 'lambda x: x + 1'), (math.exp, 'exp'), (np.ndarray, 'ndarray'),
    (Held(3).get, 'get'), (Held, 'Held'), (dropout.spatial(0.1), 'spatial(rate=0.1)'), (None, 'None'), ({}, 'none'),
  ):  # fmt: skip
    assert fingerprint.short(value) == line


def test_of_a_function_the_first_line_that_differs_is_told_and_no_more_than_fits():
  text = 'def f(x):\n  y = 1\n  return y'
  for new, said in (
    (text.replace('1', '2'), "a: 'y = 1' -> 'y = 2'"),
    (text + ' + 1\n  pass', "a: 'return y' -> 'return y + 1'"),
    (text + '\n  pass', "a: '' -> 'pass'"),
  ):
    assert fingerprint.changes({'a': {'source': text}}, {'a': {'source': new}}) == [said]
  old, new = 'x' * 78, 'y' * 79
  assert fingerprint.changes({'a': old}, {'a': new}) == [f"a: '{old}' -> '{'y' * 76}..."]
  assert fingerprint.changes({'a': 1, 'b': 2}, {'a': 1, 'c': 3}) == [
    'b: 2 -> (none)',
    'c: (none) -> 3',
  ]


def test_the_program_is_what_its_file_says_but_for_comments(tmp_path, monkeypatch):
  path, main = tmp_path / 'mine.py', types.ModuleType('__main__')
  text = (
    'import functools\nfrom json import dumps\n\ndef f(x):\n  return x + 1\n\n'
    'def deco(g):\n  @functools.wraps(g)\n  def inner(*x):\n    return g(*x)\n  return inner\n\n'
    '@deco\ndef h(x):\n  return x in {3, 4}\n'
  )
  (tmp_path / 'other.py').write_text('')
  path.write_text(text)
  main.__file__ = str(path)
  exec(compile(text, str(path), 'exec'), vars(main))
  monkeypatch.setitem(sys.modules, '__main__', main)
  for now, same in (
    (text, True), (f'{text}# more\n', True), (f'\n\n{text}', True), (f'{text}def k(): pass\n', True),
    (text.replace('x + 1', 'x + 2'), False), (text.replace('x + 1', 'x - 1'), False), ('def f(x', False),
    (text.replace('3, 4', '3, 5'), False), (text.replace('3, 4', '4, 3'), True),
  ):  # fmt: skip
    assert user_code.is_running(path, now.encode()) is same
  assert user_code.is_running(tmp_path / 'other.py', b'')  # which is not the program


def test_what_lies_in_an_environment_is_a_library_s_and_nothing_else(monkeypatch):
  for file, inside in (
    ('/a/site-packages/b.py', True), ('/a/dist-packages/b.py', True), (json.__file__, True), (np.__file__, True),
    ('/a/my-site-packages/b.py', False), ('/a/site-packages.py', False), (__file__, False),
  ):  # fmt: skip
    assert user_code.in_a_library(file) is inside, file
  monkeypatch.setitem(sys.modules, '__main__', types.ModuleType('__main__'))  # as in a notebook
  own = (Held, load, sys.modules[__name__], type('Cell', (), {'__module__': '__main__'}))
  of = (dataclasses.dataclass, np.ndarray, sys, math, jax.nn.relu, fingerprint, Term)
  assert not any(map(user_code.is_of_a_library, own))
  assert all(map(user_code.is_of_a_library, of))
  for value, name in (
    (unet.unet, 'diffusion.models.unet.unet'), (np.linalg.norm, 'numpy.norm'), (np.exp, 'numpy.exp'),
    (np.ma.MaskedArray.sum, 'numpy.MaskedArray'), (math, 'math'), (functools.partial(load), 'partial'),
  ):  # fmt: skip
    assert user_code.full_name(value) == name
