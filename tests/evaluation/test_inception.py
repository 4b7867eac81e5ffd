"""The Inception-v3 against PyTorch's, its file against its checksum, and PyTorch's files read without PyTorch."""

import contextlib
import hashlib
import importlib.util
import pathlib
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices
from diffusion.evaluation import by_name, features, frechet, inception, novelty, torch_files
from tests.evaluation.given import inputs_of

FOLDER = pathlib.Path(__file__).parent / 'torch'
spec = importlib.util.spec_from_file_location('make', FOLDER / 'make.py')
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)
SUFFIXES = ('conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')


def test_a_distance_says_how_its_images_were_resized_and_fld_whose_number_it_is_not():
  random = np.random.default_rng(0)
  vectors = lambda n: (random.normal(size=(n, 3)), np.zeros(n, int))  # noqa: E731
  noted = features.pixels()._replace(name='inception-v3 pool', note=inception.NOTE)
  given = inputs_of(vectors(40)[0], vectors(80)[0], vectors(60)[0])
  for metric in (frechet.frechet(noted), frechet.kernel(noted)):
    assert 'not as pytorch-fid or clean-fid' in metric.measure(given)[0].meaning
  assert [one.name for one in frechet.frechet(noted).measure(given)[:2]] == [
    'FID',
    'FID, infinite samples',
  ]
  for metric in (frechet.frechet(), frechet.kernel()):  # of what has no note there is none
    assert not metric.measure(given)[0].meaning.endswith('; ')
  (fld,) = novelty.feature_likelihood().measure(given)
  assert 'not of the package fld' in fld.meaning
  assert fld.better == 'lower'


def state():
  """Random weights of the right layout, as `make.py` gave them to PyTorch."""
  return {
    f'{layer}.{name}': make.random_array(
      f'{layer}.{name}', shape if name == 'conv.weight' else shape[:1]
    )
    for layer, shape in inception.layout().items()
    for name in SUFFIXES
  }


def test_the_layout_is_that_of_the_published_file():
  """94 convolutions, with the 21,802,784 - 3 x 17,216 weights that Keras lists for the network without its top."""
  shapes = inception.layout().values()
  assert len(shapes) == 94
  assert sum(np.prod(shape) for shape in shapes) == 21_802_784 - 3 * 17_216
  assert sum(shape[0] for shape in shapes) == 17_216


@pytest.mark.slow
def test_features_are_pytorchs():
  """torch-fidelity's extractor with the same random weights, on images that are not square: to 1e-4."""
  expected = np.load(FOLDER / 'features.npz')['features']
  call = devices.over_rows(inception.pooled, 2)
  found = call(devices.replicate(inception.prepare(state())), make.images())
  assert found.shape == (2, inception.WIDTH)
  assert expected.std() > 0.01
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
  assert np.abs(found[0] - found[1]).max() > 100 * np.abs(found - expected).max()


def test_an_array_that_is_missing_or_wrong_is_named():
  right = state()
  name = 'Mixed_6b.branch7x7_2.conv.weight'
  with pytest.raises(
    ValueError, match=rf'need {name} .*\(128, 128, 1, 7\), the file has \(128, 128, 7, 1\)'
  ):
    inception.prepare(right | {name: right[name].transpose(0, 1, 3, 2)})
  del right['Conv2d_1a_3x3.bn.bias']
  with pytest.raises(
    ValueError, match=r'need Conv2d_1a_3x3.bn.bias .*, the file has no such array'
  ):
    inception.prepare(right)


def test_another_file_is_refused_by_its_checksum(tmp_path):
  path = tmp_path / inception.FILE
  path.write_bytes(b'not the weights')
  with pytest.raises(ValueError, match=r'has SHA-256 .* only those give an FID'):
    inception.features(path)
  with pytest.raises(FileNotFoundError):
    inception.features(tmp_path / 'absent.pth')


def test_features_of_the_standard_file_are_its_pooled_ones_under_its_name(tmp_path, monkeypatch):
  """As far as they are known without the weights; a small file stands in for the standard one."""
  monkeypatch.setattr(inception, 'prepare', lambda arrays: arrays)
  path = FOLDER / 'archive.pth'
  monkeypatch.setattr(inception, 'SHA256', hashlib.sha256(path.read_bytes()).hexdigest())
  found = inception.features(path)
  assert (found.name, found.width, found.note) == ('inception-v3 pool', 2048, inception.NOTE)
  assert found.digest == inception.SHA256[:8]
  assert features.width(found, (32, 32, 3)) == 2048
  assert not found.refuses((5, 7, 1)) and not found.refuses((5, 7, 3))
  assert found.refuses((5, 7, 2)) and found.refuses((3,))
  with pytest.raises(ValueError, match=r'takes images \[H, W, 1 or 3\], the data has \[8\]'):
    found.apply(np.zeros((2, 8), np.float32))
  assert by_name.choose_features(str(path)).digest == found.digest
  monkeypatch.undo()
  with pytest.raises(ValueError, match='only those give an FID'):
    by_name.choose_features(str(path))


