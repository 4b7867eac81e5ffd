"""Raw files in the official formats -> `tfds.data_source`, equal to the pixel; damage; kills."""

import fcntl
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import types
from collections import Counter

import numpy as np
import pytest

from diffusion.commands import prepare as prepare_command
from diffusion.data import archives, prepare, raw, records, sources

tfds = pytest.importorskip('tensorflow_datasets')

ROOT = pathlib.Path(prepare.__file__).parents[2]
CIFAR_LABELS = [
  *('airplane', 'automobile', 'bird', 'cat', 'deer'),
  *('dog', 'frog', 'horse', 'ship', 'truck'),
]


def random_set(seed, n, shape):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
  return images, rng.integers(0, 10, n, dtype=np.uint8)


def idx(magic, array):
  return struct.pack(f'>I{array.ndim}I', magic, *array.shape) + array.tobytes()


def write_mnist(folder, seed=0, train=30, test=12, zipped=True):
  """The four files; returns split -> (images, labels)."""
  folder.mkdir(exist_ok=True)
  sets = {'train': random_set(seed, train, (28, 28)), 'test': random_set(seed + 1, test, (28, 28))}
  for split, stem in (('train', 'train'), ('test', 't10k')):
    images, labels = sets[split]
    contents = {'images-idx3': idx(0x803, images), 'labels-idx1': idx(0x801, labels)}
    for kind, content in contents.items():
      if zipped:
        (folder / f'{stem}-{kind}-ubyte.gz').write_bytes(gzip.compress(content, 1))
      else:
        (folder / f'{stem}-{kind}-ubyte').write_bytes(content)
  return sets


def cifar_files(seed=0, per_batch=4, test=5):
  """Name -> content as in the official archive, and split -> (images, labels)."""
  sets = {
    'train': random_set(seed, 5 * per_batch, (32, 32, 3)),
    'test': random_set(seed + 1, test, (32, 32, 3)),
  }
  records = {
    split: [bytes([y]) + x.transpose(2, 0, 1).tobytes() for x, y in zip(*both, strict=True)]
    for split, both in sets.items()
  }
  files = {
    f'data_batch_{i + 1}.bin': b''.join(records['train'][i * per_batch : (i + 1) * per_batch])
    for i in range(5)
  }
  files['test_batch.bin'] = b''.join(records['test'])
  files['batches.meta.txt'] = ('\n'.join(CIFAR_LABELS) + '\n\n').encode()
  return files, sets


def member(name, kind=tarfile.REGTYPE):
  made = tarfile.TarInfo(name)
  made.type, made.linkname = kind, '/etc/passwd' if kind == tarfile.SYMTYPE else ''
  return made


def write_tar(path, files):
  with tarfile.open(path, 'w:gz') as tar:
    tar.addfile(member('cifar-10-batches-bin', tarfile.DIRTYPE))  # as the official one has
    for name, content in files.items():
      entry = member(f'cifar-10-batches-bin/{name}')
      entry.size = len(content)
      tar.addfile(entry, io.BytesIO(content))


def read_back(name, split, data_dir):
  return list(tfds.data_source(name, split=split, data_dir=data_dir, download=False))


def assert_mnist_equal(name, sets, data_dir):
  """As multisets: on disk the order is TFDS's, and these sets have no ids."""
  for split, (images, labels) in sets.items():
    examples = read_back(name, split, data_dir)
    assert all(e['image'].shape == (28, 28, 1) for e in examples)
    found = Counter((e['image'].tobytes(), int(e['label'])) for e in examples)
    assert found == Counter((x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True))


def command(*arguments):
  return [sys.executable, '-m', 'diffusion.commands.prepare', *arguments]


def run(*arguments):
  return subprocess.run(
    command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
  )


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist'])
def test_mnist_round_trip(tmp_path, name, zipped, capsys):
  sets = write_mnist(tmp_path / 'raw', zipped=zipped)
  target = prepare.prepare(name, tmp_path / 'out', tmp_path / 'raw', allow_partial=True)
  builder = tfds.builder(name, data_dir=tmp_path / 'out')
  assert target == pathlib.Path(builder.data_dir)
  assert {k: v.num_examples for k, v in builder.info.splits.items()} == {'train': 30, 'test': 12}
  assert_mnist_equal(name, sets, tmp_path / 'out')
  said = capsys.readouterr()
  assert f"{target}: prepared {{'train': 30, 'test': 12}}" in said.out
  for split, count, official in (('train', 30, 60000), ('test', 12, 10000)):
    assert f'{count} {split} examples, officially {official}\n' in said.err
  assert said.err.count('PARTIAL SET') == 2
  assert os.listdir(tmp_path / 'out') == [name]


