"""Measure epochs whose loader processes live on against epochs that start them anew, as Dassl's do.

    python -m benchmarks.workers --workers 2 --epochs 10

The loader is that of training on the bundled digits, 16 shots, batches of 4. Both kinds of epoch alternate; the batches
must be the same bit for bit. The figure is wall-clock time, since several processes work: use a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import datasets  # noqa: F401  registers the data sets
from benchmarks.measure import ParityError, summary
from benchmarks.tables import print_lines
from common.commandline import add_debug, guarded
from dassl.config import get_cfg_default
from dassl.data import DataManager

REPOSITORY = Path(__file__).resolve().parent.parent


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[2], help="numbers of loader processes")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10, help="counted epochs of each kind")
    parser.add_argument("--output", help="also write the figures as JSON")
    add_debug(parser)
    return parser


def build_loader(workers: int, shots: int) -> DataLoader:
    """The training loader."""
    cfg = get_cfg_default()
    cfg.merge_from_file(str(REPOSITORY / "configs/datasets/digits.yaml"))
    cfg.merge_from_list(["SEED", 1, "USE_CUDA", False, "VERBOSE", False, "DATASET.ROOT", str(REPOSITORY / "assets")])
    cfg.merge_from_list(["DATASET.NUM_SHOTS", shots, "DATALOADER.NUM_WORKERS", workers])
    cfg.merge_from_list(["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "INPUT.SIZE", (48, 48)])
    with contextlib.redirect_stdout(io.StringIO()):
        return DataManager(cfg).train_loader_x


def run_epoch(loader: DataLoader, epoch: int, anew: bool) -> tuple[float, torch.Tensor]:
    """Seconds and images of an epoch."""
    start = time.perf_counter()
    loader.set_epoch(epoch)
    images = torch.cat([batch["img"] for batch in loader])
    if anew:
        loader.release_workers()
    return time.perf_counter() - start, images


def measure(workers: int, args: argparse.Namespace) -> dict[str, Any]:
    """Times and ratio with some number of processes; the first epoch of each kind does not count.

    Raises:
        ParityError: the batches are not the same.
    """
    loaders = {name: build_loader(workers, args.shots) for name in ("fast", "plain")}
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for epoch in range(args.epochs + 1):
        images = {}
        for name, loader in loaders.items():
            seconds, images[name] = run_epoch(loader, epoch, anew=name == "plain")
            if epoch:
                times[name].append(seconds)
        if not torch.equal(images["fast"], images["plain"]):
            raise ParityError(f"{workers} workers, epoch {epoch + 1}: the batches differ; no ratio")
    loaders["fast"].release_workers()
    return {"workers": workers, "batches": len(loaders["fast"]), **summary(times)}


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write where asked to."""
    rows = [measure(workers, args) for workers in args.workers]
    lines = [
        {
            "workers": row["workers"],
            "batches per epoch": row["batches"],
            "kept [ms per epoch]": f"{1000 * row['fast']['median']:.0f}",
            "started anew [ms per epoch]": f"{1000 * row['plain']['median']:.0f}",
            "anew / kept": "{median:.2f} ({min:.2f} - {max:.2f})".format(**row["ratio"]),
        }
        for row in rows
    ]
    print_lines(lines)
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 when the batches differ."""
    return guarded(run, build_parser().parse_args(argv), {ParityError: 1})


if __name__ == "__main__":
    sys.exit(main())
