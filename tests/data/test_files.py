"""Arrays in files: what is damaged or of another kind is named in one line, with what to do."""

import io
import zipfile

import numpy as np
import pytest

from diffusion.data import files


@pytest.mark.parametrize('cut', [0, 5, 100, -30])
def test_a_file_that_is_cut_short_is_named(tmp_path, cut):
  for name, save, load in (
    ('a.npz', np.savez, files.arrays), ('a.npy', np.save, files.array)
  ):  # fmt: skip
    path = tmp_path / name
    save(path, np.arange(30.0))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=f'{path} cannot be read .*: make it again') as caught:
      load(path, 'make it again')
    assert '\n' not in str(caught.value)


def test_a_file_of_another_kind_is_named_with_what_it_holds(tmp_path):
  text = tmp_path / 'text.npz'
  text.write_text('x,y\n1,2\n')
  with pytest.raises(ValueError, match=r'text\.npz cannot be read \(ValueError: .*: give arrays'):
    files.arrays(text, 'give arrays')
  objects = tmp_path / 'objects.npz'
  np.savez(objects, x=np.array([{}, None], object))
  with pytest.raises(ValueError, match='objects.npz cannot be read'):
    files.arrays(objects, 'give arrays')
  other = tmp_path / 'other.npz'
  np.savez(other, x=np.zeros(3), y=np.ones(2))
  with pytest.raises(ValueError, match="holds x, y and no 'labels': give arrays"):
    files.arrays(other, 'give arrays', ('x', 'labels'))
  found = files.arrays(other, '', ('x',))
  np.testing.assert_array_equal(found['y'], np.ones(2))
  with pytest.raises(ValueError, match='absent.npz cannot be read'):
    files.arrays(tmp_path / 'absent.npz', '')


def test_an_archive_that_would_fill_the_memory_is_refused_before_it_is_unpacked(tmp_path):
  content = io.BytesIO()
  np.save(content, np.zeros(3))
  for name, count, claimed in (('many', 1001, 100), ('large', 1, 2**50)):
    path = tmp_path / f'{name}.npz'
    with zipfile.ZipFile(path, 'w') as archive:
      for i in range(count):
        archive.writestr(f'{i}.npy', content.getvalue())
      archive.filelist[0].file_size = claimed  # as its directory then says
    with pytest.raises(
      ValueError, match=rf'{name}.npz cannot be read .*{count} arrays of \d+ bytes'
    ):
      files.arrays(path, 'make it again')
