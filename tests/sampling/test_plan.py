"""The plan of sampling by itself: what it costs, what it refuses, and that it draws nothing to find out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import citations, rng
from diffusion.process import gaussian, marginals, parameterizations, schedules
from diffusion.sampling import grids, guidance, plan, samplers, solvers, wrappers
from diffusion.sampling.plan import Sampling
from diffusion.types import Prediction

DIFFUSION = gaussian.Diffusion(
  schedules.cosine(), marginals.variance_preserving, parameterizations.v()
)


def check(sampling, num_classes=2, shape=(8,)):
  plan.check(sampling, DIFFUSION, num_classes)
  return plan.evaluations(sampling, DIFFUSION, shape)


@pytest.mark.parametrize(
  'changes',
  [
    {}, {'guidance': 2.0}, {'guidance': 0.0}, {'sampler': solvers.heun}, {'guidance': 2.0, 'sampler': solvers.heun},
    {'guidance': 2.0, 'interval': (-2.0, 2.0)}, {'guidance': 2.0, 'interval': (50.0, 60.0)},
    {'sampler': solvers.dpm_solver, 'grid': grids.karras},
  ],
)  # fmt: skip
def test_it_counts_the_calls_that_a_sample_makes(changes):
  """Against the calls themselves: each evaluation asks the conditional network, a guided one the null network too."""
  sampling = Sampling(steps=6, wrappers=(), **changes)
  path = gaussian.bind(DIFFUSION, ())
  asked = []  # of (network, t): outside of an interval one evaluation is written down twice

  def network(name):
    def denoise(z, t, key=None):
      asked.append((name, float(jnp.ravel(t)[0])))
      return Prediction(0.1 * z, z)

    return denoise

  with jax.disable_jit():  # the scan becomes a loop: every call is a call
    keys = jax.random.split(jax.random.key(0), 1)
    planned = plan.plan(
      sampling, path, network('conditional'), network('null'), keys, jnp.arange(1)
    )
    samplers.sample(planned.denoise, path, planned.sampler, planned.grid, keys, (8,))
  calls = asked if sampling.interval is None else set(asked)
  assert check(sampling) == len(calls)


@pytest.mark.parametrize('draws', [1, 3])
def test_every_network_of_monte_carlo_counts(draws):
  assert check(Sampling(steps=5, monte_carlo=draws)) == 5 * draws
  assert check(Sampling(steps=5, monte_carlo=draws, guidance=2.0)) == 10 * draws
  inside = Sampling(steps=6, monte_carlo=draws, guidance=2.0, interval=(-2.0, 2.0))
  assert check(inside) == (6 + 3) * draws  # log-SNR is 0 and 2 log tan(pi / 3) there
  # Two calls of each step but the last, wherever an interval holds all levels.
  heun = Sampling(solvers.heun, 6, monte_carlo=draws, guidance=2.0, interval=(-50.0, 50.0))
  assert check(heun) == 2 * 11 * draws


def test_both_branches_of_guidance_are_thinned_alike():
  """Told the same keys, those of each draw and each sample being others."""
  told = {'label': [], 'null': []}

  def branch(name):
    def denoise(z, t, key=None):
      told[name].append(jax.random.key_data(key))
      return Prediction(z, z)

    return denoise

  path = gaussian.bind(DIFFUSION, ())
  keys, number = rng.row_keys(jax.random.key(0), jnp.arange(3)), jnp.arange(3)
  sampling = Sampling(steps=2, guidance=2.0, monte_carlo=2, wrappers=())
  planned = plan.plan(sampling, path, branch('label'), branch('null'), keys, number)
  planned.denoise(jnp.zeros((3, 2)), jnp.full(3, 0.5))
  np.testing.assert_array_equal(told['label'], told['null'])
  assert np.unique(np.reshape(told['label'], (6, -1)), axis=0).shape[0] == 6


def test_an_unconditional_network_cannot_be_guided_and_needs_no_guidance():
  assert check(Sampling(steps=5), num_classes=0) == 5
  for scale in (0.0, 2.0):
    with pytest.raises(ValueError, match=f'unconditional network must be 1, got {scale}'):
      check(Sampling(guidance=scale), num_classes=0)


@pytest.mark.parametrize(
  'changes, says',
  [
    ({'steps': 0}, 'sampling_steps must be an integer >= 1, got 0'),
    ({'guidance': -1.0}, 'guidance .* got -1.0'),
    ({'guidance': 2.0, 'interval': (1.0, -1.0)}, 'log_snr_low < log_snr_high, got 1.0, -1.0'),
    ({'grid': lambda path, steps: jnp.array([1.0, 0.2, 0.4, 0.0])}, 'must decrease'),
    ({'sampler': lambda path: samplers.ddim(path, eta=3.0)}, 'eta .* got 3.0'),
  ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(changes, says):
  with pytest.raises(ValueError, match=says):
    check(Sampling(**changes))


def test_a_grid_that_is_asked_for_goes_before_the_samplers_own_and_that_before_uniform_time():
  path = gaussian.bind(DIFFUSION, ())

  def times(**given):
    planned = plan.plan(Sampling(steps=6, **given), path, None, None, None, jnp.arange(1))
    return planned.grid

  own = solvers.dpm_solver(path).grid
  assert own is not None
  asked = times(sampler=solvers.dpm_solver, grid=grids.karras)
  np.testing.assert_array_equal(asked, grids.karras(path, 6))
  np.testing.assert_array_equal(times(sampler=solvers.dpm_solver), own(path, 6))
  np.testing.assert_array_equal(times(sampler=samplers.ddim), grids.uniform_time(path, 6))
  assert np.abs(asked - own(path, 6)).max() > 1e-3


def test_it_notes_what_it_plans_and_nothing_that_is_off():
  def planned(sampling):
    return {one.name for one in citations.techniques(plan.rehearsed(sampling, DIFFUSION)[1])}

  more = planned(Sampling(guidance=1.5, interval=(-3.0, 3.0), monte_carlo=2)) - planned(Sampling())
  assert {'classifier-free guidance', 'guidance interval'} <= more
  assert len(more) == 3  # and the Monte-Carlo dropout


def test_every_grid_of_the_room_is_found_by_name_and_walks():
  path = gaussian.bind(DIFFUSION, ())
  assert set(plan.grid_names()) == {
    'geometric',
    'karras',
    'quadratic_time',
    'uniform_log_snr',
    'uniform_time',
  }
  for name in plan.grid_names():
    assert plan.grid(name)(path, 7).shape == (8,)
  with pytest.raises(ValueError, match="unknown sampler_grid 'kerras': the nearest is 'karras'"):
    plan.grid('kerras')


@pytest.mark.parametrize('mask_rows', [1, 3])
def test_each_sample_gets_back_exactly_what_is_known_of_it(mask_rows):
  path = gaussian.bind(DIFFUSION, ())
  random = np.random.default_rng(0)
  known = random.normal(size=(3, 4)).astype(np.float32)
  mask = random.random((mask_rows, 4)) < 0.5
  sampling = Sampling(lambda p: wrappers.inpaint(p, samplers.ancestral(p), known, mask), steps=4)
  number = jnp.array([5, 0, 1, 4])
  keys = rng.row_keys(jax.random.key(0), number)

  def zero(z, t, key=None):
    return Prediction(jnp.zeros_like(z), z)

  planned = plan.plan(sampling, path, zero, zero, keys, number)
  found = np.asarray(
    samplers.sample(planned.denoise, path, planned.sampler, planned.grid, keys, (4,))
  )
  shown = np.broadcast_to(mask, known.shape)[number % 3]
  np.testing.assert_array_equal(found[shown], known[number % 3][shown])
  np.testing.assert_array_equal(found[~shown], 0)  # what the denoiser says


def test_a_corrector_around_what_differs_by_sample_is_kept():
  known = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)

  def corrected(path):
    inner = wrappers.inpaint(path, samplers.ddim(path), known, np.array([[True, False]]))
    return wrappers.predictor_corrector(path, inner, corrections=2)

  # Each of the three steps before the last one: one call of DDIM, and one a correction.
  assert plan.evaluations(Sampling(corrected, steps=4), DIFFUSION, (2,)) == 3 * 3 + 1


def test_a_run_is_told_of_steps_that_are_few_for_its_sampler():
  assert plan.too_few(Sampling(solvers.heun, 10), DIFFUSION) == ''
  assert 'sampling_steps = 9 are few' in plan.too_few(Sampling(solvers.heun, 9), DIFFUSION)
  zero = DIFFUSION._replace(
    schedule=schedules.cosine(log_snr_min=-30.0)
  )  # 2 pi / sin(pi u) is its slope
  assert 'poor below 34222 steps' in plan.too_few(Sampling(solvers.euler_maruyama, 1000), zero)
  assert plan.too_few(Sampling(solvers.euler_maruyama, 20), DIFFUSION) == ''
  assert 'poor below 20 steps' in plan.too_few(Sampling(solvers.euler_maruyama, 19), DIFFUSION)
  exploding = DIFFUSION._replace(schedule=schedules.edm(), process=marginals.variance_exploding)
  assert 'poor below 80 steps' in plan.too_few(Sampling(solvers.euler, 79), exploding)
  assert plan.too_few(Sampling(solvers.euler, 80), exploding) == ''
  assert plan.too_few(Sampling(solvers.euler, 1), DIFFUSION) == ''


def test_a_tempered_score_is_not_taken_for_a_threshold():
  def tempered(clip):
    return lambda d, p: guidance.score_temperature(guidance.clip_x0(d, p, -clip, clip), p, 0.9)

  plan.check_range(Sampling(wrappers=(tempered(1.0),)), DIFFUSION, -1.0, 1.0)
  with pytest.raises(ValueError, match=r'static thresholding .* spans \[-1, 1\]'):
    plan.check_range(Sampling(wrappers=(tempered(0.9),)), DIFFUSION, -1.0, 1.0)


def test_each_threshold_must_hold_both_ends_of_the_data():
  def check_range(*ranges):
    wrap = [lambda d, p, ends=ends: guidance.clip_x0(d, p, *ends) for ends in ranges]
    plan.check_range(Sampling(wrappers=wrap), DIFFUSION, -0.5, 2.0)

  check_range((-0.5, 2.0), (-3.0, 5.0))
  for short in ((-0.4, 2.5), (-2.5, 1.9)):
    for ranges in ([short, (-3.0, 5.0)], [(-3.0, 5.0), short]):
      with pytest.raises(ValueError, match=r'would cut the data off, which spans \[-0.5, 2\]'):
        check_range(*ranges)
