"""What methods cost: trained parameters and floating-point operations, on a random CLIP of a published size.

    python -m benchmarks.cost --trainers CoOp MaPLe BMIP --backbone ViT-B/16 --classes 100
    python sweep.py --table cost     # with memory and throughput, as `python -m benchmarks` measures them

Operations are counted by torch.utils.flop_counter while the trainer runs (a multiplication and an addition are two);
what cannot be counted so, element-wise work, is left out, as is usual.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import SIZES, build_trainer, first_view, random_batch, random_clip
from common.commandline import add_debug, guarded
from results.schema import RESULTS_FILE
from sweeping.plan import REPOSITORY, UNTRAINED, as_typed, setting_options

TRAIN_BATCH = 4
TRAINERS = ("CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC", "BMIP")
MEASURES = ("train", "eval", "memory")  # of `python -m benchmarks`


def build_parser(table: bool = False) -> argparse.ArgumentParser:
    """Command line; of `sweep.py --table cost` if wanted."""
    parser = argparse.ArgumentParser(
        prog="sweep.py --table cost" if table else "python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trainers", nargs="+", default=list(TRAINERS if table else ()), metavar="NAME[=SETTING]")
    parser.add_argument("--backbone", choices=tuple(SIZES), default="ViT-B/16")
    parser.add_argument("--classes", type=int, help="default: 100; of the bundled model 3")
    parser.add_argument("--tiny", action="store_true", help="the settings of the bundled model")
    parser.add_argument("--measures", nargs="*", choices=MEASURES, default=list(MEASURES if table else ()))
    parser.add_argument("--device", default="cpu", help="that is measured; default: %(default)s")
    parser.add_argument("--precision", default="fp32", help="that is measured; default: %(default)s")
    parser.add_argument("--rounds", type=int, help="that are measured; default: 5, of the bundled model 1")
    if table:
        parser.add_argument("--datasets", nargs="*", help="'bundled': a few classes on the smallest size, one round")
        parser.add_argument("--output", dest="runs", type=lambda text: Path(text, "open_world"), default="output")
        parser.add_argument("--dry-run", action="store_true", help="print the commands of what is measured only")
    else:
        parser.add_argument("--runs", type=Path, help="folder of finished runs that may tell the number of parameters")
        parser.add_argument("--output", type=Path, help="also write the figures as JSON")
        parser.set_defaults(datasets=None, dry_run=False)
    add_debug(parser)
    return parser


def main(argv: Sequence[str] | None = None, table: bool = False) -> int:
    """Command line; returns the exit status."""
    args = build_parser(table).parse_args(argv)
    if args.datasets == ["bundled"]:
        args.tiny, args.backbone = True, "tiny"
    small = args.backbone == "tiny"
    args.classes = (3 if small and table else 100) if args.classes is None else args.classes
    args.rounds = (1 if small else 5) if args.rounds is None else args.rounds
    return guarded(run, args)


def run(args: argparse.Namespace) -> int:
    """Measure and count, print, and write where asked to."""
    status = measure(args)
    if status or args.dry_run:
        return status
    clip_model = random_clip(args.backbone)
    rows = []
    for trainer in args.trainers:
        print(f"counting {trainer}", file=sys.stderr)  # a method of many prompts takes minutes
        row = cost_of(trainer, clip_model, args.classes, args.tiny)
        recorded = recorded_parameters(args.runs, row["trainer"], row["setting"])
        row["recorded"] = recorded is not None
        rows.append(row if recorded is None else row | {"parameters": recorded})
    print(report(rows, args))
    if getattr(args, "output", None):
        args.output.write_text(json.dumps({"classes": args.classes, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(args: argparse.Namespace) -> int:
    """Run `python -m benchmarks` for each method and measure, each in a process of its own; the first bad status."""
    settings = [(trainer.partition("=")[0], setting_options(trainer, args.tiny)[1]) for trainer in args.trainers]
    for name, options in settings:
        for what in args.measures:
            if name in UNTRAINED and what != "eval":
                continue
            command = [
                *("-W", "ignore", "-m", "benchmarks", what, "--trainer", name, "--backbone", args.backbone),
                *("--classes", str(args.classes), "--path", "fast", "--device", args.device),
                *("--precision", args.precision, "--rounds", str(args.rounds), "--opts", *options),
            ]
            if args.dry_run:
                print(as_typed(["python", *command]))
            elif status := subprocess.run([sys.executable, *command], cwd=REPOSITORY, check=False).returncode:
                return status
    return 0


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of one call."""
    # fused attention on the CPU is not counted by torch; written out in matrix products it is
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def cost_of(trainer: str, clip_model: torch.nn.Module, classes: int, tiny: bool) -> dict[str, Any]:
    """Parameters and operations of one method, given as "NAME" or "NAME=SETTING"."""
    name = trainer.partition("=")[0]
    setting, options = setting_options(trainer, tiny)
    built = build_trainer(name, clip_model, classes, "fast", "cpu", options)
    learner, batch = built.model.prompt_learner, random_batch(built, TRAIN_BATCH)
    built.set_model_mode("train")
    step = operations(lambda: built.forward_backward(batch)) if built.needs_training else 0
    parameters = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    built.set_model_mode("eval")
    learner.requires_grad_(False)  # the counter follows gradients, which testing has none of
    images = first_view(built, batch)
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
    lines = [
        {
            "method": row["trainer"],
            "setting": row["setting"],
            "trained parameters": f"{row['parameters']:,}" + (" (results.json)" if row["recorded"] else ""),
            "GFLOPs, training step": f"{row['train_gflops_per_step']:.3g}",
            "GFLOPs, test image": f"{row['test_gflops_per_image']:.3g}",
            "GFLOPs, text features once": f"{row['text_gflops_per_class_list']:.3g}",
        }
        for row in rows
    ]
    table = tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
    return (
        f"{table}\n\n{args.classes} classes, {TRAIN_BATCH} images per training step, random {args.backbone}. "
        "A multiplication and an addition count as two operations."
    )


if __name__ == "__main__":
    sys.exit(main())
