"""Floating-point operations of a training step, counted without computing: tensors have shapes but no values."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.setup import build_trainer, random_batch


def training_flops(
    clip_model: nn.Module, trainer: str, n_classes: int, path: str, batch: int, options: list[str]
) -> float:
    """GFLOP of matrix products and attention in one training step, forward and backward; the rest is not counted."""
    with contextlib.redirect_stdout(io.StringIO()):
        measured: Any = build_trainer(trainer, copy.deepcopy(clip_model), n_classes, path, "cpu", options)
    images, labels = measured.parse_batch_train(random_batch(measured, batch))
    model = measured.model.to("meta")
    images = [view.to("meta") for view in images] if isinstance(images, list) else images.to("meta")
    objective_to_meta(measured.objective)
    counter = FlopCounterMode(display=False)
    with counter:
        measured.objective(model, images, labels.to("meta")).total.backward()
    return counter.get_total_flops() / 1e9


def objective_to_meta(objective: Any) -> None:
    """Frozen features that an objective compares with, without their values."""
    for name, value in vars(objective).items():
        if isinstance(value, torch.Tensor):
            setattr(objective, name, value.to("meta"))
