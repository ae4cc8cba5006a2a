"""The registry of data sets."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl.utils import Registry

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> Any:
    """Build the data set `cfg.DATASET.NAME`."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return dataset(cfg)
