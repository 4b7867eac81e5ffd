"""When things begin, from the rows of a run: generalization, overfitting, copying. Times are steps; inf is censored."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from diffusion import checks, statistics
from diffusion.reporting.comparison import Table
from diffusion.reporting.variants import Rows
from diffusion.statistics import Interval

FRACTIONS = (0.01, 0.05, 0.2)


class Onsets(NamedTuple):
  """Steps at which things begin; inf where they did not before the run's end.

  Attributes:
    learned: tau_gen, the held-out loss's excess over its least value is within 5 % of what it was at first.
    near_best: the held-out loss is within 1.05 of its least value.
    gap: the generalization gap's interval lies above 0, and does at the next validation too.
    best: tau_of, the held-out loss is least; inf if that is the last validation.
    copying: the memorized fraction's interval lies above its held-out null's, and does at the next look too.
    memorized: tau_mem(theta), the memorized fraction is theta, for each of `FRACTIONS`.
    end: the last step.
  """

  learned: float
  near_best: float
  gap: float
  best: float
  copying: float
  memorized: tuple[float, ...]
  end: int

  @property
  def window(self) -> float | None:
    """Omega = log(tau_mem(0.05) / tau_gen): inf where copying was not seen, None where learning was not."""
    return math.log(self.memorized[1] / self.learned) if math.isfinite(self.learned) else None

  @property
  def in_order(self) -> bool | None:
    """Whether the gap came first, then the least held-out loss, then copying; None where gap or least were not seen."""
    if not (math.isfinite(self.gap) and math.isfinite(self.best)):
      return None
    return self.gap < self.best < self.copying


def onsets(rows: Rows, floor: float | None = None) -> Onsets:
  """The onsets of a run; rows that a rollback left behind are no part of it.

  Args:
    rows: of its metrics.jsonl, with `validation/eps` and `validation/gap_low`, and `memorized/...` where
      `callbacks.watch_memorization` logged them.
    floor: the least held-out loss there could be (the Bayes floor), where it is known; else the run's least one.

  Raises:
    ValueError: fewer than two validations, or a loss that is not finite.

  Source: tau_gen and tau_mem: Bonnaire et al. (2025), section 3, on the excess loss.
  """
  rows = _kept(rows)
  validated = [row for row in rows if 'validation/eps' in row]
  looked = [row for row in rows if 'memorized/fraction' in row]
  steps, losses = _columns(validated, 'step', 'validation/eps')
  if len(steps) < 2 or not np.isfinite(losses).all():
    raise ValueError(f'onsets need two or more finite held-out losses, got {losses.tolist()}')
  least = losses.min()
  excess = losses - (least if floor is None else floor)
  best = steps[int(losses.argmin())]
  _, fractions = _columns(looked, 'step', 'memorized/fraction')
  seen = [int(row['step']) for row in looked]
  apart = [row['memorized/low'] > row['memorized/null_high'] for row in looked]
  return Onsets(
    learned=first(steps, excess <= 0.05 * excess[0]),
    near_best=first(steps, losses <= 1.05 * least),
    gap=first(steps, [row['validation/gap_low'] > 0 for row in validated], 2),
    best=float(best) if best != steps[-1] else math.inf,
    copying=first(seen, apart, 2),
    memorized=tuple(first(seen, fractions >= theta) for theta in FRACTIONS),
    end=int(max(row['step'] for row in rows)),
  )


def _place(row: Mapping[str, Any]) -> tuple[int, int | None]:
  return row['step'], row.get('cursor')


def _kept(rows: Rows) -> list[Mapping[str, Any]]:
  """The rows that no rollback left behind: a step that comes again takes the place of itself and of those after it."""
  kept: list[Mapping[str, Any]] = []
  for row in rows:
    while kept and kept[-1]['step'] >= row['step'] and _place(kept[-1]) != _place(row):
      kept.pop()
    kept.append(row)
  return kept


def first(steps: Sequence[int], happened: Sequence[bool], times: int = 1) -> float:
  """The step of the first of several looks in a row at which it happened; inf if there is none.

  At the last look fewer in a row are enough, for there is no further one.

  Args:
    steps: of the looks, ascending.
    happened: whether it did, one a step.
    times: looks in a row, >= 1.

  Raises:
    ValueError: times out of range, or lists of different lengths.
  """
  checks.integer('times', times)
  held = [all(happened[i : i + times]) for i in range(len(steps))]
  return next((float(step) for step, yes in zip(steps, held, strict=True) if yes), math.inf)


def over_seeds(groups: Mapping[str, Sequence[Rows]]) -> list[Table]:
  """The table of when things began; none where no variant has it.

  Args:
    groups: variant -> rows of each of its runs. What counts are variants whose runs all logged what it takes, with
      finite losses.
  """
  found = {name: [_onsets_of(rows) for rows in group] for name, group in groups.items()}
  found = {name: several for name, several in found.items() if None not in several}
  if not found:
    return []
  titles = {
    'learned': 'excess held-out loss within 5 %',
    'near_best': 'held-out loss within 1.05 of its least',
    'gap': 'the gap leaves 0',
    'best': 'held-out loss least (where early stopping lands)',
    'copying': 'the memorized fraction leaves its null',
  }
  rows = [
    [title, *(_mean_step([getattr(one, name) for one in several]) for several in found.values())]
    for name, title in titles.items()
  ]
  for i, theta in enumerate(FRACTIONS):
    cells = (_mean_step([one.memorized[i] for one in several]) for several in found.values())
    rows.append([f'memorized fraction {theta:g}', *cells])
  rows += [
    ['window, log(tau_mem / tau_gen)', *map(_windows, found.values())],
    ['seeds with gap, least loss, copying in this order', *map(_ordered, found.values())],
  ]
  caption = (
    "Onsets: steps, geometric mean over seeds with Student's 95 % interval of the logarithms. Where some seeds were "
    'censored, how many got there, and the median of all if it is known.'
  )
  return [(caption, ['onset', *found], rows)]


def _onsets_of(rows: Rows) -> Onsets | None:
  """A run's onsets; None without memorized fractions, or where its losses do not have any."""
  losses = [row['validation/eps'] for row in rows if 'validation/eps' in row]
  looked = any('memorized/fraction' in row for row in rows)
  return onsets(rows) if looked and len(losses) > 1 and np.isfinite(losses).all() else None


def _mean_step(steps: Sequence[float]) -> Any:
  reached = [step for step in steps if math.isfinite(step)]
  if len(steps) == 1:
    return steps[0] if reached else 'not by the end'
  if len(reached) == len(steps):
    return Interval(*(math.exp(end) for end in statistics.mean_t(np.log(reached))))
  middle = float(np.median(steps))
  count = f'{len(reached)} of {len(steps)}'
  return f'{count}, median {middle:g}' if math.isfinite(middle) else count


def _windows(several: Sequence[Onsets]) -> Any:
  values = [one.window for one in several]
  known = [value for value in values if value is not None and math.isfinite(value)]
  if len(known) == len(values) > 1:
    return statistics.mean_t(known)
  open_ended = sum(value == math.inf for value in values)
  return f'{len(known)} of {len(values)} seen, {open_ended} beyond the end'


def _ordered(several: Sequence[Onsets]) -> str:
  said = [one.in_order for one in several]
  unknown = f' ({said.count(None)} undetermined)' if None in said else ''
  return f'{said.count(True)} of {len(said)}{unknown}'


def _columns(rows: Rows, *names: str) -> list[Float64[np.ndarray, ' n']]:
  return [np.array([row[name] for row in rows], np.float64) for name in names]
