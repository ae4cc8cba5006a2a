"""Measure the fast path against the plain one.

    python -m benchmarks train --trainer BMIP CoOp --classes 10 100 --output train.json
    python -m benchmarks eval --trainer BMIP --classes 100
    python -m benchmarks memory --trainer BMIP --classes 100 1000 --path fast
    python -m benchmarks loader --count 64
    python -m benchmarks flops --trainer BMIP --classes 10 100 1000
    python -m benchmarks kernels --trainer BMIP CoOp --classes 10 100 1000

A random ViT-B/16 stands in for CLIP (nothing is downloaded). Runs alternate in one process; on the CPU the figure is
CPU time with one thread, on CUDA time between events. Parity of logits and gradients is checked first: paths that do
not agree are an error, not a ratio. Above --plain-up-to classes the plain path's figure is read off the straight line
through two smaller counts, and marked with a ~; parity is then checked on the classes of the larger.
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

from benchmarks import loader
from benchmarks.beyond import SAMPLES, on_the_line, only_classes, spread
from benchmarks.busy import busy_share
from benchmarks.flops import training_flops
from benchmarks.kernels import count_evaluation, count_training
from benchmarks.measure import ParityError, interleave, parity, summary
from benchmarks.memory import training_memory
from benchmarks.setup import SIZES, build_trainer, class_names, random_batch, random_clip
from benchmarks.tables import print_lines
from common.commandline import add_debug, guarded

UNITS = {"memory": "mib", "flops": "gflop"}
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
        "what", choices=("train", "eval", "memory", "flops", "kernels", "loader"), help="what is measured"
    )
    parser.add_argument("--trainer", nargs="+", default=["BMIP"], help="registered names")
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 100], help="numbers of classes")
    parser.add_argument("--path", nargs="+", choices=("fast", "plain"), default=["fast", "plain"])
    parser.add_argument("--backbone", choices=tuple(SIZES), default="ViT-B/16")
    parser.add_argument("--batch", type=int, help="images per batch; default 100 for eval, else 4 (CoCoOp: 1)")
    parser.add_argument(
        "--plain-up-to",
        type=int,
        default=SAMPLES[1],
        help=f"classes at which the plain path is still run; {SAMPLES[1]} at least and by default",
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before them")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", help="fp32, fp16, bf16, amp")
    parser.add_argument("--json", "--output", dest="output", help="also write the figures as JSON")
    add_debug(parser)
    parser.add_argument("--opts", nargs="+", default=[], help="KEY VALUE pairs for the configuration")
    loader.add_options(parser)
    return parser


def options_for(trainer: str, args: argparse.Namespace) -> list[str]:
    """Configuration pairs of a trainer: its precision, what it needs, and the user's."""
    from dassl.engine import TRAINER_REGISTRY

    node = TRAINER_REGISTRY.get(trainer).node
    return [f"TRAINER.{node}.PREC", args.precision, "TRAIN.CPU_HALF", "True", *OPTIONS.get(trainer, []), *args.opts]


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


def is_beyond(args: argparse.Namespace, classes: int) -> bool:
    """Whether the plain path's figure is read off the line, at more classes than those it is drawn through."""
    return classes > max(args.plain_up_to, SAMPLES[1])


def batch_of(name: str, args: argparse.Namespace) -> int:
    """Images per batch: CoCoOp's published one where every image has texts of its own."""
    return args.batch or (100 if args.what == "eval" else 1 if name == "CoCoOp" else 4)


def build_quietly(*arguments: Any) -> Any:
    """A trainer; what Dassl says while building is no result."""
    with contextlib.redirect_stdout(io.StringIO()):
        return build_trainer(*arguments)


