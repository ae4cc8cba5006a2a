"""results.json as a run builds and writes it: its settings, numbers, data and model, and what it ran on."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from common.files import atomic_write
from results.schema import REPOSITORY, SCHEMA_VERSION, dataset_label, deciding_settings, validate_results

PACKAGES = ("torch", "torchvision", "numpy", "clip-anytorch", "yacs")  # whose versions are recorded


def build_record(
    trainer: Any,
    cfg: Any,
    metrics: Mapping[str, Any],
    *,
    config_file: str,
    overrides: Mapping[str, Any],
    timing: Mapping[str, Any],
    eval_only: bool,
) -> dict[str, Any]:
    """The content of results.json, without what `write_results` fills in.

    Args:
        trainer: any Dassl trainer; prompt trainers say more (gates, trained tensors).
        cfg: its configuration.
        metrics: of every class split, as `results.evaluate.evaluate_class_splits` returns them.
        config_file: the trainer's config file, whose name is the setting's name unless ``TEST.SETTING`` gives one.
        overrides: see `overrides_of`.
        timing: seconds by phase; of those in `train`, `data` were spent waiting for the loader.
        eval_only: whether the weights were loaded rather than trained here.
    """
    train_classes = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
    protocol = "few_shot"
    if train_classes == "base":
        protocol = "open_world" if "all" in metrics else "base_to_new"
    selection_rule = "last epoch"  # never on test data
    if cfg.TEST.FINAL_MODEL == "best_val":
        selection_rule = "best epoch on the few-shot validation set"
        if cfg.TRAIN.get("PATIENCE", 0):
            selection_rule += f", stopping after {cfg.TRAIN.PATIENCE} epochs without gain"
    precision = getattr(trainer, "precision", None)  # shown as what it computed in and, if other, what was asked for
    exact = not hasattr(trainer, "is_exact") or trainer.is_exact()
    repeatable = trainer.device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
    dm, dataset = trainer.dm, trainer.dm.dataset
    split_path, on_device = getattr(dataset, "split_path", None), getattr(dm.train_loader_x, "on_device", None)
    trained = {
        f"{model}.{name}": list(tensor.shape)
        for model in trainer.get_model_names()
        for name, tensor in trainer._models[model].named_parameters()
        if tensor.requires_grad or getattr(trainer, "trains_in_stages", False)
    }
    waited = timing["data"] / timing["train"] if timing.get("train") and "data" in timing else None
    return {
        "protocol": cfg.TEST.PROTOCOL or protocol,
        "trainer": cfg.TRAINER.NAME,
        "setting": cfg.TEST.SETTING or (Path(config_file).stem if config_file else "defaults"),
        "dataset": dataset_label(cfg.DATASET),
        **({"source_dataset": cfg.TEST.SOURCE_DATASET} if cfg.TEST.SOURCE_DATASET else {}),
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "seed": cfg.SEED,
        "init_seed": cfg.MODEL.INIT_SEED if cfg.MODEL.get("INIT_SEED", -1) >= 0 else cfg.SEED,
        "shots": cfg.DATASET.NUM_SHOTS,
        "train_classes": train_classes,
        "selection_rule": selection_rule,
        "eval_only": eval_only,
        "config": plain(cfg, "config"),
        "overrides": dict(overrides),
        "environment": {
            **collect_environment(trainer.device, str(precision) if hasattr(precision, "name") else "fp32"),
            **({"frozen_linear": trainer.linear_kernels} if hasattr(trainer, "linear_kernels") else {}),
            "determinism": {
                "bit_identical": cfg.SEED >= 0 and repeatable and exact,  # the same command here gives the same bits
                "seeded": cfg.SEED >= 0,
                "resumed_exactly": exact,
                "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
                "cudnn_benchmark": torch.backends.cudnn.benchmark,
                "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
                "loader_workers": cfg.DATALOADER.NUM_WORKERS,
            },
        },
        "numerics": {
            "diverged": False,
            "amp_skipped_steps": getattr(trainer, "skipped_steps", 0),
            **({"zero_norm": trainer.zero_norm} if getattr(trainer, "zero_norm", None) else {}),
        },
        "data": {
            "split_file": os.path.basename(split_path) if split_path else None,
            "split_sha256": getattr(dataset, "split_sha256", None),
            "fewshot_sha256": getattr(dataset, "fewshot_sha256", None),
            "num_train": 0 if getattr(dataset, "test_only", False) else len(dataset.train_x or []),
            "num_val": len(dataset.val or []),
            "num_test": len(dataset.test or []),
            "classnames": list(dataset.classnames),
            "image_decoding": describe_decoding(dm.test_loader.dataset),
            "transform_train": str(dm.train_loader_x.dataset.transform),
            "transform_train_done_by": f"loader (crops), {on_device.device.type} (the rest)" if on_device else "loader",
            "transform_test": str(dm.test_loader.dataset.transform),
        },
        "model": {
            "trainable_parameters": sum(map(math.prod, trained.values())),
            "trainable_tensors": trained,
            "backbone_sha256": getattr(trainer, "backbone_sha256", None),
        },
        "metrics": dict(metrics),
        "history": list(getattr(trainer, "history", [])),
        "gates": {"per_epoch": trainer.gates} if getattr(trainer, "gates", None) else None,
        "notes": dict(getattr(trainer, "notes", {})),
        "timing": {**timing, **({} if waited is None else {"data_share": waited})},
        "memory": peak_memory(),
    }


def describe_decoding(images: Any) -> str:
    """How image files were decoded, size and orientation: part of the exact transform."""
    least = getattr(images, "draft_size", None)
    size = f"JPEG at 1, 1/2, 1/4 or 1/8 size, at least {least[0]}x{least[1]}" if least else "full size"
    return f"{size}, turned upright by EXIF" if getattr(images, "exif_orientation", False) else size


def write_results(path: str | Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Validate and write what `build_record` made; schema_version, status and finished_at are filled in.

    An existing file is replaced in one step. Returns the record as written.

    Raises:
        ValueError: a value is no JSON (NaN and infinity included), named by its key.
        ResultsError: a key is missing or of a wrong type.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    fixed = {"schema_version": SCHEMA_VERSION, "status": "finished"}
    record = plain(fixed | dict(results) | fixed | {"finished_at": results.get("finished_at", now)}, where="results")
    validate_results(record, path)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    # A list of whole numbers (a matrix's row) takes one line. No string can hold the line break looked for here: JSON
    # escapes it.
    text = re.sub(r"\[\n[\s\d,-]+\]", lambda match: f"[{' '.join(match[0][1:-1].split())}]", text)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")
    return record


def plain(value: Any, where: str) -> Any:
    """A value in JSON's own types: configuration nodes, tuples, paths, numpy values and tensors become such.

    Raises:
        ValueError: it, or something in it, has no such form; named by its dotted place under ``where``.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: what is not a finite number cannot be recorded")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist(), where)
    raise ValueError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def overrides_of(cfg: Any, files_cfg: Any) -> dict[str, Any]:
    """The deciding settings that the command line changed; `files_cfg` is the defaults and the files without it."""
    files, settings = (deciding_settings(plain(node, "config")) for node in (files_cfg, cfg))
    return {key: value for key, value in settings.items() if key not in files or files[key] != value}


