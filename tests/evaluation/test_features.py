"""Features that are kept on disk: read where they are as they were written, and else computed again."""

import numpy as np
import pytest

from diffusion.evaluation import features


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
