"""Faults of `diffusion/evaluation/`."""

from tests.mutants.fault import Fault

BITS, BY_NAME = 'diffusion/evaluation/bits_per_dim.py', 'diffusion/evaluation/by_name.py'
CLASSIFIER, FEATURES = 'diffusion/evaluation/classifier.py', 'diffusion/evaluation/features.py'
FRECHET, GAP = 'diffusion/evaluation/frechet.py', 'diffusion/evaluation/gap.py'
INCEPTION, MANIFOLD = 'diffusion/evaluation/inception.py', 'diffusion/evaluation/manifold.py'
MEMBERSHIP, MEMORIZATION = (
  'diffusion/evaluation/membership.py',
  'diffusion/evaluation/memorization.py',
)
METRIC, NEIGHBORS = 'diffusion/evaluation/metric.py', 'diffusion/evaluation/neighbors.py'
NOVELTY, ONSET = 'diffusion/evaluation/novelty.py', 'diffusion/evaluation/onset.py'
RECOGNITION, SAME_NOISE = (
  'diffusion/evaluation/recognition.py',
  'diffusion/evaluation/same_noise.py',
)
STABILITY, TORCH = 'diffusion/evaluation/stability.py', 'diffusion/evaluation/torch_files.py'

OF_BITS, OF_CLASSIFIER = (
  ('tests/evaluation/test_bits_per_dim.py',),
  ('tests/evaluation/test_classifier.py',),
)
OF_FEATURES, OF_FRECHET = (
  ('tests/evaluation/test_features.py',),
  ('tests/evaluation/test_frechet.py',),
)
OF_GAP, OF_INCEPTION = ('tests/evaluation/test_gap.py',), ('tests/evaluation/test_inception.py',)
OF_MANIFOLD, OF_MEMBERSHIP = (
  ('tests/evaluation/test_manifold.py',),
  ('tests/evaluation/test_membership.py',),
)
OF_MEMORIZATION, OF_NEIGHBORS = (
  ('tests/evaluation/test_memorization.py',),
  ('tests/evaluation/test_neighbors.py',),
)
OF_NOVELTY, OF_ONSET = ('tests/evaluation/test_novelty.py',), ('tests/evaluation/test_onset.py',)
OF_RECOGNITION, OF_SAME_NOISE = (
  ('tests/evaluation/test_recognition.py',),
  ('tests/evaluation/test_same_noise.py',),
)
OF_STABILITY, OF_EVALUATING = (
  ('tests/evaluation/test_stability.py',),
  ('tests/runs/test_evaluating.py',),
)
ON_NETWORKS = (
  'tests/evaluation/test_metric.py',
  'tests/evaluation/test_membership.py',
  'tests/evaluation/test_bits_per_dim.py',
)