def test_resizing_reads_where_tensorflow_1_did():
  """4 to 6 pixels: output i at 2 i / 3, the edge repeated beyond the last."""
  x = np.array([0.0, 3.0, 6.0, 12.0]).reshape(1, 1, 4, 1).repeat(4, 1).astype(np.float32)
  row = np.asarray(inception.resize(jnp.asarray(x), 6))[0, 0, :, 0]
  np.testing.assert_allclose(row, [0, 2, 4, 6, 10, 12], rtol=1e-6)
  same = np.random.default_rng(0).uniform(size=(1, 7, 7, 3)).astype(np.float32)
  np.testing.assert_array_equal(inception.resize(jnp.asarray(same), 7), same)


@pytest.mark.parametrize('name', ['archive', 'stream'])
def test_pytorchs_files_are_read_without_it(name):
  found, expected = torch_files.read(FOLDER / f'{name}.pth'), make.small()
  assert list(found) == list(expected)
  for key, value in expected.items():
    assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
    np.testing.assert_array_equal(found[key], value)


def test_a_file_that_would_run_something_is_refused(tmp_path):
  class Harm:
    def __reduce__(self):
      return print, ('harm',)

  path = tmp_path / 'harm.pth'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps({'a': Harm()}))
  with pytest.raises(ValueError, match='asks for builtins.print'):
    torch_files.read(path)


def one_array(path, shape, strides, offset=0, size=6, stored=6, compression=zipfile.ZIP_STORED):
  """A file of one float32 array 'a', by the instructions of pickle, and of so many stored values."""
  value = lambda one: pickle.dumps(one, 2)[2:-1]  # noqa: E731 - without its head and its end
  storage = b'(' + value('storage') + b'ctorch\nFloatStorage\n' + value('0') + value('cpu')
  tensor = [b'(', storage, value(size), b'tQ', *map(value, (offset, shape, strides, False, {}))]
  rebuilt = [b'ctorch._utils\n_rebuild_tensor_v2\n', *tensor, b'tR']
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('a/data.pkl', b''.join([b'\x80\x02}', value('a'), *rebuilt, b's.']))
    archive.writestr('a/data/0', np.arange(stored, dtype='<f4').tobytes())


def test_a_view_into_a_storage_is_read(tmp_path):
  one_array(tmp_path / 'a.pth', (2, 2), (1, 3), 1)
  np.testing.assert_array_equal(torch_files.read(tmp_path / 'a.pth')['a'], [[1, 4], [2, 5]])


@pytest.mark.parametrize(
  'crafted',
  [
    {'shape': (2, 4), 'strides': (4, 1)},
    {'shape': (6,), 'strides': (1,), 'offset': 1},
    {'shape': (2,), 'strides': (10**9,)},
    {'shape': (2,), 'strides': (-1,), 'offset': 3},
    {'shape': (2,), 'strides': (1,), 'offset': -1},
    {'shape': (-2,), 'strides': (1,)},
    {'shape': (10**12,), 'strides': (0,)},  # few values, said over and over
    {'shape': (2, 3), 'strides': (1,)},
    {'shape': (2.0,), 'strides': (1,)},
    {'shape': (600,), 'strides': (1,), 'size': 600},
    {'shape': (6,), 'strides': (1,), 'stored': 5},
    {'shape': (6,), 'strides': (1,), 'size': -1},
    {'shape': 6, 'strides': 1},
    {'shape': (6,), 'strides': (1,), 'compression': zipfile.ZIP_DEFLATED},
  ],
)
def test_an_array_beyond_what_its_file_stores_is_refused(tmp_path, crafted):
  one_array(tmp_path / 'a.pth', **crafted)
  with pytest.raises(ValueError, match=r'a.pth is no PyTorch checkpoint of named arrays') as caught:
    torch_files.read(tmp_path / 'a.pth')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['archive', 'stream'])
def test_a_flipped_bit_of_such_a_file_is_refused_or_read_within_it(tmp_path, name):
  whole, rng = (FOLDER / f'{name}.pth').read_bytes(), np.random.default_rng(0)
  for place in rng.integers(0, 8 * len(whole), 200):
    flipped = bytearray(whole)
    flipped[place // 8] ^= 1 << place % 8
    (tmp_path / 'a.pth').write_bytes(flipped)
    with contextlib.suppress(ValueError):
      assert all(one.size <= 12 for one in torch_files.read(tmp_path / 'a.pth').values())


@pytest.mark.parametrize(
  'content', [b'', b'text', pickle.dumps([1, 2]), pickle.dumps(torch_files._MAGIC)]
)
def test_other_files_are_refused(tmp_path, content):
  path = tmp_path / 'odd.pth'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='no PyTorch checkpoint of named arrays'):
    torch_files.read(path)
