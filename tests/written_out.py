"""A run written out: what training, validation and sampling are, from the pieces of an experiment and the formulas.

One batch after another on one device, with nothing of the engine: keys are folded here, the process is the
variance-preserving one, the network predicts v, the sampler is Heun's rule on the grid of Karras et al. It is for
experiments like that of `tests/test_equalities.py`.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.data.pipeline import Order
from diffusion.training.state import Parameters
from diffusion.types import NULL, Batch, Conditioning, Marginal, Path, Rows


class State(NamedTuple):
  """All that training moves."""

  params: Parameters
  statistics: Any
  optimizer: Any
  averages: Any
  times: Any


class Data(NamedTuple):
  """All examples in network units, and the training rows."""

  x: np.ndarray
  label: np.ndarray
  train: np.ndarray


def named(seed, purpose, *numbers):
  """The key of a purpose, of the batches and rows with these numbers."""
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
  for number in numbers:
    key = jax.random.fold_in(key, number)
  return key


def each(seed, purpose, count, *numbers):
  """Such keys of the rows 0 ... count - 1."""
  return folded(named(seed, purpose, *numbers), jnp.arange(count))


def folded(key, rows):
  return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def of_each(keys, shape):
  """Standard normal draws, one of this shape a key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def marginal_of(log_snr):
  return Marginal(jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr)))


def wide(one, like):
  """A number a row, to go with examples."""
  return one.reshape(-1, *[1] * (like.ndim - 1))


def predicted(e, params, statistics, z, log_snr, told, **mode):
  """(x0, eps, statistics) that a network which predicts v = alpha eps - sigma x0 believes in."""
  marginal = marginal_of(log_snr)
  alpha, sigma = (wide(one, z) for one in marginal)
  v, moved = e.model.apply(
    {'params': params, **statistics}, z, -log_snr / 8, told, **mode
  )  # c_noise = log(sigma / alpha) / 4
  return alpha * z - sigma * v, sigma * z + alpha * v, moved


def kernels(tree):
  return [
    leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if 'kernel' in str(path[-1])
  ]


def batch_of(e, data, b, progress):
  """The batch after b others, and its draws of eps."""
  size, order = e.batch_size, Order(e.seed, data.train)
  index = order.batches(b, 1, size)[0]
  share = float(e.curriculum.share(progress))
  if share < 1:
    ranked = data.train[np.argsort(data.label[data.train], kind='stable')]
    allowed = max(1, round(share * len(ranked)))
    keys = each(e.seed, 'curriculum', size, b)
    index = ranked[jax.vmap(lambda key: jax.random.randint(key, (), 0, allowed))(keys)]
  index = np.asarray(index, np.int32)
  batch = Batch(
    jnp.asarray(data.x[index]), jnp.asarray(data.label[index]), jnp.zeros((size, 0)), index
  )
  eps = of_each(each(e.seed, 'noise', size, b), data.x.shape[1:])
  return e.augment(each(e.seed, 'augmentation', size, b), batch), eps


def begin(e, data) -> State:
  key = named(e.seed, 'init')
  size = batch_of(e, data, 0, 0)[0].augment_label.shape[1]
  told = Conditioning(jnp.asarray(data.label[:1]), jnp.zeros((1, size)))
  made = dict(e.model.init(key, jnp.asarray(data.x[:1]), jnp.zeros(1), told))
  terms = {
    name: one.init(named(e.seed, 'init', zlib.crc32(f'term {name}'.encode())))
    for name, (_, one) in e.terms.items()
  }
  schedule = e.diffusion.schedule.init(named(e.seed, 'init', zlib.crc32(b'schedule')))
  params = Parameters(made.pop('params'), schedule, terms)
  averages = {name: one.init(params) for name, one in e.averages.items()}
  return State(params, made, e.optimizer.init(params), averages, e.times.init())


