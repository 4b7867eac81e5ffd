"""The denoising loss: one objective in every parameterization, with its digits at both ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from diffusion.objectives import losses, weights
from diffusion.process import marginals, parameterizations
from diffusion.types import Batch, Context, Prediction

ALL = {
  'eps': parameterizations.eps,
  'x0': parameterizations.x0,
  'v': parameterizations.v,
  'score': parameterizations.score,
  'velocity': parameterizations.velocity,
  'edm': parameterizations.edm,
}


def context(x0, eps, log_snr, marginal, z, prediction):
  rows = x0.shape[0]
  batch = Batch(x0, jnp.zeros(rows, int), jnp.zeros((rows, 0)), jnp.arange(rows))
  slope = -jnp.linspace(1.0, 2.0, rows)
  return Context(
    (), batch, eps, z, jnp.zeros(rows), log_snr, slope, marginal, prediction, None, None
  )


def draws(log_snr, shape, seed=0):
  rng = np.random.default_rng(seed)
  x0, eps, error = (jnp.asarray(a) for a in rng.normal(size=(3, log_snr.size, *shape)))
  marginal = marginals.variance_preserving(jnp.asarray(log_snr))
  alpha, sigma = (c.reshape((-1, *(1,) * len(shape))) for c in marginal)
  return x0, eps, error, marginal, alpha, sigma


@pytest.mark.parametrize('shape', [(7,), (4, 4, 3)])
def test_eps_loss_is_the_mean_squared_error_of_the_noise(shape, x64):
  log_snr = np.linspace(-15, 15, 31)
  x0, eps, error, _, alpha, sigma = draws(log_snr, shape)
  guess = eps + 0.3 * error
  prediction = Prediction((alpha * x0 + sigma * eps - sigma * guess) / alpha, guess)
  found = losses.eps_loss(x0, eps, prediction, jnp.asarray(log_snr))
  assert found.shape == (31,)
  expected = [np.mean((np.asarray(guess[i]) - np.asarray(eps[i])) ** 2) for i in range(31)]
  np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
  'weight',
  [
    weights.uniform(), weights.uniform('v'), weights.uniform('velocity'), weights.snr(), weights.truncated_snr(),
    weights.min_snr(), weights.edm(), weights.p2(), weights.sigmoid(),
  ],
)  # fmt: skip
def test_objective_is_the_same_in_every_parameterization(weight, x64):
  """One belief about x0 put into the words of an eps-, an x0- and a v-network."""
  log_snr = np.linspace(-15, 15, 31)
  x0, eps, error, marginal, alpha, sigma = draws(log_snr, (3, 2))
  z = alpha * x0 + sigma * eps
  # A belief that is off by `error` in v, so that neither end is absurd.
  belief = Prediction(x0 - sigma * error, eps + alpha * error)
  term = losses.denoising(weight)
  assert term.init(jax.random.key(0)) == ()
  found = {}
  for name, make in ALL.items():
    parameterization = make()
    output = parameterization.target(*belief, marginal)
    prediction = parameterization.decode(output, z, marginal)
    arguments = context(x0, eps, jnp.asarray(log_snr), marginal, z, prediction)
    found[name] = np.asarray(term.apply((), arguments))
  # Independently: the eps error is alpha times the v error.
  direct = np.asarray(weight(jnp.asarray(log_snr))) * np.mean(
    (np.asarray(alpha) * np.asarray(error)) ** 2, axis=(1, 2)
  )
  for name, value in found.items():
    np.testing.assert_allclose(value, direct, rtol=1e-10 * 1e2, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(value, found['v'], rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize('log_snr', [-15.0, -8.0, 8.0, 15.0])
def test_loss_of_a_v_network_keeps_its_digits_in_float32(log_snr):
  """A small v error must come out as alpha^2 its square; the difference of two noises would lose it at -15."""
  rng = np.random.default_rng(1)
  x0, eps, error = (a.astype(np.float32) for a in rng.normal(size=(3, 1, 4096)))
  alpha, sigma = (1 / np.sqrt(1 + np.exp(sign * log_snr)) for sign in (-1, 1))
  output = (alpha * eps.astype(np.float64) - sigma * x0 + 1e-3 * error).astype(np.float32)
  off = output - (alpha * eps.astype(np.float64) - sigma * x0)  # the error as rounded, in float64
  expected = np.mean((alpha * off) ** 2)

  @jax.jit
  def loss(output):
    level = jnp.full(1, log_snr, jnp.float32)
    marginal = marginals.variance_preserving(level)
    z = marginal.alpha[:, None] * x0 + marginal.sigma[:, None] * eps
    prediction = parameterizations.v().decode(output, z, marginal)
    return losses.eps_loss(jnp.asarray(x0), jnp.asarray(eps), prediction, level)[0]

  np.testing.assert_allclose(loss(output), expected, rtol=1e-3)
  # And its gradient: d/d output of mean (alpha off)^2.
  gradient = np.asarray(jax.jit(jax.grad(loss))(output), np.float64)
  truth = 2 * alpha**2 * off / off.size
  assert np.linalg.norm(gradient - truth) < 2e-3 * np.linalg.norm(truth)


@pytest.mark.parametrize(
  'name, log_snr', [('eps', 15.0), ('eps', -15.0), ('x0', -15.0), ('x0', 15.0)]
)
def test_loss_of_an_eps_or_x0_network_keeps_its_digits_in_float32(name, log_snr):
  """At errors as large as a perfect network's own: about alpha in eps when noisy, about sigma in x0 when clean."""
  rng = np.random.default_rng(2)
  x0, eps, error = (a.astype(np.float32) for a in rng.normal(size=(3, 1, 4096)))
  alpha, sigma = (1 / np.sqrt(1 + np.exp(sign * log_snr)) for sign in (-1, 1))
  clean, size = {'eps': (eps, alpha), 'x0': (x0, sigma)}[name]
  output = (clean + size * error).astype(np.float32)
  off = output.astype(np.float64) - clean
  expected = np.mean((off if name == 'eps' else alpha / sigma * off) ** 2)
  level = jnp.full(1, log_snr, jnp.float32)
  marginal = marginals.variance_preserving(level)
  z = marginal.alpha[:, None] * x0 + marginal.sigma[:, None] * eps
  prediction = ALL[name]().decode(jnp.asarray(output), z, marginal)
  found = losses.eps_loss(jnp.asarray(x0), jnp.asarray(eps), prediction, level)[0]
  np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_row_counts_for_itself_alone():
  log_snr = np.array([-2.0, 0.5, 3.0])
  x0, eps, error, *_ = draws(log_snr, (5,))
  prediction = Prediction(x0 + error, eps + error)
  whole = losses.eps_loss(x0, eps, prediction, jnp.asarray(log_snr))
  for i in range(3):
    one = slice(i, i + 1)
    part = Prediction(prediction.x0[one], prediction.eps[one])
    alone = losses.eps_loss(x0[one], eps[one], part, jnp.asarray(log_snr)[one])
    np.testing.assert_allclose(alone, whole[one], rtol=1e-6)


