"""How often a training step or a test batch tells the device what to do: operations that launch a kernel, counted.

Below some hundred classes a GPU waits for these launches, not for arithmetic. They are counted on the CPU, which goes a
GPU's way (:func:`prompting.towers.attention.as_on_a_gpu`), on a CLIP with ViT-B/16's layers and a small width: how many
there are depends on layers, class names and method, not on the width. The names are ImageNet's, whose lengths differ as
real ones do. An operation of PyTorch counts as one kernel; some few, such as a norm of all gradients, launch two or
three on a GPU.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import ResNet50_Weights

from benchmarks.setup import build_trainer, random_batch, random_clip
from prompting.towers.attention import as_on_a_gpu
from trainers import device_step
from trainers.device_step import DeviceStep

# Operations that neither read nor write a tensor's values, but do not say in their schema that they return a view.
WITHOUT_KERNEL = (
    "_record_function_enter_new",
    "_record_function_exit",
    "_unsafe_view",
    "_reshape_alias",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "lift_fresh",
)


def imagenet_names(count: int) -> list[str]:
    """The first names of ImageNet's classes, as torchvision lists them; those that come twice are numbered.

    Raises:
        ValueError: ImageNet has fewer classes.
    """
    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    if count > len(names):
        raise ValueError(f"--classes {count}: ImageNet has {len(names)} classes")
    seen: Counter[str] = Counter()
    numbered = []
    for name in names[:count]:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return numbered


class KernelCounter(TorchDispatchMode):
    """Counts the operations that launch a kernel, by the phase that is set and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.counts: dict[str, Counter[str]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        returns = [value.alias_info for value in operation._schema.returns]
        is_view = bool(returns) and all(alias is not None and not alias.is_write for alias in returns)
        if not is_view and name not in WITHOUT_KERNEL:
            self.counts.setdefault(self.phase, Counter())[name] += 1
        return operation(*args, **(kwargs or {}))


@as_on_a_gpu()
def count_training(trainer: str, n_classes: int, batch: int, options: list[str]) -> dict[str, Counter[str]]:
    """Operations of a training step by phase and name; of the second step, since the first makes what is kept."""
    measured = _build(trainer, n_classes, options)
    step, counter = DeviceStep(measured), KernelCounter()
    for group in measured.optim.param_groups:
        group["foreach"] = True  # as by default on CUDA
    images, labels = measured.parse_batch_train(random_batch(measured, batch))
    measured.set_model_mode("train")
    step(images, labels)

    def begins(phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def begin(*args: Any) -> Any:
            counter.phase = phase
            return work(*args)

        return begin

    backward, optimiser = begins("backward", step.scaler.scale), begins("optimiser", step.scaler.step)
    report = mock.patch.object(device_step, "reported", begins("report", device_step.reported))
    with report, mock.patch.multiple(step.scaler, scale=backward, step=optimiser), counter:
        counter.phase = "forward"
        step(images, labels)
    return counter.counts


@as_on_a_gpu()
@torch.no_grad()
def count_evaluation(trainer: str, n_classes: int, batch: int, options: list[str]) -> Counter[str]:
    """Operations of a test batch by name, the text features computed before it where they do not vary per image."""
    measured = _build(trainer, n_classes, options)
    images, _ = measured.parse_batch_train(random_batch(measured, batch))
    images = images[0] if isinstance(images, list) else images
    measured.set_model_mode("eval")
    counter = KernelCounter()
    with measured.model.evaluating():
        measured.model(images)
        with counter:
            measured.model(images)
    return counter.counts[""]


def _build(trainer: str, n_classes: int, options: list[str]) -> Any:
    names, fixed = imagenet_names(n_classes), ["TRAIN.FROZEN_LINEAR", "native"]
    with contextlib.redirect_stdout(io.StringIO()):
        return build_trainer(trainer, random_clip("narrow"), names, "fast", "cpu", [*fixed, *options])
