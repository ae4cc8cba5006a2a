"""Measure how the cost of a training step grows, beside what counting operations says.

    python -m benchmarks.slopes --trainer BMIP --output slopes.json
    python -m benchmarks.slopes --trainer CoOp --vary classes batch

One quantity at a time moves away from 10 classes, 4 images, the trainer's prompt depth and 224 pixels. Where GFLOP/s
is the same in all rows, time follows the count, so that the count may be used to plan a run. Memory is what two steps
add to the peak of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import build_quietly, options_for, training_step
from benchmarks.flops import training_flops
from benchmarks.measure import interleave
from benchmarks.memory import training_memory
from benchmarks.setup import random_batch, random_clip
from benchmarks.tables import print_lines
from common.commandline import add_debug, guarded
from dassl.config import cfg_default

DEFAULTS = {"classes": 10, "batch": 4, "depth": 0, "pixels": 0}
VALUES = {
    "ViT-B/16": {
        "classes": (10, 50, 100, 200),
        "batch": (1, 2, 4, 8),
        "depth": (1, 5, 9, 12),
        "pixels": (160, 224, 288),
    },
    "tiny": {"classes": (2, 4), "batch": (1, 2), "depth": (1, 3), "pixels": (32, 48)},
}


@dataclass(frozen=True)
class Point:
    """One setting.

    Attributes:
        varied: which quantity.
        value: of that quantity.
        classes, batch: of the step.
        depth: prompted layers; 0: the trainer's default.
        pixels: side of an image; 0: the backbone's.
    """

    varied: str
    value: int
    classes: int
    batch: int
    depth: int
    pixels: int

    @classmethod
    def varying(cls, varied: str, value: int) -> Point:
        """The default setting but for one quantity."""
        return cls(varied, value, **{**DEFAULTS, varied: value})


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.slopes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainer", default="BMIP", help="registered name")
    parser.add_argument("--vary", nargs="+", choices=tuple(DEFAULTS), default=list(DEFAULTS))
    parser.add_argument("--backbone", choices=tuple(VALUES), default="ViT-B/16")
    parser.add_argument("--path", choices=("fast", "plain"), default="fast")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", help="fp32, fp16, bf16, amp")
    parser.add_argument("--output", help="also write the figures as JSON")
    parser.add_argument("--opts", nargs="+", default=[], help="KEY VALUE pairs for the configuration")
    add_debug(parser)
    return parser


def depth_options(args: argparse.Namespace, depth: int) -> list[str]:
    """Configuration pairs that prompt so many layers.

    Raises:
        ValueError: for a trainer whose prompts have no depth.
    """
    if not depth:
        return []
    from dassl.engine import TRAINER_REGISTRY

    node = TRAINER_REGISTRY.get(args.trainer).node
    keys = [key for key in cfg_default.TRAINER[node] if key.startswith("PROMPT_DEPTH")]
    if not keys:
        raise ValueError(f"--vary depth: the prompts of {args.trainer} have no depth; leave depth out")
    return [part for key in keys for part in (f"TRAINER.{node}.{key}", str(depth))]


def measure(args: argparse.Namespace, point: Point) -> dict[str, Any]:
    """Operations, time and memory of a step."""
    options = [*options_for(args.trainer, args), *depth_options(args, point.depth)]
    resolution = point.pixels or None
    clip_model = random_clip(args.backbone, resolution=resolution)
    gflop = training_flops(clip_model, args.trainer, point.classes, args.path, point.batch, options)
    trainer = build_quietly(args.trainer, clip_model, point.classes, args.path, args.device, options)
    work = training_step(trainer, random_batch(trainer, point.batch))
    (seconds,) = interleave({args.path: work}, args.device, args.rounds).values()
    mib = training_memory(
        args.backbone, args.trainer, point.classes, args.path, point.batch, options, args.device, resolution
    )
    return {"varied": point.varied, "value": point.value, "gflop": gflop, "seconds": seconds, "mib": mib}


def slope(rows: Sequence[dict[str, Any]], value: str) -> float:
    """Least-squares slope of a figure against the varied quantity; of the image's side, against its pixels."""
    x = [float(row["value"]) ** (2 if row["varied"] == "pixels" else 1) for row in rows]
    return statistics.linear_regression(x, [figure(row, value) for row in rows]).slope


def figure(row: dict[str, Any], value: str) -> float:
    """A figure of a row; of its times the median, in ms."""
    return 1000 * statistics.median(row["seconds"]) if value == "ms" else row[value]


def print_tables(rows: Sequence[dict[str, Any]]) -> None:
    """Every point, then how much each figure grows with each quantity."""
    lines = [
        {
            "varied": row["varied"],
            "value": row["value"],
            "counted [GFLOP]": f"{row['gflop']:.1f}",
            "step [ms]": f"{figure(row, 'ms'):.0f}",
            "GFLOP/s": f"{1000 * row['gflop'] / figure(row, 'ms'):.1f}",
            "memory [MiB]": f"{row['mib']:.0f}",
        }
        for row in rows
    ]
    print_lines(lines)
    growth = []
    for varied in dict.fromkeys(row["varied"] for row in rows):
        some = [row for row in rows if row["varied"] == varied]
        unit = "pixel" if varied == "pixels" else {"classes": "class", "batch": "image", "depth": "layer"}[varied]
        growth.append({"per": unit} | {f"{v}": f"{slope(some, v):.3g}" for v in ("gflop", "ms", "mib")})
    print()
    print_lines(growth)


def run(args: argparse.Namespace) -> None:
    """Measure all points, print, and write where asked to."""
    torch.set_num_threads(args.threads)
    rows = []
    for varied in args.vary:
        for value in VALUES[args.backbone][varied]:
            rows.append(measure(args, Point.varying(varied, value)))
            if args.output:  # a long measurement that is stopped keeps what it has
                Path(args.output).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print_tables(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return guarded(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
