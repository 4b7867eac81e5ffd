"""Trains a classifier whose features and calls the metrics use, puts its weights into `diffusion/evaluation/weights`,
and prints its accuracy on held-out images.

  python -m benchmarks.classifier --data=digits
  python -m benchmarks.classifier --data=mnist --data_dir=...

AdamW, one-cycle rate, random shifts of a pixel (MNIST: two), from seed 0. Held out are scikit-learn's digits by hash (a
fifth), and MNIST's official test set.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from diffusion import checkout, devices, statistics
from diffusion.data import pipeline, sources, splits
from diffusion.evaluation import classifier

DATA = flags.DEFINE_enum('data', 'digits', classifier.NAMES, 'What to train on.')
DATA_DIR = flags.DEFINE_string('data_dir', None, 'TFDS directory of MNIST.')
WEIGHTS = pathlib.Path(classifier.__file__).parent / 'weights'
BATCH = 128


def load():
  """((x, label) to train on, the same held out), x uint8 brightness."""
  if DATA.value == 'digits':
    data = sources.digits().load()
    split = splits.make(data.x, data.label, splits.Fractions(0.0, 0.2), official_test=False)
    train, test = ((data.x[i], data.label[i]) for i in (split.train, split.test))
  else:
    data = sources.tfds('mnist', data_dir=DATA_DIR.value).load()
    train, test = (data.x, data.label), data.test
  return [(pipeline.to_uint8(x, data.levels), label) for x, label in (train, test)]


def shifted(key, x, most):
  """Each image moved by up to `most` pixels either way, black moving in."""
  padded = jnp.pad(x, ((0, 0), (most, most), (most, most), (0, 0)), constant_values=-1)
  place = jax.random.randint(key, (len(x), 2), 0, 2 * most + 1)
  cut = lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), x.shape[1:])  # noqa: E731
  return jax.vmap(cut)(padded, place)


def train(x, label, epochs, most):
  """Weights."""
  network = classifier.ConvolutionalClassifier(int(label.max()) + 1)
  params = network.init(jax.random.key(0), jnp.zeros((1, *x.shape[1:])))['params']
  steps = epochs * (len(x) // BATCH)
  rate = optax.cosine_onecycle_schedule(steps, 3e-3)
  optimizer = optax.adamw(rate, weight_decay=0.02)

  @jax.jit
  def step(params, state, key, x, label):
    x = shifted(key, x.astype(jnp.float32) / 127.5 - 1, most)

    def loss(params):
      logits = network.apply({'params': params}, x)[1]
      return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    update, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, update), state

  state, random = optimizer.init(params), np.random.default_rng(0)
  for epoch in range(epochs):
    order = random.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
    for i, rows in enumerate(order):
      key = jax.random.fold_in(jax.random.key(1), epoch * len(order) + i)
      params, state = step(params, state, key, x[rows], label[rows])
    print(f'epoch {epoch + 1} of {epochs}', flush=True)
  return params


def main(_):
  """Trains, writes, reads back, prints."""
  logging.set_verbosity(logging.ERROR)
  devices.configure(BATCH, 1)
  fitted, held_out = load()
  devices.choose_convolutions()
  small = DATA.value == 'digits'
  params = train(*fitted, epochs=60 if small else 8, most=1 if small else 2)
  classifier.save(WEIGHTS / f'{DATA.value}.npz', params, fitted[0].shape[1:])
  classifier.load.cache_clear()
  made = classifier.load(DATA.value)
  right = made.call(held_out[0])[1].argmax(1) == held_out[1]
  share = statistics.format_interval(statistics.wilson(int(right.sum()), len(right)))
  print(f'weights {made.digest}, {sum(leaf.size for leaf in jax.tree.leaves(params))} numbers')
  print(f'held-out accuracy {share} of {len(right)} images')
  print(f'commit {checkout.code()["commit"]}, {devices.describe()}')


if __name__ == '__main__':
  app.run(main)
