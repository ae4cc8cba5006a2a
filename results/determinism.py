"""Whether a run can be repeated to the last bit, and what results.json says about it.

Owns the configuration key `TRAIN.DETERMINISTIC`: one setting for all the flags that make CUDA repeat itself. A run on
the CPU needs none. Either way the same bits need the same machine, package versions and number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dassl.config import cfg_default

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # read when CUDA starts

cfg_default.TRAIN.DETERMINISTIC = False  # CUDA only: slower, and an operation that cannot repeat itself is an error


@contextmanager
def determinism(cfg: Any) -> Iterator[None]:
    """Set the flags that `TRAIN.DETERMINISTIC` stands for while the context lasts.

    Without it CUDA is free to choose the fastest convolutions by trying them out.
    """
    flags = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    if cfg.TRAIN.DETERMINISTIC:
        os.environ.setdefault(CUBLAS, ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = flags[0]
        torch.use_deterministic_algorithms(flags[1])


def describe_determinism(cfg: Any, device: torch.device, exact: bool = True) -> dict[str, Any]:
    """What held while the run ran; `bit_identical`: the same command on this machine gives the same bits.

    Args:
        cfg: the run's configuration.
        device: it computed on.
        exact: whether, if it was stopped and went on, it went on to the bits of an uninterrupted run.
    """
    algorithms = torch.are_deterministic_algorithms_enabled()
    return {
        "bit_identical": cfg.SEED >= 0 and (device.type == "cpu" or algorithms) and exact,
        "seeded": cfg.SEED >= 0,
        "resumed_exactly": exact,
        "deterministic_algorithms": algorithms,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cublas_workspace": os.environ.get(CUBLAS),
        "loader_workers": cfg.DATALOADER.NUM_WORKERS,
    }
