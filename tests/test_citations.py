"""What was built is read from what it is: the techniques in it, and its fingerprint."""

import ast
import dataclasses
import functools
import pathlib
import pickle
import subprocess
import sys
import types
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion
from diffusion import citations
from diffusion.citations import technique, techniques
from diffusion.reporting import bibliography


class Pair(NamedTuple):
  name: str
  first: Any
  second: Any = None


@technique('scaling', 'network', 'ho2020denoising', 'song2021score')
def scale(by=2.0):
  """Scales."""
  return lambda x: x * by


@technique('dropout', 'network', 'srivastava2014dropout', active=lambda rate: rate != 0)
def dropout(rate=0.1, name='d'):
  return Pair(name, lambda x: x * rate, lambda x: x)


@technique('penalty', 'loss', 'ho2020denoising', active=lambda weight: weight is not None)
def penalty(*terms, weight=None):
  return lambda x: sum(term(x) for term in terms)


@technique('sign', 'network', 'song2021score')
def sign(x):
  return jnp.sign(x)


@technique('passing', 'loss')
def passing(inner):
  return lambda x: x


def shared(x):
  return x


@technique('identity', 'network')
def identity():
  return shared


def names(value):
  return [one.name for one in techniques(value)]


def test_each_technique_once_in_the_order_of_what_holds_it():
  assert names([dropout(), scale(), dropout(0.2), scale(3.0)]) == ['dropout', 'scaling']
  (record,) = techniques(scale())
  assert record.place == 'network'
  assert record.keys == ('ho2020denoising', 'song2021score')
  assert record.qualified_name == f'{__name__}.scale'


def test_what_is_made_and_not_held_is_not_there():
  made = dropout()
  scale()
  assert names({'only': made}) == ['dropout']


def test_results_and_metadata_are_the_factory_s_own():
  assert scale(by=5.0)(3.0) == 15.0
  assert scale.__name__ == 'scale'
  assert scale.__doc__ == 'Scales.'
  assert pickle.loads(pickle.dumps(scale)) is scale
  assert isinstance(dropout(), Pair)
  assert dropout().first(10) == 1.0


class Block(nn.Module):
  parts: tuple
  activation: Any


@dataclasses.dataclass
class Held:
  function: Any


@pytest.mark.parametrize(
  'wrap',
  [
    lambda f: lambda x: 2 * f(x),
    lambda f: functools.partial(lambda g, x: g(x), f),
    lambda f: {'a': (1.0, [f])},
    lambda f: Pair('mine', None, lambda x, f=f: f(x)),
    lambda f: Block((f,), None),
    lambda f: types.MethodType(lambda self, x: self(x), f),
    lambda f: jax.jit(lambda x: f(x) + 1),
    lambda f: penalty(f, weight=1.0),
    passing,  # an argument that what was made does not hold
    lambda f: {f},
    lambda f: frozenset([f]),
    lambda f: functools.partial(f, 1),
    lambda f: functools.partial(lambda x, g: g(x), g=f),
    lambda f: types.MethodType(f, 1.0),
    lambda f: lambda x, *, g=f: g(x),
    lambda f: Pair('mine', shared, [None, f]),
    Held,
  ],
)
def test_it_is_found_wherever_it_is_held(wrap):
  assert 'scaling' in names(wrap(scale()))
  assert 'scaling' not in names(wrap(shared))


def test_a_function_that_is_a_technique_counts_where_it_is_held():
  assert names(Block((), sign)) == ['sign']
  assert names(functools.partial(sign)) == ['sign']
  assert names(scale) == ['scaling']  # a factory that is to be called later
  assert sign(jnp.float32(-3.0)) == -1


def test_a_function_that_others_have_is_not_marked():
  assert names(identity()) == ['identity']
  assert identity()(7) == 7
  assert names(shared) == []


def test_one_factory_inside_of_another_leaves_both_marks():
  @technique('both', 'network')
  def both():
    return scale()

  assert names(both()) == ['scaling', 'both']


