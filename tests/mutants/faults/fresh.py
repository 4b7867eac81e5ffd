"""Faults written with fresh eyes, from the source and the catalogue alone."""

from tests.mutants.fault import Fault

FAULTS = [
  Fault(
    'samples under conditions are asked for those of training examples', 'data', 'diffusion/data/splits.py',
    'SplitData.asked', 'self.split.validation[turn % len(self.split.validation)]',
    'self.split.train[turn % len(self.split.train)]', ('tests/data/test_split_data.py', 'tests/test_conditions.py'),
  ),
  Fault(
    'the training examples beside a validation are the first of the file', 'data', 'diffusion/data/splits.py',
    'evenly', 'np.linspace(0, len(train) - 1, count).round().astype(int)', 'np.arange(count)',
    ('tests/data/test_split_data.py', 'tests/training/test_program.py'),
  ),
  Fault(
    'all members of a population train on the rows of the first one', 'data', 'diffusion/runs/population.py',
    'Population.__init__', 'run.data.split.train', 'runs[0].data.split.train',
    ('tests/runs/test_population.py', 'tests/runs/test_population_program.py'),
  ),
  Fault(
    'a streamed dispatch begins one batch after the one before', 'data', 'diffusion/data/prefetch.py',
    '_Stretch.__getitem__', 'self.batches_seen + i * self.steps', 'self.batches_seen + i',
    ('tests/data/test_prefetch.py', 'tests/training/test_streamed.py'),
  ),
  Fault(
    'snapshots hold the evaluated average under every name', 'weights', 'diffusion/training/callbacks.py',
    'snapshots.update', 'look.parameters(name)', 'look.parameters()',
    ('tests/training/test_callbacks.py', 'tests/runs/test_guarded_runs.py'),
  ),
  Fault(
    'an ensemble samples with the batch statistics of training', 'weights', 'diffusion/runs/loading.py',
    'Ensemble.sample', 'run.state.evaluation_statistics', 'run.state.statistics',
    (
      'tests/sampling/test_ensembles.py', 'tests/training/test_batch_statistics.py',
      'tests/runs/test_guarded_runs.py', 'tests/test_wiring.py',
    ),
  ),
  Fault(
    'stochastic depth skips no block of the magnitude-preserving network', 'dropout', 'diffusion/models/magnitude.py',
    'Block.__call__', "Dropout(self.drops, 'branch', self.depth, name='branch')(h, mode.keys)", 'h',
    ('tests/models/test_magnitude.py', 'tests/models/test_places.py'),
  ),
  Fault(
    'the last blocks of a U-Net are skipped more often than at the rate', 'dropout', 'diffusion/models/unet.py',
    'UNet.__call__', 'levels * (2 * self.blocks + 1) + 2', 'levels * 2 * self.blocks + 2',
    ('tests/models/test_unet.py', 'tests/models/test_dropout.py', 'tests/models/test_places.py'),
  ),
  Fault(
    'held-out losses are those of thinned networks', 'dropout', 'diffusion/evaluation/gap.py',
    'make_losses.losses.network', 'model.apply(variables, z, noise, conditioning)[0]',
    'model.apply(variables, z, noise, conditioning, keys=keys)[0]',
    ('tests/evaluation/test_gap.py', 'tests/training/test_program.py'),
  ),
  Fault(
    'all augmentations of a chain draw from the same keys', 'keys', 'diffusion/data/augment.py', 'Chain.__call__',
    'jax.vmap(jax.random.fold_in, (0, None))(keys, i)', 'keys', ('tests/data/test_augment.py',),
  ),
  Fault(
    'all draws of a variational bound have one noise', 'keys', 'diffusion/sampling/likelihood.py', 'bound.one',
    'jax.random.split(jax.random.fold_in(key, i), 2)', 'jax.random.split(key, 2)',
    ('tests/sampling/test_likelihood.py', 'tests/evaluation/test_bits_per_dim.py'),
  ),
  Fault(
    'two runs whose agreement is asked for start from noises of their own', 'keys', 'diffusion/commands/agreement.py',
    'compare', '[run.sample(labels, seed) for run in runs]',
    '[run.sample(labels, seed + i) for i, run in enumerate(runs)]',
    ('tests/evaluation/test_same_noise.py', 'tests/test_launch.py'),
  ),
  Fault(
    'a checkpoint has the learning rate from before its plateau', 'order', 'diffusion/runs/loop.py', 'InTraining._act',
    """
    if SetLearningRateScale in asked:
      program.put(k, rescaled(program.get(k), asked[SetLearningRateScale].scale))
    if Stop in asked:
      run.reason = asked[Stop].reason
    if not asked.keys().isdisjoint({Save, Stop, Remember}):
      look.recompute_statistics()
      metric = asked[Save].metric if Save in asked else math.inf
      self._save(metric, guarded=Remember in asked)
    """,
    """
    if Stop in asked:
      run.reason = asked[Stop].reason
    if not asked.keys().isdisjoint({Save, Stop, Remember}):
      look.recompute_statistics()
      metric = asked[Save].metric if Save in asked else math.inf
      self._save(metric, guarded=Remember in asked)
    if SetLearningRateScale in asked:
      program.put(k, rescaled(program.get(k), asked[SetLearningRateScale].scale))
    """,
    ('tests/runs/test_loop.py', 'tests/training/test_callbacks.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'a learning rate behind a warm-up has begun to fall with it', 'order', 'diffusion/optimizers/schedules.py',
    '_warmed.rate', 'shape(jnp.maximum(count - warmup_steps, 0))', 'shape(count)',
    ('tests/optimizers/test_schedules.py',),
  ),
  Fault(
    'a second rollback measures how far it goes back in steps', 'order', 'diffusion/runs/run.py', 'Run.go_back',
    'self.position.batches_seen - steps', 'self.position.step - steps',
    ('tests/runs/test_loop.py', 'tests/runs/test_guarded_runs.py', 'tests/training/test_guards.py'),
  ),
  Fault(
    'a step is taken though its update is not finite', 'all or nothing', 'diffusion/training/step.py',
    'make_step.step',
    "jnp.isfinite(value) & jnp.isfinite(norms['gradient_norm']) & jnp.isfinite(norms['update_norm'])",
    "jnp.isfinite(value) & jnp.isfinite(norms['gradient_norm'])", ('tests/training/test_step.py',),
  ),
  Fault(
    'a first loss that is not finite blinds the divergence guard for good', 'all or nothing',
    'diffusion/training/callbacks.py', 'divergence_guard.update', 'first if math.isfinite(first) else None', 'first',
    ('tests/training/test_callbacks.py', 'tests/training/test_guards.py'),
  ),
  Fault(
    'the logged loss of micro-batches is their sum', 'factors', 'diffusion/training/gradient.py', 'accumulated.one',
    'value + found.value / count', 'value + found.value', ('tests/training/test_accumulation.py',),
  ),
  Fault(
    'the probes of a divergence are added up', 'factors', 'diffusion/sampling/likelihood.py', 'log_likelihood.field',
    'traces.mean() if probes else traces.sum()', 'traces.sum()', ('tests/sampling/test_likelihood.py',),
  ),
  Fault(
    'importance sampling follows the mean loss and not its square', 'factors', 'diffusion/objectives/times.py',
    'importance.update', 'loss**2 @ hit', 'loss @ hit', ('tests/objectives/test_times.py',),
  ),
  Fault(
    'all seeds of overfit train on one choice of examples', 'experiments', 'experiments/overfit.py', 'build',
    "splits.Fractions(0.1, 0.1, c.train_limit, subset=f'seed {c.seed}')", 'splits.Fractions(0.1, 0.1, c.train_limit)',
    ('tests/test_experiments.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'the plateau of regularized waits longer than its run lasts', 'experiments', 'experiments/regularized.py', 'build',
    'callbacks.reduce_on_plateau(patience=c.patience // 2)', 'callbacks.reduce_on_plateau()',
    ('tests/test_experiments.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'the grid that a plan asks for yields to the one its sampler brings', 'experiments', 'diffusion/sampling/plan.py',
    'plan', 'sampling.grid or sampler.grid or grids.uniform_time',
    'sampler.grid or sampling.grid or grids.uniform_time',
    ('tests/sampling/test_plan.py', 'tests/sampling/test_grids.py'),
  ),
  Fault(
    'the logged loss is that of one device', 'devices', 'diffusion/training/step.py', 'make_step.step',
    "{'steps': 1.0, 'loss': value, **norms, **means}", "{'steps': 1.0, 'loss': found.value, **norms, **means}",
    ('tests/training/test_devices.py', 'tests/training/test_step.py'),
  ),
  Fault(
    'the noise scale takes the micro-batches of one device for those of all', 'devices',
    'diffusion/training/gradient.py', 'accumulated.one', 'cross_mean(found.gradient)', 'found.gradient',
    ('tests/training/test_accumulation.py', 'tests/training/test_devices.py'),
  ),
  Fault(
    'v is decoded as if every process preserved the variance', 'formula', 'diffusion/process/parameterizations.py',
    'v.decode', 'alpha**2 + sigma**2', '1.0', ('tests/process/test_parameterizations.py',),
  ),
  Fault(
    'the mirror image of the nearest image is the second nearest', 'formula', 'diffusion/evaluation/memorization.py',
    '_ratios_with_mirrors', 'np.where(index[:, 1] == index[:, 0], distance[:, 2], distance[:, 1])', 'distance[:, 1]',
    ('tests/evaluation/test_memorization.py',),
  ),
  Fault(
    'held-out examples count anew in every run that is pooled', 'formula', 'diffusion/proportions.py', 'pooled',
    'n.max() if runs[0].shared else n.sum()', 'n.sum()', ('tests/test_proportions.py',),
  ),
  Fault(
    'a run that was changed before its last start is not marked', 'record', 'diffusion/runs/compare.py', '_marks',
    "any('changes' in one for one in record['starts'])", "'changes' in start", ('tests/runs/test_compare.py',),
  ),
  Fault(
    "the file of effects has Holm's p in the column of the least", 'record', 'diffusion/reporting/comparison.py',
    '_effects_csv', '[*_cells(e.difference), *_cells(e.ratio), e.p, e.least_p, e.adjusted]',
    '[*_cells(e.difference), *_cells(e.ratio), e.p, e.adjusted, e.least_p]',
    ('tests/test_comparisons.py', 'tests/runs/test_compare.py'),
  ),
]  # fmt: skip
