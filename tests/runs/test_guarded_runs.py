"""Whole runs with what acts on the trajectory: rollback, plateaus, snapshots, and what a restart makes of them."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices
from diffusion.data import pipeline
from diffusion.models import mlp, normalization
from diffusion.optimizers import averaging
from diffusion.reporting.rows import read_json_lines
from diffusion.runs import evaluating, loading, loop
from diffusion.runs.run import prepare
from diffusion.sampling.plan import Sampling
from diffusion.training import callbacks, guards
from diffusion.training.callbacks import Callback, Continue, SetLearningRateScale
from diffusion.training.experiment import AS_THE_RUN, load_data
from diffusion.training.program import SingleRun
from diffusion.training.state import host_target
from tests.training import tiny

AVERAGES = {
  'ema': averaging.ema(0.9), 'narrow': averaging.power(0.05), 'wide': averaging.power(0.1),
  'middle': averaging.power(0.07),
}  # fmt: skip


@dataclasses.dataclass
class Config:
  """No numbers: the experiments are made here."""


def experiment(*more, **changes):
  return tiny.experiment(
    num_steps=200, log_every=5, validate_every=50,
    averages=AVERAGES,  # all, so that all runs have one program
    callbacks=[callbacks.checkpoint('step'), guards.spike_guard(5, back=20, minimum=8), *more], **changes,
  )  # fmt: skip


class Spoiled:
  """The `Program` of a run of which some batches are multiplied by 1,000."""

  def __init__(self, made):
    wild = made._replace(augment=lambda keys, batch: batch._replace(x=1e3 * batch.x))
    self.calm, self.wild = (SingleRun(one, load_data(made)) for one in (made, wild))
    self.recompute_statistics, self.validate, self.close = (
      self.calm.recompute_statistics,
      self.calm.validate,
      self.calm.close,
    )
    self.get, self.put = self.calm.get, self.calm.put
    self.bad = ()

  def dispatch(self, seen):
    if seen[0] not in self.bad:
      return self.calm.dispatch(seen)
    self.wild.put(0, self.get(0))
    fetch = self.wild.dispatch(seen)
    self.put(0, self.wild.get(0))
    return fetch


@functools.cache
def compiled():
  """The program of calm and of hit batches; callbacks are no part of it."""
  return Spoiled(experiment())


class Ended:
  """A start of a run that came to its end, or to a signal; the batches of `bad` are multiplied by 1,000."""

  def __init__(self, folder, made, bad=(), interrupt_at=None):
    self.folder = folder
    run = prepare(lambda config: made, Config(), pathlib.Path(__file__), folder)
    run.claim()
    first = run.first_state()
    program = compiled()
    program.bad = bad
    with contextlib.closing(run):
      found = run.resume(host_target(lambda: first))
      program.put(0, devices.replicate(first if found is None else found.state))
      run.open_rows()
      loop.train(
        [run], program, lambda: 'SIGTERM' if run.position.batches_seen == interrupt_at else None
      )
    self.state = devices.to_host(program.get(0))
    self.position, self.reason = run.position, run.reason
    self.callback_states = run.callback_states

  @property
  def rows(self):
    """Those in its folder, of all starts, without the timing."""
    found = read_json_lines(self.folder / 'metrics.jsonl')
    return [{name: value for name, value in row.items() if name != 'timing'} for row in found]


BAD = range(100, 105)


@pytest.fixture(scope='module')
def hit(tmp_path_factory):
  """A run that was hit."""
  return Ended(tmp_path_factory.mktemp('guarded') / 'hit', experiment(), BAD)


def test_a_spike_is_rolled_back_and_the_run_ends_as_a_calm_one(tmp_path, hit):
  calm = Ended(tmp_path / 'calm', experiment())
  assert hit.reason == 'all 200 steps done'
  assert hit.callback_states['spike_guard']['rollbacks'] == 1
  assert hit.position.step == 200 < hit.position.batches_seen
  assert int(hit.state.batches_seen) == hit.position.batches_seen
  rows = [row for row in hit.rows if row['cursor'] <= 110]
  assert max(row['loss'] for row in rows) > 1e3  # it was hit
  assert hit.rows[-1]['validation/eps'] < 1.0
  assert calm.callback_states['spike_guard']['rollbacks'] == 0


def test_a_run_that_was_rolled_back_replays_and_resumes_to_the_bit(tmp_path, hit, capsys):
  expected = tiny.leaves(hit.state)
  again = Ended(tmp_path / 'again', experiment(), BAD)
  assert 'going back to step' in capsys.readouterr().out
  for name, value in tiny.leaves(again.state).items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)
  # Interrupted before the spike, between spike and end, each time resumed.
  for at in (93, 125, None):
    part = Ended(tmp_path / 'parts', experiment(), BAD, interrupt_at=at)
    assert part.position.batches_seen == at or (at is None and part.reason == hit.reason)
    if at == 125:
      # As a start leaves them that is killed: beyond what is saved, and yet of steps before it, as it went back.
      lines = (hit.folder / 'metrics.jsonl').read_text().splitlines(keepends=True)
      beyond = [line for line in lines if json.loads(line)['cursor'] > at]
      assert json.loads(beyond[0])['step'] < at
      with (part.folder / 'metrics.jsonl').open('a') as file:
        file.writelines(beyond[:3])
  for name, value in tiny.leaves(part.state).items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)
  assert part.rows == hit.rows
  assert part.callback_states == hit.callback_states


def test_a_report_counts_the_rollbacks_of_the_whole_run(hit, tmp_path):
  """Also those after its best checkpoint, which here is the one of step 50."""
  folder = shutil.copytree(hit.folder, tmp_path / 'hit')
  made = experiment(sampling=Sampling(steps=2, wrappers=(), per_class=2))
  run = prepare(lambda config: made, Config(), pathlib.Path(__file__), folder)
  evaluating.evaluate(run, 'evaluate', AS_THE_RUN)
  (evaluation,) = run.record['evaluations']
  assert evaluation['sampling']['checkpoint'] == 50
  assert evaluation['results']['rollbacks'] == 1


def test_a_learning_rate_scale_acts_from_the_next_step_and_is_in_the_checkpoint(tmp_path):
  halve = Callback(
    'halve', 50, dict, lambda s, e: (s, SetLearningRateScale(0.5) if e.step == 100 else Continue())
  )
  made = experiment(halve)
  Ended(tmp_path / 'r', made, interrupt_at=103)
  run = Ended(tmp_path / 'r', made)
  rates = {row['step']: row['learning_rate'] for row in run.rows}
  np.testing.assert_allclose([rates[100], rates[105], rates[200]], [1e-2, 5e-3, 5e-3], rtol=1e-6)
  assert float(run.state.learning_rate_scale) == 0.5


def test_snapshots_of_two_tracks_make_an_average_of_a_width_between(tmp_path, capsys):
  """Against the average of that width, tracked directly in the same run; every leaf, relative in norm."""
  made = experiment(callbacks.snapshots(20))
  run = Ended(tmp_path / 'r', made)
  (
    tmp_path / 'r' / 'snapshots' / 'step_00000210.orbax-checkpoint-tmp'
  ).mkdir()  # as a kill leaves it
  kept = loading.load_snapshots(tmp_path / 'r')
  assert list(kept) == list(range(20, 201, 20))
  for name, average in AVERAGES.items():
    wanted = jax.tree.leaves(average.read(run.state.averages[name]))
    for leaf, other in zip(jax.tree.leaves(kept[200][name]), wanted, strict=True):
      np.testing.assert_array_equal(leaf, other, err_msg=name)
  snapshots = [kept[step][name] for step in kept for name in ('narrow', 'wide')]
  steps = [step for step in kept for _ in range(2)]
  found = averaging.reconstruct(snapshots, steps, [0.05, 0.10] * len(kept), 200, 0.07)
  direct = made.averages['middle'].read(run.state.averages['middle'])
  a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (found, direct))
  error = np.linalg.norm(a - b) / np.linalg.norm(b)
  print(f'reconstruction of width 0.07 from 0.05 and 0.10: relative error {error:.2e}')
  assert error < 1e-3
  root = tmp_path / 'r' / 'snapshots'
  (root / 'step_00000040.sha256').unlink()
  assert list(loading.load_snapshots(tmp_path / 'r')) == [20, *range(60, 201, 20)]
  assert 'snapshot step_00000040 is left out: it has no manifest' in capsys.readouterr().out
  file = next(path for path in (root / 'step_00000060').rglob('*') if path.is_file())
  file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
  with pytest.raises(ValueError, match='step_00000060 is damaged .* has changed'):
    loading.load_snapshots(tmp_path / 'r')


def test_a_folder_without_snapshots_is_named(tmp_path):
  with pytest.raises(ValueError, match='no snapshots in'):
    loading.load_snapshots(tmp_path)


def test_an_ensemble_samples_from_the_mean_of_its_members(tmp_path):
  plan = Sampling(steps=4, wrappers=())
  runs = []
  for seed in (1, 2):
    made = tiny.experiment(seed=seed, sampling=plan)
    _, state, _ = tiny.start(made)
    moved = jax.tree.map(lambda p: p + 0.1, state.params)
    trained = loading.Trained(
      experiment=made, step=0, state=state, shape=(8,), units=pipeline.NormalizationStatistics(),
      num_classes=2, parameters=moved
    )  # fmt: skip
    runs.append(trained)
  both = loading.Ensemble(tuple(runs))
  labels = np.array([0, 1, 1])
  z, t = jnp.ones((3, 8)), jnp.full(3, 0.4)
  members = [run.denoiser(labels)(z, t).eps for run in runs]
  np.testing.assert_allclose(both.denoiser(labels)(z, t).eps, np.mean(members, 0), atol=1e-6)
  with jax.enable_x64(True):
    z, t = jnp.ones((3, 8)), jnp.full(3, 0.4)
    members = [run.denoiser(labels)(z, t).eps for run in runs]
    found = np.sqrt(both.disagreement(z, t, labels))
  # Compiled with the variance a network rounds otherwise: eps, of size 1, by some hundred roundings, none magnified
  # more than tenfold. The root is a norm of what eps deviates by from the mean, so it is off by no more than eps is.
  rounding = 4e3 * np.finfo(np.float64).eps
  expected = np.sqrt(np.var(members, axis=0).mean(1))
  np.testing.assert_allclose(found, expected, rtol=0, atol=rounding)
  alone = loading.Ensemble((runs[0],)).sample(labels, 3)
  np.testing.assert_allclose(alone, runs[0].sample(labels, 3), atol=1e-5)
  assert np.abs(both.sample(labels, 3) - alone).max() > 1e-3


def test_an_ensemble_has_the_batch_statistics_of_the_parameters_that_are_evaluated():
  model = mlp.mlp(16, 2, num_classes=2, norm=normalization.batch(0.9))
  made = tiny.experiment(sampling=Sampling(steps=4, wrappers=()), model=model)
  _, state, _ = tiny.start(made)
  state = state._replace(statistics=jax.tree.map(lambda s: s + 3, state.statistics))
  run = loading.Trained(
    experiment=made, step=0, state=state, shape=(8,), units=pipeline.NormalizationStatistics(),
    num_classes=2, parameters=jax.tree.map(lambda p: p + 0.1, state.params)
  )  # fmt: skip
  labels = np.array([0, 1, 1])
  found = loading.Ensemble((run,)).sample(labels, 3)
  np.testing.assert_allclose(found, run.sample(labels, 3), atol=1e-5)
  other = run._replace(state=state._replace(evaluation_statistics=state.statistics))
  assert np.abs(found - other.sample(labels, 3)).max() > 1e-3
  assert np.abs(found - run.sample(labels, 4)).max() > 1e-3
  # Each member has its own: a mean is that of either order, and of the two that there are.
  pairs = [(run, other), (other, run), (run, run), (other, other)]
  both, turned, *alike = (loading.Ensemble(pair).sample(labels, 3) for pair in pairs)
  np.testing.assert_allclose(both, turned, atol=1e-5)
  assert min(np.abs(both - one).max() for one in alike) > 1e-4
  z, t = jnp.ones((3, 8)), jnp.full(3, 0.4)
  plain = run._replace(state=state._replace(statistics=state.evaluation_statistics))
  eps, same, changed = (one.denoiser(labels)(z, t).eps for one in (run, plain, other))
  np.testing.assert_array_equal(eps, same)
  assert np.abs(eps - changed).max() > 1e-3


def test_memorization_is_logged_while_training_and_after_a_restart(tmp_path):
  """In the rows of their steps, the same in a run cut in two as in one that was not."""
  made = experiment(callbacks.watch_memorization(50, per_class=20))
  whole = Ended(tmp_path / 'a', made)
  Ended(tmp_path / 'b', made, interrupt_at=120)
  cut = Ended(tmp_path / 'b', made)

  def found(run):
    return [row for row in run.rows if 'memorized/fraction' in row]

  assert [row['step'] for row in found(whole)] == [50, 100, 150, 200]
  assert found(cut) == found(whole)
  for row in found(whole):
    assert row['memorized/low'] <= row['memorized/fraction'] <= row['memorized/high']
    assert 0 <= row['memorized/null'] < 0.2  # held-out examples in eight dimensions
    assert 0 < row['memorized/ratio'] <= 1
    assert 'loss' in row
