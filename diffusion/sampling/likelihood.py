"""Likelihood: the variational bound, the probability-flow ODE, and the way between data and noise that it gives.

All are in nats and per example; `bits_per_dim` turns them into the unit of the literature. The end points are those of
the schedule: t = 0 at its largest log-SNR and t = 1 at its smallest.
"""

import math
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from diffusion import checks, rng
from diffusion.citations import technique
from diffusion.objectives.losses import eps_loss
from diffusion.process import gaussian
from diffusion.process.marginals import expand
from diffusion.sampling.solvers import velocity
from diffusion.types import (
  AnyArray,
  Array,
  Denoiser,
  Examples,
  Keys,
  Path,
  PerRow,
  Scalar,
)


class Bound(NamedTuple):
  """The three parts of an upper bound of -log p(x) in nats; their sum is the bound."""

  reconstruction: Float[AnyArray, ' b']
  diffusion: Float[AnyArray, ' b']
  prior: Float[AnyArray, ' b']

  @property
  def total(self) -> Float[AnyArray, ' b']:
    """The bound."""
    return self.reconstruction + self.diffusion + self.prior


@technique('variational bound', 'core', 'kingma2021variational')
def bound(
  denoise: Denoiser,
  path: Path,
  x: Examples,
  keys: Keys,
  *,
  levels: int | None,
  support: tuple[float, float] = (-1.0, 1.0),
  steps: int | None = None,
  draws: int = 32,
) -> Bound:
  """The variational bound -log p(x) <= reconstruction + diffusion + prior, estimated without bias.

  prior = KL(q(z_1 | x) || N(0, sigma_1^2 I)) = exp(log_snr_1) |x|^2 / 2.
  diffusion, T steps: sum_i expm1(log_snr_(i-1) - log_snr_i) |eps - eps_hat|^2 / 2; in continuous time the mean over t
  of -(d log_snr / dt) |eps - eps_hat|^2 / 2.
  reconstruction: -log p(x | z_0), with p proportional to q(z_0 | x) over the levels of stored data, or over all x.

  Args:
    denoise: the denoiser, without guidance or thresholds.
    path: the bound schedule and process.
    x: data in network units.
    keys: of the rows.
    levels: of the stored data, an exact likelihood of levels; None for the density of continuous data.
    support: the lowest and the highest level in network units.
    steps: T >= 1; None for continuous time.
    draws: times drawn of the diffusion part a row, stratified, >= 1.

  Raises:
    ValueError: arguments out of range.

  Source: Kingma et al. (2021), equations 11, 13, 15, 17 and appendix E, for any process.
  """
  checks.integer('draws', draws)
  if steps is not None:
    checks.integer('steps', steps)
  size = x[0].size
  axes = tuple(range(1, x.ndim))
  ends = path.log_snr(jnp.array([0.0, 1.0], x.dtype))
  prior = 0.5 * jnp.exp(ends[1]) * (x**2).sum(axes)

  def one(total: PerRow, i: Integer[Array, '']):
    drawn = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, i), 2))(keys)
    u = (i + jax.vmap(jax.random.uniform)(drawn[:, 0])) / draws
    eps = rng.normal(drawn[:, 1], x.shape[1:])
    if steps is None:
      t, weight = u, -path.slope(u)
    else:
      t = (jnp.floor(u * steps) + 1) / steps
      weight = steps * jnp.expm1(path.log_snr(t - 1 / steps) - path.log_snr(t))
    prediction = denoise(gaussian.diffuse(x, eps, path.marginal(t)), t)
    squared = size * eps_loss(x, eps, prediction, path.log_snr(t))
    return total + 0.5 * weight * squared, None

  start = jnp.zeros(len(x), x.dtype)
  diffusion, _ = jax.lax.scan(one, start, jnp.arange(draws))
  return Bound(_reconstruction(ends[0], x, keys, levels, support), diffusion / draws, prior)


