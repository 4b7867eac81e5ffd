"""Faults of `diffusion/sampling/`."""

from tests.mutants.fault import Fault

DRAW = 'diffusion/sampling/draw.py'
ENSEMBLES = 'diffusion/sampling/ensembles.py'
GRIDS = 'diffusion/sampling/grids.py'
GUIDANCE = 'diffusion/sampling/guidance.py'
LIKELIHOOD = 'diffusion/sampling/likelihood.py'
PLAN = 'diffusion/sampling/plan.py'
SAMPLERS = 'diffusion/sampling/samplers.py'
SOLVERS = 'diffusion/sampling/solvers.py'
WRAPPERS = 'diffusion/sampling/wrappers.py'

OF_DRAWS = (
  'tests/sampling/test_draw.py',
  'tests/training/test_experiment.py',
  'tests/test_wiring.py',
)
OF_ENSEMBLES = ('tests/sampling/test_ensembles.py',)
OF_GRIDS = ('tests/sampling/test_grids.py',)
OF_GUIDANCE = ('tests/sampling/test_guidance.py',)
OF_LIKELIHOOD = ('tests/sampling/test_likelihood.py',)
OF_PLAN = (
  'tests/sampling/test_draw.py',
  'tests/sampling/test_plan.py',
  'tests/training/test_experiment.py',
)
OF_SAMPLERS = ('tests/sampling/test_samplers.py',)
OF_SOLVERS = ('tests/sampling/test_solvers.py',)

