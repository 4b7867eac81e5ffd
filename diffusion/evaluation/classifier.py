"""Small classifiers of this project's own, whose weights are in the repository: features, and calls of classes.

`python -m benchmarks.classifier` trained them. A Frechet distance of their features is comparable with another one of
the same name and hash only, and is no FID.
"""

import functools
import hashlib
import importlib.resources
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from diffusion import devices
from diffusion.citations import technique
from diffusion.evaluation import features as features_
from diffusion.evaluation import manifold
from diffusion.evaluation.features import Features
from diffusion.evaluation.metric import (
  Metric,
  MetricInputs,
  MetricResult,
  check_nothing,
  of_features,
  shown,
)
from diffusion.models.convolution import Images
from diffusion.types import Array, Params

NAMES = ('digits', 'mnist')
_EXACT = jax.lax.Precision.HIGHEST  # the same features on every kind of device

Called = tuple[Float32[np.ndarray, 'n f'], Float32[np.ndarray, 'n k']]


class ConvolutionalClassifier(nn.Module):
  """Four 3x3 convolutions (the last three halve the image), a layer of features, and the logits."""

  num_classes: int
  channels: tuple[int, ...] = (16, 32, 64, 64)
  width: int = 64

  @nn.compact
  def __call__(
    self, x: Images
  ) -> tuple[Float[Array, 'b {self.width}'], Float[Array, 'b {self.num_classes}']]:
    """Images in [-1, 1] -> (features, logits)."""
    for i, channels in enumerate(self.channels):
      x = nn.silu(nn.Conv(channels, (3, 3), 1 if i == 0 else 2, precision=_EXACT)(x))
    embedding = nn.Dense(self.width, precision=_EXACT)(x.reshape(len(x), -1))
    return embedding, nn.Dense(self.num_classes, precision=_EXACT)(nn.silu(embedding))


class Classifier(NamedTuple):
  """A trained classifier.

  Attributes:
    name: of the data it was trained on.
    digest: the first eight digits of the SHA-256 of its weights.
    shape: of the images it takes.
    call: images of this shape -> (features, class probabilities).
  """

  name: str
  digest: str
  shape: tuple[int, ...]
  call: Callable[[UInt8[np.ndarray, 'n h w c']], Called]


def digest(arrays: Mapping[str, Shaped[np.ndarray, '...']]) -> str:
  """The first eight hexadecimal digits of the SHA-256 of named arrays: names, shapes and bytes, in order of name."""
  whole = hashlib.sha256()
  for name in sorted(arrays):
    whole.update(f'{name} {arrays[name].dtype} {arrays[name].shape}'.encode())
    whole.update(np.ascontiguousarray(arrays[name]).tobytes())
  return whole.hexdigest()[:8]


def save(path: Any, params: Params, shape: tuple[int, ...]) -> None:
  """Writes weights as an .npz of float16 arrays, and the shape of the images beside them.

  Args:
    path: of the file.
    params: of a `ConvolutionalClassifier`.
    shape: (h, w, c) of the images it takes.
  """
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  np.savez(
    path, shape=np.array(shape), **{name: np.asarray(v, np.float16) for name, v in flat.items()}
  )


@functools.cache
def load(name: str) -> Classifier:
  """One of the classifiers in this package: 'digits' (8x8, scikit-learn's) or 'mnist' (28x28).

  Raises:
    ValueError: another name.
  """
  if name not in NAMES:
    raise ValueError(f'there is no classifier of {name!r}: choose one of {", ".join(NAMES)}')
  stored = (
    importlib.resources.files('diffusion.evaluation') / 'weights' / f'{name}.npz'
  ).read_bytes()
  arrays = dict(np.load(io.BytesIO(stored)))  # float16, to be small
  shape = tuple(int(n) for n in arrays.pop('shape'))
  wide = {key: value.astype(np.float32) for key, value in arrays.items()}
  params = flax.traverse_util.unflatten_dict(wide, sep='/')
  network = ConvolutionalClassifier(arrays['Dense_1/bias'].size)

  def rows(
    params: Params, x: UInt8[Array, 'b h w c']
  ) -> tuple[Float[Array, 'b f'], Float[Array, 'b k']]:
    embedding, logits = network.apply({'params': params}, x.astype(jnp.float32) / 127.5 - 1)
    return embedding, jax.nn.softmax(logits)

  mapped = functools.cache(lambda: (devices.over_rows(rows, 512), devices.replicate(params)))

  def call(x: features_.Shown) -> Called:
    features_.check_examples(x)
    if x.shape[1:] != shape:
      raise ValueError(f'the {name} classifier takes images {list(shape)}, got {list(x.shape[1:])}')
    function, weights = mapped()
    return function(weights, x)

  return Classifier(name, digest(arrays), shape, call)


@functools.cache  # one function, so that what is computed of it is computed once
def features(name: str) -> Features:
  """The features of a classifier in this package, 64 a image.

  Raises:
    ValueError: another name; when applied, images of another shape.
  """
  one = load(name)

  def refuses(shape: tuple[int, ...]) -> str:
    said = f'the {name} classifier takes images {list(one.shape)}, the data has {list(shape)}'
    return '' if shape == one.shape else said

  return Features(
    name=f'{name} classifier',
    digest=one.digest,
    width=64,
    apply=lambda x: one.call(x)[0],
    call=lambda x: one.call(x)[1],
    shape=one.shape,
    refuses=refuses,
  )


@technique('class balance of samples', 'core', 'salimans2016improved')
def class_balance(features: Features) -> Metric:
  """How evenly the samples spread over the classes.

  The effective number of classes is exp of the entropy of the share of each class among the calls: the number of
  classes where all are equally frequent, 1 where all samples are of one class. Beside it stands held-out data's.

  Args:
    features: of a classifier, e.g. `features('digits')`.

  Raises:
    ValueError: features that call no classes; before training, data of another shape.

  Source: the marginal entropy of Salimans et al. (2016), section 4.
  """
  call = features.call
  if call is None:
    raise ValueError(
      f'features must be of a classifier ({", ".join(NAMES)}), {features.name} call no classes'
    )

  def calls(inputs: MetricInputs, which: str) -> Float[np.ndarray, 'rows k']:
    probabilities = inputs.once(
      (call, which), lambda: call(shown(inputs.x(which), inputs.units.levels))
    )
    return np.eye(probabilities.shape[1])[probabilities.argmax(1)]

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    called = {which: calls(inputs, which) for which in ('samples', 'held_out')}
    label = features_.label(features)
    meaning = f'exp of the entropy of the shares of the classes, of {called["samples"].shape[1]}'
    return [
      MetricResult(
        f'effective classes({label}){of}',
        manifold.class_entropy(called[which]),
        meaning,
        unit='classes',
        better=better,
      )
      for of, which, better in (('', 'samples', 'higher'), (', held-out', 'held_out', ''))
    ]

  return Metric(of_features(features, check_nothing), measure)
