"""Onsets read off rows whose times are known; what did not happen is censored, not guessed."""

import math

import numpy as np
import pytest
from scipy import stats

from diffusion.evaluation import onset


def rows(losses, lows, fractions, nulls=0.02):
  """A validation and a look every ten steps; a look's interval is the fraction -+ 0.01."""
  found = []
  for i, (loss, low) in enumerate(zip(losses, lows, strict=True), 1):
    found.append({'step': 10 * i, 'loss': 1.0, 'validation/eps': loss, 'validation/gap_low': low})
    if i <= len(fractions):
      f = fractions[i - 1]
      found.append(
        {
          'step': 10 * i,
          'memorized/fraction': f,
          'memorized/low': f - 0.01,
          'memorized/null_high': nulls,
        }
      )
  return found


def test_times_of_a_run_that_overfits():
  """Excess over 0.5: 0.5, 0.2, 0.02, 0, 0.1, 0.3; 5 % of the first is 0.025."""
  found = onset.onsets(
    rows(
      [1.0, 0.7, 0.52, 0.5, 0.6, 0.8],
      [-0.1, 0.01, -0.1, 0.02, 0.1, 0.2],
      [0.0, 0.0, 0.04, 0.0, 0.05, 0.2],
    )
    + [{'step': 65, 'loss': 1.0}]
  )
  assert found.learned == 30
  assert found.near_best == 30  # 0.52 <= 1.05 x 0.5
  assert found.gap == 40  # at 20 it was not there the next time
  assert found.best == 40
  assert found.copying == 50  # at 30 likewise
  assert found.memorized == (30, 50, 60)
  assert found.end == 65
  assert found.window == pytest.approx(math.log(50 / 30))
  assert found.in_order is False  # the gap and the least loss came at once


def test_rows_that_a_rollback_left_behind_do_not_count():
  """From step 40 it went back to 20, and went on better; the batches drawn never go back."""
  losses, lows, fractions = [1.0, 0.7, 0.52, 0.4], [-0.1, 0.01, 0.1, 0.2], [0.0, 0.0, 0.3, 0.3]
  again = rows([1.0, 0.7, 0.6, 0.5, 0.6, 0.8], [-0.1, -0.1, -0.1, 0.02, 0.1, 0.2], [0.0] * 6)
  left = [row | {'cursor': row['step']} for row in rows(losses, lows, fractions)]
  came = [row | {'cursor': row['step'] + 20} for row in again if row['step'] > 20]
  begun = [row for row in left if row['step'] <= 20]
  assert onset.onsets(left + came) == onset.onsets(begun + came)
  assert onset.onsets(left + came).best == 40
  assert math.isinf(onset.onsets(left + came).memorized[0])


def test_what_did_not_happen_is_censored():
  found = onset.onsets(rows([1.0, 0.8, 0.6], [-0.1] * 3, [0.0, 0.0, 0.0]))
  assert (found.gap, found.best, found.copying) == (math.inf, math.inf, math.inf)
  assert found.memorized == (math.inf,) * 3
  assert found.window == math.inf
  assert found.in_order is None
  assert found.end == 30


def test_the_expected_order_is_strict():
  found = onset.onsets(rows([1.0, 0.7, 0.5, 0.6], [0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0]))
  assert (found.gap, found.best, found.copying) == (10, 30, math.inf)
  assert found.in_order is True


def test_a_known_floor_moves_learning():
  """With a floor of 0.4 the excess of 0.5 is a sixth of the first: never within 5 %."""
  losses = [1.0, 0.7, 0.52, 0.5]
  never = onset.onsets(rows(losses, [0] * 4, []), floor=0.4)
  assert never.learned == math.inf
  assert never.near_best == 30  # which is beside the least loss that there was
  assert never.window is None
  assert onset.onsets(rows(losses, [0] * 4, [])).learned == 30


def test_the_table_over_seeds_has_each_onset_under_its_name():
  """Three seeds whose onsets come at times of their own, and beside them runs in which little began or nothing."""
  losses = [4.5, 1.0, 0.69, 0.6, 0.52, 0.5, 0.7, 0.8, 0.9]
  fractions = [0.0, 0.011, 0.0, 0.0, 0.0, 0.0, 0.04, 0.06, 0.3]
  overfit = rows(losses, [-1, 1, -1, *[1] * 6], fractions)
  seeds = [[row | {'step': factor * row['step']} for row in overfit] for factor in (1, 2, 5)]
  flat = rows([1.0, 0.9, 0.8], [-1] * 3, [0.0] * 3)
  groups = {'a': seeds, 'one': seeds[1:2], 'mixed': [*seeds[:2], flat], 'flat': [flat] * 2}
  for one in (rows([1.0, math.nan], [1, 1], [0.0, 0.0]), rows(losses, [1] * 9, []), flat[:2]):
    groups[f'without {len(groups)}'] = [seeds[0], one]
  ((_, head, table),) = onset.over_seeds(groups)
  assert head == ['onset', 'a', 'one', 'mixed', 'flat']
  half = stats.t.ppf(0.975, 2) * np.std(np.log([1, 2, 5]), ddof=1) / 3**0.5
  known = {
    'excess held-out loss within 5 %': 30, 'held-out loss within 1.05 of its least': 50, 'the gap leaves 0': 40,
    'held-out loss least (where early stopping lands)': 60, 'the memorized fraction leaves its null': 70,
    'memorized fraction 0.01': 20, 'memorized fraction 0.05': 80, 'memorized fraction 0.2': 90,
  }  # fmt: skip
  for (name, several, one, mixed, none), (title, step) in zip(
    table[:8], known.items(), strict=True
  ):
    assert (name, one) == (title, 2 * step)
    np.testing.assert_allclose(several, step * 10 ** (1 / 3) * np.exp([0, -half, half]))
    if step not in (30, 50):  # which the flat one gets to
      assert (mixed, none) == (f'2 of 3, median {2 * step}', '0 of 2')
  (name, several, *others), order = table[8:]
  assert name == 'window, log(tau_mem / tau_gen)'
  np.testing.assert_allclose(several, math.log(80 / 30))
  assert others == [
    '1 of 1 seen, 0 beyond the end', '2 of 3 seen, 1 beyond the end', '0 of 2 seen, 2 beyond the end',
  ]  # fmt: skip
  assert order == [
    'seeds with gap, least loss, copying in this order',
    '3 of 3', '1 of 1', '2 of 3 (1 undetermined)', '0 of 2 (2 undetermined)',
  ]  # fmt: skip
  assert onset.over_seeds({'without': [flat[:2]]}) == []


def test_first_in_a_row():
  assert onset.first([1, 2, 3, 4], [True, False, True, True], 2) == 3
  assert onset.first([1, 2, 3], [False, False, True], 2) == 3
  assert onset.first([], []) == math.inf


def test_too_little_is_refused():
  with pytest.raises(ValueError, match='two or more finite held-out losses'):
    onset.onsets(rows([1.0], [0.0], []))
  with pytest.raises(ValueError, match='two or more finite held-out losses'):
    onset.onsets(rows([1.0, math.nan], [0.0, 0.0], []))
