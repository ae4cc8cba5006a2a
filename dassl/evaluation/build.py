"""The registry of evaluators."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dassl.utils import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> Any:
    """Build the evaluator `cfg.TEST.EVALUATOR`; `kwargs` go to its constructor."""
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return evaluator(cfg, **kwargs)
