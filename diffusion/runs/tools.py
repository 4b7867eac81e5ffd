"""What the loop acts through in a real run: devices, checkpoints, pictures, files."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from diffusion import devices
from diffusion.evaluation import memorization
from diffusion.reporting import rows
from diffusion.runs.session import Session, picture, stored_samples
from diffusion.training import assembly, loop
from diffusion.training.checkpoint import Checkpoints


def make_tools(
  session: Session,
  keeper: Checkpoints,
  sinks: rows.Sink,
  target: Any,
  interrupted: Callable[[], str | None],
) -> loop.Tools:
  """The tools of a run; `target` is a host state of the right shapes."""
  experiment, programs = session.experiment, session.programs

  def write(row, timing) -> None:
    if 'steps_per_second' in timing:
      images = timing['steps_per_second'] * experiment.batch_size
      timing = timing | {'images_per_second': images}
    sinks.write(row, timing)

  return loop.Tools(
    dispatch=programs.dispatch,
    validate=lambda state: programs.validate(assembly.weights(experiment, state)),
    write=write,
    interrupted=interrupted,
    settle=programs.settle,
    rescale=rescaled,
    **_keeping(keeper, sinks, target),
    **_looking(session),
  )


def _keeping(keeper: Checkpoints, sinks: rows.Sink, target: Any) -> dict[str, Callable]:
  """What keeps states, and goes back to them."""

  def save(place, state, callback_states, metric, reason, remember) -> None:
    record = {
      'step': place.step,
      'callbacks': callback_states,
      'reason': reason,
      'devices': devices.describe()['devices'],
    }
    # A checkpoint counts once the rows that come before it are on the disk.
    keeper.save(
      place.cursor, devices.to_host(state), record, metric, before=sinks.sync, guarded=remember
    )

  def recall(place, steps, state) -> loop.Remembered | None:
    found = keeper.restore(target, 'guarded', place.cursor - steps)
    if found is None:
      return None
    keeper.untag(found.number)  # the later ones lie on the way to what went wrong
    print(f'step {place.step}: going back to step {found.record["step"]}', flush=True)
    return loop.Remembered(
      found.record['step'], resumed(found.state, state), found.record['callbacks']
    )

  return {'save': save, 'recall': recall}


def _looking(session: Session) -> dict[str, Callable]:
  """What draws from the weights, measures what was drawn, and stores the weights themselves."""
  experiment, programs, loaded = session.experiment, session.programs, session.loaded

  def samples(state, labels) -> np.ndarray:
    return stored_samples(
      programs.sample, assembly.weights(experiment, state), labels, loaded.units
    )

  def draw(step, state) -> None:
    path = session.folder / 'samples' / f'step_{step:08d}.png'
    data = loaded.dataset
    labels = assembly.picture_labels(experiment, data.levels, data.num_classes)
    picture(data, loaded.validation[0], samples(state, labels), path, f'step {step}')

  watch = functools.cache(lambda: memorization.watch(loaded.train_in_memory[0], loaded.held_out[0]))

  def measure(state, per_class) -> dict[str, float]:
    labels = assembly.class_labels(loaded.dataset.num_classes, per_class)
    return watch()(samples(state, labels))

  def snapshot(step, state) -> None:
    averages = devices.to_host(
      {n: a.read(state.averages[n]) for n, a in experiment.averages.items()}
    )
    folder = session.folder / 'snapshots'
    folder.mkdir(exist_ok=True)
    ocp.save(folder.absolute() / f'step_{step:08d}', averages, overwrite=True)

  return {'draw': draw, 'measure': measure, 'snapshot': snapshot}


def rescaled(state: Any, scale: float) -> Any:
  """A replicated state with this learning-rate scale."""
  kind = state.learning_rate_scale.dtype
  return state._replace(learning_rate_scale=devices.replicate(np.asarray(scale, kind)))


def resumed(remembered: Any, now: Any) -> Any:
  """A remembered host state, to go on from at the replicated state `now`: replicated.

  It has the old state's trajectory and the new one's data: the cursor stays, so that the batches since are not seen
  again, and what was skipped stays counted.
  """
  here = devices.to_host((now.cursor, now.skipped))
  state = remembered._replace(
    cursor=here[0], skipped=here[1], skipped_in_a_row=np.zeros_like(here[1])
  )
  return devices.replicate(jax.tree.map(np.asarray, state))
