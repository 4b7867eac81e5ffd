"""Activations in closed form, and their slopes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.models import activations

X = np.concatenate([np.linspace(-6, 6, 97), [-1e-3, 1e-3, 40.0, -40.0]])
FORMULAS = {
  'silu': (activations.silu, lambda x: x / (1 + math.exp(-x))),
  'relu': (activations.relu, lambda x: max(x, 0.0)),
  'leaky_relu': (
    functools.partial(activations.leaky_relu, slope=0.1),
    lambda x: x if x > 0 else 0.1 * x,
  ),
  'elu': (
    functools.partial(activations.elu, scale=1.5),
    lambda x: x if x > 0 else 1.5 * math.expm1(x),
  ),
  'gelu': (activations.gelu, lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
  'mish': (activations.mish, lambda x: x * math.tanh(math.log1p(math.exp(min(x, 30))))),
}


@pytest.mark.parametrize('name', FORMULAS)
def test_closed_form_and_slope(name, x64):
  function, formula = FORMULAS[name]
  np.testing.assert_allclose(function(jnp.asarray(X)), [formula(x) for x in X], atol=1e-12)
  slope = jax.vmap(jax.grad(function))(jnp.asarray(X))
  smooth = np.abs(X) > 1e-2  # away from the kinks
  differences = [(formula(x + 1e-6) - formula(x - 1e-6)) / 2e-6 for x in X]
  np.testing.assert_allclose(slope[smooth], np.array(differences)[smooth], atol=1e-6)


def test_all_differ_from_each_other():
  values = np.stack([np.asarray(f(jnp.asarray(X))) for f, _ in FORMULAS.values()])
  for i in range(len(values)):
    for j in range(i):
      assert np.abs(values[i] - values[j]).max() > 1e-2


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match='slope .* got 2'):
    activations.leaky_relu(jnp.zeros(1), 2)
  with pytest.raises(ValueError, match='scale .* got 0'):
    activations.elu(jnp.zeros(1), 0)
