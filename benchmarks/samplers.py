"""Every sampler on every noise schedule in 10, 20 and 50 calls of the denoiser, each on the grid that it brings.

  python -m experiments.digits --workdir=runs/digits
  python -m benchmarks.samplers --workdir=runs/digits

Printed, a row a pair: the first Wasserstein distance to the mixture of `experiments.mixture` along the line through its
modes, where the exact denoiser is known, from noise at evenly spaced quantiles; and the share of digits, guided and
clipped as the run does it, that a classifier recognizes as their label. The network has learned the noise levels of one
schedule; given z in the scale of its own process, it denoises on any other. Then the pairs of second order that are
worse than DDIM in as many calls by more than a tenth.
"""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from absl import app, flags, logging
from sklearn import svm

import diffusion
from benchmarks import contest
from diffusion import checkout, rng
from diffusion.process import analytic, betas, gaussian, marginals, schedules
from diffusion.process.marginals import expand
from diffusion.reporting import tables
from diffusion.runs import loading
from diffusion.sampling import grids, samplers, solvers
from diffusion.sampling.guidance import classifier_free, clip_x0
from diffusion.types import Denoiser, Path, Prediction, Sampler

WORKDIR = flags.DEFINE_string(
  'workdir', None, 'A finished run of experiments.digits.', required=True
)
SAMPLES = flags.DEFINE_integer('samples', 100, 'Digits a pair.', lower_bound=10)
ONLY = flags.DEFINE_list('samplers', [], 'Which of them, beside DDIM; all by default.')
POINTS = flags.DEFINE_integer('points', 2048, 'Draws of the mixture a pair.', lower_bound=2)

CALLS = 10, 20, 50
MODES, SCALE = 8**0.5, 1.0  # of the mixture, along the diagonal of its 8 dimensions
SCHEDULES = {
  'cosine': (schedules.cosine(), marginals.variance_preserving),
  'cosine, zero terminal SNR': (schedules.cosine(log_snr_min=-30.0), marginals.variance_preserving),
  'linear beta': (schedules.linear_beta(), marginals.variance_preserving),
  'table of betas': (schedules.discrete(betas.linear()), marginals.variance_preserving),
  'table, zero terminal SNR': (
    schedules.discrete(betas.zero_terminal_snr(betas.linear())),
    marginals.variance_preserving,
  ),
  'sigmoid': (schedules.sigmoid(), marginals.variance_preserving),
  'learned, at its start': (schedules.learned(), marginals.variance_preserving),
  'geometric': (schedules.geometric(), marginals.variance_exploding),
  'EDM': (schedules.edm(), marginals.variance_exploding),
  'rectified flow': (schedules.rectified_flow(), marginals.rectified_flow),
}
SAMPLERS: dict[str, Callable[[Path], Sampler]] = {
  'DDIM': samplers.ddim,
  'Heun': solvers.heun,
  'DPM-Solver++': solvers.dpm_solver,
  'Euler': solvers.euler,
  'ancestral': samplers.ancestral,
  'DDIM with eta 1': lambda path: samplers.ddim(path, eta=1.0),
  'SDE-DPM-Solver++': lambda path: solvers.dpm_solver(path, stochastic=True),
  'Euler-Maruyama': solvers.euler_maruyama,
}
SECOND_ORDER = 'Heun', 'DPM-Solver++'


def bound(name: str) -> Path:
  """The path of a schedule."""
  schedule, process = SCHEDULES[name]
  made = gaussian.Diffusion(schedule, process, None)
  return gaussian.bind(made, schedule.init(jax.random.key(0)))


def steps_of(sampler: Sampler, calls: int) -> int:
  """As many steps as make at most so many calls of the denoiser."""
  a_step = samplers.evaluations(sampler, 1, (1,), denoise_last=False)
  return (calls - 1) // a_step + 1


def walk(
  denoise: Denoiser, path: Path, sampler: Sampler, calls: int, noise: jax.Array
) -> np.ndarray:
  """What `samplers.sample` returns from this noise, step by step: nothing is compiled for a pair but its denoiser."""
  grid = (sampler.grid or grids.uniform_time)(path, steps_of(sampler, calls))
  ones = jnp.ones(len(noise))
  state = sampler.init(expand(path.marginal(grid[0] * ones).sigma, noise) * noise)
  for i in range(len(grid) - 2):
    keys = rng.row_keys(jax.random.key(i), jnp.arange(len(noise)))
    state = sampler.step(denoise, keys, state, grid[i] * ones, grid[i + 1] * ones)
  return np.asarray(denoise(jax.tree.leaves(state)[0], grid[-2] * ones).x0)


