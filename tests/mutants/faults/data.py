"""Faults of `diffusion/data/`."""

from tests.mutants.fault import Fault

AUGMENT, CLEANING = 'diffusion/data/augment.py', 'diffusion/data/cleaning.py'
CURRICULUM, CUT = 'diffusion/data/curriculum.py', 'diffusion/data/cut.py'
PICTURES, PIPELINE = 'diffusion/data/pictures.py', 'diffusion/data/pipeline.py'
PREFETCH, RAW = 'diffusion/data/prefetch.py', 'diffusion/data/raw.py'
RECORDS, SOURCES, SPLITS = (
  'diffusion/data/records.py',
  'diffusion/data/sources.py',
  'diffusion/data/splits.py',
)

OF_AUGMENT, OF_BATCHES = ('tests/data/test_augment.py',), ('tests/data/test_batches.py',)
OF_CLEANING, OF_CURRICULUM = ('tests/data/test_cleaning.py',), ('tests/data/test_curriculum.py',)
OF_PICTURES, OF_PIPELINE = ('tests/data/test_pictures.py',), ('tests/data/test_pipeline.py',)
OF_PREFETCH, OF_PREPARE = ('tests/data/test_prefetch.py',), ('tests/data/test_prepare.py',)
OF_SOURCES, OF_SPLITS = ('tests/data/test_sources.py',), ('tests/data/test_splits.py',)
OF_SPLIT_DATA = ('tests/data/test_split_data.py',)

