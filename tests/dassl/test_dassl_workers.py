"""Loader processes: they live on between the passes of a training, and no longer."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import torch

from dassl.data import DataManager
from dassl.engine import build_trainer

# Ends with an error while loader processes wait for the next pass.
CRASH = """
import sys
from pathlib import Path
from dassl.config import get_cfg_default
from dassl.data import DataManager
import tests.dassl.tiny_run

cfg = get_cfg_default()
cfg.SEED, cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATALOADER.NUM_WORKERS = 1, "Tints", sys.argv[1], 1
cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.VERBOSE = 4, False
loader = DataManager(cfg).train_loader_x
for batch in loader:
    raise KeyError("in the middle of a pass")
"""


def workers():
    return sorted(child.pid for child in multiprocessing.active_children() if child.daemon)


def test_they_live_on_and_still_read_the_pass_that_they_are_told(cfg):
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip")

    def epochs(number):
        cfg.DATALOADER.NUM_WORKERS = number
        dm = DataManager(cfg)
        loader, seen, alive = dm.train_loader_x, [], []
        for epoch in range(3):
            dm.set_epoch(epoch)
            passes = [torch.cat([batch["img"] for batch in loader]) for _ in range(2)]
            seen.append(torch.stack(passes))
            alive.append(workers())
        next(iter(loader))  # a pass that is given up
        dm.set_epoch(3)
        seen.append(torch.cat([batch["img"] for batch in loader]))
        loader.release_workers()
        return seen, alive

    before = workers()
    seen, alive = epochs(1)
    assert alive[0] == alive[1] == alive[2] != before
    assert workers() == before
    alone, none = epochs(0)
    assert none == [before] * 3
    assert all(torch.equal(one, other) for one, other in zip(seen, alone, strict=True))


def test_training_leaves_none(cfg):
    cfg.DATALOADER.NUM_WORKERS, cfg.TEST.FINAL_MODEL = 1, "best_val"
    before, during = workers(), []
    trainer = build_trainer(cfg)
    trainer.configure(final_evaluation=lambda: (during.append(workers()), trainer.test()))
    trainer.train()
    assert during == [before]
    assert workers() == before


def test_a_signal_does_not_keep_them_from_ending_with_the_interpreter(image_root):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(image_root)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "KeyError: 'in the middle of a pass'" in done.stderr
