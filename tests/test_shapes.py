"""The tests do check what signatures say of arrays, in every numerical room, and nothing else that they say."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from diffusion import rng
from diffusion.data import pipeline
from diffusion.evaluation import neighbors
from diffusion.models import embeddings
from diffusion.objectives import losses
from diffusion.optimizers import schedules as rates
from diffusion.process import betas, gaussian, marginals, parameterizations, schedules
from diffusion.sampling import samplers
from diffusion.types import Marginal, Prediction
from tests import shapes

ROOT = pathlib.Path(__file__).parents[1] / 'diffusion'
FILES = [
  ROOT / 'types.py',
  ROOT / 'rng.py',
  *(f for r in shapes.ROOMS for f in (ROOT / r).glob('*.py')),
]
ROWS = jnp.zeros((3, 2))
ZERO = jnp.zeros(3)
WRONG = {
  'rng': lambda: rng.normal(jax.random.key(0), (2,)),  # one key for the keys of the rows
  'data': lambda: pipeline.to_uint8(np.zeros(3, bool), 256),
  'models': lambda: embeddings.fourier(jnp.zeros(()), 8),
  'process': lambda: gaussian.diffuse(ROWS, jnp.zeros((3, 4)), Marginal(ZERO, ZERO)),
  'objectives': lambda: losses.eps_loss(ROWS, ROWS, Prediction(ROWS, ROWS), jnp.zeros(4)),
  'optimizers': lambda: rates.inverse_sqrt(1.0, 100)(jnp.zeros(())),  # a count is an integer
  'evaluation': lambda: neighbors.nearest(np.zeros((3, 2)), np.zeros((3, 4))),
  'sampling': lambda: samplers.check_grid(jnp.zeros((2, 3))),
}


def test_every_room_has_its_wrong_shape():
  assert set(WRONG) == set(shapes.ROOMS)


@pytest.mark.parametrize('room', WRONG)
def test_a_wrong_shape_is_refused(room):
  with pytest.raises(jaxtyping.TypeCheckError, match=rf'diffusion\.{room}\.'):
    WRONG[room]()


def test_a_right_shape_passes():
  gaussian.diffuse(ROWS, ROWS, Marginal(ZERO, ZERO))


def test_a_wrong_type_is_refused():
  with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'log_snr'"):
    marginals.variance_preserving(jnp.zeros(3, int))


def test_the_fields_of_a_tuple_are_checked_with_what_stands_beside_it():
  with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'marginal'"):
    gaussian.diffuse(ROWS, ROWS, Marginal(ZERO, jnp.zeros(4)))
  with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'like'"):
    gaussian.diffuse(ROWS, ROWS, Marginal(jnp.zeros(4), jnp.zeros(4)))


def test_what_a_factory_returns_is_checked():
  with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'z'"):
    parameterizations.v().decode(ROWS, jnp.zeros((4, 2)), Marginal(ZERO, ZERO))


def test_results_are_checked():
  """A custom schedule that returns one number for all times does not pass for one."""
  broken = schedules.cosine()._replace(log_snr=lambda params, t: jnp.zeros(()))
  path = gaussian.bind(gaussian.Diffusion(broken, marginals.variance_preserving, None), ())
  with pytest.raises(jaxtyping.TypeCheckError, match='return value'):
    path.log_snr(ZERO)


def test_the_codes_own_errors_are_its_own():
  """An integer is a float, and a float for an integer is refused by the function that asks for one."""
  schedules.cosine(-10, 10)
  with pytest.raises(ValueError, match='steps .* got 10.0'):
    betas.linear(steps=10.0)


def test_one_test_may_go_unchecked(unchecked):
  with pytest.raises(ValueError, match=r'shape \(2, 2\)'):
    betas.alpha_bars(np.full((2, 2), 0.1))


def bare(annotation):
  """Whether an annotation holds an array of which it says no shape."""
  if isinstance(annotation, ast.Subscript) and hasattr(jaxtyping, ast.unparse(annotation.value)):
    return False
  if isinstance(annotation, (ast.Name, ast.Attribute)):
    return ast.unparse(annotation) in ('Array', 'AnyArray', 'jax.Array', 'np.ndarray')
  return any(bare(part) for part in ast.iter_child_nodes(annotation))


def said(tree):
  """(name, annotation) of all arguments, results and fields of a file."""
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      every = [*node.args.args, *node.args.kwonlyargs]
      yield from ((f'{node.name}({one.arg})', one.annotation) for one in every)
      yield f'{node.name} ->', node.returns
    if isinstance(node, ast.ClassDef) and node.name not in ('Batch', 'Conditioning'):
      fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
      yield from ((f'{node.name}.{f.target.id}', f.annotation) for f in fields)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_array_of_a_signature_has_a_shape(path):
  found = list(said(ast.parse(path.read_text())))
  assert not [name for name, annotation in found if annotation is not None and bare(annotation)]
