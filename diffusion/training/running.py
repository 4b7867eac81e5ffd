"""A population on the devices: which member lies where, which programs it runs, and what it moves when members stop."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffusion import devices
from diffusion.evaluation import gap
from diffusion.training.population import (
  Population,
  make_dispatch,
  make_losses,
  make_statistics,
  stack,
  take,
)
from diffusion.training.state import TrainState
from diffusion.training.step import STATISTICS_BATCHES

_LOOKED_AT = 256  # rows of a member that validation takes at a time


def fitted_size(live: int, whole: int) -> int:
  """The least power of two that holds so many members, or the whole population."""
  return min(1 << (live - 1).bit_length(), whole)


class Running:
  """A population on the devices: the one place that knows which member lies where.

  A stopped member stays as it is. When the live ones fit into a smaller power of two they are moved together, so that
  at most one more program is compiled than the number of members has binary digits.
  """

  def __init__(
    self,
    population: Population,
    states: Sequence[TrainState],
    *,
    side_by_side: bool | None = None,
  ):
    """Begins with these states of the members, host arrays; `side_by_side` as in `devices.over_members`."""
    self.population = population
    self.sizes: list[int] = []  # of the training programs made so far
    self._side_by_side = side_by_side
    # What each place holds: a member, or (None) a copy of the first one's, to fill up.
    self._slots: list[int | None] = list(range(len(states)))
    self._live = set(range(len(states)))
    self._seen = [int(state.cursor) for state in states]  # batches, by member
    self._data = devices.replicate(population.data)
    self._programs: dict[tuple[str, int], Callable] = {}
    self._host: Any = stack(states)  # the states, where they are known on the host
    self._placed: Any = None  # the same, where they are on the devices
    self._members: Any = None
    self._has_statistics = bool(states[0].statistics)
    self._statistics: Any = None  # of the judged weights, since the last dispatch
    self._losses: np.ndarray | None = None

  def dispatch(self, live: Sequence[int]) -> dict[int, tuple[int, dict[str, Any]]]:
    """One dispatch of these members: member -> (member, metrics), as a loop is sent them.

    The metrics are 'loss', to wait for, and 'row', a function that fetches the member's numbers.
    """
    self._arrange(set(live))
    placed, members = self._place()
    experiment = self.population.experiment
    given = self._rows_given(
      lambda k: self._seen[k] if k in self._live else 0, experiment.steps_per_dispatch
    )
    self._placed, metrics = self._run('dispatch', members, placed, given)
    for k in live:
      self._seen[k] += experiment.steps_per_dispatch
    self._host = self._losses = self._statistics = None
    size = len(self._slots)
    fetch = functools.cache(lambda: devices.collect_members(metrics, size))

    def row(slot: int) -> Callable[[], dict[str, Any]]:
      return lambda: {name: value[slot] for name, value in fetch().items()}

    return {k: (k, {'loss': metrics['loss'], 'row': row(self._slots.index(k))}) for k in live}

  def settle(self, k: int) -> int:
    """Gives a member's judged weights batch statistics of their own; returns the member."""
    if self._has_statistics:
      if self._statistics is None:
        placed, members = self._place()
        given = self._rows_given(lambda k: 0, STATISTICS_BATCHES)
        found = self._run('statistics', members, placed, given)
        self._statistics = devices.collect_members(found, len(self._slots))
      own = take(self._statistics, self._slots.index(k))
      self.put(k, self.own(k)._replace(judged_statistics=own))
    return k

  def validate(self, k: int) -> dict[str, float]:
    """A settled member's validation row; those of all are computed when the first one asks."""
    if self._losses is None:
      if self._statistics is not None:  # all as if they were settled: only those that are will ask
        state = self._on_host()._replace(judged_statistics=self._statistics)
        _, members = self._place()
        placed = devices.place_members(state, len(self._slots))
      else:
        placed, members = self._place()
      count, rows = self.population.members.looked_at.shape[1], self._rows('losses')
      parts = [self._run('losses', members, placed, (), i) for i in range(0, count, rows)]
      found = [devices.collect_members(one, len(self._slots), by_row=True) for one in parts]
      self._losses = np.concatenate(found, axis=1)
    losses, (seen, held_out) = self._losses[self._slots.index(k)], self.population.parts[k]
    return gap.summarize(losses[:seen], losses[seen : seen + held_out])

  def own(self, k: int) -> TrainState:
    """A member's state, as host arrays of its own."""
    return take(self._on_host(), self._slots.index(k))

  def put(self, k: int, state: TrainState) -> int:
    """Gives a member another state; returns the member."""
    slot = self._slots.index(k)

    def write(whole: np.ndarray, part: Any) -> None:
      whole[slot] = part

    jax.tree.map(write, self._on_host(), state)
    self._placed = None
    return k

  def _rows(self, kind: str) -> int:
    if kind != 'losses':
      return self.population.experiment.batch_size
    return devices.divisible(min(_LOOKED_AT, self.population.members.looked_at.shape[1]))

  def _rows_given(self, seen: Callable[[int], int], steps: int) -> Any:
    """The rows of each member's next batches after so many."""
    size = self.population.experiment.batch_size
    whose = [self._slots[0] if k is None else k for k in self._slots]
    rows = [self.population.orders[k].batches(seen(k), steps, size) for k in whose]
    return devices.give_members(np.stack(rows), len(self._slots))

  def _run(self, kind: str, members: Any, placed: Any, given: Any, first_row: int = 0) -> Any:
    size = len(self._slots)
    if (kind, size) not in self._programs:
      make = {'dispatch': make_dispatch, 'statistics': make_statistics, 'losses': make_losses}
      self._programs[kind, size] = devices.over_members(
        make[kind](self.population), size, self._rows(kind),
        donate=kind == 'dispatch', side_by_side=self._side_by_side,
      )  # fmt: skip
      if kind == 'dispatch':
        self.sizes.append(size)
    return self._programs[kind, size](members, placed, given, self._data, np.int32(first_row))

  def _on_host(self) -> TrainState:
    if self._host is None:
      found = devices.collect_members(self._placed, len(self._slots))
      self._host = jax.tree.map(np.array, found)  # copies, to be written to
    return self._host

  def _place(self) -> tuple[Any, Any]:
    """(states, members) on the devices."""
    if self._members is None:
      whose = np.array([self._slots[0] if k is None else k for k in self._slots])
      live = np.array([k in self._live for k in self._slots])
      members = take(self.population.members, whose)._replace(live=live)
      self._members = devices.place_members(members, len(self._slots))
    if self._placed is None:
      self._placed = devices.place_members(self._on_host(), len(self._slots))
    return self._placed, self._members

  def _arrange(self, live: set[int]) -> None:
    """Notes which members live, and moves them together where a smaller program holds them."""
    if live == self._live:
      return
    self._live, self._members = live, None
    size = fitted_size(len(live), len(self.population.parts))
    if size < len(self._slots):
      places = [self._slots.index(k) for k in sorted(live)]
      fill = size - len(places)
      self._host = take(self._on_host(), np.array(places + places[:1] * fill))
      self._slots, self._placed = [self._slots[i] for i in places] + [None] * fill, None
