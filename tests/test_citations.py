import ast
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import diffusion
from diffusion import citations
from diffusion.citations import technique
from diffusion.reporting import bibliography


@technique('scaling', 'network', 'ho2020denoising', 'song2021score')
def scale(x, *, by=2.0):
  """Scales."""
  return x * by


@technique('dropout', 'network', 'srivastava2014dropout', active=lambda rate: rate != 0)
def dropout(rate=0.1, name='d'):
  return rate, name


@technique('penalty', 'loss', 'ho2020denoising', active=lambda weight: weight is not None)
def penalty(*terms, weight=None):
  return terms, weight


def names(used):
  return [one.name for one in used]


def test_records_each_technique_once_in_order_of_first_use():
  with citations.collect() as used:
    dropout()
    scale(1.0)
    dropout(0.2)
    scale(2.0)
  assert names(used) == ['dropout', 'scaling']
  record = used[1]
  assert record.place == 'network'
  assert record.keys == ('ho2020denoising', 'song2021score')
  assert record.qualified_name == f'{__name__}.scale'


def test_results_and_metadata_are_the_factory_s_own():
  assert scale(3.0, by=5.0) == 15.0
  assert scale.__name__ == 'scale'
  assert scale.__doc__ == 'Scales.'
  assert pickle.loads(pickle.dumps(scale)) is scale


def test_outside_a_collection_and_after_it_nothing_is_noted():
  scale(1.0)
  with citations.collect() as used:
    pass
  scale(1.0)
  assert used == []


def test_nested_collections_both_get_what_the_inner_one_sees():
  with citations.collect() as outer:
    scale(1.0)
    with citations.collect() as inner:
      dropout()
      scale(1.0)
    penalty(weight=1.0)
  assert names(inner) == ['dropout', 'scaling']
  assert names(outer) == ['scaling', 'dropout', 'penalty']


def test_a_collection_ends_with_an_exception():
  with pytest.raises(RuntimeError), citations.collect() as used:
    raise RuntimeError
  scale(1.0)
  assert used == []


def test_a_technique_turned_off_is_not_noted():
  with citations.collect() as used:
    dropout(0)
    dropout(rate=0.0)
    penalty(1, 2)
  assert used == []
  with citations.collect() as used:
    dropout()  # the default, filled in
    penalty(weight=0.5)
  assert names(used) == ['dropout', 'penalty']


def test_a_call_that_fails_is_not_noted():
  with citations.collect() as used, pytest.raises(TypeError):
    scale('text', by=2.0)
  assert used == []


def test_a_traced_value_counts_as_on_and_traces_as_before():
  with citations.collect() as used:
    out = jax.jit(lambda rate: dropout(rate)[0] * 2)(jnp.float32(0.0))
    jax.vmap(scale)(jnp.arange(3.0))
  assert names(used) == ['dropout', 'scaling']
  assert out == 0


def test_other_errors_of_active_are_not_swallowed():
  @technique('broken', 'core', active=lambda rate: rate > 0)
  def broken(rate):
    return rate

  with citations.collect(), pytest.raises(TypeError):
    broken(None)


def test_active_may_ask_for_any_subset_or_all():
  seen = []

  @technique('all', 'core', active=lambda **given: seen.append(given) or True)
  def takes_all(a, b=2, *rest, c=3):
    return a

  with citations.collect() as used:
    takes_all(1, 5, 6, c=7)
  assert seen == [{'a': 1, 'b': 5, 'rest': (6,), 'c': 7}]
  assert names(used) == ['all']


def test_all_keys_are_unique_and_in_order():
  with citations.collect() as used:
    penalty(weight=1.0)
    scale(1.0)
    dropout()
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
    (lambda: technique('x', 'core', active=lambda *rate: True)(dropout), 'rate'),
  ],
)
def test_bad_declarations_are_refused_with_their_value(call, value):
  with pytest.raises(ValueError, match=value):
    call()


def test_citations_needs_no_jax():
  code = 'import diffusion.citations, sys; assert "jax" not in sys.modules'
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
