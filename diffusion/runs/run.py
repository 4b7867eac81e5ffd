"""A run: what it does, its data, where it stands, and its folder with the record, the rows and the checkpoints."""

import contextlib
import functools
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion import (
  checkout,
  checks,
  citations,
  conditions,
  devices,
  fingerprint,
  processes,
  provenance,
  user_code,
)
from diffusion.citations import Technique
from diffusion.data.splits import SplitData
from diffusion.reporting import encoding, rows
from diffusion.runs import claiming
from diffusion.runs.claiming import AS_IT_IS, Terms
from diffusion.sampling import draw, plan
from diffusion.training import experiment as experiments
from diffusion.training import gradient, program, trees
from diffusion.training.callbacks import CallbackState
from diffusion.training.checkpoint import Checkpoints, Restored, open_checkpoints
from diffusion.training.experiment import Experiment
from diffusion.training.state import TrainState, host_target, init_state, make_init

# Of the record and the rows.
_MADE = ('report.md', 'references.bib', 'curves.png', 'samples.png', 'nearest.png', 'events')


class Position(NamedTuple):
  """Two numbers that stay two: `step` goes back in a rollback, `batches_seen` never does."""

  step: int
  batches_seen: int

  def after(self, steps: int) -> 'Position':
    """So many steps on."""
    return Position(self.step + steps, self.batches_seen + steps)

  def as_row(self) -> dict[str, int]:
    """The two as a row of metrics has them."""
    return {'step': self.step, 'cursor': self.batches_seen}


