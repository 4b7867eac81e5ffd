"""The perfect copyist and the perfect generalizer before the same judges, side by side.

  python -m benchmarks.copyist

Data: 0.5 N(1, I) + 0.5 N(-1, I) in 8 dimensions; 500 training examples, 2,000 held out. Samples, 2,000 of each: of the
empirical-Bayes denoiser of the training set, and of the mixture's exact denoiser (DDIM, 200 steps, the same noise).
Seed 0. The Frechet distance is to the training set, as is usual.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, logging

from diffusion import checkout, devices, rng
from diffusion.data import pipeline
from diffusion.evaluation import frechet, manifold, memorization, novelty
from diffusion.evaluation.metric import MetricInputs
from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules
from diffusion.reporting.tables import markdown
from diffusion.sampling import grids, samplers

COUNT = 2000


@functools.cache
def given() -> analytic.Mixture:
  """The mixture."""
  return analytic.mixture(np.full(2, 0.5), np.stack([np.ones(8), -np.ones(8)]), np.ones(2))


def draw(seed: int, count: int) -> np.ndarray:
  """Examples of the mixture."""
  keys = rng.row_keys(jax.random.key(seed), jnp.arange(count))
  return np.asarray(analytic.draw(given(), keys), np.float64)


def main(_):
  """Samples, judges, prints."""
  logging.set_verbosity(logging.ERROR)
  devices.configure(256)
  train, held_out = draw(0, 500), draw(1, 2000)
  diffusion = gaussian.Diffusion(schedules.cosine(), marginals.variance_preserving, parameterizations.v())  # fmt: skip
  path = gaussian.bind(diffusion, ())
  grid = grids.uniform_log_snr(path, 200, -10.0, 12.0)
  keys = rng.row_keys(jax.random.key(2), jnp.arange(COUNT))
  denoisers = {
    'empirical denoiser': analytic.empirical(path, jnp.asarray(train, jnp.float32)),
    'exact denoiser': analytic.gaussian_mixture(path, given().weights, given().means, np.ones(2)),
  }
  columns: dict[str, list] = {}
  for denoise in denoisers.values():
    run = jax.jit(lambda k, d=denoise: samplers.sample(d, path, samplers.ddim(path), grid, k, (8,)))
    x = np.asarray(run(keys), np.float64)
    none = np.zeros(len(x), np.int32)
    judged = MetricInputs(
      samples=x, labels=none, train=(train, none[:500]), held_out=(held_out, none), validation=0,
      class_names=(), units=pipeline.NormalizationStatistics(), network=None, kept={},
    )  # fmt: skip
    for metric in (
      memorization.nearest_neighbor_ratio(), memorization.calibrated_ratio(0.01), memorization.authenticity(),
      novelty.data_copying(), novelty.feature_likelihood(), frechet.frechet(), frechet.kernel(),
      manifold.precision_recall(), manifold.density_coverage(), manifold.sliced_wasserstein(),
    ):  # fmt: skip
      for finding in metric.measure(judged):
        columns.setdefault(finding.name, []).append(finding.value)
  print(markdown(['metric', *denoisers], [[name, *values] for name, values in columns.items()]))
  print(f'commit {checkout.code()["commit"]}, {devices.describe()}')


if __name__ == '__main__':
  app.run(main)
