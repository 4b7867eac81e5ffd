"""What every run must keep, whatever is inside: a skipped step, the split, the evaluation parameters, the keys.

This file is an experiment too, whose pieces are spies: `python -m tests.test_wiring --workdir=... --config.spy=FILE`
trains it, and FILE gets a line for every call of a piece. Nothing here knows the engine, only what an experiment file
imports and what a run leaves in its folder.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import diffusion
from diffusion import launch
from diffusion.data import sources, splits
from diffusion.evaluation import gap
from diffusion.evaluation.metric import Metric, MetricResult, check_nothing
from diffusion.models import dropout, mlp, normalization
from diffusion.objectives import losses, times, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.training.callbacks import Callback, Save, Stop
from diffusion.types import Average, Curriculum
from tests.programs import Program

ROOT = pathlib.Path(__file__).parent.parent
BITS = 8  # of an example's number, which it bears as signs; a ninth entry is there to be spoiled
EXAMPLES, ROWS = 160, 20  # 96 to train on, so that a batch may cross from one epoch into the next
SPOILED = 7  # the training row that is NaN while the run is spoiled
# Of a saved state: what a skipped step moves by one, and where the sums of the next logged row are.
COUNTERS, WINDOW = {'step', 'batches_seen', 'skipped', 'skipped_in_a_row'}, 'window'


@dataclasses.dataclass
class Config:
  """Numbers of a tiny run whose pieces are spies."""

  spy: str = ''
  seed: int = 0
  num_steps: int = 10
  batch_size: int = ROWS
  every: int = 5
  learning_rate: float = 1e-3
  batch_norm: bool = True
  spoil: bool = False


def signs() -> np.ndarray:
  """Example i is its number in binary, as signs."""
  bits = 2.0 * (np.arange(EXAMPLES)[:, None] >> np.arange(BITS) & 1) - 1
  return np.concatenate([bits, np.ones((EXAMPLES, 1))], axis=1).astype(np.float32)


def numbers(x: np.ndarray) -> list[int]:
  """The examples' numbers, of those rows that are near to one."""
  x = np.asarray(x)[:, :BITS]
  x = x[(np.abs(np.abs(x) - 1) < 0.1).all(1)]
  return ((x > 0) @ (1 << np.arange(BITS))).tolist()


def write(spy: str, what: str, **found) -> None:
  with open(spy, 'a') as file:  # one line in one piece, from whichever thread
    file.write(
      json.dumps({'what': what} | {n: np.asarray(v).tolist() for n, v in found.items()}) + '\n'
    )


def note(spy: str, what: str, **found) -> None:
  """Writes a line from inside a compiled program."""
  jax.debug.callback(lambda **found: write(spy, what, **found), **found)


def fixed(params):
  """Weights that have nothing to do with these but their shapes."""
  leaves, tree = jax.tree.flatten(params)
  waves = (0.1 * np.sin(1 + i + np.arange(leaf.size)) for i, leaf in enumerate(leaves))
  pairs = zip(waves, leaves, strict=True)
  return jax.tree.unflatten(tree, [jnp.asarray(w.reshape(a.shape), a.dtype) for w, a in pairs])


def frozen() -> Average:
  """An average that follows the weights and is read as something else."""

  def init(params):
    return {'live': jax.tree.map(jnp.copy, params), 'fixed': fixed(params)}

  return Average(init, lambda state, params: state | {'live': params}, lambda state: state['fixed'])


