"""What the spike guard does to a run that is hit: an injection fixed beforehand, with and without the guard.

  python -m benchmarks.spike_guard --figure=docs/figures/spike_guard.png

Fixed before any run: the eight-dimensional mixture and residual MLP of `experiments.mixture` with all training
examples, 1,000 steps of 128; x0 times 1,000 for the 5 batches at cursors 403 to 407 (so that two logged windows are
hit); Adam (1e-3) and SGD with momentum 0.95 (0.03), each with and without clipping at norm 1; seeds 0 to 4, each run
clean, hit with the guard, and hit without it. Endpoint: validation/eps of the average after 1,000 steps. A guarded run
has recovered when it lies in the 95 % prediction interval of the clean runs of the five seeds. Each guarded run of seed
0 is made twice and compared to the bit. Clean runs of 5,000 steps a condition, 20,000 in all, count false rollbacks.
"""

import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats
from absl import app, flags, logging

from diffusion import devices, provenance
from diffusion.evaluation import gap
from diffusion.optimizers import chains, clipping, directions, schedules
from diffusion.reporting import drawing, tables
from diffusion.reporting.rows import Sink
from diffusion.runs import tools
from diffusion.runs.session import Session
from diffusion.training import assembly, callbacks, guards, loop
from diffusion.training.checkpoint import open_checkpoints
from experiments import mixture

FIGURE = flags.DEFINE_string('figure', '', 'Where to draw the curves; not drawn by default.')
CLEAN_STEPS = flags.DEFINE_integer('clean_steps', 5_000, 'Steps of each clean count.')
STEPS, SEEDS, HIT = 1000, range(5), range(403, 408)


def _optimizer(direction: str, clip: bool):
  limit = clipping.global_norm(1.0) if clip else None
  if direction == 'Adam':
    return chains.chain(directions.adam(), schedules.constant(1e-3), clip=limit)
  return chains.chain(directions.momentum(0.95), schedules.constant(0.03), clip=limit)


class Condition(NamedTuple):
  """One optimizer, compiled once for calm and for hit batches."""

  name: str
  experiment: Any
  loaded: Any
  calm: assembly.Programs
  hit: assembly.Programs


def condition(direction: str, clip: bool) -> Condition:
  """Compiles a condition."""
  config = mixture.Config(
    train_limit=0, num_steps=STEPS, batch_size=128, steps_per_dispatch=1, log_every=5
  )
  made = mixture.build(config)._replace(
    optimizer=_optimizer(direction, clip), validate_every=50, bank=gap.bank(levels=5, draws=1)
  )
  devices.choose_convolutions(made.data.side())
  loaded = assembly.load_data(made)
  wild = made._replace(augment=lambda keys, batch: batch._replace(x=1e3 * batch.x))
  name = f'{direction}, {"clipping" if clip else "no clipping"}'
  return Condition(
    name, made, loaded, assembly.programs(made, loaded), assembly.programs(wild, loaded)
  )


def run(given: Condition, seed: int, steps: int, hit: range, guarded: bool):
  """(logged rows, last host state, rollbacks) of one run in a folder of its own."""
  # The guard goes back to checkpoints; the other runs save at their end alone.
  calls = [callbacks.checkpoint(), guards.spike_guard(5)] if guarded else []
  made = given.experiment._replace(seed=seed, num_steps=steps, callbacks=calls)
  state = assembly.init_state(made, given.loaded.train[0][:1], given.loaded.units)
  rows, cursor = [], 0

  def dispatch(state, seen):
    nonlocal cursor
    program = given.hit if cursor in hit else given.calm
    cursor += 1
    return program.dispatch(state, seen)

  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    keeper = open_checkpoints(root / 'checkpoints')
    programs = given.calm._replace(dispatch=dispatch)
    session = Session(None, made, given.loaded, programs, [], {})
    sinks = Sink(lambda row, timing: rows.append(row), lambda: None)
    acting = tools.make_tools(session, keeper, sinks, assembly.host_target(state), lambda: None)
    plan = loop.Cadence(steps, 5, 50, 1)
    states = {c.name: c.init() for c in calls}
    outcome = loop.train(devices.replicate(state), loop.Place(0, 0), plan, calls, states, acting)
    keeper.close()
  rollbacks = outcome.callback_states['spike_guard']['rollbacks'] if guarded else 0
  return rows, devices.to_host(outcome.state), rollbacks


