"""Timing two ways of the same work side by side, and checking first that they compute the same."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

# The product's bounds (tests/prompting/test_paths.py): a faster path that computes something else is no result.
MAX_LOGIT_DIFFERENCE = 1e-4
MIN_GRADIENT_COSINE = 0.999999

# Class counts at which the plain path runs where more are wanted than fit into memory or patience. Its cost is a
# straight line in the classes: a text tower of 77 tokens per class, beside an image tower that knows no classes. They
# are wide apart, since the line carries their noise far; and the larger one so large that malloc takes the tensors
# from the system and gives them back each time, as at the wanted count.
SAMPLES = (10, 120)
PROFILED_STEPS = 5


class ParityError(RuntimeError):
    """The two ways do not compute the same; no ratio is reported."""


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


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio_of(slow: Sequence[float], quick: Sequence[float]) -> dict[str, float]:
    """Median and spread of the ratios round by round."""
    return spread_of([one / other for one, other in zip(slow, quick, strict=True)])


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Median and spread of every way and, where "fast" and "plain" are among them, of the ratios plain / fast."""
    result: dict[str, Any] = {name: spread_of(values) for name, values in times.items()}
    if {"fast", "plain"} <= times.keys():
        result["ratio"] = ratio_of(times["plain"], times["fast"])
    return result


def shown(ratio: dict[str, float] | None) -> str:
    """A ratio with its spread, as text."""
    return "{median:.2f} ({min:.2f} - {max:.2f})".format(**ratio) if ratio else "-"


def parity(trainers: dict[str, Any], batch: dict[str, Any], what: str) -> dict[str, float]:
    """Largest logit difference and smallest gradient cosine between the paths, on the same weights and images.

    Both minimise the plain trainer's objective, which knows the classes that are compared.

    Args:
        trainers: "fast" and "plain".
        batch: of training.
        what: is compared, for the message.

    Raises:
        ParityError: beyond the product's bounds.
    """
    fast, plain = trainers["fast"], trainers["plain"]
    plain.model.prompt_learner.load_state_dict(fast.model.prompt_learner.state_dict())
    outputs = {}
    for name, trainer in trainers.items():
        images, labels = trainer.parse_batch_train(batch)
        if hasattr(plain.objective, "step"):
            plain.objective.step = 0  # the same draw for both
        loss = plain.objective(trainer.model, images, labels)
        parameters = [p for p in trainer.model.prompt_learner.parameters() if p.requires_grad]
        outputs[name] = loss.output.logits.detach(), torch.autograd.grad(loss.total, parameters)
    difference = float((outputs["fast"][0] - outputs["plain"][0]).abs().max())
    cosine = min(
        float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0, eps=1e-30))
        for a, b in zip(outputs["fast"][1], outputs["plain"][1], strict=True)
        if a.numel() > 1
    )
    if fast.precision.name == "fp32" and (difference > MAX_LOGIT_DIFFERENCE or cosine < MIN_GRADIENT_COSINE):
        raise ParityError(
            f"{what}: logits differ by {difference:.1e}, gradient cosine {cosine:.8f}: the paths do not agree"
        )
    return {"max_logit_difference": difference, "min_gradient_cosine": cosine}


def evenly_spread(names: Sequence[str], count: int) -> list[int]:
    """``count`` positions spread evenly over a class list."""
    return [index * len(names) // count for index in range(count)]


def extrapolate(few: float, many: float, classes: int) -> float:
    """Value at ``classes`` of the straight line through the values at the two sample counts."""
    return many + (classes - SAMPLES[1]) * (many - few) / (SAMPLES[1] - SAMPLES[0])


@contextlib.contextmanager
def only_classes(model: nn.Module, chosen: list[int]) -> Iterator[None]:
    """Inside, the model classifies over some of its classes, though it computes the features of all.

    Raises:
        ValueError: for a model whose objective reads its text features by itself.
    """
    if hasattr(model, "features_of"):
        raise ValueError("ProDA's objective reads all classes: measure it with --plain-up-to at least --classes")
    text_features = model.text_features
    model.text_features = lambda prompts=None: text_features(prompts)[..., chosen, :]
    try:
        yield
    finally:
        del model.text_features


def device_utilisation(step: Callable[[], Any], device: str) -> float:
    """Share of the time in which a device computes rather than waits for the host to launch something, 0 to 1.

    Args:
        step: called several times in a row, profiled; it must have been warmed up.
        device: "cuda", or "cpu", where an operator is an operation.
    """
    activity, kind = (
        (ProfilerActivity.CUDA, DeviceType.CUDA) if device == "cuda" else (ProfilerActivity.CPU, DeviceType.CPU)
    )
    with profile(activities=[activity]) as profiler:
        for _ in range(PROFILED_STEPS):
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