@pytest.mark.parametrize('form', ['archive in folder', 'archive', 'bins', 'official folder'])
def test_cifar10_round_trip(tmp_path, form):
  files, sets = cifar_files()
  raw = source = tmp_path / 'raw'
  raw.mkdir()
  if form.startswith('archive'):
    write_tar(raw / 'cifar-10-binary.tar.gz', files)
    source = raw / 'cifar-10-binary.tar.gz' if form == 'archive' else raw
  else:
    folder = raw / 'cifar-10-batches-bin' if form == 'official folder' else raw
    folder.mkdir(exist_ok=True)
    if form == 'bins':
      del files['batches.meta.txt']  # the names are known without it
    for name, content in files.items():
      (folder / name).write_bytes(content)
  prepare.prepare('cifar10', tmp_path, source, allow_partial=True)
  assert tfds.builder('cifar10', data_dir=tmp_path).info.features['label'].names == CIFAR_LABELS
  for split, (images, labels) in sets.items():
    examples = {e['id'].decode(): e for e in read_back('cifar10', split, tmp_path)}
    assert sorted(examples) == [f'{split}_{i:05d}' for i in range(len(labels))]
    for i, example in enumerate(examples[key] for key in sorted(examples)):
      np.testing.assert_array_equal(example['image'], images[i])
      assert example['label'] == labels[i]


def test_info_is_the_official_builders(tmp_path):
  files, _ = cifar_files()
  write_tar(tmp_path / 'cifar-10-binary.tar.gz', files)
  prepare.prepare('cifar10', tmp_path, tmp_path, allow_partial=True)
  prepared = tfds.builder_from_directory(tmp_path / 'cifar10' / '3.0.2').info
  official = tfds.builder_cls('cifar10')(data_dir=tmp_path / 'nothing').info
  assert repr(prepared.features) == repr(official.features)
  assert prepared.module_name == official.module_name
  assert prepared.citation == official.citation


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'cifar10'])
def test_urls_are_those_with_registered_checksums(name):
  spec = raw.SPECS[name]
  assert {spec.url + file for file in spec.downloads} == set(tfds.builder_cls(name).url_infos)


@pytest.mark.parametrize(
  ('code', 'dtype'),
  [(0x08, '>u1'), (0x09, '>i1'), (0x0B, '>i2'), (0x0C, '>i4'), (0x0D, '>f4'), (0x0E, '>f8')],
)
def test_idx_dtypes(code, dtype):
  values = np.arange(-6, 6).reshape(2, 3, 2).astype(dtype)
  read = raw.parse_idx(raw.RawFile('x', idx(code << 8 | 3, values)))
  assert read.dtype == np.dtype(dtype).newbyteorder('=')
  np.testing.assert_array_equal(read, values)


def test_planes_of_a_cifar10_batch():
  red, green, blue = bytes(range(256)) * 4, b'\x01' * 1024, b'\x02' * 1024
  images, labels = raw.parse_cifar_batch(raw.RawFile('x.bin', b'\x07' + red + green + blue))
  assert images.shape == (1, 32, 32, 3)
  assert labels.tolist() == [7]
  assert images[0, 0, 5].tolist() == [5, 1, 2]  # row 0, column 5
  assert images[0, 1, 0].tolist() == [32, 1, 2]  # row 1, column 0


def damage(path, edit):
  path.write_bytes(edit(path.read_bytes()))


