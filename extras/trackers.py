"""Where a run's curves go beside its log: a CSV file always, Weights & Biases where it is asked for.

Owns the configuration key `TRAIN.TRACKERS`, names out of "tensorboard" and "wandb". The engine writes TensorBoard's
files while it trains; the others are written at the end of a run, from its record: train.py calls `track_run`.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import atomic_write
from dassl.config import cfg_default

TRACKERS = ("tensorboard", "wandb")

cfg_default.TRAIN.TRACKERS = ("tensorboard",)


def check_trackers(cfg: Any) -> tuple[str, ...]:
    """The trackers of a run; ValueError, before hours of training, where one is unknown or is not installed."""
    names, choices = cfg.TRAIN.TRACKERS, ", ".join(TRACKERS)
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"TRAIN.TRACKERS must be a tuple of names out of {choices}, got {names!r}")
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r} in TRAIN.TRACKERS; choose from {choices}")
    if "wandb" in names:
        _import_wandb()
    return tuple(names)


def track_run(cfg: Any, record: Mapping[str, Any]) -> None:
    """Hand a finished run's record to every tracker that is written at the end.

    history.csv has a line per epoch and a column per quantity, empty where an epoch has none. WANDB_MODE=offline keeps
    what goes to Weights & Biases (history, gates and results) in the run's folder. The record is that of results.json.
    """
    history = record["history"]
    if history:
        text = io.StringIO()
        columns = dict.fromkeys(key for entry in history for key in entry)
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        with atomic_write(Path(cfg.OUTPUT_DIR) / "history.csv") as file:
            file.write(text.getvalue().encode())
    if "wandb" not in cfg.TRAIN.TRACKERS:
        return
    group = "/".join(str(record[name]) for name in ("protocol", "trainer", "setting", "dataset"))
    run = _import_wandb().init(
        project=os.environ.get("WANDB_PROJECT", "prompt-learning"),
        dir=str(cfg.OUTPUT_DIR),
        name=f"{group}/shots{record['shots']}/seed{record['seed']}",
        group=group,
        config=dict(record["config"]),
    )
    gates = {entry["epoch"]: entry for entry in (record["gates"] or {}).get("per_epoch", [])}
    try:
        for step, entry in enumerate(history, start=1):
            of_epoch = gates.get(entry.get("epoch"), {})
            run.log(entry | {f"gate/{key}": value for key, value in of_epoch.items() if key != "epoch"}, step=step)
        run.summary.update(_numbers(record["metrics"]))
    finally:
        run.finish()


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of the results under a path such as all/open_world/auroc, without the classes' own."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping) and key != "per_class":
            flat |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            flat[f"{prefix}{key}"] = value
    return flat


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "TRAIN.TRACKERS asks for wandb, which is not installed: pip install wandb, or leave it out"
        ) from error
    return wandb
