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

A random ViT-B/16 stands in for CLIP (nothing is downloaded). Runs alternate in one process; on the CPU the figure is
CPU time with one thread, on CUDA time between events. Parity is checked first: ways that do not agree are an error, not
a ratio. Above --plain-up-to classes the plain path's figure is read off the straight line through two smaller counts,
and marked with a ~; parity is then checked on the classes of the larger.
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
from tabulate import tabulate

from benchmarks import runs, steps
from benchmarks.measure import SAMPLES, SIZES, ParityError
from common.commandline import add_debug, guarded
from results.schema import collect_environment

STEP_COMMANDS = {
    "train": (steps.measure_time, "time of a training step, fast and plain"),
    "eval": (steps.measure_time, "time of a test batch, fast and plain"),
    "memory": (steps.measure_size, "peak memory of a training step"),
    "flops": (steps.measure_size, "operations of a training step, counted"),
    "kernels": (steps.measure_kernels, "what a step tells a GPU to do, counted"),
}


def build_parser() -> argparse.ArgumentParser:
    """Command line: `args.measure` yields rows, every function of `args.tables` turns them into lines."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    trainers = {"nargs": "+", "default": ["CoOp", "MaPLe", "BMIP"], "help": "registered names"}

    def command(name: str, measure: Any, tables: list[Any], help: str, rounds: int) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(measure=measure, tables=tables, device="cpu", precision="fp32", opts=[])
        added.add_argument("--rounds", type=int, default=rounds, help="counted rounds")
        added.add_argument("--threads", type=int, default=1, help="CPU threads")
        added.add_argument("--json", "--output", dest="output", help="also write the figures as JSON")
        add_debug(added)
        return added

    def on_a_device(added: argparse.ArgumentParser) -> None:
        added.add_argument("--device", choices=("cpu", "cuda"))
        added.add_argument("--precision", help="fp32, fp16, bf16, amp")
        added.add_argument("--opts", nargs="+", help="KEY VALUE pairs for the configuration")

    for name, (measure, text) in STEP_COMMANDS.items():
        added = command(name, measure, [steps.step_lines], text, rounds=5)
        on_a_device(added)
        added.add_argument("--trainer", **trainers | {"default": ["BMIP"]})
        added.add_argument("--classes", nargs="+", type=int, default=[10, 100], help="numbers of classes")
        added.add_argument("--path", nargs="+", choices=("fast", "plain"), default=["fast", "plain"])
        added.add_argument("--backbone", choices=tuple(SIZES), default="ViT-B/16")
        added.add_argument("--batch", type=int, help="images per batch; default 100 for eval, else 4 (CoCoOp: 1)")
        added.add_argument(
            "--plain-up-to",
            type=int,
            default=SAMPLES[1],
            help=f"classes at which the plain path is still run; {SAMPLES[1]} at least and by default",
        )
        added.add_argument("--warm-up", type=int, default=1, help="rounds before those that count")

    added = command(
        *("slopes", steps.measure_slopes, [steps.slope_lines, steps.growth_lines], "how a step's cost grows"), rounds=3
    )
    on_a_device(added)
    added.add_argument("--trainer", default="BMIP", help="registered name")
    added.add_argument("--vary", nargs="+", choices=tuple(steps.DEFAULTS), default=list(steps.DEFAULTS))
    added.add_argument("--backbone", choices=tuple(steps.VARIED), default="ViT-B/16")
    added.add_argument("--path", choices=("fast", "plain"), default="fast")

    added = command("splits", runs.measure_splits, [runs.split_lines], "testing on several class splits", rounds=3)
    added.add_argument("--trainer", **trainers)
    added.add_argument("--backbone", choices=tuple(SIZES), default="ViT-B/16")
    added.add_argument("--images", type=int, default=4, help="test images of each of the ten classes")
    added.add_argument("--batch", type=int, default=100, help="images per batch")

    added = command("loader", runs.measure_loader, [runs.loader_lines], "decoding and transforms of images", rounds=5)
    on_a_device(added)
    added.add_argument("--images", help="folder that is searched for .jpg files; default: generated ones")
    added.add_argument("--size", nargs="+", default=runs.PHOTO_SIZES, help="width x height of generated images")
    added.add_argument("--count", type=int, default=64, help="number of images")
    added.add_argument("--draft", nargs="*", type=float, default=[1.0, 2.0], help="values of INPUT.JPEG_DRAFT")
    added.add_argument("--batch", type=int, default=32, help="images per batch")

    added = command("workers", runs.measure_workers, [runs.worker_lines], "loader processes kept or not", rounds=1)
    added.add_argument("--workers", nargs="+", type=int, default=[2], help="numbers of loader processes")
    added.add_argument("--shots", type=int, default=16)
    added.add_argument("--epochs", type=int, default=10, help="counted epochs of each kind")

    added = command("long_session", runs.measure_session, [runs.session_lines], "what grows in a long run", rounds=1)
    added.add_argument("--epochs", type=int, default=200)
    added.add_argument("--workers", type=int, default=2)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when the ways do not agree, something grew, or there is nothing to load."""
    return guarded(run, build_parser().parse_args(argv), {ParityError: 1, runs.NoPhotosError: 1})


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write where asked to.

    Raises:
        ParityError: the ways do not agree.
    """
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    try:
        for row in args.measure(args):
            rows.append(row)
            if args.output:  # a long measurement that is stopped keeps what it has
                with open(args.output, "w", encoding="utf-8") as file:
                    json.dump({"machine": machine(args), "command": sys.argv[1:], "rows": rows}, file, indent=1)
    finally:
        for lines in args.tables if rows else []:
            print(tabulate(lines(rows), headers="keys", tablefmt="github", disable_numparse=True), end="\n\n")


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on."""
    environment = collect_environment(args.device, args.precision)
    return {**environment, "threads": args.threads, "cores": os.cpu_count(), "machine": platform.machine()}


if __name__ == "__main__":
    sys.exit(main())