IMAGES, LABELS = 'train-images-idx3-ubyte', 'train-labels-idx1-ubyte'
MNIST_DAMAGE = {
  'magic': (IMAGES, lambda b: b'\x00\x01' + b[2:], 'magic number 0x00010803'),
  'dtype code': (IMAGES, lambda b: b'\x00\x00\x0a' + b[3:], 'magic number 0x00000a03'),
  'empty': (IMAGES, lambda _: b'', 'magic number 0x '),
  'header': (IMAGES, lambda b: b[:9], 'truncated in its header, 9 of 16'),
  'truncated': (IMAGES, lambda b: b[:-1], '23535 of 23536 bytes'),
  'too long': (LABELS, lambda b: b + b'\0', '39 of 38 bytes'),
  'gzip cut': (IMAGES, lambda b: gzip.compress(b)[:-20], 'damaged gzip'),
  'label 10': (LABELS, lambda b: b[:11] + b'\x0a' + b[12:], 'label 10 of example 3 '),
  'count': (LABELS, lambda _: idx(0x801, np.zeros(29, np.uint8)), '30 images but 29 labels'),
  'shape': (IMAGES, lambda _: idx(0x803, np.zeros((30, 32, 32), np.uint8)), '(32, 32, 1)'),
  'dtype': (IMAGES, lambda _: idx(0xB03, np.zeros((30, 28, 28), '>i2')), 'int16'),
  'images as labels': (LABELS, lambda _: idx(0x803, np.zeros((30, 2, 2), np.uint8)), 'uint8 of ()'),
  'labels as images': (IMAGES, lambda _: idx(0x801, np.zeros(30, np.uint8)), '(28, 28, 1)'),
}


@pytest.mark.parametrize('case', MNIST_DAMAGE)
def test_mnist_damage_is_named_and_leaves_nothing(tmp_path, case):
  file, edit, message = MNIST_DAMAGE[case]
  write_mnist(tmp_path / 'raw', zipped=False)
  damage(tmp_path / 'raw' / file, edit)
  with pytest.raises(prepare.PrepareError) as caught:
    prepare.prepare('mnist', tmp_path / 'out', tmp_path / 'raw', allow_partial=True)
  assert message in str(caught.value)
  assert file in str(caught.value)
  assert '\n' not in str(caught.value)
  assert os.listdir(tmp_path / 'out') == []


CIFAR_DAMAGE = {
  'truncated': ('data_batch_2.bin', lambda b: b[:-1], '12291 bytes are no whole number'),
  'label': ('test_batch.bin', lambda b: b'\x0b' + b[1:], 'label 11 of example 0 '),
  'names': ('batches.meta.txt', lambda b: b.replace(b'cat', b'apple'), 'apple'),
}


@pytest.mark.parametrize('case', CIFAR_DAMAGE)
@pytest.mark.parametrize('packed', [True, False])
def test_cifar10_damage_is_named(tmp_path, case, packed):
  file, edit, message = CIFAR_DAMAGE[case]
  files, _ = cifar_files()
  files[file] = edit(files[file])
  if packed:
    write_tar(tmp_path / 'cifar-10-binary.tar.gz', files)
  else:
    for name, content in files.items():
      (tmp_path / name).write_bytes(content)
  with pytest.raises(prepare.PrepareError) as caught:
    prepare.prepare('cifar10', tmp_path, tmp_path, allow_partial=True)
  assert message in str(caught.value)
  assert file in str(caught.value)


