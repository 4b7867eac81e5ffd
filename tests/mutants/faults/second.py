"""Faults written with fresh eyes once more, from the source and the catalogue alone: mostly what is wired to what."""

from tests.mutants.fault import Fault

FAULTS = [
  # training
  Fault(
    'a run that stopped early and is extended stops again at its next validation', 'order',
    'diffusion/training/callbacks.py', 'early_stopping', "extend=lambda state, step: state | {'since': step}",
    'extend=lambda state, step: state',
    ('tests/training/test_callbacks.py', 'tests/test_runs.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'memorization is watched on as many samples in all as there should be of each class', 'data',
    'diffusion/training/callbacks.py', 'watch_memorization.update', 'per_class * look.data.kinds', 'per_class',
    ('tests/training/test_callbacks.py', 'tests/runs/test_look.py', 'tests/test_wiring.py'),
  ),
  Fault(
    "a sampler that an evaluation asks for walks the grid that the run's own was given", 'experiments',
    'diffusion/training/experiment.py', 'EvaluationSettings.applied',
    'plan._replace(sampler=plans.sampler(self.sampler), grid=None)',
    'plan._replace(sampler=plans.sampler(self.sampler))',
    (
      'tests/test_equalities.py', 'tests/training/test_experiment.py', 'tests/runs/test_evaluating.py',
      'tests/test_flags.py',
    ),
  ),
  Fault(
    'the batch statistics of an evaluation are those of what a curriculum lets through by then', 'weights',
    'diffusion/training/step.py', 'make_recompute_statistics.recompute_statistics.one',
    'step=jnp.full((), experiment.num_steps)', 'step=state.step',
    (
      'tests/test_equalities.py', 'tests/training/test_batch_statistics.py', 'tests/training/test_step.py',
      'tests/test_wiring.py',
    ),
  ),
  Fault(
    'the clip rate that is logged is that of the steps before', 'record', 'diffusion/training/step.py',
    'make_step.step', 'experiment.optimizer.measure(optimizer)', 'experiment.optimizer.measure(state.optimizer)',
    (
      'tests/test_equalities.py', 'tests/training/test_step.py', 'tests/optimizers/test_clipping.py',
      'tests/test_wiring.py',
    ),
  ),
  # runs
  Fault(
    "--mode=sample draws by the run's own plan, whatever sampler is asked for", 'experiments',
    'diffusion/runs/evaluating.py', 'evaluate', 'load(run.folder, run.experiment)', 'load(run.folder)',
    ('tests/runs/test_evaluating.py', 'tests/test_flags.py', 'tests/test_runs.py'),
  ),
  Fault(
    'a loaded run clips x0 to [-1, 1] though its images are standardized', 'factors', 'diffusion/runs/loading.py',
    'load', 'fitted(experiment, units)', 'resolved(experiment, units.levels)',
    ('tests/test_equalities.py', 'tests/runs/test_loading.py', 'tests/sampling/test_plan.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'the batch statistics of a population are recomputed for its first validation alone', 'weights',
    'diffusion/runs/population.py', 'Population.dispatch', 'self._is_recomputed = False', 'pass',
    (
      'tests/test_equalities.py', 'tests/runs/test_population.py', 'tests/runs/test_population_program.py',
      'tests/training/test_batch_statistics.py',
    ),
  ),
  Fault(
    'what a callback changes of a member of a population never reaches the devices', 'experiments',
    'diffusion/runs/population.py', 'Population.put', 'self._placed = None', 'pass',
    ('tests/runs/test_population.py', 'tests/runs/test_population_program.py', 'tests/runs/test_guarded_runs.py'),
  ),
  # evaluation
  Fault(
    'the distance to the copyist is measured at training examples', 'data', 'diffusion/evaluation/membership.py',
    '_beside_copyist.measure', "_some(inputs, 'held_out', limit)", "_some(inputs, 'train', limit)",
    ('tests/evaluation/test_membership.py', 'tests/evaluation/test_metric.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'the levels of standardized images are looked for in [-1, 1]', 'factors', 'diffusion/evaluation/bits_per_dim.py',
    'likelihood.measure.rows', 'support=inputs.units.range', 'support=(-1.0, 1.0)',
    ('tests/evaluation/test_bits_per_dim.py', 'tests/sampling/test_likelihood.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'FLD has more centers at the samples than its baseline has at real examples', 'formula',
    'diffusion/evaluation/novelty.py', 'feature_likelihood.measure', 'subset(samples, count)',
    'subset(samples, limit)', ('tests/evaluation/test_novelty.py', 'tests/evaluation/test_floors.py'),
  ),
  Fault(
    'ratios that were taken with mirror images are handed to those who ask for them without', 'data',
    'diffusion/evaluation/memorization.py', 'input_ratios', "('ratios', which, features, mirrored)",
    "('ratios', which, features)",
    (
      'tests/evaluation/test_memorization.py', 'tests/evaluation/test_metric.py', 'tests/runs/test_evaluating.py',
      'tests/sampling/test_copying.py',
    ),
  ),
  # sampling
  Fault(
    'Monte-Carlo dropout leaves the branch of guidance that has no label whole', 'dropout',
    'diffusion/sampling/plan.py', 'plan',
    'conditional, null = (monte_carlo(one, keys, sampling.monte_carlo) for one in (conditional, null))',
    'conditional = monte_carlo(conditional, keys, sampling.monte_carlo)',
    ('tests/sampling/test_plan.py', 'tests/sampling/test_ensembles.py', 'tests/sampling/test_guidance.py'),
  ),
  Fault(
    'known pixels are noised back between two repeats by the noise that they have', 'keys',
    'diffusion/sampling/wrappers.py', 'inpaint.step', 'rng.normal(back_key, z.shape[1:])',
    'rng.normal(eps_key, z.shape[1:])', ('tests/sampling/test_samplers.py', 'tests/sampling/test_solvers.py'),
  ),
  Fault(
    "a Langevin correction asks the denoiser for the level that the predictor's step left", 'order',
    'diffusion/sampling/wrappers.py', 'predictor_corrector.step', 'denoise(z, s)', 'denoise(z, t)',
    ('tests/sampling/test_samplers.py', 'tests/sampling/test_solvers.py'),
  ),
  # models
  Fault(
    'the activation of a U-Net does not reach the embedding of what it is told', 'experiments',
    'diffusion/models/unet.py', 'UNet.__call__',
    'ConditioningEmbedding(4 * self.width, self.num_classes, style.activation)',
    'ConditioningEmbedding(4 * self.width, self.num_classes)',
    ('tests/models/test_unet.py', 'tests/models/test_activations.py', 'tests/models/test_embeddings.py'),
  ),
  Fault(
    'the magnitude-preserving network is not told what an augmentation did', 'experiments',
    'diffusion/models/magnitude.py', 'MagnitudePreservingUNet._embedding',
    "embedding += Kernel(size, name='augment')(conditioning.augment, mode)", 'pass',
    ('tests/models/test_magnitude.py', 'tests/models/test_embeddings.py', 'tests/test_conditions.py'),
  ),
  Fault(
    'dropout thins nothing but the way down of the magnitude-preserving network', 'dropout',
    'diffusion/models/magnitude.py', 'Block.__call__', 'Dropout(self.drops)(h, mode.keys)',
    'Dropout(self.drops if self.encoder else ())(h, mode.keys)',
    ('tests/models/test_magnitude.py', 'tests/models/test_places.py', 'tests/models/test_dropout.py'),
  ),
  # optimizers
  Fault(
    'the half-life of the weights does not grow with the images seen, and the initialization stays', 'experiments',
    'diffusion/optimizers/averaging.py', 'half_life.decay', 'jnp.minimum(images, ramp * batch_size * (count + 1))',
    'images', ('tests/optimizers/test_averaging.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'a clip norm of 0 among the members of a population stops one and does not turn its clipping off', 'experiments',
    'diffusion/optimizers/chains.py', 'adamw', 'jnp.where(clip_norm > 0, clip_norm, jnp.inf)', 'clip_norm',
    ('tests/optimizers/test_chains.py', 'tests/optimizers/test_clipping.py', 'tests/runs/test_population.py'),
  ),
  # objectives
  Fault(
    'a timestep curriculum by progress takes all of training, whenever it should end', 'experiments',
    'diffusion/objectives/times.py', 'curriculum.draw', '(clusters - 1) * progress / until',
    '(clusters - 1) * progress', ('tests/objectives/test_times.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'the weight that is asked for does not reach learned uncertainty', 'experiments', 'diffusion/objectives/losses.py',
    'uncertain', 'denoising(weight)', 'denoising(jnp.ones_like)',
    ('tests/objectives/test_losses.py', 'tests/objectives/test_weights.py', 'tests/test_wiring.py'),
  ),
  # data
  Fault(
    'the official test set of a finished run keeps the numbers that its classes have now', 'data',
    'diffusion/data/sources.py', 'in_order_of', 'place[data.test[1]]', 'data.test[1]',
    ('tests/data/test_sources.py', 'tests/runs/test_moved_data.py', 'tests/runs/test_loading.py'),
  ),
  Fault(
    'samples are asked for of classes that have no training example', 'data', 'diffusion/data/splits.py',
    'SplitData.classes', 'np.unique(self.train[1])', 'np.arange(self.dataset.num_classes, dtype=np.int32)',
    ('tests/data/test_split_data.py', 'tests/data/test_splits.py', 'tests/runs/test_evaluating.py'),
  ),
  # reporting
  Fault(
    'the picture of the held-out loss over seeds shows that of training examples', 'record',
    'diffusion/reporting/comparison.py', '_pictures', "'validation/eps'", "'train/eps'",
    ('tests/test_comparisons.py', 'tests/runs/test_compare.py', 'tests/reporting/test_variants.py'),
  ),
  Fault(
    'the line of no effect is at 1 for differences too', 'record', 'diffusion/reporting/variants.py', 'forest',
    '1 if panel.is_ratio else 0', '1', ('tests/reporting/test_variants.py', 'tests/test_comparisons.py'),
  ),
  # the top of the package
  Fault(
    '--extend reaches no population', 'experiments', 'diffusion/launch.py', '_train_population',
    'population.train(runs, values, lambda one: build(dataclasses.replace(config, **one)), f.extend)',
    'population.train(runs, values, lambda one: build(dataclasses.replace(config, **one)))',
    ('tests/test_launch.py', 'tests/test_flags.py', 'tests/runs/test_population_program.py'),
  ),
  # the experiments
  Fault(
    'the spike guard of regularized looks at validations alone, too few to judge by', 'experiments',
    'experiments/regularized.py', 'build', 'guards.spike_guard(c.log_every)', 'guards.spike_guard(c.validate_every)',
    ('tests/test_experiments.py', 'tests/test_wiring.py'),
  ),
  Fault(
    'the rate of the arm that needs no schedule falls by a cosine', 'experiments', 'experiments/ablation.py',
    'without_schedule',
    'schedules.warmup_cosine(c.learning_rate, c.num_steps, c.warmup_steps, c.learning_rate)',
    'schedules.warmup_cosine(c.learning_rate, c.num_steps, c.warmup_steps)',
    ('tests/test_ablation.py', 'tests/test_experiments.py', 'tests/test_wiring.py'),
  ),
]  # fmt: skip
