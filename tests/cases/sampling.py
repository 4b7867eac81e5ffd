"""Rows of the catalogue: sampling."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import rng
from diffusion.sampling import ensembles, guidance, likelihood, samplers, solvers, wrappers
from diffusion.sampling.plan import Sampling
from diffusion.types import Prediction
from tests.cases.base import PATH, ROW_KEYS, Case, differs, fields, rising, same

DDIM = (samplers.ddim, 4)
# In lower case: the catalogue shows them by name.
known, mask = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 8, 8, 1)) > 0
Z, T = jnp.array([[2.0], [-3.0]]), jnp.full(2, 0.5)


def exact(z, t, key=None):
  """The denoiser of a standard normal: samples should be standard normal again."""
  m = PATH.marginal(t)
  alpha, sigma = m.alpha[:, None], m.sigma[:, None]
  return Prediction(alpha * z, sigma * z)


def weak(z, t, key=None):
  """One that falls short."""
  return Prediction(0.5 * exact(z, t).x0, 0.25 * exact(z, t).eps)


def walked(make, count=2000, steps=20, denoise=exact, dimensions=1):
  keys = rng.row_keys(jax.random.key(0), jnp.arange(count))
  grid = jnp.linspace(1.0, 0.0, steps + 1)
  run = jax.jit(
    lambda keys: samplers.sample(
      denoise, PATH, make(PATH), grid, keys, (dimensions,), denoise_last=False
    )
  )
  return np.asarray(run(keys))


def live_sampler(make, stochastic):
  """Samples of the right spread; of one start, several ends if and only if there is noise."""
  found = walked(make, steps=100)  # few steps of Heun's overshoot at the ends of the schedule
  np.testing.assert_allclose(found.std(), 1.0, atol=0.12)
  start = walked(samplers.ddim, steps=100)
  # A deterministic walk keeps the order of its starts; noise does not.
  order = np.corrcoef(found[:, 0], start[:, 0])[0, 1]
  assert (order < 0.99) == stochastic


def live_ancestral():
  """A sampler with noise, and cooler is narrower."""
  live_sampler(samplers.ancestral, stochastic=True)
  coolest, cool, plain = (
    walked(lambda p, s=s: samplers.ancestral(p, temperature=s)) for s in (0.0, 0.5, 1.0)
  )
  rising(0, coolest.std(), cool.std(), plain.std())


def live_langevin():
  on = walked(lambda p: wrappers.predictor_corrector(p, samplers.ddim(p), 1))
  np.testing.assert_allclose(on.std(), 1.0, atol=0.15)
  differs(on, walked(samplers.ddim))


def live_inpaint():
  first, given = jnp.full((200, 2), 0.7), jnp.array([1.0, 0.0]) > 0
  found = walked(
    lambda p: wrappers.inpaint(p, samplers.ddim(p), first, given), count=200, dimensions=2
  )
  np.testing.assert_allclose(found[:, 0], 0.7, atol=0.05)
  differs(found[:, 1], 0.7)


def live_guidance(make):
  """At scale 1 it is the denoiser, above it is farther from the weak one, below nearer."""
  same(make(exact, weak, 1.0)(Z, T).x0, exact(Z, T).x0)
  rising(*(jnp.abs(make(exact, weak, s)(Z, T).x0).sum() for s in (0.0, 1.0, 2.0, 4.0)))


def live_interval():
  made = guidance.in_interval(weak, exact, PATH, -2.0, 2.0)
  for t, chosen in ((0.5, weak), (0.02, exact), (0.98, exact)):
    same(made(Z, jnp.full(2, t)).x0, chosen(Z, jnp.full(2, t)).x0)


def live_temperature():
  def spread(temperature):
    return walked(samplers.ddim, denoise=guidance.score_temperature(exact, PATH, temperature)).std()

  rising(spread(0.5), spread(0.9), spread(1.3))
  same(guidance.score_temperature(exact, PATH, 1.0)(Z, T).eps, exact(Z, T).eps)


def live_clip():
  wide, narrow = (guidance.clip_x0(exact, PATH, -b, b)(Z, T).x0 for b in (100.0, 0.5))
  np.testing.assert_allclose(wide, exact(Z, T).x0, rtol=1e-5)
  assert np.abs(narrow).max() == 0.5


def live_threshold():
  z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 100)) * 3, jnp.float32)
  t = jnp.full(2, 0.1)
  on, off = guidance.threshold_x0(exact, PATH)(z, t).x0, exact(z, t).x0
  assert np.abs(on).max() <= 1 < np.abs(off).max()
  small = 0.01 * z
  np.testing.assert_allclose(
    guidance.threshold_x0(exact, PATH)(small, t).x0, exact(small, t).x0, atol=1e-6
  )


def live_monte_carlo():
  def thin(z, t, key=None):
    if key is None:
      return exact(z, t)
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 0.5, z.shape[1:]))(key)
    return Prediction(jnp.where(keep, 2 * z, 0), z)

  z, t = jnp.ones((200, 4)), jnp.full(200, 0.5)
  spread = [ensembles.monte_carlo(thin, ROW_KEYS, n)(z, t).x0.std() for n in (16, 4, 1)]
  rising(0, *spread)
  assert ensembles.monte_carlo(thin, ROW_KEYS, 0) is thin


def live_ensemble():
  on = ensembles.mean([exact, weak])(Z, T).x0
  np.testing.assert_allclose(on, 0.75 * exact(Z, T).x0, rtol=1e-6)
  same(ensembles.mean([exact])(Z, T).x0, exact(Z, T).x0)
  rising(0, *ensembles.disagreement([exact, weak], Z, T))


def live_flow():
  z = jnp.array([[0.5], [1.5]])
  found = likelihood.solve(exact, PATH, z).z
  np.testing.assert_allclose(found, z, atol=1e-3)  # the flow of a standard normal stands still
  differs(likelihood.solve(weak, PATH, z).z, z)


TABLE = (
  Case(samplers.ddim, live=lambda: live_sampler(samplers.ddim, stochastic=False),
    turn_on=lambda: fields(sampling=Sampling(samplers.ddim, steps=50)),
    proof='tests/sampling/test_samplers.py::test_ddim_of_a_gaussian_is_the_product_of_its_step_factors'),
  Case(samplers.ancestral, live=live_ancestral,
    turn_on=lambda: fields(sampling=Sampling(samplers.ancestral, steps=50)),
    proof='tests/sampling/test_samplers.py::test_few_stochastic_steps_have_the_moments_of_the_recursion'),
  Case(solvers.euler, live=lambda: live_sampler(solvers.euler, stochastic=False),
    turn_on=lambda: fields(sampling=Sampling(solvers.euler, steps=50)),
    proof='tests/sampling/test_solvers.py::test_order_of_convergence_on_the_probability_flow_of_a_mixture'),
  Case(solvers.euler_maruyama, live=lambda: live_sampler(solvers.euler_maruyama, stochastic=True),
    turn_on=lambda: fields(sampling=Sampling(solvers.euler_maruyama, steps=50)),
    proof='tests/sampling/test_solvers.py::test_a_thousand_stochastic_steps_reach_the_mixture'),
  Case(solvers.heun, live=lambda: live_sampler(solvers.heun, stochastic=False),
    turn_on=lambda: fields(sampling=Sampling(solvers.heun, steps=50)),
    proof='tests/sampling/test_solvers.py::test_order_of_convergence_on_the_probability_flow_of_a_mixture'),
  Case(solvers.dpm_solver, live=lambda: live_sampler(solvers.dpm_solver, stochastic=False),
    turn_on=lambda: fields(sampling=Sampling(solvers.dpm_solver, steps=50)),
    proof='tests/sampling/test_solvers.py::test_order_of_convergence_on_the_probability_flow_of_a_mixture'),
  Case(wrappers.predictor_corrector, live=live_langevin,
    turn_on=lambda: fields(
      sampling=Sampling(lambda p: wrappers.predictor_corrector(p, samplers.ancestral(p)), steps=50)),
    proof='tests/sampling/test_solvers.py::test_langevin_corrections_repair_a_coarse_predictor'),
  Case(wrappers.inpaint, live=live_inpaint,
    turn_on=lambda: fields(
      sampling=Sampling(lambda p: wrappers.inpaint(p, samplers.ddim(p), known, mask), steps=50)),
    proof='tests/sampling/test_solvers.py'
          '::test_inpainting_keeps_what_is_known_and_repeats_bring_the_rest_to_its_condition'),
  Case(guidance.classifier_free, live=lambda: live_guidance(guidance.classifier_free),
    turn_on=lambda: fields(sampling=Sampling(*DDIM, guidance=1.5)),
    proof='tests/sampling/test_guidance.py::test_guidance_follows_the_product_of_densities'),
  Case(guidance.autoguidance, live=lambda: live_guidance(guidance.autoguidance),
    turn_on=lambda: fields(sampling=Sampling(*DDIM, wrappers=[lambda d, p: guidance.autoguidance(d, weak, 1.5)])),
    proof='tests/sampling/test_guidance.py::test_autoguidance_extrapolates_from_the_weak_model'),
  Case(guidance.in_interval, live=live_interval,
    turn_on=lambda: fields(sampling=Sampling(*DDIM, guidance=1.5, interval=(-2.0, 3.0))),
    proof='tests/sampling/test_guidance.py::test_an_interval_guides_inside_and_leaves_the_rest'),
  Case(guidance.score_temperature, live=live_temperature,
    turn_on=lambda: fields(sampling=Sampling(*DDIM, wrappers=[lambda d, p: guidance.score_temperature(d, p, 0.9)])),
    proof='tests/sampling/test_solvers.py::test_score_temperature_is_not_the_temperature_of_the_data'),
  Case(guidance.clip_x0, live=live_clip,
    turn_on=lambda: fields(sampling=Sampling(*DDIM, wrappers=[guidance.clip_x0])),
    proof='tests/sampling/test_guidance.py::test_clip_keeps_x0_in_range_and_both_halves_of_z'),
  Case(guidance.threshold_x0, live=live_threshold,
    turn_on=lambda: fields(sampling=Sampling(*DDIM, wrappers=[guidance.threshold_x0])),
    proof='tests/sampling/test_guidance.py::test_dynamic_thresholding_by_hand'),
  Case(ensembles.monte_carlo, live=live_monte_carlo,
    turn_on=lambda: fields(sampling=Sampling(*DDIM, monte_carlo=4)),
    proof='tests/sampling/test_ensembles.py'
          '::test_monte_carlo_dropout_varies_by_key_keeps_its_mask_and_averages'),
  Case(ensembles.mean, live=live_ensemble,
    turn_on="diffusion.load_ensemble(['runs/a', 'runs/b']).sample(labels)",
    proof='tests/sampling/test_ensembles.py::test_the_mean_is_that_of_the_members_exactly'),
  Case(likelihood.solve, live=live_flow,
    turn_on='likelihood.solve(denoise, path, z)',
    proof='tests/sampling/test_likelihood.py::test_encode_then_decode_returns_the_input'),
)  # fmt: skip
