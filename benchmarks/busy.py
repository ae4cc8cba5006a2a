"""How much of a step a device computes, rather than waits for the host to launch something."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

STEPS = 5


def busy_share(step: Callable[[], Any], device: str) -> float:
    """Share of the time from the first operation's start to the last one's end in which an operation ran, 0 to 1.

    Args:
        step: called several times in a row, profiled; it must have been warmed up.
        device: "cuda", or "cpu", where an operator is an operation.
    """
    activity, kind = (
        (ProfilerActivity.CUDA, DeviceType.CUDA) if device == "cuda" else (ProfilerActivity.CPU, DeviceType.CPU)
    )
    with profile(activities=[activity]) as profiler:
        for _ in range(STEPS):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
    ranges = [event.time_range for event in profiler.events() if event.device_type == kind]
    return covered_share((each.start, each.end) for each in ranges)


def covered_share(intervals: Iterable[tuple[float, float]]) -> float:
    """Share of the span of some intervals that at least one of them covers.

    Raises:
        ValueError: there is no interval, so nothing ran.
    """
    ordered = sorted(intervals)
    if not ordered:
        raise ValueError("the profiler saw no operation on the device")
    begin, reached, covered = ordered[0][0], ordered[0][0], 0.0
    for start, end in ordered:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / (reached - begin)
