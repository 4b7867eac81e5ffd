"""Faults of `diffusion/process/`."""

from tests.mutants.fault import Fault

ANALYTIC, BETAS = 'diffusion/process/analytic.py', 'diffusion/process/betas.py'
GAUSSIAN, MARGINALS = 'diffusion/process/gaussian.py', 'diffusion/process/marginals.py'
OUTPUTS, SCHEDULES = 'diffusion/process/parameterizations.py', 'diffusion/process/schedules.py'

OF_ANALYTIC, OF_BETAS = ('tests/process/test_analytic.py',), ('tests/process/test_betas.py',)
OF_GAUSSIAN, OF_MARGINALS = (
  ('tests/process/test_gaussian.py',),
  ('tests/process/test_marginals.py',),
)
OF_OUTPUTS, OF_SCHEDULES = (
  ('tests/process/test_parameterizations.py',),
  ('tests/process/test_schedules.py',),
)

FAULTS = [
  Fault(
    'the noise is added with the square of sigma', 'factors', 'diffusion/process/gaussian.py', 'diffuse',
    'expand(marginal.sigma, x0) * eps', 'expand(marginal.sigma**2, x0) * eps', ('tests/process/test_gaussian.py',),
  ),
  Fault(
    'the time of a log-SNR is sought on the wrong side', 'formula', 'diffusion/process/gaussian.py', 'bind.time.halve',
    'log_snr(middle) > value', 'log_snr(middle) < value', ('tests/process/test_gaussian.py',),
  ),
  Fault(
    'the posterior has the variance of the forward step', 'factors', GAUSSIAN, 'posterior',
    'rest * then.sigma**2', 'rest * now.sigma**2', OF_GAUSSIAN,
  ),
  Fault(
    'the posterior does not rescale z from alpha_t to alpha_s', 'factors', GAUSSIAN, 'posterior',
    'ratio * then.alpha / now.alpha', 'ratio', OF_GAUSSIAN,
  ),
  Fault(
    'the first noise of a sampler has unit deviation under every process', 'factors', GAUSSIAN, 'prior',
    'return expand(path.marginal(jnp.full(noise.shape[0], t, noise.dtype)).sigma, noise) * noise', 'return noise',
    OF_GAUSSIAN,
  ),
  Fault(
    'the noise level that the network sees is rounded to bfloat16', 'factors', GAUSSIAN, 'denoiser.denoise',
    'network(inputs, noise, key)', 'network(inputs, noise.astype(jnp.bfloat16).astype(noise.dtype), key)',
    OF_GAUSSIAN,
  ),
  Fault(
    'the denoiser keeps its dropout keys from the network', 'dropout', GAUSSIAN, 'denoiser.denoise',
    'network(inputs, noise, key)', 'network(inputs, noise, None)', ('tests/process/test_gaussian.py',),
  ),
  Fault(
    'no gradient reaches the parameters of a learned schedule', 'order', GAUSSIAN, 'bind.log_snr',
    'diffusion.schedule.log_snr(params, t)', 'diffusion.schedule.log_snr(jax.lax.stop_gradient(params), t)',
    ('tests/process/test_gaussian.py', 'tests/process/test_schedules.py'), techniques=('learned noise schedule',),
  ),
  Fault(
    'the log noise-to-signal ratio is halved and not quartered for the network', 'factors', OUTPUTS, '_encode',
    'jnp.log(marginal.sigma / marginal.alpha) / 4', 'jnp.log(marginal.sigma / marginal.alpha) / 2', OF_OUTPUTS,
  ),
  Fault(
    'v is decoded as if every process preserved variance', 'factors', OUTPUTS, 'v.decode',
    'norm = alpha**2 + sigma**2', 'norm = 1.0', OF_OUTPUTS,
  ),
  Fault(
    'the target of score prediction has the sign of the noise', 'formula', OUTPUTS, 'score.target',
    '-eps / expand(marginal.sigma, eps)', 'eps / expand(marginal.sigma, eps)', OF_OUTPUTS,
  ),
  Fault(
    "EDM's skip has the deviation and not the variance of the data", 'factors', OUTPUTS, 'edm.decode',
    '(sigma_data / norm) ** 2', 'sigma_data / norm', OF_OUTPUTS,
  ),
  Fault(
    'the sub-variance-preserving noise takes the root of the SNR for the SNR', 'formula', MARGINALS,
    'sub_variance_preserving', '1 + 4 * r**2', '1 + 4 * r', OF_MARGINALS,
  ),
  Fault(
    'a cosine schedule is cut at twice its log-SNR', 'formula', SCHEDULES, 'cosine',
    'math.exp(-log_snr / 2)', 'math.exp(-log_snr)', OF_SCHEDULES, techniques=('cosine noise schedule',),
  ),
  Fault(
    'the integral of linear betas lacks its half', 'factors', SCHEDULES, 'linear_beta.log_snr',
    'slope * u / 2', 'slope * u', OF_SCHEDULES, techniques=('linear-beta noise schedule',),
  ),
  Fault(
    'the steps of a table are one too late in time', 'formula', SCHEDULES, 'discrete',
    'np.linspace(0, 1, len(table))', 'np.arange(1, len(table) + 1) / len(table)', OF_SCHEDULES,
    techniques=('discrete noise schedule',),
  ),
  Fault(
    'a sigmoid schedule is twice as steep as it says', 'factors', SCHEDULES, 'sigmoid',
    'a = (end - start) / (2 * temperature)', 'a = (end - start) / temperature', OF_SCHEDULES,
    techniques=('sigmoid noise schedule',),
  ),
  Fault(
    'a sigmoid schedule that is not centered is shifted the wrong way', 'formula', SCHEDULES, 'sigmoid.log_snr',
    'centered + shift', 'centered - shift', OF_SCHEDULES, techniques=('sigmoid noise schedule',),
  ),
  Fault(
    'the ends of a geometric schedule are the logarithms of sigma, not of its square', 'factors', SCHEDULES,
    '_log_snr_of_sigmas', '-2 * math.log(sigma_min), -2 * math.log(sigma_max)',
    '-math.log(sigma_min), -math.log(sigma_max)', OF_SCHEDULES, techniques=('geometric noise schedule',),
  ),
  Fault(
    'the EDM schedule walks the noise evenly, as with rho = 1', 'experiments', SCHEDULES, 'edm',
    'low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)', 'rho = 1.0\nlow, high = sigma_min, sigma_max',
    OF_SCHEDULES, techniques=('EDM noise schedule',),
  ),
  Fault(
    'the log-SNR of a rectified flow is that of the amplitudes', 'factors', SCHEDULES, 'rectified_flow',
    '2 * jnp.log(rest / u)', 'jnp.log(rest / u)', OF_SCHEDULES, techniques=('rectified-flow noise schedule',),
  ),
  Fault(
    'a schedule is shifted by the logarithm of its factor once', 'factors', SCHEDULES, 'shifted',
    '2 * math.log(factor)', 'math.log(factor)', OF_SCHEDULES, techniques=('shifted noise schedule',),
  ),
  Fault(
    'a learned schedule moves its clean end as it learns', 'formula', SCHEDULES, 'learned.log_snr',
    '(rise(params, t) - first) / (last - first)', 'rise(params, t) / last', OF_SCHEDULES,
    techniques=('learned noise schedule',),
  ),
  Fault(
    'betas grow linearly, not their roots', 'formula', BETAS, 'scaled_linear',
    'lambda: roots() ** 2', 'linear(steps, first, last)', OF_BETAS, techniques=('scaled-linear noise schedule',),
  ),
  Fault(
    'the alpha bars of a cosine table are not squared', 'factors', BETAS, 'cosine.table',
    'np.cos(edges[1:]) ** 2 / np.cos(edges[:-1]) ** 2', 'np.cos(edges[1:]) / np.cos(edges[:-1])', OF_BETAS,
    techniques=('cosine table of betas',),
  ),
  Fault(
    'zero terminal SNR shifts the table and does not keep its first step', 'formula', BETAS,
    'zero_terminal_snr.table',
    'before[0] + (before - before[0]) * (before[0] - last) / (before[0] - before[-1])', 'before - before[-1] + last',
    OF_BETAS, techniques=('zero-terminal-SNR rescaling',),
  ),
  Fault(
    'one key chooses the component of a mixture and draws its noise', 'keys', ANALYTIC, 'draw.one',
    'which, noise = jax.random.split(key)', 'which = noise = key', OF_ANALYTIC,
  ),
  Fault(
    'mirrored examples of the exact denoiser carry the labels in reverse', 'data', ANALYTIC, 'empirical',
    'jnp.concatenate([tags, tags])', 'jnp.concatenate([tags, tags[::-1]])', OF_ANALYTIC,
  ),
  Fault(
    'an exact denoiser of standardized data does not scale the noise with the data', 'factors', ANALYTIC,
    'standardized.marginal', 'Marginal(alpha, deviation * sigma)', 'Marginal(alpha, sigma)', OF_ANALYTIC,
  ),
  Fault(
    'the mean of a box is moved away from its nearer edge', 'formula', ANALYTIC, 'box_mixture.denoise',
    'y + s * (jnp.exp(normal.logpdf(a) - inside) - jnp.exp(normal.logpdf(b) - inside))',
    'y - s * (jnp.exp(normal.logpdf(a) - inside) - jnp.exp(normal.logpdf(b) - inside))', OF_ANALYTIC,
  ),
]  # fmt: skip
