"""Whole runs with what acts on the trajectory: rollback, plateaus, snapshots, and what a restart makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices
from diffusion.optimizers import averaging
from diffusion.reporting.rows import Sink
from diffusion.runs import loading, tools
from diffusion.runs.session import Session
from diffusion.training import assembly, callbacks, guards, loop
from diffusion.training.callbacks import Callback, Continue, SetLearningRateScale
from diffusion.training.checkpoint import open_checkpoints
from tests.training import tiny

AVERAGES = {
  'ema': averaging.ema(0.9), 'narrow': averaging.power(0.05), 'wide': averaging.power(0.1),
  'middle': averaging.power(0.07),
}  # fmt: skip


def experiment(*more, **changes):
  return tiny.experiment(
    num_steps=200, log_every=5, validate_every=50,
    averages={name: AVERAGES[name] for name in ('ema', 'narrow', 'wide')},
    callbacks=[callbacks.checkpoint(), guards.spike_guard(5, back=20, minimum=8), *more], **changes,
  )  # fmt: skip


@functools.cache
def compiled(averages):
  """The programs of calm and of hit batches; callbacks are no part of them."""
  made = experiment()
  made = made._replace(averages={name: AVERAGES[name] for name in averages})
  wild = made._replace(augment=lambda keys, batch: batch._replace(x=1e3 * batch.x))
  return [assembly.programs(one, assembly.load_data(made)) for one in (made, wild)]


class Run:
  """A run in memory with real checkpoints; batches at the cursors of `bad` are multiplied by 1,000."""

  def __init__(self, folder, made, bad=(), interrupt_at=None):
    self.made, self.folder, self.rows = made, folder, []
    self.loaded, self.first, _ = tiny.start(made)
    programs = compiled(tuple(made.averages))
    self.cursor, self.interrupt_at = 0, interrupt_at

    def dispatch(state, seen):
      self.cursor = seen + 1
      return programs[seen in bad].dispatch(state, seen)

    self.programs = programs[0]._replace(dispatch=dispatch)

  def go(self):
    keeper = open_checkpoints(self.folder / 'checkpoints')
    target = assembly.host_target(self.first)
    restored = keeper.restore(target, 'latest')
    place, state = loop.Place(0, 0), self.first
    states = {c.name: c.init() for c in self.made.callbacks}
    if restored:
      place = loop.Place(restored.record['step'], restored.number)
      state, states = restored.state, restored.record['callbacks']
    self.cursor = place.cursor
    session = Session(None, self.made, self.loaded, self.programs, [], {})
    session = session._replace(setting=type('S', (), {'workdir': self.folder}))
    sinks = Sink(lambda row, timing: self.rows.append(row), lambda: None)
    stop = lambda: 'SIGTERM' if self.cursor == self.interrupt_at else None  # noqa: E731
    made = tools.make_tools(session, keeper, sinks, target, stop)
    plan = loop.Cadence(self.made.num_steps, self.made.log_every, self.made.validate_every, 1)
    outcome = loop.train(devices.replicate(state), place, plan, self.made.callbacks, states, made)
    keeper.close()
    return outcome


BAD = range(100, 105)


def test_a_spike_is_rolled_back_and_the_run_ends_as_a_calm_one(tmp_path, capsys):
  calm = Run(tmp_path / 'calm', experiment()).go()
  hit = Run(tmp_path / 'hit', experiment(), BAD)
  outcome = hit.go()
  assert outcome.reason == 'all 200 steps done'
  assert outcome.callback_states['spike_guard']['rollbacks'] == 1
  assert outcome.place.step == 200 < outcome.place.cursor
  state = devices.to_host(outcome.state)
  assert int(state.cursor) == outcome.place.cursor
  assert 'going back to step' in capsys.readouterr().out
  rows = [row for row in hit.rows if row['cursor'] <= 110]
  assert max(row['loss'] for row in rows) > 1e3  # it was hit
  assert hit.rows[-1]['validation/eps'] < 1.0
  assert calm.callback_states['spike_guard']['rollbacks'] == 0


def test_a_run_that_was_rolled_back_replays_and_resumes_to_the_bit(tmp_path):
  whole = Run(tmp_path / 'whole', experiment(), BAD)
  expected = tiny.leaves(devices.to_host(whole.go().state))
  again = Run(tmp_path / 'again', experiment(), BAD)
  for name, value in tiny.leaves(devices.to_host(again.go().state)).items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)
  # Interrupted before the spike, between spike and end, each time resumed.
  parts, rows = [93, 125, None], []
  for at in parts:
    part = Run(tmp_path / 'parts', experiment(), BAD, interrupt_at=at)
    outcome = part.go()
    rows += part.rows
  for name, value in tiny.leaves(devices.to_host(outcome.state)).items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)
  assert [row['cursor'] for row in rows] == [row['cursor'] for row in whole.rows]
  np.testing.assert_array_equal([r['loss'] for r in rows], [r['loss'] for r in whole.rows])


def test_a_learning_rate_scale_acts_from_the_next_step_and_is_in_the_checkpoint(tmp_path):
  halve = Callback(
    'halve', 50, dict, lambda s, e: (s, SetLearningRateScale(0.5) if e.step == 100 else Continue())
  )
  run = Run(tmp_path / 'r', experiment(halve))
  outcome = run.go()
  rates = {row['step']: row['learning_rate'] for row in run.rows}
  np.testing.assert_allclose([rates[100], rates[105], rates[200]], [1e-2, 5e-3, 5e-3], rtol=1e-6)
  assert float(devices.to_host(outcome.state).learning_rate_scale) == 0.5


def test_snapshots_of_two_tracks_make_an_average_of_a_width_between(tmp_path):
  """Against the average of that width, tracked directly in the same run; every leaf, relative in norm."""
  made = experiment(callbacks.snapshots(20))
  made = made._replace(averages=AVERAGES)
  outcome = Run(tmp_path / 'r', made).go()
  (
    tmp_path / 'r' / 'snapshots' / 'step_00000210.orbax-checkpoint-tmp'
  ).mkdir()  # as a kill leaves it
  kept = loading.load_snapshots(tmp_path / 'r')
  assert list(kept) == list(range(20, 201, 20))
  snapshots = [kept[step][name] for step in kept for name in ('narrow', 'wide')]
  steps = [step for step in kept for _ in range(2)]
  found = averaging.reconstruct(snapshots, steps, [0.05, 0.10] * len(kept), 200, 0.07)
  state = devices.to_host(outcome.state)
  direct = made.averages['middle'].read(state.averages['middle'])
  a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (found, direct))
  error = np.linalg.norm(a - b) / np.linalg.norm(b)
  print(f'reconstruction of width 0.07 from 0.05 and 0.10: relative error {error:.2e}')
  assert error < 1e-3


def test_a_folder_without_snapshots_is_named(tmp_path):
  with pytest.raises(ValueError, match='no snapshots in'):
    loading.load_snapshots(tmp_path)


def test_an_ensemble_samples_from_the_mean_of_its_members(tmp_path):
  from diffusion.data import pipeline
  from diffusion.training.experiment import Sampling

  plan = Sampling(steps=4, wrappers=())
  runs = []
  for seed in (1, 2):
    made = tiny.experiment(seed=seed, sampling=plan)
    _, state, _ = tiny.start(made)
    moved = jax.tree.map(lambda p: p + 0.1, state.params)
    runs.append(loading.Run(made, 0, state, (8,), pipeline.Units(), 2, moved))
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


def test_memorization_is_logged_while_training_and_after_a_restart(tmp_path):
  """Rows of their own, the same in a run cut in two as in one that was not."""
  made = experiment(callbacks.watch_memorization(50, per_class=20))
  whole, cut = Run(tmp_path / 'a', made), Run(tmp_path / 'b', made, interrupt_at=120)
  whole.go()
  cut.go()
  cut.interrupt_at = None
  cut.go()

  def found(run):
    return [row for row in run.rows if 'memorized/fraction' in row]

  assert [row['step'] for row in found(whole)] == [50, 100, 150, 200]
  assert found(cut) == found(whole)
  for row in found(whole):
    assert row['memorized/low'] <= row['memorized/fraction'] <= row['memorized/high']
    assert 0 <= row['memorized/null'] < 0.2  # held-out examples in eight dimensions
    assert 0 < row['memorized/ratio'] <= 1
    assert 'loss' not in row