def last(rows) -> float:
  """The last held-out loss."""
  return [row['validation/eps'] for row in rows if 'validation/eps' in row][-1]


def identical(a, b) -> bool:
  """Whether two states agree to the bit."""
  return all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def draw(found: dict[str, dict[str, list]], path: str) -> None:
  """Held-out loss against batches drawn, a panel a condition, all seeds."""
  figure = drawing.new_figure(10, 6.4)
  colors = {'clean': drawing.FAINT, 'guard': drawing.BLUE, 'no guard': drawing.ACCENT}
  for i, (name, kinds) in enumerate(found.items()):
    axes = figure.add_subplot(2, 2, i + 1)
    for kind, runs in kinds.items():
      for j, rows in enumerate(runs):
        points = [(r['cursor'], r['validation/eps']) for r in rows if 'validation/eps' in r]
        x, y = np.array(points).T
        axes.plot(x, y, color=colors[kind], linewidth=1.2, label=kind if not j else '')
    axes.axvspan(HIT.start, HIT.stop, color=drawing.ORANGE, alpha=0.5)
    axes.set(yscale='log', xlabel='batches drawn', ylabel='validation/eps')
    axes.set_title(name, loc='left', fontsize=10)
    drawing.style_axes(axes)
    if not i:
      axes.legend(fontsize=8.5)
  drawing.save_figure(figure, path, 'Five batches of x0 times 1,000 (orange), five seeds')


def main(_) -> None:
  """Runs all conditions and prints the tables."""
  logging.set_verbosity(logging.ERROR)
  devices.configure(128, 1)
  print(f'commit {provenance.code()["commit"]}, {devices.describe()}')
  table, curves = [], {}
  for direction in ('Adam', 'SGD'):
    for clip in (True, False):
      given = condition(direction, clip)
      clean = [run(given, seed, STEPS, range(0), False)[0] for seed in SEEDS]
      guarded = [run(given, seed, STEPS, HIT, True) for seed in SEEDS]
      bare = [run(given, seed, STEPS, HIT, False) for seed in SEEDS]
      again = run(given, 0, STEPS, HIT, True)
      false = run(given, 7, CLEAN_STEPS.value, range(0), True)[2]
      ends = np.array([last(rows) for rows in clean])
      half = scipy.stats.t.ppf(0.975, 4) * ends.std(ddof=1) * np.sqrt(1 + 1 / 5)
      low, high = ends.mean() - half, ends.mean() + half
      after = [last(rows) for rows, _, _ in guarded]
      table.append([
        given.name, f'{ends.mean():.4f} [{low:.4f}, {high:.4f}]', ' '.join(f'{x:.4f}' for x in after),
        f'{sum(low <= x <= high for x in after)} of 5', ' '.join(str(r) for _, _, r in guarded),
        'yes' if identical(guarded[0][1], again[1]) else 'NO',
        ' '.join(f'{last(rows):.4g}' for rows, _, _ in bare),
        ' '.join(str(int(state.skipped)) for _, state, _ in bare), false,
      ])  # fmt: skip
      print(table[-1], flush=True)
      curves[given.name] = {
        'clean': clean, 'guard': [r for r, _, _ in guarded], 'no guard': [r for r, _, _ in bare]
      }  # fmt: skip
  head = [
    'condition', 'clean, mean and 95 % prediction', 'hit, with the guard', 'within', 'rollbacks',
    'replays to the bit', 'hit, without', 'skipped without', f'false rollbacks in {CLEAN_STEPS.value:,}',
  ]  # fmt: skip
  print(tables.markdown(head, table))
  if FIGURE.value:
    draw(curves, FIGURE.value)
    print(FIGURE.value)


if __name__ == '__main__':
  app.run(main)
