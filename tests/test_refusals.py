"""What no other quick test is refused, by the argument, its value and a remedy; and a few ends of roads."""

import math

import numpy as np
import pytest

import diffusion
from diffusion.data import cleaning, sources
from diffusion.evaluation import frechet, memorization, novelty, onset, recognition
from diffusion.evaluation.metric import Plan
from diffusion.models import unet
from diffusion.reporting import plots, variants
from diffusion.training import callbacks
from diffusion.training import experiment as experiments
from tests.evaluation.given import inputs_of
from tests.training import tiny


def small(**more):
  x = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
  return sources.arrays('small', x, np.zeros(8, int), class_names=('a',), levels=None, **more)


def plan(**changes):
  return Plan(samples=10, classes=2, shape=(4,), train=10, held_out=10)._replace(**changes)


CALLS = {
  'nearest-neighbor metrics need at least 2 training examples, got 1': lambda: (
    memorization.nearest_neighbor_ratio().check(plan(train=1))
  ),
  'nearest neighbors need at least 2 distinct references, got 1': lambda: (
    memorization.ratios(np.zeros((3, 2)), np.ones((5, 2)))
  ),
  'kernel distance in 4 blocks needs at least 8 rows of each, got 7 and 9': lambda: (
    frechet.kernel_distance(np.zeros((7, 2)), np.zeros((9, 2)), 4)
  ),
  'feature likelihood needs at least 2 samples and 4 training examples, got 10 and 3': lambda: (
    novelty.feature_likelihood().check(plan(train=3))
  ),
  'recognition needs at least two classes, the data has 1': lambda: (
    recognition.recognition().check(plan(classes=1))
  ),
  'dropout must be one rate, or one for each of the 2 levels': lambda: (
    unet.level_drops((0.1, 0.2, 0.3), 2)
  ),
  "metric must name at least one metric, got \\[\\]": lambda: callbacks.early_stopping([]),
  'mirrored=True is for images, the data has shape \\[8\\]': lambda: (
    callbacks.watch_memorization(10, mirrored=True).check(tiny.start(tiny.experiment())[0])
  ),
  "evaluation_average names the average 'wide', there are \\['ema'\\]": lambda: (
    experiments.check(tiny.experiment(evaluation_average='wide'))
  ),
  "two callbacks of one name: \\['snapshots', 'snapshots'\\]": lambda: (
    experiments.check(
      tiny.experiment(callbacks=[callbacks.snapshots(20), callbacks.snapshots(10)])
    )
  ),
  'cannot be held out of small: one of them has conditions': lambda: (
    sources.with_held_out(small(condition=np.zeros((8, 3), np.float32)), small()).load()
  ),
  'checks of small would part examples from their conditions': lambda: (
    cleaning.checked(small(condition=np.zeros((8, 3), np.float32))).load()
  ),
  'checks of small would mix what is held out: check each source before': lambda: (
    cleaning.checked(sources.with_held_out(small(), small())).load()
  ),
  "a folder of images needs a directory, got ''": lambda: sources.folder('').load(),
  'an ensemble needs at least one folder': lambda: diffusion.load_ensemble([]),
  "no run has 'nothing' in its rows": lambda: (
    variants.bands({'a': [[{'step': 1, 'loss': 2.0}]]}, 'nothing', 'label', None)
  ),
  'columns must be at least 1, got 0': lambda: (
    plots.memorization_strip(*[np.zeros((1, 8, 8, 1), np.uint8)] * 2, [0.5], None, columns=0)
  ),
}  # fmt: skip


@pytest.mark.parametrize('says', CALLS)
def test_it_is_refused_by_name(says):
  with pytest.raises(ValueError, match=says):
    CALLS[says]()


def test_held_out_examples_too_few_for_a_kernel_distance_leave_its_null_out():
  x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
  names = [one.name for one in frechet.kernel().measure(inputs_of(x, x + 1, x[:19]))]
  assert names == ['kernel distance(pixels)']


@pytest.mark.parametrize(
  'steps, says',
  [
    ([math.inf], 'not by the end'),
    ([7.0], 7.0),
    ([2.0, 9.0, math.inf], '2 of 3, median 9'),
    ([2.0, math.inf, math.inf], '1 of 3'),
  ],
)
def test_an_onset_that_some_seeds_did_not_reach_is_their_number_and_the_median_where_it_is_known(
  steps, says
):
  assert onset._mean_step(steps) == says
