"""A run's output folder: is it finished, does it belong to these settings, may it be written to.

A run is finished when its results.json exists. A folder that was written with other settings is refused, so that
nothing finished is overwritten and no half-trained run is continued with different settings by accident.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from dassl.config.yamlfile import read_yaml
from dassl.utils import atomic_write
from folder_lock import RUN_LOCK, SWEEP_LOCK, LockedError, locked
from reporting.runs import RESULTS_FILE, read_results

CONFIG_FILE = "config.yaml"
DIVERGED_FILE = "diverged.json"
RESUME_FILE = "resume.pth.tar"
LEFTOVER_LOCK_SECONDS = 60.0
# Settings that may differ between a run and its continuation: where files lie and how fast they are read.
FREE_KEYS = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "USE_CUDA",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE_MB",
    "DATALOADER.DEVICE_TRANSFORM",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.CUDA_GRAPH",
    "TRAIN.TRACKERS",
    "FEATURES.REUSE",
    "FEATURES.FOLDER",
    "FEATURES.MAX_GIB",
)
WRITTEN = (
    "results.json",
    DIVERGED_FILE,
    RESUME_FILE,
    "config.yaml",
    "history.csv",
    "features.npz",
    "tensorboard",
    "prompt_learner",
)


class RunDirError(ValueError):
    """An output folder that this run must not or cannot write to."""


@contextmanager
def run_dir(cfg: Any, overwrite: bool = False) -> Iterator[bool]:
    """Have the output folder to oneself, ready to be written to.

    Args:
        cfg: the run's configuration.
        overwrite: see `prepare_run_dir`.

    Yields:
        True when the folder holds this very run, finished: there is nothing to do, and nothing was touched, but for a
        state to go on from that a killed process left.

    Raises:
        RunDirError: see `prepare_run_dir`.
        LockedError: another process works in the folder; it is named.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if not overwrite and (folder / RESULTS_FILE).exists():
        finished = prepare_run_dir(cfg)
        with suppress(OSError):  # killed just after it had written its results; a folder may be for reading only
            (folder / RESUME_FILE).unlink(missing_ok=True)
        yield finished
        return
    _require_writable(folder)
    with locked(folder):
        finished = prepare_run_dir(cfg, overwrite)
        if not finished:
            remove_leftovers(folder)
        yield finished


def prepare_run_dir(cfg: Any, overwrite: bool = False) -> bool:
    """Make the output folder ready.

    Args:
        cfg: the run's configuration; ``cfg.OUTPUT_DIR`` names the folder.
        overwrite: remove what an earlier run wrote there, and nothing else.

    Returns:
        True when the folder holds this very run, finished: there is nothing to do.

    Raises:
        RunDirError: the folder holds a run with other settings (the first differing keys are named), or cannot be
            written to.
    """
    folder = Path(cfg.OUTPUT_DIR)
    settings = flatten(plain_config(cfg))
    if overwrite:
        remove_run(folder)
    elif (folder / RESULTS_FILE).exists():
        _require_same(flatten(read_results(folder / RESULTS_FILE)["config"]), settings, folder, "a finished run")
        return True
    elif (folder / CONFIG_FILE).exists():
        earlier = read_yaml(folder / CONFIG_FILE)
        _require_same(flatten(earlier if isinstance(earlier, dict) else {}), settings, folder, "an unfinished run")
    _require_writable(folder)
    return False


@contextmanager
def clean_start(output_dir: str) -> Iterator[None]:
    """Leave nothing of a run that fails before it has begun, that is before its config.yaml is written.

    Logs of this start, and folders made for it, are removed when they hold nothing else; what was there stays.
    """
    folder = Path(output_dir)
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except LockedError:  # the new logs are another run's
        raise
    except BaseException:
        if not (folder / CONFIG_FILE).exists():
            _remove_start(folder, before, made)
        raise


def _remove_start(folder: Path, before: set[str], made: list[Path]) -> None:
    """Remove the new logs in a folder, then folders that are empty and new, the innermost first."""
    for path in folder.glob("log.txt*"):
        if path.name not in before:
            path.unlink(missing_ok=True)
    for path in [path for path in folder.glob("*/") if path.name not in before] + made:
        with suppress(OSError):  # it holds something, or another run has taken it
            path.rmdir()


def write_config(cfg: Any) -> None:
    """Write config.yaml, so that a continuation can be held to it."""
    with atomic_write(Path(cfg.OUTPUT_DIR) / CONFIG_FILE, "w") as file:
        file.write(yaml.safe_dump(plain_config(cfg), sort_keys=True))


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of a run that was killed while it wrote them, and word of an earlier divergence."""
    (folder / DIVERGED_FILE).unlink(missing_ok=True)
    for path in folder.rglob(".*.tmp"):
        # a process that asks for the lock just now has such a file for a moment
        is_lock = path.name.startswith((RUN_LOCK, SWEEP_LOCK))
        if not is_lock or time.time() - path.stat().st_mtime > LEFTOVER_LOCK_SECONDS:
            path.unlink(missing_ok=True)


def remove_run(folder: Path) -> None:
    """Remove the files that a run writes; logs are kept, a new one takes a name with the time in it."""
    for name in WRITTEN:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def plain_config(cfg: Any) -> dict[str, Any]:
    """A configuration in plain dicts and lists, as JSON and YAML hold it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(cfg)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _require_same(earlier: dict[str, Any], now: dict[str, Any], folder: Path, what: str) -> None:
    """Both have the same value for every key that both know."""
    keys = [key for key in now if key in earlier and key not in FREE_KEYS and earlier[key] != now[key]]
    if keys:
        named = ", ".join(f"{key} was {earlier[key]!r}, now {now[key]!r}" for key in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise RunDirError(
            f"{folder} holds {what} with other settings ({named}{more}): "
            "choose another --output-dir, or --overwrite to redo it"
        )


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunDirError(
            f"cannot write to the output folder {folder} ({error.strerror}): choose another --output-dir"
        ) from error
