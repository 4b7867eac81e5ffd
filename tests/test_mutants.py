"""Faults are what they say they are: one place, found as parsed, that becomes something else."""

import pytest

from tests.cases import CASES
from tests.mutants import faults
from tests.mutants.fault import Fault, StaleError, apply

SOURCE = '''
def outer(x):
  """Text: a + b."""
  def inner(a, b):
    total = a + b
    return total * 2

  if x:
    y = inner(x, b=3)
    z = y - 1
  return y, (
    z
    + 1
  )


def other(a, b):
  return a + b
'''


def changed(function, old, new, at=-1):
  return apply(SOURCE, Fault('f', 'formula', 'f.py', function, old, new, ('t',), at))


def test_an_expression_is_replaced_in_its_function_alone():
  assert changed('outer.inner', 'a+b', 'a - b') == SOURCE.replace(
    'total = a + b', 'total = (a - b)'
  )
  assert changed('other', 'a + b', 'a').endswith('return a\n')


def test_it_is_found_however_it_is_formatted():
  assert '(z - 1)' in changed('outer', 'z + 1', 'z - 1')


def test_statements_and_keywords_are_replaced():
  two = changed('outer', 'y = inner(x, b=3)\nz = y - 1', 'z = 1\ny = 2')
  assert '    z = 1\n    y = 2\n' in two
  assert 'inner(x, b=4)' in changed('outer', 'b=3', 'b=4')
  assert '    total = a\n' in changed('outer.inner', 'total = a + b', 'total = a')
  assert 'return total\n' in changed('outer.inner', 'return total * 2', 'return total')


@pytest.mark.parametrize(
  ('function', 'old', 'new', 'at', 'says'),
  [
    ('outer.gone', 'a', 'b', -1, 'no function'),
    ('other', 'a * b', 'a', -1, "has no 'a \\* b'"),
    ('', 'a + b', 'a', -1, '2 times: say which'),
    ('', 'a + b', 'a', 2, 'but 2 times'),
    ('other', 'a + b', 'a+b', -1, 'changes nothing'),
    ('other', 'a + b', 'a +', -1, 'no Python'),
  ],
)
def test_what_cannot_be_applied_is_stale(function, old, new, at, says):
  with pytest.raises(StaleError, match=says):
    changed(function, old, new, at)


def test_the_faults_have_names_of_their_own_and_kinds_that_there_are():
  assert faults.every()


def test_every_technique_of_the_catalog_has_a_fault_and_no_fault_is_of_another():
  of = {name for one in faults.every() for name in one.techniques}
  assert of == {case.factory.technique.name for case in CASES}
