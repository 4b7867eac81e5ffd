"""Rows of the catalogue: data."""

import jax.numpy as jnp
import numpy as np

from diffusion.data import augment, cleaning, curriculum, pipeline, sources
from diffusion.types import NULL, Batch
from tests.cases.base import ROW_KEYS, Case, fields, rising, same

PICTURES = Batch(
  x=jnp.asarray(np.random.default_rng(0).normal(size=(200, 8, 8, 3)), jnp.float32),
  condition=jnp.zeros(200, int),
  augment_label=jnp.zeros((200, 0)),
  index=jnp.arange(200),
)


def moved(transformation):
  """How far it moves pictures in the mean."""
  return float(jnp.abs(transformation(ROW_KEYS, PICTURES).x - PICTURES.x).mean())


def live_transformation(off, *on):
  """Off, pictures stay where they are; on, they move, and the farther the later in the list."""
  np.testing.assert_allclose(moved(off), 0, atol=1e-5)
  rising(1e-3, *(moved(one) for one in on))


def live_flip():
  x = np.asarray(augment.flip()(ROW_KEYS, PICTURES).x)
  same_as = (x == np.asarray(PICTURES.x)).all((1, 2, 3))
  assert 60 < same_as.sum() < 140
  same(x[~same_as], np.asarray(PICTURES.x)[~same_as][:, :, ::-1])


def live_conditioned():
  def told(rate):
    return augment.conditioned(rate, augment.rotate(30.0))(ROW_KEYS, PICTURES).augment_label

  same(told(1e-6), 0)
  rising(0, *((np.asarray(told(rate)) != 0).any(1).mean() for rate in (0.2, 0.9)))


def live_label_dropout():
  def dropped(rate):
    return (augment.label_dropout(rate)(ROW_KEYS, PICTURES).condition == NULL).mean()

  rising(0, dropped(0.1), dropped(0.5))
  assert augment.label_dropout(0)(ROW_KEYS, PICTURES) is PICTURES


def live_standardized():
  x = np.random.default_rng(0).integers(0, 17, (50, 4, 4, 1)).astype(np.uint8)
  on, off = pipeline.standardized()(x, 17), pipeline.unit_range(x, 17)
  found = np.asarray(pipeline.normalize(jnp.asarray(x), on))
  np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-4)
  plain = np.asarray(pipeline.normalize(jnp.asarray(x), off))
  np.testing.assert_allclose([plain.min(), plain.max()], [-1, 1])
  same(pipeline.denormalize(found, on), x)


def live_checked():
  x = np.repeat(np.arange(6, dtype=np.uint8), 2).reshape(12, 1, 1, 1)
  source = sources.arrays('copies', x)
  assert len(cleaning.checked(source).load().x) == 12
  assert len(cleaning.checked(source, copies='drop').load().x) == 6


def live_curriculum(made):
  """Early batches hold examples of low scores alone; late ones are those of a run without it."""
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


def live_resolution():
  made = curriculum.by_resolution(2)
  rough = [np.asarray(made.transform(PICTURES, jnp.asarray(p)).x).std() for p in (0.0, 0.3, 0.6)]
  rising(0, *rough)
  same(made.transform(PICTURES, jnp.asarray(0.6)).x, PICTURES.x)


TABLE = (
  Case(augment.flip, live=live_flip,
    turn_on=lambda: fields(augment=augment.flip()),
    proof='tests/data/test_augment.py::test_flip_gives_the_image_or_its_mirror'),
  Case(augment.shift, live=lambda: live_transformation(augment.shift(0), augment.shift(1), augment.shift(3)),
    turn_on=lambda: fields(augment=augment.shift(2)),
    proof='tests/data/test_augment.py::test_shift_reaches_every_offset_and_none_beyond'),
  Case(augment.rotate, live=lambda: live_transformation(augment.rotate(0.0), augment.rotate(3.0), augment.rotate(20.0)),
    turn_on=lambda: fields(augment=augment.rotate(10.0)),
    proof='tests/data/test_augment.py::test_a_quarter_turn_is_rot90'),
  Case(augment.scale, live=lambda: live_transformation(augment.scale(1.0), augment.scale(1.05), augment.scale(1.5)),
    turn_on=lambda: fields(augment=augment.scale(1.1)),
    proof='tests/data/test_augment.py::test_geometric_ones_sample_where_they_say'),
  Case(augment.shear, live=lambda: live_transformation(augment.shear(0.0), augment.shear(0.05), augment.shear(0.5)),
    turn_on=lambda: fields(augment=augment.shear(0.1)),
    proof='tests/data/test_augment.py::test_geometric_ones_sample_where_they_say'),
  Case(augment.crop, live=lambda: live_transformation(augment.crop(1.0), augment.crop(0.95), augment.crop(0.5)),
    turn_on=lambda: fields(augment=augment.crop(0.9)),
    proof='tests/data/test_augment.py::test_geometric_ones_sample_where_they_say'),
  Case(augment.color_jitter, live=lambda: live_transformation(
      augment.color_jitter(), augment.color_jitter(0.1), augment.color_jitter(0.1, 0.5, 0.5)),
    turn_on=lambda: fields(augment=augment.color_jitter(0.1, 0.1, 0.1)),
    proof='tests/data/test_augment.py::test_color_jitter_by_its_formula'),
  Case(augment.cutout, live=lambda: live_transformation(augment.cutout(0), augment.cutout(2), augment.cutout(4)),
    turn_on=lambda: fields(augment=augment.cutout(4)),
    proof='tests/data/test_augment.py::test_cutout_zeroes_a_square_around_what_it_says'),
  Case(augment.conditioned, live=live_conditioned,
    turn_on=lambda: fields(augment=augment.conditioned(0.12, augment.shift(1), augment.rotate(10.0))),
    proof='tests/data/test_augment.py::test_conditioned_acts_seldom_and_says_what_it_did'),
  Case(augment.label_dropout, live=live_label_dropout,
    turn_on=lambda: fields(augment=augment.label_dropout(0.1)),
    proof='tests/data/test_augment.py::test_label_dropout_drops_at_its_rate'),
  Case(pipeline.standardized, live=live_standardized,
    turn_on=lambda: fields(normalization=pipeline.standardized()),
    proof='tests/data/test_pipeline.py::test_standardized_data_has_mean_zero_and_deviation_one'),
  Case(cleaning.checked, live=live_checked,
    turn_on=lambda: fields(data=cleaning.checked(sources.digits(), missing='refuse', copies='drop')),
    proof='tests/data/test_cleaning.py::test_missing_values_are_refused_dropped_or_imputed_and_counted'),
  Case(curriculum.by_class, live=lambda: live_curriculum(curriculum.by_class(range(10))),
    turn_on=lambda: fields(curriculum=curriculum.by_class(range(10))),
    proof='tests/data/test_curriculum.py::test_a_step_sees_easy_examples_first_and_the_plain_run_in_the_end'),
  Case(curriculum.by_difficulty, live=lambda: live_curriculum(curriculum.by_difficulty()),
    turn_on=lambda: fields(curriculum=curriculum.by_difficulty()),
    proof='tests/data/test_curriculum.py::test_distance_to_the_class_mean_in_closed_form'),
  Case(curriculum.by_resolution, live=live_resolution,
    turn_on=lambda: fields(curriculum=curriculum.by_resolution(2)),
    proof='tests/data/test_curriculum.py::test_by_resolution_averages_blocks_that_shrink_to_pixels'),
)  # fmt: skip
