"""Measure what a step, an evaluation and a run cost, and how the fast path compares to the plain one.

    python -m benchmarks train --trainer BMIP CoOp --classes 10 100 --output train.json
    python -m benchmarks eval --trainer BMIP --classes 100
    python -m benchmarks memory --trainer BMIP --classes 100 1000 --path fast
    python -m benchmarks flops --trainer BMIP --classes 10 100 1000
    python -m benchmarks kernels --trainer BMIP CoOp --classes 10 100 1000
    python -m benchmarks slopes --trainer BMIP --vary classes batch
    python -m benchmarks splits --trainer CoOp MaPLe BMIP
    python -m benchmarks loader --count 64
    python -m benchmarks workers --workers 1 2 8
    python -m benchmarks long_session --epochs 200
    python -m benchmarks gpu --json gpu.json

A random ViT-B/16 stands in for CLIP (nothing is downloaded). Runs alternate in one process; on the CPU the figure is
CPU time with one thread, on CUDA time between events. Parity is checked first: ways that do not agree are an error, not
a ratio. --precision is that of a run with this PREC, in towers, autocast and loss scaling, on the CPU too; beside fp32
both paths are then held to fp32 on the same weights: logits within 0.1 and gradient cosine 0.99 in float16, 1 and 0.9
in bfloat16. Above --plain-up-to classes the plain path's figure is read off the straight line through two smaller
counts, and marked with a ~; parity is then checked on the classes of the larger.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import gpu, runs, steps
from benchmarks.measure import SAMPLES, SIZES, ParityError, print_table
from common.commandline import add_debug, guarded
from common.files import atomic_write
from results.record import collect_environment

STEP_COMMANDS = {
    "train": (steps.measure_time, "time of a training step, fast and plain"),
    "eval": (steps.measure_time, "time of a test batch, fast and plain"),
    "memory": (steps.measure_size, "peak memory of a training step"),
    "flops": (steps.measure_size, "operations of a training step, counted"),
    "kernels": (steps.measure_kernels, "what a step tells a GPU to do, counted"),
}


def build_parser() -> argparse.ArgumentParser:
    """Command line: `args.measure` yields the rows of a table of `args.columns`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")

    def command(
        name: str, measure: Any, columns: dict[str, str], help: str, rounds: int = 0, options: Sequence[str] = ()
    ) -> Any:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(measure=measure, columns=columns, device="cpu", precision="fp32", opts=[], threads=1)
        if rounds:
            added.add_argument("--rounds", type=int, default=rounds, help="counted rounds")
        if name != "memory":  # whose process has one
            added.add_argument("--threads", type=int, help="CPU threads")
        added.add_argument("--json", "--output", dest="output", help="also write the figures as JSON")
        add_debug(added)
        if "device" in options:
            added.add_argument("--device", choices=("cpu", "cuda"))
        if "precision" in options:
            added.add_argument("--precision", help="fp32, fp16, bf16, amp")
        if "opts" in options:
            added.add_argument("--opts", nargs="+", help="KEY VALUE pairs for the configuration")
        return added.add_argument

    for name, (measure, text) in STEP_COMMANDS.items():
        timed, counted = measure is steps.measure_time, name in ("flops", "kernels")
        options = ("precision", "opts") if counted else ("device", "precision", "opts")
        add = command(name, measure, steps.COLUMNS, text, rounds=5 if timed else 0, options=options)
        add("--trainer", nargs="+", default=["BMIP"], help="registered names")
        add("--classes", nargs="+", type=int, default=[10, 100], help="numbers of classes")
        add("--path", nargs="+", choices=("fast", "plain"), default=["fast", "plain"])
        add("--batch", type=int, help="images per batch; default 100 for eval, else 4 (CoCoOp: 1)")
        if name != "kernels":  # which are counted on a narrow one
            add("--backbone", choices=tuple(SIZES), default="ViT-B/16")
        if not counted:
            up_to = f"classes at which the plain path is still run; {SAMPLES[1]} at least and by default"
            add("--plain-up-to", type=int, default=SAMPLES[1], help=up_to)
        if timed:
            add("--warm-up", type=int, default=1, help="rounds before those that count")

    text = "how a step's cost grows"
    options = ("device", "precision", "opts")
    add = command("slopes", steps.measure_slopes, steps.SLOPE_COLUMNS, text, rounds=3, options=options)
    add("--trainer", default="BMIP", help="registered name")
    add("--vary", nargs="+", choices=tuple(steps.DEFAULTS), default=list(steps.DEFAULTS))
    add("--backbone", choices=tuple(steps.VARIED), default="ViT-B/16")
    add("--path", choices=("fast", "plain"), default="fast")

    add = command("splits", runs.measure_splits, runs.SPLIT_COLUMNS, "testing on several class splits", rounds=3)
    add("--trainer", nargs="+", default=["CoOp", "MaPLe", "BMIP"], help="registered names")
    add("--backbone", choices=tuple(SIZES), default="ViT-B/16")
    add("--images", type=int, default=4, help="test images of each of the ten classes")
    add("--batch", type=int, default=100, help="images per batch")

    text = "decoding and transforms of images"
    add = command("loader", runs.measure_loader, runs.LOADER_COLUMNS, text, rounds=5, options=("device", "opts"))
    add("--images", help="folder that is searched for .jpg files; default: generated ones")
    add("--size", nargs="+", default=runs.PHOTO_SIZES, help="width x height of generated images")
    add("--count", type=int, default=64, help="number of images")
    add("--draft", nargs="*", type=float, default=[1.0, 2.0], help="values of INPUT.JPEG_DRAFT")
    add("--batch", type=int, default=32, help="images per batch")

    add = command("workers", runs.measure_workers, runs.WORKER_COLUMNS, "loader processes kept or not")
    add("--workers", nargs="+", type=int, default=[2], help="numbers of loader processes")
    add("--shots", type=int, default=16)
    add("--epochs", type=int, default=10, help="counted epochs of each kind")

    add = command("long_session", runs.measure_session, runs.SESSION_COLUMNS, "what grows in a long run")
    add("--epochs", type=int, default=200)
    add("--workers", type=int, default=2)

    text = "first contact with a card: is all as it should be, and what does it cost"
    add = command("gpu", gpu.measure_gpu, gpu.COLUMNS, text, rounds=10)
    add("--device", choices=("cpu", "cuda"), default="cuda")
    add("--minutes", type=float, default=8.0, help="what is left then is skipped; default: %(default)g")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when the ways do not agree or something grew."""
    return guarded(run, build_parser().parse_args(argv), {ParityError: 1})


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write where asked to.

    Raises:
        ParityError: the ways do not agree.
    """
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    machine = {"threads": args.threads, "cores": os.cpu_count(), "machine": platform.machine()}
    try:
        for row in args.measure(args):
            rows.append(row)
            if args.output:  # a long measurement that is stopped keeps what it has
                if len(rows) == 1:
                    machine |= collect_environment(args.device, args.precision)
                with atomic_write(args.output, "w") as file:
                    json.dump({"machine": machine, "command": sys.argv[1:], "rows": rows}, file, indent=1)
    finally:
        if rows:
            print_table(rows, args.columns)
        if rows and args.what == "slopes":
            print_table(list(steps.growth(rows)), steps.GROWTH_COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