def test_a_tuple_is_marked_at_a_function_of_its_own_and_one_that_others_have_stays_theirs():
  @technique('pair', 'core')
  def pair(second):
    return Pair('mine', shared, second)

  made = pair(lambda x: 3 * x)
  assert made.first is shared
  assert names(made._replace(first=None)) == ['pair'] != names(made._replace(second=None))
  made = pair(7)
  assert (made.first(5), made.second, names(made), names(shared)) == (5, 7, ['pair'], [])
  assert made.first.uses[0].arguments == {'second': 7}


def test_what_a_function_holds_only_later_is_passed_over_and_nothing_else():
  def maker(z):
    def inner(x):
      return a(x) + z(x)  # `a` comes first, and is not there yet

    before = names(inner)
    a = dropout()
    return before, names(inner)[::-1], a

  assert maker(scale())[:2] == (['scaling'], ['scaling', 'dropout'])


def test_what_turns_a_technique_off_is_not_noted():
  assert names([dropout(0), dropout(rate=0.0), penalty(scale())]) == ['scaling']
  assert names([dropout(), penalty(weight=0.5)]) == ['dropout', 'penalty']


def test_a_traced_value_counts_as_on_and_traces_as_before():
  found = []

  def f(rate):
    made = dropout(rate)
    found.extend(names(made))
    return made.first(2.0)

  assert jax.jit(f)(jnp.float32(0.0)) == 0
  assert found == ['dropout']
  for active in (lambda rate: rate.__index__() > 0, lambda rate: np.asarray(rate) > 0):
    made = technique('asked', 'core', active=active)(lambda rate: lambda: rate)
    found.clear()
    jax.jit(lambda rate, made=made: found.extend(names(made(rate))))(3)
    assert found == ['asked']


def test_other_errors_of_active_are_not_swallowed():
  @technique('broken', 'core', active=lambda rate: rate > 0)
  def broken(rate):
    return lambda: rate

  with pytest.raises(TypeError):
    broken(None)


def test_active_may_ask_for_any_arguments():
  seen = []

  @technique('some', 'core', active=lambda b, rest, *, c: seen.append((b, rest, c)) or True)
  def takes_some(a, b=2, *rest, c=3):
    return lambda: a

  assert names(takes_some(1, 5, 6, c=7)) == ['some']
  assert names(takes_some(1)) == ['some']
  assert seen == [(5, (6,), 7), (2, (), 3)]


def test_what_holds_itself_has_an_end():
  items = [scale()]
  items.append(items)
  assert names(items) == ['scaling']


def test_all_keys_are_unique_and_in_order():
  used = techniques([penalty(weight=1.0), scale(), dropout()])
  assert citations.all_keys(used) == (
    'ho2020denoising',
    'song2021score',
    'srivastava2014dropout',
  )


@pytest.mark.parametrize(
  'call, value',
  [
    (lambda: technique('x', 'somewhere'), 'somewhere'),
    (lambda: technique('', 'core'), "''"),
    (lambda: technique('x', 'core', 'Ho 2020'), 'Ho 2020'),
    (lambda: technique('x', 'core', active=lambda other: True)(dropout), 'other'),
    (lambda: technique('x', 'core', active=lambda *rate: True)(dropout), 'by name, got .rate'),
    (lambda: technique('x', 'core', active=lambda **rate: True)(dropout), 'by name, got ..rate'),
  ],
)
def test_bad_declarations_are_refused_with_their_value(call, value):
  with pytest.raises(ValueError, match=value):
    call()


def test_citations_need_no_jax():
  code = 'import diffusion.citations, diffusion.fingerprint, sys; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)


def test_every_key_cited_in_the_sources_is_in_the_bibliography():
  known = bibliography.load()
  missing = []
  for path in pathlib.Path(diffusion.__file__).parent.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.FunctionDef):
        missing += [
          (path.name, node.name, key.value)
          for call in node.decorator_list
          if isinstance(call, ast.Call) and ast.unparse(call.func).endswith('technique')
          for key in call.args[2:]
          if isinstance(key, ast.Constant) and key.value not in known
        ]
  assert missing == []