def spied(c: Config, made: diffusion.Experiment) -> diffusion.Experiment:
  """The experiment with every piece that a user may write telling what it is given."""
  ((factor, term),) = made.terms.values()

  def augment(keys, batch):
    note(c.spy, 'augment', x=batch.x, keys=jax.random.key_data(keys))
    return batch

  def draw(state, key, rows, progress, path):
    note(c.spy, 'times', key=jax.random.key_data(key), rows=rows.index)
    return made.times.draw(state, key, rows, progress, path)

  def apply_term(params, context):
    keys = jax.random.key_data(context.keys)
    label = context.batch.condition
    note(c.spy, 'term', x=context.batch.x, label=label, keys=keys, eps=context.eps)
    return term.apply(params, context)

  def apply(variables, z, noise, conditioning, *, keys=None, batch_key=None, **mode):
    params = variables['params']
    off = jax.tree.map(lambda p, known: jnp.abs(p - known).max(), params, fixed(params))
    found = {'z': z, 'off': jnp.stack(jax.tree.leaves(off)).max()}
    if keys is not None:
      found |= {'keys': jax.random.key_data(keys), 'batch_key': jax.random.key_data(batch_key)}
    note(c.spy, 'network', **found)
    return made.model.apply(
      variables, z, noise, conditioning, keys=keys, batch_key=batch_key, **mode
    )

  def keep(state, event):
    """Saves at every row; the first is the best. It stops at a skipped step, so that the two newest lie around it."""
    if event.row['skipped'] or event.step == c.num_steps:
      jax.effects_barrier()
      write(c.spy, 'end of training')
      return state, Stop('seen enough')
    return state, Save(event.step)

  def ask(query, _):
    z = query.x + jax.vmap(lambda key: jax.random.normal(key, query.x.shape[1:]))(query.keys)
    return query.denoise(z, jnp.full(len(z), 0.5)).eps.mean(1)

  def measure(judged):
    parts = {name: numbers(getattr(judged, name)[0]) for name in ('train', 'held_out')}
    labels = {f'{name} label': getattr(judged, name)[1] for name in parts}
    write(c.spy, 'judged', validation=judged.validation, **parts, **labels)
    return [
      MetricResult('asked', float(judged.network.apply(ask, *judged.held_out).mean()), 'mean eps')
    ]

  return made._replace(
    terms={'denoise': (factor, term._replace(apply=apply_term))},
    times=made.times._replace(draw=draw),
    model=made.model._replace(apply=apply),
    augment=augment,
    callbacks=[Callback('keep', c.every, dict, keep)],
    metrics=[Metric(check_nothing, measure)],
  )


def spoil(batch, progress):
  """NaN in one entry of one row, for a span in which an epoch lies."""
  hit = (progress >= 0.5) & (progress < 1) & (batch.index == SPOILED)
  return batch._replace(x=batch.x.at[:, BITS].set(jnp.where(hit, jnp.nan, batch.x[:, BITS])))


def build(c: Config) -> diffusion.Experiment:
  """Dropout, an average that is none, and (if spoiled) everything that learns beside the weights."""
  uneven, label = times.importance(buckets=4), np.arange(EXAMPLES) % 2
  made = diffusion.Experiment(
    seed=c.seed,
    num_steps=c.num_steps,
    batch_size=c.batch_size,
    steps_per_dispatch=c.every,
    log_every=c.every,
    validate_every=max(c.every, 5),
    data=sources.arrays('signs', signs(), label, levels=None, class_names=('even', 'odd')),
    split=splits.Fractions(0.2, 0.2),
    diffusion=gaussian.Diffusion(
      noise.learned(-10.0, 10.0, 4), marginals.variance_preserving, parameterizations.v()
    ),
    model=mlp.mlp(
      8, 1, 0.5, num_classes=2, drops=[dropout.drop_connect(0.1)],
      norm=normalization.batch(0.9) if c.batch_norm else None, zero_outputs=False,
    ),
    terms={'denoise': (1.0, losses.uncertain(weights.uniform('v'), features=4))},
    times=times.curriculum_by_loss(uneven, 4, patience=2) if c.spoil else times.stratified(),
    optimizer=chains.adamw(schedules.constant(c.learning_rate), 0.01, 1.0),
    averages={'ema': averaging.ema(0.9), 'frozen': frozen()},
    evaluation_average='frozen',
    callbacks=[],
    evaluation_noise=gap.evaluation_noise(levels=3, draws=1),
    sampling=diffusion.Sampling(steps=4, wrappers=(), per_class=4),
    curriculum=Curriculum(None, lambda progress: jnp.ones(()), spoil) if c.spoil else None,
  )  # fmt: skip
  return spied(c, made)


class Run:
  """A run that was made: its folder, and what its spies wrote."""

  def __init__(self, folder: pathlib.Path, spy: pathlib.Path):
    self.folder = folder
    self.record = json.loads((folder / 'run.json').read_text())
    rows = (folder / 'metrics.jsonl').read_text().splitlines()
    self.rows = [json.loads(row) for row in rows]
    self.lines = [json.loads(line) for line in spy.read_text().splitlines()]

  def said(self, what: str) -> list[dict]:
    return [line for line in self.lines if line['what'] == what]


