"""Measure the fast path against the plain one.

    python -m benchmarks train --trainer BMIP CoOp --classes 10 100 --output train.json
    python -m benchmarks eval --trainer BMIP --classes 100
    python -m benchmarks memory --trainer BMIP --classes 100 1000 --path fast
    python -m benchmarks loader --count 64

A random ViT-B/16 stands in for CLIP (nothing is downloaded). Runs alternate in one process; on the CPU the figure is
CPU time with one thread, on CUDA time between events. Parity of logits and gradients is checked first: paths that do
not agree are an error, not a ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tabulate import tabulate

from benchmarks import loader
from benchmarks.measure import ParityError, interleave, parity, summary
from benchmarks.memory import training_memory
from benchmarks.setup import SIZES, build_trainer, random_batch, random_clip
from commandline import add_debug, guarded

# Published depth and length for methods whose defaults need it; two views for CoPrompt.
OPTIONS = {
    "CoPrompt": ["DATALOADER.K_TRANSFORMS", "2"],
    "CoPrompt_BMIP": ["DATALOADER.K_TRANSFORMS", "2"],
}


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        choices=("train", "eval", "memory", "loader"),
        help="training step, test batch, peak memory or data loader",
    )
    parser.add_argument("--trainer", nargs="+", default=["BMIP"], help="registered names")
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 100], help="numbers of classes")
    parser.add_argument("--path", nargs="+", choices=("fast", "plain"), default=["fast", "plain"])
    parser.add_argument("--backbone", choices=tuple(SIZES), default="ViT-B/16")
    parser.add_argument("--batch", type=int, help="images per batch; default 4 for train and memory, 100 for eval")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", help="fp32, fp16, bf16, amp")
    parser.add_argument("--output", help="also write the figures as JSON")
    add_debug(parser)
    parser.add_argument("--opts", nargs="+", default=[], help="KEY VALUE pairs for the configuration")
    loader.add_options(parser)
    return parser


def options_for(trainer: str, args: argparse.Namespace) -> list[str]:
    """Configuration pairs of a trainer: its precision, what it needs, and the user's."""
    from dassl.engine import TRAINER_REGISTRY

    node = TRAINER_REGISTRY.get(trainer).node
    return [f"TRAINER.{node}.PREC", args.precision, *OPTIONS.get(trainer, []), *args.opts]


def training_step(trainer: Any, batch: dict[str, Any]) -> Callable[[], Any]:
    """Forward, backward and optimiser step on one batch."""
    trainer.set_model_mode("train")
    return lambda: trainer.forward_backward(batch)


def evaluation_batch(trainer: Any, batch: dict[str, Any]) -> Callable[[], Any]:
    """One test batch. The plain path computes the text features again for every batch, as the released codes do."""
    images = trainer.parse_batch_train(batch)[0]
    images = images[0] if isinstance(images, list) else images
    trainer.set_model_mode("eval")
    if trainer.path == "fast" and not trainer.model.prompt_learner.varies_per_image:
        with torch.no_grad():
            trainer.model._cached_text = trainer.model.text_features()

    def work() -> Any:
        with torch.no_grad():
            return trainer.model(images)

    return work


def measure_time(args: argparse.Namespace, clip_model: torch.nn.Module, name: str, classes: int) -> dict[str, Any]:
    """Times, ratio and parity of one trainer at one number of classes."""
    batch_size = args.batch or (4 if args.what == "train" else 100)
    with contextlib.redirect_stdout(io.StringIO()):  # what Dassl says while building is no result
        built = {
            path: build_trainer(name, clip_model, classes, path, args.device, options_for(name, args))
            for path in args.path
        }
    batch = random_batch(built[args.path[0]], batch_size)
    result: dict[str, Any] = {"what": args.what, "trainer": name, "classes": classes, "batch": batch_size}
    if len(built) == 2:
        result |= parity(built, random_batch(built["fast"], min(batch_size, 4)))
    make = training_step if args.what == "train" else evaluation_batch
    works = {path: make(trainer, batch) for path, trainer in built.items()}
    return result | summary(interleave(works, args.device, args.rounds))


def measure_memory(args: argparse.Namespace, name: str, classes: int) -> dict[str, Any]:
    """Peak memory of a training step on every path."""
    batch = args.batch or 4
    options = options_for(name, args)
    mib = {path: training_memory(args.backbone, name, classes, path, batch, options) for path in args.path}
    result: dict[str, Any] = {"what": "memory", "trainer": name, "classes": classes, "batch": batch, "mib": mib}
    if len(mib) == 2:
        result["ratio"] = {"median": mib["plain"] / mib["fast"]}
    return result


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on."""
    from evaluation.results import collect_environment

    environment = collect_environment(args.device, args.precision)
    return {**environment, "threads": args.threads, "cores": os.cpu_count(), "machine": platform.machine()}


def print_table(rows: list[dict[str, Any]]) -> None:
    """The figures as a table."""
    lines = []
    for row in rows:
        line = {"trainer": row["trainer"], "classes": row["classes"], "batch": row["batch"]}
        for path in ("fast", "plain"):
            if path in row:
                line[f"{path} [ms]"] = f"{1000 * row[path]['median']:.0f}"
            if path in row.get("mib", {}):
                line[f"{path} [MiB]"] = f"{row['mib'][path]:.0f}"
        if "ratio" in row:
            spread = f" ({row['ratio']['min']:.2f} - {row['ratio']['max']:.2f})" if "min" in row["ratio"] else ""
            line["plain / fast"] = f"{row['ratio']['median']:.2f}{spread}"
        if "max_logit_difference" in row:
            line["max logit difference"] = f"{row['max_logit_difference']:.1e}"
            line["min gradient cosine"] = f"{row['min_gradient_cosine']:.7f}"
        lines.append(line)
    print(tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when the paths do not agree."""
    return guarded(run, build_parser().parse_args(argv), {ParityError: 1})


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write where asked to.

    Raises:
        ParityError: the paths do not agree.
    """
    torch.set_num_threads(args.threads)
    if args.what == "loader":
        return loader.main(args, machine)
    rows = []
    clip_model = random_clip(args.backbone) if args.what != "memory" else None
    try:
        for name in args.trainer:
            for classes in args.classes:
                if args.what == "memory":
                    rows.append(measure_memory(args, name, classes))
                else:
                    rows.append(measure_time(args, clip_model, name, classes))
    except ParityError as error:
        raise ParityError(f"{name}, {classes} classes: {error}") from error
    print_table(rows)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(args), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
