"""Where a run's curves go beside its log: a CSV file always, Weights & Biases where it is asked for.

Owns the configuration key `TRAIN.TRACKERS`, names out of "tensorboard" and "wandb". The engine writes TensorBoard's
files while it trains; the others are written at the end of a run, from its record.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.config import cfg_default
from dassl.utils import atomic_write

HISTORY_FILE = "history.csv"
TRACKERS = ("tensorboard", "wandb")
WANDB_PROJECT = "prompt-learning"

cfg_default.TRAIN.TRACKERS = ("tensorboard",)


def check_trackers(cfg: Any) -> tuple[str, ...]:
    """The trackers of a run, once each is known and can be used: before hours of training, not after.

    Raises:
        ValueError: an unknown name, or wandb is asked for and not installed.
    """
    names = cfg.TRAIN.TRACKERS
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"TRAIN.TRACKERS must be a tuple of names out of {', '.join(TRACKERS)}, got {names!r}")
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise ValueError(f"unknown tracker {unknown[0]!r} in TRAIN.TRACKERS; choose from {', '.join(TRACKERS)}")
    if "wandb" in names:
        _import_wandb()
    return tuple(names)


def track_run(cfg: Any, record: Mapping[str, Any]) -> None:
    """Hand a finished run's record to every tracker that is written at the end.

    Args:
        cfg: the run's configuration; `OUTPUT_DIR` is where the files go.
        record: as in results.json.
    """
    if record["history"]:
        write_history(Path(cfg.OUTPUT_DIR) / HISTORY_FILE, record["history"])
    if "wandb" in cfg.TRAIN.TRACKERS:
        log_to_wandb(cfg.OUTPUT_DIR, record)


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one line per epoch, one column per quantity; empty where an epoch has none.

    Args:
        path: an existing file is replaced in one step.
        history: a mapping per epoch, as the engine collects it.
    """
    columns = list(dict.fromkeys(key for entry in history for key in entry))
    # a text file would turn the line ends into the system's own
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        text.detach()


def log_to_wandb(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Log a run's history, gates and results to Weights & Biases; WANDB_MODE=offline keeps them in the run's folder.

    Raises:
        ValueError: wandb is not installed.
    """
    wandb = _import_wandb()
    names = ("protocol", "trainer", "setting", "dataset")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
        dir=str(folder),
        name="/".join([*(str(record[name]) for name in names), f"shots{record['shots']}", f"seed{record['seed']}"]),
        group="/".join(str(record[name]) for name in names),
        config=dict(record["config"]),
    )
    try:
        for step, entry in enumerate(_by_epoch(record), start=1):
            run.log(entry, step=step)
        run.summary.update(dict(flat_metrics(record["metrics"])))
    finally:
        run.finish()


def flat_metrics(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Every number of the results under a path such as all/open_world/auroc, without the classes' own."""
    flat: list[tuple[str, float]] = []
    for key, value in metrics.items():
        if isinstance(value, Mapping) and key != "per_class":
            flat += flat_metrics(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            flat.append((f"{prefix}{key}", value))
    return flat


def _by_epoch(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """History and gates of each epoch in one mapping."""
    gates = {entry["epoch"]: entry for entry in (record["gates"] or {}).get("per_epoch", [])}
    merged = []
    for entry in record["history"]:
        own = gates.get(entry.get("epoch"), {})
        merged.append({**entry, **{f"gate/{key}": value for key, value in own.items() if key != "epoch"}})
    return merged


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "TRAIN.TRACKERS asks for wandb, which is not installed: pip install wandb, or leave it out"
        ) from error
    return wandb
