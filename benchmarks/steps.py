"""What one training step or one test batch costs: time, memory, operations, kernels, and how these grow.

Every function that `python -m benchmarks` calls yields rows; what it yields is written at once, so that a long
measurement that is stopped keeps what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import ResNet50_Weights

from benchmarks.measure import (
    RATIO,
    SAMPLES,
    build_trainer,
    class_names,
    extrapolate,
    first_view,
    interleave,
    only_classes,
    parity,
    profiled,
    random_batch,
    random_clip,
    ratio_of,
    step_driver,
    summary,
)
from dassl.config import cfg_default
from dassl.engine import TRAINER_REGISTRY
from prompting.towers.attention import as_on_a_gpu
from results.operations import OperationCounter
from results.record import peak_memory
from trainers import step as device_step
from trainers.step import DeviceStep

# Operations that neither read nor write a tensor's values, but do not say in their schema that they return a view.
WITHOUT_KERNEL = (
    *("_record_function_enter_new", "_record_function_exit", "_unsafe_view", "_reshape_alias"),
    *("empty", "empty_like", "empty_strided", "new_empty", "lift_fresh"),
)
# What `slopes` varies, one quantity at a time away from these; 0 is the trainer's depth, the backbone's image size.
DEFAULTS = {"classes": 10, "batch": 4, "depth": 0, "pixels": 0}
VARIED = {
    "ViT-B/16": dict(classes=(10, 50, 100, 200), batch=(1, 2, 4, 8), depth=(1, 5, 9, 12), pixels=(160, 224, 288)),
    "tiny": dict(classes=(2, 4), batch=(1, 2), depth=(1, 3), pixels=(32, 48)),
}

# The tables' columns; see `print_table`.
COLUMNS = {
    **{name: f"{{{name}}}" for name in ("trainer", "classes", "batch")},
    **{"fast [s]": "{fast[median]:.4g}", "plain [s]": "{mark}{plain[median]:.4g}"},
    **{"fast [MiB]": "{mib[fast]:.0f}", "plain [MiB]": "{mark}{mib[plain]:.0f}"},
    **{"fast [GFLOP]": "{gflop[fast]:.4g}", "plain [GFLOP]": "{gflop[plain]:.4g}"},
    **{f"{path}: GPU utilisation": f"{{utilisation[{path}]:.0%}}" for path in ("fast", "plain")},
    **{of: f"{{kernels[{of}]}}" for of in ("forward", "backward", "report", "optimiser", "step", "test batch")},
    **{f"plain: {of}": f"{{plain_kernels[{of}]}}" for of in ("step", "test batch")},
    "plain / fast": RATIO,
    **{f"{path}: steps by": f"{{driver[{path}]}}" for path in ("fast", "plain")},
    "max logit difference": "{max_logit_difference:.1e}",
    "min gradient cosine": "{min_gradient_cosine:.7f}",
}
SLOPE_COLUMNS = {
    **{"varied": "{varied}", "value": "{value}", "counted [GFLOP]": "{gflop:.1f}", "step [ms]": "{ms:.0f}"},
    **{"GFLOP/s": "{gflop_per_s:.1f}", "memory [MiB]": "{mib:.0f}"},
}
GROWTH_COLUMNS = {"per": "{per}"} | {figure: f"{{{figure}:.3g}}" for figure in ("gflop", "ms", "mib")}


def options_for(trainer: str, args: argparse.Namespace) -> list[str]:
    """Configuration pairs of a trainer: its precision, the views that it compares, and the user's."""
    kind = TRAINER_REGISTRY.get(trainer)
    needed = {f"TRAINER.{kind.node}.PREC": args.precision, "DATALOADER.K_TRANSFORMS": str(kind.n_views)}
    return [*sum(needed.items(), ()), "TRAIN.CPU_HALF", "True", *args.opts]