def _reconstruction(
  log_snr: Scalar, x: Examples, keys: Keys, levels: int | None, support: tuple[float, float]
) -> PerRow:
  """-log p(x | z_0) for one z_0 ~ q(z_0 | x) a row; for continuous data its mean over z_0, which is closed."""
  s = jnp.exp(-0.5 * log_snr)  # noise over signal
  if levels is None:
    entropy = 0.5 * x[0].size * (jnp.log(2 * jnp.pi * s**2) + 1)
    return jnp.full(len(x), entropy, x.dtype)
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, rng.tag('reconstruction'))
  y = x + s * rng.normal(keys, x.shape[1:])
  values = jnp.linspace(*support, levels, dtype=x.dtype)
  logits = -0.5 * ((y[..., None] - values) / s) ** 2
  picked = -0.5 * ((y - x) / s) ** 2
  return (jax.nn.logsumexp(logits, axis=-1) - picked).sum(tuple(range(1, x.ndim)))


class Solved(NamedTuple):
  """An end of the probability flow, the evaluations of the denoiser it took."""

  z: Examples
  evaluations: Integer[Array, ' b']


_PER_STEP = 6  # evaluations of Tsitouras' method a step, which passes its last one on


def _integrate(field, start: float, end: float, rtol: float, atol: float):
  """Integrates dy/dt = field(t, y, row) for each row on its own; y is a tree with a leading row axis."""
  checks.positive('rtol', rtol)
  checks.positive('atol', atol)
  if not (0 <= start <= 1 and 0 <= end <= 1 and start != end):
    raise ValueError(f'start and end must be two times in [0, 1], got {start!r} and {end!r}')

  def one(y, row):
    solution = diffrax.diffeqsolve(
      diffrax.ODETerm(field), diffrax.Tsit5(), start, end, None, y, row,
      stepsize_controller=diffrax.PIDController(rtol, atol), max_steps=100_000,
    )  # fmt: skip
    return jax.tree.map(lambda leaf: leaf[0], solution.ys), solution.stats['num_steps']

  return one


@technique('probability flow', 'sampling', 'song2021score', 'tsitouras2011runge')
def solve(
  denoise: Denoiser,
  path: Path,
  z: Examples,
  start: float = 1.0,
  end: float = 0.0,
  *,
  rtol: float = 1e-5,
  atol: float = 1e-5,
) -> Solved:
  """Integrates dz/dt = alpha' x0 + sigma' eps from `start` to `end` with adaptive steps, each row on its own.

  From 1 to 0 it samples; from 0 to 1 it encodes, and the two are inverse to each other.

  Args:
    denoise: a denoiser of unlabelled rows: it is called with one row at a time, batched by vmap.
    path: the bound schedule and process.
    z: where to start.
    start, end: times in [0, 1].
    rtol, atol: error allowed a step, > 0.

  Raises:
    ValueError: arguments out of range.

  Source: Song et al. (2021), equation 13; Tsitouras (2011) by Diffrax (Kidger, 2022).
  """

  def field(t, y, row):
    return velocity(denoise, path, y[None], jnp.full(1, t, y.dtype))[0][0]

  z, steps = jax.vmap(_integrate(field, start, end, rtol, atol))(z, jnp.arange(len(z)))
  return Solved(z, _PER_STEP * steps)


def slerp(a: Examples, b: Examples, share: PerRow) -> Examples:
  """Spherical interpolation of noises, sin((1 - w) o) / sin(o) a + sin(w o) / sin(o) b, o their angle, row by row.

  With `solve` to t = 1 before it and back after it, interpolation of data.

  Args:
    a, b: the noises at share 0 and 1.
    share: w, in [0, 1].

  Source: Song et al. (2021), "Denoising diffusion implicit models", appendix D.5.
  """
  axes = tuple(range(1, a.ndim))
  product = (a * b).sum(axes) / jnp.sqrt((a**2).sum(axes) * (b**2).sum(axes))
  angle = jnp.arccos(jnp.clip(product, -1.0, 1.0))
  small = angle < 1e-4  # the straight line, its limit
  sine = jnp.where(small, 1.0, jnp.sin(angle))
  first = jnp.where(small, 1 - share, jnp.sin((1 - share) * angle) / sine)
  second = jnp.where(small, share, jnp.sin(share * angle) / sine)
  return expand(first, a) * a + expand(second, b) * b


class LogLikelihood(NamedTuple):
  """log p of z at t = 0 in nats, the noise it came from, evaluations of the denoiser."""

  log_density: PerRow
  noise: Examples
  evaluations: Integer[Array, ' b']


