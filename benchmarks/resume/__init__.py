"""What a run survives: the project's chaos test. `python -m benchmarks.resume --help` says how to run it.

Here is what its cases and the tests share: runs that are killed at random instants, checkpoints that are damaged, and
what two runs differ in.
"""

import contextlib
import io
import json
import pathlib
import signal
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.processes import finish, start
from diffusion.provenance import read_record
from diffusion.reporting.rows import read_json_lines
from diffusion.runs.loading import recorded_experiment
from diffusion.training.checkpoint import Restored, manifest_of, open_checkpoints
from diffusion.training.experiment import load_data
from diffusion.training.state import host_target, make_init

KINDS = ('truncated', 'bit flipped', 'half deleted')
# Dropout on; a row every 10 steps, a checkpoint every 20.
NUMBERS = (
  '--config.num_steps=1500', '--config.train_limit=64', '--config.examples=512', '--config.batch_size=32',
  '--config.steps_per_dispatch=5', '--config.log_every=10', '--config.validate_every=20', '--config.width=16',
  '--config.patience=5000', '--config.dropout=0.2', '--config.sampling_steps=5', '--config.samples=50',
  '--cpu_devices=2',
)  # fmt: skip


def rows(workdir: pathlib.Path) -> int:
  """How many rows are written."""
  path = workdir / 'metrics.jsonl'
  return path.read_bytes().count(b'\n') if path.exists() else 0


def saving(workdir: pathlib.Path) -> bool:
  """Whether a checkpoint is being saved: begun, and without its manifest."""
  with contextlib.suppress(FileNotFoundError):  # what goes while it is looked at
    folders = [path for path in (workdir / 'checkpoints').iterdir() if path.is_dir()]
    return any(p.suffix != '.deleted' and not manifest_of(p).exists() for p in folders)
  return False


def wait_for_progress(process: Any, workdir: pathlib.Path, generator: np.random.Generator) -> None:
  """Returns once this start has written a few rows, or has begun to save: which, and how long after, is drawn."""
  events = workdir / 'events'
  before = len(list(events.iterdir())) if events.exists() else 0
  # The file of events is made when the rows of the start before have been cut back to its checkpoint.
  while process.is_alive() and (not events.exists() or len(list(events.iterdir())) == before):
    time.sleep(0.001)
  target, begun = rows(workdir) + generator.integers(1, 6), generator.random() < 0.5
  while process.is_alive() and not (saving(workdir) if begun else rows(workdir) >= target):
    time.sleep(0.001)
  time.sleep(generator.uniform(0, 0.05))


class Chaos(NamedTuple):
  """What became of a run: kills that hit it alive, how many of them while it saved, and what differs at the end."""

  kills: int
  while_saving: int
  differences: list[str]


def chaos(
  folder: pathlib.Path, kills: int, seed: int, whole: pathlib.Path, numbers: Sequence[str] = NUMBERS
) -> Chaos:
  """Kills a run at random instants, lets it end, and compares it with one that was left alone.

  Args:
    folder: of the run.
    kills: how many.
    seed: of the instants.
    whole: the folder of the other.
    numbers: the flags of both.
  """
  generator, done, while_saving = np.random.default_rng(seed), 0, 0
  for _ in range(kills):
    process = start(folder, *numbers)
    wait_for_progress(process, folder, generator)
    process.kill()
    process.join()
    done += process.exitcode == -signal.SIGKILL
    while_saving += saving(folder)
  finish(start(folder, *numbers), folder)
  return Chaos(done, while_saving, differences(folder, whole))


def last_target(workdir: pathlib.Path) -> Any:
  """What a checkpoint of a run is restored into."""
  experiment = recorded_experiment(workdir, read_record(workdir))
  data = load_data(experiment)
  example = data.example
  init = make_init(experiment, example, data.units)
  return host_target(lambda: init(np.uint32(experiment.seed), example))


def last_state(workdir: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any], list[dict]]:
  """Every leaf of the latest checkpoint by its path, what was saved with it, and the rows without their timing."""
  keeper = open_checkpoints(workdir / 'checkpoints')
  restored = keeper.restore(last_target(workdir), 'latest')
  kept = keeper.steps()
  keeper.close()
  found = read_json_lines(workdir / 'metrics.jsonl')
  return (
    leaves_of(restored.state),
    {**restored.record, 'kept': kept, 'number': restored.number},
    [{name: value for name, value in row.items() if name != 'timing'} for row in found],
  )


def leaves_of(tree: Any) -> dict[str, np.ndarray]:
  """Every leaf of a tree by its path."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  """In what two runs do not agree to the bit."""
  (leaves, about, found), (other_leaves, other_about, other_found) = map(last_state, (one, other))
  names = sorted(leaves.keys() | other_leaves.keys())
  unequal = [
    name
    for name in names
    if name not in leaves
    or name not in other_leaves
    or leaves[name].tobytes() != other_leaves[name].tobytes()
  ]
  unequal += ['callbacks'] if json.dumps(about) != json.dumps(other_about) else []
  return unequal + (['rows'] if json.dumps(found) != json.dumps(other_found) else [])


def damage(folder: pathlib.Path, kind: str, generator: np.random.Generator) -> list[str]:
  """Damages a checkpoint in one of `KINDS`, the manifest included, empty files left out; returns what files it hit."""
  files = [path for path in sorted(folder.rglob('*')) if path.is_file() and path.stat().st_size]
  files = generator.permutation([*files, manifest_of(folder)])
  hit = files[: (len(files) + 1) // 2] if kind == 'half deleted' else files[:1]
  for path in hit:
    content = bytearray(path.read_bytes())
    if kind == 'half deleted':
      path.unlink()
    elif kind == 'truncated':
      path.write_bytes(content[: generator.integers(len(content))])
    else:
      content[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
      path.write_bytes(content)
  return [path.relative_to(folder.parent).as_posix() for path in hit]


class Noticed(NamedTuple):
  """What became of a damaged checkpoint: what was said and what was restored. `named`: a file that was hit is named."""

  named: bool
  said: str
  restored: Restored


def notice(root: pathlib.Path, kind: str, generator: np.random.Generator, target: Any) -> Noticed:
  """Damages the newest checkpoint of a directory and restores the latest."""
  newest = max((p for p in root.iterdir() if p.is_dir()), key=lambda path: int(path.name))
  hit = damage(newest, kind, generator)
  with contextlib.redirect_stdout(io.StringIO()) as said:
    keeper = open_checkpoints(root)
    restored = keeper.restore(target, 'latest')
    keeper.close()
  lost = manifest_of(newest).name in hit and 'it has no manifest' in said.getvalue()
  return Noticed(lost or any(name in said.getvalue() for name in hit), said.getvalue(), restored)
