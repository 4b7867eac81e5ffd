"""Penalties in closed form, in a real step, and gone when off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.objectives import losses, penalties, weights
from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules
from diffusion.runs.run import techniques
from diffusion.training import experiment as experiments
from diffusion.types import Context, Term
from tests.training import tiny

PARAMS = {
  'a': {'kernel': jnp.array([[1.0, -2.0], [0.5, 3.0]]), 'bias': jnp.array([100.0, 100.0])},
  'n': {'scale': jnp.array([50.0])},
  'e': {'embedding': jnp.array([[7.0]])},
}


def context(params=PARAMS, **changes):
  empty = dict.fromkeys(Context._fields) | {'params': params, 't': jnp.zeros(3)}
  return Context(**(empty | changes))


def test_l1_and_l2_are_sums_over_kernels_alone():
  np.testing.assert_allclose(penalties.l1().apply((), context()), [6.5] * 3)
  np.testing.assert_allclose(penalties.l2().apply((), context()), [0.5 * 14.25] * 3)


def test_their_gradients_are_the_sign_and_the_weight():
  for make, expected in ((penalties.l1, np.sign), (penalties.l2, np.asarray)):
    gradient = jax.grad(lambda p, m=make: m().apply((), context(p)).mean())(PARAMS)
    np.testing.assert_allclose(gradient['a']['kernel'], expected(PARAMS['a']['kernel']))
    for module, name in (('a', 'bias'), ('n', 'scale'), ('e', 'embedding')):
      assert (np.asarray(gradient[module][name]) == 0).all()


@pytest.mark.parametrize('log_snr', [-4.0, 0.0, 4.0])
def test_jacobian_of_exact_denoisers_in_closed_form(log_snr, x64):
  """One Gaussian: d x0 / d z is a known multiple of the identity. Two points: the trace of its square, by autodiff."""
  diffusion = gaussian.Diffusion(
    schedules.cosine(), marginals.variance_preserving, parameterizations.v()
  )
  path = gaussian.bind(diffusion, ())
  rows, t = 4000, float(path.time(jnp.asarray(log_snr)))
  marginal = path.marginal(jnp.full(rows, t))
  alpha, sigma = (float(c[0]) for c in marginal)
  keys = jax.random.split(jax.random.key(0), rows)

  def penalty(denoise, z):
    given = context(
      z=z,
      t=jnp.full(rows, t),
      marginal=marginal,
      keys=keys,
      predict=lambda z: denoise(z, jnp.full(rows, t)),
    )
    return np.asarray(penalties.jacobian().apply((), given))

  one = analytic.gaussian_mixture(path, np.ones(1), np.zeros((1, 3)), np.full(1, 0.7))
  slope = alpha * 0.49 / (alpha**2 * 0.49 + sigma**2)
  z = jax.random.normal(jax.random.key(1), (1, 3)) * jnp.ones((rows, 1))
  np.testing.assert_allclose(penalty(one, z), (sigma * slope) ** 2, rtol=1e-9)
  points = analytic.gaussian_mixture(
    path, np.full(2, 0.5), np.array([[1.0, 0.5, 0], [-1.0, 0, 0.5]]), np.zeros(2)
  )
  jacobian = jax.jacfwd(lambda y: points(y[None], jnp.full(1, t)).x0[0])(z[0])
  exact = sigma**2 * float((jacobian**2).sum()) / 3
  found = penalty(points, z)
  assert abs(found.mean() - exact) < 4.5 * found.std() / np.sqrt(rows) + 1e-9


def one_step(terms):
  made = tiny.experiment(terms={'denoise': (1.0, losses.denoising(weights.uniform('v'))), **terms})
  split, state, data = tiny.start(made)
  state, metrics = tiny.one_device(made, split)(state, data)
  return state, {name: np.asarray(value) for name, value in metrics.items()}


@pytest.mark.parametrize('make', [penalties.l1, penalties.l2, penalties.jacobian])
def test_each_is_live_in_a_step_and_off_is_exactly_off(make):
  plain, metrics = one_step({})
  off, off_metrics = one_step({'penalty': (0.0, make())})
  on, on_metrics = one_step({'penalty': (0.1, make())})
  for path, leaf in tiny.leaves(plain).items():
    np.testing.assert_array_equal(tiny.leaves(off)[path], leaf)
  assert metrics.keys() == off_metrics.keys()
  assert on_metrics['loss/penalty'] > 0
  np.testing.assert_allclose(
    on_metrics['loss'], metrics['loss'] + 0.1 * on_metrics['loss/penalty'], rtol=1e-5
  )
  # In the gradient that Adam has seen: its first step is of the sign alone.
  seen, without = (tiny.leaves(state.optimizer['direction'].mu) for state in (on, plain))
  assert max(np.abs(seen[path] - leaf).max() for path, leaf in without.items()) > 1e-5


def test_a_term_that_is_off_is_not_counted_as_used():
  uncertain = losses.uncertain(weights.uniform('v'))
  made = tiny.experiment(
    terms={
      'denoise': (1.0, losses.denoising(weights.uniform('v'))),
      'l1': (0.0, penalties.l1()),
      'l2': (0.1, penalties.l2()),
      # A user's function around a term changes nothing of this.
      'wrapped': (0.0, Term(uncertain.init, lambda p, context: 2 * uncertain.apply(p, context))),
    }
  )
  names = {one.name for one in techniques(made)}
  assert 'L2 penalty' in names
  assert not {'L1 penalty', 'learned uncertainty'} & names
  on = made._replace(terms=made.terms | {'wrapped': (0.5, made.terms['wrapped'][1])})
  assert {one.name for one in techniques(on)} - names == {
    'learned uncertainty',
  } - names  # fmt: skip


def test_an_experiment_whose_terms_are_all_off_is_refused():
  with pytest.raises(ValueError, match='no term of the loss is on'):
    experiments.check(tiny.experiment(terms={'l1': (0.0, penalties.l1())}))
