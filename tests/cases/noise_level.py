"""Rows of the catalogue: noise level."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.objectives import times
from diffusion.process import betas, gaussian, marginals, parameterizations  # noqa: F401 - in lines
from diffusion.process import schedules as noise
from diffusion.types import Rows
from tests.cases.base import add, differs, rising, same


def live_schedule(made):
  """Log-SNR falls with t, and not as the cosine's does."""

  def live():
    t = jnp.linspace(0.05, 0.95, 7)
    found = np.asarray(made.log_snr(made.init(jax.random.key(0)), t))
    rising(*-found)
    if made is not PLAIN:
      differs(found, PLAIN.log_snr((), t), 0.05)

  return live


PLAIN = noise.cosine()
for name, line, where in (
  ('schedules.cosine', 'noise.cosine()', 'schedules.py::test_cosine_is_a_quarter_circle_walked_at_constant_speed'),
  ('schedules.linear_beta', 'noise.linear_beta()',
   'schedules.py::test_linear_beta_solves_the_stochastic_differential_equation'),
  ('schedules.discrete', 'noise.discrete(betas.linear())', 'schedules.py::test_discrete_reproduces_the_table_of_ddpm'),
  ('schedules.sigmoid', 'noise.sigmoid()', 'schedules.py::test_sigmoid_is_the_difference_of_sigmoids'),
  ('schedules.geometric', 'noise.geometric()', 'schedules.py::test_geometric_and_edm_walk_sigma_as_they_say'),
  ('schedules.edm', 'noise.edm()', 'schedules.py::test_geometric_and_edm_walk_sigma_as_they_say'),
  ('schedules.rectified_flow', 'noise.rectified_flow()',
   'schedules.py::test_rectified_flow_is_a_straight_line_walked_at_constant_speed'),
  ('schedules.shifted', 'noise.shifted(noise.cosine(), 2.0)',
   'schedules.py::test_shifted_moves_log_snr_by_twice_the_log_of_its_factor'),
  ('schedules.learned', 'noise.learned()', 'schedules.py::test_gradient_of_learned_is_that_of_finite_differences'),
  ('betas.scaled_linear', 'noise.discrete(betas.scaled_linear())',
   'betas.py::test_scaled_linear_is_linear_in_the_root'),
  ('betas.cosine', 'noise.discrete(betas.cosine())', 'betas.py::test_cosine_follows_its_alpha_bar_until_the_cap'),
  ('betas.zero_terminal_snr', 'noise.discrete(betas.zero_terminal_snr(betas.linear()))',
   'betas.py::test_zero_terminal_snr_keeps_the_first_step_and_ends_in_noise'),
):  # fmt: skip
  made = PLAIN if line == 'noise.cosine()' else eval(line)
  add(
    f'process.{name}',
    f'diffusion=gaussian.Diffusion({line}, ...)',
    f'process/test_{where}',
    live_schedule(made),
  )

PATH = gaussian.bind(
  gaussian.Diffusion(PLAIN, marginals.variance_preserving, parameterizations.v()), ()
)
WHOLE = Rows(jnp.arange(512), 512)


def drawn(made, state=None, progress=0.0):
  state = made.init() if state is None else state
  return made.draw(state, jax.random.key(1), WHOLE, jnp.asarray(progress), PATH)


def live_times(made, low, high):
  """The mean of t lies where the distribution has it."""

  def live():
    t, _ = drawn(made)
    rising(low, np.mean(t), high)

  return live


def gaps(made):
  return np.diff(np.sort(np.asarray(drawn(made)[0]))).std()


def live_uniform():
  live_times(times.uniform(), 0.45, 0.55)()
  rising(gaps(times.stratified()), gaps(times.uniform()))


def live_importance():
  made = times.importance(buckets=4)
  state, t = made.init(), (jnp.arange(512) + 0.5) / 512
  for _ in range(5):
    state = made.update(state, t, jnp.where(t > 0.75, 9.0, 1.0), lambda tree: tree)
  t, weight = drawn(made, state)
  rising(np.mean(drawn(made)[0] > 0.75), np.mean(t > 0.75))
  rising(np.mean(weight[t > 0.75]), np.mean(weight[t < 0.75]))


def live_by_progress():
  made = times.curriculum(times.stratified())
  rising(*(-np.mean(drawn(made, progress=p)[0]) for p in (0.0, 0.2, 0.4)))
  same(drawn(made, progress=0.5)[0], drawn(times.stratified())[0])


def live_by_loss():
  made = times.curriculum_by_loss(times.stratified(), patience=2)
  state = made.init()
  for _ in range(200):
    state = made.update(state, jnp.zeros(4), jnp.ones(4), lambda tree: tree)
  rising(-np.mean(drawn(made)[0]), -np.mean(drawn(made, state)[0]))
  same(drawn(made, state)[0], drawn(times.stratified())[0])


for name, line, where, live in (
  ('uniform', 'times.uniform()', 'test_every_row_is_uniform_on_the_unit_interval', live_uniform),
  ('stratified', 'times.stratified()', 'test_stratified_means_vary_less_than_uniform_ones', live_uniform),
  ('log_normal', 'times.log_normal()', 'test_log_normal_draws_sigma_log_normally_on_any_schedule',
   live_times(times.log_normal(), 0.1, 0.4)),
  ('logit_normal', 'times.logit_normal(1.0)', 'test_logit_normal_draws_t_so',
   live_times(times.logit_normal(1.0), 0.6, 0.8)),
  ('importance', 'times.importance()', 'test_importance_follows_the_root_second_moment_and_keeps_the_mean',
   live_importance),
  ('curriculum', 'times.curriculum(times.stratified())',
   'test_a_timestep_curriculum_opens_the_noisy_end_first_and_ends_as_its_base', live_by_progress),
  ('curriculum_by_loss', 'times.curriculum_by_loss(times.stratified())',
   'test_a_curriculum_paced_by_loss_opens_when_the_loss_no_longer_falls', live_by_loss),
):  # fmt: skip
  add(f'objectives.times.{name}', f'times={line}', f'objectives/test_times.py::{where}', live)
