"""What methods cost: trained parameters and floating-point operations, on a random CLIP of a published size.

    python -m benchmarks.cost --trainers CoOp MaPLe BMIP --backbone ViT-B/16 --classes 100
    python sweep.py --table cost     # with memory and throughput, as `python -m benchmarks` measures them

Operations are counted as those of a test are (results/operations.py), while the trainer runs. A head that trains on
image features which are computed beforehand has steps without the image tower; one that is fitted in one go has none.
2SFS's step is that of its first stage, and the caches of Tip-Adapter are of 16 shots.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import trainers.tip_adapter
from benchmarks.measure import SIZES, build_trainer, first_view, print_table, random_batch, random_clip
from common.commandline import add_debug, guarded
from dassl.engine import TRAINER_REGISTRY
from results.operations import OperationCounter
from sweeping.plan import REPOSITORY, TAUGHT, UNTRAINED, as_typed, setting_options
from trainers.heads import FittedTrainer, HeadTrainer

TRAIN_BATCH, SHOTS = 4, 16
TRAINERS = ("CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC", "BMIP")
MEASURES = ("train", "eval", "memory")  # of `python -m benchmarks`
COLUMNS = {
    **{"method": "{trainer}", "setting": "{setting}", "trained parameters": "{parameters:,}"},
    "GFLOPs, training step": "{train_gflops_per_step:.3g}",
    "GFLOPs, test image": "{test_gflops_per_image:.3g}",
    "GFLOPs, text features once": "{text_gflops_per_class_list:.3g}",
}


def main(argv: Sequence[str] | None = None, table: bool = False) -> int:
    """Command line, of `sweep.py --table cost` if wanted, which also measures; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="sweep.py --table cost" if table else "python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trainers", nargs="+", default=TRAINERS, metavar="NAME[=SETTING]", help="default: " + " ".join(TRAINERS))
    text = "the bundled model's settings on the smallest size, one round"
    add("--datasets", nargs="*", choices=("bundled",), default=(), help=text)
    add("--backbone", choices=tuple(SIZES), help="default: ViT-B/16")
    add("--classes", type=int, help="default: 100; of bundled data 3")
    add("--measures", nargs="*", choices=MEASURES, default=MEASURES if table else (), help="what is also measured")
    add("--device", default="cpu", help="that is measured; default: %(default)s")
    add("--precision", default="fp32", help="that is measured; default: %(default)s")
    add("--rounds", type=int, help="that are measured; default: 5, of bundled data 1")
    add("--dry-run", action="store_true", help="print the commands of what is measured only")
    add_debug(parser)
    return guarded(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Measure and count, and print."""
    bundled = bool(args.datasets)
    backbone = args.backbone or ("tiny" if bundled else "ViT-B/16")
    classes = args.classes if args.classes is not None else 3 if bundled else 100
    rounds = args.rounds if args.rounds is not None else 1 if bundled else 5
    if taught := [name for name in args.trainers if name.partition("=")[0] in TAUGHT]:
        raise ValueError(
            f"--trainers: {taught[0]} learns from a finished run, and a random CLIP has none: leave it out"
        )
    settings = [(trainer.partition("=")[0], *setting_options(trainer, bundled)) for trainer in args.trainers]
    for name, _, options in settings:
        for what in args.measures:
            if name in UNTRAINED and what != "eval":
                continue
            command = [  # in a process of its own
                *("-W", "ignore", "-m", "benchmarks", what, "--trainer", name, "--backbone", backbone),
                *("--classes", str(classes), "--path", "fast", "--device", args.device),
                *("--precision", args.precision, *([] if what == "memory" else ["--rounds", str(rounds)])),
                *("--opts", *options),
                *(f"TRAINER.{TRAINER_REGISTRY.get(name).node}.PREC", args.precision),  # the setting's is fp32
            ]
            if args.dry_run:
                print(as_typed(["python", *command]))
            elif status := subprocess.run([sys.executable, *command], cwd=REPOSITORY, check=False).returncode:
                return status
    if args.dry_run:
        return 0
    clip_model, rows = random_clip(backbone), []
    for name, setting, options in settings:
        print(f"counting {name}", file=sys.stderr)  # a method of many prompts takes minutes
        # oneDNN's kernels, which auto takes where they are faster, are counted without their backward pass
        with mock.patch.object(trainers.tip_adapter.WithCache, "n_images", SHOTS * classes):
            built = build_trainer(name, clip_model, classes, "fast", "cpu", ["TRAIN.FROZEN_LINEAR", "native", *options])
        rows.append({"trainer": name, "setting": setting, **cost_of(built)})
    print_table(rows, COLUMNS)
    print(
        f"{classes} classes, {TRAIN_BATCH} images per training step, random {backbone}. "
        "A multiplication and an addition count as two operations. A step on kept image features (CLAP) is without the "
        "image tower, and what is fitted in one go (TipAdapter, LinearProbe) has none; caches are of "
        f"{SHOTS} shots. TwoStage: its first stage's step, both stages' parameters."
    )
    return 0


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of one call."""
    # the backward pass of fused attention is not counted; written out in matrix products it is
    with sdpa_kernel(SDPBackend.MATH), OperationCounter() as counter:
        work()
    return counter.total


def cost_of(trainer: Any) -> dict[str, float]:
    """Parameters and operations of a trainer."""
    learner, batch = trainer.model.prompt_learner, random_batch(trainer, TRAIN_BATCH)
    taken, is_head = batch, isinstance(trainer, HeadTrainer)
    if is_head and trainer.views:
        taken = batch | {"img": torch.randn(TRAIN_BATCH, learner.sizes.embed_dim)}
    if is_head:
        trainer.model.text_features()  # computed once, by the first step
    trainer.set_model_mode("train")
    steps = trainer.needs_training and not isinstance(trainer, FittedTrainer)
    step = operations(lambda: trainer.forward_backward(taken)) if steps else 0
    stages = getattr(trainer, "trains_in_stages", False)
    parameters = sum(p.numel() for p in learner.parameters() if p.requires_grad or stages)
    trainer.set_model_mode("eval")
    if is_head:
        trainer.model._frozen_text.clear()  # so that they are counted on their own
    images = first_view(trainer, batch)
    with torch.no_grad():
        text = 0 if learner.varies_per_image else operations(trainer.model.text_features)
        with trainer.model.evaluating():  # the text is there, unless it depends on the image
            test = operations(lambda: trainer.model(images))
    return {
        "parameters": parameters,
        "train_gflops_per_step": step / 1e9,
        "test_gflops_per_image": test / TRAIN_BATCH / 1e9,
        "text_gflops_per_class_list": text / 1e9,
    }


if __name__ == "__main__":
    sys.exit(main())
