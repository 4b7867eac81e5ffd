"""Every technique of the catalogue: its line turns it on, it is live, its form is proven, and off costs nothing."""

import ast
import pathlib

import jax.numpy as jnp
import pytest

from diffusion.models import dropout, magnitude, precision, unet
from diffusion.objectives import penalties
from diffusion.optimizers import chains, optimizers, schedules
from diffusion.process import marginals, parameterizations
from diffusion.runs import run
from diffusion.sampling.plan import Sampling
from diffusion.training import callbacks, guards
from diffusion.training import experiment as experiments
from docs import catalog
from tests import cases
from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[1]
PREFIX = {
  'unet.unet(...': 'unet.unet(8, (1, 2), 1, (), num_classes=10',
  'magnitude.unet(...': 'magnitude.unet(8, (1, 2), 1, (), num_classes=10',
  'chains.chain(...': 'chains.chain(optimizers.adam(), rate',
  'Sampling(...': 'Sampling(samplers.ddim, 4',
  ', ...)': ', marginals.variance_preserving, parameterizations.v())',
  '[..., ': '[callbacks.checkpoint(), ',
}
NAMES = {
  name: value for module in (cases.network, cases.loss, cases.update, cases.data, cases.noise_level,
                             cases.trajectory, cases.sampling) for name, value in vars(module).items()
} | {
  'marginals': marginals, 'parameterizations': parameterizations, 'magnitude': magnitude, 'precision': precision,
  'Sampling': Sampling, 'rate': schedules.constant(1e-3), 'weak': cases.sampling.exact,
  'known': jnp.zeros((1, 8, 8, 1)), 'mask': jnp.zeros((1, 8, 8, 1)) > 0,
}  # fmt: skip
each_case = pytest.mark.parametrize('function', cases.CASES)


def base(**changes):
  model = unet.unet(8, (1, 2), 1, (), num_classes=10)
  return tiny.images(model=model, augment=tiny.augment.chain(), batch_size=32, **changes)


def changes(line):
  """The fields of an experiment that a line sets, with what its dots stand for put in."""
  for short, long in PREFIX.items():
    line = line.replace(short, long)
  return eval(f'dict({line})', NAMES)


def techniques():
  return {one.qualified_name.removeprefix('diffusion.'): one for one in catalog.rows()}


def test_every_technique_has_a_row_and_a_test():
  assert set(cases.CASES) == set(techniques())
  print(f'{len(cases.CASES)} rows, {2 * len(cases.CASES)} tests of them')


@each_case
def test_the_technique_is_live(function):
  cases.CASES[function].live()


@each_case
def test_its_form_is_proven_by_a_test_that_exists(function):
  path, name = cases.CASES[function].proof.split('::')
  tree = ast.parse((ROOT / path).read_text())
  assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
  'function',
  [name for name, case in cases.CASES.items() if '=' in case.line and '--' not in case.line],
)
def test_its_one_line_turns_it_on(function):
  """The line, read from the catalogue, makes an experiment that passes its checks and notes the technique."""
  made = base()._replace(**changes(cases.CASES[function].line))
  experiments.check(made)
  assert techniques()[function] in run.techniques(made)


def test_the_catalogue_is_up_to_date():
  for path, text in catalog.files().items():
    assert (ROOT / path).read_text() == text, 'run python -m docs.catalog'


def test_what_is_off_costs_nothing():
  """The program of a step with everything there and off is the plain step's, to the letter."""
  drops = [
    dropout.at_input(0), dropout.spatial(0.0), dropout.drop_block(0), dropout.drop_connect(0.0),
    dropout.stochastic_depth(0),
  ]  # fmt: skip
  terms = base().terms
  off = base(
    micro_batches=1, gradient_noise=False, curriculum=None,
    terms=terms | {name: (0, getattr(penalties, name)()) for name in ('l1', 'l2', 'jacobian')},
    optimizer=chains.chain(
      optimizers.adam(), schedules.constant(1e-3), clip=None, weight_decay=0.0, coupled_l2=0,
      l1=0.0, fix_norms=False,
    ),
    callbacks=[guards.spike_guard(10), callbacks.early_stopping(), callbacks.reduce_on_plateau()],
  )._replace(
    model=unet.unet(8, (1, 2), 1, (), (0.0, 0), num_classes=10, drops=drops),
    augment=tiny.augment.chain(tiny.augment.label_dropout(0)),
  )  # fmt: skip
  plain = base(optimizer=chains.chain(optimizers.adam(), schedules.constant(1e-3)))
  assert tiny.lowered(off) == tiny.lowered(plain)
  assert tiny.lowered(plain._replace(augment=tiny.augment.flip())) != tiny.lowered(plain)


def test_five_rooms_one_line_each():
  """A technique is one keyword of the experiment: nothing else of it is touched."""
  for function in (
    'models.dropout.spatial', 'objectives.weights.min_snr', 'optimizers.clipping.adaptive', 'data.augment.rotate',
    'sampling.solvers.dpm_solver',
  ):  # fmt: skip
    assert len(changes(cases.CASES[function].line)) == 1
