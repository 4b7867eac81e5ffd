"""Rows of the catalogue: data."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import rng
from diffusion.data import augment, cleaning, curriculum, pipeline, sources
from diffusion.types import NULL, Batch
from tests.cases.base import add, rising, same

PICTURES = Batch(
  jnp.asarray(np.random.default_rng(0).normal(size=(200, 8, 8, 3)), jnp.float32),
  jnp.zeros(200, int), jnp.zeros((200, 0)), jnp.arange(200),
)  # fmt: skip
ROW_KEYS = rng.row_keys(jax.random.key(0), jnp.arange(200))


def moved(transformation):
  """How far it moves pictures in the mean."""
  return float(jnp.abs(transformation(ROW_KEYS, PICTURES).x - PICTURES.x).mean())


def live_transformation(off, *on):
  def live():
    np.testing.assert_allclose(moved(off), 0, atol=1e-5)
    rising(1e-3, *(moved(one) for one in on))

  return live


def live_flip():
  x = np.asarray(augment.flip()(ROW_KEYS, PICTURES).x)
  same_as = (x == np.asarray(PICTURES.x)).all((1, 2, 3))
  assert 60 < same_as.sum() < 140
  same(x[~same_as], np.asarray(PICTURES.x)[~same_as][:, :, ::-1])


for name, line, where, live in (
  ('flip', 'augment.flip()', 'test_flip_gives_the_image_or_its_mirror', live_flip),
  ('shift', 'augment.shift(2)', 'test_shift_reaches_every_offset_and_none_beyond',
   live_transformation(augment.shift(0), augment.shift(1), augment.shift(3))),
  ('rotate', 'augment.rotate(10.0)', 'test_a_quarter_turn_is_rot90',
   live_transformation(augment.rotate(0.0), augment.rotate(3.0), augment.rotate(20.0))),
  ('scale', 'augment.scale(1.1)', 'test_geometric_ones_sample_where_they_say',
   live_transformation(augment.scale(1.0), augment.scale(1.05), augment.scale(1.5))),
  ('shear', 'augment.shear(0.1)', 'test_geometric_ones_sample_where_they_say',
   live_transformation(augment.shear(0.0), augment.shear(0.05), augment.shear(0.5))),
  ('crop', 'augment.crop(0.9)', 'test_geometric_ones_sample_where_they_say',
   live_transformation(augment.crop(1.0), augment.crop(0.95), augment.crop(0.5))),
  ('color_jitter', 'augment.color_jitter(0.1, 0.1, 0.1)', 'test_color_jitter_by_its_formula',
   live_transformation(augment.color_jitter(), augment.color_jitter(0.1), augment.color_jitter(0.1, 0.5, 0.5))),
  ('cutout', 'augment.cutout(4)', 'test_cutout_zeroes_a_square_around_what_it_says',
   live_transformation(augment.cutout(0), augment.cutout(2), augment.cutout(4))),
):  # fmt: skip
  add(f'data.augment.{name}', f'augment={line}', f'data/test_augment.py::{where}', live)


def live_conditioned():
  told = [
    augment.conditioned(p, augment.rotate(30.0))(ROW_KEYS, PICTURES).augment_label for p in (1e-6, 0.2, 0.9)
  ]  # fmt: skip
  same(told[0], 0)
  rising(0, *((np.asarray(one) != 0).any(1).mean() for one in told[1:]))


def live_label_dropout():
  kept = [
    float((augment.label_dropout(r)(ROW_KEYS, PICTURES).label == NULL).mean()) for r in (0.1, 0.5)
  ]
  rising(0, *kept)
  assert augment.label_dropout(0)(ROW_KEYS, PICTURES) is PICTURES


add(
  'data.augment.conditioned',
  'augment=augment.conditioned(0.12, augment.shift(1), augment.rotate(10.0))',
  'data/test_augment.py::test_conditioned_acts_seldom_and_says_what_it_did',
  live_conditioned,
)
add(
  'data.augment.label_dropout',
  'augment=augment.label_dropout(0.1)',
  'data/test_augment.py::test_label_dropout_drops_at_its_rate',
  live_label_dropout,
)


def live_standardized():
  x = np.random.default_rng(0).integers(0, 17, (50, 4, 4, 1)).astype(np.uint8)
  on, off = pipeline.standardized()(x, 17), pipeline.unit_range(x, 17)
  found = np.asarray(pipeline.normalize(jnp.asarray(x), on))
  np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-4)
  plain = np.asarray(pipeline.normalize(jnp.asarray(x), off))
  np.testing.assert_allclose([plain.min(), plain.max()], [-1, 1])
  same(pipeline.denormalize(found, on), x)


add(
  'data.pipeline.standardized',
  'normalization=pipeline.standardized()',
  'data/test_pipeline.py::test_standardized_data_has_mean_zero_and_deviation_one',
  live_standardized,
)


def live_checked():
  x = np.repeat(np.arange(6, dtype=np.uint8), 2).reshape(12, 1, 1, 1)
  source = sources.arrays('copies', x)
  assert len(cleaning.checked(source).load().x) == 12
  assert len(cleaning.checked(source, copies='drop').load().x) == 6


add(
  'data.cleaning.checked',
  "data=cleaning.checked(sources.digits(), missing='refuse', copies='drop')",
  'data/test_cleaning.py::test_missing_values_are_refused_dropped_or_imputed_and_counted',
  live_checked,
)


def live_curriculum(made):
  """Early batches hold examples of low scores alone; late ones are those of a run without it."""

  def live():
    label = np.arange(200) % 10
    score = made.rank(np.asarray(PICTURES.x), label)
    order = jnp.asarray(np.argsort(score, kind='stable').astype(np.int32))
    index = jnp.arange(200)
    early, late = (
      np.asarray(pipeline.restrict(index, ROW_KEYS, made.share(jnp.asarray(p)), order))
      for p in (0.0, 1.0)
    )
    same(late, index)
    rising(score[early].mean(), score[late].mean())

  return live


def live_resolution():
  made = curriculum.by_resolution(2)
  rough = [np.asarray(made.transform(PICTURES, jnp.asarray(p)).x).std() for p in (0.0, 0.3, 0.6)]
  rising(0, *rough)
  same(made.transform(PICTURES, jnp.asarray(0.6)).x, PICTURES.x)


add(
  'data.curriculum.by_class',
  'curriculum=curriculum.by_class(range(10))',
  'data/test_curriculum.py::test_a_step_sees_easy_examples_first_and_the_plain_run_in_the_end',
  live_curriculum(curriculum.by_class(range(10))),
)
add(
  'data.curriculum.by_difficulty',
  'curriculum=curriculum.by_difficulty()',
  'data/test_curriculum.py::test_distance_to_the_class_mean_in_closed_form',
  live_curriculum(curriculum.by_difficulty()),
)
add(
  'data.curriculum.by_resolution',
  'curriculum=curriculum.by_resolution(2)',
  'data/test_curriculum.py::test_by_resolution_averages_blocks_that_shrink_to_pixels',
  live_resolution,
)
