"""Faults of `diffusion/process/`."""

from tests.mutants.fault import Fault

FAULTS = [
  Fault(
    'the noise is added with the square of sigma', 'factors', 'diffusion/process/gaussian.py', 'diffuse',
    'expand(marginal.sigma, x0) * eps', 'expand(marginal.sigma**2, x0) * eps', ('tests/process/test_gaussian.py',),
  ),
  Fault(
    'the time of a log-SNR is sought on the wrong side', 'formula', 'diffusion/process/gaussian.py', 'bind.time.halve',
    'log_snr(middle) > value', 'log_snr(middle) < value', ('tests/process/test_gaussian.py',),
  ),
]  # fmt: skip
