"""Speed and memory of the fast path against the plain one. Run ``python -m benchmarks --help``."""

import prompting  # noqa: F401  before clip, whose warning about pkg_resources it silences
