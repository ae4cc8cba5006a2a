"""A run's output folder: whether it is finished, belongs to this config and may be written to; and how the run repeats.

A run is finished when its results.json exists. A folder that was written with another config is refused, so that
nothing finished is overwritten and no half-trained run goes on with another config by accident. A run whose numbers
were not finite leaves diverged.json in place of results.json.

Owns the configuration key `TRAIN.DETERMINISTIC`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from common.commandline import listed
from common.files import RUN_LOCK, FolderLock, LockedError, atomic_write, remove_dead_temporaries
from common.free_options import flatten, is_free
from dassl.config import cfg_default, read_yaml
from dassl.utils.checkpoint import RESUME_NAME
from results.record import plain
from results.schema import CONFIG_FILE, RESULTS_FILE, ResultsError, read_results

DIVERGED_FILE = "diverged.json"
CONFUSION_FILE = "cmat.pt"
# What a run writes in its folder, and in those of its models, of TensorBoard and of class splits. A new log takes a
# name of its own.
RUN_FILES = (
    *(RESULTS_FILE, CONFIG_FILE, RESUME_NAME, DIVERGED_FILE, "history.csv", "features.npz", "predictions.npz"),
    CONFUSION_FILE,
)
MODEL_FOLDERS = ("prompt_learner", "MultiModalPromptLearner", "VLPromptLearner", "model")
CHECKPOINTS = re.compile(r"model\.pth\.tar-[0-9]+|model-best\.pth\.tar|checkpoint")
EVENTS = re.compile(r"events\.out\.tfevents\..+")
SPLIT_FOLDERS = dict.fromkeys(("base", "new", "all"), re.compile(re.escape(CONFUSION_FILE)))

cfg_default.TRAIN.DETERMINISTIC = False  # CUDA only: slower, and an operation that cannot repeat itself is an error


class RunDirError(ValueError):
    """An output folder that this run must not or cannot write to."""


@contextmanager
def run_dir(cfg: Any, overwrite: bool = False) -> Iterator[bool]:
    """Have the output folder to oneself, ready to be written to.

    Yields:
        True when the folder holds this very run, finished: there is nothing to do, and nothing was touched, but for a
        state to go on from that a killed process left.

    Raises:
        RunDirError: see `prepare_run_dir`; or the folder cannot be written to.
        LockedError: another process works in the folder; it is named.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if not overwrite and (folder / RESULTS_FILE).exists():
        finished = prepare_run_dir(cfg)
        with suppress(OSError):  # killed just after it had written its results; a folder may be for reading only
            (folder / RESUME_NAME).unlink(missing_ok=True)
        yield finished
        return
    lock = FolderLock(folder / RUN_LOCK)
    try:
        lock.acquire()
    except LockedError:
        raise
    except OSError as error:
        said = f"cannot write to the output folder {folder} ({error.strerror}): choose another --output-dir"
        raise RunDirError(said) from error
    try:
        finished = prepare_run_dir(cfg, overwrite)
        if not finished:
            remove_leftovers(folder)
        yield finished
    finally:
        lock.release()


def prepare_run_dir(cfg: Any, overwrite: bool = False) -> bool:
    """See whether a run may use ``cfg.OUTPUT_DIR``; True when it holds this very run, finished.

    With ``overwrite`` an earlier run there may be finished, or of another config; see `begin_run`.

    Raises:
        RunDirError: the folder holds a run with another config (the first differing keys are named), or a file that
            this run would write over though no run has written it.
    """
    folder = Path(cfg.OUTPUT_DIR)
    finished = not overwrite and (folder / RESULTS_FILE).exists()
    earlier = read_results(folder / RESULTS_FILE)["config"] if finished else earlier_config(folder)
    if earlier is None:
        _require_free(folder / name for name in RUN_FILES)
        _require_free(folder / split / CONFUSION_FILE for split in SPLIT_FOLDERS)
    elif not overwrite:
        then, now = flatten(earlier), flatten(plain(cfg, "config"))
        keys = [key for key in now if key in then and not is_free(key, now) and then[key] != now[key]]
        if keys:
            named = listed((f"{key} was {then[key]!r}, now {now[key]!r}" for key in keys), 3)
            raise RunDirError(
                f"{folder} holds {'a finished' if finished else 'an unfinished'} run with other settings "
                f"({named}): choose another --output-dir, or --overwrite to redo it"
            )
    return finished


