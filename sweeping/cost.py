"""What methods cost: trained parameters and floating-point operations, on a random CLIP of a published size.

    python -m sweeping.cost --trainers CoOp MaPLe BMIP --backbone ViT-B/16 --classes 100

Operations are counted by torch.utils.flop_counter while the trainer runs (a multiplication and an addition are two);
what cannot be counted so, element-wise work, is left out, as is usual.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import SIZES, build_trainer, random_batch, random_clip
from common.commandline import add_debug, guarded
from results.schema import RESULTS_FILE
from sweeping.settings import setting_options

TRAIN_BATCH = 4


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sweeping.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainers", nargs="+", default=[], metavar="NAME[=SETTING]")
    parser.add_argument("--backbone", choices=tuple(SIZES), default="ViT-B/16")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--tiny", action="store_true", help="the settings of the bundled model")
    parser.add_argument("--runs", type=Path, help="folder of finished runs that may tell the number of parameters")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    add_debug(parser)
    return parser


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of one call."""
    # fused attention on the CPU is not counted by torch; written out in matrix products it is
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def cost_of(trainer: str, clip_model: torch.nn.Module, classes: int, tiny: bool) -> dict[str, Any]:
    """Parameters and operations of one method.

    Args:
        trainer: "NAME" or "NAME=SETTING".
        clip_model: the frozen CLIP.
        classes: number of classes in training and testing.
        tiny: the bundled model's settings.
    """
    name = trainer.partition("=")[0]
    setting, options = setting_options(trainer, tiny)
    with contextlib.redirect_stdout(io.StringIO()):  # what Dassl says while building is no result
        built = build_trainer(name, clip_model, classes, "fast", "cpu", options)
    learner = built.model.prompt_learner
    batch = random_batch(built, TRAIN_BATCH)
    built.set_model_mode("train")
    step = operations(lambda: built.forward_backward(batch)) if built.needs_training else 0
    parameters = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    built.set_model_mode("eval")
    learner.requires_grad_(False)  # the counter follows gradients, which testing has none of
    images = built.parse_batch_train(batch)[0]
    images = images[0] if isinstance(images, list) else images
    with torch.no_grad():
        test = operations(lambda: built.model(images))
        text = 0 if learner.varies_per_image else operations(built.model.text_features)
    return {
        "trainer": name,
        "setting": setting,
        "parameters": parameters,
        "train_gflops_per_step": step / 1e9,
        "test_gflops_per_image": (test - text) / TRAIN_BATCH / 1e9,
        "text_gflops_per_class_list": text / 1e9,
    }


def recorded_parameters(runs: Path | None, trainer: str, setting: str) -> int | None:
    """The number of trained parameters that a finished run of this setting recorded; None without one."""
    found = sorted((runs / trainer / setting).rglob(RESULTS_FILE)) if runs else []
    return json.loads(found[0].read_text(encoding="utf-8"))["model"]["trainable_parameters"] if found else None


def report(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The figures as a table, and what they are."""
    head = (
        *("method", "setting", "trained parameters"),
        *("GFLOPs, training step", "GFLOPs, test image", "GFLOPs, text features once"),
    )
    lines = [
        (
            *(row["trainer"], row["setting"]),
            f"{row['parameters']:,}" + (" (results.json)" if row["recorded"] else ""),
            *(f"{row[key]:.3g}" for key in row if "gflops" in key),
        )
        for row in rows
    ]
    table = tabulate(lines, headers=head, tablefmt="github", disable_numparse=True)
    legend = (
        f"{args.classes} classes, {TRAIN_BATCH} images per training step, random {args.backbone}. A multiplication and "
        "an addition count as two operations."
    )
    return f"{table}\n\n{legend}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return guarded(run, build_parser().parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Count, print, and write where asked to."""
    clip_model = random_clip(args.backbone)
    rows = []
    for trainer in args.trainers:
        print(f"counting {trainer}", file=sys.stderr)  # a method of many prompts takes minutes
        rows.append(cost_of(trainer, clip_model, args.classes, args.tiny))
    for row in rows:
        recorded = recorded_parameters(args.runs, row["trainer"], row["setting"])
        row["recorded"] = recorded is not None
        row["parameters"] = row["parameters"] if recorded is None else recorded
    print(report(rows, args))
    if args.output:
        args.output.write_text(json.dumps({"classes": args.classes, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