def made(root: pathlib.Path, **starts: dict) -> list[Run]:
  """Runs of this file, side by side: name -> its flags."""
  running = []
  for name, flags in starts.items():
    spy = root / f'{name}.jsonl'
    given = {'workdir': root / name, 'config.spy': spy} | flags
    program = Program('tests.test_wiring', *(f'--{n}={v}' for n, v in given.items()))
    running.append((program, given['workdir'], spy))
  for program, _, _ in running:
    status, output = program.finish()
    assert status == 0, output
  return [Run(folder, spy) for _, folder, spy in running]


@pytest.fixture(scope='module')
def spoiled(tmp_path_factory):
  """Ends at a skipped step; of its two devices one held what was not finite."""
  flags = {'config.spoil': True, 'config.every': 1, 'config.num_steps': 24, 'cpu_devices': 2}
  return made(tmp_path_factory.mktemp('wiring'), spoiled=flags)[0]


@pytest.fixture(scope='module')
def judged(tmp_path_factory):
  """Two runs with other learning rates on other numbers of devices, and the first one judged again."""
  root = tmp_path_factory.mktemp('wiring')
  slow = {'config.learning_rate': 1e-3, 'cpu_devices': 1}
  fast = {'config.learning_rate': 1e-1, 'cpu_devices': 4}
  runs = made(root, slow=slow, fast=fast)
  return [
    *runs,
    *made(root, again={'workdir': root / 'slow', 'mode': 'evaluate', 'cpu_devices': 1}),
  ]


def is_judging(line: dict) -> bool:
  """Whether a line tells of the network without dropout."""
  return line['what'] == 'network' and 'keys' not in line


def leaves(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
  """A checkpoint by Orbax alone: path -> array."""
  flat, _ = jax.tree_util.tree_flatten_with_path(ocp.load(checkpoint))
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(a) for path, a in flat}


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> set[str]:
  """The leaves that are not equal to the bit, but for the sums of the next row."""
  assert one.keys() == other.keys()
  found = {name for name in one if one[name].tobytes() != other[name].tobytes()}
  return {name for name in found if name.split('/')[0] != WINDOW}


@pytest.mark.slow
def test_a_skipped_step_leaves_every_leaf_but_the_counters(spoiled):
  last = spoiled.rows[-1]
  assert (last['skipped'], last['skipped_in_a_row']) == (1, 1)
  folder = spoiled.folder / 'checkpoints'
  kept = sorted(int(path.name) for path in folder.iterdir() if path.is_dir())
  assert kept == [1, last['step'] - 1, last['step']]
  first, before, after = (leaves(folder / str(step)) for step in kept)
  changed = differing(before, after)
  assert {'step', 'skipped', 'skipped_in_a_row'} <= changed <= COUNTERS
  assert all(after[name] == before[name] + 1 for name in changed)
  # What learns was there, and had moved in the steps that were not skipped; the names are the pieces' own.
  moved = ' '.join(differing(first, before))
  for piece in (
    'stem/kernel', 'schedule/steepness', 'denoise/slope', 'ema/', 'frozen/live', 'BatchNorm_0/mean', 'mu/', 'nu/',
    'base/square', 'opened',
  ):  # fmt: skip
    assert piece in moved, piece


def hashed(rows: np.ndarray, salt: str) -> str:
  """The hash of a set of examples as `diffusion/data/splits.py` defines it."""
  head = f'{salt}|{rows.dtype.str}|{rows.shape[1:]}|'.encode()
  digests = sorted(hashlib.sha256(head + row.tobytes()).digest() for row in rows)
  return hashlib.sha256(b''.join(digests)).hexdigest()[:16]


@pytest.mark.slow
def test_the_splits_are_disjoint_and_those_of_the_record_and_each_is_used_as_what_it_is(spoiled):
  (given,) = spoiled.said('judged')
  held_out, count = given['held_out'], given['validation']
  parts = {'train': given['train'], 'validation': held_out[:count], 'test': held_out[count:]}
  assert sorted(itertools.chain(*parts.values())) == list(range(EXAMPLES))
  for name in ('train', 'held_out'):
    assert given[f'{name} label'] == [number % 2 for number in given[name]]
  data, x = spoiled.record['data'], signs()
  assert data['examples'] == {name: len(part) for name, part in parts.items()}
  salt = splits.Fractions().salt
  assert data['split_hashes'] == {name: hashed(x[part], salt) for name, part in parts.items()}
  # Every row of the training split once an epoch, and nothing else: after each step some have come once more.
  count = dict.fromkeys(parts['train'], 0)
  batches = spoiled.said('term')
  for step, halves in enumerate(zip(batches[::2], batches[1::2], strict=True), 1):
    for half in halves:
      found = numbers(half['x'])
      assert half['label'] == [number % 2 for number in found]
      for number in found:
        count[number] += 1
    epochs, more = divmod(step * ROWS, len(count))
    assert sorted(count.values()) == [epochs] * (len(count) - more) + [epochs + 1] * more
  assert step == spoiled.rows[-1]['step'] > 2 * len(count) / ROWS
  # While it trains it is evaluated on training and validation rows, the test split is for the end.
  end = spoiled.lines.index({'what': 'end of training'})
  before, after = (
    {number for line in lines if is_judging(line) for number in numbers(line['z'])}
    for lines in (spoiled.lines[:end], spoiled.lines[end:])
  )
  assert set(parts['validation']) <= before <= {*parts['train'], *parts['validation']}
  assert set(parts['test']) <= after


