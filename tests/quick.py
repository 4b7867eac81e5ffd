"""What makes short programs start sooner in tests."""

# For programs that take a few steps only: half the time to compile, slower code, the same results.
QUICK = {'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'}