def test_cut_archive(tmp_path):
  write_tar(tmp_path / 'cifar-10-binary.tar.gz', cifar_files()[0])
  damage(tmp_path / 'cifar-10-binary.tar.gz', lambda b: b[: len(b) // 2])
  with pytest.raises(prepare.PrepareError, match=r'cifar-10-binary.tar.gz: truncated or damaged'):
    prepare.prepare('cifar10', tmp_path, tmp_path, allow_partial=True)


def of_file(path):
  """What TFDS would ship of it."""
  content = path.read_bytes()
  return len(content), hashlib.sha256(content).hexdigest()


def flips(path, count=40, seed=0):
  """The content with one bit flipped, so many times elsewhere."""
  whole, rng = path.read_bytes(), np.random.default_rng(seed)
  for place in rng.integers(0, 8 * len(whole), count):
    flipped = bytearray(whole)
    flipped[place // 8] ^= 1 << place % 8
    yield bytes(flipped)


def test_every_flipped_bit_of_an_archive_is_noticed_by_its_checksum(tmp_path):
  path, spec = tmp_path / 'cifar-10-binary.tar.gz', raw.SPECS['cifar10']
  write_tar(path, cifar_files()[0])
  known, files = {path.name: of_file(path)}, raw.find(tmp_path, spec)
  archives.verify(files, known, allow=False)  # as it is, it is the official one
  elsewhere = tmp_path / 'as downloads are called'  # a file is known by its official name
  elsewhere.write_bytes(path.read_bytes())
  archives.verify({elsewhere: path.name}, known, allow=False)
  elsewhere.write_bytes(b'\0' * known[path.name][0])
  with pytest.raises(prepare.PrepareError, match='as downloads are called has SHA-256 0*[1-9a-f]'):
    archives.verify({path: path.name, elsewhere: path.name}, known, allow=False)
  for content in flips(path):
    path.write_bytes(content)
    with pytest.raises(prepare.PrepareError, match=r'has SHA-256 .*, officially .*: get the'):
      archives.verify(files, known, allow=False)


@pytest.mark.parametrize('name', ['mnist', 'cifar10'])
def test_without_a_checksum_of_the_archive_gzips_own_finds_what_changes_an_image(tmp_path, name):
  spec = raw.SPECS[name]
  if name == 'mnist':
    write_mnist(tmp_path / 'raw')
  else:
    (tmp_path / 'raw').mkdir()
    write_tar(tmp_path / 'raw' / 'cifar-10-binary.tar.gz', cifar_files()[0])
  files = raw.find(tmp_path / 'raw', spec)
  path = next(iter(files))
  intact, noticed = raw.read(files, tmp_path, spec), 0
  for content in flips(path):
    path.write_bytes(content)
    try:
      found = raw.read(files, tmp_path, spec)
    except prepare.PrepareError as error:
      noticed += 1
      assert str(path) in str(error)
    else:  # a bit of gzip's header, e.g. of the time when it was packed
      for split, part in found.items():
        np.testing.assert_array_equal(part.images, intact[split].images)
        np.testing.assert_array_equal(part.labels, intact[split].labels)
  assert noticed >= 35


def test_what_follows_the_last_file_of_an_archive_is_verified_too(tmp_path):
  """A tar ends before its gzip does, and the checksum is the last of all."""
  path, spec = tmp_path / 'cifar-10-binary.tar.gz', raw.SPECS['cifar10']
  write_tar(path, cifar_files()[0])
  damage(path, lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:])  # of its CRC-32
  with pytest.raises(prepare.PrepareError, match='damaged gzip data .CRC'):
    raw.read(raw.find(tmp_path, spec), tmp_path, spec)


def test_files_that_are_not_the_official_ones_are_taken_only_when_that_is_said(tmp_path, capsys):
  write_mnist(tmp_path / 'raw', zipped=False)
  with pytest.raises(prepare.PrepareError, match=r'ubyte is no archive .* --allow_unverified'):
    prepare.prepare('mnist', tmp_path / 'out', tmp_path / 'raw')
  with pytest.raises(prepare.PrepareError, match=r'30 train examples, officially 60000'):
    prepare.prepare('mnist', tmp_path / 'out', tmp_path / 'raw', allow_unverified=True)
  said = capsys.readouterr().err
  assert said.startswith('NOT VERIFIED: ')
  assert said.count('\n') == 1
  write_mnist(tmp_path / 'raw')  # all of the packed files: the others are not looked at
  with pytest.raises(prepare.PrepareError, match=r'ubyte.gz has \d+ bytes, officially \d+: get'):
    prepare.prepare('mnist', tmp_path / 'out', tmp_path / 'raw')


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'cifar10'])
def test_the_checksums_are_those_that_tfds_ships(name):
  known = prepare.checksums(name)
  assert set(known) == set(raw.SPECS[name].downloads)
  assert all(size > 4000 and re.fullmatch('[0-9a-f]{64}', sha) for size, sha in known.values())


HOSTILE = {
  'above': ([member('../data_batch_1.bin')], 'outside of its folder'),
  'absolute': ([member('/etc/data_batch_1.bin')], 'outside of its folder'),
  'link': ([member('data_batch_1.bin', tarfile.SYMTYPE)], 'no plain file'),
  'device': ([member('data_batch_1.bin', tarfile.CHRTYPE)], 'no plain file'),
  'twice': ([member('a/data_batch_1.bin'), member('b/data_batch_1.bin')], 'two members'),
  'many': ([member(f'{i}.bin') for i in range(33)], 'more than 32 members'),
  'enough': ([member(f'{i}.bin') for i in range(32)], 'no data_batch_1.bin there'),
}


