"""Rows of the catalogue: loss."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import rng
from diffusion.objectives import losses, penalties, weights
from diffusion.types import Batch, Context, Marginal, Prediction
from tests.cases.base import TREE, add, differs, rising, same

LEVELS = jnp.array([-6.0, 0.0, 6.0])
SNR = np.exp(np.asarray(LEVELS))


def live_weight(make, expected):
  """Its ratios to the uniform eps-weight at log-SNR -6, 0, 6, up to a factor."""

  def live():
    w = np.asarray(make(LEVELS)) / np.asarray(weights.uniform()(LEVELS))
    np.testing.assert_allclose(w / w[1], np.asarray(expected) / expected[1], rtol=1e-4)

  return live


for name, line, made, expected in (
  ('uniform', "weights.uniform('v')", weights.uniform('v'), (1 + SNR) / SNR),
  ('snr', "weights.snr('x0')", weights.snr('x0'), np.ones(3)),
  ('min_snr', 'weights.min_snr(5.0)', weights.min_snr(5.0), np.minimum(SNR, 5) / SNR),
  ('truncated_snr', 'weights.truncated_snr()', weights.truncated_snr(), np.maximum(SNR, 1) / SNR),
  ('edm', 'weights.edm(0.5)', weights.edm(0.5), (1 / SNR + 0.25) / (0.25 / SNR) / SNR),
  ('p2', 'weights.p2()', weights.p2(), 1 / (1 + SNR)),
  ('sigmoid', 'weights.sigmoid(2.0)', weights.sigmoid(2.0), 1 / (1 + np.exp(np.asarray(LEVELS) - 2))),
):  # fmt: skip
  where = {
    'uniform': 'test_uniform_is_the_plain_mean_squared_error_of_its_loss',
    'snr': 'test_snr_weight_is_the_snr_times_its_loss',
    'min_snr': 'test_min_snr_in_its_three_forms',
    'truncated_snr': 'test_truncated_snr_is_the_larger_of_two_losses',
    'edm': 'test_edm_weight_makes_the_loss_that_of_the_preconditioned_network',
  }.get(name, 'test_p2_and_sigmoid_by_their_formulas')
  add(
    f'objectives.weights.{name}', f"terms={{'denoise': (1.0, losses.denoising({line}))}}",
    f'objectives/test_weights.py::{where}', live_weight(made, expected),
  )  # fmt: skip


def context(error=1.0, slope=-2.0, params=None):
  """A context of three rows whose eps is missed by `error`, at log-SNR 0."""
  eps = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
  alpha = jnp.full(3, 0.5**0.5)
  z = alpha[0] * (jnp.zeros((3, 4)) + eps)
  batch = Batch(jnp.zeros((3, 4)), jnp.zeros(3, int), jnp.zeros((3, 0)), jnp.arange(3))

  def predict(z):
    return Prediction(error * z, z / alpha[0] + error)

  return Context(
    params, batch, eps, z, jnp.full(3, 0.5), jnp.zeros(3), jnp.full(3, slope), Marginal(alpha, alpha), predict(z),
    predict, rng.row_keys(jax.random.key(0), jnp.arange(3)),
  )  # fmt: skip


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


for name, line, live, where in (
  ('denoising', 'losses.denoising(weights.uniform())', live_denoising,
   'test_objective_is_the_same_in_every_parameterization'),
  ('weighted_bound', 'losses.weighted_bound(weights.uniform())', live_bound,
   'test_weighted_bound_is_half_the_slope_times_the_weighted_eps_loss'),
  ('uncertain', 'losses.uncertain(weights.uniform())', live_uncertain,
   'test_learned_uncertainty_finds_the_log_of_the_loss'),
  ('sliced', 'losses.sliced()', live_sliced,
   'test_sliced_score_matching_is_half_the_score_error_up_to_a_constant'),
):  # fmt: skip
  add(
    f'objectives.losses.{name}', f"terms={{'denoise': (1.0, {line})}}", f'objectives/test_losses.py::{where}', live
  )  # fmt: skip


def live_penalty(make):
  def live():
    small, large = (
      make().apply((), context(params=jax.tree.map(lambda w, s=s: s * w, TREE))).mean()
      for s in (1, 2)
    )
    rising(0, small, large)
    same(make().apply((), context(params={'a': {'bias': jnp.ones(2)}})), 0)  # kernels alone

  return live


def live_jacobian():
  rising(-1e-6, *(penalties.jacobian().apply((), context(e)).mean() for e in (0.0, 0.5, 1.0)))


for name, live, where in (
  ('l1', live_penalty(penalties.l1), 'test_l1_and_l2_are_sums_over_kernels_alone'),
  ('l2', live_penalty(penalties.l2), 'test_l1_and_l2_are_sums_over_kernels_alone'),
  ('jacobian', live_jacobian, 'test_jacobian_of_exact_denoisers_in_closed_form'),
):
  add(
    f'objectives.penalties.{name}',
    f"terms={{'denoise': (1.0, losses.denoising(weights.uniform())), '{name}': (1e-5, penalties.{name}())}}",
    f'objectives/test_penalties.py::{where}', live,
  )  # fmt: skip
