"""A small experiment of the real pieces, for tests that need a whole step."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import devices
from diffusion.data import augment, pipeline, sources, splits
from diffusion.data.pipeline import Order
from diffusion.data.splits import SplitData
from diffusion.evaluation import gap
from diffusion.models import mlp, unet
from diffusion.objectives import losses, times, weights
from diffusion.optimizers import averaging, chains, schedules
from diffusion.process import gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.training import experiment as experiments
from diffusion.training import state as states
from diffusion.training import step as steps
from diffusion.training.program import SingleRun
from diffusion.types import Rows


def experiment(**changes) -> experiments.Experiment:
  """A residual MLP on an 8-dimensional mixture; `changes` replace fields of the experiment or these knobs."""
  knob = {
    'dropout': 0.1,
    'weight_decay': 0.01,
    'clip_norm': 1.0,
    'ema_decay': 0.9,
    'learning_rate': 1e-2,
  }
  knob |= {name: changes.pop(name) for name in list(changes) if name in knob}
  means = np.stack([np.ones(8), -np.ones(8)])
  base = experiments.Experiment(
    seed=3,
    num_steps=40,
    batch_size=32,
    log_every=10,
    validate_every=20,
    data=sources.gaussian_mixture(means, np.ones(2), np.full(2, 0.5), 256),
    diffusion=gaussian.Diffusion(
      noise.cosine(), marginals.variance_preserving, parameterizations.v()
    ),
    model=mlp.mlp(16, 2, knob['dropout'], num_classes=2),
    terms={'denoise': (1.0, losses.denoising(weights.uniform('v')))},
    times=times.stratified(),
    optimizer=chains.adamw(
      schedules.constant(knob['learning_rate']), knob['weight_decay'], knob['clip_norm']
    ),
    averages={'ema': averaging.ema(knob['ema_decay'])},
    evaluation_average='ema',
    callbacks=[],
    augment=augment.chain(augment.label_dropout(0.2)),
    split=splits.Fractions(0.25, 0.25),
    evaluation_noise=gap.evaluation_noise(levels=3, draws=1),
  )
  return base._replace(**changes)


def images(**changes) -> experiments.Experiment:
  """A narrow U-Net of one level on the digits, with shifts, dropout and label dropout."""
  base = experiment(
    data=sources.digits(),
    model=unet.unet(8, (1,), 1, (), dropout=0.2, num_classes=10),
    augment=augment.chain(augment.shift(1), augment.label_dropout(0.2)),
    batch_size=16,
  )
  return base._replace(**changes)


def start(experiment: experiments.Experiment):
  """(split data, first state on one device, resident data)."""
  data = experiments.load_data(experiment)
  state = states.init_state(experiment, data.example, data.units)
  x, label = map(jnp.asarray, data.dataset[1:3])
  return data, state, pipeline.InMemoryData(x, label, data.order)


def shapes(experiment: experiments.Experiment):
  """What `start` returns, with shapes for the state: nothing is compiled."""
  data = experiments.load_data(experiment)
  init = states.make_init(experiment, data.example, data.units)
  state = jax.eval_shape(init, jnp.uint32(experiment.seed), data.example)
  x, label = map(jnp.asarray, data.dataset[1:3])
  return data, state, pipeline.InMemoryData(x, label, data.order)


def rows_of(experiment: experiments.Experiment, data: SplitData, seen: int) -> np.ndarray:
  """The rows of the data in the batch after so many: int32 [B]."""
  order = Order(experiment.seed, data.split.train)
  return order.batches(int(seen), 1, experiment.batch_size)[0]


def one_step(experiment: experiments.Experiment, data: SplitData):
  """(state, resident, given) -> (state, metrics): the step on one device, without pmap; `given` are a batch's rows."""
  step = steps.make_step(experiment, data.units)
  rows = Rows(jnp.arange(experiment.batch_size), experiment.batch_size)
  return lambda state, data, given: step(state, data, given, rows, lambda tree: tree)


def one_device(experiment: experiments.Experiment, data: SplitData):
  """(state, resident) -> (state, metrics): the same compiled, with the rows that are the state's."""
  compiled = jax.jit(one_step(experiment, data))
  return lambda state, given: compiled(state, given, rows_of(experiment, data, state.batches_seen))


def lowered(experiment: experiments.Experiment) -> str:
  """The text of its program."""
  data, state, resident = shapes(experiment)
  given = np.zeros(experiment.batch_size, np.int32)
  return jax.jit(one_step(experiment, data)).lower(state, resident, given).as_text()


def single(experiment: experiments.Experiment, data: SplitData, state) -> SingleRun:
  """The program of a run on all devices, that goes on from a state on one device or on the host."""
  program = SingleRun(experiment, data)
  program.put(0, devices.replicate(state))
  return program


def dispatch(program: SingleRun):
  """Makes the next dispatch and waits for it; the metrics on the host."""
  return program.dispatch([int(devices.to_host(program.get(0).batches_seen))])(0)


def leaves(tree) -> dict[str, np.ndarray]:
  """path -> array, for comparisons that name the leaf."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}