FAULTS = [
  # The generalization gap.
  Fault(
    'train/eps is computed on validation', 'data', GAP, 'summarize', 'a.mean()', 'b.mean()', OF_GAP, at=1,
  ),
  Fault(
    'the losses by level of training and validation are exchanged', 'data', GAP, 'summarize',
    "(('validation', validation), ('train', train))", "(('validation', train), ('train', validation))", OF_GAP,
  ),
  Fault(
    "the gap's interval takes both splits for equally spread", 'formula', GAP, 'summarize', 'equal_var=False',
    'equal_var=True', OF_GAP,
  ),
  Fault(
    'training and validation losses are exchanged in the table by level', 'data', GAP, 'per_level',
    "row[f'train/level/{i}'], row[f'validation/level/{i}']", "row[f'validation/level/{i}'], row[f'train/level/{i}']",
    OF_GAP,
  ),
  Fault(
    'all draws at a level of the evaluation noise are one', 'keys', GAP, 'on_evaluation_noise.one',
    'jax.vmap(jax.random.fold_in, (0, None))(keys, i)',
    'jax.vmap(jax.random.fold_in, (0, None))(keys, i // noise.draws)', OF_GAP,
  ),
  Fault(
    'only the first draw of the evaluation noise counts', 'factors', GAP, 'on_evaluation_noise',
    'v.reshape(len(noise.log_snr), noise.draws, -1).mean(1).T',
    'v.reshape(len(noise.log_snr), noise.draws, -1)[:, 0].T', OF_GAP,
  ),
  Fault(
    "a row's evaluation noise is that of its place in the chunk", 'keys', GAP, 'make_losses.losses',
    "rng.row_keys(rng.stream(seed, 'validation'), position)",
    "rng.row_keys(rng.stream(seed, 'validation'), jnp.arange(len(x)))", OF_GAP,
  ),
  Fault(
    'the evaluation noise is drawn from the stream of the training noise', 'keys', GAP, 'make_losses.losses',
    "rng.stream(seed, 'validation')", "rng.stream(seed, 'noise')",
    ('tests/evaluation/test_gap.py', 'tests/test_rng.py'),
  ),
  Fault(
    'held-out losses are taken with dropout on', 'dropout', GAP, 'make_losses.losses.network',
    'model.apply(variables, z, noise, conditioning)', 'model.apply(variables, z, noise, conditioning, keys=keys)',
    ('tests/evaluation/test_gap.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'the network under evaluation is told class 0 of every example', 'experiments', GAP, 'make_losses.losses',
    'Conditioning(condition, jnp.zeros((x.shape[0], 0), x.dtype))',
    'Conditioning(jax.tree.map(jnp.zeros_like, condition), jnp.zeros((x.shape[0], 0), x.dtype))', OF_GAP,
  ),
  # Bits a dimension.
  Fault(
    'validation and test bits are exchanged', 'data', BITS, '_splits',
    """{
      'validation': conditions.take(held_out, slice(None, cut)),
      'test': conditions.take(held_out, slice(cut, None)),
      'training': (inputs.x('train'), inputs.told('train')),
    }""",
    """{
      'validation': conditions.take(held_out, slice(cut, None)),
      'test': conditions.take(held_out, slice(None, cut)),
      'training': (inputs.x('train'), inputs.told('train')),
    }""", OF_BITS,
  ),
  Fault(
    'the bound takes the first examples of each split', 'data', BITS, 'likelihood.measure',
    'np.linspace(0, len(x) - 1, min(limit, len(x))).round().astype(int)', 'np.arange(min(limit, len(x)))', OF_BITS,
  ),
  Fault(
    'the bound is stated without its prior', 'factors', BITS, 'likelihood.measure', 'parts.total',
    'parts.total - parts.prior', OF_BITS,
  ),
  Fault(
    'the density of standardized data is brought back with the wrong sign', 'factors', BITS, 'likelihood.measure',
    'total + shares["units"]', 'total - shares["units"]', OF_BITS,
  ),
  Fault(
    'the steps of a discrete-time bound reach nothing', 'experiments', BITS, 'likelihood.measure.rows', 'steps=steps',
    'steps=None', OF_BITS,
  ),
  # What metrics are given.
  Fault(
    'a network that was trained without labels is given them when it is judged', 'weights', METRIC,
    'make_network.tell', 'jax.tree.map(lambda leaf: np.full_like(leaf, NULL), condition)', 'condition', ON_NETWORKS,
  ),
  Fault(
    'the noise of metrics is that by which the run was validated', 'keys', METRIC, 'make_network.apply.rows',
    "rng.stream(seed, 'likelihood')", "rng.stream(seed, 'validation')", ON_NETWORKS,
  ),
  Fault(
    'a metric with a limit takes the first rows', 'data', METRIC, 'subset',
    'x[np.sort(np.random.default_rng(seed).choice(len(x), limit, replace=False))]', 'x[:limit]',
    ('tests/evaluation/test_metric.py', 'tests/evaluation/test_manifold.py', 'tests/evaluation/test_frechet.py'),
  ),
  Fault(
    'the record keeps a proportion without its counts', 'record', METRIC, '_value_to_json',
    'finding.value._asdict() | told', 'finding.value._asdict()', OF_EVALUATING,
  ),
  Fault(
    'metrics look at pixels, whatever features are asked for', 'experiments', BY_NAME, 'choose_metrics',
    'features=chosen', 'features=pixels()', OF_EVALUATING,
  ),
  # Features.
  Fault(
    'features are remembered by the number of the examples and not their content', 'data', FEATURES, 'remembered',
    'content.update(np.ascontiguousarray(x))', 'pass', OF_FEATURES,
  ),
  Fault(
    'processes without a cache go on with nothing where another has one', 'devices', FEATURES, 'remembered',
    'processes.gather(np.asarray(kept is not None)).all()', 'processes.gather(np.asarray(kept is not None)).any()',
    ('tests/training/test_processes.py', 'tests/evaluation/test_features.py'),
  ),
  Fault(
    'the classifier sees images between 0 and 1', 'formula', CLASSIFIER, 'load.rows',
    'x.astype(jnp.float32) / 127.5 - 1', 'x.astype(jnp.float32) / 255', OF_CLASSIFIER,
  ),
  Fault(
    'the effective classes of held-out data are those of the samples', 'data', CLASSIFIER, 'class_balance.calls',
    '(call, which)', 'call', OF_CLASSIFIER,
  ),
  Fault(
    "Inception's normalization has another epsilon", 'factors', INCEPTION, 'prepare', '1e-3', '1e-5', OF_INCEPTION,
  ),
  Fault(
    'images for Inception are resized with half-pixel centers', 'formula', INCEPTION, 'resize',
    'np.arange(side, dtype=np.float64) * size / side',
    'np.maximum((np.arange(side, dtype=np.float64) + 0.5) * size / side - 0.5, 0)', OF_INCEPTION,
  ),
  Fault(
    "Inception's average pools count the padding", 'factors', INCEPTION, '_average',
    'add(x) / add(jnp.ones((1, *x.shape[1:3], 1), x.dtype))', 'add(x) / 9', OF_INCEPTION,
  ),
  Fault(
    "Inception's last block pools by averages", 'formula', INCEPTION, '_network', 'lambda v: _maximum(v, 1)',
    '_average', OF_INCEPTION,
  ),
  Fault(
    'an array of a checkpoint begins at its storage', 'data', TORCH, '_Tensor.array',
    'np.frombuffer(content, kind, held)[offset:]', 'np.frombuffer(content, kind, held)', OF_INCEPTION,
  ),
  # Distances of distributions.
  Fault(
    'the root in the Frechet distance is subtracted once', 'factors', FRECHET, 'distance',
    '2 * np.sqrt(np.maximum(inner, 0)).sum()', 'np.sqrt(np.maximum(inner, 0)).sum()', OF_FRECHET,
  ),
  Fault(
    'the subsets of the extrapolation are the first samples', 'data', FRECHET, 'extrapolated',
    'samples[random.choice(len(samples), size, replace=False)]', 'samples[:size]', OF_FRECHET,
  ),
  Fault(
    'the Frechet distance is extrapolated against N', 'formula', FRECHET, 'extrapolated', '1 / sizes', 'sizes',
    OF_FRECHET,
  ),
  Fault(
    'the Frechet distance is to held-out examples', 'data', FRECHET, 'frechet.measure',
    "inputs.embed(features, 'train')", "inputs.embed(features, 'held_out')", OF_FRECHET,
  ),
  Fault(
    'the Frechet distances at equal numbers are at unequal ones', 'data', FRECHET, 'frechet.measure',
    'subset(x, count)', 'x', OF_FRECHET,
  ),
  Fault(
    'the kernel distance counts a row beside itself', 'formula', FRECHET, '_within',
    '(k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))', 'k.mean()', OF_FRECHET,
  ),
  # Fidelity and diversity.
  Fault(
    'balls reach to the neighbor before the k-th', 'factors', MANIFOLD, 'radii', 'neighbors.nearest(x, x, k + 1)',
    'neighbors.nearest(x, x, k)', OF_MANIFOLD,
  ),
  Fault(
    "precision counts within balls of the samples' radii", 'data', MANIFOLD, 'precision_recall.measure',
    'balls(samples, real, radii(real, k))', 'balls(samples, real, radii(samples, k))', OF_MANIFOLD,
  ),
  Fault(
    'density is not divided by k', 'factors', MANIFOLD, 'density_coverage.measure', 'counts / k', 'counts',
    OF_MANIFOLD,
  ),
  Fault(
    'the expectation of coverage that is stated lacks a factor', 'record', MANIFOLD, 'expected_coverage',
    'range(1, k + 1)', 'range(1, k)', OF_MANIFOLD,
  ),
  Fault(
    'the Vendi score is of K and not of K / n', 'factors', MANIFOLD, 'vendi_score',
    '(x @ x.T if len(x) <= x.shape[1] else x.T @ x) / len(x)', 'x @ x.T if len(x) <= x.shape[1] else x.T @ x',
    OF_MANIFOLD,
  ),
  Fault(
    'the directions of the sliced distance are longer than one', 'factors', MANIFOLD, 'sliced_distance',
    'directions /= np.linalg.norm(directions, axis=0)', 'pass', OF_MANIFOLD,
  ),
  # Membership, and the denoiser that copies.
  Fault(
    'membership is told by a high loss', 'formula', MEMBERSHIP, 'membership.measure',
    'statistics.auc(-train[:, i], -held_out[:, i])', 'statistics.auc(train[:, i], held_out[:, i])', OF_MEMBERSHIP,
  ),
  Fault(
    'membership looks at the first examples of each split', 'data', MEMBERSHIP, '_some',
    'np.sort(np.random.default_rng(0).permutation(len(x))[:limit])', 'np.arange(min(limit, len(x)))', OF_MEMBERSHIP,
  ),
  Fault(
    'the network that is asked is told labels of other examples', 'data', MEMBERSHIP, '_some',
    'conditions.take(inputs.told(which), chosen)', 'conditions.take(inputs.told(which), slice(len(chosen)))',
    OF_MEMBERSHIP,
  ),
  Fault(
    'the distances to the copyist and its reference are squared', 'factors', MEMBERSHIP,
    '_beside_copyist.rows.measure', 'jnp.linalg.norm(a - b, axis=1)', '((a - b) ** 2).sum(1)', OF_MEMBERSHIP,
  ),
  Fault(
    'the copyist of a conditional network copies examples of every class', 'weights', MEMBERSHIP,
    '_beside_copyist.rows', 'analytic.empirical(query.path, *train, query.condition, flip=mirrored)',
    'analytic.empirical(query.path, train[0], flip=mirrored)', OF_MEMBERSHIP,
  ),
  Fault(
    'the true denoiser is asked about standardized data as if it were as stored', 'data', MEMBERSHIP,
    'score_position.population', 'analytic.standardized(truth, path, units.mean, units.deviation)', 'truth(path)',
    OF_MEMBERSHIP,
  ),
  # Memorization.
  Fault(
    'the nearest-neighbor ratio is of squared distances', 'factors', MEMORIZATION, '_ratios',
    'distance[:, 0] / distance[:, 1]', 'distance[:, 0] ** 2 / distance[:, 1] ** 2', OF_MEMORIZATION,
  ),
  Fault(
    'duplicates among the training examples are not dropped', 'data', MEMORIZATION, '_distinct',
    'neighbors.distinct(reference)', 'np.arange(len(reference))', OF_MEMORIZATION,
  ),
  Fault(
    'mirrored copies are looked for among samples and not in the held-out null', 'data', MEMORIZATION,
    'nearest_neighbor_ratio.measure', 'mirrored=mirrored', "mirrored=mirrored and which == 'samples'",
    OF_MEMORIZATION,
  ),
  Fault(
    'the threshold of the calibrated ratio is that of pixels, whatever the features', 'data', MEMORIZATION,
    'calibrated_ratio.measure', "input_ratios(inputs, 'held_out', features)", "input_ratios(inputs, 'held_out')",
    OF_MEMORIZATION,
  ),
  Fault(
    'the crossing of the memorized fraction is interpolated in n and not in its logarithm', 'formula', MEMORIZATION,
    '_crossing', 'np.exp(log_sizes[i] + share * (log_sizes[i + 1] - log_sizes[i]))',
    'np.exp(log_sizes[i]) + share * (np.exp(log_sizes[i + 1]) - np.exp(log_sizes[i]))', OF_MEMORIZATION,
  ),
  Fault(
    'neighbors are believed without the error of float32', 'formula', NEIGHBORS, 'nearest', 'worst**2 - error',
    'worst**2', OF_NEIGHBORS,
  ),
  # Novelty.
  Fault(
    'FLD is centered by the samples', 'data', NOVELTY, 'standardized', 'train.mean(0, dtype=np.float64)',
    'samples.mean(0, dtype=np.float64)', OF_NOVELTY,
  ),
  Fault(
    'FLD is standardized by the deviation of the samples', 'data', NOVELTY, 'standardized',
    'train.std(0, dtype=np.float64)', 'samples.std(0, dtype=np.float64)', OF_NOVELTY,
  ),
  Fault(
    'the widths of FLD are fitted to what they are judged on', 'data', NOVELTY, 'likelihood_divergence',
    'fit_widths(samples, train)', 'fit_widths(samples, held_out)', OF_NOVELTY,
  ),
  Fault(
    'the baseline of FLD fits its centers to themselves', 'data', NOVELTY, 'baseline_divergence',
    'train[order[half:]]', 'train[order[:half]]', OF_NOVELTY,
  ),
  Fault(
    'the principal components of the data-copying test are of the samples', 'data', NOVELTY, 'data_copying.measure',
    'principal_components(parts[2], components)', 'principal_components(parts[0], components)', OF_NOVELTY,
  ),
  Fault(
    "the cells of the data-copying test weigh by the samples' shares", 'factors', NOVELTY, 'copying_test',
    'sizes.append(len(real))', 'sizes.append(len(generated))', OF_NOVELTY,
  ),
  # When things begin, and how steadily a run went.
  Fault(
    'learning begins by the whole loss and not by its excess over the floor', 'formula', ONSET, 'onsets',
    'excess <= 0.05 * excess[0]', 'losses <= 0.05 * losses[0]', OF_ONSET,
  ),
  Fault(
    "copying begins above the null's estimate and not above its interval", 'data', ONSET, 'onsets',
    "row['memorized/null_high']", "row['memorized/null']", OF_ONSET,
  ),
  Fault(
    'spiked rows enter the history by which spikes are told', 'all or nothing', STABILITY, 'spikes',
    'since = step\nfound.append(Spike(step, math.inf))',
    'since = step\nfound.append(Spike(step, math.inf))\npast.append(value)',
    OF_STABILITY,
  ),
  Fault(
    'time runs backwards where steps were rolled back', 'order', STABILITY, 'findings',
    "row['cursor' if 'cursor' in row else 'step']", "row['step']", OF_STABILITY,
  ),
  # Other judges.
  Fault(
    'the held-out accuracy of the support-vector classifier is that on its training data', 'data', RECOGNITION,
    'recognition.measure', 'inputs.held_out', 'inputs.train', OF_RECOGNITION,
  ),
  Fault(
    'what two models remember is looked for in the training set of the other', 'data', SAME_NOISE, 'agreement',
    "(('first', a, train_a), ('second', b, train_b))", "(('first', a, train_b), ('second', b, train_a))",
    OF_SAME_NOISE,
  ),
]  # fmt: skip