def test_weighted_bound_is_half_the_slope_times_the_weighted_eps_loss(x64):
  log_snr = np.linspace(-9, 9, 7)
  x0, eps, error, marginal, alpha, sigma = draws(log_snr, (4,))
  prediction = Prediction(x0 - sigma / alpha * error, eps + error)
  given = context(x0, eps, jnp.asarray(log_snr), marginal, alpha * x0 + sigma * eps, prediction)
  plain = np.mean(np.asarray(error) ** 2, axis=1)
  bound = losses.weighted_bound(weights.uniform()).apply((), given)
  np.testing.assert_allclose(bound, 0.5 * np.linspace(1, 2, 7) * plain, rtol=1e-9)
  weighted = losses.weighted_bound(weights.sigmoid(1.0)).apply((), given)
  np.testing.assert_allclose(weighted, bound / (1 + np.exp(log_snr - 1)), rtol=1e-9)


def test_the_gradient_of_a_loss_reaches_all_that_may_learn(x64):
  """By finite differences: the prediction, what a term itself learns, and the log-SNR and slope of a schedule."""
  terms = (
    losses.denoising(weights.min_snr()),
    losses.weighted_bound(weights.sigmoid()),
    losses.uncertain(weights.uniform('v'), features=4),
  )
  log_snr = jnp.linspace(-5, 5, 6)
  x0, eps, error, marginal, alpha, sigma = draws(log_snr, (4,))
  params = [jax.tree.map(lambda leaf: leaf + 0.1, one.init(jax.random.key(0))) for one in terms]

  @jax.jit
  def of(params, size, log_snr, slope):
    prediction = Prediction(x0 - size * sigma / alpha * error, eps + size * error)
    given = context(x0, eps, log_snr, marginal, alpha * x0 + sigma * eps, prediction)
    given = given._replace(slope=slope)
    return [one.apply(p, given) for one, p in zip(terms, params, strict=True)]

  arguments = params, jnp.ones(()), log_snr, -jnp.ones(6)
  check_grads(of, arguments, order=1, modes=['rev'], atol=1e-6, rtol=1e-6)


def test_learned_uncertainty_is_made_of_waves_of_4_to_120_nats(x64):
  log_snr = np.linspace(-10, 10, 5)
  x0, eps, error, marginal, alpha, sigma = draws(log_snr, (4,))
  prediction = Prediction(x0 - sigma / alpha * error, eps + error)
  given = context(x0, eps, jnp.asarray(log_snr), marginal, alpha * x0 + sigma * eps, prediction)
  term = losses.uncertain(weights.sigmoid(1.0), features=6)
  assert jax.tree.map(jnp.shape, term.init(jax.random.key(0))) == {'slope': (6,), 'offset': ()}
  slope = np.array([0.3, -0.2, 0.5, 0.4, -0.6, 0.1])
  angle = 2 * np.pi * log_snr[:, None] / np.array([120, 480**0.5, 4])
  u = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) @ slope + 0.7
  loss = np.mean(np.asarray(error) ** 2, axis=1) / (1 + np.exp(log_snr - 1))
  found = term.apply({'slope': slope, 'offset': 0.7}, given)
  np.testing.assert_allclose(found, loss * np.exp(-u) + u, rtol=1e-9)


