"""Rows of the catalogue: sampling."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import rng
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.sampling import ensembles, guidance, likelihood, samplers, solvers, wrappers
from diffusion.types import Prediction
from tests.cases.base import add, differs, rising, same

PATH = gaussian.bind(
  gaussian.Diffusion(noise.cosine(), marginals.variance_preserving, parameterizations.v()), ()
)
ROW_KEYS = rng.row_keys(jax.random.key(0), jnp.arange(200))


def exact(z, t, key=None):
  """The denoiser of a standard normal: samples should be standard normal again."""
  m = PATH.marginal(t)
  alpha, sigma = m.alpha[:, None], m.sigma[:, None]
  return Prediction(alpha * z, sigma * z)


def walked(make, count=2000, steps=20, denoise=exact, dimensions=1):
  keys = rng.row_keys(jax.random.key(0), jnp.arange(count))
  grid = jnp.linspace(1.0, 0.0, steps + 1)
  run = jax.jit(
    lambda keys: samplers.sample(
      denoise, PATH, make(PATH), grid, keys, (dimensions,), denoise_last=False
    )
  )
  return np.asarray(run(keys))


def live_sampler(make, stochastic, temperature=None):
  """Samples of the right spread; of one start, several ends if and only if there is noise; cooler is narrower."""

  def live():
    found = walked(make, steps=100)  # few steps of Heun's overshoot at the ends of the schedule
    np.testing.assert_allclose(found.std(), 1.0, atol=0.12)
    start = np.asarray(walked(samplers.ddim, steps=100))
    # A deterministic walk keeps the order of its starts; noise does not.
    order = np.corrcoef(found[:, 0], start[:, 0])[0, 1]
    assert (order < 0.99) == stochastic
    if temperature is not None:
      rising(0, *(walked(lambda p, s=s: temperature(p, s)).std() for s in (0.0, 0.5, 1.0)))

  return live


for name, line, where, live in (
  ('samplers.ddim', 'samplers.ddim', 'samplers.py::test_ddim_of_a_gaussian_is_the_product_of_its_step_factors',
   live_sampler(samplers.ddim, False)),
  ('samplers.ancestral', 'samplers.ancestral',
   'samplers.py::test_few_stochastic_steps_have_the_moments_of_the_recursion',
   live_sampler(samplers.ancestral, True, lambda p, s: samplers.ancestral(p, temperature=s))),
  ('solvers.euler', 'solvers.euler', 'solvers.py::test_order_of_convergence_on_the_probability_flow_of_a_mixture',
   live_sampler(solvers.euler, False)),
  ('solvers.euler_maruyama', 'solvers.euler_maruyama', 'solvers.py::test_a_thousand_stochastic_steps_reach_the_mixture',
   live_sampler(solvers.euler_maruyama, True)),
  ('solvers.heun', 'solvers.heun', 'solvers.py::test_order_of_convergence_on_the_probability_flow_of_a_mixture',
   live_sampler(solvers.heun, False)),
  ('solvers.dpm_solver', 'solvers.dpm_solver',
   'solvers.py::test_order_of_convergence_on_the_probability_flow_of_a_mixture',
   live_sampler(solvers.dpm_solver, False)),
):  # fmt: skip
  add(f'sampling.{name}', f'sampling=Sampling({line}, steps=50)', f'sampling/test_{where}', live)


def live_langevin():
  def make(corrections):
    return lambda p: wrappers.predictor_corrector(p, samplers.ddim(p), corrections)

  off, on = walked(samplers.ddim), walked(make(1))
  np.testing.assert_allclose(on.std(), 1.0, atol=0.15)
  differs(on, off)


def live_inpaint():
  known, mask = jnp.full((200, 2), 0.7), jnp.array([1.0, 0.0]) > 0
  found = walked(
    lambda p: wrappers.inpaint(p, samplers.ddim(p), known, mask), count=200, dimensions=2
  )
  np.testing.assert_allclose(found[:, 0], 0.7, atol=0.05)
  differs(found[:, 1], 0.7)


add(
  'sampling.wrappers.predictor_corrector',
  'sampling=Sampling(lambda p: wrappers.predictor_corrector(p, samplers.ancestral(p)), steps=50)',
  'sampling/test_solvers.py::test_langevin_corrections_repair_a_coarse_predictor',
  live_langevin,
)
add(
  'sampling.wrappers.inpaint',
  'sampling=Sampling(lambda p: wrappers.inpaint(p, samplers.ddim(p), known, mask), steps=50)',
  'sampling/test_solvers.py::test_inpainting_keeps_what_is_known_and_repeats_bring_the_rest_to_its_condition',
  live_inpaint,
)

Z, T = jnp.array([[2.0], [-3.0]]), jnp.full(2, 0.5)


def other(z, t, key=None):
  return Prediction(0.5 * exact(z, t).x0, 0.25 * exact(z, t).eps)


def live_guidance(make):
  def live():
    same(make(exact, other, 1.0)(Z, T).x0, exact(Z, T).x0)
    rising(*(jnp.abs(make(exact, other, s)(Z, T).x0).sum() for s in (0.0, 1.0, 2.0, 4.0)))

  return live


def live_interval():
  made = guidance.in_interval(other, exact, PATH, -2.0, 2.0)
  for t, chosen in ((0.5, other), (0.02, exact), (0.98, exact)):
    same(made(Z, jnp.full(2, t)).x0, chosen(Z, jnp.full(2, t)).x0)


def live_temperature():
  rising(
    *(walked(samplers.ddim, denoise=guidance.score_temperature(exact, PATH, s)).std() for s in (0.5, 0.9, 1.3))
  )  # fmt: skip
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
  on = ensembles.mean([exact, other])(Z, T).x0
  np.testing.assert_allclose(on, 0.75 * exact(Z, T).x0, rtol=1e-6)
  same(ensembles.mean([exact])(Z, T).x0, exact(Z, T).x0)
  rising(0, *ensembles.disagreement([exact, other], Z, T))


def live_flow():
  z = jnp.array([[0.5], [1.5]])
  found = likelihood.solve(exact, PATH, z).z
  np.testing.assert_allclose(found, z, atol=1e-3)  # the flow of a standard normal stands still
  differs(likelihood.solve(other, PATH, z).z, z)


for name, line, where, live in (
  ('guidance.classifier_free', 'sampling=Sampling(..., guidance=1.5)',
   'guidance.py::test_guidance_follows_the_product_of_densities', live_guidance(guidance.classifier_free)),
  ('guidance.autoguidance', 'sampling=Sampling(..., wrappers=[lambda d, p: guidance.autoguidance(d, weak, 1.5)])',
   'guidance.py::test_autoguidance_extrapolates_from_the_weak_model', live_guidance(guidance.autoguidance)),
  ('guidance.in_interval', 'sampling=Sampling(..., guidance=1.5, interval=(-2.0, 3.0))',
   'guidance.py::test_an_interval_guides_inside_and_leaves_the_rest', live_interval),
  ('guidance.score_temperature',
   'sampling=Sampling(..., wrappers=[lambda d, p: guidance.score_temperature(d, p, 0.9)])',
   'solvers.py::test_score_temperature_is_not_the_temperature_of_the_data', live_temperature),
  ('guidance.clip_x0', 'sampling=Sampling(..., wrappers=[guidance.clip_x0])',
   'guidance.py::test_clip_keeps_x0_in_range_and_both_halves_of_z', live_clip),
  ('guidance.threshold_x0', 'sampling=Sampling(..., wrappers=[guidance.threshold_x0])',
   'guidance.py::test_dynamic_thresholding_by_hand', live_threshold),
  ('ensembles.monte_carlo', 'sampling=Sampling(..., monte_carlo=4)',
   'ensembles.py::test_monte_carlo_dropout_varies_by_key_keeps_its_mask_and_averages', live_monte_carlo),
  ('ensembles.mean', "launch.load_ensemble(['runs/a', 'runs/b']).sample(labels)",
   'ensembles.py::test_the_mean_is_that_of_the_members_exactly', live_ensemble),
  ('likelihood.solve', 'likelihood.solve(denoise, path, z)',
   'likelihood.py::test_encode_then_decode_returns_the_input', live_flow),
):  # fmt: skip
  add(f'sampling.{name}', line, f'sampling/test_{where}', live)
