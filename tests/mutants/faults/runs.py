"""Faults of `diffusion/runs/`."""

from tests.mutants.fault import Fault

_EVALUATING = 'diffusion/runs/evaluating.py'
_LOADING = 'diffusion/runs/loading.py'
_LOOK = 'diffusion/runs/look.py'
_LOOP = 'diffusion/runs/loop.py'
_RUN = 'diffusion/runs/run.py'
_POPULATION = 'diffusion/runs/population.py'
_COMPARE = 'diffusion/runs/compare.py'
_SHOWING = 'diffusion/runs/showing.py'
_RANGE = 'diffusion/runs/lr_range.py'
_TEST_EVALUATING = ('tests/runs/test_evaluating.py',)
_TEST_JUDGED = ('tests/runs/test_judged.py',)
_TEST_WIRING = ('tests/test_wiring.py',)
_TEST_SHOWING = ('tests/runs/test_samples.py', 'tests/runs/test_rehearsal.py')
_TEST_LOOK = ('tests/runs/test_look.py',)
_TEST_LOOP = ('tests/runs/test_loop.py',)
_TEST_GUARDED = ('tests/runs/test_guarded_runs.py',)
_TEST_PROGRAM = ('tests/runs/test_population_program.py',)
_TEST_COMPARE = ('tests/runs/test_compare.py',)
_TEST_RANGE = ('tests/runs/test_lr_range.py',)
_TEST_LOADED = (*_TEST_LOOK, 'tests/test_conditions.py')
_TEST_STATISTICS = (
  'tests/runs/test_loop.py', 'tests/runs/test_guarded_runs.py', 'tests/training/test_batch_statistics.py',
)  # fmt: skip
_TEST_RUNS = ('tests/test_runs.py',)

