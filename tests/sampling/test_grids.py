"""Grids of times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.process import betas, gaussian, marginals, parameterizations, schedules
from diffusion.sampling import grids


def bound(schedule):
  diffusion = gaussian.Diffusion(schedule, marginals.variance_preserving, parameterizations.v())
  return gaussian.bind(diffusion, ())


@pytest.mark.parametrize('steps', [1, 2, 7, 1000])
def test_uniform_time_walks_down_in_equal_steps(steps):
  grid = np.asarray(grids.uniform_time(bound(COSINE), steps), np.float64)
  assert grid.shape == (steps + 1,)
  assert (grid[0], grid[-1]) == (1, 0)
  np.testing.assert_allclose(np.diff(grid), -1 / steps, atol=2e-7)


def test_uniform_time_with_the_table_of_ddpm_visits_its_steps(x64):
  """999 steps of t are the 1,000 rows of the table, last to first."""
  table = betas.linear()()
  path = bound(schedules.discrete(table))
  alpha = path.marginal(grids.uniform_time(bound(COSINE), 999)).alpha
  np.testing.assert_allclose(alpha**2, np.cumprod(1 - table)[::-1], rtol=1e-9)


@pytest.mark.parametrize('schedule', [schedules.cosine(), schedules.linear_beta()])
@pytest.mark.parametrize('steps, low, high', [(1, -4.0, 4.0), (10, -10.0, 9.0), (33, -1.0, 2.0)])
def test_uniform_log_snr_rises_in_equal_steps(schedule, steps, low, high, x64):
  path = bound(schedule)
  grid = grids.uniform_log_snr(path, steps, low, high)
  assert grid.shape == (steps + 1,)
  assert (np.diff(grid) < 0).all()
  log_snr = np.asarray(path.log_snr(grid))
  np.testing.assert_allclose(log_snr[[0, -1]], [low, high], atol=1e-9)
  np.testing.assert_allclose(np.diff(log_snr), (high - low) / steps, atol=1e-9)


def test_uniform_log_snr_may_use_the_whole_range():
  grid = np.asarray(grids.uniform_log_snr(bound(schedules.cosine()), 8, -15.0, 15.0))
  np.testing.assert_allclose(grid[[0, -1]], [1, 0], atol=3e-7)
  assert (np.diff(grid) < 0).all()


COSINE = schedules.cosine()


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda: grids.uniform_time(bound(COSINE), 0), 'sampling_steps .* got 0'),
    (lambda: grids.uniform_time(bound(COSINE), 2.0), 'sampling_steps .* got 2.0'),
    (lambda: grids.uniform_time(bound(COSINE), True), 'sampling_steps .* got True'),
    (lambda: grids.uniform_log_snr(bound(COSINE), -3, -1.0, 1.0), 'sampling_steps .* got -3'),
    (lambda: grids.uniform_log_snr(bound(COSINE), 3, 1.0, 1.0), 'low=1.0, high=1.0'),
    (lambda: grids.uniform_log_snr(bound(COSINE), 3, np.nan, 1.0), 'low=nan'),
    # Outside of the schedule's -15 to 15 there is no such time: an error, not the nearest end.
    (lambda: grids.uniform_log_snr(bound(COSINE), 3, -30.0, 1.0), 'low=-30.0'),
    (lambda: grids.uniform_log_snr(bound(COSINE), 3, 0.0, 20.0), 'high=20.0'),
  ],
)
def test_bad_arguments_are_named_with_their_value(make, names):
  with pytest.raises(ValueError, match=names):
    make()


def test_grid_is_in_jax():
  assert grids.uniform_time(bound(COSINE), 3).dtype == jnp.float32


def test_quadratic_time_is_the_square_of_uniform():
  grid = np.asarray(grids.quadratic_time(bound(COSINE), 20), np.float64)
  np.testing.assert_allclose(np.diff(np.sqrt(grid)), -1 / 20, atol=1e-6)
  assert (grid[0], grid[-1]) == (1, 0)


@pytest.mark.parametrize('steps', [2, 3, 18])
@pytest.mark.parametrize('schedule', [schedules.edm(), schedules.cosine()], ids=['edm', 'cosine'])
def test_karras_walks_the_root_of_sigma_in_equal_steps_and_then_to_the_end(schedule, steps, x64):
  path = bound(schedule)
  grid = grids.karras(path, steps)
  assert grid.shape == (steps + 1,)
  assert (grid[0], grid[-2], grid[-1]) == (1, 0, 0)
  for rho, times in ((7, grid), (3, grids.karras(path, steps, 3.0))):
    root = np.exp(-0.5 * np.asarray(path.log_snr(times[:-1]))) ** (1 / rho)
    np.testing.assert_allclose(np.diff(root), (root[-1] - root[0]) / (steps - 1), rtol=1e-6)


def test_karras_has_the_published_sigmas(x64):
  """N = 18 of the paper: its formula, written out."""
  path = bound(schedules.edm())
  i = np.arange(18)
  sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  found = np.exp(-0.5 * np.asarray(path.log_snr(grids.karras(path, 18)[:-1])))
  np.testing.assert_allclose(found, sigma, rtol=1e-8)


def test_one_karras_step_is_from_the_top_to_the_end():
  np.testing.assert_array_equal(grids.karras(bound(schedules.edm()), 1), [1, 0])


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda p: grids.karras(p, 0), 'sampling_steps .* got 0'),
    (lambda p: grids.karras(p, 5, rho=0.0), 'rho .* got 0.0'),
    (lambda p: grids.geometric(p, 0), 'sampling_steps .* got 0'),
    (lambda p: grids.geometric(p, 5, s_max=0.0), 's_max .* got 0.0'),
    (lambda p: grids.quadratic_time(bound(COSINE), 0), 'sampling_steps .* got 0'),
  ],
)
def test_bad_steps_of_the_other_grids_are_named(make, names):
  with pytest.raises(ValueError, match=names):
    make(bound(schedules.edm()))


@pytest.mark.parametrize(
  'steps, levels',
  [
    (1, [80]),
    (2, [80, 1 / 4]),
    (10, [80, *np.geomspace(16, 1 / 20, 9)]),
    (100, np.geomspace(80, 1 / 200, 100)),
  ],
)
@pytest.mark.parametrize(
  'schedule', [schedules.cosine(), schedules.cosine(log_snr_min=-60.0), schedules.edm()]
)
def test_geometric_keeps_the_ratio_of_levels_but_for_the_first_of_few(schedule, steps, levels, x64):
  path = bound(schedule)
  grid = grids.geometric(path, steps)
  assert grid.shape == (steps + 1,)
  assert grid[-1] == 0
  s = np.exp(-0.5 * np.asarray(path.log_snr(grid[:-1])))
  np.testing.assert_allclose(s, levels, rtol=1e-9)


def test_geometric_has_the_schedules_own_ends_where_it_does_not_reach_so_far():
  path = bound(schedules.cosine(-4.0, 4.0))
  grid = np.asarray(grids.geometric(path, 50))
  assert (grid[0], grid[-1]) == (1, 0)
  np.testing.assert_allclose(
    path.log_snr(jnp.asarray(grid)[jnp.array([0, -2])]), [-4, 4], atol=1e-4
  )


def test_geometric_follows_a_schedule_that_learns():
  schedule = schedules.learned()
  made = gaussian.Diffusion(schedule, marginals.variance_preserving, parameterizations.v())
  grid = jax.jit(lambda params: grids.geometric(gaussian.bind(made, params), 12))
  found = grid(schedule.init(jax.random.key(0)))
  assert found[0] == 1
  assert (np.diff(found) < 0).all()


def test_uniform_log_snr_takes_the_schedules_ends_for_those_that_are_not_given():
  path = bound(COSINE)
  for given, ends in (({}, (-15, 15)), ({'low': -4.0}, (-4, 15)), ({'high': 5.0}, (-15, 5))):
    np.testing.assert_allclose(
      grids.uniform_log_snr(path, 8, **given), grids.uniform_log_snr(path, 8, *ends), atol=1e-6
    )
