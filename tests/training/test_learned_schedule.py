"""The learned schedule in a training step: its gradient, what the bound does not see, and the variance it lowers."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import rng
from diffusion.data import pipeline
from diffusion.models.functional import identity
from diffusion.objectives import losses, times, weights
from diffusion.optimizers import chains, schedules
from diffusion.process import analytic, gaussian, marginals, parameterizations
from diffusion.process import schedules as noise
from diffusion.sampling import likelihood
from diffusion.training import gradient as gradients
from diffusion.types import Rows
from tests.compiled import optimized
from tests.training import tiny

LEARNED = gaussian.Diffusion(
  noise.learned(-9.0, 9.0, width=8), marginals.variance_preserving, parameterizations.v()
)


def experiment(**changes):
  bound = {'bound': (1.0, losses.weighted_bound(weights.uniform()))}
  return tiny.experiment(diffusion=LEARNED, terms=bound, times=times.uniform(), **changes)


def test_schedule_follows_the_gradient_of_the_mean_squared_loss(x64):
  """Against finite differences of mean L^2 over the batch, with the step's draws; the network's is that of mean L.

  L is the loss of a row times its importance, as a draw of t that is not uniform has it.
  """
  made = experiment(dropout=0.0)
  split, state, data = tiny.start(made)
  rows = Rows(jnp.arange(32), 32)
  index = tiny.rows_of(made, split, 0)
  batch = pipeline.gather(data, index, pipeline.NormalizationStatistics())
  draws = gradients.draw(made, state, batch, rows)
  weight = jnp.linspace(0.5, 2, 32)
  draws = draws._replace(importance=weight)
  value, gradient, _, per_row, _ = gradients.whole(made, state, batch, draws, identity)
  loss = gradients.make_loss(made, state, batch, draws, identity)

  @jax.jit
  def rows_loss(params):
    path = gaussian.bind(LEARNED, params.schedule)
    return loss(params, (path.log_snr(draws.t), path.slope(draws.t)))[1][1]

  np.testing.assert_allclose(rows_loss(state.params), per_row, rtol=1e-10)
  np.testing.assert_allclose(value, (weight * per_row).mean(), rtol=1e-10)
  schedule = state.params.schedule
  for name, leaf in schedule.items():
    for i in range(leaf.size):
      squared = [
        (
          (weight * rows_loss(state.params._replace(schedule=schedule | {name: leaf.at[i].add(d)})))
          ** 2
        ).mean()
        for d in (1e-5, -1e-5)
      ]
      difference = (squared[0] - squared[1]) / 2e-5
      np.testing.assert_allclose(gradient.schedule[name][i], difference, rtol=1e-5, atol=1e-8)
  plain = jax.grad(lambda n: (weight * rows_loss(state.params._replace(network=n))).mean())(
    state.params.network
  )
  for path, leaf in tiny.leaves(plain).items():
    np.testing.assert_allclose(tiny.leaves(gradient.network)[path], leaf, atol=1e-10)


@optimized
def diffusion_part(params, x, keys):
  """Of the bound, in one draw, of the exact denoiser of the mixture."""
  path = gaussian.bind(LEARNED, params)
  denoise = analytic.gaussian_mixture(
    path, np.full(2, 0.5), np.stack([np.ones(8), -np.ones(8)]), np.ones(2)
  )
  return likelihood.bound(denoise, path, x, keys, levels=None, draws=1).diffusion


def exact_bound(params, count=20_000):
  """(mean, standard deviation) of one-draw estimates of the bound's diffusion part, and the error of the mean."""
  keys = rng.row_keys(jax.random.key(1), jnp.arange(count))
  given = analytic.mixture(np.full(2, 0.5), np.stack([np.ones(8), -np.ones(8)]), np.ones(2))
  x = analytic.draw(given, keys)
  found = np.asarray(diffusion_part(params, x, keys))
  return found.mean(), found.std(), found.std() / np.sqrt(count)


def test_the_bound_does_not_see_the_interior_of_the_schedule(x64):
  """Very different curves between the same ends: the same mean, different variances."""
  base = LEARNED.schedule.init(jax.random.key(0))
  bent = base | {'height': base['height'].at[1].set(8.0)}
  other = base | {'height': base['height'].at[6].set(8.0)}
  found = [exact_bound(p) for p in (base, bent, other)]
  print('interior: mean, deviation, error', [tuple(round(float(v), 3) for v in f) for f in found])
  curves = [np.asarray(LEARNED.schedule.log_snr(p, jnp.array(0.5))) for p in (base, bent, other)]
  assert np.ptp(curves) > 3
  for mean, _, error in found[1:]:
    assert abs(mean - found[0][0]) < 4 * np.hypot(error, found[0][2])
  assert np.ptp([deviation for _, deviation, _ in found]) > 0.1 * found[0][1]


def test_training_the_schedule_lowers_the_variance_of_the_bound():
  """400 steps from a bad interior, the network learning too: the estimate's deviation with the exact denoiser falls."""
  made = experiment(
    dropout=0.0, num_steps=400, optimizer=chains.adamw(schedules.constant(2e-2), 0.0, 0.0)
  )
  split, state, data = tiny.start(made)
  bad = state.params.schedule | {'height': state.params.schedule['height'].at[1].set(8.0)}
  state = state._replace(params=state.params._replace(schedule=bad))
  step = tiny.one_device(made, split)
  before = exact_bound(state.params.schedule)
  for _ in range(400):
    state, _ = step(state, data)
  after = exact_bound(state.params.schedule)
  print(f'deviation of the bound: {before[1]:.3f} before, {after[1]:.3f} after')
  assert after[1] < 0.8 * before[1]
  assert abs(after[0] - before[0]) < 4 * np.hypot(after[2], before[2])
  log_snr = np.asarray(LEARNED.schedule.log_snr(state.params.schedule, jnp.linspace(0, 1, 1001)))
  assert (np.diff(log_snr) < 0).all()