FAULTS = [
  # Augmentations.
  Fault(
    'one key throws the coin of a conditioned augmentation and draws its transformation', 'keys', AUGMENT,
    'conditioned.apply', 'both[:, 1]', 'both[:, 0]', OF_AUGMENT, techniques=('non-leaky conditioned augmentation',),
  ),
  Fault(
    'all conditioned transformations draw from the same keys', 'keys', AUGMENT, 'conditioned.apply',
    'jax.vmap(jax.random.fold_in, (0, None))(keys, i)', 'keys', OF_AUGMENT,
    techniques=('non-leaky conditioned augmentation',),
  ),
  Fault(
    'a transformation that did not act is told to the network all the same', 'factors', AUGMENT, 'conditioned.apply',
    'jnp.where(acts[:, None], did, 0)', 'did', OF_AUGMENT, techniques=('non-leaky conditioned augmentation',),
  ),
  Fault(
    'the stages of a chain of augmentations share their keys', 'keys', AUGMENT, 'Chain.__call__',
    'jax.vmap(jax.random.fold_in, (0, None))(keys, i)', 'keys', OF_AUGMENT,
  ),
  Fault(
    'images are flipped upside down', 'data', AUGMENT, 'flip.transform', 'x[:, ::-1]', 'x[::-1]', OF_AUGMENT,
    techniques=('random horizontal flips',),
  ),
  Fault(
    'a flip says that it did what it did not do', 'factors', AUGMENT, 'flip.transform',
    'mirrored[None].astype(x.dtype)', '(~mirrored)[None].astype(x.dtype)', OF_AUGMENT,
    techniques=('random horizontal flips',),
  ),
  Fault(
    'a shift states the wrong sign', 'factors', AUGMENT, 'shift.transform', 'pixels - start', 'start - pixels',
    OF_AUGMENT, techniques=('random shifts',),
  ),
  Fault(
    'no shift goes all the way up or left', 'formula', AUGMENT, 'shift.transform', '2 * pixels + 1', '2 * pixels',
    OF_AUGMENT, techniques=('random shifts',),
  ),
  Fault(
    'images are turned clockwise and told to be turned counterclockwise', 'factors', AUGMENT, 'rotate.transform',
    '[[c, s], [-s, c]]', '[[c, -s], [s, c]]', OF_AUGMENT, techniques=('random rotations',),
  ),
  Fault(
    'images are shrunk where scaling says that it enlarged them', 'factors', AUGMENT, 'scale.transform',
    '2.0**-log_f', '2.0**log_f', OF_AUGMENT, techniques=('random scaling',),
  ),
  Fault(
    'shearing moves rows by columns', 'formula', AUGMENT, 'shear.transform', '[[1.0, 0.0], [s, 1.0]]',
    '[[1.0, s], [0.0, 1.0]]', OF_AUGMENT, techniques=('random shearing',),
  ),
  Fault(
    'one key draws the side of a crop and its place', 'keys', AUGMENT, 'crop.transform',
    'size, place = jax.random.split(key)', 'size = place = key', OF_AUGMENT, techniques=('random crops',),
  ),
  Fault(
    'a crop reaches beyond the image', 'factors', AUGMENT, 'crop.transform',
    'jax.random.uniform(place, (2,), minval=-0.5, maxval=0.5) * (1 - u)',
    'jax.random.uniform(place, (2,), minval=-0.5, maxval=0.5)', OF_AUGMENT, techniques=('random crops',),
  ),
  Fault(
    'color jitter changes the saturation by the draw of the contrast', 'factors', AUGMENT, 'color_jitter.transform',
    '2.0 ** did[2]', '2.0 ** did[1]', OF_AUGMENT, techniques=('color jitter',),
  ),
  Fault(
    'color jitter states the wrong sign of the brightness', 'factors', AUGMENT, 'color_jitter.transform',
    'x + did[0]', 'x - did[0]', OF_AUGMENT, techniques=('color jitter',),
  ),
  Fault(
    'a cutout is a row higher than asked for', 'formula', AUGMENT, 'cutout.transform', 'row < pixels',
    'row <= pixels', OF_AUGMENT, techniques=('cutout',),
  ),
  Fault(
    'all rows of a batch lose their labels together', 'keys', AUGMENT, 'label_dropout.apply',
    'jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)',
    'jax.vmap(lambda key: jax.random.bernoulli(key, rate))(jnp.broadcast_to(keys[:1], keys.shape))', OF_AUGMENT,
    techniques=('label dropout for classifier-free guidance',),
  ),
  Fault(
    'labels are kept at the rate at which they should be dropped', 'experiments', AUGMENT, 'label_dropout.apply.leaf',
    'jnp.where(dropped.reshape(-1, *[1] * (told.ndim - 1)), nothing, told)',
    'jnp.where(dropped.reshape(-1, *[1] * (told.ndim - 1)), told, nothing)', OF_AUGMENT,
    techniques=('label dropout for classifier-free guidance',),
  ),
  Fault(
    "the network's own null reaches no dropped condition", 'experiments', AUGMENT, 'label_dropout.apply',
    'null(batch.condition)', 'null_label(batch.condition)', OF_AUGMENT,
    techniques=('label dropout for classifier-free guidance',),
  ),
  # Checks at the source.
  Fault(
    'copies are counted and not dropped', 'data', CLEANING, '_without_copies',
    '(train[0][first], train[1][first]) if drop else train', 'train', OF_CLEANING, techniques=('checks at the source',),
  ),
  Fault(
    'copies of test examples stay in the training set', 'data', CLEANING, '_without_copies',
    'first &= ~leaked', 'pass', OF_CLEANING, techniques=('checks at the source',),
  ),
  Fault(
    "missing values of the test set are imputed by the test set's own means", 'data', CLEANING, 'checked.load',
    '_without_missing(test, data.x, missing)', '_without_missing(test, test[0], missing)', OF_CLEANING,
    techniques=('checks at the source',),
  ),
  Fault(
    'the mean that is imputed counts missing values as zeros', 'factors', CLEANING, '_without_missing',
    'np.where(seen, reference, 0).sum(0, dtype=np.float64) / seen.sum(0)',
    'np.where(seen, reference, 0).sum(0, dtype=np.float64) / len(reference)', OF_CLEANING,
    techniques=('checks at the source',),
  ),
  Fault(
    'the labels move up where examples with missing values are dropped', 'data', CLEANING, '_without_missing',
    'label[whole]', 'label[: whole.sum()]', OF_CLEANING, techniques=('checks at the source',),
  ),
  # Curricula.
  Fault(
    'a pace takes all of training, whenever it should end', 'experiments', CURRICULUM, 'linear',
    '(1 - start) * progress / until', '(1 - start) * progress', OF_CURRICULUM,
    techniques=('curriculum by class', 'curriculum by difficulty'),
  ),
  Fault(
    'classes come by their numbers, whatever order is asked for', 'data', CURRICULUM, 'by_class.rank',
    'place[one]', 'one', OF_CURRICULUM, techniques=('curriculum by class',),
  ),
  Fault(
    'the pace of a curriculum by difficulty reaches nothing', 'experiments', CURRICULUM, 'by_difficulty',
    'pace or linear()', 'linear()', OF_CURRICULUM, techniques=('curriculum by difficulty',),
  ),
  Fault(
    'the difficulty of an example is its distance to the mean of all classes', 'formula', CURRICULUM,
    'distance_to_class_mean', 'flat[chosen].mean(0)', 'flat.mean(0)', OF_CURRICULUM,
    techniques=('curriculum by difficulty',),
  ),
  Fault(
    'all stages of a curriculum by resolution are as coarse as the first', 'experiments', CURRICULUM,
    'by_resolution.transform', 'lambda x, k=k: blurred(k, x)', 'lambda x: blurred(halvings, x)', OF_CURRICULUM,
    techniques=('curriculum by resolution',),
  ),
  Fault(
    'a restricted batch takes rows by number, not in the order of the curriculum', 'data', PIPELINE, 'restrict',
    'order[drawn]', 'drawn', OF_CURRICULUM, techniques=('curriculum by class', 'curriculum by difficulty'),
  ),
  Fault(
    'a full share still draws with replacement', 'order', PIPELINE, 'restrict', 'share >= 1', 'share > 1',
    OF_CURRICULUM, techniques=('curriculum by class', 'curriculum by difficulty'),
  ),
  # Units.
  Fault(
    'images are standardized to twice the deviation', 'factors', PIPELINE, 'standardized.normalization',
    '2 * deviation / (levels - 1)', 'deviation / (levels - 1)', OF_PIPELINE, techniques=('standardized data',),
  ),
  Fault(
    'the deviation that preconditioning is told is half of that of the images', 'factors', PIPELINE, 'sigma_data',
    '2 * deviation / (units.levels - 1)', 'deviation / (units.levels - 1)', OF_PIPELINE,
  ),
  Fault(
    'the highest level is not quite one', 'formula', PIPELINE, 'normalize', 'units.levels - 1', 'units.levels',
    OF_PIPELINE,
  ),
  Fault(
    'samples become the level below and not the nearest', 'formula', PIPELINE, 'denormalize',
    'np.rint((x + 1) / 2 * (units.levels - 1))', '(x + 1) / 2 * (units.levels - 1)', OF_PIPELINE,
  ),
  Fault(
    'data is standardized by held-out examples too', 'data', SPLITS, 'split_data',
    'normalization(train[0], dataset.levels)', 'normalization(dataset.x, dataset.levels)', OF_SPLIT_DATA,
    techniques=('standardized data',),
  ),
  # The order of the batches.
  Fault(
    'the draws of one epoch are those of the last, moved on', 'keys', PIPELINE, 'permutations',
    'first * counters', 'first', OF_BATCHES,
  ),
  Fault(
    'the order of the examples is that of every seed', 'keys', PIPELINE, 'permutations',
    "[seed, rng.tag('order')]", "[0, rng.tag('order')]", OF_BATCHES,
  ),
  Fault(
    'batches hold the first rows of the data, of whatever split they are', 'data', PIPELINE, 'Order.batches',
    'self._rows[found]', 'found', OF_BATCHES,
  ),
  Fault(
    'all local devices read the rows of the first', 'devices', PREFETCH, '_Stretch.__getitem__',
    'index[:, self.rows]', 'index[:, np.broadcast_to(self.rows[:1], self.rows.shape)]', OF_PREFETCH,
  ),
  # Splits.
  Fault(
    'copies with several labels are held out with the class of the last of them', 'data', CUT, 'contents',
    'np.minimum.at(owner, of_row, labels)', 'owner[of_row] = labels', OF_SPLITS,
  ),
  Fault(
    'a small class may be held out whole', 'data', CUT, 'held_out',
    'held[_last(of.of_row[untrained], labels[untrained])] = False', 'pass', OF_SPLITS,
  ),
  Fault(
    'another salt is the same split', 'experiments', SPLITS, 'content_hashes',
    "f'{salt}|{x.dtype.str}|{x.shape[1:]}|'", "f'{x.dtype.str}|{x.shape[1:]}|'", OF_SPLITS,
  ),
  Fault(
    'the fingerprint of a data set does not depend on its labels', 'record', SPLITS, 'hashes_and_fingerprint',
    'whole.update(np.ascontiguousarray(label).data)', 'pass', OF_SPLITS,
  ),
  Fault(
    'examples that the data itself holds out are trained on', 'data', SPLITS, 'make',
    'np.setdiff1d(np.arange(len(x)), validation)', 'np.arange(len(x))',
    ('tests/data/test_split_data.py', 'tests/data/test_splits.py'),
  ),
  Fault(
    'a limit takes the first training examples', 'data', SPLITS, '_limited',
    'np.sort(train[np.lexsort((order, count))][fractions.offset : end])', 'train[fractions.offset : end]', OF_SPLITS,
  ),
  Fault(
    'the offset of a limit reaches nothing', 'experiments', SPLITS, '_limited',
    'train[np.lexsort((order, count))][fractions.offset : end]',
    'train[np.lexsort((order, count))][: fractions.limit]', OF_SPLITS,
  ),
  Fault(
    'the test examples come before those of validation in what is held out', 'data', SPLITS, 'SplitData.held_out',
    'zip(self.validation, self.test, strict=True)', 'zip(self.test, self.validation, strict=True)', OF_SPLIT_DATA,
  ),
  Fault(
    'conditions of test examples stand beside those of validation', 'data', SPLITS, 'SplitData.told',
    '[self.split.validation, self.split.test]', '[self.split.test, self.split.validation]', OF_SPLIT_DATA,
  ),
  Fault(
    'samples are drawn of the conditions of training examples', 'data', SPLITS, 'SplitData.asked',
    'self.split.validation[turn % len(self.split.validation)]', 'self.split.train[turn % len(self.split.train)]',
    ('tests/test_conditions.py', 'tests/data/test_split_data.py'),
  ),
  Fault(
    'the order of a curriculum counts from the first training row', 'data', SPLITS, 'split_data',
    "parts.train[np.argsort(score, kind='stable')]", "np.argsort(score, kind='stable')", OF_SPLIT_DATA,
    techniques=('curriculum by class', 'curriculum by difficulty'),
  ),
  Fault(
    'the training loss is watched on the first training rows', 'data', SPLITS, 'evenly',
    'train[np.linspace(0, len(train) - 1, count).round().astype(int)]', 'train[:count]', OF_SPLIT_DATA,
  ),
  # Sources.
  Fault(
    'the first examples are validated by and those that were given to validate by are trained on', 'data', SOURCES,
    'with_held_out.load', 'np.arange(len(data.x), len(data.x) + len(x))', 'np.arange(len(x))',
    ('tests/data/test_sources.py', 'tests/data/test_split_data.py'),
  ),
  Fault(
    'held-out examples of another source keep the numbers of their own classes', 'data', SOURCES, '_fitting',
    'own[other.label]', 'other.label', ('tests/data/test_split_data.py', 'tests/data/test_sources.py'),
  ),
  Fault(
    'labels of a finished run are turned back by the inverse order', 'data', SOURCES, 'in_order_of',
    '[class_names.index(name) for name in data.class_names]', '[data.class_names.index(name) for name in class_names]',
    ('tests/runs/test_moved_data.py', 'tests/data/test_sources.py'),
  ),
  Fault(
    'components of a mixture are drawn with their variance for a deviation', 'factors', SOURCES,
    'gaussian_mixture.load', 'scales[label][:, None]', 'scales[label][:, None] ** 2', OF_SOURCES,
  ),
  Fault(
    'images that stay in their files are not reduced', 'experiments', RECORDS, 'of_split', 'size=size', 'size=None',
    OF_SOURCES,
  ),
  Fault(
    'the background of what is transparent is white, whatever is asked for', 'experiments', PICTURES, '_on_background',
    '(brightness,) * 3 + (255,)', '(255, 255, 255, 255)', OF_PICTURES,
  ),
  Fault(
    'an image is cropped at its corner', 'data', PICTURES, '_decoded',
    '(image.width - side) // 2, (image.height - side) // 2', '0, 0',
    ('tests/data/test_sources.py', 'tests/data/test_pictures.py'),
  ),
  Fault(
    'rows and columns of CIFAR-10 are exchanged', 'data', RAW, 'parse_cifar_batch',
    'planes.transpose(0, 2, 3, 1)', 'planes.transpose(0, 3, 2, 1)', OF_PREPARE,
  ),
]  # fmt: skip