FAULTS = [
  # evaluating
  Fault(
    'the test loss in the report is computed on the validation split', 'data', _EVALUATING, '_loss_findings',
    'run.data.shown_test', 'run.data.shown(run.data.split.validation)', (*_TEST_EVALUATING, *_TEST_WIRING),
  ),
  Fault(
    'the validation loss in the report is that of training', 'data', _EVALUATING, '_loss_findings',
    "row['validation/eps']", "row['train/eps']", _TEST_EVALUATING,
  ),
  Fault(
    'the losses of the test and the validation split are swapped in the report', 'data', _EVALUATING,
    '_loss_findings', 'return found',
    """
    if len(found) > 2:
      found[:2] = found[1]._replace(name=found[0].name), found[0]._replace(name=found[1].name)
    return found
    """,
    _TEST_EVALUATING,
  ),
  Fault(
    'the interval of the test loss is over noise levels and not over examples', 'formula', _EVALUATING,
    '_loss_findings', 'run.losses(weights, *test, np.arange(len(test[0]))).mean(1)',
    'run.losses(weights, *test, np.arange(len(test[0]))).mean(0)', _TEST_EVALUATING,
  ),
  Fault(
    'all test examples are judged on the noise of the first one', 'keys', _EVALUATING, '_loss_findings',
    'np.arange(len(test[0]))', 'np.zeros(len(test[0]), int)', (*_TEST_EVALUATING, *_TEST_WIRING),
  ),
  Fault(
    'the latest checkpoint is judged and not the best', 'weights', _EVALUATING, 'evaluate_best',
    "restore(checkpoints, run.target, 'best')", "restore(checkpoints, run.target, 'latest')", _TEST_RUNS,
  ),
  Fault(
    'the samples and losses that a report judges are of the weights as trained', 'weights', _EVALUATING, '_judge',
    'states.weights(experiment, devices.replicate(best.state))',
    'devices.replicate((best.state.params, best.state.evaluation_statistics, best.state.seed))', _TEST_WIRING,
    techniques=('exponential moving average of the weights',),
  ),
  Fault(
    'metrics that look into the network see the weights as trained', 'weights', _EVALUATING, '_inputs',
    'make_network(experiment.model, experiment.diffusion, data.units, weights)',
    'make_network(experiment.model, experiment.diffusion, data.units, '
    '(devices.replicate(best.state.params), *weights[1:]))', _TEST_WIRING,
  ),
  Fault(
    "samples of an evaluation are drawn from the run's seed, whatever seed is asked for", 'keys', _EVALUATING,
    '_inputs', '(*weights[:2], devices.replicate(jnp.asarray(request.seed, jnp.uint32)))', 'weights',
    _TEST_EVALUATING,
  ),
  Fault(
    'samples of another seed are taken for those asked for', 'keys', _EVALUATING, '_inputs', 'request.seed', '0',
    _TEST_EVALUATING, at=1,
  ),
  Fault(
    'samples of another sampler are taken for those asked for', 'record', 'diffusion/runs/samples.py', '_of',
    "one['identity'] == identity",
    "all(one['identity'][name] == identity[name] for name in ('checkpoint', 'config', 'code', 'seed'))",
    _TEST_EVALUATING,
  ),
  Fault(
    'the rollbacks in a report are those before its best checkpoint', 'record', _EVALUATING, '_judge',
    "checkpoints.last_record()['callbacks']", "best.record['callbacks']", _TEST_GUARDED,
    techniques=('spike guard with rollback',),
  ),
  Fault(
    'fewer samples are drawn than asked for where the classes do not divide them', 'record', _EVALUATING, '_apply',
    '-(-request.samples // run.data.kinds)', 'request.samples // run.data.kinds', _TEST_EVALUATING,
  ),
  Fault(
    "another judgment takes the place of the run's own results", 'record', _EVALUATING, '_told', 'not again', 'True',
    _TEST_EVALUATING,
  ),
  Fault(
    'the speed of a run is that of its fastest row', 'record', _EVALUATING, '_speed', 'np.median(rates)',
    'np.max(rates)', ('tests/runs/test_traces.py', *_TEST_EVALUATING),
  ),
  Fault(
    'an evaluation that was killed goes on with what one asked otherwise has found', 'record',
    'diffusion/runs/judged.py', 'kept_judgment', 'request._asdict()', '{}', _TEST_JUDGED,
  ),
  Fault(
    "the nearest training image shown is that of the data set's row and not of the split's", 'data', _SHOWING,
    'draw_pictures.strip', 'run.data.split.train[index[closest]]', 'index[closest]', _TEST_SHOWING,
  ),
  Fault(
    'the picture of likely copies shows the samples that are farthest from the training set', 'record', _SHOWING,
    'draw_pictures.strip', 'np.argsort(ratio)[:24]', 'np.argsort(ratio)[-24:]', _TEST_SHOWING,
  ),
  # loading
  Fault(
    'a loaded run denoises with the weights as trained', 'weights', _LOADING, 'load',
    'parameters=states.evaluation_parameters(experiment, best.state)', 'parameters=best.state.params', _TEST_LOADED,
    techniques=('exponential moving average of the weights',),
  ),
  Fault(
    'a loaded denoiser has the batch statistics of training', 'weights', _LOADING, 'Trained.denoiser',
    'self.state.evaluation_statistics', 'self.state.statistics', _TEST_STATISTICS,
    techniques=('batch normalization',),
  ),
  Fault(
    'samples of a loaded run do not depend on the seed asked for', 'keys', _LOADING, 'Trained.sample',
    'jnp.asarray(seed, jnp.uint32)', 'jnp.asarray(self.state.seed, jnp.uint32)', (*_TEST_GUARDED, *_TEST_RUNS),
  ),
  # looks and the loop
  Fault(
    'samples beyond those that a look has begin with the noise of the first ones', 'keys', _LOOK,
    'LookAtRun.samples', 'self._run.sample(self.weights(), conditions.take(condition, numbers), numbers)',
    'self._run.sample(self.weights(), conditions.take(condition, numbers), numbers - have)', _TEST_LOOK,
  ),
  Fault(
    'a look between two validations sees the batch statistics of the one before', 'weights', _LOOK,
    'LookAtRun.weights', 'self.recompute_statistics()', '...', _TEST_STATISTICS,
    techniques=('batch normalization',),
  ),
  Fault(
    'a validation sees the batch statistics of the one before', 'weights', _LOOP, 'InTraining._ask',
    'program.recompute_statistics(k)', '...', _TEST_STATISTICS,
    techniques=('batch normalization',),
  ),
  Fault(
    "a guard's checkpoint counts as the best", 'weights', _LOOP, 'InTraining._act',
    'asked[Save].metric if Save in asked else math.inf', 'asked[Save].metric if Save in asked else 0.0', _TEST_LOOP,
  ),
  Fault(
    'what a guard asks to remember is not what it may go back to', 'order', _LOOP, 'InTraining._act',
    'guarded=Remember in asked', 'guarded=Rollback in asked', _TEST_GUARDED,
    techniques=('spike guard with rollback',),
  ),
  Fault(
    'the speed of a row is of the time since the start began', 'record', _LOOP, 'InTraining._row',
    'now - self._lap', 'now - self._begin', _TEST_LOOP,
  ),
  # the run
  Fault(
    'a run that went back sees the batches of the spike again', 'order', _RUN, 'Run.go_back',
    "Position(found.record['step'], self.position.batches_seen)", "Position(found.record['step'], found.number)",
    _TEST_GUARDED, techniques=('spike guard with rollback',),
  ),
  Fault(
    'the guard forgets at a rollback why it went back', 'order', _RUN, 'Run.go_back',
    "found.record['callbacks'] | kept", "kept | found.record['callbacks']", _TEST_GUARDED,
    techniques=('spike guard with rollback',),
  ),
  Fault(
    'a restart forgets what callbacks have counted', 'order', _RUN, 'Run.resume',
    "self.callback_states |= found.record['callbacks']", 'pass', _TEST_GUARDED,
    techniques=('early stopping on held-out loss', 'reduced learning rate on a plateau'),
  ),
  Fault(
    'an extension of a run that stopped early counts from its planned end', 'record',
    'diffusion/runs/training.py', 'to_train', 'num_steps=step + extend', 'num_steps=run.num_steps + extend',
    (*_TEST_LOOP, *_TEST_RUNS),
  ),
  # the range test
  Fault(
    'the rising rate does not reach its highest', 'factors', _RANGE, 'rising',
    'jnp.asarray(count) / (steps - 1)', 'jnp.asarray(count) / steps', _TEST_RANGE,
    techniques=('learning-rate range test',),
  ),
  Fault(
    'the slope of the loss is against the rate and not its logarithm', 'factors', _RANGE, 'suggest',
    'np.gradient(smooth, np.log(rates))', 'np.gradient(smooth, rates)', _TEST_RANGE,
    techniques=('learning-rate range test',),
  ),
  Fault(
    'the rate that a range test logs is that of the update after its loss', 'record', _RANGE, 'train_rising',
    "float(metrics['learning_rate'])", 'float(schedule(seen))', _TEST_RANGE,
    techniques=('learning-rate range test',),
  ),
  # populations
  Fault(
    'all members of a population begin with the same weights', 'keys', _POPULATION, 'first_states',
    'run.experiment.seed', 'runs[0].experiment.seed', _TEST_PROGRAM,
  ),
  Fault(
    'all members of a population see the examples in one order', 'keys', _POPULATION, 'Population.__init__',
    'Order(run.experiment.seed, run.data.split.train)',
    'Order(runs[0].experiment.seed, run.data.split.train)', _TEST_PROGRAM,
  ),
  Fault(
    'the members of a population are standardized by the first one', 'data', _POPULATION,
    'Population.__init__.of_each.one', 'first.units._replace(**member.units)', 'first.units', _TEST_PROGRAM,
    techniques=('standardized data',),
  ),
  Fault(
    'a population calls its held-out losses those of training', 'data', _POPULATION, 'Population.__init__',
    '(splits.evenly(run.data), run.data.split.validation)', '(run.data.split.validation, splits.evenly(run.data))',
    _TEST_PROGRAM,
  ),
  Fault(
    'a member of a population is validated by its weights as trained', 'weights', _POPULATION, '_measure',
    'states.weights(experiment, state)', '(state.params, state.evaluation_statistics, state.seed)', _TEST_PROGRAM,
    techniques=('exponential moving average of the weights',),
  ),
  Fault(
    'the two splits of a member are validated on noise of their own', 'keys', _POPULATION, 'Population.validate',
    '[[np.arange(len(one)) for one in pair] for pair in self._evaluation_rows]',
    '[np.split(np.arange(sum(map(len, pair))), [len(pair[0])]) for pair in self._evaluation_rows]', _TEST_PROGRAM,
  ),
  # side by side
  Fault(
    'an effect is that of the baseline over the variant', 'record', _COMPARE, '_effect',
    'statistics.paired_difference(treated, base)', 'statistics.paired_difference(base, treated)', _TEST_COMPARE,
  ),
  Fault(
    'runs are paired by their places and not by their seeds', 'data', _COMPARE, 'effects',
    '[(run, base[run.seed]) for run in paired]', 'list(zip(paired, groups[baseline], strict=False))', _TEST_COMPARE,
  ),
  Fault(
    'the p-values that are called adjusted are not', 'formula', _COMPARE, 'effects',
    'statistics.holm([effect.p for effect in tested])', '[effect.p for effect in tested]', _TEST_COMPARE,
  ),
]  # fmt: skip