def update(e, state: State, batch, eps, b, scale):
  """(the state after one more batch, its loss, that of the 'denoise' term, the norm of the gradient)."""
  size = e.batch_size
  keys = each(e.seed, 'dropout', size, b)
  mode = {
    'keys': keys,
    'batch_key': named(e.seed, 'dropout', b, zlib.crc32(b'batch')),
    'update_statistics': True,
  }
  curve = e.diffusion.schedule.log_snr
  path = Path(lambda t: curve(state.params.schedule, t), None, None, None)
  t, importance = e.times.draw(
    state.times, named(e.seed, 'time', b), Rows(jnp.arange(size), size), b / e.num_steps, path
  )

  def by_row(params, schedule):
    log_snr = curve(schedule, t)
    alpha, sigma = (wide(one, eps) for one in marginal_of(log_snr))
    z = alpha * batch.x + sigma * eps
    told = Conditioning(batch.condition, batch.augment_label)
    x0, found, moved = predicted(e, params.network, state.statistics, z, log_snr, told, **mode)
    error = ((found - eps) ** 2).mean((1, 2, 3)) * jnp.minimum(1, 5 * jnp.exp(-log_snr))
    u = params.terms['denoise']
    half = len(u['slope']) // 2
    angles = log_snr[:, None] * 2 * jnp.pi / jnp.geomspace(120.0, 4.0, half)
    u = jnp.cos(angles) @ u['slope'][:half] + jnp.sin(angles) @ u['slope'][half:] + u['offset']
    term = error * jnp.exp(-u) + u
    penalty = sum((kernel**2).sum() for kernel in kernels(params.network)) / 2
    return e.terms['denoise'][0] * term + e.terms['l2'][0] * penalty, term, moved

  def loss(params):
    rows, term, moved = by_row(params, state.params.schedule)
    return (importance * rows).mean(), (rows, term, moved)

  def squared(schedule):
    return ((importance * by_row(state.params, schedule)[0]) ** 2).mean()

  (value, (rows, term, moved)), slope = jax.value_and_grad(loss, has_aux=True)(state.params)
  slope = slope._replace(schedule=jax.grad(squared)(state.params.schedule))
  rate = e.optimizer.learning_rate(state.optimizer) * scale
  change, optimizer = e.optimizer.update(slope, state.optimizer, state.params, learning_rate=rate)
  params = optax.apply_updates(state.params, change)
  averages = {name: one.update(state.averages[name], params) for name, one in e.averages.items()}
  times = e.times.update(state.times, t, rows, lambda tree: tree)
  return State(params, moved, optimizer, averages, times), (
    value,
    term.mean(),
    optax.tree.norm(slope),
  )


def trained(e, data, scales):
  """The states before the first and after each step, and what `update` says of each."""
  states, said = [begin(e, data)], []
  step = jax.jit(lambda state, batch, eps, b, scale: update(e, state, batch, eps, b, scale))
  for b, scale in enumerate(scales):
    state, one = step(states[-1], *batch_of(e, data, b, b / e.num_steps), b, scale)
    states.append(state)
    said.append([float(number) for number in one])
  return states, said


def judging(e, data, batches: int = 16):
  """State -> the evaluated parameters, and the mean statistics of batches under them."""
  given = [batch_of(e, data, b, 1.0) for b in range(batches)]
  average = e.averages[e.evaluation_average]

  @jax.jit
  def of(params, statistics, times, batch, eps, b):
    size = e.batch_size
    path = Path(lambda t: e.diffusion.schedule.log_snr(params.schedule, t), None, None, None)
    t, _ = e.times.draw(times, named(e.seed, 'time', b), Rows(jnp.arange(size), size), 1.0, path)
    alpha, sigma = (wide(one, eps) for one in marginal_of(path.log_snr(t)))
    z = alpha * batch.x + sigma * eps
    told = Conditioning(batch.condition, batch.augment_label)
    mode = {'update_statistics': True, 'statistics_decay': 0.0}
    return predicted(e, params.network, statistics, z, path.log_snr(t), told, **mode)[2]

  def judged(state: State):
    params = average.read(state.averages[e.evaluation_average])
    found = [of(params, state.statistics, state.times, *one, b) for b, one in enumerate(given)]
    return params, jax.tree.map(lambda *each: sum(each) / batches, *found)

  return judged