@technique(
  'probability-flow likelihood', 'core', 'song2021score', 'chen2018neural', 'grathwohl2019ffjord'
)
def log_likelihood(
  denoise: Denoiser,
  path: Path,
  z: Examples,
  keys: Keys | None = None,
  *,
  probes: int = 0,
  rtol: float = 1e-5,
  atol: float = 1e-5,
) -> LogLikelihood:
  """log p(z_0) = log N(z_1; 0, sigma_1^2 I) + int_0^1 div(dz/dt) dt along the probability flow.

  Args:
    denoise: a denoiser with a jvp, without guidance or thresholds; called with one row at a time, batched by vmap.
    path: the bound schedule and process.
    z: z at t = 0, for data x alpha_0 x; density in x adds d log(alpha_0).
    keys: of the rows; needed for probes.
    probes: random signs of Hutchinson's estimate of the divergence, fixed along the way, unbiased; 0 is exact, with d
      derivatives an evaluation, for d <= 64.
    rtol, atol: error allowed a step, > 0.

  Raises:
    ValueError: probes without keys or below zero, an exact divergence above 64 dimensions, tolerances out of range.

  Source: Song et al. (2021), equation 39, and Chen et al. (2018); Hutchinson (1989) as in Grathwohl et al. (2019).
  """
  checks.integer('probes', probes, 0)
  size, shape = z[0].size, z.shape[1:]
  if probes and keys is None:
    raise ValueError('probes of the divergence need keys: one a row')
  if not probes and size > 64:
    raise ValueError(
      f'an exact divergence is for at most 64 dimensions, got {size}: set probes >= 1'
    )
  if probes:
    each = jax.vmap(lambda key: jax.random.split(key, probes))(keys)
    directions = jax.vmap(lambda keys: rng.signs(keys, shape))(each)
  else:
    directions = jnp.broadcast_to(
      jnp.eye(size, dtype=z.dtype).reshape(size, *shape), (len(z), size, *shape)
    )

  def field(t, y, direction):
    def flow(z):
      return velocity(denoise, path, z[None], jnp.full(1, t, z.dtype))[0][0]

    def along(v):
      value, change = jax.jvp(flow, (y[0],), (v,))
      return value, (change * v).sum()

    values, traces = jax.vmap(along)(direction)
    return values[0], traces.mean() if probes else traces.sum()

  run = jax.vmap(_integrate(field, 0.0, 1.0, rtol, atol))
  (noise, change), steps = run((z, jnp.zeros(len(z), z.dtype)), directions)
  log_sigma = jnp.log(path.marginal(jnp.ones((), z.dtype)).sigma)
  square = (noise**2).reshape(len(z), -1).sum(1) * jnp.exp(-2 * log_sigma)
  log_prior = -0.5 * square - size * (0.5 * math.log(2 * math.pi) + log_sigma)
  return LogLikelihood(log_prior + change, noise, _PER_STEP * steps)


def dequantize(x: Examples, keys: Keys, levels: int) -> Examples:
  """x + u, u uniform over one level's width, 2 / (levels - 1) in network units: x stays in its own cell.

  E[log2 p(dequantized x)] plus log2 of the width a dimension is at most the mean log2-probability of the levels.

  Args:
    x: in network units, on the levels.
    keys: of the rows.
    levels: of the stored data, >= 2.

  Raises:
    ValueError: fewer than two levels.

  Source: Theis et al. (2016).
  """
  checks.integer('levels', levels, 2)
  noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)
  return x + (noise - 0.5) * (2 / (levels - 1))


def bits_per_dim(
  negative_log: Float[AnyArray, '*any'] | float, dimensions: int, levels: int | None = None
) -> Float[AnyArray, '*any'] | float:
  """-log p in nats to bits a dimension, negative_log / (d log 2).

  With `levels` the density of uniformly dequantized data in network units becomes bits of the levels: minus log2 of a
  cell's width, 2 / (levels - 1).

  Args:
    negative_log: -log p, nats.
    dimensions: d, >= 1.
    levels: of the stored data, >= 2; None for the density itself.
  """
  bits = negative_log / (dimensions * math.log(2))
  return bits if levels is None else bits - math.log2(2 / (levels - 1))
