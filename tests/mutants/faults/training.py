"""Faults of `diffusion/training/`."""

from tests.mutants.fault import Fault

_STEP = 'diffusion/training/step.py'
_GRADIENT = 'diffusion/training/gradient.py'
_STATE = 'diffusion/training/state.py'
_EXPERIMENT = 'diffusion/training/experiment.py'
_CALLBACKS = 'diffusion/training/callbacks.py'
_GUARDS = 'diffusion/training/guards.py'
_PROGRAM = 'diffusion/training/program.py'
_CHECKPOINT = 'diffusion/training/checkpoint.py'
_TEST_STEP = ('tests/training/test_step.py',)
_TEST_WIRING = ('tests/test_wiring.py',)
_TEST_PROGRAM_TOO = (*_TEST_WIRING, 'tests/training/test_program.py')
_TEST_DEVICES = ('tests/training/test_devices.py',)
_TEST_PARTS = ('tests/training/test_accumulation.py',)
_TEST_STATISTICS = ('tests/training/test_batch_statistics.py',)
_TEST_SCHEDULE = ('tests/training/test_learned_schedule.py',)
_TEST_CALLBACKS = ('tests/training/test_callbacks.py',)
_TEST_GUARDS = ('tests/training/test_guards.py',)
_TEST_GUARDED = ('tests/runs/test_guarded_runs.py',)
_TEST_CHECKPOINT = ('tests/training/test_checkpoint.py',)
_TEST_EXPERIMENT = ('tests/training/test_experiment.py',)

