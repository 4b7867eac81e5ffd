"""Faults of `experiments/`: numbers that reach nothing, arms that are off, what a header says and the file does not."""

from tests.mutants.fault import Fault

_CIFAR10 = 'experiments/cifar10.py'
_DIGITS = 'experiments/digits.py'
_DISJOINT = 'experiments/disjoint.py'
_MIXTURE = 'experiments/mixture.py'
_MNIST = 'experiments/mnist.py'
_EDM = 'experiments/mnist_edm.py'
_FLOW = 'experiments/mnist_flow.py'
_VDM = 'experiments/mnist_vdm.py'
_OVERFIT = 'experiments/overfit.py'
_REGULARIZED = 'experiments/regularized.py'
_ABLATION = 'experiments/ablation.py'
_TESTS = ('tests/test_experiments.py',)
_TEST_ARMS = ('tests/test_experiments.py', 'tests/test_ablation.py')
_LABEL_DROPOUT = ('label dropout for classifier-free guidance',)
_EMA = ('exponential moving average of the weights',)


def _flag(
  file: str, number: str, old: str, new: str, techniques: tuple[str, ...] = (), at: int = -1
) -> Fault:
  """A number of an experiment's configuration that reaches nothing: its default stands in its place."""
  stem = file.removeprefix('experiments/').removesuffix('.py')
  return Fault(
    f'{number} of {stem} reaches nothing',
    'experiments',
    file,
    'build',
    old,
    new,
    _TESTS,
    at,
    techniques,
  )


_ADAMW = 'chains.adamw(rate, c.weight_decay, c.clip_norm)'
_CONSTANT = 'chains.adamw(schedules.constant(c.learning_rate), c.weight_decay, c.clip_norm)'
_RATE = (
  'schedules.warmup_cosine(c.learning_rate, c.num_steps, c.warmup_steps, c.final_learning_rate)'
)

