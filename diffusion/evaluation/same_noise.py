"""Do two models, trained on disjoint data, draw the same from the same noise? Then neither remembers; both know."""

import numpy as np
from jaxtyping import Float, Integer, Num

from diffusion import statistics
from diffusion.evaluation import memorization
from diffusion.evaluation.metric import MetricResult, proportion
from diffusion.proportions import Counts


def agreement(
  a: Num[np.ndarray, ' m *shape'],
  b: Num[np.ndarray, ' m *shape'],
  labels: Integer[np.ndarray, ' m'],
  train_a: Num[np.ndarray, ' n_a *shape'],
  train_b: Num[np.ndarray, ' n_b *shape'],
  seed: int = 0,
) -> list[MetricResult]:
  """How alike the samples of two models are that started from the same noise, pair by pair.

  The distance of a pair is set against that of a sample to another one of the other model with the same label (a
  shuffled pair), and the cosine is of what differs from the mean of all. Models that copy agree a little, for noise
  leads both to what is near it; that they copy shows in the nearest-neighbor ratios to their own training sets.

  Args:
    a, b: samples of both, the same starting noise and label at the same place.
    labels: what was asked for; at least two samples of each.
    train_a, train_b: what each was trained on.
    seed: of the shuffling.

  Raises:
    ValueError: different numbers or shapes, too few pairs, or training sets with an example in common.

  Source: Kadkhodaie et al. (2024), section 2, figure 2; the shuffled null and its ratio are this project's.
  """
  if a.shape != b.shape or len(a) < 3 or np.unique(labels, return_counts=True)[1].min() < 2:
    raise ValueError(
      f'agreement needs three or more pairs of samples, two or more of each label, got shapes {a.shape} and {b.shape}'
    )
  flat_a, flat_b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
  shared = {row.tobytes() for row in train_a} & {row.tobytes() for row in train_b}
  if shared:
    raise ValueError(f'the training sets share {len(shared)} examples: train on disjoint parts')
  mean = np.concatenate([flat_a, flat_b]).mean(0)
  other = _elsewhere(labels, seed)
  far = np.linalg.norm(flat_a - flat_b, axis=1), np.linalg.norm(flat_a - flat_b[other], axis=1)
  found = []
  for name, partner, distance in (('', flat_b, far[0]), (', shuffled', flat_b[other], far[1])):
    what = 'of shuffled pairs: what chance looks like' if name else 'of the same starting noise'
    cosine = statistics.mean_t(_cosine(flat_a - mean, partner - mean))
    found += [
      MetricResult(
        f'distance of pairs{name}',
        statistics.mean_t(distance),
        f'samples {what}',
        unit="the data's",
      ),
      MetricResult(f'cosine of pairs{name}', cosine, f'samples {what}, their mean removed'),
    ]
  meaning = 'pairs over shuffled pairs: 0 is agreement, 1 chance'
  ratio = statistics.ratio_of_means(*far)
  found.append(MetricResult('distance ratio', ratio, meaning, better='lower'))
  for name, samples, train in (('first', a, train_a), ('second', b, train_b)):
    _, r = memorization.ratios(samples, train)
    share = Counts(int((r < 1 / 3).sum()), len(r))
    title, meaning = f'memorized fraction, {name} model', 'of its own training set'
    found.append(proportion(title, share, meaning, better='lower'))
  return found


def _cosine(x: Float[np.ndarray, 'm d'], y: Float[np.ndarray, 'm d']) -> Float[np.ndarray, ' m']:
  return (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))


def _elsewhere(labels: Integer[np.ndarray, ' m'], seed: int) -> Integer[np.ndarray, ' m']:
  """A random permutation within each label that leaves nothing in its place: one cycle through all of a label."""
  random = np.random.default_rng(seed)
  partner = np.empty(len(labels), int)
  for label in np.unique(labels):
    order = random.permutation(np.flatnonzero(labels == label))
    partner[order] = np.roll(order, 1)
  return partner
