"""Do rotations of the training data leak into samples? With the augmentation label, and with it removed.

  python -m benchmarks.leakage --figure=docs/figures/leakage.png

Fixed before any run: `experiments.digits` with rotations by an angle uniform on [-180, 180] degrees that act on half
of the examples, 800 steps, seed 0; 200 samples of each class at label zero, guidance 1.5. A classifier of orientation
(a support-vector machine on pixels, balanced) is trained on real digits, upright against rotated. Real digits are
judged by classifiers that have not seen them (10 folds), samples by the classifier of all. Endpoint: the excess share
called rotated, samples minus real upright digits, with Newcombe's 95 % interval.
"""

import math

import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from diffusion import checkout, devices, rng, statistics
from diffusion.data import augment, pipeline, sources
from diffusion.reporting import plots
from diffusion.sampling import draw
from diffusion.training.experiment import fitted, load_data
from diffusion.training.program import SingleRun
from diffusion.training.state import init_state
from diffusion.training.state import weights as judged_weights
from diffusion.types import Batch
from experiments import digits

FIGURE = flags.DEFINE_string('figure', '', 'Where to draw samples; not drawn by default.')
STEPS = flags.DEFINE_integer('steps', 800, 'Training steps.')
ROTATE = augment.rotate(180.0)


def orientation_data():
  """(flat upright digits, the same rotated), network units."""
  data = sources.digits().load()
  x = pipeline.normalize(jnp.asarray(data.x), pipeline.NormalizationStatistics(17))
  rows = jnp.arange(len(x))
  keys = rng.row_keys(rng.stream(99, 'augmentation'), rows)
  turned = ROTATE(keys, Batch(x, rows, jnp.zeros((len(x), 0)), rows)).x
  return np.asarray(x).reshape(len(x), -1), np.asarray(turned).reshape(len(x), -1)


def classifiers(upright: np.ndarray, turned: np.ndarray):
  """(classifier of all, what held-out folds are called: [2, n] booleans, True for rotated)."""
  from sklearn.model_selection import KFold
  from sklearn.svm import SVC

  def fit(rows):
    x = np.concatenate([upright[rows], turned[rows]])
    return SVC(C=10.0).fit(x, np.repeat([0, 1], len(rows)))

  called = np.zeros((2, len(upright)), bool)
  for train, held in KFold(10, shuffle=True, random_state=0).split(upright):
    one = fit(train)
    called[0, held], called[1, held] = one.predict(upright[held]), one.predict(turned[held])
  return fit(np.arange(len(upright))), called


def train(told: bool):
  """2,000 samples as stored, after training with the label or without."""
  rotation = augment.conditioned(0.5, ROTATE)

  def untold(keys, batch):
    return rotation(keys, batch)._replace(augment_label=batch.augment_label)

  config = digits.Config(num_steps=STEPS.value, samples_per_class=200)
  made = digits.build(config)
  chain = augment.chain(rotation if told else untold, augment.label_dropout(config.label_dropout))
  made = made._replace(augment=chain)
  data = load_data(made)
  made = fitted(made, data.units)
  program = SingleRun(made, data)
  program.put(0, devices.replicate(init_state(made, data.example, data.units)))
  for seen in range(0, STEPS.value, made.steps_per_dispatch):
    program.dispatch([seen])
  loss = program.validate(0)['validation/eps']
  sample = draw.make_sample(made.model, made.diffusion, made.sampling, data.dataset.x.shape[1:])
  labels = draw.class_labels(10, 200)
  drawn = sample(judged_weights(made, program.get(0)), labels, np.arange(len(labels)))
  return pipeline.denormalize(drawn, data.units), loss


def excess(called: int, of: int, base: int, base_of: int) -> tuple[float, float, float]:
  """p - q and Newcombe's interval, in points."""
  p, q = statistics.wilson(called, of), statistics.wilson(base, base_of)
  difference = p.estimate - q.estimate
  low = difference - math.hypot(p.estimate - p.low, q.high - q.estimate)
  high = difference + math.hypot(p.high - p.estimate, q.estimate - q.low)
  return 100 * difference, 100 * low, 100 * high


def main(_) -> None:
  """Trains twice and prints both excess shares."""
  logging.set_verbosity(logging.ERROR)
  devices.configure(128)
  print(f'commit {checkout.code()["commit"]}, {devices.describe()}')
  judge, called = classifiers(*orientation_data())
  n = called.shape[1]
  print(f'of real digits unseen by the classifier, upright {100 * called[0].mean():.2f} % and rotated '
        f'{100 * called[1].mean():.2f} % are called rotated')  # fmt: skip
  pictures = []
  for told in (True, False):
    samples, loss = train(told)
    units = np.asarray(
      pipeline.normalize(jnp.asarray(samples), pipeline.NormalizationStatistics(17))
    )
    count = int(judge.predict(units.reshape(len(units), -1)).sum())
    points = excess(count, len(units), int(called[0].sum()), n)
    print(
      f'{"conditioned" if told else "label removed"}: {count} of {len(units)} samples called rotated, excess '
      f'{points[0]:.2f} [{points[1]:.2f}, {points[2]:.2f}] points; validation/eps {loss:.4f}', flush=True,
    )  # fmt: skip
    pictures.append(pipeline.to_uint8(samples[:40], 17).reshape(4, 10, 8, 8, 1))
  if FIGURE.value:
    grid = np.concatenate(pictures)
    plots.image_grid(
      grid, list('0123456789'), FIGURE.value, title='conditioned (4 rows), label removed (4)'
    )
    print(FIGURE.value)


if __name__ == '__main__':
  app.run(main)