FAULTS = [
  # digits
  _flag(_DIGITS, 'dropout', 'c.dropout', '0.1', ('dropout',)),
  _flag(_DIGITS, 'label_dropout', 'augment.label_dropout(c.label_dropout)', 'augment.label_dropout(0.1)',
        _LABEL_DROPOUT),
  _flag(_DIGITS, 'weight_decay', _ADAMW, 'chains.adamw(rate, 1e-2, c.clip_norm)', ('decoupled weight decay',)),
  _flag(_DIGITS, 'clip_norm', _ADAMW, 'chains.adamw(rate, c.weight_decay)', ('clipping by global norm',)),
  _flag(_DIGITS, 'ema_decay', 'averaging.ema(c.ema_decay)', 'averaging.ema(0.99)', _EMA),
  _flag(_DIGITS, 'guidance', 'c.guidance', '1.5', ('classifier-free guidance',)),
  _flag(_DIGITS, 'patience', 'callbacks.early_stopping(patience=c.patience)', 'callbacks.early_stopping(patience=200)',
        ('early stopping on held-out loss',)),
  _flag(_DIGITS, 'warmup_steps', 'c.warmup_steps', '30', ('warm-up and cosine learning rate',)),
  _flag(_DIGITS, 'train_limit', 'splits.Fractions(c.validation_fraction, c.test_fraction, c.train_limit)',
        'splits.Fractions(c.validation_fraction, c.test_fraction)'),
  Fault(
    'labels are never dropped from the digits, whose samples are guided', 'experiments', _DIGITS, 'build',
    'augment.chain(augment.label_dropout(c.label_dropout))', 'augment.chain()', ('tests/test_runs.py', *_TESTS),
    techniques=_LABEL_DROPOUT,
  ),
  Fault(
    'the shares of the test and the validation split of the digits are swapped', 'data', _DIGITS, 'build',
    'splits.Fractions(c.validation_fraction, c.test_fraction, c.train_limit)',
    'splits.Fractions(c.test_fraction, c.validation_fraction, c.train_limit)', _TESTS,
  ),
  # cifar10
  _flag(_CIFAR10, 'dropout', 'c.dropout', '0.1', ('dropout',)),
  _flag(_CIFAR10, 'ema_decay', 'averaging.ema(c.ema_decay)', 'averaging.ema(0.9999)', _EMA),
  _flag(_CIFAR10, 'patience', 'c.patience', '200_000', ('early stopping on held-out loss',)),
  _flag(_CIFAR10, 'warmup_steps', 'c.warmup_steps', '5_000'),
  _flag(_CIFAR10, 'weight_decay', 'c.weight_decay', '0.0', ('decoupled weight decay',)),
  _flag(_CIFAR10, 'clip_norm', 'c.clip_norm', '1.0', ('clipping by global norm',)),
  Fault(
    'the images of CIFAR-10 are not flipped, as the header says they are', 'experiments', _CIFAR10, 'build',
    'augment.chain(augment.flip())', 'augment.chain()', _TESTS, techniques=('random horizontal flips',),
  ),
  Fault(
    'copies of flipped images of CIFAR-10 are not found', 'experiments', _CIFAR10, 'build',
    'memorization.nearest_neighbor_ratio(mirrored=True)', 'memorization.nearest_neighbor_ratio()', _TESTS,
  ),
  Fault(
    'the loss of CIFAR-10 is uniform in v, for a network that predicts eps', 'factors', _CIFAR10, 'build',
    "weights.uniform('eps')", "weights.uniform('v')", _TESTS, techniques=('uniform loss weight',),
  ),
  # mnist
  _flag(_MNIST, 'shift', 'augment.shift(c.shift)', 'augment.shift(2)', ('random shifts',)),
  _flag(_MNIST, 'min_snr_gamma', 'weights.min_snr(c.min_snr_gamma)', 'weights.min_snr(5.0)',
        ('min-SNR loss weight',)),
  _flag(_MNIST, 'final_learning_rate', _RATE,
        'schedules.warmup_cosine(c.learning_rate, c.num_steps, c.warmup_steps, 1e-5)',
        ('warm-up and cosine learning rate',)),
  _flag(_MNIST, 'label_dropout', 'c.label_dropout', '0.1', _LABEL_DROPOUT),
  _flag(_MNIST, 'validation_fraction', 'splits.Fractions(c.validation_fraction)', 'splits.Fractions(0.02)'),
  Fault(
    'samples of MNIST are not guided', 'experiments', _MNIST, 'build', 'c.guidance', '1.0', _TESTS,
    techniques=('classifier-free guidance',),
  ),
  # mnist_edm
  _flag(_EDM, 'dropout', 'c.dropout', '0.1', ('dropout',)),
  _flag(_EDM, 'log_sigma_deviation', 'times.log_normal(c.log_sigma_mean, c.log_sigma_deviation)',
        'times.log_normal(c.log_sigma_mean)', ('log-normal noise levels',)),
  _flag(_EDM, 'weight_decay', _ADAMW, 'chains.adamw(rate, 1e-2, c.clip_norm)', ('decoupled weight decay',)),
  _flag(_EDM, 'guidance', 'c.guidance', '1.5', ('classifier-free guidance',)),
  Fault(
    "the preconditioning of EDM has the paper's deviation of data and not MNIST's", 'factors', _EDM, 'build',
    'parameterizations.edm(c.sigma_data)', 'parameterizations.edm()', _TESTS,
  ),
  Fault(
    "the loss weight of EDM has the paper's deviation of data and not MNIST's", 'factors', _EDM, 'build',
    'weights.edm(c.sigma_data)', 'weights.edm(0.5)', _TESTS, techniques=('EDM loss weight',),
  ),
  Fault(
    'labels are never dropped from MNIST in the run of EDM', 'experiments', _EDM, 'build',
    'augment.chain(augment.shift(c.shift), augment.label_dropout(c.label_dropout))',
    'augment.chain(augment.shift(c.shift))', ('tests/test_runs.py', *_TESTS), techniques=_LABEL_DROPOUT,
  ),
  Fault(
    'EDM samples at times that are uniform', 'experiments', _EDM, 'build', 'grid=grids.karras',
    'grid=grids.uniform_time', _TESTS,
  ),
  # mnist_flow
  _flag(_FLOW, 'warmup_steps', 'c.warmup_steps', '500', ('warm-up and cosine learning rate',)),
  _flag(_FLOW, 'weight_decay', _ADAMW, 'chains.adamw(rate, 1e-2, c.clip_norm)', ('decoupled weight decay',)),
  _flag(_FLOW, 'label_dropout', 'c.label_dropout', '0.1', _LABEL_DROPOUT),
  _flag(_FLOW, 'ema_decay', 'averaging.ema(c.ema_decay)', 'averaging.ema(0.999)', _EMA),
  _flag(_FLOW, 'time_deviation', 'times.logit_normal(c.time_mean, c.time_deviation)',
        'times.logit_normal(c.time_mean)', ('logit-normal times',)),
  Fault(
    'the loss of the flow is uniform in eps and not in the velocity', 'factors', _FLOW, 'build',
    "weights.uniform('velocity')", "weights.uniform('eps')", _TESTS, techniques=('uniform loss weight',),
  ),
  # mnist_vdm
  _flag(_VDM, 'log_snr_max', 'noise.learned(c.log_snr_min, c.log_snr_max)', 'noise.learned(c.log_snr_min, 13.3)',
        ('learned noise schedule',)),
  _flag(_VDM, 'likelihood_examples', 'bits_per_dim.likelihood(c.likelihood_examples)', 'bits_per_dim.likelihood(1000)'),
  _flag(_VDM, 'dropout', 'c.dropout', '0.1', ('dropout',)),
  _flag(_VDM, 'clip_norm', _ADAMW, 'chains.adamw(rate, c.weight_decay)', ('clipping by global norm',)),
  _flag(_VDM, 'patience', 'c.patience', '5_000', ('early stopping on held-out loss',)),
  Fault(
    'variational diffusion minimizes a denoising loss and not the bound', 'experiments', _VDM, 'build',
    'losses.weighted_bound(weights.uniform())', "losses.denoising(weights.uniform('v'))", _TESTS,
    techniques=('weighted variational bound',),
  ),
  # mixture
  _flag(_MIXTURE, 'dropout', 'mlp.mlp(c.width, c.depth, c.dropout)', 'mlp.mlp(c.width, c.depth)', ('dropout',)),
  _flag(_MIXTURE, 'weight_decay', _CONSTANT,
        'chains.adamw(schedules.constant(c.learning_rate), clip_norm=c.clip_norm)', ('decoupled weight decay',)),
  _flag(_MIXTURE, 'ema_decay', 'averaging.ema(c.ema_decay)', 'averaging.ema(0.99)', _EMA),
  _flag(_MIXTURE, 'patience', 'c.patience', '2_000', ('early stopping on held-out loss',)),
  Fault(
    'the mixture trains on all examples and not on a few', 'data', _MIXTURE, 'build',
    'splits.Fractions(0.25, 0.25, c.train_limit)', 'splits.Fractions(0.25, 0.25)', _TESTS,
  ),
  Fault(
    'the exact denoiser that the mixture is judged by is of other means', 'experiments', _MIXTURE, 'build',
    'analytic.gaussian_mixture(path, np.full(2, 0.5), means, np.ones(2))',
    'analytic.gaussian_mixture(path, np.full(2, 0.5), means / 2, np.ones(2))', _TESTS,
  ),
  # overfit
  _flag(_OVERFIT, 'dropout', 'c.dropout', '0.0', ('dropout',)),
  _flag(_OVERFIT, 'weight_decay', 'c.weight_decay', '0.0', ('decoupled weight decay',)),
  _flag(_OVERFIT, 'clip_norm', 'c.clip_norm', '1.0', ('clipping by global norm',)),
  _flag(_OVERFIT, 'looked_at_per_class', 'callbacks.watch_memorization(c.look_every, c.looked_at_per_class)',
        'callbacks.watch_memorization(c.look_every, 20)'),
  Fault(
    'all seeds of the overfitted run have the same hundred examples', 'data', _OVERFIT, 'build',
    "splits.Fractions(0.1, 0.1, c.train_limit, subset=f'seed {c.seed}')",
    'splits.Fractions(0.1, 0.1, c.train_limit)', _TESTS,
  ),
  Fault(
    'every seed of the overfitted run holds out other examples', 'data', _OVERFIT, 'build',
    "splits.Fractions(0.1, 0.1, c.train_limit, subset=f'seed {c.seed}')",
    "splits.Fractions(0.1, 0.1, c.train_limit, salt=f'seed {c.seed}')", _TESTS,
  ),
  # disjoint
  _flag(_DISJOINT, 'dropout', 'c.dropout', '0.1', ('dropout',)),
  _flag(_DISJOINT, 'weight_decay', 'c.weight_decay', '0.01', ('decoupled weight decay',)),
  _flag(_DISJOINT, 'patience', 'c.patience', '150', ('early stopping on held-out loss',)),
  _flag(_DISJOINT, 'sampling_steps', 'c.sampling_steps', '25'),
  Fault(
    'the two disjoint parts share all but one of their examples', 'data', _DISJOINT, 'build',
    'c.part * c.examples', 'c.part', _TESTS,
  ),
  # regularized
  _flag(_REGULARIZED, 'stochastic_depth', 'c.stochastic_depth', '0.05', ('stochastic depth',)),
  _flag(_REGULARIZED, 'augment_probability', 'c.augment_probability', '0.12',
        ('non-leaky conditioned augmentation',)),
  _flag(_REGULARIZED, 'patience_share', 'c.patience_share', '0.3', ('early stopping on held-out loss',)),
  _flag(_REGULARIZED, 'guidance', 'c.guidance', '1.5', ('classifier-free guidance',)),
  _flag(_REGULARIZED, 'weight_decay', _ADAMW, 'chains.adamw(rate, 1e-2, c.clip_norm)', ('decoupled weight decay',)),
  Fault(
    'the regularized digits have the dropout of the fine level at all levels', 'dropout', _REGULARIZED, 'build',
    '(c.dropout_fine, c.dropout_coarse)', 'c.dropout_fine', _TESTS, techniques=('dropout',),
  ),
  Fault(
    'labels are never dropped from the regularized digits', 'experiments', _REGULARIZED, 'build',
    'augment.label_dropout(c.label_dropout)', 'augment.label_dropout(0.0)', ('tests/test_runs.py', *_TESTS),
    techniques=_LABEL_DROPOUT,
  ),
  Fault(
    'copies among the regularized digits are counted and not dropped', 'data', _REGULARIZED, 'build',
    "cleaning.checked(data, copies='drop')", 'cleaning.checked(data)', _TESTS, techniques=('checks at the source',),
  ),
  Fault(
    'the shifts and rotations of the regularized digits leak', 'experiments', _REGULARIZED, 'build',
    'augment.conditioned(c.augment_probability, augment.shift(1), augment.rotate(10.0))',
    'augment.chain(augment.shift(1), augment.rotate(10.0))', _TESTS,
    techniques=('non-leaky conditioned augmentation',),
  ),
  # what the arms of the ablation share
  Fault(
    'the learning rate of the ablation does not warm up', 'experiments', _ABLATION, 'rate',
    'schedules.warmup_cosine(peak or c.learning_rate, c.num_steps, c.warmup_steps)',
    'schedules.warmup_cosine(peak or c.learning_rate, c.num_steps)', _TEST_ARMS,
    techniques=('warm-up and cosine learning rate',),
  ),
  Fault(
    'the arms that have a clipping of their own clip by the global norm', 'experiments', _ABLATION, 'update',
    "if 'clip' not in parts:\n  parts['clip'] = clipping.global_norm(c.clip_norm)",
    "parts['clip'] = clipping.global_norm(c.clip_norm)", _TEST_ARMS,
    techniques=('clipping by block', 'adaptive gradient clipping', 'clipping by value'),
  ),
  Fault(
    'the arms with a learning rate of their own have that of the baseline', 'experiments', _ABLATION, 'update',
    'learning_rate or rate(c)', 'rate(c)', _TEST_ARMS, techniques=('linear learning rate', 'one-cycle learning rate'),
  ),
  Fault(
    'the arms of the trajectory have no callbacks but the saves', 'experiments', _ABLATION, 'stopping',
    'return [callbacks.checkpoint(), *more]', 'return [callbacks.checkpoint()]', _TEST_ARMS,
    techniques=('spike guard with rollback', 'early stopping on held-out loss'),
  ),
  Fault(
    'the penalties of the ablation never reach the loss', 'experiments', _ABLATION, 'loss',
    "return {'denoise': (1.0, term or losses.denoising(weights.uniform('v')))} | more",
    "return {'denoise': (1.0, term or losses.denoising(weights.uniform('v')))}", _TEST_ARMS,
    techniques=('L1 penalty', 'L2 penalty', 'Jacobian penalty'),
  ),
  Fault(
    'train_limit of the ablation reaches nothing', 'experiments', _ABLATION, 'build',
    'splits.Fractions(limit=c.train_limit)', 'splits.Fractions()', _TEST_ARMS,
  ),
  Fault(
    'ema_decay of the ablation reaches nothing', 'experiments', _ABLATION, 'build', 'averaging.ema(c.ema_decay)',
    'averaging.ema(0.99)', _TEST_ARMS, techniques=_EMA,
  ),
  # arms
  Fault(
    'the arm dropout is off', 'experiments', _ABLATION, '', 'network(c, dropout=0.1)', 'network(c, dropout=0.0)',
    _TEST_ARMS, at=0, techniques=('dropout',),
  ),
  Fault(
    'the arm of Monte-Carlo dropout has no dropout', 'experiments', _ABLATION, '', 'network(c, dropout=0.1)',
    'network(c)', _TEST_ARMS, at=1, techniques=('Monte-Carlo dropout',),
  ),
  Fault(
    'the arm of dropout by level drops at the fine level', 'dropout', _ABLATION, '', 'dropout=(0.0, 0.2)',
    'dropout=(0.2, 0.0)', _TEST_ARMS, techniques=('dropout',),
  ),
  Fault(
    'the arm of stochastic depth is dropout of channels', 'experiments', _ABLATION, '',
    'dropout.stochastic_depth(0.1)', 'dropout.spatial(0.1)', _TEST_ARMS, techniques=('stochastic depth',),
  ),
  Fault(
    'the arm of rescaled sums is off', 'experiments', _ABLATION, '', 'rescale=True', 'rescale=False', _TEST_ARMS,
    techniques=('scaled residual sums',),
  ),
  Fault(
    'the arm of the L2 penalty penalizes absolute values', 'experiments', _ABLATION, '', 'penalties.l2()',
    'penalties.l1()', _TEST_ARMS, techniques=('L2 penalty',),
  ),
  Fault(
    'the arm of the Jacobian penalty is a hundred times too weak', 'experiments', _ABLATION, '',
    '(0.01, penalties.jacobian())', '(1e-4, penalties.jacobian())', _TEST_ARMS, techniques=('Jacobian penalty',),
  ),
  Fault(
    'the arm of coupled L2 decays like the arm of decoupled decay', 'experiments', _ABLATION, '',
    'update(c, coupled_l2=1e-4)', 'update(c, weight_decay=1e-4)', _TEST_ARMS, techniques=('coupled L2 decay',),
  ),
  Fault(
    'the arm of weight decay is off', 'experiments', _ABLATION, '', 'update(c, weight_decay=0.01)', 'update(c)',
    _TEST_ARMS, techniques=('decoupled weight decay',),
  ),
  Fault(
    'the arm without clipping clips', 'experiments', _ABLATION, '', 'update(c, clip=None)', 'update(c)', _TEST_ARMS,
    techniques=('clipping by global norm',),
  ),
  Fault(
    'the arm of the schedule-free update evaluates an average of where gradients are taken', 'weights', _ABLATION,
    '', "{'optimizer': without_schedule(c), 'evaluation_average': ''}", "{'optimizer': without_schedule(c)}",
    _TEST_ARMS, techniques=('schedule-free averaging',),
  ),
  Fault(
    'the arm of stochastic weight averaging begins when training ends', 'experiments', _ABLATION, '',
    'averaging.swa(c.num_steps // 2)', 'averaging.swa(c.num_steps)', _TEST_ARMS,
    techniques=('stochastic weight averaging',),
  ),
  Fault(
    'the arm of early stopping waits longer than the run lasts', 'experiments', _ABLATION, '',
    'callbacks.early_stopping(patience=150)', 'callbacks.early_stopping(patience=1500)', _TEST_ARMS,
    techniques=('early stopping on held-out loss',),
  ),
  Fault(
    'the arm of importance-sampled times is that of stratified ones', 'experiments', _ABLATION, '',
    'times.importance()', 'times.stratified()', _TEST_ARMS, techniques=('importance-sampled times',),
  ),
  Fault(
    'the arm of non-leaky augmentation leaks', 'experiments', _ABLATION, '',
    'augment.conditioned(0.12, augment.shift(1), augment.rotate(10.0))',
    'augment.chain(augment.shift(1), augment.rotate(10.0))', _TEST_ARMS,
    techniques=('non-leaky conditioned augmentation',),
  ),
  Fault(
    'the arm of cool samples is at temperature one', 'experiments', _ABLATION, '',
    'guidance.score_temperature(d, p, 0.9)', 'guidance.score_temperature(d, p, 1.0)', _TEST_ARMS,
    techniques=('score temperature',),
  ),
  Fault(
    'the arm of micro-batches has one', 'experiments', _ABLATION, '', "{'micro_batches': 4}", "{'micro_batches': 1}",
    _TEST_ARMS, techniques=('gradient accumulation',),
  ),
]  # fmt: skip
