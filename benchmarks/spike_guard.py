"""What the spike guard does to a run that is hit: an injection fixed beforehand, with and without the guard.

  python -m benchmarks.spike_guard --figure=docs/figures/spike_guard.png

Fixed before any run: the eight-dimensional mixture and residual MLP of `experiments.mixture` with all training
examples, 1,000 steps of 128; x0 times 1,000 for the 5 batches at cursors 403 to 407 (so that two logged windows are
hit); Adam (1e-3) and SGD with momentum 0.95 (0.03), each with and without clipping at norm 1; seeds 0 to 4, each run
clean, hit with the guard, and hit without it. Endpoint: validation/eps of the average after 1,000 steps. A guarded run
has recovered when it lies in the 95 % prediction interval of the clean runs of the five seeds. Each guarded run of seed
0 is made twice and compared to the bit. Clean runs of 5,000 steps a condition, 20,000 in all, count false rollbacks.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats
from absl import app, flags, logging

from diffusion import checkout, devices
from diffusion.evaluation import gap
from diffusion.optimizers import chains, clipping, optimizers, schedules
from diffusion.reporting import drawing, tables
from diffusion.reporting.rows import read_json_lines
from diffusion.runs import loop
from diffusion.runs.run import Run, prepare
from diffusion.statistics import Interval
from diffusion.training import callbacks, guards
from diffusion.training.program import Fetch, SingleRun
from experiments import mixture

FIGURE = flags.DEFINE_string('figure', '', 'Where to draw the curves; not drawn by default.')
CLEAN_STEPS = flags.DEFINE_integer('clean_steps', 5_000, 'Steps of each clean count.')
STEPS, SEEDS, HIT = 1000, range(5), range(403, 408)


def _optimizer(direction: str, clip: bool):
  limit = clipping.global_norm(1.0) if clip else None
  if direction == 'Adam':
    return chains.chain(optimizers.adam(), schedules.constant(1e-3), clip=limit)
  return chains.chain(optimizers.momentum(0.95), schedules.constant(0.03), clip=limit)


class Condition(NamedTuple):
  """One optimizer, and the calm and the wild program of each (seed, steps) that was trained so far."""

  name: str
  direction: str
  clip: bool
  programs: dict[tuple[int, int], tuple[SingleRun, SingleRun]]

  def build(self, config: mixture.Config) -> Any:
    """The experiment."""
    return mixture.build(config)._replace(
      optimizer=_optimizer(self.direction, self.clip), validate_every=50, callbacks=[],
      evaluation_noise=gap.evaluation_noise(levels=5, draws=1),
    )  # fmt: skip


def condition(direction: str, clip: bool) -> Condition:
  """A condition of which nothing was trained yet."""
  return Condition(f'{direction}, {"clipping" if clip else "no clipping"}', direction, clip, {})


def program(given: Condition, trained: Run, hit: range) -> SingleRun:
  """The program of a run, which multiplies x0 by 1,000 in the batches `hit`."""
  made, data = trained.experiment, trained.data
  which = made.seed, made.num_steps
  if which not in given.programs:
    wild = made._replace(augment=lambda keys, batch: batch._replace(x=1e3 * batch.x))
    given.programs[which] = SingleRun(made, data), SingleRun(wild, data)
  calm, wild = given.programs[which]

  def dispatch(seen: Sequence[int | None]) -> Fetch:
    if seen[0] not in hit:
      return SingleRun.dispatch(calm, seen)
    wild.put(0, calm.get(0))
    fetch = wild.dispatch(seen)
    calm.put(0, wild.get(0))
    return fetch

  calm.dispatch = dispatch
  return calm


def run(given: Condition, seed: int, steps: int, hit: range, guarded: bool):
  """(logged rows, last host state, rollbacks) of one run in a folder of its own."""

  def build(config: mixture.Config) -> Any:
    # The guard goes back to checkpoints; the other runs save at their end alone.
    calls = [callbacks.checkpoint(), guards.spike_guard(config.log_every)] if guarded else []
    return given.build(config)._replace(callbacks=calls)

  config = mixture.Config(
    seed=seed, train_limit=0, num_steps=steps, batch_size=128, steps_per_dispatch=1, log_every=5
  )
  with tempfile.TemporaryDirectory() as folder:
    made = prepare(build, config, pathlib.Path(mixture.__file__), pathlib.Path(folder) / 'run')
    first, trained = made.first_state(), program(given, made, hit)
    made.claim()
    with contextlib.closing(made):
      made.resume(made.make_target())
      made.open_rows()
      trained.put(0, devices.replicate(first))
      loop.train([made], trained, lambda: None)
    rows = read_json_lines(made.folder / 'metrics.jsonl')
  rollbacks = made.callback_states['spike_guard']['rollbacks'] if guarded else 0
  return rows, devices.to_host(trained.get(0)), rollbacks


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
  print(f'commit {checkout.code()["commit"]}, {devices.describe()}')
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
        given.name, Interval(ends.mean(), low, high), ' '.join(f'{x:.4f}' for x in after),
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