FAULTS = [
  # the step: what goes through the mean over devices
  Fault(
    "the update follows a device's own gradient of the network", 'devices', _STEP, 'make_step.step',
    'experiment.optimizer.update(slope, state.optimizer, state.params, learning_rate=rate)',
    'experiment.optimizer.update(slope._replace(network=found.gradient.network), state.optimizer, state.params, '
    'learning_rate=rate)', _TEST_DEVICES,
  ),
  Fault(
    'the gradient of a learned schedule is not averaged over devices', 'devices', _STEP, 'make_step.step',
    'experiment.optimizer.update(slope, state.optimizer, state.params, learning_rate=rate)',
    'experiment.optimizer.update(slope._replace(schedule=found.gradient.schedule), state.optimizer, state.params, '
    'learning_rate=rate)', _TEST_DEVICES, techniques=('learned noise schedule',),
  ),
  Fault(
    "the gradient of the terms' parameters is not averaged over devices", 'devices', _STEP, 'make_step.step',
    'experiment.optimizer.update(slope, state.optimizer, state.params, learning_rate=rate)',
    'experiment.optimizer.update(slope._replace(terms=found.gradient.terms), state.optimizer, state.params, '
    'learning_rate=rate)', _TEST_DEVICES, techniques=('learned uncertainty',),
  ),
  Fault(
    'the loss by noise level counts the rows of all devices in its sum alone', 'devices', _STEP, 'make_step.step',
    'share * bucket.sum(0)', 'bucket.sum(0)', _TEST_DEVICES,
  ),
  Fault(
    'the draw of t learns from the losses of one device', 'devices', _STEP, 'make_step.step',
    'experiment.times.update(state.times, draws.t, found.rows_loss, cross_mean)',
    'experiment.times.update(state.times, draws.t, found.rows_loss, lambda tree: tree)', _TEST_DEVICES,
    techniques=('importance-sampled times', 'timestep curriculum by loss'),
  ),
  Fault(
    'the noise scale counts the rows of one device', 'devices', _STEP, 'make_step.step',
    'gradient.noise_estimates(parts_square, large, rows.total, experiment.micro_batches)',
    'gradient.noise_estimates(parts_square, large, rows.index.shape[0], experiment.micro_batches)', _TEST_DEVICES,
    techniques=('gradient noise scale',),
  ),
  Fault(
    'the batch statistics recomputed for an evaluation are those of one device', 'devices', _STEP,
    'make_recompute_statistics.recompute_statistics.one', 'cross_mean=cross_mean', 'cross_mean=lambda tree: tree',
    _TEST_STATISTICS, techniques=('batch normalization',),
  ),
  # all or nothing
  Fault(
    'a step whose loss alone is not finite is made', 'all or nothing', _STEP, 'make_step.step',
    "jnp.isfinite(value) & jnp.isfinite(norms['gradient_norm']) & jnp.isfinite(norms['update_norm'])",
    "jnp.isfinite(norms['gradient_norm']) & jnp.isfinite(norms['update_norm'])", _TEST_STEP,
  ),
  Fault(
    'a step whose gradient is infinite is made where clipping makes it finite', 'all or nothing', _STEP,
    'make_step.step',
    "jnp.isfinite(value) & jnp.isfinite(norms['gradient_norm']) & jnp.isfinite(norms['update_norm'])",
    "jnp.isfinite(value) & jnp.isfinite(norms['update_norm'])", _TEST_STEP,
  ),
  Fault(
    'a step whose update alone is not finite is made', 'all or nothing', _STEP, 'make_step.step',
    "jnp.isfinite(value) & jnp.isfinite(norms['gradient_norm']) & jnp.isfinite(norms['update_norm'])",
    "jnp.isfinite(value) & jnp.isfinite(norms['gradient_norm'])", _TEST_STEP,
  ),
  Fault(
    'a skipped step moves the batch statistics', 'all or nothing', _STEP, 'make_step.step',
    'state._replace(window=window)', 'state._replace(window=window, statistics=found.statistics)', _TEST_WIRING,
    techniques=('batch normalization',),
  ),
  Fault(
    'a skipped step moves the draw of t', 'all or nothing', _STEP, 'make_step.step', 'state._replace(window=window)',
    'state._replace(window=window, '
    'times=experiment.times.update(state.times, draws.t, found.rows_loss, cross_mean))', _TEST_WIRING,
    techniques=('importance-sampled times',),
  ),
  Fault(
    "a skipped step moves the optimizer's state", 'all or nothing', _STEP, 'make_step.step',
    'state._replace(window=window)', 'state._replace(window=window, optimizer=optimizer)', _TEST_WIRING,
  ),
  Fault(
    'a window that begins with a skipped step keeps the sums before it', 'all or nothing', _STEP, 'make_step.step',
    'kept = state._replace(window=window)', 'kept = state', _TEST_STEP,
  ),
  # order
  Fault(
    'the averages take the weights before the update', 'order', _STEP, 'make_step.step',
    'a.update(state.averages[n], params)', 'a.update(state.averages[n], state.params)', _TEST_STEP,
    techniques=('exponential moving average of the weights',),
  ),
  Fault(
    'the learning rate that a plateau reduced is logged and not used', 'order', _STEP, 'make_step.step',
    'learning_rate=rate', 'learning_rate=experiment.optimizer.learning_rate(state.optimizer)', _TEST_STEP,
    techniques=('reduced learning rate on a plateau',),
  ),
  Fault(
    'a window of metrics begins with its last step', 'record', _STEP, 'make_step.step',
    'state.step % experiment.log_every == 0', '(state.step + 1) % experiment.log_every == 0', _TEST_STEP,
  ),
  Fault(
    'the parts of t in the loss by noise level are numbered from the noisy end', 'record', _STEP, 'make_step.step',
    '(draws.t * BUCKETS).astype(jnp.int32)', '((1 - draws.t) * BUCKETS).astype(jnp.int32)', _TEST_STEP,
  ),
  # recomputed statistics
  Fault(
    'the recomputed batch statistics are those of the last batch', 'weights', _STEP,
    'make_recompute_statistics.recompute_statistics.one', 'statistics_decay=i / (i + 1)', 'statistics_decay=0.0',
    _TEST_STATISTICS, techniques=('batch normalization',),
  ),
  Fault(
    'the batch statistics of an evaluation are recomputed on the weights as trained', 'weights', _STEP,
    'make_recompute_statistics.recompute_statistics', 'evaluation_parameters(experiment, state)', 'state.params',
    _TEST_STATISTICS, techniques=('batch normalization',),
  ),
  Fault(
    'the batch statistics of an evaluation are recomputed with dropout on', 'weights', _STEP,
    'make_recompute_statistics.recompute_statistics.one', 'update_statistics=True',
    'keys=draws.dropout, update_statistics=True', _TEST_STATISTICS, techniques=('batch normalization', 'dropout'),
  ),
  # the gradient: keys
  Fault(
    'dropout draws from the stream of the noise', 'keys', _GRADIENT, 'draw', "('dropout', 'term')",
    "('noise', 'term')", _TEST_WIRING, techniques=('dropout',),
  ),
  Fault(
    'the terms of the loss draw from the stream of dropout', 'keys', _GRADIENT, 'draw', "('dropout', 'term')",
    "('dropout', 'dropout')", _TEST_WIRING, techniques=('Jacobian penalty', 'sliced score matching'),
  ),
  Fault(
    'the augmentation draws from the stream of the noise', 'keys', _GRADIENT, 'take_batch',
    "row_keys(state, 'augmentation', rows)", "row_keys(state, 'noise', rows)", _TEST_WIRING,
  ),
  Fault(
    'all devices draw the same for their rows', 'keys', _GRADIENT, 'row_keys', 'rows.index',
    'jnp.arange(rows.index.shape[0])', _TEST_DEVICES,
  ),
  Fault(
    'the draws of a batch follow the step, so that those before a rollback come again', 'keys', _GRADIENT,
    'stream_key', 'state.batches_seen', 'state.step', (*_TEST_GUARDED, 'tests/training/test_step.py'),
    techniques=('spike guard with rollback',),
  ),
  Fault(
    'what all rows share is dropped by one mask in all steps', 'dropout', _GRADIENT, 'make_loss',
    "stream_key(state, 'dropout')", "rng.stream(state.seed, 'dropout')", _TEST_WIRING, techniques=('DropConnect',),
  ),
  Fault(
    'dropout has one mask for all steps', 'dropout', _GRADIENT, 'draw', 'row_keys(state, purpose, rows)',
    "rng.row_keys(rng.stream(state.seed, purpose), rows.index) if purpose == 'dropout' else "
    'row_keys(state, purpose, rows)', _TEST_WIRING, techniques=('dropout',),
  ),
  # the gradient: order and factors
  Fault(
    'the progress of the draw of t counts what was rolled back', 'order', _GRADIENT, 'draw',
    'state.step / experiment.num_steps', 'state.batches_seen / experiment.num_steps', _TEST_STEP,
    techniques=('timestep curriculum by progress',),
  ),
  Fault(
    'the progress of a curriculum counts what was rolled back', 'order', _GRADIENT, 'take_batch',
    'state.step / experiment.num_steps', 'state.batches_seen / experiment.num_steps',
    ('tests/data/test_curriculum.py', 'tests/training/test_step.py'),
    techniques=('curriculum by class', 'curriculum by difficulty'),
  ),
  Fault(
    "a curriculum's transformation never reaches the loss", 'order', _GRADIENT, 'take_batch',
    'return batch if curriculum is None else curriculum.transform(batch, progress)', 'return batch',
    ('tests/data/test_curriculum.py', 'tests/training/test_step.py'), techniques=('curriculum by resolution',),
  ),
  Fault(
    'the importance of a row never reaches the loss', 'order', _GRADIENT, 'make_loss.loss',
    'jnp.mean(draws.importance * rows_loss)', 'jnp.mean(rows_loss)', _TEST_STEP,
    techniques=('importance-sampled times',),
  ),
  Fault(
    'the factor of a term never reaches the loss', 'order', _GRADIENT, 'make_loss.loss', 'factor * terms[name]',
    'terms[name]', _TEST_STEP, techniques=('L1 penalty', 'L2 penalty', 'Jacobian penalty'),
  ),
  Fault(
    'the network is never told what an augmentation did', 'data', _GRADIENT, 'make_loss',
    'Conditioning(batch.condition, batch.augment_label)',
    'Conditioning(batch.condition, jnp.zeros_like(batch.augment_label))', _TEST_STEP,
    techniques=('non-leaky conditioned augmentation',),
  ),
  Fault(
    'a learned schedule follows the gradient of the loss and not of its square', 'factors', _GRADIENT, 'whole',
    '2 * draws.importance * rows_loss * g', 'draws.importance * g', _TEST_SCHEDULE,
    techniques=('learned noise schedule',),
  ),
  Fault(
    'the gradient of a learned schedule never reaches it', 'order', _GRADIENT, 'whole',
    'gradient = gradient._replace(schedule=schedule)', 'gradient = gradient._replace()', _TEST_SCHEDULE,
    techniques=('learned noise schedule',),
  ),
  Fault(
    'the gradient of micro-batches is their sum', 'factors', _GRADIENT, 'accumulated.one', 'a + b / count', 'a + b',
    _TEST_PARTS, techniques=('gradient accumulation',),
  ),
  Fault(
    'the batch statistics of all micro-batches but the last are lost', 'weights', _GRADIENT, 'accumulated.one',
    'state._replace(statistics=statistics)', 'state', _TEST_PARTS,
    techniques=('gradient accumulation', 'batch normalization'),
  ),
  Fault(
    'the square of the gradient in the noise scale is biased by its variance', 'factors', _GRADIENT,
    'noise_estimates', '(rows * large - few * small) / (rows - few)', 'large', _TEST_PARTS,
    techniques=('gradient noise scale',),
  ),
  # the state
  Fault(
    'what is evaluated is the weights as trained, though there is an average', 'weights', _STATE,
    'evaluation_parameters', 'experiment.averages[name].read(state.averages[name])',
    'experiment.optimizer.read(state.optimizer, state.params)', _TEST_WIRING,
    techniques=('exponential moving average of the weights',),
  ),
  Fault(
    'what is evaluated without an average is where the gradient was taken', 'weights', _STATE,
    'evaluation_parameters', 'experiment.optimizer.read(state.optimizer, state.params)', 'state.params', _TEST_STEP,
    techniques=('schedule-free averaging',),
  ),
  Fault(
    'the evaluation parameters meet the batch statistics of training', 'weights', _STATE, 'weights',
    'state.evaluation_statistics', 'state.statistics', _TEST_STATISTICS, techniques=('batch normalization',),
  ),
  Fault(
    'a rollback sees the batches of the spike again', 'order', _STATE, 'gone_back', 'batches_seen=batches_seen',
    'batches_seen=restored.batches_seen', _TEST_GUARDED, techniques=('spike guard with rollback',),
  ),
  # the experiment
  Fault(
    'without a name the weights as trained are evaluated and not the first average', 'weights', _EXPERIMENT,
    'evaluated_average', "next(iter(experiment.averages), '') if name is None else name", "name or ''",
    _TEST_EXPERIMENT, techniques=('exponential moving average of the weights',),
  ),
  Fault(
    'x0 is clipped to [-1, 1] also where the data is standardized', 'factors', _EXPERIMENT, 'fitted',
    'clip if one is clip_x0 else one', 'one', _TEST_EXPERIMENT,
    techniques=('standardized data', 'static thresholding of x0'),
  ),
  Fault(
    'the number of steps in a dispatch reaches nothing', 'experiments', _EXPERIMENT, 'Numbers.loop',
    "('seed', 'num_steps', 'batch_size', 'steps_per_dispatch', 'log_every', 'validate_every')",
    "('seed', 'num_steps', 'batch_size', 'log_every', 'validate_every')", _TEST_EXPERIMENT,
  ),
  # callbacks
  Fault(
    'early stopping follows the loss of training', 'data', _CALLBACKS, 'early_stopping', "'validation/eps'",
    "'train/eps'", _TEST_CALLBACKS, techniques=('early stopping on held-out loss',),
  ),
  Fault(
    'the patience is a share of the step of the best', 'factors', _CALLBACKS, 'early_stopping.update',
    'max(patience, share * look.step)', "max(patience, share * state['since'])", _TEST_CALLBACKS,
    techniques=('early stopping on held-out loss',),
  ),
  Fault(
    'the patience is not counted anew after a reduction', 'order', _CALLBACKS, 'reduce_on_plateau.update',
    "{'scale': scale, 'since': look.step}", "{'scale': scale}", _TEST_CALLBACKS,
    techniques=('reduced learning rate on a plateau',),
  ),
  Fault(
    'the best checkpoint is that of the least training loss', 'data', _CALLBACKS, 'checkpoint', "'validation/eps'",
    "'train/eps'", _TEST_CALLBACKS,
  ),
  Fault(
    'an improvement between two periodic saves is not saved', 'order', _CALLBACKS, 'checkpoint.update',
    "improved or look.step - state['last_save'] >= every", "look.step - state['last_save'] >= every", _TEST_CALLBACKS,
  ),
  Fault(
    'the snapshots of all averages hold the evaluated one', 'weights', _CALLBACKS, 'snapshots.update',
    'look.parameters(name)', 'look.parameters()', _TEST_GUARDED,
  ),
  Fault(
    'copies are sought among the held-out data while training', 'data', _CALLBACKS, 'watch_memorization.update',
    'memorization.watch(train, held_out, mirrored=mirrored)', 'memorization.watch(held_out, train, mirrored=mirrored)',
    ('tests/runs/test_look.py', 'tests/training/test_callbacks.py'),
  ),
  Fault(
    'the divergence guard counts all skipped steps as if they were in a row', 'factors', _CALLBACKS,
    'divergence_guard.update', "look.row['skipped_in_a_row']", "look.row['skipped']", _TEST_CALLBACKS,
    techniques=('divergence guard',),
  ),
  Fault(
    'the divergence guard compares a loss with itself', 'factors', _CALLBACKS,
    'divergence_guard.update', "state['first'] if state['first'] is not None else loss", 'loss', _TEST_CALLBACKS,
    techniques=('divergence guard',),
  ),
  # the spike guard
  Fault(
    'spiked losses enter what the guard compares with', 'all or nothing', _GUARDS, 'spike_guard.assess',
    'not high', 'math.isfinite(value)', _TEST_GUARDS, techniques=('spike guard with rollback',),
  ),
  Fault(
    'a spiked gradient norm enters what the guard compares with', 'all or nothing', _GUARDS, 'spike_guard.assess',
    """
    if len(past) >= minimum and norm > norm_factor * statistics.median(past):
      spiked = spiked or f'a gradient norm of {norm:.3g}'
    else:
      history['norm'] = [*past, norm][-window:]
    """,
    """
    if len(past) >= minimum and norm > norm_factor * statistics.median(past):
      spiked = spiked or f'a gradient norm of {norm:.3g}'
    history['norm'] = [*past, norm][-window:]
    """,
    _TEST_GUARDS, techniques=('spike guard with rollback',),
  ),
  Fault(
    'the guard asks for a checkpoint to go back to in the middle of a spike', 'order', _GUARDS, 'spike_guard.update',
    'calm and look.step % back == 0', 'look.step % back == 0', _TEST_GUARDS,
    techniques=('spike guard with rollback',),
  ),
  Fault(
    'the guard goes back to a checkpoint that may lie in the spike', 'order', _GUARDS, 'spike_guard.update',
    'Rollback(back, reason)', 'Rollback(0, reason)', _TEST_GUARDS, techniques=('spike guard with rollback',),
  ),
  Fault(
    'the spike guard passes over a row in which nothing was finite', 'all or nothing', _GUARDS, '_logs',
    "{'all': math.inf}", '{}', _TEST_GUARDS, techniques=('spike guard with rollback',),
  ),
  # validation and batches
  Fault(
    'the training loss of a validation is computed on the validation split', 'data', _PROGRAM, 'make_validate',
    'data.shown(rows)', 'data.shown(data.split.validation)', _TEST_PROGRAM_TOO,
  ),
  Fault(
    'early stopping and the best checkpoint see the test split', 'data', _PROGRAM, 'make_validate',
    'data.shown(data.split.validation)', 'data.shown(data.split.test)', _TEST_WIRING,
  ),
  Fault(
    'the training examples of a validation are the first rows of their split', 'data', _PROGRAM, 'make_validate',
    'splits.evenly(data)', 'data.split.train[: len(data.split.validation)]', _TEST_PROGRAM_TOO,
  ),
  Fault(
    'the held-out losses are called those of training, and the other way round', 'data', _PROGRAM,
    'make_validate.validate', '(seen, held_out)', '(held_out, seen)', _TEST_PROGRAM_TOO,
  ),
  Fault(
    'the two splits of a validation have noise of their own', 'keys', _PROGRAM, 'make_validate.validate',
    'np.arange(len(p[0]))', '(p is held_out) * len(seen[0]) + np.arange(len(p[0]))', _TEST_PROGRAM_TOO,
  ),
  Fault(
    'the batch statistics of the evaluation parameters are not recomputed', 'weights', _PROGRAM,
    'SingleRun.recompute_statistics', 'self._state.statistics', 'self._state.statistics is None', _TEST_STATISTICS,
    techniques=('batch normalization',),
  ),
  Fault(
    'every seed sees the examples in the same order', 'keys', _PROGRAM, 'make_batches',
    'Order(experiment.seed, data.split.train)', 'Order(0, data.split.train)', _TEST_PROGRAM_TOO,
  ),
  Fault(
    'the validation examples are trained on', 'data', _PROGRAM, 'make_batches',
    'Order(experiment.seed, data.split.train)',
    'Order(experiment.seed, np.concatenate([data.split.train, data.split.validation]))', _TEST_WIRING,
  ),
  # checkpoints
  Fault(
    'a checkpoint without a metric counts as the best', 'weights', _CHECKPOINT, 'Checkpoints.save',
    'float(metric) if math.isfinite(metric) else math.inf', 'float(metric) if math.isfinite(metric) else 0.0',
    _TEST_CHECKPOINT,
  ),
  Fault(
    'a checkpoint counts before the rows before it are on the disk', 'order', _CHECKPOINT, 'Checkpoints.save.finish',
    """
    before()
    if processes.is_writer():
      trees.check(path, tree)
      write_manifest(path)
    """,
    """
    if processes.is_writer():
      trees.check(path, tree)
      write_manifest(path)
    before()
    """,
    _TEST_CHECKPOINT,
  ),
  Fault(
    'what was saved in a spike stays one to go back to', 'order', _CHECKPOINT, 'Checkpoints.untag',
    'number <= beyond', 'True', _TEST_CHECKPOINT, techniques=('spike guard with rollback',),
  ),
  Fault(
    'a file of a checkpoint whose content changed is taken for whole', 'record', 'diffusion/training/manifest.py',
    'find_fault', 'wanted.get(name) != found.get(name)', '(name in wanted) != (name in found)', _TEST_CHECKPOINT,
  ),
]  # fmt: skip
