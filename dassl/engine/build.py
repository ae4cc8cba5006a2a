"""The registry of trainers."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl.utils import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> Any:
    """Build the trainer `cfg.TRAINER.NAME`."""
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer(cfg)
