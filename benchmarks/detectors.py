"""What each memorization metric sees of copies planted among real images: MNIST, its test images as perfect samples.

  python -m benchmarks.detectors --data_dir=...

The training set is MNIST's 60,000. Of its 10,000 test images 5,000 are the held-out null and 2,000 others the samples,
of which a share is replaced by training images: exact, noised (Gaussian, deviation 25 of 255), or shifted one pixel to
the right. Seed 0. A metric that sees copies moves away from its value at 0 %.
"""

import numpy as np
from absl import app, flags, logging

from diffusion import checkout, devices
from diffusion.data import pipeline, sources
from diffusion.evaluation import classifier, frechet, memorization, novelty
from diffusion.evaluation.metric import MetricInputs
from diffusion.reporting.tables import markdown

DATA_DIR = flags.DEFINE_string('data_dir', None, 'TFDS directory of MNIST.')
COUNT = flags.DEFINE_integer('count', 2000, 'Samples.')
SHARES = (0.0, 0.01, 0.05, 0.2)


def planted(fresh: np.ndarray, train: np.ndarray, share: float, kind: str) -> np.ndarray:
  """Fresh images, the first share of them replaced by copies of random training images."""
  random = np.random.default_rng(0)
  count = round(share * len(fresh))
  copies = train[random.choice(len(train), count, replace=False)]
  if kind == 'noised':
    noisy = copies + random.normal(0, 25, copies.shape)
    copies = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)  # as an image is stored
  elif kind == 'shifted':
    copies = np.roll(copies, 1, axis=2)
  return np.concatenate([copies, fresh[count:]])


def metrics():
  """The memorization metrics, and a Frechet distance beside them."""
  features = classifier.features('mnist')
  return [
    memorization.nearest_neighbor_ratio(),
    memorization.calibrated_ratio(0.01),
    memorization.calibrated_ratio(0.01, features),
    memorization.authenticity(),
    novelty.data_copying(features),
    novelty.feature_likelihood(features),
    frechet.frechet(features),
  ]


def main(_):
  """Judges and prints."""
  logging.set_verbosity(logging.ERROR)
  devices.configure(256)
  data = sources.tfds('mnist', data_dir=DATA_DIR.value).load()
  (train, held_out), fresh = (data.x, data.test[0][:5000]), data.test[0][5000 : 5000 + COUNT.value]
  kept: dict = {}  # what does not depend on the samples: the null's ratios and features
  columns: dict[str, list] = {}
  headers = ['metric']
  for kind in ('exact', 'noised', 'shifted'):
    for share in SHARES if kind == 'exact' else SHARES[1:]:
      samples = planted(fresh, train, share, kind)
      known = {key: value for key, value in kept.items() if 'samples' not in key}
      none = np.zeros(len(samples), np.int32)
      judged = MetricInputs(
        samples=samples, labels=none, train=(train, data.label), held_out=(held_out, none),
        validation=0, class_names=(), units=pipeline.NormalizationStatistics(256), network=None, kept=known,
      )  # fmt: skip
      for metric in metrics():
        for finding in metric.measure(judged):
          columns.setdefault(finding.name, []).append(finding.value)
      kept = judged.kept
      headers.append(f'{share:.0%} {kind}')
      print(headers[-1], flush=True)
  print(markdown(headers, [[name, *values] for name, values in columns.items()]))
  print(f'commit {checkout.code()["commit"]}, {devices.describe()}')


if __name__ == '__main__':
  app.run(main)
