"""Compilation for tests that compute for long: the suite's programs are compiled quickly, and run slowly."""

import functools

import jax

optimized = functools.partial(
  jax.jit,
  compiler_options={
    'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False,
  },
)  # fmt: skip
