"""Every technique of the catalogue: its line turns it on, it is live, its form is proven, and off costs nothing."""

import ast
import pathlib

import pytest

from diffusion.data import augment
from diffusion.models import dropout, unet
from diffusion.objectives import penalties, weights
from diffusion.optimizers import chains, clipping, optimizers, schedules
from diffusion.runs.run import techniques
from diffusion.sampling import solvers
from diffusion.training import callbacks, guards
from diffusion.training import experiment as experiments
from docs import catalog
from tests.cases import CASES
from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[1]


def each(cases):
  return pytest.mark.parametrize('case', cases, ids=[case.name for case in cases])


def base(**changes):
  model = unet.unet(8, (1,), 1, (), num_classes=10)
  return tiny.images(model=model, augment=augment.chain(), batch_size=32, **changes)


def test_every_technique_has_a_row_and_a_test():
  names = [one.qualified_name.removeprefix('diffusion.') for one in catalog.rows()]
  assert sorted(case.name for case in CASES) == sorted(names)
  print(f'{len(CASES)} rows, {2 * len(CASES)} tests of them')


@each(CASES)
def test_the_technique_is_live(case):
  case.live()


@each(CASES)
def test_its_form_is_proven_by_a_test_that_exists(case):
  path, name = case.proof.split('::')
  tree = ast.parse((ROOT / path).read_text())
  assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@each([case for case in CASES if callable(case.turn_on)])
def test_its_one_line_turns_it_on(case):
  """The line that the catalogue shows makes an experiment that passes its checks and notes the technique."""
  made = base()._replace(**case.turn_on())
  experiments.check(made)
  experiments.evaluations_of_a_sample(made, (8, 8, 1))
  assert case.factory.technique in techniques(made)


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
    model=unet.unet(8, (1,), 1, (), (0.0,), num_classes=10, drops=drops),
    augment=augment.chain(augment.label_dropout(0)),
  )  # fmt: skip
  plain = base(optimizer=chains.chain(optimizers.adam(), schedules.constant(1e-3)))
  text = tiny.lowered(plain)
  assert tiny.lowered(off) == text
  assert tiny.lowered(plain._replace(augment=augment.flip())) != text


def test_five_rooms_one_line_each():
  """A technique is one keyword of the experiment: nothing else of it is touched."""
  five = {dropout.spatial, weights.min_snr, clipping.adaptive, augment.rotate, solvers.dpm_solver}
  set_by = [case.turn_on() for case in CASES if case.factory in five]
  assert [len(changes) for changes in set_by] == [1] * 5
