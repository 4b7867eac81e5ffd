"""Runs side by side: loaded, grouped by what their configurations differ in, paired by seed."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusion import proportions, statistics
from diffusion.citations import Technique
from diffusion.evaluation import onset
from diffusion.proportions import Counts
from diffusion.provenance import read_record
from diffusion.reporting import comparison
from diffusion.reporting.comparison import ComparedRun, Effect, Table
from diffusion.reporting.rows import read_json_lines
from diffusion.reporting.run_report import is_uncommitted
from diffusion.statistics import Interval

# What runs must have in common, and what one has instead that does not.
_SHARED: dict[str, Callable[[Mapping], Any]] = {
  'other data': lambda record: record['data']['fingerprint'],
  'other validation examples': lambda record: record['data']['split_hashes']['validation'],
  'other test examples': lambda record: record['data']['split_hashes']['test'],
  'another evaluation noise': lambda record: record['bank'],
}


def load(folders: Sequence[str | pathlib.Path]) -> list[ComparedRun]:
  """The runs in these folders, in their order.

  Raises:
    ValueError: no run in a folder or no results yet, one folder twice, two runs of one variant and seed, or runs on
      other data, other splits or another evaluation noise.
  """
  paths = [pathlib.Path(folder).expanduser().absolute() for folder in folders]
  if not paths:
    raise ValueError('there is no run to report: name the folders of one or more')
  for path in paths:
    if paths.count(path) > 1:
      raise ValueError(f'{path} is named twice')
  found = [read_record(path) for path in paths]
  for path, record in zip(paths, found, strict=True):
    if record['results'] is None:
      raise ValueError(
        f'{path} has no results yet ({record["status"]} at step {record["step"]}): finish it first'
      )
    for name, of in _SHARED.items():
      here, there = of(record), of(found[0])
      if here != there:
        raise ValueError(
          f'{path} has {name} than {paths[0]} ({here} and {there}): their numbers cannot be compared'
        )
  varying = _varying([record['config'] for record in found])
  several = len({record['experiment'] for record in found}) > 1
  runs = [_run(path, record, varying, several) for path, record in zip(paths, found, strict=True)]
  seen: dict[tuple[str, int], ComparedRun] = {}
  for run in runs:
    other = seen.setdefault((run.variant, run.seed), run)
    if other is not run:
      raise ValueError(
        f'{other.folder} and {run.folder} are the same variant ({run.variant}) with the same seed {run.seed}'
      )
  return runs


def _varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
  """The configuration's names in which the runs differ, the seed aside, in their order."""
  names = dict.fromkeys(name for config in configs for name in config if name != 'seed')
  # `...`, which no JSON holds, where a configuration does not have the name.
  return [n for n in names if any(c.get(n, ...) != configs[0].get(n, ...) for c in configs)]


def _run(
  path: pathlib.Path, record: dict[str, Any], varying: Sequence[str], several: bool
) -> ComparedRun:
  parts = [record['experiment']] if several else []
  config = record['config']
  parts += [config[n] if n == 'arm' else f'{n}={config[n]}' for n in varying if n in config]
  results, own, counts = {}, {}, {}
  for name, value in record['results'].items():
    if isinstance(value, Mapping):
      own[name] = Interval(**{end: value[end] for end in Interval._fields})
      results[name] = own[name].estimate
      if 'counts' in value:
        counts[name] = Counts(**value['counts'])
    elif isinstance(value, int | float):
      results[name] = value
  return ComparedRun(
    folder=path,
    variant=', '.join(parts) or record['experiment'],
    seed=record['seed'],
    results=results,
    own=own,
    counts=counts,
    readings={name: tuple(one) for name, one in record.get('readings', {}).items()},
    marks=_marks(record),
    record=record,
    rows=read_json_lines(path / 'metrics.jsonl'),
  )


def _marks(record: Mapping[str, Any]) -> tuple[str, ...]:
  """What makes a run other than a plain one."""
  results, start = record['results'], record['starts'][-1]
  marks = []
  if record['status'] not in ('finished', 'diverged'):
    marks.append(f'UNFINISHED at step {record["step"]}')
  elif record['reason'].startswith('diverged'):  # earlier versions called it finished
    marks.append(f'DIVERGED at step {record["step"]}')
  elif record['step'] < record['num_steps']:
    marks.append(f'stopped early at step {record["step"]} of {record["num_steps"]}')
  if 'lost best step' in results:
    marks.append(f'the best checkpoint, of step {results["lost best step"]}, is lost')
  for name, text in (('skipped steps', 'steps skipped'), ('rollbacks', 'rollbacks')):
    if name in results and results[name]:
      marks.append(f'{results[name]} {text}')
  if record['smoke']:
    marks.append('SMOKE')
  if record['data']['note']:
    marks.append(record['data']['note'])
  if any('changes' in one for one in record['starts']):
    marks.append('CHANGED while it trained')
  if is_uncommitted(start['code']):
    marks.append('uncommitted changes')
  return tuple(marks)


