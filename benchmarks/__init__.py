"""Speed and memory of the fast path against the plain one. Run ``python -m benchmarks --help``."""
