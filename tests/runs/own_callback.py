"""The mixture with a callback of this file's own: `python -m tests.runs.own_callback --workdir=... --smoke`."""

import diffusion
from diffusion import launch
from diffusion.training import callbacks
from experiments.mixture import SMOKE, Config
from experiments.mixture import build as build_mixture


def middle(every):
  """Logs the mean of samples, how often it has looked."""

  def update(state, look):
    state = {'looks': state['looks'] + 1}
    mean = look.samples(50).mean()
    look.log({'mine/mean': mean, 'mine/looks': state['looks']})
    return state, callbacks.Continue()

  return callbacks.Callback('middle', every, lambda: {'looks': 0}, update)


def build(c: Config) -> diffusion.Experiment:
  """The mixture's experiment and one line."""
  made = build_mixture(c)
  return made._replace(callbacks=[*made.callbacks, middle(c.log_every)])


if __name__ == '__main__':
  launch.run(build, Config(), SMOKE)
