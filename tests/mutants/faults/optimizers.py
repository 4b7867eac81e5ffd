"""Faults of `diffusion/optimizers/`."""

from tests.mutants.fault import Fault

AVERAGING = 'diffusion/optimizers/averaging.py'
CHAINS = 'diffusion/optimizers/chains.py'
CLIPPING = 'diffusion/optimizers/clipping.py'
OPTIMIZERS = 'diffusion/optimizers/optimizers.py'
SCHEDULES = 'diffusion/optimizers/schedules.py'

OF_AVERAGING = ('tests/optimizers/test_averaging.py',)
OF_CHAINS = ('tests/optimizers/test_chains.py',)
OF_CLIPPING = ('tests/optimizers/test_clipping.py',)
OF_OPTIMIZERS = ('tests/optimizers/test_optimizers.py',)
OF_SCHEDULES = ('tests/optimizers/test_schedules.py',)

FAULTS = [
  # Averages.
  Fault(
    'the average of the weights starts at zero', 'weights', AVERAGING, '_decaying.init',
    'jnp.copy', 'jnp.zeros_like', OF_AVERAGING, techniques=('exponential moving average of the weights',),
  ),
  Fault(
    'the warm-up of the moving average is one update late', 'order', AVERAGING, 'ema',
    '(1 + count) / (10 + count)', 'count / (9 + count)', OF_AVERAGING,
    techniques=('exponential moving average of the weights',),
  ),
  Fault(
    'the half-life of the weights takes updates for images', 'factors', AVERAGING, 'half_life.decay',
    'ramp * batch_size * (count + 1)', 'ramp * (count + 1)', OF_AVERAGING,
    techniques=('exponential moving average of the weights',),
  ),
  Fault(
    'the power-function average has the exponent of its profile for that of its decay', 'factors', AVERAGING, 'power',
    'power_exponent(width) + 1', 'power_exponent(width)', OF_AVERAGING,
    techniques=('power-function average of the weights',),
  ),
  Fault(
    'the power-function average counts the initial weights as an update', 'order', AVERAGING, 'power.decay',
    'count + 1.0', 'count + 2.0', OF_AVERAGING, techniques=('power-function average of the weights',),
  ),
  Fault(
    'the width asked for does not reach a reconstructed average', 'experiments', AVERAGING, 'reconstruct',
    'power_exponent(width)', 'a[0]', OF_AVERAGING, techniques=('power-function average of the weights',),
  ),
  Fault(
    'stochastic weight averaging starts one update late', 'order', AVERAGING, 'swa.decay',
    'n = count + 1', 'n = count', OF_AVERAGING, techniques=('stochastic weight averaging',),
  ),
  Fault(
    'stochastic weight averaging counts one sample more than it took', 'factors', AVERAGING, 'swa.decay',
    'taken / (taken + 1.0)', '(taken + 1.0) / (taken + 2.0)', OF_AVERAGING,
    techniques=('stochastic weight averaging',),
  ),
  # Chains.
  Fault(
    "weight decay reaches norms' scales and embeddings", 'factors', CHAINS, 'is_kernel',
    "str(getattr(path[-1], 'key', '')) == 'kernel'", "str(getattr(path[-1], 'key', '')) != 'bias'", OF_CHAINS,
    techniques=('decoupled weight decay', 'coupled L2 decay', 'proximal L1'),
  ),
  Fault(
    'decoupled weight decay reaches all parameters', 'factors', CHAINS, 'decoupled_decay',
    'optax.add_decayed_weights(rate, is_kernel)', 'optax.add_decayed_weights(rate)', OF_CHAINS,
    techniques=('decoupled weight decay',),
  ),
  Fault(
    'coupled decay is the gradient of the rate times the whole square', 'factors', CHAINS, 'coupled_decay',
    'optax.add_decayed_weights(rate, is_kernel)', 'optax.add_decayed_weights(2 * rate, is_kernel)', OF_CHAINS,
    techniques=('coupled L2 decay',),
  ),
  Fault(
    'a learning rate that the caller gives reaches nothing', 'experiments', CHAINS, '_counted.update',
    'schedule(state.count) if learning_rate is None else learning_rate', 'schedule(state.count)', OF_CHAINS,
    techniques=('reduced learning rate on a plateau', 'learning-rate range test'),
  ),
  Fault(
    'an update has the learning rate of the one after it', 'order', CHAINS, '_counted.update',
    'schedule(state.count)', 'schedule(state.count + 1)', OF_CHAINS,
  ),
  Fault(
    'the threshold of proximal L1 is not scaled by the learning rate', 'factors', CHAINS, 'proximal_l1.shrink',
    'now * rate', 'rate', OF_CHAINS, techniques=('proximal L1',),
  ),
  Fault(
    'fixed norms keep that of the whole kernel instead of that of each output', 'factors', CHAINS, 'fixed_norm.norm',
    'range(w.ndim - 1)', 'range(w.ndim)', OF_CHAINS, techniques=('weight-norm projection',),
  ),
  Fault(
    'gradients are clipped after coupled decay', 'order', CHAINS, 'chain',
    """
    parts = {'clip': clip} if clip is not None else {}
    if 'coupled_l2' in on:
      parts['coupled_l2'] = coupled_decay(coupled_l2)
    """,
    """
    parts = {'coupled_l2': coupled_decay(coupled_l2)} if 'coupled_l2' in on else {}
    if clip is not None:
      parts['clip'] = clip
    """,
    OF_CHAINS, techniques=('coupled L2 decay', 'clipping by global norm'),
  ),
  Fault(
    'decoupled decay goes through the moments', 'order', CHAINS, 'chain',
    """
    parts['direction'] = direction
    if 'weight_decay' in on:
      parts['weight_decay'] = decoupled_decay(weight_decay)
    """,
    """
    if 'weight_decay' in on:
      parts['weight_decay'] = decoupled_decay(weight_decay)
    parts['direction'] = direction
    """,
    OF_CHAINS, techniques=('decoupled weight decay',),
  ),
  Fault(
    'coupled decay is added behind the direction', 'order', CHAINS, 'chain',
    """
    if 'coupled_l2' in on:
      parts['coupled_l2'] = coupled_decay(coupled_l2)
    parts['direction'] = direction
    """,
    """
    parts['direction'] = direction
    if 'coupled_l2' in on:
      parts['coupled_l2'] = coupled_decay(coupled_l2)
    """,
    OF_CHAINS, techniques=('coupled L2 decay',),
  ),
  Fault(
    'the learning rate that is logged is that of the last update', 'record', CHAINS, 'chain',
    "learning_rate(state['rate'].count)", "learning_rate(state['rate'].count - 1)", OF_CHAINS,
  ),
  Fault(
    'the weight decay of AdamW reaches nothing', 'experiments', CHAINS, 'adamw',
    'chain(optimizers.adam(b1, b2, eps), learning_rate, clip=clip, weight_decay=weight_decay)',
    'chain(optimizers.adam(b1, b2, eps), learning_rate, clip=clip)', OF_CHAINS, techniques=('decoupled weight decay',),
  ),
  Fault(
    'the evaluated weights of a schedule-free run are those that take gradients', 'weights', CHAINS, 'schedule_free',
    '(y - (1 - momentum) * z) / momentum', 'y', OF_OPTIMIZERS, techniques=('schedule-free averaging',),
  ),
  Fault(
    "schedule-free's momentum is always 0.9 where gradients are taken", 'experiments', CHAINS, 'schedule_free',
    'optax.contrib.schedule_free(base, learning_rate, momentum)', 'optax.contrib.schedule_free(base, learning_rate)',
    OF_OPTIMIZERS, techniques=('schedule-free averaging',),
  ),
  # Clipping.
  Fault(
    'the clip rate counts the gradients that were short enough', 'record', CLIPPING, 'global_norm',
    'optax.tree.norm(g) > limit', 'optax.tree.norm(g) < limit', OF_CLIPPING, techniques=('clipping by global norm',),
  ),
  Fault(
    'a gradient is clipped to the square of its limit', 'factors', CLIPPING, 'global_norm',
    'optax.clip_by_global_norm(limit)', 'optax.clip_by_global_norm(limit**2)', OF_CLIPPING,
    techniques=('clipping by global norm',),
  ),
  Fault(
    'clipping by block is by the norm of all blocks', 'formula', CLIPPING, 'blocks',
    'optax.clip_by_block_rms(limit)', 'optax.clip_by_global_norm(limit)', OF_CLIPPING,
    techniques=('clipping by block',),
  ),
  Fault(
    'the floor of adaptive clipping reaches nothing', 'experiments', CLIPPING, 'adaptive',
    'optax.adaptive_grad_clip(limit, floor)', 'optax.adaptive_grad_clip(limit)', OF_CLIPPING,
    techniques=('adaptive gradient clipping',),
  ),
  Fault(
    'clipping by value scales an array as a whole', 'formula', CLIPPING, 'value',
    'optax.clip(limit)', 'optax.clip_by_block_rms(limit)', OF_CLIPPING, techniques=('clipping by value',),
  ),
  Fault(
    'clipping counts as having acted only where it changed every array', 'record', CLIPPING, '_noted.update',
    'jnp.any(jnp.stack([jnp.any(a != b) for a, b in pairs]))',
    'jnp.all(jnp.stack([jnp.any(a != b) for a, b in pairs]))', OF_CLIPPING,
    techniques=('clipping by block', 'adaptive gradient clipping', 'clipping by value'),
  ),
  # Directions.
  Fault(
    "Adam's eps is within the root", 'factors', OPTIMIZERS, 'adam',
    'optax.scale_by_adam(b1, b2, eps)', 'optax.scale_by_adam(b1, b2, 0.0, eps)', OF_OPTIMIZERS, techniques=('Adam',),
  ),
  Fault(
    'RMSprop divides by a debiased moment', 'formula', OPTIMIZERS, 'rmsprop',
    'optax.scale_by_rms(decay, eps, eps_in_sqrt=False)',
    'optax.scale_by_rms(decay, eps, eps_in_sqrt=False, bias_correction=True)', OF_OPTIMIZERS, techniques=('RMSprop',),
  ),
  Fault(
    'momentum damps each gradient by one minus its decay', 'factors', OPTIMIZERS, 'momentum',
    'optax.trace(decay, nesterov)', 'optax.chain(optax.trace(decay, nesterov), optax.scale(1 - decay))', OF_OPTIMIZERS,
    techniques=('momentum',),
  ),
  Fault(
    "Nesterov's look ahead reaches nothing", 'experiments', OPTIMIZERS, 'momentum',
    'optax.trace(decay, nesterov)', 'optax.trace(decay)', OF_OPTIMIZERS, techniques=('momentum',),
  ),
  Fault(
    "Lion's two decays are exchanged", 'formula', OPTIMIZERS, 'lion',
    'optax.scale_by_lion(b1, b2)', 'optax.scale_by_lion(b2, b1)', OF_OPTIMIZERS, techniques=('Lion',),
  ),
  Fault(
    'Muon leaves the kernels of convolutions to Adam', 'experiments', OPTIMIZERS, '_matrices.dimensions',
    'leaf.ndim < 2', 'leaf.ndim != 2', OF_OPTIMIZERS, techniques=('Muon',),
  ),
  Fault(
    "Muon's decay of the momentum reaches nothing", 'experiments', OPTIMIZERS, 'muon',
    'beta=beta', 'beta=0.95', OF_OPTIMIZERS, techniques=('Muon',),
  ),
  Fault(
    "Prodigy's decays reach nothing", 'experiments', OPTIMIZERS, 'prodigy',
    'optax.contrib.prodigy(1.0, (b1, b2))', 'optax.contrib.prodigy(1.0)', OF_OPTIMIZERS, techniques=('Prodigy',),
  ),
  # Rates.
  Fault(
    'the cosine rate is at its end a warm-up too late', 'order', SCHEDULES, 'warmup_cosine',
    'optax.schedules.cosine_decay_schedule(1.0, total_steps - warmup_steps)',
    'optax.schedules.cosine_decay_schedule(1.0, total_steps)', OF_SCHEDULES,
    techniques=('warm-up and cosine learning rate',),
  ),
  Fault(
    'the cosine rate exceeds its peak by the final rate', 'factors', SCHEDULES, 'warmup_cosine.rate',
    'final + (peak - final) * shape(count)', 'final + peak * shape(count)', OF_SCHEDULES,
    techniques=('warm-up and cosine learning rate',),
  ),
  Fault(
    'a rate falls during its warm-up already', 'order', SCHEDULES, '_warmed.rate',
    'shape(jnp.maximum(count - warmup_steps, 0))', 'shape(count)', OF_SCHEDULES,
    techniques=('linear learning rate', 'exponential learning rate', 'stepwise learning rate'),
  ),
  Fault(
    'the final rate of the straight line reaches nothing', 'experiments', SCHEDULES, 'linear',
    'optax.schedules.linear_schedule(peak, final, total_steps - warmup_steps)',
    'optax.schedules.linear_schedule(peak, 0.0, total_steps - warmup_steps)', OF_SCHEDULES,
    techniques=('linear learning rate',),
  ),
  Fault(
    'the half-life of the exponential rate is its time constant', 'factors', SCHEDULES, 'exponential',
    'optax.schedules.exponential_decay(peak, half_life, 0.5)',
    'optax.schedules.exponential_decay(peak, half_life, math.exp(-1))', OF_SCHEDULES,
    techniques=('exponential learning rate',),
  ),
  Fault(
    'a stepwise rate falls one update after its boundary', 'order', SCHEDULES, 'steps',
    'jnp.asarray(count)[..., None] >= edges', 'jnp.asarray(count)[..., None] > edges', OF_SCHEDULES,
    techniques=('stepwise learning rate',),
  ),
  Fault(
    'cycles that grow run through their cosine at the pace of the first', 'factors', SCHEDULES, 'cyclical.rate',
    '(periods - begin) / growth**cycle', 'periods - begin', OF_SCHEDULES,
    techniques=('cosine learning rate with warm restarts',),
  ),
  Fault(
    "the one cycle's share of the rise reaches nothing", 'experiments', SCHEDULES, 'one_cycle',
    'optax.schedules.cosine_onecycle_schedule(total_steps, peak, rise, 1 / start, 1 / final)',
    'optax.schedules.cosine_onecycle_schedule(total_steps, peak, 0.3, 1 / start, 1 / final)', OF_SCHEDULES,
    techniques=('one-cycle learning rate',),
  ),
  Fault(
    'the inverse square root is the inverse', 'formula', SCHEDULES, 'inverse_sqrt.rate',
    'jnp.sqrt(jnp.maximum(count / reference_steps, 1.0))', 'jnp.maximum(count / reference_steps, 1.0)', OF_SCHEDULES,
    techniques=('inverse square-root learning rate',),
  ),
]  # fmt: skip