def variants(runs: Sequence[ComparedRun]) -> dict[str, list[ComparedRun]]:
  """Variant -> its runs by seed, variants in the order of the runs."""
  found: dict[str, list[ComparedRun]] = {}
  for run in runs:
    found.setdefault(run.variant, []).append(run)
  return {name: sorted(group, key=lambda run: run.seed) for name, group in found.items()}


def quantities(runs: Sequence[ComparedRun], wanted: Sequence[str]) -> list[str]:
  """The names to report: those wanted, or all that every run has, but for plain numbers that are 0 in all of them.

  Raises:
    ValueError: a wanted one that some run does not have.
  """
  shared = [name for name in runs[0].results if all(name in run.results for run in runs)]
  for name in wanted:
    if name not in shared:
      without = next(run.folder for run in runs if name not in run.results)
      raise ValueError(f'{without} has no {name!r}; all runs have {", ".join(shared)}')
  return list(wanted) or [
    name for name in shared if any(run.results[name] or name in run.own for run in runs)
  ]


def choose_baseline(groups: Mapping[str, list[ComparedRun]], wanted: str | None) -> str:
  """The variant that the others are compared with: by name, by one of its folders, or the first.

  Raises:
    ValueError: neither a variant nor a folder.
  """
  if wanted is None:
    return next(iter(groups))
  folder = pathlib.Path(wanted).expanduser().absolute()
  for name, group in groups.items():
    if name == wanted or any(run.folder == folder for run in group):
      return name
  raise ValueError(
    f'the baseline must be one of {"; ".join(groups)}, or a folder of theirs, got {wanted!r}'
  )


def effects(
  groups: Mapping[str, list[ComparedRun]], baseline: str, names: Sequence[str]
) -> list[Effect]:
  """Every other variant against the baseline, quantity by quantity.

  Args:
    groups: variant -> its runs.
    baseline: one of the variants.
    names: quantities that all runs have.
  """
  found = []
  base = {run.seed: run for run in groups[baseline]}
  for quantity in names:
    one = []
    for variant, group in groups.items():
      if variant != baseline:
        paired = [run for run in group if run.seed in base]
        one.append(_effect(variant, quantity, [(run, base[run.seed]) for run in paired]))
    tested = [effect for effect in one if effect.p is not None]
    adjusted = iter(statistics.holm([effect.p for effect in tested]))
    found += [e if e.p is None else e._replace(adjusted=next(adjusted)) for e in one]
  return found


def _effect(
  variant: str, quantity: str, pairs: Sequence[tuple[ComparedRun, ComparedRun]]
) -> Effect:
  found = Effect(variant=variant, quantity=quantity, pairs=len(pairs))
  values = [(one.results[quantity], other.results[quantity]) for one, other in pairs]
  if len(pairs) < 2 or not all(math.isfinite(value) for pair in values for value in pair):
    return found
  treated, base = zip(*values, strict=True)
  differences = [a - b for a, b in values]
  positive = all(value > 0 for value in (*treated, *base))
  if all(quantity in run.counts for pair in pairs for run in pair):
    sides = [[run.counts[quantity] for run in side] for side in zip(*pairs, strict=True)]
    difference = proportions.difference(*sides)
    plain = sides[0][0].null_trials is None
    ratio = proportions.ratio(*sides) if positive and plain else None
  else:
    difference = statistics.paired_difference(treated, base)
    ratio = statistics.paired_ratio(treated, base) if positive else None
  return found._replace(
    difference=difference,
    ratio=ratio,
    p=statistics.sign_flip(differences) if len(pairs) <= 20 else None,
    least_p=statistics.least_sign_flip(differences) if len(pairs) <= 20 else None,
  )


def techniques(runs: Sequence[ComparedRun]) -> list[Technique]:
  """What any of the runs used, each once."""
  every = [
    Technique(**{**one, 'keys': tuple(one['keys'])})
    for run in runs
    for one in run.record['techniques']
  ]
  return list(dict.fromkeys(every))


def write(
  runs: Sequence[ComparedRun], folder: pathlib.Path, baseline: str | None, wanted: Sequence[str]
) -> tuple[list[Table], list[pathlib.Path]]:
  """Writes the report of runs into a folder, see `reporting.comparison.write`.

  Args:
    runs: see `load`.
    folder: created if need be.
    baseline: see `choose_baseline`.
    wanted: quantities; all that the runs share if empty.

  Returns:
    (the tables, the files).

  Raises:
    ValueError: an unknown baseline or quantity.
  """
  groups, names = variants(runs), quantities(runs, wanted)
  base = choose_baseline(groups, baseline)
  return comparison.write(
    runs=runs,
    groups=groups,
    names=names,
    paired=effects(groups, base, names),
    baseline=base,
    more=onset.over_seeds({name: [run.rows for run in group] for name, group in groups.items()}),
    techniques=techniques(runs),
    folder=folder,
  )