@pytest.mark.slow
def test_evaluation_is_of_the_average_without_dropout(judged):
  slow, fast, again = judged
  for run in judged:
    for line in run.said('network'):
      # The live weights have dropout, the judged ones have not.
      assert (line['off'] > 0) == ('keys' in line)
  assert all('keys' not in line for line in again.said('network'))
  # Nothing that is judged depends on the learning rate, since the average does not; only on the devices, by rounding.
  assert all(
    abs(a['loss'] - b['loss']) > 1e-3 for a, b in zip(slow.rows[1:], fast.rows[1:], strict=True)
  )
  for one, other in zip(slow.rows, fast.rows, strict=True):
    names = [name for name in one if name.startswith(('validation/', 'train/'))]
    assert 'validation/eps' in names
    np.testing.assert_allclose(
      [one[n] for n in names], [other[n] for n in names], rtol=1e-4, atol=1e-6
    )
  results = slow.record['results'], fast.record['results']
  for name in ('validation/eps', 'asked'):
    np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-4)
  first, second, third = (
    np.load(path)['samples']
    for path in (
      slow.folder / 'samples.npz',
      fast.folder / 'samples.npz',
      slow.folder / 'samples_1.npz',
    )
  )
  assert first.shape == (8, BITS + 1)
  np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)
  # The same checkpoint judged in another process is the same to the bit.
  own, evaluation = again.record['evaluations']
  assert evaluation['results'] == own['results'] == slow.record['results']
  np.testing.assert_array_equal(first, third)


def keys(run: Run) -> dict[str, list[tuple]]:
  """purpose -> (key, the number of the example that it is for, if there is one)."""
  network = [line for line in run.said('network') if 'keys' in line]
  found = {
    'times': [(*line['key'], None) for line in run.said('times')],
    'batch': [(*line['batch_key'], None) for line in network],
    'dropout': [(*key, None) for line in network for key in line['keys']],
  }
  for what in ('augment', 'term'):
    pairs = ((line['keys'], numbers(line['x'])) for line in run.said(what))
    found[what] = [(*key, n) for both in pairs for key, n in zip(*both, strict=True)]
  return found


@pytest.mark.slow
def test_no_two_draws_come_from_equal_keys_whatever_the_devices(judged):
  slow, fast, _ = judged
  steps = slow.rows[-1]['step']
  for run in (slow, fast):
    found = keys(run)
    # Batch statistics of the average draw again what the first batches drew, and some more.
    least = {
      'times': steps,
      'batch': steps,
      'dropout': steps * ROWS,
      'augment': steps * ROWS,
      'term': steps * ROWS,
    }
    different = {purpose: set(one) for purpose, one in found.items()}
    assert all(len(different[purpose]) >= count for purpose, count in least.items())
    assert len(found['term']) == len(found['dropout']) == steps * ROWS
    every = [key[:2] for one in different.values() for key in one]
    assert len(set(every)) == len(every)
    eps = np.concatenate([line['eps'] for line in run.said('term')])
    typed = jax.random.wrap_key_data(jnp.asarray(every, jnp.uint32))
    drawn = jax.vmap(jax.random.normal, (0, None))(typed, eps.shape[1:])
    others = np.concatenate([eps, drawn])
    near = np.abs(eps[:, None] - others).max(2) < 1e-3
    assert near.sum() == len(eps)  # each to itself
  one, other = (
    {purpose: set(found) for purpose, found in keys(run).items()} for run in (slow, fast)
  )
  assert one == other


if __name__ == '__main__':
  launch.run(build, Config(), Config(num_steps=5))
