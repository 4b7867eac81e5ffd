"""Folders of pictures as people have them: what a viewer shows is what is read, and what was done to it is said."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from diffusion.data import pictures, sources

GRAY = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
COLOR = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
STORED = {  # EXIF orientation -> how a camera stores the picture that a viewer then shows upright
  2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def read(folder, **reading):
  return sources.folder(str(folder), **reading).load()


def read_one(path, **reading):
  return pictures.read(path, pictures.Reading(**reading))


def deep_png(values, kind):
  """A PNG of 16 bits a channel, [h, w, c]; kind 2 is color, 4 gray with alpha, 6 color with alpha."""
  height, width = values.shape[:2]
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)

  def chunk(name, content):
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))  # fmt: skip

  head = struct.pack('>IIBBBBB', width, height, 16, kind, 0, 0, 0)
  parts = chunk(b'IHDR', head), chunk(b'IDAT', zlib.compress(rows)), chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


@pytest.mark.parametrize('suffix', ['png', 'tif', 'webp'])
@pytest.mark.parametrize('orientation', STORED)
def test_a_picture_stands_as_its_exif_says(tmp_path, orientation, suffix):
  exif = Image.Exif()
  exif[0x112] = orientation
  stored = Image.fromarray(COLOR).transpose(STORED[orientation])
  stored.save(tmp_path / f'a.{suffix}', exif=exif, lossless=True)
  data = read(tmp_path)
  np.testing.assert_array_equal(data.x[0], COLOR)
  assert data.found == {'images': 1, 'turned upright as EXIF says': 1}


def with_alpha(kind, path, alpha):
  """Saves GRAY or COLOR with this alpha [16, 16] (or the one transparent value of a palette or of gray), and is it."""
  if kind in ('LA', 'RGBA'):
    base = GRAY[..., None] if kind == 'LA' else COLOR
    Image.fromarray(np.dstack([base, alpha])).save(path)
    return np.broadcast_to(base, (16, 16, base.shape[2])), alpha
  image = Image.fromarray(GRAY)
  image = image.convert('P') if kind == 'palette' else image
  image.save(path, transparency=int(GRAY[3, 3]))
  return GRAY[..., None], np.where(GRAY[3, 3] == GRAY, 0, 255)


@pytest.mark.parametrize('kind', ['LA', 'RGBA', 'palette', 'gray'])
@pytest.mark.parametrize('background', [255, 0, 77])
def test_what_is_transparent_stands_on_the_background(tmp_path, kind, background):
  alpha = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)
  base, alpha = with_alpha(kind, tmp_path / 'a.png', alpha)
  data = read(tmp_path, background=background)
  share = alpha[..., None] / 255
  np.testing.assert_allclose(data.x[0], base * share + background * (1 - share), atol=1)
  assert data.found[f'transparent, put on brightness {background}'] == 1
  assert data.x.shape[-1] == base.shape[-1]


def test_an_opaque_alpha_is_not_counted(tmp_path):
  with_alpha('RGBA', tmp_path / 'a.png', np.full((16, 16), 255, np.uint8))
  assert read(tmp_path).found == {'images': 1}


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'LA', 'palette gif'])
def test_every_way_to_store_gray_is_gray(tmp_path, mode):
  gray = np.where(GRAY > 127, 255, 0).astype(np.uint8) if mode == '1' else GRAY
  image = Image.fromarray(gray).convert('P' if mode == 'palette gif' else mode)
  image.save(tmp_path / ('a.gif' if mode == 'palette gif' else 'a.png'))
  np.testing.assert_array_equal(read(tmp_path).x[0], gray[..., None])


def test_gray_among_color_is_made_color_and_counted(tmp_path):
  for i in range(3):
    Image.fromarray(COLOR).save(tmp_path / f'{i}.png')
  Image.fromarray(GRAY).save(tmp_path / '3.png')
  data = read(tmp_path)
  np.testing.assert_array_equal(data.x, np.stack([COLOR] * 3 + [np.dstack([GRAY] * 3)]))
  assert data.found == {'images': 4, 'gray among color, made color': 1}


DEEP = np.random.default_rng(2).integers(0, 4096, (16, 16)).astype(np.uint16)


@pytest.mark.parametrize(
  ('name', 'values'),
  [('a.png', DEEP), ('a.tif', DEEP), ('a.pgm', DEEP), ('a.jp2', DEEP), ('b.tif', DEEP.astype(np.int32)),
   ('f.tif', DEEP.astype(np.float32))],
)  # fmt: skip
def test_more_than_eight_bits_are_refused_or_scaled_by_the_white_that_is_named(
  tmp_path, name, values
):
  Image.fromarray(values).save(tmp_path / name)
  low, high = DEEP.min(), DEEP.max()
  message = (
    f'{name}: it has more than 8 bits a channel, and values from {low} to {high}: .*white=4095'
  )
  with pytest.raises(ValueError, match=message):
    read(tmp_path)
  data = read(tmp_path, white=4095)
  np.testing.assert_array_equal(data.x[0, ..., 0], np.rint(DEEP / 4095 * 255))
  assert data.found['reduced from more than 8 bits, white being 4095'] == 1
  with pytest.raises(ValueError, match='outside of 0 to white=4000: say another white'):
    read(tmp_path, white=4000)
  brightest = read(tmp_path, white=int(high)).x[0, ..., 0]  # its own greatest value is in range
  np.testing.assert_array_equal(brightest, np.rint(DEEP / high * 255))


@pytest.mark.parametrize(
  'value, says',
  [
    (np.nan, 'values that are not finite: convert it'),
    (2.5, r'values from 0 to 2\.5: .*white=2\.5\)'),
    (0.5, r'values from 0 to 0\.5: .*white=1\)'),
    (1.0, r'white=1\)'),
    (1023.0, r'white=1023\)'),
    (1024.0, r'white=4095\)'),
    (16383.0, r'white=16383\)'),
    (40000.0, r'white=65535\)'),
    (70000.0, r'white=70000\)'),
  ],
)
def test_the_white_of_floats_is_their_own(tmp_path, value, says):
  values = np.zeros((4, 4), np.float32)
  values[1, 2] = value
  Image.fromarray(values).save(tmp_path / 'a.tif')
  with pytest.raises(ValueError, match=says):
    read(tmp_path)
  if np.isfinite(value):
    x = read(tmp_path, white=value).x
    assert x[0, 1, 2, 0] == x.sum() == 255  # from 0 to white, both ends among them


@pytest.mark.parametrize('kind', [2, 4, 6])
def test_deep_color_that_pillow_cuts_to_its_high_bytes_is_not_taken_for_eight_bits(tmp_path, kind):
  values = np.random.default_rng(3).integers(0, 65536, (4, 4, {2: 3, 4: 2, 6: 4}[kind]))
  (tmp_path / 'a.png').write_bytes(deep_png(values, kind))
  with pytest.raises(
    ValueError,
    match=r'a.png: it has 16 bits .* Pillow reads 8: say sources.folder\(..., white=65535',
  ):
    read(tmp_path)
  x = read(tmp_path, white=65535).x[0]
  if kind == 2:
    np.testing.assert_allclose(x, values / 257, atol=1)
  (tmp_path / 'a.png').unlink()
  pixels = values[..., :3].astype('>u2').tobytes()
  (tmp_path / 'a.ppm').write_bytes(b'P6 4 4 65535\n' + pixels.ljust(96, b'\1'))
  with pytest.raises(ValueError, match='a.ppm: it has 16 bits'):
    read(tmp_path)
  (tmp_path / 'a.ppm').write_bytes(b'P6 4 4 1023\n' + bytes(96))
  with pytest.raises(ValueError, match='a.ppm: it has 10 bits .*white=1023'):
    read(tmp_path)


def test_the_depth_of_compressed_color_is_what_its_header_says(tmp_path):
  """As its bytes are patched to say, where Pillow writes 8 bits alone."""
  for name, mark, place, bits in (
    ('a.jp2', b'\xff\x4f\xff\x51', 42, {7: 8, 11: 12, 0x80 | 15: 16}),  # one less, and signed
    ('a.avif', b'av1C', 6, {0x0C: 8, 0x4C: 10, 0x6C: 12}),
  ):
    if name == 'a.avif' and not features.check('avif'):
      continue
    path = tmp_path / name
    Image.fromarray(COLOR).save(path)
    content = bytearray(path.read_bytes())
    with Image.open(path) as opened:
      opened.load()
      for byte, depth in bits.items():
        content[content.find(mark) + place] = byte
        path.write_bytes(content)
        assert pictures._bits(opened, path) == depth


def test_every_format_is_read_and_what_is_none_is_named(tmp_path):
  forms = {'0.png': None, '1.jfif': 'JPEG', '2.ppm': None, '3.tga': None, '4.jp2': None, '5.tif': None,
           '6.JPG': None, '7.webp': None, '8.bmp': None, '9.qoi': None}  # fmt: skip
  for name, form in forms.items():
    Image.fromarray(np.full((16, 16, 3), (40, 90, 160), np.uint8)).save(tmp_path / name, form)
  for name in ('a.heic', 'b.heic', 'notes.txt', 'README', 'features.h5'):
    (tmp_path / name).write_bytes(b'no picture')
  data = read(tmp_path)
  np.testing.assert_allclose(data.x, np.full((10, 16, 16, 3), (40, 90, 160)), atol=8)
  assert data.found == {
    'images': 10, 'of no format that Pillow reads, left out': '.h5 1, .heic 2, .txt 1, without a suffix 1',
  }  # fmt: skip


def test_links_are_followed_and_what_is_hidden_is_ignored_and_counted(tmp_path):
  root = tmp_path / 'data'
  for folder in (root / 'a', tmp_path / 'elsewhere', root / '.ipynb_checkpoints', root / 'b' / '@eaDir',
                 root / '__MACOSX', root / 'no_picture'):  # fmt: skip
    folder.mkdir(parents=True)
    Image.fromarray(COLOR).save(folder / '0.png')
  (root / 'no_picture' / '0.png').rename(root / 'no_picture' / '0.heic')
  (root / 'b' / 'more').symlink_to(tmp_path / 'elsewhere')
  (root / 'c').symlink_to(tmp_path / 'elsewhere')
  (root / 'b' / 'up').symlink_to(root)  # would never end
  (root / 'a' / '._0.png').write_bytes(bytes(80))
  (root / '.DS_Store').write_bytes(bytes(80))
  data = read(root)
  assert (data.class_names, data.label.tolist()) == (('a', 'b', 'c'), [0, 1, 2])
  assert data.found == {
    'images': 3, 'hidden, left out': 5, 'of no format that Pillow reads, left out': '.heic 1',
    'folders without an image': 'no_picture',
    'in folders below the class folders, which make no classes': 1,
  }  # fmt: skip


def test_folders_that_link_to_each_other_are_read_once(tmp_path):
  for name, other in ('ab', 'ba'):
    (tmp_path / name).mkdir()
    Image.fromarray(COLOR).save(tmp_path / name / '0.png')
    (tmp_path / name / 'other').symlink_to(tmp_path / other)
  assert read(tmp_path).label.tolist() == [0, 0, 1, 1]  # its own, and that of the other


def test_of_several_frames_the_first_is_taken_and_the_files_are_named(tmp_path):
  frames = [Image.fromarray(np.roll(GRAY, i)) for i in range(3)]
  for name in ('b.gif', 'a.png', 'c.tif', 'd.webp'):
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
  Image.fromarray(COLOR).save(tmp_path / 'e.mpo', save_all=True, append_images=frames[1:])
  data = read(tmp_path)
  assert data.found['of several frames, the first taken'] == '4 (a.png, b.gif, c.tif and 1 more)'
  np.testing.assert_array_equal(data.x[:4], np.broadcast_to(GRAY[..., None], (4, 16, 16, 3)))


@pytest.mark.parametrize(
  ('names', 'order'),
  [
    ([str(i) for i in range(12)], [str(i) for i in range(12)]),
    (['class10', 'class9', 'class1'], ['class1', 'class9', 'class10']),
    (['010', '9', '1'], ['1', '9', '010']),
    (['b10', 'a9', 'a10'], ['a10', 'a9', 'b10']),  # these are words
    (['10', '9', 'x'], ['10', '9', 'x']),
  ],
)
def test_classes_are_in_the_order_of_their_numbers(tmp_path, names, order):
  for name in names:
    (tmp_path / name).mkdir()
    Image.fromarray(np.full((4, 4), len(name), np.uint8)).save(tmp_path / name / '0.png')
  data = read(tmp_path)
  assert data.class_names == tuple(order)
  assert [data.class_names[k] for k in data.label] == sorted(names)  # the files stay in their order


def test_a_name_that_is_not_utf8_is_named(tmp_path):
  folder = os.fsencode(tmp_path) + b'/caf\xe9'
  os.mkdir(folder)
  (tmp_path / 'a').mkdir()
  content = io.BytesIO()
  Image.fromarray(GRAY).save(content, 'PNG')
  with open(folder + b'/0.png', 'wb') as file:
    file.write(content.getvalue())
  (tmp_path / 'a' / os.fsdecode(b'x.\xe9')).touch()
  with pytest.raises(ValueError, match=r'caf\\xe9/0\.png. is not UTF-8: rename it'):
    read(tmp_path)
  os.rename(folder + b'/0.png', folder + b'/0.heic')
  (tmp_path / 'a' / '0.png').write_bytes(content.getvalue())
  found = read(tmp_path).found
  assert found['of no format that Pillow reads, left out'] == r'.\udce9 1, .heic 1'
  assert found['folders without an image'] == r'caf\udce9'


def test_an_image_of_200_megapixels_is_one_line_and_one_of_100_is_read_in_silence(
  tmp_path, recwarn
):
  (tmp_path / 'a').mkdir()
  Image.new('1', (10_000, 10_000), 1).save(tmp_path / 'a' / '0.png')
  assert read(tmp_path, size=4).x.min() == 255
  assert not [one for one in recwarn if 'DecompressionBomb' in one.category.__name__]
  Image.new('1', (20_000, 10_000)).save(tmp_path / 'a' / '1.png')
  message = r'1\.png is too large: .*200000000 pixels.* limit of 178956970 .*: make it smaller'
  with pytest.raises(ValueError, match=message) as caught:
    read(tmp_path, size=4)
  assert '\n' not in str(caught.value)


def test_an_image_that_is_smaller_than_asked_for_is_counted(tmp_path):
  Image.fromarray(GRAY).save(tmp_path / 'a.png')
  assert read(tmp_path, size=16).found == {'images': 1}
  assert read(tmp_path, size=17).found['smaller than 17 pixels, enlarged'] == 1
  wide = np.hstack([COLOR[:, :5], COLOR, COLOR[:, :6]])  # 5 columns on the left, 6 on the right
  for one in (wide, wide.swapaxes(0, 1)):
    Image.fromarray(one).save(tmp_path / 'a.png')
    middle = COLOR if one is wide else COLOR.swapaxes(0, 1)
    np.testing.assert_array_equal(read(tmp_path, size=16).x[0], middle)
    small = Image.fromarray(middle).resize((7, 7), Image.LANCZOS)
    np.testing.assert_array_equal(read(tmp_path, size=7).x[0], small)


@pytest.mark.parametrize(
  'bad', [{'background': 256}, {'background': -1}, {'size': 0}, {'white': 0}]
)
def test_an_argument_out_of_its_range_is_refused_before_anything_is_read(bad):
  ((name, value),) = bad.items()
  with pytest.raises(ValueError, match=f'{name} must be .* got {value}'):
    sources.folder('nowhere', **bad)
