"""The mixture, turned back twice by a callback: a run that is killed in a rollback.

Run     python -m benchmarks.resume.turning --workdir=runs/turning
"""

import dataclasses

from diffusion import Experiment, launch
from diffusion.training.callbacks import Action, Callback, CallbackState, Look, Remember, Rollback
from experiments import mixture


@dataclasses.dataclass
class Config(mixture.Config):
  """The mixture's numbers, and how often to look."""

  every: int = 10


def turning_back(every: int) -> Callback:
  """Goes back at its 9th look and at its 15th; asks for a checkpoint to go back to at every other."""

  def update(state: CallbackState, look: Look) -> tuple[CallbackState, Action]:
    count = state['looks'] + 1
    action = Rollback(3 * every, f'look {count}') if count in (9, 15) else Remember()
    return {'looks': count}, action

  return Callback('turning_back', every, lambda: {'looks': 0}, update, survives_rollback=True)


def build(c: Config) -> Experiment:
  """The experiment of these numbers."""
  made = mixture.build(c)
  return made._replace(callbacks=[*made.callbacks[:1], turning_back(c.every)])


if __name__ == '__main__':
  launch.run(build, Config(), Config())