def cases(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The head of a row and the configuration pairs, for every trainer and number of classes.

    The head has `plain_from_classes` where the plain path's figure is read off the line through fewer classes.
    """
    for name in args.trainer:
        # CoCoOp's published batch is 1: every image has texts of its own
        batch = args.batch or (100 if args.what == "eval" else 1 if name == "CoCoOp" else 4)
        for classes in args.classes:
            row = {"what": args.what, "trainer": name, "classes": classes, "batch": batch}
            measured = args.what in ("train", "eval", "memory") and "plain" in args.path
            if measured and classes > max(args.plain_up_to, SAMPLES[1]):
                row["plain_from_classes"] = list(SAMPLES)
            yield row, options_for(name, args)


def measure_time(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Times, ratio and parity of a training step (``train``) or of a test batch (``eval``).

    Beyond the counts at which the plain path runs, parity is checked on the classes of the larger of them: the fast
    path computes all classes, and its logits and gradients over these are held to the plain path's.
    """
    clip_model = random_clip(args.backbone)
    for row, options in cases(args):
        name, names, size = row["trainer"], class_names(row["classes"]), row["batch"]
        extrapolated = "plain_from_classes" in row
        count = SAMPLES[1] if extrapolated else len(names)
        chosen = [index * len(names) // count for index in range(count)]  # evenly spread
        some = [names[index] for index in chosen]
        lists = {path: names if path == "fast" else some for path in args.path}
        lists |= {"few": some[:: SAMPLES[1] // SAMPLES[0]]} if extrapolated else {}
        built = {
            path: build_trainer(name, clip_model, those, "fast" if path == "fast" else "plain", args.device, options)
            for path, those in lists.items()
        }
        if "fast" in built and "plain" in built:
            batch, what = random_batch(built["plain"], min(size, 4)), f"{name}, {len(names)} classes"
            with only_classes(built["fast"].model, chosen) if extrapolated else contextlib.nullcontext():
                row |= parity(built["fast"], built["plain"], batch, what)
        make = training_step if args.what == "train" else evaluation_batch
        works = {path: make(trainer, random_batch(trainer, size)) for path, trainer in built.items()}
        times = interleave(works, args.device, args.rounds, args.warm_up)
        if extrapolated:
            pairs = zip(times.pop("few"), times["plain"], strict=True)
            times["plain"] = [extrapolate(few, many, len(names)) for few, many in pairs]
        if args.what == "train":
            row["driver"] = {path: step_driver(built[path]) for path in args.path}
        if args.device == "cuda" and args.what == "train":
            row["utilisation"] = {path: profiled(works[path], args.device)["utilisation"] for path in args.path}
        yield row | summary(times)


def training_step(trainer: Any, batch: dict[str, Any]) -> Callable[[], Any]:
    """Forward, backward and optimiser step on one batch."""
    trainer.set_model_mode("train")
    return lambda: trainer.forward_backward(batch)


def evaluation_batch(trainer: Any, batch: dict[str, Any]) -> Callable[[], Any]:
    """One test batch. The plain path computes the text features again for every batch, as the released codes do."""
    images = first_view(trainer, batch)
    trainer.set_model_mode("eval")
    if trainer.path == "fast" and not trainer.model.prompt_learner.varies_per_image:
        with torch.no_grad():
            trainer.model._cached_text = trainer.model.text_features()
    return torch.no_grad()(lambda: trainer.model(images))


def measure_size(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Peak memory (``memory``, MiB) or operations (``flops``, GFLOP) of a training step on every path."""
    if args.what == "memory":
        unit, measure = "mib", functools.partial(training_memory, args.backbone, args.device)
    else:
        unit, measure = "gflop", functools.partial(training_flops, random_clip(args.backbone))
    for row, options in cases(args):
        figures: dict[str, float] = {}
        for path in args.path:
            counts = row.get("plain_from_classes", []) if path == "plain" else []
            found = [measure(row["trainer"], n, path, row["batch"], options) for n in counts or [row["classes"]]]
            figures[path] = extrapolate(*found, row["classes"]) if counts else found[0]
        ratio = {"ratio": ratio_of([figures["plain"]], [figures["fast"]])} if len(figures) == 2 else {}
        yield row | {unit: figures} | ratio


def training_memory(backbone: str, device: str, *case: Any, resolution: int | None = None) -> float:
    """MiB that two training steps add to the peak of a fresh process, since a peak never falls, or of CUDA's allocator.

    The case is that of `training_flops`.
    """
    arguments = json.dumps([backbone, device, resolution, *case])
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.steps", arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the measured process failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    return float(done.stdout.strip().splitlines()[-1])


def _added_mib(backbone: str, device: str, resolution: int | None, *case: Any) -> float:
    name, classes, path, batch, options = case
    torch.set_num_threads(1)
    trainer = build_trainer(name, random_clip(backbone, resolution), classes, path, device, options)
    trainer.set_model_mode("train")

    def peak() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_memory()["peak_rss_mib"]

    before = peak()
    for step in range(2):
        trainer.forward_backward(random_batch(trainer, batch, seed=step))
    return peak() - before


def training_flops(
    clip_model: nn.Module, trainer: str, n_classes: int, path: str, batch: int, options: list[str]
) -> float:
    """GFLOP of matrix products and attention in one training step, forward and backward; the rest is not counted.

    Nothing is computed: the tensors have shapes but no values.
    """
    measured = build_trainer(trainer, copy.deepcopy(clip_model), n_classes, path, "cpu", options)
    images, labels = measured.parse_batch_train(random_batch(measured, batch))
    model = measured.model.to("meta")
    images = [view.to("meta") for view in images] if isinstance(images, list) else images.to("meta")
    objective_to_meta(measured.objective)
    measured.objective(model, images, labels.to("meta"))  # a learner's frozen class features are computed once only
    with OperationCounter() as counter:
        loss = measured.objective(model, images, labels.to("meta"))
        device_step.differentiable(loss, model.parameters()).backward()
    return counter.total / 1e9


def objective_to_meta(objective: Any) -> None:
    """Frozen features that an objective, or one within it, compares with, without their values."""
    for name, value in vars(objective).items():
        if isinstance(value, torch.Tensor):
            setattr(objective, name, value.to("meta"))
        elif isinstance(value, torch.nn.Module):  # a teacher
            value.to("meta")
        elif name == "host":
            objective_to_meta(value)


def measure_kernels(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """How often a training step, by phase, and a test batch tell a GPU what to do.

    They are counted on the CPU, which goes a GPU's way (`as_on_a_gpu`), on a CLIP with ViT-B/16's layers and a small
    width: their number depends on layers, class names (ImageNet's here) and method, not on the width. An operation of
    PyTorch counts as one kernel; some few, such as a norm of all gradients, launch two or three on a GPU. The plain
    path computes the text features for every test batch, as released codes do.
    """
    for row, options in cases(args):
        case = row["trainer"], row["classes"], row["batch"], options
        for path in ("fast", "plain"):
            if path in args.path:
                counts = {phase: counted.total() for phase, counted in count_training(*case, path).items()}
                total = {"step": sum(counts.values()), "test batch": count_evaluation(*case, path).total()}
                row["kernels" if path == "fast" else "plain_kernels"] = counts | total
        yield row


@as_on_a_gpu()
def count_training(
    trainer: str, n_classes: int, batch: int, options: list[str], path: str = "fast"
) -> dict[str, Counter[str]]:
    """Operations of a training step by phase and name; of the second step, since the first makes what is kept."""
    measured = narrow_trainer(trainer, n_classes, options, path)
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
def count_evaluation(trainer: str, n_classes: int, batch: int, options: list[str], path: str = "fast") -> Counter[str]:
    """Operations of a test batch by name; on the fast path the text features are known where they can be."""
    measured = narrow_trainer(trainer, n_classes, options, path)
    images = first_view(measured, random_batch(measured, batch))
    measured.set_model_mode("eval")
    counter = KernelCounter()
    with measured.model.evaluating() if path == "fast" else contextlib.nullcontext():
        measured.model(images)
        with counter:
            measured.model(images)
    return counter.counts[""]


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


def narrow_trainer(trainer: str, n_classes: int, options: list[str], path: str = "fast") -> Any:
    """A trainer on a narrow CLIP, with ImageNet's class names as torchvision lists them; repeated ones are numbered."""
    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    if n_classes > len(names):
        raise ValueError(f"--classes {n_classes}: ImageNet has {len(names)} classes")
    numbered = [name if name not in names[:i] else f"{name} 2" for i, name in enumerate(names[:n_classes])]
    options = ["TRAIN.FROZEN_LINEAR", "native", *options]
    return build_trainer(trainer, random_clip("narrow"), numbered, path, "cpu", options)


def measure_slopes(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Operations, time and memory of a training step, as one quantity at a time moves away from its default.

    Raises:
        ValueError: the depth of prompts that have none is to be varied.
    """
    node = TRAINER_REGISTRY.get(args.trainer).node
    depths = [f"TRAINER.{node}.{key}" for key in cfg_default.TRAINER[node] if key.startswith("PROMPT_DEPTH")]
    if "depth" in args.vary and not depths:
        raise ValueError(f"--vary depth: the prompts of {args.trainer} have no depth; leave depth out")
    for varied in args.vary:
        for value in VARIED[args.backbone][varied]:
            point = DEFAULTS | {varied: value}
            resolution = point["pixels"] or None
            clip_model = random_clip(args.backbone, resolution)
            options = options_for(args.trainer, args)
            for key in depths if point["depth"] else []:
                options += [key, str(point["depth"])]
            case = args.trainer, point["classes"], args.path, point["batch"], options
            gflop = training_flops(clip_model, *case)
            trainer = build_trainer(args.trainer, clip_model, point["classes"], args.path, args.device, options)
            work = training_step(trainer, random_batch(trainer, point["batch"]))
            seconds = interleave({"step": work}, args.device, args.rounds)["step"]
            mib = training_memory(args.backbone, args.device, *case, resolution=resolution)
            ms = 1000 * statistics.median(seconds)
            row = {"varied": varied, "value": value, "gflop": gflop, "ms": ms, "gflop_per_s": 1000 * gflop / ms}
            yield row | {"seconds": seconds, "mib": mib}


def growth(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Least-squares slope of every figure against the varied quantity; of the image's side, against its pixels."""
    units = {"classes": "class", "batch": "image", "depth": "layer", "pixels": "pixel"}
    for varied in dict.fromkeys(row["varied"] for row in rows):
        some = [row for row in rows if row["varied"] == varied]
        x = [float(row["value"]) ** (2 if varied == "pixels" else 1) for row in some]
        of = {figure: [row[figure] for row in some] for figure in ("gflop", "ms", "mib")}
        yield {"per": units[varied]} | {key: statistics.linear_regression(x, y).slope for key, y in of.items()}


if __name__ == "__main__":
    print(_added_mib(*json.loads(sys.argv[1])))