# ---- What only the running process knows ----


def collect_environment(device: Any, precision: str) -> dict[str, Any]:
    """What a run ran on: code revision, versions, device (a torch device or its name), threads, precision."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    device_name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if torch.device(device).type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    elif cpu_info.is_file():
        text = cpu_info.read_text(encoding="utf-8", errors="replace")
        model = re.search(r"^model name[^:\n]*:(.*)", text, re.MULTILINE)
        device_name = model[1].strip() if model else device_name
    revision, dirty = git_state()
    return {
        "git_revision": revision,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "device": str(device),
        "device_name": device_name,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def git_state(folder: Path = REPOSITORY) -> tuple[str | None, bool | None]:
    """Revision of the code in `folder` and whether tracked files differ from it; (None, None) outside a checkout."""
    # git's own variables (set inside hooks) would point it at another repository
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    # a copy without its own .git inside somebody else's repository must not claim that one's revision
    if top is None or Path(top).resolve() != folder.resolve():
        return None, None
    status = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD"), None if status is None else bool(status)


_runs_begun = 0  # by this process


def begin_peak_memory() -> None:
    """Begin a run: CUDA's peak starts anew. A process's resident peak cannot; `peak_memory` counts the earlier runs."""
    global _runs_begun
    _runs_begun += 1
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float | None]:
    """Peak memory in MiB: the process's resident one so far (None on Windows), and CUDA's (None without CUDA).

    `earlier_runs` of the process had part in the resident one.
    """
    cuda = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    # Linux hands ru_maxrss on to a new program, which so begins with the peak of the one that started it
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    resident = next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), None)
    if resident is None and sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resident = peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB
    return {"peak_rss_mib": resident, "peak_cuda_mib": cuda, "earlier_runs": max(_runs_begun - 1, 0)}
