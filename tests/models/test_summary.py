"""Counts of parameters and of arithmetic, against counting by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.models import convolution, mlp, summary
from diffusion.types import Conditioning

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))
X, KERNEL = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
PRODUCT = 2 * 3 * 4 * 5


def canonical(x, kernel, stride=1):
  return convolution.canonical(x, kernel, (stride, stride), ((1, 1), (1, 1)))


@pytest.mark.parametrize(
  'function, arguments, count',
  [
    (jnp.matmul, (A, B), PRODUCT),
    (jax.jit(jnp.matmul), (A, B), PRODUCT),
    (jax.checkpoint(jnp.matmul), (A, B), PRODUCT),
    (jax.vmap(jnp.matmul), (jnp.ones((7, 3, 4)), jnp.ones((7, 4, 5))), 7 * PRODUCT),
    (jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), (A, B), 3 * PRODUCT),
    (
      lambda a, b: jax.lax.scan(lambda c, _: (c, a @ b), 0, None, length=6),
      (A, B),
      6 * PRODUCT,
    ),
    (lambda a: jnp.sin(a) + a, (A,), 0),
    (canonical, (X, KERNEL), 2 * (2 * 6 * 6 * 4) * (3 * 3 * 3)),
    # Two branches, one of which runs: the larger, or both, but not nothing.
    (
      lambda a, b: jax.lax.cond(a[0, 0] > 0, jnp.matmul, jnp.matmul, a, b),
      (A, B),
      (PRODUCT, 2 * PRODUCT),
    ),
  ],
)
def test_flops_are_two_a_multiplication(function, arguments, count):
  assert summary.flops(function, *arguments) in np.atleast_1d(count)


@pytest.mark.parametrize('stride', [1, 2])
def test_flops_of_a_canonical_gradient_are_those_of_two_more_convolutions(stride):
  """A convolution with 'same' padding costs as much for each of its two gradients as for itself."""

  def total(x, kernel):
    return canonical(x, kernel, stride).sum()

  one = summary.flops(lambda *a: canonical(*a, stride), X, KERNEL)
  assert one == 2 * (2 * (6 // stride) ** 2 * 4) * (3 * 3 * 3)
  assert summary.flops(jax.grad(total, (0, 1)), X, KERNEL) == 3 * one


def test_parameter_rows_add_up():
  params = {
    'one': {'kernel': np.full((2, 3), 2.0), 'inner': {'bias': np.zeros(2)}},
    'two': {'kernel': np.array([3.0, -4.0])},
    'three': {'bias': np.array([7.0]), 'kernel': np.array([1.0, 1.0])},
  }
  rows = summary.parameter_rows(params)
  assert [(name, size) for name, size, _ in rows] == [('one', 8), ('three', 3), ('two', 2)]
  np.testing.assert_allclose([rms for *_, rms in rows], [3**0.5, 17**0.5, 12.5**0.5])
  deeper = {name: (size, rms) for name, size, rms in summary.parameter_rows(params, depth=2)}
  assert deeper == {
    'one/kernel': (6, 2.0),
    'one/inner': (2, 0.0),
    'two/kernel': (2, 12.5**0.5),
    'three/bias': (1, 7.0),
    'three/kernel': (2, 1.0),
  }


def test_parameter_rows_of_a_network_hold_all_of_it():
  model = mlp.mlp(16, 2)
  told = Conditioning(jnp.zeros(2, int), jnp.zeros((2, 0)))
  params = model.init(jax.random.key(0), jnp.ones((2, 3)), jnp.zeros(2), told)['params']
  rows = summary.parameter_rows(params)
  assert {name for name, *_ in rows} == set(params)
  assert sum(size for _, size, _ in rows) == sum(p.size for p in jax.tree.leaves(params))
