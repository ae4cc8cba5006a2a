"""Measure what reusing image features saves when a run is tested on base, new and all classes.

    python -m benchmarks.splits --trainer CoOp MaPLe BMIP
    python -m benchmarks.splits --trainer CoOp --backbone tiny --images 4 --rounds 3

A random CLIP tests on bundled digits. Three works alternate in one process: a pass over the images for every class
split (FEATURES.REUSE False), one pass for all of them, and, where the image tower is frozen, no pass, as in a second
seed or method. Metrics that differ in any digit are an error, not a ratio. The figure is CPU time with one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import datasets  # noqa: F401  registers the data sets
from benchmarks.measure import ParityError, interleave, summary
from benchmarks.setup import SIZES, random_clip
from benchmarks.tables import print_lines
from common.commandline import add_debug, guarded
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from results.feature_store import forget_all
from results.protocols import evaluate_class_splits
from sweeping.plan import REPOSITORY, setting_options

SPLITS = ("base", "new", "all")


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.splits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainer", nargs="+", default=["CoOp", "MaPLe", "BMIP"], help="registered names")
    parser.add_argument("--backbone", choices=tuple(SIZES), default="ViT-B/16")
    parser.add_argument("--images", type=int, default=4, help="test images of each of the ten classes")
    parser.add_argument("--batch", type=int, default=100, help="images per batch")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", help="also write the figures as JSON")
    add_debug(parser)
    return parser


@contextlib.contextmanager
def few_digits(images: int) -> Any:
    """A data root with the bundled digits, the test set cut to a number of images per class."""
    source = REPOSITORY / "assets" / "digits"
    split = json.loads((source / "split_digits.json").read_text(encoding="utf-8"))
    by_label = [[item for item in split["test"] if item[1] == label] for label in range(10)]
    split["test"] = [item for items in by_label for item in items[:images]]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "digits")
        folder.mkdir()
        (folder / "split_digits.json").write_text(json.dumps(split), encoding="utf-8")
        (folder / "images").symlink_to(source / "images")
        yield root


def build_trainer(name: str, clip_model: nn.Module, root: str, args: argparse.Namespace, reuse: bool) -> Any:
    """A trainer of base digits on a given CLIP, with its published setting."""
    cfg = get_cfg_default()
    cfg.merge_from_file(str(REPOSITORY / "configs" / "datasets" / "digits.yaml"))
    size = clip_model.visual.input_resolution
    pairs = ["DATASET.ROOT", root, "DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "SEED", "1"]
    pairs += ["INPUT.SIZE", f"({size}, {size})", "INPUT.TRANSFORMS", "('normalize',)", "VERBOSE", "False"]
    pairs += ["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TEST.BATCH_SIZE", str(args.batch), "USE_CUDA", "False"]
    pairs += ["FEATURES.REUSE", str(reuse), "TRAINER.NAME", name]
    cfg.merge_from_list(pairs + setting_options(name, bundled=args.backbone == "tiny")[1])
    cfg.freeze()
    kind = TRAINER_REGISTRY.get(name)
    return type(kind.__name__, (kind,), {"load_backbone": lambda self: clip_model})(cfg)


def evaluation(trainer: Any, results: dict[str, Any], name: str, forget: bool) -> Callable[[], None]:
    """Test on all class splits; the metrics, but for the seconds, go into ``results``."""

    def work() -> None:
        if forget:
            forget_all()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            metrics = evaluate_class_splits(trainer, trainer.cfg, SPLITS)
        results[name] = {split: {k: v for k, v in m.items() if k != "seconds"} for split, m in metrics.items()}

    return work


def measure(name: str, clip_model: nn.Module, root: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times of one trainer, once the metrics are known to be equal.

    Raises:
        ParityError: they are not.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        plain, fast = (build_trainer(name, clip_model, root, args, reuse) for reuse in (False, True))
        for trainer in (plain, fast):  # another class list's loaders are built when it is first asked for
            for split in (*SPLITS, "base"):
                trainer.set_class_split(split)
    results: dict[str, Any] = {}
    works = {
        "plain": evaluation(plain, results, "plain", forget=False),
        "fast": evaluation(fast, results, "fast", forget=True),
    }
    if fast.image_features_follow == "image":
        works["known"] = evaluation(fast, results, "known", forget=False)
    times = interleave(works, "cpu", args.rounds)
    if any(metrics != results["plain"] for metrics in results.values()):
        raise ParityError("the metrics of the class splits are not those of separate passes")
    row = {"trainer": name, "follow": fast.image_features_follow, "images": 10 * args.images, **summary(times)}
    if "known" in times:
        ratios = [a / b for a, b in zip(times["plain"], times["known"], strict=True)]
        row["ratio_known"] = {"median": sorted(ratios)[len(ratios) // 2], "min": min(ratios), "max": max(ratios)}
    return row


def print_table(rows: list[dict[str, Any]]) -> None:
    """The figures as a table."""

    def ratio(row: dict[str, Any], key: str) -> str:
        value = row.get(key)
        return f"{value['median']:.2f} ({value['min']:.2f} - {value['max']:.2f})" if value else "-"

    lines = [
        {
            "trainer": row["trainer"],
            "features follow": row["follow"],
            "three passes [s]": f"{row['plain']['median']:.2f}",
            "one pass [s]": f"{row['fast']['median']:.2f}",
            "ratio": ratio(row, "ratio"),
            "ratio, features known": ratio(row, "ratio_known"),
        }
        for row in rows
    ]
    print_lines(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when the metrics differ."""
    return guarded(run, build_parser().parse_args(argv), {ParityError: 1})


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write where asked to.

    Raises:
        ParityError: the metrics differ.
    """
    torch.set_num_threads(args.threads)
    clip_model, rows = random_clip(args.backbone), []
    with few_digits(args.images) as root:
        for name in args.trainer:
            try:
                rows.append(measure(name, clip_model, root, args))
            except ParityError as error:
                raise ParityError(f"{name}: {error}") from error
    print_table(rows)
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