def measure_time(args: argparse.Namespace, clip_model: torch.nn.Module, name: str, classes: int) -> dict[str, Any]:
    """Times, ratio and parity of one trainer at one number of classes."""
    batch_size, options = batch_of(name, args), options_for(name, args)
    result: dict[str, Any] = {"what": args.what, "trainer": name, "classes": classes, "batch": batch_size}
    beyond = "plain" in args.path and is_beyond(args, classes)
    names = class_names(classes)
    chosen = spread(names, SAMPLES[1]) if beyond else list(range(classes))
    some = [names[index] for index in chosen]
    built = (
        {"fast": build_quietly(name, clip_model, names, "fast", args.device, options)} if "fast" in args.path else {}
    )
    if "plain" in args.path:
        built["plain"] = build_quietly(name, clip_model, some, "plain", args.device, options)
    if len(built) == 2:
        with only_classes(built["fast"].model, chosen) if beyond else contextlib.nullcontext():
            result |= parity(built, random_batch(built["plain"], min(batch_size, 4)))
    if beyond:
        few = some[:: SAMPLES[1] // SAMPLES[0]]
        built["few"] = build_quietly(name, clip_model, few, "plain", args.device, options)
    make = training_step if args.what == "train" else evaluation_batch
    works = {path: make(trainer, random_batch(trainer, batch_size)) for path, trainer in built.items()}
    times = interleave(works, args.device, args.rounds, args.warm_up)
    if beyond:
        pairs = zip(times.pop("few"), times["plain"], strict=True)
        times["plain"] = [on_the_line(low, high, classes) for low, high in pairs]
        result["plain_from_classes"] = list(SAMPLES)
    if args.device == "cuda" and args.what == "train":
        result["busy"] = {path: busy_share(works[path], args.device) for path in works if path != "few"}
    return result | summary(times)


def measure_size(
    args: argparse.Namespace, clip_model: torch.nn.Module | None, name: str, classes: int
) -> dict[str, Any]:
    """Peak memory or operations of a training step on every path."""
    batch, options = batch_of(name, args), options_for(name, args)
    result: dict[str, Any] = {"what": args.what, "trainer": name, "classes": classes, "batch": batch}

    def measure(path: str, count: int) -> float:
        if args.what == "flops":
            return training_flops(clip_model, name, count, path, batch, options)
        return training_memory(args.backbone, name, count, path, batch, options, args.device)

    unit = UNITS[args.what]
    result[unit] = {}
    for path in args.path:
        if args.what == "memory" and path == "plain" and is_beyond(args, classes):
            result[unit][path] = on_the_line(*(measure(path, count) for count in SAMPLES), classes)
            result["plain_from_classes"] = list(SAMPLES)
        else:
            result[unit][path] = measure(path, classes)
    if len(result[unit]) == 2:
        result["ratio"] = {"median": result[unit]["plain"] / result[unit]["fast"]}
    return result


def count_kernels(args: argparse.Namespace, name: str, classes: int) -> dict[str, Any]:
    """What one training step, by phase, and one test batch tell a GPU to do."""
    batch, options = batch_of(name, args), options_for(name, args)
    counts = {phase: c.total() for phase, c in count_training(name, classes, batch, options).items()}
    counts |= {"step": sum(counts.values()), "test batch": count_evaluation(name, classes, batch, options).total()}
    return {"what": args.what, "trainer": name, "classes": classes, "batch": batch, "kernels": counts}


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on."""
    from results.schema import collect_environment

    environment = collect_environment(args.device, args.precision)
    return {**environment, "threads": args.threads, "cores": os.cpu_count(), "machine": platform.machine()}


def print_table(rows: list[dict[str, Any]]) -> None:
    """The figures as a table."""
    lines = []
    for row in rows:
        line = {"trainer": row["trainer"], "classes": row["classes"], "batch": row["batch"]}
        for path in ("fast", "plain"):
            mark = "~" if path == "plain" and "plain_from_classes" in row else ""
            if path in row:
                line[f"{path} [ms]"] = f"{mark}{1000 * row[path]['median']:.0f}"
            for unit, title in (("mib", "MiB"), ("gflop", "GFLOP")):
                if path in row.get(unit, {}):
                    line[f"{path} [{title}]"] = f"{mark}{row[unit][path]:.0f}"
            if path in row.get("busy", {}):
                line[f"{path}: GPU busy"] = f"{row['busy'][path]:.0%}"
        line |= row.get("kernels", {})
        if "ratio" in row:
            spread = f" ({row['ratio']['min']:.2f} - {row['ratio']['max']:.2f})" if "min" in row["ratio"] else ""
            line["plain / fast"] = f"{row['ratio']['median']:.2f}{spread}"
        if "max_logit_difference" in row:
            line["max logit difference"] = f"{row['max_logit_difference']:.1e}"
            line["min gradient cosine"] = f"{row['min_gradient_cosine']:.7f}"
        lines.append(line)
    print_lines(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when the paths do not agree, or there is nothing to load."""
    return guarded(run, build_parser().parse_args(argv), {ParityError: 1, loader.NoPhotosError: 1})


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write where asked to.

    Raises:
        ParityError: the paths do not agree.
    """
    torch.set_num_threads(args.threads)
    if args.what == "loader":
        loader.run(args, machine)
        return
    rows = []
    # memory has processes of its own, kernels a CLIP of its own
    clip_model = None if args.what in ("memory", "kernels") else random_clip(args.backbone)
    try:
        for name in args.trainer:
            for classes in args.classes:
                if args.what == "kernels":
                    rows.append(count_kernels(args, name, classes))
                elif args.what in UNITS:
                    rows.append(measure_size(args, clip_model, name, classes))
                else:
                    rows.append(measure_time(args, clip_model, name, classes))
                write_json(args, rows)
    except ParityError as error:
        raise ParityError(f"{name}, {classes} classes: {error}") from error
    print_table(rows)


def write_json(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write all rows so far, if asked to: a long measurement that is stopped keeps what it has."""
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(args), "command": sys.argv[1:], "rows": rows}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
