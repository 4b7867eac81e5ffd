"""Faults of `diffusion/objectives/`."""

from tests.mutants.fault import Fault

LOSSES = 'diffusion/objectives/losses.py'
PENALTIES = 'diffusion/objectives/penalties.py'
TIMES = 'diffusion/objectives/times.py'
WEIGHTS = 'diffusion/objectives/weights.py'

OF_LOSSES = ('tests/objectives/test_losses.py',)
OF_PENALTIES = ('tests/objectives/test_penalties.py',)
OF_TIMES = ('tests/objectives/test_times.py',)
OF_WEIGHTS = ('tests/objectives/test_weights.py',)

FAULTS = [
  # Losses.
  Fault(
    "the eps-loss is taken from the worse conditioned half of the prediction", 'factors', LOSSES, 'eps_loss',
    'expand(log_snr, eps) < 0', 'expand(log_snr, eps) > 0', OF_LOSSES, techniques=('denoising score matching',),
  ),
  Fault(
    "the x0 error is scaled by the SNR instead of its root", 'factors', LOSSES, 'eps_loss',
    'jnp.exp(0.5 * log_snr)', 'jnp.exp(log_snr)', OF_LOSSES, techniques=('denoising score matching',),
  ),
  Fault(
    'the weight never reaches the denoising loss', 'order', LOSSES, 'denoising.apply',
    'weight(context.log_snr) * loss', 'loss', OF_LOSSES,
    techniques=('denoising score matching', 'min-SNR loss weight'),
  ),
  Fault(
    'the weighted bound lacks its factor one half', 'factors', LOSSES, 'weighted_bound.apply',
    '-0.5 * context.slope * weight(context.log_snr) * loss', '-context.slope * weight(context.log_snr) * loss',
    OF_LOSSES, techniques=('weighted variational bound',),
  ),
  Fault(
    'the weighted bound is not weighted', 'order', LOSSES, 'weighted_bound.apply',
    '-0.5 * context.slope * weight(context.log_snr) * loss', '-0.5 * context.slope * loss',
    OF_LOSSES, techniques=('weighted variational bound', 'sigmoid loss weight'),
  ),
  Fault(
    'learned uncertainty divides by the square of exp(u)', 'factors', LOSSES, 'uncertain.apply',
    'jnp.exp(-u)', 'jnp.exp(-2 * u)', OF_LOSSES, techniques=('learned uncertainty',),
  ),
  Fault(
    'the divergence of sliced score matching is not scaled by sigma', 'factors', LOSSES, 'sliced.apply',
    'v * slope * sigma', 'v * slope', OF_LOSSES, techniques=('sliced score matching',),
  ),
  # Penalties.
  Fault(
    "penalties act on norms' scales and embeddings too", 'factors', PENALTIES, '_kernels',
    "str(getattr(path[-1], 'key', '')) == 'kernel'", "str(getattr(path[-1], 'key', '')) != 'bias'", OF_PENALTIES,
    techniques=('L1 penalty', 'L2 penalty'),
  ),
  Fault(
    'a penalty of the weights is divided by the rows of the batch', 'factors', PENALTIES, '_over_kernels',
    'jnp.broadcast_to(total, context.t.shape)', 'jnp.broadcast_to(total / context.t.size, context.t.shape)',
    OF_PENALTIES, techniques=('L1 penalty', 'L2 penalty'),
  ),
  Fault(
    'the L1 penalty is the mean of each kernel', 'factors', PENALTIES, 'l1.apply',
    '_over_kernels(jnp.abs, context)', '_over_kernels(lambda w: jnp.abs(w).mean(), context)', OF_PENALTIES,
    techniques=('L1 penalty',),
  ),
  Fault(
    'the L2 penalty lacks its factor one half', 'factors', PENALTIES, 'l2.apply',
    '0.5 * w**2', 'w**2', OF_PENALTIES, techniques=('L2 penalty',),
  ),
  Fault(
    'the Jacobian penalty is not scaled by sigma', 'factors', PENALTIES, 'jacobian.apply',
    'expand(context.marginal.sigma, slope) * slope', 'slope', OF_PENALTIES, techniques=('Jacobian penalty',),
  ),
  Fault(
    'all rows of a batch are penalized in one direction', 'keys', PENALTIES, 'jacobian.apply',
    'rng.signs(context.keys, context.z.shape[1:])',
    'jnp.broadcast_to(rng.signs(context.keys[:1], context.z.shape[1:]), context.z.shape)', OF_PENALTIES,
    techniques=('Jacobian penalty',),
  ),
  # Draws of t.
  Fault(
    "stratified times spread the rows of one device over what is the whole batch's", 'devices', TIMES, '_spread',
    'rows.index / rows.total', 'rows.index / len(rows.index)', OF_TIMES + ('tests/training/test_devices.py',),
    techniques=('stratified times',),
  ),
  Fault(
    'every device draws the same uniform times', 'devices', TIMES, 'uniform.draw',
    'rng.row_keys(key, rows.index)', 'rng.row_keys(key, jnp.arange(len(rows.index)))', OF_TIMES,
    techniques=('uniform times',),
  ),
  Fault(
    'stratified times are drawn row by row', 'formula', TIMES, 'stratified.draw',
    '_spread(key, rows)', 'jax.vmap(jax.random.uniform)(rng.row_keys(key, rows.index))', OF_TIMES,
    techniques=('stratified times',),
  ),
  Fault(
    'log-normal times take the log of noise over signal for minus the log-SNR, which is twice it', 'factors', TIMES,
    'log_normal.draw', '-2 * (mean + deviation * _standard_normal(key, rows))',
    '-(mean + deviation * _standard_normal(key, rows))', OF_TIMES, techniques=('log-normal noise levels',),
  ),
  Fault(
    'logit-normal times spread by the variance', 'factors', TIMES, 'logit_normal.draw',
    'deviation * _standard_normal(key, rows)', 'deviation**2 * _standard_normal(key, rows)', OF_TIMES,
    techniques=('logit-normal times',),
  ),
  Fault(
    'the importance weight never reaches the loss', 'order', TIMES, 'importance.draw',
    'even / share[bucket]', 'jnp.ones_like(t)', OF_TIMES, techniques=('importance-sampled times',),
  ),
  Fault(
    'the share of uniform draws reaches nothing, so that importance sampling may forget a bucket', 'experiments',
    TIMES, 'importance.draw', '(1 - uniform_share) * share + uniform_share * even', 'share', OF_TIMES,
    techniques=('importance-sampled times',),
  ),
  Fault(
    "what importance sampling knows is of one device's losses", 'devices', TIMES, 'importance.update',
    'cross_mean((loss**2 @ hit, hit.sum(0)))', '(loss**2 @ hit, hit.sum(0))',
    OF_TIMES + ('tests/training/test_devices.py',), techniques=('importance-sampled times',),
  ),
  Fault(
    'importance sampling takes buckets for seen that no row has hit', 'all or nothing', TIMES, 'importance.update',
    "jnp.where(seen, decay * state['weight'] + (1 - decay), state['weight'])",
    "decay * state['weight'] + (1 - decay)", OF_TIMES, techniques=('importance-sampled times',),
  ),
  Fault(
    'a timestep curriculum opens the clean end first', 'order', TIMES, '_held_back',
    '1 - open_share * (1 - t)', 'open_share * t', OF_TIMES,
    techniques=('timestep curriculum by progress', 'timestep curriculum by loss'),
  ),
  Fault(
    'a timestep curriculum loses the importance weight of its base', 'order', TIMES, 'curriculum.draw',
    'return jnp.where(opened == clusters, t, _held_back(t, opened / clusters)), weight',
    'return jnp.where(opened == clusters, t, _held_back(t, opened / clusters)), jnp.ones_like(weight)', OF_TIMES,
    techniques=('timestep curriculum by progress', 'importance-sampled times'),
  ),
  Fault(
    'the base of a timestep curriculum by progress never learns', 'order', TIMES, 'curriculum',
    'base.update', '_stateless(draw).update', OF_TIMES, techniques=('timestep curriculum by progress',),
  ),
  Fault(
    "a curriculum paced by loss follows each device's own", 'devices', TIMES, 'curriculum_by_loss.update',
    'cross_mean(loss.mean())', 'loss.mean()', OF_TIMES + ('tests/training/test_devices.py',),
    techniques=('timestep curriculum by loss',),
  ),
  Fault(
    'a curriculum paced by loss compares the next cluster with the best of the last one', 'order', TIMES,
    'curriculum_by_loss.update', "jnp.where(opens, jnp.inf, jnp.where(better, value, state['best']))",
    "jnp.where(better, value, state['best'])", OF_TIMES, techniques=('timestep curriculum by loss',),
  ),
  Fault(
    'a curriculum paced by loss waits one step longer than its patience', 'order', TIMES, 'curriculum_by_loss.update',
    'waited >= patience', 'waited > patience', OF_TIMES, techniques=('timestep curriculum by loss',),
  ),
  # Weights.
  Fault(
    'the factor of the loss of a straight line is that of the SNR instead of its root', 'factors', WEIGHTS, '',
    'jnp.exp(-0.5 * log_snr)', 'jnp.exp(-log_snr)', OF_WEIGHTS, techniques=('uniform loss weight',),
  ),
  Fault(
    'the SNR weight is the root of the SNR', 'factors', WEIGHTS, 'snr',
    'jnp.exp(log_snr)', 'jnp.exp(0.5 * log_snr)', OF_WEIGHTS, techniques=('SNR loss weight',),
  ),
  Fault(
    'min-SNR takes the inverse of the SNR', 'formula', WEIGHTS, 'min_snr',
    'jnp.exp(-log_snr)', 'jnp.exp(log_snr)', OF_WEIGHTS, techniques=('min-SNR loss weight',),
  ),
  Fault(
    'the truncated SNR is the smaller of the two', 'formula', WEIGHTS, 'truncated_snr',
    'jnp.maximum(1.0, jnp.exp(-log_snr))', 'jnp.minimum(1.0, jnp.exp(-log_snr))', OF_WEIGHTS,
    techniques=('truncated-SNR loss weight',),
  ),
  Fault(
    "EDM's weight divides by the data's deviation instead of its variance", 'factors', WEIGHTS, 'edm',
    'sigma_data**2', 'sigma_data', OF_WEIGHTS, techniques=('EDM loss weight',),
  ),
  Fault(
    'the k of P2 reaches nothing', 'experiments', WEIGHTS, 'p2',
    'k + jnp.exp(log_snr)', '1 + jnp.exp(log_snr)', OF_WEIGHTS, techniques=('P2 loss weight',),
  ),
  Fault(
    "the sigmoid weight's bias has the wrong sign", 'formula', WEIGHTS, 'sigmoid',
    'bias - log_snr', '-bias - log_snr', OF_WEIGHTS, techniques=('sigmoid loss weight',),
  ),
]  # fmt: skip