def test_learned_uncertainty_finds_the_log_of_the_loss(x64):
  """Gradient descent on L / e^u + u with a known loss at every noise level: u ends at log E[L | log_snr]."""
  log_snr = jnp.linspace(-10, 10, 101)
  x0, eps, _, marginal, alpha, sigma = draws(np.asarray(log_snr), (6,))
  size = np.exp(0.5 * np.sin(np.asarray(log_snr) / 5) - 0.1 * np.asarray(log_snr))
  error = jnp.asarray(np.sqrt(size)[:, None] * np.ones((101, 6)))
  prediction = Prediction(x0 - sigma / alpha * error, eps + error)
  given = context(x0, eps, log_snr, marginal, alpha * x0 + sigma * eps, prediction)
  term = losses.uncertain(weights.uniform(), features=16)
  params = term.init(jax.random.key(0))
  plain = losses.denoising(weights.uniform()).apply((), given)
  np.testing.assert_allclose(term.apply(params, given), plain, rtol=1e-12)  # off at the start
  solver = optax.adam(0.05)

  def descend(carry, _):
    params, state = carry
    gradient = jax.grad(lambda p: term.apply(p, given).mean())(params)
    updates, state = solver.update(gradient, state)
    return (optax.apply_updates(params, updates), state), None

  (params, _), _ = jax.lax.scan(descend, (params, solver.init(params)), length=3000)
  # L / e^u + u with u = log L is 1 + log L.
  np.testing.assert_allclose(term.apply(params, given), 1 + np.log(np.asarray(plain)), atol=0.01)


def test_sliced_score_matching_is_half_the_score_error_up_to_a_constant(x64):
  """Over draws of z from a Gaussian, with a wrong linear score: E[sliced] - E[sliced at the truth] is known exactly."""
  rows, spread = 200_000, 0.8
  rng = np.random.default_rng(3)
  log_snr = jnp.zeros(rows)
  marginal = marginals.variance_preserving(log_snr)
  alpha, sigma = (float(c[0]) for c in marginal)
  x0, eps = (
    jnp.asarray(a) for a in rng.normal(size=(2, rows, 2)) * np.array([spread, 1])[:, None, None]
  )
  z = alpha * x0 + sigma * eps
  variance = alpha**2 * spread**2 + sigma**2
  keys = jax.random.split(jax.random.key(1), rows)

  def sliced(gain):  # the score -gain z
    def predict(y):
      return Prediction(y, sigma * gain * y)

    given = context(x0, eps, log_snr, marginal, z, predict(z))._replace(predict=predict, keys=keys)
    return losses.sliced().apply((), given)

  true, wrong = (np.asarray(sliced(gain)) for gain in (1 / variance, 0.3))
  exact = 0.5 * sigma**2 * (0.3 - 1 / variance) ** 2 * variance  # sigma^2 E|s - s*|^2 / (2 d)
  difference = wrong - true
  assert abs(difference.mean() - exact) < 4 * difference.std() / np.sqrt(rows)
  assert exact > 20 * difference.std() / np.sqrt(rows)  # sharp enough to refute
  # Both the slope and the size of the score learn: a row's loss is sigma^2 (gain^2 |z|^2 / (2 d) - gain).
  by_gain = jax.jit(jax.grad(lambda gain: sliced(gain).mean()))(0.3)
  np.testing.assert_allclose(by_gain, sigma**2 * (0.3 * (np.asarray(z) ** 2).mean() - 1), rtol=1e-6)


def test_sliced_score_matching_asks_along_one_random_direction_a_row(x64):
  """Of a score whose two entries hear each other, so that a row's loss tells the product of its two signs."""
  log_snr = jnp.linspace(-3.0, 3.0, 2000)
  x0, eps, _, marginal, alpha, sigma = draws(log_snr, (2,))
  z, keys = alpha * x0 + sigma * eps, jax.random.split(jax.random.key(2), 2000)

  def predict(y):  # minus sigma times the score -(y + y[::-1] / 2)
    return Prediction(y, sigma * (y + y[:, ::-1] / 2))

  given = context(x0, eps, log_snr, marginal, z, predict(z))._replace(predict=predict, keys=keys)
  loss = np.asarray(losses.sliced().apply((), given))
  score, size = -(np.asarray(z) + np.asarray(z)[:, ::-1] / 2), np.asarray(sigma)[:, 0] ** 2
  # Twice the loss is sigma^2 (|s|^2 / 2 - 2 - v_1 v_2).
  product = (score**2).sum(1) / 2 - 2 - 2 * loss / size
  np.testing.assert_allclose(np.abs(product), 1, rtol=1e-9)
  assert abs(product.mean()) < 5 / 2000**0.5


@pytest.mark.parametrize('features', [0, 3, 2.0])
def test_bad_features_are_named(features):
  with pytest.raises(ValueError, match=f'features .* got {features}'):
    losses.uncertain(weights.uniform(), features)
