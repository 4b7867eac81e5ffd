"""Rows of the catalogue: loss."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import rng
from diffusion.objectives import losses, penalties, weights
from diffusion.types import Batch, Context, Marginal, Prediction
from tests.cases.base import TREE, Case, differs, fields, rising, same

TERMS = {'denoise': (1.0, losses.denoising(weights.uniform()))}
LEVELS = jnp.array([-6.0, 0.0, 6.0])
SNR = np.exp(np.asarray(LEVELS))


def live_weight(made, expected):
  """Its ratios to the uniform eps-weight at log-SNR -6, 0, 6, up to a factor."""
  w = np.asarray(made(LEVELS)) / np.asarray(weights.uniform()(LEVELS))
  np.testing.assert_allclose(w / w[1], np.asarray(expected) / expected[1], rtol=1e-4)


def context(error=1.0, slope=-2.0, params=None):
  """A context of three rows whose eps is missed by `error`, at log-SNR 0."""
  eps = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
  alpha = jnp.full(3, 0.5**0.5)
  z = alpha[0] * eps

  def predict(z):
    return Prediction(error * z, z / alpha[0] + error)

  return Context(
    params=params,
    batch=Batch(jnp.zeros((3, 4)), jnp.zeros(3, int), jnp.zeros((3, 0)), jnp.arange(3)),
    eps=eps,
    z=z,
    t=jnp.full(3, 0.5),
    log_snr=jnp.zeros(3),
    slope=jnp.full(3, slope),
    marginal=Marginal(alpha, alpha),
    prediction=predict(z),
    predict=predict,
    keys=rng.row_keys(jax.random.key(0), jnp.arange(3)),
  )


def live_denoising():
  term = losses.denoising(weights.uniform())
  rising(-1e-6, *(term.apply((), context(e)).mean() for e in (0.0, 0.5, 1.0)))
  np.testing.assert_allclose(term.apply((), context(0.5)), 0.25, rtol=1e-5)


def live_bound():
  term = losses.weighted_bound(weights.uniform())
  rising(0, *(term.apply((), context(slope=s)).mean() for s in (-1.0, -2.0, -4.0)))


def live_uncertain():
  term, plain = losses.uncertain(weights.uniform()), losses.denoising(weights.uniform())
  params = term.init(jax.random.key(0))
  np.testing.assert_allclose(term.apply(params, context()), plain.apply((), context()), rtol=1e-6)
  certain = params | {'offset': jnp.asarray(-1.0)}  # of a loss of 1 it is too certain: dearer
  rising(term.apply(params, context()).mean(), term.apply(certain, context()).mean())


def live_sliced():
  differs(losses.sliced().apply((), context(0.0)), losses.sliced().apply((), context(1.0)))


def live_penalty(make):
  """It rises with the kernels, and nothing else counts."""
  small, large = (
    make().apply((), context(params=jax.tree.map(lambda w, s=s: s * w, TREE))).mean()
    for s in (1, 2)
  )
  rising(0, small, large)
  same(make().apply((), context(params={'a': {'bias': jnp.ones(2)}})), 0)


def live_jacobian():
  rising(-1e-6, *(penalties.jacobian().apply((), context(e)).mean() for e in (0.0, 0.5, 1.0)))


TABLE = (
  Case(weights.uniform, live=lambda: live_weight(weights.uniform('v'), (1 + SNR) / SNR),
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.denoising(weights.uniform('v')))}),
    proof='tests/objectives/test_weights.py::test_uniform_is_the_plain_mean_squared_error_of_its_loss'),
  Case(weights.snr, live=lambda: live_weight(weights.snr('x0'), np.ones(3)),
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.denoising(weights.snr('x0')))}),
    proof='tests/objectives/test_weights.py::test_snr_weight_is_the_snr_times_its_loss'),
  Case(weights.min_snr, live=lambda: live_weight(weights.min_snr(5.0), np.minimum(SNR, 5) / SNR),
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.denoising(weights.min_snr(5.0)))}),
    proof='tests/objectives/test_weights.py::test_min_snr_in_its_three_forms'),
  Case(weights.truncated_snr, live=lambda: live_weight(weights.truncated_snr(), np.maximum(SNR, 1) / SNR),
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.denoising(weights.truncated_snr()))}),
    proof='tests/objectives/test_weights.py::test_truncated_snr_is_the_larger_of_two_losses'),
  Case(weights.edm, live=lambda: live_weight(weights.edm(0.5), (1 / SNR + 0.25) / (0.25 / SNR) / SNR),
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.denoising(weights.edm(0.5)))}),
    proof='tests/objectives/test_weights.py::test_edm_weight_makes_the_loss_that_of_the_preconditioned_network'),
  Case(weights.p2, live=lambda: live_weight(weights.p2(), 1 / (1 + SNR)),
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.denoising(weights.p2()))}),
    proof='tests/objectives/test_weights.py::test_p2_and_sigmoid_by_their_formulas'),
  Case(weights.sigmoid, live=lambda: live_weight(weights.sigmoid(2.0), 1 / (1 + np.exp(np.asarray(LEVELS) - 2))),
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.denoising(weights.sigmoid(2.0)))}),
    proof='tests/objectives/test_weights.py::test_p2_and_sigmoid_by_their_formulas'),
  Case(losses.denoising, live=live_denoising,
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.denoising(weights.uniform()))}),
    proof='tests/objectives/test_losses.py::test_objective_is_the_same_in_every_parameterization'),
  Case(losses.weighted_bound, live=live_bound,
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.weighted_bound(weights.uniform()))}),
    proof='tests/objectives/test_losses.py::test_weighted_bound_is_half_the_slope_times_the_weighted_eps_loss'),
  Case(losses.uncertain, live=live_uncertain,
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.uncertain(weights.uniform()))}),
    proof='tests/objectives/test_losses.py::test_learned_uncertainty_finds_the_log_of_the_loss'),
  Case(losses.sliced, live=live_sliced,
    turn_on=lambda: fields(terms={'denoise': (1.0, losses.sliced())}),
    proof='tests/objectives/test_losses.py::test_sliced_score_matching_is_half_the_score_error_up_to_a_constant'),
  Case(penalties.l1, live=lambda: live_penalty(penalties.l1),
    turn_on=lambda: fields(terms={**TERMS, 'l1': (1e-5, penalties.l1())}),
    proof='tests/objectives/test_penalties.py::test_l1_and_l2_are_sums_over_kernels_alone'),
  Case(penalties.l2, live=lambda: live_penalty(penalties.l2),
    turn_on=lambda: fields(terms={**TERMS, 'l2': (1e-5, penalties.l2())}),
    proof='tests/objectives/test_penalties.py::test_l1_and_l2_are_sums_over_kernels_alone'),
  Case(penalties.jacobian, live=live_jacobian,
    turn_on=lambda: fields(terms={**TERMS, 'jacobian': (1e-5, penalties.jacobian())}),
    proof='tests/objectives/test_penalties.py::test_jacobian_of_exact_denoisers_in_closed_form'),
)  # fmt: skip
