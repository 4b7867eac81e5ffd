"""Stability from the rows of a run: spikes planted in a noisy loss are counted and timed, and noise is not."""

import math

import numpy as np
import pytest

from diffusion.evaluation import stability


def falling(seed=0, n=300):
  steps = 10 * np.arange(1, n + 1)
  noise = np.random.default_rng(seed).normal(0, 0.1, n)
  return steps, np.exp(-np.linspace(0, 2, n) + noise)


def test_noise_about_a_falling_loss_has_no_spike():
  assert all(not stability.spikes(*falling(seed)) for seed in range(50))


def test_planted_spikes_are_counted_and_timed():
  """Rows 100 to 103 a hundredfold, row 200 not finite, the end a thousandfold: 40 steps, 10 steps, never."""
  steps, losses = falling()
  losses[100:104] *= 100
  losses[200] = math.nan
  losses[-2:] *= 1000
  found = stability.spikes(steps.tolist(), losses)
  assert found == [(1010, 40), (2010, 10), (2990, math.inf)]
  rows = [{'step': step, 'loss': loss} for step, loss in zip(steps, losses, strict=True)]
  for end, times, longest in ((300, 3, math.inf), (298, 2, 40), (110, 1, 40)):
    told = {f.name: f for f in stability.findings(rows[:end])}
    assert (told['loss spikes'].value, told['longest recovery'].value) == (times, longest)
    assert {told[name].better for name in ('loss spikes', 'longest recovery')} == {'lower'}


def test_a_spike_is_one_beside_the_last_rows_of_which_there_must_be_enough():
  """A hundred, then one: 50 is usual beside all rows, and not beside the last eight."""
  losses = [100.0] * 30 + [1.0] * 10 + [50.0, 1.0]
  assert stability.spikes(range(42), losses, window=8, minimum=4) == [(40, 1)]
  assert stability.spikes(range(42), losses, window=41, minimum=4) == []
  for minimum, count in ((4, 1), (5, 0)):
    assert len(stability.spikes(range(5), [1.0] * 4 + [50.0], minimum=minimum)) == count


def test_a_spike_is_not_over_half_way_down():
  steps, losses = falling()
  losses[100:110] *= np.geomspace(1000, 4, 10)
  (spike,) = stability.spikes(steps, losses)
  assert spike == (1010, 100)


def test_spikes_do_not_make_the_next_ones_usual():
  """Every second row a hundredfold: none of them enters what the next one is compared with."""
  losses = [1.0] * 10 + [100.0, 1.0] * 10
  found = stability.spikes(range(30), losses, window=4, minimum=4)
  assert found == [(step, 1) for step in range(10, 30, 2)]


def test_findings_of_rows():
  steps, losses = falling()
  rows = [
    {'step': int(s), 'loss': float(v), 'gradient_norm': float(i), 'clip_rate': i % 2}
    for i, (s, v) in enumerate(zip(steps, losses, strict=True))
  ]
  rows.insert(5, {'step': 55, 'validation/eps': 0.5, 'gradient_norm': 1e9, 'clip_rate': 1.0})
  more = {'step': 3010, 'loss': math.exp(-2), 'gradient_norm': math.nan}  # all of it skipped
  rows.append(more)
  found = {f.name: f.value for f in stability.findings(rows)}
  assert found['clip rate'] == 0.5
  assert found['gradient norm, median'] == 149.5
  assert found['gradient norm, 99 %'] == pytest.approx(0.99 * 299)
  assert found['loss spikes'] == 0
  assert 'longest recovery' not in found
  assert {f.name for f in stability.findings([{'step': 1, 'loss': 1.0}])} == {'loss spikes'}


def test_a_rollback_does_not_make_time_run_backwards():
  steps, losses = falling()
  losses[100:103] *= 100
  back = [
    {'step': int(step) - 60 * (i > 102), 'cursor': int(step), 'loss': float(loss)}
    for i, (step, loss) in enumerate(zip(steps, losses, strict=True))
  ]
  found = {f.name: f.value for f in stability.findings(back)}
  assert (found['loss spikes'], found['longest recovery']) == (1, 30)


def test_a_loss_below_zero_has_no_logarithm():
  assert stability.findings([{'step': i, 'loss': -0.1} for i in range(50)]) == []
  with pytest.raises(ValueError, match='must be positive, got -0.1'):
    stability.spikes([1, 2], [1.0, -0.1])


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match='window .* got 5'):
    stability.spikes([1], [1.0], window=5)
  with pytest.raises(ValueError, match='2 steps and 1 losses'):
    stability.spikes([1, 2], [1.0])
