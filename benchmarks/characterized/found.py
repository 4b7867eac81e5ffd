"""What runs of two checkouts left on disk, read without the package's engine, and in what they differ."""

import collections
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

EQUAL = 'equal'
# Names of metrics of the other checkout -> those of this one.
RENAMED: dict[str, str] = {}
# Top-level fields of a checkpoint -> column of the table; all others are in `rest`.
FIELDS = {
  'params': 'params', 'averages': 'averages', 'optimizer': 'optimizer', 'statistics': 'statistics',
  'judged_statistics': 'statistics', 'evaluation_statistics': 'statistics',  # the earlier name, the later
}  # fmt: skip
COLUMNS = (
  'metrics', 'params', 'averages', 'optimizer', 'statistics', 'rest', 'samples', 'results', 'rows'
)  # fmt: skip


class Found(NamedTuple):
  """What a run left.

  Attributes:
    values: column -> name -> number or text: metrics without timing, results, hashes of the splits and of the rows.
    arrays: column -> name -> array: the last checkpoint by its fields, and the samples.
    index: the row numbers of each batch that was spied on; [] without a spy.
    steps: (step, cursor) of each row of metrics.
  """

  values: dict[str, dict[str, Any]]
  arrays: dict[str, dict[str, np.ndarray]]
  index: list[list[int]]
  steps: list[tuple[int, int]]


def read(workdir: pathlib.Path, spied: pathlib.Path) -> Found:
  """What the run in `workdir` left, and what a spy wrote of it."""
  rows = _lines(workdir / 'metrics.jsonl')
  metrics = {
    f'row {i}: {name}': value
    for i, row in enumerate(rows)
    for name, value in row.items()
    if name != 'timing'
  }
  record = json.loads((workdir / 'run.json').read_text())
  notes = _lines(spied) if spied.exists() else []
  index = [note.pop('index') for note in notes if 'index' in note]
  splits = {f'split {name}': held for name, held in record['data']['split_hashes'].items()}
  used = {f'note {i}: {name}': held for i, note in enumerate(notes) for name, held in note.items()}
  with np.load(workdir / 'samples.npz') as samples:
    drawn = dict(samples)
  values = {'metrics': metrics, 'results': _flat(record['results']), 'rows': splits | used}
  steps = [(row['step'], row['cursor']) for row in rows]
  return Found(values, last_state(workdir / 'checkpoints') | {'samples': drawn}, index, steps)


def last_state(root: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
  """Every leaf of the newest checkpoint, by column and path."""
  newest = max((p for p in root.iterdir() if p.name.isdigit()), key=lambda path: int(path.name))
  columns: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
  for path, leaf in jax.tree_util.tree_leaves_with_path(ocp.load(newest)):
    column = FIELDS.get(path[0].key, 'rest')
    columns[column][jax.tree_util.keystr(path)] = np.asarray(leaf)
  return dict(columns)


def compare(old: Found, new: Found) -> dict[str, str]:
  """Column -> `EQUAL`, what differs, or '' where neither run has anything."""
  cells = dict.fromkeys(COLUMNS, '')
  for column in old.values.keys() | new.values.keys():
    cells[column] = _compare_values(_renamed(old.values[column]), new.values[column])
  for column in old.arrays.keys() | new.arrays.keys():
    cells[column] = _compare_arrays(old.arrays.get(column, {}), new.arrays.get(column, {}))
  if cells['rows'] == EQUAL and old.index != new.index:
    cells['rows'] = f'{EQUAL}, under other indices'
  return cells


def same(cells: Mapping[str, str]) -> bool:
  """Whether nothing differs; other row numbers of equal rows are no difference."""
  return all(not cell or cell.startswith(EQUAL) for cell in cells.values())


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def _flat(tree: Any, name: str = '') -> dict[str, Any]:
  """Every number and text of JSON by its path."""
  if isinstance(tree, dict | list):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {n: v for key, held in items for n, v in _flat(held, f'{name}/{key}').items()}
  return {name[1:]: tree}


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
  found = {}
  for name, value in values.items():
    place, colon, metric = name.partition(': ')
    found[f'{place}: {RENAMED.get(metric, metric)}' if colon else name] = value
  return found


def _compare_values(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
  said = _only(old.keys() - new.keys(), 'lacks') + _only(new.keys() - old.keys(), 'adds')
  shared = [name for name in old if name in new]
  unlike = [name for name in shared if json.dumps(old[name]) != json.dumps(new[name])]
  if unlike:
    numbers = [(old[n], new[n]) for n in unlike if _is_number(old[n]) and _is_number(new[n])]
    far = max((_apart(*map(np.float64, pair)) for pair in numbers), default=None)
    said.append(f'{len(unlike)} of {len(shared)} differ{_distance(far)}, the first {unlike[0]}')
  return '; '.join(said) or (EQUAL if old else '')


def _compare_arrays(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> str:
  """Compares sorted hashes, so that names and nesting do not matter; what has no equal is paired by name or in turn."""
  left, right = _by_hash(old), _by_hash(new)
  for name in left.keys() & right.keys():
    count = min(len(left[name]), len(right[name]))
    del left[name][:count], right[name][:count]
  lost, gained = sorted(sum(left.values(), [])), sorted(sum(right.values(), []))
  pairs = []
  for name in lost[:]:
    alike = [n for n in gained if _kind(new[n]) == _kind(old[name])]
    if alike:
      other = name if name in alike else alike[0]
      pairs.append((old[name], new[other]))
      lost.remove(name)
      gained.remove(other)
  said = _only(lost, 'lacks') + _only(gained, 'adds')
  if pairs:
    far = max(_apart(*pair) for pair in pairs)
    said.append(f'{len(pairs)} of {len(new)} differ{_distance(far)}')
  return '; '.join(said) or (EQUAL if old else '')


def _by_hash(arrays: Mapping[str, np.ndarray]) -> dict[tuple, list[str]]:
  found = collections.defaultdict(list)
  for name, x in arrays.items():
    found[_kind(x), hashlib.sha256(x.tobytes()).hexdigest()].append(name)
  return found


def _kind(x: np.ndarray) -> tuple:
  return str(x.dtype), x.shape


def _is_number(x: Any) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool)


def _apart(a: Any, b: Any) -> float:
  """The largest |a - b| / max(|a|, |b|); inf where only one of two is finite."""
  if not np.issubdtype(np.asarray(a).dtype, np.number):
    return np.inf
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  with np.errstate(invalid='ignore'):
    apart = np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), np.finfo(float).tiny)
  alike = (a == b) | (np.isnan(a) & np.isnan(b))
  return float(np.max(np.where(alike, 0, np.where(np.isfinite(apart), apart, np.inf)), initial=0))


def _distance(far: float | None) -> str:
  return '' if far is None else f' by up to {far:.2g}'


def _only(names: Any, verb: str) -> list[str]:
  shown = sorted(names)
  return [f'{verb} {len(shown)}: {", ".join(shown[:2])}'] if shown else []
