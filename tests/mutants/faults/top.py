"""Faults of the modules above all rooms: statistics, keys, devices, the record, and how flags reach a run."""

from tests.mutants.fault import Fault

_STATISTICS = 'diffusion/statistics.py'
_PROPORTIONS = 'diffusion/proportions.py'
_DEVICES = 'diffusion/devices.py'
_LAUNCH = 'diffusion/launch.py'
_TEST_STATISTICS = ('tests/test_statistics.py',)
_TEST_COMPARISONS = ('tests/test_comparisons.py',)
_TEST_PROPORTIONS = ('tests/test_proportions.py',)
_TEST_DEVICES = ('tests/training/test_devices.py',)
_TEST_LAUNCH = ('tests/test_launch.py', 'tests/test_flags.py')
_TEST_CALLING = ('tests/test_calling.py',)

FAULTS = [
  # statistics
  Fault(
    "Student's interval has a degree of freedom too many", 'formula', _STATISTICS, 'mean_t', 'values.size - 1',
    'values.size', _TEST_STATISTICS,
  ),
  Fault(
    "the interval of a ratio of means is in the numerator's units", 'factors', _STATISTICS, 'ratio_of_means',
    '(rest.high - rest.low) / 2 / abs(float(b.mean()))', '(rest.high - rest.low) / 2', _TEST_STATISTICS,
  ),
  Fault(
    'the bootstrap over seeds resamples within them alone', 'formula', _STATISTICS, 'hierarchical_bootstrap',
    'random.integers(len(arrays), size=(len(arrays), resamples))',
    'np.repeat(np.arange(len(arrays))[:, None], resamples, 1)', _TEST_COMPARISONS,
  ),
  Fault(
    'the excess over a null is the ratio of the proportions and not of their complements', 'formula', _STATISTICS,
    'excess_over', 'quotient(complement(share), complement(null))', 'quotient(share, complement(null))',
    _TEST_STATISTICS,
  ),
  Fault(
    'the variance of an area under the curve counts a score too many', 'factors', _STATISTICS, 'auc',
    '(m + n) / 2 - 1', '(m + n) / 2', _TEST_STATISTICS,
  ),
  Fault(
    'the observed pattern of signs is not counted in its p-value', 'formula', _STATISTICS, 'sign_flip',
    'sums >= abs(values.sum()) - 1e-12 * np.abs(values).sum()',
    'sums > abs(values.sum()) + 1e-12 * np.abs(values).sum()', _TEST_COMPARISONS,
  ),
  Fault(
    'the least p-value counts pairs that do not differ', 'formula', _STATISTICS, 'least_sign_flip',
    'np.count_nonzero(differences)', 'len(differences)',
    ('tests/runs/test_compare.py', 'tests/test_comparisons.py', 'tests/test_statistics.py'),
  ),
  Fault(
    "Holm's adjusted p-values may fall below those before them", 'formula', _STATISTICS, 'holm',
    'np.maximum.accumulate(raised)', 'raised', _TEST_COMPARISONS,
  ),
  Fault(
    'what is usual has the median deviation for the standard deviation', 'factors', _STATISTICS, 'usual',
    '1.4826 * statistics.median(abs(value - center) for value in values)',
    'statistics.median(abs(value - center) for value in values)',
    ('tests/training/test_guards.py', 'tests/test_statistics.py'),
    techniques=('spike guard with rollback',),
  ),
  # proportions
  Fault(
    'the variance over runs of a proportion lacks m / (m - 1)', 'factors', _PROPORTIONS, 'pooled',
    'len(runs) / (len(runs) - 1) * ((k - p * n) ** 2).sum() / n.sum() ** 2',
    '((k - p * n) ** 2).sum() / n.sum() ** 2', _TEST_PROPORTIONS,
  ),
  Fault(
    'examples that all runs share count once a run', 'data', _PROPORTIONS, 'pooled',
    'n.max() if runs[0].shared else n.sum()', 'n.sum()', _TEST_PROPORTIONS,
  ),
  Fault(
    'the degrees of freedom of a pooled proportion narrow it', 'formula', _PROPORTIONS, 'pooled',
    '(degrees[0] / degrees[1]) ** 2', '(degrees[1] / degrees[0]) ** 2', _TEST_PROPORTIONS,
  ),
  Fault(
    'the lower end of a difference of proportions has the upper deviations', 'formula', _PROPORTIONS, 'difference',
    'math.hypot(p.estimate - p.low, q.high - q.estimate)', 'math.hypot(p.high - p.estimate, q.estimate - q.low)',
    _TEST_PROPORTIONS,
  ),
  # keys and conditions
  Fault(
    'all purposes draw from one stream', 'keys', 'diffusion/rng.py', 'stream', 'tag(purpose)', 'tag(\'\')',
    ('tests/test_rng.py',),
  ),
  Fault(
    'all batches have the same draws', 'keys', 'diffusion/rng.py', 'batch_key',
    'jax.random.fold_in(stream(seed, purpose), batches_seen)', 'stream(seed, purpose)', ('tests/test_rng.py',),
  ),
  Fault(
    'normal draws are cut off at three deviations', 'formula', 'diffusion/rng.py', 'normal',
    'jax.random.normal(key, shape)', 'jax.random.truncated_normal(key, -3.0, 3.0, shape)', ('tests/test_rng.py',),
  ),
  Fault(
    'the label that says nothing is the label itself', 'weights', 'diffusion/conditions.py', 'null_label',
    'return jnp.full_like(label, NULL)', 'return jnp.asarray(label)',
    ('tests/sampling/test_guidance.py', 'tests/test_conditions.py'),
    techniques=('classifier-free guidance', 'label dropout for classifier-free guidance'),
  ),
  Fault(
    'the label that says nothing is the first class', 'data', 'diffusion/conditions.py', 'null_label',
    'return jnp.full_like(label, NULL)', 'return jnp.zeros_like(label)', ('tests/test_conditions.py',),
    techniques=('label dropout for classifier-free guidance',),
  ),
  Fault(
    'data told of otherwise has the fingerprint of the same data', 'record', 'diffusion/conditions.py', 'fingerprint',
    'whole.update(np.ascontiguousarray(leaf).data)', 'whole.update(str(leaf.shape).encode())',
    ('tests/test_conditions.py',),
  ),
  # devices and processes
  Fault(
    'the rows of every device have the places of those of the first', 'devices', _DEVICES, 'parallelize.run',
    'jax.lax.axis_index(_AXIS) * local + jnp.arange(local)', 'jnp.arange(local)', _TEST_DEVICES,
  ),
  Fault(
    'what should be a mean over devices is their sum', 'devices', _DEVICES, 'parallelize.cross_mean',
    'jax.lax.pmean(tree, _AXIS)', 'jax.lax.psum(tree, _AXIS)', _TEST_DEVICES,
  ),
  Fault(
    'every process trains on the rows of the first', 'devices', _DEVICES, 'rows_of_this_process',
    'jax.process_index() * math.prod(shape) + np.arange(math.prod(shape)).reshape(shape)',
    'np.arange(math.prod(shape)).reshape(shape)', ('tests/training/test_processes.py',),
  ),
  Fault(
    'the metrics of a dispatch are those of its first step', 'record', _DEVICES, 'repeat', 'm[-1]', 'm[0]',
    ('tests/training/test_step.py', 'tests/training/test_program.py'),
  ),
  Fault(
    "every process writes the run's folder", 'devices', 'diffusion/processes.py', 'is_writer',
    'alone() or jax.process_index() == 0', 'True', ('tests/training/test_processes.py',),
  ),
  # the record and what is cited
  Fault(
    'what another program noted in a record meanwhile is lost', 'record', 'diffusion/provenance.py', 'amend',
    'record = read_record(workdir)', 'record = dict(known)', ('tests/test_provenance.py', 'tests/runs/test_judged.py'),
  ),
  Fault(
    'other examples of the same shapes pass for the same data', 'data', 'diffusion/provenance.py',
    'data_changes.read', 'name not in _NAMES', "name not in (*_NAMES, 'fingerprint', 'split_hashes')",
    ('tests/runs/test_moved_data.py',),
  ),
  Fault(
    'what is turned off is cited', 'record', 'diffusion/citations.py', 'technique.decorate.marking',
    '_marked(made, record, bound.arguments) if is_active(bound.arguments) else made',
    '_marked(made, record, bound.arguments)', ('tests/test_citations.py',),
  ),
  # flags and arguments
  Fault(
    '--seed reaches nothing', 'experiments', _LAUNCH, '_resolved', 'dataclasses.replace(config, seed=f.seed)',
    'config', _TEST_LAUNCH,
  ),
  Fault(
    'the configuration that a command line names reaches no evaluation', 'experiments', _LAUNCH, '_resolved',
    'dataclasses.replace(recorded, **overrides)', 'recorded', _TEST_LAUNCH,
  ),
  Fault(
    '--arm counts for less than the arm of the configuration', 'experiments', _LAUNCH, '_configured',
    "overrides | {'arm': f.arm}", "{'arm': f.arm} | overrides", _TEST_LAUNCH,
  ),
  Fault(
    '--sampler_grid reaches nothing', 'experiments', _LAUNCH, '_main', 'grid=f.sampler_grid', "grid=''",
    ('tests/runs/test_evaluating.py', 'tests/test_flags.py'),
  ),
  Fault(
    'a population of 0..15 has no member 15', 'experiments', _LAUNCH, '_values', 'range(int(low), int(high) + 1)',
    'range(int(low), int(high))', ('tests/runs/test_population.py', 'tests/test_launch.py'),
  ),
  Fault(
    'an evaluation from Python compares pixels, whatever features are named', 'experiments', 'diffusion/calling.py',
    'evaluate', 'features=features', "features='pixels'", _TEST_CALLING,
  ),
  Fault(
    'what an object of a class that is written in a function was given is no part of what is built', 'record',
    'diffusion/user_code.py', '_nodes_of', "getattr(one, 'name', '') not in _BEGINNINGS", 'True',
    ('tests/test_fingerprint.py',),
  ),
]  # fmt: skip
