"""Tables of betas against the papers' definitions and known numbers."""

import jax
import numpy as np
import pytest

from diffusion.process import betas, schedules
from diffusion.types import Schedule


def test_scaled_linear_is_linear_in_the_root():
  table = betas.scaled_linear()()
  assert (table.shape, table.dtype) == ((1000,), np.float64)
  np.testing.assert_allclose(table[[0, -1]], [0.00085, 0.012], rtol=1e-12)
  root = np.sqrt(table)
  np.testing.assert_allclose(np.diff(root), (root[-1] - root[0]) / 999, rtol=1e-9)
  np.testing.assert_allclose(
    betas.alpha_bars(table)[-1], 0.0047, atol=5e-5
  )  # its known, non-zero end


def test_cosine_follows_its_alpha_bar_until_the_cap():
  table = betas.cosine(4000)()
  i = np.arange(1, 4001) / 4000
  f = np.cos((i + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
  capped = table == 0.999
  assert capped.any()
  assert capped[-1]
  free = ~capped
  np.testing.assert_allclose(betas.alpha_bars(table)[free], f[free], rtol=1e-9)
  assert (np.diff(table) >= 0).all()
  # An offset and a cap of one's own.
  own = betas.cosine(20, 0.1, 0.6)()
  f = np.cos((np.arange(21) / 20 + 0.1) / 1.1 * np.pi / 2) ** 2
  np.testing.assert_allclose(own, np.minimum(1 - f[1:] / f[:-1], 0.6), rtol=1e-12)
  assert (own == 0.6).any()
  # The first beta of the 1,000-step table, printed in many codebases.
  np.testing.assert_allclose(betas.cosine(1000)()[0], 4.128422e-5, rtol=1e-5)


def test_zero_terminal_snr_keeps_the_first_step_and_ends_in_noise():
  table = betas.linear()()
  before, after = (np.sqrt(betas.alpha_bars(t)) for t in (table, betas.zero_terminal_snr(table)()))
  np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
  np.testing.assert_allclose(2 * np.log(after[-1]), -30, atol=1e-5)
  # The paper's limit: (root - root_T) root_1 / (root_1 - root_T), up to the e^-15 that is left.
  paper = (before - before[-1]) * before[0] / (before[0] - before[-1])
  np.testing.assert_allclose(after, paper, atol=3.1e-7)
  schedule = schedules.discrete(betas.zero_terminal_snr(table))
  with jax.enable_x64(True):
    np.testing.assert_allclose(schedule.log_snr((), 1.0), -30, atol=1e-4)


@pytest.mark.parametrize('make', [betas.linear, betas.scaled_linear, betas.cosine])
def test_a_table_made_a_schedule_is_the_same_table(make):
  table = make()
  again = betas.of(schedules.discrete(table), (), 1000)
  np.testing.assert_allclose(again, table(), rtol=1e-9)


def test_the_discrete_view_of_a_continuous_schedule_has_its_alpha_bars():
  """The limit of DDPM's table: 1,000 steps of the linear schedule agree with it to the size of a step."""
  table = betas.of(schedules.linear_beta(), (), 1000)
  abar = betas.alpha_bars(table)
  with jax.enable_x64(True):
    log_snr = np.asarray(schedules.linear_beta().log_snr((), jax.numpy.linspace(0, 1, 1000)))
  np.testing.assert_allclose(np.log(abar / (1 - abar)), log_snr, atol=1e-9)
  ddpm = betas.alpha_bars(betas.linear()())
  assert np.abs(abar - ddpm).max() < 2e-3
  # Of a schedule that learns, with what it has learned.
  line = Schedule(lambda key: None, lambda fall, t: 5 - fall * t)
  abar = betas.alpha_bars(betas.of(line, 8.0, 5))
  np.testing.assert_allclose(np.log(abar / (1 - abar)), [5, 3, 1, -1, -3], rtol=1e-9)
  for schedule in (schedules.cosine(), schedules.edm(), schedules.rectified_flow()):
    table = betas.of(schedule, (), 50)
    assert ((table > 0) & (table < 1)).all()


@pytest.mark.parametrize(
  'make, names',
  [
    (lambda: betas.cosine(1), 'steps .* got 1'),
    (lambda: betas.cosine(offset=-0.1), 'offset .* got -0.1'),
    (lambda: betas.cosine(largest=1.0), 'largest .* got 1.0'),
    (lambda: betas.scaled_linear(first=-1e-3), 'first'),
    (lambda: betas.zero_terminal_snr(betas.linear(), -5.0), 'log_snr_min .* got -5.0'),
    (lambda: betas.zero_terminal_snr(betas.linear(), -50.0), 'log_snr_min .* got -50.0'),
    (lambda: betas.of(schedules.cosine(), (), 1), 'steps .* got 1'),
    (lambda: betas.alpha_bars(np.array([0.1, 2.0])), r'betas\[1\]'),
  ],
)
def test_bad_arguments_are_named_with_their_value(make, names):
  with pytest.raises(ValueError, match=names):
    make()
