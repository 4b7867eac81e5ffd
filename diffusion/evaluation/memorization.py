"""Memorization: are samples copies of training examples? Never without what held-out data would score."""

import numpy as np

from diffusion import checks, statistics
from diffusion.citations import technique
from diffusion.evaluation.evaluate import Finding, Judged, Metric


def nearest(
  queries: np.ndarray, reference: np.ndarray, chunk: int = 512
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The two nearest references of each query, exactly, without an n x m x d array.

  Args:
    queries: [m, ...].
    reference: [n, ...], n >= 2.
    chunk: queries at a time.

  Returns:
    (index of the nearest [m], its distance [m], the distance of the second nearest [m]), Euclidean, float64.

  Raises:
    ValueError: fewer than two references.
  """
  if len(reference) < 2:
    raise ValueError(f'nearest-neighbor ratios need at least 2 references, got {len(reference)}')
  flat = reference.reshape(len(reference), -1)
  center = flat.mean(0, dtype=np.float64)  # near the origin the identity below keeps its digits
  r = flat - center
  norms = (r**2).sum(1)
  count = min(8, len(r))
  found = []
  for start in range(0, len(queries), chunk):
    part = queries[start : start + chunk].reshape(-1, flat.shape[1]).astype(np.float64)
    square = norms - 2 * (part - center) @ r.T  # + |q|^2, the same for all references
    near = np.argpartition(square, count - 1, axis=1)[:, :count]
    # For near copies it loses digits all the same: measure the few that matter directly, and order them by that.
    distance = np.linalg.norm(part[:, None] - flat[near].astype(np.float64), axis=2)
    order = np.argsort(distance, axis=1)[:, :2]
    near = np.take_along_axis(near, order, 1)
    distance = np.take_along_axis(distance, order, 1)
    found.append((near[:, 0], distance[:, 0], distance[:, 1]))
  return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def ratios(queries: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(nearest index, r = |x - NN1| / |x - NN2|) of each query among the distinct references, r in [0, 1].

  Duplicates are dropped first: two copies of one image would make r = 1 and hide a third. The index is into the
  original `reference`.
  """
  flat = reference.reshape(len(reference), -1)
  _, kept = np.unique(flat, axis=0, return_index=True)
  index, first, second = nearest(queries, reference[kept])
  return kept[index], first / second


@technique('nearest-neighbor ratio', 'core', 'yoon2023memorize', 'gu2023memorization')
def nearest_neighbor_ratio(threshold: float = 1 / 3) -> Metric:
  """The memorized fraction f: the share of samples with |x - NN1| < threshold |x - NN2|; and f0, that of held-out data.

  Args:
    threshold: in (0, 1); 1/3 in both papers.

  Raises:
    ValueError: threshold out of its range.

  Source: Yoon et al. (2023); Gu et al. (2023), section 2.2. The held-out null is this project's.
  """
  checks.in_range('threshold', threshold, 0, 1, ends='()')

  def judge(judged: Judged) -> list[Finding]:
    fractions = []
    for queries in (judged.samples, judged.held_out[0]):
      _, r = ratios(queries, judged.train[0])
      fractions.append(statistics.wilson(int((r < threshold).sum()), len(r)))
    return [
      Finding('memorized fraction', fractions[0], f'samples with a nearest-neighbor ratio below {threshold:.3g}'),
      Finding('its held-out null', fractions[1], 'the same of real held-out examples: what no copying looks like'),
    ]  # fmt: skip

  return Metric(lambda samples, classes: None, judge)