@pytest.mark.parametrize('case', HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path, case):
  members, message = HOSTILE[case]
  path = tmp_path / 'cifar-10-binary.tar.gz'
  with tarfile.open(path, 'w:gz') as tar:
    for one in members:
      tar.addfile(one)
  with pytest.raises(prepare.PrepareError, match=message):
    prepare.prepare('cifar10', tmp_path / 'out', path, allow_partial=True)
  assert os.listdir(tmp_path / 'out') == []


def test_an_archive_that_grows_beyond_any_official_one_is_refused(tmp_path):
  path = tmp_path / 'cifar-10-binary.tar.gz'
  with gzip.open(path, 'wb', 1) as file:
    for _ in range(17):
      file.write(bytes(2**24))
  with pytest.raises(prepare.PrepareError, match='more than 268435456 bytes once unpacked'):
    prepare.prepare('cifar10', tmp_path / 'out', path, allow_partial=True)


def test_a_flipped_bit_of_a_prepared_set_changes_nothing_or_is_one_line_that_names_it(tmp_path):
  write_mnist(tmp_path / 'raw')
  folder = prepare.prepare('mnist', tmp_path, tmp_path / 'raw', allow_partial=True)

  def load():
    records._open.cache_clear()
    data = sources.tfds('mnist', str(tmp_path)).load()
    return [data.x, data.label, *data.test]

  intact, noticed = load(), set()
  for path in folder.iterdir():
    whole = path.read_bytes()
    for content in flips(path, 15):
      path.write_bytes(content)
      try:
        assert all(map(np.array_equal, load(), intact))
      except ValueError as error:
        assert str(tmp_path) in str(error)
        assert '\n' not in str(error)
        noticed.add(path.name.split('.array_record')[0])
    path.write_bytes(whole)
  assert {'features.json', 'mnist-train'} <= noticed


def test_a_folder_that_tfds_expands_is_refused(tmp_path):
  with pytest.raises(
    prepare.PrepareError, match=r'expands the \*\* in .*: choose another --data_dir'
  ):
    prepare.prepare('mnist', tmp_path / '**' / 'sets')
  assert not list(tmp_path.iterdir())


def test_of_a_part_that_is_there_twice_the_packed_one_is_read(tmp_path):
  """Where not all are there packed, each is taken as it is; here the images of the test set are not."""
  written = write_mnist(tmp_path)
  other = write_mnist(tmp_path, seed=5, zipped=False)
  (tmp_path / 't10k-images-idx3-ubyte.gz').unlink()
  spec = raw.SPECS['mnist']
  found = raw.read(raw.find(tmp_path, spec), tmp_path, spec)
  for part, (images, _), (_, labels) in (
    ('train', written['train'], written['train']), ('test', other['test'], written['test'])
  ):  # fmt: skip
    np.testing.assert_array_equal(found[part].images[..., 0], images)
    np.testing.assert_array_equal(found[part].labels, labels)


@pytest.mark.parametrize(
  ('name', 'shape', 'counts'),
  [
    ('mnist', (28, 28, 1), (60_000, 10_000)),
    ('fashion_mnist', (28, 28, 1), (60_000, 10_000)),
    ('cifar10', (32, 32, 3), (50_000, 10_000)),
  ],
)
def test_a_whole_set_is_taken_in_silence_and_one_that_lacks_an_example_is_not(
  name, shape, counts, capsys
):
  for split, count in zip(('train', 'test'), counts, strict=True):
    for n in (count, count - 1, count + 1):
      images = np.broadcast_to(np.uint8(0), (n, *shape))
      given = split, raw.RawSplit(images, images[:, 0, 0, 0], 'here'), raw.SPECS[name], False
      if n == count:
        raw.validate(*given)
      else:
        with pytest.raises(prepare.PrepareError, match=f'{n} {split} examples, officially {count}'):
          raw.validate(*given)
  assert capsys.readouterr().err == ''


