"""Checkpoints through Orbax: asynchronous, the latest and the best kept, a damaged one stepped over."""

import json
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from diffusion import processes

FORMAT_VERSION = 1
_METRIC = 'metric'


class Restored(NamedTuple):
  """A restored checkpoint, by its number in the folder (batches drawn so far), and which others could not be read."""

  number: int
  state: Any
  record: dict[str, Any]
  damaged: tuple[int, ...]


class Checkpoints(NamedTuple):
  """`save(number, host tree, record, metric)`, `restore(target, which, until)`, `steps()`, `last_record()`,
  `forget(beyond)`, `close()`."""

  save: Callable[[int, Any, dict[str, Any], float], None]
  restore: Callable[..., Restored | None]
  steps: Callable[[], list[tuple[int, float]]]
  last_record: Callable[[], dict[str, Any]]
  forget: Callable[[float], None]
  close: Callable[[], None]


def _preservation(latest: int, best: int):
  policies = ocp.training.preservation_policies
  # The best by metric may be old and the latest may be bad: each is kept for its own sake, and one spare of the latest
  # in case the newest is damaged.
  return policies.AnyPreservationPolicy(
    [
      policies.LatestN(latest),
      *([policies.BestN(get_metric_fn=lambda m: -m[_METRIC], n=best)] if best else []),
    ]
  )


def open_checkpoints(directory: str | pathlib.Path, latest: int = 2, best: int = 1) -> Checkpoints:
  """Opens (and creates) a directory of checkpoints.

  A save is asynchronous: it returns when the tree, which must be NumPy arrays, has been handed over. `record` is
  JSON. A metric that is not finite counts as +inf, since NaN would make Orbax drop the true best.

  Several processes call all functions alike, with equal trees, on a folder that all of them see: process 0 writes, and
  Orbax lets the others wait for it. What is on disk does not tell how many processes or devices there were.

  Args:
    directory: where; made absolute.
    latest: how many of the newest to keep, >= 1.
    best: how many of those with the lowest metric to keep.

  Returns:
    Checkpoints. `restore(target, 'latest' | 'best', until)` returns None where there is nothing (up to the number
    `until`, if given); it moves what it cannot read into `damaged/` beside the directory, and goes on with the next.
    `forget` deletes the checkpoints with larger numbers. `close` waits for the save in flight.
  """
  root = pathlib.Path(directory).absolute()
  root.mkdir(parents=True, exist_ok=True)
  keeper = ocp.training.Checkpointer(
    root, preservation_policy=_preservation(latest, best), cleanup_tmp_directories=True
  )

  def save(step: int, tree: Any, record: dict[str, Any], metric: float) -> None:
    value = float(metric) if math.isfinite(metric) else math.inf
    keeper.save_async(
      step,
      tree,
      force=True,
      metrics={_METRIC: value},
      custom_metadata={
        'format_version': FORMAT_VERSION,
        'signature': _signature(tree),
        'record': json.dumps(record),
      },
    )

  def steps() -> list[tuple[int, float]]:
    return [(c.step, (c.metrics or {}).get(_METRIC, math.inf)) for c in keeper.checkpoints]

  def restore(target: Any, which: str, until: float = math.inf) -> Restored | None:
    keeper.wait()  # what is still being written counts: whether it is done is chance
    damaged: list[int] = []
    known = [one for one in steps() if one[0] <= until]
    order = sorted(known, key=(lambda s: (s[1], s[0])) if which == 'best' else (lambda s: -s[0]))
    for step, _ in order:
      reason = ''
      try:
        state, record = _load(keeper, step, target)
      except FormatError:
        raise
      except Exception as error:  # noqa: BLE001 - whatever a damaged file makes Orbax raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
      reason = next(filter(None, processes.texts(reason)), '')  # one process cannot: none does
      if reason:
        if processes.is_writer():
          _set_aside(root, step, reason)
        processes.barrier('a damaged checkpoint')
        damaged.append(step)
        continue
      if damaged:
        keeper.reload()
      return Restored(step, state, record, tuple(damaged))
    if damaged:
      raise ValueError(
        f'none of the checkpoints {sorted(damaged)} in {root} can be read; they were moved to {root.parent / "damaged"}'
      )
    return None

  def last_record() -> dict[str, Any]:
    number = max(number for number, _ in steps())
    return json.loads(keeper.metadata(number).custom_metadata['record'])

  def forget(beyond: float) -> None:
    keeper.wait()
    for number, _ in steps():
      if number > beyond:
        keeper.delete(number)

  return Checkpoints(save, restore, steps, last_record, forget, keeper.close)


class FormatError(ValueError):
  """A checkpoint of another format, or of another network: not damage."""


def _signature(tree: Any) -> dict[str, str]:
  """path -> shape and type of each leaf."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in flat}


def _load(keeper, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
  metadata = keeper.metadata(step).custom_metadata
  if metadata['format_version'] != FORMAT_VERSION:
    raise FormatError(
      f'checkpoint {step} has format {metadata["format_version"]}, this version reads {FORMAT_VERSION}'
    )
  wanted, held = _signature(target), metadata['signature']
  for path in sorted(wanted.keys() | held.keys()):
    if wanted.get(path) != held.get(path):
      raise FormatError(
        f'checkpoint {step} is of another network: {path} is {held.get(path)} there and {wanted.get(path)} here'
      )
  return jax.tree.map(np.asarray, keeper.load(step, target)), json.loads(metadata['record'])


def _set_aside(root: pathlib.Path, step: int, reason: str) -> None:
  print(f'checkpoint {step} is damaged and set aside ({reason})', flush=True)
  grave = root.parent / 'damaged' / str(step)
  shutil.rmtree(grave, ignore_errors=True)
  grave.parent.mkdir(exist_ok=True)
  shutil.move(root / str(step), grave)
