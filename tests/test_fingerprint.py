"""The fingerprint of what was built: equal for equal builds, another for any change that may change a run."""

import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import fingerprint
from diffusion.data import sources
from diffusion.models import activations, dropout, unet
from diffusion.objectives import losses, penalties, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.training import callbacks
from diffusion.types import Term
from experiments import digits
from tests.training import tiny

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


def test_equal_builds_are_described_alike_in_any_process():
  here = fingerprint.digest(described(built()))
  code = (
    'from experiments import digits; from diffusion import fingerprint as f;'
    'print(f.digest(f.describe(digits.build(digits.SMOKE))))'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == here == fingerprint.digest(described(built()))


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
