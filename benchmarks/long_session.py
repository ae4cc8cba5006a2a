"""Whether file handles, processes and memory stay flat over a long run: CoOp on the bundled digits, on the CPU.

    python -m benchmarks.long_session                # 200 epochs, two loader workers: prints what grew
    python -m benchmarks.long_session --workers 0

Linux only, since it reads /proc. Exit status 1 when something grew beyond its bound.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import datasets  # noqa: F401  registers the data sets
import trainers  # noqa: F401  registers the trainers
from benchmarks.tables import print_lines
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed

REPOSITORY = Path(__file__).resolve().parent.parent
WARM_UP = 10  # epochs until allocators and caches have what they keep
MOST_MIB = 30.0  # that may be added after the warm-up


def configuration(epochs: int, workers: int, output: str) -> object:
    """CoOp at its tiny setting, two shots, one batch of five after the other."""
    cfg = get_cfg_default()
    cfg.merge_from_file(str(REPOSITORY / "configs/trainers/CoOp/tiny_c4_ep50_batch32.yaml"))
    cfg.merge_from_file(str(REPOSITORY / "configs/datasets/digits.yaml"))
    cfg.merge_from_list(["TRAINER.NAME", "CoOp", "DATASET.ROOT", str(REPOSITORY / "assets"), "DATASET.NUM_SHOTS", 2])
    cfg.merge_from_list(["OPTIM.MAX_EPOCH", epochs, "DATALOADER.NUM_WORKERS", workers, "SEED", 1, "USE_CUDA", False])
    cfg.merge_from_list(["DATALOADER.TRAIN_X.BATCH_SIZE", 5, "OUTPUT_DIR", output, "TEST.NO_TEST", True])
    cfg.freeze()
    return cfg


def held() -> tuple[int, int, float]:
    """Open file handles, child processes and resident memory in MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    handles = len(os.listdir("/proc/self/fd"))
    return handles, len(multiprocessing.active_children()), pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(epochs: int, workers: int) -> list[tuple[int, int, float]]:
    """What the process holds after each epoch of a run."""
    rows: list[tuple[int, int, float]] = []
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
        cfg = configuration(epochs, workers, output)
        set_random_seed(1)
        kind = TRAINER_REGISTRY.get("CoOp")

        class Watched(kind):
            """Takes stock after each epoch."""

            def after_epoch(self) -> None:
                super().after_epoch()
                rows.append(held())

        TRAINER_REGISTRY.register(force=True)(type("CoOp", (Watched,), {}))
        build_trainer(cfg).train()
        TRAINER_REGISTRY.register(force=True)(kind)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    rows = measure(args.epochs, args.workers)
    first, last = rows[min(WARM_UP, len(rows)) - 1], rows[-1]
    epochs = {1: rows[0], min(WARM_UP, len(rows)): first, len(rows): last}
    print_lines([line_of(epoch, row) for epoch, row in epochs.items()])
    grown = last[0] > first[0] or last[1] > first[1] or last[2] > first[2] + MOST_MIB
    return int(grown)


def line_of(epoch: int, row: tuple[int, int, float]) -> dict[str, str | int]:
    """A line of the table."""
    handles, processes, mib = row
    return {"after epoch": epoch, "file handles": handles, "processes": processes, "memory (MiB)": f"{mib:.0f}"}


if __name__ == "__main__":
    sys.exit(main())