def mixture_distance(count: int) -> Callable[[Path], Callable[[Sampler, Path, int], float]]:
  """path -> (sampler, path, calls) -> W1 to the mixture."""
  share = (np.arange(count) + 0.5) / count
  noise = jnp.asarray(scipy.stats.norm.ppf(share)[:, None], jnp.float32)
  line = np.linspace(-2 * MODES - 5, 2 * MODES + 5, 100_001)
  below = sum(0.5 * scipy.stats.norm.cdf(line, mode, SCALE) for mode in (-MODES, MODES))
  truth = np.interp(share, below, line)
  # The noise in random order, so that draws of a step do not go with it.
  noise = noise[np.random.default_rng(0).permutation(count)]

  def on(path: Path) -> Callable[[Sampler, Path, int], float]:
    made = analytic.gaussian_mixture(
      path, np.full(2, 0.5), np.array([[-MODES], [MODES]]), np.full(2, SCALE)
    )
    denoise = jax.jit(made)
    return lambda sampler, path, calls: float(
      np.abs(np.sort(walk(denoise, path, sampler, calls, noise)[:, 0]) - truth).mean()
    )

  return on


def digits_recognized(
  folder: pathlib.Path, count: int
) -> Callable[[Path], Callable[[Sampler, Path, int], float]]:
  """path -> (sampler, path, calls) -> the share of digits recognized as their label."""
  run, data = diffusion.load(folder), loading.data_of(folder)
  x, label = data.train_in_memory
  classifier = svm.SVC(C=10.0, gamma='scale').fit(x.reshape(len(x), -1), label)
  labels = np.arange(count, dtype=np.int32) % 10
  noise = rng.normal(rng.row_keys(jax.random.key(0), jnp.arange(count)), run.shape)
  own = gaussian.bind(run.experiment.diffusion, run.parameters.schedule)
  guided = classifier_free(
    run.denoiser(labels), run.denoiser(np.full_like(labels, -1)), run.experiment.sampling.guidance
  )
  network = jax.jit(guided)

  def on(path: Path) -> Callable[[Sampler, Path, int], float]:
    def as_trained(z: jax.Array, t: jax.Array, key: None = None) -> Prediction:
      then = own.time(path.log_snr(t))
      return network(expand(own.marginal(then).alpha / path.marginal(t).alpha, z) * z, then)

    denoise = clip_x0(as_trained, path)

    def share(sampler: Sampler, path: Path, calls: int) -> float:
      found = np.clip(walk(denoise, path, sampler, calls, noise), -1, 1)
      levels = np.rint((found + 1) / 2 * (run.units.levels - 1))
      return float((classifier.predict(levels.reshape(count, -1)) == labels).mean())

    return share

  return on


def main(_) -> None:
  """Measures and prints."""
  logging.set_verbosity(logging.FATAL)
  distance = mixture_distance(POINTS.value)
  recognized = digits_recognized(pathlib.Path(WORKDIR.value), SAMPLES.value)
  rows, found = [], {}
  for name in SCHEDULES:
    path = bound(name)
    measures = distance(path), recognized(path)
    for sampler, make in SAMPLERS.items():
      if ONLY.value and sampler not in ('DDIM', *ONLY.value):
        continue
      numbers = [[measure(make(path), path, calls) for calls in CALLS] for measure in measures]
      found[name, sampler] = numbers
      rows.append(
        [name, sampler, *(f'{w:.3f}' for w in numbers[0]), *(f'{r:.3f}' for r in numbers[1])]
      )
      print(*rows[-1], flush=True)
  print(
    tables.markdown(
      [
        'schedule',
        'sampler',
        *(f'W1, {n} calls' for n in CALLS),
        *(f'recognized, {n}' for n in CALLS),
      ],
      rows,
    )
  )
  for (name, sampler), (far, right) in found.items():
    if sampler in SECOND_ORDER:
      base = found[name, 'DDIM']
      for i, calls in enumerate(CALLS):
        if calls >= 20 and (far[i] > 1.1 * base[0][i] or right[i] < 0.9 * base[1][i]):
          print(f'worse than DDIM by more than a tenth: {sampler}, {name}, {calls} calls')
  print(
    f'{SAMPLES.value} digits and {POINTS.value} draws of the mixture a pair; {contest.machine()}'
  )
  print(f'jax {jax.__version__}, commit {checkout.code()["commit"]}')


if __name__ == '__main__':
  app.run(main)