def asking(e, data):
  """(parameters, statistics, rows) -> the eps-loss of each at each level of the evaluation noise: [n, l]."""

  @jax.jit
  def of(params, statistics, x, label, eps, level):
    log_snr = jnp.full(len(x), level)
    alpha, sigma = (wide(one, eps) for one in marginal_of(log_snr))
    told = Conditioning(label, jnp.zeros((len(x), 0)))
    x0, _, _ = predicted(e, params.network, statistics, alpha * x + sigma * eps, log_snr, told)
    # In x0, of which eps is (z - alpha x0) / sigma: the same error, with more digits where there is noise.
    return jnp.exp(level) * ((x0 - x) ** 2).mean((1, 2, 3))

  def losses(params, statistics, rows):
    keys, found = each(e.seed, 'validation', len(rows)), []
    for i, level in enumerate(e.evaluation_noise.log_snr):
      eps = of_each(jax.vmap(jax.random.fold_in, (0, None))(keys, i), data.x.shape[1:])
      found.append(of(params, statistics, data.x[rows], data.label[rows], eps, level))
    return np.stack(found, axis=1)

  return losses


def sampled(e, params, statistics, labels, shape, ends, seed):
  """Samples in network units, by Heun's rule on dy/ds = eps, y = z / alpha, s = sigma / alpha."""
  plan, count, null = e.sampling, len(labels), jnp.full(len(labels), NULL)
  keys = each(seed, 'sampler', count)
  of_dropout = jax.vmap(lambda key: jax.random.fold_in(key, zlib.crc32(b'monte carlo')))(keys)

  @jax.jit
  def believed(z, s):
    """(x0, eps), guided inside the interval, x0 inside the range of the data."""
    log_snr = jnp.full(count, -2 * jnp.log(s))

    def thinned(told):
      draws = []
      for i in range(plan.monte_carlo):
        mine = jax.vmap(jax.random.fold_in, (0, None))(of_dropout, i)
        mode = {'keys': mine, 'batch_key': named(0, 'dropout')}
        told_all = Conditioning(told, jnp.zeros((count, 0)))
        draws.append(predicted(e, params.network, statistics, z, log_snr, told_all, **mode)[0])
      return sum(draws) / plan.monte_carlo

    known, unknown = thinned(jnp.asarray(labels)), thinned(null)
    inside = (plan.interval[0] <= log_snr[0]) & (log_snr[0] <= plan.interval[1])
    x0 = jnp.where(inside, unknown + plan.guidance * (known - unknown), known)
    x0 = jnp.clip(x0, *ends)
    alpha, sigma = (one[0] for one in marginal_of(log_snr))
    return x0, (z - alpha * x0) / sigma

  def alpha(s):
    return 1 / np.sqrt(1 + s**2)

  high, low = (
    np.exp(-0.5 * float(e.diffusion.schedule.log_snr(params.schedule, jnp.array(t))))
    for t in (1.0, 0.0)
  )
  grid = (
    high ** (1 / 7) + np.arange(plan.steps) / (plan.steps - 1) * (low ** (1 / 7) - high ** (1 / 7))
  ) ** 7
  start = of_each(jax.vmap(lambda key: jax.random.split(key)[0])(keys), shape)
  z = start * grid[0] * alpha(grid[0])
  for s, then in zip(grid[:-1], grid[1:], strict=True):
    x0, eps = believed(z, s)
    euler = alpha(then) * (x0 + then * eps)
    # Euler's step alone where the noise is above the data and falls more than threefold.
    if s > 3 * then and then > 1:
      z = euler
    else:
      z = euler + alpha(then) * (then - s) * (believed(euler, then)[1] - eps) / 2
  return np.asarray(believed(z, grid[-1])[0])
