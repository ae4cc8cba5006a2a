"""The record of a run whose numbers were not finite: diverged.json, in the place of results.json, which means finished.

The state of the last good epoch stays in the folder. The same command would come to the same end; with another
learning rate, precision or seed it is another run, in another folder or with --overwrite.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dassl.utils import atomic_write
from results.rundir import DIVERGED_FILE, plain_config


def write_divergence(trainer: Any, cfg: Any, error: FloatingPointError) -> Path:
    """Write what is known about the place where training or evaluation stopped, and return the path.

    Args:
        trainer: that the error came from.
        cfg: its configuration.
        error: what it said.
    """
    path = Path(cfg.OUTPUT_DIR) / DIVERGED_FILE
    testing = getattr(trainer, "evaluating", "")
    record = {
        "status": "diverged",
        "reason": str(error),
        "during": f"evaluation ({testing})" if testing else "training",
        "epoch": trainer.epoch + 1,
        "batch": None if testing else getattr(trainer, "batch_idx", -1) + 1,
        "images": trainer.batch_images() if hasattr(trainer, "batch_images") else [],
        "finished_epochs": len(trainer.history),
        "amp_skipped_steps": getattr(trainer, "skipped_steps", 0),
        "history": trainer.history,
        "config": plain_config(cfg),
    }
    with atomic_write(path, "w") as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path