FAULTS = [
  # From a network to samples.
  Fault(
    'dropout is on while samples are drawn', 'dropout', DRAW, 'make_denoiser.network',
    'keys=key', 'keys=rng.row_keys(batch_key, jnp.arange(z.shape[0])) if key is None else key', OF_DRAWS,
    techniques=('dropout',),
  ),
  Fault(
    'the null branch of guidance is given the label', 'weights', DRAW, 'on_a_device.draw',
    'model.null(condition) if model.null else condition', 'condition', OF_DRAWS,
    techniques=('classifier-free guidance',),
  ),
  Fault(
    "samples are drawn on the schedule as it was before it learned", 'weights', DRAW, 'on_a_device.draw',
    'gaussian.bind(diffusion, networks[0][0].schedule)',
    'gaussian.bind(diffusion, diffusion.schedule.init(rng.stream(0, "init")))', OF_DRAWS,
    techniques=('learned noise schedule',),
  ),
  Fault(
    'an ensemble draws from its first member alone', 'experiments', DRAW, 'on_a_device.draw',
    'ensembles.mean([denoiser(path, *one, told) for one in networks])',
    'ensembles.mean([denoiser(path, *one, told) for one in networks[:1]])', OF_DRAWS,
    techniques=('ensemble of denoisers',),
  ),
  Fault(
    "the sampler's seed reaches nothing", 'keys', DRAW, 'on_a_device.draw',
    "rng.stream(seed, 'sampler')", "rng.stream(0, 'sampler')", OF_DRAWS,
  ),
  Fault(
    "a sample's draws are those of its place in the chunk instead of its number", 'keys', DRAW, 'on_a_device.draw',
    "rng.row_keys(rng.stream(seed, 'sampler'), number)",
    "rng.row_keys(rng.stream(seed, 'sampler'), jnp.arange(len(number)))", OF_DRAWS,
  ),
  Fault(
    'labels of samples come class by class where rows of one each are said', 'record', DRAW, 'class_labels',
    'np.tile(np.arange(max(1, num_classes), dtype=np.int32), per_class)',
    'np.repeat(np.arange(max(1, num_classes), dtype=np.int32), per_class)', OF_DRAWS,
  ),
  # Ensembles.
  Fault(
    'the disagreement of an ensemble is debiased, so that losses no longer add up', 'record', ENSEMBLES, 'disagreement',
    'eps.var(0)', 'eps.var(0, ddof=1)', OF_ENSEMBLES, techniques=('ensemble of denoisers',),
  ),
  Fault(
    'all draws of Monte-Carlo dropout have one mask', 'keys', ENSEMBLES, 'monte_carlo.thinned.one',
    'jax.vmap(jax.random.fold_in, (0, None))(keys, i)', 'keys', OF_ENSEMBLES, techniques=('Monte-Carlo dropout',),
  ),
  # Grids.
  Fault(
    'a grid that is uniform in log-SNR is uniform in time', 'formula', GRIDS, 'uniform_log_snr',
    'path.time(jnp.linspace(low, high, steps + 1))', 'jnp.linspace(path.time(low), path.time(high), steps + 1)',
    OF_GRIDS,
  ),
  Fault(
    "Karras's grid divides its way by one step too many", 'factors', GRIDS, 'karras',
    'max(steps - 1, 1)', 'steps', OF_GRIDS,
  ),
  Fault(
    "the geometric grid's lowest level is the root of what it should be", 'factors', GRIDS, 'geometric',
    '2 * math.log(2 * steps)', 'math.log(2 * steps)', OF_GRIDS,
  ),
  # Guidance and thresholds.
  Fault(
    'guidance reaches x0 alone', 'formula', GUIDANCE, '_extrapolate.denoise',
    'b.eps + scale * (g.eps - b.eps)', 'g.eps', OF_GUIDANCE,
    techniques=('classifier-free guidance', 'autoguidance'),
  ),
  Fault(
    'guidance takes its scale for the excess over one', 'factors', GUIDANCE, '_extrapolate.denoise',
    'Prediction(b.x0 + scale * (g.x0 - b.x0), b.eps + scale * (g.eps - b.eps))',
    'Prediction(g.x0 + scale * (g.x0 - b.x0), g.eps + scale * (g.eps - b.eps))', OF_GUIDANCE,
    techniques=('classifier-free guidance', 'autoguidance'),
  ),
  Fault(
    'dropout thins only one network of guidance', 'dropout', GUIDANCE, '_extrapolate.denoise',
    'bad(z, t, key)', 'bad(z, t)', OF_GUIDANCE, techniques=('classifier-free guidance', 'Monte-Carlo dropout'),
  ),
  Fault(
    'autoguidance leads toward the weak model', 'formula', GUIDANCE, 'autoguidance',
    '_extrapolate(denoise, weak, scale)', '_extrapolate(weak, denoise, scale)', OF_GUIDANCE,
    techniques=('autoguidance',),
  ),
  Fault(
    'the interval of guidance is everywhere', 'experiments', GUIDANCE, 'in_interval.denoise',
    '(level >= log_snr_low) & (level <= log_snr_high)', '(level >= log_snr_low) | (level <= log_snr_high)', OF_GUIDANCE,
    techniques=('guidance interval',),
  ),
  Fault(
    'a tempered score leaves x0 as it was', 'formula', GUIDANCE, 'score_temperature.tempered',
    'Prediction((z - sigma * eps) / alpha, eps)', 'Prediction(denoise(z, t, key).x0, eps)', OF_GUIDANCE + OF_SOLVERS,
    techniques=('score temperature',),
  ),
  Fault(
    'clipping of x0 leaves eps as it was', 'formula', GUIDANCE, 'clip_x0.clipped',
    'Prediction(x0, (z - alpha * x0) / sigma)', 'Prediction(x0, denoise(z, t, key).eps)', OF_GUIDANCE,
    techniques=('static thresholding of x0',),
  ),
  Fault(
    'the range to which x0 is clipped reaches nothing', 'experiments', GUIDANCE, 'clip_x0.clipped',
    'jnp.clip(denoise(z, t, key).x0, low, high)', 'jnp.clip(denoise(z, t, key).x0, -1.0, 1.0)',
    OF_GUIDANCE + OF_DRAWS[1:2], techniques=('static thresholding of x0', 'standardized data'),
  ),
  Fault(
    'dynamic thresholding enlarges an x0 that is within its bound', 'factors', GUIDANCE, 'threshold_x0.thresholded',
    'jnp.maximum(size, bound)', 'size', OF_GUIDANCE, techniques=('dynamic thresholding of x0',),
  ),
  Fault(
    'the percentile of dynamic thresholding is that of the whole batch', 'data', GUIDANCE, 'threshold_x0.thresholded',
    'jnp.percentile(jnp.abs(x0).reshape(len(x0), -1), percentile, axis=1)',
    'jnp.full(len(x0), jnp.percentile(jnp.abs(x0), percentile))', OF_GUIDANCE,
    techniques=('dynamic thresholding of x0',),
  ),
  # Likelihood.
  Fault(
    'the total of the variational bound lacks its prior', 'factors', LIKELIHOOD, 'Bound.total',
    'self.reconstruction + self.diffusion + self.prior', 'self.reconstruction + self.diffusion', OF_LIKELIHOOD,
  ),
  Fault(
    'all draws of the variational bound have one noise', 'keys', LIKELIHOOD, 'bound.one',
    'jax.random.fold_in(key, i)', 'jax.random.fold_in(key, 0)', OF_LIKELIHOOD,
  ),
  Fault(
    'time and noise of the variational bound come from one key', 'keys', LIKELIHOOD, 'bound.one',
    'drawn[:, 1]', 'drawn[:, 0]', OF_LIKELIHOOD,
  ),
  Fault(
    "a finite bound's weight is the difference of log-SNR", 'formula', LIKELIHOOD, 'bound.one',
    'jnp.expm1(path.log_snr(t - 1 / steps) - path.log_snr(t))', '(path.log_snr(t - 1 / steps) - path.log_snr(t))',
    OF_LIKELIHOOD,
  ),
  Fault(
    'the probability flow counts steps for evaluations', 'record', LIKELIHOOD, 'solve',
    '_PER_STEP * steps', 'steps', OF_LIKELIHOOD, techniques=('probability flow',),
  ),
  Fault(
    'the log-likelihood subtracts the change of volume', 'formula', LIKELIHOOD, 'log_likelihood',
    'log_prior + change', 'log_prior - change', OF_LIKELIHOOD,
  ),
  Fault(
    'all probes of the divergence are one direction', 'keys', LIKELIHOOD, 'log_likelihood',
    'jax.random.split(key, probes)', 'jax.random.split(key, probes)[jnp.zeros(probes, jnp.int32)]', OF_LIKELIHOOD,
  ),
  Fault(
    'bits a dimension count one cell too many', 'record', LIKELIHOOD, 'bits_per_dim',
    '2 / (levels - 1)', '2 / levels', OF_LIKELIHOOD,
  ),
  # The plan.
  Fault(
    'wrappers are put around the denoiser in the reverse of their order', 'order', PLAN, 'plan',
    'sampling.wrappers or ()', 'reversed(sampling.wrappers or ())', OF_PLAN,
  ),
  Fault(
    'outside the interval of guidance samples are drawn without their label', 'weights', PLAN, 'plan',
    'in_interval(denoise, conditional, path, *sampling.interval)',
    'in_interval(denoise, null, path, *sampling.interval)',
    OF_PLAN, techniques=('guidance interval',),
  ),
  Fault(
    "Monte-Carlo dropout draws from the keys of the sampler's noise", 'keys', PLAN, 'plan',
    "jax.vmap(jax.random.fold_in, (0, None))(keys, rng.tag('monte carlo'))", 'keys', OF_PLAN + OF_ENSEMBLES,
    techniques=('Monte-Carlo dropout',),
  ),
  Fault(
    'the grid that a plan names reaches nothing', 'experiments', PLAN, 'plan',
    'sampling.grid or sampler.grid or grids.uniform_time', 'sampler.grid or grids.uniform_time', OF_PLAN,
  ),
  Fault(
    'a plan without wrappers does not clip images', 'experiments', PLAN, 'usual_wrappers',
    '() if levels is None else (clip_x0,)', '()', OF_PLAN, techniques=('static thresholding of x0',),
  ),
  Fault(
    'the evaluations of a sample count one network of guidance', 'record', PLAN, 'evaluations',
    '2 * calls', 'calls', OF_PLAN, techniques=('classifier-free guidance',),
  ),
  # Samplers.
  Fault(
    "DDIM's kept noise falls with eta instead of its square", 'factors', SAMPLERS, 'ddim.step',
    '1 - eta**2 * fresh', '1 - eta * fresh', OF_SAMPLERS, techniques=('DDIM sampler',),
  ),
  Fault(
    "the ancestral sampler's forward variance is taken where the step ends", 'formula', SAMPLERS, 'ancestral.step',
    'path.marginal(t).sigma ** 2', 'path.marginal(s).sigma ** 2', OF_SAMPLERS, techniques=('ancestral sampler',),
  ),
  Fault(
    'all steps of a sample draw the same noise', 'keys', SAMPLERS, '_walker.advance',
    'jax.vmap(jax.random.fold_in, (0, None))(split[:, 1], i)',
    'jax.vmap(jax.random.fold_in, (0, None))(split[:, 1], 0)', OF_SAMPLERS, techniques=('ancestral sampler',),
  ),
  Fault(
    'a walk that starts below the top of the schedule starts with the noise of the top', 'factors', SAMPLERS, '_walker',
    'gaussian.prior(path, split[:, 0], shape, grid[0])', 'gaussian.prior(path, split[:, 0], shape)', OF_SAMPLERS,
  ),
  Fault(
    'the last prediction is made at the end of the grid', 'order', SAMPLERS, 'sample',
    'grid[steps - 1]', 'grid[steps]', OF_SAMPLERS,
  ),
  # Solvers.
  Fault(
    "Euler's step has the velocity of the time it leads to", 'order', SOLVERS, 'euler.step',
    'velocity(denoise, path, z, t)', 'velocity(denoise, path, z, s)', OF_SOLVERS, techniques=('Euler sampler',),
  ),
  Fault(
    'Euler-Maruyama has twice the Langevin dynamics', 'factors', SOLVERS, 'euler_maruyama.step',
    '0.5 * sigma * rate', 'sigma * rate', OF_SOLVERS, techniques=('Euler-Maruyama sampler',),
  ),
  Fault(
    'after churn the denoiser is told the level before it', 'order', SOLVERS, 'heun.step',
    'z, t = noised(keys, z, t)', 'z, _ = noised(keys, z, t)', OF_SOLVERS, techniques=('Heun sampler with churn',),
  ),
  Fault(
    'the r of DPM-Solver++ is turned over', 'factors', SOLVERS, 'dpm_solver.step',
    'h / (2 * jnp.where(state.fresh, 1.0, level - state.level))', '(level - state.level) / (2 * h)', OF_SOLVERS,
    techniques=('DPM-Solver++ sampler',),
  ),
  Fault(
    'DPM-Solver++ remembers what it extrapolated instead of what was predicted', 'order', SOLVERS, 'dpm_solver.step',
    '_Memory(moved, x0, level, jnp.zeros((), bool))', '_Memory(moved, d, level, jnp.zeros((), bool))', OF_SOLVERS,
    techniques=('DPM-Solver++ sampler',),
  ),
  # Samplers made of samplers.
  Fault(
    "the noise of a Langevin correction is that of the predictor's step", 'keys', WRAPPERS, 'predictor_corrector.step',
    'split[:, i + 1]', 'split[:, 0]', OF_SOLVERS, techniques=('Langevin corrector',),
  ),
  Fault(
    'a Langevin correction lacks the two under the root of its noise', 'factors', WRAPPERS, 'predictor_corrector.step',
    'jnp.sqrt(2 * size)', 'jnp.sqrt(size)', OF_SOLVERS, techniques=('Langevin corrector',),
  ),
  Fault(
    'known pixels are noised to the level that the step left', 'order', WRAPPERS, 'inpaint.step',
    'expand(then.alpha, z) * known + expand(then.sigma, z) * noise',
    'expand(now.alpha, z) * known + expand(now.sigma, z) * noise', OF_SOLVERS,
    techniques=('inpainting by replacement',),
  ),
  Fault(
    'every chunk of samples begins with the first known image', 'data', WRAPPERS, 'inpaint.of_rows',
    'known[number % len(known)]', 'known[jnp.arange(len(number)) % len(known)]', OF_PLAN,
    techniques=('inpainting by replacement',),
  ),
]  # fmt: skip
