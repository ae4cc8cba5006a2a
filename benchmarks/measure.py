"""Timing two paths side by side, and checking that they compute the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

# The product's own bounds (tests/prompting/test_paths.py): a faster path that computes something else is no result.
MAX_LOGIT_DIFFERENCE = 1e-4
MIN_GRADIENT_COSINE = 0.999999


class ParityError(RuntimeError):
    """The two paths do not compute the same; no ratio is reported."""


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """CPU seconds of this process, or device seconds between CUDA events, of one call."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def interleave(
    works: dict[str, Callable[[], Any]], device: str, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each work in turn, A B A B ..., so that drift hits all alike; the first rounds do not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_index in range(warm_up + rounds):
        for name, work in works.items():
            seconds = seconds_of(work, device)
            if round_index >= warm_up:
                times[name].append(seconds)
    return times


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Median and spread of every path and, with two of them, the median of the round-by-round ratios plain / fast."""
    result: dict[str, Any] = {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in times.items()
    }
    if {"fast", "plain"} <= times.keys():
        ratios = [plain / fast for fast, plain in zip(times["fast"], times["plain"], strict=True)]
        result["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return result


def parity(trainers: dict[str, Any], batch: dict[str, Any]) -> dict[str, float]:
    """Largest logit difference and smallest gradient cosine between the paths, on the same weights and images.

    Both minimise the plain trainer's objective, which knows the classes that are compared.

    Raises:
        ParityError: beyond the product's bounds.
    """
    fast, plain = trainers["fast"], trainers["plain"]
    plain.model.prompt_learner.load_state_dict(fast.model.prompt_learner.state_dict())
    outputs = {name: _logits_and_gradients(trainer, plain.objective, batch) for name, trainer in trainers.items()}
    difference = float((outputs["fast"][0] - outputs["plain"][0]).abs().max())
    cosine = min(
        float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0, eps=1e-30))
        for a, b in zip(outputs["fast"][1], outputs["plain"][1], strict=True)
        if a.numel() > 1
    )
    if fast.precision.name == "fp32" and (difference > MAX_LOGIT_DIFFERENCE or cosine < MIN_GRADIENT_COSINE):
        raise ParityError(f"logits differ by {difference:.1e}, gradient cosine {cosine:.8f}: the paths do not agree")
    return {"max_logit_difference": difference, "min_gradient_cosine": cosine}


def _logits_and_gradients(
    trainer: Any, objective: Any, batch: dict[str, Any]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    images, labels = trainer.parse_batch_train(batch)
    if hasattr(objective, "step"):
        objective.step = 0  # the same draw for both
    loss = objective(trainer.model, images, labels)
    parameters = [p for p in trainer.model.prompt_learner.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss.total, parameters)
    return loss.output.logits.detach(), list(gradients)