def begin_run(cfg: Any, models: Sequence[str] = (), overwrite: bool = False) -> None:
    """Write config.yaml, once the run is known to be able to start, so that a continuation can be held to it.

    Args:
        cfg: the run's configuration.
        models: folders of the models that the run will train; none where it only tests.
        overwrite: remove what an earlier run wrote there, and nothing else; checkpoints only where it will train, too.

    Raises:
        RunDirError: the folder holds checkpoints, but no run: this one would go on from them or write over them.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if overwrite:
        remove_run(folder, {*MODEL_FOLDERS, *models} if models else ())
    if earlier_config(folder) is None:
        _require_free(path for model in models for path in _files(folder / model, CHECKPOINTS))
        _require_free(path for path in (folder / name for name in (*models, "tensorboard")) if not path.is_dir())
    with atomic_write(folder / CONFIG_FILE, "w") as file:
        file.write(yaml.safe_dump(plain(cfg, "config"), sort_keys=True))


def earlier_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the run that a folder holds, finished or not; None where there is none.

    A config.yaml is a run's only if it says where that run writes, as no file of settings does.
    """
    with suppress(OSError, ResultsError):
        return read_results(folder / RESULTS_FILE)["config"]
    path = folder / CONFIG_FILE
    config = read_yaml(path) if path.is_file() else None
    is_runs = isinstance(config, dict) and isinstance(config.get("TRAINER"), dict) and "OUTPUT_DIR" in config
    return config if is_runs else None


def _require_free(paths: Iterable[Path]) -> None:
    """Refuse to write over what no run has written."""
    for path in paths:
        if os.path.lexists(path):
            raise RunDirError(
                f"{path} is there, but no run that wrote it (its config.yaml): move it away or choose another "
                "--output-dir; nothing was changed"
            )


def _files(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """The files of a folder that have such names; none of a link to another folder."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if names.fullmatch(path.name) and not path.is_dir()]


@contextmanager
def clean_start(output_dir: str) -> Iterator[None]:
    """Leave nothing of a run that fails before it has begun, that is before its config.yaml is written.

    Logs of this start, and folders made for it, are removed when they hold nothing else; what was there stays.
    """
    folder = Path(output_dir)
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # the innermost first
    try:
        yield
    except LockedError:  # the new logs are another run's
        raise
    except BaseException:
        if not (folder / CONFIG_FILE).exists():
            for path in folder.glob("log.txt*"):
                if path.name not in before:
                    path.unlink(missing_ok=True)
            for path in [path for path in folder.glob("*/") if path.name not in before] + made:
                with suppress(OSError):  # it holds something, or another run has taken it
                    path.rmdir()
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of a run that was killed while it wrote them, and word of an earlier divergence."""
    if earlier_config(folder) is not None:
        (folder / DIVERGED_FILE).unlink(missing_ok=True)
    remove_dead_temporaries(folder, RUN_FILES.__contains__)
    for name, names in (dict.fromkeys(MODEL_FOLDERS, CHECKPOINTS) | SPLIT_FOLDERS).items():
        remove_dead_temporaries(folder / name, names.fullmatch)


def remove_run(folder: Path, models: Iterable[str] = MODEL_FOLDERS) -> None:
    """Remove what a folder's run has written (of models, these), but its logs, and folders that are empty then."""
    earlier = earlier_config(folder)
    if earlier is None:
        return
    below, settings = dict.fromkeys(models, CHECKPOINTS) | SPLIT_FOLDERS, flatten(earlier)
    # what the run was not asked for is somebody else's
    if "tensorboard" in settings.get("TRAIN.TRACKERS", ("tensorboard",)):
        below["tensorboard"] = EVENTS
    asked = {"features.npz": "TEST.SAVE_FEATURES", CONFUSION_FILE: "TEST.COMPUTE_CMAT"}
    asked["predictions.npz"] = "TEST.SAVE_PREDICTIONS"  # a key that earlier versions lack: they wrote no such file
    for name, names in below.items():
        if files := _files(folder / name, names):
            for path in files:
                path.unlink()
            with suppress(OSError):  # something else is in it
                (folder / name).rmdir()
    for name in reversed(RUN_FILES):  # results.json and config.yaml last: until then the folder is seen to hold a run
        if settings.get(asked.get(name), name not in asked) and not (folder / name).is_dir():
            (folder / name).unlink(missing_ok=True)


def write_divergence(trainer: Any, cfg: Any, error: FloatingPointError) -> Path:
    """Write what is known about the place where training or evaluation stopped to diverged.json; returns its path.

    The state of the last good epoch stays in the folder. The same command would come to the same end; with another
    learning rate, precision or seed it is another run, in another folder or with --overwrite.
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
        "config": plain(cfg, "config"),
    }
    with atomic_write(path, "w") as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


@contextmanager
def determinism(cfg: Any) -> Iterator[None]:
    """Set the flags that `TRAIN.DETERMINISTIC` stands for while the context lasts: CUDA repeats itself to the last bit.

    Without it CUDA is free to choose the fastest convolutions by trying them out. A run on the CPU needs none. Either
    way the same bits need the same machine, package versions and number of threads.
    """
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    if cfg.TRAIN.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(deterministic)