class Run:
  """One run of an experiment, from its data to its folder. `prepare` makes it; nothing is written before `claim`.

  Attributes:
    experiment: what it does, fitted to the data.
    data: loaded and split.
    config: the numbers that the experiment was built from.
    source: the experiment file; or the name of one that has none, as an experiment from Python.
    folder: of the run; None where nothing is written.
    text: of the experiment file when it started; None where it has none.
    terms: what it may do to a run that is there.
    changes: how it differs from that run, where that is allowed.
    used: the techniques to cite.
    record: run.json.
    target: the shapes and types of its state, NumPy arrays to restore into; None before `resume`.
    position, callback_states: where it stands; the loop moves them.
    kept: what callbacks compute once.
    reason: why training ended; '' while it goes on.
  """

  def __init__(
    self, *, experiment: Experiment, data: SplitData, config: Any, source: pathlib.Path | str,
    folder: pathlib.Path | None, used: list[Technique], record: dict[str, Any], text: bytes | None = None,
    terms: Terms = AS_IT_IS,
  ):  # fmt: skip
    """Keeps what it is given; see the attributes."""
    self.experiment, self.data, self.config = experiment, data, config
    self.source, self.folder, self.used, self.record = source, folder, used, record
    self.text, self.terms, self.changes, self._fresh = text, terms, [], record
    self.position, self.reason = Position(0, 0), ''
    self.callback_states: dict[str, CallbackState] = {
      one.name: one.init() for one in experiment.callbacks
    }
    self.target: Any = None
    self.kept: dict[str, Any] = {}
    self._checkpoints: Checkpoints | None = None
    self._rows = rows.chain()
    self._written = [rows.NOTHING]  # what checkpoints know of the rows, up to where it stands

  @property
  def status(self) -> str:
    """How its last start ended: 'finished', 'diverged' (a guard ended it) or 'interrupted'; 'running' until then."""
    return self.record['status']

  @property
  def num_steps(self) -> int:
    """The last step, which an extension moves; the horizon of schedules stays `experiment.num_steps`."""
    return self.record['num_steps']

  # What is computed from its weights: replicated (parameters, statistics, seed). Compiled when first asked for.

  @functools.cached_property
  def losses(self) -> Callable[..., np.ndarray]:
    """See `program.make_losses`."""
    return program.make_losses(self.experiment, self.data.units)

  @functools.cached_property
  def validate(self) -> Callable[[Any], dict[str, float]]:
    """See `program.make_validate`."""
    return program.make_validate(self.data, self.losses)

  @functools.cached_property
  def sample(self) -> Callable[..., np.ndarray]:
    """(weights, condition, number [n]) -> samples [n, ...] as the data is stored; see `draw.make_sample`."""
    e = self.experiment
    shape = self.data.dataset.x.shape[1:]
    return draw.stored(draw.make_sample(e.model, e.diffusion, e.sampling, shape), self.data.units)

  # Its folder.

  def note(self, **changes: Any) -> None:
    """Changes the record, and run.json with it; what others have noted there meanwhile stays."""
    self.amend(lambda record: changes)

  def amend(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Changes the record as it stands on the disk: `change` says what is new in it."""
    if processes.is_writer():
      self.record = provenance.amend(self.folder, change, self.record)
    else:
      self.record |= change(self.record)

  def claim(self) -> None:
    """Takes the folder, or finds that it is this run's already.

    Raises:
      ValueError: it holds another run. OSError: it cannot be written.
    """
    self._fresh = self.record
    self.changes = processes.from_writer(
      lambda: claiming.claim(self.folder, self._fresh, self.text, self.terms)
    )
    self.record = processes.from_folder(lambda: provenance.read_record(self.folder))

  def adopt(self) -> None:
    """Makes what it changes its own, where it is about to train with that.

    Raises:
      ValueError: its new end has passed. OSError: the folder cannot be written.
    """
    if not self.changes:
      return
    processes.from_writer(
      lambda: claiming.adopt(self.folder, self._fresh, self.text, self.changes, self.position.step)
    )
    self.record = processes.from_folder(lambda: provenance.read_record(self.folder))
    self.changes = []

  def first_state(self) -> TrainState:
    """The state before the first step; of several processes all succeed, or all fail with what any of them says.

    Raises:
      ValueError: as `state.init_state` does.
    """
    with processes.together('the first state'):
      return init_state(self.experiment, self.data.example, self.data.units)

  def make_target(self) -> Any:
    """The shapes and types of its state, without making one."""
    example = self.data.example
    init = make_init(self.experiment, example, self.data.units)
    return host_target(lambda: init(np.uint32(self.experiment.seed), example))

  def resume(self, target: Any) -> Restored | None:
    """Opens the checkpoints, and goes to where the latest was saved.

    Args:
      target: the state's shapes and types, NumPy arrays.

    Returns:
      What was saved there; None where nothing was.

    Raises:
      ValueError: another process has the folder, or checkpoints are gone and none can be read.
    """
    self.target = target
    self._checkpoints = open_checkpoints(self.folder / 'checkpoints')
    try:
      found = restore(self._checkpoints, target, 'latest')
      self._check_saved(found)
    except BaseException:
      self.close()
      raise
    if found is not None:
      self.position = Position(found.record['step'], found.number)
      self.callback_states |= found.record['callbacks']
      self.reason = found.record['reason'] or ''
      self._written = self._checkpoints.written()
    return found

  def _check_saved(self, found: Restored | None) -> None:
    """Raises ValueError if checkpoints were saved and none was found; says so if the newest is gone."""
    saved = self.record['saved']
    if found is None and saved is not None:
      raise processes.Agreed(
        f'{self.folder} was saved at step {saved["step"]}, and none of its checkpoints is there: put them back, choose '
        'another --workdir, or give --restart, which sets aside what is there and begins anew'
      )
    if found is None:
      return
    if saved is None or saved['number'] < found.number:  # a kill came before it was noted
      self._note_saved(found.number, found.record['step'], found.metric)
    elif saved['number'] > found.number:
      gone = f'checkpoint {saved["number"]}, the newest, of step {saved["step"]}, is gone'
      self.tell('lost', f'{gone}: going on from step {found.record["step"]}')

  def _note_saved(self, number: int, step: int, metric: float) -> None:
    """Notes which checkpoint is the newest that counts, and which had the lowest metric, be it there or not."""
    this = {'number': number, 'step': step, 'metric': metric}

    def change(record: dict[str, Any]) -> dict[str, Any]:
      saved = record['saved']
      best = this if saved is None else min(this, saved['best'], key=_rank)
      return {'saved': {'number': number, 'step': step, 'best': best}}

    self.amend(change)  # as the disk has it: the thread that saves calls this beside the loop's

  def tell(self, about: str, said: str) -> None:
    """Says something about this start, and notes it there in its record."""
    print(said, flush=True)
    *before, start = self.record['starts']
    self.note(starts=[*before, start | {about: said}])

  def open_rows(self, *shown: rows.Sink) -> None:
    """Opens the files of rows where the run stands: what they hold beyond it is of a start that was killed.

    Rows are written to `shown` as well, on the process that writes.
    """
    path = self.folder / 'metrics.jsonl'
    if processes.is_writer():
      differing = rows.differing(path, self._written, self.position.batches_seen, 'cursor')
      if differing:
        self._mend_rows(path, differing)
      # The file first: it alone is flushed row by row, and its error names it.
      self._rows = rows.chain(
        rows.json_lines(path, self.position.batches_seen, key='cursor'),
        rows.tensorboard(self.folder / 'events', self.position.step),
        *shown,
      )

  def check_files(self) -> None:
    """Says, and notes, where rows of a run that is over are not those that were written, or what it made is gone."""
    path = self.folder / 'metrics.jsonl'
    if not processes.is_writer():
      return
    differing = rows.differing(path, self._written, self.position.batches_seen, 'cursor')
    if differing:
      self.tell('rows', f'{path.name} is not as it was written ({differing})')
    gone = set(self.record.get('made', ())).difference(self.made())  # older records have none
    if gone:
      self.tell('gone', f'{", ".join(sorted(gone))}: gone; --mode=evaluate makes a report anew')

  def made(self) -> list[str]:
    """What is there of all that is made of the record and the rows."""
    return [name for name in _MADE if (self.folder / name).exists()]

  def _mend_rows(self, path: pathlib.Path, differing: str) -> None:
    """Says how the rows differ from those that were written, keeps them so, and goes on with what is left of them."""
    kept = ''
    if path.exists():
      copy = encoding.aside(self.folder, path.name)
      shutil.copyfile(path, copy)
      encoding.write(path, b''.join(line for line, _ in rows.salvaged(copy, 'cursor')))
      kept = f', kept as {copy.relative_to(self.folder)}'
    self.tell(
      'rows', f'{path.name} is not as it was written ({differing}){kept}: going on with the rest'
    )

  def write(self, row: Mapping[str, Any], timing: Mapping[str, float]) -> None:
    """Writes a row of metrics."""
    if 'steps_per_second' in timing:
      images = timing['steps_per_second'] * self.experiment.batch_size
      timing = timing | {'images_per_second': images}
    self._rows.write(row, timing)

  def save(self, replicated: TrainState, metric: float = math.inf, guarded: bool = False) -> None:
    """Saves the state where the run stands; it counts once it and the rows before it are on the disk.

    Args:
      replicated: the state.
      metric: by which it may be the best, smaller is better.
      guarded: a guard may go back to it.
    """
    record = {
      'step': self.position.step,
      'callbacks': self.callback_states,
      'reason': self.reason or None,
      'devices': devices.describe()['devices'],
    }
    number, step = self.position.batches_seen, self.position.step
    self._checkpoints.save(
      number,
      devices.to_host(replicated),
      record,
      metric,
      self._rows.written(),
      before=self._rows.sync,
      after=lambda counted: self._note_saved(number, step, counted),
      guarded=guarded,
    )

  def go_back(self, steps: int) -> TrainState | None:
    """Turns back to what a guard saved at least so many steps ago, and returns that state; None if there is nothing.

    The batches seen since are passed over. What was saved between there and here is never gone back to. What a guard
    has counted stays, or it would forget why it went back.
    """
    found = self._checkpoints.restore(self.target, 'guarded', self.position.batches_seen - steps)
    if found is None:
      return None
    self._checkpoints.untag(beyond=found.number)
    survivors = [one.name for one in self.experiment.callbacks if one.survives_rollback]
    kept = {name: self.callback_states[name] for name in survivors}
    self.callback_states = found.record['callbacks'] | kept
    print(f'step {self.position.step}: going back to step {found.record["step"]}', flush=True)
    self.position = Position(found.record['step'], self.position.batches_seen)
    return found.state

  def wait(self) -> None:
    """Waits until what is being saved is on the disk."""
    self._checkpoints.wait()

  def close(self) -> None:
    """Waits for what is being saved, and closes the folder."""
    with contextlib.ExitStack() as stack:
      stack.callback(self._rows.close)
      if self._checkpoints is not None:
        stack.callback(self._checkpoints.close)
    self._checkpoints, self._rows = None, rows.chain()

  def say_data(self) -> None:
    """Says what was found in the data, if anything was."""
    said = found_in_words(self.record['data'])
    if said:
      print(said, flush=True)

  def say_resumed(self, saved: Mapping[str, Any]) -> None:
    """Says that the run goes on from what was `saved`."""
    print(f'resuming from step {self.position.step}', flush=True)
    self.note_devices(saved)

  def note_devices(self, saved: Mapping[str, Any]) -> None:
    """Says, and notes in this start's record, if it goes on with another number of devices than it was `saved` on."""
    before, now = saved['devices'], devices.describe()['devices']
    if before != now:
      print(
        f'saved on {before} devices, going on with {now}: the same run up to rounding', flush=True
      )
      resharded = {'step': saved['step'], 'from': before, 'to': now}
      self.note(
        starts=[*self.record['starts'][:-1], self.record['starts'][-1] | {'resharded': resharded}]
      )


def prepare(
  build: Callable[[Any], Experiment],
  config: Any,
  source: pathlib.Path | str,
  folder: pathlib.Path | None,
  *,
  smoke: bool = False,
  terms: Terms = AS_IT_IS,
) -> Run:
  """Builds an experiment, checks it and loads its data; nothing is written.

  Of several processes all succeed, or all fail with what any of them has to say.

  Args:
    build: numbers -> Experiment.
    config: the numbers, a dataclass or a mapping.
    source: the experiment file, or the name of an experiment without one.
    folder: of the run.
    smoke: the numbers are those of a smoke run.
    terms: what it may do to a run that is there.

  Raises:
    ValueError: one readable error for what does not fit together.
  """
  with processes.together('the start'):
    if folder is not None:
      checks.short_enough(folder)
      trees.check_folder(folder)
    text = None if isinstance(source, str) else _text(source)
    experiment = build(config)
    devices.choose_convolutions()  # before JAX starts, with the check
    experiments.check(experiment)
    data = experiments.load_data(experiment, _recorded_classes(None if terms.restart else folder))
    experiment = experiments.resolved(experiment, data.dataset.levels)
    used, built = techniques(experiment), fingerprint.describe(experiment)
    experiment = experiments.fitted(experiment, data.units)
  processes.check_same('the data', data.split.fingerprint)
  same = [fingerprint.digest(built), checkout.code_digest(''), devices.settings()]
  processes.check_same('what is built, and by which code', same)
  record = _fresh_record(experiment, data, config, source, used) | {
    'smoke': smoke,
    'source': claiming.source_digest(text),
    'null_learned': experiments.null_is_learned(experiment, data),
    'fingerprint': {'digest': fingerprint.digest(built), 'built': built},
  }
  return Run(
    experiment=experiment, data=data, config=config, source=source, folder=folder, used=used, record=record,
    text=text, terms=terms,
  )  # fmt: skip


def _text(source: pathlib.Path) -> bytes:
  """The experiment file; raises ValueError where it was edited since Python read it."""
  text = source.read_bytes()
  if not user_code.is_running(source, text):
    raise ValueError(f'{source} was edited while it was starting: start it again')
  return text


def _recorded_classes(folder: pathlib.Path | None) -> list[str]:
  """The class names of the run in a folder, in their order there; none where there is no run."""
  if folder is None or not (folder / 'run.json').exists():
    return []
  return provenance.read_record(folder)['data']['class_names']


def techniques(experiment: Experiment) -> list[Technique]:
  """What a checked experiment uses: what it holds, but for terms whose factor is 0, and what its sampling holds."""
  _, planned = plan.rehearsed(experiment.sampling, experiment.diffusion)
  live = experiment._replace(terms=experiments.live_terms(experiment))
  used = citations.techniques((live, planned))
  numbers = {
    gradient.accumulated: experiment.micro_batches > 1,
    gradient.noise_estimates: experiment.gradient_noise,
  }
  return used + [function.technique for function, is_on in numbers.items() if is_on]


def restore(checkpoints: Checkpoints, target: Any, which: str) -> Restored | None:
  """A checkpoint, None if there is none; says so when a newer one was damaged.

  Args:
    checkpoints: of the run, open.
    target: the state's shapes and types, NumPy arrays.
    which: 'latest' or 'best'.

  Raises:
    ValueError: checkpoints none of which can be read.
  """
  restored = checkpoints.restore(target, which)
  if restored is not None and any(number > restored.number for number in restored.damaged):
    print(f'going on from checkpoint {restored.number}, the one before', flush=True)
  return restored


def _rank(saved: Mapping[str, Any]) -> tuple[float, int]:
  """By which the best of what was saved comes first: of equal ones the newest, as `Checkpoints` has it."""
  return saved['metric'], -saved['number']


def lost_best(record: Mapping[str, Any], judged: Restored) -> dict[str, Any] | None:
  """What the record of a run knows of its best checkpoint, where another one was restored for it; else None."""
  saved = record['saved']
  there = {'number': judged.number, 'metric': judged.metric}
  return saved['best'] if saved is not None and _rank(saved['best']) < _rank(there) else None


def data_record(data: SplitData) -> dict[str, Any]:
  """What run.json says of the data: names, shapes, sizes, fingerprints."""
  dataset = data.dataset
  return {
    'name': dataset.name,
    'note': dataset.note,
    'shape': list(dataset.x.shape[1:]),
    'levels': dataset.levels,
    'mean': data.units.mean,
    'deviation': data.units.deviation,
    'fingerprint': data.split.fingerprint,
    'class_names': list(dataset.class_names),
    'condition': conditions.describe(dataset.condition) if dataset.condition is not None else None,
    'found': dict(dataset.found),
    'examples': data.sizes,
    'split_hashes': data.split.hashes,
  }


def found_in_words(data: Mapping[str, Any]) -> str:
  """One line of what was found in the data of a record; '' for nothing."""
  said = '; '.join(f'{name}: {value}' for name, value in data['found'].items())
  return said and f'data {data["name"]}: {said}'


def _fresh_record(
  experiment: Experiment,
  data: SplitData,
  config: Any,
  source: pathlib.Path | str,
  used: list[Technique],
) -> dict[str, Any]:
  return {
    'format': provenance.RECORD_FORMAT,
    'experiment': source if isinstance(source, str) else source.stem,
    'config': provenance.config_to_json(config),
    'data': data_record(data),
    'bank': {
      'log_snr': list(experiment.evaluation_noise.log_snr),
      'draws': experiment.evaluation_noise.draws,
    },
    'seed': experiment.seed,
    'num_steps': experiment.num_steps,
    'techniques': [technique._asdict() for technique in used],
    'starts': [_start(source)],
    'status': 'running',
    'reason': '',
    'step': 0,
    'wall_seconds': 0.0,
    'extended_at': None,
    'results': None,
    'speed': None,
    'peak_memory': None,
    'saved': None,
    'samples': [],
    'evaluations': [],
  }


def _start(source: pathlib.Path | str) -> dict[str, Any]:
  """What each start is recorded with."""
  return {
    'time': provenance.now(),
    'command': provenance.command(),
    'code': checkout.code(None if isinstance(source, str) else source),
    'versions': provenance.versions(),
    'settings': devices.settings(),
    'environment': devices.environment(),
    'devices': devices.describe(),
  }