def test_missing_raw_file_names_the_official_ones(tmp_path):
  write_mnist(tmp_path / 'raw')
  (tmp_path / 'raw' / 't10k-labels-idx1-ubyte.gz').unlink()
  with pytest.raises(prepare.PrepareError, match=r't10k-labels-idx1-ubyte.*https://storage'):
    prepare.prepare('mnist', tmp_path / 'out', tmp_path / 'raw', allow_partial=True)
  with pytest.raises(prepare.PrepareError, match=r'data_batch_1.bin.*cifar-10-binary.tar.gz'):
    prepare.prepare('cifar10', tmp_path / 'out', tmp_path / 'nowhere')


def test_official_counts_unless_partial(tmp_path):
  write_mnist(tmp_path / 'raw')
  with pytest.raises(prepare.PrepareError, match=r'30 train examples, officially 60000'):
    prepare.prepare('mnist', tmp_path / 'out', tmp_path / 'raw', allow_unverified=True)
  write_mnist(tmp_path / 'empty', test=0)
  with pytest.raises(prepare.PrepareError, match=r'0 test examples, officially 10000'):
    prepare.prepare('mnist', tmp_path / 'out', tmp_path / 'empty', allow_partial=True)


def test_existing_directory(tmp_path, capsys, monkeypatch):
  write_mnist(tmp_path / 'raw')
  monkeypatch.setenv('HOME', str(tmp_path))  # no shell expands the ~ of --source=~/raw
  target = prepare.prepare('mnist', '~', '~/raw', allow_partial=True)
  assert target == tmp_path / 'mnist' / '3.0.1'
  before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
  # Complete: nothing is done, the raw files are not even looked for.
  assert prepare.prepare('mnist', tmp_path, tmp_path / 'nowhere', allow_partial=True) == target
  assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before
  assert "already prepared {'train': 30, 'test': 12}" in capsys.readouterr().out
  # A trial's set must not pass for the real one later.
  with pytest.raises(prepare.PrepareError, match=r'partial set.*remove it'):
    prepare.prepare('mnist', tmp_path, tmp_path / 'raw')
  info = target / 'dataset_info.json'
  intact = info.read_text()
  info.write_text(intact.replace('array_record', 'tfrecord'))
  for file in target.glob('*array_record*'):
    file.with_name(file.name.replace('array_record', 'tfrecord')).symlink_to(file)
  with pytest.raises(
    prepare.PrepareError, match='is in the format tfrecord, which only TensorFlow'
  ):
    prepare.prepare('mnist', tmp_path, tmp_path / 'raw', allow_partial=True)
  info.write_text(intact)
  next(target.glob('*test.array_record*')).unlink()
  with pytest.raises(prepare.PrepareError, match=r'no complete TFDS directory; remove it'):
    prepare.prepare('mnist', tmp_path, tmp_path / 'raw', allow_partial=True)


def test_two_at_once_are_refused(tmp_path):
  write_mnist(tmp_path / 'raw')
  (tmp_path / '.preparing_mnist').mkdir()
  other = os.open(tmp_path / '.preparing_mnist', os.O_RDONLY)
  fcntl.flock(other, fcntl.LOCK_SH)  # shared: only an exclusive lock is refused beside it
  try:
    with pytest.raises(prepare.PrepareError, match=r'another preparation'):
      prepare.prepare('mnist', tmp_path, tmp_path / 'raw', allow_partial=True)
  finally:
    os.close(other)
  prepare.prepare('mnist', tmp_path, tmp_path / 'raw', allow_partial=True)


def test_leftover_of_a_killed_attempt_is_not_reused(tmp_path):
  """Killed between the last byte and the renaming, it leaves a complete set of other raw files, and an empty folder."""
  (tmp_path / 'mnist').mkdir()
  write_mnist(tmp_path / 'old', seed=5)
  prepare.prepare('mnist', tmp_path / '.preparing_mnist', tmp_path / 'old', allow_partial=True)
  sets = write_mnist(tmp_path / 'new', seed=7)
  prepare.prepare('mnist', tmp_path, tmp_path / 'new', allow_partial=True)
  assert_mnist_equal('mnist', sets, tmp_path)
  assert sorted(os.listdir(tmp_path)) == ['mnist', 'new', 'old']


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interruption(tmp_path, number):
  raw, out = tmp_path / 'raw', tmp_path / 'out'
  sets = write_mnist(raw, train=20_000, zipped=False)
  arguments = ('mnist', f'--data_dir={out}', f'--source={raw}', '--allow_partial')
  process = subprocess.Popen(
    command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )
  workspace = out / '.preparing_mnist'
  while process.poll() is None and not list(workspace.glob('mnist/*')):
    time.sleep(0.002)  # until TFDS has begun to write
  time.sleep(0.2)  # well into the images
  process.send_signal(number)
  output = process.communicate(timeout=30)[0]
  killed = number == signal.SIGKILL
  assert process.returncode == (-number if killed else 128 + number), output
  assert 'Traceback' not in output
  assert not tfds.builder('mnist', data_dir=out).info.splits
  assert os.listdir(out) == (['.preparing_mnist'] if killed else [])
  if killed:
    prepare.prepare('mnist', out, raw, allow_partial=True)
    assert os.listdir(out) == ['mnist']
    assert os.listdir(out / 'mnist') == ['3.0.1']
    assert_mnist_equal('mnist', sets, out)


