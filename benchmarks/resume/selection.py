"""Which cases there are, and which a minute has time for."""

import re
from collections.abc import Iterator, Sequence

from benchmarks.resume import cases, checkpoints, disks, edits, kills, neighbors, paths
from benchmarks.resume.cases import Case

QUICK_CASES = (
  r'run\.json: \{\}, whole',
  r'metrics\.jsonl: a value altered, whole$',
  r'a checkpoint: newest bit flipped 0, killed',
  r'checkpoints/ gone: removed, whole$',
  r'kill -9: compile',
)
# What the tests run: these, and one of each other sort that takes a few seconds.
TESTED_CASES = (
  *QUICK_CASES,
  r'run\.json: truncated 0, whole',
  r'samples\.npz: altered',
  r'the best checkpoint: removed, killed',
  r'paths: x\[1\]',
  r'changed code: the loss weight$',
)


def all_cases(repeats: int, count: int) -> Iterator[Case]:
  """Every case; so many random damages of a kind, and so many kills of a run."""
  yield from cases.of_the_record(repeats)
  yield from cases.of_the_rows(repeats)
  yield from cases.of_the_samples(repeats)
  yield from checkpoints.of_the_checkpoints(repeats)
  yield from cases.of_the_experiment()
  yield from cases.of_what_is_drawn()
  yield from cases.left_over()
  yield from paths.paths()
  yield from edits.edits()
  yield from kills.kills(count)
  yield from kills.signals()
  yield from disks.disks()
  yield from neighbors.clocks()
  yield from neighbors.neighbors()


def name_of(case: Case) -> str:
  """Its kind and its name."""
  return f'{case.kind}: {case.name}'


def matches(pattern: str, case: Case) -> bool:
  """Whether a regular expression is found in its kind and name."""
  return re.search(pattern, name_of(case)) is not None


def selected(patterns: Sequence[str]) -> list[Case]:
  """The cases that any of these patterns is found in, with one random damage of a kind and two kills of a run."""
  every = all_cases(repeats=1, count=2)
  return [case for case in every if any(matches(pattern, case) for pattern in patterns)]
