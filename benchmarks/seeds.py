"""Measure training steps of several seeds at once against one seed after the other.

    python -m benchmarks.seeds --trainer CoOp MaPLe BMIP --seeds 3 --classes 10
    python -m benchmarks.seeds --backbone tiny --seeds 2 4 8

Both ways alternate in one process, with random weights and images; the figure is CPU time with one thread, or CUDA time
between events, of one step of one seed. Losses and gradients that differ are an error, not a ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import MIN_GRADIENT_COSINE, ParityError, interleave, summary
from benchmarks.setup import SIZES, build_trainer, random_batch, random_clip
from benchmarks.tables import print_lines
from common.commandline import add_debug, guarded
from sweeping.plan import setting_options
from trainers.together import join_trainer, run_together

MAX_LOSS_DIFFERENCE = 1e-4


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainer", nargs="+", default=["CoOp", "MaPLe", "BMIP"], help="registered names")
    parser.add_argument("--seeds", nargs="+", type=int, default=[3], help="how many at once")
    parser.add_argument("--classes", nargs="+", type=int, default=[10])
    parser.add_argument("--backbone", choices=tuple(SIZES), default="ViT-B/16")
    parser.add_argument("--batch", type=int, default=4, help="images per seed")
    parser.add_argument("--steps", type=int, default=1, help="steps of each seed in a round")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--output", help="also write the figures as JSON")
    add_debug(parser)
    return parser


def leave(trainer: Any) -> None:
    """Undo :func:`trainers.together.join_trainer`."""
    del trainer.model.image_encoder.forward, trainer.model.text_encoder.forward, trainer.model_backward
    del trainer.scaled_backward
    trainer.device_step = trainer.build_device_step()


def together(trainers: Sequence[Any], step: Callable[[Any], Any]) -> list[Any]:
    """Do something with every trainer side by side."""

    def work(trainer: Any) -> Callable[[], Any]:
        def joined() -> Any:
            join_trainer(trainer)
            try:
                return step(trainer)
            finally:
                leave(trainer)

        return joined

    return run_together([work(trainer) for trainer in trainers])


def check(trainers: Sequence[Any], batches: Sequence[Any]) -> dict[str, float]:
    """Largest difference of losses and smallest gradient cosine of one step, alone and together.

    Raises:
        ParityError: they are not the same but for rounding.
    """
    states = [{k: v.clone() for k, v in trainer.model.prompt_learner.state_dict().items()} for trainer in trainers]

    def step(trainer: Any) -> tuple[float, list[Tensor]]:
        index = trainers.index(trainer)
        trainer.model.prompt_learner.load_state_dict(states[index])
        if hasattr(trainer.objective, "step"):
            trainer.objective.step = 0  # the same draw for both
        loss = trainer.forward_backward(batches[index])["loss"]
        return loss, [p.grad.clone() for p in trainer.model.prompt_learner.parameters() if p.grad is not None]

    pairs = list(zip(map(step, trainers), together(trainers, step), strict=True))
    difference = max(abs(alone[0] - joint[0]) for alone, joint in pairs)
    cosine = min(
        float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0, eps=1e-30))
        for alone, joint in pairs
        for a, b in zip(alone[1], joint[1], strict=True)
        if a.numel() > 1 and a.abs().max() > 0
    )
    if difference > MAX_LOSS_DIFFERENCE or cosine < MIN_GRADIENT_COSINE:
        raise ParityError(f"losses differ by {difference:.1e}, gradient cosine {cosine:.8f}")
    return {"max_loss_difference": difference, "min_gradient_cosine": cosine}


def measure(name: str, clip_model: nn.Module, seeds: int, classes: int, args: argparse.Namespace) -> dict[str, Any]:
    """Times, ratio and parity of one trainer."""
    options = setting_options(name, bundled=args.backbone == "tiny")[1]
    with contextlib.redirect_stdout(io.StringIO()):
        trainers = [
            build_trainer(name, clip_model, classes, "fast", args.device, [*options, "MODEL.INIT_SEED", str(seed)])
            for seed in range(seeds)
        ]
    batches = [random_batch(trainer, args.batch, seed) for seed, trainer in enumerate(trainers)]
    for trainer in trainers:
        trainer.set_model_mode("train")
    result = check(trainers, batches)

    def steps(trainer: Any) -> None:
        for _ in range(args.steps):
            trainer.forward_backward(batches[trainers.index(trainer)])

    works = {
        "plain": lambda: [steps(trainer) for trainer in trainers],  # one seed after the other
        "fast": lambda: together(trainers, steps),
    }
    times = interleave(works, args.device, args.rounds)
    per_step = {way: [seconds / (seeds * args.steps) for seconds in values] for way, values in times.items()}
    return {"trainer": name, "seeds": seeds, "classes": classes, "batch": args.batch, **result, **summary(per_step)}


def print_table(rows: list[dict[str, Any]]) -> None:
    """The figures as a table."""
    lines = [
        {
            **{key: row[key] for key in ("trainer", "classes", "batch", "seeds")},
            "alone [ms per step]": f"{1000 * row['plain']['median']:.1f}",
            "together [ms per step]": f"{1000 * row['fast']['median']:.1f}",
            "alone / together": "{median:.2f} ({min:.2f} - {max:.2f})".format(**row["ratio"]),
            "max loss difference": f"{row['max_loss_difference']:.1e}",
            "min gradient cosine": f"{row['min_gradient_cosine']:.7f}",
        }
        for row in rows
    ]
    print_lines(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when the ways do not agree."""
    return guarded(run, build_parser().parse_args(argv), {ParityError: 1})


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write where asked to.

    Raises:
        ParityError: the ways do not agree.
    """
    torch.set_num_threads(args.threads)
    clip_model, rows = random_clip(args.backbone), []
    for name, classes, seeds in itertools.product(args.trainer, args.classes, args.seeds):
        try:
            rows.append(measure(name, clip_model, seeds, classes, args))
        except ParityError as error:
            raise ParityError(f"{name}, {seeds} seeds: {error}") from error
    print_table(rows)
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