def test_what_the_command_is_given_reaches_the_preparation(tmp_path, capsys):
  write_mnist(tmp_path / 'raw')
  given = {'data_dir': f'{tmp_path}/out', 'source': f'{tmp_path}/raw'}

  def main(*names, partial=False, unverified=False):
    allowed = {'allow_partial': partial, 'allow_unverified': unverified}
    prepare_command.main(names, types.SimpleNamespace(**given, **allowed))

  for unverified, says in (
    (False, 'officially .* or take it as it is'),
    (True, '30 train examples'),
  ):
    with pytest.raises(prepare.PrepareError, match=says):
      main('mnist', unverified=unverified)
  for names in ((), ('mnist', 'cifar10')):
    with pytest.raises(ValueError, match=r'prepare cifar10\|fashion_mnist\|mnist --data_dir=DIR'):
      main(*names, partial=True)


@pytest.fixture
def server():
  """A web server on this machine that has /there and nothing else."""

  class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(200 if self.path == '/there' else 404)
      self.end_headers()

    def log_message(self, *what):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Answer) as serving:
    threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
    yield f'http://127.0.0.1:{serving.server_port}/'
    serving.shutdown()


def test_what_cannot_be_downloaded_is_named_before_tfds_tries(tmp_path, server, monkeypatch):
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  assert prepare._preflight(f'{server}there') is None
  assert prepare._preflight(f'{server}gone') == 'HTTP status 404'
  assert prepare._preflight('http://127.0.0.1:1/') == 'ConnectionError'
  spec = raw.SPECS['mnist']._replace(url=server)
  folder = tmp_path / 'mnist'
  (folder / 'half.tmp.1').mkdir(parents=True)
  for i, file in enumerate(spec.downloads[:3]):  # as TFDS keeps them; of the third only what it is
    (folder / f'{i}.INFO').write_text(json.dumps({'urls': [server + file]}))
    if i < 2:
      (folder / str(i)).touch()
  official = '.*'.join(spec.downloads)
  says = (
    rf'{server}{spec.downloads[2]} \(HTTP status 404\); fetch {official} from {server} elsewhere'
  )
  with pytest.raises(prepare.PrepareError, match=f'^cannot download {says} and .* --source=DIR$'):
    prepare._download('mnist', spec, tmp_path)
  assert not (folder / 'half.tmp.1').exists()


def test_command_line(tmp_path):
  write_mnist(tmp_path / 'raw')
  for arguments, message in (
    (('fashion_mnits', f'--data_dir={tmp_path}'), "did you mean 'fashion_mnist'?"),
    (('mnist',), '--data_dir=DIR'),
    (('mnist', f'--data_dir={tmp_path}', f'--source={tmp_path / "raw"}'), 'officially'),
  ):
    failed = run(*arguments)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert failed.stderr.startswith('error: ')
    assert failed.stderr.count('\n') == 1
  arguments = (f'--data_dir={tmp_path}', f'--source={tmp_path / "raw"}', '--allow_partial', 'mnist')
  done = run(*arguments)
  assert done.returncode == 0, done.stderr
  assert re.search(r'images of train (\d+)/\1  left 00:00', done.stderr)
  assert 'prepared' in done.stdout


def test_import_has_no_side_effects():
  code = (
    'import sys; from absl import flags; from diffusion.commands import prepare; '
    "assert 'data_dir' not in flags.FLAGS; assert 'tensorflow_datasets' not in sys.modules"
  )
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, timeout=60)
