"""Two ways to the same numbers: a CPU's time goes into operations, a GPU's into being told each of them.

So a CPU pads nothing and skips the rows that nobody reads, in several calls; a GPU computes them along in one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_forced: bool | None = None


def few_launches(device: torch.device) -> bool:
    """Whether few large operations are wanted rather than little arithmetic."""
    return device.type != "cpu" if _forced is None else _forced


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Go a GPU's way on the CPU, to count and to test it; for encoders that are built and run inside."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before
