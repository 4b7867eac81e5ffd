"""What a callback sees of a run in training."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import conditions, devices
from diffusion.process import gaussian
from diffusion.reporting.rows import OWN_GROUPS
from diffusion.runs.attempts import attempt
from diffusion.runs.run import Run
from diffusion.runs.samples import picture
from diffusion.sampling.draw import make_denoiser
from diffusion.training import state as states
from diffusion.training.program import Program
from diffusion.types import Condition, Denoiser


class LookAtRun:
  """A look at a run, between two dispatches: see `callbacks.Look`."""

  def __init__(
    self, run: Run, k: int, program: Program, *, row: Mapping[str, Any], recomputed: bool
  ):
    """At run number k of a program, where its row is not yet written.

    Args:
      run: stands where the program does.
      k: its number in the program.
      program: holds its state.
      row: of this step.
      recomputed: whether the evaluation parameters have batch statistics of their own.
    """
    self.step, self.row = run.position.step, dict(row)
    self.experiment, self.data, self.folder = run.experiment, run.data, run.folder
    self._run, self._k, self._program, self._recomputed = run, k, program, recomputed
    self._weights = self._samples = None

  def log(self, numbers: Mapping[str, float]) -> None:
    """See `callbacks.Look`."""
    for name, value in numbers.items():
      if '/' not in name:
        raise ValueError(
          f'a logged number has a group before its name, e.g. mine/{name}, got {name!r}'
        )
      if name in self.row:
        raise ValueError(
          f'{name} is in the row of step {self.step} already: log it under another name'
        )
      if name.partition('/')[0] in OWN_GROUPS:
        raise ValueError(f"the group of {name} is the run's own: log it under another one")
      if np.ndim(value) or np.asarray(value).dtype.kind not in 'iufb':
        raise ValueError(f'{name} must be one number, got {value!r}')
      self.row[name] = np.asarray(value).item()

  def parameters(self, average: str | None = None) -> Any:
    """See `callbacks.Look`."""
    if average is None:
      return devices.to_host(self.weights()[0])
    state = self._program.get(self._k)
    return devices.to_host(self.experiment.averages[average].read(state.averages[average]))

  def denoiser(self, condition: Condition) -> Denoiser:
    """See `callbacks.Look`."""
    e, (parameters, statistics) = self.experiment, devices.to_host(self.weights()[:2])
    path = gaussian.bind(e.diffusion, parameters.schedule)
    return make_denoiser(
      e.model,
      e.diffusion,
      path,
      parameters.network,
      statistics,
      jax.tree.map(jnp.asarray, condition),
    )

  def samples(self, count: int) -> np.ndarray:
    """See `callbacks.Look`."""
    have = 0 if self._samples is None else len(self._samples)
    if count > have:
      numbers = np.arange(have, count)
      _, condition = self.data.asked(count)
      new = self._run.sample(self.weights(), conditions.take(condition, numbers), numbers)
      self._samples = new if self._samples is None else np.concatenate([self._samples, new])
    return self._samples[:count]

  def picture(self, samples: np.ndarray, name: str) -> None:
    """See `callbacks.Look`."""
    path = self.folder / 'samples' / f'{name}.png'
    given = self.data.pictured, self.data.validation[0], samples, path, f'step {self.step}'
    attempt(path.name, lambda: picture(*given))

  def once(self, key: str, make: Callable[[], Any]) -> Any:
    """See `callbacks.Look`."""
    if key not in self._run.kept:
      self._run.kept[key] = make()
    return self._run.kept[key]

  def weights(self) -> tuple:
    """Replicated (evaluation parameters, their statistics, seed)."""
    if self._weights is None:
      self.recompute_statistics()
      self._weights = states.weights(self.experiment, self._program.get(self._k))
    return self._weights

  def recompute_statistics(self) -> None:
    """Gives the evaluation parameters batch statistics of their own, if they have none of this step."""
    if not self._recomputed:
      self._program.recompute_statistics(self._k)
      self._recomputed = True
