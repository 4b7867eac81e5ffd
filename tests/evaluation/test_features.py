"""Features that are kept on disk: read where they are as they were written, and else computed again."""

import numpy as np
import pytest

from diffusion.evaluation import classifier, features


@pytest.mark.parametrize('kind', ['gone', 'truncated', 'altered', 'without its hash'])
def test_kept_features_that_are_not_as_they_were_written_are_computed_again(
  tmp_path, monkeypatch, capsys, kind
):
  monkeypatch.setenv('DIFFUSION_FEATURES', str(tmp_path))
  x, made = np.arange(8, dtype=np.float32).reshape(4, 2), []

  def first(x):
    made.append(len(x))
    return x[:, :1]

  counted = features.Features('first', '', 1, first)
  for _ in range(2):
    np.testing.assert_array_equal(features.remembered(counted, x), x[:, :1])
  assert len(made) == 1
  (path,) = tmp_path.glob('*.npy')
  content = path.read_bytes()
  if kind == 'gone':
    path.unlink()
  elif kind == 'without its hash':
    path.with_suffix('.sha256').unlink()
  else:
    path.write_bytes(content[:-3] if kind == 'truncated' else content[:-1] + b'?')
  for _ in range(2):
    np.testing.assert_array_equal(features.remembered(counted, x), x[:, :1])
  assert len(made) == 2
  assert path.read_bytes() == content
  assert capsys.readouterr().out.count('computed again') == (kind != 'gone')


def test_other_examples_of_the_same_shape_have_features_of_their_own(tmp_path, monkeypatch):
  monkeypatch.setenv('DIFFUSION_FEATURES', str(tmp_path))
  doubled = features.Features('doubled', '', 2, lambda x: 2 * x)
  for seed in range(3):
    x = np.random.default_rng(seed).normal(size=(4, 2)).astype(np.float32)
    np.testing.assert_array_equal(features.remembered(doubled, x), 2 * x)
  halved = features.Features('halved', '', 2, lambda x: x / 2)
  np.testing.assert_array_equal(features.remembered(halved, x), x / 2)


def test_kept_features_are_known_by_all_that_they_are_of(tmp_path, monkeypatch):
  """The same bytes of another shape or type, another hash or program of the same name."""
  monkeypatch.delenv('DIFFUSION_FEATURES', raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  x, made = np.arange(8, dtype=np.float32).reshape(4, 2), []
  one = features.Features('a b', 'abc', 2, lambda x: made.append(0) or x.astype(np.float32))
  given = [
    (one, x), (one, x.reshape(2, 4)), (one, x.view(np.int32)), (one._replace(digest='abd'), x),
    (one._replace(name='a c'), x),
  ]  # fmt: skip
  for _ in range(2):
    for each, of in given:
      np.testing.assert_array_equal(features.remembered(each, of), of.astype(np.float32))
  assert len(made) == 5
  monkeypatch.setattr(features, '_VERSION', features._VERSION + 1)
  features.remembered(one, x)
  kind = features.devices.describe
  monkeypatch.setattr(features.devices, 'describe', lambda: kind() | {'platform': 'gpu'})
  features.remembered(one, x)
  assert len(made) == 7
  kept = [*(tmp_path / '.cache' / 'diffusion' / 'features').glob('*.npy')]
  assert len(kept) == 7 and sum(path.name.startswith('a-b-abc-') for path in kept) == 5


def test_a_distance_carries_the_name_and_the_hash_of_its_features():
  digits, mnist = map(classifier.features, classifier.NAMES)
  for one, name, shape in ((digits, 'digits', (8, 8, 1)), (mnist, 'mnist', (28, 28, 1))):
    assert one.digest == classifier.load(name).digest and len(one.digest) == 8
    assert features.distance_name(one) == f'FD({name} classifier, {one.digest})'
    assert (one.shape, features.width(one, shape)) == (shape, 64)
  assert digits.digest != mnist.digest
  assert features.width(features.pixels(), (3, 5, 2)) == 30
  standard = features.pixels()._replace(name='inception-v3 pool', digest='6726825d')
  assert features.distance_name(standard) == 'FID'
