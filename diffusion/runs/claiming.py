"""A run's claim on its folder: it is one run's, known again by what is built, and changed or begun anew if asked."""

import contextlib
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from diffusion import fingerprint
from diffusion.provenance import data_changes, differences, locked, read_record, write_record
from diffusion.reporting import encoding

_SHOWN = 6  # changes in a line
_IN_USE = '.checkpoints.lock'  # which `training.checkpoint` holds
# What is there before a record is, and stays when all is moved aside: of starts killed at once, locks, what was moved.
_NOTHING = re.compile(r'\..*\.(tmp|lock)|before_restart_\d+(\.part)?')


class Terms(NamedTuple):
  """What a start may do to what it finds in its folder.

  Attributes:
    allow_changes: go on with a run though something else is built now.
    restart: move all that is there aside, and begin anew.
  """

  allow_changes: bool = False
  restart: bool = False


AS_IT_IS = Terms()


def source_digest(text: bytes | None) -> str | None:
  """What `sha256sum` says of an experiment file; None where there is none."""
  return None if text is None else hashlib.sha256(text).hexdigest()


def built_changes(record: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
  """How what was built differs in two records, but for the data, which is known by its own fingerprint."""
  built = (one['fingerprint']['built'] for one in (record, fresh))
  return fingerprint.changes(
    *({name: part for name, part in one.items() if name != 'data'} for one in built)
  )


def changes(record: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
  """How a start differs from a run: in its numbers, in what is built of them, and in JAX's settings.

  Args:
    record: of the run.
    fresh: of the start.
  """
  settings = (one['starts'][-1]['settings'] for one in (record, fresh))
  found = (
    *differences(record['config'], fresh['config']),
    *built_changes(record, fresh),
    *differences(*settings),
  )
  return list(dict.fromkeys(found))  # a seed is a number, and is built


def in_words(found: list[str]) -> str:
  """Changes in a line, the first ones in full."""
  more = [f'and {len(found) - _SHOWN} more'] if len(found) > _SHOWN else []
  return '; '.join([*found[:_SHOWN], *more])


def claim(
  workdir: pathlib.Path, fresh: dict[str, Any], text: bytes | None, terms: Terms = AS_IT_IS
) -> list[str]:
  """Takes a folder for a run, or finds that it is this run's already; run.json then has this start in its `starts`.

  A run whose data lies elsewhere than before is the same run; its configuration then says where it lies now.

  Args:
    workdir: the folder; created if need be.
    fresh: the record of a run that starts now.
    text: of the experiment file, which is copied into a new folder; None for an experiment that has none.
    terms: what may be done to a run that is there.

  Returns:
    How what is built differs from the run that is there, where that is allowed; `adopt` makes it the run's.

  Raises:
    ValueError: the folder holds a run of another experiment, of other data, or something that is no run; or another
      process trains there.
    OSError: the folder cannot be written.
  """
  if not (workdir / 'run.json').exists():
    _check_empty(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  with _alone(workdir), locked(workdir):
    if terms.restart:
      _set_aside(workdir)
    if (workdir / 'run.json').exists():
      return _go_on(workdir, fresh, text, terms.allow_changes)
    if text is not None:
      encoding.write(workdir / 'experiment.py', text)
    write_record(workdir, fresh)
  return []


def _check_empty(workdir: pathlib.Path) -> None:
  """Raises ValueError for a folder that holds something else than what a start that was killed at once leaves."""
  names = [path.name for path in workdir.iterdir()] if workdir.exists() else []
  others = [name for name in names if name != 'experiment.py' and not _NOTHING.fullmatch(name)]
  if others:
    raise ValueError(
      f'{workdir} is not empty and holds no run ({others[0]}): choose another --workdir'
    )


@contextlib.contextmanager
def _alone(workdir: pathlib.Path) -> Iterator[None]:
  """Within the block no other process trains there; raises ValueError where one does."""
  path = workdir / _IN_USE
  if os.path.lexists(path) and not path.is_file():  # `training.checkpoint` sets it aside
    yield
    return
  with encoding.naming(workdir / 'run.json'):  # where the one cannot be written, the other cannot
    file = path.open('wb')
  with file:
    if not encoding.take(file):
      raise ValueError(
        f'{workdir} is in use by another process, which trains there: wait for its end, or end it'
      )
    yield


def _go_on(
  workdir: pathlib.Path, fresh: Mapping[str, Any], text: bytes | None, allow_changes: bool
) -> list[str]:
  """Finds that the folder is this run's, and notes the start; returns what differs, where that is allowed."""
  record, start = read_record(workdir), fresh['starts'][0]
  config = differences(record['config'], fresh['config'])
  data, found = data_changes(record['data'], fresh['data']), changes(record, fresh)
  if data:
    raise ValueError(
      f'{workdir} holds a run of other data ({in_words([*config, *data])}): undo this, or choose another --workdir, as '
      'what is held out now may have been trained on'
    )
  if found == config and _are_places(record['config'], fresh['config']):
    found = []
  if found and not allow_changes:
    flag = '--allow_changes' if text is not None else 'allow_changes=True'
    raise ValueError(
      f'{workdir} holds a run of another experiment ({in_words(found)}): undo this, choose another --workdir, or go '
      f'on with what is built now by {flag}, of which the record will tell'
    )
  _say_versions(record['starts'][-1], start)
  record['starts'].append(start)
  if not found:
    _move(workdir, record, fresh, config)
    _mend_source(workdir, record, text)
  write_record(workdir, record)
  return found


def _are_places(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
  """Whether all fields in which two configurations differ may say where data lies: each is a text, or several.

  What a number does, no description need show.
  """

  def is_text(value: Any) -> bool:
    if isinstance(value, list):
      return all(map(is_text, value))
    return value is None or isinstance(value, str)

  fields = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
  return old.keys() == new.keys() and all(
    is_text(one[name]) for name in fields for one in (old, new)
  )


def _move(
  workdir: pathlib.Path, record: dict[str, Any], fresh: Mapping[str, Any], config: list[str]
) -> None:
  """Notes and says where the data of a run lies now and what it is called, if that differs."""
  names = ({name: one['data'][name] for name in ('name', 'class_names')} for one in (record, fresh))
  moved = config + differences(*names)
  if moved:
    print(f'the data of {workdir} is the same, and has moved: {"; ".join(moved)}', flush=True)
    record['starts'][-1]['moved'] = moved
    record['config'] = fresh['config']
    record['data']['name'] = fresh['data']['name']


def _say_versions(last: Mapping[str, Any], start: Mapping[str, Any]) -> None:
  """Says what the description of what is built does not show: other versions, and files that were edited."""
  said = differences(last['versions'], start['versions'])
  before, now = last['code'], start['code']
  if before['digest'] != now['digest']:
    commits = [str(one['commit'])[:10] for one in (before, now)]
    said.append(f'the code of this package: {" -> ".join(commits)}')
  both = before['own'].keys() & now['own'].keys()
  edited = sorted(name for name in both if before['own'][name] != now['own'][name])
  said += [f'edited: {", ".join(edited)}'] if edited else []
  if said:
    print(f'since the start before: {"; ".join(said)}', flush=True)


def _mend_source(workdir: pathlib.Path, record: dict[str, Any], text: bytes | None) -> None:
  """Writes the copy of the experiment file anew where it is not as it was written; what is built is the same."""
  path = workdir / 'experiment.py'
  held = path.read_bytes() if path.is_file() else None
  if record['source'] is None or source_digest(held) == record['source']:
    return
  fault = 'is lost' if held is None else 'is not as it was written'
  if text is None:
    print(f'{path} {fault}', flush=True)
    return
  _keep(workdir, len(record['starts']), text)
  encoding.write(path, text)
  record['source'] = source_digest(text)
  print(f'{path} {fault}: written anew, as what builds the same', flush=True)


def _keep(workdir: pathlib.Path, start: int, text: bytes | None) -> None:
  """Keeps the copy of the experiment file that the start of this number, from 1, replaces by another."""
  path = workdir / 'experiment.py'
  if path.is_file() and path.read_bytes() != text:
    encoding.write(workdir / f'experiment_before_start_{start}.py', path.read_bytes())


def adopt(
  workdir: pathlib.Path, fresh: Mapping[str, Any], text: bytes | None, found: list[str], step: int
) -> None:
  """Makes what is built now the run's, which the last of its `starts` tells; the experiment file before is kept.

  Args:
    workdir: of the run, claimed.
    fresh: the record of the start.
    text: of its experiment file; None for an experiment that has none.
    found: what `claim` returned.
    step: where it goes on.

  Raises:
    ValueError: it is beyond the new end. OSError: the folder cannot be written.
  """
  with locked(workdir):
    record = read_record(workdir)
    ends = [one['fingerprint']['built']['num_steps'] for one in (record, fresh)]
    if ends[0] != ends[1] and record['extended_at'] is None:
      record['num_steps'] = fresh['num_steps']
    if step >= record['num_steps']:
      raise ValueError(
        f'{workdir} is at step {step}, and now shall end at step {record["num_steps"]}: give it more steps than that'
      )
    _keep(workdir, len(record['starts']), text)
    if text is None:
      (workdir / 'experiment.py').unlink(missing_ok=True)
    else:
      encoding.write(workdir / 'experiment.py', text)
    digests = {'from': record['fingerprint']['digest'], 'to': fresh['fingerprint']['digest']}
    record['starts'][-1] |= {'changes': found, 'fingerprint': digests}
    names = ('experiment', 'source', 'config', 'smoke', 'seed', 'bank', 'techniques', 'fingerprint')
    write_record(workdir, record | {name: fresh[name] for name in names})
  print(f'step {step}: {workdir} goes on with changes: {in_words(found)}', flush=True)


def _set_aside(workdir: pathlib.Path) -> None:
  """Moves all that is there into before_restart_1 or the next number; killed in between, the next time goes on."""
  paths = [path for path in workdir.iterdir() if not _NOTHING.fullmatch(path.name)]
  places = (workdir / f'before_restart_{number}' for number in itertools.count(1))
  place = next(path for path in places if not path.exists())
  part = place.with_suffix('.part')
  if not paths and not part.exists():
    return
  part.mkdir(exist_ok=True)
  for path in sorted(paths, key=lambda one: one.name == 'run.json'):  # by which it is a run, last
    path.rename(part / path.name)
  part.rename(place)
  encoding.sync(workdir)
  print(f'what was in {workdir} is now in {place}', flush=True)
