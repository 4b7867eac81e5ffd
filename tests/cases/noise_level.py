"""Rows of the catalogue: noise level."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.objectives import times
from diffusion.process import betas, gaussian
from diffusion.process import schedules as noise
from diffusion.types import Rows
from tests.cases.base import COSINE, PATH, REST, Case, differs, fields, rising, same

WHOLE = Rows(jnp.arange(512), 512)


def live_schedule(made, other=COSINE):
  """Log-SNR falls with t, and not as another schedule's does."""
  t = jnp.linspace(0.05, 0.95, 7)
  found, others = (one.log_snr(one.init(jax.random.key(0)), t) for one in (made, other))
  rising(*-found)
  differs(found, others, 0.05)


def drawn(made, state=None, progress=0.0):
  state = made.init() if state is None else state
  return made.draw(state, jax.random.key(1), WHOLE, jnp.asarray(progress), PATH)


def live_times(made, low, high):
  """The mean of t lies where the distribution has it."""
  t, _ = drawn(made)
  rising(low, np.mean(t), high)


def live_strata():
  """Uniform draws lie about the middle; those of strata leave more equal gaps."""

  def gaps(made):
    return np.diff(np.sort(np.asarray(drawn(made)[0]))).std()

  live_times(times.uniform(), 0.45, 0.55)
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


TABLE = (
  Case(noise.cosine, live=lambda: live_schedule(noise.cosine(), other=noise.linear_beta()),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.cosine(), *REST)),
    proof='tests/process/test_schedules.py::test_cosine_is_a_quarter_circle_walked_at_constant_speed'),
  Case(noise.linear_beta, live=lambda: live_schedule(noise.linear_beta()),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.linear_beta(), *REST)),
    proof='tests/process/test_schedules.py::test_linear_beta_solves_the_stochastic_differential_equation'),
  Case(noise.discrete, live=lambda: live_schedule(noise.discrete(betas.linear())),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.discrete(betas.linear()), *REST)),
    proof='tests/process/test_schedules.py::test_discrete_reproduces_the_table_of_ddpm'),
  Case(noise.sigmoid, live=lambda: live_schedule(noise.sigmoid()),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.sigmoid(), *REST)),
    proof='tests/process/test_schedules.py::test_sigmoid_is_the_difference_of_sigmoids'),
  Case(noise.geometric, live=lambda: live_schedule(noise.geometric()),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.geometric(), *REST)),
    proof='tests/process/test_schedules.py::test_geometric_and_edm_walk_sigma_as_they_say'),
  Case(noise.edm, live=lambda: live_schedule(noise.edm()),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.edm(), *REST)),
    proof='tests/process/test_schedules.py::test_geometric_and_edm_walk_sigma_as_they_say'),
  Case(noise.rectified_flow, live=lambda: live_schedule(noise.rectified_flow()),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.rectified_flow(), *REST)),
    proof='tests/process/test_schedules.py::test_rectified_flow_is_a_straight_line_walked_at_constant_speed'),
  Case(noise.shifted, live=lambda: live_schedule(noise.shifted(noise.cosine(), 2.0)),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.shifted(noise.cosine(), 2.0), *REST)),
    proof='tests/process/test_schedules.py::test_shifted_moves_log_snr_by_twice_the_log_of_its_factor'),
  Case(noise.learned, live=lambda: live_schedule(noise.learned()),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.learned(), *REST)),
    proof='tests/process/test_schedules.py::test_gradient_of_learned_is_that_of_finite_differences'),
  Case(betas.scaled_linear, live=lambda: live_schedule(noise.discrete(betas.scaled_linear())),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.discrete(betas.scaled_linear()), *REST)),
    proof='tests/process/test_betas.py::test_scaled_linear_is_linear_in_the_root'),
  Case(betas.cosine, live=lambda: live_schedule(noise.discrete(betas.cosine())),
    turn_on=lambda: fields(diffusion=gaussian.Diffusion(noise.discrete(betas.cosine()), *REST)),
    proof='tests/process/test_betas.py::test_cosine_follows_its_alpha_bar_until_the_cap'),
  Case(betas.zero_terminal_snr, live=lambda: live_schedule(noise.discrete(betas.zero_terminal_snr(betas.linear()))),
    turn_on=lambda: fields(
      diffusion=gaussian.Diffusion(noise.discrete(betas.zero_terminal_snr(betas.linear())), *REST)),
    proof='tests/process/test_betas.py::test_zero_terminal_snr_keeps_the_first_step_and_ends_in_noise'),
  Case(times.uniform, live=live_strata,
    turn_on=lambda: fields(times=times.uniform()),
    proof='tests/objectives/test_times.py::test_every_row_is_uniform_on_the_unit_interval'),
  Case(times.stratified, live=live_strata,
    turn_on=lambda: fields(times=times.stratified()),
    proof='tests/objectives/test_times.py::test_stratified_means_vary_less_than_uniform_ones'),
  Case(times.log_normal, live=lambda: live_times(times.log_normal(), 0.1, 0.4),
    turn_on=lambda: fields(times=times.log_normal()),
    proof='tests/objectives/test_times.py::test_log_normal_draws_sigma_log_normally_on_any_schedule'),
  Case(times.logit_normal, live=lambda: live_times(times.logit_normal(1.0), 0.6, 0.8),
    turn_on=lambda: fields(times=times.logit_normal(1.0)),
    proof='tests/objectives/test_times.py::test_logit_normal_draws_t_so'),
  Case(times.importance, live=live_importance,
    turn_on=lambda: fields(times=times.importance()),
    proof='tests/objectives/test_times.py::test_importance_follows_the_root_second_moment_and_keeps_the_mean'),
  Case(times.curriculum, live=live_by_progress,
    turn_on=lambda: fields(times=times.curriculum(times.stratified())),
    proof='tests/objectives/test_times.py::test_a_timestep_curriculum_opens_the_noisy_end_first_and_ends_as_its_base'),
  Case(times.curriculum_by_loss, live=live_by_loss,
    turn_on=lambda: fields(times=times.curriculum_by_loss(times.stratified())),
    proof='tests/objectives/test_times.py::test_a_curriculum_paced_by_loss_opens_when_the_loss_no_longer_falls'),
)  # fmt: skip
